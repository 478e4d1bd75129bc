"""What a table says that is no mistake and is often meant otherwise: null, labels that no model gives, confidences.

Each is told as one sentence for `drivetrain check`; nothing is refused for it. Called by `checks`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from drivetrain.core.declarations import Variant, Workflow
from drivetrain.core.models import Pinned
from drivetrain.policies.cells import Test, read_cell
from drivetrain.policies.domains import Kind
from drivetrain.policies.graph_parts import Node, Table
from drivetrain.project.model_fit import Misfits, fit

CONFIDENCES = ("confidence", "answer.confidence")
"""Shares, whatever their types say."""
MISSPELT = 0.8
"""How much alike two texts are (of `difflib`) that are taken for one, misspelt: `spam` and `spamm` are at 0.89."""
_ORDERS = frozenset({"<", "<=", ">", ">=", "range", "not range"})


class Labels(msgspec.Struct, frozen=True):
    """What trained models put into one field of the answer."""

    field: str
    """Such as `answer.topic`."""
    models: tuple[str, ...]
    """Ids of versions."""
    known: frozenset[str]
    alone: bool
    """Whether nothing else of the route fills it: what is not known then never occurs."""


def labels_of(workflow: Workflow[Any, Any], pinned: Mapping[str, Pinned]) -> Labels | None:
    """The labels of the classifying models in a route; None where it has none, or they fill different fields."""
    fields: set[str] = set()
    models: list[str] = []
    known: set[str] = set()
    for step in workflow.route:
        version = pinned.get(step.model) if isinstance(step, Variant) else None
        if version is None or version.signature.task != "classification":
            continue
        try:
            target = fit(version.signature, workflow).target
        except Misfits:
            continue  # told as a mistake of the route
        fields.add(f"answer.{target}" if target else "answer")
        models.append(version.id)
        known.update(version.signature.labels)
    if len(fields) != 1:
        return None
    alone = len(models) == len(workflow.route)
    return Labels(fields.pop(), tuple(models), frozenset(known), alone)


def pitfalls(node: Node, kinds: Callable[[str], Kind], labels: Labels | None) -> Iterator[str]:
    """What is worth a second look in one table."""
    table = node.table
    assert table is not None
    for field in dict.fromkeys(column.field for column in table.inputs if column.field):
        tests = _tests(table, field)
        if kinds(field).nothing:
            yield from _nulls(node.name, field, table, tests)
        if field in CONFIDENCES:
            yield from _shares(node.name, field, tests)
        if labels is not None and field == labels.field:
            yield from _labels(node.name, tests, labels)


def _tests(table: Table, field: str) -> dict[str, Test]:
    """Rule -> its test of a field; rules that have none, or one beyond comparisons with constants, are left out."""
    found: dict[str, Test] = {}
    for column in table.inputs:
        for rule in table.rules if column.field == field else ():
            test = read_cell(rule.cells[column.id]) if rule.cells[column.id] else None
            if test is not None:
                found[rule.id] = test
    return found


def _nulls(table: str, field: str, whole: Table, tests: Mapping[str, Test]) -> Iterator[str]:
    """A comparison that null slips past, into a rule that does not look at the field."""
    if not whole.first or any(None in test.constants for test in tests.values()):
        return
    blank = [column.id for column in whole.inputs if column.field == field]
    for place, rule in enumerate(whole.rules):
        test = tests.get(rule.id)
        # Null is much like an unsure answer: only a rule that is there for those misses it.
        if test is None or not _orders(test) or (field in CONFIDENCES and not test.holds(0.0)):
            continue
        after = (one.id for one in whole.rules[place + 1 :] if not any(one.cells[column] for column in blank))
        taker = next(after, None)
        if taker is not None:
            yield (
                f"table `{table}`: `{field}` may be null, which fits no comparison: such a case passes rule "
                f"`{rule.id}` by, and `{taker}` may take it; a rule with the cell `null` says what is done"
            )
            return


def _orders(test: Test) -> bool:
    return any(term.operator in _ORDERS for one in test.alternatives for chain in one for term in chain)


def _shares(table: str, field: str, tests: Mapping[str, Test]) -> Iterator[str]:
    for rule, test in tests.items():
        beyond = [one for one in test.constants if isinstance(one, float) and not 0 <= one <= 1]
        if beyond:
            yield f"table `{table}`: rule `{rule}` compares `{field}` with {beyond[0]:g}; a confidence is from 0 to 1"


def _labels(table: str, tests: Mapping[str, Test], labels: Labels) -> Iterator[str]:
    for rule, test in tests.items():
        for label in test.constants:
            if not isinstance(label, str) or label in labels.known:
                continue
            near = next(iter(difflib.get_close_matches(label, labels.known, 1, MISSPELT)), None)
            if near is None and not labels.alone:
                continue  # another step of the route may answer it
            hint = f"; did you mean `{near}`?" if near is not None else ""
            models = ", ".join(labels.models)
            yield f"table `{table}`: rule `{rule}` waits for '{label}', which {models} never says{hint}"
