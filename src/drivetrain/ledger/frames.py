"""Frames and segments: how stored records lie on disk, and how they are found again after a crash.

A frame is length (u32, little-endian), CRC-32 of the body (u32) and the body: one stored record in msgpack, or a block
of many, which readers see as the frames it was made of. A segment is a file of frames that one writer appends to; its
first frame says whose it is. A writer holds an flock on its open segment, so that a reader can tell a live writer from
a dead one. A segment may be deleted once all of it stands elsewhere: one that vanishes while it is read has no frames.
Called by the journal (writes), the reader and the queries (read). It does not know what a Call is.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import msgspec

from drivetrain.core.calls import STORED_DECODER, SegmentV1, Stored
from drivetrain.core.errors import DrivetrainError
from drivetrain.ledger.blocks import BLOCK_TAG, BadBlock, bodies_of, content_of, is_block
from drivetrain.version import VERSION

HEAD = struct.Struct("<II")
FRAME_BYTES_MAX = 256 * 1024 * 1024
"""A frame beyond this is no frame: bodies of requests are bounded far below it, so such a length is damage. So is what
a block holds."""
READ_BYTES = 4 * 1024 * 1024
"""Read at once; what a scan holds in memory, a larger frame apart."""
SEGMENT_SUFFIX = ".seg"
BODY_START = re.compile(rb"(?=(?:[\x90-\x9f]|\xdc..)[\xa0-\xbf]([a-z_]{3,24}\.[0-9]+))", re.DOTALL)
"""How every body begins: an array of up to 15 or up to 65,535 items, whose first is the record's tag. Looked for ahead,
without taking it: three bytes before a short array may look like the beginning of a long one."""
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
    """One good frame, not decoded yet.

    Reading again from the `offset` of any frame delivers it, and reading on from the `end` of any delivers all that
    came after it. For frames of one block that is the block's offset, so that some come twice; only the last one's
    `end` is the block's.
    """

    offset: int
    end: int
    body: memoryview

    @property
    def size(self) -> int:
        """Bytes that it takes, or would take outside of its block."""
        return HEAD.size + len(self.body)


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

    @property
    def opened_ns(self) -> int | None:
        """When it was opened, UTC, as its name says; None where it says none."""
        try:
            return int(self.path.stem.partition("-")[0], 16)
        except ValueError:
            return None


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


def frames(
    segment: Segment, damage: list[Damage], start: int = 0, end: int | None = None, *, holding: bytes = b""
) -> Iterator[Frame]:
    """The good frames from `start` on, in order; what is no frame is added to `damage`.

    A bad frame or block with good frames after it is skipped and reported. At the end of a live segment it is a frame
    that is being written: the iteration ends before it, and the next one begins there. A frame's body is valid until
    the next frame is asked for. start, end: 0, or the offset or end of some frame.
    holding: only frames whose body holds these bytes. A block without them costs a seventh of what decoding it does.
    """
    stop = segment.size if end is None else end
    try:
        fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        for frame in _frames(fd, segment, damage, start, stop):
            if is_block(frame.body):
                yield from _of_block(frame, segment, damage, holding)
            elif not holding or holding in bytes(frame.body):
                yield frame
    finally:
        os.close(fd)


def read_range(segment: Segment, offset: int, end: int) -> bytes:
    """What holds the frame with this `offset` and `end`, as it lies on disk: the frame, or the block that it is in."""
    try:
        fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        if end == offset:
            head = _pread(fd, HEAD.size, offset)
            end = offset + HEAD.size + HEAD.unpack(head)[0] if len(head) == HEAD.size else offset
        return _pread(fd, end - offset, offset)
    finally:
        os.close(fd)


def may_hold(segment: Segment, needle: bytes) -> bool:
    """False where no frame of the segment holds these bytes, found at gigabytes a second; True where one may.

    A segment with blocks may hold anything: ask `frames(holding=needle)`.
    """
    try:
        with segment.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(needle) >= 0 or content.find(BLOCK_TAG) >= 0
    except (FileNotFoundError, ValueError):
        # It has gone, or is empty, which cannot be mapped.
        return False


def has_records(segment: Segment) -> bool:
    """Whether anything stands behind the frame that a segment begins with."""
    try:
        with segment.path.open("rb") as file:
            head = file.read(HEAD.size)
    except FileNotFoundError:
        return False
    return len(head) < HEAD.size or segment.size > HEAD.size + HEAD.unpack(head)[0]


def decoded(frame: Frame, segment: Segment, damage: list[Damage]) -> Stored | None:
    """The record in a frame, or None where it is damaged (then reported). Raises: NewerRecord."""
    try:
        record: Stored = STORED_DECODER.decode(frame.body)
    except msgspec.MsgspecError:
        tag = _tag(frame.body)
        if tag is None or tag in KNOWN_TAGS:
            damage.append(Damage(segment.name, frame.offset, frame.size, "bad"))
            return None
        raise NewerRecord(
            f"{segment.path} at offset {frame.offset} holds a record of version `{tag}`, "
            f"which drivetrain {VERSION} does not know.",
            do="A newer drivetrain wrote it. Run this command with that version, or upgrade this one.",
        ) from None
    return record


def records(
    segment: Segment, damage: list[Damage], start: int = 0, *, holding: bytes = b""
) -> Iterator[tuple[int, int, Stored]]:
    """(offset, end, record) of each good frame from `start` on, as `frames` has them."""
    for frame in frames(segment, damage, start, holding=holding):
        record = decoded(frame, segment, damage)
        if record is not None:
            yield frame.offset, frame.end, record


def records_of(data_folder: Path, writer: str, first: str) -> Iterator[Stored]:
    """What a writer wrote from its segment `first` on; what is damaged is passed over."""
    for segment in segments(data_folder):
        if segment.writer == writer and segment.name >= first:
            for _, _, record in records(segment, []):
                yield record


KNOWN_TAGS = frozenset({"block.1", "segment.1", "opened.1", "closed.1", "outcome.1", "reserved.1"})


def _of_block(frame: Frame, segment: Segment, damage: list[Damage], holding: bytes) -> Iterator[Frame]:
    """The frames that a block was made of."""
    offset = frame.offset
    try:
        content = content_of(frame.body, FRAME_BYTES_MAX)
        if holding and holding not in content:
            return
        *bodies, last = bodies_of(content)
    except BadBlock:
        damage.append(Damage(segment.name, offset, frame.size, "bad"))
        return
    for body in bodies:
        if not holding or holding in bytes(body):
            yield Frame(offset, offset, body)
    if not holding or holding in bytes(last):
        yield Frame(offset, frame.end, last)


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
    match = BODY_START.match(bytes(body[:BODY_START_BYTES]))
    return match[1].decode() if match else None


def first_frame(writer: str, opened_ns: int) -> SegmentV1:
    """What a segment begins with."""
    return SegmentV1(writer, opened_ns, VERSION)
