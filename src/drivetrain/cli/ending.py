"""How a command ends: with its answer as JSON, or with what went wrong on stderr and exit code 1."""

from __future__ import annotations

from typing import Any, NoReturn

import typer

from drivetrain.cli.places import plain


def print_json(value: Any) -> None:
    """One JSON document on a line."""
    import msgspec

    typer.echo(msgspec.json.encode(value).decode())


def fail(error: Exception) -> NoReturn:
    """Tell it, without control characters: it may quote what others wrote. Raises: typer.Exit."""
    typer.echo(plain(str(error)), err=True)
    raise typer.Exit(1) from None
