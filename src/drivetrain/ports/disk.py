"""The local disk: files that are whole or not there, also after a loss of power.

Owns how a small file of ours is replaced and how a folder's entries are made durable. Not for what is appended to
(segments) or read by its hash. Called by every room that keeps files on a disk.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PRIVATE_MODE = 0o600
"""Stores of ours are for the user who runs us."""
SHARED_MODE = 0o666
"""Of a file that somebody asked for; their umask takes away from it."""
HALF_WRITTEN = ".{}.*.new"
"""Glob, with a file's name, of what killed writers of it left beside it."""


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """A path beside `path` for others to write; what they wrote becomes `path` when the block ends.

    Where it fails, what stood there stands. The folder is there already. Raises: OSError.
    """
    half = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        yield half
        _sync(half, os.O_RDONLY)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def whole_file(path: Path, *, mode: int = PRIVATE_MODE) -> Iterator[BinaryIO]:
    """As `whole_path`, of a file that is open already. Raises: OSError."""
    with whole_path(path) as half:
        fd = os.open(half, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            yield file


def write_whole(path: Path, content: bytes, *, mode: int = PRIVATE_MODE) -> None:
    """As `whole_file`, of a content at hand. Raises: OSError."""
    with whole_file(path, mode=mode) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """What was made, renamed or deleted in `folder` stays so after a loss of power. Raises: OSError."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
