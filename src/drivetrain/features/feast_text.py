"""Python source of calls, as a person would lay it out: on one line where it fits, else one argument a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

WIDTH = 120


class Code(msgspec.Struct, frozen=True):
    """Source as it stands."""

    text: str


class Call(msgspec.Struct, frozen=True):
    """`function(value, name=value)`; an argument without a name stands by its place, one that is None is left out."""

    function: str
    arguments: Sequence[tuple[str, Any]]


def rendered(value: Any, indent: int = 0, before: int = 0, after: int = 0) -> str:
    """The source of a Code, a Call, a list, a dict or a scalar.

    indent: of the line that it starts in. before, after: characters that stand around it in that line.
    """
    flat = _flat(value)
    if (isinstance(value, Code) or len(flat) + indent + before + after <= WIDTH) and "\n" not in flat:
        return flat
    inner = indent + 4
    lines: list[str] = []
    if isinstance(value, Call):
        opened, closed = f"{value.function}(", ")"
        for name, argument in value.arguments:
            if argument is not None:
                head = f"{name}=" if name else ""
                lines.append(head + rendered(argument, inner, len(head), 1))
    elif isinstance(value, list):
        opened, closed = "[", "]"
        lines = [rendered(one, inner, 0, 1) for one in value]
    elif isinstance(value, Mapping):
        opened, closed = "{", "}"
        for key, one in value.items():
            head = f"{_flat(key)}: "
            lines.append(head + rendered(one, inner, len(head), 1))
    else:
        return flat
    body = "".join(f"{' ' * inner}{line},\n" for line in lines)
    return f"{opened}\n{body}{' ' * indent}{closed}"


def _flat(value: Any) -> str:
    if isinstance(value, Code):
        return value.text
    if isinstance(value, Call):
        listed = [
            f"{name}={_flat(argument)}" if name else _flat(argument)
            for name, argument in value.arguments
            if argument is not None
        ]
        return f"{value.function}({', '.join(listed)})"
    if isinstance(value, list):
        return f"[{', '.join(map(_flat, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flat(key)}: {_flat(one)}" for key, one in value.items()) + "}"
    if isinstance(value, str):
        return _text(value)
    return repr(value)


def _text(value: str) -> str:
    """A text in double quotes where that is readable."""
    shown = repr(value)
    return f'"{shown[1:-1]}"' if shown[0] == "'" and '"' not in value else shown
