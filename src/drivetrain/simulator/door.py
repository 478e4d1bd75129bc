"""What every dialect's door can do, and the records that pass through it.

A door translates between one provider's HTTP and the simulator's own records; it decides nothing. `openai_door` and
`anthropic_door` implement it, `desk` calls it.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from drivetrain.simulator.content import Content

Finish = Literal["stop", "length", "tool"]
Headers = list[tuple[bytes, bytes]]


class Asked(msgspec.Struct, kw_only=True):
    """What a request asks for, whatever its dialect."""

    model: str
    text: str
    """The last user message."""
    tokens_input: int
    stream: bool = False
    stream_usage: bool = False
    tokens_output_max: int | None = None
    json: bool = False
    """The answer has to be JSON: a tool's arguments, or a response format."""
    schema: bytes = b""
    """The JSON schema of the answer, as it was sent; empty when there is none."""
    tool: str = ""
    """The tool to call instead of answering; empty to answer."""


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of one answer."""

    input: int
    """All input, cached included."""
    input_cached: int
    output: int
    """All output, reasoning included."""
    reasoning: int


class Said(msgspec.Struct, kw_only=True):
    """One answer, ready to be written in a dialect."""

    asked: Asked
    content: Content
    finish: Finish
    usage: Usage | None
    """What is reported; None leaves it out."""
    serial: int
    created_s: int
    processing_ms: int
    extra_headers: bytes = b""
    bad_utf8: bool = False
    """Put bytes into the text that are not UTF-8."""


class Refusal(Exception):
    """The answer is an error of the provider's own shape."""

    def __init__(self, status: int, message: str, *, code: str = "", retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        """A finer name than the status, such as `model_not_found`."""
        self.retry_after_s = retry_after_s
        self.extra_headers = b""


class Door(Protocol):
    """One dialect."""

    envelope_bytes: int
    """The size of an answer's body around its text."""

    def key(self, header: Callable[[bytes], bytes | None]) -> bytes | None:
        """The key that the client sent."""

    def read(self, body: bytes, header: Callable[[bytes], bytes | None]) -> Asked:
        """What is asked. Raises: Refusal (400)."""

    def body(self, said: Said) -> bytes:
        """The whole answer as JSON."""

    def head(self, said: Said, content_length: int | None) -> bytes:
        """The response head; chunked when the length is None."""

    def events(self, said: Said, count: int) -> list[bytes]:
        """A stream's pieces without HTTP framing: the opening, `count` pieces of content, the closing."""

    def mid_stream_error(self, status: int) -> bytes:
        """The event that a provider sends when it fails in mid-stream."""

    def refusal(self, refusal: Refusal, serial: int) -> bytes:
        """The whole response for a refusal, head included."""

    def limit_headers(self, limit: int, remaining: int, reset_s: float) -> bytes:
        """Head lines that tell the state of the rate limit."""

    def models(self, names: list[str]) -> bytes:
        """The body of the list of models."""


def chunk(data: bytes) -> bytes:
    """`data` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
STREAM_FRAMING = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
WHOLE_FRAMING = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"

REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    529: b"Overloaded",
}


def status_line(status: int) -> bytes:
    """The first line of a response."""
    return b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b"Error"))


def spoiled(text_json: bytes) -> bytes:
    """A JSON string that is no longer UTF-8."""
    return b'"\xff\xfe' + text_json[1:]
