"""Goodput of adaptive batching beside no batching and fixed batching, on arrival times of a real trace.

`python benchmarks/batching.py --help`. Arrivals are those of the second half of `../shared/data/azure_llm_trace`,
scaled so that their mean rate is a share of capacity: the most rows per second that any batch of up to 32 brings.
Goodput is the share of rows whose result is there within the SLO. Two parts: in simulated time, with service curves
of several shapes, some measured here when it starts, and with a real model worker process. Each simulated fixed setting
is run twice: as servers do it, where late rows are served late, and with what cannot be in time even alone dropped, as
adaptive batching does. All meet the same pace of the machine. The first half of the trace, and seeds below 100, are
what the batcher was developed with. Exit code 1 where a fixed setting, the best in hindsight, is better at any load.
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
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from itertools import accumulate
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
FIXED = [(1, 0), *((rows, wait_ms) for rows in (2, 4, 8, 16, 32) for wait_ms in (0, 2, 5, 10))]
"""(batch size, wait in ms); the first is no batching."""
REAL_LOADS = (0.6, 0.8, 0.95)
REAL_FIXED = ((1, 0), (8, 2), (32, 0), (32, 5))
REPEATS = 15
"""Batches of each size that a service curve is measured with."""
PACE_NS = 10_000_000
"""The machine's pace changes so often, and every setting meets the same: what takes long is a moment, not a batch."""
PACE_SIGMA, BATCH_SIGMA = 0.1, 0.08
"""Of the logarithm of the pace, and of what a batch takes beside it."""
SLOW_SHARE = 1 / 400
"""Of moments at which a slow time begins: 30 to 300 ms, in which all takes 1.5 to 3 times as long."""
SLO_BATCHES = {"tight": 2.0, "usual": 4.0}
"""The SLO in times of the largest batch, or of 20 ms where that is more, so that waits of up to 10 ms make sense."""
SEED_FIRST = 100
SLICE_ROWS = 400
"""Of the real part: settings take turns after so many rows, so that all meet the same machine."""
MS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Service:
    """A model's service curve."""

    name: str
    times_ns: tuple[int, ...]
    """Time of a batch of 1, 2 ... `ROWS_MAX` rows."""

    @property
    def capacity(self) -> float:
        """Rows per ns at the best size."""
        return max(rows / took for rows, took in enumerate(self.times_ns, 1))


@dataclass(frozen=True, kw_only=True)
class Best:
    """The fixed setting that was the best of all in hindsight."""

    rows: int
    wait_ms: int
    goodput: float
    ahead_points: float
    """Of adaptive batching, in percentage points; negative: the fixed setting was better."""
    error_points: float
    """The standard error of that, over seeds or slices."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One load. Rates are means over the seeds."""

    part: str
    service: str
    slo_ms: float
    load: float
    adaptive: float
    batch_rows: float
    late: float
    """Share of rows that were scored too late."""
    refused: float
    """Share of rows given up before they were scored."""
    none: float
    """Goodput without batching, nothing dropped."""
    fixed: Best
    """Nothing dropped."""
    dropping: Best
    """What cannot be in time even alone is dropped."""


def main() -> int:
    """Measures and prints; 1 where a fixed setting was better."""
    parser = argparse.ArgumentParser(prog="batching.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the trace per run (default 10,000)")
    parser.add_argument("--seeds", type=int, default=3, help="runs per setting in simulated time (default 3)")
    parser.add_argument("--real-s", type=float, default=6.0, help="seconds per setting and load; 0: none (default 6)")
    parser.add_argument("--develop", action="store_true", help="the first half of the trace, and seeds from 0")
    parser.add_argument("--simulated", type=int, default=1, help="0: only the real worker")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--worker", nargs=3, metavar=("SOCKET", "ROWS", "WAIT_MS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return _worker(Path(options.worker[0]), int(options.worker[1]), int(options.worker[2]))
    version, busy = platform.python_version(), os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {version}, load average {busy:.1f}")
    services = curves()
    for service in services:
        shown = ", ".join(f"{rows}: {service.times_ns[rows - 1] / MS:.2f}" for rows in (1, 2, 4, 8, 16, 32))
        print(f"{service.name}: ms by rows {shown}")
    points: list[Point] = []
    seeds = range(options.seeds) if options.develop else range(SEED_FIRST, SEED_FIRST + options.seeds)
    if options.simulated:
        points += simulated(services, options.rows, seeds, half=0 if options.develop else 1)
    if options.real_s:
        points += real(measured("compute", computing()), options.real_s)
    if options.json:
        options.json.write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n")
    for title, of in (("nothing dropped", "fixed"), ("hopeless rows dropped", "dropping")):
        worse = [point for point in points if getattr(point, of).ahead_points < 0]
        clear = [point for point in worse if -getattr(point, of).ahead_points > 2 * getattr(point, of).error_points]
        print(
            f"{len(points) - len(worse)} of {len(points)} loads: adaptive is at least as good as the best fixed "
            f"setting, {title}; {len(clear)} of the others by more than two standard errors"
        )
    return int(any(min(point.fixed.ahead_points, point.dropping.ahead_points) < 0 for point in points))


def _told(point: Point) -> None:
    def said(best: Best) -> str:
        worse = "  WORSE" if best.ahead_points < 0 else ""
        ahead = f"{best.ahead_points:+.2f} +- {best.error_points:.2f} points{worse}"
        return f"{best.goodput:.4f} ({best.rows} rows, {best.wait_ms} ms; {ahead})"

    where = f"{point.part:9} {point.service:9} SLO {point.slo_ms:5.1f} ms load {point.load:4.2f}"
    shares = f" (batch {point.batch_rows:4.1f}, late {point.late:.4f}, refused {point.refused:.4f})"
    # The worker's process does not tell its batches.
    print(f"{where}: adaptive {point.adaptive:.4f}{shares if point.batch_rows else ''}  none {point.none:.4f}", end="")
    print(f"  fixed {said(point.fixed)}  dropping {said(point.dropping)}", flush=True)


# Models.


def computing() -> Callable[[int], None]:
    """Arithmetic that has a fixed part as large as that of thirteen rows."""
    import numpy as np

    values = np.linspace(0.0, 1.0, 4_000_000)
    return lambda count: (np.sin(values[: 800_000 + 60_000 * count]), None)[1]


def boosted() -> Callable[[int], None]:
    """LightGBM, 300 trees of 31 leaves."""
    import lightgbm
    import numpy as np

    rng = np.random.default_rng(1)
    rows = rng.normal(size=(1_000, 10))
    settings = {"num_leaves": 31, "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5}
    trained = lightgbm.train(settings, lightgbm.Dataset(rows, rows[:, 0] * rows[:, 1]), num_boost_round=300)
    return lambda count: (trained.predict(rows[:count], num_threads=1), None)[1]


def dense() -> Callable[[int], None]:
    """Two layers of 2,048 by 2,048 in numpy: what a row costs alone is reading the weights."""
    import numpy as np

    rng = np.random.default_rng(1)
    weights = rng.normal(size=(2_048, 2_048)).astype(np.float32)
    rows = rng.normal(size=(ROWS_MAX, 2_048)).astype(np.float32)
    return lambda count: (rows[:count] @ weights @ weights, None)[1]


def measured(name: str, score: Callable[[int], None]) -> Service:
    """Its service curve on this machine, now: the lower quartile of each size, as others run here too."""
    score(1)
    taken: dict[int, list[int]] = {rows: [] for rows in range(1, ROWS_MAX + 1)}
    for _ in range(REPEATS):
        for rows, times_ns in taken.items():
            began_ns = time.perf_counter_ns()
            score(rows)
            times_ns.append(time.perf_counter_ns() - began_ns)
    return Service(name=name, times_ns=tuple(sorted(times_ns)[REPEATS // 4] for times_ns in taken.values()))


def stated(name: str, times_ms: Callable[[int], float]) -> Service:
    """A service curve of a known shape."""
    return Service(name=name, times_ns=tuple(int(times_ms(rows) * MS) for rows in range(1, ROWS_MAX + 1)))


def curves() -> list[Service]:
    """What is compared."""
    return [
        measured("compute", computing()),
        measured("lightgbm", boosted()),
        measured("dense", dense()),
        stated("sleep", lambda rows: 4 + 0.5 * rows),
        stated("linear", lambda rows: 1 + rows),
        stated("steps", lambda rows: 5 * -(-rows // 8) + 0.05 * rows),
        stated("cliff", lambda rows: 1 if rows == 1 else 18 + rows),
    ]


# In simulated time.


@cache
def trace() -> tuple[float, ...]:
    """Arrival times in seconds from the first."""
    with TRACE.open() as file:
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in csv.DictReader(file)]
    return tuple(one - times[0] for one in times)


def arrivals(rows: int, per_ns: float, half: int) -> list[int]:
    """The first `rows` of a half of the trace at this mean rate, in ns."""
    middle = len(trace()) // 2
    times = (trace()[middle:] if half else trace()[:middle])[:rows]
    scale = len(times) / per_ns / (times[-1] - times[0])
    found: list[int] = []
    for one in times:
        found.append(max(int((one - times[0]) * scale), found[-1] + 1 if found else 0))
    return found


class Pace:
    """How fast the machine is, from one moment to the next: the same for every setting of a seed."""

    def __init__(self, seed: int, until_ns: int) -> None:
        rng = random.Random(seed)
        self._slow: list[float] = []
        left, factor = 0, 1.0
        for _ in range(2 * until_ns // PACE_NS + 10_000):
            if not left and rng.random() < SLOW_SHARE:
                left, factor = rng.choice((3, 10, 30)), rng.choice((1.5, 2.0, 3.0))
            self._slow.append(rng.lognormvariate(0, PACE_SIGMA) * (factor if left else 1.0))
            left = max(0, left - 1)
        self._done = [0.0, *accumulate(PACE_NS / slow for slow in self._slow)]
        """Work done by the end of each moment."""
        self._noise = [rng.lognormvariate(0, BATCH_SIGMA) for _ in range(65_537)]

    def done_ns(self, now_ns: int, work_ns: float, batch: int) -> int:
        """When the batch of this number, begun now, is done."""
        at, into_ns = divmod(now_ns, PACE_NS)
        done = self._done[at] + into_ns / self._slow[at] + work_ns * self._noise[batch % len(self._noise)]
        ends = bisect_left(self._done, done, at + 1) - 1
        return max(now_ns + 1, int(ends * PACE_NS + (done - self._done[ends]) * self._slow[ends]))


class SimulatedRow:
    """Implements `batching.Waiting`."""

    __slots__ = ("arrived_ns", "deadline_ns", "over", "size_bytes")

    def __init__(self, arrived_ns: int, slo_ns: int) -> None:
        self.arrived_ns = arrived_ns
        self.deadline_ns = arrived_ns + slo_ns
        self.size_bytes = 100
        self.over = False


def run_fixed(
    setting: tuple[int, int], service: Service, times: Sequence[int], slo_ns: int, pace: Pace, *, dropping: bool
) -> float:
    """Goodput of up to so many rows, as soon as they are there or the oldest has waited so long."""
    rows_max, wait_ns = setting[0], setting[1] * MS
    count, at, now_ns, good, batches = len(times), 0, 0, 0, 0
    while at < count:
        now_ns = max(now_ns, times[at])
        if dropping:
            at = bisect_left(times, now_ns + service.times_ns[0] - slo_ns, at)
            if at == count:
                break
            now_ns = max(now_ns, times[at])
        full_ns = times[at + rows_max - 1] if at + rows_max <= count else times[at] + wait_ns
        now_ns = max(now_ns, min(times[at] + wait_ns, full_ns))
        rows = bisect_right(times, now_ns, at, min(count, at + rows_max)) - at
        now_ns = pace.done_ns(now_ns, service.times_ns[rows - 1], batches)
        good += at + rows - bisect_left(times, now_ns - slo_ns, at, at + rows)
        batches += 1
        at += rows
    return good / count


@dataclass
class Adaptive:
    """One run; counts of rows."""

    good: int = 0
    late: int = 0
    refused: int = 0
    batches: int = 0


def run_adaptive(service: Service, times: Sequence[int], slo_ns: int, pace: Pace, seed: int) -> Adaptive:
    """A batcher as a model worker has it, its curve begun by made-up rows."""
    curve, rng, found = ServiceCurve(ROWS_MAX), random.Random(-seed - 1), Adaptive()
    for power in range(ROWS_MAX.bit_length()):
        taken = sorted(service.times_ns[(1 << power) - 1] * rng.lognormvariate(0, 0.13) for _ in range(3))
        curve.learn(1 << power, int(taken[1]))
    batcher = Batcher(curve)
    count, at, now_ns = len(times), 0, 0

    def come(until_ns: int) -> int:
        """Rows that are there by then."""
        place = at
        while place < count and times[place] <= until_ns:
            found.refused += not batcher.add(SimulatedRow(times[place], slo_ns), times[place])
            place += 1
        return place

    while at < count or len(batcher):
        if not len(batcher):
            now_ns = max(now_ns, times[at])
        at = come(now_ns)
        turn = batcher.next(now_ns)
        found.refused += len(turn.refused)
        rows = len(turn.batch)
        if rows:
            began_ns, now_ns = now_ns, pace.done_ns(now_ns, service.times_ns[rows - 1], found.batches)
            at = come(now_ns)
            batcher.ended(rows, now_ns - began_ns)
            good = sum(row.deadline_ns >= now_ns for row in turn.batch)
            found.good, found.late, found.batches = found.good + good, found.late + rows - good, found.batches + 1
    return found


def best_of(fixed: Mapping[tuple[int, int], Sequence[float]], ours: Sequence[float]) -> Best:
    """The best setting by its mean, and how far adaptive batching is ahead of it."""
    rows, wait_ms = setting = max(fixed, key=lambda one: statistics.mean(fixed[one]))
    ahead = [100 * (our - its) for our, its in zip(ours, fixed[setting], strict=True)]
    error = statistics.stdev(ahead) / len(ahead) ** 0.5 if len(ahead) > 1 else 0.0
    goodput = statistics.mean(fixed[setting])
    return Best(rows=rows, wait_ms=wait_ms, goodput=goodput, ahead_points=statistics.mean(ahead), error_points=error)


def _point(job: tuple[Service, str, float, int, range, int]) -> Point:
    service, slo, load, rows, seeds, half = job
    slo_ns = int(SLO_BATCHES[slo] * max(service.times_ns[-1], 20 * MS))
    times = arrivals(rows, load * service.capacity, half)
    ours: list[Adaptive] = []
    fixed: dict[bool, dict[tuple[int, int], list[float]]] = {False: {}, True: {}}
    for seed in seeds:
        pace = Pace(seed, times[-1])
        ours.append(run_adaptive(service, times, slo_ns, pace, seed))
        for dropping, found in fixed.items():
            for setting in FIXED:
                goodput = run_fixed(setting, service, times, slo_ns, pace, dropping=dropping)
                found.setdefault(setting, []).append(goodput)
    goodputs = [one.good / len(times) for one in ours]
    all_rows = len(times) * len(ours)
    return Point(
        part="simulated", service=service.name, slo_ms=slo_ns / MS, load=load, adaptive=statistics.mean(goodputs),
        batch_rows=sum(one.good + one.late for one in ours) / max(1, sum(one.batches for one in ours)),
        late=sum(one.late for one in ours) / all_rows, refused=sum(one.refused for one in ours) / all_rows,
        none=statistics.mean(fixed[False][1, 0]), fixed=best_of(fixed[False], goodputs),
        dropping=best_of(fixed[True], goodputs),
    )  # fmt: skip


def simulated(services: Sequence[Service], rows: int, seeds: range, *, half: int) -> list[Point]:
    """Every load of every service and SLO."""
    jobs = [(service, slo, load, rows, seeds, half) for service in services for slo in SLO_BATCHES for load in LOADS]
    points = []
    with multiprocessing.Pool(min(2, os.cpu_count() or 1)) as pool:
        for point in pool.imap(_point, jobs):
            _told(point)
            points.append(point)
    return points


# With a model worker.


class FixedBatcher(Batcher):
    """Up to `rows` rows, as soon as so many wait or the oldest waited `wait_ms`; who is too late is dropped."""

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


async def _turns(
    paths: Mapping[tuple[int, int], Path], times: Sequence[int], slo_ms: int
) -> Mapping[tuple[int, int], list[float]]:
    """Goodput of each slice of rows, by setting: the settings take turns with each slice."""
    pools = {setting: WorkerModels([path], asyncio.get_running_loop()) for setting, path in paths.items()}
    for pool in pools.values():
        await pool.prepare([MODEL])
    found: dict[tuple[int, int], list[float]] = {setting: [] for setting in pools}
    for number, start in enumerate(range(0, len(times), SLICE_ROWS)):
        part = times[start : start + SLICE_ROWS]
        order = list(pools)
        for setting in order[number % len(order) :] + order[: number % len(order)]:
            found[setting].append(await _asked(pools[setting], [one - part[0] for one in part], slo_ms))
    for pool in pools.values():
        await pool.close()
    return found


async def _asked(pool: WorkerModels, times: Sequence[int], slo_ms: int) -> float:
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
    took = [one.answered_ns - began_ns - due for one, due in zip(heard, times, strict=True) if one.answered_ns]
    return sum(one <= slo_ms * MS for one in took) / len(times)


def real(service: Service, seconds: float) -> list[Point]:
    """Fewer loads and settings: each takes its time. A client that gave up cancels, so all drop what is too late."""
    slo_ms = int(SLO_BATCHES["usual"] * service.times_ns[-1] / MS)
    points = []
    for load in REAL_LOADS:
        rows = int(seconds * 1e9 * load * service.capacity)
        times = arrivals(rows, load * service.capacity, half=1)
        found = _run_processes(((0, 0), *REAL_FIXED), times, slo_ms)
        ours = found.pop((0, 0))
        best = best_of(found, ours)
        point = Point(
            part="process", service=service.name, slo_ms=slo_ms, load=load, adaptive=statistics.mean(ours),
            batch_rows=0.0, late=0.0, refused=0.0, none=statistics.mean(found[1, 0]), fixed=best, dropping=best,
        )  # fmt: skip
        _told(point)
        points.append(point)
    return points


def _run_processes(
    settings: Sequence[tuple[int, int]], times: Sequence[int], slo_ms: int
) -> dict[tuple[int, int], list[float]]:
    with tempfile.TemporaryDirectory(prefix="batching-") as folder, ExitStack() as stack:
        environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        paths = {}
        for setting in settings:
            path = paths[setting] = Path(folder) / f"{setting[0]}-{setting[1]}.sock"
            command = [sys.executable, __file__, "--worker", str(path), str(setting[0]), str(setting[1])]
            stack.callback(stack.enter_context(subprocess.Popen(command, env=environment)).terminate)
        return dict(asyncio.run(_turns(paths, times, slo_ms)))


if __name__ == "__main__":
    sys.exit(main())
