"""What the commands around Releases share: their options, and how changes and states are told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drivetrain.cli.places import plain

if TYPE_CHECKING:
    from drivetrain.core.releases import ChangeV1, EvidenceV1
    from drivetrain.embedded.releasing import ReleasePlace

Key = Annotated[
    Path | None,
    typer.Option(envvar="DRIVETRAIN_PERSON_KEY", help="Your private key; then you are the person who has it."),
]
Proposal = Annotated[int, typer.Argument(min=1, help="The proposal's number.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why, for those who read the history.")]


def place(project: Path | None, env: str | None) -> ReleasePlace:
    """Where the Releases are. Raises: DrivetrainError."""
    from drivetrain.embedded.releasing import place_of

    return place_of(project or Path.cwd(), env)


def tell_changes(changes: Sequence[ChangeV1]) -> None:
    """One line per change, under its workflow."""
    workflow = None
    for one in sorted(changes, key=lambda one: one.workflow):
        if one.workflow != workflow:
            workflow = one.workflow
            typer.echo(plain(f"{workflow or 'settings'}:"))
        typer.echo(plain(f"  {one.aspect:<9} {one.what}"))


def tell_evidence(evidence: Iterable[EvidenceV1]) -> None:
    """One line per gate: which Report passed it, or that none did."""
    for one in evidence:
        said = f"Report {one.report}" if one.report else "no Report; run it"
        typer.echo(plain(f"  eval {one.eval} of {one.workflow}: {said}"))


def tell_lacks(lacks: Sequence[str]) -> None:
    """What is lacking still."""
    if lacks:
        typer.echo("It lacks:")
        for one in lacks:
            typer.echo(plain(f"  {one}"))


def builtins(value: Any) -> Any:
    """A Struct as JSON has it."""
    import msgspec

    return msgspec.to_builtins(value)
