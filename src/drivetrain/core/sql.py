"""SQL: texts and names from outside, as a statement may hold them. The only place that quotes for DuckDB."""

from __future__ import annotations

from collections.abc import Iterable


def literal(text: str) -> str:
    """A text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def literals(texts: Iterable[str]) -> str:
    """Texts as an SQL list of strings."""
    return "[" + ", ".join(map(literal, texts)) + "]"


def identifier(name: str) -> str:
    """The name of a table, schema or column, whatever its characters."""
    return '"' + name.replace('"', '""') + '"'
