"""What a Call was asked and what it answered, as text, from the bodies that were kept.

Knows the shapes of OpenAI's and Anthropic's bodies, whole and as event streams; any other body is its own text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from drivetrain.core.calls import Answers
from drivetrain.core.codec import JSON, MalformedJson, parse_json


def input_text(request: bytes) -> str:
    """The text of the last user message of a chat request; the body as it is of any other."""
    try:
        body = parse_json(request)
    except MalformedJson:
        return request.decode("utf-8", "replace")
    messages = body.get("messages") if isinstance(body, dict) else None
    if isinstance(messages, list):
        for message in reversed(messages):
            if isinstance(message, dict) and message.get("role") == "user":
                return _content(message.get("content"))
    return request.decode("utf-8", "replace")


def answer_text(answers: Answers) -> str | None:
    """The text that the client got; None where nothing answered."""
    body = answers.answer if answers.answer is not None else (answers.attempts[-1] if answers.attempts else b"")
    if not body:
        return None
    try:
        return _whole(parse_json(body))
    except MalformedJson:
        pass
    pieces = [piece for event in _events(body) for piece in _pieces(event)]
    return "".join(pieces) if pieces else body.decode("utf-8", "replace")


def _whole(body: Any) -> str:
    """Of `chat.completion`, an Anthropic message, or any other JSON."""
    if isinstance(body, dict):
        choices = body.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            message = choices[0].get("message")
            if isinstance(message, dict) and message.get("content") is not None:
                return _content(message["content"])
        if body.get("type") == "message" and isinstance(body.get("content"), list):
            return _content(body["content"])
    return body if isinstance(body, str) else JSON.encode(body).decode()


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.splitlines():
        if line.startswith(b"data:"):
            try:
                event = parse_json(line[5:].strip())
            except MalformedJson:
                continue
            if isinstance(event, dict):
                yield event


def _pieces(event: dict[str, Any]) -> Iterator[str]:
    choices = event.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    delta = first.get("delta") if isinstance(first, dict) else event.get("delta")
    if isinstance(delta, dict):
        for name in ("content", "text"):
            if isinstance(delta.get(name), str):
                yield delta[name]


def _content(content: Any) -> str:
    """The text parts of a message's content."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text")
    return "\n".join(text for text in texts if isinstance(text, str))
