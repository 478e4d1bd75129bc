"""`drivetrain probe`: whether a provider changed what stands behind a pinned name."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import Env, Project
from drivetrain.cli.places import plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.money import nano_usd, usd
from drivetrain.core.times import span_us

if TYPE_CHECKING:
    from drivetrain.embedded.probing import Outcome, Planned, Probes

CHANGED = 3
"""The exit code where a model changed."""
EVERY_S_MIN = 60
"""More often costs money and shows nothing."""


def probe_command(
    *,
    model: Annotated[str, typer.Option(help="Only this `provider/model`.")] = "",
    dataset: Annotated[str, typer.Option(help="Ask rows of this one: NAME or NAME@NUMBER.")] = "",
    rows: Annotated[int, typer.Option(min=5, max=1_000, help="Rows that are asked.")] = 30,
    repeats: Annotated[int, typer.Option(min=1, max=10, help="Answers per row; a baseline has 3 at least.")] = 1,
    accept: Annotated[bool, typer.Option("--accept", help="Make what is answered now the baseline.")] = False,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Of --accept, for the control log.")] = "",
    limit_usd: Annotated[str, typer.Option(help="What this probe may cost at most.")] = "",
    every: Annotated[str, typer.Option(help="Again and again, such as 6h, until it is ended by a signal.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be asked and what it costs.")] = False,
    env: Env = None,
    project: Project = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per probe.")] = False,
) -> None:
    """Ask each pinned model the same rows again and compare with its baseline. Exit code 3 where one changed, else 1
    where one could not be asked."""
    from drivetrain.embedded.probing import Probes, Wish
    from drivetrain.project import find_root, load, unload

    stopped = threading.Event()
    states: set[str] = set()
    try:
        if accept and not reason.strip():
            raise DrivetrainError("A baseline is accepted for a reason.", do="Add `-m REASON`.")
        if accept and every:
            raise DrivetrainError("--accept is done once.", do="Leave out --every.")
        pause_s = _pause_s(every)
        limit = nano_usd(limit_usd) if limit_usd else None
        if every:
            for one in (signal.SIGTERM, signal.SIGINT):
                signal.signal(one, lambda *_: stopped.set())
        while True:
            snapshot = load(project or find_root(Path.cwd()), env)
            try:
                probes = Probes(snapshot)
                with probes.alone():
                    planned = probes.plan(model, Wish(dataset=dataset, rows=rows, repeats=repeats, accept=accept))
                    _tell_costs(planned, limit)
                    _warn(probes, model)
                    if dry_run:
                        return
                    outcomes = probes.run(planned, reason=reason, limit_nano_usd=limit, is_stopped=stopped.is_set)
            finally:
                unload(snapshot)
            _tell(outcomes, as_json)
            states |= {one.state for one in outcomes}
            if not every or stopped.wait(pause_s):
                break
    except (DrivetrainError, ValueError) as error:
        fail(error)
    if "changed" in states:
        raise typer.Exit(CHANGED)
    if "not asked" in states and not every:
        raise typer.Exit(1)


def _pause_s(every: str) -> float:
    if not every:
        return 0.0
    try:
        pause_s = span_us(every) / 1e6
    except ValueError as error:
        raise DrivetrainError(f"`{every[:40]}` is no time between probes.", do=str(error)) from None
    if pause_s < EVERY_S_MIN:
        raise DrivetrainError(f"`{every}` is too often.", do=f"Wait {EVERY_S_MIN} s at least; 6h is usual.")
    return pause_s


def _tell_costs(planned: Sequence[Planned], limit: int | None) -> None:
    """Before anything is asked."""
    for one in planned:
        if one.frozen is None:
            typer.echo(plain(f"{one.model}: {one.why}"), err=True)
            continue
        likely = f", likely {usd(one.likely_nano_usd)} USD" if one.likely_nano_usd else ""
        what = "baseline" if one.baseline is None else f"probe {one.baseline.probes + 1}"
        typer.echo(
            plain(f"{one.model}: {what}, {one.calls} Calls of {one.frozen.dataset} through {one.workflow}, "
                  f"at most {usd(one.worst_nano_usd)} USD{likely}"),
            err=True,
        )  # fmt: skip
    total = sum(one.worst_nano_usd for one in planned)
    typer.echo(f"in all at most {usd(total if limit is None else min(total, limit))} USD", err=True)


def _warn(probes: Probes, model: str) -> None:
    for one in probes.retirements():
        if one.warning and model in ("", one.model):
            typer.echo(plain(f"warning: {one.warning}"), err=True)


def _tell(outcomes: Sequence[Outcome], as_json: bool) -> None:
    if as_json:
        print_json({"probes": [msgspec.to_builtins(one) for one in outcomes]})
    else:
        columns = [Column("model"), Column("is"), Column("USD", right=True, drop=2), Column("report", drop=1)]
        print_table(
            columns,
            [[plain(one.model), one.state, usd(one.cost_nano_usd), one.report or "-"] for one in outcomes],
        )
        for one in outcomes:
            typer.echo(plain(f"{one.model}: {one.verdict}"))
            if one.probed is not None and any(one.probed.fingerprints):
                before, now = one.probed.fingerprints
                typer.echo(plain(f"  its system_fingerprint was {before} and is {now}"))
    sys.stdout.flush()
