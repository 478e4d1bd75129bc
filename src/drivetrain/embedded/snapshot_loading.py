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
from typing import TypeVar

from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.runtime import Ready, made_ready
from drivetrain.project.load import unload
from drivetrain.project.stored import load_stored

LOAD_S = 60.0
"""Code that takes longer to import hangs, and is given up: a thread cannot be ended, and is left to itself."""
SWITCH_S = 0.0005
"""A loading thread lets the loop go on this often, instead of every 5 ms: Calls wait for it at each of their steps."""


T = TypeVar("T")


class TakesTooLong(DrivetrainError):
    """A Snapshot that was not loaded within `LOAD_S`: to try it again would leave another thread behind."""


async def loaded(folder: Path, digest: str, root: Path) -> Ready:
    """The stored Snapshot, proved to be what was stored, and ready to be served.

    Where nobody waits for it any more, it is unloaded again. Raises: DrivetrainError.
    """

    return await apart(
        lambda: made_ready(load_stored(folder, digest, root)), f"Snapshot {digest[:16]} could not be loaded",
        folder / digest, unused=lambda ready: unload(ready.snapshot),
    )  # fmt: skip


async def apart(work: Callable[[], T], what: str, where: Path, *, unused: Callable[[T], None] | None = None) -> T:
    """What `work` returns or raises, from a thread of its own.

    what, where: for people, where it takes longer than `LOAD_S`. unused: called with what it returns where nobody waits
    for it any more. Raises: TakesTooLong, and whatever `work` does.
    """

    def run() -> T:
        with _INTERVAL.short():
            return work()

    try:
        async with asyncio.timeout(LOAD_S):
            return await _in_thread(run, unused)
    except TimeoutError:
        raise TakesTooLong(
            f"{what} within {LOAD_S:.0f} s.", looked=[str(where)], do="Look at what its modules do when imported."
        ) from None


async def _in_thread(work: Callable[[], T], unused: Callable[[T], None] | None) -> T:
    """As `apart`, without its time; no shutdown waits for the thread: the project's code may hang."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def done(found: T) -> None:
        if not future.done():
            future.set_result(found)
        elif unused is not None:
            unused(found)

    def failed(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def run() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            try:
                found = work()
            except Exception as error:  # noqa: BLE001  it belongs to who waits
                loop.call_soon_threadsafe(failed, error)
            except BaseException as end:  # noqa: BLE001  on the loop it would end the process
                loop.call_soon_threadsafe(failed, DrivetrainError(f"Its code ended with {type(end).__name__}."))
            else:
                loop.call_soon_threadsafe(done, found)

    threading.Thread(target=run, name="beside the loop", daemon=True).start()
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
