"""What is said of one gate, and how a figure is held against its bound. Called by `gates.py` and `gate_slices.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from drivetrain.core.money import usd
from drivetrain.evals.calibration import Calibration
from drivetrain.evals.gate_text import COST, LATENCY, OVERALL, SCORE, SLICES, Gate
from drivetrain.evals.measures import LEVEL, Estimate, PairedEstimate, row_means
from drivetrain.evals.rows import RowV1, Run

PASSED, FAILED, UNSETTLED = "passed", "failed", "not enough evidence"
STATES = (PASSED, FAILED, UNSETTLED)
SLICES_TOLD_MAX = 50
ALIKE = 1e-9
"""What rounding adds to a bound: -2 pp of 100 rows is just two rows."""
LEVEL_OF_SLICES = 0.95
"""At which a slice is called worse beyond chance, all slices of a run together."""


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


class Evidence(msgspec.Struct, frozen=True):
    """What gates are judged by."""

    run: Run
    baseline: Run | None
    first: str
    """The scorer that `accuracy` is."""
    names: tuple[str, ...]
    judges: frozenset[str]
    calibrations: Mapping[str, Calibration]
    alone: str = ""
    """Why there is nothing that the run could be worse than, in words; empty where there is."""

    def rows(self, suite: str) -> list[RowV1]:
        """Of a suite, or of the eval's own Dataset."""
        return [row for row in self.run.rows if row.suite == suite]

    def scorer(self, gate: Gate) -> str:
        """The name of the scorer that a gate is about."""
        return gate.scorer or self.first

    def before(self, scorer: str) -> Mapping[tuple[str, str], float] | None:
        """The baseline's mean of each row; None without a baseline."""
        return None if self.baseline is None else row_means(self.baseline.rows, scorer)


def held(gate: Gate, found: Estimate, what: str, note: str) -> GateResult:
    """A figure beside its bound."""
    bound = float(gate.bound_nano_usd) if gate.kind == COST else gate.bound
    seen = found.value
    if gate.level:
        seen = found.low if gate.at_least else found.high
    if _keeps(gate, bound, seen):
        state = PASSED
    else:  # where only the interval reaches beyond the bound, nothing was shown
        state = UNSETTLED if gate.level and _keeps(gate, bound, found.value) else FAILED
    asked = f"{'more than' if gate.is_strict else 'at least'}" if gate.at_least else (
        "less than" if gate.is_strict else "at most"
    )  # fmt: skip
    end = "" if not gate.level else f" of the interval's {'lower' if gate.at_least else 'upper'} end"
    why = (
        f"{what} is {shown(gate, found.value)} ({shown(gate, found.low)} to {shown(gate, found.high)} at "
        f"{found.level * 100:g} %, {found.n} {'rows' if isinstance(found, PairedEstimate) else 'answers'}"
        f"{f' in {found.clusters} groups' if found.clusters < found.n else ''}); {asked} {shown(gate, bound)}{end} "
        f"is asked{note}."
    )
    return GateResult(
        gate=gate.text, state=state, value=found.value, low=_finite(found.low), high=_finite(found.high),
        level=found.level, bound=bound, n=found.n, why=why,
    )  # fmt: skip


def _keeps(gate: Gate, bound: float, seen: float) -> bool:
    slack = ALIKE * max(1.0, abs(bound))
    distance = seen - bound if gate.at_least else bound - seen
    return distance > slack if gate.is_strict else distance >= -slack


def no_baseline(gate: Gate, head: str = "") -> GateResult:
    """That there is nothing to compare with."""
    return unsettled(gate, f"{head}there is no baseline run to compare with")


def nothing_worse(gate: Gate, judged: Evidence) -> GateResult:
    """That a comparison holds, since there is nothing to be worse than. It has no figure, and shows nothing."""
    rows = len({(row.suite, row.row) for row in judged.rows(gate.suite)})
    return GateResult(
        gate=gate.text, state=PASSED, level=gate.level or LEVEL, bound=gate.bound, n=rows,
        why=f"{judged.alone}, so there is nothing to be worse than.",
    )  # fmt: skip


def unsettled(gate: Gate, why: str, slices: tuple[SliceResult, ...] = ()) -> GateResult:
    """Not enough evidence, and why."""
    bound = float(gate.bound_nano_usd) if gate.kind == COST else gate.bound
    return GateResult(
        gate=gate.text, state=UNSETTLED, level=gate.level or LEVEL, bound=bound, why=f"{why}.",
        slices=slices[:SLICES_TOLD_MAX],
    )  # fmt: skip


def shown(gate: Gate, value: float) -> str:
    """A figure in the unit of its gate."""
    if not math.isfinite(value):
        return "unbounded"
    if gate.kind == COST:
        return f"${usd(round(value))}"
    if gate.kind == LATENCY:
        return f"{value:.4g} ms"
    if gate.kind in (OVERALL, SLICES):
        return points(value)
    return _share(value, gate.bound) if gate.kind == SCORE else f"{value * 100:.3g} %"


def _share(value: float, bound: float) -> str:
    """A score as tables tell it, `90.0%`; beside the bound with a second digit where it has one, `89.99%`."""
    text = f"{value:.1%}"
    return f"{value * 100:.2f}".removesuffix("0") + "%" if text == f"{bound:.1%}" else text


def points(value: float) -> str:
    """A difference in percentage points."""
    return f"{value * 100:+.2f} pp"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
