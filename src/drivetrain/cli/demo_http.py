"""A small HTTP/1.1 client for the demo: JSON posted over kept connections, a few at a time.

Owns connections and framing. What is sent, and what the answers mean, is for `demo_traffic`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from drivetrain.core.errors import DrivetrainError

ANSWER_TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 16 * 1024 * 1024
DO = "Run the demo again; gateway.log in its folder has what the gateway said."


class HttpAnswer(msgspec.Struct, frozen=True):
    """A status, headers with small names, and a body."""

    status: int
    headers: dict[str, str]
    body: bytes


class HttpConnection:
    """One kept connection; one request at a time."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = host
        self._reader = reader
        self._writer = writer

    async def post(self, path: str, key: str, body: bytes) -> HttpAnswer:
        """Raises: DrivetrainError where no whole answer comes in time."""
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                self._writer.write(head.encode() + body)
                await self._writer.drain()
                return await self._answer()
        except TimeoutError:
            raise DrivetrainError(f"No answer to POST {path} within {ANSWER_TIMEOUT_S:g} s.", do=DO) from None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise DrivetrainError(f"The connection broke during POST {path}: {error}.", do=DO) from None

    def close(self) -> None:
        """Closes it; an answer under way is lost."""
        self._writer.close()

    async def _answer(self) -> HttpAnswer:
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        length = int(headers["content-length"]) if "content-length" in headers else -1
        if not 0 <= length <= ANSWER_BYTES_MAX:
            raise ValueError(f"an answer of {length} bytes")
        return HttpAnswer(int(lines[0].split(" ")[1]), headers, await self._reader.readexactly(length))


def unexpected(what: str, answer: HttpAnswer) -> DrivetrainError:
    """The error that says what came instead of `what`."""
    said = answer.body.decode("utf-8", "replace")[:1_000]
    return DrivetrainError(f"The gateway answered {answer.status} to {what}: {said}", do=DO)


@asynccontextmanager
async def connections(host: str, port: int, count: int) -> AsyncIterator[list[HttpConnection]]:
    """`count` connections, closed at the end. Raises: DrivetrainError."""
    opened: list[HttpConnection] = []
    try:
        for _ in range(count):
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except OSError as error:
                raise DrivetrainError(f"Nothing answers on {host}:{port}: {error}.", do=DO) from None
            opened.append(HttpConnection(f"{host}:{port}", reader, writer))
        yield opened
    finally:
        for connection in opened:
            connection.close()
