"""One TOML table read key by key, keeping every mistake with its line instead of stopping at the first.

Each reading method returns a usable value even where it noted a mistake, so that reading goes on. Values
of keys nobody knows are never shown: they may be secrets.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from drivetrain.core.errors import did_you_mean
from drivetrain.core.money import nano_usd
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.problems import Problems, shown
from drivetrain.project.toml_lines import TomlPath

AMOUNT_EXAMPLE = 'Write it as text, for example "0.25", so that it stays exact.'


class Table:
    """A table at `path` of drivetrain.toml."""

    def __init__(
        self, values: Mapping[str, Any], path: TomlPath, lines: Mapping[TomlPath, int], problems: Problems
    ) -> None:
        self.values = values
        self.path = path
        self.lines = lines
        self.problems = problems

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def line(self, *keys: str | int) -> int:
        """The line of a key, or of the nearest table around it."""
        path = (*self.path, *keys)
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)

    def label(self, *keys: str | int) -> str:
        """The dotted path as TOML writes it."""
        text = ""
        for part in (*self.path, *keys):
            if isinstance(part, int):
                text += f"[{part}]"
            else:
                plain = part.isascii() and part.replace("-", "").replace("_", "").isalnum()
                text += ("." if text else "") + (part if plain else f'"{part}"')
        return text

    def note(self, key: str | int | None, what: str, *, value: str = "", do: str = "") -> None:
        """Keeps a mistake about a key, or about the table itself; `what` goes on after its name."""
        keys = () if key is None else (key,)
        self.problems.add(
            f"`{self.label(*keys)}` {what}", file=SETTINGS_FILE, line=self.line(*keys), value=value, do=do
        )

    def only(self, known: Collection[str], *, hints: Mapping[str, str] | None = None) -> None:
        """Notes every key that is not known here."""
        for key in self.values:
            if key not in known:
                do = (hints or {}).get(key) or did_you_mean(key, known)
                self.note(key, "is not a key here.", do=do)

    def _seen(self, value: object) -> str:
        """A wrong value as written; beside secrets only what kind it is, because it may be a misplaced one."""
        plain = isinstance(value, int | float)
        return shown(value) if plain or self.path[:1] not in (("providers",), ("keys",)) else _type_name(value)

    def raw(self, key: str) -> Any:
        return self.values.get(key)

    def text(self, key: str, default: str = "", *, needed: str = "") -> str:
        """A text; `needed` says what to write where it is missing."""
        value = self.values.get(key)
        if value is None or value == "":
            if needed:
                self.note(key, "is missing.", do=needed)
            return default
        if isinstance(value, str):
            return value
        self.note(key, "must be text in quotes.", value=_type_name(value))
        return default

    def choice(self, key: str, choices: Collection[str], default: str, *, needed: bool = False) -> str:
        value = self.values.get(key)
        if value is None:
            if needed:
                self.note(key, "is missing.", do=f"Write one of {_quoted(choices)}.")
            return default
        if isinstance(value, str) and value in choices:
            return value
        self.note(
            key,
            f"must be one of {_quoted(choices)}.",
            value=shown(value) if isinstance(value, str) else self._seen(value),
            do=did_you_mean(str(value), choices),
        )
        return default

    def whole(self, key: str, default: int, *, least: int = 1, most: int = 2**53) -> int:
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self.note(key, f"must be a whole number from {least} to {most}.", value=self._seen(value))
        return default

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.note(key, "must be true or false, without quotes.", value=self._seen(value))
        return default

    def amount(self, key: str) -> int | None:
        """USD, exactly, as nano-USD; None where nothing is written."""
        value = self.values.get(key)
        if value is None:
            return None
        mistake = amount_mistake(value)
        if mistake is None:
            return nano_usd(value)
        self.note(key, mistake, value=shown(value), do=amount_fix(value))
        return None

    def texts(self, key: str, *, choices: Collection[str] | None = None) -> tuple[str, ...] | None:
        """A list of texts; None where nothing is written."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            self.note(key, "must be a list of texts in quotes.", value=_type_name(value))
            return None
        kept: list[str] = []
        for index, item in enumerate(value):
            if not isinstance(item, str):
                self._note_item(key, index, "must be text in quotes.", _type_name(item), "")
            elif choices is not None and item not in choices:
                self._note_item(
                    key, index, f"must be one of {_quoted(choices)}.", shown(item), did_you_mean(item, choices)
                )
            else:
                kept.append(item)
        return tuple(kept)

    def _note_item(self, key: str, index: int, what: str, value: str, do: str) -> None:
        line = self.line(key, index)
        self.problems.add(f"`{self.label(key, index)}` {what}", file=SETTINGS_FILE, line=line, value=value, do=do)

    def table(self, key: str) -> Table:
        """The table under a key; an empty one where it is absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            self.note(
                key, "must be a table.", value=_type_name(value), do=f"Write `[{self.label(key)}]` with keys below it."
            )
            value = None
        return Table(value or {}, (*self.path, key), self.lines, self.problems)

    def tables(self) -> Iterator[tuple[str, Table]]:
        """Every (name, table) in this table, whose keys are the user's own names."""
        for name in self.values:
            if isinstance(self.values[name], dict):
                yield name, self.table(name)
            else:
                self.table(name)

    def rows(self, key: str) -> Iterator[Table]:
        """Every table of a list of tables."""
        value = self.values.get(key)
        if value is None:
            return
        if not isinstance(value, list):
            self.note(key, "must be a list of tables.", value=_type_name(value))
            return
        for index, item in enumerate(value):
            if isinstance(item, dict):
                yield Table(item, (*self.path, key, index), self.lines, self.problems)
            else:
                self._note_item(key, index, "must be a table in braces.", _type_name(item), "")


def amount_mistake(value: object) -> str | None:
    """What is wrong with an amount of USD, or None."""
    if isinstance(value, float):
        return "must not be a float, which cannot hold money exactly."
    if isinstance(value, bool) or not isinstance(value, str | int):
        return "must be an amount of USD."
    try:
        nano_usd(value)
    except ValueError as error:
        return f"is no amount of USD: {error}."
    return None


def amount_fix(value: object) -> str:
    """What to write instead of a wrong amount."""
    if isinstance(value, float) and math.isfinite(value):
        return f'Write "{value}" in quotes, so that it stays exact.'
    return AMOUNT_EXAMPLE


def _quoted(names: Collection[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _type_name(value: object) -> str:
    """What was found instead, without its content."""
    names: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "a table" if isinstance(value, dict) else "a date")
