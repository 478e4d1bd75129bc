"""`drivetrain backup`, `restore` and `migrate`: a project's stores copied, brought back, brought up to this version."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from drivetrain.cli.ending import fail, print_json
from drivetrain.cli.options import AnyJson, Project
from drivetrain.cli.places import plain
from drivetrain.core.errors import DrivetrainError

if TYPE_CHECKING:
    from drivetrain.backup.generations import GenerationV1
    from drivetrain.backup.restoring import Restored
    from drivetrain.backup.stores import Stores


def backup_command(
    dest: Annotated[Path, typer.Argument(help="Where backups are kept, best on another disk.")],
    *,
    with_keys: Annotated[
        Path | None,
        typer.Option(help="Copy the keys too, to this folder, which is not in DEST."),
    ] = None,
    with_lake: Annotated[
        bool, typer.Option("--with-lake", help="Copy a lake in an object store too, not only note its versions.")
    ] = False,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Afterwards delete all but this many generations in DEST.")
    ] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Only show the generations in DEST.")] = False,
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Copy everything that a project has recorded, while it is served. Only what is new is copied."""
    from drivetrain.backup.copying import back_up
    from drivetrain.backup.generations import Generations
    from drivetrain.backup.keys import back_up_keys

    try:
        to = Generations(dest)
        if list_them:
            _list(to, as_json)
            return
        stores = stores_of(project)
        keys_to = None if with_keys is None else Generations(with_keys, kind="keys")
        if keys_to is not None:
            _refuse_keys_place(keys_to.folder, to.folder, stores)
        for folder in (dest, *([] if with_keys is None else [with_keys])):
            _notice_inside(folder, stores)
        done = back_up(stores, to, with_lake=with_lake, boot=_boot(), project=_project_hash(stores.root))
        if keys_to is not None:
            back_up_keys(stores.keys_folder, keys_to, to)
        deleted: list[int] = []
        if keep is not None:
            with to.writing():
                deleted = to.numbers()[:-keep]
                to.delete(deleted)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        said = {"copied_bytes": done.copied_bytes, "keys": keys_to is not None, "deleted": deleted}
        print_json({**_described(done.generation), **said})
        return
    generation = done.generation
    typer.echo(
        f"generation {generation.number}: {len(generation.files):,} files, {generation.bytes:,} bytes, of which "
        f"{done.copied_bytes:,} were new"
    )
    if not generation.lake.copied:
        typer.echo(f"the lake at {generation.lake.url} is noted, not copied; --with-lake copies it")
    if keys_to is None:
        typer.echo("the keys are not part of it; --with-keys copies them to another folder")
    if deleted:
        typer.echo(f"deleted: generation{'s' if len(deleted) > 1 else ''} {', '.join(map(str, deleted))}")


def restore_command(
    src: Annotated[Path, typer.Argument(help="Where backups are kept.")],
    *,
    generation: Annotated[int | None, typer.Option(help="Which one; by default the newest.")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Where keys were copied to; by default those that the project has.")
    ] = None,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Go on where the keys are lost: payloads stay sealed.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Move aside what is there; nothing is deleted.")] = False,
    same: Annotated[
        bool, typer.Option("--same", help="With a lake in an object store: go on under the ledger's former id.")
    ] = False,
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Bring back a project's stores as they were. The project's own files come from its repository."""
    from drivetrain.backup.generations import Generations
    from drivetrain.backup.restoring import restore

    try:
        stores = stores_of(project)
        done = restore(
            stores,
            Generations(src),
            generation,
            keys=None if keys is None else Generations(keys, kind="keys"),
            without_keys=without_keys,
            replace=replace,
            same=same,
            settle_open=settle_open,
        )
        if not without_keys:
            _note(stores, done)
        differs = done.generation.project not in ("", _project_hash(stores.root))
    except DrivetrainError as error:
        fail(error)
    if as_json:
        import msgspec

        more = {"aside": done.aside, "cut": done.cut, "forgotten": done.forgotten, "erasures": done.erasures}
        print_json({**_described(done.generation), **more, "rejoined": msgspec.to_builtins(done.rejoined)})
        return
    _say(done)
    if differs:
        typer.echo("the project's own files are not those of that moment; take them from its repository", err=True)


def migrate_command(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    project: Project = None,
    as_json: AnyJson = False,
) -> None:
    """Bring stores that an earlier version wrote up to this one. Harmless where nothing is to be done."""
    from drivetrain.backup.migrating import migrate
    from drivetrain.embedded.upkeep import Upkeep

    def roll() -> str:
        done = Upkeep(project).roller().roll()
        if done.elsewhere:
            raise DrivetrainError("Another process is rolling records just now.", do="Run it again in a minute.")
        return f"{done.calls:,} Calls and {done.outcomes:,} Outcomes"

    try:
        steps = migrate(stores_of(project).data_folder, roll=roll, dry_run=dry_run)
    except DrivetrainError as error:
        fail(error)
    if as_json:
        print_json({"dry_run": dry_run, "steps": [{"what": one.what, "detail": one.detail} for one in steps]})
        return
    for step in steps:
        typer.echo(f"{'would ' if dry_run else ''}{step.what}: {step.detail}")
    if not steps:
        typer.echo("nothing to do")


# Wiring.


def stores_of(project: Path | None) -> Stores:
    """The stores of the project in or above a folder, by its settings alone. Raises: DrivetrainError."""
    from drivetrain.backup.stores import LakeStores, Stores
    from drivetrain.embedded.asking import lake_stores, settings_of
    from drivetrain.project.files import find_root

    root = find_root(project or Path.cwd())
    settings = settings_of(root)
    # Where a link leads: a folder that is put in its place stands on the same disk.
    data_folder = (root / settings.ledger.folder).resolve()
    place = lake_stores(root, data_folder, settings.lake)
    url = settings.lake.url
    return Stores(
        root=root,
        data_folder=data_folder,
        keys_folder=(root / settings.ledger.keys_folder).resolve(),
        snapshots_folder=root / ".drivetrain" / "snapshots",
        lake=LakeStores(url=url, tables=place.tables, raw=place.raw, files=place.objects, local=(place.copies,)),
        lake_folder=place.folder,
    )


def settle_open(data_folder: Path, boot: str) -> int:
    """Resolve what workers that are gone had reserved, from the records beside; how many Calls were cut.

    boot: of the machine that wrote them: within one, records tell exactly what was spent. Raises: DrivetrainError.
    """
    from drivetrain.adapters.sqlite_counters import SqliteCounters
    from drivetrain.embedded.limiting import limits_folder
    from drivetrain.ledger.frames import records_of
    from drivetrain.limits.recovery import bury_dead
    from drivetrain.ports.counters import StoreUnavailable

    folder = limits_folder(data_folder)
    if not (folder / "counters.db").exists():
        return 0

    try:
        store = SqliteCounters(folder, boot=boot or None)
        try:
            return sum(len(one.interrupted) for one in bury_dead(store, partial(records_of, data_folder)))
        finally:
            store.close()
    except StoreUnavailable as error:
        raise DrivetrainError(
            f"What was reserved in budgets cannot be resolved: {error}.", looked=[str(folder)], do="Look at the disk."
        ) from error


def _note(stores: Stores, done: Restored) -> None:
    """The control log says that it was brought back, so that a gap in it is explained."""
    from drivetrain.adapters.sqlite import open_control_log
    from drivetrain.core.times import iso
    from drivetrain.embedded.applying import person

    generation = done.generation
    if generation.control < 0:
        return
    body = {
        "moment": iso(generation.moment_ns),
        "records": generation.control,
        "head": generation.head,
        "aside": done.aside,
    }
    log = open_control_log(stores.data_folder, stores.keys_folder)
    log.append(kind="restored", actor=person(), subject=f"generation {generation.number}", body=body)


def _refuse_keys_place(keys: Path, data: Path, stores: Stores) -> None:
    """Before anything is copied. Raises: DrivetrainError."""
    from drivetrain.backup.copying import refuse_inside
    from drivetrain.backup.keys import refuse_together

    refuse_together(keys, data)
    refuse_inside(keys, stores)


def _notice_inside(folder: Path, stores: Stores) -> None:
    """Who keeps a backup in the project's own folder is told what may become of it."""
    inside = folder.resolve()
    if stores.root.resolve() in inside.parents:
        line = f"{inside.relative_to(stores.root.resolve()).parts[0]}/"
        typer.echo(
            f"{plain(str(folder))} lies in the project's folder: it is lost with it, and may be committed with it. A "
            f"folder on another disk is better; here, have the line `{plain(line)}` in .gitignore",
            err=True,
        )


def _boot() -> str:
    """Names this start of the machine; empty where the system does not say."""
    from drivetrain.adapters.sqlite_counters import BOOT_FILE

    try:
        return BOOT_FILE.read_text().strip()
    except OSError:
        return ""


def _project_hash(root: Path) -> str:
    """Of the project's own files; empty where they have mistakes."""
    from drivetrain.project.load import content_hash

    try:
        return content_hash(root)
    except (DrivetrainError, OSError):
        return ""


# What is said.


def _list(to: Any, as_json: bool) -> None:
    from drivetrain.cli.tables import Column, print_table
    from drivetrain.core.times import iso

    found: Iterable[GenerationV1] = [to.read(number) for number in to.numbers()]
    if as_json:
        for one in found:
            print_json(_described(one))
        return
    rows = [
        (f"{one.number}", iso(one.moment_ns), f"{len(one.files):,}", f"{one.bytes:,}", _lake_word(one), one.version)
        for one in found
    ]
    columns = [Column("generation", right=True), Column("moment"), Column("files", right=True)]
    print_table([*columns, Column("bytes", right=True), Column("lake"), Column("version", drop=1)], rows)


def _lake_word(one: GenerationV1) -> str:
    return "copied" if one.lake.copied else f"noted: {one.lake.url}"


def _described(one: GenerationV1) -> dict[str, Any]:
    from drivetrain.core.times import iso

    return {
        "generation": one.number,
        "moment": iso(one.moment_ns),
        "version": one.version,
        "files": len(one.files),
        "bytes": one.bytes,
        "ledger": one.ledger,
        "roll": one.roll,
        "project": one.project,
        "lake": {
            "url": one.lake.url,
            "copied": one.lake.copied,
            "tables": {table.name: table.version for table in one.lake.tables},
        },
    }


def _say(done: Restored) -> None:
    from drivetrain.core.times import iso

    generation = done.generation
    typer.echo(f"generation {generation.number} is restored: everything as of {iso(generation.moment_ns)}")
    if done.cut:
        typer.echo(f"{done.cut:,} Calls ran at that moment; they count as interrupted, at what was reserved for them")
    if done.forgotten:
        typer.echo(f"{done.forgotten:,} subjects were forgotten since, and stay so")
    if done.erasures:
        typer.echo(f"{done.erasures:,} erasures were made since; make them again: `drivetrain erase --subject ID`")
    if done.rejoined is not None and done.rejoined.went_on:
        typer.echo(
            f"the lake went on since: it has {done.rejoined.calls_known:,} of the restored Calls already; "
            f"{done.rejoined.calls_kept:,} others are rolled next"
        )
    for path in done.aside:
        typer.echo(f"what was there is now in {path}")
