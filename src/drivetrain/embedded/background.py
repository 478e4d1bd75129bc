"""A Snapshot's Runtime on an event loop in a thread of its own, for code that is not asynchronous.

Owns the thread, the loop and how both end. What is run there is for whoever made it: plain Python calls (`calls`), and
runs of many Calls (`evaluating`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from drivetrain.embedded.runtime import Runtime
from drivetrain.project.snapshot import Snapshot

T = TypeVar("T")


class BackgroundRuntime:
    """A prepared Runtime and its loop. Methods may be called from any other thread."""

    def __init__(self, snapshot: Snapshot, name: str) -> None:
        """name: the thread's. Raises: DrivetrainError where the Runtime cannot be prepared; then no thread is left."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        try:
            self.runtime = self._run(_prepared(snapshot))
        except BaseException:
            self._end()
            raise

    @property
    def is_here(self) -> bool:
        """Whether the caller runs on this loop, and so must not wait for it."""
        return threading.current_thread() is self._thread

    def soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Call it on the loop."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def call_soon(self, function: Callable[[], object]) -> object:
        """As the loop's own, for what is on the loop already."""
        return self._loop.call_soon(function)

    def close(self, after: Callable[[], None], wait_s: float | None = None) -> None:
        """End the Runtime's Calls and write what is buffered; then `after`, and the thread ends.

        wait_s: for the Runtime at most. Raises: TimeoutError, and then the loop runs on.
        """
        self._run(self.runtime.close(), wait_s)
        after()
        self._end()

    def _run(self, work: Coroutine[Any, Any, T], wait_s: float | None = None) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(wait_s)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _prepared(snapshot: Snapshot) -> Runtime:
    runtime = Runtime(snapshot, asyncio.get_running_loop())
    await runtime.prepare(snapshot)
    return runtime
