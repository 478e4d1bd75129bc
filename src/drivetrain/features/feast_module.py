"""A translated Feast repository -> the text of a Python module of our declarations, as a person would write it.

The same repository gives the same text, whatever the day and the machine. Called by `feast_import.py`.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from drivetrain.core.times import duration_text
from drivetrain.features.feast_reading import Declared
from drivetrain.features.feast_records import (
    TAggregation,
    TEntity,
    TField,
    TPart,
    Translation,
    TRequest,
    TSource,
)
from drivetrain.features.feast_text import Call, Code, rendered

_HELPER = '''\
def _one_row(function, names=None):
    """A function that takes and gives columns, as Feast's python mode has it, as a function of one row."""

    @functools.wraps(function)
    def of_row(row):
        columns = {name: [value] for name, value in row.items()}
        columns |= {full: columns[name] for full, name in (names or {}).items()}
        return {name: values[0] for name, values in function(columns).items()}

    return of_row
'''
_HELPER_ROWS = '''\
def _with_names(function, names):
    """A function of one row that reads some columns by Feast's full names."""

    @functools.wraps(function)
    def of_row(row):
        return function({**row, **{full: row[name] for full, name in names.items()}})

    return of_row
'''


def module_text(translation: Translation, *, project: str) -> str:
    """The module. project: what the Feast repository calls itself."""
    return _Writer(translation, project).text()


class _Writer:
    def __init__(self, translation: Translation, project: str) -> None:
        self._all = translation
        self._project = project
        self._taken = {"dt", "functools", "timedelta", *keyword.kwlist, *dir(builtins)}
        self._variables: dict[int, str] = {}

    def text(self) -> str:
        every = self._all
        for function in every.functions:  # what comes along keeps its name, for functions call it by it
            self._taken |= {*function.code.before, *function.code.imports, function.code.name}
        sections = [
            list(self._entities()), list(self._sources()), list(self._views()), list(self._requests()),
            list(self._functions()), list(self._services()), list(self._left_out()),
        ]  # fmt: skip
        parts = [self._head(), *(part.strip("\n") for section in sections for part in section)]
        text = parts[0]
        for before, part in pairwise(parts):
            apart = "\n\n\n" if _is_block(before) or _is_block(part) else "\n\n"
            text += apart + part
        return f"{text}\n"

    def _head(self) -> str:
        imports = {one for function in self._all.functions for one in function.code.imports.values()}
        wrapped = any(one.columns or one.renamed for one in self._all.functions)
        if wrapped:
            imports.add("import functools")
        if any(one.ttl_us is not None and duration_text(one.ttl_us) is None for one in self._all.views):
            imports.add("from datetime import timedelta")
        project = re.sub(r"[^\w.-]+", "_", self._project)
        lines = [f'"""The Feast project `{project}`, as `drivetrain features import-feast` read it."""', ""]
        if self._all.functions:
            lines += ["from __future__ import annotations", ""]
        if imports:
            lines += [*sorted(imports, key=lambda one: (one.startswith("from"), one)), ""]
        return "\n".join([*lines, "import drivetrain as dt"])

    def _entities(self) -> Iterator[str]:
        for one in self._all.entities:
            keys = list(one.join_keys) if one.join_keys != (one.name,) else None
            call = Call(
                "dt.Entity",
                [("", one.name), ("join_keys", keys), ("value_type", one.dtype if one.dtype != "string" else None),
                 ("description", one.description or None), ("owner", one.owner or None)],
            )  # fmt: skip
            yield self._declared(one, one.at, one.name, call)

    def _sources(self) -> Iterator[str]:
        made: dict[int, TSource] = {}
        for one in self._all.sources:
            if one.batch is not None:
                made.setdefault(id(one.batch), one.batch)
            made.setdefault(id(one), one)
        for one in made.values():
            yield from self._source(one)

    def _source(self, one: TSource) -> Iterator[str]:
        times: list[tuple[str, Any]] = [
            ("timestamp_field", one.timestamp if one.timestamp != "event_timestamp" else None),
            ("created_timestamp_column", one.created or None),
            ("description", one.description or None),
            ("owner", one.owner or None),
        ]
        if one.kind == "PushSource":
            batch = None if one.batch is None else Code(self._variables[id(one.batch)])
            call = Call("dt.PushSource", [("", one.name), ("batch_source", batch), *times])
        elif one.kind == "FileSource":
            call = Call("dt.FileSource", [("", one.reads), ("name", one.name or None), *times])
        else:
            call = Call("dt.TableSource", [("", one.reads), *times])
            readers = [view.name for view in self._all.views if one in (view.source, view.source.batch)]
            outside = Call(
                "dt.Source",
                [("", one.name), ("owner", one.outside_owner), ("location", one.outside), ("readers", readers or None)],
            )  # fmt: skip
            variable = self._variable(f"{one.name}_outside")
            yield f"{variable} = {rendered(outside, 0, len(variable) + 3)}"
        yield self._declared(one, one.at, f"{one.name or one.reads}", call)

    def _views(self) -> Iterator[str]:
        for one in self._all.views:
            ttl: Any = None
            if one.ttl_us is not None:
                text = duration_text(one.ttl_us)
                ttl = text if text else Code(f"timedelta(microseconds={one.ttl_us})")
            call = Call(
                "dt.FeatureView",
                [("", one.name), ("entities", self._listed(one.entities)), ("source", self._code(one.source)),
                 ("schema", _fields(one.fields) or None),
                 ("aggregations", [_aggregation(window) for window in one.aggregations] or None),
                 ("ttl", ttl), ("online", None if one.online else False), ("description", one.description or None),
                 ("owner", one.owner or None), ("tags", dict(one.tags) or None)],
            )  # fmt: skip
            yield self._declared(one, one.at, one.name, call)

    def _requests(self) -> Iterator[str]:
        for one in self._all.requests:
            call = Call("dt.RequestSource", [("", one.name), ("schema", _fields(one.fields))])
            yield self._declared(one, one.at, one.name, call)

    def _functions(self) -> Iterator[str]:
        if any(one.columns for one in self._all.functions):
            yield _HELPER
        if any(one.renamed and not one.columns for one in self._all.functions):
            yield _HELPER_ROWS
        before: set[str] = set()
        for one in self._all.functions:
            for name, text in one.code.before.items():
                if name not in before:
                    before.add(name)
                    yield text
            yield f"# {_place(one.at)}\n{one.code.text}"
            function: Any = Code(one.code.name)
            if one.columns or one.renamed:
                names = dict(one.renamed) or None
                function = Call("_one_row" if one.columns else "_with_names", [("", function), ("", names)])
            call = Call(
                "dt.OnDemandFeatureView",
                [("", one.name), ("sources", self._listed(one.parts)), ("schema", _fields(one.fields)),
                 ("function", function), ("description", one.description or None), ("owner", one.owner or None)],
            )  # fmt: skip
            yield self._declared(one, one.at, one.name, call, place=False)

    def _services(self) -> Iterator[str]:
        for one in self._all.services:
            call = Call(
                "dt.FeatureService",
                [("", one.name), ("features", self._listed(one.parts)), ("description", one.description or None),
                 ("owner", one.owner or None)],
            )  # fmt: skip
            yield self._declared(one, one.at, one.name, call)

    def _left_out(self) -> Iterator[str]:
        for one, text in self._all.left_out:
            name = " ".join(one.name.split())
            lines = [f"Not carried over: {one.kind} `{name}`, {_place(one)}.", *text.splitlines()]
            yield "\n".join(f"# {line}".rstrip() for line in lines)

    def _listed(self, parts: Sequence[TEntity | TPart | TRequest]) -> list[Code]:
        return [self._code(one) for one in parts]

    def _code(self, one: Any) -> Code:
        if not isinstance(one, TPart):
            return Code(self._variables[id(one)])
        view = self._variables[id(one.view)]
        return Code(f"{view}[[{', '.join(rendered(name) for name in one.names)}]]" if one.names else view)

    def _declared(self, made: Any, at: Declared, name: str, call: Call, *, place: bool = True) -> str:
        variable = self._variables[id(made)] = self._variable(at.variable or name)
        head = f"# {_place(at)}\n" if place and at.file else ""
        return f"{head}{variable} = {rendered(call, 0, len(variable) + 3)}"

    def _variable(self, wanted: str) -> str:
        """A name that nothing in the module has yet."""
        name = re.sub(r"\W", "_", wanted, flags=re.ASCII).strip("_")[:60] or "declared"
        name = f"_{name}" if name[0].isdigit() else name
        made, number = name, 1
        while made in self._taken:
            number += 1
            made = f"{name}_{number}"
        self._taken.add(made)
        return made


def _is_block(part: str) -> bool:
    """Whether it is a function, which stands apart from what is around it."""
    return re.search(r"^def ", part, re.MULTILINE) is not None


def _fields(fields: Sequence[TField]) -> list[Call]:
    return [
        Call("dt.Field", [("", one.name), ("", one.dtype), ("description", one.description or None)]) for one in fields
    ]


def _aggregation(one: TAggregation) -> Call:
    return Call(
        "dt.Aggregation",
        [("function", one.function), ("column", one.column), ("over", one.over), ("name", one.name)],
    )  # fmt: skip


def _place(one: Declared) -> str:
    return " ".join(f"{one.file}:{one.line}".split())
