"""The shadow of a rollout: a process of its own that answers copies of traffic with the candidate, for nobody.

`python -m drivetrain.embedded.shadowing --project ROOT`. Owns the socket that the gateway's workers send copies to, the
candidate's Runtime, and when the process ends: with its parent, on a signal, or once the rollout's stage is another;
whoever started it then starts another where one is still wanted. It may be killed, stopped or starved at any moment:
the live path does not wait for it and does not know of it. What runs, and what is counted, is in `shadow_calls`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import ActiveRollout, Live
from drivetrain.embedded.live_watch import LiveWatch, live_watch
from drivetrain.embedded.releasing import ReleasePlace, doubted, doubts_about, place_of
from drivetrain.embedded.runtime import Runtime
from drivetrain.embedded.serving import lives
from drivetrain.embedded.shadow_calls import ShadowCalls, ShadowCounts, count, shadowed
from drivetrain.embedded.shadow_socket import DATAGRAM_BYTES_MAX, Unreadable, listening, socket_path, unpacked
from drivetrain.project.snapshot import Snapshot
from drivetrain.project.stored import load_stored

NICE = 10
"""Whoever answers somebody goes first."""
READS_A_TURN = 8
"""Datagrams that are read before the running Calls have their turn."""
PUBLISH_S = 0.5
PARENT_S = 1.0
"""Between two looks whether the parent lives; what spends money must not outlive who watches it."""
END_S = 3.0
"""For Calls that run when it is told to end; then they are cut, and recorded as such."""
UNWANTED, ENDED, FAILED = 0, 0, 1


class Shadow:
    """One rollout's stage, shadowed until `run` ends."""

    def __init__(self, snapshot: Snapshot, active: ActiveRollout, run_folder: Path, *, parent: int) -> None:
        self._snapshot = snapshot
        self._active = active
        self._run_folder = run_folder
        self._parent = parent
        self._buffer = bytearray(DATAGRAM_BYTES_MAX)
        self._calls: ShadowCalls | None = None
        self._stop = asyncio.Event()
        self._code = ENDED

    async def run(self, watch: LiveWatch) -> int:
        """The exit code. Raises: DrivetrainError where the candidate cannot be run here."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        stage = self._active.rollout.stages[self._active.stage]
        candidate = shadowed(self._snapshot, stage.shadow_nano_usd_per_day)
        runtime = Runtime(candidate, loop)
        tasks: list[asyncio.Task[None]] = []
        open_socket: socket.socket | None = None
        try:
            await runtime.prepare(candidate)
            counts = inherited(self._run_folder)
            calls = self._calls = ShadowCalls(runtime, frozenset(self._active.workflows), counts)
            open_socket = self._listen(loop)
            watch.start(self._look, loop)
            tasks = [
                loop.create_task(self._publish(counts)),
                loop.create_task(self._follow_parent(runtime)),
            ]
            await self._stop.wait()
            loop.remove_reader(open_socket)
            calls.close()
            deadline_s = loop.time() + END_S
            while calls.running and loop.time() < deadline_s:
                await asyncio.sleep(0.02)
        finally:
            if open_socket is not None:
                loop.remove_reader(open_socket)
                open_socket.close()
            for task in tasks:
                task.cancel()
            await runtime.close()
            if self._calls is not None:
                publish(self._run_folder, self._calls.counts)
        return self._code

    def _listen(self, loop: asyncio.AbstractEventLoop) -> socket.socket:
        path = socket_path(self._run_folder)
        try:
            made = listening(path)
        except OSError as error:
            raise DrivetrainError(
                f"The shadow cannot listen at {path}: {error.strerror}.", do="Look at who may write there."
            ) from error
        loop.add_reader(made, self._read, made)
        return made

    def _read(self, from_: socket.socket) -> None:
        assert self._calls is not None
        view = memoryview(self._buffer)
        for _ in range(READS_A_TURN):
            try:
                size = from_.recv_into(self._buffer)
            except (BlockingIOError, InterruptedError):
                return
            try:
                rollout, copies = unpacked(view[:size])
            except Unreadable:
                count(self._calls.counts.shadow_copies, "\x00unreadable")
                continue
            if rollout == self._active.rollout.id:
                for copy in copies:
                    self._calls.take(copy)

    def _look(self, live: Live, _watched: bool) -> None:
        """The log says something else: whoever started this process knows whether another is wanted."""
        if not same_shadow(live.active, self._active):
            self._stop.set()

    async def _publish(self, counts: ShadowCounts) -> None:
        while True:
            with contextlib.suppress(OSError):  # a full disk is told by the ledger
                publish(self._run_folder, counts)
            await asyncio.sleep(PUBLISH_S)

    async def _follow_parent(self, runtime: Runtime) -> None:
        while os.getppid() == self._parent:
            if runtime.limits is not None and runtime.limits.fenced:
                print("drivetrain: others have resolved what the shadow had reserved; it ends", file=sys.stderr)
                self._code = FAILED
                break
            await asyncio.sleep(PARENT_S)
        self._stop.set()


def same_shadow(now: ActiveRollout | None, then: ActiveRollout) -> bool:
    """Whether what is under way asks for the very shadow that was started."""
    return now is not None and bool(now.shadow_ppm) and (
        (now.release, now.snapshot, now.stage, now.rollout.id)
        == (then.release, then.snapshot, then.stage, then.rollout.id)
    )  # fmt: skip


def publish(run_folder: Path, counts: ShadowCounts) -> None:
    """Replaces this process's file, which the gateway's workers read beside their own. Raises: OSError."""
    made = run_folder / f".shadow-{os.getpid()}.tmp"
    made.write_bytes(msgspec.msgpack.encode(counts))
    os.replace(made, run_folder / f"shadow-{os.getpid()}.metrics")


def inherited(run_folder: Path) -> ShadowCounts:
    """What earlier shadows of this gateway counted, whose files go: counters never fall, and files never pile up."""
    counts = ShadowCounts()
    for path in run_folder.glob("shadow-*.metrics"):
        try:
            before = msgspec.msgpack.decode(path.read_bytes(), type=ShadowCounts)
            if path.stem != f"shadow-{os.getpid()}" and lives(path.stem):
                continue
            path.unlink()
        except (OSError, ValueError, msgspec.MsgspecError):
            continue  # it is no whole file; the gateway's next start takes it away
        for name in ShadowCounts.__struct_fields__:
            for key, number in getattr(before, name).items():
                count(getattr(counts, name), key, number)
    return counts


def shadow(place: ReleasePlace, *, parent: int) -> int:
    """Shadows what is under way in an environment while the process `parent` lives; the exit code.

    Raises: DrivetrainError.
    """
    run_folder = place.data_folder / "run"
    run_folder.mkdir(parents=True, exist_ok=True)
    watch = live_watch(place.environment, place.data_folder, run_folder)
    active = watch.live.active
    if active is None or not active.shadow_ppm:
        print(f"drivetrain: no rollout in `{place.environment}` has a shadow now", file=sys.stderr)
        return UNWANTED
    snapshot = load_stored(place.snapshots_folder, active.snapshot, place.root)
    if snapshot.data_folder != place.data_folder:
        raise DrivetrainError(
            f"The candidate keeps its records in {snapshot.data_folder}, not in {place.data_folder}.",
            do="Release that setting without a rollout.",
        )
    why = doubts_about(place, active.release, snapshot)
    if why:
        raise doubted(active.release, why)
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if sys.platform != "win32":
        import uvloop

        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(Shadow(snapshot, active, run_folder, parent=parent).run(watch))


def main() -> int:
    """The shadow's process; the exit code."""
    parent = os.getppid()
    parser = argparse.ArgumentParser(prog="drivetrain.embedded.shadowing", description="A rollout's shadow.")
    parser.add_argument("--project", type=Path, default=Path(), help="the project's folder")
    options = parser.parse_args()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    try:
        return shadow(place_of(options.project), parent=parent)
    except DrivetrainError as error:
        print(f"drivetrain: the shadow cannot run. {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    raise SystemExit(main())
