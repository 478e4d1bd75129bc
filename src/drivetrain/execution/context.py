"""The cap on a workflow's input tokens: what is sent where a conversation is longer than `max_input_tokens`.

Owns the count and the three strategies. Works on messages as they would be sent, after a variant's templates, and
never changes them: what is shortened is new. Called by `call` for every attempt of a workflow with a cap.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import msgspec

from drivetrain.core.errors import RequestError
from drivetrain.execution.charging import IMAGE_TOKENS_MAX

BYTES_PER_TOKEN = 3
"""Of the estimate, in UTF-8. English has 4 to 5 bytes a token, code and German about 3, so most texts count more than
they are. A charge is estimated at 4 (`providers.answers`), lest anybody pays for tokens that were not there; a cap errs
on the other side. Base64, long digits and rare scripts have more tokens than this."""
MESSAGE_TOKENS = 4
"""What a role and the marks around a message take."""
ENDS_BYTES_MIN = 200
"""Shorter ends of a text tell a model nothing: refused instead."""
BOUNDARY_CHARS = 80
"""How far from its place a cut may move to the end of a line or word."""
SCALAR_BYTES = 24
"""Of a number, true, false or null in JSON: the longest float."""
INSTRUCTIONS = frozenset({"system", "developer"})
"""Roles of messages that are never dropped nor cut."""


class Fitted(msgspec.Struct, frozen=True, gc=False):
    """A conversation under its cap."""

    messages: list[Any]
    """The list that was given, where it fits."""
    notes: tuple[str, ...]
    """What was done, in numbers, without content; empty where nothing was."""


def fitted(messages: list[Any], *, limit_tokens: int, strategy: str, other_bytes: int = 0) -> Fitted:
    """The messages with at most `limit_tokens`, shortened as `strategy` says (one of `CONTEXT_STRATEGIES`).

    `drop_oldest_turns` drops no more turns than it must; `keep_ends` cuts the middle out of the longest text.
    other_bytes: of what else is sent and read by the model, such as tools and the response format.
    Costs one pass over the sizes where nothing is to be done.
    Raises: RequestError 400 `context_length_exceeded` where the strategy cannot make it fit.
    """
    total = input_tokens(messages, other_bytes)
    if total <= limit_tokens:
        return Fitted(messages, ())
    if strategy == "drop_oldest_turns":
        return _without_oldest_turns(messages, total, limit_tokens, other_bytes)
    if strategy == "keep_ends":
        return _with_ends_only(messages, total, limit_tokens, other_bytes)
    raise _too_long(
        messages, total, limit_tokens, other_bytes, "Send less, or ask the workflow's owner for a higher cap."
    )


def input_tokens(messages: list[Any], other_bytes: int = 0) -> int:
    """The estimate that the cap is held to: of each message a third of its UTF-8 bytes, and a few tokens around it.

    An image counts `IMAGE_TOKENS_MAX`, however large; audio and files count the bytes that they are sent as.
    """
    total = _tokens(other_bytes)
    for message in messages:
        content = message.get("content")
        if type(content) is str and len(message) == 2:  # a role and a text, as most are
            total += MESSAGE_TOKENS - (-_text_bytes(content) // BYTES_PER_TOKEN)
        else:
            total += _message_tokens(message)
    return total


def _message_tokens(message: dict[str, Any]) -> int:
    size, images = _message_size(message)
    return MESSAGE_TOKENS + _tokens(size) + images * IMAGE_TOKENS_MAX


def _message_size(message: dict[str, Any]) -> tuple[int, int]:
    """(UTF-8 bytes of all but the role and the images, images)."""
    size = images = 0
    for name, value in message.items():
        if name == "role":
            continue
        if name == "content" and isinstance(value, list):
            for part in value:
                if isinstance(part, dict) and part.get("type") == "image_url":
                    images += 1
                else:
                    size += _part_bytes(part)
        else:
            size += _value_bytes(value)
    return size, images


def _part_bytes(part: Any) -> int:
    if isinstance(part, dict) and part.get("type") == "text" and len(part) == 2:
        return _value_bytes(part.get("text"))
    return _value_bytes(part)


def _value_bytes(value: Any) -> int:
    """UTF-8 bytes of the texts, names and numbers in a JSON value. Not recursive: its depth is the client's."""
    if isinstance(value, str):
        return _text_bytes(value)
    size = 0
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, str):
            size += _text_bytes(one)
        elif isinstance(one, dict):
            rest.extend(one)
            rest.extend(one.values())
        elif isinstance(one, list | tuple):
            rest.extend(one)
        elif one is not None:
            size += SCALAR_BYTES
    return size


def _text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _tokens(size_bytes: int) -> int:
    return -(-size_bytes // BYTES_PER_TOKEN)


# Dropping the oldest turns.


def _without_oldest_turns(messages: list[Any], total: int, limit: int, other_bytes: int) -> Fitted:
    left = total
    dropped: set[int] = set()
    for turns, turn in enumerate(_droppable_turns(messages), 1):
        left -= sum(_message_tokens(messages[place]) for place in turn)
        dropped.update(turn)
        if left <= limit:
            kept = [message for place, message in enumerate(messages) if place not in dropped]
            what = (
                f"{_number(turns, 'oldest turn')} ({_number(len(dropped), 'message')}, about {total - left:,} tokens)"
            )
            return Fitted(kept, (f"context: dropped {what}",))
    raise _too_long(
        messages,
        total,
        limit,
        other_bytes,
        f"What is never dropped, the instructions and the last turn, counts {left:,} of them: "
        "shorten the last turn, or ask the workflow's owner for a higher cap.",
    )


def _droppable_turns(messages: list[Any]) -> list[list[int]]:
    """The places of each turn's messages, oldest first, without instructions and without the last turn.

    A turn begins at a user message and ends before the next; one that stands between a tool call and its result begins
    none. What stands before the first turn, such as a greeting, is dropped first.
    """
    answered = _last_results(messages)
    starts: list[int] = []
    open_until = -1
    for place, message in enumerate(messages):
        open_until = max(open_until, answered.get(place, -1))
        if message.get("role") == "user" and place > open_until:
            starts.append(place)
    bounds = [0, *starts]
    turns = [
        [place for place in range(begin, end) if messages[place].get("role") not in INSTRUCTIONS]
        for begin, end in itertools.pairwise(bounds)
    ]
    return [turn for turn in turns if turn]


def _last_results(messages: list[Any]) -> dict[int, int]:
    """The place of a message with tool calls -> the place of their last result.

    A result belongs to the newest call of its id before it: some models give the same ids in every turn.
    """
    asked: dict[tuple[str, str], int] = {}
    last: dict[int, int] = {}
    for place, message in enumerate(messages):
        role = message.get("role")
        if role == "assistant":
            asked.update((call, place) for call in _calls(message))
        elif role in ("tool", "function"):
            answers = message.get("tool_call_id" if role == "tool" else "name")
            by = asked.get((role, answers)) if isinstance(answers, str) else None
            if by is not None:
                last[by] = place
    return last


def _calls(message: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """(role of the result, id) of each call in an assistant's message; the older `function_call` goes by its name."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict) and isinstance(call.get("id"), str):
            yield "tool", call["id"]
    function = message.get("function_call")
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        yield "function", function["name"]


# Keeping the ends of the longest text.


class _Text(msgspec.Struct, frozen=True, gc=False):
    """A text in a conversation."""

    size: int
    """UTF-8 bytes."""
    place: int
    """Of its message."""
    part: int | None
    """Its number among the message's parts; None: it is the whole content."""
    text: str


def _with_ends_only(messages: list[Any], total: int, limit: int, other_bytes: int) -> Fitted:
    longest = _longest_text(messages)
    advice = "Send less, or ask the workflow's owner for a higher cap."
    if longest is None:
        raise _too_long(messages, total, limit, other_bytes, f"There is no text that may be cut. {advice}")
    size, _ = _message_size(messages[longest.place])
    allowed = (_tokens(size) - (total - limit)) * BYTES_PER_TOKEN - (size - longest.size)
    """What the text may have, in bytes, so that its message stays in its share."""
    ends = allowed - len(_marker(len(longest.text)))
    if ends < ENDS_BYTES_MIN:
        share = f"The longest text, of {longest.size:,} bytes, cannot be cut enough."
        raise _too_long(messages, total, limit, other_bytes, f"{share} {advice}")
    head, tail = _ends(longest.text, ends // 2)
    left_out = len(longest.text) - len(head) - len(tail)
    shortened = list(messages)
    shortened[longest.place] = _with_text(messages[longest.place], longest.part, f"{head}{_marker(left_out)}{tail}")
    return Fitted(shortened, (f"context: left out {_number(left_out, 'character')} of the longest text",))


def _longest_text(messages: list[Any]) -> _Text | None:
    """The first among equals; None where no message but instructions has any text."""
    longest: _Text | None = None
    for place, message in enumerate(messages):
        if message.get("role") in INSTRUCTIONS:
            continue
        content = message.get("content")
        parts = enumerate(content) if isinstance(content, list) else [(None, {"type": "text", "text": content})]
        for number, part in parts:
            text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            if isinstance(text, str):
                size = _text_bytes(text)
                if longest is None or size > longest.size:
                    longest = _Text(size, place, number, text)
    return longest


def _ends(text: str, size: int) -> tuple[str, str]:
    """(head, tail) of at most `size` UTF-8 bytes each.

    Cut between characters, at the end of a line, else of a word, where one is near.
    """
    encoded = text.encode("utf-8", "surrogatepass")
    head_end = size
    while _is_inside(encoded, head_end):
        head_end -= 1
    tail_start = len(encoded) - size
    while _is_inside(encoded, tail_start):
        tail_start += 1
    end = len(_decoded(encoded[:head_end]))
    start = len(text) - len(_decoded(encoded[tail_start:]))
    # Texts from Python may hold an unjoined pair of surrogates: half of it is no character.
    end -= _splits_pair(text, end)
    start += _splits_pair(text, start)
    return text[: _line_or_word_before(text, end)], text[_line_or_word_after(text, start) :]


def _line_or_word_before(text: str, end: int) -> int:
    first = max(end // 2, end - BOUNDARY_CHARS)
    for boundary in ("\n", " "):
        found = text.rfind(boundary, first, end + 1)
        if found >= 0:
            return found
    return end


def _line_or_word_after(text: str, start: int) -> int:
    last = min((start + len(text)) // 2, start + BOUNDARY_CHARS)
    for boundary in ("\n", " "):
        found = text.find(boundary, start - 1, last)
        if found >= 0:
            return found + 1
    return start


def _is_inside(encoded: bytes, place: int) -> bool:
    """Whether a cut at `place` splits a character."""
    return encoded[place] & 0xC0 == 0x80


def _decoded(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogatepass")


def _splits_pair(text: str, place: int) -> bool:
    return "\ud800" <= text[place - 1] <= "\udbff" and "\udc00" <= text[place] <= "\udfff"


def _marker(left_out: int) -> str:
    return f"\n[... {_number(left_out, 'character')} left out ...]\n"


def _with_text(message: dict[str, Any], part: int | None, text: str) -> dict[str, Any]:
    if part is None:
        return {**message, "content": text}
    parts = list(message["content"])
    parts[part] = {**parts[part], "text": text}
    return {**message, "content": parts}


# What is said.


def _too_long(messages: list[Any], total: int, limit: int, other_bytes: int, advice: str) -> RequestError:
    tools = f" and {other_bytes:,} bytes of tools and response format" if other_bytes else ""
    what = f"{_number(len(messages), 'message')}{tools}"
    message = (
        f"the input counts about {total:,} tokens ({what}), more than the {limit:,} that this workflow takes. {advice}"
    )
    return RequestError(400, message, code="context_length_exceeded", param="messages")


def _number(count: int, of: str) -> str:
    return f"{count:,} {of}" if count == 1 else f"{count:,} {of}s"
