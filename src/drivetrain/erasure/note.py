"""The note of an erasure that is under way: whom, with which tokens, and which steps are done.

It stands in the keys folder, outside the data folder, for as long as the erasure runs, because it names the person.
Whoever finds one finishes it: one erasure at a time, by a lock that ends with its process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.disk import HALF_WRITTEN, sync_folder, write_whole
from drivetrain.ports.locks import locked

NAME = "erasing.json"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """How far an erasure has come."""

    id: str
    """16 hex digits; its receipt has it too."""
    subject: str
    secret: str
    """What tokens of business keys are made with; gone with the note, so that nobody can make them again."""
    began_ns: int
    done: tuple[str, ...] = ()
    """Steps, in order."""
    found: dict[str, Any] = {}
    """What there was before the first of it went, for the receipt."""


def fresh_note(subject: str, began_ns: int) -> Note:
    """The note of an erasure that begins."""
    return Note(id=secrets.token_hex(8), subject=subject, secret=secrets.token_hex(32), began_ns=began_ns)


def unfinished(keys_folder: Path) -> Note | None:
    """The erasure that was cut off, or runs; None where there is none. Raises: DrivetrainError."""
    path = keys_folder / NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Note)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DrivetrainError(
            f"{path}, which says whom an erasure that was cut off is about, cannot be read: {error}.",
            do="Delete it, and erase that person again: what is gone already does no harm.",
        ) from None


def write_note(keys_folder: Path, note: Note) -> None:
    """Put it on the disk, whole or not at all. Raises: OSError."""
    keys_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(keys_folder / NAME, msgspec.json.encode(note))


def remove_note(keys_folder: Path) -> None:
    """The erasure is finished. Raises: OSError."""
    for path in (keys_folder / NAME, *keys_folder.glob(HALF_WRITTEN.format(NAME))):
        with contextlib.suppress(FileNotFoundError):
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
    sync_folder(keys_folder)


@contextlib.contextmanager
def alone(keys_folder: Path) -> Iterator[None]:
    """No other process erases meanwhile. Raises: DrivetrainError where one does."""
    keys_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(keys_folder / "erasing.lock") as held:
        if not held:
            raise DrivetrainError("Another erasure is under way.", do="Wait for its end, and try again.")
        yield
