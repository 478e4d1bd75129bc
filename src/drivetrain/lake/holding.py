"""Holding: while somebody copies a data folder, nothing that stood there when the copy began is deleted.

Owns `lake-plans/.hold`, an flock that ends with its process: those who copy share it, who deletes segments, plans or
replaced files of tables has it alone. Rolling goes on meanwhile: it only adds. Called by backup (holds), by retention
(deletes another time) and by erasure (waits). It reaches one data folder: what another machine deletes in a lake that
both use is not stopped by it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from drivetrain.core.errors import DrivetrainError
from drivetrain.lake.plans import plans_folder
from drivetrain.ports.locks import locked

HOLD_NAME = ".hold"
HOLD_WAIT_S = 120.0
"""How long a copy waits for who deletes, and an erasure for who copies: tidying up takes seconds to a minute."""


@contextlib.contextmanager
def held(
    data_folder: Path,
    wait_s: float = HOLD_WAIT_S,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Nothing is deleted meanwhile. Raises: DrivetrainError where that takes longer than `wait_s`, OSError."""
    with locked(_hold(data_folder), shared=True, wait_s=wait_s, monotonic=monotonic, sleep=sleep) as got:
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
    with locked(_hold(data_folder), wait_s=wait_s, monotonic=monotonic, sleep=sleep) as got:
        yield got


def _hold(data_folder: Path) -> Path:
    folder = plans_folder(data_folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / HOLD_NAME
