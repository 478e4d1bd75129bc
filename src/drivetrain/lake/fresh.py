"""The tail of a lake that is asked again and again: what was made Arrow once stays so, in few pieces.

Owns no rule about which rows there are (`rows.py` does): only that the next question costs what was written since the
last one, and not everything that no roll has taken yet. Called by the lake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drivetrain.lake.columns import CALL_COLUMNS, OUTCOME_COLUMNS, CallRows, OutcomeRows, table_of
from drivetrain.lake.plans import Plan
from drivetrain.lake.rows import Tail

PIECE_ROWS_MAX = 65_536
"""A piece of this size is not copied any more."""


class FreshTail(Tail):
    """A Tail whose rows are kept as Arrow."""

    def __init__(self, data_folder: Path, calls: Plan | None, outcomes: Plan | None, *, ledger: str = "") -> None:
        super().__init__(data_folder, calls, outcomes, ledger=ledger)
        self._ended = _KeptCalls(ledger, None)
        self._outcomes = _KeptOutcomes(ledger, None)


class _KeptCalls(CallRows):
    __slots__ = ()

    def batches(self) -> list[Any]:
        self._batches = pieces(super().batches(), CALL_COLUMNS)
        self._pairs, self._closed = [], []
        return list(self._batches)


class _KeptOutcomes(OutcomeRows):
    __slots__ = ()

    def batches(self) -> list[Any]:
        self._batches = pieces(super().batches(), OUTCOME_COLUMNS)
        self._records, self._segments = [], []
        return list(self._batches)


def pieces(batches: list[Any], columns: dict[str, str]) -> list[Any]:
    """The same rows in a number of pieces that grows with the logarithm of theirs; each is copied that often."""
    found: list[Any] = []
    for batch in batches:
        found.append(batch)
        while len(found) > 1 and found[-2].num_rows <= 2 * found[-1].num_rows < PIECE_ROWS_MAX:
            last = [found.pop(), found.pop()][::-1]
            found.extend(table_of(columns, last).combine_chunks().to_batches())
    return found
