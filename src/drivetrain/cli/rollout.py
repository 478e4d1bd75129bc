"""`drivetrain rollout`: how the rollout that is under way stands, and what people do to it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Env, Json, Project
from drivetrain.cli.places import plain
from drivetrain.cli.release_options import Key, Reason, builtins, place
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.times import NS_PER_S, iso, lasted_text

if TYPE_CHECKING:
    from drivetrain.core.releases import ActiveRollout
    from drivetrain.embedded.shadow_counts import CopiesTold
    from drivetrain.promotion.guards import Finding
    from drivetrain.promotion.standing import State
    from drivetrain.promotion.watching import Standing

STARTS_S = 10.0
"""A stage that is younger is no reason to warn: the watcher reads the ledger before it shows life."""

app = typer.Typer(help="The rollout that is under way.", no_args_is_help=True)


@app.command("status")
def status_command(project: Project = None, env: Env = None, as_json: Json = False) -> None:
    """The stage, each guard with both arms, and what is missing before it goes on."""
    from drivetrain.embedded.releasing import state_of
    from drivetrain.embedded.rollouts import newest_standing
    from drivetrain.embedded.shadow_counts import copies_of

    try:
        where = place(project, env)
        state = state_of(where)
        now_ns = time.time_ns()
        active = state.live.active
        if active is None:
            _tell_none(state, as_json)
            return
        found, seen_ns = newest_standing(where, state, active, now_ns)
        copies = copies_of(where.data_folder / "run", active)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(_json(active, found, seen_ns, now_ns, copies))
        return
    _tell(state, active, found)
    if copies is not None:
        typer.echo(plain(copies.sentence()))
    if not seen_ns and now_ns - active.stage_ns < STARTS_S * NS_PER_S:
        typer.echo("note: no watcher shows life yet; that of `drivetrain serve` does within seconds.", err=True)
    elif not seen_ns:
        typer.echo(
            "warning: no watcher shows life, so nothing goes on or back by itself; after 30 s live answers everybody. "
            "`drivetrain serve` starts it.",
            err=True,
        )


@app.command("pause")
def pause_command(reason: Reason = "", key: Key = None, project: Project = None, env: Env = None) -> None:
    """Stay at this stage; guards still roll back."""
    _steer("paused", reason, key, project, env)


@app.command("resume")
def resume_command(reason: Reason = "", key: Key = None, project: Project = None, env: Env = None) -> None:
    """Go on after a pause."""
    _steer("resumed", reason, key, project, env)


@app.command("abort")
def abort_command(reason: Reason = "", key: Key = None, project: Project = None, env: Env = None) -> None:
    """Give all callers back to what is live, within a second."""
    _steer("aborted", reason, key, project, env)


@app.command("advance")
def advance_command(
    stage: Annotated[
        int | None, typer.Option("--stage", min=1, help="The stage to begin, from 1; by default the next.")
    ] = None,
    reason: Reason = "",
    key: Key = None,
    project: Project = None,
    env: Env = None,
) -> None:
    """Begin the next or a later stage now, without waiting for evidence; behind the last one the Release is live.

    Refused where a guard is broken, while the rollout is paused, and towards a smaller share.
    """
    _steer("stage", reason, key, project, env, stage=None if stage is None else stage - 1)


def _steer(event: str, reason: str, key: Any, project: Any, env: Any, *, stage: int | None = None) -> None:
    from drivetrain.embedded.rollouts import steer

    try:
        done = steer(place(project, env), event, reason, key, stage=stage)
    except DrivetrainError as error:
        fail(error)
    body = done.body
    active = done.before.live.active
    share = ""
    if body.event == "stage" and active is not None:
        share = f", {active.rollout.stages[body.stage].share_ppm / 10_000:g} % of the units"
    said = {
        "paused": "is paused", "resumed": "goes on", "aborted": "is ended; what was live answers everybody",
        "completed": "is completed; the Release is live", "stage": f"is in stage {body.stage + 1}{share}",
    }  # fmt: skip
    typer.echo(plain(f"The rollout of Release {body.release} {said[body.event]}."))


def _tell_none(state: State, as_json: bool) -> None:
    environment = state.live.environment
    made = [one for one in state.releases.values() if one.release.rollout is not None]
    last = made[-1] if made else None
    event = last.events[-1] if last is not None and last.events else None
    if as_json:
        told = None if event is None else {"at": iso(event[0]), **builtins(event[1])}
        print_json({"environment": environment, "active": None, "last": told})
        return
    typer.echo(f"No rollout is under way in `{environment}`.")
    if last is not None and event is not None:
        at_ns, body = event
        typer.echo(
            plain(f"Release {last.release.number} was {body.event} by {body.by} at {iso(at_ns)}. {body.verdict}")
        )


def _tell(state: State, active: ActiveRollout, found: Standing) -> None:
    share = f"{found.share * 100:g} % of the units" if found.share else "a shadow"
    paused = ", paused" if active.paused else ""
    typer.echo(
        plain(
            f"Release {active.release} of {state.live.environment}: stage {found.stage + 1} of "
            f"{len(active.rollout.stages)}, {share}, for {lasted_text(found.minutes * 60 * NS_PER_S)}{paused}. "
            f"Candidate: {found.calls_candidate:,} Calls of {found.units_candidate:,} units; live: "
            f"{found.calls_live:,} of {found.units_live:,}."
        )
    )
    columns = [
        Column("guard"), Column("workflow", drop=4), Column("compared", drop=3), Column("candidate", right=True),
        Column("live", right=True), Column("difference", right=True), Column("between", drop=1),
        Column("accepted", drop=2), Column("evidence", right=True),
    ]  # fmt: skip
    print_table(columns, [_row(one) for one in found.findings])
    if found.waits:
        typer.echo(plain(f"Waits for: {'; '.join(found.waits)}."))
    elif active.paused:
        typer.echo("Waits for: `drivetrain rollout resume`.")


def _row(one: Finding) -> list[str]:
    seen = one.comparison
    if not seen.is_seen:
        return [one.guard, plain(one.workflow or "all"), plain(one.part), "-", "-", "-", "-", one.accepted(), "-"]
    return [
        one.guard, plain(one.workflow or "all"), plain(one.part), one.shown(seen.candidate), one.shown(seen.live),
        one.shown(seen.difference, True), one.interval() or "too little seen", one.accepted(),
        f"{max(one.log_evidence, 0.0) / one.needed:.0%}",
    ]  # fmt: skip


def _json(
    active: ActiveRollout, found: Standing, seen_ns: int, now_ns: int, copies: CopiesTold | None
) -> dict[str, Any]:
    return {
        "release": active.release, "snapshot": active.snapshot, "workflows": list(active.workflows),
        "stage": found.stage, "stages": len(active.rollout.stages), "share": found.share, "minutes": found.minutes,
        "paused": active.paused, "watched": bool(seen_ns), "seen": iso(seen_ns or now_ns),
        "calls": {"live": found.calls_live, "candidate": found.calls_candidate},
        "units": {"live": found.units_live, "candidate": found.units_candidate}, "waits": list(found.waits),
        "copies": None if copies is None else copies.facts(),
        "guards": [
            {"guard": one.guard, "workflow": one.workflow, "compared": one.part, "broken": one.is_broken, **one.facts()}
            for one in found.findings
        ],
    }  # fmt: skip
