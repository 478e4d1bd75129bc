"""Unix sockets between processes of one project on one machine: where they stand, such that only this user reaches
them. Called by whoever listens and by whoever connects; both find the same path without telling each other."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from drivetrain.core.errors import DrivetrainError

PATH_BYTES_MAX = 100
"""Of a Unix socket: Linux takes 107, macOS 103."""
NAME_BYTES_MAX = 11
"""Of a socket's file."""


def socket_folder(run_folder: Path) -> Path:
    """Where sockets of names up to `NAME_BYTES_MAX` may stand.

    The project's run folder, or, where its path is too long for a socket, a folder of its own for temporary files.
    Raises: DrivetrainError where that one is not this user's alone.
    """
    folder = run_folder.resolve()
    if len(os.fsencode(folder)) + 1 + NAME_BYTES_MAX <= PATH_BYTES_MAX:
        return folder
    mark = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"drivetrain-{os.getuid()}-{mark}"
    folder.mkdir(mode=0o700, exist_ok=True)
    seen = folder.lstat()
    if seen.st_uid != os.getuid() or seen.st_mode & 0o077 or folder.is_symlink():
        raise DrivetrainError(
            f"{folder} is not this user's alone, so no process of the gateway can listen there.",
            do="Remove it, or keep the project's data folder at a shorter path.",
        )
    return folder
