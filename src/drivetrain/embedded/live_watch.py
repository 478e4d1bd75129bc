"""What is live in one environment, kept in step with the control log, and whether its canary is watched.

Owns when the log is looked at and what happens where it cannot be. Decides nothing: `promotion.state` says which
records count. Loads nothing: whoever serves gives `start` a callback. A worker's watch has a thread of its own, so that
neither a slow disk nor a long log keeps its loop; the supervisor, which has no loop, calls `look` itself.

Where the log cannot be read, or has lost records, what was live last stays so, and standard error says it, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from drivetrain.adapters.sqlite_control_feed import open_control_feed
from drivetrain.core.errors import DrivetrainError, report_fault
from drivetrain.core.releases import RELEASE_KINDS, Live
from drivetrain.embedded.limit_watch import ControlFeed
from drivetrain.ports.control import ControlRecord
from drivetrain.promotion.state import live as live_by

POLL_S = 0.25
"""Between two looks: with the reading, a Release that is loaded already is served well within a second."""
BEAT = "rollout.beat"
"""In the run folder: touched by the watcher of a canary every second."""
UNWATCHED_S = 30.0
"""A canary whose watcher was silent for so long goes back to what is live: nobody would see that it does harm."""

Fold = Callable[[Iterable[ControlRecord], str], Live]
Use = Callable[[Live, bool], None]


class LiveWatch:
    """One environment's `Live`, followed. Raises (constructor): DrivetrainError where the log cannot be read at first.

    beat: the file that the canary's watcher touches. now_s: the clock of files.
    """

    def __init__(
        self,
        environment: str,
        feed: ControlFeed,
        beat: Path,
        *,
        fold: Fold = live_by,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.problem = ""
        """Why the log cannot be followed at present; empty while it can."""
        self._environment = environment
        self._feed = feed
        self._beat = beat
        self._fold = fold
        self._now_s = now_s
        self._known = 0
        feed.changed()  # before the first reading, so that no change falls between
        self.live = self._read()
        """What is live now."""
        self.watched = self._is_watched()
        """Whether somebody watches its canary; True where it has none."""
        self._failed = False
        self._stop = threading.Event()

    def look(self) -> bool:
        """Whether `live` or `watched` became another. Costs about 10 us where nothing was written to the log."""
        before = (self.live, self.watched)
        try:
            if self._failed or self._feed.changed():
                self.live = self._read()
                self._recovered()
        except DrivetrainError as error:
            self._fail(str(error))
        except Exception as fault:  # noqa: BLE001  a fault of ours must not end the watching
            report_fault("what is live", fault)
            self._fail("Drivetrain failed at reading it.")
        self.watched = self._is_watched()
        return before != (self.live, self.watched)

    def start(self, use: Use, loop: asyncio.AbstractEventLoop) -> None:
        """Tell `use`, on the loop, whenever a look finds another; until `close`."""
        # Nobody waits for this thread at shutdown: a disk may hang for ever.
        threading.Thread(target=self._watch, args=(use, loop), name="what is live", daemon=True).start()

    def let_go(self) -> None:
        """Close the log until the next look: SQLite's connections must not be carried into a forked process."""
        self._feed.close()

    def close(self) -> None:
        """Tell nobody any more."""
        self._stop.set()

    def _watch(self, use: Use, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everybody who would listen
            while not self._stop.wait(POLL_S):
                if self.look() and not self._stop.is_set():
                    loop.call_soon_threadsafe(use, self.live, self.watched)
        self._feed.close()

    def _read(self) -> Live:
        records = self._feed.read(RELEASE_KINDS)
        if len(records) < self._known:
            raise DrivetrainError(
                f"The control log had {self._known} records of Releases and has {len(records)}.",
                do="Run `drivetrain audit verify`. Where you restored an older log, start the gateway anew.",
            )
        found = self._fold(records, self._environment)
        self._known = len(records)
        return found

    def _is_watched(self) -> bool:
        active = self.live.active
        if active is None:
            return True
        now_s = self._now_s()
        try:
            seen_s = self._beat.stat().st_mtime
        except OSError:
            seen_s = 0.0
        # What stands in the future is of a clock that was put back: it would count as life for that long.
        return any(abs(now_s - at_s) <= UNWATCHED_S for at_s in (seen_s, active.started_ns / 1e9))

    def _recovered(self) -> None:
        if self._failed:
            self._failed, self.problem = False, ""
            print("drivetrain: Releases can be read again", file=sys.stderr)

    def _fail(self, why: str) -> None:
        if not self._failed:
            print(f"drivetrain: Releases cannot be read, what was live stays so. {why}", file=sys.stderr)
        self._failed, self.problem = True, why


def live_watch(environment: str, data_folder: Path, run_folder: Path) -> LiveWatch:
    """The watch over a project's control log. Raises: DrivetrainError where it cannot be read."""
    return LiveWatch(environment, open_control_feed(data_folder), run_folder / BEAT)
