"""Measures what one request costs in nginx, Drivetrain and its peers, side by side, and prints the table.

`python benchmarks/run.py --help`. Owns the order of the measurement; the parts are `upstream.py`, `targets/`,
`load.py`, `process_tree.py` and `report.py`. Called by `make bench`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import load
import process_tree
from machine import Pins, described, first_line, free_port, how_to_get, pins, stay_off_the_target, tool
from report import Cell, Result, Sample, TargetFacts, rendered, write_results
from shapes import SHAPES, Shape, WrongAnswer, checked
from targets import TARGETS, NotReady, Running, Target
from upstream import Upstream, upstream

START_LIMIT_S = 90
"""A target that has not answered by then is invalid. LiteLLM needs several seconds on one core."""

WARM_UP_S = 1

ANSWERS_PER_CONNECTION = 20
"""A window is lengthened until it holds this many answers per connection, because what is in flight at its end is paid
for but not counted: with 20 the error is at most 5 %."""

LONGEST_WINDOW = 5
"""... but to no more than this many times `--seconds`."""

LEAST_ANSWER = 0.9
"""Share of the verified answer's size that the answers under load must have on average."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 1 when a chosen target gave an invalid result."""
    options = _options(arguments)
    wrk = tool("wrk")
    if not wrk:
        print(how_to_get("wrk"), file=sys.stderr)
        return 2
    chosen = _usable(options.targets)
    if not chosen:
        return 2
    pinned = pins()
    stay_off_the_target()
    cells: dict[tuple[str, str, int], Cell] = {}
    facts = {
        target.name: TargetFacts(name=target.name, told=target.told, version=target.version()) for target in chosen
    }
    with ExitStack() as stack:
        workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=options.workdir)))
        up = stack.enter_context(upstream(workdir, pin=pinned.upstream, event_gap_us=options.event_gap_us))
        for number in range(options.rounds):
            turn = number % len(chosen)
            folder = workdir / f"round{number}"
            folder.mkdir()
            print(f"round {number + 1} of {options.rounds}", flush=True)
            _one_round(chosen[turn:] + chosen[:turn], up, wrk, pinned, folder, options, cells, facts)
    result = Result(
        machine=described(),
        tools={
            "wrk": first_line(wrk, "-v"),
            "gcc": first_line("gcc", "--version"),
            "upstream": up.made_of,
            "pinning": pinned.told,
        },
        command=shlex.join(["python", "benchmarks/run.py", *(sys.argv[1:] if arguments is None else arguments)]),
        settings=f"{options.rounds} rounds of {options.seconds:g} s after {WARM_UP_S} s of warm-up",
        event_gap_us=options.event_gap_us,
        targets=list(facts.values()),
        cells=list(cells.values()),
    )
    print("\n" + rendered(result))
    if options.json:
        options.json.write_text(json.dumps(result.as_json(), indent=1) + "\n")
    if options.write_results:
        print(f"written: {write_results(result)}")
    return 1 if any(cell.invalid for cell in result.cells) or any(fact.invalid for fact in result.targets) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3, help="length of one measurement (whole seconds; default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="times each is measured; the median counts (default 3)")
    parser.add_argument("--targets", default=",".join(TARGETS), help=f"of {','.join(TARGETS)} (default all)")
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"of {','.join(SHAPES)} (default all)")
    parser.add_argument("--connections", default="1,16,64", help="default 1,16,64")
    parser.add_argument(
        "--event-gap-us", type=int, default=0, help="least time between two events of a stream (default 0)"
    )
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--write-results", action="store_true", help="write benchmarks/RESULTS.md")
    parser.add_argument("--workdir", type=Path, help="parent of the working folder (default: the system's)")
    options = parser.parse_args(arguments)
    for option, known in (("targets", TARGETS), ("shapes", SHAPES)):
        names = getattr(options, option).split(",")
        if unknown := [name for name in names if name not in known]:
            parser.error(f"unknown {option}: {', '.join(unknown)}; known are {', '.join(known)}")
        setattr(options, option, [known[name] for name in names])
    options.connections = [int(number) for number in options.connections.split(",")]
    return options


def _usable(targets: Sequence[Target]) -> list[Target]:
    usable = []
    for target in targets:
        if why := target.missing():
            print(f"skipping {target.name}: {why}")
        else:
            usable.append(target)
    return usable


def _one_round(
    targets: Sequence[Target],
    up: Upstream,
    wrk: str,
    pinned: Pins,
    folder: Path,
    options: argparse.Namespace,
    cells: dict[tuple[str, str, int], Cell],
    facts: dict[str, TargetFacts],
) -> None:
    """Starts every target, measures each cell in turn over all of them, notes their memory, and stops them."""
    running: dict[str, Running] = {}
    with ExitStack() as stack:
        for target in targets:
            if facts[target.name].invalid:
                continue
            own = folder / target.name
            own.mkdir()
            began = time.monotonic()
            started = target.start(free_port(), up.port, own, pinned.target)
            stack.callback(started.stop)
            try:
                first_answer(target, started, up)
            except (WrongAnswer, NotReady, OSError, http.client.HTTPException) as error:
                facts[target.name].invalid = f"no right first answer: {error!r}"
                print(f"  {target.name}: {facts[target.name].invalid}\n{started.log_tail()}")
                continue
            facts[target.name].start_s.append(time.monotonic() - began)
            running[target.name] = started
        for shape in options.shapes:
            for connections in options.connections:
                for target in targets:
                    if target.name in running:
                        cell = cells.setdefault(
                            (target.name, shape.name, connections),
                            Cell(target=target.name, shape=shape.name, connections=connections, events=shape.events),
                        )
                        _measure(cell, target, running[target.name], up, shape, wrk, pinned, options.seconds)
        for name, started in running.items():
            facts[name].memory.append(process_tree.memory(started.process.pid))


def first_answer(target: Target, running: Running, up: Upstream) -> None:
    """Returns with the first right answer.

    Raises: WrongAnswer and what `ask` raises, when there is none in time or the process ended.
    """
    shape = SHAPES["plain"]
    expected, body = up.says(shape), shape.body(target.model)
    end = time.monotonic() + START_LIMIT_S
    while True:
        try:
            checked(shape, target.url(running, shape), target.headers(running, up.port), body, expected=expected)
            return
        except (WrongAnswer, NotReady, OSError, http.client.HTTPException):
            if time.monotonic() > end or running.process.poll() is not None:
                raise
            time.sleep(0.005)


def _measure(
    cell: Cell, target: Target, running: Running, up: Upstream, shape: Shape, wrk: str, pinned: Pins, seconds: float
) -> None:
    """Adds one Sample to the cell, or the reason why it is invalid."""
    if cell.invalid:
        return
    url, headers, body = target.url(running, shape), target.headers(running, up.port), shape.body(target.model)
    lua = running.workdir / f"{shape.name}.lua"
    lua.write_text(load.script([body], {"Content-Type": "application/json", **headers}))
    try:
        size = checked(shape, url, headers, body, expected=up.says(shape))
        warm = load.run(wrk, url, lua, connections=cell.connections, seconds=WARM_UP_S, pin=pinned.load)
        wanted = ANSWERS_PER_CONNECTION * cell.connections / max(warm.per_second, 0.1)
        seconds = min(max(seconds, wanted), LONGEST_WINDOW * seconds)
        before = process_tree.cpu_us(running.process.pid)
        seen = load.run(wrk, url, lua, connections=cell.connections, seconds=seconds, pin=pinned.load)
        spent = process_tree.cpu_us(running.process.pid) - before
    except (WrongAnswer, load.LoadFailed, OSError, http.client.HTTPException) as error:
        cell.invalid = f"{type(error).__name__}: {error}"
        print(f"  {cell.told()}", flush=True)
        return
    if seen.errors or not seen.requests:
        cell.invalid = f"{seen.requests} answers, errors {seen.errors}"
    elif seen.answer_bytes / seen.requests < LEAST_ANSWER * size:
        cell.invalid = f"answers of {seen.answer_bytes / seen.requests:.0f} B under load, {size} B when checked"
    else:
        cell.samples.append(
            Sample(
                cpu_us=spent / seen.requests,
                cpu_share=spent / (seen.seconds * 1e6),
                requests=seen.requests,
                per_second=seen.per_second,
                p50_ms=seen.p50_ms,
                p99_ms=seen.p99_ms,
            )
        )
    print(f"  {cell.told()}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
