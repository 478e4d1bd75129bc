"""How an attempt reaches an upstream."""

from __future__ import annotations

from typing import Protocol

import msgspec

from drivetrain.core.endpoints import Endpoint


class UpstreamFailure(msgspec.Struct, frozen=True):
    """Why no whole answer came."""

    kind: str
    """`connect`, `connect_timeout`, `tls`, `first_byte_timeout`, `timeout`, `cut`, `protocol`, `oversized`,
    `pool_full`, `closed` (before any byte) or `shutdown` (by us)."""
    detail: str
    """For people; never holds a key."""
    sent: bool
    """Whether the request may have reached the upstream."""


class UpstreamHead(msgspec.Struct, frozen=True, gc=False):
    """Status and the headers that somebody reads."""

    status: int
    headers: dict[bytes, bytes]
    """Lower-case names; only those in `READ_HEADERS`."""


READ_HEADERS = frozenset(
    {
        b"content-type",
        b"content-encoding",
        b"retry-after",
        b"retry-after-ms",
        b"x-request-id",
        b"request-id",
    }
)


class UpstreamSink(Protocol):
    """Receives one answer, in this order: head, chunks, then exactly one of end or failure."""

    def on_head(self, head: UpstreamHead) -> None:
        """The status line and headers have come."""

    def on_chunk(self, data: bytes) -> None:
        """A part of the body."""

    def on_end(self) -> None:
        """The body is complete."""

    def on_failure(self, failure: UpstreamFailure) -> None:
        """There will be no more."""

    def on_fault(self, fault: Exception) -> None:
        """One of the other methods raised this: a fault of ours, which may end this exchange and no other."""


class Attempt(Protocol):
    """A running exchange."""

    @property
    def sent(self) -> bool:
        """Whether the request may have reached the upstream."""

    def answering(self) -> None:
        """The sink has seen the answer begin: from now on only the deadline of the whole answer holds."""

    def cancel(self) -> None:
        """Stop; the sink hears nothing more. Its connection is closed, so the provider stops as well."""

    def pause(self) -> None:
        """Stop reading: the client takes no more."""

    def resume(self) -> None:
        """Read on."""


class UpstreamRequest(msgspec.Struct, frozen=True, gc=False):
    """One HTTP exchange, its head complete but for the length of the body."""

    endpoint: Endpoint
    head: bytes
    """Request line and headers, ending in `content-length: `."""
    body: bytes
    first_byte_timeout_ms: int
    timeout_ms: int


class Transport(Protocol):
    """Sends attempts."""

    def send(self, request: UpstreamRequest, sink: UpstreamSink) -> Attempt:
        """Start an exchange. The sink is never called before this returns, unless the transport is synchronous."""
