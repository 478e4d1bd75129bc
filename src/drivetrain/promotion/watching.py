"""What a rollout does next: go on, go back, or wait, and why.

Owns the decision alone: Calls and Outcomes in, a step out. It knows no clock, no file and no control log, so a whole
rollout can be played in virtual time. Called by the watcher's process and by benchmarks.

A `Watch` is of one stage. Its evidence begins with the stage: the share grows from one to the next, and what was seen
before stands for other hours of the day in each arm. All guards, workflows and stages share the rollout's one level.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from drivetrain.core.calls import DOORS_ASIDE, INTERRUPTED, SHADOW, Call
from drivetrain.core.releases import WHOLE, ActiveRollout
from drivetrain.core.times import lasted_text
from drivetrain.promotion.guards import Finding, Seen, Watcher, answered_ms, failed, is_refused_by_candidate
from drivetrain.statistics.two_arms import Units

SNAPSHOT_CHARS = 16
"""Of a Snapshot's hash, as Calls carry it."""
WORKFLOWS_APART_MAX = 8
"""Workflows of one Release that are watched each by itself; beyond it they are counted together."""
OUTCOME_CALLS_MAX = 100_000
"""Calls that late Outcomes are awaited for; about 300 bytes each. The oldest ones are let go first."""
ELSEWHERE = DOORS_ASIDE | {"python"}
"""Doors whose Calls no coin gave to an arm."""
ITS_PROCESS = frozenset({"limits_unavailable", "ledger_unavailable"})
"""Errors of the shadow's own process, before anybody was asked: they tell nothing of the candidate."""
SHADOWED = ("errors", "cost")
"""Guards that hold while the candidate is a shadow: there it runs in another process, where times differ."""
OUTCOME_MOST = 1e12
"""A larger number counts as this one: the squares of what is compared must stay numbers, or no guard says anything."""
NS_PER_MINUTE = 60_000_000_000


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done now."""

    event: str
    """Of `core.releases.ROLLOUT_EVENTS`: `stage`, `aborted` or `completed`."""
    stage: int
    """The stage that begins, or that it was in."""
    guard: str = ""
    verdict: str
    evidence: dict[str, float] = {}


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a stage stands."""

    stage: int
    share: float
    minutes: float
    """Since it began."""
    calls_live: int
    calls_candidate: int
    units_live: int
    units_candidate: int
    findings: tuple[Finding, ...]
    waits: tuple[str, ...]
    """What is missing before the next stage; empty where nothing is."""


class Watch:
    """One stage of a rollout.

    live_snapshot: the hash of what is live beside the candidate; its first 16 digits suffice.
    """

    def __init__(self, active: ActiveRollout, live_snapshot: str) -> None:
        self.active = active
        self.live = live_snapshot[:SNAPSHOT_CHARS]
        """What answers beside the candidate, as Calls carry it."""
        self._candidate = active.snapshot[:SNAPSHOT_CHARS]
        stage = active.rollout.stages[active.stage]
        self._stage = stage
        self._is_shadow = stage.share_ppm == 0
        self._apart = len(active.workflows) <= WORKFLOWS_APART_MAX
        self._workflows = frozenset(active.workflows)
        self._watchers = self._made()
        self._units = {True: Units(), False: Units()}
        self._calls = {True: 0, False: 0}
        self._cut = False
        """Whether a Call of the shadow was seen since the last look whose process ended before it did."""
        self._shadow_answered = False
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._by_key: dict[tuple[str, str], list[str]] = {}
        self._metrics = frozenset(one.guard.metric for one in self._watchers if one.is_of_outcomes)

    @property
    def wants_outcomes(self) -> bool:
        """Whether any guard looks at Outcomes."""
        return bool(self._metrics)

    def see(self, call: Call) -> None:
        """One Call that ended; what is not of this stage or these arms is passed over."""
        if call.workflow not in self._workflows or call.opened_ns < self.active.stage_ns:
            return
        candidate = self._arm(call)
        if candidate is None:
            return
        if candidate and self._is_shadow:
            self._shadow_answered |= call.status == "answered" and not call.degraded
            if not self._counts(call):
                return
        refused = is_refused_by_candidate(call) and not self._is_shadow
        if refused:
            candidate = True
        place = self._units[candidate].place(call.attribution.unit)
        self._calls[candidate] += 1
        seen = Seen(
            candidate, place, True if refused else failed(call), None if refused else answered_ms(call),
            call.cost_nano_usd,
        )  # fmt: skip
        for one in self._watchers:
            if one.workflow in ("", call.workflow):
                one.see(seen)
        if self._metrics and not refused:
            self._remember(call, candidate, place)
            for truth in call.outcomes:
                self.see_outcome(
                    metric=truth.metric, value=truth.value, arrived_ns=truth.arrived_ns, call_id=call.call_id
                )

    def see_outcome(
        self,
        *,
        metric: str,
        value: str | float | bool,
        arrived_ns: int,
        call_id: str = "",
        workflow: str = "",
        business_key: str = "",
    ) -> None:
        """One truth about a Call, named by its id or by its workflow and key; the latest arrival holds."""
        if isinstance(value, str) or metric not in self._metrics:
            return
        number = max(-OUTCOME_MOST, min(OUTCOME_MOST, float(value)))
        ids = [call_id] if call_id else self._by_key.get((workflow, business_key), ())
        for one in ids:
            known = self._known.get(one)
            if known is None:
                continue
            held = known.values.get(metric)
            if held is not None and held[0] > arrived_ns:
                continue
            known.values[metric] = (arrived_ns, number)
            for watcher in self._watchers:
                if (
                    watcher.is_of_outcomes
                    and watcher.guard.metric == metric
                    and watcher.workflow in ("", known.workflow)
                ):
                    watcher.outcome(
                        candidate=known.candidate, place=known.place, value=number,
                        before=None if held is None else held[1],
                    )  # fmt: skip

    def look(self, now_ns: int) -> Step | None:
        """What is to be done now; None: nothing yet.

        Costs some 20 us a guard and workflow, and some 4 us for each unit seen since the last look and each threshold.
        """
        active = self.active
        self._cut = False
        if now_ns >= active.stage_ns + self._stage.minutes * NS_PER_MINUTE:
            for one in self._watchers:
                one.begin()
        findings = self.findings()
        broken = [one for one in findings if one.is_broken]
        if broken:
            worst = max(broken, key=lambda one: one.log_evidence - one.needed)
            verdict = f"Rolled back after {lasted_text(now_ns - active.stage_ns)} of stage {active.stage + 1}. "
            return Step(
                event="aborted", stage=active.stage, guard=worst.guard,
                verdict=verdict + worst.sentence(active.rollout.level), evidence=worst.facts(),
            )  # fmt: skip
        if active.paused or self.waits(now_ns):
            return None
        last = active.stage + 1 >= len(active.rollout.stages)
        evidence = self._told(now_ns)
        seen = (
            f"{self._calls[True]:,} Calls of {len(self._units[True]):,} units of the candidate and "
            f"{self._calls[False]:,} of {len(self._units[False]):,} of live, and no guard broke."
        )
        if last:
            return Step(
                event="completed",
                stage=active.stage,
                verdict=f"Completed: the last stage saw {seen}",
                evidence=evidence,
            )
        share = active.rollout.stages[active.stage + 1].share_ppm / WHOLE
        verdict = f"Goes on to a share of {share:.4g}: stage {active.stage + 1} saw {seen}"
        return Step(event="stage", stage=active.stage + 1, verdict=verdict, evidence=evidence)

    def findings(self) -> list[Finding]:
        """What each guard shows now, in the order they are declared."""
        return [one.look() for one in self._watchers]

    def waits(self, now_ns: int) -> list[str]:
        """What is missing before the stage may end."""
        stage = self._stage
        found = []
        left = self.active.stage_ns + stage.minutes * NS_PER_MINUTE - now_ns
        if left > 0:
            found.append(lasted_text(left))
        needed = max(stage.units, 1)
        arms: dict[bool, str] = {True: "candidate", False: "live"}
        if stage.share_ppm >= WHOLE:
            del arms[False]
        if self._is_shadow and not stage.shadow_ppm:
            arms.clear()
        elif self._is_shadow and not self._shadow_answered and self._units[True]:
            found.append("evidence: the candidate has answered nobody")
        for candidate, name in arms.items():
            seen = len(self._units[candidate])
            if seen < needed:
                found.append(f"evidence: the {name} arm has seen {seen:,} of {needed:,} units")
        if len(arms) == len(self._units):
            found += [f"evidence: guard `{name}` has seen nothing to compare" for name in self._blind()]
        return found

    def standing(self, now_ns: int) -> Standing:
        """All of it, for a screen."""
        return Standing(
            stage=self.active.stage, share=self._stage.share_ppm / WHOLE,
            minutes=(now_ns - self.active.stage_ns) / NS_PER_MINUTE, calls_live=self._calls[False],
            calls_candidate=self._calls[True], units_live=len(self._units[False]),
            units_candidate=len(self._units[True]), findings=tuple(self.findings()), waits=tuple(self.waits(now_ns)),
        )  # fmt: skip

    def _made(self) -> list[Watcher]:
        active = self.active
        guards = [one for one in active.rollout.guards if not self._is_shadow or one.watch in SHADOWED]
        names: Sequence[str] = active.workflows if self._apart else ("",)
        parts = max(len(active.rollout.guards), 1) * max(len(names), 1) * len(active.rollout.stages)
        tail = (1 - active.rollout.level) / parts
        share = self._stage.share_ppm / WHOLE
        return [Watcher(guard, share=share, tail=tail, workflow=name) for guard in guards for name in names]

    def _arm(self, call: Call) -> bool | None:
        """Whether the candidate answered; None where neither arm did."""
        if self._is_shadow and call.door == SHADOW and call.snapshot == self._candidate:
            return True
        if call.door in ELSEWHERE:
            return None
        if call.snapshot == self._candidate:
            return None if self._is_shadow else True
        return False if call.snapshot == self.live else None

    def _counts(self, call: Call) -> bool:
        """Whether a Call of the shadow tells of the candidate, and not of the process that it ran in; of those that
        were cut, the first one of a look does."""
        if call.status == INTERRUPTED:
            # At most one of those that its process took with it was the cause, and whoever kills it is none.
            first, self._cut = not self._cut, True
            return first
        return call.error not in ITS_PROCESS

    def _blind(self) -> list[str]:
        """Guards that have seen nothing of one of the arms, in no workflow."""
        seen: dict[str, bool] = {}
        for one in self._watchers:
            seen[one.name] = seen.get(one.name, False) or one.has_seen_both
        return [name for name, both in seen.items() if not both]

    def _remember(self, call: Call, candidate: bool, place: int) -> None:
        self._known[call.call_id] = _Known(candidate, place, call.workflow, call.business_key, {})
        if call.business_key:
            self._by_key.setdefault((call.workflow, call.business_key), []).append(call.call_id)
        while len(self._known) > OUTCOME_CALLS_MAX:
            gone, known = self._known.popitem(last=False)
            own = self._by_key.get((known.workflow, known.business_key))
            if own is not None:
                own.remove(gone)
                if not own:
                    del self._by_key[known.workflow, known.business_key]

    def _told(self, now_ns: int) -> dict[str, float]:
        return {
            "minutes": round((now_ns - self.active.stage_ns) / NS_PER_MINUTE, 3),
            "calls_live": float(self._calls[False]), "calls_candidate": float(self._calls[True]),
            "units_live": float(len(self._units[False])), "units_candidate": float(len(self._units[True])),
        }  # fmt: skip


class _Known(msgspec.Struct, gc=False):
    """A Call that Outcomes may come for."""

    candidate: bool
    place: int
    workflow: str
    business_key: str
    values: dict[str, tuple[int, float]]
    """Metric -> arrival and value that hold."""
