"""Shows how much more a request costs where a project has 10,000 keys, budgets and workflows instead of 10.

`python benchmarks/growth.py --help`. Two gateways with one worker each stand side by side, before the same upstream.
Every request falls under three budgets in both: its key's own, its workflow's and the project's. A client is a key that
calls its own workflow, and each request comes from one of all clients, drawn with equal chances from one seed. Not any
key with any workflow: nobody has ten thousand applications that each call ten thousand others' workflows.
Short runs alternate between the two; the figure is the ratio of their CPU per request over the pairs. Exit code 1 when
the upper end of its 95 % interval is not below the promise, or a request was refused.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import load
import process_tree
from machine import Pins, described, free_port, how_to_get, pins, stay_off_the_target, tool
from shapes import SHAPES, WrongAnswer, checked
from targets.target import Running, launch
from upstream import Upstream, upstream

PROMISE = 1.15
"""The upper end of the interval must lie below."""
START_S = 90
WARM_UP_TURNS = 5
"""Before what counts each client is drawn this many times on average: 99 in 100 were met, and most budgets leased."""
WARM_UP_S = 3
"""At least as long."""
WARM_UP_S_MAX = 120
NAME_DIGITS = 5
"""All names are as long, so that all requests are."""
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t for 97.5 %, 1 to 30 degrees of freedom: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2."""

PROJECT = """
[project]
name = "growth"

[providers.up]
dialect = "openai"
base_url = "http://127.0.0.1:{upstream_port}/v1"

[models."up/bench-model"]
usd_per_million_input = "0.25"
usd_per_million_output = "2"
"""

BUDGETS = """
[limits.project-month]
scope = "project"
usd = "1_000_000"
per = "month"

[limits.workflow-day]
scope = "each workflow"
usd = "100_000"
per = "day"
"""

PART = """
[keys.k{number}]
secret = "file:keys/k{number}"
team = "bench"

[workflows.w{number}]
owner = "bench@example.com"
team = "bench"
use_case = "bench"
retention = "none"
route = [ {{ name = "only", model = "up/bench-model" }} ]
"""

BUDGET = """
[limits.key-k{number}]
scope = "key:k{number}"
usd = "100_000"
per = "day"
"""

LUA = """
math.randomseed({seed})
local last, format, random = {parts} - 1, string.format, math.random
local before, middle, after = {before}, {middle}, {after}
request = function()
  local client = random(0, last)
  return format("%s%0{digits}d%s%0{digits}d%s", before, client, middle, client, after)
end
"""
"""One of all clients, drawn for each request: its key and its workflow."""


class Failed(Exception):
    """A gateway did not start, or did not answer."""


@dataclass(kw_only=True)
class Side:
    """One of the two gateways, and what it cost."""

    parts: int
    """Keys, budgets of keys, and workflows that its project has."""
    running: Running
    start_s: float
    """From its start to its first right answer: reading the project, and storing it for the first time."""
    warm_mb: float = 0.0
    """Resident memory of its processes after the warm-up."""
    last_mb: float = 0.0
    cpu_us: list[float] = field(default_factory=list)
    """Per request, of each run."""
    requests: int = 0
    warm_refused: int = 0
    """Answers in the warm-up that were no 2xx: Calls whose budgets were not leased in time."""
    refused: int = 0
    """The same in the runs that count; there must be none."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.running.port}/v1/chat/completions"

    @property
    def rss_mb(self) -> float:
        """Resident memory of its processes now."""
        return sum(one.rss_mb for one in process_tree.memory(self.running.process.pid))

    @property
    def facts(self) -> dict[str, object]:
        """For a result."""
        names = ("parts", "start_s", "warm_mb", "last_mb", "cpu_us", "requests", "warm_refused", "refused")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A mean ratio and its 95 % interval."""

    mean: float
    low: float
    high: float


def main() -> int:
    """Measures and prints; 1 when the promise was missed."""
    options = _options()
    wrk = tool("wrk")
    if not wrk:
        print(how_to_get("wrk"), file=sys.stderr)
        return 2
    pinned = pins()
    stay_off_the_target()
    with ExitStack() as stack:
        workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="growth-", dir=options.workdir)))
        up = stack.enter_context(upstream(workdir, pin=pinned.upstream))
        try:
            sides = [_started(parts, up, workdir, pinned, stack, options) for parts in (options.few, options.many)]
            for side in sides:
                _warm_up(side, wrk, pinned, options)
            _alternate(sides, wrk, pinned, options)
        except Failed as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
        for side in sides:
            side.last_mb = side.rss_mb
    few, many = sides
    ratio = ratio_of(few.cpu_us, many.cpu_us)
    for side in sides:
        print(f"{side.parts:>6,} keys, budgets and workflows: {_told(side)}")
    kept = ratio.high < PROMISE and not any(side.refused for side in sides)
    print(
        f"ratio {ratio.mean:.3f}, 95 % interval {ratio.low:.3f}-{ratio.high:.3f}: "
        f"{'below' if ratio.high < PROMISE else 'NOT below'} {PROMISE}"
    )
    if options.json:
        result = {"machine": described(), "settings": _settings(options), "promise": PROMISE, "kept": kept}
        sides_told = {"few": few.facts, "many": many.facts}
        options.json.write_text(json.dumps(result | {"ratio": asdict(ratio)} | sides_told, indent=1) + "\n")
    return 0 if kept else 1


def _told(side: Side) -> str:
    return (
        f"{statistics.median(side.cpu_us):.1f} us of CPU per request (median of {len(side.cpu_us)}, "
        f"{min(side.cpu_us):.1f}-{max(side.cpu_us):.1f}), {side.requests:,} requests, {side.refused} refused "
        f"({side.warm_refused} in the warm-up), start {side.start_s:.1f} s, memory {side.warm_mb:.0f} MB warm, "
        f"{side.last_mb:.0f} MB at the end"
    )


def ratio_of(few: Sequence[float], many: Sequence[float]) -> Ratio:
    """The geometric mean of the ratios `many[i] / few[i]`, with the 95 % t-interval of a mean of their logarithms.

    Logarithms, because ratios multiply and their errors are skewed. Shapes: (runs,), at least two.
    Source: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.2, mean -/+ t(0.975, n - 1) s / sqrt(n).
    """
    logs = [math.log(after / before) for before, after in zip(few, many, strict=True)]
    mean = statistics.fmean(logs)
    t = T_975[min(len(logs) - 1, len(T_975)) - 1]
    half = t * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(mean=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="growth.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--few", type=int, default=10, help="keys, budgets and workflows of the one (default 10)")
    parser.add_argument("--many", type=int, default=10_000, help="and of the other (default 10,000)")
    parser.add_argument("--runs", type=int, default=20, help="runs of each (default 20)")
    parser.add_argument("--seconds", type=int, default=1, help="length of a run (default 1)")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument(
        "--no-budgets", action="store_true", help="keys and workflows only: what is left is the budgets"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the drawn clients (default 1)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--workdir", type=Path, help="parent of the working folder (default: the system's)")
    options = parser.parse_args()
    if options.runs < 2:
        parser.error("--runs must be at least 2: one run has no interval")
    if max(options.few, options.many) > 10**NAME_DIGITS:
        parser.error(f"at most {10**NAME_DIGITS:,} keys, budgets and workflows")
    return options


def _settings(options: argparse.Namespace) -> dict[str, object]:
    return {
        name: getattr(options, name) for name in ("few", "many", "runs", "seconds", "connections", "no_budgets", "seed")
    }


# The two gateways.


def _started(
    parts: int, up: Upstream, workdir: Path, pinned: Pins, stack: ExitStack, options: argparse.Namespace
) -> Side:
    folder = workdir / str(parts)
    folder.mkdir()
    _write_project(folder, parts, up.port, limited=not options.no_budgets)
    port = free_port()
    program = Path(sys.executable).with_name("drivetrain")
    command = [program, "serve", "--project", folder, "--host", "127.0.0.1", "--port", port, "--workers", 1]
    began = time.monotonic()
    running = launch(command, port=port, workdir=folder, pin=pinned.target)
    stack.callback(running.stop)
    side = Side(parts=parts, running=running, start_s=0.0)
    shape, expected = SHAPES["plain"], up.says(SHAPES["plain"])
    headers = {"Authorization": f"Bearer {_key(0)}"}
    while True:
        try:
            checked(shape, side.url, headers, shape.body(_workflow(0)), expected=expected)
            break
        except (WrongAnswer, OSError) as error:
            if time.monotonic() - began > START_S or running.process.poll() is not None:
                raise Failed(f"the gateway of {parts}: {error}; it said:\n{running.log_tail()}") from error
            time.sleep(0.02)
    side.start_s = time.monotonic() - began
    print(f"{parts:,} keys, budgets and workflows: first answer after {side.start_s:.1f} s", flush=True)
    return side


def _write_project(folder: Path, parts: int, upstream_port: int, *, limited: bool) -> None:
    (folder / "keys").mkdir()
    written = [PROJECT.format(upstream_port=upstream_port), BUDGETS if limited else ""]
    part = PART + (BUDGET if limited else "")
    for number in range(parts):
        key = folder / "keys" / _key_name(number)
        key.write_text(_key(number))
        key.chmod(0o600)
        written.append(part.format(number=f"{number:0{NAME_DIGITS}}"))
    (folder / "drivetrain.toml").write_text("".join(written))


def _key_name(number: int) -> str:
    return f"k{number:0{NAME_DIGITS}}"


def _key(number: int) -> str:
    return f"sk-bench-0123456789abcdef0123456789a-{number:0{NAME_DIGITS}}"


def _workflow(number: int) -> str:
    return f"w{number:0{NAME_DIGITS}}"


# The load.


def _warm_up(side: Side, wrk: str, pinned: Pins, options: argparse.Namespace) -> None:
    began, sent, number = time.monotonic(), 0, 0
    while sent < WARM_UP_TURNS * side.parts or number < WARM_UP_S:
        number += 1
        seen = _one_run(side, wrk, pinned, options, seed=options.seed - number)
        sent += seen.requests
        side.warm_refused += seen.errors.get("status", 0)
        if time.monotonic() - began > WARM_UP_S_MAX:
            raise Failed(f"the gateway of {side.parts} answered only {sent:,} requests in {WARM_UP_S_MAX} s")
    side.warm_mb = side.rss_mb


def _alternate(sides: list[Side], wrk: str, pinned: Pins, options: argparse.Namespace) -> None:
    """One run of each in turn; who is first changes with every pair."""
    for number in range(options.runs):
        for side in sides if number % 2 else reversed(sides):
            before_us = process_tree.cpu_us(side.running.process.pid)
            seen = _one_run(side, wrk, pinned, options, seed=options.seed + number)
            cpu_us = process_tree.cpu_us(side.running.process.pid) - before_us
            side.cpu_us.append(cpu_us / seen.requests)
            side.requests += seen.requests
            side.refused += seen.errors.get("status", 0)
        few, many = sides
        pair = f"{few.cpu_us[-1]:6.1f} us, {many.cpu_us[-1]:6.1f} us, ratio {many.cpu_us[-1] / few.cpu_us[-1]:.3f}"
        print(f"  pair {number + 1:2}: {pair}", flush=True)


def _one_run(side: Side, wrk: str, pinned: Pins, options: argparse.Namespace, *, seed: int) -> load.Load:
    """Raises: Failed where an answer did not come."""
    lua = side.running.workdir / "load.lua"
    lua.write_text(_script(side, seed))
    try:
        seen = load.run(wrk, side.url, lua, connections=options.connections, seconds=options.seconds, pin=pinned.load)
    except load.LoadFailed as error:
        raise Failed(str(error)) from error
    if not seen.requests or seen.errors.keys() - {"status"}:
        raise Failed(f"the gateway of {side.parts}: {seen.errors or 'no answer'}; it said:\n{side.running.log_tail()}")
    return seen


def _script(side: Side, seed: int) -> str:
    """Lua that makes each request whole: a client's number in its key and its workflow, between what never changes."""
    body = SHAPES["plain"].body(_workflow(0))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{side.running.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer {_key(0)}\r\n\r\n"
    )
    number = f"{0:0{NAME_DIGITS}}"
    before, rest = head.split(f"{number}\r\n\r\n")
    assert not rest
    chat, after = body.decode().split(_workflow(0))
    middle = f"\r\n\r\n{chat}{_workflow(0).removesuffix(number)}"
    lua = LUA.format(
        seed=seed, parts=side.parts, digits=NAME_DIGITS, before=json.dumps(before), middle=json.dumps(middle),
        after=json.dumps(after),
    )  # fmt: skip
    return load.script([b""], {}) + lua


if __name__ == "__main__":
    sys.exit(main())
