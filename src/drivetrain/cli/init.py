"""`drivetrain init`: a new project that runs at once, against the simulator."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from drivetrain.cli.ending import fail
from drivetrain.core.errors import DrivetrainError


def init_command(
    folder: Annotated[Path, typer.Argument(help="Folder to make; it must not exist, or be empty.")],
) -> None:
    """Make a new project that runs at once, against the simulator."""
    from drivetrain.project.new import KEY_FILE, create

    try:
        create(folder, f"dt-{secrets.token_urlsafe(32)}")
    except DrivetrainError as error:
        fail(error)
    except OSError as error:
        typer.echo(f"{folder} cannot be written: {error.strerror}.", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"Made {folder}. Its key for clients is in {folder / KEY_FILE} and is not committed.")
    typer.echo(f"Next: cd {folder} && drivetrain check; README.md has the rest.")
