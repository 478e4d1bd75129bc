"""Slices against a baseline: each one told with its interval, and Holm over all of them. Called by `gates.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drivetrain.evals.gate_results import (
    ALIKE,
    FAILED,
    PASSED,
    SLICES_TOLD_MAX,
    UNSETTLED,
    Evidence,
    GateResult,
    SliceResult,
    no_baseline,
    points,
    unsettled,
)  # fmt: skip
from drivetrain.evals.gate_text import Gate
from drivetrain.evals.measures import LEVEL, PairedEstimate, paired
from drivetrain.evals.rows import RowV1
from drivetrain.statistics.multiple import holm

SLICE_ROWS_MIN = 20
"""Of a slice, in pairs: with fewer, one row is more than five points and says nothing of the slice."""
VALUE_CHARS = 60
"""Of a slice's value in a sentence."""


def judge_slices(gate: Gate, judged: Evidence) -> GateResult:
    """Whether any slice is worse than the gate allows."""
    name, rows = judged.scorer(gate), judged.rows("")
    before = judged.before(name)
    if before is None:
        return no_baseline(gate)
    level = gate.level or LEVEL
    named: dict[tuple[str, str], list[RowV1]] = {}
    for row in rows:
        for column, value in row.slices.items():
            named.setdefault((column, value), []).append(row)
    if not named:
        return unsettled(gate, "the eval's rows have no slices")
    pairs = {key: found for key, inner in named.items() if (found := paired(inner, before, name, level)) is not None}
    results = _told_slices(gate, pairs)
    thin = [one for one in results if one.state == "few rows"]
    told = [one for one in results if one.state != "few rows"]
    missing = len(named) - len(pairs)
    note = ""
    if thin:
        note = f"; {len(thin)} slices with fewer than {SLICE_ROWS_MIN} rows are not judged: {_few(thin)}"
    if missing:
        note += f"; {missing} slices have no row in the baseline"
    if not told:
        return unsettled(gate, f"no slice has {SLICE_ROWS_MIN} rows that the baseline has too{note}", results)
    worst = told[0]
    worse = [one for one in told if one.state == "worse"]
    unsure = [one for one in told if one.state == "unsure"]
    state = FAILED if worse else UNSETTLED if unsure else PASSED
    at = f"the worst slice is {_named(worst)}: {points(worst.difference)}"
    at += f" ({points(worst.low)} to {points(worst.high)} at {level:.0%}, {worst.rows} rows)"
    if worse:
        sure = sum(one.is_beyond_chance for one in worse)
        at = f"{len(worse)} of {len(told)} slices are worse than {points(gate.bound)}, {sure} beyond chance; {at}"
    if unsure:
        note = f"; {len(unsure)} slices may be worse than {points(gate.bound)} by their intervals{note}"
    return GateResult(
        gate=gate.text, state=state, value=worst.difference, low=worst.low, high=worst.high,
        level=level, bound=gate.bound, n=sum(one.rows for one in told), why=f"{at}{note}.",
        slices=results[:SLICES_TOLD_MAX],
    )  # fmt: skip


def _told_slices(gate: Gate, pairs: Mapping[tuple[str, str], PairedEstimate]) -> tuple[SliceResult, ...]:
    """Every slice that has pairs; the worst first, those with few rows last."""
    enough = [key for key, found in pairs.items() if found.n >= SLICE_ROWS_MIN]
    adjusted = dict(zip(enough, holm([pairs[key].p_worse for key in enough]), strict=True))
    told = []
    for (column, value), found in pairs.items():
        state = "few rows"
        if (column, value) in adjusted:
            state = "worse" if found.value < gate.bound - ALIKE else "ok"
            if state == "ok" and gate.level and found.low < gate.bound - ALIKE:
                state = "unsure"
        told.append(
            SliceResult(
                column=column,
                value=value,
                rows=found.n,
                before=found.before,
                after=found.after,
                difference=found.value,
                low=found.low,
                high=found.high,
                p_worse=found.p_worse,
                p_holm=adjusted.get((column, value), 1.0),
                state=state,
            )
        )

    def order(one: SliceResult) -> tuple[bool, float, str, str]:
        return one.state == "few rows", one.difference, one.column, one.value

    return tuple(sorted(told, key=order))


def _named(one: SliceResult) -> str:
    """On one line: a sentence is no place for what a value does with line breaks."""
    value = " ".join(one.value.split())
    return f"{one.column} = {value if len(value) <= VALUE_CHARS else value[:VALUE_CHARS] + '...'}"


def _few(slices: Sequence[SliceResult]) -> str:
    named = ", ".join(f"{_named(one)} ({one.rows})" for one in slices[:3])
    return f"{named}{f' and {len(slices) - 3} more' if len(slices) > 3 else ''}"
