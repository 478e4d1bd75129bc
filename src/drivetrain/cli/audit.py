"""`drivetrain audit`: the control log, shown, proved, signed and taken elsewhere."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import msgspec
import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import AnyJson, Project
from drivetrain.cli.places import LedgerPlaces, ledger_places, moment_ns, plain
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.times import iso

if TYPE_CHECKING:
    from drivetrain.adapters.sqlite import SqliteControlLog

app = typer.Typer(help="The control log: who changed what.", no_args_is_help=True)

EXPORTED = "exported"
"""The control log's kind of exports."""
SUBJECT = "control"
UNRECORDED_SHOWN = 20
"""Reports without a record, as people are shown; `--json` has all."""

KeyFile = Annotated[
    Path | None, typer.Option("--key", help="Sign with this Ed25519 key, 32 bytes or PEM, instead of the project's.")
]


@app.command("verify")
def verify_command(
    *,
    project: Project = None,
    expect: Annotated[
        str | None, typer.Option(help="Head that you noted earlier, SEQ:HASH; it must still be on the chain.")
    ] = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint file that the log must still agree with; repeatable.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Check this exported file instead of the log; it needs no project.")
    ] = None,
    trust: Annotated[
        list[str] | None, typer.Option(help="A public key that may have signed; by default the project's. Repeatable.")
    ] = None,
    as_json: AnyJson = False,
) -> None:
    """Check every record: exit code 1 for any edit, gap, reordering or truncation, and for a Report that is gone."""
    from drivetrain.embedded.eval_recorded import Unmatched, unmatched
    from drivetrain.ports.control import Verification

    try:
        if export is not None:
            if expect is not None or checkpoint:
                raise DrivetrainError("--export checks a file, and --expect and --checkpoint check the log.")
            _verify_export(export, project, trust, as_json)
            return
        places = ledger_places(project)
        log = _log(places)
        found = log.verify() if log is not None else Verification(records=0, head="0" * 64, findings=())
        missing = () if expect is None else _missing(log, expect)
        missing += _against(checkpoint or [], places, log, trust)
        # Upon a log that was changed nothing is told of Reports.
        records = log.records() if log is not None else ()
        reports = unmatched(places.data_folder, records) if found.whole else Unmatched()
    except DrivetrainError as error:
        fail(error)
    findings = (*found.findings, *missing, *reports.gone)
    if as_json:
        said = {"findings": findings, "unrecorded_reports": reports.unrecorded}
        print_json({"whole": not findings, **msgspec.to_builtins(found), **said})
    elif findings:
        typer.echo("\n".join(plain(one) for one in findings), err=True)
    else:
        typer.echo(f"whole: {found.records} records, head {found.records}:{found.head}")
        if checkpoint:
            typer.echo(f"as signed: {len(checkpoint)} checkpoint{'' if len(checkpoint) == 1 else 's'}")
    if not as_json:
        _tell_unrecorded(reports.unrecorded)
    if findings:
        raise typer.Exit(1)


@app.command("log")
def log_command(
    project: Project = None,
    after: Annotated[int, typer.Option(min=0, help="Only records after this one.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most this many, the newest.")] = 50,
    as_json: AnyJson = False,
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


@app.command("checkpoint")
def checkpoint_command(
    project: Project = None,
    out: Annotated[Path | None, typer.Option(help="The file; by default control-SEQ.checkpoint.json here.")] = None,
    key: KeyFile = None,
    as_json: AnyJson = False,
) -> None:
    """Sign the head of the log into a file; kept elsewhere, it proves later what the log held."""
    from drivetrain.adapters.checkpoints import checkpoint_key, encoded, make_checkpoint

    try:
        places = ledger_places(project)
        log = _whole(places)
        name, environment = _named(places)
        signing = checkpoint_key(places.keys_folder, key)
        made = make_checkpoint(log.records(), signing, project=name, environment=environment, at=iso(time.time_ns()))
        target = out or Path(f"control-{made.seq}.checkpoint.json")
        with _new_file(target) as file:
            file.write(encoded(made))
    except DrivetrainError as error:
        fail(error)
    if as_json:
        said = {"file": str(target), "seq": made.seq, "head": made.head, "public_key": made.public_key}
        print_json(said)
    else:
        typer.echo(plain(f"{target}: record {made.seq}, head {made.seq}:{made.head}"))
        typer.echo(f"signed with {made.public_key}; keep file and key away from this machine")


@app.command("export")
def export_command(
    *,
    out: Annotated[Path, typer.Option(help="The file; it is not there yet.")],
    since: Annotated[str | None, typer.Option(help="Only records from then on: 2h, 7d, today, or an ISO time.")] = None,
    until: Annotated[str | None, typer.Option(help="Only records before then.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Only of this kind, such as apply; repeatable.")] = None,
    key: KeyFile = None,
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Write records as JSON lines with a signed end, for `audit verify --export`; the log keeps that it was done."""
    from drivetrain.adapters.checkpoints import checkpoint_key
    from drivetrain.adapters.control_export import HeadV1, write_export
    from drivetrain.embedded.applying import person

    try:
        places = ledger_places(project)
        log = _whole(places)
        since_ns, until_ns = (None if one is None else moment_ns(one) for one in (since, until))
        name, environment = _named(places)
        verified = log.verify()
        head = HeadV1(
            project=name,
            environment=environment,
            at=iso(time.time_ns()),
            since="" if since_ns is None else iso(since_ns),
            until="" if until_ns is None else iso(until_ns),
            kinds=tuple(kind or ()),
            log_seq=verified.records,
            log_head=verified.head,
        )
        chosen = (
            record
            for record in log.records()
            if record.seq <= verified.records
            and (since_ns is None or record.at_ns >= since_ns)
            and (until_ns is None or record.at_ns < until_ns)
            and (not kind or record.kind in kind)
        )
        with _new_file(out) as file:
            trailer = write_export(file, head, chosen, checkpoint_key(places.keys_folder, key))
            body = {"records": trailer.count, "sha256": trailer.sha256, "kinds": list(head.kinds),
                    "since": head.since, "until": head.until, "to": out.name}  # fmt: skip
            log.append(kind=EXPORTED, actor=person(), subject=SUBJECT, body=body)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"file": str(out), "records": trailer.count, "public_key": trailer.public_key})
    else:
        typer.echo(plain(f"{out}: {trailer.count} records, signed with {trailer.public_key}"))


def _tell_unrecorded(reports: Sequence[str]) -> None:
    """Reports of evals that nothing can be released upon: no mistake of the log, and worth a look."""
    for id in reports[:UNRECORDED_SHOWN]:
        typer.echo(plain(f"Report {id} of an eval has no record of a run: it proves nothing; run the eval again."))
    if len(reports) > UNRECORDED_SHOWN:
        typer.echo(f"and {len(reports) - UNRECORDED_SHOWN} more.")


def _verify_export(path: Path, project: Path | None, trust: list[str] | None, as_json: bool) -> None:
    from drivetrain.adapters.control_export import verify_export

    found = verify_export(path, _trusted(trust, lambda: ledger_places(project)))
    if as_json:
        print_json({"whole": not found.findings, **msgspec.to_builtins(found)})
    elif found.findings:
        typer.echo("\n".join(plain(one) for one in found.findings), err=True)
    else:
        head = found.head
        assert head is not None, "an export without a first line has a finding"
        chosen = f"{head.project}, {head.environment}, of a log of {head.log_seq} records at {head.at}"
        typer.echo(plain(f"whole: {found.records} records of {chosen}"))
    if found.findings:
        raise typer.Exit(1)


def _against(
    files: list[Path], places: LedgerPlaces, log: SqliteControlLog | None, trust: list[str] | None
) -> tuple[str, ...]:
    """What the checkpoints say against the log as it is."""
    from drivetrain.adapters.checkpoints import differences, read_checkpoint

    if not files:
        return ()
    trusted = _trusted(trust, lambda: places)
    hashes = [record.hash for record in log.records()] if log is not None else []
    findings = []
    for path in files:
        signed, why = read_checkpoint(path, trusted)
        if signed is None:
            findings.append(why)
        elif wrong := differences(signed, hashes):
            findings.append(f"{path}, made in project {signed.project}, {signed.environment}: {wrong}")
    return tuple(findings)


def _trusted(given: list[str] | None, places: Callable[[], LedgerPlaces]) -> list[str]:
    """Public keys whose signatures count. Raises: DrivetrainError where there is none."""
    from drivetrain.adapters.checkpoints import own_public_key

    if given:
        return given
    own = own_public_key(places().keys_folder)
    if not own:
        raise DrivetrainError(
            "Whose signature counts is not known here: the project has no checkpoint key.",
            looked=[str(places().keys_folder)],
            do="Name the public key by --trust, as `audit checkpoint` told it when it signed.",
        )
    return [own]


def _whole(places: LedgerPlaces) -> SqliteControlLog:
    """The log, where nothing is wrong with it. Raises: DrivetrainError."""
    log = _log(places)
    if log is None:
        raise DrivetrainError("Nothing was changed yet: there is no control log.", looked=[str(places.control_log)])
    findings = log.verify().findings
    if findings:
        raise DrivetrainError(
            f"The control log is not whole, so it is not signed. {findings[0]}",
            do="`drivetrain audit verify` tells everything that is wrong; restore it from your backup.",
        )
    return log


def _log(places: LedgerPlaces) -> SqliteControlLog | None:
    """The project's control log; None where nothing was ever changed.

    Raises: DrivetrainError where there was one: to open it would begin another.
    """
    from drivetrain.adapters.sqlite import open_control_log

    if not places.control_log.exists() and not (places.keys_folder / "control.anchor").exists():
        if (places.keys_folder / "control.key").exists():
            raise DrivetrainError(
                "The control log was deleted, and its anchor too; its key is still there.",
                looked=[str(places.control_log), str(places.keys_folder / "control.anchor")],
                do="Restore them from your backup.",
            )
        return None
    return open_control_log(places.data_folder, places.keys_folder)


def _named(places: LedgerPlaces) -> tuple[str, str]:
    """The project's name and the environment that its places are of."""
    from drivetrain.project.document import environment_name, parse
    from drivetrain.project.files import SETTINGS_FILE
    from drivetrain.project.problems import Problems

    parsed = parse((places.root / SETTINGS_FILE).read_bytes(), Problems())
    table = parsed.values.get("project") if parsed is not None else None
    name = table.get("name") if isinstance(table, dict) else ""
    return str(name or ""), environment_name(parsed, None, os.environ)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is whole or not there. Raises: DrivetrainError where one stands there, or it cannot be written."""
    from drivetrain.ports.disk import SHARED_MODE, whole_file

    if path.exists():
        raise DrivetrainError(f"{path} is there already.", do="Choose another name, or move it away.")
    try:
        with whole_file(path, mode=SHARED_MODE) as file:
            yield file
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be written: {error.strerror}.") from None


def _missing(log: SqliteControlLog | None, expect: str) -> tuple[str, ...]:
    seq, _, head = expect.partition(":")
    if not seq.isdigit() or len(head) != 64:
        raise DrivetrainError(f"`{expect}` is no head.", do="Write SEQ:HASH as an earlier `audit verify` printed it.")
    record = next(log.records(int(seq) - 1), None) if log is not None and int(seq) > 0 else None
    if record is not None and record.seq == int(seq) and record.hash == head:
        return ()
    return (f"Record {seq} is not the one that was noted: the log was cut or computed anew.",)
