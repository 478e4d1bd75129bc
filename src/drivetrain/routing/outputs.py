"""A model's text as the workflow's output type: parsed, repaired where that is safe, else unusable."""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

import msgspec

Out = TypeVar("Out")

_FENCE = re.compile(r"```[a-zA-Z0-9_-]*[ \t]*\r?\n(.*?)\r?\n?```", re.DOTALL)
_STRING_OR_TRAILING_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[}\]])', re.DOTALL)
_QUOTED = re.compile(r" '.*'", re.DOTALL)
"""What a decoder quotes is the model's text, which belongs into payloads only."""
TEXT_CHARS_MAX = 1_000_000
"""Longer texts are not repaired."""


class Misfit(Exception):
    """An answer that is no output of the workflow: the reason, without the answer's text."""


class Parsed(msgspec.Struct, Generic[Out], frozen=True):
    """An output, and how its text had to be mended."""

    output: Out
    repair: str
    """Empty where nothing was mended; else `fence`, `surrounding text`, `trailing comma`, joined by ` + `."""
    text: str
    """The JSON text that was parsed."""


class OutputReader:
    """Reads texts as one output type."""

    __slots__ = ("_decoder", "_name")

    def __init__(self, output: type[Any]) -> None:
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(output)
        self._name = output.__name__

    def read(self, text: str) -> Parsed[Any]:
        """`text` as an output. Raises: Misfit."""
        try:
            return Parsed(self._decoder.decode(text), "", text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            first = error
        for mended, repair in _repairs(text):
            try:
                return Parsed(self._decoder.decode(mended), repair, mended)
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                first = error if isinstance(error, msgspec.ValidationError) else first
        reason = "it is nested too deeply" if isinstance(first, RecursionError) else _QUOTED.sub("", str(first))
        raise Misfit(f"the answer is no {self._name}: {reason}")


def _repairs(text: str) -> list[tuple[str, str]]:
    """Texts worth trying, the least changed first."""
    if len(text) > TEXT_CHARS_MAX:
        return []
    found: list[tuple[str, str]] = []
    inner, repair = text, ""
    fenced = _FENCE.search(text)
    if fenced is not None:
        inner, repair = fenced.group(1), "fence"
        found.append((inner, repair))
    start, end = inner.find("{"), inner.rfind("}")
    if 0 <= start < end and (start > 0 or end < len(inner) - 1):
        if inner[:start].strip() or inner[end + 1 :].strip():
            repair = f"{repair} + surrounding text" if repair else "surrounding text"
        inner = inner[start : end + 1]
        found.append((inner, repair or "surrounding text"))
    without = _STRING_OR_TRAILING_COMMA.sub(lambda match: match.group(0) if match.group(0) != "," else "", inner)
    if without != inner:
        found.append((without, f"{repair} + trailing comma" if repair else "trailing comma"))
    return found


def output_schema(output: type[Any]) -> tuple[dict[str, Any], bool]:
    """(JSON schema of an output type, whether it fits OpenAI's strict mode).

    Strict mode wants every field required and no further ones, so fields with defaults are required of the
    model and stay optional when parsed.
    """
    schema = msgspec.json.schema(output)
    definitions = schema.get("$defs", {})
    strict = True

    def resolve(node: Any, depth: int) -> Any:
        nonlocal strict
        if isinstance(node, list):
            return [resolve(one, depth) for one in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            if depth > 32:
                strict = False
                return {"type": "object"}
            return resolve(definitions[name], depth + 1)
        made = {key: resolve(value, depth) for key, value in node.items() if key not in ("default", "title", "$defs")}
        if made.get("type") == "object" and "properties" in made:
            made["required"] = list(made["properties"])
            made["additionalProperties"] = False
        elif made.get("type") == "object":
            strict = False
        return made

    return resolve(schema, 0), strict
