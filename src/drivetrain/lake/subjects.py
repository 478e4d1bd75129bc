"""A subject in SQL: which rows are about the person whose payloads are encrypted under an id, byte for byte.

Owns what counts as theirs. Called by whatever erases: the lake's own tables, Datasets and pushed rows.
"""

from __future__ import annotations

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.sql import literal

ERASED = "erased"
"""Stands where a person's id or words stood."""
SUBJECT_BYTES_MAX = 4_096
"""An id is no document; headers, which bring most of them, are bounded far below."""


class Subject(msgspec.Struct, frozen=True):
    """One person's id: the user of a Call; of Calls without one the key's name, then the team."""

    id: str

    @property
    def has_call(self) -> str:
        """Whether a row of `calls` is theirs: the rule under which its payload was encrypted."""
        owner = "coalesce(nullif(\"user\", ''), nullif(\"key\", ''), nullif(team, ''), '-')"
        return f"coalesce({owner} = {literal(self.id)}, false)"

    def equals(self, cell: str) -> str:
        """Whether a cell is the id, whatever its type."""
        return f"coalesce(CAST({cell} AS VARCHAR) = {literal(self.id)}, false)"

    def named_in(self, text: str) -> str:
        """Whether a text holds the id as a whole word: `order-4711` names 4711, and 147110 does not."""
        word = f"(^|[^\\pL\\pN]){escaped(self.id)}([^\\pL\\pN]|$)"
        return f"coalesce(contains({text}, {literal(self.id)}) AND regexp_matches({text}, {literal(word)}), false)"


def subject_of(text: str) -> Subject:
    """The subject that somebody names. Raises: DrivetrainError where no Call can have had it."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        size = SUBJECT_BYTES_MAX + 1
    if not text or "\0" in text or size > SUBJECT_BYTES_MAX:
        raise DrivetrainError(
            "That is no id that a Call can have.",
            do=f"Write it as `drivetrain calls show` has it: 1 to {SUBJECT_BYTES_MAX:,} bytes of UTF-8.",
        )
    if text == ERASED:
        raise DrivetrainError(f"`{ERASED}` stands for everybody who was erased.", do="Name a person.")
    return Subject(text)


def escaped(text: str) -> str:
    """`text` as a regular expression (RE2) that matches it and nothing else."""
    return "".join(one if one.isascii() and one.isalnum() else f"\\x{{{ord(one):x}}}" for one in text)
