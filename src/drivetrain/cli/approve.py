"""`drivetrain approve` and `drivetrain withdraw`: standing for a proposal, and taking it back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Env, Json, Project
from drivetrain.cli.places import plain
from drivetrain.cli.release_options import Key, Proposal, Reason, builtins, place, tell_changes, tell_evidence
from drivetrain.core.errors import DrivetrainError


def approve_command(
    number: Annotated[int | None, typer.Argument(min=1, help="The proposal's number.")] = None,
    *,
    reason: Reason = "",
    key: Key = None,
    new_key: Annotated[
        Path | None, typer.Option(help="Make yourself a key in this new file, and print its public half.")
    ] = None,
    project: Project = None,
    env: Env = None,
    as_json: Json = False,
) -> None:
    """Stand for a proposal that somebody else made, exactly as it is: what you approve is its hash."""
    from drivetrain.embedded import promoting

    if new_key is not None:
        _make_key(new_key)
        return
    if number is None:
        fail(DrivetrainError("No proposal is named.", do="`drivetrain history` lists them."))
    try:
        written = promoting.approve(place(project, env), number, reason, key)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(builtins(written.body))
        return
    proposal = written.before.proposals[number].proposal
    tell_changes(proposal.changes)
    if proposal.evidence:
        typer.echo("Gates:")
        tell_evidence(proposal.evidence)
    typer.echo(plain(f"Approved by {written.body.by}: proposal {number} of {proposal.by}, {proposal.hash[:16]}."))


def withdraw_command(
    number: Proposal,
    *,
    reason: Reason = "",
    key: Key = None,
    project: Project = None,
    env: Env = None,
    as_json: Json = False,
) -> None:
    """Take a proposal back; it can be released no more."""
    from drivetrain.embedded import promoting

    try:
        written = promoting.withdraw(place(project, env), number, reason, key)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(builtins(written.body))
    else:
        typer.echo(plain(f"Proposal {number} is withdrawn by {written.body.by}."))


def _make_key(path: Path) -> None:
    from drivetrain.promotion.signing import make_key

    try:
        key = make_key(path)
    except DrivetrainError as error:
        fail(error)
    typer.echo(f'key = "{key.public}"')
    typer.echo(f"{path} is yours alone; the line above belongs below `[people.NAME]`.", err=True)
