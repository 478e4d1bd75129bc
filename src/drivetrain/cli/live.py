"""`drivetrain live` and `drivetrain history`: what is live, what was, and what waits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Env, Json, Moment, Project
from drivetrain.cli.places import moment_ns, plain
from drivetrain.cli.release_options import builtins, place
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.times import iso

if TYPE_CHECKING:
    from drivetrain.core.releases import Live
    from drivetrain.embedded.serving import Served
    from drivetrain.promotion.standing import Proposed, Released, State


def live_command(
    *,
    at: Moment = None,
    project: Project = None,
    env: Env = None,
    as_json: Json = False,
) -> None:
    """What is live now, or was at a time, by the control log."""
    from drivetrain.embedded.releasing import state_of
    from drivetrain.embedded.serving import served_by

    try:
        where = place(project, env)
        found = state_of(where, moment_ns(at) if at else None).live
    except DrivetrainError as error:
        fail(error)
    workers = [] if at else served_by(where.data_folder / "run")
    if as_json:
        print_json({**live_json(found), "workers": [builtins(one) for one in workers]})
    else:
        _tell_live(found)
        _tell_workers(found, workers)
    if found.lacks:
        typer.echo(plain(f"warning: it is live by override and lacks: {'; '.join(found.lacks)}"), err=True)
    for one in found.refused:
        typer.echo(plain(f"warning: does not count: {one}"), err=True)


def history_command(project: Project = None, env: Env = None, as_json: Json = False) -> None:
    """Every Release, newest first, and the proposals that wait."""
    from drivetrain.embedded.releasing import state_of

    try:
        found = state_of(place(project, env))
    except DrivetrainError as error:
        fail(error)
    waiting = [one for one in found.proposals.values() if found.condition(one) == "open"]
    if as_json:
        print_json(
            {
                "environment": found.live.environment,
                "live": live_json(found.live),
                "releases": [builtins(one) for one in found.releases.values()],
                "proposals": [_proposal_json(found, one) for one in found.proposals.values()],
            }
        )
        return
    if not found.releases and not waiting:
        typer.echo(f"Nothing was released in `{found.live.environment}`. `drivetrain propose` makes a proposal.")
        return
    if found.releases:
        _print_releases(found)
    for one in waiting:
        _tell_waiting(found, one)


def live_json(found: Live) -> dict[str, Any]:
    """What is live, as JSON has it: with its time in words, without the rules."""
    told = {name: value for name, value in builtins(found).items() if name != "rules"}
    return {**told, "since": iso(found.since_ns) if found.release else ""}


def _tell_live(found: Live) -> None:
    if not found.release:
        typer.echo(f"Nothing was released in `{found.environment}`: gateways serve the project's folder.")
        return
    typer.echo(
        plain(
            f"Release {found.release} of {found.environment} since {iso(found.since_ns)} "
            f"({found.way} by {found.by}): Snapshot {found.snapshot[:16]}"
        )
    )
    if found.active is not None:
        active = found.active
        share = f"{active.share_ppm / 10_000:g} % of the units" if active.share_ppm else "a shadow"
        minutes = (time.time_ns() - active.stage_ns) / 60e9
        typer.echo(
            f"Release {active.release} is being rolled out: stage {active.stage + 1} of {len(active.rollout.stages)}, "
            f"{share}, for {minutes:.1f} minutes{', paused' if active.paused else ''}"
        )


def _tell_workers(found: Live, workers: Sequence[Served]) -> None:
    """Whether every worker of a gateway here serves it already."""
    if not workers or not found.release:
        return
    behind = [one for one in workers if one.release != found.release]
    typer.echo(f"{len(workers) - len(behind)} of {len(workers)} workers serve it.")
    for one in behind:
        why = f": {one.failed}" if one.failed else ""
        typer.echo(plain(f"  {one.worker} serves Release {one.release}{why}"))


def _print_releases(found: State) -> None:
    columns = [
        Column("release", right=True), Column("state"), Column("way"), Column("by"), Column("since", drop=1),
        Column("snapshot", drop=2), Column("workflows", drop=4), Column("reason", drop=3),
    ]  # fmt: skip
    rows = [
        [
            str(one.release.number), one.state, _way(one), plain(one.release.by), iso(one.since_ns or one.at_ns),
            one.release.snapshot[:16], plain(", ".join(one.release.workflows)), plain(_reason(found, one)[:60]),
        ]
        for one in reversed(found.releases.values())
    ]  # fmt: skip
    print_table(columns, rows)


def _reason(found: State, one: Released) -> str:
    """The Release's own reason, else that of the proposal that it released."""
    proposed = found.proposals.get(one.release.proposal)
    return one.release.reason or (proposed.proposal.reason if proposed is not None else "")


def _way(one: Released) -> str:
    if one.release.restores:
        return f"rollback to {one.release.restores}"
    return f"{one.release.way} of proposal {one.release.proposal}"


def _tell_waiting(found: State, one: Proposed) -> None:
    from drivetrain.promotion.releasing import lacking_of

    proposal = one.proposal
    approved = ", ".join(approval.by for approval in one.approvals) or "nobody yet"
    typer.echo(
        plain(
            f"Proposal {proposal.number} by {proposal.by}, {iso(one.at_ns)}: {len(proposal.changes)} changes of "
            f"{', '.join(proposal.keys) or 'settings'}; approved by {approved}. {proposal.reason}"
        )
    )
    for lack in lacking_of(found, one):
        typer.echo(plain(f"  lacks: {lack}"))


def _proposal_json(found: State, one: Proposed) -> dict[str, Any]:
    from drivetrain.promotion.releasing import lacking_of

    state = found.condition(one)
    lacks = list(lacking_of(found, one)) if state == "open" else []
    return {**builtins(one), "hash": one.proposal.hash, "state": state, "lacks": lacks}
