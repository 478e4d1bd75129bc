"""Goodput of adaptive batching beside no batching and fixed batching, on arrival times of a real trace.

`python benchmarks/batching.py --help`. Arrivals are those of `../shared/data/azure_llm_trace`, scaled so that their
mean rate is a share of capacity: the most rows per second that any batch of up to 32 brings. Goodput is the share of
rows whose result is there within the SLO. Every fixed setting drops rows whose SLO has passed before it scores, as a
client that gave up would make it do. Two parts: in simulated time, with service curves and noise measured on this
machine when it starts, and with a real model worker process. Exit code 1 where a fixed setting is better at any load.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.models import Column, Pinned, Row, Scored, Signature
from drivetrain.inference.batching import Batcher, Turn, Waiting
from drivetrain.inference.curve import ServiceCurve
from drivetrain.inference.pool import WorkerModels
from drivetrain.inference.worker import run_model_worker
from drivetrain.ports.inference import ModelRequest
from drivetrain.ports.transport import UpstreamFailure, UpstreamHead
from machine import ROOT

TRACE = ROOT.parent / "shared" / "data" / "azure_llm_trace" / "conversation_2023.csv"
LOADS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
ROWS_MAX = 32
FIXED = [(1, 0), *((rows, wait_ms) for rows in (2, 4, 8, 16, 32) for wait_ms in (0, 1, 2, 5, 10))]
"""(batch size, wait in ms); the first is no batching."""
REAL_LOADS = (0.6, 0.8, 0.95)
REAL_FIXED = ((1, 0), (8, 2), (32, 0), (32, 5))
REPEATS = 15
"""Batches of each size that a service curve is measured with."""
PACE_NS = 10_000_000
"""The machine's pace changes so often, and every setting meets the same: what takes long is a moment, not a batch."""
SLO_BATCHES = {"tight": 2.0, "usual": 4.0}
"""The SLO in times of the largest batch; 10 ms more for the gateway's waits of up to 10 ms to make sense."""
MS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Service:
    """A model as measured here."""

    name: str
    times_ns: tuple[int, ...]
    """Time of a batch of 1, 2 ... `ROWS_MAX` rows: the lower quartile."""
    noise: tuple[float, ...]
    """What single batches took, in times of their median."""

    @property
    def capacity(self) -> float:
        """Rows per ns at the best size."""
        return max(rows / took for rows, took in enumerate(self.times_ns, 1))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One load."""

    part: str
    service: str
    slo_ms: float
    load: float
    adaptive: float
    """Goodput, mean over the seeds."""
    adaptive_rows: float
    """Mean batch size."""
    adaptive_late: float
    """Of the rows that were answered: the share that came after the SLO."""
    none: float
    fixed: float
    """Of the best fixed setting."""
    best: tuple[int, int]


def main() -> int:
    """Measures and prints; 1 where a fixed setting was better."""
    parser = argparse.ArgumentParser(prog="batching.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the trace per run (default 10,000)")
    parser.add_argument("--seeds", type=int, default=3, help="runs per setting in simulated time (default 3)")
    parser.add_argument("--real-s", type=float, default=6.0, help="seconds per real run; 0: none (default 6)")
    parser.add_argument("--simulated", type=int, default=1, help="0: only the real worker")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--worker", nargs=3, metavar=("SOCKET", "ROWS", "WAIT_MS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return _worker(Path(options.worker[0]), int(options.worker[1]), int(options.worker[2]))
    version, busy = platform.python_version(), os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {version}, load average {busy:.1f}")
    services = [measured("compute", computing()), measured("sleep", sleeping())]
    for service in services:
        shown = ", ".join(f"{rows}: {service.times_ns[rows - 1] / MS:.2f}" for rows in (1, 2, 4, 8, 16, 32))
        spread = sorted(service.noise)
        low, high = spread[len(spread) // 20], spread[-len(spread) // 20]
        print(f"{service.name}: ms by rows {shown}; noise p5 {low:.2f} p95 {high:.2f}")
    points: list[Point] = []
    if options.simulated:
        points += simulated(services, options.rows, options.seeds)
    if options.real_s:
        points += real(services[0], options.real_s)
    if options.json:
        options.json.write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n")
    worse = [point for point in points if point.adaptive < point.fixed]
    print(f"{len(points) - len(worse)} of {len(points)} loads: adaptive is at least as good as the best fixed setting")
    return int(bool(worse))


def _told(point: Point) -> None:
    verdict = "" if point.adaptive >= point.fixed else f"  WORSE by {point.fixed - point.adaptive:.4f}"
    where = f"{point.part:9} {point.service:6} SLO {point.slo_ms:5.1f} ms load {point.load:4.2f}"
    ours = f"adaptive {point.adaptive:.4f} (batch {point.adaptive_rows:4.1f}, late {point.adaptive_late:.4f})"
    theirs = f"none {point.none:.4f}  best fixed {point.fixed:.4f} ({point.best[0]} rows, {point.best[1]} ms)"
    print(f"{where}: {ours}  {theirs}{verdict}", flush=True)


# Models.


def computing() -> Callable[[int], None]:
    """Arithmetic that has a fixed part as large as that of thirteen rows."""
    import numpy as np

    values = np.linspace(0.0, 1.0, 4_000_000)
    return lambda count: (np.sin(values[: 800_000 + 60_000 * count]), None)[1]


def sleeping() -> Callable[[int], None]:
    """A device that is asked over a bus: 4 ms, and 0.5 ms for each row."""
    return lambda count: time.sleep(0.004 + 0.0005 * count)


def measured(name: str, score: Callable[[int], None]) -> Service:
    """Its service curve and its noise on this machine, now."""
    score(1)
    taken: dict[int, list[int]] = {rows: [] for rows in range(1, ROWS_MAX + 1)}
    for _ in range(REPEATS):
        for rows, times_ns in taken.items():
            began_ns = time.perf_counter_ns()
            score(rows)
            times_ns.append(time.perf_counter_ns() - began_ns)
    times, highest = [], 0
    for times_ns in taken.values():
        highest = max(highest, sorted(times_ns)[REPEATS // 4])  # what others do to this machine is noise
        times.append(highest)
    noise = [one / statistics.median(times_ns) for times_ns in taken.values() for one in times_ns]
    return Service(name=name, times_ns=tuple(times), noise=tuple(noise))


# In simulated time.


@cache
def trace() -> tuple[float, ...]:
    """Arrival times in seconds from the first."""
    with TRACE.open() as file:
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in csv.DictReader(file)]
    return tuple(one - times[0] for one in times)


def arrivals(rows: int, per_ns: float) -> list[int]:
    """The first `rows` of the trace at this mean rate, in ns."""
    times = trace()[:rows]
    scale = len(times) / per_ns / times[-1]
    found: list[int] = []
    for one in times:
        found.append(max(int(one * scale), found[-1] + 1 if found else 0))
    return found


class SimulatedRow:
    """Implements `batching.Waiting`."""

    __slots__ = ("arrived_ns", "deadline_ns", "over")

    def __init__(self, arrived_ns: int, slo_ns: int) -> None:
        self.arrived_ns = arrived_ns
        self.deadline_ns = arrived_ns + slo_ns
        self.over = False


class FixedBatcher(Batcher):
    """What most servers do: up to `rows` rows, as soon as so many wait or the oldest waited `wait_ms`."""

    def __init__(self, rows: int, wait_ms: int) -> None:
        super().__init__(ServiceCurve(ROWS_MAX))
        self._rows = rows
        self._wait_ns = wait_ms * MS
        self._waiting: deque[Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def earliest_ns(self) -> int:
        return self._waiting[0].deadline_ns if self._waiting else 0

    def add(self, row: Waiting, now_ns: int) -> bool:
        self._waiting.append(row)
        return True

    def predicted_ns(self, ahead: int, now_ns: int) -> float:
        return 0.0

    def next(self, now_ns: int) -> Turn:
        waiting, refused = self._waiting, []
        while waiting and (waiting[0].over or waiting[0].deadline_ns <= now_ns):
            refused.append(waiting.popleft())
        if not waiting:
            return Turn(refused=refused)
        due_ns = waiting[0].arrived_ns + self._wait_ns
        if len(waiting) < self._rows and due_ns > now_ns:
            return Turn(refused=refused, again_ns=due_ns)
        return Turn(batch=[waiting.popleft() for _ in range(min(self._rows, len(waiting)))], refused=refused)

    def ended(self, rows: int, took_ns: int) -> None:
        """It learns nothing."""


def run(batcher: Batcher, service: Service, times: Sequence[int], slo_ns: int, seed: int) -> tuple[float, float, float]:
    """Goodput, mean batch size, share of late rows among those answered."""
    rng = random.Random(seed)
    noise = [rng.choice(service.noise) for _ in range(65_537)]
    at, now_ns, good, late, batches = 0, 0, 0, 0, 0
    running: tuple[int, int, Sequence[Waiting]] | None = None
    again_ns = 0
    while at < len(times) or running or len(batcher):
        coming = [times[at]] if at < len(times) else []
        coming += [running[0]] if running else [again_ns] if again_ns else []
        now_ns = min(coming)
        if running and running[0] == now_ns:
            _, began_ns, batch = running
            running = None
            batcher.ended(len(batch), now_ns - began_ns)
            in_time = sum(row.deadline_ns >= now_ns for row in batch)
            good, late, batches = good + in_time, late + len(batch) - in_time, batches + 1
        elif at < len(times) and times[at] == now_ns:
            batcher.add(SimulatedRow(now_ns, slo_ns), now_ns)
            at += 1
        if running is None:
            turn = batcher.next(now_ns)
            again_ns = turn.again_ns
            if turn.batch:
                running = (_done_ns(now_ns, service.times_ns[len(turn.batch) - 1], noise), now_ns, turn.batch)
    return good / len(times), (good + late) / max(1, batches), late / max(1, good + late)


def _done_ns(now_ns: int, work_ns: float, noise: Sequence[float]) -> int:
    """When a batch that takes `work_ns` at the usual pace is done."""
    while True:
        slow = noise[now_ns // PACE_NS % len(noise)]
        room_ns = PACE_NS - now_ns % PACE_NS
        if work_ns * slow <= room_ns:
            return now_ns + max(1, int(work_ns * slow))
        work_ns -= room_ns / slow
        now_ns += room_ns


def adaptive(service: Service, seed: int) -> Batcher:
    """A batcher as a model worker has it, its curve begun by made-up rows."""
    curve = ServiceCurve(ROWS_MAX)
    rng = random.Random(-seed - 1)
    size = 1
    while size <= ROWS_MAX:
        taken = sorted(service.times_ns[size - 1] * rng.choice(service.noise) for _ in range(3))
        curve.learn(size, int(taken[1]))
        size *= 2
    return Batcher(curve)


def _point(job: tuple[Service, str, float, int, int]) -> Point:
    service, slo, load, rows, seeds = job
    slo_ns = int(SLO_BATCHES[slo] * service.times_ns[-1])
    times = arrivals(rows, load * service.capacity)
    ours = [run(adaptive(service, seed), service, times, slo_ns, seed) for seed in range(seeds)]
    fixed = {
        setting: statistics.mean(run(FixedBatcher(*setting), service, times, slo_ns, seed)[0] for seed in range(seeds))
        for setting in FIXED
    }
    best = max(fixed, key=lambda setting: fixed[setting])
    good, batch, late = (statistics.mean(one) for one in zip(*ours, strict=True))
    return Point(
        part="simulated", service=service.name, slo_ms=slo_ns / MS, load=load, adaptive=good, adaptive_rows=batch,
        adaptive_late=late, none=fixed[1, 0], fixed=fixed[best], best=best,
    )  # fmt: skip


def simulated(services: Sequence[Service], rows: int, seeds: int) -> list[Point]:
    """Every load of every service and SLO."""
    jobs = [(service, slo, load, rows, seeds) for service in services for slo in SLO_BATCHES for load in LOADS]
    points = []
    with multiprocessing.Pool(min(2, os.cpu_count() or 1)) as pool:
        for point in pool.imap(_point, jobs):
            _told(point)
            points.append(point)
    return points


# With a model worker.

MODEL = Pinned(
    name="compute", number=1, digest="compute", format="onnx",
    signature=Signature(task="regression", inputs=(Column(name="x", dtype="float"),), target="y"),
)  # fmt: skip


class Compute:
    """Implements `ports.inference.Scorer`."""

    def __init__(self) -> None:
        self.pinned = MODEL
        self._score = computing()

    def score(self, rows: Sequence[Row]) -> list[Scored]:
        self._score(len(rows))
        return [Scored(value=1.0)] * len(rows)


def _worker(path: Path, rows: int, wait_ms: int) -> int:
    """rows: 0 for adaptive."""
    make: Callable[[], Batcher] = lambda: FixedBatcher(rows, wait_ms) if rows else Batcher(ServiceCurve(ROWS_MAX))  # noqa: E731
    run_model_worker(path, lambda pinned: Compute(), batcher=make)
    return 0


class Heard:
    """Keeps when its answer came."""

    __slots__ = ("answered_ns", "ended")

    def __init__(self) -> None:
        self.answered_ns = 0
        self.ended = False

    def on_head(self, head: UpstreamHead) -> None:
        """It is 200."""

    def on_chunk(self, data: bytes) -> None:
        """Not looked at."""

    def on_end(self) -> None:
        self.answered_ns = time.monotonic_ns()
        self.ended = True

    def on_failure(self, failure: UpstreamFailure) -> None:
        self.ended = True

    def on_fault(self, fault: Exception) -> None:
        raise fault


async def _asked(path: Path, times: Sequence[int], slo_ms: int) -> tuple[float, float, float]:
    loop = asyncio.get_running_loop()
    pool = WorkerModels([path], loop)
    await pool.prepare([MODEL])
    request = ModelRequest(MODEL, msgspec.msgpack.encode([1.0]), slo_ms, slo_ms)
    heard = [Heard() for _ in times]
    began_ns = time.monotonic_ns()
    at = 0
    while at < len(times):
        now_ns = time.monotonic_ns() - began_ns
        while at < len(times) and times[at] <= now_ns:
            pool.send(request, heard[at])
            at += 1
        if at < len(times):
            await asyncio.sleep(max(0, times[at] - now_ns) / 1e9)
    while not all(one.ended for one in heard):
        await asyncio.sleep(0.01)
    await pool.close()
    took = [one.answered_ns - began_ns - due for one, due in zip(heard, times, strict=True) if one.answered_ns]
    good = sum(one <= slo_ms * MS for one in took)
    return good / len(times), 0.0, 1 - good / max(1, len(took))


def real(service: Service, seconds: float) -> list[Point]:
    """Fewer loads and settings: each run takes its time."""
    slo_ms = int(SLO_BATCHES["usual"] * service.times_ns[-1] / MS)
    points = []
    for load in REAL_LOADS:
        rows = int(seconds * 1e9 * load * service.capacity)
        times = arrivals(rows, load * service.capacity)
        found: dict[tuple[int, int], tuple[float, float, float]] = {}
        for setting in ((0, 0), *REAL_FIXED):
            found[setting] = _run_process(setting, times, slo_ms)
        ours = found.pop((0, 0))
        best = max(found, key=lambda setting: found[setting][0])
        point = Point(
            part="process", service=service.name, slo_ms=slo_ms, load=load, adaptive=ours[0], adaptive_rows=ours[1],
            adaptive_late=ours[2], none=found[1, 0][0], fixed=found[best][0], best=best,
        )  # fmt: skip
        _told(point)
        points.append(point)
    return points


def _run_process(setting: tuple[int, int], times: Sequence[int], slo_ms: int) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory(prefix="batching-") as folder:
        path = Path(folder) / "m.sock"
        command = [sys.executable, __file__, "--worker", str(path), str(setting[0]), str(setting[1])]
        environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with subprocess.Popen(command, env=environment) as process:
            try:
                return asyncio.run(_asked(path, times, slo_ms))
            finally:
                process.terminate()


if __name__ == "__main__":
    sys.exit(main())
