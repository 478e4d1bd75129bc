"""Whatever a text or a name is, DuckDB takes it for that and nothing else."""

from __future__ import annotations

import duckdb
import pytest

from drivetrain.core.sql import identifier, literal, literals

WORDS = [
    "plain",
    "o'hara",
    "'; DROP TABLE t; --",
    'a"b',
    '""',
    "''",
    "select",
    "zoë 🦉",
    "a\\'b",
    "line\nbreak",
    "$$x$$",
]


@pytest.mark.parametrize("word", WORDS)
def test_a_text_stays_the_text_and_a_name_the_name(word: str) -> None:
    with duckdb.connect() as connection:
        relation = connection.sql(f"SELECT {literal(word)} AS {identifier(word)}")
        assert (relation.columns, relation.fetchall()) == ([word], [(word,)])


def test_a_list_of_texts() -> None:
    with duckdb.connect() as connection:
        assert connection.sql(f"SELECT {literals(WORDS)}").fetchall() == [(WORDS,)]
