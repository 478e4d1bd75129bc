"""A stored Snapshot into memory while Calls are answered: in a thread, with the loop going on often, within a time.

Owns the thread and how it treats the loop. Which Snapshot, and what becomes of it, is `serving`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.runtime import Ready, made_ready
from drivetrain.project.load import unload
from drivetrain.project.stored import load_stored

LOAD_S = 60.0
"""Code that takes longer to import hangs, and is given up: a thread cannot be ended, and is left to itself."""
SWITCH_S = 0.0005
"""A loading thread lets the loop go on this often, instead of every 5 ms: Calls wait for it at each of their steps."""


class TakesTooLong(DrivetrainError):
    """A Snapshot that was not loaded within `LOAD_S`: to try it again would leave another thread behind."""


async def loaded(folder: Path, digest: str, root: Path) -> Ready:
    """The stored Snapshot, proved to be what was stored, and ready to be served.

    Where nobody waits for it any more, it is unloaded again. Raises: DrivetrainError.
    """

    def load() -> Ready:
        with _INTERVAL.short():
            return made_ready(load_stored(folder, digest, root))

    try:
        async with asyncio.timeout(LOAD_S):
            return await _in_thread(load)
    except TimeoutError:
        raise TakesTooLong(
            f"Snapshot {digest[:16]} could not be loaded within {LOAD_S:.0f} s.",
            looked=[str(folder / digest)],
            do="Look at what its modules do when they are imported.",
        ) from None


async def _in_thread(load: Callable[[], Ready]) -> Ready:
    """What `load` returns or raises, from a thread for which no shutdown waits: the project's code may hang."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Ready] = loop.create_future()

    def settle(ready: Ready | None, error: BaseException | None) -> None:
        if not future.done():
            if ready is not None:
                future.set_result(ready)
            else:
                future.set_exception(error or RuntimeError("nothing was loaded"))
        elif ready is not None:
            unload(ready.snapshot)

    def run() -> None:
        ready: Ready | None = None
        failed: BaseException | None = None
        try:
            ready = load()
        except BaseException as error:  # noqa: BLE001  it belongs to who waits
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, ready, failed)

    threading.Thread(target=run, name="loading a snapshot", daemon=True).start()
    return await future


class _Interval:
    """The interpreter's switch interval: short while any thread loads, then as it was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading = 0
        self._usual_s = 0.0

    @contextlib.contextmanager
    def short(self) -> Iterator[None]:
        with self._lock:
            self._loading += 1
            if self._loading == 1:
                self._usual_s = sys.getswitchinterval()
                sys.setswitchinterval(SWITCH_S)
        try:
            yield
        finally:
            with self._lock:
                self._loading -= 1
                if not self._loading:
                    sys.setswitchinterval(self._usual_s)


_INTERVAL = _Interval()
