"""Keys: what opens sealed payloads and proves the control log, copied apart from the data, or not at all.

Owns which files of the keys folder belong together, and that an erasure is not undone by bringing back older keys: what
was forgotten since stays forgotten. A backup of data holds of them only a hash that tells keys apart, and the control
log's anchor, which is no secret. Called by the backup and the restore.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from drivetrain.backup.generations import FileV1, Generations, GenerationV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.disk import write_whole
from drivetrain.version import VERSION

RECORD_BYTES = 96
"""Of a wrapped key; a file's end may hold half of one that is being written."""
FORGOTTEN_BYTES = 24
ANCHOR = "control.anchor"
FORGOTTEN = "forgotten"


def fingerprints(keys_folder: Path) -> dict[str, str]:
    """Key file -> a hash of it; of 32 random bytes it tells nothing but whether two are the same."""
    found = {}
    for path in sorted(keys_folder.glob("*.key")):
        found[path.name] = hashlib.sha256(b"drivetrain key fingerprint\0" + path.read_bytes()).hexdigest()[:32]
    return found


def anchor_of(keys_folder: Path) -> bytes | None:
    """The control log's anchor; None where there is none."""
    try:
        return (keys_folder / ANCHOR).read_bytes()
    except FileNotFoundError:
        return None


def back_up_keys(
    keys_folder: Path, to: Generations, data: Generations, *, now_ns: Callable[[], int] = time.time_ns
) -> GenerationV1:
    """A new generation of keys in `to`, taken after the data's, so that it has the key of every payload there.

    Raises: DrivetrainError.
    """
    refuse_together(to.folder, data.folder)
    began_ns = now_ns()
    with to.writing():
        files = [_copied(path, to) for path in _key_files(keys_folder)]
        generation = GenerationV1(
            number=max(to.numbers(), default=0) + 1,
            version=VERSION,
            layout=0,
            began_ns=began_ns,
            moment_ns=began_ns,
            ended_ns=now_ns(),
            keys=fingerprints(keys_folder),
            files=tuple(files),
        )
        to.publish(generation)
    return generation


def refuse_together(keys_to: Path, data_to: Path) -> None:
    """Raises: DrivetrainError where one lies in the other: who has the data's backup would have the keys."""
    keys, other = keys_to.resolve(), data_to.resolve()
    if keys == other or keys in other.parents or other in keys.parents:
        raise DrivetrainError(
            f"Keys would stand beside the data that they open: {keys_to} and {data_to}.",
            do="Choose two folders that do not lie in each other, best on different machines with different owners.",
        )


def merge_forgotten(before: Path, now: Path) -> int:
    """What was forgotten in the keys that were there before is forgotten in those that took their place; how many.

    Means nothing where they have another master key: then its records match no subject.
    """
    known = _records(now / FORGOTTEN)
    missing = [record for record in _records(before / FORGOTTEN) if record not in set(known)]
    if missing:
        write_whole(now / FORGOTTEN, b"".join([*known, *missing]))
    return len(missing)


def _key_files(keys_folder: Path) -> list[Path]:
    names = [*keys_folder.glob("*.key"), *keys_folder.glob("*.keys"), keys_folder / FORGOTTEN]
    return sorted(path for path in names if path.is_file() and not path.name.startswith("."))


def _copied(path: Path, to: Generations) -> FileV1:
    content = path.read_bytes()
    whole = {".keys": RECORD_BYTES, "": FORGOTTEN_BYTES}.get(path.suffix, 1)
    return to.add_bytes(f"keys/{path.name}", content[: len(content) // whole * whole])


def _records(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return [content[at : at + FORGOTTEN_BYTES] for at in range(0, len(content) - FORGOTTEN_BYTES + 1, FORGOTTEN_BYTES)]
