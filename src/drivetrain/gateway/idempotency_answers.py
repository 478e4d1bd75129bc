"""The answer behind an Idempotency-Key: how it is taken down while it leaves, sealed, and given again.

Owns the copy and its bound, which answers count, and what makes it unreadable. Knows no store, no thread and no wait;
`gateway/idempotency.py` calls it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from drivetrain.core.codec import MSGPACK

KEPT_BYTES_MAX = 4 * 1024 * 1024
"""Of an answer; one that is longer is given once, and a repeat is told so. A Call keeps as much of its stream."""
STREAM_WHOLE = b"data: [DONE]\n\n"
"""How a stream ends that was not cut."""
CLIENT_LEFT = 499
"""What a Call is closed with whose client left before an answer was there."""
REPLAYED = b"idempotent-replayed: true\r\n"
NONCE_BYTES = 12


class Answering(Protocol):
    """The side of a connection that an answer goes to; see `gateway.http.Connection`."""

    streaming: bool

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        """The whole answer."""

    def begin_stream(self, headers: bytes) -> None:
        """The head of a stream."""

    def send(self, data: bytes) -> None:
        """A part of it."""

    def end_stream(self, data: bytes) -> None:
        """Its last part, and its end."""


class KeptAnswerV1(msgspec.Struct, frozen=True, array_like=True):
    """An answer as it is sealed."""

    stream: bool
    status: int
    headers: bytes
    """Those that its route gave it; framing is the connection's."""
    body: bytes
    """Of a stream: all its events."""

    def give(self, connection: Answering) -> None:
        """Answer with it again."""
        headers = self.headers + REPLAYED
        if self.stream:
            connection.begin_stream(headers)
            connection.end_stream(self.body)
        else:
            connection.answer(self.status, headers, self.body)


class Ended(msgspec.Struct, frozen=True):
    """How the call of a key ended."""

    counts: bool
    """Whether it was answered; else the key is free again."""
    answer: KeptAnswerV1 | None = None
    """None where it is too long, too."""


NOTHING = Ended(counts=False)


class Recording:
    """A connection that keeps a copy of the answer that goes through it.

    on_end: hears how it ended, once, and lets the end leave by calling what it is given: an answer that counts is
    known to the store before the client has it.
    """

    def __init__(self, connection: Answering, on_end: Callable[[Ended, Callable[[], None]], None]) -> None:
        self.streaming = False
        self._connection = connection
        self._on_end: Callable[[Ended, Callable[[], None]], None] | None = on_end
        self._headers = b""
        self._parts: list[bytes] = []
        self._size = 0

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        if self.streaming or status >= 500 or status in (429, CLIENT_LEFT):
            ended = NOTHING
        elif len(body) > KEPT_BYTES_MAX:
            ended = Ended(counts=True)
        else:
            ended = Ended(counts=True, answer=KeptAnswerV1(False, status, headers, body))
        self._end(ended, lambda: self._connection.answer(status, headers, body))

    def begin_stream(self, headers: bytes) -> None:
        self.streaming = True
        self._headers = headers
        self._connection.begin_stream(headers)

    def send(self, data: bytes) -> None:
        self._take(data)
        self._connection.send(data)

    def end_stream(self, data: bytes) -> None:
        if not self.streaming:
            return
        self._take(data)
        self.streaming = False
        # The end may have come in two parts.
        if not b"".join(self._parts[-2:]).endswith(STREAM_WHOLE):
            ended = NOTHING
        elif self._size > KEPT_BYTES_MAX:
            ended = Ended(counts=True)
        else:
            ended = Ended(counts=True, answer=KeptAnswerV1(True, 200, self._headers, b"".join(self._parts)))
        self._end(ended, lambda: self._connection.end_stream(data))

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        self._parts.append(data)
        if self._size > KEPT_BYTES_MAX:
            # Too long to be kept: only how it ends matters still.
            self._parts = self._parts[-2:]

    def _end(self, ended: Ended, leave: Callable[[], None]) -> None:
        on_end, self._on_end = self._on_end, None
        self._parts = []
        if on_end is not None:
            on_end(ended, leave)


class Names(msgspec.Struct, frozen=True):
    """What a keyed request is called where nobody may read it."""

    id: bytes
    body: bytes
    seal_key: bytes

    def __repr__(self) -> str:
        return f"Names({self.id.hex()})"

    def seal(self, answer: KeptAnswerV1) -> bytes:
        """`answer`, unreadable without the request that it answers."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + AESGCM(self.seal_key).encrypt(nonce, MSGPACK.encode(answer), self.id)

    def unseal(self, sealed: bytes) -> KeptAnswerV1 | None:
        """The answer; None where somebody altered it."""
        try:
            plain = AESGCM(self.seal_key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self.id)
        except (InvalidTag, ValueError):
            return None
        return msgspec.msgpack.decode(plain, type=KeptAnswerV1)


def names(secret: bytes, scope: Sequence[str], key: str, body: bytes) -> Names:
    """secret: this gateway's, 32 bytes; without it and the request nothing follows from the result.

    What seals an answer is derived from the key and the body too: the secret and the store together open nothing.
    """
    scoped = msgspec.msgpack.encode([*scope, key])
    content = hashlib.blake2b(body, digest_size=32).digest()
    return Names(
        _derived(secret, b"id", scoped),
        _derived(secret, b"body", scoped, content),
        _derived(secret, b"seal", scoped, content),
    )


def _derived(secret: bytes, purpose: bytes, *parts: bytes) -> bytes:
    return hashlib.blake2b(msgspec.msgpack.encode(parts), key=secret, person=purpose, digest_size=32).digest()
