"""Records go into the lake while the gateway serves: a process of its own, started when enough wait, gone when done.

Owns when that is. The supervisor starts it, so that neither the workers nor the supervisor ever load a query engine.
A roll may be killed at any moment: the next one goes on where it ended. Called by the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from drivetrain.ledger.frames import SEGMENT_SUFFIX, calls_folder
from drivetrain.project.snapshot import Snapshot

LOOK_S = 1.0
RECORD_BYTES = 150
"""Of a Call as it waits, at least: `roll_records` counts in these."""
APART_S = 30.0
"""Between two rolls at least, as starting one costs 0.4 s of a core ..."""
BYTES_MAX = 64 * 1024 * 1024
"""... unless so much waits."""
FIRST_S = 60.0
"""After the start at most: what an earlier gateway left is rolled soon."""
NICE = 19
"""Whoever serves goes first: a roll that comes later is only a longer tail for the next query."""
FAILED_PAUSE_S = 60.0
"""After a roll that failed: its reason stands on stderr, and the records wait where they are."""


class Rolling:
    """The roller's process of one gateway, or none."""

    def __init__(self, snapshot: Snapshot, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.pid = 0
        """0 while nothing is rolled."""
        self._snapshot = snapshot
        self._monotonic = monotonic
        now_s = monotonic()
        self._look_s = now_s + LOOK_S
        self._due_s = now_s + min(FIRST_S, snapshot.lake.roll_every_s)
        self._next_s = 0.0
        """Not before, whatever waits."""
        self._seen: dict[str, int] = {}
        """Segment -> its size when the last roll began."""

    def use(self, snapshot: Snapshot) -> None:
        """Another state of the project: it holds from the next roll on."""
        self._snapshot = snapshot

    def look(self) -> None:
        """Start a roll where it is time for one. Takes a stat per segment, once a second."""
        now_s = self._monotonic()
        if self.pid or now_s < self._look_s:
            return
        self._look_s = now_s + LOOK_S
        if now_s < self._next_s:
            return
        sizes = self._sizes()
        waiting = sum(max(0, size - self._seen.get(name, 0)) for name, size in sizes.items())
        lake = self._snapshot.lake
        enough = waiting >= min(BYTES_MAX, lake.roll_records * RECORD_BYTES)
        if not waiting or (now_s < self._due_s and not enough):
            return
        self._seen = sizes
        self._due_s = now_s + lake.roll_every_s
        self._next_s = now_s if waiting >= BYTES_MAX else now_s + APART_S
        self._start()

    def ended(self, code: int) -> None:
        """The process is gone."""
        self.pid = 0
        if code:
            self._seen = {}
            self._next_s = self._monotonic() + FAILED_PAUSE_S

    def end(self) -> None:
        """Let it go; what it did not finish is finished by the next one."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def _start(self) -> None:
        snapshot = self._snapshot
        command = [sys.executable, "-m", "drivetrain.cli.main", "lake", "roll", "--quiet", "--project"]
        try:
            process = subprocess.Popen(
                [*command, str(snapshot.root)],
                env={**os.environ, "DRIVETRAIN_ENV": snapshot.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        except OSError as error:
            print(f"drivetrain: records cannot be rolled: {error.strerror}.", file=sys.stderr)
            self.ended(1)
            return
        self.pid = process.pid
        process.returncode = 0  # the supervisor waits for it, as for its workers
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self.pid, NICE)

    def _sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(calls_folder(self._snapshot.data_folder)) as entries:
            for entry in entries:
                if entry.name.endswith(SEGMENT_SUFFIX) and entry.name[0] != ".":
                    with contextlib.suppress(FileNotFoundError):
                        found[entry.name] = entry.stat().st_size
        return found
