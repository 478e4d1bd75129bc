"""Who writes a local table, and who cleans it: many of the one, or one of the other.

A writer's files stand in the folder before a commit names them, and look then like what a killed writer left. So who
cleans waits until nobody writes. A flock, which the kernel lets go when its process dies. An object store has none:
there a file's age must tell.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from drivetrain.core.errors import DrivetrainError

WRITE_WAIT_S = 60.0
"""How long a writer waits for who cleans; cleaning lists and deletes, and takes seconds."""
CLEAN_WAIT_S = 5.0
"""How long who cleans waits for a moment without writers."""
LOOK_EVERY_S = 0.02


class TableLocks:
    """One lock file per table below `folder`; without a folder nothing is locked."""

    def __init__(self, folder: Path | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._folder = folder
        self._sleep = sleep

    @contextlib.contextmanager
    def writing(self, table: str) -> Iterator[None]:
        """Others may write meanwhile, nobody cleans. Raises: DrivetrainError after `WRITE_WAIT_S`."""
        with self._held(table, fcntl.LOCK_SH, WRITE_WAIT_S) as held:
            if self._folder is not None and not held:
                raise DrivetrainError(
                    f"The table `{table}` is being cleaned up since more than {WRITE_WAIT_S:.0f} s.",
                    do="Try again, or end the process that cleans it.",
                )
            yield

    @contextlib.contextmanager
    def cleaning(self, table: str) -> Iterator[bool]:
        """Whether nobody writes meanwhile; False after `CLEAN_WAIT_S`."""
        with self._held(table, fcntl.LOCK_EX, CLEAN_WAIT_S) as held:
            yield held

    @contextlib.contextmanager
    def _held(self, table: str, how: int, wait_s: float) -> Iterator[bool]:
        if self._folder is None:
            yield False
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        # `+` stands in no table's name.
        fd = os.open(self._folder / table.replace("/", "+"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            yield self._lock(fd, how, wait_s)
        finally:
            os.close(fd)

    def _lock(self, fd: int, how: int, wait_s: float) -> bool:
        for _ in range(int(wait_s / LOOK_EVERY_S)):
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
            except BlockingIOError:
                self._sleep(LOOK_EVERY_S)
            else:
                return True
        return False
