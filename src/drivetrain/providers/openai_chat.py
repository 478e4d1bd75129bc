"""OpenAI's chat completions dialect, which most other providers speak as well.

Answers pass through as bytes: of a whole answer only usage and finish reasons are read, of a stream only
the events that carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from drivetrain.core.codec import JSON, MalformedJson, parse_json
from drivetrain.core.money import NO_USAGE, Usage
from drivetrain.providers.answers import (
    COUNT_MAX,
    PARTIAL_EVENT_BYTES_MAX,
    ProviderError,
    Reading,
    Target,
    Unusable,
    count,
    error_text,
)

DONE = b"data: [DONE]\n\n"
TOO_LONG = f"an event of the stream is longer than {PARTIAL_EVENT_BYTES_MAX} bytes"


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = 0


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class _LooseCompletion(msgspec.Struct):
    choices: list[_Choice]
    usage: Any = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Any = None
    error: Any = None


_COMPLETION: msgspec.json.Decoder[_Completion] = msgspec.json.Decoder(_Completion)
_LOOSE: msgspec.json.Decoder[_LooseCompletion] = msgspec.json.Decoder(_LooseCompletion)
_EVENT: msgspec.json.Decoder[_Event] = msgspec.json.Decoder(_Event)


class OpenAIChat:
    """`POST /chat/completions`, tools, JSON schema, images, streams and usage."""

    name = "openai"
    path = "/chat/completions"

    def headers(self, key: str | None, key_header: str) -> dict[str, str]:
        if key is None:
            return {}
        return {key_header: key} if key_header else {"authorization": f"Bearer {key}"}

    def encode(self, chat: dict[str, Any], target: Target, *, stream: bool, max_output_tokens: int) -> bytes:
        body = {"model": target.upstream_name, **chat, target.max_tokens_field: max_output_tokens}
        if stream:
            body["stream"] = True
            body["stream_options"] = {**chat.get("stream_options", {}), "include_usage": True}
        elif "stream_options" in body:
            del body["stream_options"]
        return JSON.encode(body)

    def makes_up_for(self, capabilities: frozenset[str]) -> frozenset[str]:
        return frozenset()

    def usage(self, reported: Any) -> Usage:
        return read_usage(reported)

    def read(self, body: bytes, *, created_s: int = 0) -> Reading:
        try:
            completion = _COMPLETION.decode(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return _read_loosely(body)
        if not body.isascii():
            require_utf8(body)
        choices = completion.choices
        if not choices:
            raise Unusable("the answer has no choices")
        usage = completion.usage
        if usage is None:
            return Reading(body, choices[0].finish_reason or "", NO_USAGE)
        details, output_details = usage.prompt_tokens_details, usage.completion_tokens_details
        return Reading(
            body,
            choices[0].finish_reason or "",
            _sound_usage(
                usage.prompt_tokens,
                usage.completion_tokens,
                (details.cached_tokens or 0) if details is not None else 0,
                (output_details.reasoning_tokens or 0) if output_details is not None else 0,
            ),
        )

    def relay(self, *, include_usage: bool, created_s: int = 0) -> OpenAIRelay:
        return OpenAIRelay(include_usage)

    def delivered(self, stream: bytes) -> tuple[int, int]:
        return content_size(stream, _delta_bytes)

    def error(self, status: int, body: bytes) -> ProviderError:
        return error_text(status, body)


class OpenAIRelay:
    """Passes events on as they are; holds back parts of events, the usage nobody asked for, and the end."""

    __slots__ = ("_begun", "_include_usage", "_partial", "done", "error", "fault", "finish_reason", "tail", "usage")

    def __init__(self, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._partial = b""
        self._begun = False
        self.usage: Usage | None = None
        self.finish_reason = ""
        self.done = False
        self.error: ProviderError | None = None
        self.fault = ""
        self.tail = b""

    def feed(self, data: bytes) -> bytes:
        if not self._partial and data.startswith(b"data: {") and data.endswith(b"}\n\n") and data.count(b"\n") == 2:
            # One whole event on one line, as nearly all reads bring it.
            return data if self._keeps(data[6:-2]) else b""
        data, self._partial = whole_events(self._partial + data)
        if len(self._partial) > PARTIAL_EVENT_BYTES_MAX:
            self.fault, self._partial = TOO_LONG, b""
        passed = b""
        kept_from = start = 0
        # Events that pass are cut from `data` in as few pieces as there are events that do not.
        while (end := data.find(b"\n\n", start) + 2) != 1:
            payload = event_data(data[start : end - 2])
            # Without data it is a comment or a ping, which is no answer yet.
            if not (self._begun and not self._over if payload is None else self._keeps(payload)):
                passed += data[kept_from:start]
                kept_from = end
            start = end
        return passed + data[kept_from:] if kept_from else data

    def ended(self) -> bool:
        if self._partial.strip() and not self._over:
            # A last event without its blank line still counts where it is whole: some servers forget it.
            rest, self._partial = self._partial + b"\n\n", b""
            self.tail = self.feed(rest) + self.tail
        if self.done:
            return True
        if self.finish_reason and not self._over:
            self.tail += DONE  # the answer is whole, its server forgot to say so
            return True
        return False

    @property
    def _over(self) -> bool:
        return self.done or self.error is not None or bool(self.fault)

    def _keeps(self, payload: bytes) -> bool:
        """Whether an event goes on to the client now."""
        if self._over:
            return False
        if payload == b"[DONE]":
            self.done = True
            self.tail = DONE
            return False
        try:
            event = _EVENT.decode(payload)
            require_utf8(payload)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, Unusable) as error:
            self.fault = f"an event of the stream is malformed: {error}"
            return False
        if event.error is not None:
            self.error = error_text(0, JSON.encode({"error": event.error}))
            return False
        self._begun = True
        for choice in event.choices:
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
        if event.usage is None:
            return True
        usage = read_usage(event.usage)
        if usage.source != "none":
            self.usage = usage
        return bool(event.choices) or self._include_usage


def require_utf8(data: bytes) -> None:
    """The decoder skips what it does not read, so bad UTF-8 there would reach the client. Raises: Unusable."""
    if data.isascii():
        return
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise Unusable(f"the answer is no UTF-8: {error.reason}") from error


def whole_events(data: bytes) -> tuple[bytes, bytes]:
    """(whole events with LF line ends, the part of an event behind them)."""
    held = b""
    if b"\r" in data:
        if data.endswith(b"\r"):  # a line's end may be split between two reads
            data, held = data[:-1], b"\r"
        data = data.replace(b"\r\n", b"\n")
    end = data.rfind(b"\n\n") + 2
    if end == 1:
        end = 0
    return data[:end], data[end:] + held


def event_data(block: bytes) -> bytes | None:
    """The data of one server-sent event; None where it has none (a comment or a ping)."""
    if block.startswith(b"data:") and b"\n" not in block:
        return block[5:].strip()
    lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines).strip() if lines else None


def content_size(stream: bytes, bytes_of: Callable[[dict[str, Any]], int]) -> tuple[int, int]:
    """(sum of `bytes_of` each event, events where it is not 0) over a raw stream; malformed events count nothing."""
    size = events = 0
    for block in stream.replace(b"\r\n", b"\n").split(b"\n\n"):
        payload = event_data(block)
        if payload is None or payload == b"[DONE]":
            continue
        try:
            event = parse_json(payload)
        except MalformedJson:
            continue
        here = bytes_of(event) if isinstance(event, dict) else 0
        size += here
        events += here > 0
    return size, events


def text_bytes(texts: Iterable[Any]) -> int:
    """UTF-8 bytes of the strings among `texts`."""
    return sum(len(text.encode("utf-8", "replace")) for text in texts if isinstance(text, str))


def _delta_bytes(event: dict[str, Any]) -> int:
    texts: list[Any] = []
    for choice in _list(event.get("choices")):
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict):
            continue
        texts += [delta.get("content"), delta.get("refusal"), delta.get("reasoning_content"), delta.get("reasoning")]
        for call in _list(delta.get("tool_calls")):
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict):
                texts += [function.get("name"), function.get("arguments")]
    return text_bytes(texts)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def read_usage(usage: Any) -> Usage:
    """OpenAI's usage object; what is impossible in it is mended and marked, never trusted.

    Nothing usable at all counts as no report.
    """
    if not isinstance(usage, dict):
        return NO_USAGE
    details, output_details = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    # What is no object is passed on, to be found impossible.
    cached = details.get("cached_tokens") if isinstance(details, dict) else details
    reasoning = output_details.get("reasoning_tokens") if isinstance(output_details, dict) else output_details
    return _sound_usage(usage.get("prompt_tokens"), usage.get("completion_tokens"), cached or 0, reasoning or 0)


def _sound_usage(prompt: Any, output: Any, cached: Any, reasoning: Any) -> Usage:
    if (
        type(prompt) is type(output) is type(cached) is type(reasoning) is int
        and 0 <= cached <= prompt <= COUNT_MAX
        and 0 <= reasoning <= output <= COUNT_MAX
    ):
        return Usage(prompt, cached, 0, 0, output, reasoning, "reported")
    prompt_sound, output_sound = count(prompt), count(output)
    if prompt_sound is None and output_sound is None:
        return NO_USAGE
    prompt_sound, output_sound = prompt_sound or 0, output_sound or 0
    return Usage(
        prompt_sound,
        min(count(cached) or 0, prompt_sound),
        0,
        0,
        output_sound,
        min(count(reasoning) or 0, output_sound),
        "mended",
    )


def _read_loosely(body: bytes) -> Reading:
    try:
        completion = _LOOSE.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Unusable(f"the answer is no chat completion: {error}") from error
    require_utf8(body)
    if not completion.choices:
        raise Unusable("the answer has no choices")
    usage = read_usage(completion.usage)
    return Reading(body, completion.choices[0].finish_reason or "", usage)
