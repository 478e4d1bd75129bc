"""The machine's disk: segments that survive their writers, and the journal of one process that writes them.

Keeps the promises of `ledger.journal.FrameJournal`: frames of one tick are written together, a crash or a full disk
leaves whole frames of a prefix, `then(False)` means that the frame does not stand, and a failed journal refuses until
it has tried again. Frames are kept as a reader would find them: encoded and decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.core.calls import STORED_DECODER
from drivetrain.core.codec import MSGPACK
from drivetrain.core.ids import CALL_PREFIX
from drivetrain.ledger.frames import Segment, segment_name
from drivetrain.ports.journal import JournalFull

from .kernel import MS, Kernel

if TYPE_CHECKING:
    from .worker import Worker

RETRY_NS = 100 * MS
MARK = b"sealed:"
Then = Callable[[bool], None]


class Disk:
    """Every segment of the machine."""

    def __init__(self) -> None:
        self.full = False
        self.segments: dict[str, list[Any]] = {}
        """Name -> frames."""

    def read(self, writer: str, position: str) -> Iterator[Any]:
        """Frames of one writer from a segment on, as a burial reads them."""
        for segment in self.sorted():
            if segment.writer == writer and segment.name >= position:
                yield from self.segments[segment.name]

    def sorted(self) -> list[Segment]:
        """Every segment, oldest first; all their writers have ended."""
        return [Segment(Path(name), 0, False) for name in sorted(self.segments)]


class Journal:
    """One process's journal. `segment` is the name that is written to."""

    def __init__(self, kernel: Kernel, disk: Disk, worker: Worker, on_frame: Callable[[Any], None]) -> None:
        self.failed = ""
        self._kernel = kernel
        self._disk = disk
        self._worker = worker
        self._on_frame = on_frame
        self._waiting: list[tuple[Any, Then | None, bool]] = []
        self._late: list[tuple[Any, Callable[[], None]]] = []
        self._retry_at_ns = 0
        self._opened_ns = 0
        self._frames_max = kernel.dice.choice((2, 5, 20, 1_000))
        self._new_segment()

    def append(self, record: Any, then: Then | None = None, *, sync: bool = False) -> None:
        """As `ports.journal.Journal` says."""
        self._worker.edge("append")
        self._waiting.append((record, then, sync))
        if len(self._waiting) == 1:
            self._kernel.after(0, self._flush, self._worker)

    def append_late(self, record: Any, then: Callable[[], None]) -> None:
        """As `ports.journal.Journal` says."""
        self._late.append((record, then))
        if not self.failed:
            self._append_kept()

    def _append_kept(self) -> None:
        late, self._late = self._late, []
        for record, then in late:
            self.append(record, partial(self._written_late, record, then))

    def _written_late(self, record: Any, then: Callable[[], None], written: bool) -> None:
        if written:
            then()
        else:
            self._late.append((record, then))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        kernel, disk = self._kernel, self._disk
        fits = len(waiting)
        if self.failed and kernel.now_ns < self._retry_at_ns:
            fits = 0
        elif disk.full:
            fits = kernel.dice.randrange(fits)
            self._fail()
        else:
            self.failed = ""
            self._append_kept()
        frames = disk.segments[self.segment]
        for record, _, _ in waiting[:fits]:
            self._worker.edge("write")
            stored = STORED_DECODER.decode(MSGPACK.encode(record))
            frames.append(stored)
            self._on_frame(stored)
        if len(frames) >= self._frames_max:
            self._new_segment()
        self._worker.edge("written")
        for place, (_, then, sync) in enumerate(waiting):
            if then is None:
                continue
            if sync and place < fits:
                kernel.after(kernel.dice.randrange(5 * MS), partial(then, True), self._worker)
            else:
                then(place < fits)

    def _fail(self) -> None:
        kernel = self._kernel
        self.failed = "no space left on device"
        self._retry_at_ns = kernel.now_ns + RETRY_NS
        kernel.after(RETRY_NS, self._probe, self._worker)

    def _probe(self) -> None:
        if not self.failed:
            return
        if self._disk.full:
            self._fail()
        else:
            self.failed = ""
            self._append_kept()

    def _new_segment(self) -> None:
        self._opened_ns = max(self._kernel.wall_ns(), self._opened_ns + 1)
        self.segment = segment_name(self._opened_ns, self._worker.name)
        self._disk.segments[self.segment] = []


class Vault:
    """Payloads as they are, behind a mark; one that cannot make keys refuses, as on a full disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def seal(self, subject: str, call_id: str, kind: str, payload: bytes) -> bytes:
        assert call_id.startswith(CALL_PREFIX)
        if self._disk.full and kind == "request":
            raise JournalFull("no space for keys")
        return MARK + payload

    def digest(self, payload: bytes) -> bytes:
        return MARK

    def open(self, call_id: str, kind: str, sealed: bytes) -> bytes | None:
        assert sealed.startswith(MARK)
        return sealed[len(MARK) :]
