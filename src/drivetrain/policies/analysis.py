"""Rules of a decision table that never match, cases that no rule matches, and rules that contradict each other.

Every column is cut into pieces on which all its cells answer alike (`domains`), so that a rule is a box: for each
column, a set of pieces. What a rule leaves over of the cases before it is boxes again. Rules whose cells are more than
comparisons with constants are said to be not analysed: they may match anything, and take nothing from others.
Called by `checks` and by `drivetrain policy check`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from operator import and_

import msgspec

from drivetrain.policies.cells import Plain, Test, read_cell
from drivetrain.policies.domains import ANYTHING, Kind, pieces
from drivetrain.policies.graph_parts import Node, Rule, Table

WORK_MAX = 100_000
"""Comparisons of boxes per table, about a second; then the rest is said to be not analysed."""
TAKERS_MAX = 5
"""Rules that are named for taking the cases of another."""
CONFLICTS_MAX = 20
"""Pairs of rules that are told; with more, the table is thought out anew."""

Box = tuple[int, ...]
"""For each field a set of its pieces, as bits."""


class Unreachable(msgspec.Struct, frozen=True):
    """A rule that never decides."""

    rule: str
    because: tuple[str, ...]
    """Rules before it that take its cases; empty: nothing can match it at all."""


class Conflict(msgspec.Struct, frozen=True):
    """Two rules of which both match, with different actions."""

    rule: str
    other: str
    example: Mapping[str, Plain]


class Analysis(msgspec.Struct, frozen=True):
    """What is wrong with one table."""

    table: str
    unreachable: tuple[Unreachable, ...] = ()
    gap: Mapping[str, Plain] | None = None
    """Field -> value: a case that no rule matches; a field that it leaves out may have any value. None: no gap."""
    conflicts: tuple[Conflict, ...] = ()
    complex: tuple[str, ...] = ()
    """Rules that are not analysed, because their cells are more than comparisons with constants."""
    unfinished: str = ""
    """The rule from which on nothing was analysed, because it would have taken too long."""


def analyse(node: Node, kinds: Callable[[str], Kind] = lambda field: ANYTHING) -> Analysis:
    """What is wrong with a table. kinds: what is known of a field's values from its type."""
    assert node.table is not None
    return _Analysing(node.name, node.table, kinds).run()


class _TooMuch(Exception):
    """The work is more than `WORK_MAX`."""


class _Analysing:
    def __init__(self, name: str, table: Table, kinds: Callable[[str], Kind]) -> None:
        self.name = name
        self.table = table
        self.work = 0
        self.tests = {
            (rule.id, column.id): read_cell(text) if column.field else None
            for rule in table.rules
            for column in table.inputs
            if (text := rule.cells[column.id])
        }
        self.fields = tuple(dict.fromkeys(column.field for column in table.inputs if column.field))
        cut = {field: pieces(self._tests_of(field), kinds(field)) for field in self.fields}
        self.pieces = {field: one.values for field, one in cut.items()}
        self.whole: Box = tuple((1 << len(self.pieces[field])) - 1 for field in self.fields)
        self.expected: Box = tuple(one.expected for one in cut.values())
        self.masks: dict[tuple[str, str], int] = {}

    def run(self) -> Analysis:
        boxes = {rule.id: self._box(rule) for rule in self.table.rules}
        complex_rules = dict.fromkeys(rule.id for rule in self.table.rules if self._is_complex(rule))
        if not self.table.first:
            return self._collected(boxes, complex_rules)
        unreachable: list[Unreachable] = []
        left: list[Box] = [self.whole]
        for place, rule in enumerate(self.table.rules):
            box = boxes[rule.id]
            try:
                reached = all(box) and any(self._overlap(box, one) for one in left)
                if not reached:
                    before = self.table.rules[:place] if all(box) else ()
                    idle = {*complex_rules, *(one.rule for one in unreachable)}
                    takers = (one.id for one in before if one.id not in idle)
                    because = islice((one for one in takers if self._overlap(boxes[one], box)), TAKERS_MAX)
                    unreachable.append(Unreachable(rule.id, tuple(because)))
                elif rule.id not in complex_rules:
                    left = self._without(left, box)
            except _TooMuch:
                return Analysis(self.name, tuple(unreachable), None, (), tuple(complex_rules), rule.id)
        return self._with_gap(left, boxes, complex_rules, tuple(unreachable), ())

    def _collected(self, boxes: Mapping[str, Box], complex_rules: Mapping[str, None]) -> Analysis:
        rules = self.table.rules
        unreachable = tuple(Unreachable(rule.id, ()) for rule in rules if not all(boxes[rule.id]))
        conflicts: list[Conflict] = []
        left: list[Box] = [self.whole]
        for place, rule in enumerate(rules):
            try:
                for before in rules[:place]:
                    skipped = rule.id in complex_rules or before.id in complex_rules or len(conflicts) >= CONFLICTS_MAX
                    if skipped or self._action(before) == self._action(rule):
                        continue
                    if self._overlap(boxes[before.id], boxes[rule.id]):
                        both = self._meet(boxes[before.id], boxes[rule.id])
                        conflicts.append(Conflict(before.id, rule.id, self._example(both)))
                if rule.id not in complex_rules:
                    left = self._without(left, boxes[rule.id])
            except _TooMuch:
                return Analysis(self.name, unreachable, None, tuple(conflicts), tuple(complex_rules), rule.id)
        return self._with_gap(left, boxes, complex_rules, unreachable, tuple(conflicts))

    def _with_gap(
        self,
        left: list[Box],
        boxes: Mapping[str, Box],
        complex_rules: Mapping[str, None],
        unreachable: tuple[Unreachable, ...],
        conflicts: tuple[Conflict, ...],
    ) -> Analysis:
        """A gap is what even the rules that are not analysed cannot match."""
        unfinished = ""
        left = [both for box in left if all(both := tuple(map(and_, box, self.expected)))]
        for rule in complex_rules:
            try:
                left = self._without(left, boxes[rule])
            except _TooMuch:
                left, unfinished = [], rule
        gap = self._example(left[0]) if left else None
        return Analysis(self.name, unreachable, gap, conflicts, tuple(complex_rules), unfinished)

    def _box(self, rule: Rule) -> Box:
        box = list(self.whole)
        for column in self.table.inputs:
            test = self.tests.get((rule.id, column.id))
            if test is not None:
                place = self.fields.index(column.field)
                box[place] &= self._mask(column.field, rule.cells[column.id], test)
        return tuple(box)

    def _mask(self, field: str, text: str, test: Test) -> int:
        known = self.masks.get((field, text))
        if known is None:
            known = sum(1 << place for place, value in enumerate(self.pieces[field]) if test.holds(value))
            self.masks[field, text] = known
        return known

    def _is_complex(self, rule: Rule) -> bool:
        return any(rule.cells[column.id] and self.tests[rule.id, column.id] is None for column in self.table.inputs)

    def _tests_of(self, field: str) -> list[Test]:
        columns = [column.id for column in self.table.inputs if column.field == field]
        found = (self.tests.get((rule.id, column)) for rule in self.table.rules for column in columns)
        return [test for test in found if test is not None]

    def _action(self, rule: Rule) -> str:
        return next((rule.cells[column.id] for column in self.table.outputs if column.field == "action"), "")

    def _meet(self, one: Box, other: Box) -> Box:
        self.work += 1
        if self.work > WORK_MAX:
            raise _TooMuch
        return tuple([a & b for a, b in zip(one, other, strict=True)])

    def _overlap(self, one: Box, other: Box) -> bool:
        self.work += 1
        if self.work > WORK_MAX:
            raise _TooMuch
        return all(map(and_, one, other))

    def _without(self, left: list[Box], taken: Box) -> list[Box]:
        """What is left of boxes once one is taken out: of each at most one box per field."""
        found: list[Box] = []
        for box in left:
            if not self._overlap(box, taken):
                found.append(box)
                continue
            both = self._meet(box, taken)
            for place, (mine, common) in enumerate(zip(box, both, strict=True)):
                rest = mine & ~common
                if rest:
                    found.append((*both[:place], rest, *box[place + 1 :]))
        return found

    def _example(self, box: Box) -> dict[str, Plain]:
        """One value per field that matters, from the middle of what is possible; null only where nothing else is."""
        found: dict[str, Plain] = {}
        for field, mask, whole in zip(self.fields, box, self.expected, strict=True):
            if mask & whole != whole:
                values = [value for place, value in enumerate(self.pieces[field]) if mask >> place & 1]
                found[field] = next((value for value in values if value is not None), None)
        return found
