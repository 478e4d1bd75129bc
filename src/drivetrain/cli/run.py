"""`drivetrain run`: one input through a workflow, without any server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drivetrain.cli.options import Env, Project

if TYPE_CHECKING:
    from drivetrain.execution.deciding import DecisionTaken


def run_command(
    workflow: Annotated[str, typer.Argument(help="The workflow's name.")],
    input: Annotated[str, typer.Option("--input", help="The input as JSON; `-` reads it from standard input.")],
    project: Project = None,
    env: Env = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole result as one JSON object.")] = False,
) -> None:
    """Answer one input: the output on standard output, what it took on standard error."""
    import msgspec

    from drivetrain.cli.places import plain
    from drivetrain.core.money import usd
    from drivetrain.embedded import calls
    from drivetrain.project.files import find_root

    raw = sys.stdin.buffer.read() if input == "-" else input.encode()
    root = project or find_root(Path.cwd())
    result = calls.call(root, workflow, raw, env)
    if result.error is not None:
        typer.echo(f"drivetrain: {calls.explained(result, result.error)}", err=True)
        raise typer.Exit(1)
    output = calls.output_of(result, calls.project(root, env).snapshot.workflows[workflow])
    text = output if isinstance(output, str) else msgspec.json.encode(output).decode()
    if as_json:
        whole: dict[str, Any] = {
            "output": output,
            "variant": result.variant,
            "call_id": result.call_id,
            "cost_usd": usd(result.cost_nano_usd),
            "cost_nano_usd": result.cost_nano_usd,
            "attempts": len(result.attempts),
        }
        if result.decision is not None:
            whole["decision"] = {
                **result.decision.told(),
                "rule": result.decision.rule,
                "failed": result.decision.failed,
            }
        typer.echo(msgspec.json.encode(whole).decode())
        return
    typer.echo(text)
    if result.decision is not None:
        typer.echo(plain(f"decision  {_decided(result.decision)}"), err=True)
    typer.echo(f"{result.variant}, {usd(result.cost_nano_usd)} USD, {result.call_id}", err=True)


def _decided(made: DecisionTaken) -> str:
    """One line: the action, why, by which rule, with which values; and why `otherwise` stood in, where it did."""
    import msgspec

    said = made.action + (f" because {made.reason}" if made.reason else "")
    if made.failed:
        return f"{said}: `otherwise`, since {made.failed}"
    if made.rule:
        said += f", rule {made.rule}"
    if made.values:
        said += f", {msgspec.json.encode(made.values).decode()}"
    return f"{said} (explored)" if made.explored else said
