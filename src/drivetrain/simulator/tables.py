"""Loads the files that a simulator's TOML names: CSV tables with a header, and lists of lines. Called by `config`
only."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec

from drivetrain.simulator.mistakes import TableReader

FILE_BYTES_MAX = 256 * 1024 * 1024
"""Larger files are refused: every text is held in memory."""


class CsvTable(msgspec.Struct, frozen=True, kw_only=True):
    """A CSV file with a header."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]


class TableFiles:
    """The files below one folder, each read once however many models name it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: dict[Path, CsvTable] = {}

    def csv(self, table: TableReader, name: str) -> CsvTable | None:
        """The CSV file that `name` in `table` points to; None when not named or not readable (then noted)."""
        value = table.text(name)
        if value is None:
            return None
        path = self._folder / value
        if path not in self._tables:
            text = self._text(table, name, path)
            if text is None:
                return None
            self._tables[path] = _parsed(path, text)
        return self._tables[path]

    def lines(self, table: TableReader, name: str) -> tuple[str, ...]:
        """The entries of the file that `name` points to: one a line, or a JSON list of texts."""
        value = table.text(name)
        if value is None:
            return ()
        text = self._text(table, name, self._folder / value)
        if text is None:
            return ()
        if text.lstrip().startswith("["):
            try:
                return tuple(str(entry) for entry in json.loads(text))
            except ValueError as error:
                table.note(name, f"looks like a JSON list and is not: {error}.")
                return ()
        return tuple(line.strip() for line in text.splitlines() if line.strip())

    def _text(self, table: TableReader, name: str, path: Path) -> str | None:
        try:
            if path.stat().st_size > FILE_BYTES_MAX:
                table.note(name, f"names {path}, which is larger than {FILE_BYTES_MAX} bytes.")
                return None
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            table.note(name, f"names {path}, which cannot be read: {error}.")
            return None


def _parsed(path: Path, text: str) -> CsvTable:
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    rows = tuple({key: value for key, value in row.items() if isinstance(value, str)} for row in reader)
    return CsvTable(path=path, columns=tuple(reader.fieldnames or ()), rows=rows)
