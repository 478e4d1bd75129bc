"""An open load in a process of its own: requests leave when their time has come, whatever became of those before.

`python promise_rate.py PORT RATE SECONDS`; prints JSON: `told`, of each connection what it was told, in order, and
`sent_s`, after which the last request had left.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque

CONNECTIONS = 64
TICK_S = 0.001
CONNECTIONS_MAX = 400
"""A gateway that stands still for a moment is waited for then: more would meet limits on open files, here and there."""
DRAIN_S = 60.0
BODY = b'{"model":"said","messages":[{"role":"user","content":"?"}]}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self, idle: deque[Connection]) -> None:
        self.told: list[list[object]] = []
        """Status, call id, text, milliseconds; status 0: no answer came."""
        self._idle = idle
        self._buffer = b""
        self._sent_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._idle.append(self)

    def send(self) -> None:
        self._sent_s = time.perf_counter()
        self.told.append([0, "", "", 0.0])
        self._transport.write(REQUEST)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        headers = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:])
        if len(body) < int(headers["content-length"]):
            return
        self._buffer = b""
        status = int(head[9:12])
        text = json.loads(body)["choices"][0]["message"]["content"] if status == 200 else body.decode()
        took_ms = (time.perf_counter() - self._sent_s) * 1e3
        self.told[-1] = [status, headers.get("x-request-id", ""), text, took_ms]
        self._idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)


async def offer(port: int, rate: int, seconds: float) -> dict[str, object]:
    """What each connection was told, and how long it took to send all of it."""
    loop = asyncio.get_running_loop()
    idle: deque[Connection] = deque()
    made: list[Connection] = []

    async def connect() -> None:
        _, connection = await loop.create_connection(lambda: Connection(idle), "127.0.0.1", port)
        made.append(connection)

    for _ in range(CONNECTIONS):
        await connect()
    began, sent = time.perf_counter(), 0
    while sent < rate * seconds:
        due = min(int((time.perf_counter() - began) * rate) + 1, int(rate * seconds))
        while sent < due:
            if not idle and len(made) < CONNECTIONS_MAX:
                await connect()
            while not idle:
                await asyncio.sleep(TICK_S)
            idle.popleft().send()
            sent += 1
        await asyncio.sleep(TICK_S)
    sent_s = time.perf_counter() - began
    until = time.perf_counter() + DRAIN_S
    while len(idle) < len(made) and time.perf_counter() < until:
        await asyncio.sleep(TICK_S)
    return {"told": [one.told for one in made], "sent_s": sent_s}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(offer(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))))
