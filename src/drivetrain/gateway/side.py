"""Processes beside the gateway while a rollout runs: the canary's watcher, and the shadow.

Owns when each runs: while what is live wants it, restarted with a pause where it fails, ended with the supervisor. Its
standard input is a pipe whose other end is the supervisor's, so it hears when that is gone, however it went. Nobody
waits for it: a rollout without its watcher goes back to what is live, and one without its shadow loses copies.
Called by the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from drivetrain.core.releases import Live

NICE = 10
"""Whoever serves goes first."""
PAUSE_S, PAUSE_MAX_S = 0.5, 15.0
"""Before one that ended is started again: twice as long each time, and still half of what a canary waits for its
watcher."""
STEADY_S = 30.0
"""One that lived so long ended by chance."""
ENDING_S = 5.0
"""For one that was told to end; then it is killed."""

WATCHER = "drivetrain.embedded.watching"
SHADOW = "drivetrain.embedded.shadowing"


class SideProcess:
    """One process that runs while it is wanted."""

    def __init__(
        self,
        name: str,
        command: tuple[str, ...],
        *,
        environment: str,
        supervisor_fd: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """name: as people are told of it. supervisor_fd: a pipe that is readable once this process is gone."""
        self.pid = 0
        """0 while it does not run."""
        self._name = name
        self._command = command
        self._environment = environment
        self._supervisor_fd = supervisor_fd
        self._monotonic = monotonic
        self._wanted = False
        self._losses = 0
        self._began_s = 0.0
        self._due_s = 0.0
        self._kill_s: float | None = None
        """When it is killed, once it was told to end."""

    def look(self, wanted: bool) -> None:
        """Start it, or let it end, as it is wanted now."""
        now_s = self._monotonic()
        if wanted and not self._wanted:
            self._losses, self._due_s = 0, 0.0
        self._wanted = wanted
        if self.pid and not wanted:
            self._let_end(now_s)
        elif not self.pid and wanted and now_s >= self._due_s:
            self._start(now_s)

    def ended(self, pid: int, code: int) -> bool:
        """Whether this process was it."""
        if not self.pid or pid != self.pid:
            return False
        now_s = self._monotonic()
        told_to = self._kill_s is not None
        self.pid, self._kill_s = 0, None
        self._losses = 1 if now_s - self._began_s >= STEADY_S else self._losses + 1
        self._due_s = now_s + min(PAUSE_MAX_S, PAUSE_S * 2.0 ** min(self._losses - 1, 10))
        if self._wanted and code and not told_to:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            when = self._due_s - now_s
            print(f"drivetrain: {self._name} ended {how}; starting another in {when:.1f} s.", file=sys.stderr)
        return True

    def end(self) -> None:
        """Let it go, for good."""
        self._wanted = False
        if self.pid:
            self._let_end(self._monotonic())

    def _let_end(self, now_s: float) -> None:
        if self._kill_s is None:
            self._kill_s = now_s + ENDING_S
            _kill(self.pid, signal.SIGTERM)
        elif now_s >= self._kill_s:
            _kill(self.pid, signal.SIGKILL)

    def _start(self, now_s: float) -> None:
        self._began_s = now_s
        try:
            process = subprocess.Popen(
                self._command,
                env={**os.environ, "DRIVETRAIN_ENV": self._environment},
                stdin=self._supervisor_fd,
                stdout=subprocess.DEVNULL,
            )
        except OSError as error:
            print(f"drivetrain: {self._name} cannot be started: {error.strerror}.", file=sys.stderr)
            self._due_s = now_s + PAUSE_MAX_S
            return
        self.pid = process.pid
        process.returncode = 0  # the supervisor waits for it, as for its workers
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self.pid, NICE)


class SideProcesses:
    """Those of one gateway."""

    def __init__(self, root: Path, environment: str, supervisor_fd: int) -> None:
        def made(name: str, module: str) -> SideProcess:
            command = (sys.executable, "-m", module, "--project", str(root))
            return SideProcess(name, command, environment=environment, supervisor_fd=supervisor_fd)

        self._watcher = made("the watcher of the canary", WATCHER)
        self._shadow = made("the shadow", SHADOW)

    @property
    def pids(self) -> list[int]:
        """Those that run."""
        return [one.pid for one in (self._watcher, self._shadow) if one.pid]

    def look(self, live: Live) -> None:
        """See to it that what is live has what it wants. Costs nothing where nothing changes."""
        active = live.active
        self._watcher.look(active is not None)
        self._shadow.look(active is not None and active.shadow_ppm > 0)

    def ended(self, pid: int, code: int) -> bool:
        """Whether this process was one of them."""
        return self._watcher.ended(pid, code) or self._shadow.ended(pid, code)

    def end(self) -> None:
        """Let them go."""
        self._watcher.end()
        self._shadow.end()


def _kill(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself; waitpid will say so
        os.kill(pid, signum)
