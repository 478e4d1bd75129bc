"""Two runs side by side, on the rows that both have: which is better, where, and at what cost.

Owns the shape of a Report of kind `eval-compare`. The verdicts hold however often and whenever one looks, so that
comparing again after each run misleads nobody. Called by `drivetrain eval compare`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.reports import ReportV1
from drivetrain.evals.measures import LEVEL
from drivetrain.evals.rows import PASSING, RowV1, Run
from drivetrain.evals.run_report import CITED_MAX, Cited, scorers_in
from drivetrain.statistics.comparing import Comparison, compare
from drivetrain.statistics.means import mean_interval
from drivetrain.statistics.multiple import holm

KIND = "eval-compare"
SLICES_MAX = 100
"""Slices that are compared, the largest first; a correction over more leaves nothing to be seen."""


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """One scorer on both sides."""

    scorer: str
    comparison: Comparison
    fixed: tuple[Cited, ...]
    """Rows that were wrong and are right, cited by the second run's Calls."""
    broken: tuple[Cited, ...]
    fixed_rows: int
    broken_rows: int


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """The first scorer on one slice or suite."""

    name: str
    rows: int
    difference: float
    low: float
    high: float
    p_value: float
    """Corrected by Holm over all slices."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What changed per answer, paired; in USD, milliseconds, tokens or characters."""

    what: str
    before: float
    after: float
    difference: float
    low: float | None
    high: float | None


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """Both runs on the rows that they share."""

    rows: int
    only_first: int
    only_second: int
    unanswered: int = 0
    """Rows that both have, and of which an outage left one without an answer: they are compared in nothing."""
    scorers: tuple[Scored, ...]
    slices: tuple[Slice, ...]
    changes: tuple[Change, ...]


def compare_runs(first: Run, second: Run, *, margin: float = 0.0) -> Compared:
    """The second run against the first. margin: how much worse still counts as good.

    Raises: DrivetrainError where they have no row, or no scorer, in common.
    """
    before, after = _by_row(first), _by_row(second)
    both = sorted(row for row in after if row in before)
    shared = [row for row in both if all(one.error not in PASSING for one in (*before[row], *after[row]))]
    names = [name for name in scorers_in(second) if name in scorers_in(first)]
    if not shared or not names:
        what = "row" if not shared else "scorer"
        raise DrivetrainError(
            f"The two runs have no {what} in common{' that both have answered' if both else ''}: {first.dataset} and "
            f"{second.dataset}.",
            do="Compare runs of one Dataset, by the same scorers.",
        )
    own = [row for row in shared if not after[row][0].suite]
    scored = tuple(_scored(name, before, after, own or shared, margin) for name in names)
    return Compared(
        rows=len(shared), only_first=len(before) - len(both), only_second=len(after) - len(both),
        unanswered=len(both) - len(shared), scorers=scored,
        slices=_slices(names[0], before, after, shared), changes=_changes(before, after, shared),
    )  # fmt: skip


def compare_report(found: Compared, first: Run, second: Run, *, made_ns: int, made_by: str) -> ReportV1:
    """Its Report. Pure."""
    main = found.scorers[0]
    one = main.comparison
    difference = 100 * (one.difference or 0.0)
    verdict = (
        f"{main.scorer}: {one.verdict}; {difference:+.1f} points ({100 * one.low:+.1f} to {100 * one.high:+.1f}) on "
        f"{one.pairs:,} rows, {main.fixed_rows} fixed and {main.broken_rows} broken."
    )
    if not one.settled and one.more_needed:
        verdict += f" About {one.more_needed:,} more rows would settle it."
    return ReportV1(
        kind=KIND, subject=f"workflow:{second.workflow}", made_ns=made_ns, made_by=made_by,
        inputs=(f"report:eval@{first.report}", f"report:eval@{second.report}"), verdict=verdict,
        facts={
            "first": first.report, "second": second.report, "eval": second.eval, "verdict": one.verdict,
            "difference": one.difference or 0.0, "rows": found.rows,
        },
        body=msgspec.to_builtins(found),
    )  # fmt: skip


def _by_row(run: Run) -> dict[str, list[RowV1]]:
    found: dict[str, list[RowV1]] = defaultdict(list)
    for one in run.rows:
        found[one.row].append(one)
    return found


def _mean(rows: Sequence[RowV1], value: Callable[[RowV1], float]) -> float:
    return math.fsum(map(value, rows)) / len(rows)


def _score(rows: Sequence[RowV1], name: str) -> float:
    return _mean(rows, lambda one: one.scores[name].value if name in one.scores else 0.0)


def _scored(
    name: str, before: dict[str, list[RowV1]], after: dict[str, list[RowV1]], rows: Sequence[str], margin: float
) -> Scored:
    old = [_score(before[row], name) for row in rows]
    new = [_score(after[row], name) for row in rows]
    groups = [after[row][0].group or row for row in rows]
    fixed = [row for row, a, b in zip(rows, old, new, strict=True) if a < 1 <= b]
    broken = [row for row, a, b in zip(rows, old, new, strict=True) if b < 1 <= a]
    return Scored(
        scorer=name,
        comparison=compare(
            old, new, clusters=groups if len(set(groups)) < len(groups) else None, level=LEVEL, margin=margin
        ),
        fixed=tuple(_cited(after[row][0]) for row in fixed[:CITED_MAX]),
        broken=tuple(_cited(after[row][0]) for row in broken[:CITED_MAX]),
        fixed_rows=len(fixed), broken_rows=len(broken),
    )  # fmt: skip


def _cited(row: RowV1) -> Cited:
    return Cited(row=row.row, call_id=row.call_id, suite=row.suite, error=row.error)


def _slices(
    name: str, before: dict[str, list[RowV1]], after: dict[str, list[RowV1]], rows: Sequence[str]
) -> tuple[Slice, ...]:
    members: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        one = after[row][0]
        if one.suite:
            members[f"suite {one.suite}"].append(row)
            continue
        for column, value in one.slices.items():
            members[f"{column}={value}"].append(row)
    largest = sorted(members.items(), key=lambda one: (-len(one[1]), one[0]))[:SLICES_MAX]
    found = []
    for label, inside in largest:
        old = [_score(before[row], name) for row in inside]
        new = [_score(after[row], name) for row in inside]
        groups = [after[row][0].group or row for row in inside]
        found.append(
            (label, compare(old, new, clusters=groups if len(set(groups)) < len(groups) else None, level=LEVEL))
        )
    corrected = holm([one.p_value for _, one in found])
    return tuple(
        Slice(name=label, rows=one.pairs, difference=one.difference or 0.0, low=one.low, high=one.high, p_value=p)
        for (label, one), p in zip(found, corrected, strict=True)
    )


def _changes(before: dict[str, list[RowV1]], after: dict[str, list[RowV1]], rows: Sequence[str]) -> tuple[Change, ...]:
    measures: dict[str, Callable[[RowV1], float]] = {
        "USD": lambda one: one.cost_nano_usd / 1e9,
        "ms": lambda one: one.latency_us / 1000,
        "tokens in": lambda one: float(one.tokens_input),
        "tokens out": lambda one: float(one.tokens_output),
        "characters": lambda one: float(one.answer_chars),
    }
    found = []
    groups = [after[row][0].group or row for row in rows]
    for what, value in measures.items():
        old = [_mean(before[row], value) for row in rows]
        new = [_mean(after[row], value) for row in rows]
        differences = [b - a for a, b in zip(old, new, strict=True)]
        low, high = mean_interval(differences, LEVEL, clusters=groups)
        found.append(
            Change(
                what=what, before=math.fsum(old) / len(old), after=math.fsum(new) / len(new),
                difference=math.fsum(differences) / len(differences),
                low=low if math.isfinite(low) else None, high=high if math.isfinite(high) else None,
            )
        )  # fmt: skip
    return tuple(found)
