"""Finds, parses and checks the prompt templates that a route names. Rendering belongs to the room that calls models."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from posixpath import dirname, normpath
from typing import Any

import minijinja

from drivetrain.core.declarations import Place
from drivetrain.core.errors import did_you_mean, nearest
from drivetrain.project.problems import Problems, shown

_INCLUDE = re.compile(r"\{%-?\s*(?:include|extends|import|from)\s+(?:\"([^\"]+)\"|'([^']+)')")
_TAG = re.compile(r"\{[{%](.*?)[%}]\}", re.DOTALL)
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'", re.DOTALL)
_FILTER = re.compile(r"\|\s*([A-Za-z_]\w*)")
FUEL = 100_000
"""Steps that rendering a template for the check may take; whatever needs more is not checked so."""
ALWAYS_FAILS = {
    "TooManyArguments": "a filter, a function or a method gets more arguments than it takes",
    "MissingArgument": "a filter, a function or a method lacks an argument",
    "UnknownMethod": "it calls a method that its value does not have",
    "UnknownTest": "it uses a test that does not exist",
}
"""Kinds of the engine's errors that depend on the template and the values' types alone, in words."""
FILTERS_HELP = (
    "See https://docs.rs/minijinja/latest/minijinja/filters/; options have names there: `truncate(length=24)`."
)
INCLUDES_MAX = 100
"""Templates that one prompt may include, over all levels."""


class Prompts:
    """The templates of one project, as its routes name them."""

    def __init__(self, files: Mapping[str, bytes], problems: Problems) -> None:
        self.templates: dict[str, str] = {}
        """Path relative to the project -> text, of every template that was named."""
        self._files = files
        self._problems = problems
        self._environment = minijinja.Environment()

    def find(self, name: str, place: Place, label: str) -> str | None:
        """The project's path of a template, looked up beside the declaration, in workflows/, then at the root."""
        found = self.path_of(name, place.file)
        if found is not None:
            return found
        tried = _places(name, place.file)
        what = f"{label} names the file {shown(name)}, which does not exist. Looked in: {', '.join(tried)}."
        others = [path for path in self._files if not path.endswith((".py", ".toml"))]
        near = nearest(name, [path.rpartition("/")[2] for path in others]) or nearest(tried[0], others)
        do = f"Did you mean `{near}`?" if near else "Make the file in `workflows/` or `prompts/`."
        if "\n" in name or "{{" in name or " " in name.strip():
            do = "It takes the name of a file; put the text into a file such as `workflows/prompt.j2`."
        self._problems.add(what, file=place.file, line=place.line, value=shown(name), do=do)
        return None

    def path_of(self, name: str, declared_in: str) -> str | None:
        """The project's path of a template that a file names, or None."""
        return next((path for path in _places(name, declared_in) if path in self._files), None)

    def check(self, path: str, fields: Collection[str], owner: str, values: Mapping[str, Any] | None = None) -> None:
        """Parses a template and all it includes, and notes what cannot be rendered from `fields`.

        values: made-up ones of these fields, to render it with once; None: there are none.
        """
        waiting, seen = [path], {path}
        while waiting:
            one = waiting.pop()
            text = self._text(one)
            if text is None:
                continue
            self._check_variables(one, text, fields, owner)
            for included, line in _includes(text):
                if included not in self._files:
                    templates = [name for name in self._files if not name.endswith((".py", ".toml"))]
                    what = f"The template includes {shown(included)}, which does not exist."
                    do = f"Write its path from the project's folder. {did_you_mean(included, templates)}"
                    self._problems.add(what, file=one, line=line, value=shown(included), do=do)
                elif included not in seen and len(seen) < INCLUDES_MAX:
                    seen.add(included)
                    waiting.append(included)
        # Each by itself: of an included one the engine's error does not tell what is wrong.
        if values is not None:
            for one in sorted(seen & self.templates.keys()):
                self._render(one, values)

    def _render(self, path: str, values: Mapping[str, Any]) -> None:
        """Notes what fails whatever the values are; what only fails on made-up ones is no mistake."""
        self._environment.fuel = FUEL
        try:
            self._environment.render_template(path, **values)
        except minijinja.TemplateError as error:
            if error.kind in ALWAYS_FAILS:
                why = f"{ALWAYS_FAILS[error.kind]}{f': {error.detail}' if error.detail else ''}"
                self._problems.add(
                    f"The template fails whenever it is rendered: {why}.", file=error.name or path,
                    line=error.line or 0, do=FILTERS_HELP,
                )  # fmt: skip

    def _text(self, path: str) -> str | None:
        """The template's text, parsed once; None where it is no template."""
        if path in self.templates:
            return self.templates[path]
        try:
            text = self._files[path].decode()
            self._environment.add_template(path, text)
        except UnicodeDecodeError:
            self._problems.add("The template is not UTF-8.", file=path, do="Save it as UTF-8.")
            return None
        except minijinja.TemplateError as error:
            what = f"The template cannot be parsed: {error.detail or error.message}."
            self._problems.add(
                what, file=path, line=error.line or 0, do="See https://docs.rs/minijinja/latest/minijinja/syntax/."
            )
            return None
        self.templates[path] = text
        for name, line in _filters(text):
            if not _filter_exists(name):
                self._problems.add(
                    f"The template uses the filter `{name}`, which does not exist.", file=path, line=line, value=name
                )
        return text

    def _check_variables(self, path: str, text: str, fields: Collection[str], owner: str) -> None:
        used = self._environment.undeclared_variables_in_template(path)
        for name in sorted(used - set(fields) - set(self._environment.globals) - {"loop", "self", "caller"}):
            self._problems.add(
                f"The template uses `{name}`, which is no field of the input of {owner}.",
                file=path, line=_line_of_variable(text, name), value=name, do=did_you_mean(name, fields),
            )  # fmt: skip


def included(text: str) -> list[str]:
    """Paths of the templates that a template includes."""
    return [name for name, _ in _includes(text)]


def members_of(text: str, variable: str) -> list[tuple[str, int]]:
    """(name, first line) of what a template that parses reads of a variable, as `variable.name` or `variable["name"]`.

    Not among them: methods that are called, and what the template itself asks for with `is defined` or `default`.
    """
    environment = minijinja.Environment()
    if variable not in environment.undeclared_variables_in_str(text):
        return []
    paths = environment.undeclared_variables_in_str(text, nested=True)
    read = {path.split(".")[1] for path in paths if path.startswith(f"{variable}.")}
    member = re.compile(
        rf"(?<![\w.\"']){re.escape(variable)}(?:\.([A-Za-z_]\w*)|\[\s*(?:\"([^\"]*)\"|'([^']*)')\s*\])"
        r"(\s*\(|\s+is\s+(?:not\s+)?(?:un)?defined\b|\s*\|\s*(?:default|d)\b)?"
    )
    found: dict[str, int] = {}
    asked: set[str] = set()
    for tag in _TAG.finditer(text):
        for one in member.finditer(tag[1]):
            name = one[1] or one[2] or one[3] or ""
            if one[4]:
                asked.add(name)
            elif not one[1] or name in read:
                found.setdefault(name, _line(text, tag.start(1) + one.start()))
    return [(name, line) for name, line in found.items() if name not in asked]


def _places(name: str, declared_in: str) -> list[str]:
    folders = dict.fromkeys((dirname(declared_in), "workflows", ""))
    return [normpath(f"{folder}/{name}" if folder else name) for folder in folders]


def _includes(text: str) -> list[tuple[str, int]]:
    return [(found[1] or found[2], _line(text, found.start())) for found in _INCLUDE.finditer(text)]


def _filters(text: str) -> list[tuple[str, int]]:
    """Names after `|` within tags, apart from those within quotes."""
    found: list[tuple[str, int]] = []
    for tag in _TAG.finditer(text):
        code = _QUOTED.sub(lambda quoted: " " * len(quoted[0]), tag[1])
        found += [(one[1], _line(text, tag.start(1) + one.start())) for one in _FILTER.finditer(code)]
    return found


@lru_cache(maxsize=512)
def _filter_exists(name: str) -> bool:
    try:
        minijinja.Environment().eval_expr(f"''|{name}")
    except minijinja.TemplateError as error:
        return error.kind != "UnknownFilter"
    return True


def _line_of_variable(text: str, name: str) -> int:
    for tag in _TAG.finditer(text):
        found = re.search(rf"(?<![\w.]){re.escape(name)}\b", tag[1])
        if found is not None:
            return _line(text, tag.start(1) + found.start())
    return 0


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
