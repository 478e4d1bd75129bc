"""The simulator's sockets: frames requests with httptools, hands them to the desk, plays the replies.

Owns connections and their limits; knows no dialect. Runs on the current event loop (uvloop where `python -m
drivetrain.simulator` starts it).
"""

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from drivetrain.simulator.desk import Desk, HttpRequest
from drivetrain.simulator.playback import Playback, Reply
from drivetrain.simulator.settings import SimulatorConfig

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 64 * 1024 * 1024
"""What a request may have; beyond it the answer is 431 or 413 and the connection closes."""
PIPELINED_MAX = 16
"""Requests waiting on one connection; beyond it the simulator stops reading until one is answered."""
BACKLOG = 1024


async def serve(
    config: SimulatorConfig,
    host: str | None = None,
    port: int | None = None,
    ready: Callable[[int], None] | None = None,
) -> None:
    """Serves until cancelled; calls `ready` with the port once connections are accepted.

    host, port: the TOML's when None; port 0 takes a free one. Raises: OSError when the address cannot be used.
    """
    loop = asyncio.get_running_loop()
    desk = Desk(config, loop.time, time.time)
    connections: set[Connection] = set()
    host = config.server.host if host is None else host
    port = config.server.port if port is None else port
    server = await loop.create_server(lambda: Connection(desk, loop, connections), host, port, backlog=BACKLOG)
    # What exists now lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    try:
        if ready is not None:
            ready(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()
    finally:
        server.close()
        for connection in tuple(connections):
            connection.close()


class Connection(asyncio.Protocol):
    """One client's connection; answers its requests in order."""

    __slots__ = (
        "_body",
        "_broken",
        "_choked",
        "_connections",
        "_desk",
        "_head_bytes",
        "_headers",
        "_loop",
        "_parser",
        "_playback",
        "_reading",
        "_size",
        "_transport",
        "_url",
        "_waiting",
    )

    _transport: asyncio.Transport

    def __init__(self, desk: Desk, loop: asyncio.AbstractEventLoop, connections: "set[Connection]") -> None:
        self._desk = desk
        self._loop = loop
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[HttpRequest] = deque()
        self._playback: Playback | None = None
        self._reading = True
        self._choked = False
        self._broken: tuple[int, str] | None = None
        self.on_message_begin()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is one in all but its ancestry, so that isinstance() would be false.
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._waiting.clear()
        if self._playback is not None:
            self._playback.abandon()
            self._playback = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._broken is None:
                self._broken = (400, f"This is not HTTP/1.1 as the simulator reads it: {error}.")
        self._answer_waiting()

    def pause_writing(self) -> None:
        self._choked = True
        if self._playback is not None:
            self._playback.pause()

    def resume_writing(self) -> None:
        self._choked = False
        if self._playback is not None:
            self._playback.resume()
        self._answer_waiting()

    # httptools calls these

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._size = 0
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        for name, value in self._headers:
            if len(name) == 6 and name.lower() == b"expect" and value.lower() == b"100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > BODY_BYTES_MAX:
            self._refuse_rest(413, f"A request body may have {BODY_BYTES_MAX} bytes.")
        self._body.append(body)

    def on_message_complete(self) -> None:
        parts = self._body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parser = self._parser
        self._waiting.append(
            HttpRequest(parser.get_method(), self._url, self._headers, body, parser.should_keep_alive())
        )

    def close(self) -> None:
        """Ends the connection at once."""
        self._transport.abort()

    def _answer_waiting(self) -> None:
        while self._playback is None and self._waiting and not self._choked:
            request = self._waiting.popleft()
            reply = self._desk.reply(request)
            if reply.is_plain:
                self._transport.write(reply.pieces[0])
                if reply.bill is not None:
                    reply.bill.settle(deltas_sent=0, deltas=0, complete=True)
                if not request.keep_alive:
                    self._transport.close()
                    return
            else:
                self._play(reply, request.keep_alive)
        if self._playback is None and not self._waiting and self._broken is not None:
            self._transport.write(self._desk.unreadable(*self._broken).pieces[0])
            self._transport.close()
        self._read_as_room_allows()

    def _play(self, reply: Reply, keep_alive: bool) -> None:
        def ended() -> None:
            self._playback = None
            if keep_alive:
                self._answer_waiting()
            else:
                self._transport.close()

        self._playback = Playback(reply, self._transport, self._loop, ended)
        self._playback.start()

    def _read_as_room_allows(self) -> None:
        room = len(self._waiting) < PIPELINED_MAX
        if room != self._reading and not self._transport.is_closing():
            self._reading = room
            if room:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse_rest(431, f"A request head may have {HEAD_BYTES_MAX} bytes.")

    def _refuse_rest(self, status: int, message: str) -> None:
        """Stops the parser; what was read before is still answered."""
        if self._broken is None:
            self._broken = (status, message)
        raise ValueError(message)
