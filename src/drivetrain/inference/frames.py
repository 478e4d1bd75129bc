"""What gateway workers and model workers say to each other over a Unix socket: length-prefixed msgpack, bounded.

Owns the words and their framing, no connection. A frame is four bytes of length, little-endian, and one array whose
first element tells the kind. A model is named once per connection, by a handle of the gateway worker's choice.
"""

from __future__ import annotations

import struct

import msgspec

from drivetrain.core.models import Pinned
from drivetrain.inference.answering import ROW_BYTES_MAX

FRAME_BYTES_MAX = 2 * ROW_BYTES_MAX
"""A row, or a result of one, and what stands around it."""
_LENGTH = struct.Struct("<I")


class Open(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """To the worker: load this model; rows name it by `handle`. Answered with `Opened`."""

    handle: int
    model: Pinned


class Score(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """To the worker: one row. Answered with `Done` or `Failed`, once, unless it is cancelled before."""

    id: int
    handle: int
    row: bytes
    timeout_ms: int
    slo_ms: int


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """To the worker: nobody waits for it any more."""

    id: int


class Close(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """To the worker: no more rows for this model."""

    handle: int


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """From the worker: the model can be asked, or why not."""

    handle: int
    fault: str = ""


class Done(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """From the worker: one row was scored, or has a fault of its own."""

    id: int
    body: bytes
    """A `Scored` as JSON; empty where there is a fault."""
    fault: str = ""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=13, gc=False):
    """From the worker: one row was not scored."""

    id: int
    kind: str
    """`overload`, `timeout`, `protocol` or `worker_lost`."""
    detail: str
    sent: bool = False
    """Whether the model was asked."""


class Load(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """From the worker, with other frames: how many rows wait there, of all gateway workers."""

    rows: int


ToWorker = Open | Score | Cancel | Close
FromWorker = Opened | Done | Failed | Load
TO_WORKER: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
FROM_WORKER: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_ENCODER = msgspec.msgpack.Encoder()


class FrameFault(Exception):
    """What came is no frame; the connection cannot be read further."""


def framed(message: ToWorker | FromWorker) -> bytes:
    """One frame. Raises: FrameFault where it is larger than a frame may be."""
    body = _ENCODER.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise FrameFault(f"a frame of {len(body):,} bytes, more than {FRAME_BYTES_MAX:,}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Puts frames together from what arrives; holds at most one unfinished frame and the last read."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole now. Raises: FrameFault where one says that it is larger than a frame may be."""
        held = self._held
        held += data
        found: list[bytes] = []
        at = 0
        while len(held) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held, at)
            if length > FRAME_BYTES_MAX:
                raise FrameFault(f"a frame of {length:,} bytes, more than {FRAME_BYTES_MAX:,}")
            end = at + _LENGTH.size + length
            if len(held) < end:
                break
            found.append(bytes(held[at + _LENGTH.size : end]))
            at = end
        del held[:at]
        return found
