"""Restore: a generation becomes a project's stores again, whole or not at all.

Owns the order of events. Every hash is looked at before anything is written. The new folders are made beside the old
ones; only when they are complete are the old ones moved aside and the new ones moved to their place. Nothing is ever
deleted: what was there is found beside it, under a name that says when it was moved.

A restored ledger writes under new names, since every writer makes up its own, and goes on with the rolls where the
generation's lake stands. Where the lake stands elsewhere and lived on, `rejoining` finds out what of the segments it
has already. Called by the command line.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from drivetrain.backup import layout
from drivetrain.backup.databases import count_after
from drivetrain.backup.generations import FileV1, Generations, GenerationV1
from drivetrain.backup.keys import ANCHOR, fingerprints, merge_forgotten
from drivetrain.backup.rejoining import Rejoined, rejoin
from drivetrain.backup.stores import Stores
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.times import NS_PER_S
from drivetrain.lake import plans
from drivetrain.ledger.frames import segments
from drivetrain.ports.control import CONTROL_FILE
from drivetrain.ports.disk import sync_folder, write_whole

SPARE_BYTES = 64 * 1024 * 1024
"""Left free on the disk that is restored to."""
COPIES = ("cache", "lake-mirror", "run")
"""Folders below the data folder whose content says nothing that does not stand elsewhere."""
HIDDEN = (".restoring-", ".before-restore-")
"""How folders begin that a restore makes inside of a mounted disk."""
ERASED = "erase"
"""Kind of the control log's records of erasures."""
SettleOpen = Callable[[Path, str], int]
"""(data folder, boot) -> resolves what workers that are gone had reserved; how many Calls were cut."""


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What one restore did."""

    generation: GenerationV1
    aside: tuple[str, ...] = ()
    """Where what was there before is now."""
    cut: int = 0
    """Calls that ran at the generation's moment: interrupted, and charged at what was reserved for them."""
    forgotten: int = 0
    """Subjects that were forgotten since, and stay so."""
    erasures: int = 0
    """Made since, as the control log that was moved aside tells; they are undone by this, and to be made again."""
    rejoined: Rejoined | None = None
    """Where the lake is not this generation's own copy."""


def restore(
    stores: Stores,
    source: Generations,
    number: int | None = None,
    *,
    keys: Generations | None = None,
    without_keys: bool = False,
    replace: bool = False,
    same: bool = False,
    settle_open: SettleOpen,
    now_ns: Callable[[], int] = time.time_ns,
) -> Restored:
    """The stores as they were at a generation's moment; None: of the newest.

    keys: where keys were copied to; None: those that are in the keys folder. without_keys: go on where they are missing
    or others, so that payloads cannot be read and the control log not be proved. replace: move aside what is there.
    same: the ledger keeps its id in a lake that stands elsewhere. Raises: DrivetrainError; until the last step nothing
    is changed.
    """
    generation = source.read(number)
    key_files = () if keys is None else keys.read().files
    if generation.layout > layout.LAYOUT:
        raise DrivetrainError(
            f"Generation {generation.number} has layout {generation.layout}, written by drivetrain "
            f"{generation.version}; this version knows layouts up to {layout.LAYOUT}.",
            do="Use that version, or upgrade this one.",
        )
    _check_places(stores, generation, replace, with_keys=keys is not None)
    _check_keys(stores, generation, keys, without_keys)
    for file in generation.files:
        source.verify(file)
    for file in key_files:
        assert keys is not None
        keys.verify(file)
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ns() // NS_PER_S))
    made = _Made(stores, source, generation, stamp)
    try:
        return _put(made, keys, key_files, same, settle_open)
    except OSError as error:
        raise DrivetrainError(
            f"{error.filename or stores.data_folder} cannot be written: {error.strerror or error}.",
            looked=[str(stores.data_folder)],
            do="Nothing that was there is lost. Look at the disk and at who may write there, and run it again.",
        ) from error
    finally:
        made.clean()


def _put(
    made: _Made, keys: Generations | None, key_files: tuple[FileV1, ...], same: bool, settle_open: SettleOpen
) -> Restored:
    stores, generation = made.stores, made.generation
    made.need_space()
    data = made.folder(stores.data_folder, "data/")
    if generation.layout:
        layout.write_layout(data)
    if generation.lake.copied and stores.lake_folder is not None:
        inside = stores.data_folder in stores.lake_folder.parents
        made.folder(
            data / stores.lake_folder.relative_to(stores.data_folder) if inside else stores.lake_folder, "lake/"
        )
    cut = settle_open(data, generation.boot)
    rejoined = None
    if stores.lake_folder is None:
        if generation.lake.copied:
            made.upload()
        else:
            rejoined = rejoin(data, stores.lake, generation, same=same)
    key_folder = None
    if keys is not None:
        key_folder = made.folder(stores.keys_folder, "keys/", keys, key_files)
        key_folder.chmod(0o700)
    forgotten = merge_forgotten(stores.keys_folder, key_folder) if key_folder is not None else 0
    erasures = _erasures_since(stores.data_folder / CONTROL_FILE, generation)
    made.snapshots()
    made.sync()
    aside = made.swap()
    anchor = next((one for one in generation.files if one.path == f"anchor/{ANCHOR}"), None)
    if anchor is not None and stores.keys_folder.is_dir():
        aside += _put_anchor(made, anchor)
    return Restored(
        generation=generation,
        aside=tuple(aside),
        cut=cut,
        forgotten=forgotten,
        erasures=erasures,
        rejoined=rejoined,
    )


def _erasures_since(log: Path, generation: GenerationV1) -> int:
    """0 where nobody can tell: the log is gone, or cannot be read, which may be why something is restored."""
    try:
        return count_after(log, generation.control, ERASED) if log.exists() else 0
    except DrivetrainError:
        return 0


class _Made:
    """New folders beside those whose place they will take."""

    def __init__(self, stores: Stores, source: Generations, generation: GenerationV1, stamp: str) -> None:
        self.stores = stores
        self.source = source
        self.generation = generation
        self.stamp = stamp
        self._token = secrets.token_hex(4)
        self._places: list[tuple[Path, Path]] = []
        """(made, its place), in the order in which they are moved."""

    def need_space(self) -> None:
        size = sum(one.size for one in self.generation.files)
        place = self.stores.data_folder
        parent = place if place.is_mount() else place.parent
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
        if free < size + SPARE_BYTES:
            raise DrivetrainError(
                f"{parent} has {free:,} bytes free; this generation takes {size + SPARE_BYTES:,}.",
                do="Free space there. Nothing was changed.",
            )

    def folder(
        self, place: Path, prefix: str, source: Generations | None = None, files: tuple[FileV1, ...] | None = None
    ) -> Path:
        """The files of the generation whose paths begin so, in a new folder."""
        inside = any(made in place.parents for made, _ in self._places)
        made = place if inside else _beside(place, f"restoring-{self._token}")
        made.mkdir(parents=True, exist_ok=inside, mode=0o700)
        if not inside:
            self._places.append((made, place))
        for file in self.generation.files if files is None else files:
            if file.path.startswith(prefix):
                self._copy(source or self.source, file, made / file.path.removeprefix(prefix))
        return made

    def snapshots(self) -> None:
        """Those that are missing; one that is there has the same content, as its name is its hash."""
        place = self.stores.snapshots_folder
        there = {one.name for one in place.iterdir()} if place.is_dir() else set()
        drafts: dict[str, Path] = {}
        for file in self.generation.files:
            kind, _, path = file.path.partition("/")
            name, _, rest = path.partition("/")
            if kind == "snapshots" and name not in there:
                draft = drafts.setdefault(name, place / f".draft-{self._token}-{name}")
                self._copy(self.source, file, draft / rest)
        for name, draft in drafts.items():
            draft.rename(place / name)

    def upload(self) -> None:
        """The lake's files to the object store, logs last, so that no table is seen before its files are there."""
        lake = self.stores.lake
        files = [one for one in self.generation.files if one.path.startswith("lake/")]
        for file in sorted(files, key=lambda one: ("/_delta_log/" in one.path, one.path)):
            _, kind, path = file.path.split("/", 2)
            (lake.raw if kind == "tables" else lake.files).put_file(path, self.source.content(file))

    def sync(self) -> None:
        for made, _ in self._places:
            for folder, _names, _files in os.walk(made):
                sync_folder(Path(folder))

    def swap(self) -> list[str]:
        """Move what is there aside, and what was made to its place."""
        aside = []
        for made, place in self._places:
            if place.is_mount():
                aside += _swap_content(made, place, _free(place, self.stamp))
                continue
            if place.exists():
                old = _free(place, self.stamp)
                place.rename(old)
                aside.append(str(old))
            made.rename(place)
            sync_folder(place.parent)
        self._places.clear()
        return aside

    def clean(self) -> None:
        """What was made and not moved to its place goes."""
        for made, _ in self._places:
            shutil.rmtree(made, ignore_errors=True)
        for draft in self.stores.snapshots_folder.glob(f".draft-{self._token}-*"):
            shutil.rmtree(draft, ignore_errors=True)

    def _copy(self, source: Generations, file: FileV1, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with source.content(file).open("rb") as read, target.open("xb") as write:
            os.fchmod(write.fileno(), 0o600)
            shutil.copyfileobj(read, write, 1024 * 1024)
            write.flush()
            os.fsync(write.fileno())


def _check_places(stores: Stores, generation: GenerationV1, replace: bool, *, with_keys: bool) -> None:
    data = stores.data_folder
    writers = sorted({one.writer for one in segments(data) if one.live})
    if writers:
        raise DrivetrainError(
            f"{len(writers)} processes write to this project's ledger: {', '.join(f'`{one}`' for one in writers[:5])}.",
            looked=[str(data)],
            do="Stop its gateway and whatever else uses it, then run it again.",
        )
    if plans.plans_folder(data).is_dir():
        with plans.locked(data) as is_quiet:
            if not is_quiet:
                raise DrivetrainError(
                    "Records of this project are being rolled into its lake.", do="Run it again when that has ended."
                )
    folders = {"data folder": data}
    if generation.lake.copied and stores.lake_folder is not None and data not in stores.lake_folder.parents:
        folders["lake's folder"] = stores.lake_folder
    if with_keys:
        folders["keys folder"] = stores.keys_folder
    full = {name: str(folder) for name, folder in folders.items() if _holds_data(folder)}
    if full and not replace:
        raise DrivetrainError(
            f"There is data in the project's {' and its '.join(full)}.",
            looked=list(full.values()),
            do="Restore into a project without data, or add `--replace`: what is there is then moved aside.",
        )
    if generation.lake.copied:
        if stores.lake_folder is None and stores.lake.tables.tables():
            raise DrivetrainError(
                f"The lake at {stores.lake.url} holds tables, and this generation has a copy of its own.",
                do="Name an empty prefix by `url` under [lake], or restore a generation that only notes the lake.",
            )
    elif generation.lake.tables and (stores.lake_folder is not None or stores.lake.url != generation.lake.url):
        raise DrivetrainError(
            f"This generation only notes its lake, which stands at {generation.lake.url}.",
            looked=[stores.lake.url or "the data folder"],
            do="Name that address by `url` under [lake]; `drivetrain backup --with-lake` copies a lake too.",
        )


def _check_keys(stores: Stores, generation: GenerationV1, keys: Generations | None, without_keys: bool) -> None:
    there = fingerprints(stores.keys_folder) if keys is None else keys.read().keys
    wrong = sorted(name for name, known in generation.keys.items() if there.get(name) != known)
    if wrong and not without_keys:
        place = f"the keys folder {stores.keys_folder}" if keys is None else f"the copied keys in {keys.folder}"
        raise DrivetrainError(
            f"The keys that generation {generation.number} was made with are missing, or are others: "
            f"{', '.join(wrong)}.",
            looked=[place],
            do="Name the folder that `--with-keys` wrote to by `--keys`, or add `--without-keys`: payloads then cannot "
            "be read, issued keys not be used, and the control log not be proved.",
        )


def _put_anchor(made: _Made, anchor: FileV1) -> list[str]:
    """The control log ends where it did then; what was anchored since is kept beside it."""
    place = made.stores.keys_folder / ANCHOR
    content = made.source.content(anchor).read_bytes()
    aside = []
    if place.exists() and place.read_bytes() != content:
        old = _free(place, made.stamp)
        place.rename(old)
        aside.append(str(old))
    write_whole(place, content)
    return aside


def _holds_data(folder: Path) -> bool:
    """Whether there is any file, but for hidden ones, copies, and the one that every data folder begins with."""
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        if path.is_file() and not hidden and parts != (layout.NAME,) and parts[0] not in COPIES:
            return True
    return False


def _swap_content(made: Path, place: Path, old: Path) -> list[str]:
    """As a move of the folders themselves, entry by entry, since a mounted disk cannot be moved."""
    moved = [one for one in place.iterdir() if not one.name.startswith(HIDDEN)]
    if moved:
        old.mkdir(mode=0o700)
    for one in moved:
        one.rename(old / one.name)
    for one in list(made.iterdir()):
        one.rename(place / one.name)
    made.rmdir()
    sync_folder(place)
    return [str(old)] if moved else []


def _free(place: Path, stamp: str) -> Path:
    """A name beside it that nothing has."""
    found = _beside(place, f"before-restore-{stamp}")
    count = 1
    while found.exists():
        count += 1
        found = _beside(place, f"before-restore-{stamp}-{count}")
    return found


def _beside(place: Path, word: str) -> Path:
    """On the same disk: of a disk's own mount point that is inside of it, where no store looks."""
    return place / f".{word}" if place.is_mount() else place.with_name(f"{place.name}.{word}")
