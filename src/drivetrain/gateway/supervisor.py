"""`drivetrain serve`: workers, and the supervisor that starts them, watches them and replaces those that end or hang.

Owns the worker processes, the port and the signals that the gateway is told by. Serves nothing itself, so a lone worker
has a supervisor too: Python that does not return can only be ended from another process. Workers are forked from the
loaded project and share its memory until they write to it.

A worker's sign of life is a number in memory that both see. Its silence is counted in the supervisor's own looks, not
by a clock: where the machine, the supervisor or all of them stood still, one look was missed and nobody is blamed.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

import msgspec

from drivetrain.core.errors import DrivetrainError, report_fault
from drivetrain.core.releases import Live
from drivetrain.gateway.following import Followed
from drivetrain.gateway.key_watch import has_keys
from drivetrain.gateway.metrics import forget_ended
from drivetrain.gateway.modelling import ModelWorkers
from drivetrain.gateway.rolling import Rolling
from drivetrain.gateway.side import SideProcesses
from drivetrain.gateway.worker import (
    BEAT_S,
    DRAIN_S,
    MODEL_WORKERS_WANTED,
    WHERE_SIGNAL,
    Heartbeat,
    bound_socket,
    reloaded,
    run_folder,
    run_worker,
)
from drivetrain.project.pins import models_folder
from drivetrain.project.snapshot import Snapshot

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
LOOK_S = BEAT_S
SILENT_S = 2.0
"""A worker that shows no life for so long is killed: nobody it serves, nor any probe, was answered meanwhile."""
TELLING_S = 0.2
"""What a silent worker is given to say where it is."""
STEADY_S = 10.0
"""A worker that lived so long ended by chance, and the next one is started at once."""
PAUSE_S = 0.1
PAUSE_MAX_S = 5.0
"""Before a worker is started again: none at first, then `PAUSE_S`, and twice as long each time."""
STARTS_MAX = 5
"""Workers that may end before they are ready while none is; more means that none can live, and the supervisor ends."""
CLOSING_S = 10.0
"""Beyond `DRAIN_S`, for workers that were told to end to write what they hold; then they are killed."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def serve(
    snapshot: Snapshot, live: Live, *, host: str, port: int, workers: int, announce: Callable[[str, int], None]
) -> int:
    """Serves until told to end; the exit code.

    live: what `snapshot` was loaded for. announce: called with host and port once requests are answered.

    Raises: DrivetrainError where it cannot listen, or where no key protects an address beyond this machine.
    """
    if not has_keys(snapshot) and host not in LOOPBACK:
        raise DrivetrainError(
            f"This project has no key, so the gateway may only listen on this machine, not on {host}.",
            looked=["[keys] in drivetrain.toml", "the issued keys"],
            do="Run `drivetrain keys issue NAME`, or declare a key: [keys.NAME].",
        )
    forget_ended(run_folder(snapshot))
    # A lone worker listens on this very socket: while one follows another, clients wait in its queue. Several listen on
    # sockets of their own, so that the others get what one that is gone would have got; this one holds the port.
    holder = bound_socket("127.0.0.1" if host == "localhost" else host, port, shared=workers > 1)
    bound = holder.getsockname()[1]
    return Supervisor(snapshot, live, holder, workers, lambda: announce(host, bound)).run()


class Place(msgspec.Struct):
    """Of one worker, and of those that follow it."""

    index: int
    pid: int = 0
    """0 while nobody is there."""
    snapshot: str = ""
    """Hash of what the worker was started with."""
    ready_s: float | None = None
    """When it was first seen to serve."""
    beat: int = 0
    silent: int = 0
    """Looks since the beat was another."""
    losses: int = 0
    """Workers that ended here, one soon after the other."""
    due_s: float | None = None
    """When the next one is to be started."""


class Supervisor:
    """Runs workers until it is told to end, in a process that does nothing else."""

    def __init__(
        self, snapshot: Snapshot, live: Live, holder: socket.socket, workers: int, announce: Callable[[], None]
    ) -> None:
        self._snapshot = snapshot
        self._holder = holder
        self._announce = announce
        self._announced = False
        self._places = [Place(index) for index in range(workers)]
        self._rolling = Rolling(snapshot)
        self._followed = Followed(snapshot, live, run_folder(snapshot))
        self._ended, self._alive = os.pipe()
        """Workers see it end with this process, however it ends."""
        folder = run_folder(snapshot)
        self._wanted = folder / MODEL_WORKERS_WANTED
        self._wanted.unlink(missing_ok=True)
        self._modelling = ModelWorkers(folder, models_folder(snapshot.data_folder), self._ended)
        self._sides = SideProcesses(snapshot.root, snapshot.environment, self._ended)
        self._beats = memoryview(mmap.mmap(-1, 8 * workers)).cast("q")
        self._look_s = 0.0
        self._unready = 0
        self._ending_s: float | None = None
        self._code = 0
        # The kernel's side writes each signal's number into it, so none is lost between two waits.
        self._woken, self._wake = os.pipe()

    def run(self) -> int:
        """The exit code."""
        for fd in (self._woken, self._wake):
            os.set_blocking(fd, False)
        for heard in SIGNALS:
            signal.signal(heard, _heard)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        # What is loaded stays, and a worker's collector must not touch it: what it touches is copied.
        gc.collect()
        gc.freeze()
        self._places[0].due_s = time.monotonic()  # the others once it could start: a mistake is told once
        while self._ending_s is None or self._beside or self._serving:
            for signum in self._wait():
                if signum == signal.SIGHUP:
                    self._reload()
                elif signum in (signal.SIGTERM, signal.SIGINT):
                    self._end(signum)
            self._reap()
            self._welcome()
            self._modelling.wanted = self._modelling.wanted or self._wanted.exists()
            self._modelling.look()
            if self._ending_s is not None and not self._serving:
                self._modelling.end()
            now_s = time.monotonic()
            if now_s >= self._look_s:
                self._look_s = now_s + LOOK_S
                self._look()
                self._follow(now_s)
                if self._announced and self._ending_s is None:
                    self._rolling.look()
            for place in self._places:
                if self._ending_s is None and place.due_s is not None and time.monotonic() >= place.due_s:
                    self._start(place)
        return self._code

    @property
    def _beside(self) -> list[int]:
        """Processes that are no workers."""
        return [pid for pid in (self._rolling.pid, *self._modelling.pids, *self._sides.pids) if pid]

    @property
    def _serving(self) -> bool:
        """Whether a worker lives."""
        return any(place.pid for place in self._places)

    def _wait(self) -> bytes:
        """The signals that came, until the next thing is due; 0 stands for a worker that is ready."""
        due = [place.due_s for place in self._places if place.due_s is not None]
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        if not poll.poll(max(0.0, min([self._look_s, *due]) - time.monotonic()) * 1000):
            return b""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._woken, 65_536)
        return b""

    def _start(self, place: Place) -> None:
        place.due_s, place.ready_s, place.beat, place.silent = None, None, 0, 0
        place.snapshot = self._snapshot.hash
        self._followed.let_go()
        self._beats[place.index] = 0
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # else both processes would write what stands in the buffer
        # What comes between the fork and its note would reach a worker whose handlers are still the supervisor's.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        place.pid = os.fork()
        if place.pid == 0:
            code = 1
            try:
                self._work(place.index)
                code = 0
            except DrivetrainError as error:
                who = f"worker {place.index}: " if self._announced else ""
                print(f"drivetrain: {who}{error}", file=sys.stderr)
            except Exception as fault:  # noqa: BLE001  a process boundary
                report_fault(f"worker {place.index}", fault)
            finally:
                with contextlib.suppress(OSError, ValueError):
                    sys.stdout.flush()
                os._exit(code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _work(self, index: int) -> None:
        """In the worker's process. Raises: DrivetrainError."""
        signal.set_wakeup_fd(-1)
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(self._alive)
        os.close(self._woken)
        listening = self._holder
        if len(self._places) > 1:
            host, port = listening.getsockname()[:2]
            listening.close()
            listening = bound_socket(host, port, shared=True)

        def ready() -> None:
            with contextlib.suppress(OSError):  # its end is told otherwise
                os.write(self._wake, b"\0")
            os.close(self._wake)

        run_worker(
            self._snapshot,
            self._followed.live,
            listening,
            name=f"w{index}-{os.getpid()}",
            heartbeat=Heartbeat(self._beats, index),
            supervisor_fd=self._ended,
            ready=ready,
            follows=self._announced,
        )

    def _reload(self) -> None:
        """The project as it is now, for the workers that run and for those that follow them."""
        if self._followed.keeps_folder_out():
            return
        try:
            self._snapshot = reloaded(self._snapshot)
            self._followed.use(self._snapshot)
            self._rolling.use(self._snapshot)
        except DrivetrainError as error:
            print(f"drivetrain: the project was not loaded, the old one is served on.\n{error}", file=sys.stderr)
            return
        for place in self._places:
            if place.ready_s is not None:  # the others when they are: before, the signal would end them
                place.snapshot = self._snapshot.hash
                _kill(place.pid, signal.SIGHUP)

    def _follow(self, now_s: float) -> None:
        """What is live: its processes at once, its Snapshot for workers that come later."""
        if self._ending_s is not None:
            self._sides.end()
        elif self._announced:
            followed = self._followed
            if followed.look(now_s):
                self._snapshot = followed.snapshot
                self._rolling.use(self._snapshot)
            self._sides.look(followed.newest)

    def _end(self, signum: int) -> None:
        if self._ending_s is None:
            self._ending_s = 0.0
            self._holder.close()
            self._rolling.end()
            self._sides.end()
        for place in self._places:
            place.due_s = None
            _kill(place.pid, signum)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._rolling.pid:
                self._rolling.ended(os.waitstatus_to_exitcode(status))
            code = os.waitstatus_to_exitcode(status)
            if self._modelling.ended(pid, code) or self._sides.ended(pid, code):
                continue
            for place in self._places:
                if place.pid == pid:
                    self._lost(place, os.waitstatus_to_exitcode(status))

    def _lost(self, place: Place, code: int) -> None:
        ready_s, now_s = place.ready_s, time.monotonic()
        if ready_s is None and self._beats[place.index]:
            ready_s = now_s  # it was, and ended before anybody looked
        place.pid, place.ready_s = 0, None
        if self._ending_s is not None:
            return
        place.losses = 1 if ready_s is not None and now_s - ready_s >= STEADY_S else place.losses + 1
        serving = any(other.ready_s is not None for other in self._places)
        self._unready = 0 if serving or ready_s is not None else self._unready + 1
        how = f" by {signal.Signals(-code).name}" if code < 0 else f" with exit code {code}" if code else ""
        if self._unready and not self._announced:
            self._give_up("" if code == 1 else f"worker {place.index} ended{how} before it was ready")
            return
        if self._unready > STARTS_MAX:
            self._give_up("workers end as soon as they start; giving up")
            return
        pause_s = _pause_s(place.losses)
        place.due_s = now_s + pause_s
        when = f" in {pause_s:.1f} s" if pause_s else ""
        print(f"drivetrain: worker {place.index} ended{how}; starting another{when}.", file=sys.stderr)

    def _give_up(self, why: str) -> None:
        """why: empty where the worker has told it."""
        if why:
            print(f"drivetrain: {why}.", file=sys.stderr)
        self._code = 1
        self._end(signal.SIGTERM)

    def _welcome(self) -> None:
        """Notes who has become ready; with the first, the others are started, and with the last the gateway serves."""
        for place in self._places:
            if place.pid and place.ready_s is None and self._beats[place.index]:
                place.ready_s = time.monotonic()
                if place.snapshot != self._snapshot.hash:
                    place.snapshot = self._snapshot.hash
                    _kill(place.pid, signal.SIGHUP)
                for other in self._places:
                    if not other.pid and not other.losses:
                        other.due_s = time.monotonic()
        if not self._announced and self._ending_s is None and all(one.ready_s or one.losses for one in self._places):
            self._announced = True
            self._announce()

    def _look(self) -> None:
        """Counts the silence of each worker, and ends it where it is too long."""
        for place in self._places:
            beat = self._beats[place.index]
            if not place.pid or beat in (0, Heartbeat.STILL) or beat != place.beat:
                place.beat, place.silent = beat, 0
                continue
            place.silent += 1
            if place.silent * LOOK_S >= SILENT_S:
                place.silent = 0
                _put_down(place)
        if self._ending_s is not None:
            self._ending_s += LOOK_S
            if self._ending_s > DRAIN_S + CLOSING_S:
                for pid in (*(place.pid for place in self._places), *self._beside):
                    _kill(pid, signal.SIGKILL)


def _put_down(place: Place) -> None:
    print(
        f"drivetrain: worker {place.index} (process {place.pid}) has been silent for {SILENT_S:.0f} s and is killed. "
        "Where it was, if it can tell:",
        file=sys.stderr,
    )
    _kill(place.pid, WHERE_SIGNAL)
    time.sleep(TELLING_S)
    _kill(place.pid, signal.SIGKILL)


def _pause_s(losses: int) -> float:
    """Before the next start after so many losses."""
    return 0.0 if losses <= 1 else min(PAUSE_MAX_S, PAUSE_S * 2.0 ** min(losses - 2, 10))


def _heard(_signum: int, _frame: object) -> None:
    """The number is in the pipe already; without a handler Python would not put it there."""


def _kill(pid: int, signum: int) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself; waitpid will say so
            os.kill(pid, signum)
