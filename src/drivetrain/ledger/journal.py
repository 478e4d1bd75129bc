"""The journal: frames of one loop tick become one write, and what waits for them runs after it.

Owns the writer's open segment: its file, its lock, its rotation, and what happens when the disk refuses. It does not
encrypt and does not read. The gateway's workers and the embedded runner each have one; it lives on one event loop at
a time and is not for threads. Where a tick holds many frames they are written as blocks.

A frame is written or it is not, and a block with all of its frames: `then(True)` is called exactly for the frames that
stand in the segment. What a short write left of a frame is cut back, so that a reader never sees half of one before
another.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from zlib import crc32

from drivetrain.core.calls import Stored
from drivetrain.core.codec import MSGPACK
from drivetrain.ledger.blocks import BLOCK_BODIES_MIN, Packer
from drivetrain.ledger.frames import FRAME_BYTES_MAX, HEAD, calls_folder, first_frame, segment_name
from drivetrain.ledger.leaving import LeaveMark
from drivetrain.ports.disk import sync_folder

Then = Callable[[bool], None]
_log = logging.getLogger(__name__)

SEGMENT_BYTES_MAX = 64 * 1024 * 1024
"""A segment is left for a new one beyond this: small enough to be rolled and deleted piecemeal."""
BUFFER_BYTES_MAX = 128 * 1024 * 1024
"""Bytes of one loop tick. Beyond it an append fails: memory must not grow with what clients send at once."""
RETRY_S = 0.1
"""Between two tries while the disk refuses: soon enough that space that came back is used at once."""
_STILL_GOOD = frozenset({errno.ENOSPC, errno.EDQUOT})
"""After these the same file can be written to once there is space; after any other error it is left for a new one."""


LATE_MAX = 10_000
"""Ends of Calls that wait for a disk that is full: as many as can have been running when it filled up."""


class _Open:
    """The segment that is written to."""

    __slots__ = ("end", "fd", "folder_synced", "opened_ns", "path", "start")

    def __init__(self, fd: int, path: Path, end: int, opened_ns: int) -> None:
        self.fd = fd
        self.path = path
        self.opened_ns = opened_ns
        self.start = end
        """Where its records begin."""
        self.end = end
        """End of the last good frame, which is the end of the file."""
        self.folder_synced = False


class _SyncGroup:
    """Callbacks that wait for one fdatasync of one segment."""

    __slots__ = ("fd", "segment", "thens")

    def __init__(self, fd: int, segment: _Open) -> None:
        self.fd = fd
        """A duplicate, so that the segment may be left meanwhile."""
        self.segment = segment
        self.thens: list[Then | None] = []


class FrameJournal:
    """Journal over append-only segments in `data_folder/calls`; a killed process loses only what was not yet confirmed.

    writer: unique per run of a process; made up where None. loop: where None, the loop that runs when a frame is
    appended; with no loop at all, frames wait for `flush()`.
    Raises (constructor): OSError where the first segment cannot be made.
    """

    __slots__ = (
        "_bodies",
        "_closed",
        "_current",
        "_executor",
        "_failed",
        "_folder",
        "_late",
        "_leave_mark",
        "_loop",
        "_monotonic",
        "_now_ns",
        "_opened_ns",
        "_packer",
        "_retry",
        "_retry_at",
        "_scheduled_on",
        "_segment_bytes_max",
        "_size",
        "_standing",
        "_sync_marks",
        "_sync_running",
        "_syncs",
        "_tainted",
        "_thens",
        "_writer",
    )

    def __init__(
        self,
        data_folder: Path,
        *,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        writer: str | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = calls_folder(data_folder)
        self._segment_bytes_max = segment_bytes_max
        self._writer = writer or f"{os.getpid():x}.{secrets.token_hex(6)}"
        if not self._writer.replace(".", "").replace("_", "").isalnum():
            raise ValueError(f"{self._writer!r} is no writer's name; use letters, digits, `.` and `_`")
        self._loop = loop
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._bodies: list[bytes] = []
        """What waits to be written."""
        self._size = 0
        """Bytes of it."""
        self._thens: list[Then | None] = []
        """One per body."""
        self._packer = Packer()
        self._leave_mark = LeaveMark(self._folder)
        self._late: deque[tuple[Stored, Callable[[], None]]] = deque()
        """What waits until frames can be written again."""
        self._sync_marks: set[int] = set()
        """Positions in `_thens` that also wait for the disk."""
        self._scheduled_on: asyncio.AbstractEventLoop | None = None
        self._failed = ""
        self._standing = 0
        self._tainted = False
        """The open segment may end in what is no frame and could not be cut: the next write goes to a new one."""
        self._retry_at = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._opened_ns = 0
        """Of the last segment that was tried, so that no two have one name."""
        self._syncs: deque[_SyncGroup] = deque()
        self._sync_running: tuple[_SyncGroup, Future[None]] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False
        self._folder.mkdir(parents=True, exist_ok=True)
        self._current = self._new_segment()

    @property
    def failed(self) -> str:
        """Why frames cannot be written at present; empty while they can. Retried by itself every `RETRY_S`."""
        return self._failed

    @property
    def writer(self) -> str:
        """The name in this journal's segments."""
        return self._writer

    @property
    def segment(self) -> Path:
        """The segment that is written to."""
        return self._current.path

    def append(self, record: Stored, then: Then | None = None, *, sync: bool = False) -> None:
        """Write `record` with the others of this loop tick, then call `then(written)`, never before this returns.

        sync: also wait for the disk. Costs about 1 us and its share of the write.
        """
        body = MSGPACK.encode(record)
        length = len(body)
        size = self._size + length
        if length > FRAME_BYTES_MAX or size > BUFFER_BYTES_MAX or self._closed:
            self._refuse(then)
            return
        self._size = size
        self._bodies.append(body)
        thens = self._thens
        if sync:
            self._sync_marks.add(len(thens))
        thens.append(then)
        if len(thens) == 1 or self._scheduled_on is None or self._scheduled_on.is_closed():
            self._schedule()

    def append_late(self, record: Stored, then: Callable[[], None]) -> None:
        """Keep `record` until it can be written, then call `then`. Beyond `LATE_MAX` the oldest is given up."""
        self._late.append((record, then))
        if len(self._late) > LATE_MAX:
            self._late.popleft()
        if not self._failed:
            self._append_kept()

    def _append_kept(self) -> None:
        late, self._late = self._late, deque()
        for record, then in late:
            self.append(record, partial(self._written_late, record, then))

    def _written_late(self, record: Stored, then: Callable[[], None], written: bool) -> None:
        if written:
            then()
        elif not self._closed:
            self._late.append((record, then))

    def flush(self) -> None:
        """Write what is buffered now and run its callbacks; those with `sync` have waited for the disk."""
        self._flush()
        self._finish_syncs()

    def look(self) -> None:
        """Go on in a new segment where somebody asked writers to leave this one; its owner calls it once a second."""
        current = self._current
        if self._closed or self._failed or current.end == current.start:
            return
        if current.opened_ns < self._leave_mark.before_ns:
            self._leave_segment()

    def close(self) -> None:
        """Write what is buffered, wait for the disk where somebody does, and let the segment go."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._executor is not None:
            self._executor.shutdown(wait=True)
        if self._current.fd >= 0:
            os.close(self._current.fd)

    def _schedule(self) -> None:
        loop = self._loop
        if loop is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self._scheduled_on = None
                return
        self._scheduled_on = loop
        loop.call_soon(self._flush)

    def _refuse(self, then: Then | None) -> None:
        """`then(False)` in the next tick, for what does not even fit the buffer."""
        if then is None:
            return
        try:
            loop = self._loop or asyncio.get_running_loop()
        except RuntimeError:
            then(False)
        else:
            loop.call_soon(then, False)

    def _flush(self) -> None:
        thens = self._thens
        if not thens:
            return
        bodies, marks = self._bodies, self._sync_marks
        self._bodies, self._thens, self._size = [], [], 0
        if self._failed and self._monotonic() < self._retry_at:
            if marks:
                self._sync_marks = set()
            _run(thens, False)
            return
        if len(bodies) < BLOCK_BODIES_MIN:
            whole = self._write(_framed(bodies))
        else:
            packed = self._packer.packed(bodies)
            whole = self._write(_framed(packed.bodies), packed.counts)
        if whole and not marks:
            _run(thens, True)
            return
        self._sync_marks = set()
        written = len(thens) if whole else self._standing
        group = self._sync_group() if marks and min(marks) < written else None
        now: list[Then | None] = []
        for index in range(written):
            if index not in marks:
                now.append(thens[index])
            elif group is not None:
                group.thens.append(thens[index])
        _run(now, True)
        if group is None and marks:
            _run([thens[index] for index in sorted(marks) if index < written], False)
        _run(thens[written:], False)
        self._start_sync()

    def _write(self, buffer: bytes, counts: Sequence[int] | None = None) -> bool:
        """Whether all of it stands in the segment now; where not, `_standing` says how many records do.

        counts: records in each frame of `buffer`; None: one.
        """
        self._standing = 0
        if self._tainted and not self._leave_segment():
            return False
        current = self._current
        size, done = len(buffer), 0
        try:
            done = os.write(current.fd, buffer)
            while done < size:
                done += os.write(current.fd, memoryview(buffer)[done:])
        except OSError as error:
            self._cut_back(buffer, counts, done)
            if error.errno not in _STILL_GOOD:
                self._tainted = True
            if error.errno == errno.EBADF:
                # Somebody closed it; its number may soon be another file's, so it is never closed again.
                current.fd = -1
            self._fail(error)
            return False
        current.end += size
        self._failed = ""
        if self._late:
            self._append_kept()
        if current.end >= self._segment_bytes_max:
            self._leave_segment()
        return True

    def _cut_back(self, buffer: bytes, counts: Sequence[int] | None, done: int) -> None:
        """Let the segment end in the last whole frame of the `done` bytes that were written."""
        end = whole = 0
        while end + HEAD.size <= done:
            length, _ = HEAD.unpack_from(buffer, end)
            if end + HEAD.size + length > done:
                break
            end += HEAD.size + length
            whole += 1
        self._standing = whole if counts is None else sum(counts[:whole])
        current = self._current
        current.end += end
        if done > end:
            try:
                os.ftruncate(current.fd, current.end)
            except OSError:
                self._tainted = True

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            _log.error("records cannot be written to %s: %s", self._folder, error.strerror)
        self._failed = f"{self._folder}: {error.strerror or error}"
        self._retry_at = self._monotonic() + RETRY_S
        loop = self._scheduled_on
        if loop is not None and not loop.is_closed() and not self._closed:
            if self._retry is not None:
                self._retry.cancel()
            self._retry = loop.call_later(RETRY_S, self._probe)

    def _probe(self) -> None:
        """Find out whether the disk takes frames again: whoever waits for `failed` to clear appends nothing."""
        self._retry = None
        if self._failed and not self._closed:
            self._write(_framed([MSGPACK.encode(first_frame(self._writer, self._current.opened_ns))]))

    def _new_segment(self) -> _Open:
        """A segment that is locked before anybody can see it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._opened_ns = max(self._now_ns(), self._opened_ns + 1)
        path = self._folder / segment_name(self._opened_ns, self._writer)
        hidden = path.with_name("." + path.name)
        fd = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head = _framed([MSGPACK.encode(first_frame(self._writer, self._opened_ns))])
            if os.write(fd, head) != len(head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            hidden.rename(path)
        except OSError:
            os.close(fd)
            hidden.unlink(missing_ok=True)
            raise
        return _Open(fd, path, len(head), self._opened_ns)

    def _leave_segment(self) -> bool:
        """Go on in a new segment; the old one's lock is held until the new one can be seen."""
        old = self._current
        try:
            self._current = self._new_segment()
        except OSError as error:
            self._fail(error)
            return False
        self._tainted = False
        if old.fd >= 0:
            os.close(old.fd)
        return True

    def _sync_group(self) -> _SyncGroup | None:
        """The group for what was just written; None where there is no descriptor left to make one with."""
        current = self._current
        if self._syncs and self._syncs[-1].segment is current:
            return self._syncs[-1]
        try:
            group = _SyncGroup(os.dup(current.fd), current)
        except OSError as error:
            self._fail(error)
            return None
        self._syncs.append(group)
        return group

    def _start_sync(self) -> None:
        loop = self._scheduled_on
        if self._sync_running is not None or not self._syncs or loop is None or loop.is_closed():
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="journal-sync")
        group = self._syncs.popleft()
        future = self._executor.submit(_sync, group)
        self._sync_running = (group, future)
        future.add_done_callback(lambda _: _call_threadsafe(loop, lambda: self._sync_done(group)))

    def _sync_done(self, group: _SyncGroup) -> None:
        running = self._sync_running
        if running is None or running[0] is not group:
            return
        self._sync_running = None
        error = running[1].exception()
        self._settle(group, error)
        self._start_sync()

    def _settle(self, group: _SyncGroup, error: BaseException | None) -> None:
        os.close(group.fd)
        if isinstance(error, OSError):
            # What the kernel holds after a failed fsync is unknown; the segment is not written to again.
            self._tainted = self._tainted or group.segment is self._current
            self._fail(error)
        _run(group.thens, error is None)

    def _finish_syncs(self) -> None:
        """Wait for the disk here and now."""
        if self._sync_running is not None:
            group, future = self._sync_running
            self._sync_running = None
            self._settle(group, future.exception())
        while self._syncs:
            group = self._syncs.popleft()
            try:
                _sync(group)
            except OSError as error:
                self._settle(group, error)
            else:
                self._settle(group, None)


def _framed(bodies: Sequence[bytes]) -> bytes:
    """Each body as a frame, one behind the other."""
    pack = HEAD.pack
    pieces: list[bytes] = []
    for body in bodies:
        pieces.append(pack(len(body), crc32(body)))
        pieces.append(body)
    return b"".join(pieces)


def _run(thens: list[Then | None], written: bool) -> None:
    """Each callback in order; one that raises is reported and keeps none of the others waiting."""
    for then in thens:
        if then is not None:
            try:
                then(written)
            except Exception:  # noqa: BLE001 - a boundary: the callbacks belong to other rooms, one must not starve the rest
                _log.exception("a callback of the journal raised")


def _sync(group: _SyncGroup) -> None:
    os.fdatasync(group.fd)
    if not group.segment.folder_synced:
        sync_folder(group.segment.path.parent)
        group.segment.folder_synced = True


def _call_threadsafe(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        _log.debug("the loop ended before a sync did; flush() or close() settles it")
