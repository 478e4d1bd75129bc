"""`drivetrain serve`: the gateway of a project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drivetrain.cli.options import Env, Project

NAMED_MAX = 20
"""Workflows that are named when serving begins."""


def serve_command(
    project: Project = None,
    env: Env = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; by default [gateway] host.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 takes a free one. By default [gateway] port.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Worker processes; one per core is best.")] = 1,
) -> None:
    """Serve what is live: the Release, or the project's folder where nothing was ever released."""
    from drivetrain.embedded.applying import apply
    from drivetrain.embedded.featuring import unmaterialized
    from drivetrain.embedded.starting import to_serve
    from drivetrain.gateway.key_watch import has_keys
    from drivetrain.gateway.supervisor import serve
    from drivetrain.project.files import find_root

    starts = to_serve(project or find_root(Path.cwd()), env)
    snapshot, live = starts.snapshot, starts.live
    asks_for_keys = has_keys(snapshot)
    apply(snapshot)

    def announce(bound_host: str, bound_port: int) -> None:
        shown = f"[{bound_host}]" if ":" in bound_host else bound_host
        declared = [name for name in snapshot.workflows if name not in snapshot.direct]
        names = ", ".join(declared[:NAMED_MAX])
        if len(declared) > NAMED_MAX:
            names += f" and {len(declared) - NAMED_MAX} more"
        typer.echo(f"drivetrain serving {names} on http://{shown}:{bound_port}/v1 (snapshot {snapshot.short_hash})")
        if live.release:
            typer.echo(f"Release {live.release} is live in `{live.environment}`; the project's folder is not served")
        if live.lacks:
            typer.echo(f"Release {live.release} was made by override; it lacks: {'; '.join(live.lacks)}", err=True)
        if not asks_for_keys:
            typer.echo("no key is declared or issued: anybody on this machine may call, and nobody else can")
        for service, views in unmaterialized(snapshot).items():
            named = ", ".join(f"`{one}`" for one in views)
            typer.echo(
                f"features of `{service}` were never materialized ({named}): run `drivetrain features materialize`",
                err=True,
            )

    raise typer.Exit(
        serve(
            snapshot,
            live,
            host=host or snapshot.gateway.host,
            port=snapshot.gateway.port if port is None else port,
            workers=workers,
            announce=announce,
        )
    )
