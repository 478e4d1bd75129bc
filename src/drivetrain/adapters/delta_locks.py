"""Who writes a local table, and who cleans it: many of the one, or one of the other.

A writer's files stand in the folder before a commit names them, and look then like what a killed writer left. So who
cleans waits until nobody writes. A flock, which the kernel lets go when its process dies. An object store has none:
there a file's age must tell.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.locks import locked

WRITE_WAIT_S = 60.0
"""How long a writer waits for who cleans; cleaning lists and deletes, and takes seconds."""
CLEAN_WAIT_S = 5.0
"""How long who cleans waits for a moment without writers."""


class TableLocks:
    """One lock file per table below `folder`; without a folder nothing is locked."""

    def __init__(self, folder: Path | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._folder = folder
        self._sleep = sleep

    @contextlib.contextmanager
    def writing(self, table: str) -> Iterator[None]:
        """Others may write meanwhile, nobody cleans. Raises: DrivetrainError after `WRITE_WAIT_S`."""
        with self._held(table, WRITE_WAIT_S, shared=True) as held:
            if self._folder is not None and not held:
                raise DrivetrainError(
                    f"The table `{table}` is being cleaned up since more than {WRITE_WAIT_S:.0f} s.",
                    do="Try again, or end the process that cleans it.",
                )
            yield

    @contextlib.contextmanager
    def cleaning(self, table: str) -> Iterator[bool]:
        """Whether nobody writes meanwhile; False after `CLEAN_WAIT_S`."""
        with self._held(table, CLEAN_WAIT_S, shared=False) as held:
            yield held

    @contextlib.contextmanager
    def _held(self, table: str, wait_s: float, *, shared: bool) -> Iterator[bool]:
        if self._folder is None:
            yield False
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / table.replace("/", "+")  # which stands in no table's name
        with locked(path, shared=shared, wait_s=wait_s, sleep=self._sleep) as held:
            yield held
