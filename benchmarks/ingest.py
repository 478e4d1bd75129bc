"""What it costs to write Calls down: encoding, compression, CRC, write and sync, from ready-made records.

    python benchmarks/ingest.py [--calls 200000] [--rounds 3] [--tick 1000] [--folder DIR]

A Call is its opened and its closed frame with one Attempt and what a real one carries: attribution, tokens, prices, the
provider's request id; no payload. A tick appends `--tick` Calls, as an application that writes what it has would, and
each closed frame waits for the disk: it counts once its `then(True)` has run. One process, then four at once; each
round writes to a new folder, and the median counts. Prints Calls/s, CPU us per Call of all processes, and bytes per
Call as they lie in the segments. Needs nothing but Drivetrain. Use `--folder` to choose the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import shutil
import statistics
import string
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

from drivetrain.core.calls import AttemptV1, Attribution, ClosedV1, OpenedV1
from drivetrain.core.ids import call_ids
from drivetrain.core.money import Usage
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ledger.reader import LedgerReader

START_NS = 1_767_225_600_000_000_000
PROCESSES = (1, 4)
READY_MAX = 20_000
"""Calls that are made before the clock starts; they are written again and again under ids that are no longer unique."""
TICKS_MAX = 4
"""Ticks that may wait for the disk at once, so that a slow disk shows and memory does not grow."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of some processes."""

    calls: int
    wall_s: float
    cpu_s: float
    size: int
    """Bytes of all segments."""

    @property
    def calls_per_s(self) -> float:
        """Of all processes together."""
        return self.calls / self.wall_s


Ready = list[tuple[OpenedV1, ClosedV1]]


def ready_calls(count: int, seed: int) -> Ready:
    """Calls of four teams and two workflows, some milliseconds apart."""
    dice = random.Random(seed)
    letters = string.ascii_letters + string.digits
    now_ns = START_NS
    next_id = call_ids(lambda: now_ns, dice.randbytes)
    calls: Ready = []
    for _ in range(count):
        now_ns += dice.randrange(1_000_000)
        call_id, team = next_id(), dice.choice(("support", "sales", "search", "operations"))
        tokens, output, took_us = dice.randrange(50, 3_000), dice.randrange(10, 600), dice.randrange(200_000, 4_000_000)
        cost = tokens * 150 + output * 600
        attempt = AttemptV1(
            "small",
            "openai/gpt-4o-mini",
            "answer",
            "accepted",
            sent_us=dice.randrange(80, 400),
            first_byte_us=took_us // 3,
            ended_us=took_us - 50,
            status=200,
            usage=Usage(input_tokens=tokens, output_tokens=output, source="reported"),
            cost_nano_usd=cost,
            price_source="genai-prices",
            provider_request_id="chatcmpl-" + "".join(dice.choices(letters, k=24)),
        )
        user = f"user-{dice.randrange(5_000)}"
        who = Attribution("acme", team, "tickets", f"{team}-app", user, ("env=prod", "region=eu"))
        workflow = dice.choice(("triage", "summarize"))
        opened = OpenedV1(call_id, now_ns, "0123456789abcdef", workflow, "chat", False, who, prices_date="2026-01-01")
        closed = ClosedV1(
            call_id, now_ns + took_us * 1_000, "answered", 200, "small", cost, (attempt,), finish_reason="stop"
        )
        calls.append((opened, closed))
    return calls


async def write_calls(journal: FrameJournal, ready: Ready, count: int, tick: int) -> None:
    """Append `count` Calls, `tick` at a time, and wait until all of them are on the disk."""
    room = asyncio.Semaphore(TICKS_MAX)
    stand = 0

    def written(ok: bool) -> None:
        nonlocal stand
        assert ok, journal.failed
        stand += 1

    def tick_written(ok: bool) -> None:
        written(ok)
        room.release()

    append = journal.append
    done = 0
    while done < count:
        await room.acquire()
        start = done % (len(ready) - tick + 1)
        some = ready[start : start + min(tick, count - done)]
        for opened, closed in some[:-1]:
            append(opened)
            append(closed, written, sync=True)
        append(some[-1][0])
        append(some[-1][1], tick_written, sync=True)
        done += len(some)
        await asyncio.sleep(0)
    for _ in range(TICKS_MAX):
        await room.acquire()
    assert stand == count, (stand, count)


def _process(folder: Path, seed: int, count: int, tick: int, go: Barrier, out: Connection) -> None:
    import uvloop

    ready = ready_calls(max(READY_MAX, tick), seed)
    journal = FrameJournal(folder)
    go.wait()
    start, cpu = time.monotonic(), time.process_time()
    uvloop.run(write_calls(journal, ready, count, tick))
    journal.close()
    out.send((start, time.monotonic(), time.process_time() - cpu))


def measure(processes: int, count: int, tick: int, parent: Path | None) -> Round:
    """Write `count` Calls with this many processes at once, into a folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ingest-", dir=parent))
    context = multiprocessing.get_context("spawn")
    go = context.Barrier(processes)
    each = count // processes
    started = []
    for seed in range(processes):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_process, args=(folder, seed, each, tick, go, theirs))
        process.start()
        theirs.close()
        started.append((process, mine))
    try:
        said = [mine.recv() for _, mine in started]
        size = sum(path.stat().st_size for path in (folder / "calls").glob("*.seg"))
        check(folder)
    finally:
        for process, mine in started:
            process.join(30)
            mine.close()
        shutil.rmtree(folder)
    wall = max(end for _, end, _ in said) - min(start for start, _, _ in said)
    return Round(calls=each * processes, wall_s=wall, cpu_s=sum(cpu for *_, cpu in said), size=size)


def check(folder: Path) -> None:
    """A figure counts only if what was written can be read: the first Calls are there, whole."""
    reader = LedgerReader(folder)
    for _, call in zip(range(1_000), reader.calls(outcomes=False), strict=False):
        assert call.status == "answered", call
        assert call.attempts[0].usage.input_tokens, call


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=200_000, help="Calls in a round, of all processes together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tick", type=int, default=1_000, help="Calls in a loop tick")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; the disk that is measured")
    options = parser.parse_args(arguments)
    for processes in PROCESSES:
        rounds = [measure(processes, options.calls, options.tick, options.folder) for _ in range(options.rounds)]
        rounds.sort(key=lambda one: one.calls_per_s)
        speeds = [one.calls_per_s for one in rounds]
        cpu = statistics.median(one.cpu_s / one.calls for one in rounds) * 1e6
        size = statistics.median(one.size / one.calls for one in rounds)
        print(
            f"{processes} process{'es' if processes > 1 else '  '}: {statistics.median(speeds):>9,.0f} Calls/s "
            f"({speeds[0]:,.0f} to {speeds[-1]:,.0f}), {cpu:.2f} CPU us per Call, {size:.1f} B per Call"
        )


if __name__ == "__main__":
    main()
