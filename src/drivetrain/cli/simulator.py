"""`drivetrain simulator`: a provider to try, load and break things against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulator_command(
    config: Annotated[Path, typer.Option(help="What the models do; see docs/reference/simulator.md.")] = Path(
        "simulator.toml"
    ),
    host: Annotated[str | None, typer.Option(help="Address to listen on; by default [server] host.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 takes a free one. By default [server] port.")
    ] = None,
) -> None:
    """Run the provider simulator (OpenAI and Anthropic dialects)."""
    from drivetrain.simulator.__main__ import main

    arguments = ["--config", str(config)]
    if host is not None:
        arguments += ["--host", host]
    if port is not None:
        arguments += ["--port", str(port)]
    raise typer.Exit(main(arguments))
