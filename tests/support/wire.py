"""A client that writes raw bytes and reports every answer, and how the connection ended."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from typing import Any

WAIT_S = 30.0
"""What is waited for comes within a moment; the limit is for a machine that stands still, and costs nothing."""


@dataclass(frozen=True)
class Answered:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True
    """Whether its framing ended; False where the connection ended first."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape, checked."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str)
        assert error["message"]
        assert error["type"] in ("invalid_request_error", "server_error", "rate_limit_error"), error
        assert isinstance(error["code"], str)
        return error

    @property
    def events(self) -> list[Any]:
        """The JSON of a stream's events; `[DONE]` as that text."""
        data = [block[6:] for block in self.body.split(b"\n\n") if block.startswith(b"data: ")]
        return ["[DONE]" if one == b"[DONE]" else json.loads(one) for one in data]

    @property
    def text(self) -> str:
        """The content of a stream's events, joined."""
        parts = []
        for one in self.events:
            for choice in one.get("choices", []) if isinstance(one, dict) else []:
                parts.append(choice.get("delta", {}).get("content") or "")
        return "".join(parts)


@dataclass(frozen=True)
class Heard:
    """Everything a connection brought."""

    answers: list[Answered]
    end: str
    """`fin`, `rst`, or `open` where it was still open."""
    rest: bytes = b""
    """Bytes behind the last answer that are none."""


def request(
    body: bytes | str | dict[str, Any] | None = None,
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    key: str | None = None,
    headers: str = "",
    length: bool = True,
) -> bytes:
    """One HTTP/1.1 request as bytes; headers: further lines, each ending in CR LF."""
    content = json.dumps(body).encode() if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
    lines = f"{method} {path} HTTP/1.1\r\nhost: gateway\r\n"
    if key is not None:
        lines += f"authorization: Bearer {key}\r\n"
    if content is not None and length:
        lines += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n"
    return (lines + headers + "\r\n").encode("latin-1") + (content or b"")


def connect(port: int, *, receive_bytes: int = 0) -> socket.socket:
    """A connection; receive_bytes: size of its receive buffer."""
    made = socket.socket()
    if receive_bytes:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.settimeout(WAIT_S)
    made.connect(("127.0.0.1", port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def ask(port: int, *parts: bytes, answers: int = 1, wait_s: float = WAIT_S) -> Heard:
    """Sends the parts (each in a write of its own) and reads `answers` answers, or until the end."""
    with connect(port) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass  # the gateway may answer and close before it has read everything
        return hear(connection, answers=answers, wait_s=wait_s)


def one(port: int, *parts: bytes, wait_s: float = WAIT_S) -> Answered:
    """The one answer to one request."""
    heard = ask(port, *parts, wait_s=wait_s)
    assert heard.answers, f"no answer came; the connection's end: {heard.end}, bytes: {heard.rest!r}"
    return heard.answers[0]


def hear(connection: socket.socket, *, answers: int = 1, wait_s: float = WAIT_S) -> Heard:
    """Reads until `answers` answers have come or the connection ended."""
    deadline = time.monotonic() + wait_s
    got = b""
    found: list[Answered] = []
    while True:
        while True:
            parsed = _parse(got)
            if parsed is None:
                break
            answer, got = parsed
            if answer.status >= 200:
                found.append(answer)
        if len(found) >= answers:
            return Heard(found, "open", got)
        left = deadline - time.monotonic()
        if left <= 0:
            return Heard(found, "open", got)
        connection.settimeout(left)
        try:
            part = connection.recv(1_048_576)
        except TimeoutError:
            return Heard(found, "open", got)
        except ConnectionResetError:
            return Heard([*found, *_cut(got)], "rst", got)
        if not part:
            return Heard([*found, *_cut(got)], "fin", got)
        got += part


def ending(connection: socket.socket, wait_s: float = WAIT_S) -> str:
    """How the connection ends within that time: `fin`, `rst` or `open`."""
    connection.settimeout(wait_s)
    try:
        while connection.recv(1_048_576):
            pass
    except TimeoutError:
        return "open"
    except ConnectionResetError:
        return "rst"
    return "fin"


def _head(data: bytes) -> tuple[int, dict[str, str], bytes] | None:
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:])
    return int(lines[0].split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}, rest


def _parse(data: bytes) -> tuple[Answered, bytes] | None:
    """(the first whole answer, what stands behind it)."""
    found = _head(data)
    if found is None:
        return None
    status, headers, rest = found
    if status < 200:
        return Answered(status, headers, b""), rest
    if "content-length" in headers:
        length = int(headers["content-length"])
        return (Answered(status, headers, rest[:length]), rest[length:]) if len(rest) >= length else None
    body = b""
    while True:
        line, end, rest = rest.partition(b"\r\n")
        if not end:
            return None
        size = int(line, 16)
        if len(rest) < size + 2:
            return None
        body += rest[:size]
        rest = rest[size + 2 :]
        if size == 0:
            return Answered(status, headers, body), rest


def _cut(data: bytes) -> list[Answered]:
    """An answer whose connection ended before it did."""
    found = _head(data)
    if found is None:
        return []
    status, headers, rest = found
    body = b""
    if "chunked" not in headers.get("transfer-encoding", ""):
        return [Answered(status, headers, rest, whole=False)]
    while rest:
        line, end, rest = rest.partition(b"\r\n")
        if not end or not line:
            break
        size = int(line, 16)
        body += rest[:size]
        rest = rest[size + 2 :]
    return [Answered(status, headers, body, whole=False)]
