"""Online features in memory-mapped files: a read is a few lookups, without any database.

Owns one folder per table. Gateway workers and the embedded runner read; materialization and pushes write, one process
at a time by `flock`. A table's folder holds:

    current          what holds now, as JSON: names of the two files below. Replaced by rename, so that `kill -9` leaves
                     the old or the new. Readers look at each read whether it is another file.
    N.vectors        immutable: magic | blank vector | (key, vector) ... | index | footer as msgpack | sizes, CRC, magic
    N.pushed         appended: frames of length, CRC and rows as msgpack; one `write` per push, so all rows or none
    lock             held by whoever writes

The index is a table of offsets with open addressing, hashed by CRC-32 and compared by whole keys; where somebody chose
keys that collide it is built with a keyed hash instead. A replaced file is unlinked; readers that have it mapped keep
it until they look again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import shutil
import struct
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import msgspec

from drivetrain.adapters.online_vectors import VectorFormat, check_rows, foreign, no_name, patch_columns, same_parts
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.disk import HALF_WRITTEN, write_whole
from drivetrain.ports.locks import locked
from drivetrain.ports.online import NAME, Layout, PartRow, Pushed, TableState, Vectors, newer, patched

MAGIC = b"\xc1DTVEC01"
"""0xC1 begins no key, so that offset 0 never looks like one."""
END = struct.Struct("=QII8s")
FRAME = struct.Struct("=II")
PROBES_MAX = 64
"""A longer search means that keys were chosen to collide; half-full tables need about 20 at a billion keys."""
KNOWN_MAX = 65_536
"""Places of keys that a reader remembers, about 150 bytes each."""
PUSHED_BYTES_MAX = 32 * 1024 * 1024
"""What is pushed beyond this is folded into the table by the push itself; readers hold it in memory."""
SUPERSEDED_S = 3_600.0
"""So long a reader goes on with the vectors of its own definition after others took their place: time to reload."""
LOCK_S = 600.0
"""The longest that a writer waits for another, which may be writing millions of vectors."""
LOOK_EVERY_S = 0.002
"""How often a waiting writer looks again: a push takes less than a millisecond."""


class _Current(msgspec.Struct, frozen=True):
    """Content of `current`."""

    vectors: str
    pushed: str


class _Footer(msgspec.Struct, frozen=True):
    """What stands at the end of a file of vectors."""

    layout: Layout
    as_of_us: tuple[int, ...]
    count: int
    pushed: int
    """Vectors of which a part was pushed."""
    index_at: int
    slots: int
    hash_key: bytes
    """Empty: CRC-32; else the key of BLAKE2b."""


class MappedOnline:
    """OnlineStore in a folder of memory-mapped files.

    folder: made by the first writer; a reader needs none. One instance serves one thread at a time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        pushed_bytes_max: int = PUSHED_BYTES_MAX,
        known_max: int = KNOWN_MAX,
    ) -> None:
        self._folder = folder
        self._monotonic = monotonic
        self._entropy = entropy
        self._pushed_bytes_max = pushed_bytes_max
        self._known_max = known_max
        self._open: dict[str, _Table] = {}
        self._kept: dict[str, tuple[_Table, float]] = {}
        """Tables whose place another definition took, and until when they may be read."""

    def replace(
        self, layout: Layout, vectors: Iterable[tuple[bytes, Sequence[PartRow | None]]], as_of_us: Sequence[int]
    ) -> int:
        """See OnlineStore. Costs about 5 us per vector; nobody waits while they are written, not even pushes."""
        folder = self._made(layout.table)
        assert len(as_of_us) == len(layout.parts), "one moment per part"
        with _locked(folder, "replacing.lock"):
            with _locked(folder):
                before = self._latest(layout.table)
                folded = before.all_pushed(layout) if before else {}
                seen = before.pushed_end if before else 0
            # The build holds only its own lock: what is pushed meanwhile is carried over below.
            name = self._entropy(8).hex()
            build = _Build(folder / f"{name}.vectors", layout, tuple(as_of_us), self._entropy)
            try:
                count = build.write(_merged(vectors, folded, len(layout.parts)))
                with _locked(folder):
                    late = before.pushed_after(seen, layout) if (before := self._latest(layout.table)) else []
                    _write_pushed(folder / f"{name}.pushed", late)
                    _publish(folder, _Current(f"{name}.vectors", f"{name}.pushed"))
                    _sweep(folder)
            except BaseException:
                current = _current_of(folder)
                if current is None or current.vectors != f"{name}.vectors":  # else it was published, and stays
                    for kind in ("vectors", "pushed"):
                        (folder / f"{name}.{kind}").unlink(missing_ok=True)
                raise
        return count

    def push(self, layout: Layout, rows: Sequence[Pushed]) -> int:
        """See OnlineStore. One `write`; synced to the disk by the next materialization."""
        if not rows:
            return 0
        check_rows(layout, rows)
        folder = self._made(layout.table)
        with _locked(folder):
            table = self._latest(layout.table)
            if table is None:
                name = self._entropy(8).hex()
                build = _Build(folder / f"{name}.vectors", layout, (0,) * len(layout.parts), self._entropy)
                build.write(())
                _write_pushed(folder / f"{name}.pushed", rows)
                _publish(folder, _Current(f"{name}.vectors", f"{name}.pushed"))
                return len(rows)
            if table.layout.fingerprint != layout.fingerprint:
                raise foreign(layout, table.layout)
            size = table.append(rows)
        if size > self._pushed_bytes_max:
            self._fold(layout.table)
        return len(rows)

    def read(self, layout: Layout, keys: Sequence[bytes]) -> Vectors:
        """See OnlineStore. Two system calls, then about 0.6 us per key and 20 columns."""
        table = self._latest(layout.table)
        if table is None:
            return _blank(layout, len(keys))
        if table.layout.fingerprint != layout.fingerprint:
            kept, until = self._kept.get(layout.table, (table, 0.0))
            if kept.layout.fingerprint != layout.fingerprint or self._monotonic() > until:
                raise foreign(layout, table.layout)
            table = kept
        return table.read(keys)

    def scan(self, table: str) -> Iterator[tuple[bytes, Sequence[PartRow | None]]]:
        """See OnlineStore."""
        found = self._latest(table)
        if found is not None:
            for key, rows, _ in found.rows():
                yield key, rows

    def remove(self, table: str, keys: Iterable[bytes]) -> int:
        """See OnlineStore. Writes the table anew."""
        gone = set(keys)
        return self._fold(table, gone) if gone and NAME.fullmatch(table) and (self._folder / table).is_dir() else 0

    def state(self, table: str) -> TableState | None:
        """See OnlineStore."""
        found = self._latest(table)
        if found is None:
            return None
        return TableState(
            layout=found.layout, vectors=found.footer.count, as_of_us=found.footer.as_of_us, pushed=found.pushed_rows
        )

    def tables(self) -> list[str]:
        """See OnlineStore."""
        try:
            return sorted(one.name for one in self._folder.iterdir() if (one / "current").exists())
        except FileNotFoundError:
            return []

    def drop(self, table: str) -> None:
        """See OnlineStore."""
        if NAME.fullmatch(table) and (self._folder / table).is_dir():
            folder = self._folder / table
            with _locked(folder, "replacing.lock"), _locked(folder):
                self._open.pop(table, None)
                self._kept.pop(table, None)
                (folder / "current").unlink(missing_ok=True)
                shutil.rmtree(folder)

    def _fold(self, table: str, gone: set[bytes] | None = None) -> int:
        """The table written anew with what was pushed, without some keys; how many of those there were."""
        folder = self._folder / table
        removed = 0
        with _locked(folder, "replacing.lock"), _locked(folder):
            before = self._latest(table)
            if before is None:
                return 0

            def kept() -> Iterator[tuple[bytes, Sequence[PartRow | None], Sequence[bool]]]:
                nonlocal removed
                for key, rows, pushed in before.rows():
                    if gone is not None and key in gone:
                        removed += 1
                    else:
                        yield key, rows, pushed

            name = self._entropy(8).hex()
            _Build(folder / f"{name}.vectors", before.layout, before.footer.as_of_us, self._entropy).write(kept())
            _write_pushed(folder / f"{name}.pushed", ())
            _publish(folder, _Current(f"{name}.vectors", f"{name}.pushed"))
            _sweep(folder)
        return removed

    def _made(self, table: str) -> Path:
        if not NAME.fullmatch(table):
            raise no_name(table)
        folder = self._folder / table
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def _latest(self, table: str) -> _Table | None:
        """The table as it is on the disk now, with all that was pushed; None where there is none."""
        held = self._open.get(table)
        if held is not None and not held.changed():
            return held
        if not NAME.fullmatch(table):
            return None
        found = _Table.opened(self._folder / table, self._known_max)
        if found is None:
            self._open.pop(table, None)
            return None
        if held is not None and held.layout.fingerprint != found.layout.fingerprint:
            self._kept[table] = (held, self._monotonic() + SUPERSEDED_S)
        self._open[table] = found
        return found


class _Table:
    """One generation of a table, mapped, with what was pushed to it so far."""

    __slots__ = (
        "_current",
        "_format",
        "_hash",
        "_index",
        "_known",
        "_known_max",
        "_map",
        "_mask",
        "_patches",
        "_pointer",
        "_pointer_id",
        "_pushed",
        "_pushed_path",
        "_view",
        "footer",
        "layout",
        "pushed_end",
        "pushed_rows",
    )  # fmt: skip

    def __init__(self, folder: Path, pointer: int, current: _Current, known_max: int) -> None:
        vectors, pushed = folder / current.vectors, folder / current.pushed
        self._current = str(folder / "current")
        self._pointer = _Descriptor(pointer)
        self._pointer_id = _identity(os.fstat(pointer))
        with vectors.open("rb") as file:
            self._map = _mapped(file, vectors)
        self.footer = _footer(self._map, vectors)
        self.layout = self.footer.layout
        self._format = VectorFormat(self.layout)
        self._view = memoryview(self._map)
        at, slots = self.footer.index_at, self.footer.slots
        self._index = self._view[at : at + 8 * slots].cast("Q")
        self._mask = slots - 1
        self._hash = _hasher(self.footer.hash_key)
        self._known: dict[bytes, int] = {}
        self._known_max = known_max
        self._pushed = _Descriptor(os.open(pushed, os.O_RDONLY | os.O_CLOEXEC))
        self._pushed_path = pushed
        self.pushed_end = 0
        """How far the pushed rows have been read: the end of the last whole frame."""
        self.pushed_rows = 0
        self._patches: dict[bytes, dict[int, PartRow]] = {}
        self._catch_up()

    @classmethod
    def opened(cls, folder: Path, known_max: int = KNOWN_MAX) -> _Table | None:
        """What `current` names; None where it is not there."""
        for _ in range(100):
            try:
                pointer = os.open(folder / "current", os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                current = msgspec.json.decode(os.read(pointer, 4096), type=_Current)
                return cls(folder, pointer, current, known_max)
            except FileNotFoundError:
                continue  # replaced between the two: look again
            except msgspec.MsgspecError as error:
                raise _damaged(folder / "current", str(error)) from None
        raise DrivetrainError(f"{folder} names files that are not there.", do="Run `drivetrain features materialize`.")

    def changed(self) -> bool:
        """Whether another generation took its place; takes in what was pushed."""
        try:
            if _identity(os.stat(self._current)) != self._pointer_id:
                return True
        except FileNotFoundError:
            return True
        if os.fstat(self._pushed.fd).st_size != self.pushed_end:
            self._catch_up()
        return False

    def read(self, keys: Sequence[bytes]) -> Vectors:
        """Their vectors as of now."""
        known = self._known
        get = known.get
        places: list[Any] = [get(key) for key in keys]
        if None in places:
            places = self._find(keys)
            if len(known) + len(keys) <= self._known_max:
                known.update(zip(keys, places, strict=True))
            else:
                known.clear()
        view, size = self._view, self._format.size
        joined = b"".join([view[place : place + size] for place in places])

        def text(row: int, place: int, length: int) -> bytes:
            start = places[row] + place
            return self._map[start : start + length]

        found = self._format.decode(joined, text, self.footer.as_of_us)
        if self._patches:
            found = self._patched(found, keys)
        return found

    def rows(self) -> Iterator[tuple[bytes, Sequence[PartRow | None], Sequence[bool]]]:
        """(key, rows, which of them were pushed) of every vector, patched."""
        left = dict(self._patches)
        for key, rows, pushed in self._vectors():
            patches = left.pop(key, None)
            if patches:
                now = patched(rows, patches)
                yield key, now, [one is patches.get(at) or pushed[at] for at, one in enumerate(now)]
            else:
                yield key, rows, pushed
        absent: list[PartRow | None] = [None] * len(self.layout.parts)
        for key, patches in left.items():
            yield key, patched(absent, patches), [at in patches for at in range(len(absent))]

    def all_pushed(self, layout: Layout) -> dict[bytes, dict[int, PartRow]]:
        """Key -> part of `layout` -> row, of what was pushed and may not be in the sources."""
        places = same_parts(self.layout, layout)
        found: dict[bytes, dict[int, PartRow]] = {}
        if self.footer.pushed:
            for key, rows, pushed in self._vectors():
                for at, row in enumerate(rows):
                    if pushed[at] and row is not None and at in places:
                        found.setdefault(key, {})[places[at]] = row
        for key, patches in self._patches.items():
            for at, row in patches.items():
                if at in places:
                    held = found.setdefault(key, {})
                    held[places[at]] = newer(held.get(places[at]), row) or row
        return found

    def pushed_after(self, offset: int, layout: Layout) -> list[Pushed]:
        """What was pushed beyond an offset of its file, for parts that `layout` has too."""
        names = {layout.parts[at].name for at in same_parts(self.layout, layout).values()}
        with self._pushed_path.open("rb") as file:
            file.seek(offset)
            return [row for row in _frames(file.read())[0] if row.part in names]

    def append(self, rows: Sequence[Pushed]) -> int:
        """Under the writers' lock; the file's new size."""
        fd = os.open(self._pushed_path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, self.pushed_end)  # what a writer that was killed left half-written
            frame = _frame(rows)
            os.lseek(fd, self.pushed_end, os.SEEK_SET)
            try:
                _write_whole(fd, frame)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, self.pushed_end)
                raise
        finally:
            os.close(fd)
        return self.pushed_end + len(frame)

    def _vectors(self) -> Iterator[tuple[bytes, list[PartRow | None], list[bool]]]:
        place, end = len(MAGIC) + len(self._format.blank), self.footer.index_at
        head = struct.Struct("=HI")
        for _ in range(self.footer.count):
            key_size, vector_size = head.unpack_from(self._map, place)
            place += head.size
            key = self._map[place : place + key_size]
            place += key_size
            rows, pushed = self._format.rows(self._map[place : place + vector_size])
            place += vector_size
            assert place <= end
            yield key, rows, pushed

    def _find(self, keys: Sequence[bytes]) -> list[int]:
        """Where the vector of each key begins; of a key without one, where the blank one does."""
        content, index, mask = self._map, self._index, self._mask
        places: list[int] = []
        add = places.append
        for key, hashed in zip(keys, map(self._hash, keys), strict=True):
            slot = hashed & mask
            start = index[slot]
            end = start + len(key)
            while start and content[start:end] != key:
                slot = (slot + 1) & mask
                start = index[slot]
                end = start + len(key)
            add(end if start else len(MAGIC))
        return places

    def _catch_up(self) -> None:
        size = os.fstat(self._pushed.fd).st_size - self.pushed_end
        if size <= 0:
            return
        rows, whole = _frames(os.pread(self._pushed.fd, size, self.pushed_end))
        self.pushed_end += whole
        self.pushed_rows += len(rows)
        places = {part.name: at for at, part in enumerate(self.layout.parts)}
        for pushed in rows:
            held = self._patches.setdefault(pushed.key, {})
            at = places[pushed.part]
            held[at] = newer(held.get(at), pushed.row) or pushed.row

    def _patched(self, found: Vectors, keys: Sequence[bytes]) -> Vectors:
        """Vectors with what was pushed for their keys."""
        touched = [(row, self._patches[key]) for row, key in enumerate(keys) if key in self._patches]
        if not touched:
            return found
        return patch_columns(self.layout, found, touched)


class _Descriptor:
    """An open file, closed with its owner."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class _Build:
    """Writes one file of vectors, whole and synced, or leaves none."""

    def __init__(self, path: Path, layout: Layout, as_of_us: tuple[int, ...], entropy: Callable[[int], bytes]) -> None:
        self._path = path
        self._layout = layout
        self._as_of_us = as_of_us
        self._entropy = entropy

    def write(self, vectors: Iterable[tuple[bytes, Sequence[PartRow | None], Sequence[bool]]]) -> int:
        """How many. Raises: DrivetrainError for a value that does not fit or a key that comes twice."""
        form = VectorFormat(self._layout)
        head = struct.Struct("=HI")
        places = array("Q")
        sizes = array("H")
        pushed_count = 0
        try:
            with self._path.open("xb", buffering=1 << 20) as file:
                file.write(MAGIC)
                file.write(form.blank)
                place = len(MAGIC) + len(form.blank)
                for key, rows, pushed in vectors:
                    vector = form.pack(rows, pushed)
                    pushed_count += any(pushed)
                    if len(key) > 0xFFFF:
                        raise DrivetrainError("An entity's key has more than 65,535 bytes.", do="Mend the source.")
                    file.write(head.pack(len(key), len(vector)))
                    file.write(key)
                    file.write(vector)
                    places.append(place + head.size)
                    sizes.append(len(key))
                    place += head.size + len(key) + len(vector)
                file.write(bytes(-place % 8))
                index_at = place + -place % 8
                file.flush()
                index, hash_key = self._index(places, sizes)
                file.write(index.tobytes())
                footer = msgspec.msgpack.encode(
                    _Footer(
                        layout=self._layout, as_of_us=self._as_of_us, count=len(places), pushed=pushed_count,
                        index_at=index_at, slots=len(index), hash_key=hash_key,
                    )
                )  # fmt: skip
                file.write(footer)
                file.write(END.pack(index_at, len(footer), crc32(footer), MAGIC))
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            self._path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _not_written(self._path, error) from error
            raise
        return len(places)

    def _index(self, places: array[int], sizes: array[int]) -> tuple[array[int], bytes]:
        slots = 8
        while slots < 2 * len(places):
            slots *= 2
        with self._path.open("rb") as file, contextlib.ExitStack() as stack:
            content = stack.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            index = _indexed(content, places, sizes, slots, crc32, probes_max=PROBES_MAX)
            if index is not None:
                return index, b""
            hash_key = self._entropy(16)
            index = _indexed(content, places, sizes, slots, _hasher(hash_key), probes_max=slots)
            assert index is not None
            return index, hash_key


def _indexed(
    content: mmap.mmap,
    places: array[int],
    sizes: array[int],
    slots: int,
    hashed: Callable[[bytes], int],
    *,
    probes_max: int,
) -> array[int] | None:
    """The table of offsets; None where a search would be longer than `probes_max`."""
    index = array("Q", bytes(8 * slots))
    mask = slots - 1
    for start, size in zip(places, sizes, strict=True):
        key = content[start : start + size]
        slot = hashed(key) & mask
        probes = 0
        while index[slot]:
            if content[index[slot] : index[slot] + size] == key:
                raise DrivetrainError(
                    "An entity was given twice for one online table.", do="This is a fault of ours; please report it."
                )
            slot = (slot + 1) & mask
            probes += 1
            if probes > probes_max:
                return None
        index[slot] = start
    return index


def _hasher(key: bytes) -> Callable[[bytes], int]:
    if not key:
        return crc32
    return lambda data: int.from_bytes(blake2b(data, digest_size=8, key=key).digest(), "little")


def _merged(
    vectors: Iterable[tuple[bytes, Sequence[PartRow | None]]], folded: dict[bytes, dict[int, PartRow]], width: int
) -> Iterator[tuple[bytes, Sequence[PartRow | None], Sequence[bool]]]:
    """New vectors with the pushed rows that are newer; of rows of the same age the source's holds."""
    for key, rows in vectors:
        patches = folded.pop(key, None)
        if patches is None:
            yield key, rows, ()
            continue
        now = [newer(patches.get(at), row) for at, row in enumerate(rows)]
        yield key, now, [one is not None and one is patches.get(at) for at, one in enumerate(now)]
    for key, patches in folded.items():
        yield key, [patches.get(at) for at in range(width)], [at in patches for at in range(width)]


def _blank(layout: Layout, count: int) -> Vectors:
    form = VectorFormat(layout)
    return form.decode(form.blank * count, lambda _row, _place, _length: b"", (0,) * len(layout.parts))


def _frame(rows: Sequence[Pushed]) -> bytes:
    body = msgspec.msgpack.encode(rows)
    return FRAME.pack(len(body), crc32(body)) + body


def _frames(content: bytes) -> tuple[list[Pushed], int]:
    """Rows of whole frames, and where the last one ends."""
    rows: list[Pushed] = []
    place = 0
    while place + FRAME.size <= len(content):
        size, crc = FRAME.unpack_from(content, place)
        body = content[place + FRAME.size : place + FRAME.size + size]
        if len(body) < size or crc32(body) != crc:
            break
        rows += _PUSHED.decode(body)
        place += FRAME.size + size
    return rows, place


_PUSHED = msgspec.msgpack.Decoder(list[Pushed])


def _write_pushed(path: Path, rows: Sequence[Pushed]) -> None:
    try:
        with path.open("wb") as file:
            if rows:
                file.write(_frame(rows))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _not_written(path, error) from error


def _write_whole(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _publish(folder: Path, current: _Current) -> None:
    try:
        write_whole(folder / "current", msgspec.json.encode(current))
    except OSError as error:
        raise _not_written(folder / "current", error) from error


def _current_of(folder: Path) -> _Current | None:
    try:
        return msgspec.json.decode((folder / "current").read_bytes(), type=_Current)
    except FileNotFoundError:
        return None


def _sweep(folder: Path) -> None:
    """Unlink what `current` does not name: replaced files, and those of a writer that was killed. Under both locks."""
    current = _current_of(folder)
    if current is None:
        return
    kept = {current.vectors, current.pushed}
    for path in folder.iterdir():
        if path.suffix in (".vectors", ".pushed") and path.name not in kept:
            path.unlink(missing_ok=True)
    for path in folder.glob(HALF_WRITTEN.format("current")):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path, name: str = "lock") -> Iterator[None]:
    """One writer at a time. Raises: DrivetrainError after `LOCK_S`."""
    with locked(folder / name, wait_s=LOCK_S, look_every_s=LOOK_EVERY_S) as held:
        if not held:
            raise DrivetrainError(
                f"Another process has been writing {folder} for {LOCK_S:.0f} s.", do="End it, and try again."
            )
        yield


def _mapped(file: BinaryIO, path: Path) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except ValueError:
        raise _damaged(path, "it is empty") from None


def _footer(content: mmap.mmap, path: Path) -> _Footer:
    size = len(content)
    if size < len(MAGIC) + END.size or content[: len(MAGIC)] != MAGIC:
        raise _damaged(path, "it does not begin as one")
    index_at, footer_size, crc, magic = END.unpack_from(content, size - END.size)
    footer = content[max(0, size - END.size - footer_size) : size - END.size]
    if magic != MAGIC or crc32(footer) != crc:
        raise _damaged(path, "its end is cut or changed")
    try:
        found = msgspec.msgpack.decode(footer, type=_Footer)
    except msgspec.MsgspecError as error:
        raise _damaged(path, str(error)) from None
    if found.index_at != index_at or index_at + 8 * found.slots + len(footer) + END.size != size:
        raise _damaged(path, "its size is not what it says")
    return found


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_ino, stat.st_mtime_ns


def _damaged(path: Path, why: str) -> DrivetrainError:
    return DrivetrainError(
        f"{path} is no file of online features: {why}.",
        do="Delete its folder, and run `drivetrain features materialize`: it is made from the sources again.",
    )


def _not_written(path: Path, error: OSError) -> DrivetrainError:
    return DrivetrainError(
        f"The online features cannot be written to {path.parent}: {error.strerror}.",
        looked=[str(path)],
        do="Make room or mend its permissions; what was there before is served on.",
    )
