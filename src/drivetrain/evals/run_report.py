"""The Report of a run: its figures with their intervals, its failures by cause, and whether its gates passed.

Owns the shape of a Report of kind `eval`. It cites rows and Calls and quotes nobody. Called by the wiring of runs and
by the commands that show one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import msgspec

from drivetrain.core.reports import ReportV1
from drivetrain.evals.calibration import Calibration
from drivetrain.evals.gates import PASSED, UNSETTLED, GateResult
from drivetrain.evals.measures import LEVEL, mean, paired, row_means, score_of
from drivetrain.evals.rows import RowV1, Run

KIND = "eval"
CITED_MAX = 50
"""Rows that a Report cites for one cause; the run's rows have all."""
SLICES_MAX = 200
"""Values of one slice's column that a Report has figures for, the largest first."""
FIRST = "accuracy"
"""What the first scorer's mean is called at a glance."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A mean with its interval at `LEVEL`."""

    value: float
    low: float | None
    high: float | None
    """None where too few tell of their spread."""
    rows: int
    """Different rows, however often each was asked."""
    groups: int
    """What is independent of each other."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Some rows of a run."""

    name: str
    """`COLUMN=VALUE`, or a suite's name."""
    rows: int
    scores: dict[str, Figure]


class Cited(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer that is not right."""

    row: str
    call_id: str = ""
    suite: str = ""
    error: str = ""


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """Answers that are not right for the same reason."""

    scorer: str
    cause: str
    answers: int
    cited: tuple[Cited, ...]


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """A scorer's mean against the baseline's, on the rows that both have."""

    scorer: str
    difference: float
    low: float
    high: float
    rows: int
    better: int
    worse: int


class Against(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is compared with."""

    what: str
    """In words: `Release 3`, `the last applied Snapshot`, `Report 1a2b`."""
    workflow_key: str
    snapshot: str
    spent_nano_usd: int
    """What it cost to ask its rows now; 0 where its answers were kept."""


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What a run took."""

    now_nano_usd: int
    """Paid by this run, judges and baseline included."""
    reused: int
    """Answers of before, which cost nothing now."""
    limit_nano_usd: int | None = None


def figure(rows: Sequence[RowV1], value: Callable[[RowV1], float], *, ceiling: float = math.inf) -> Figure:
    """A mean over answers that are at least 0; see `measures.mean`."""
    found = mean([value(one) for one in rows], rows, level=LEVEL, floor=0.0, ceiling=ceiling)
    assert found is not None, "a figure is of rows"
    return Figure(
        value=found.value, low=found.low if math.isfinite(found.low) else None,
        high=found.high if math.isfinite(found.high) else None,
        rows=len({one.row for one in rows}), groups=found.clusters,
    )  # fmt: skip


def scorers_in(run: Run) -> list[str]:
    """Names of what scored it, the first one first."""
    return list(dict.fromkeys(name for one in run.rows for name in one.scores))


def own(run: Run) -> list[RowV1]:
    """The rows of the eval's own Dataset, suites left out."""
    return [one for one in run.rows if not one.suite]


def compared(run: Run, baseline: Run, name: str) -> Compared | None:
    """One scorer's difference on the rows of the eval's own Dataset that both runs have; None where none is."""
    found = paired(own(run), row_means(own(baseline), name), name, LEVEL)
    if found is None:
        return None
    return Compared(
        scorer=name, difference=found.value, low=found.low, high=found.high, rows=found.n, better=found.wins,
        worse=found.losses,
    )  # fmt: skip


def parts(run: Run, names: Sequence[str]) -> list[Part]:
    """Each suite, then each slice's values, the largest first."""
    suites: dict[str, list[RowV1]] = defaultdict(list)
    slices: dict[str, dict[str, list[RowV1]]] = defaultdict(lambda: defaultdict(list))
    for one in run.rows:
        if one.suite:
            suites[one.suite].append(one)
            continue
        for column, value in one.slices.items():
            slices[column][value].append(one)
    found = [_part(name, rows, names) for name, rows in suites.items()]
    for column, values in slices.items():
        largest = sorted(values.items(), key=lambda one: (-len(one[1]), one[0]))[:SLICES_MAX]
        found += [_part(f"{column}={value}", rows, names) for value, rows in largest]
    return found


def _part(name: str, rows: Sequence[RowV1], names: Sequence[str]) -> Part:
    return Part(name=name, rows=len({one.row for one in rows}), scores=_figures(rows, names))


def _figures(rows: Sequence[RowV1], names: Sequence[str]) -> dict[str, Figure]:
    found = {}
    for name in names:
        scored = [one for one in rows if score_of(one, name) is not None]
        if scored:
            found[name] = figure(scored, lambda one, name=name: score_of(one, name) or 0.0, ceiling=1.0)  # type: ignore[misc]
    return found


def failures(run: Run) -> list[Failures]:
    """What is not right, by scorer and cause, the most frequent first."""
    found: dict[tuple[str, str], list[RowV1]] = defaultdict(list)
    for one in run.rows:
        for name, score in one.scores.items():
            if score.value < 1:
                found[name, score.cause or "wrong"].append(one)
    listed = [
        Failures(
            scorer=name, cause=cause, answers=len(rows),
            cited=tuple(
                Cited(row=one.row, call_id=one.call_id, suite=one.suite, error=one.error) for one in rows[:CITED_MAX]
            ),
        )
        for (name, cause), rows in found.items()
    ]  # fmt: skip
    order = {name: place for place, name in enumerate(scorers_in(run))}
    return sorted(listed, key=lambda one: (order[one.scorer], -one.answers, one.cause))


def eval_report(
    run: Run,
    *,
    snapshot: str,
    datasets: Sequence[str],
    gates: Sequence[GateResult],
    spent: Spent,
    made_ns: int,
    made_by: str,
    finished: bool,
    partial: str = "",
    against: Against | None = None,
    baseline: Run | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    notices: Sequence[str] = (),
) -> ReportV1:
    """The whole Report. Pure.

    datasets: `NAME@N` of all that was asked. gates: results in order. partial: why it is no evidence for a Release,
    though its gates may pass.
    """
    names = scorers_in(run)
    rows = own(run)
    figures = _figures(rows, names)
    failed = [one for one in gates if one.state != PASSED]
    passed = finished and not failed and not partial
    differences = [one for name in names if baseline is not None and (one := compared(run, baseline, name)) is not None]
    latencies = sorted(one.latency_us for one in rows)
    facts: dict[str, str | int | float | bool] = {
        "eval": run.eval, "workflow": run.workflow, "workflow_key": run.workflow_key, "eval_key": run.eval_key,
        "dataset": run.dataset, "snapshot": snapshot, "passed": passed, "finished": finished, "gates": len(gates),
        "gates_failed": len(failed), "rows": len({one.row for one in run.rows}), "answers": len(run.rows),
        "spent_nano_usd": spent.now_nano_usd, "baseline_key": baseline.workflow_key if baseline is not None else "",
    }  # fmt: skip
    if names and names[0] in figures:
        facts[FIRST] = figures[names[0]].value
    for name, found in figures.items():
        facts.setdefault(name, found.value)
    body = {
        "gates": [msgspec.to_builtins(one) for one in gates],
        "scores": msgspec.to_builtins(figures),
        "parts": msgspec.to_builtins(parts(run, names)),
        "failures": msgspec.to_builtins(failures(run)),
        "unread": {name: sum(one.scores[name].unread for one in rows if name in one.scores) for name in names},
        "errors": dict(Counter(one.error for one in run.rows if one.error)),
        "cost": msgspec.to_builtins(figure(rows, lambda one: one.cost_nano_usd / 1e9)) if rows else None,
        "judged_nano_usd": sum(one.judged_nano_usd for one in run.rows),
        "latency_ms": {f"p{p}": _quantile(latencies, p) / 1000 for p in (50, 95, 99)} if latencies else {},
        "tokens": {
            "input": msgspec.to_builtins(figure(rows, lambda one: float(one.tokens_input))),
            "output": msgspec.to_builtins(figure(rows, lambda one: float(one.tokens_output))),
        } if rows else {},
        "repeats": max((one.repeat for one in run.rows), default=0) + 1,
        "unsteady": _unsteady(rows, names),
        "spent": msgspec.to_builtins(spent),
        "against": msgspec.to_builtins(against),
        "compared": msgspec.to_builtins(differences),
        "judges": msgspec.to_builtins(calibrations or {}),
        "partial": partial,
        "notices": list(notices),
    }  # fmt: skip
    return ReportV1(
        kind=KIND, subject=f"workflow:{run.workflow}", made_ns=made_ns, made_by=made_by,
        inputs=tuple(dict.fromkeys(f"dataset:{one}" for one in datasets)),
        verdict=_verdict(run, gates, figures, finished=finished, partial=partial), facts=facts,
        body=msgspec.to_builtins(body),
    )  # fmt: skip


def _verdict(
    run: Run,
    gates: Sequence[GateResult],
    figures: dict[str, Figure],
    *,
    finished: bool,
    partial: str,
) -> str:
    failed = [one for one in gates if one.state != PASSED]
    name = next(iter(figures), "")
    told = ""
    if name:
        one = figures[name]
        ends = f"{one.low or 0.0:.1%} to {1.0 if one.high is None else one.high:.1%}"
        told = f"{name} {one.value:.1%} ({ends}) on {one.rows:,} rows of {run.dataset}"
    if not finished:
        return f"`{run.eval}` is not finished and passes nothing; so far {told or 'nothing was answered'}."
    if not gates:
        return f"`{run.eval}` has no gates; {told}."
    if not failed:
        many = "its gate passes" if len(gates) == 1 else f"all {len(gates)} gates pass"
        return f"`{run.eval}`: {many}; {told}{f'. {partial}' if partial else ''}."
    first = failed[0]
    left = len(failed) - 1
    more = f" {left} more {'gate does' if left == 1 else 'gates do'} not pass." if left else ""
    state = "has not enough evidence" if first.state == UNSETTLED else "fails"
    return f"`{run.eval}`: gate `{first.gate}` {state}: {first.why}{more} In all: {told or 'nothing was answered'}."


def _quantile(values: Sequence[int], percent: int) -> float:
    return float(values[min(len(values) - 1, math.ceil(len(values) * percent / 100) - 1)])


def _unsteady(rows: Sequence[RowV1], names: Sequence[str]) -> dict[str, int]:
    """Scorer -> rows whose repeats were not scored alike."""
    found = {}
    for name in names:
        seen: dict[str, set[float]] = defaultdict(set)
        for one in rows:
            if name in one.scores:
                seen[one.row].add(one.scores[name].value)
        found[name] = sum(len(values) > 1 for values in seen.values())
    return found
