"""Guards: what of a Call is harm, and whether the candidate's arm shows more of it than the live one.

Owns what counts for each guard, and the words for what it saw. The arithmetic is `statistics/two_arms.py`; when a guard
is asked and what follows is for `watching.py`. Nothing here knows a clock or a file.

What counts, of each arm alike:

- `errors`: Calls that failed, were interrupted, or were answered only by the workflow's ladder (degraded); also those
  that a provider refused once asked, and what the candidate does not admit though live does. Not counted at all: Calls
  that were refused before anybody was asked (the client's mistakes, budgets, limits) or that the client left. Nor those
  that a gateway's end cut before the watcher began to read; of those that a shadow's end cut, one a look counts.
- `latency`: answered Calls, from opening to end, without those from the cache. Slow is what exceeds a threshold: the
  guard's own, or five that are taken from the stage's first Calls, so that both a shift and a tail are seen. They are
  taken without asking which arm answered: then these Calls count as well, and are no better known of one arm than of
  the other.
- `cost`: what answered Calls cost, without those from the cache, as a share of the live arm's mean.
- `score`, `outcome`: values of a metric that were recorded as Outcomes, late or corrected; texts are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from drivetrain.core.calls import INTERRUPTED, Call
from drivetrain.core.releases import GuardV1
from drivetrain.statistics.log_capital import log_mean
from drivetrain.statistics.two_arms import Comparison, TwoArms

THRESHOLD_CALLS = 200
"""Of both arms; what is slow is taken from them: two of them exceed the p99."""
THRESHOLD_CALLS_MIN = 20
"""Where a stage's minutes are over before."""
SLOW_SHARES = (0.5, 0.9, 0.99)
FAR = (1.5, 2.0)
"""Two more thresholds are so many times the p99, which next to no Call exceeds that is not slow for a new reason."""
UNTIMED = f"slow Calls (which are slow is known after {THRESHOLD_CALLS})"
"""What a guard of latency compares, until then."""
REFUSED_NOTE = "canary refused"
"""How a live Call's note begins where the candidate would not have admitted it."""
NOT_OURS = frozenset({"shutting_down"})
"""Errors that come from stopping a gateway, not from what it serves."""
NANO = 1_000_000_000


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What guards look at in one Call."""

    candidate: bool
    place: int
    """Of its unit within the arm."""
    failed: bool | None
    """None: not counted."""
    latency_ms: float | None
    """None: it was not answered, or from the cache."""
    cost_nano_usd: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a guard shows at one look."""

    guard: str
    """Its name: `errors`, or `outcome:refunded` with its metric."""
    workflow: str
    """Empty where all are counted together."""
    part: str
    """What was compared where it shows most: `failed Calls`, `Calls slower than 812 ms`."""
    unit: str
    """Of the means: `share`, `USD` or empty."""
    comparison: Comparison
    share: float
    """Of the units that the candidate has by the coin; 0: there is no coin."""
    margin: float
    log_evidence: float
    """Of the guard: the mean over its parts."""
    needed: float
    """The guard breaks at this."""

    @property
    def is_broken(self) -> bool:
        """Whether harm beyond the margin is shown."""
        return self.log_evidence >= self.needed

    def sentence(self, level: float) -> str:
        """What it saw, in one sentence."""
        one, where = self.comparison, f" of `{self.workflow}`" if self.workflow else ""
        chance, interval = math.exp(-min(self.log_evidence, 690.0)), self.interval()
        arms = ", ".join(
            f"{name} {self.shown(mean)} ({calls:,} Calls of {units:,} units)"
            for name, mean, calls, units in (
                ("candidate", one.candidate, one.calls_candidate, one.units_candidate),
                ("live", one.live, one.calls_live, one.units_live),
            )
        )
        units = one.hit_live + one.hit_candidate
        coins = ""
        if self.unit == "share" and self.share and not self.margin and units:
            coins = (
                f"; of {units:,} units that met it {one.hit_candidate:,} are of the candidate's {self.share * 100:g} %"
            )
        return (
            f"Guard `{self.guard}`{where}: {self.part}: {arms}; difference {self.shown(one.difference, True)}"
            f"{f' ({interval})' if interval else ''}{coins}; where the harm is at most {self.accepted()}, this is ever "
            f"seen with a chance of at most {chance:.2g}; all guards together err in at most {1 - level:.2g} of "
            "rollouts."
        )

    def facts(self) -> dict[str, float]:
        """The figures, as a control record keeps them."""
        one = self.comparison
        found: dict[str, float | None] = {
            "units_live": float(one.units_live), "units_candidate": float(one.units_candidate),
            "calls_live": float(one.calls_live), "calls_candidate": float(one.calls_candidate),
            "units_hit_live": float(one.hit_live), "units_hit_candidate": float(one.hit_candidate), "live": one.live,
            "candidate": one.candidate, "difference": one.difference, "low": one.low, "high": one.high,
            "margin": self.margin, "log_evidence": self.log_evidence, "log_evidence_needed": self.needed,
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}

    def interval(self) -> str:
        """What holds the difference, in words; empty where too little was seen."""
        one = self.comparison
        if one.low is None or one.high is None:
            return ""
        low, high = one.low, one.high
        if self.unit == "share":
            low, high = max(low, -1.0), min(high, 1.0)
        return f"{self.shown(low, True)} to {self.shown(high, True)}"

    def shown(self, value: float, sign: bool = False) -> str:
        """A mean or a difference in words; sign: with `+` where it is one."""
        plus = "+" if sign else ""
        if self.unit == "share":
            return f"{value * 100:{plus}.2f} %"
        if self.unit == "USD":
            return f"{value / NANO:{plus}.6f} USD"
        return f"{value:{plus}.4g}"

    def accepted(self) -> str:
        """The margin in words."""
        if self.unit == "share":
            return f"{self.margin * 100:g} points"
        return f"{self.margin * 100:g} %" if self.unit == "USD" else f"{self.margin:g}"


class Watcher:
    """One guard over one workflow, growing with each Call."""

    def __init__(self, guard: GuardV1, *, share: float, tail: float, workflow: str = "") -> None:
        """share: of the units that the candidate has by the coin; 0: there is no coin. tail: how often it may err."""
        self.guard = guard
        self.name = guard_name(guard)
        self.workflow = workflow
        self.tail = tail
        self._share = share
        self._parts: list[tuple[str, TwoArms]] = []
        self._sign = -1.0 if guard.watch in ("score", "outcome") and guard.higher_is_better else 1.0
        if guard.watch == "errors":
            self._parts = [("failed Calls", TwoArms(share=share))]
        elif guard.watch == "cost":
            self._parts = [("cost per Call", TwoArms())]
        elif guard.watch in ("score", "outcome"):
            self._parts = [(f"mean of `{guard.metric}`", TwoArms())]
        self._thresholds: list[float] = []
        self._first: list[tuple[bool, int, float]] = []
        if guard.watch == "latency" and guard.slow_ms:
            self._set_thresholds([float(guard.slow_ms)])

    @property
    def is_of_outcomes(self) -> bool:
        """Whether it is fed by `outcome`, not by `see`."""
        return self.guard.watch in ("score", "outcome")

    @property
    def has_seen_both(self) -> bool:
        """Whether it has something of each arm to compare."""
        return any(arms.live.calls and arms.candidate.calls for _, arms in self._parts)

    def see(self, seen: Seen) -> None:
        """One Call that ended."""
        watch = self.guard.watch
        if watch == "errors" and seen.failed is not None:
            self._parts[0][1].add(candidate=seen.candidate, place=seen.place, value=float(seen.failed))
        elif watch == "latency" and seen.latency_ms is not None:
            self._time(seen.candidate, seen.place, seen.latency_ms)
        elif watch == "cost" and seen.latency_ms is not None:
            self._parts[0][1].add(candidate=seen.candidate, place=seen.place, value=float(seen.cost_nano_usd))

    def outcome(self, *, candidate: bool, place: int, value: float, before: float | None) -> None:
        """The truth about one Call; before: what it was taken for until now."""
        arms = self._parts[0][1]
        if before is None:
            arms.add(candidate=candidate, place=place, value=self._sign * value)
        else:
            arms.replace(candidate=candidate, place=place, before=self._sign * before, value=self._sign * value)

    def look(self) -> Finding:
        """What is seen now."""
        guard = self.guard
        found: list[tuple[str, Comparison]] = [
            (part, arms.look(margin=guard.margin, relative=guard.watch == "cost", tail=self.tail))
            for part, arms in self._parts
        ] or [(UNTIMED, _NOTHING)]
        part, comparison = max(found, key=lambda one: one[1].log_evidence)
        unit = {"errors": "share", "latency": "share", "cost": "USD"}.get(guard.watch, "")
        return Finding(
            guard=self.name, workflow=self.workflow, part=part, unit=unit,
            comparison=comparison if self._sign > 0 else _turned(comparison), margin=guard.margin,
            share=self._share,
            log_evidence=log_mean([one.log_evidence for _, one in found]), needed=-math.log(self.tail),
        )  # fmt: skip

    def begin(self) -> None:
        """No more is waited for: what is slow is taken from the Calls that there are, if there are some."""
        if self.guard.watch == "latency" and not self._thresholds and len(self._first) >= THRESHOLD_CALLS_MIN:
            self._learn()

    def _time(self, candidate: bool, place: int, latency_ms: float) -> None:
        if not self._thresholds:
            self._first.append((candidate, place, latency_ms))
            if len(self._first) >= THRESHOLD_CALLS:
                self._learn()
            return
        for threshold, (_, arms) in zip(self._thresholds, self._parts, strict=True):
            arms.add(candidate=candidate, place=place, value=float(latency_ms > threshold))

    def _learn(self) -> None:
        first, self._first = self._first, []
        self._set_thresholds(_thresholds([latency_ms for _, _, latency_ms in first]))
        for candidate, place, latency_ms in first:
            self._time(candidate, place, latency_ms)

    def _set_thresholds(self, thresholds: list[float]) -> None:
        self._thresholds = thresholds
        self._parts = [(f"Calls slower than {one:,.0f} ms", TwoArms(share=self._share)) for one in thresholds]


def guard_name(guard: GuardV1) -> str:
    """How it is called in verdicts and screens."""
    return f"{guard.watch}:{guard.metric}" if guard.metric else guard.watch


def failed(call: Call) -> bool | None:
    """Whether a Call counts as failed; None where it is not counted."""
    status = call.status
    if status == "answered":
        return bool(call.degraded)
    if status == INTERRUPTED:
        return True
    if status == "failed":
        return None if call.error in NOT_OURS else True
    return True if status == "refused" and call.attempts else None


def answered_ms(call: Call) -> float | None:
    """How long a Call took that was answered by something else than the cache; None for others."""
    if call.status != "answered" or call.degraded or any(one.cached for one in call.attempts):
        return None
    return (call.closed_ns - call.opened_ns) / 1e6


def is_refused_by_candidate(call: Call) -> bool:
    """Whether live answered what the candidate would not have admitted."""
    return any(note.startswith(REFUSED_NOTE) for note in call.notes)


def _thresholds(latencies: Sequence[float]) -> list[float]:
    ordered = sorted(latencies)
    last = len(ordered) - 1
    found = [ordered[min(math.ceil(share * len(ordered)) - 1, last)] for share in SLOW_SHARES]
    return [*found, *(far * found[-1] for far in FAR)]


def _turned(one: Comparison) -> Comparison:
    """As the metric has it, where a low value is the harm."""
    return msgspec.structs.replace(
        one, live=0.0 - one.live, candidate=0.0 - one.candidate, difference=0.0 - one.difference,
        low=None if one.high is None else -one.high, high=None if one.low is None else -one.low,
    )  # fmt: skip


_NOTHING = TwoArms().look()
