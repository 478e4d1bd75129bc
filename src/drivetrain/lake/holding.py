"""Holding: while somebody copies a data folder, nothing that stood there when the copy began is deleted.

Owns `lake-plans/.hold`, an flock that ends with its process: those who copy share it, who deletes segments, plans or
replaced files of tables has it alone. Rolling goes on meanwhile: it only adds. Called by backup (holds), by retention
(deletes another time) and by erasure (waits). It reaches one data folder: what another machine deletes in a lake that
both use is not stopped by it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from drivetrain.core.errors import DrivetrainError
from drivetrain.lake.plans import plans_folder

HOLD_NAME = ".hold"
HOLD_WAIT_S = 120.0
"""How long a copy waits for who deletes, and an erasure for who copies: tidying up takes seconds to a minute."""
LOOK_EVERY_S = 0.05


@contextlib.contextmanager
def held(
    data_folder: Path,
    wait_s: float = HOLD_WAIT_S,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Nothing is deleted meanwhile. Raises: DrivetrainError where that takes longer than `wait_s`, OSError."""
    with _locked(data_folder, fcntl.LOCK_SH, wait_s, monotonic, sleep) as got:
        if not got:
            raise DrivetrainError(
                f"Segments or tables are being tidied up for more than {wait_s:g} s.",
                looked=[str(plans_folder(data_folder) / HOLD_NAME)],
                do="Try again when that has ended.",
            )
        yield


@contextlib.contextmanager
def deleting(
    data_folder: Path,
    wait_s: float = 0.0,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[bool]:
    """Whether things may be deleted now; False where somebody still copies after `wait_s`. Raises: OSError."""
    with _locked(data_folder, fcntl.LOCK_EX, wait_s, monotonic, sleep) as got:
        yield got


@contextlib.contextmanager
def _locked(
    data_folder: Path, how: int, wait_s: float, monotonic: Callable[[], float], sleep: Callable[[float], None]
) -> Iterator[bool]:
    folder = plans_folder(data_folder)
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder / HOLD_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        deadline = monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if monotonic() >= deadline:
                    yield False
                    return
                sleep(LOOK_EVERY_S)
            else:
                yield True
                return
    finally:
        os.close(fd)
