"""Sends a million requests to Drivetrain and watches whether its memory grows.

Plain requests and streams in turn through wrk, and beside them streams whose client hangs up in the middle.
`python benchmarks/soak.py --help`. Exit code 1 when an answer failed or a worker was replaced.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import load
import process_tree
from machine import free_port, how_to_get, pins, stay_off_the_target, tool
from run import first_answer
from shapes import SHAPES
from targets import Drivetrain
from upstream import upstream

SETTLE = 0.1
"""Share of the requests after which the first memory figure is taken: caches and pools fill before."""

SLICE_S = 10
"""wrk runs for a time and not for a number, so the load comes in slices of this length."""

ABORT_EVERY_S = 0.02
"""Pause between two hung-up streams."""

SAMPLE_EVERY_S = 1


@dataclass(kw_only=True)
class Sampled:
    """The memory of one process over the run."""

    command: str
    """Name of its executable."""
    requests: list[int] = field(default_factory=list)
    """Requests sent before each sample."""
    rss_mb: list[float] = field(default_factory=list)
    """Resident set at each sample."""

    def slope(self) -> float:
        """Growth in MiB per million requests by least squares, once settled; 0 with too few samples."""
        start = next((place for place, sent in enumerate(self.requests) if sent >= SETTLE * self.requests[-1]), 0)
        sent, rss = self.requests[start:], self.rss_mb[start:]
        if len(set(sent)) < 2:
            return 0.0
        mean_sent, mean_rss = sum(sent) / len(sent), sum(rss) / len(rss)
        rise = sum((x - mean_sent) * (y - mean_rss) for x, y in zip(sent, rss, strict=True))
        return rise / sum((x - mean_sent) ** 2 for x in sent) * 1e6


class Aborter(threading.Thread):
    """Opens streams and hangs up after the first bytes, again and again."""

    def __init__(self, url: str, headers: dict[str, str], body: bytes) -> None:
        super().__init__(daemon=True)
        parts = urlsplit(url)
        self.address = (parts.hostname or "", parts.port or 80)
        lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.request = "\r\n".join([*lines, "", ""]).encode() + body
        self.aborted = 0
        self.failed = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(ABORT_EVERY_S):
            try:
                with socket.create_connection(self.address, timeout=10) as connection:
                    connection.sendall(self.request)
                    if connection.recv(512).startswith(b"HTTP/1.1 200"):
                        self.aborted += 1
                    else:
                        self.failed += 1
            except OSError:
                self.failed += 1


class Sampler(threading.Thread):
    """Notes the memory of every process of a tree once a second."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.sent = 0
        self.rate = 0.0
        self.since = time.monotonic()
        self.processes: dict[int, Sampled] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        while True:
            sent = self.sent + int(self.rate * (time.monotonic() - self.since))
            for process in process_tree.memory(self.root):
                sampled = self.processes.setdefault(process.pid, Sampled(command=process.command))
                sampled.requests.append(sent)
                sampled.rss_mb.append(process.rss_mb)
            if self.ended.wait(SAMPLE_EVERY_S):
                return

    def advance(self, seen: load.Load) -> None:
        """Counts a finished slice; the next one is assumed to go at its rate."""
        self.sent += seen.requests
        self.rate, self.since = seen.per_second, time.monotonic()


def main() -> int:
    """Runs the soak and prints the table."""
    options = _options()
    wrk = tool("wrk")
    target = Drivetrain(retention=options.retention, workers=options.workers)
    if why := target.missing() or (None if wrk else how_to_get("wrk")):
        print(why, file=sys.stderr)
        return 2
    assert wrk
    pinned = pins()
    if options.workers == 1:
        stay_off_the_target()
    errors: dict[str, int] = {}
    with ExitStack() as stack:
        workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-", dir=options.workdir)))
        up = stack.enter_context(upstream(workdir, pin=pinned.upstream))
        own = workdir / "target"
        own.mkdir()
        pin: Sequence[str] = pinned.target if options.workers == 1 else ()
        running = target.start(free_port(), up.port, own, pin)
        stack.callback(running.stop)
        first_answer(target, running, up)
        plain, stream = SHAPES["plain"], SHAPES["stream"]
        headers = {"Content-Type": "application/json", **target.headers(running, up.port)}
        bodies = [plain.body(target.model)] * (options.stream_every - 1) + [stream.body(target.model)]
        lua = own / "soak.lua"
        lua.write_text(load.script(bodies, headers))
        url = target.url(running, plain)
        sampler, aborter = Sampler(running.process.pid), Aborter(url, headers, stream.body(target.model))
        sampler.start()
        aborter.start()
        while sampler.sent < options.requests:
            seen = load.run(wrk, url, lua, connections=options.connections, seconds=SLICE_S, pin=pinned.load)
            sampler.advance(seen)
            for kind, count in seen.errors.items():
                errors[kind] = errors.get(kind, 0) + count
            print(
                f"  {sampler.sent:,} requests, {seen.per_second:,.0f}/s, {aborter.aborted} aborted streams", flush=True
            )
            if not seen.requests:
                errors["no answers in a slice"] = 1
                break
        for thread in (aborter, sampler):
            thread.ended.set()
            thread.join()
    return _report(options, sampler, aborter, errors)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=1_000_000, help="requests through wrk (default 1,000,000)")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--stream-every", type=int, default=10, help="every n-th request is a stream (default 10)")
    parser.add_argument("--retention", choices=("none", "full"), default="none")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    parser.add_argument("--workdir", type=Path, help="parent of the working folder (default: the system's)")
    return parser.parse_args()


def _report(options: argparse.Namespace, sampler: Sampler, aborter: Aborter, errors: dict[str, int]) -> int:
    print(f"\n{sampler.sent:,} requests, one in {options.stream_every} a stream; {aborter.aborted} streams aborted")
    print(f"{'pid':>8}  {'process':16} {'first MB':>9} {'settled MB':>10} {'last MB':>9} {'MB per million':>15}")
    short_lived = 0
    for pid, sampled in sampler.processes.items():
        settled = next((place for place, sent in enumerate(sampled.requests) if sent >= SETTLE * sampler.sent), -1)
        first, middle, last = sampled.rss_mb[0], sampled.rss_mb[settled], sampled.rss_mb[-1]
        print(f"{pid:>8}  {sampled.command:16} {first:9.1f} {middle:10.1f} {last:9.1f} {sampled.slope():15.2f}")
        short_lived += sampled.requests[-1] < 0.9 * sampler.sent or sampled.requests[0] > SETTLE * sampler.sent
    if options.json:
        facts = {"requests": sampler.sent, "aborted": aborter.aborted, "errors": errors}
        listed = {str(pid): asdict(sampled) for pid, sampled in sampler.processes.items()}
        options.json.write_text(json.dumps(facts | {"processes": listed}, indent=1) + "\n")
    failed = bool(errors) or aborter.failed > 0 or short_lived > 0
    if failed:
        failures = f"errors {errors}, aborts before an answer {aborter.failed}, processes replaced {short_lived}"
        print(f"FAILED: {failures}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
