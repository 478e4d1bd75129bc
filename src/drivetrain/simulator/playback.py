"""Plays a reply on a connection over time: waits, paces, stalls, cuts, never ends; and settles its bill.

Owns the timing of bytes, not their content. One playback per answer; `server` starts it, pauses it and tells it when
the client has left.
"""

import asyncio
import socket
import struct
from collections.abc import Callable

import msgspec

from drivetrain.simulator.invoice import Bill

ENDLESS_BYTES_MAX = 64 * 1024 * 1024
"""Where an endless line ends after all, so that a forgotten reader fills no disk."""
RESET_AFTER_S = 0.02
"""How long the kernel gets to send what was written before a reset; a reset discards what is not sent."""


class Reply(msgspec.Struct, kw_only=True):
    """The bytes of one response and when they are sent."""

    pieces: list[bytes]
    """In order; their joined bytes are the response. In a stream the first is the opening, then one per delta, then
    the closing."""
    deltas: int = 0
    """How many pieces, from the second on, are content that is charged one by one; 0 charges all of it with the first
    byte."""
    wait_s: float = 0.0
    """Before the first piece."""
    spread_s: float = 0.0
    """From the first piece to the last, evenly."""
    stall_at: int = -1
    """The piece before which nothing comes for `stall_s`; -1 for no stall."""
    stall_s: float = 0.0
    cut_at: int = -1
    """The byte at which the connection closes; -1 for none."""
    cut_with_reset: bool = False
    endless: bytes = b""
    """Sent again and again after the last piece."""
    bill: Bill | None = None

    @property
    def is_plain(self) -> bool:
        """Whether one write sends it all."""
        return len(self.pieces) == 1 and self.wait_s <= 0.0 and self.cut_at < 0 and not self.endless


class Playback:
    """One reply being sent."""

    __slots__ = (
        "_done",
        "_endless_left",
        "_loop",
        "_next",
        "_on_end",
        "_paused",
        "_reply",
        "_sent",
        "_stalled",
        "_started_s",
        "_timer",
        "_transport",
    )

    def __init__(
        self, reply: Reply, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, on_end: Callable[[], None]
    ) -> None:
        self._reply = reply
        self._transport = transport
        self._loop = loop
        self._on_end = on_end
        self._next = 0
        self._sent = 0
        self._paused = False
        self._stalled = False
        self._done = False
        self._endless_left = ENDLESS_BYTES_MAX
        self._started_s = 0.0
        self._timer: asyncio.Handle | None = None

    def start(self) -> None:
        """Begins; `on_end` is called once when the whole reply was written, not when the connection ended first."""
        self._started_s = self._loop.time() + self._reply.wait_s
        self._step()

    def pause(self) -> None:
        """The client reads too slowly: send nothing more for now."""
        self._paused = True

    def resume(self) -> None:
        """The client reads again."""
        self._paused = False
        if self._timer is None:
            self._step()

    def abandon(self) -> None:
        """The connection is gone: stop, and charge what was sent."""
        if self._timer is not None:
            self._timer.cancel()
        self._settle(complete=False)

    def _step(self) -> None:
        """Sends what is due, one piece per turn of the loop, so that a reader sees each as its own chunk."""
        self._timer = None
        if self._done or self._paused:
            return
        reply = self._reply
        if self._next == len(reply.pieces):
            self._go_on_for_ever()
            return
        due_s = self._due_s()
        if due_s > self._loop.time():
            self._timer = self._loop.call_at(due_s, self._step)
            return
        if not self._write(reply.pieces[self._next]):
            return
        self._next += 1
        if self._next == len(reply.pieces) and not reply.endless:
            self._finish()
        else:
            self._timer = self._loop.call_soon(self._step)

    def _due_s(self) -> float:
        reply, index = self._reply, self._next
        if index == reply.stall_at and not self._stalled:
            self._stalled = True
            self._started_s += reply.stall_s
        if index == 0 or reply.spread_s <= 0.0:
            return self._started_s
        return self._started_s + reply.spread_s * (index - 1) / max(1, len(reply.pieces) - 2)

    def _go_on_for_ever(self) -> None:
        if self._endless_left <= 0:
            self._close()
            return
        self._endless_left -= len(self._reply.endless)
        if self._write(self._reply.endless):
            self._timer = self._loop.call_soon(self._step)

    def _write(self, data: bytes) -> bool:
        """Writes `data`, or what the cut leaves of it; False when that was the end."""
        cut_at = self._reply.cut_at
        if cut_at < 0 or self._sent + len(data) < cut_at:
            self._transport.write(data)
            self._sent += len(data)
            return True
        self._transport.write(data[: cut_at - self._sent])
        self._sent = cut_at
        self._settle(complete=False)
        if self._reply.cut_with_reset:
            self._timer = self._loop.call_later(RESET_AFTER_S, self._reset)
        else:
            self._close()
        return False

    def _reset(self) -> None:
        """Closes with RST instead of FIN."""
        connection = self._transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _close(self) -> None:
        self._settle(complete=False)
        self._transport.close()

    def _finish(self) -> None:
        self._settle(complete=True)
        self._on_end()

    def _settle(self, *, complete: bool) -> None:
        """Once: what was sent is charged."""
        if self._done:
            return
        self._done = True
        bill = self._reply.bill
        if bill is None:
            return
        if self._sent == 0:
            bill.waive()
        else:
            deltas = self._reply.deltas
            bill.settle(deltas_sent=min(deltas, max(0, self._next - 1)), deltas=deltas, complete=complete)
