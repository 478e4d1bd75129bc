"""Where each key of a TOML file stands, because `tomllib` gives values without lines.

`locate` reads text that `tomllib` has already accepted, so it only needs to know where keys, strings,
arrays and tables begin and end.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

TomlPath = tuple[str | int, ...]
"""Keys from the top, with the index of each array element: `("workflows", "chat", "route", 0, "model")`."""

_BLANK = re.compile(r"[ \t]*")
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?""""{0,2}'
    r"|'''.*?''''{0,2}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


def locate(text: str) -> dict[TomlPath, int]:
    """The 1-based line of every key, table and array element of valid TOML."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lines: dict[TomlPath, int] = {}
        self._tables_seen: dict[TomlPath, int] = {}

    def scan(self) -> dict[TomlPath, int]:
        table: TomlPath = ()
        while True:
            self._skip(_SPACE)
            if self._at >= len(self._text):
                return self._lines
            table = self._header() if self._peek("[") else self._pair(table, table)

    def _header(self) -> TomlPath:
        line = self._line()
        array = self._peek("[[")
        self._at += 2 if array else 1
        parts = self._key()
        self._skip(_BLANK)
        self._at += 2 if array else 1
        path: TomlPath = ()
        for part in parts:
            path = (*path, part)
            self._lines.setdefault(path, line)
            if path in self._tables_seen and not (array and len(parts) == _names(path)):
                path = (*path, self._tables_seen[path])
        if array:
            index = self._tables_seen.get(path, -1) + 1
            self._tables_seen[path] = index
            path = (*path, index)
        self._lines[path] = line
        return path

    def _pair(self, table: TomlPath, result: TomlPath) -> TomlPath:
        line = self._line()
        path = table
        for part in self._key():
            path = (*path, part)
            self._lines.setdefault(path, line)
        self._skip(_BLANK)
        self._at += 1  # the equals sign
        self._skip(_BLANK)
        self._value(path)
        return result

    def _key(self) -> list[str]:
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            quoted = _STRING.match(self._text, self._at)
            bare = quoted or _BARE_KEY.match(self._text, self._at)
            assert bare is not None, "the text is valid TOML"
            self._at = bare.end()
            parts.append(str(tomllib.loads(f"k = {quoted[0]}")["k"]) if quoted else bare[0])
            self._skip(_BLANK)
            if not self._peek("."):
                return parts
            self._at += 1

    def _value(self, path: TomlPath) -> None:
        string = _STRING.match(self._text, self._at)
        if string is not None:
            self._at = string.end()
        elif self._peek("["):
            self._array(path)
        elif self._peek("{"):
            self._inline_table(path)
        else:
            self._skip(_SCALAR)

    def _array(self, path: TomlPath) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip(_SPACE)
            if self._peek("]"):
                self._at += 1
                return
            if self._peek(","):
                self._at += 1
                continue
            self._lines[(*path, index)] = self._line()
            self._value((*path, index))
            index += 1

    def _inline_table(self, path: TomlPath) -> None:
        self._at += 1
        while True:
            self._skip(_SPACE)
            if self._peek("}"):
                self._at += 1
                return
            if self._peek(","):
                self._at += 1
                continue
            self._pair(path, path)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _peek(self, mark: str) -> bool:
        return self._text.startswith(mark, self._at)

    def _line(self) -> int:
        return bisect_right(self._starts, self._at)


def _names(path: TomlPath) -> int:
    return sum(isinstance(part, str) for part in path)
