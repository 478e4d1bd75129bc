"""What gates make of a run: passed, failed, or not enough evidence, each with its figure, interval and reason.

A gate fails where the figure is beyond its bound, it passes only where there is something to judge by. With
`at 95 %` it passes where the end of its interval keeps to the bound too, and where only the figure does, that is not
enough evidence. Slices are told one by one, with Holm over all of them for what is beyond chance.
Nothing here asks a model; a judge's score counts only as far as people's labels carry it (`judging.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from drivetrain.core.evals import Scorer
from drivetrain.evals import causes
from drivetrain.evals.calibration import Calibration, carries_gates
from drivetrain.evals.gate_results import (
    FAILED,
    PASSED,
    STATES,
    UNSETTLED,
    Evidence,
    GateResult,
    SliceResult,
    held,
    no_baseline,
    nothing_worse,
    shown,
    unsettled,
)  # fmt: skip
from drivetrain.evals.gate_slices import SLICE_ROWS_MIN, judge_slices
from drivetrain.evals.gate_text import (
    ACCURACY,
    COST,
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
from drivetrain.evals.gate_text import FAILED as FAILED_CALLS
from drivetrain.evals.measures import (
    LEVEL,
    Estimate,
    PairedEstimate,
    key_of,
    mean,
    mean_score,
    paired,
    quantile,
    score_of,
    share,
)  # fmt: skip
from drivetrain.evals.rows import PASSING, RowV1, Run

ROWS_TOLD_MAX = 200
"""Ids that a result names; how many there are is told in any case."""
FAILS_BELOW = 0.5
"""A row has failed where any of its repeats scored less."""

__all__ = [
    "FAILED", "PASSED", "SLICE_ROWS_MIN", "STATES", "UNSETTLED", "GateResult", "SliceResult", "judge_gates",
    "needs_baseline", "parse_gate",
]  # fmt: skip


def judge_gates(
    gates: Sequence[str | Gate], run: Run, baseline: Run | None = None, *, scorers: Sequence[Scorer] = (),
    calibrations: Mapping[str, Calibration] | None = None, alone: str = "",
) -> tuple[GateResult, ...]:  # fmt: skip
    """Each gate's result, in order.

    scorers: the eval's, see `core.scorers.scorers_of`; without them they are those that the rows name, the first one
    first, and none is a judge. calibrations: judge's name -> how it agrees with people. alone: why there is nothing
    that the run could be worse than, as `nothing was live before`: then what is compared holds.
    Raises: DrivetrainError for a gate that cannot be read.
    """
    parsed = [parse_gate(one) if isinstance(one, str) else one for one in gates]
    names = tuple(one.name for one in scorers) or tuple(dict.fromkeys(name for row in run.rows for name in row.scores))
    judged = Evidence(
        run, baseline, names[0] if names else "", names, frozenset(one.name for one in scorers if one.kind == "judge"),
        calibrations or {}, alone,
    )  # fmt: skip
    found = [_judge(gate, judged) for gate in parsed]
    return tuple(_carried(gate, result, parsed, found, judged) for gate, result in zip(parsed, found, strict=True))


def _judge(gate: Gate, judged: Evidence) -> GateResult:
    name = judged.scorer(gate)
    if gate.kind in (SCORE, UNREAD, *PAIRED) and name not in judged.names:
        return unsettled(gate, f"no answer was scored by `{name or ACCURACY}`")
    rows = judged.rows(gate.suite)
    if not rows:
        return unsettled(gate, f"the run has no row{f' of the suite `{gate.suite}`' if gate.suite else ''}")
    unscored = sum(score_of(row, name) is None for row in rows)
    if unscored and gate.kind in (SCORE, UNREAD, *PAIRED):
        return unsettled(gate, f"{unscored} of {len(rows)} answers have no score of `{name}`")
    if judged.alone and gate.kind in PAIRED:
        if all(row.status != "answered" for row in rows):
            return unsettled(gate, f"none of {len(rows)} rows was answered")
        return nothing_worse(gate, judged)
    if gate.kind in PAIRED and (failed := _failed_before(rows, name, judged.baseline)):
        return unsettled(
            gate, f"{failed} answers of the baseline failed for a reason outside it, so that it looks worse than it "
            "is; run it again: no other row is asked"
        )  # fmt: skip
    return _KINDS[gate.kind](gate, judged)


def _failed_before(rows: Sequence[RowV1], name: str, baseline: Run | None) -> int:
    """Answers of the baseline that count as 0 by an outage or by its scorer, where the run's own counted by what they
    say: against such a baseline anything is better."""
    if baseline is None:
        return 0
    fine = {key_of(row) for row in rows} - {key_of(row) for row in rows if _failed_outside(row, name)}
    return sum(key_of(row) in fine and _failed_outside(row, name) for row in baseline.rows)


def _failed_outside(row: RowV1, name: str) -> bool:
    if row.status != "answered":
        return row.error in PASSING
    return name in row.scores and row.scores[name].cause == causes.SCORER


def _score(gate: Gate, judged: Evidence) -> GateResult:
    name, rows = judged.scorer(gate), judged.rows(gate.suite)
    level = gate.level or LEVEL
    found: Estimate | None = mean_score(rows, name, level)
    assert found is not None
    note = ""
    calibration = judged.calibrations.get(name)
    if name in judged.judges and calibration is not None and calibration.corrected and not gate.suite:
        note = f"; corrected by {calibration.labels} people's labels, as the judge says {shown(gate, found.value)}"
        found = _corrected(found, calibration, sum(_is_judged(row, name) for row in rows) / len(rows))
    failed = sum(row.scores[name].cause == causes.SCORER for row in rows if name in row.scores)
    if failed:
        note += f"; the scorer failed at {failed} of them, which count as 0"
    return held(gate, found, name, note)


def _corrected(found: Estimate, calibration: Calibration, judged: float) -> Estimate:
    """The mean that labels and judge give together; what the judge said nothing of counts as 0, as it does without."""
    return msgspec.structs.replace(
        found, value=judged * calibration.corrected_value, low=judged * calibration.corrected_low,
        high=judged * calibration.corrected_high,
    )  # fmt: skip


def _is_judged(row: RowV1, name: str) -> bool:
    said = row.scores.get(name)
    return row.status == "answered" and said is not None and said.cause != causes.SCORER


def _share_of(flag: Callable[[RowV1, str], bool], what: str) -> Callable[[Gate, Evidence], GateResult]:
    def judge(gate: Gate, judged: Evidence) -> GateResult:
        rows, name = judged.rows(gate.suite), judged.scorer(gate)
        found = share([flag(row, name) for row in rows], rows, gate.level or LEVEL)
        assert found is not None
        return held(gate, found, what, "")

    return judge


def _cost(gate: Gate, judged: Evidence) -> GateResult:
    """Of a Call as a provider would charge it: a cached answer counts as what it cost when it was given. A Call that an
    outage ended before anything was charged tells of no cost."""
    asked = judged.rows(gate.suite)
    rows = [row for row in asked if row.error not in PASSING or row.cost_nano_usd or row.saved_nano_usd]
    if not rows:
        return unsettled(gate, f"none of {len(asked)} rows was answered, so that none tells what a Call costs")
    left = len(asked) - len(rows)
    costs = [row.cost_nano_usd + row.saved_nano_usd for row in rows]
    found = mean([float(one) for one in costs], rows, level=gate.level or LEVEL, floor=0.0)
    assert found is not None
    result = held(gate, found, "cost per call", f"; {left} more were not answered and tell no cost" if left else "")
    if not gate.level and len({row.weight for row in rows}) == 1:  # integers, so that no rounding decides
        total, allowed = sum(costs), gate.bound_nano_usd * len(costs)
        is_kept = total < allowed if gate.is_strict else total <= allowed
        result = msgspec.structs.replace(result, state=PASSED if is_kept else FAILED)
    return result


def _latency(gate: Gate, judged: Evidence) -> GateResult:
    rows = judged.rows(gate.suite)
    asked = [row for row in rows if not row.cached and row.status == "answered"]
    if not asked:
        return unsettled(gate, f"none of {len(rows)} answers came from a provider, so that none tells its latency")
    values, level = [row.latency_us / 1000 for row in asked], gate.level or LEVEL
    found = (
        quantile(values, asked, gate.quantile, level) if gate.quantile
        else mean(values, asked, level=level, floor=0.0)
    )  # fmt: skip
    assert found is not None
    left = len(rows) - len(asked)
    note = f"; {left} more were cached or failed and tell no latency" if left else ""
    name = f"p{gate.quantile * 100:g} latency" if gate.quantile else "mean latency"
    return held(gate, found, name, note)


def _overall(gate: Gate, judged: Evidence) -> GateResult:
    name, rows = judged.scorer(gate), judged.rows("")
    before = judged.before(name)
    if before is None:
        return no_baseline(gate)
    found = paired(rows, before, name, gate.level or LEVEL)
    if found is None:
        return unsettled(gate, "the baseline has none of these rows")
    note = f"; {found.wins} rows or groups better, {found.losses} worse, p {found.p_worse:.3g}{_unpaired(rows, found)}"
    return held(gate, found, f"`{name}` against the baseline", note)


def _new_failures(gate: Gate, judged: Evidence) -> GateResult:
    name, rows = judged.scorer(gate), judged.rows(gate.suite)
    failing = _failing(rows, name)
    count = len({key_of(row) for row in rows})
    if not failing:
        return GateResult(
            gate=gate.text, state=PASSED, value=0.0, low=0.0, high=0.0, n=count, why=f"none of {count} rows fails."
        )
    if judged.baseline is None:
        return no_baseline(gate, f"{len(failing)} of {count} rows fail, and ")
    old = [row for row in judged.baseline.rows if row.suite == gate.suite]
    before = _failing(old, name)
    known = {key_of(row) for row in old}
    new = [key for key in failing if key not in before]
    unknown = sum(key not in known for key in new)
    note = f", {unknown} of which the baseline does not have" if unknown else ""
    still = len(failing) - len(new)
    return GateResult(
        gate=gate.text, state=FAILED if new else PASSED, value=float(len(new)), low=float(len(new)),
        high=float(len(new)), n=count, rows=tuple(row for _, row in new[:ROWS_TOLD_MAX]),
        why=f"{len(new)} of {count} rows fail anew{note}; {still} failed before too.",
    )  # fmt: skip


def _failing(rows: Sequence[RowV1], name: str) -> dict[tuple[str, str], None]:
    """Rows of which a repeat failed, in order; what was not scored has not."""
    scores = ((key_of(row), score_of(row, name)) for row in rows)
    return dict.fromkeys(key for key, value in scores if value is not None and value < FAILS_BELOW)


def _unpaired(rows: Sequence[RowV1], found: PairedEstimate) -> str:
    left = len({key_of(row) for row in rows}) - found.n
    return f"; {left} rows are not in the baseline" if left else ""


def _carried(
    gate: Gate, result: GateResult, gates: Sequence[Gate], results: Sequence[GateResult], judged: Evidence
) -> GateResult:
    """A gate over a judge's score passes by itself only where people's labels carry the judge.

    One that does not stands for nothing alone: its gate passes only beside a gate over the score of something else than
    a judge that passed in the same run; a failed one stays failed, since a poor judge is no reason to let through.
    """
    name = judged.scorer(gate)
    if not _shows(result) or not _is_of_scores(gate) or name not in judged.judges:
        return result
    calibration = judged.calibrations.get(name)
    if calibration is not None and carries_gates(calibration):
        return result
    poor = "was never compared with people" if calibration is None else calibration.why
    for other, beside in zip(gates, results, strict=True):
        if _shows(beside) and _is_of_scores(other) and judged.scorer(other) not in judged.judges:
            why = f"{result.why} The judge `{name}` {poor}; `{other.text}` carries the gate with it."
            return msgspec.structs.replace(result, why=why)
    why = f"{result.why} But the judge `{name}` {poor}, and no gate over another score carries it."
    return msgspec.structs.replace(result, state=UNSETTLED, why=why)


def _shows(result: GateResult) -> bool:
    """Whether a gate passed by a figure, and not because there was nothing to compare with."""
    return result.state == PASSED and result.value is not None


def _is_of_scores(gate: Gate) -> bool:
    return gate.kind in (SCORE, *PAIRED)


def _is_unread(row: RowV1, name: str) -> bool:
    return name in row.scores and row.scores[name].unread


def _has_failed(row: RowV1, _: str) -> bool:
    return row.status != "answered"


_KINDS: Mapping[str, Callable[[Gate, Evidence], GateResult]] = {
    SCORE: _score,
    SLICES: judge_slices,
    OVERALL: _overall,
    NEW_FAILURES: _new_failures,
    COST: _cost,
    LATENCY: _latency,
    UNREAD: _share_of(_is_unread, "the share that could not be read"),
    FAILED_CALLS: _share_of(_has_failed, "the share of failed calls"),
}
