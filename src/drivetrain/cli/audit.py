"""`drivetrain audit`: the control log, shown and proved."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from drivetrain.cli.ending import fail
from drivetrain.cli.places import LedgerPlaces, ledger_places, plain
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.times import iso

if TYPE_CHECKING:
    from drivetrain.adapters.sqlite import SqliteControlLog

app = typer.Typer(help="The control log: who changed what.", no_args_is_help=True)

Project = Annotated[Path | None, typer.Option(help="The project's folder; by default found upwards.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("verify")
def verify_command(
    project: Project = None,
    expect: Annotated[
        str | None, typer.Option(help="Head that you noted earlier, SEQ:HASH; it must still be on the chain.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every record: exit code 1 for any edit, gap, reordering or truncation."""
    from drivetrain.ports.control import Verification

    try:
        log = _log(ledger_places(project))
        found = log.verify() if log is not None else Verification(records=0, head="0" * 64, findings=())
        missing = () if expect is None else _missing(log, expect)
    except DrivetrainError as error:
        fail(error)
    findings = (*found.findings, *missing)
    if as_json:
        answer = {"whole": not findings, **msgspec.to_builtins(found), "findings": findings}
        typer.echo(msgspec.json.encode(answer).decode())
    elif findings:
        typer.echo("\n".join(plain(one) for one in findings), err=True)
    else:
        typer.echo(f"whole: {found.records} records, head {found.records}:{found.head}")
    if findings:
        raise typer.Exit(1)


@app.command("log")
def log_command(
    project: Project = None,
    after: Annotated[int, typer.Option(min=0, help="Only records after this one.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most this many, the newest.")] = 50,
    as_json: Json = False,
) -> None:
    """List what was changed, oldest first."""
    try:
        log = _log(ledger_places(project))
        newest = deque(log.records(after), maxlen=limit) if log is not None else deque()
    except DrivetrainError as error:
        fail(error)
    for record in newest:
        if as_json:
            typer.echo(msgspec.json.encode({**msgspec.to_builtins(record), "at": iso(record.at_ns)}).decode())
        else:
            typer.echo(
                f"{record.seq:>6}  {iso(record.at_ns)}  {plain(record.kind)}  {plain(record.subject)}  "
                f"by {plain(record.actor)}  {plain(record.body)}"
            )
    if not newest and not as_json:
        typer.echo("Nothing was changed yet.")


def _log(places: LedgerPlaces) -> SqliteControlLog | None:
    """The project's control log; None where nothing was ever changed."""
    from drivetrain.adapters.sqlite import SqliteControlLog

    if not places.control_log.exists() and not (places.keys_folder / "control.anchor").exists():
        return None
    return SqliteControlLog(places.control_log, places.keys_folder)


def _missing(log: SqliteControlLog | None, expect: str) -> tuple[str, ...]:
    seq, _, head = expect.partition(":")
    if not seq.isdigit() or len(head) != 64:
        raise DrivetrainError(f"`{expect}` is no head.", do="Write SEQ:HASH as an earlier `audit verify` printed it.")
    record = next(log.records(int(seq) - 1), None) if log is not None and int(seq) > 0 else None
    if record is not None and record.seq == int(seq) and record.hash == head:
        return ()
    return (f"Record {seq} is not the one that was noted: the log was cut or computed anew.",)
