"""One generation of a table of online features, mapped into memory, with what was pushed to it so far.

A read is a few lookups, without any database. A replaced file is unlinked; who has it mapped keeps it until it looks
again. Called by the store.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.adapters.mapped_files import (
    MAGIC,
    Current,
    damaged,
    footer_of,
    frame_of,
    frames_of,
    hasher,
    mapped,
    write_all,
)
from drivetrain.adapters.online_vectors import VectorFormat, patch_columns, same_parts
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.online import Layout, PartRow, Pushed, Vectors, newer, patched

KNOWN_MAX = 65_536
"""Places of keys that a reader remembers, about 150 bytes each."""


class MappedTable:
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

    def __init__(self, folder: Path, pointer: int, current: Current, known_max: int) -> None:
        vectors, pushed = folder / current.vectors, folder / current.pushed
        self._current = str(folder / "current")
        self._pointer = _Descriptor(pointer)
        self._pointer_id = _identity(os.fstat(pointer))
        with vectors.open("rb") as file:
            self._map = mapped(file, vectors)
        self.footer = footer_of(self._map, vectors)
        self.layout = self.footer.layout
        self._format = VectorFormat(self.layout)
        self._view = memoryview(self._map)
        at, slots = self.footer.index_at, self.footer.slots
        self._index = self._view[at : at + 8 * slots].cast("Q")
        self._mask = slots - 1
        self._hash = hasher(self.footer.hash_key)
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
    def opened(cls, folder: Path, known_max: int = KNOWN_MAX) -> MappedTable | None:
        """What `current` names; None where it is not there."""
        for _ in range(100):
            try:
                pointer = os.open(folder / "current", os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                current = msgspec.json.decode(os.read(pointer, 4096), type=Current)
                return cls(folder, pointer, current, known_max)
            except FileNotFoundError:
                continue  # replaced between the two: look again
            except msgspec.MsgspecError as error:
                raise damaged(folder / "current", str(error)) from None
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
            return [row for row in frames_of(file.read())[0] if row.part in names]

    def append(self, rows: Sequence[Pushed]) -> int:
        """Under the writers' lock; the file's new size."""
        fd = os.open(self._pushed_path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, self.pushed_end)  # what a writer that was killed left half-written
            frame = frame_of(rows)
            os.lseek(fd, self.pushed_end, os.SEEK_SET)
            try:
                write_all(fd, frame)
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
        rows, whole = frames_of(os.pread(self._pushed.fd, size, self.pushed_end))
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


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_ino, stat.st_mtime_ns
