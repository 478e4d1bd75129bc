"""Shows what shadowing every Call costs the live path: CPU per request of the gateway's worker, with and without.

`python benchmarks/shadow.py --help`. One gateway with one worker serves a Release; its rollout's shadow stage is paused
and resumed between short runs, so both sides are the same process with the same memory. The shadow's own process runs
beside the worker's core, with upstream and load, and its CPU does not count. Clients pause between their requests, so
that both sides have the same load and the shadow gets its copies; that it does is counted, since copies that nobody
takes would cost nothing. Exit code 1 when the upper end of the ratio's 95 % interval is not below the promise, a
request failed, or too few copies were taken.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import load
import process_tree
from drivetrain.adapters.sqlite import open_control_log
from drivetrain.core.releases import (
    PROMOTED,
    PROPOSED,
    ROLLOUT,
    WHOLE,
    ProposalV1,
    ReleaseV1,
    RolloutEventV1,
    RolloutV1,
    StageV1,
)
from drivetrain.project.load import load as load_project
from drivetrain.project.snapshot import Snapshot
from drivetrain.project.stored import store
from drivetrain.promotion.plan import plan_of
from growth import ratio_of
from machine import Pins, described, free_port, how_to_get, pins, stay_off_the_target, tool
from shapes import SHAPES, WrongAnswer, checked
from targets.target import Running, launch
from upstream import Upstream, upstream

PROMISE = 1.15
"""The upper end of the interval must lie below."""
TAKEN_MIN = 0.95
"""Of the copies; with fewer the figure says little."""
START_S = 30
SWITCH_S = 15
BY = "bench"

PROJECT = """
[project]
name = "shadow"

[ledger]
retention = "{retention}"

[providers.up]
dialect = "openai"
base_url = "http://127.0.0.1:{upstream_port}/v1"

[models."up/bench-model"]
usd_per_million_input = "0.25"
usd_per_million_output = "2"

[workflows.triage]
owner = "bench@example.com"
team = "bench"
use_case = "bench"
route = [ {{ name = "{variant}", model = "up/bench-model" }} ]
"""


class Failed(Exception):
    """The gateway or its shadow did not do what is measured."""


@dataclass(kw_only=True)
class Figures:
    """What the runs have cost, with a shadow (`on`) and without."""

    off_us: list[float] = field(default_factory=list)
    """CPU of the worker per request, of each run."""
    on_us: list[float] = field(default_factory=list)
    off_p99_ms: list[float] = field(default_factory=list)
    on_p99_ms: list[float] = field(default_factory=list)
    requests: int = 0
    failed: int = 0


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
        workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shadow-", dir=options.workdir)))
        up = stack.enter_context(upstream(workdir, pin=pinned.upstream))
        try:
            gateway = Gateway(workdir / "project", up, pinned, options)
            stack.callback(gateway.running.stop)
            figures = _alternate(gateway, wrk, pinned, options)
            copies = gateway.copies()
        except Failed as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
    ratio = ratio_of(figures.off_us, figures.on_us)
    made = copies.get("sent", 0) + copies.get("unsent", 0)
    taken = copies.get("sent", 0) / made if made else 0.0
    for name, cpu_us, p99_ms in (
        ("without a shadow", figures.off_us, figures.off_p99_ms),
        ("with a shadow", figures.on_us, figures.on_p99_ms),
    ):
        print(
            f"{name:>16}: {statistics.median(cpu_us):.1f} us of the worker's CPU per request (median of {len(cpu_us)}, "
            f"{min(cpu_us):.1f}-{max(cpu_us):.1f}), p99 {statistics.median(p99_ms):.1f} ms"
        )
    ends = ", ".join(f"{number:,} {end}" for end, number in sorted(copies.items()))
    print(f"copies: {made:,} of {figures.requests:,} requests, {taken:.1%} taken by the shadow ({ends})")
    kept = ratio.high < PROMISE and not figures.failed and taken >= TAKEN_MIN
    print(
        f"ratio {ratio.mean:.3f}, 95 % interval {ratio.low:.3f}-{ratio.high:.3f}: "
        f"{'below' if ratio.high < PROMISE else 'NOT below'} {PROMISE}"
    )
    if options.json:
        settings = {
            name: getattr(options, name)
            for name in ("runs", "seconds", "connections", "pause_ms", "shape", "retention")
        }
        result = {"machine": described(), "settings": settings, "promise": PROMISE, "kept": kept, "copies": copies}
        options.json.write_text(json.dumps(result | {"ratio": asdict(ratio)} | asdict(figures), indent=1) + "\n")
    return 0 if kept else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="shadow.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=20, help="pairs of runs (default 20)")
    parser.add_argument("--seconds", type=int, default=3, help="length of a run (default 3)")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument(
        "--pause-ms", type=int, default=10, help="between a connection's requests (default 10); 0: as fast as they go"
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="plain", help="what is asked (default plain)")
    parser.add_argument("--retention", default="none", help="of the workflow's payloads (default none)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--workdir", type=Path, help="parent of the working folder (default: the system's)")
    options = parser.parse_args()
    if options.runs < 2:
        parser.error("--runs must be at least 2: one run has no interval")
    return options


# The gateway, its Release, and the rollout's shadow.


class Gateway:
    """One worker that serves Release 1, while Release 2 is shadowed or paused."""

    def __init__(self, folder: Path, up: Upstream, pinned: Pins, options: argparse.Namespace) -> None:
        folder.mkdir()
        self._folder = folder
        self._shape, self._expected = SHAPES[options.shape], up.says(SHAPES[options.shape])
        said = {"upstream_port": up.port, "retention": options.retention}
        first, second = (_stored(folder, PROJECT.format(variant=one, **said)) for one in ("live", "candidate"))
        self._log = open_control_log(first.data_folder, first.keys_folder)
        self._environment = first.environment
        self._before: Snapshot | None = None
        """What the last Release made live, or rolls out."""
        self._run_folder = first.data_folder / "run"
        shadow = StageV1(share_ppm=0, minutes=1e6, shadow_ppm=WHOLE, shadow_nano_usd_per_day=10**15)
        self._release(1, first, None)
        self._release(2, second, RolloutV1(id="0123456789abcdef", stages=(shadow, StageV1(share_ppm=WHOLE, minutes=1))))
        port = free_port()
        program = Path(sys.executable).with_name("drivetrain")
        command = [program, "serve", "--project", folder, "--host", "127.0.0.1", "--port", port, "--workers", 1]
        self._beside = pinned.upstream
        self.running: Running = launch(command, port=port, workdir=folder, pin=pinned.target)
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self._await_answer()
        self.worker = next(pid for pid, line in self._children() if "shadowing" not in line)

    def body(self) -> bytes:
        """Of each request."""
        return self._shape.body("triage")

    def pause(self) -> None:
        """No shadow from here on."""
        self._event("paused")
        self._await(lambda: not self._shadow(), "the shadow did not end")

    def resume(self) -> None:
        """A shadow that takes copies, beside the worker's core."""
        self._event("resumed")
        self._await(self._shadow, "no shadow came")
        pid = self._shadow()
        cores = sorted(os.sched_getaffinity(0))
        for task in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(task), cores)
        sent = self.copies().get("answered", 0)

        def takes() -> bool:
            checked(self._shape, self.url, {}, self.body(), expected=self._expected)
            time.sleep(0.7)  # counters are told twice a second
            return self.copies().get("answered", 0) > sent

        self._await(takes, "the shadow answers nothing")

    def cpu_us(self) -> float:
        """Of the worker's threads so far, by the scheduler's clock: ticks of 10 ms are too coarse for short runs."""
        tasks = Path(f"/proc/{self.worker}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1000

    def copies(self) -> dict[str, int]:
        """What became of copies so far, as the gateway tells it."""
        with urllib.request.urlopen(self.url.replace("/v1/chat/completions", "/metrics"), timeout=10) as answer:
            told = answer.read().decode()
        found = re.findall(r'drivetrain_shadow_copies_total{workflow="triage",end="(\w+)"} (\d+)', told)
        return {end: int(number) for end, number in found}

    def _release(self, number: int, snapshot: Snapshot, rollout: RolloutV1 | None) -> None:
        """Its proposal and its record, as `drivetrain propose` and `promote` write them."""
        before = self._before
        planned = plan_of(
            before, snapshot, release=number - 1, in_force=before.rules if before is not None else None,
            proof=lambda _: "",
        )  # fmt: skip
        proposal = ProposalV1(
            number=number, environment=self._environment, snapshot=snapshot.hash, base=number - 1,
            base_snapshot=before.hash if before is not None else "", by=BY, keys=planned.keys,
            changes=planned.changes, rules=planned.rules,
        )  # fmt: skip
        self._append(PROPOSED, number, proposal)
        release = ReleaseV1(
            number=number, environment=self._environment, way="promote", snapshot=snapshot.hash, previous=number - 1,
            by=BY, proposal=number, proposal_hash=proposal.hash, workflows=tuple(sorted(planned.keys)),
            rollout=rollout,
        )  # fmt: skip
        self._append(PROMOTED, number, release)
        self._before = snapshot

    def _event(self, what: str) -> None:
        self._append(ROLLOUT, 2, RolloutEventV1(environment=self._environment, release=2, event=what, by=BY))

    def _append(self, kind: str, number: int, body: Any) -> None:
        subject = f"{self._environment}/{number}"
        self._log.append(kind=kind, actor=BY, subject=subject, body=msgspec.to_builtins(body))

    def _children(self) -> list[tuple[int, str]]:
        """(process, command line) of the gateway's tree."""
        found = []
        for pid in process_tree.tree(self.running.process.pid)[1:]:
            try:
                found.append((pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()))
            except OSError:
                continue  # it has ended meanwhile
        return found

    def _shadow(self) -> int:
        return next((pid for pid, line in self._children() if "drivetrain.embedded.shadowing" in line), 0)

    def _await_answer(self) -> None:
        def answers() -> bool:
            try:
                checked(self._shape, self.url, {}, self.body(), expected=self._expected)
            except (WrongAnswer, OSError):
                return False
            return True

        self._await(answers, "the gateway does not answer", START_S)

    def _await(self, what: Any, problem: str, wait_s: float = SWITCH_S) -> None:
        end = time.monotonic() + wait_s
        while not what():
            if time.monotonic() > end or self.running.process.poll() is not None:
                raise Failed(f"{problem}; it said:\n{self.running.log_tail()}")
            time.sleep(0.05)


def _stored(folder: Path, settings: str) -> Snapshot:
    (folder / "drivetrain.toml").write_text(settings)
    snapshot = load_project(folder, None)
    store(snapshot, snapshot.snapshots_folder)
    return snapshot


# The load.


def _alternate(gateway: Gateway, wrk: str, pinned: Pins, options: argparse.Namespace) -> Figures:
    """A run without and one with a shadow in turn; which comes first changes with every pair."""
    lua = gateway.running.workdir / "load.lua"
    pause = f"\ndelay = function() return {options.pause_ms} end\n" if options.pause_ms else ""
    lua.write_text(load.script([gateway.body()], {"Content-Type": "application/json"}) + pause)
    figures = Figures()

    def one_run() -> tuple[float, float]:
        before_us = gateway.cpu_us()
        try:
            seen = load.run(
                wrk, gateway.url, lua, connections=options.connections, seconds=options.seconds, pin=pinned.load
            )
        except load.LoadFailed as error:
            raise Failed(str(error)) from error
        cpu_us = gateway.cpu_us() - before_us
        if not seen.requests:
            raise Failed(f"no answer; the gateway said:\n{gateway.running.log_tail()}")
        figures.requests += seen.requests
        figures.failed += sum(seen.errors.values())
        return cpu_us / seen.requests, seen.p99_ms

    one_run()  # what is done once is not counted
    figures = Figures()
    gateway.pause()
    paused = True
    for number in range(options.runs):
        for shadowed in (False, True) if number % 2 else (True, False):
            if shadowed and paused:
                gateway.resume()
            elif not shadowed and not paused:
                gateway.pause()
            paused = not shadowed
            cpu_us, p99_ms = one_run()
            (figures.on_us if shadowed else figures.off_us).append(cpu_us)
            (figures.on_p99_ms if shadowed else figures.off_p99_ms).append(p99_ms)
        pair = f"{figures.off_us[-1]:6.1f} us, {figures.on_us[-1]:6.1f} us"
        print(f"  pair {number + 1:2}: {pair}, ratio {figures.on_us[-1] / figures.off_us[-1]:.3f}", flush=True)
    return figures


if __name__ == "__main__":
    sys.exit(main())
