"""What gates make of a run: passed, failed, or not enough evidence, each with its figure, interval and reason.

A gate fails where the figure is beyond its bound, it passes only where there is something to judge by. With
`at 95 %` it passes where the end of its interval keeps to the bound too, and where only the figure does, that is not
enough evidence. Slices are told one by one, with Holm over all of them for what is beyond chance.
Nothing here asks a model; a judge's score counts only as far as people's labels carry it (`judging.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from drivetrain.core.evals import Scorer
from drivetrain.core.money import usd
from drivetrain.evals import causes
from drivetrain.evals.calibration import Calibration, carries_gates
from drivetrain.evals.gate_text import (
    ACCURACY,
    COST,
    FAILED,
    LATENCY,
    NEW_FAILURES,
    OVERALL,
    PAIRED,
    SCORE,
    SLICES,
    UNREAD,
    Gate,
    needs_baseline,
    parse_gate,
)  # fmt: skip
from drivetrain.evals.measures import (
    LEVEL,
    Estimate,
    PairedEstimate,
    key_of,
    mean,
    mean_score,
    paired,
    quantile,
    row_means,
    score_of,
    share,
)  # fmt: skip
from drivetrain.evals.rows import RowV1, Run
from drivetrain.statistics.multiple import holm

PASSED, FAILED_STATE, UNSETTLED = "passed", "failed", "not enough evidence"
STATES = (PASSED, FAILED_STATE, UNSETTLED)
SLICE_ROWS_MIN = 20
"""Of a slice, in pairs: with fewer, one row is more than five points and says nothing of the slice."""
SLICES_TOLD_MAX = 50
ROWS_TOLD_MAX = 200
"""Ids that a result names; how many there are is told in any case."""
FAILS_BELOW = 0.5
"""A row has failed where any of its repeats scored less."""
ALIKE = 1e-9
"""What rounding adds to a bound: -2 pp of 100 rows is just two rows."""
LEVEL_OF_SLICES = 0.95
"""At which a slice is called worse beyond chance, all slices of a run together."""

__all__ = ["GateResult", "SliceResult", "judge_gates", "needs_baseline", "parse_gate"]


class SliceResult(msgspec.Struct, frozen=True, kw_only=True):
    """One slice, candidate beside baseline."""

    column: str
    value: str
    rows: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    p_worse: float
    p_holm: float
    """`p_worse` with Holm over all slices that have enough rows; 1 for those that have not."""
    state: str
    """`ok`, `worse` (beyond the gate's bound), `unsure` (only its interval is, where the gate asks for that) or
    `few rows`."""

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the slice is worse, however many slices were looked at."""
        return self.difference < 0 and self.p_holm <= 1 - LEVEL_OF_SLICES


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """One gate, judged."""

    gate: str
    state: str
    """One of `STATES`; only the first lets anything through."""
    value: float | None = None
    """As a share, a difference, nano-USD per call, ms, or a count of new failures; None: there is nothing to tell."""
    low: float | None = None
    high: float | None = None
    level: float = LEVEL
    bound: float = 0.0
    """In the unit of `value`."""
    n: int = 0
    """Answers, or pairs of rows, that it was judged by."""
    why: str = ""
    """One sentence."""
    slices: tuple[SliceResult, ...] = ()
    """The worst first."""
    rows: tuple[str, ...] = ()
    """Ids of rows that failed anew."""


class _Judged(msgspec.Struct, frozen=True):
    """What gates are judged by."""

    run: Run
    baseline: Run | None
    first: str
    """The scorer that `accuracy` is."""
    names: tuple[str, ...]
    judges: frozenset[str]
    calibrations: Mapping[str, Calibration]

    def rows(self, suite: str) -> list[RowV1]:
        return [row for row in self.run.rows if row.suite == suite]

    def scorer(self, gate: Gate) -> str:
        return gate.scorer or self.first


def judge_gates(
    gates: Sequence[str | Gate], run: Run, baseline: Run | None = None, *, scorers: Sequence[Scorer] = (),
    calibrations: Mapping[str, Calibration] | None = None,
) -> tuple[GateResult, ...]:  # fmt: skip
    """Each gate's result, in order.

    scorers: the eval's, see `core.scorers.scorers_of`; without them they are those that the rows name, the first one
    first, and none is a judge. calibrations: judge's name -> how it agrees with people. Raises: DrivetrainError for a
    gate that cannot be read.
    """
    parsed = [parse_gate(one) if isinstance(one, str) else one for one in gates]
    names = tuple(one.name for one in scorers) or tuple(dict.fromkeys(name for row in run.rows for name in row.scores))
    judged = _Judged(
        run, baseline, names[0] if names else "", names, frozenset(one.name for one in scorers if one.kind == "judge"),
        calibrations or {},
    )  # fmt: skip
    found = [_judge(gate, judged) for gate in parsed]
    return tuple(_carried(gate, result, parsed, found, judged) for gate, result in zip(parsed, found, strict=True))


def _judge(gate: Gate, judged: _Judged) -> GateResult:
    name = judged.scorer(gate)
    if gate.kind in (SCORE, UNREAD, *PAIRED) and name not in judged.names:
        return _unsettled(gate, f"no answer was scored by `{name or ACCURACY}`")
    rows = judged.rows(gate.suite)
    if not rows:
        return _unsettled(gate, f"the run has no row{f' of the suite `{gate.suite}`' if gate.suite else ''}")
    unscored = sum(score_of(row, name) is None for row in rows)
    if unscored and gate.kind in (SCORE, UNREAD, *PAIRED):
        return _unsettled(gate, f"{unscored} of {len(rows)} answers have no score of `{name}`")
    return _KINDS[gate.kind](gate, judged)


def _score(gate: Gate, judged: _Judged) -> GateResult:
    name, rows = judged.scorer(gate), judged.rows(gate.suite)
    level = gate.level or LEVEL
    found: Estimate | None = mean_score(rows, name, level)
    assert found is not None
    note = ""
    calibration = judged.calibrations.get(name)
    if name in judged.judges and calibration is not None and calibration.corrected and not gate.suite:
        note = f"; corrected by {calibration.labels} people's labels, as the judge says {_shown(gate, found.value)}"
        found = _corrected(found, calibration, sum(_is_judged(row, name) for row in rows) / len(rows))
    failed = sum(row.scores[name].cause == causes.SCORER for row in rows if name in row.scores)
    if failed:
        note += f"; the scorer failed at {failed} of them, which count as 0"
    return _held(gate, judged, found, name, note)


def _corrected(found: Estimate, calibration: Calibration, judged: float) -> Estimate:
    """The mean that labels and judge give together; what the judge said nothing of counts as 0, as it does without."""
    return msgspec.structs.replace(
        found, value=judged * calibration.corrected_value, low=judged * calibration.corrected_low,
        high=judged * calibration.corrected_high,
    )  # fmt: skip


def _is_judged(row: RowV1, name: str) -> bool:
    said = row.scores.get(name)
    return row.status == "answered" and said is not None and said.cause != causes.SCORER


def _share_of(flag: Callable[[RowV1, str], bool], what: str) -> Callable[[Gate, _Judged], GateResult]:
    def judge(gate: Gate, judged: _Judged) -> GateResult:
        rows, name = judged.rows(gate.suite), judged.scorer(gate)
        found = share([flag(row, name) for row in rows], rows, gate.level or LEVEL)
        assert found is not None
        return _held(gate, judged, found, what, "")

    return judge


def _cost(gate: Gate, judged: _Judged) -> GateResult:
    """Of a Call as a provider would charge it: a cached answer counts as what it cost when it was given."""
    rows = judged.rows(gate.suite)
    costs = [row.cost_nano_usd + row.saved_nano_usd for row in rows]
    found = mean([float(one) for one in costs], rows, level=gate.level or LEVEL, floor=0.0)
    assert found is not None
    result = _held(gate, judged, found, "cost per call", "")
    if not gate.level and len({row.weight for row in rows}) == 1:  # integers, so that no rounding decides
        total, allowed = sum(costs), gate.bound_nano_usd * len(costs)
        held = total < allowed if gate.is_strict else total <= allowed
        result = msgspec.structs.replace(result, state=PASSED if held else FAILED_STATE)
    return result


def _latency(gate: Gate, judged: _Judged) -> GateResult:
    rows = judged.rows(gate.suite)
    asked = [row for row in rows if not row.cached and row.status == "answered"]
    if not asked:
        return _unsettled(gate, f"none of {len(rows)} answers came from a provider, so that none tells its latency")
    values, level = [row.latency_us / 1000 for row in asked], gate.level or LEVEL
    found = (
        quantile(values, asked, gate.quantile, level) if gate.quantile
        else mean(values, asked, level=level, floor=0.0)
    )  # fmt: skip
    assert found is not None
    left = len(rows) - len(asked)
    note = f"; {left} more were cached or failed and tell no latency" if left else ""
    name = f"p{gate.quantile * 100:g} latency" if gate.quantile else "mean latency"
    return _held(gate, judged, found, name, note)


def _overall(gate: Gate, judged: _Judged) -> GateResult:
    name, rows = judged.scorer(gate), judged.rows("")
    before = _before(judged, name)
    if before is None:
        return _no_baseline(gate)
    found = paired(rows, before, name, gate.level or LEVEL)
    if found is None:
        return _unsettled(gate, "the baseline has none of these rows")
    note = f"; {found.wins} rows or groups better, {found.losses} worse, p {found.p_worse:.3g}{_unpaired(rows, found)}"
    return _held(gate, judged, found, f"`{name}` against the baseline", note)


def _slices(gate: Gate, judged: _Judged) -> GateResult:
    name, rows = judged.scorer(gate), judged.rows("")
    before = _before(judged, name)
    if before is None:
        return _no_baseline(gate)
    level = gate.level or LEVEL
    named: dict[tuple[str, str], list[RowV1]] = {}
    for row in rows:
        for column, value in row.slices.items():
            named.setdefault((column, value), []).append(row)
    if not named:
        return _unsettled(gate, "the eval's rows have no slices")
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
        return _unsettled(gate, f"no slice has {SLICE_ROWS_MIN} rows that the baseline has too{note}", results)
    worst = told[0]
    worse = [one for one in told if one.state == "worse"]
    unsure = [one for one in told if one.state == "unsure"]
    state = FAILED_STATE if worse else UNSETTLED if unsure else PASSED
    at = f"the worst slice is {worst.column} = {worst.value}: {_points(worst.difference)}"
    at += f" ({_points(worst.low)} to {_points(worst.high)} at {level:.0%}, {worst.rows} rows)"
    if worse:
        sure = sum(one.is_beyond_chance for one in worse)
        at = f"{len(worse)} of {len(told)} slices are worse than {_points(gate.bound)}, {sure} beyond chance; {at}"
    if unsure:
        note = f"; {len(unsure)} slices may be worse than {_points(gate.bound)} by their intervals{note}"
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


def _new_failures(gate: Gate, judged: _Judged) -> GateResult:
    name, rows = judged.scorer(gate), judged.rows(gate.suite)
    failing = _failing(rows, name)
    count = len({key_of(row) for row in rows})
    if not failing:
        return GateResult(
            gate=gate.text, state=PASSED, value=0.0, low=0.0, high=0.0, n=count, why=f"none of {count} rows fails."
        )
    if judged.baseline is None:
        return _no_baseline(gate, f"{len(failing)} of {count} rows fail, and ")
    old = [row for row in judged.baseline.rows if row.suite == gate.suite]
    before = _failing(old, name)
    known = {key_of(row) for row in old}
    new = [key for key in failing if key not in before]
    unknown = sum(key not in known for key in new)
    note = f", {unknown} of which the baseline does not have" if unknown else ""
    still = len(failing) - len(new)
    return GateResult(
        gate=gate.text, state=FAILED_STATE if new else PASSED, value=float(len(new)), low=float(len(new)),
        high=float(len(new)), n=count, rows=tuple(row for _, row in new[:ROWS_TOLD_MAX]),
        why=f"{len(new)} of {count} rows fail anew{note}; {still} failed before too.",
    )  # fmt: skip


def _failing(rows: Sequence[RowV1], name: str) -> dict[tuple[str, str], None]:
    """Rows of which a repeat failed, in order; what was not scored has not."""
    scores = ((key_of(row), score_of(row, name)) for row in rows)
    return dict.fromkeys(key for key, value in scores if value is not None and value < FAILS_BELOW)


def _held(gate: Gate, judged: _Judged, found: Estimate, what: str, note: str) -> GateResult:
    """A figure beside its bound."""
    bound = float(gate.bound_nano_usd) if gate.kind == COST else gate.bound
    seen = found.value
    if gate.level:
        seen = found.low if gate.at_least else found.high
    if _keeps(gate, bound, seen):
        state = PASSED
    else:  # where only the interval reaches beyond the bound, nothing was shown
        state = UNSETTLED if gate.level and _keeps(gate, bound, found.value) else FAILED_STATE
    asked = f"{'more than' if gate.is_strict else 'at least'}" if gate.at_least else (
        "less than" if gate.is_strict else "at most"
    )  # fmt: skip
    end = "" if not gate.level else f" of the interval's {'lower' if gate.at_least else 'upper'} end"
    why = (
        f"{what} is {_shown(gate, found.value)} ({_shown(gate, found.low)} to {_shown(gate, found.high)} at "
        f"{found.level * 100:g} %, {found.n} {'rows' if isinstance(found, PairedEstimate) else 'answers'}"
        f"{f' in {found.clusters} groups' if found.clusters < found.n else ''}); {asked} {_shown(gate, bound)}{end} "
        f"is asked{note}."
    )
    return GateResult(
        gate=gate.text, state=state, value=found.value, low=_finite(found.low), high=_finite(found.high), level=found.level, bound=bound, n=found.n, why=why,
    )  # fmt: skip


def _keeps(gate: Gate, bound: float, seen: float) -> bool:
    slack = ALIKE * max(1.0, abs(bound))
    distance = seen - bound if gate.at_least else bound - seen
    return distance > slack if gate.is_strict else distance >= -slack


def _carried(
    gate: Gate, result: GateResult, gates: Sequence[Gate], results: Sequence[GateResult], judged: _Judged
) -> GateResult:
    """A gate over a judge's score passes by itself only where people's labels carry the judge.

    One that does not stands for nothing alone: its gate passes only beside a gate over the score of something else than
    a judge that passed in the same run; a failed one stays failed, since a poor judge is no reason to let through.
    """
    name = judged.scorer(gate)
    if result.state != PASSED or not _is_of_scores(gate) or name not in judged.judges:
        return result
    calibration = judged.calibrations.get(name)
    if calibration is not None and carries_gates(calibration):
        return result
    poor = "was never compared with people" if calibration is None else calibration.why
    for other, beside in zip(gates, results, strict=True):
        if beside.state == PASSED and _is_of_scores(other) and judged.scorer(other) not in judged.judges:
            why = f"{result.why} The judge `{name}` {poor}; `{other.text}` carries the gate with it."
            return msgspec.structs.replace(result, why=why)
    why = f"{result.why} But the judge `{name}` {poor}, and no gate over another score carries it."
    return msgspec.structs.replace(result, state=UNSETTLED, why=why)


def _is_of_scores(gate: Gate) -> bool:
    return gate.kind in (SCORE, *PAIRED)


def _before(judged: _Judged, name: str) -> Mapping[tuple[str, str], float] | None:
    return None if judged.baseline is None else row_means(judged.baseline.rows, name)


def _no_baseline(gate: Gate, head: str = "") -> GateResult:
    return _unsettled(gate, f"{head}there is no baseline run to compare with")


def _unsettled(gate: Gate, why: str, slices: tuple[SliceResult, ...] = ()) -> GateResult:
    bound = float(gate.bound_nano_usd) if gate.kind == COST else gate.bound
    return GateResult(
        gate=gate.text, state=UNSETTLED, level=gate.level or LEVEL, bound=bound, why=f"{why}.",
        slices=slices[:SLICES_TOLD_MAX],
    )  # fmt: skip


def _unpaired(rows: Sequence[RowV1], found: PairedEstimate) -> str:
    left = len({key_of(row) for row in rows}) - found.n
    return f"; {left} rows are not in the baseline" if left else ""


def _few(slices: Sequence[SliceResult]) -> str:
    named = ", ".join(f"{one.column} = {one.value} ({one.rows})" for one in slices[:3])
    return f"{named}{' ...' if len(slices) > 3 else ''}"


def _shown(gate: Gate, value: float) -> str:
    if not math.isfinite(value):
        return "unbounded"
    if gate.kind == COST:
        return f"${usd(round(value))}"
    if gate.kind == LATENCY:
        return f"{value:.4g} ms"
    if gate.kind in (OVERALL, SLICES):
        return _points(value)
    return f"{value:.4g}" if gate.kind == SCORE else f"{value * 100:.3g} %"


def _points(value: float) -> str:
    return f"{value * 100:+.2f} pp"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_unread(row: RowV1, name: str) -> bool:
    return name in row.scores and row.scores[name].unread


def _has_failed(row: RowV1, _: str) -> bool:
    return row.status != "answered"


_KINDS: Mapping[str, Callable[[Gate, _Judged], GateResult]] = {
    SCORE: _score,
    SLICES: _slices,
    OVERALL: _overall,
    NEW_FAILURES: _new_failures,
    COST: _cost,
    LATENCY: _latency,
    UNREAD: _share_of(_is_unread, "the share that could not be read"),
    FAILED: _share_of(_has_failed, "the share of failed calls"),
}
