"""Leaving on request: every living writer goes on in a new segment, so that nobody writes to the older ones any more.

Whoever must change or delete what was written writes a mark, `calls/.leave`, that holds a moment. A writer looks for it
once a second and leaves a segment that it opened before that moment, if there are records in it. Called by the journal
(looks) and by whoever needs segments that stand still: erasure, backup, the roller.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from drivetrain.core.errors import DrivetrainError
from drivetrain.ledger.frames import Segment, calls_folder, has_records, segments

LEAVE_NAME = ".leave"
"""Hidden, so that no reader takes it for a segment."""
LEAVE_TIMEOUT_S = 10.0
"""How long writers have by default: each looks once a second, and one whose disk is slow may need a few."""
POLL_S = 0.05
"""Between two looks at who still writes: soon enough that nobody waits for it, too seldom to cost anything."""
MARK_BYTES_MAX = 20
"""Digits of a moment in nanoseconds, for longer than this package will be used; anything beyond is no mark."""


class LeaveMark:
    """The moment before which segments are to be left, as a folder of segments has it; one stat while unchanged."""

    __slots__ = ("_before_ns", "_path", "_seen")

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / LEAVE_NAME)
        self._seen = (0, 0)
        self._before_ns = 0

    @property
    def before_ns(self) -> int:
        """UTC; 0 where nobody has asked."""
        try:
            status = os.stat(self._path)
        except OSError:
            return self._before_ns
        seen = (status.st_mtime_ns, status.st_ino)
        if seen != self._seen:
            self._before_ns = _read(self._path)
            self._seen = seen
        return self._before_ns


def leave_all(
    data_folder: Path,
    timeout_s: float = LEAVE_TIMEOUT_S,
    *,
    now_ns: Callable[[], int] = time.time_ns,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Have every writer leave the segments with records that were opened before now; returns that moment, UTC ns.

    Afterwards such a segment is gone, or unlocked and never written to again. One without records may still be open;
    what comes to stand in it came later. A journal of this process must be looked at by another thread meanwhile.
    Raises: DrivetrainError naming the writers that have not left after `timeout_s`; OSError where no mark can be made.
    """
    folder = calls_folder(data_folder)
    if not folder.is_dir():
        return now_ns()
    before_ns = max(now_ns(), _read(str(folder / LEAVE_NAME)))
    _write_mark(folder, before_ns)
    deadline = monotonic() + timeout_s
    while held := [segment for segment in segments(data_folder) if _is_held(segment, before_ns)]:
        if monotonic() >= deadline:
            writers = sorted({segment.writer for segment in held})
            raise DrivetrainError(
                f"{len(writers)} of the ledger's writers did not leave their segments within {timeout_s:g} s: "
                f"{', '.join(f'`{writer}`' for writer in writers)}.",
                looked=[str(segment.path) for segment in held],
                do="What stands before the dot is usually a process id in hex: see whether that process hangs, end it "
                "if it does, and try again.",
            )
        sleep(POLL_S)
    return before_ns


def _is_held(segment: Segment, before_ns: int) -> bool:
    opened_ns = segment.opened_ns
    return segment.live and opened_ns is not None and opened_ns < before_ns and has_records(segment)


def _write_mark(folder: Path, before_ns: int) -> None:
    fresh = folder / f"{LEAVE_NAME}.{os.getpid():x}.{before_ns:x}"
    try:
        fresh.write_bytes(b"%d" % before_ns)
        fresh.replace(folder / LEAVE_NAME)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _read(path: str) -> int:
    """What a mark says; 0 where it cannot be read."""
    try:
        with open(path, "rb") as file:
            text = file.read(MARK_BYTES_MAX + 1)
    except OSError:
        return 0
    return int(text) if text.isdigit() and len(text) <= MARK_BYTES_MAX else 0
