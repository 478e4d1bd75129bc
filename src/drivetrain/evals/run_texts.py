"""What of a stored row could tell of a person: whose it is, and what scorers noted of the answer.

Owns how both are kept. A group is a digest under the project's keys, so that nobody without them can match it with an
id; an erasure then puts a token in its place (`run_erasing.py`). Notes are sealed under the row's subject, so that they
go with that key. Called by runs, and by whoever reads notes.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.evals import Score
from drivetrain.evals.rows import RowV1
from drivetrain.ports.journal import Vault

SEALED_AS = "notes"
"""The kind under which notes are sealed, bound to the row's Call."""
GROUP_CHARS = 16
_NOTES: msgspec.json.Decoder[dict[str, str]] = msgspec.json.Decoder(dict[str, str])

Digest = Callable[[bytes], bytes]
"""A vault's: the same for the same bytes, to nobody without its key."""


def group_under(digest: Digest, group: str) -> str:
    """A row's group as it is kept. group: of the case, the same for the same person in one Dataset."""
    return digest(f"eval group\0{group}".encode()).hex()[:GROUP_CHARS]


def seal_notes(row: RowV1, vault: Vault, subject: str) -> bytes:
    """What scorers noted of a row, for its `notes`. Raises: JournalFull where a new key cannot be written."""
    notes = {name: score.note for name, score in row.scores.items() if score.note}
    return vault.seal(subject, row.call_id, SEALED_AS, msgspec.json.encode(notes))


def with_notes(row: RowV1, vault: Vault) -> RowV1:
    """A stored row with its notes in its scores; without them where they were not kept, or its person was forgotten.

    Raises: DrivetrainError where they were altered.
    """
    if not row.notes:
        return row
    try:
        opened = vault.open(row.call_id, SEALED_AS, row.notes)
        notes = _NOTES.decode(opened) if opened is not None else {}
    except (ValueError, msgspec.MsgspecError) as error:
        raise DrivetrainError(
            f"What was noted of call {row.call_id} was altered: {error}.", do="Run the eval again."
        ) from None
    scores = {name: _noted(score, notes.get(name, "")) for name, score in row.scores.items()}
    return msgspec.structs.replace(row, scores=scores)


def without_notes(row: RowV1) -> RowV1:
    """A row as it is stored: no note stands in it in plain."""
    if not any(one.note for one in row.scores.values()):
        return row
    return msgspec.structs.replace(row, scores={name: _noted(one, "") for name, one in row.scores.items()})


def _noted(score: Score, note: str) -> Score:
    return msgspec.structs.replace(score, note=note)
