"""The options that many commands have, each with one name, one type and one sentence of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Project = Annotated[Path | None, typer.Option(help="The project's folder; by default found upwards.")]
Env = Annotated[str | None, typer.Option(help="Environment; by default $DRIVETRAIN_ENV, else default_env.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
AnyJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""Of groups whose commands print an object here and a list there."""
Moment = Annotated[str | None, typer.Option(help="ISO time, `today`, or how long ago: `2h`, `7d`.")]
"""Read by `places.moment_ns`."""
Until = Annotated[str | None, typer.Option(help="As --since.")]
