"""Raw HTTP for the simulator's tests: what came, byte by byte, and how the connection ended."""

import http.client
import json
import socket
import time
from dataclasses import dataclass
from typing import Any

from drivetrain.simulator import SimulatorProcess
from support.tries import PATIENCE_S

OPENAI = "/v1/chat/completions"
ANTHROPIC = "/v1/messages"


@dataclass(frozen=True, kw_only=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes
    after_s: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON of a stream's events; `[DONE]` left out."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


def chat(model: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    """An OpenAI request with one user message."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def message(model: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    """An Anthropic request with one user message."""
    return {"max_tokens": 500, **chat(model, text), **more}


def send(
    simulator: SimulatorProcess, path: str, body: dict[str, Any] | bytes | None, headers: dict[str, str] | None = None
) -> Answered:
    """One request on a connection of its own; the version header of Anthropic is added."""
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    begun = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", simulator.port, timeout=PATIENCE_S)
    try:
        method = "GET" if content is None else "POST"
        connection.request(method, path, content, {"anthropic-version": "2023-06-01", **(headers or {})})
        response = connection.getresponse()
        content = response.read()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answered(status=response.status, headers=found, body=content, after_s=time.monotonic() - begun)
    finally:
        connection.close()


def raw_request(path: str, body: dict[str, Any], *, headers: str = "") -> bytes:
    content = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nhost: simulator\r\n{headers}content-length: {len(content)}\r\n\r\n".encode() + content
    )


def raw(simulator: SimulatorProcess, request: bytes, *, most: int = 10_000_000) -> tuple[bytes, str]:
    """Every byte until the connection ends, and its end: `fin`, `rst`, or `open` after `most` bytes."""
    got = b""
    with socket.create_connection(("127.0.0.1", simulator.port), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        while len(got) < most:
            try:
                part = connection.recv(65_536)
            except ConnectionResetError:
                return got, "rst"
            except TimeoutError:
                return got, "open"
            if not part:
                return got, "fin"
            got += part
    return got, "open"
