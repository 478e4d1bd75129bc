"""The Report of a rollout that has ended, from what the control log says of it.

Pure: the same log gives the same Report, so whoever stores it first, a watcher or a command, stores the only one.
"""

from __future__ import annotations

from typing import Any

from drivetrain.core.releases import RolloutEventV1
from drivetrain.core.reports import ReportV1
from drivetrain.core.times import iso
from drivetrain.promotion.standing import Released, State

KIND = "rollout"


def rollout_report(state: State, release: int) -> ReportV1 | None:
    """What became of the rollout of a Release; None where it had none, or is under way."""
    made = state.releases.get(release)
    if made is None or made.release.rollout is None or made.state == "rollout":
        return None
    last = made.events[-1] if made.events else None
    ended = last if last is not None and last[1].event in ("aborted", "completed") else None
    environment = state.live.environment
    if ended is not None:
        at_ns, event = ended
        how, by, verdict = event.event, event.by, event.verdict or f"It was {event.event} by `{event.by}`."
    else:
        at_ns, how, by = made.until_ns, "aborted", ""
        verdict = "Another Release became live before it was through."
    facts: dict[str, str | int | float | bool] = {
        "environment": environment, "release": release, "ended": how, "stages": len(made.release.rollout.stages),
        "minutes": round((at_ns - made.at_ns) / 60e9, 2),
    }  # fmt: skip
    if ended is not None and ended[1].guard:
        facts["guard"] = ended[1].guard
    guards = made.release.rollout.guards
    body: dict[str, Any] = {
        "snapshot": made.release.snapshot, "workflows": list(made.release.workflows),
        "level": made.release.rollout.level, "started": iso(made.at_ns), "ended": iso(at_ns),
        "guards": [{"watch": one.watch, "metric": one.metric, "margin": one.margin} for one in guards],
        "events": [_told(when_ns, one) for when_ns, one in made.events],
    }  # fmt: skip
    return ReportV1(
        kind=KIND, subject=f"release:{environment}@{release}", made_ns=at_ns, made_by=by or made.release.by,
        inputs=tuple(f"workflow:{name}" for name in made.release.workflows), verdict=verdict, facts=facts, body=body,
    )  # fmt: skip


def ended_rollouts(state: State) -> list[Released]:
    """Releases whose rollout is over, oldest first."""
    return [one for one in state.releases.values() if one.release.rollout is not None and one.state != "rollout"]


def _told(at_ns: int, event: RolloutEventV1) -> dict[str, Any]:
    return {
        "at": iso(at_ns), "event": event.event, "stage": event.stage, "by": event.by, "guard": event.guard,
        "verdict": event.verdict, "evidence": event.evidence,
    }  # fmt: skip
