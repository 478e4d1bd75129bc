"""Locks between processes of one machine: an flock on a file, which the kernel lets go when its process dies.

So nobody need be declared dead by a clock. Called by every room that shares a folder; an object store has none.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOOK_EVERY_S = 0.02
"""How often who waits looks again; the kernel's own waiting has no limit."""


@contextmanager
def locked(
    path: Path,
    *,
    shared: bool = False,
    wait_s: float = 0.0,
    look_every_s: float = LOOK_EVERY_S,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[bool]:
    """Hold the lock `path`; yields False where another process, or thread, still has it after `wait_s`.

    shared: many may hold it so, and then nobody holds it alone. The file is made where it is missing, its folder is
    there already. Raises: OSError.
    """
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        deadline = monotonic() + wait_s
        while not (got := _taken(fd, how)) and monotonic() < deadline:
            sleep(look_every_s)
        yield got
    finally:
        os.close(fd)


def _taken(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
