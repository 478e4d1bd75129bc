"""Frames and segments: how stored records lie on disk, and how they are found again after a crash.

A frame is length (u32, little-endian), CRC-32 of the body (u32) and the body: one stored record in msgpack. A
segment is a file of frames that one writer appends to; its first frame says whose it is. A writer holds an flock on
its open segment, so that a reader can tell a live writer from a dead one.
Called by the journal (writes), the reader and the queries (read). It does not know what a Call is.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import msgspec

from drivetrain.core.calls import STORED_DECODER, SegmentV1, Stored
from drivetrain.core.errors import DrivetrainError
from drivetrain.version import VERSION

HEAD = struct.Struct("<II")
FRAME_BYTES_MAX = 256 * 1024 * 1024
"""A frame beyond this is no frame: bodies of requests are bounded far below it, so such a length is damage."""
READ_BYTES = 4 * 1024 * 1024
"""Read at once; what a scan holds in memory, a larger frame apart."""
SEGMENT_SUFFIX = ".seg"
BODY_START = re.compile(rb"[\x90-\x9f][\xa0-\xbf][a-z]{3,24}\.[0-9]")
"""How every body begins: a short array whose first item is the record's tag."""
BODY_START_BYTES = 32


class NewerRecord(DrivetrainError):
    """A record whose version this package does not know."""


class Damage(msgspec.Struct, frozen=True):
    """A place in a segment that does not hold the frames it should."""

    segment: str
    """Name of the file."""
    offset: int
    """Where the first bad byte's frame begins."""
    size: int
    """Bytes that could not be read."""
    kind: str
    """`torn` (the end of a segment whose writer died; normal), `bad` (frames were lost) or `orphan` (a closed frame
    without its opened frame)."""

    def __str__(self) -> str:
        what = {
            "torn": f"ends in {self.size} bytes of an unfinished frame; normal after a crash",
            "bad": f"has {self.size} bytes that are no frame; records there are lost",
            "orphan": "has a closed frame whose opened frame is missing",
        }[self.kind]
        return f"{self.segment} at offset {self.offset}: {what}."


class Frame(msgspec.Struct, gc=False):
    """One good frame, not decoded yet."""

    offset: int
    end: int
    body: memoryview


class Segment:
    """A segment as it was when the folder was looked at."""

    __slots__ = ("live", "name", "path", "size", "writer")

    def __init__(self, path: Path, size: int, live: bool) -> None:
        self.path = path
        self.size = size
        self.live = live
        """Its writer may still append to it. Where False, nothing will ever be added."""
        self.name = path.name
        self.writer = path.stem.partition("-")[2]
        """Whose it is; unique per run of a process."""


def calls_folder(data_folder: Path) -> Path:
    """Where segments are, below the data folder."""
    return data_folder / "calls"


def segment_name(opened_ns: int, writer: str) -> str:
    """A name that sorts by when the segment was opened."""
    return f"{opened_ns:016x}-{writer}{SEGMENT_SUFFIX}"


def segments(data_folder: Path) -> list[Segment]:
    """Every segment, oldest first, such that a closed frame below one's `size` has its opened frame below another's.

    Liveness is looked at before sizes, and sizes newest first: what is written meanwhile can only be seen too late,
    never half. A writer that moves to a new segment shows it before it lets the old one go, so the folder is listed
    until nothing new appears.
    """
    folder = calls_folder(data_folder)
    live: dict[str, bool] = {}
    while True:
        names = _segment_names(folder)
        new = [name for name in names if name not in live]
        if not new:
            break
        for name in new:
            live[name] = is_locked(folder / name)
    found: list[Segment] = []
    for name in reversed(names):
        path = folder / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            continue
        found.append(Segment(path, size, live[name]))
    found.reverse()
    return found


def is_locked(path: Path) -> bool:
    """Whether a living process holds the file's flock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def frames(segment: Segment, damage: list[Damage], start: int = 0, end: int | None = None) -> Iterator[Frame]:
    """The good frames from `start` on, in order; what is no frame is added to `damage`.

    A bad frame with good frames after it is skipped and reported. At the end of a live segment it is a frame that is
    being written: the iteration ends before it, and the next one begins there. A frame's body is valid until the
    next frame is asked for.
    """
    stop = segment.size if end is None else end
    fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from _frames(fd, segment, damage, start, stop)
    finally:
        os.close(fd)


def read_range(segment: Segment, offset: int, end: int) -> bytes:
    """A range of a segment as it lies on disk."""
    fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _pread(fd, end - offset, offset)
    finally:
        os.close(fd)


def decoded(frame: Frame, segment: Segment, damage: list[Damage]) -> Stored | None:
    """The record in a frame, or None where it is damaged (then reported). Raises: NewerRecord."""
    try:
        record: Stored = STORED_DECODER.decode(frame.body)
    except msgspec.MsgspecError:
        tag = _tag(frame.body)
        if tag is None or tag in KNOWN_TAGS:
            damage.append(Damage(segment.name, frame.offset, frame.end - frame.offset, "bad"))
            return None
        raise NewerRecord(
            f"{segment.path} at offset {frame.offset} holds a record of version `{tag}`, "
            f"which drivetrain {VERSION} does not know.",
            do="A newer drivetrain wrote it. Run this command with that version, or upgrade this one.",
        ) from None
    return record


def records(segment: Segment, damage: list[Damage], start: int = 0) -> Iterator[tuple[int, int, Stored]]:
    """(offset, end, record) of each good frame from `start` on."""
    for frame in frames(segment, damage, start):
        record = decoded(frame, segment, damage)
        if record is not None:
            yield frame.offset, frame.end, record


KNOWN_TAGS = frozenset({"segment.1", "opened.1", "closed.1", "outcome.1", "reserved.1"})


def _segment_names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(SEGMENT_SUFFIX) and name[0] != ".")
    except FileNotFoundError:
        return []


def _frames(fd: int, segment: Segment, damage: list[Damage], offset: int, stop: int) -> Iterator[Frame]:
    unpack = HEAD.unpack_from
    block = b""
    base = offset
    """Offset in the file of the block's first byte."""
    while offset < stop:
        have = base + len(block) - offset
        need = 8
        if have >= 8:
            length, crc = unpack(block, offset - base)
            need = 8 + length
            if have >= need and length:
                body = memoryview(block)[offset - base + 8 : offset - base + need]
                if crc32(body) == crc:
                    yield Frame(offset, offset + need, body)
                    offset += need
                    continue
            if have >= need or need > stop - offset or need > FRAME_BYTES_MAX:
                good = _next_good(fd, offset + 1, stop)
                if good is None:
                    break
                damage.append(Damage(segment.name, offset, good - offset, "bad"))
                block, base, offset = b"", good, good
                continue
        wanted = min(max(READ_BYTES, need), stop - offset)
        fresh = _pread(fd, wanted, offset)
        if len(fresh) <= have or len(fresh) < min(need, stop - offset):
            break
        block, base = fresh, offset
    if offset < stop and not segment.live:
        damage.append(Damage(segment.name, offset, stop - offset, "torn"))


def _next_good(fd: int, offset: int, stop: int) -> int | None:
    """Where the first good frame at or beyond `offset` begins."""
    keep = 8 + BODY_START_BYTES
    while offset < stop:
        block = _pread(fd, min(READ_BYTES, stop - offset), offset)
        if not block:
            return None
        for match in BODY_START.finditer(block):
            at = offset + match.start() - 8
            if at < offset:
                continue
            head = _pread(fd, 8, at)
            length, crc = HEAD.unpack(head)
            if 0 < length <= min(stop - at - 8, FRAME_BYTES_MAX) and crc32(_pread(fd, length, at + 8)) == crc:
                return at
        if offset + len(block) >= stop:
            return None
        offset += max(1, len(block) - keep)
    return None


def _pread(fd: int, size: int, offset: int) -> bytes:
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _tag(body: memoryview) -> str | None:
    match = re.match(rb"[\x90-\x9f][\xa0-\xbf]([a-z_]+\.[0-9]+)", bytes(body[:BODY_START_BYTES]))
    return match[1].decode() if match else None


def first_frame(writer: str, opened_ns: int) -> SegmentV1:
    """What a segment begins with."""
    return SegmentV1(writer, opened_ns, VERSION)
