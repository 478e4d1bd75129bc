"""Collects the mistakes of a project, once each, so that one load reports them all.

Called by every module of this room.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivetrain.core.errors import Problem

PROBLEMS_MAX = 500
"""More would not be read; a generated project can repeat one mistake thousands of times."""
VALUE_CHARS_MAX = 120


class Problems:
    """Mistakes in the order of file and line, without repeats."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int, str], Problem] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, what: str, *, file: str = "", line: int = 0, value: str = "", do: str = "") -> None:
        """Keeps one mistake; the same words about the same place are kept once."""
        if len(self._found) < PROBLEMS_MAX:
            problem = Problem(what=what, file=file, line=line, value=value, do=do)
            self._found.setdefault((file, line, what), problem)

    def sorted(self) -> tuple[Problem, ...]:
        """drivetrain.toml first, then by file and line."""
        return tuple(sorted(self._found.values(), key=lambda one: (one.file != "drivetrain.toml", one.file, one.line)))


def shown(value: Any) -> str:
    """A value as its author wrote it, shortened. Never call it with something that may be a secret."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key} = {shown(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list):
        text = "[" + ", ".join(shown(item) for item in value) + "]"
    else:
        text = repr(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 3] + "..."
