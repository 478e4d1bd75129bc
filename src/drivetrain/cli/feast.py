"""`drivetrain features import-feast`: definitions of a Feast repository, written as ours, and what is left to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from drivetrain.cli.ending import fail
from drivetrain.cli.options import AnyJson, Project
from drivetrain.cli.places import plain
from drivetrain.core.errors import DrivetrainError


def import_feast_command(
    repository: Annotated[Path, typer.Argument(help="The folder in which `feast apply` is run.")],
    *,
    to: Annotated[str, typer.Option(help="The module to write, in the project.")] = "features/imported.py",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the module, write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a module that was edited by hand.")] = False,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE that the definitions see; may be repeated.")] = None,
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Carry over what a Feast repository declares. Its Python is run, without network; Feast is not needed."""
    from drivetrain.features.feast_import import import_feast
    from drivetrain.project import find_root

    try:
        made = import_feast(
            repository,
            project or find_root(Path.cwd()),
            to=to,
            dry_run=dry_run,
            force=force,
            environment=_given(env or []),
        )
    except DrivetrainError as error:
        fail(error)
    if as_json:
        typer.echo(msgspec.json.encode({**msgspec.structs.asdict(made), "path": str(made.path)}).decode())
        return
    if dry_run:
        typer.echo(made.text, nl=False)
    counts = f"{made.entities} entities, {made.views} views, {made.on_demand} on demand, {made.services} services"
    done = "would be" if dry_run else "is"
    typer.echo(f"{to} {done} {made.state}: {counts}", err=dry_run)
    for note in made.notes:
        typer.echo(plain(str(note)), err=True)


def _given(env: list[str]) -> dict[str, str]:
    """Raises: DrivetrainError."""
    for one in env:
        if "=" not in one[1:]:
            raise DrivetrainError(f"`{plain(one)}` is no NAME=VALUE.")
    return {name: value for name, _, value in (one.partition("=") for one in env)}
