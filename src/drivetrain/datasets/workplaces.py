"""Working folders: where rows stand while a Dataset is made, read by this user only, gone with who works there.

Owns that nothing of a killed process stays. Each folder is held by a flock on a file in it, which ends with its process
however that ends; a folder that nobody holds is deleted by the next one who works beside it, and by the upkeep. What
stands there may have been decrypted, so the place is below the data folder, with everything else that is erased.
Called by the bench and by the upkeep of the lake.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from drivetrain.core.errors import DrivetrainError

PREFIX = "drivetrain-dataset-"
LOCK = "held"
"""The file in a folder that is locked."""
BEGINS_MAX = 5
"""How often a folder is begun anew that a sweeper took for left in the moment before it was locked."""
BEGIN_S_MAX = 60
"""A folder without a lock that is older was left before it was locked."""
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def staging_folder(data_folder: Path) -> Path:
    """Where working folders are, below the data folder."""
    return data_folder / "tmp"


def sweep_staging(data_folder: Path) -> int:
    """Delete the working folders of processes that have ended; how many. Harmless at any time."""
    return _sweep(staging_folder(data_folder))


@contextlib.contextmanager
def working_folder(below: Path | None = None) -> Iterator[Path]:
    """A folder of one's own, gone afterwards; before, what killed processes left beside it is gone.

    below: None, or a folder where we may not write: the system's place for that. Raises: DrivetrainError.
    """
    try:
        place = _writable(below)
        _sweep(place)
        folder, held = _begun(place)
    except OSError as error:
        raise DrivetrainError(
            f"There is no place for rows while they are checked: {error.strerror or error}.",
            looked=[str(below or tempfile.gettempdir())],
            do="Make room on that disk, or let us write there.",
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _writable(below: Path | None) -> Path:
    """Who only reads a project that is mounted read-only can still do so."""
    if below is not None:
        try:
            below.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
        else:
            if os.access(below, os.W_OK | os.X_OK):
                return below
    return Path(tempfile.gettempdir())


def _begun(place: Path) -> tuple[Path, int]:
    """A new folder and the descriptor whose lock holds it."""
    for _ in range(BEGINS_MAX):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))  # mode 0700
        held = os.open(folder / LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(folder / LOCK), os.fstat(held)):
                return folder, held
        os.close(held)
    raise OSError(errno.EBUSY, "Folders are deleted as fast as they are made")


def _sweep(place: Path) -> int:
    """How many folders that nobody holds are gone now."""
    swept = 0
    with contextlib.suppress(OSError):  # there is none, or it is not ours to look into
        for name in os.listdir(place):
            if name.startswith(PREFIX) and _left(place / name):
                swept += 1
    return swept


def _left(folder: Path) -> bool:
    """Whether nobody held a folder; then it is gone."""
    try:
        held = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > BEGIN_S_MAX:
                shutil.rmtree(folder, ignore_errors=True)
                return True
        return False
    except OSError:
        return False  # another user's
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        os.close(held)
