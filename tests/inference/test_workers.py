"""Model workers as processes: one answer per row whatever ends, shared by several gateway workers, refusals at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned
from drivetrain.gateway.modelling import ModelWorkers, socket_paths
from drivetrain.inference.answering import ROW_BYTES_MAX
from drivetrain.inference.door import ModelsDoor
from drivetrain.inference.frames import FRAME_BYTES_MAX, FrameFault, FrameReader, Open, Score, framed
from drivetrain.inference.local import LocalModels
from drivetrain.inference.pool import OUTSTANDING_BYTES_MAX, WorkerModels
from drivetrain.inference.threaded import ThreadModels
from support.losing import losing_loop
from support.trained import Echo, Sink, all_ended, asked, on_a_loop, pinned
from support.tries import PATIENCE_S, Spoiled, in_one_try, measured

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]
PROCESS = f"""
import argparse, sys, time
sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from drivetrain.core.errors import DrivetrainError
from drivetrain.inference.worker import run_model_worker
from support.trained import Echo

class Held(Echo):
    def score(self, rows):
        if ["hold"] in [list(row) for row in rows]:
            held = options.socket.with_suffix(".held")
            held.touch()
            while held.exists():
                time.sleep(0.002)
        return super().score(rows)

def load(model):
    if model.name == "gone":
        raise DrivetrainError("Model gone/1 is not what was approved.")
    return Held(model, *((20, 1) if model.name == "slow" else (0, 0)))

parser = argparse.ArgumentParser()
parser.add_argument("--socket", type=Path)
parser.add_argument("--supervisor-fd", type=int)
options = parser.parse_known_args()[0]
run_model_worker(options.socket, load, supervisor_fd=options.supervisor_fd)
"""
SLOW = pinned("slow")


class Supervisor:
    """Starts model workers, and waits for those that end."""

    def __init__(self, folder: Path, count: int = 1) -> None:
        self.ended_fd, self.alive_fd = os.pipe()
        command = (sys.executable, "-c", PROCESS)
        self.workers = ModelWorkers(folder, folder, self.ended_fd, count=count, command=command)
        self.workers.wanted = True
        self.paths = socket_paths(folder, count)
        self.workers.look()

    def reap(self) -> None:
        for pid in self.workers.pids:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.workers.ended(pid, os.waitstatus_to_exitcode(status))
        self.workers.look()

    @property
    def held(self) -> Path:
        """There from the moment on in which a model scores the row `hold`, which takes it until this is removed."""
        return self.paths[0].with_suffix(".held")

    def end(self) -> None:
        self.held.unlink(missing_ok=True)
        self.workers.end()
        for pid in self.workers.pids:
            os.waitpid(pid, 0)
        for fd in (self.ended_fd, self.alive_fd):
            os.close(fd)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path)
    yield made
    made.end()


@contextlib.asynccontextmanager
async def gateway(supervisor: Supervisor, *models: Pinned) -> AsyncIterator[WorkerModels]:
    """What a gateway worker has."""
    pool = WorkerModels(supervisor.paths, asyncio.get_running_loop())
    await pool.prepare(models or (pinned(), SLOW), limit_s=45)
    try:
        yield pool
    finally:
        await pool.close()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():
            await asyncio.sleep(0.002)


@on_a_loop
async def test_rows_are_scored_together_faults_stay_alone_and_two_gateway_workers_share_one(
    supervisor: Supervisor,
) -> None:
    async with gateway(supervisor) as one, gateway(supervisor) as other:
        assert stat.S_IMODE(supervisor.paths[0].stat().st_mode) == 0o600
        texts = ["raise" if number == 7 else "fault" if number == 8 else f"t{number}" for number in range(50)]
        sinks = [Sink() for _ in range(100)]
        for number, sink in enumerate(sinks):
            (one if number < 50 else other).send(asked(texts[number % 50]), sink)
        await all_ended(sinks)
        for number, sink in enumerate(sinks):
            text = texts[number % 50]
            if text == "raise":
                assert sink.kind == "protocol"
            elif text == "fault":
                assert sink.status == 422
            else:
                assert sink.label == text
        assert one.connected == other.connected == 1


@on_a_loop
async def test_kill_9_in_mid_load_every_row_ends_once_the_worker_is_replaced_and_serves_again(
    supervisor: Supervisor,
) -> None:
    async with gateway(supervisor) as pool:
        first = supervisor.workers.pids[0]
        sinks = [Sink() for _ in range(200)]
        for number, sink in enumerate(sinks):
            pool.send(asked(f"t{number}", SLOW), sink)
            if number == 100:
                await asyncio.sleep(0.03)
                os.kill(first, signal.SIGKILL)
            await asyncio.sleep(0.0005)
        await all_ended(sinks)
        lost = [sink for sink in sinks if sink.kind == "worker_lost"]
        assert lost
        assert all(sink.status == 200 or sink.kind == "worker_lost" for sink in sinks)
        async with asyncio.timeout(45):
            while True:
                supervisor.reap()
                sink = Sink()
                pool.send(asked("again"), sink)
                await sink.ended.wait()
                if sink.status:
                    break
                await asyncio.sleep(0.02)
        assert sink.label == "again"
        assert supervisor.workers.pids[0] != first


@on_a_loop
async def test_a_connection_that_is_lost_as_it_is_made_is_made_again(supervisor: Supervisor) -> None:
    loop, connections = losing_loop()
    pool = WorkerModels(supervisor.paths, loop)
    try:
        await pool.prepare((pinned(),), limit_s=20)
        sink = Sink()
        pool.send(asked("again"), sink)
        await all_ended([sink])
        assert (sink.label, connections.made) == ("again", 2)
    finally:
        await pool.close()


@on_a_loop
async def test_a_row_that_kills_its_worker_fails_and_the_rest_of_its_batch_too(supervisor: Supervisor) -> None:
    async with gateway(supervisor) as pool:
        sinks = [Sink() for _ in range(3)]
        for text, sink in zip(("a", "die", "b"), sinks, strict=True):
            pool.send(asked(text), sink)
        await all_ended(sinks)
        assert [sink.kind for sink in sinks] == ["worker_lost"] * 3
        assert all(sink.failure is not None and sink.failure.sent for sink in sinks)


def test_who_cannot_be_in_time_is_refused_at_once(supervisor: Supervisor) -> None:
    in_one_try(lambda: asyncio.run(refused_at_once(supervisor)))


async def refused_at_once(supervisor: Supervisor) -> None:
    """32 rows take the model 52 ms: of 2,000 some 600 can be in time on a machine that is its own."""
    async with gateway(supervisor) as pool:
        sinks = [Sink() for _ in range(2_000)]
        began_ns = time.monotonic_ns()
        for sink in sinks:
            pool.send(asked("t", SLOW, slo_ms=1_000), sink)
        await all_ended(sinks)
        refused = [sink for sink in sinks if sink.kind == "overload"]
        answered = [sink for sink in sinks if sink.status == 200]
        assert len(refused) + len(answered) == 2_000
        assert all("cannot answer within 1000 ms" in str(sink.failure) for sink in refused)
        # Most who are refused know it long before they would have been late.
        early = [sink for sink in refused if sink.heard_ns - began_ns < 150_000_000]
        if len(answered) < 200 or len(early) < 800:
            raise Spoiled(f"{len(answered)} answered, {len(refused)} refused, {len(early)} of them early")


def test_timeouts_hold_while_the_model_is_slow_and_cancelled_rows_hear_nothing(supervisor: Supervisor) -> None:
    measured(0.3, lambda: asyncio.run(timed_out_s(supervisor)))


async def timed_out_s(supervisor: Supervisor) -> float:
    """When a row was told that has 100 ms and waits for a model that does not end."""
    async with gateway(supervisor) as pool:
        busy, late, gone, after = Sink(), Sink(), Sink(), Sink()
        pool.send(asked("hold"), busy)
        await until(supervisor.held.exists)
        began = time.monotonic()
        pool.send(asked("late", timeout_ms=100), late)
        attempt = pool.send(asked("gone"), gone)
        await late.ended.wait()
        took_s = time.monotonic() - began
        assert took_s >= 0.09
        attempt.cancel()
        pool.send(asked("after"), after)
        assert busy.endings == 0
        supervisor.held.unlink()
        await all_ended([busy, late, after])
        assert (late.kind, busy.status, gone.endings, after.label) == ("timeout", 200, 0, "after")
        return took_s


@on_a_loop
async def test_nonsense_closes_that_connection_and_no_other(supervisor: Supervisor) -> None:
    async with gateway(supervisor) as pool:
        path = str(supervisor.paths[0])
        opened = framed(Open(1, pinned()))
        for nonsense in (
            b"GET / HTTP/1.1\r\n\r\n",
            struct.pack("<I", FRAME_BYTES_MAX + 1),
            struct.pack("<I", 3) + b"\xc1\xc1\xc1",
            struct.pack("<I", 2) + msgspec.msgpack.encode([99]),
            framed(Score(1, 77, b"\x90", 1000, 0)),
            opened + framed(Score(1, 1, b"x" * (ROW_BYTES_MAX + 1), 1000, 0)),
        ):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(nonsense)
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(PATIENCE_S):
                    while await reader.read(65_536):
                        pass
            writer.close()
        sink = Sink()
        pool.send(asked("fine"), sink)
        await all_ended([sink])
        assert sink.label == "fine"


@on_a_loop
async def test_a_worker_that_answers_nonsense_fails_its_rows(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(struct.pack("<I", 2**31))

    server = await asyncio.start_unix_server(answer, tmp_path / "m.sock")
    pool = WorkerModels([tmp_path / "m.sock"], asyncio.get_running_loop())
    sink, large = Sink(), Sink()
    pool.send(asked("a"), sink)
    pool.send(asked("x" * ROW_BYTES_MAX), large)
    await all_ended([sink, large])
    assert (sink.kind, large.kind) == ("protocol", "oversized")
    await pool.close()
    server.close()


@on_a_loop
async def test_without_a_worker_rows_fail_at_once_and_preparing_says_where_it_looked(tmp_path: Path) -> None:
    pool = WorkerModels([tmp_path / "m.sock"], asyncio.get_running_loop())
    with pytest.raises(DrivetrainError, match="No model worker has loaded") as told:
        await pool.prepare([pinned()], limit_s=0.2)
    assert str(tmp_path / "m.sock") in str(told.value)
    sink = Sink()
    pool.send(asked("a"), sink)
    await all_ended([sink], limit_s=10)
    assert sink.failure is not None
    assert (sink.kind, sink.failure.sent) == ("worker_lost", False)
    await pool.close()


@on_a_loop
async def test_a_model_that_cannot_be_loaded_is_told_before_traffic(supervisor: Supervisor) -> None:
    with pytest.raises(DrivetrainError, match="not what was approved"):
        async with gateway(supervisor, pinned("gone")):
            pass


@on_a_loop
async def test_sigterm_answers_the_running_batch(supervisor: Supervisor) -> None:
    async with gateway(supervisor) as pool:
        running, waiting = Sink(), Sink()
        pool.send(asked("hold"), running)
        await until(supervisor.held.exists)
        pool.send(asked("waits"), waiting)
        os.kill(supervisor.workers.pids[0], signal.SIGTERM)
        await until(lambda: not supervisor.paths[0].exists())
        await asyncio.sleep(0.2)  # it knows that it ends, and the batch still runs
        assert running.endings == 0
        supervisor.held.unlink()
        await all_ended([running, waiting])
        assert (running.status, waiting.kind) == (200, "worker_lost")


@on_a_loop
async def test_the_supervisors_end_ends_the_worker(tmp_path: Path) -> None:
    ended, alive = os.pipe()
    arguments = [sys.executable, "-c", PROCESS, "--socket", str(tmp_path / "o.sock"), "--supervisor-fd", str(ended)]
    with subprocess.Popen(arguments, pass_fds=(ended,)) as process:
        while not (tmp_path / "o.sock").exists():
            await asyncio.sleep(0.02)
        os.close(alive)
        assert process.wait(PATIENCE_S) == 0
    os.close(ended)
    assert not (tmp_path / "o.sock").exists()


@on_a_loop
async def test_the_door_scores_small_models_here_and_larger_ones_in_a_thread_that_holds_nobody_up() -> None:
    loop = asyncio.get_running_loop()
    scorers = {model.digest: Echo(model, *((300, 1) if model is SLOW else (0, 0))) for model in (pinned(), SLOW)}
    local = LocalModels(lambda model: scorers[model.digest], loop.call_soon, time.monotonic_ns)
    door = ModelsDoor(
        local, ThreadModels(loop, lambda model: scorers[model.digest]), lambda model: model.name == "echo"
    )
    await door.prepare([pinned(), SLOW])
    slow, fast = [Sink() for _ in range(10)], Sink()
    for sink in slow:
        door.send(asked("s", SLOW), sink)
    door.send(asked("f"), fast)
    await fast.ended.wait()
    assert not any(sink.endings for sink in slow), "it waited for them"
    cancelled, late = Sink(), Sink()
    door.send(asked("c", SLOW), cancelled).cancel()
    door.send(asked("l", SLOW, timeout_ms=1), late)
    await all_ended([*slow, late])
    assert [sink.label for sink in slow] == ["s"] * 10
    assert (late.kind in ("timeout", "overload"), cancelled.endings) == (True, 0)
    assert local.counts()["echo/1"].rows == 1
    await door.close()


def test_frames_arrive_in_any_pieces_and_are_bounded() -> None:
    messages = [framed(Score(number, 1, b"r" * number * 100, 10, 0)) for number in range(50)]
    stream = b"".join(messages)
    for step in (1, 7, 1000, len(stream)):
        reader = FrameReader()
        found = [frame for at in range(0, len(stream), step) for frame in reader.feed(stream[at : at + step])]
        assert found == [message[4:] for message in messages]
    with pytest.raises(FrameFault):
        FrameReader().feed(struct.pack("<I", FRAME_BYTES_MAX + 1))
    with pytest.raises(FrameFault):
        framed(Score(1, 1, b"x" * FRAME_BYTES_MAX, 10, 0))


def test_a_long_path_has_its_sockets_in_a_folder_of_this_user_alone(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    (path,) = socket_paths(deep, 1)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert socket_paths(deep, 1) == [path]
    path.unlink()
    path.parent.chmod(0o755)
    with pytest.raises(DrivetrainError, match="not this user's alone"):
        socket_paths(deep, 1)
    path.parent.rmdir()


@on_a_loop
async def test_rows_that_wait_are_bounded_in_bytes(tmp_path: Path) -> None:
    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 20):
            pass

    server = await asyncio.start_unix_server(listen, tmp_path / "m.sock")
    pool = WorkerModels([tmp_path / "m.sock"], asyncio.get_running_loop())
    request = asked("x" * (ROW_BYTES_MAX - 100))
    sinks = [Sink() for _ in range(OUTSTANDING_BYTES_MAX // len(request.row) + 1)]
    attempts = [pool.send(request, sink) for sink in sinks]
    await all_ended(sinks[-1:])
    assert sinks[-1].kind == "overload"
    assert not any(sink.endings for sink in sinks[:-1])
    attempts[0].cancel()
    sink = Sink()
    pool.send(request, sink)
    await asyncio.sleep(0.05)
    assert not sink.endings
    await pool.close()
    server.close()


@on_a_loop
async def test_a_model_that_was_dropped_is_let_go_by_the_next_time_and_its_sums_are_told_still() -> None:
    loop = asyncio.get_running_loop()
    loaded: list[str] = []

    def load(model: Pinned) -> Echo:
        loaded.append(model.name)
        return Echo(model)

    door = ModelsDoor(
        LocalModels(load, loop.call_soon, time.monotonic_ns),
        ThreadModels(loop, load),
        lambda model: model.name == "echo",
    )
    await door.prepare([pinned(), SLOW])
    for model in (pinned(), SLOW):
        sink = Sink()
        door.send(asked("a", model), sink)
        await all_ended([sink])
    for kept in (True, False):
        await door.prepare([])
        counts = door.counts()
        assert {id: (one.rows, one.loaded) for id, one in counts.items()} == {"echo/1": (1, kept), "slow/1": (1, kept)}
    await door.prepare([pinned(), SLOW])
    assert sorted(loaded) == ["echo", "echo", "slow", "slow"]
    await door.close()
