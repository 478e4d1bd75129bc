"""Past Decisions under a candidate policy: which would change, where, and what that would have been worth.

Owns the comparison and its Report. It reads Calls from whoever gives them, opens what their Decisions kept, and changes
nothing. Called by `drivetrain policy replay` through `embedded/evidence.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.calls import Call
from drivetrain.core.policies import Gains
from drivetrain.core.reports import ReportV1
from drivetrain.evals.past import Lost, PastReader
from drivetrain.evals.redeciding import FAILS, Redecided, redecide
from drivetrain.evals.segments import check_by, segments
from drivetrain.evals.worth import Worth, worth
from drivetrain.policies.compile import CompiledPolicy
from drivetrain.statistics.bootstrap import RESAMPLES
from drivetrain.statistics.intervals import wilson

DECISIONS_MAX = 100_000
"""Re-decided at a time: each holds its Case in memory."""
OF_PAYLOADS = ("input.", "features.", "answer")
"""Segments that stand in a Call's payloads where its Decision did not keep them."""
EXAMPLES = 5
"""Call ids per kind of change."""
CHANGES_MAX = 200
"""Kinds of change in a Report, the most frequent ones."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of change: from this rule and action to that."""

    old_rule: str
    old_action: str
    new_rule: str
    new_action: str
    decisions: int
    share: float
    """Of all that were re-decided."""
    examples: tuple[str, ...]
    """Ids of Calls."""


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """One segment."""

    name: str
    decisions: int
    changed: int


class PolicyReplay(msgspec.Struct, frozen=True, kw_only=True):
    """The past under a candidate."""

    policy: str
    versions: Mapping[str, int]
    """Version that decided -> Decisions."""
    candidate: str
    """Version."""
    decisions: int
    """Looked at, re-decided or not."""
    redecided: int
    lost: Mapping[str, int]
    """Why Decisions could not be re-decided -> how many."""
    changed: int
    changed_low: float
    changed_high: float
    """95 % interval of the share that changes (Wilson), as of other Decisions like these."""
    fails: int
    """Calls that the candidate cannot decide."""
    candidate_failed: int
    """Of which the candidate's own answer was not to be had, so that its `otherwise` stood in."""
    actions: Mapping[str, tuple[int, int]]
    """Action -> Decisions before and with the candidate, exploration left out."""
    changes: tuple[Change, ...]
    """Most frequent first."""
    rules: tuple[Change, ...]
    """Decisions that another rule makes with the same action; they do not count as changed."""
    by: str
    segments: tuple[Segment, ...]
    worth: Worth | None
    """None where the policy declares no gains."""

    @property
    def changed_share(self) -> float:
        """Of those re-decided."""
        return self.changed / self.redecided if self.redecided else 0.0


def replay_policy(
    calls: Iterable[Call],
    candidate: CompiledPolicy,
    reader: PastReader,
    *,
    gains: Gains | None = None,
    depends_on_action: bool = False,
    by: str = "",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PolicyReplay:
    """Re-decide. calls: with Decisions of the policy and their Outcomes; at most `DECISIONS_MAX` are looked at.

    Raises: DrivetrainError where `by` names nothing, gains do not cover what occurs, or numpy is missing for them.
    """
    lost: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    found: list[Redecided] = []
    seen = 0
    of_case = by if by.startswith(OF_PAYLOADS) else ""
    if by:
        check_by(by)
    for call in calls:
        if call.decision is None:
            continue
        if seen == DECISIONS_MAX:
            break
        seen += 1
        versions[call.decision.version] += 1
        try:
            found.append(redecide(call, candidate, reader, also=of_case))
        except Lost as why:
            lost[str(why)] += 1
    changed = sum(one.changed for one in found)
    low, high = wilson(changed, len(found))
    names = segments([one.past for one in found], by) if by else None
    return PolicyReplay(
        policy=candidate.name,
        versions=dict(versions.most_common()),
        candidate=candidate.version,
        decisions=seen,
        redecided=len(found),
        lost=dict(lost.most_common()),
        changed=changed,
        changed_low=low,
        changed_high=high,
        fails=sum(one.chosen == FAILS for one in found),
        candidate_failed=sum(bool(one.verdict.failed) for one in found),
        actions=_actions(found),
        changes=_changes([one for one in found if one.changed], len(found)),
        rules=_changes([one for one in found if not one.changed and _other_rule(one)], len(found)),
        by=by,
        segments=_segments(found, names) if names is not None else (),
        worth=None
        if gains is None
        else worth(
            found, gains, depends_on_action=depends_on_action, segments=names, seed=seed, resamples=resamples
        ),
    )  # fmt: skip


def verdict(result: PolicyReplay) -> str:
    """One sentence that a person acts on."""
    if not result.decisions:
        return f"No Decision of policy `{result.policy}` was found."
    if not result.redecided:
        return f"None of {result.decisions} Decisions could be re-decided: {next(iter(result.lost))}."
    said = f"{result.changed:,} of {result.redecided:,} Decisions would change ({result.changed_share:.1%})"
    if result.fails:
        said += f", {result.fails:,} Calls would fail"
    return f"{said}; {worth_verdict(result)}"


def worth_verdict(result: PolicyReplay) -> str:
    """The verdict's part that is about worth."""
    known = result.worth
    if known is None:
        return "the policy declares no gains, so nothing is known of worth."
    if known.direct is not None:
        gap = known.direct.difference
        return f"{_said_gap(gap.value, gap.low, gap.high)} per Decision."
    chances = known.off_policy
    if chances is not None and chances.doubly_robust is not None and chances.by_chance and not known.needed:
        gap = chances.doubly_robust.difference
        return f"{_said_gap(gap.value, gap.low, gap.high)} per Decision, estimated from explored Calls."
    return "what that would be worth cannot be known from these records."


def report(result: PolicyReplay, *, made_ns: int, made_by: str, inputs: Sequence[str] = ()) -> ReportV1:
    """The Report of a replay: numbers, rules, and ids of Calls."""
    facts: dict[str, str | int | float | bool] = {
        "candidate": result.candidate,
        "decisions": result.decisions,
        "redecided": result.redecided,
        "changed": result.changed,
        "changed_share": result.changed_share,
    }
    if result.worth is not None and result.worth.direct is not None:
        facts["difference_usd"] = result.worth.direct.difference.value
    body: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(result))
    return ReportV1(
        kind="policy-replay",
        subject=f"policy:{result.policy}",
        made_ns=made_ns,
        made_by=made_by,
        inputs=tuple(inputs),
        verdict=verdict(result),
        facts=facts,
        body=body,
    )


def _said_gap(value: float, low: float, high: float) -> str:
    told = f"{value:+.4f} USD (95 %: {low:+.4f} to {high:+.4f})"
    if low > 0:
        return f"the candidate is worth more, {told}"
    if high < 0:
        return f"the candidate is worth less, {told}"
    return f"no difference in worth is certain, {told}"


def _other_rule(one: Redecided) -> bool:
    """Whether another rule gives the same action."""
    return one.verdict.rule != one.past.decision.rule


def _actions(found: Sequence[Redecided]) -> dict[str, tuple[int, int]]:
    before = Counter(one.past.chosen for one in found)
    after = Counter(one.chosen for one in found)
    return {action: (before[action], after[action]) for action in sorted({*before, *after})}


def _changes(found: Sequence[Redecided], total: int) -> tuple[Change, ...]:
    kinds: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for one in found:
        kind = (one.past.decision.rule, one.past.chosen, one.verdict.rule, one.chosen)
        kinds[kind].append(one.past.call.call_id)
    ordered = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))[:CHANGES_MAX]
    return tuple(
        Change(
            old_rule=kind[0], old_action=kind[1], new_rule=kind[2], new_action=kind[3],
            decisions=len(ids), share=len(ids) / total, examples=tuple(ids[:EXAMPLES]),
        )
        for kind, ids in ordered
    )  # fmt: skip


def _segments(found: Sequence[Redecided], names: Sequence[str]) -> tuple[Segment, ...]:
    decisions, changed = Counter(names), Counter(name for name, one in zip(names, found, strict=True) if one.changed)
    return tuple(Segment(name=name, decisions=count, changed=changed[name]) for name, count in decisions.most_common())
