"""One past Decision under another policy, or why it cannot be re-decided."""

from __future__ import annotations

import contextlib

import msgspec

from drivetrain.core.calls import Call
from drivetrain.core.policies import Action, Case
from drivetrain.evals.past import Lost, Past, PastReader, has, plain
from drivetrain.policies.compile import CompiledPolicy
from drivetrain.policies.verdict import PolicyFailed, Verdict

FAILS = "(fails)"
"""Stands as the action of a policy that cannot decide and has no `otherwise`: its Call would fail."""


class Redecided(msgspec.Struct, frozen=True, kw_only=True):
    """What another policy makes of a past Decision."""

    past: Past
    verdict: Verdict

    @property
    def chosen(self) -> str:
        """What the candidate itself would do, exploration left out."""
        return self.verdict.chosen or self.verdict.action

    @property
    def changed(self) -> bool:
        """Whether the two policies themselves differ here, whatever was explored."""
        return self.chosen != self.past.chosen


def redecide(call: Call, candidate: CompiledPolicy, reader: PastReader, *, also: str = "") -> Redecided:
    """From what the Decision kept; where the candidate reads more, from the Call's payloads. Raises: Lost.

    also: a path that is of use beside what the candidate reads; it is looked for in the payloads too, and not missed.
    """
    past = reader.open(call)
    if also and not past.is_whole and not has(past.case, also):
        with contextlib.suppress(Lost):
            past = reader.open_whole(call)
    return redecide_past(past, call, candidate, reader)


def redecide_past(past: Past, call: Call, candidate: CompiledPolicy, reader: PastReader) -> Redecided:
    """The same, of a Decision that was opened before."""
    case = as_seen(candidate, past.case)
    if not past.is_whole and candidate.graphs is not None and not all(has(case, path) for path in candidate.reads):
        past = reader.open_whole(call)
        case = as_seen(candidate, past.case)
    past.missed.clear()
    verdict = decided(candidate, case, call.call_id)
    if past.missed:
        past = reader.open_whole(call)
        verdict = decided(candidate, past.case, call.call_id)
    return Redecided(past=past, verdict=verdict)


def as_seen(policy: CompiledPolicy, case: Case) -> Case:
    """A Case as a policy sees it: a table plain JSON values, of which it says beforehand which it reads."""
    return plain(case) if policy.graphs is not None else case


def decided(policy: CompiledPolicy, case: Case, call_id: str) -> Verdict:
    """The policy's verdict; `FAILS` where it has none."""
    try:
        return policy.decide(case, call_id)
    except PolicyFailed as failed:
        return Verdict(action=FAILS, chosen=FAILS, failed=failed.why)


def action_of(verdict: Verdict) -> Action:
    """A verdict as a metric's function sees it."""
    return Action(verdict.action, verdict.reason, verdict.values)
