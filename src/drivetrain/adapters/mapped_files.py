"""The files of a table of online features: their format, how each is written, and which of them hold.

A table's folder holds:

    current          what holds now, as JSON: names of the two files below. Replaced by rename, so that `kill -9` leaves
                     the old or the new. Readers look at each read whether it is another file.
    N.vectors        immutable: magic | blank vector | (key, vector) ... | index | footer as msgpack | sizes, CRC, magic
    N.pushed         appended: frames of length, CRC and rows as msgpack; one `write` per push, so all rows or none
    lock             held by whoever writes

The index is a table of offsets with open addressing, hashed by CRC-32 and compared by whole keys; where somebody chose
keys that collide it is built with a keyed hash instead. Called by the store and by its tables.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import msgspec

from drivetrain.adapters.online_vectors import VectorFormat
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.disk import HALF_WRITTEN, write_whole
from drivetrain.ports.online import Layout, PartRow, Pushed

MAGIC = b"\xc1DTVEC01"
"""0xC1 begins no key, so that offset 0 never looks like one."""
END = struct.Struct("=QII8s")
FRAME = struct.Struct("=II")
PROBES_MAX = 64
"""A longer search means that keys were chosen to collide; half-full tables need about 20 at a billion keys."""


class Current(msgspec.Struct, frozen=True):
    """Content of `current`."""

    vectors: str
    pushed: str


class Footer(msgspec.Struct, frozen=True):
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


class VectorsFile:
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
                    Footer(
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
            index = _indexed(content, places, sizes, slots, hasher(hash_key), probes_max=slots)
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


def hasher(key: bytes) -> Callable[[bytes], int]:
    """How keys are hashed: by CRC-32, or under a key."""
    if not key:
        return crc32
    return lambda data: int.from_bytes(blake2b(data, digest_size=8, key=key).digest(), "little")


def frame_of(rows: Sequence[Pushed]) -> bytes:
    """Pushed rows as they are appended."""
    body = msgspec.msgpack.encode(rows)
    return FRAME.pack(len(body), crc32(body)) + body


def frames_of(content: bytes) -> tuple[list[Pushed], int]:
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


def write_pushed(path: Path, rows: Sequence[Pushed]) -> None:
    """A new file of pushed rows, synced, or none. Raises: DrivetrainError."""
    try:
        with path.open("wb") as file:
            if rows:
                file.write(frame_of(rows))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _not_written(path, error) from error


def write_all(fd: int, data: bytes) -> None:
    """All of `data`, however often that takes. Raises: OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def publish(folder: Path, current: Current) -> None:
    """From now on these two files are the table. Raises: DrivetrainError."""
    try:
        write_whole(folder / "current", msgspec.json.encode(current))
    except OSError as error:
        raise _not_written(folder / "current", error) from error


def current_of(folder: Path) -> Current | None:
    """What `current` names; None where it is not there."""
    try:
        return msgspec.json.decode((folder / "current").read_bytes(), type=Current)
    except FileNotFoundError:
        return None


def sweep(folder: Path) -> None:
    """Unlink what `current` does not name: replaced files, and those of a writer that was killed. Under both locks."""
    current = current_of(folder)
    if current is None:
        return
    kept = {current.vectors, current.pushed}
    for path in folder.iterdir():
        if path.suffix in (".vectors", ".pushed") and path.name not in kept:
            path.unlink(missing_ok=True)
    for path in folder.glob(HALF_WRITTEN.format("current")):
        path.unlink(missing_ok=True)


def mapped(file: BinaryIO, path: Path) -> mmap.mmap:
    """A file of vectors, mapped. Raises: DrivetrainError."""
    try:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except ValueError:
        raise damaged(path, "it is empty") from None


def footer_of(content: mmap.mmap, path: Path) -> Footer:
    """What stands at its end. Raises: DrivetrainError where it is no such file, or not whole."""
    size = len(content)
    if size < len(MAGIC) + END.size or content[: len(MAGIC)] != MAGIC:
        raise damaged(path, "it does not begin as one")
    index_at, footer_size, crc, magic = END.unpack_from(content, size - END.size)
    footer = content[max(0, size - END.size - footer_size) : size - END.size]
    if magic != MAGIC or crc32(footer) != crc:
        raise damaged(path, "its end is cut or changed")
    try:
        found = msgspec.msgpack.decode(footer, type=Footer)
    except msgspec.MsgspecError as error:
        raise damaged(path, str(error)) from None
    if found.index_at != index_at or index_at + 8 * found.slots + len(footer) + END.size != size:
        raise damaged(path, "its size is not what it says")
    return found


def damaged(path: Path, why: str) -> DrivetrainError:
    """A file of a table that cannot be one."""
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
