"""`drivetrain features`: what is declared, its online vectors, training sets, and whether both say the same."""

from __future__ import annotations

import random
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.feast import import_feast_command
from drivetrain.cli.options import AnyJson, Project
from drivetrain.cli.places import moment_ns, plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.times import iso

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivetrain.features.parity import ParityReport, Seeing
    from drivetrain.features.store import FeatureStore
    from drivetrain.project.snapshot import Snapshot

INPUT_BYTES_MAX = 256 * 1024 * 1024
"""Of rows that are pushed from a file; more belong into a source."""
CELL_CHARACTERS = 40
SAMPLE = 1_000
PARITY_EXIT = 3
"""Exit code where online and offline differ, as against 1 where it could not be told."""

app = typer.Typer(help="Features: declared once, the same in training and in serving.", no_args_is_help=True)
app.command("import-feast")(import_feast_command)

Views = Annotated[
    list[str] | None,
    typer.Option(
        "--view", help="Only this FeatureView, and whole the tables of services that hold it; may be repeated."
    ),
]


@app.command("apply")
def apply_command(project: Project = None, as_json: AnyJson = False) -> None:
    """Check what is declared, and record each definition that is new."""
    try:
        applied = _store(project).apply()
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(msgspec.to_builtins(applied))
        return
    typer.echo(f"{len(applied.entities)} entities, {len(applied.views)} views, {len(applied.services)} services")
    for name in applied.changed:
        typer.echo(f"new: service {plain(name)} {applied.services[name]}")


@app.command("list")
def list_command(project: Project = None, as_json: AnyJson = False) -> None:
    """Views and services, what they hold, and as of when they are online."""
    try:
        store = _store(project)
        rows = _listed(store)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo("No features are declared.", err=True)
        return
    columns = [
        Column("kind"), Column("name"), Column("keys", drop=2), Column("features", right=True),
        Column("source", drop=3),
        Column("online", right=True), Column("as of", drop=1), Column("fingerprint", drop=4),
    ]  # fmt: skip
    names = ("kind", "name", "keys", "features", "source", "vectors", "as_of", "fingerprint")
    print_table(columns, [[_cell(row[name]) for name in names] for row in rows])


@app.command("materialize")
def materialize_command(
    *,
    start: Annotated[str | None, typer.Option(help="Only entities with rows since then, or online before.")] = None,
    end: Annotated[str, typer.Option(help="As of when: ISO time, `now`, or how long ago: `2h`.")] = "now",
    views: Views = None,
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Make the online vectors what the sources say; readers change over at their next read."""
    try:
        store = _store(project)
        start_date = None if start is None else _moment(start)
        made = store.materialize(start_date, _moment(end), views)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(msgspec.to_builtins(made))
        return
    shown = [view for view in made.views if not views or view.name in views]
    rows = [[view.name, str(view.rows), _time(view.newest_us)] for view in shown]
    print_table([Column("view"), Column("entities", right=True), Column("newest row")], rows)
    if views:
        typer.echo(f"tables rebuilt: {', '.join(made.tables)}")
    typer.echo(f"as of {_time(made.as_of_us)}")


@app.command("serve")
def serve_command(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 6566,
    project: Project = None,
) -> None:
    """Serve online features over HTTP, as Feast's feature server does."""
    from drivetrain.gateway.feature_door import serve_features

    def announce(bound_host: str, bound_port: int) -> None:
        shown = f"[{bound_host}]" if ":" in bound_host else bound_host
        typer.echo(f"drivetrain serving features on http://{shown}:{bound_port}")

    try:
        serve_features(_snapshot(project), host=host, port=port, announce=announce)
    except DrivetrainError as error:
        fail(error)


@app.command("push")
def push_command(
    source: Annotated[str, typer.Argument(help="The PushSource's name.")],
    rows: Annotated[Path, typer.Argument(help="JSON lines or one JSON array of objects; `-` reads standard input.")],
    *,
    to: Annotated[str, typer.Option(help="online, offline or online_and_offline.")] = "online_and_offline",
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Push rows: into the lake, and online at once. One wrong row, and none is pushed."""
    try:
        made = _store(project).push(source, _rows(rows), to=to)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json(msgspec.to_builtins(made))
    else:
        typer.echo(f"{made.rows} rows pushed")


@app.command("get")
def get_command(
    features: Annotated[str, typer.Argument(help="A FeatureService, or VIEW:FEATURE,VIEW:FEATURE ...")],
    entities: Annotated[list[str], typer.Argument(help="KEY=VALUE of one entity, request columns too.")],
    *,
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """The online features of one entity, now."""
    try:
        store = _store(project)
        answer = store.get_online_features(_features(features), [_entity(store, features, entities)])
        values, statuses = answer.to_dict(), answer.statuses()
        times = answer.event_timestamps()
        unmade = store.never_materialized(_features(features))
    except DrivetrainError as error:
        fail(error)
    if unmade:
        named = ", ".join(f"`{plain(name)}`" for name in unmade)
        typer.echo(f"Never materialized: {named}. Run `drivetrain features materialize`.", err=True)
    if as_json:
        print_json({name: column[0] for name, column in values.items()})
        return
    rows = [
        [name, _cell(values[name][0]), status[0], held.isoformat() if (held := times[name][0]) is not None else "-"]
        for name, status in statuses.items()
    ]
    print_table([Column("feature"), Column("value"), Column("status"), Column("held since", drop=1)], rows)


@app.command("historical")
def historical_command(
    labels: Annotated[str, typer.Argument(help="A file, a SELECT, or dataset:NAME@N, with keys and event_timestamp.")],
    features: Annotated[str, typer.Argument(help="A FeatureService, or VIEW:FEATURE,VIEW:FEATURE ...")],
    to: Annotated[Path, typer.Option("--parquet", help="The file to write.")],
    *,
    full_names: Annotated[bool, typer.Option("--full-names", help="Columns are VIEW__FEATURE.")] = False,
    project: Project = None,
) -> None:
    """A training set: each label with what was known at its moment, one row per label."""
    try:
        store = _store(project)
        with store.connect() as connection:
            found = store.get_historical_features(
                labels, _features(features), connection=connection, full_feature_names=full_names
            )
            found.to_parquet(to)
            rows, count = len(found), len(found.names)
        _remember(store, to, labels, features, rows)
        typer.echo(f"{rows} rows with {count} features in {to}")
    except DrivetrainError as error:
        fail(error)


@app.command("parity")
def parity_command(
    *,
    sample: Annotated[int, typer.Option(min=1, max=100_000, help="How many Calls, drawn at random.")] = SAMPLE,
    since: Annotated[str, typer.Option(help="ISO time, `today`, or how long ago: `2h`, `7d`.")] = "7d",
    until: Annotated[str, typer.Option(help="As --since.")] = "now",
    workflow: Annotated[str | None, typer.Option(help="Only Calls of this workflow.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Recompute what Calls saw, as training would: exit code 3 where a feature differs, and why."""
    from drivetrain.features.parity import refuse_none

    try:
        store = _store(project)
        seen, unreadable = _seen(store, (moment_ns(since), moment_ns(until)), workflow, sample=sample, seed=seed)
        report = store.parity(seen)
        if unreadable:
            report.skipped["their features can no longer be opened"] = unreadable
        refuse_none(report)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({**msgspec.to_builtins(report), "differs": report.differs})
    else:
        _print_parity(report)
    if report.differs:
        raise typer.Exit(PARITY_EXIT)


def _seen(
    store: FeatureStore, span: tuple[int, int], workflow: str | None, *, sample: int, seed: int
) -> tuple[list[Seeing], int]:
    """What a random sample of Calls saw, and how many more could not be read."""
    from drivetrain.adapters.files import FileVault
    from drivetrain.embedded.asking import lake_for
    from drivetrain.features.parity import seeing_of
    from drivetrain.lake.calls import Calls, Wanted

    snapshot = store.snapshot
    wanted = Wanted(since_ns=span[0], until_ns=span[1], workflow=workflow)
    calls = Calls(lake_for(snapshot)).calls(wanted, outcomes=False, payloads=False)
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    kept: list[Any] = []
    for count, call in enumerate((one for one in calls if one.features is not None), start=1):
        # Each Call has the same chance, whatever their number: the n-th takes a place with chance sample/n.
        if len(kept) < sample:
            kept.append(call)
        elif (place := chance.randrange(count)) < sample:
            kept[place] = call
    vault = FileVault(snapshot.keys_folder, payload_days=snapshot.ledger.payload_days)
    seen, unreadable = [], 0
    for call in kept:
        sealed = call.features.sealed
        one = seeing_of(call, vault.open(call.call_id, "features", sealed) if sealed else None)
        if one is None:
            unreadable += 1
        else:
            seen.append(one)
    return seen, unreadable


def _print_parity(report: ParityReport) -> None:
    columns = [
        Column("service", drop=2), Column("feature"), Column("match", right=True), Column("mismatch", right=True),
        Column("missing", right=True), Column("extra", right=True), Column("stale", right=True),
        Column("cause"), Column("for example", drop=1),
    ]  # fmt: skip
    rows = [
        [
            service, one.feature, str(one.match), str(one.mismatch), str(one.missing), str(one.extra), str(one.stale),
            ", ".join(f"{name} {count}" for name, count in one.causes.items()) or "-",
            one.examples[0] if one.examples else "-",
        ]
        for service, features in report.features.items()
        for one in features
    ]  # fmt: skip
    print_table(columns, [[plain(cell) for cell in row] for row in rows])
    verdict = f"{report.differs} values differ" if report.differs else "no value differs"
    typer.echo(f"{report.calls} Calls compared: {verdict}")
    for why, count in report.skipped.items():
        typer.echo(f"{count} Calls not compared: {why}", err=True)


def _remember(store: FeatureStore, path: Path, labels: str, features: str, rows: int) -> None:
    """Records which features and labels a training set is of: a Dataset that is made from the file knows it then."""
    import hashlib

    from drivetrain.adapters.sqlite import open_control_log
    from drivetrain.embedded.applying import person
    from drivetrain.lineage.lineage import Lineage

    snapshot = store.snapshot
    chosen = store.definitions.select(_features(features))
    views: dict[str, Any] = {**store.definitions.views, **store.definitions.on_demand}
    inputs = [f"service:{chosen.name}@{chosen.fingerprint}"] if chosen.name else [
        f"features:{name}@{views[name].fingerprint}" for name in dict.fromkeys(one.view for one in chosen.features)
    ]  # fmt: skip
    if labels.startswith("dataset:"):
        inputs.append(labels)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    whole = path.resolve()
    told = whole.relative_to(snapshot.root).as_posix() if whole.is_relative_to(snapshot.root) else whole.name
    control = open_control_log(snapshot.data_folder, snapshot.keys_folder)
    lineage = Lineage(control, actor=person())
    lineage.made(f"file:{told}@{digest}", inputs=inputs, code_hash=snapshot.hash, facts={"rows": rows})


def _listed(store: FeatureStore) -> list[dict[str, Any]]:
    from drivetrain.features.online import service_layout, view_layout

    def state(tables: list[str]) -> dict[str, Any]:
        found = [one for one in map(store.online.state, tables) if one is not None]
        if not found:
            return {"vectors": None, "as_of": None}
        oldest = min((as_of for one in found for as_of in one.as_of_us), default=0)
        return {"vectors": max(one.vectors for one in found), "as_of": _time(oldest) if oldest else None}

    rows: list[dict[str, Any]] = []
    for view in store.definitions.views.values():
        rows.append(
            {
                "kind": "view", "name": view.name, "keys": ", ".join(view.join_keys), "features": len(view.features),
                "source": view.source.name, "fingerprint": view.fingerprint, **state([view_layout(view).table]),
            }
        )  # fmt: skip
    for function in store.definitions.on_demand.values():
        rows.append(
            {
                "kind": "on demand", "name": function.name, "keys": "", "features": len(function.features),
                "source": ", ".join(dict.fromkeys(one.view for one in function.inputs)),
                "fingerprint": function.fingerprint, "vectors": None, "as_of": None,
            }
        )  # fmt: skip
    for service in store.definitions.services.values():
        tables = [service_layout(service.name, group).table for group in service.groups]
        rows.append(
            {
                "kind": "service", "name": service.name, "keys": ", ".join(key.name for key in service.keys),
                "features": len(service.features), "source": ", ".join(read.view.name for read in service.reads),
                "fingerprint": service.fingerprint, **state(tables),
            }
        )  # fmt: skip
    return rows


def _features(text: str) -> Any:
    return [one.strip() for one in text.split(",")] if ":" in text else text


def _entity(store: FeatureStore, features: str, given: list[str]) -> dict[str, Any]:
    """KEY=VALUE, each as its declared type reads. Raises: DrivetrainError."""
    service = store.definitions.select(_features(features))
    types = {one.name: one.dtype for one in (*service.keys,)} | {one.name: one.dtype for one in service.request}
    entity: dict[str, Any] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals:
            raise DrivetrainError(f"`{plain(one)}` is no KEY=VALUE.", do=f"Give {', '.join(types)}.")
        if name not in types:
            raise DrivetrainError(f"`{plain(name)}` is no key of these features.", do=did_you_mean(name, types))
        dtype = types[name]
        try:
            entity[name] = text if dtype in ("string", "timestamp") else msgspec.json.decode(text)
        except msgspec.MsgspecError:
            raise DrivetrainError(f"`{plain(name)}` is {dtype}, and `{plain(text)}` is none.") from None
    return entity


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a file. Raises: DrivetrainError with the line."""
    try:
        source = sys.stdin.buffer if str(path) == "-" else path.open("rb")
    except OSError as error:
        raise DrivetrainError(f"{path} cannot be read: {error.strerror}.") from None
    with source:
        content = source.read(INPUT_BYTES_MAX + 1)
    if len(content) > INPUT_BYTES_MAX:
        raise DrivetrainError(f"{path} has more than {INPUT_BYTES_MAX} bytes.", do="Declare a `batch_source` for it.")
    number, named = 0, "Standard input" if str(path) == "-" else str(path)
    try:
        if content.lstrip()[:1] == b"[":
            yield from msgspec.json.decode(content, type=list[dict[str, Any]])
            return
        for line in content.splitlines():
            number += 1
            if line.strip():
                yield msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError) as error:
        where = f", line {number}" if number else ""
        raise DrivetrainError(
            f"{named}{where} is no JSON object: {error}.",
            do='Give JSON lines, one object per line as {"column": value}, or one JSON array of objects.',
        ) from None


def _store(project: Path | None) -> FeatureStore:
    from drivetrain.embedded.feature_store import feature_store

    return feature_store(_snapshot(project))


def _snapshot(project: Path | None) -> Snapshot:
    from drivetrain.project import find_root, load

    return load(project or find_root(Path.cwd()))


def _moment(text: str) -> datetime:
    from drivetrain.features.online import EPOCH, US

    return EPOCH + moment_ns(text, time.time_ns()) // 1_000 * US


def _time(us: int | None) -> str:
    return "-" if us is None else iso(us * 1_000)


def _cell(value: Any) -> str:
    text = "-" if value is None else plain(str(value))
    return text if len(text) <= CELL_CHARACTERS else f"{text[: CELL_CHARACTERS - 1]}…"
