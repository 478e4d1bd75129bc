"""Changes what is live under an open load, again and again, and shows how long that takes and what requests notice.

`python benchmarks/swap.py --help`. One gateway with a workflow that a rule answers, so that nothing but the gateway
takes time, and a project with as much code to import as `--modules` says. The first change loads a Snapshot beside
the old one; all others are rollbacks. A change lasts from its record in the control log until the last worker serves
it, as the worker itself says; a request belongs to a change where it was under way during it. Owns the load and the
changes, which `drivetrain` makes in processes of its own. Loopback only. Exit code 1 when a promise is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import uvloop

from drivetrain.adapters.sqlite_control_feed import open_control_feed
from drivetrain.core.releases import PROMOTED
from drivetrain.embedded.serving import served_by
from machine import described, free_port
from targets.target import NotReady, Running, launch

WITHIN_S = 1.0
"""Promised of a rollback, in every worker."""
CONNECTIONS = 64
TICK_S = 0.001
"""Between two looks at which requests are due."""
WARM_UP_S = 2.0
APART_S = 1.0
"""Quiet, between two changes."""
LASTS_S = 0.1
"""What belongs to a change after its last worker has it: requests that began before."""
HAVE_S = 30.0
START_S = 30.0
NS = 1e9

PROJECT = """
[project]
name = "swap"

[workflows.said]
owner = "bench@example.com"
team = "bench"
use_case = "bench"
retention = "none"
route = [
  {{ rule = "all", matches = "[?]", answer = "{answer}" }},
  {{ name = "never", model = "up/m" }},
]

[providers.up]
dialect = "openai"
base_url = "http://127.0.0.1:9/v1"

[models."up/m"]
usd_per_million_input = "1"
usd_per_million_output = "1"
"""
BODY = b'{"model":"said","messages":[{"role":"user","content":"?"}]}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


@dataclass(kw_only=True)
class Change:
    """One change of what is live."""

    what: str
    began_s: float
    """When its record was written."""
    took_s: float


@dataclass(kw_only=True)
class Seen:
    """What became of the requests."""

    answers: list[tuple[float, float]] = field(default_factory=list)
    """(when it left, how long it took), in seconds."""
    failed: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 1 when a promise was missed."""
    options = _options(arguments)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swap-")))
        _write(root, "a", options)
        _drivetrain(root, "propose", "-m", "first")
        _drivetrain(root, "promote", "1")
        _write(root, "b", options)
        _drivetrain(root, "propose", "-m", "second")
        port = free_port()
        program = Path(sys.executable).with_name("drivetrain")
        command = [program, "serve", "--project", root, "--host", "127.0.0.1", "--port", port]
        running = launch([*command, "--workers", options.workers], port=port, workdir=root, pin=[])
        stack.callback(running.stop)
        _wait_for(running, root, options.workers)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            seen, changes = runner.run(_run(root, port, options))
    return _told(seen, changes, options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="swap.py", description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=2, help="of the gateway (default 2)")
    parser.add_argument("--rate", type=int, default=1_000, help="requests per second (default 1000)")
    parser.add_argument("--rollbacks", type=int, default=10, help="after the first change (default 10)")
    parser.add_argument("--modules", type=int, default=20, help="of the project's code (default 20)")
    parser.add_argument("--functions", type=int, default=50, help="of each module (default 50)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    return parser.parse_args(arguments)


def _write(root: Path, answer: str, options: argparse.Namespace) -> None:
    (root / "workflows").mkdir(exist_ok=True)
    (root / "drivetrain.toml").write_text(PROJECT.format(answer=answer))
    functions = (f"def f{number}(a, b={number}):\n    return [a + b, {number}]" for number in range(options.functions))
    code = "\n\n".join(functions) + "\n"
    for number in range(options.modules):
        (root / "workflows" / f"code{number}.py").write_text(code)


def _drivetrain(root: Path, *arguments: str) -> None:
    program = Path(sys.executable).with_name("drivetrain")
    command = ["nice", "-n", "19", str(program), *arguments, "--project", str(root)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise NotReady(f"`drivetrain {' '.join(arguments)}` failed:\n{ended.stdout}{ended.stderr}")


def _wait_for(running: Running, root: Path, workers: int) -> None:
    end = time.monotonic() + START_S
    while len(served_by(_run_folder(root))) < workers:
        if running.process.poll() is not None or time.monotonic() > end:
            raise NotReady(f"the gateway does not serve; it said:\n{running.log_tail()}")
        time.sleep(0.05)


async def _run(root: Path, port: int, options: argparse.Namespace) -> tuple[Seen, list[Change]]:
    seen = Seen()
    load = Load(port, seen)
    offering = asyncio.ensure_future(load.offer(options.rate))
    await asyncio.sleep(WARM_UP_S)
    seen.answers.clear()
    changes = [await asyncio.to_thread(_change, root, options.workers, "load", ("promote", "2"))]
    for turn in range(options.rollbacks):
        await asyncio.sleep(APART_S)
        back = ("rollback", "--to", str(1 + turn % 2), "--reason", "a benchmark")
        changes.append(await asyncio.to_thread(_change, root, options.workers, "rollback", back))
    await asyncio.sleep(APART_S)
    load.stop = True
    await offering
    return seen, changes


def _change(root: Path, workers: int, what: str, arguments: Sequence[str]) -> Change:
    _drivetrain(root, *arguments)
    feed = open_control_feed(root / ".drivetrain" / "data")
    record = feed.read([PROMOTED])[-1]
    feed.close()
    number = int(record.subject.rpartition("/")[2])
    end = time.monotonic() + HAVE_S
    while True:
        served = served_by(_run_folder(root))
        if len(served) == workers and all(one.release == number for one in served):
            last_ns = max(one.at_ns for one in served)
            return Change(what=what, began_s=record.at_ns / NS, took_s=(last_ns - record.at_ns) / NS)
        if time.monotonic() > end:
            raise NotReady(f"Release {number} is not served by every worker: {served}")
        time.sleep(0.02)


def _run_folder(root: Path) -> Path:
    return root / ".drivetrain" / "data" / "run"


def _told(seen: Seen, changes: list[Change], options: argparse.Namespace) -> int:
    spans = {
        what: [(one.began_s, one.began_s + one.took_s + LASTS_S) for one in changes if one.what == what]
        for what in ("load", "rollback")
    }
    figures: dict[str, list[float]] = {"quiet": [], "load": [], "rollback": []}
    for left_s, took_s in seen.answers:
        where = next(
            (
                what
                for what, during in spans.items()
                if any(left_s <= end and left_s + took_s >= begin for begin, end in during)
            ),
            "quiet",
        )
        figures[where].append(took_s * 1e3)
    print(
        f"{options.workers} workers, {options.rate} requests/s, "
        f"{options.modules} modules of {options.functions} functions"
    )
    print(f"{len(seen.answers)} answered, {seen.failed} failed")
    for what, took in figures.items():
        ordered = sorted(took) or [0.0]
        shown = ", ".join(f"p{share:g} {_share(ordered, share / 100):.2f}" for share in (50, 99, 99.9))
        print(f"{what:>9}: {len(took):>6} answers, {shown}, max {ordered[-1]:.2f} ms")
    back = sorted(one.took_s for one in changes if one.what == "rollback")
    print(f"first change, with loading: {changes[0].took_s:.2f} s")
    print(f"{len(back)} rollbacks: median {_share(back, 0.5):.2f} s, longest {back[-1]:.2f} s")
    if options.json:
        told = {"machine": described(), "changes": [asdict(one) for one in changes], "failed": seen.failed}
        told["answers_ms"] = figures
        options.json.write_text(json.dumps(told) + "\n")
    return 1 if seen.failed or back[-1] > WITHIN_S else 0


def _share(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Load:
    """Requests at a steady rate: each leaves when its time has come, whatever became of those before."""

    def __init__(self, port: int, seen: Seen) -> None:
        self.stop = False
        self.seen = seen
        self.idle: deque[Connection] = deque()
        self._port = port
        self._made = 0

    async def offer(self, rate: int) -> None:
        """Until `stop`; then the last answers are awaited."""
        for _ in range(CONNECTIONS):
            await self._connect()
        began, sent = time.perf_counter(), 0
        while not self.stop:
            due = int((time.perf_counter() - began) * rate) + 1
            while sent < due:
                if not self.idle:
                    await self._connect()
                self.idle.popleft().send()
                sent += 1
            await asyncio.sleep(TICK_S)
        end = time.monotonic() + 3.0
        while len(self.idle) < self._made and time.monotonic() < end:
            await asyncio.sleep(TICK_S)
        self.seen.failed += self._made - len(self.idle)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port)
        self._made += 1


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._left_s = 0.0
        self._began_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._load.idle.append(self)

    def send(self) -> None:
        """Send one request."""
        self._left_s, self._began_s = time.time(), time.perf_counter()
        self._transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        place = head.lower().index(b"content-length:") + 15
        if len(body) < int(head[place:].split(b"\r\n", 1)[0]):
            return
        self._buffer = b""
        if head[9:12] == b"200":
            self._load.seen.answers.append((self._left_s, time.perf_counter() - self._began_s))
        else:
            self._load.seen.failed += 1
        self._load.idle.append(self)


if __name__ == "__main__":
    raise SystemExit(main())
