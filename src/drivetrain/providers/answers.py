"""What every dialect's answers become: OpenAI's chat shape, with usage and finish reason read out."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.endpoints import Endpoint
from drivetrain.core.money import Usage

BYTES_PER_TOKEN = 4
"""Of the estimate where a provider reports no usage."""
COUNT_MAX = 1_000_000_000
"""Tokens; a provider that reports more is mistaken."""
PARTIAL_EVENT_BYTES_MAX = 1024 * 1024
"""A longer event of a stream is no answer but an attack or a fault."""


class Unusable(Exception):
    """A provider's answer that cannot be used: the reason, without its content."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One model at one provider, ready to be spoken to."""

    reference: str
    """`provider/model`."""
    upstream_name: str
    endpoint: Endpoint
    capabilities: frozenset[str]
    max_tokens_field: str


class Reading(msgspec.Struct, frozen=True, gc=False):
    """One whole answer in OpenAI's shape."""

    body: bytes
    """A `chat.completion` object."""
    finish_reason: str
    usage: Usage
    """`source` is `none` where the provider reported none."""


class Message(msgspec.Struct, frozen=True):
    """What checks and typed outputs look at."""

    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    refusal: str | None = None


class ProviderError(msgspec.Struct, frozen=True):
    """A provider's refusal, read from its own error shape."""

    message: str
    code: str
    param: str | None = None


class Relay(Protocol):
    """Turns one provider's stream into OpenAI's, event by event."""

    usage: Usage | None
    """None until reported."""
    finish_reason: str
    done: bool
    """The stream has ended well."""
    error: ProviderError | None
    """The provider ended the stream with an error event."""
    fault: str
    """Why the stream cannot be read on; nothing behind that place is passed on."""
    tail: bytes
    """The last events, which leave after the record is written."""

    def feed(self, data: bytes) -> bytes:
        """Whole events to pass on now; parts of events wait. The same, however the stream is split."""

    def ended(self) -> bool:
        """The body has ended; whether the answer is whole."""


class Dialect(Protocol):
    """One provider's language."""

    name: str
    path: str

    def headers(self, key: str | None, key_header: str) -> dict[str, str]:
        """The headers that every attempt carries."""

    def encode(self, chat: dict[str, Any], target: Target, *, stream: bool, max_output_tokens: int) -> bytes:
        """The request body. Raises: RequestError where the dialect cannot say what the client asked."""

    def makes_up_for(self, capabilities: frozenset[str]) -> frozenset[str]:
        """What a model with these capabilities can be brought to by the dialect's own means."""

    def usage(self, reported: Any) -> Usage:
        """The usage object of an answer; impossible parts are mended and marked."""

    def read(self, body: bytes, *, created_s: int = 0) -> Reading:
        """A whole answer. created_s: Unix time for a dialect whose answers carry none. Raises: Unusable."""

    def relay(self, *, include_usage: bool, created_s: int = 0) -> Relay:
        """A reader of one stream; include_usage: whether the client asked for the usage event."""

    def delivered(self, stream: bytes) -> tuple[int, int]:
        """(UTF-8 bytes of content and tool arguments, content events) in the provider's raw stream."""

    def error(self, status: int, body: bytes) -> ProviderError:
        """What the provider said of a status of 400 or more."""


class _FullChoice(msgspec.Struct):
    message: Message


class _FullCompletion(msgspec.Struct):
    choices: list[_FullChoice]


_FULL: msgspec.json.Decoder[_FullCompletion] = msgspec.json.Decoder(_FullCompletion)


def message_of(body: bytes) -> Message:
    """The first choice's message of a `chat.completion`. Raises: Unusable."""
    try:
        choices = _FULL.decode(body).choices
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Unusable(f"the answer is no chat completion: {error}") from error
    if not choices:
        raise Unusable("the answer has no choices")
    return choices[0].message


def error_text(status: int, body: bytes) -> ProviderError:
    """A provider's error in OpenAI's or Anthropic's shape, else the status alone. Bounded in length."""
    try:
        parsed = parse_json(body)
    except MalformedJson:
        return ProviderError(f"the provider answered {status}", "")
    error = parsed.get("error") if isinstance(parsed, dict) else None
    if isinstance(error, str):
        return ProviderError(error[:500], "")
    if not isinstance(error, dict):
        return ProviderError(f"the provider answered {status}", "")
    message, code, param = error.get("message"), error.get("code") or error.get("type"), error.get("param")
    return ProviderError(
        message[:500] if isinstance(message, str) else f"the provider answered {status}",
        str(code)[:100] if code else "",
        param[:200] if isinstance(param, str) else None,
    )


def estimated_tokens(size_bytes: int, events: int = 0) -> int:
    """Tokens of a text that nobody counted: a quarter of its UTF-8 bytes, at least one per content event."""
    return max(-(-size_bytes // BYTES_PER_TOKEN), events)


def count(value: Any) -> int | None:
    """A token count as a provider may report it; None where it is none (negative, no integer, absurd)."""
    return value if type(value) is int and 0 <= value <= COUNT_MAX else None
