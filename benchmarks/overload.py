"""Offers five times what a concurrency limit lets through, and shows what is still answered and how fast the rest is
refused.

`python benchmarks/overload.py --help`. The load is open: a request leaves when its time has come, whatever became of
those before. Owns the load generator and two targets: a real gateway before the package's own simulator, and (`--door`)
the limits room alone in several processes on one store. Loopback only. Exit code 1 when a figure misses its promise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

import process_tree
from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.core.calls import Attribution
from drivetrain.core.limits import Limit, Refusal
from drivetrain.limits.leasing import Limits
from drivetrain.limits.slices import Hold
from drivetrain.simulator.process import SimulatorProcess
from machine import free_port
from targets.target import NotReady, Running, launch

UPSTREAM_MS = 100
"""How long the upstream takes: with 30 calls at a time, 300 a second can be answered."""
CONNECTIONS = 128
"""Opened before the load starts and used in turn, so that every worker gets its part."""
CONNECTIONS_MAX = 1_000
"""Beyond it the gateway is no longer keeping up, and requests count as failed."""
TICK_S = 0.001
"""Between two looks at which requests are due."""
WARM_UP_S = 2.0
"""Not counted: the workers share out the places."""
DRAIN_S = 3.0
"""For the last answers."""
START_S = 20.0
GOODPUT_LEAST = 0.8
"""Promised: share of the capacity that is answered."""
REFUSED_MS_MOST = 10.0
"""Promised: p99 of the time to a refusal."""
KEY = "sk-bench-0123456789abcdef0123456789abcdef"

PROJECT = """
[project]
name = "overload"

[providers.up]
dialect = "openai"
base_url = "{upstream}/v1"

[models."up/m"]
usd_per_million_input = "0.25"
usd_per_million_output = "2"

[limits.capacity]
scope = "project"
concurrent = {places}

[keys.bench]
secret = "file:bench.key"
team = "bench"

[workflows.chat]
owner = "bench@example.com"
team = "bench"
use_case = "bench"
retention = "none"
route = [ {{ name = "only", model = "up/m" }} ]
"""


@dataclass(kw_only=True)
class Seen:
    """What became of the requests."""

    offered: int = 0
    answered_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    late_ms: list[float] = field(default_factory=list)
    """How much later than due requests left: the generator's own fault."""
    answered_by: list[int] = field(default_factory=list)
    """Answers of each process; only at the door, where it is known."""
    cpu: float = 0.0
    """Cores that the target used."""

    def fail(self, why: str) -> None:
        """Count a request that was neither answered nor refused."""
        self.failed[why] = self.failed.get(why, 0) + 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 1 when a promise was missed."""
    options = _options(arguments)
    capacity = options.places * 1000 / UPSTREAM_MS
    missed = False
    print(f"capacity {capacity:g}/s, offered {options.rate}/s for {options.seconds:g} s, not counting {WARM_UP_S:g} s")
    for workers in options.workers:
        seen = at_the_door(workers, options) if options.door else end_to_end(workers, options)
        goodput = len(seen.answered_ms) / options.seconds
        missed |= goodput < GOODPUT_LEAST * capacity or _share(seen.refused_ms, 0.99) > REFUSED_MS_MOST
        print(f"{workers} workers: {_told(seen, goodput, capacity, options.seconds)}", flush=True)
    return 1 if missed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="overload.py", description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--workers", default="1,2,4", help="worker processes, one run each (default 1,2,4)")
    parser.add_argument("--seconds", type=float, default=10, help="length of one run (default 10)")
    parser.add_argument("--rate", type=int, default=1_500, help="requests offered per second (default 1500)")
    parser.add_argument("--places", type=int, default=30, help="calls at a time (default 30)")
    parser.add_argument("--door", action="store_true", help="only the limits, without gateway and network")
    options = parser.parse_args(arguments)
    options.workers = [int(number) for number in options.workers.split(",")]
    return options


def _told(seen: Seen, goodput: float, capacity: float, seconds: float) -> str:
    by = f" by process {seen.answered_by}" if seen.answered_by else ""
    return (
        f"goodput {goodput:.0f}/s ({goodput / capacity:.0%}){by}, refused {len(seen.refused_ms) / seconds:.0f}/s in "
        f"p50 {_share(seen.refused_ms, 0.5):.2f} p99 {_share(seen.refused_ms, 0.99):.2f} "
        f"max {_share(seen.refused_ms, 1):.2f} ms, answered in p50 {_share(seen.answered_ms, 0.5):.1f} "
        f"p99 {_share(seen.answered_ms, 0.99):.1f} ms, failed {seen.failed or 0}, {seen.cpu:.2f} cores; "
        f"requests left late by p99 {_share(seen.late_ms, 0.99):.2f} ms"
    )


def _share(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


# End to end.


def end_to_end(workers: int, options: argparse.Namespace) -> Seen:
    """A gateway with so many workers, before a simulator that takes `UPSTREAM_MS`."""
    simulated = {"seed": 1, "models": {"m": {"latency_ms": UPSTREAM_MS}}}
    with ExitStack() as stack:
        workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overload-")))
        simulator = stack.enter_context(SimulatorProcess(simulated))
        (workdir / "drivetrain.toml").write_text(PROJECT.format(upstream=simulator.url, places=options.places))
        key = workdir / "bench.key"
        key.write_text(KEY)
        key.chmod(0o600)
        port = free_port()
        program = Path(sys.executable).with_name("drivetrain")
        command = [program, "serve", "--project", workdir, "--host", "127.0.0.1", "--port", port, "--workers", workers]
        running = launch(command, port=port, workdir=workdir, pin=[])
        stack.callback(running.stop)
        _wait_for(running)
        pid = running.process.pid
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_load(f"http://127.0.0.1:{port}", pid, options.rate, options.seconds))


def _wait_for(running: Running) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", running.port), 1).close()
            return
        except OSError:
            if running.process.poll() is not None or time.monotonic() > end:
                raise NotReady(f"the gateway does not listen; it said:\n{running.log_tail()}") from None
            time.sleep(0.05)


async def _load(url: str, pid: int, rate: int, seconds: float) -> Seen:
    body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}).encode()
    where = urlsplit(url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {where.netloc}\r\nauthorization: Bearer {KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    pool = Pool(str(where.hostname), where.port or 80, head.encode() + body)
    await pool.open(CONNECTIONS)
    await _offer(lambda: pool.send(Seen()), rate, WARM_UP_S, Seen())
    seen = Seen()
    began, cpu_us = time.monotonic(), process_tree.cpu_us(pid)
    await _offer(lambda: pool.send(seen), rate, seconds, seen)
    seen.cpu = (process_tree.cpu_us(pid) - cpu_us) / 1e6 / (time.monotonic() - began)
    end = time.monotonic() + DRAIN_S
    while pool.busy and time.monotonic() < end:
        await asyncio.sleep(TICK_S)
    for _ in range(pool.busy):
        seen.fail("no answer")
    pool.close()
    return seen


async def _offer(send: Callable[[], None], rate: int, seconds: float, seen: Seen) -> None:
    """Call `send` at every due time, `rate` times a second."""
    began, sent = time.perf_counter(), 0
    while sent < rate * seconds:
        now = time.perf_counter()
        due = min(int((now - began) * rate) + 1, int(rate * seconds))
        while sent < due:
            seen.late_ms.append((now - began - sent / rate) * 1e3)
            sent += 1
            seen.offered += 1
            send()
        await asyncio.sleep(TICK_S)


class Pool:
    """Connections to one target, used in turn; each carries one request at a time."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self._host, self._port = host, port
        self.request = request
        self.idle: deque[Connection] = deque()
        self.busy = 0
        self._opened = 0
        self._opening: set[asyncio.Task[None]] = set()

    async def open(self, count: int) -> None:
        """So many more connections."""
        for _ in range(count):
            self._opened += 1
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self), self._host, self._port
            )
            self.idle.append(connection)

    def send(self, seen: Seen) -> None:
        """Send one request on the connection that was idle longest."""
        if not self.idle:
            seen.fail("no connection")
            if self._opened < CONNECTIONS_MAX:
                task = asyncio.ensure_future(self.open(1))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
            return
        self.busy += 1
        self.idle.popleft().send(seen)

    def close(self) -> None:
        """Hang up."""
        for connection in self.idle:
            connection.transport.close()


class Connection(asyncio.Protocol):
    """One keep-alive connection: writes a request, reads its answer, and notes how long that took."""

    transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._buffer = b""
        self._began = 0.0
        self._seen: Seen | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def send(self, seen: Seen) -> None:
        """Send the request; what comes of it is put into `seen`."""
        self._seen = seen
        self._began = time.perf_counter()
        self.transport.write(self._pool.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lowered = head.lower()
        place = lowered.index(b"content-length:") + 15
        end = lowered.find(b"\r\n", place)
        if len(rest) < int(lowered[place:] if end < 0 else lowered[place:end]):
            return
        took_ms = (time.perf_counter() - self._began) * 1e3
        seen, self._seen, self._buffer = self._seen, None, b""
        assert seen is not None
        status = head[9:12]
        if status == b"200":
            seen.answered_ms.append(took_ms)
        elif status == b"429":
            seen.refused_ms.append(took_ms)
        else:
            seen.fail(status.decode())
        self._pool.busy -= 1
        self._pool.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._seen is not None:
            self._seen.fail("hung up")
            self._pool.busy -= 1
        elif self in self._pool.idle:
            self._pool.idle.remove(self)


# At the door.


def at_the_door(workers: int, options: argparse.Namespace) -> Seen:
    """So many processes that share one store, each with its part of the load; a Call holds its place `UPSTREAM_MS`."""
    context = multiprocessing.get_context("spawn")
    said: Queue[Seen] = context.Queue()
    with tempfile.TemporaryDirectory(prefix="overload-") as folder:
        start = time.time() + 1.0 + 0.3 * workers
        work = (folder, options.places, options.rate // workers, options.seconds, start)
        children = [context.Process(target=_door, args=(said, f"w{n}", *work), daemon=True) for n in range(workers)]
        for child in children:
            child.start()
        parts = [said.get(timeout=START_S + options.seconds) for _ in children]
        for child in children:
            child.join(START_S)
    whole = Seen()
    for part in parts:
        whole.offered += part.offered
        whole.answered_ms += part.answered_ms
        whole.refused_ms += part.refused_ms
        whole.late_ms += part.late_ms
        whole.cpu += part.cpu
        whole.answered_by.append(len(part.answered_ms))
        for why, count in part.failed.items():
            whole.failed[why] = whole.failed.get(why, 0) + count
    return whole


def _door(said: Queue[Seen], name: str, folder: str, places: int, rate: int, seconds: float, start: float) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        said.put(runner.run(_at_the_door(name, Path(folder), places, rate, seconds, start)))


async def _at_the_door(name: str, folder: Path, places: int, rate: int, seconds: float, start: float) -> Seen:
    loop = asyncio.get_running_loop()
    limit = Limit(name="capacity", kind="concurrency", dimension="project", value="", unit="calls", amount=places)
    limits = Limits([limit], SqliteCounters(folder / "counters"), worker=name, loop=loop)
    who = Attribution("", "bench", "bench", "bench")

    def offer(seen: Seen) -> None:
        began = time.perf_counter()

        def heard(taken: Hold | Refusal) -> None:
            took_ms = (time.perf_counter() - began) * 1e3
            if isinstance(taken, Hold):
                loop.call_later(UPSTREAM_MS / 1e3, limits.close_hold, taken)
                seen.answered_ms.append(took_ms)
            elif taken.status == 429:
                seen.refused_ms.append(took_ms)
            else:
                seen.fail(taken.code)

        taken = limits.admit(who, "chat", time.time_ns(), heard)
        if isinstance(taken, Hold | Refusal):
            heard(taken)

    await asyncio.sleep(max(0.0, start - time.time()))
    await _offer(lambda: offer(Seen()), rate, WARM_UP_S, Seen())
    seen = Seen()
    cpu = time.process_time()
    await _offer(lambda: offer(seen), rate, seconds, seen)
    seen.cpu = (time.process_time() - cpu) / seconds
    await asyncio.sleep(3 * UPSTREAM_MS / 1e3)
    await limits.close()
    return seen


if __name__ == "__main__":
    raise SystemExit(main())
