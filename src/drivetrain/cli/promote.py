"""`drivetrain promote` and `drivetrain rollback`: what is live changes, and changes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Env, Json, Project
from drivetrain.cli.places import plain
from drivetrain.cli.release_options import Key, Proposal, Reason, builtins, place
from drivetrain.core.errors import DrivetrainError

if TYPE_CHECKING:
    from drivetrain.core.releases import ReleaseV1


def promote_command(
    number: Proposal,
    *,
    canary: Annotated[
        bool, typer.Option("--canary", help="In stages, also where no workflow declares a rollout.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="At once, whatever the workflows declare; needs --reason.")
    ] = False,
    override: Annotated[
        bool, typer.Option("--override", help="In an emergency, without what it lacks; needs a role and --reason.")
    ] = False,
    reason: Reason = "",
    key: Key = None,
    project: Project = None,
    env: Env = None,
    as_json: Json = False,
) -> None:
    """Release a proposal that has its Reports and its approvals."""
    from drivetrain.embedded import promoting

    try:
        release = promoting.promote(
            place(project, env), number, canary=canary, now=now, override=override, reason=reason, key=key
        ).body
    except DrivetrainError as error:
        fail(error)
    _tell_override(release)
    if as_json:
        print_json(builtins(release))
        return
    typer.echo(plain(f"Release {release.number} of {release.environment} by {release.by}: {release.snapshot[:16]}"))
    if release.rollout is None:
        typer.echo("It is live; gateways serve it within a second.")
        return
    shares = ", ".join(
        f"{one.share_ppm / 10_000:g} %" if one.share_ppm else "a shadow" for one in release.rollout.stages
    )
    typer.echo(f"Its rollout begins: {shares}, then all. `drivetrain rollout status` tells how it goes.")


def rollback_command(
    *,
    to: Annotated[int | None, typer.Option(min=1, help="The Release to bring back; by default the one before.")] = None,
    reason: Reason = "",
    key: Key = None,
    project: Project = None,
    env: Env = None,
    as_json: Json = False,
) -> None:
    """Bring back an earlier Release at once, or end the rollout that is under way. It needs no approval."""
    from drivetrain.core.releases import RolloutEventV1
    from drivetrain.embedded import promoting

    try:
        body = promoting.roll_back(place(project, env), to, reason, key).body
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(builtins(body))
    elif isinstance(body, RolloutEventV1):
        typer.echo(plain(f"The rollout of Release {body.release} is ended by {body.by}; what was live stays live."))
    else:
        typer.echo(plain(f"Release {body.number} by {body.by} brings back Release {body.restores}, live at once."))


def _tell_override(release: ReleaseV1) -> None:
    """Loudly, whatever else is printed."""
    if release.way != "override":
        return
    typer.echo(plain(f"!!! OVERRIDE by {release.by}: Release {release.number} is live without"), err=True)
    for one in release.lacks:
        typer.echo(plain(f"!!!   {one}"), err=True)
    typer.echo("!!! It is in the control log, and told until the next Release.", err=True)
