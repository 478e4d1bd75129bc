"""Copies of Calls on their way to the shadow: where they are sent, and what one datagram holds.

A datagram is a length, a `Batch` as msgpack, and behind it each copy's request and the live answer to it, as they are:
large bodies are gathered by the kernel, never encoded. Both ends are processes of one user on one machine and of one
version, so none of it is ever stored. The gateway's workers send, `embedded/shadowing.py` receives.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from drivetrain.core.calls import Attribution
from drivetrain.ports.sockets import socket_folder

SOCKET_NAME = "shadow.sock"
DATAGRAM_BYTES_MAX = 192 * 1024
"""What the kernel takes in one by default is 208 KiB; a copy that is larger is not sent."""
RECEIVE_BYTES = 8 * 1024 * 1024
"""Asked of the kernel for what the shadow has not read yet; it gives what it may."""
_LENGTH_BYTES = 4


class Copy(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One Call, as the shadow is told of it."""

    call_id: str
    workflow: str
    door: str
    """The one that it came by."""
    attribution: Attribution
    request_bytes: int
    answer_bytes: int
    """Of the live answer in OpenAI's shape; 0: there is none to compare with."""
    action: str = ""
    """What the live policy did; empty where there is none."""


class Batch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What stands before the bodies."""

    rollout: str
    """Whose shadow is meant: another environment of the same project may have one as well."""
    copies: tuple[Copy, ...]


class Received(msgspec.Struct, frozen=True, gc=False):
    """One copy, whole."""

    copy: Copy
    request: bytes
    answer: bytes


class Unreadable(Exception):
    """A datagram that no worker sent."""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Batch)


def socket_path(run_folder: Path) -> Path:
    """Where the shadow listens. Raises: DrivetrainError as `socket_folder` does."""
    return socket_folder(run_folder) / SOCKET_NAME


def listening(path: Path) -> socket.socket:
    """A socket at `path` that gets datagrams and never waits; what stood there before is replaced. Raises: OSError."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        made.bind(str(path))
        path.chmod(0o600)
    except OSError:
        made.close()
        raise
    return made


def packed(rollout: str, copies: Sequence[Copy], bodies: Sequence[bytes]) -> list[bytes]:
    """The parts of one datagram. bodies: request and answer of each copy in turn; empty ones may be left out."""
    head = _ENCODER.encode(Batch(rollout, tuple(copies)))
    return [len(head).to_bytes(_LENGTH_BYTES, "little"), head, *bodies]


def unpacked(datagram: memoryview) -> tuple[str, Iterator[Received]]:
    """(rollout, its copies). Raises: Unreadable."""
    begin = _LENGTH_BYTES + int.from_bytes(datagram[:_LENGTH_BYTES], "little")
    try:
        batch = _DECODER.decode(datagram[_LENGTH_BYTES:begin])
    except msgspec.MsgspecError as error:
        raise Unreadable(str(error)) from error
    if begin + sum(one.request_bytes + one.answer_bytes for one in batch.copies) != len(datagram):
        raise Unreadable("its bodies are not as long as it says")
    return batch.rollout, _split(batch.copies, datagram[begin:])


def _split(copies: Sequence[Copy], bodies: memoryview) -> Iterator[Received]:
    place = 0
    for copy in copies:
        middle = place + copy.request_bytes
        end = middle + copy.answer_bytes
        yield Received(copy, bytes(bodies[place:middle]), bytes(bodies[middle:end]))
        place = end
