"""The project with a candidate in it: one model's name replaced where the variant declares it, nothing else.

What comes of it is a Snapshot like any other: it is checked, it can be stored and replayed, and it is the very one that
a proposal of this change would have. Called by the wiring of upgrades, before any money is spent.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.declarations import Variant, Workflow
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.models import is_trained
from drivetrain.core.money import Price
from drivetrain.project.document import parse
from drivetrain.project.files import SETTINGS_FILE, syntax_tree
from drivetrain.project.load import Source, build
from drivetrain.project.problems import Problems
from drivetrain.project.snapshot import Snapshot
from drivetrain.providers.pricing import UnknownPrice, own_price, price_book


def variants_of(workflow: Workflow[Any, Any]) -> list[Variant]:
    """The variants with a model, in the route's order."""
    return [one for one in workflow.route if isinstance(one, Variant)]


def variant_named(workflow: Workflow[Any, Any], name: str) -> Variant:
    """Raises: DrivetrainError where the route has none of that name."""
    known = {one.name: one for one in variants_of(workflow)}
    if name not in known:
        raise DrivetrainError(
            f"Workflow `{workflow.name}` has no variant `{name[:80]}` with a model. {did_you_mean(name, known)}",
            do=f"It has {', '.join(f'`{one}`' for one in known)}." if known else "It asks no model.",
        )
    return known[name]


def price_of(snapshot: Snapshot, model: str, day: str) -> Price:
    """What a model costs on a day. Raises: DrivetrainError where its provider or its price is not known."""
    facts = snapshot.models.get(model)
    if is_trained(model):
        return own_price(facts).on(day)
    name = model.partition("/")[0]
    if "/" not in model or name not in snapshot.providers:
        raise DrivetrainError(
            f"`{model[:100]}` names no provider of this project. {did_you_mean(name, snapshot.providers)}".rstrip(),
            do=f"Write `provider/model` with one of {', '.join(f'`{one}`' for one in snapshot.providers)}, or add "
            "`[providers.NAME]` to drivetrain.toml.",
        )
    endpoint = snapshot.providers[name].endpoint
    try:
        return price_book(model, f"{endpoint.scheme}://{endpoint.authority}{endpoint.path}", facts).on(day)
    except UnknownPrice as problem:
        raise DrivetrainError(
            f"What the candidate costs cannot be told: {problem}.",
            do="Add its price to drivetrain.toml: a candidate without one cannot be weighed, nor kept within a budget.",
        ) from None


def with_candidate(snapshot: Snapshot, workflow: Workflow[Any, Any], variant: Variant, model: str) -> Snapshot:
    """The Snapshot of the project in which `variant` has another model.

    Raises: DrivetrainError where the model's name does not stand in the project's files as a plain text; ProjectError
    where the project would have mistakes then.
    """
    if model == variant.model:
        raise DrivetrainError(
            f"Variant `{variant.name}` of workflow `{workflow.name}` has the model `{model}` already.",
            do="Name another candidate, or another variant by `--variant`.",
        )
    files = dict(snapshot.files)
    path, start, end = _where(snapshot, workflow, variant)
    content = files[path]
    files[path] = content[:start] + msgspec.json.encode(model) + content[end:]
    source = Source(
        files=files, root=snapshot.root, code_root=snapshot.root, environment=snapshot.environment,
        versions=snapshot.versions,
    )  # fmt: skip
    problems = Problems()
    return build(source, parse(files[SETTINGS_FILE], problems), problems)


def _where(snapshot: Snapshot, workflow: Workflow[Any, Any], variant: Variant) -> tuple[str, int, int]:
    """(file, first byte, byte after) of the literal that names the variant's model."""
    path = _relative(snapshot, variant.place.file)
    found = [*_in_toml(snapshot, variant)] if path == SETTINGS_FILE else [*_in_code(snapshot, variant)]
    near = [one for one in found if one[0] == path and one[3] <= variant.place.line <= one[4]]
    chosen = near or found
    if len(chosen) != 1:
        raise DrivetrainError(
            f"The model of variant `{variant.name}` of workflow `{workflow.name}` is not found in the project's files.",
            looked=[f"{path or variant.place.file}, line {variant.place.line}"],
            do=f'Write it where the variant is declared, as a plain text: model="{variant.model}".',
        )
    return chosen[0][:3]


Spot = tuple[str, int, int, int, int]
"""(file, first byte, byte after, first line, last line)."""


def _in_code(snapshot: Snapshot, variant: Variant) -> Iterator[Spot]:
    for path, content in snapshot.files.items():
        if not path.endswith(".py") or variant.model.encode() not in content:
            continue
        lines = content.split(b"\n")
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len(line) + 1)
        for node in ast.walk(syntax_tree(content)):
            if not isinstance(node, ast.Call) or variant.name not in _names(node):
                continue
            for keyword in node.keywords:
                value = keyword.value
                if keyword.arg == "model" and isinstance(value, ast.Constant) and value.value == variant.model:
                    last, column = value.end_lineno, value.end_col_offset
                    assert last is not None
                    assert column is not None
                    start, end = starts[value.lineno - 1] + value.col_offset, starts[last - 1] + column
                    yield path, start, end, node.lineno, node.end_lineno or node.lineno


def _names(node: ast.Call) -> list[object]:
    """What a call is given first, or as `name`."""
    given = [*node.args[:1], *(one.value for one in node.keywords if one.arg == "name")]
    return [one.value for one in given if isinstance(one, ast.Constant)]


def _in_toml(snapshot: Snapshot, variant: Variant) -> Iterator[Spot]:
    """The model's name at or after the line of the variant's table."""
    content = snapshot.files[SETTINGS_FILE]
    line = max(1, variant.place.line)
    start = 0
    for _ in range(line - 1):
        start = content.find(b"\n", start) + 1
    for quote in (b'"', b"'"):
        quoted = quote + variant.model.encode() + quote
        at = content.find(quoted, start)
        if at >= 0:
            yield SETTINGS_FILE, at, at + len(quoted), line, line
            return


def _relative(snapshot: Snapshot, file: str) -> str:
    path = Path(file)
    return path.relative_to(snapshot.root).as_posix() if path.is_relative_to(snapshot.root) else file
