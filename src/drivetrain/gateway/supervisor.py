"""`drivetrain serve`: one worker in this process, or several with one that watches them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable

from drivetrain.core.errors import DrivetrainError
from drivetrain.gateway.metrics import forget_ended
from drivetrain.gateway.worker import listening_socket, reloaded, run_folder, run_worker
from drivetrain.project.snapshot import Snapshot

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
RESTART_WINDOW_S = 10.0
RESTARTS_MAX = 5
"""Within `RESTART_WINDOW_S`; more means that workers cannot live, and the supervisor ends."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def serve(snapshot: Snapshot, *, host: str, port: int, workers: int, announce: Callable[[str, int], None]) -> int:
    """Serves until told to end; the exit code. announce: called with host and port once requests are answered.

    Raises: DrivetrainError where it cannot listen, or where no key protects an address beyond this machine.
    """
    if not snapshot.keys and host not in LOOPBACK:
        raise DrivetrainError(
            f"This project declares no key, so the gateway may only listen on this machine, not on {host}.",
            looked=["[keys] in drivetrain.toml"],
            do='Declare a key: [keys.NAME] with secret = "env:..." or "file:...".',
        )
    forget_ended(run_folder(snapshot))
    address = "127.0.0.1" if host == "localhost" else host
    if workers == 1:
        listening = listening_socket(address, port, shared=False)
        bound = listening.getsockname()[1]
        run_worker(snapshot, listening, name=f"w0-{os.getpid()}", ready=lambda: announce(host, bound))
        return 0
    return _supervise(snapshot, address, port, workers, announce)


def _supervise(snapshot: Snapshot, host: str, port: int, workers: int, announce: Callable[[str, int], None]) -> int:
    # Bound but never accepting: it holds the port while workers come and go.
    holder = listening_socket(host, port, shared=True)
    bound = holder.getsockname()[1]
    holder.close()
    children: dict[int, int] = {}
    ended = False
    restarts: list[float] = []

    def start(index: int) -> None:
        # What comes between the fork and its note would reach a worker that nobody knows, or a handler that is not its.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        if ended:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            return
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            code = 1
            try:
                for signum in SIGNALS:
                    signal.signal(signum, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                listening = listening_socket(host, bound, shared=True)
                run_worker(
                    snapshot, listening, name=f"w{index}-{os.getpid()}", ready=lambda: _tell(write_end), supervised=True
                )
                code = 0
            except DrivetrainError as error:
                print(f"drivetrain: worker {index}: {error}", file=sys.stderr)
            finally:
                os._exit(code)
        os.close(write_end)
        children[pid] = index
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.read(read_end, 1)  # ready, or gone
        os.close(read_end)

    def reload(_signum: int, _frame: object) -> None:
        """The project as it is now, for the workers that run and for those that follow them."""
        nonlocal snapshot
        try:
            snapshot = reloaded(snapshot)
        except DrivetrainError as error:
            print(f"drivetrain: the project was not loaded, the old one is served on.\n{error}", file=sys.stderr)
            return
        for pid in list(children):
            _kill(pid, signal.SIGHUP)

    def forward(signum: int, _frame: object) -> None:
        nonlocal ended
        ended = True
        for pid in list(children):
            _kill(pid, signum)

    for index in range(workers):
        start(index)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, forward)
    signal.signal(signal.SIGHUP, reload)
    announce(host, bound)
    while children:
        try:
            pid, _ = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        index = children.pop(pid, -1)
        if ended or index < 0:
            continue
        now = time.monotonic()
        restarts = [at for at in restarts if now - at < RESTART_WINDOW_S] + [now]
        if len(restarts) > RESTARTS_MAX:
            print("drivetrain: workers end as soon as they start; giving up.", file=sys.stderr)
            forward(signal.SIGTERM, None)
            continue
        print(f"drivetrain: worker {index} ended; starting another.", file=sys.stderr)
        start(index)
    return 0 if len(restarts) <= RESTARTS_MAX else 1


def _tell(write_end: int) -> None:
    os.write(write_end, b"1")
    os.close(write_end)


def _kill(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself; waitpid will say so
        os.kill(pid, signum)
