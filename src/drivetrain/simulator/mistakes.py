"""Reads one TOML table value by value and keeps every mistake instead of stopping at the first.

Called by `config` only. Each reading method returns a usable value even when it noted a mistake, so that reading goes
on.
"""

import difflib
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import TypeVar

from drivetrain.simulator.settings import Milliseconds, TokenRange

_NANO = 1_000_000_000
_Choice = TypeVar("_Choice", bound=str)


def suggestion(name: str, known: Iterable[str]) -> str:
    """` Did you mean ...?` for the nearest known name; else the known names; empty when there are none."""
    names = sorted(known)
    if not names:
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" Did you mean `{near[0]}`?" if near else f" Known: {', '.join(names)}."


class TableReader:
    """One TOML table being read; `where` is its dotted path for messages."""

    def __init__(self, table: Mapping[str, object], where: str, mistakes: list[str]) -> None:
        self.where = where
        self.mistakes = mistakes
        self._table = table
        self._asked: set[str] = set()

    def note(self, name: str, problem: str) -> None:
        """Keeps one mistake about `name`."""
        self.mistakes.append(f"`{self.path(name)}` {problem}")

    def path(self, name: str) -> str:
        """The dotted path of `name`, quoted as TOML wants it."""
        plain = name.replace("-", "").replace("_", "").isalnum() and name.isascii()
        quoted = name if plain else f'"{name}"'
        return f"{self.where}.{quoted}" if self.where else quoted

    def has(self, name: str) -> bool:
        return name in self._table

    def names(self) -> list[str]:
        """Every name in the table, for tables whose names are the user's own."""
        self._asked.update(self._table)
        return list(self._table)

    def refuse_unknown(self) -> None:
        """Notes every name that nobody asked for."""
        for name in self._table:
            if name not in self._asked:
                self.note(
                    name, f"is not a key here; its value is {self._table[name]!r}.{suggestion(name, self._asked)}"
                )

    def raw(self, name: str) -> object:
        self._asked.add(name)
        return self._table.get(name)

    def integer(self, name: str, default: int, *, least: int = 0, most: int | None = None) -> int:
        value = self.raw(name)
        if value is None:
            return default
        fits = (
            isinstance(value, int)
            and not isinstance(value, bool)
            and value >= least
            and (most is None or value <= most)
        )
        if not fits:
            span = f"of at least {least}" if most is None else f"from {least} to {most}"
            self.note(name, f"must be a whole number {span}; found {value!r}.")
            return default
        assert isinstance(value, int)
        return value

    def number(self, name: str, default: float, *, most: float | None = None) -> float:
        value = self.raw(name)
        if value is None:
            return default
        number = _as_number(value)
        if number is None or (most is not None and number > most):
            span = "of at least 0" if most is None else f"from 0 to {most:g}"
            self.note(name, f"must be a number {span}; found {value!r}.")
            return default
        return number

    def share(self, name: str, default: float = 0.0) -> float:
        return self.number(name, default, most=1.0)

    def text(self, name: str) -> str | None:
        value = self.raw(name)
        if value is None or isinstance(value, str):
            return value
        self.note(name, f"must be text in quotes; found {value!r}.")
        return None

    def flag(self, name: str) -> bool:
        value = self.raw(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.note(name, f"must be true or false; found {value!r}.")
        return False

    def choice(self, name: str, choices: tuple[_Choice, ...], default: _Choice) -> _Choice:
        value = self.raw(name)
        if value is None:
            return default
        for choice in choices:
            if value == choice:
                return choice
        self.note(name, f"must be one of {', '.join(choices)}; found {value!r}.{suggestion(str(value), choices)}")
        return default

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.raw(name)
        if value is None:
            return ()
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        self.note(name, f"must be a list of texts in quotes; found {value!r}.")
        return ()

    def table(self, name: str) -> "TableReader":
        """The table under `name`; an empty one when absent."""
        value = self.raw(name)
        if value is not None and not isinstance(value, Mapping):
            self.note(name, f"must be a table; found {value!r}.")
            value = None
        return TableReader(value or {}, self.path(name), self.mistakes)

    def milliseconds(self, name: str) -> Milliseconds:
        """A fixed time (`latency_ms = 40`) or a lognormal one (`{median = 40, p99 = 200}`)."""
        value = self.raw(name)
        if isinstance(value, Mapping):
            table = TableReader(value, self.path(name), self.mistakes)
            median, p99 = table.number("median", 0.0), table.number("p99", 0.0)
            table.refuse_unknown()
            if not 0 < median <= p99:
                self.note(name, f"needs 0 < median <= p99; found median {median:g} and p99 {p99:g}.")
                return Milliseconds(median_ms=0.0, p99_ms=0.0)
            return Milliseconds(median_ms=median, p99_ms=p99)
        fixed = 0.0 if value is None else _as_number(value)
        if fixed is None:
            self.note(name, f"must be milliseconds, or {{median = .., p99 = ..}}; found {value!r}.")
            fixed = 0.0
        return Milliseconds(median_ms=fixed, p99_ms=fixed)

    def tokens(self, name: str) -> TokenRange | None:
        """A fixed number of tokens, or a range (`{min = 20, max = 60}`)."""
        value = self.raw(name)
        if not isinstance(value, Mapping):
            fixed = self.integer(name, 0)
            return None if value is None else TokenRange(tokens_min=fixed, tokens_max=fixed)
        table = TableReader(value, self.path(name), self.mistakes)
        least, most = table.integer("min", 0), table.integer("max", 0)
        table.refuse_unknown()
        if least > most:
            self.note(name, f"needs min <= max; found min {least} and max {most}.")
            return None
        return TokenRange(tokens_min=least, tokens_max=most)

    def nano_usd(self, name: str, default: int) -> int:
        """An exact price in USD, written as text, in nano-USD."""
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, str):
            self.note(name, f'must be USD as text in quotes, so that it stays exact, such as "0.25"; found {value!r}.')
            return default
        try:
            nano = Decimal(value) * _NANO
        except InvalidOperation:
            nano = Decimal(-1)
        if not nano.is_finite() or nano < 0 or nano != int(nano):
            self.note(name, f'must be USD of at least 0 with at most 9 decimals, such as "0.25"; found {value!r}.')
            return default
        return int(nano)


def _as_number(value: object) -> float | None:
    """`value` as a finite number of at least 0, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value)
    return number if 0.0 <= number < float("inf") else None
