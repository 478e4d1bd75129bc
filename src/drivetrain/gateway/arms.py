"""The two arms of a canary: which of two plans answers a request.

The candidate has the units whose hash is below its share, so an arm is sticky, and those that the candidate has now it
keeps when its share grows. A unit is the user; without one the key; without that the tenant; who shows none of them is
one unit together. Owns the choice alone: the gateway asks for it once per request, after it is known whom a Call is
for, and a Call's `snapshot` says which arm answered.
"""

from __future__ import annotations

from hashlib import blake2b

from drivetrain.core.calls import Attribution
from drivetrain.core.errors import RequestError
from drivetrain.core.releases import WHOLE, ActiveRollout
from drivetrain.execution.admission import Admitted
from drivetrain.execution.plan import Plans, WorkflowPlan

REFUSED = "canary refused: "
"""Begins the note of a Call that live answered because the candidate refused its input; the error's code follows."""


def is_candidates(rollout: str, unit: str, share_ppm: int) -> bool:
    """Whether the candidate has this unit at this share."""
    digest = blake2b(f"{rollout}\x00{unit}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) * WHOLE < share_ppm << 64


class Chosen:
    """Which plan answers a request, and what its record is to say of that."""

    __slots__ = ("admitted", "notes", "plan")

    def __init__(self, plan: WorkflowPlan, admitted: Admitted, notes: tuple[str, ...] = ()) -> None:
        self.plan = plan
        self.admitted = admitted
        self.notes = notes


class Arms:
    """The candidate's plans of the workflows that a rollout changes, and whose they are."""

    __slots__ = ("_plans", "_rollout", "_share_ppm")

    def __init__(self, active: ActiveRollout, candidate: Plans, share_ppm: int) -> None:
        """share_ppm: what holds now; it may be less than the stage's."""
        self._rollout = active.rollout.id
        self._share_ppm = share_ppm
        changed = (candidate.workflows.get(name) for name in active.workflows)
        self._plans = {plan.name: plan for plan in changed if plan is not None}

    def plan(self, live: WorkflowPlan, attribution: Attribution) -> WorkflowPlan | None:
        """The candidate's plan where it answers this unit; None where live does. Costs about 1 us."""
        candidate = self._plans.get(live.name)
        if candidate is None or not is_candidates(self._rollout, attribution.unit, self._share_ppm):
            return None
        return candidate

    def chosen(
        self, live: WorkflowPlan, admitted: Admitted, attribution: Attribution, *, door: str, raw: bytes
    ) -> Chosen:
        """The arm of a request that live admitted. What the candidate refuses, live answers, and a note says so."""
        candidate = self.plan(live, attribution)
        if candidate is None:
            return Chosen(live, admitted)
        try:
            return Chosen(candidate, candidate.admit(door, raw))
        except RequestError as error:
            return Chosen(live, admitted, (refused_note(error),))


def refused_note(error: RequestError) -> str:
    """What the Call of a request says that the candidate refused."""
    return f"{REFUSED}{error.code}"
