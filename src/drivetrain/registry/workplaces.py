"""Where a version is put together, and who may change the registry now: nothing of a killed process stays.

A working folder is locked by whoever works in it, so that one without a living holder is known as left. The registry's
lock is held for moments only: while a folder begins, and while a number or an alias is given.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from drivetrain.core.errors import DrivetrainError

PREFIX = "drivetrain-model-"
LOCK = "models.lock"


class Workplaces:
    """The working folders of one registry. place: on the same disk as the registry, made when it is first needed."""

    def __init__(self, place: Path) -> None:
        self._place = place

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder of one's own, gone afterwards; first, what killed processes left goes. Raises: DrivetrainError."""
        with self.locked():
            self._sweep()
            try:
                folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._place))  # mode 0700
                held = _lock_folder(folder)
            except OSError as error:
                raise _unwritable(self._place, error) from None
        assert held is not None, "nobody else knows of it while the registry is locked"
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time. Raises: DrivetrainError where the place cannot be written."""
        try:
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._place / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(self._place, error) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _sweep(self) -> None:
        for name in os.listdir(self._place):
            if name.startswith(PREFIX):
                with contextlib.suppress(OSError):  # another's, or gone meanwhile
                    held = _lock_folder(self._place / name)
                    if held is not None:
                        shutil.rmtree(self._place / name, ignore_errors=True)
                        os.close(held)


def _lock_folder(folder: Path) -> int | None:
    """The descriptor that holds it; None where another process does."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _unwritable(place: Path, error: OSError) -> DrivetrainError:
    return DrivetrainError(
        f"There is no place to put a model together: {error.strerror or error}.",
        looked=[str(place)],
        do="Make room on that disk, or let us write there.",
    )
