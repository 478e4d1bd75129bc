"""How the Report of a rollout that has ended reads: its verdict, its steps, and what the guards saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from drivetrain.cli.places import plain
from drivetrain.cli.tables import print_cells
from drivetrain.core.markup import Table, markdown_table, markdown_text
from drivetrain.core.money import usd

if TYPE_CHECKING:
    from drivetrain.core.reports import ReportV1

STEPS = ("at", "step", "stage#", "by", "guard")
GUARDS = ("guard", "metric", "harm that is accepted#")
EVIDENCE = ("step", "guard", "arm", "Calls#", "units#", "measured#")


def show_rollout(report: ReportV1, markdown: bool, project: Path | None) -> None:
    """A Report of kind `rollout`, as `drivetrain report show` prints it."""
    del project
    body = report.body
    if markdown:
        typer.echo(f"# Rollout of {markdown_text(report.subject)}\n\n{markdown_text(report.verdict)}")
    else:
        typer.echo(plain(f"Rollout of {report.subject}\n{report.verdict}"))
    _table("From its beginning to its end", STEPS, _steps(body), markdown)
    _lines("Why", _reasons(report), markdown)
    _table("What the guards saw", EVIDENCE, _evidence(body), markdown)
    _table("Guards", GUARDS, [[one["watch"], one["metric"] or "-", _margin(one)] for one in body["guards"]], markdown)


def _steps(body: dict[str, Any]) -> list[list[str]]:
    begun = [body["started"], "begun", "1", "-", "-"]
    told = [[one["at"], one["event"], str(one["stage"] + 1), one["by"], one["guard"] or "-"] for one in body["events"]]
    return [begun, *told]


def _reasons(report: ReportV1) -> list[str]:
    """What was said at each step, but for what the Report's verdict says already."""
    told = [(one["at"], one["verdict"]) for one in report.body["events"]]
    return [f"{at}: {verdict}" for at, verdict in told if verdict and verdict != report.verdict]


def _evidence(body: dict[str, Any]) -> list[list[str]]:
    """Two lines per step that rests on evidence: both arms."""
    rows: list[list[str]] = []
    for one in body["events"]:
        seen = one["evidence"]
        for arm in ("candidate", "live"):
            calls, units = seen.get(f"calls_{arm}"), seen.get(f"units_{arm}")
            if calls is None or units is None:
                continue
            rows.append([
                f"{one['event']} at {one['at']}", one["guard"] or "-", arm, f"{calls:,.0f}", f"{units:,.0f}",
                _measured(one["guard"], seen, arm),
            ])  # fmt: skip
    return rows


def _measured(guard: str, seen: dict[str, Any], arm: str) -> str:
    value = seen.get(arm)
    if value is None:
        return "-"
    if guard == "cost":
        return f"{usd(round(value))} USD"
    return f"{value:.2%}" if guard in ("errors", "latency") else f"{value:.4g}"


def _margin(guard: dict[str, Any]) -> str:
    kind, margin = guard["watch"], guard["margin"]
    if kind in ("errors", "latency"):
        return f"{margin * 100:g} points"
    return f"{margin * 100:g} %" if kind == "cost" else f"{margin:g}"


def _lines(title: str, lines: list[str], markdown: bool) -> None:
    if not lines:
        return
    typer.echo(f"\n## {title}\n" if markdown else f"\n{title}")
    for line in lines:
        typer.echo(f"- {markdown_text(line)}" if markdown else plain(f"  {line}"))


def _table(title: str, head: tuple[str, ...], rows: list[list[str]], markdown: bool) -> None:
    if not rows:
        return
    if markdown:
        typer.echo(f"\n## {title}\n\n{markdown_table(Table(head, tuple(map(tuple, rows))))}", nl=False)
    else:
        typer.echo(f"\n{title}")
        print_cells(head, rows)
