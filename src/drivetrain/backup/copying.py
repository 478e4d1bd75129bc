"""A backup: every store of a project copied while it is used, as of one moment, as a new generation.

Owns the order of events. Databases come first, since segments say how what they left open has ended; then the lake's
tables are fixed at a version each, with the plan that belongs to it; then the segments are cut at a size, and that is
the generation's moment: each Call stands in the lake or beyond the plan in a segment, never in both. Nothing is deleted
meanwhile, as far as this machine can say; what vanishes all the same is looked for anew. The manifest comes last.

Called by the command line. What is copied is told by `stores`; how it lies in the backup, by `generations`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec

from drivetrain.backup import layout
from drivetrain.backup.databases import copy_database, last_record
from drivetrain.backup.generations import FileV1, Generations, GenerationV1, LakeV1
from drivetrain.backup.keys import anchor_of, fingerprints
from drivetrain.backup.stores import DATABASES, ONLINE, Stores, snapshot_files
from drivetrain.backup.tables import FixedTable, Vanished, fixed_tables
from drivetrain.core.errors import DrivetrainError
from drivetrain.lake import plans
from drivetrain.lake.holding import held
from drivetrain.lake.plans import Ledger, PlanGone
from drivetrain.lake.roller import TABLES
from drivetrain.ledger.frames import Segment, calls_folder, segments
from drivetrain.ports.control import CONTROL_FILE
from drivetrain.project.pins import models_folder
from drivetrain.registry.workplaces import Workplaces
from drivetrain.version import VERSION

TRIES_MAX = 5
"""How often lake and segments are fixed anew because files vanished, by an erasure or another machine's upkeep."""
ONLINE_TRIES_MAX = 20
"""Of one table of vectors, which a busy project may replace again and again."""
SQLITE_HEAD = b"SQLite format 3\0"
NOT_COPIED = (
    "cache",
    "calls",
    "lake",
    "lake-mirror",
    "lake-plans",
    "run",
    "tmp",
    ONLINE,
    "limits/workers",
    "idempotency/workers",
)
"""Folders below the data folder that are copied by their own rules, or made anew by whoever needs them."""
_NOT_SUFFIXES = (".lock", "-wal", "-shm", "-journal", ".new")


class BackedUp(msgspec.Struct, frozen=True, kw_only=True):
    """What one backup did."""

    generation: GenerationV1
    copied_bytes: int
    """The rest was there from earlier generations."""
    tries: int = 1


def back_up(
    stores: Stores,
    to: Generations,
    *,
    with_lake: bool = False,
    boot: str = "",
    project: str = "",
    now_ns: Callable[[], int] = time.time_ns,
) -> BackedUp:
    """A new generation in `to`. with_lake: of a lake in an object store its files too, not only their versions.

    boot: names this start of the machine. project: hash of the project's own files. Costs reading what is new; memory
    does not grow with the stores but for the list of their files. Raises: DrivetrainError; then there is no new one.
    """
    refuse_inside(to.folder, stores)
    state = layout.read_layout(stores.data_folder)
    if not stores.data_folder.is_dir():
        raise DrivetrainError(
            "This project has no data to back up.", looked=[str(stores.data_folder)], do="Serve it, or call a workflow."
        )
    copied = with_lake or not stores.lake.is_remote
    try:
        with to.writing(), held(stores.data_folder):
            copy = _Copy(stores, to, lake_copied=copied, boot=boot, project=project, state=state, now_ns=now_ns)
            return copy.made()
    except OSError as error:
        raise DrivetrainError(
            f"The backup could not read {error.filename or stores.data_folder}: {error.strerror or error}.",
            do="Look at who may read there. No generation was made.",
        ) from error


def refuse_inside(folder: Path, stores: Stores) -> None:
    """Raises: DrivetrainError where a backup would stand among what it is a copy of."""
    inside = folder.resolve()
    for store in (stores.data_folder, stores.keys_folder, stores.snapshots_folder, stores.lake_folder):
        if store is not None and (inside == store.resolve() or store.resolve() in inside.parents):
            raise DrivetrainError(
                f"{folder} lies in {store}, which is to be copied.", do="Choose a folder elsewhere, on another disk."
            )


class _Copy:
    """One generation while it is made."""

    def __init__(
        self,
        stores: Stores,
        to: Generations,
        *,
        lake_copied: bool,
        boot: str,
        project: str,
        state: int,
        now_ns: Callable[[], int],
    ) -> None:
        self._stores = stores
        self._to = to
        self._lake_copied = lake_copied
        self._now_ns = now_ns
        self._began_ns = now_ns()
        self._boot = boot
        self._project = project
        self._layout = state
        self._numbers = to.numbers()
        self._before = {one.path: one for one in to.read().files} if self._numbers else {}
        self._control = (-1, "")

    def made(self) -> BackedUp:
        data = self._stores.data_folder
        anchor = anchor_of(self._stores.keys_folder)
        self._to.need_space(self._size())
        with self._registry_at_rest():
            files = list(self._databases())
            if anchor is not None:
                # Read before the log was copied, so that what it names is there.
                files.append(self._to.add_bytes("anchor/control.anchor", anchor))
            files += self._online()
            files += self._others()
        tries = 0
        while True:
            tries += 1
            try:
                ledger, tables, plan_files, found, moment_ns = self._fixed()
                lake = [*plan_files, *self._segments(found), *self._lake(tables)]
                if ledger is not None and not set(plans.numbers(data)) >= {_number(one) for one in plan_files[1:]}:
                    raise Vanished("a plan")
                break
            except (Vanished, PlanGone, FileNotFoundError, EOFError) as error:
                if tries < TRIES_MAX:
                    continue
                raise DrivetrainError(
                    f"Files vanished {TRIES_MAX} times while they were copied, last: {error}.",
                    looked=[str(calls_folder(data)), self._stores.lake.url or str(data / "lake")],
                    do="An erasure, or another machine's upkeep of the lake, is at work: try again when it has ended.",
                ) from None
        files += lake
        files += self._snapshots()
        generation = GenerationV1(
            number=max(self._numbers, default=0) + 1,
            version=VERSION,
            layout=self._layout,
            began_ns=self._began_ns,
            moment_ns=moment_ns,
            ended_ns=self._now_ns(),
            project=self._project,
            root=str(self._stores.root),
            ledger="" if ledger is None else ledger.id,
            roll=max((one.roll for one in tables), default=0),
            boot=self._boot,
            control=self._control[0],
            head=self._control[1],
            keys=fingerprints(self._stores.keys_folder),
            lake=LakeV1(
                url=self._stores.lake.url,
                copied=self._lake_copied,
                tables=tuple(one.noted(self._lake_copied) for one in tables),
            ),
            files=tuple(sorted(files, key=lambda one: one.path)),
        )
        self._to.publish(generation)
        return BackedUp(generation=generation, copied_bytes=self._to.written_bytes, tries=tries)

    def _registry_at_rest(self) -> AbstractContextManager[None]:
        """No version is registered and no alias moved: the control log and the models' files tell the same."""
        data = self._stores.data_folder
        return Workplaces(data / "tmp").locked() if models_folder(data).is_dir() else nullcontext()

    def _databases(self) -> Iterator[FileV1]:
        for name in DATABASES:
            source = self._stores.data_folder / name
            if source.exists():
                yield self._database(source, name)

    def _database(self, source: Path, name: str) -> FileV1:
        def make(half: Path) -> None:
            copy_database(source, half)
            if name == CONTROL_FILE:
                self._control = last_record(half)

        return self._to.add_made(f"data/{name}", make)

    def _online(self) -> Iterator[FileV1]:
        folder = self._stores.data_folder / ONLINE
        for table in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (table / "current").exists():
                yield from self._vectors(table)

    def _vectors(self, table: Path) -> list[FileV1]:
        """One table of vectors: what `current` names, opened before anybody can replace it."""
        for _ in range(ONLINE_TRIES_MAX):
            try:
                current = (table / "current").read_bytes()
                names = msgspec.json.decode(current, type=dict[str, str])
                sources = [(table / name).open("rb") for name in names.values()]
            except FileNotFoundError:
                if not (table / "current").exists():
                    return []  # dropped meanwhile
                continue
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise DrivetrainError(
                    f"{table / 'current'} is damaged: {error}.", do="Run `drivetrain features materialize`."
                ) from None
            place = f"data/{ONLINE}/{table.name}"
            found = [self._to.add_bytes(f"{place}/current", current)]
            for name, source in zip(names.values(), sources, strict=True):
                with source:
                    size = os.fstat(source.fileno()).st_size
                    is_fixed = name.endswith(".vectors")
                    known = self._known(f"{place}/{name}", size) if is_fixed else None
                    found.append(known or self._to.add(f"{place}/{name}", source, size, immutable=is_fixed))
            return found
        raise DrivetrainError(f"{table} is replaced faster than it can be copied.", do="Try again a little later.")

    def _others(self) -> Iterator[FileV1]:
        """What else stands in the data folder: stores of later rooms are not forgotten."""
        for source in _other_files(self._stores.data_folder):
            name = source.relative_to(self._stores.data_folder).as_posix()
            try:
                with source.open("rb") as file:
                    head = file.read(len(SQLITE_HEAD))
                if head == SQLITE_HEAD:
                    yield self._database(source, name)
                    continue
                with source.open("rb") as file:
                    yield self._to.add(f"data/{name}", file)
            except FileNotFoundError:
                continue

    def _fixed(self) -> tuple[Ledger | None, list[FixedTable], list[FileV1], list[Segment], int]:
        """Tables, the plans that they stand at, and segments, such that each Call is in one of both."""
        data = self._stores.data_folder
        ledger = plans.ledger_of(data)
        tables = fixed_tables(self._stores.lake, ledger, copied=self._lake_copied)
        plan_files: list[FileV1] = []
        if ledger is not None:
            reached = [next((one.roll for one in tables if one.name == name), 0) for name in TABLES]
            plan_files.append(self._to.add_bytes("data/lake-plans/ledger", ledger.id.encode()))
            for number in range(min(reached), max(reached) + 1):
                plan = plans.read_plan(data, number)
                plan_files.append(self._to.add_bytes(f"data/lake-plans/{number}", msgspec.json.encode(plan)))
        found = segments(data)
        moment_ns = self._now_ns()
        if ledger is None and plans.ledger_of(data) is not None:
            raise Vanished("the first roll came between")
        return ledger, tables, plan_files, found, moment_ns

    def _segments(self, found: list[Segment]) -> Iterator[FileV1]:
        for segment in found:
            path = f"data/calls/{segment.name}"
            known = None if segment.live else self._known(path, segment.size)
            if known is None:
                with segment.path.open("rb") as source:
                    known = self._to.add(path, source, segment.size, immutable=not segment.live)
            yield self._seen(known)

    def _lake(self, tables: list[FixedTable]) -> Iterator[FileV1]:
        if not self._lake_copied:
            return
        raw, files = self._stores.lake.raw, self._stores.lake.files
        for table in tables:
            for path, place in table.files:
                size = place.stat().st_size
                known = self._known(f"lake/tables/{path}", size)
                if known is None:
                    with place.open("rb") as source:
                        known = self._to.add(f"lake/tables/{path}", source, size, immutable=True)
                yield self._seen(known)
            for path in table.log:
                content = raw.get(path)
                if content is None:
                    raise Vanished(path)
                yield self._to.add_bytes(f"lake/tables/{path}", content)
        for path in files.list(""):
            local = files.local(path)
            if local is None:
                raise Vanished(path)
            # Named by a token that is never used again; manifests may be written anew by an erasure.
            is_fixed = path.endswith(".parquet")
            size = local.stat().st_size
            known = self._known(f"lake/files/{path}", size) if is_fixed else None
            if known is None:
                with local.open("rb") as source:
                    known = self._to.add(f"lake/files/{path}", source, size, immutable=is_fixed)
            yield self._seen(known)

    def _snapshots(self) -> Iterator[FileV1]:
        for path, place in snapshot_files(self._stores.snapshots_folder):
            known = self._known(f"snapshots/{path}", place.stat().st_size)
            if known is None:
                with place.open("rb") as source:
                    known = self._to.add(f"snapshots/{path}", source, immutable=True)
            yield known

    def _known(self, path: str, size: int) -> FileV1 | None:
        return self._to.known(path, size, self._before)

    def _seen(self, file: FileV1) -> FileV1:
        """Where the next try need not copy it again."""
        self._before[file.path] = file
        return file

    def _size(self) -> int:
        """What may have to be written, at most."""
        data = self._stores.data_folder
        size = 0
        for name in DATABASES:
            for suffix in ("", "-wal"):
                size += _size_of(data / f"{name}{suffix}")
        size += sum(_size_of(path) for path in _other_files(data))
        for path in (data / ONLINE).rglob("*"):
            size += self._new(f"data/{path.relative_to(data).as_posix()}", _size_of(path))
        for segment in segments(data):
            size += self._new(f"data/calls/{segment.name}", segment.size)
        if self._lake_copied and not self._stores.lake.is_remote:
            for base in self._stores.lake.local:
                for path in base.rglob("*"):
                    size += self._new(f"lake/tables/{path.relative_to(base).as_posix()}", _size_of(path))
            for name in self._stores.lake.files.list(""):
                local = self._stores.lake.files.local(name)
                size += 0 if local is None else self._new(f"lake/files/{name}", _size_of(local))
        elif self._lake_copied:
            infos = [self._stores.lake.tables.info(name) for name in self._stores.lake.tables.tables()]
            size += sum(info.size_bytes for info in infos if info is not None)
        for name, place in snapshot_files(self._stores.snapshots_folder):
            size += self._new(f"snapshots/{name}", _size_of(place))
        return size

    def _new(self, path: str, size: int) -> int:
        return 0 if self._known(path, size) is not None else size


def _number(file: FileV1) -> int:
    return int(file.path.rpartition("/")[2])


def _other_files(data_folder: Path) -> Iterator[Path]:
    known = {*DATABASES, layout.NAME}
    for folder, names, files in os.walk(data_folder):
        below = Path(folder).relative_to(data_folder)
        names[:] = sorted(name for name in names if (below / name).as_posix() not in NOT_COPIED and name[0] != ".")
        for name in sorted(files):
            path = below / name
            if path.as_posix() not in known and name[0] != "." and not name.endswith(_NOT_SUFFIXES):
                whole = data_folder / path
                if whole.is_file() and not whole.is_symlink():
                    yield whole


def _size_of(path: Path) -> int:
    try:
        seen = path.lstat()
    except FileNotFoundError:
        return 0
    return seen.st_size if path.is_file() else 0
