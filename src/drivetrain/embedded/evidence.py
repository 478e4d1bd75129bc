"""Evidence from a project's records, wired: the lake, the vault, stored Snapshots, policies, models and Reports.

Called by `drivetrain policy replay` and `drivetrain explain`. It asks no provider and writes nothing but a Report.
"""

from __future__ import annotations

import hashlib
import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.adapters.files import FileVault
from drivetrain.core.calls import DOORS_ASIDE
from drivetrain.core.declarations import Workflow
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.policies import Policy
from drivetrain.core.times import iso
from drivetrain.embedded.applying import person
from drivetrain.embedded.asking import lake_for
from drivetrain.embedded.modelling import registry_in, reports_in
from drivetrain.evals import explain_report, policy_replay
from drivetrain.evals.explain import Explanation, Metric, explain, metric_of
from drivetrain.evals.past import PastReader
from drivetrain.evals.replayed import Replayed
from drivetrain.lake.calls import Calls, Wanted
from drivetrain.policies.compile import as_policy, compile_policy
from drivetrain.project.files import find_root
from drivetrain.project.load import load
from drivetrain.project.stored import load_stored

if TYPE_CHECKING:
    from drivetrain.core.calls import Call
    from drivetrain.core.models import Pinned
    from drivetrain.core.reports import ReportV1
    from drivetrain.evals.policy_replay import PolicyReplay
    from drivetrain.ports.inference import Scorer
    from drivetrain.project.snapshot import Snapshot

CALLS_MAX = 5_000
"""Of each period that `explain` replays unless it is told otherwise: about a second per thousand, measured."""
DAYS_SHOWN = 7
"""Days with Decisions that an error names."""


class Span(msgspec.Struct, frozen=True):
    """From a moment up to, and without, another."""

    start_ns: int
    end_ns: int

    def __str__(self) -> str:
        return explain_report.period(self.start_ns, self.end_ns)


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """What moved the metric, and what the ledger says of both periods."""

    explanation: Explanation
    metric: Metric
    decisions: tuple[int, int]
    """Of each period, all of them."""
    asks_usd: dict[str, float]
    """`provider/model` -> what the Calls that would have to be asked cost, by what its Calls in the periods cost."""


class _Sample(msgspec.Struct, frozen=True):
    decisions: int
    """All of them."""
    chosen: frozenset[str]
    """Ids of Calls."""


class Evidence:
    """The records of one project and what they can tell."""

    def __init__(self, project: Path | None = None, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        """Raises: DrivetrainError where there is no project or it has mistakes."""
        root = find_root(project or Path.cwd()).resolve()
        self.snapshot = load(root)
        self._now_ns = now_ns
        ledger = self.snapshot.ledger
        self._vault = FileVault(self.snapshot.keys_folder, payload_days=ledger.payload_days)
        self._calls = Calls(lake_for(self.snapshot))
        self._scorers: dict[str, Scorer] = {}

    def policy_workflows(self, name: str) -> list[Workflow[Any, Any]]:
        """The workflows whose policy, or which themselves, have this name. Raises: DrivetrainError."""
        every = [one for one in self.snapshot.workflows.values() if one.policy is not None]
        found = [one for one in every if as_policy(one.policy, one.name).name == name]
        found = found or [one for one in every if one.name == name]
        if not found and name in self.snapshot.workflows:
            raise DrivetrainError(f"Workflow `{name}` has no policy, so it makes no Decisions.")
        if not found:
            known = {as_policy(one.policy, one.name).name for one in every}
            raise DrivetrainError(f"No workflow has a policy `{name}`.", do=did_you_mean(name, known))
        return found

    def replay_policy(
        self,
        name: str,
        candidate: str | None,
        *,
        since_ns: int,
        until_ns: int | None = None,
        by: str = "",
        depends_on_action: bool = False,
    ) -> PolicyReplay:
        """Past Decisions under a table of `policies/`, or, without one, under the policy as the folder has it now.

        Raises: DrivetrainError.
        """
        workflows = self.policy_workflows(name)
        declared = as_policy(workflows[0].policy, workflows[0].name)
        if depends_on_action and declared.gains is None:
            raise DrivetrainError(
                f"The policy `{declared.name}` declares no gains, so there is no Outcome that could depend on actions.",
                do="Give it `gains=dt.Gains(...)`, or leave out `--outcome-depends-on-action`.",
            )
        policy = declared if candidate is None else _with_table(declared, candidate)
        compiled = compile_policy(policy, self.snapshot.files, clock_ns=lambda: 0)
        reader = PastReader(self._vault, workflows[0], self._whole(workflows))
        span = Span(since_ns, self._now_ns() if until_ns is None else until_ns)

        def calls() -> Iterator[Call]:
            for one in workflows:
                chosen = self._sample(one.name, span, policy_replay.DECISIONS_MAX // len(workflows), {}).chosen
                yield from self._with_payloads(one.name, span, chosen, outcomes=True)

        return policy_replay.replay_policy(
            calls(), compiled, reader, gains=declared.gains, depends_on_action=depends_on_action, by=by
        )

    def explain(
        self, workflow: str, metric: str, first: Span, second: Span, *, calls_max: int = CALLS_MAX
    ) -> Explained:
        """What moved a metric of a workflow's Decisions between two spans, which share no moment.

        Raises: DrivetrainError.
        """
        if first.start_ns < second.end_ns and second.start_ns < first.end_ns:
            raise DrivetrainError(
                f"The periods {first} and {second} overlap, so Decisions would be compared with themselves.",
                do="Choose periods that share no moment, such as two days.",
            )
        declared = self.snapshot.workflows.get(workflow)
        if declared is None:
            raise DrivetrainError(
                f"There is no workflow `{workflow}`. {did_you_mean(workflow, self.snapshot.workflows)}".rstrip()
            )
        if declared.policy is None:
            raise DrivetrainError(f"Workflow `{workflow}` has no policy, so it makes no Decisions.")
        measure = metric_of(as_policy(declared.policy, workflow), metric)
        world = Replayed(declared, self._stored, self._vault, self._scorer)
        costs: dict[str, tuple[int, int]] = {}
        counts, moments = [], []
        for span in (first, second):
            sample = self._sample(workflow, span, calls_max, costs)
            if not sample.decisions:
                days = self._days(workflow)
                raise DrivetrainError(
                    f"Workflow `{workflow}` made no Decision from {span}.",
                    do=f"Choose days that have some: {days}." if days else "None is recorded at all.",
                )
            counts.append(sample.decisions)
            calls = sorted(self._with_payloads(workflow, span, sample.chosen), key=lambda one: one.call_id)
            moments.append([world.moment(call) for call in calls])
        found = explain(moments[0], moments[1], world, measure)
        mean = {name: cost / many / 1e9 for name, (cost, many) in costs.items() if many}
        asks = {name: calls * mean[name] for name, calls in found.asks.items() if name in mean}
        return Explained(explanation=found, metric=measure, decisions=(counts[0], counts[1]), asks_usd=asks)

    def replay_report(self, result: PolicyReplay) -> ReportV1:
        """A replay's Report, not kept yet."""
        artifacts = [f"policy:{result.policy}@{one}" for one in (*result.versions, result.candidate)]
        return policy_replay.report(result, made_ns=self._now_ns(), made_by=person(), inputs=artifacts)

    def explain_report(self, result: Explained, workflow: str, first: Span, second: Span) -> ReportV1:
        """An explanation's Report, not kept yet."""
        more = {
            "periods": [msgspec.to_builtins(first), msgspec.to_builtins(second)],
            "ledger_decisions": list(result.decisions),
            "asks_usd": result.asks_usd,
            "is_share": result.metric.is_share,
        }
        return explain_report.report(
            result.explanation, workflow, is_share=result.metric.is_share, made_ns=self._now_ns(), made_by=person(),
            more=more,
        )  # fmt: skip

    def keep(self, report: ReportV1) -> str:
        """The id under which a Report is kept."""
        return reports_in(self.snapshot.data_folder, self.snapshot.keys_folder, now_ns=self._now_ns).put(report)

    def _sample(self, workflow: str, span: Span, calls_max: int, costs: dict[str, tuple[int, int]]) -> _Sample:
        """Decisions of a span, chosen by the hash of their ids: each is as likely as any, and the same ones are chosen
        again. costs: gets what attempts at each model cost, and how many there were."""
        chosen: list[tuple[int, str]] = []
        count = 0
        wanted = Wanted(since_ns=span.start_ns, until_ns=span.end_ns, workflow=workflow)
        for call in self._calls.calls(wanted, outcomes=False, payloads=False):
            for attempt in call.attempts:
                if attempt.cost_nano_usd:
                    cost, many = costs.get(attempt.model, (0, 0))
                    costs[attempt.model] = (cost + attempt.cost_nano_usd, many + 1)
            if call.decision is None or call.door in DOORS_ASIDE:
                continue
            count += 1
            rank = -int.from_bytes(hashlib.blake2b(call.call_id.encode(), digest_size=8).digest(), "big")
            if len(chosen) < calls_max:
                heapq.heappush(chosen, (rank, call.call_id))
            else:
                heapq.heappushpop(chosen, (rank, call.call_id))
        return _Sample(count, frozenset(call_id for _, call_id in chosen))

    def _days(self, workflow: str) -> str:
        """The latest days on which Decisions were made, for an error; empty where there are none."""
        calls = self._calls.calls(Wanted(workflow=workflow), outcomes=False, payloads=False)
        count = Counter(
            iso(one.opened_ns)[:10] for one in calls if one.decision is not None and one.door not in DOORS_ASIDE
        )
        latest = sorted(count)[-DAYS_SHOWN:]
        more = "... " if len(count) > DAYS_SHOWN else ""
        return more + ", ".join(f"{day} ({count[day]:,})" for day in latest)

    def _with_payloads(
        self, workflow: str, span: Span, chosen: frozenset[str], *, outcomes: bool = False
    ) -> Iterator[Call]:
        wanted = Wanted(since_ns=span.start_ns, until_ns=span.end_ns, workflow=workflow)
        return (one for one in self._calls.calls(wanted, outcomes=outcomes) if one.call_id in chosen)

    def _whole(self, workflows: list[Workflow[Any, Any]]) -> Callable[[Call], Any]:
        worlds = {one.name: Replayed(one, self._stored, self._vault, self._scorer) for one in workflows}
        return lambda call: worlds[call.workflow].whole(call)

    def _stored(self, short_hash: str) -> Snapshot:
        present = self.snapshot
        if short_hash == present.short_hash:
            return present
        return load_stored(present.snapshots_folder, short_hash, present.root)

    def _scorer(self, pinned: Pinned) -> Scorer:
        """Loaded once, its digest checked then."""
        from drivetrain.inference.scorers import open_scorer

        if pinned.digest not in self._scorers:
            registry = registry_in(self.snapshot.data_folder, self.snapshot.keys_folder)
            self._scorers[pinned.digest] = open_scorer(registry.open(pinned), pinned)
        return self._scorers[pinned.digest]


def _with_table(declared: Policy, table: str) -> Policy:
    """The policy with another table, and everything else as it is; nothing is explored when the past is re-decided."""
    return Policy(
        declared.name,
        table=table,
        actions=declared.actions,
        otherwise=declared.otherwise,
        gains=declared.gains,
        metrics=declared.metrics,
        limit_ms=declared.limit_ms,
        place=declared.place,
    )
