"""Temporary tables of one question, under names of their own, gone when it is answered."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import DrivetrainError

if TYPE_CHECKING:
    import duckdb

REASON_CHARS_MAX = 600
"""DuckDB repeats a broken line whole, which may be megabytes."""

_numbers = itertools.count(1)


class Scratch:
    """Makes temporary tables on one connection, and drops them."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        self._made: list[str] = []

    def table(self, select: str) -> str:
        """The name of a new temporary table with the rows of a SELECT, in its order."""
        name = self.name()
        self.connection.execute(f"CREATE TEMP TABLE {name} AS {select}")
        self._made.append(name)
        return name

    def name(self) -> str:
        """A name that no other table has."""
        return f"__features_{next(_numbers)}"

    def value(self, select: str) -> Any:
        """The first column of the first row."""
        row = self.connection.execute(select).fetchall()[0]
        return row[0]

    def drop(self, *names: str) -> None:
        """These tables, or all, are gone."""
        for name in names or tuple(self._made):
            self.connection.execute(f"DROP TABLE IF EXISTS {name}")
            self._made.remove(name)


@contextmanager
def scratch_of(connection: duckdb.DuckDBPyConnection) -> Iterator[Scratch]:
    """A Scratch whose tables are gone where the block fails. Times without an offset are UTC on its connection."""
    scratch = Scratch(connection)
    if scratch.value("SELECT current_setting('TimeZone')") != "UTC":
        connection.execute("SET TimeZone = 'UTC'")
    try:
        yield scratch
    except BaseException:
        scratch.drop()
        raise


@contextmanager
def explained(where: str, done: str = "read") -> Iterator[None]:
    """DuckDB's errors, as errors that name what was being read or written. Raises: DrivetrainError."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        reason = " ".join(itertools.takewhile(_tells, str(error).strip().splitlines()))
        raise DrivetrainError(f"{where} cannot be {done}: {reason[:REASON_CHARS_MAX]}") from error


def _tells(line: str) -> bool:
    """Whether a line of DuckDB's error says what is wrong; advice and the statement follow."""
    return bool(line.strip()) and not line.startswith(("Possible", "LINE", "The search space", "Candidate"))


def quoted(name: str) -> str:
    """A name as SQL writes it, whatever its characters."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"
