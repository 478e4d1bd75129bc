"""HTTP/1.1 from clients: framing, limits, order and back-pressure; knows no route and no workflow.

Requests on one connection are answered one after the other. Every read is bounded in size and time; what
httptools leaves open (sizes, times, HTTP/0.9, repeated credentials) is closed here.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any, Protocol

import httptools
import msgspec

from drivetrain.core.errors import error_body
from drivetrain.project.snapshot import GatewaySettings

PIPELINED_MAX = 8
"""Requests that may wait behind the current one; then reading stops."""
WRITE_BUFFER_BYTES = 256 * 1024
"""What may wait for a slow client before the provider is not read any more."""
HEADERS_MAX = 100
SWEEP_S = 0.5
READ_HEADERS = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"expect",
        b"host",
        b"idempotency-key",
        b"transfer-encoding",
        b"x-drivetrain-cache",
        b"x-drivetrain-tags",
        b"x-drivetrain-team",
        b"x-drivetrain-use-case",
        b"x-drivetrain-user",
        b"x-request-timeout-ms",
    }
)
REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class Request(msgspec.Struct):
    """One whole request."""

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    """Lower-case names; only those in `READ_HEADERS`."""
    body: bytes
    keep_alive: bool
    version: str
    """`1.1` or `1.0`."""


class Exchange(Protocol):
    """A running answer."""

    def abort(self) -> None:
        """The client left."""

    def pause(self) -> None:
        """The client takes no more for now."""

    def resume(self) -> None:
        """The client takes more again."""


class Application(Protocol):
    """Answers requests."""

    draining: bool

    def handle(self, request: Request, connection: Connection) -> Exchange | None:
        """Answer now or later through `connection`; an Exchange hears when the client leaves."""


class Connections:
    """All connections of a worker: their number and their deadlines."""

    def __init__(self, loop: asyncio.AbstractEventLoop, application: Application, settings: GatewaySettings) -> None:
        self.loop = loop
        self.application = application
        self.settings = settings
        self.idle_s = SWEEP_S + settings.idle_timeout_ms / 1000
        self.open: set[Connection] = set()
        self.refused: dict[str, int] = {}
        """Requests that never reached a route, by reason."""
        self.now = loop.time()
        """The loop's time, at most `SWEEP_S` old: deadlines need no better, and a clock costs every request."""
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)

    def __call__(self) -> Connection:
        return Connection(self)

    def refuse(self, reason: str) -> None:
        """Count a request that never reached a route."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def close_idle(self) -> None:
        """Close connections that carry nothing."""
        for connection in list(self.open):
            connection.close_if_idle()

    def stop(self) -> None:
        """Stop looking at deadlines."""
        self._sweeper.cancel()

    def _sweep(self) -> None:
        # First: nothing that goes wrong below may end the deadlines of a worker.
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)
        now = self.now = self.loop.time()
        for connection in [one for one in self.open if now >= one.deadline]:
            connection.late()


NEVER = float("inf")


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_exchange",
        "_fault",
        "_head_bytes",
        "_header_count",
        "_headers",
        "_large_read",
        "_owed",
        "_parser",
        "_path",
        "_paused_reading",
        "_queue",
        "_raw_head_bytes",
        "_request",
        "_stage",
        "_version",
        "_writable",
        "all",
        "credentials",
        "deadline",
        "streaming",
        "transport",
    )

    def __init__(self, connections: Connections) -> None:
        self.all = connections
        self.transport: Any = None
        self.credentials: tuple[object, bytes | None, Any] | None = None
        """The application's note of who called last, so that a key is not looked up anew for every request."""
        self.deadline = NEVER
        self._parser = httptools.HttpRequestParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._header_count = 0
        self._head_bytes = 0
        self._raw_head_bytes = 0
        self._large_read = False
        self._version = "1.1"
        self._path = b""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._stage = "idle"
        self._fault: tuple[int, str, str] | None = None
        self._queue: deque[Request] = deque()
        self._request: Request | None = None
        self._exchange: Exchange | None = None
        self.streaming = False
        """Whether a stream's head has left, and its end has not."""
        self._paused_reading = False
        self._writable = True
        self._owed = 0

    # What the application calls.

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        """The whole answer to the current request. headers: lines, each ending in CR LF."""
        request = self._request
        if request is None:
            return
        keep = request.keep_alive and not self.all.application.draining
        end = b"content-length: %d\r\n\r\n" if keep else b"connection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(
            b"".join((_status_line(status), headers, end % len(body), body if request.method != b"HEAD" else b""))
        )
        self._finished(keep)

    def begin_stream(self, headers: bytes) -> None:
        """Status 200 and the headers of an event stream."""
        request = self._request
        if request is None:
            return
        self.streaming = True
        framing = b"transfer-encoding: chunked\r\n\r\n" if request.version == "1.1" else b"connection: close\r\n\r\n"
        self.transport.write(b"".join((_status_line(200), headers, STREAM_HEAD, framing)))

    def send(self, data: bytes) -> None:
        """A part of the stream."""
        if self.streaming and self._request is not None:
            chunked = self._request.version == "1.1"
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

    def end_stream(self, data: bytes) -> None:
        """The last part of the stream, and its end."""
        request = self._request
        if request is None or not self.streaming:
            return
        self.streaming = False
        if request.version != "1.1":  # its end is the connection's
            self.transport.write(data)
            self._finished(keep=False)
            return
        self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n")
        self._finished(request.keep_alive and not self.all.application.draining)

    def close_if_idle(self) -> None:
        """Close where nothing is being read or answered."""
        if self._request is None and self._stage == "idle" and self.transport is not None:
            self._close()

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        peer = transport.get_extra_info("socket")
        if peer is not None:
            # Left to itself the kernel takes several megabytes of a stream that nobody reads.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WRITE_BUFFER_BYTES)
        connections = self.all
        if len(connections.open) >= connections.settings.connections_max:
            connections.refuse("too_many_connections")
            transport.abort()
            return
        connections.open.add(self)
        self.deadline = self._idle_deadline()

    def connection_lost(self, error: Exception | None) -> None:
        self.all.open.discard(self)
        self.deadline = NEVER
        self._queue.clear()
        self._request = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abort()

    def data_received(self, data: bytes) -> None:
        if self._fault is not None or self._stage == "closing":
            return
        stage = self._stage
        # A head within a small read is small; only others are counted.
        self._large_read = len(data) > self.all.settings.header_bytes_max
        if stage == "head":
            # The head came in pieces; what of this one belongs to it?
            end = data.find(b"\r\n\r\n")
            self._raw_head_bytes += len(data) if end < 0 else end
            if self._raw_head_bytes > self.all.settings.header_bytes_max:
                self._refuse(431, "headers_too_large", self._head_too_large())
                return
        elif stage == "body":
            self._raw_head_bytes += len(data)  # until a part of the body comes: trailers may be endless too
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            # Only our own callbacks raise this: `_Refused` is how they stop the parser.
            if self._fault is None:
                raise
            self._refuse(*self._fault)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:
            self._refuse(400, "malformed_http", f"the request is no HTTP/1.1: {problem}")
        else:
            if self._stage != "idle":
                self._watch(stage, len(data))

    def _watch(self, before: str, size: int) -> None:
        """Bound what is still missing of a request, after a read of `size` bytes."""
        stage, settings = self._stage, self.all.settings
        if stage == "head" and before != "head":
            self._raw_head_bytes = size
        if self._raw_head_bytes > settings.header_bytes_max:
            # One header or trailer that never ends reaches no callback.
            self._refuse(431, "headers_too_large", self._head_too_large())
        elif stage != before and self._request is None:
            self.deadline = self._arrival_deadline()

    def eof_received(self) -> bool:
        return False  # a client that stops sending has left

    def pause_writing(self) -> None:
        self._writable = False
        self._await_reader()
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._writable = True
        self._owed = 0
        if self._stage == "closing":
            return
        self.deadline = NEVER if self._request is not None else self._idle_deadline()
        if self._exchange is not None:
            self._exchange.resume()

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._stage = "head"
        self._raw_head_bytes = self._head_bytes = 0
        self._headers = {}
        self._header_count = 0
        self._path = b""
        self._body = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        if self._large_read:
            self._head_bytes += len(name) + len(value)
        name = name.lower()
        # A trailer is no header (RFC 9110, 6.5.1): what a proxy in front lets pass there says nothing about who calls.
        if name in READ_HEADERS and self._stage == "head":
            if name in self._headers:
                self._stop(400, "repeated_header", f"the header {name.decode()} is given more than once")
            self._headers[name] = value
        if self._header_count > HEADERS_MAX:
            self._stop(431, "too_many_headers", f"the request has more than {HEADERS_MAX} headers")

    def on_headers_complete(self) -> None:
        settings = self.all.settings
        headers = self._headers
        self._version = self._parser.get_http_version()
        if self._version not in ("1.1", "1.0"):
            self._stop(400, "http_version", "this gateway speaks HTTP/1.1")
        if self._large_read and self._head_bytes + len(self._path) > settings.header_bytes_max:
            self._stop(431, "headers_too_large", self._head_too_large())
        if self._parser.should_upgrade():
            self._stop(400, "upgrade_refused", "this gateway upgrades to no other protocol and opens no tunnel")
        if b"content-encoding" in headers and headers[b"content-encoding"].lower() != b"identity":
            self._stop(415, "encoded_body", "request bodies must not be encoded (no gzip)")
        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            self._stop(415, "encoded_body", "the only transfer coding of a request is chunked")
        length = headers.get(b"content-length")
        if length is not None and int(length) > settings.body_bytes_max:
            self._too_large()
        self._stage = "body"
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue" and self._request is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        self._raw_head_bytes = 0
        if self._body_bytes > self.all.settings.body_bytes_max:
            self._too_large()
        self._body.append(data)

    def on_message_complete(self) -> None:
        body = self._body
        self._stage = "idle"
        request = Request(
            self._parser.get_method(),
            self._path,
            self._headers,
            body[0] if len(body) == 1 else b"".join(body),
            self._parser.should_keep_alive(),
            self._version,
        )
        self._body = []
        if self._request is None and not self._queue:
            self._begin(request)
            return
        self._queue.append(request)
        if len(self._queue) >= PIPELINED_MAX and not self._paused_reading:
            self._paused_reading = True
            self.transport.pause_reading()

    # One after the other.

    def _begin(self, request: Request) -> None:
        self._request = request
        self.deadline = NEVER
        exchange = self.all.application.handle(request, self)
        if self._request is request:
            self._exchange = exchange
            if exchange is not None and not self._writable:
                exchange.pause()

    def _finished(self, keep: bool) -> None:
        self._request = None
        self._exchange = None
        if not keep:
            self._close()
            return
        if self._queue:
            # Not from here: a long pipeline must not grow the stack.
            self.all.loop.call_soon(self._next)
        elif self._writable:
            idle = self._stage == "idle"
            self.deadline = self.all.now + self.all.idle_s if idle else self._arrival_deadline()

    def _next(self) -> None:
        if self._request is None and self._queue:
            request = self._queue.popleft()
            if self._paused_reading and len(self._queue) < PIPELINED_MAX // 2:
                self._paused_reading = False
                self.transport.resume_reading()
            self._begin(request)

    def _arrival_deadline(self) -> float:
        settings = self.all.settings
        limit_ms = settings.header_timeout_ms if self._stage == "head" else settings.body_timeout_ms
        return self.all.now + SWEEP_S + limit_ms / 1000

    def _idle_deadline(self) -> float:
        return self.all.now + self.all.idle_s

    def late(self) -> None:
        """A deadline has passed."""
        self.deadline = NEVER
        owed = self.transport.get_write_buffer_size()
        if owed and (not self._owed or owed < self._owed):
            self._await_reader()  # it takes its time, but it takes
        elif owed or self._stage == "closing":
            self.all.refuse("slow_reader")
            self.transport.abort()
        elif self._stage == "idle":
            self._close()
        else:
            what = "head" if self._stage == "head" else "body"
            self._refuse(408, f"stalled_{what}", f"the request's {what} did not arrive in time")

    def _await_reader(self) -> None:
        """Give the client another while to take a byte of what it is owed."""
        self._owed = self.transport.get_write_buffer_size()
        self.deadline = self.all.now + SWEEP_S + self.all.settings.write_timeout_ms / 1000

    def _close(self) -> None:
        """Close once the client has taken what it is owed, or takes nothing more."""
        self._stage = "closing"
        self._await_reader()
        self.transport.close()

    # Refusals before any route.

    def _head_too_large(self) -> str:
        return f"the request's head is longer than {self.all.settings.header_bytes_max} bytes"

    def _too_large(self) -> None:
        limit = self.all.settings.body_bytes_max
        self._stop(413, "body_too_large", f"the request's body is longer than {limit} bytes")

    def _stop(self, status: int, code: str, message: str) -> None:
        """Refuse from within a parser's callback."""
        self._fault = (status, code, message)
        raise _Refused

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._fault = (status, code, message)
        self.all.refuse(code)
        if self._request is None and not self.streaming:
            body = error_body(message, kind="invalid_request_error", code=code)
            self.transport.write(
                _status_line(status)
                + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
                + body
            )
        self._close()


class _Refused(Exception):
    """Stops the parser."""


STREAM_HEAD = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
_LINES = {status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in REASONS.items()}


def _status_line(status: int) -> bytes:
    return _LINES.get(status) or f"HTTP/1.1 {status} Status\r\n".encode()
