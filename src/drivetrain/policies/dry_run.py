"""Why a policy decides one case as it does: the Verdict, and of a table each rule with the cell that did not match.

Called by `drivetrain policy run`. Nothing is recorded and nothing is asked of anybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.policies import Case
from drivetrain.policies.cases import part_of, wanted
from drivetrain.policies.cells import read_cell
from drivetrain.policies.compile import CompiledPolicy
from drivetrain.policies.graph_parts import CONTEXT, Node

CASE_BYTES_MAX = 1024 * 1024
"""Of a case's file; a policy sees at most a part of it."""


class WhyNot(msgspec.Struct, frozen=True):
    """One rule of a table, as it looks at the case."""

    table: str
    rule: str
    matches: bool | None
    """None: its cells are more than comparisons with constants, or look at what another node made."""
    column: str = ""
    """The first column that did not match, or could not be told."""
    cell: str = ""
    value: str = ""
    """What the case has there, as JSON."""
    after: str = ""
    """The rule before it that matches too, so that this one is not asked; empty where all that match are collected."""


def read_case(content: bytes, workflow: Workflow[Any, Any]) -> Case:
    """A Case from JSON with the keys of a Case; input and answer become the workflow's types, where it has any.

    Raises: DrivetrainError.
    """
    if len(content) > CASE_BYTES_MAX:
        raise DrivetrainError(f"The case has {len(content):,} bytes; at most {CASE_BYTES_MAX:,} are allowed.")
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DrivetrainError(f"The case is no JSON: {error}.") from None
    if not isinstance(document, dict):
        raise DrivetrainError("The case is no JSON object.", do='Write for example {"input": {"amount": 20}}.')
    for name in document:
        if name not in CONTEXT:
            raise DrivetrainError(f"A case has no `{name}`.", do=did_you_mean(str(name), CONTEXT))
    for name, declared in (("input", workflow.input), ("answer", workflow.output)):
        if document.get(name) is not None and declared is not None:
            try:
                document[name] = msgspec.convert(document[name], declared)
            except msgspec.ValidationError as error:
                raise DrivetrainError(f"`{name}` of the case is no {declared.__name__}: {error}.") from None
    try:
        case = msgspec.convert(document, Case, from_attributes=False)
    except msgspec.ValidationError as error:
        raise DrivetrainError(f"The case cannot be read: {error}.") from None
    if case.confidence is None and isinstance(stated := getattr(case.answer, "confidence", None), int | float):
        return msgspec.structs.replace(case, confidence=float(stated))
    return case


def why_not(compiled: CompiledPolicy, case: Case) -> Iterator[WhyNot]:
    """Each rule of each table of a policy, in order; nothing of a function."""
    if compiled.graphs is None:
        return
    context = msgspec.json.decode(msgspec.json.encode(part_of(case, wanted(compiled.reads))))
    for graph in compiled.graphs.files.values():
        for node in graph.tables:
            yield from _rules(node, context)


def _rules(node: Node, context: Mapping[str, Any]) -> Iterator[WhyNot]:
    assert node.table is not None
    decided = ""
    for rule in node.table.rules:
        found = WhyNot(node.name, rule.id, True)
        for column in node.table.inputs:
            text = rule.cells[column.id]
            if not text:
                continue
            test = read_cell(text) if column.field else None
            root = column.field.partition(".")[0]
            value = _value(context, column.field)
            if test is None or root not in CONTEXT or isinstance(value, dict | list):
                found = WhyNot(node.name, rule.id, None, column.name, text)
                continue
            if not test.holds(float(value) if _is_number(value) else value):
                shown = msgspec.json.encode(value).decode()
                found = WhyNot(node.name, rule.id, False, column.name, text, shown)
                break
        if found.matches and node.table.first:
            found = msgspec.structs.replace(found, after=decided)
            decided = decided or rule.id
        yield found


def _value(context: Mapping[str, Any], path: str) -> Any:
    value: Any = context
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
