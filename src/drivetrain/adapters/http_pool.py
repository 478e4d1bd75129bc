"""The transport to providers: HTTP/1.1 over a keep-alive pool per endpoint, on asyncio protocols and httptools.

No redirects are followed, no encodings are asked for, and every wait, body and queue has a limit. A connection
is reused last in, first out; one that ends while idle is dropped when its end arrives.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
import time
from collections import deque
from typing import Any
from urllib.parse import urlsplit

import httptools

from drivetrain.core.endpoints import Endpoint, proxy_authorization
from drivetrain.ports.transport import (
    READ_HEADERS,
    UpstreamFailure,
    UpstreamHead,
    UpstreamRequest,
    UpstreamSink,
)

SWEEP_S = 0.05
"""How often deadlines are looked at; a deadline is met within this."""
HEAD_BYTES_MAX = 64 * 1024
WAITING_MAX = 4096
"""Attempts per endpoint that may wait for a connection; more fail at once."""
JOIN_BYTES_MAX = 64 * 1024
"""Larger bodies are written on their own instead of being copied behind the head."""
PROXY_PORT = 8080
FRAMING_HEADERS = frozenset({b"content-length", b"transfer-encoding"})


class HttpPool:
    """Implements `ports.transport.Transport` for one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._hosts: dict[Endpoint, _Host] = {}
        self._exchanges: set[_Exchange] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False
        self._now = loop.time()
        """At most `SWEEP_S` old."""
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)

    def send(self, request: UpstreamRequest, sink: UpstreamSink) -> _Exchange:
        host = self._hosts.get(request.endpoint)
        if host is None:
            host = self._hosts[request.endpoint] = _Host(request.endpoint)
        # A deadline counts from the next sweep, so that it never falls short.
        exchange = _Exchange(self, host, request, sink, time.monotonic())
        self._exchanges.add(exchange)
        while host.idle:
            connection = host.idle.pop()
            if not connection.closed:
                connection.carry(exchange)
                return exchange
        if self._closed or len(host.waiting) >= WAITING_MAX:
            why = "the transport is closed" if self._closed else f"{WAITING_MAX} attempts wait for a connection already"
            failure = UpstreamFailure("shutdown" if self._closed else "pool_full", why, False)
            self._loop.call_soon(exchange.fail, failure)
            return exchange
        host.waiting.append(exchange)
        self._connect_more(host)
        return exchange

    async def close(self) -> None:
        """Close every connection; running exchanges fail, and so do new ones."""
        self._closed = True
        self._sweeper.cancel()
        for task in list(self._connecting):
            task.cancel()
        for exchange in list(self._exchanges):
            exchange.fail(UpstreamFailure("shutdown", "the transport was closed", exchange.connection is not None))
        for host in self._hosts.values():
            for connection in list(host.connections):
                connection.drop()
        await asyncio.gather(*self._connecting, return_exceptions=True)

    @property
    def open_connections(self) -> int:
        """Connections to all endpoints."""
        return sum(len(host.connections) for host in self._hosts.values())

    # Connections.

    def _connect_more(self, host: _Host) -> None:
        while host.connecting < len(host.waiting) and host.total < host.endpoint.connections_max:
            host.connecting += 1
            task = self._loop.create_task(self._connect(host))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, host: _Host) -> None:
        endpoint = host.endpoint
        failure: UpstreamFailure | None = None
        try:
            async with asyncio.timeout(endpoint.connect_timeout_ms / 1000):
                connection = await _open(self, host)
            if connection.closed:  # before this task heard of it, as uvloop has it; nobody would hear of it again
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        except TimeoutError:
            detail = f"no connection to {endpoint.authority} within {endpoint.connect_timeout_ms} ms"
            failure = UpstreamFailure("connect_timeout", detail, False)
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", "") or error.reason or type(error).__name__
            detail = f"no TLS with {endpoint.authority}: {why}"
            failure = UpstreamFailure("tls", detail, False)
        except OSError as error:
            detail = f"no connection to {endpoint.authority}: {error.strerror or type(error).__name__}"
            failure = UpstreamFailure("connect", detail, False)
        except ProxyRefused as error:
            failure = UpstreamFailure("connect", str(error), False)
        except (UnicodeError, ValueError) as error:
            detail = f"no connection to {endpoint.authority}: the address is no host name ({type(error).__name__})"
            failure = UpstreamFailure("connect", detail, False)
        finally:
            host.connecting -= 1
        if failure is not None:
            waiting = host.next_waiting()
            if waiting is not None:
                waiting.fail(failure)
            self._connect_more(host)
            return
        self.free(host, connection)

    def free(self, host: _Host, connection: _Connection) -> None:
        """`connection` has nothing to carry: give it the next waiting exchange, or keep it."""
        waiting = host.next_waiting() if host.waiting else None
        if waiting is not None:
            connection.carry(waiting)
        else:
            connection.idle_since = self._now
            host.idle.append(connection)

    def lost(self, host: _Host) -> None:
        """A connection is gone, so another may be opened for those who wait."""
        if host.waiting:
            self._connect_more(host)

    def done(self, exchange: _Exchange) -> None:
        """`exchange` is over."""
        self._exchanges.discard(exchange)

    # Deadlines.

    def _sweep(self) -> None:
        # First: nothing that goes wrong below may end the deadlines of a worker.
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        now = self._now = self._loop.time()
        late = [one for one in self._exchanges if now >= one.deadline]
        for exchange in late:
            if exchange in self._exchanges:
                exchange.late()
        for host in self._hosts.values():
            while host.idle and now - host.idle[0].idle_since > host.endpoint.idle_s:
                host.idle.pop(0).drop()


class _Host:
    """One endpoint's connections and those who wait for one."""

    __slots__ = ("connecting", "connections", "endpoint", "idle", "tls", "waiting")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.idle: list[_Connection] = []
        self.connections: set[_Connection] = set()
        self.connecting = 0
        self.waiting: deque[_Exchange] = deque()
        self.tls: ssl.SSLContext | None = None

    @property
    def total(self) -> int:
        return len(self.connections) + self.connecting

    def next_waiting(self) -> _Exchange | None:
        while self.waiting:
            exchange = self.waiting.popleft()
            if not exchange.over:
                return exchange
        return None


class _Exchange:
    """Implements `ports.transport.Attempt`."""

    __slots__ = ("_pool", "begun", "connection", "deadline", "got_head", "host", "over", "request", "sink", "started")

    def __init__(self, pool: HttpPool, host: _Host, request: UpstreamRequest, sink: UpstreamSink, now: float) -> None:
        self._pool = pool
        self.host = host
        self.request = request
        self.sink = sink
        self.started = now
        self.deadline = now + min(request.first_byte_timeout_ms, request.timeout_ms) / 1000
        self.connection: _Connection | None = None
        self.got_head = False
        self.begun = False
        self.over = False

    @property
    def sent(self) -> bool:
        return self.connection is not None

    def cancel(self) -> None:
        self._end()

    def pause(self) -> None:
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        if self.connection is not None:
            self.connection.resume()

    def fail(self, failure: UpstreamFailure) -> None:
        if not self.over:
            self._end()
            try:
                self.sink.on_failure(failure)
            except Exception as fault:  # noqa: BLE001  the boundary to the sink
                self.sink.on_fault(fault)

    def late(self) -> None:
        """The deadline has passed: of the first byte, or of the whole answer."""
        request, sent = self.request, self.connection is not None
        if self.begun:
            self.fail(UpstreamFailure("timeout", f"the answer took longer than {request.timeout_ms} ms", True))
        else:
            limit = min(request.first_byte_timeout_ms, request.timeout_ms)
            self.fail(UpstreamFailure("first_byte_timeout", f"no answer within {limit} ms", sent))

    def answering(self) -> None:
        self.begun = True
        self.deadline = self.started + self.request.timeout_ms / 1000

    def finish(self) -> None:
        """The whole answer is here; the connection is free already."""
        self.over = True
        self.connection = None
        self._pool.done(self)

    def ended(self) -> None:
        """Tell the sink that the answer is whole."""
        try:
            self.sink.on_end()
        except Exception as fault:  # noqa: BLE001  the boundary to the sink
            self.sink.on_fault(fault)

    def _end(self) -> None:
        self.over = True
        self._pool.done(self)
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.exchange = None
            connection.drop()


class _Connection(asyncio.Protocol):
    """One connection to an endpoint, carrying one exchange at a time."""

    __slots__ = (
        "_body_bytes",
        "_complete",
        "_dirty",
        "_framed",
        "_head_bytes",
        "_headers",
        "_in_head",
        "_keep",
        "_parser",
        "_parts",
        "_paused",
        "_pool",
        "_status",
        "closed",
        "exchange",
        "host",
        "idle_since",
        "transport",
    )

    def __init__(self, pool: HttpPool, host: _Host) -> None:
        self._pool = pool
        self.host = host
        self.transport: Any = None
        self.exchange: _Exchange | None = None
        self.closed = False
        self.idle_since = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._in_head = True
        self._head_bytes = 0
        self._body_bytes = 0
        self._framed = False
        self._status = 0
        self._paused = False
        self._complete = False
        self._keep = False
        self._dirty = False

    def carry(self, exchange: _Exchange) -> None:
        """Send `exchange`'s request."""
        self.exchange = exchange
        exchange.connection = self
        request = exchange.request
        body = request.body
        size = str(len(body)).encode()
        if len(body) <= JOIN_BYTES_MAX:
            self.transport.write(b"".join((request.head, size, b"\r\n\r\n", body)))
        else:
            self.transport.writelines((b"".join((request.head, size, b"\r\n\r\n")), body))

    def pause(self) -> None:
        if not self._paused and not self.closed:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self.closed:
            self._paused = False
            self.transport.resume_reading()

    def drop(self) -> None:
        """Close at once."""
        if not self.closed:
            self.closed = True
            if self.transport is not None:
                self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.host.connections.add(self)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.drop()  # nobody asked
            return
        self._head_bytes += len(data)  # until a part of the body comes: trailers may be endless too
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._parts:
                self._deliver()
            if self._complete:
                self._dirty = True  # what follows a whole answer does not spoil it, but ends the connection
                self._answered()
                return
            running = self.exchange
            if running is not None:
                running.fail(UpstreamFailure("protocol", f"the answer is no HTTP/1.1: {error}", True))
            self.drop()
            return
        if self._head_bytes > HEAD_BYTES_MAX and self.exchange is not None and not self._complete:
            detail = f"the head or the trailers are longer than {HEAD_BYTES_MAX} bytes"
            self.exchange.fail(UpstreamFailure("oversized", detail, True))
        if self._parts:
            self._deliver()
        if self._complete:
            self._answered()

    def _deliver(self) -> None:
        """Give the sink all that one read brought at once: a busy stream's events come several to a read."""
        parts, self._parts = self._parts, []
        exchange = self.exchange
        if exchange is not None:
            try:
                exchange.sink.on_chunk(parts[0] if len(parts) == 1 else b"".join(parts))
            except Exception as fault:  # noqa: BLE001  the boundary to the sink
                exchange.sink.on_fault(fault)

    def _answered(self) -> None:
        """The parser has taken the whole answer: free the connection, then tell the sink."""
        self._complete = False
        exchange, self.exchange = self.exchange, None
        keep = self._keep and not self._dirty and not self.closed
        self._in_head = True
        self._head_bytes = self._body_bytes = 0
        self._framed = False
        if self._paused:
            self.resume()
        if exchange is not None:
            exchange.finish()
        if keep:
            self._pool.free(self.host, self)
        else:
            self.drop()
        if exchange is not None:
            exchange.ended()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        host = self.host
        host.connections.discard(self)
        if self in host.idle:
            host.idle.remove(self)
        exchange = self.exchange
        if exchange is not None:
            self.exchange = None
            exchange.connection = None
            if exchange.got_head and not self._framed and error is None:
                exchange.finish()  # an answer without a length ends with its connection
                exchange.ended()
            else:
                kind = "cut" if exchange.got_head else "closed"
                detail = (
                    "the connection ended in mid-answer" if exchange.got_head else "the connection ended unanswered"
                )
                exchange.fail(UpstreamFailure(kind, detail, True))
        self._pool.lost(host)

    # httptools callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            self._dirty = True  # a second answer behind the first must never reach the next exchange

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer; kept, it would be a header of this connection's next answer
        name = name.lower()
        if name in READ_HEADERS:
            self._headers[name] = value
        elif name in FRAMING_HEADERS:
            self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._status = status
        exchange = self.exchange
        if exchange is None or status < 200 or self._complete:
            return
        self._in_head = False
        exchange.got_head = True
        headers, self._headers = self._headers, {}
        encoding = headers.get(b"content-encoding", b"identity")
        if encoding.lower() != b"identity":
            detail = f"the answer is encoded as {encoding.decode('latin-1')[:40]}, which was not asked for"
            exchange.fail(UpstreamFailure("protocol", detail, True))
            return
        exchange.sink.on_head(UpstreamHead(status, headers))

    def on_body(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None or self._complete:
            return
        self._body_bytes += len(data)
        self._head_bytes = 0
        limit = exchange.request.endpoint.answer_bytes_max
        if self._body_bytes > limit:
            exchange.fail(UpstreamFailure("oversized", f"the answer is longer than {limit} bytes", True))
            return
        self._parts.append(data)

    def on_message_complete(self) -> None:
        if self._status < 200:
            self._headers = {}
            self._framed = False
        elif self.exchange is not None:
            self._complete = True
            # Only here: the parser forgets it with the next message.
            self._keep = self._framed and self._parser.should_keep_alive()


class ProxyRefused(Exception):
    """The proxy did not open a tunnel."""


async def _open(pool: HttpPool, host: _Host) -> _Connection:
    """A connection, through TLS and a proxy where the endpoint says so."""
    loop, endpoint = pool._loop, host.endpoint
    secure = endpoint.scheme == "https"
    if secure and host.tls is None:
        # Reading the system's CAs takes tens of milliseconds.
        host.tls = await loop.run_in_executor(None, tls_context, endpoint.ca_file)

    def make() -> _Connection:
        return _Connection(pool, host)

    proxy_url = endpoint.proxy
    if proxy_url is None:
        if secure:
            _, connection = await loop.create_connection(
                make, endpoint.host, endpoint.port, ssl=host.tls, server_hostname=endpoint.host
            )
        else:
            _, connection = await loop.create_connection(make, endpoint.host, endpoint.port)
        return connection
    proxy = urlsplit(proxy_url)
    proxy_host, proxy_port = proxy.hostname or "", proxy.port or PROXY_PORT
    if not secure:
        _, connection = await loop.create_connection(make, proxy_host, proxy_port)
        return connection
    tunnel = loop.create_future()
    transport, _ = await loop.create_connection(
        lambda: _Tunnel(endpoint, proxy_authorization(proxy_url), tunnel), proxy_host, proxy_port
    )
    try:
        await tunnel
        connection = make()
        assert host.tls is not None
        secured = await loop.start_tls(transport, connection, host.tls, server_hostname=endpoint.host)
    except BaseException:
        transport.abort()
        raise
    connection.connection_made(secured)
    return connection


class _Tunnel(asyncio.Protocol):
    """Asks a proxy for a tunnel (RFC 9110, CONNECT)."""

    def __init__(self, endpoint: Endpoint, authorization: str | None, opened: asyncio.Future[None]) -> None:
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        self._authority = f"{host}:{endpoint.port}"
        self._authorization = authorization
        self._opened = opened
        self._answer = b""

    def connection_made(self, transport: Any) -> None:
        lines = [f"CONNECT {self._authority} HTTP/1.1", f"host: {self._authority}"]
        if self._authorization is not None:
            lines.append(f"proxy-authorization: {self._authorization}")
        transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if self._opened.done():
            return
        if b"\r\n\r\n" in self._answer:
            words = self._answer.split(b"\r\n", 1)[0].split(b" ", 2)
            if len(words) > 1 and words[1].startswith(b"2"):
                self._opened.set_result(None)
            else:
                # Nothing else that it said: some repeat the password.
                said = words[1] if len(words) > 1 else b""
                status = said.decode() if said.isdigit() and len(said) == 3 else "no status"
                self._opened.set_exception(ProxyRefused(f"the proxy answered {status} to CONNECT {self._authority}"))
        elif len(self._answer) > HEAD_BYTES_MAX:
            self._opened.set_exception(ProxyRefused("the proxy's answer to CONNECT is too long"))

    def connection_lost(self, _error: Exception | None) -> None:
        if not self._opened.done():
            self._opened.set_exception(ProxyRefused("the proxy closed the connection"))


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """TLS that verifies the host against the system's CAs, or against those in `ca_file`."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
