"""How soon a planted regression is rolled back, and how often a canary that is no worse is: in virtual time.

`python benchmarks/canary.py --help`. Requests come at random, 50 a second, from users by Zipf's law; the coin gives one
user of five to the candidate, as a gateway's hash does. Users differ: some fail often, some are slow, some are dear.
Each rollout has the three default guards. A planted run is the stage at 20 % of three that share the rollout's level.
A null canary's candidate is as live is in every respect; its one stage, ten minutes at 20 %, may err with all of it.
They are of several crowds: what holds at every look for one kind of users must hold for others, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

from drivetrain.core.calls import Attribution, Call
from drivetrain.core.releases import WHOLE, ActiveRollout, GuardV1, RolloutV1, StageV1
from drivetrain.core.rollouts import DEFAULT_GUARDS, EVIDENCE_LEVEL
from drivetrain.promotion.watching import Watch
from drivetrain.statistics.intervals import clopper_pearson
from machine import described

NS = 1_000_000_000
SHARES = (0.05, 0.2, 0.5)
STAGE = 1
"""Of the planted runs: a share of 20 %."""
WITHIN_S, WRONG_MAX = 60.0, 0.05
"""What is promised: a planted regression is rolled back so soon, and at most so many null canaries are."""
PLANTED_MAX_S = 600.0
LIVE, CANDIDATE = "a" * 16, "b" * 16
ERROR_RATES = (0.005, 0.01, 0.02, 0.05)
"""Of the live arm in null canaries, one after the other from seed to seed."""


@dataclass(frozen=True, kw_only=True)
class Regression:
    """What the candidate does worse."""

    name: str
    promised: bool
    """Whether it is one of those that must be rolled back in time."""
    failures: float = 0.0
    """Points of errors more."""
    slower: float = 1.0
    """Times as slow, where a Call is among the slowest."""
    of_slowest: float = 1.0
    """Share of the Calls of each user that this is."""
    stalled: float = 0.0
    """Share of Calls, any ones, that take `slower` times as long as the live p99."""
    dearer: float = 1.0
    live_errors: float = 0.01
    """What the live arm fails at anyway."""


PLANTED = (
    Regression(name="errors +10 points", promised=True, failures=0.10),
    Regression(name="the same, live at 5 %", promised=False, failures=0.10, live_errors=0.05),
    Regression(name="all latencies x 3", promised=True, slower=3.0),
    Regression(name="slowest 5 % x 3", promised=False, slower=3.0, of_slowest=0.05),
    Regression(name="slowest 1 % x 3", promised=False, slower=3.0, of_slowest=0.01),
    Regression(name="2 % stall at p99 x 3", promised=False, slower=3.0, stalled=0.02),
    Regression(name="errors +2 points", promised=False, failures=0.02),
    Regression(name="cost x 1.5", promised=False, dearer=1.5),
)


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Who calls, where the arm makes no difference."""

    name: str
    unequal: float = 1.0
    """Power of the rank that the Calls of a user fall with."""
    failing: float = 1.0
    """Shape of the users' own error rates: the smaller, the fewer users have all the errors."""
    slow: float = 0.3
    """Deviation of the logarithm of how slow users are."""
    incident: float = 0.0
    """Points of errors more for everybody, and latencies 2.5 times as long, in five seconds of each minute."""
    rate: float = 1.0
    """Times the requests a second that were asked for."""


USUAL = Crowd(name="as in planted runs")
CROWDS = (
    USUAL,
    Crowd(name="few users fail, often", failing=0.05),
    Crowd(name="very unequal users", unequal=1.6),
    Crowd(name="some users are slow", slow=1.0),
    Crowd(name="incidents", incident=0.3),
    Crowd(name="a tenth of the requests", rate=0.1),
)


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long one regression took to be rolled back, over all seeds."""

    name: str
    promised: bool
    runs: int
    within: int
    """Rolled back in `WITHIN_S`."""
    never: int
    """Not within `PLANTED_MAX_S`."""
    p50_s: float
    p95_s: float
    max_s: float
    guards: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Nulls:
    """Null canaries of one crowd that were rolled back."""

    name: str
    runs: int
    wrong: int
    low: float
    high: float
    """Clopper and Pearson's interval of their share, at 95 %."""
    guards: dict[str, int]
    calls: int
    cpu_us_per_call: float


class Traffic:
    """Requests of users by Zipf's law, and what becomes of them in either arm."""

    def __init__(self, seed: int, users: int, rate: float, *, error_rate: float, crowd: Crowd = USUAL) -> None:
        self.random = random.Random(seed)
        self._rollout = f"{seed:016x}"
        self._rate = rate * crowd.rate
        self._incident = crowd.incident
        self._edges = list(accumulate(1 / rank**crowd.unequal for rank in range(1, users + 1)))
        draw = self.random
        self._people = [Attribution(user=f"user-{number}") for number in range(users)]
        self._coins = [_coin(self._rollout, one.user) for one in self._people]
        self._error = [min(error_rate * draw.gammavariate(crowd.failing, 1 / crowd.failing), 0.9) for _ in range(users)]
        self._slow = [draw.gauss(0.0, crowd.slow) for _ in range(users)]
        self._dear = [draw.gauss(0.0, 0.5) for _ in range(users)]
        self._p99_ms = 400 * math.exp(2.326 * math.hypot(0.6, 0.3))

    def calls(self, start_ns: int, seconds: float, share: float, worse: Regression) -> Iterator[Call]:
        """Each Call as it ends, about in that order."""
        draw, at_s, edges = self.random, 0.0, self._edges
        while True:
            at_s += draw.expovariate(self._rate)
            if at_s >= seconds:
                return
            number = bisect_left(edges, draw.random() * edges[-1])
            candidate = self._coins[number] < share
            harm = worse if candidate else NOTHING
            spread = draw.gauss(0.0, 1.0)
            latency_ms = 400 * math.exp(0.6 * spread + self._slow[number])
            if harm.stalled:
                if draw.random() < harm.stalled:
                    latency_ms = harm.slower * self._p99_ms
            elif harm.slower > 1 and spread > SPREAD[harm.of_slowest]:
                latency_ms *= harm.slower
            failures = harm.failures
            if self._incident and at_s % 60 < INCIDENT_S:
                failures += self._incident
                latency_ms *= 2.5
            fails = draw.random() < self._error[number] + failures
            cost = int(1e6 * math.exp(draw.gauss(0.0, 1.0) + self._dear[number]) * harm.dearer)
            opened_ns = start_ns + int(at_s * NS)
            yield Call(
                call_id="", opened_ns=opened_ns, closed_ns=opened_ns + int(latency_ms * 1e6),
                snapshot=CANDIDATE if candidate else LIVE, workflow="triage", door="chat", stream=False,
                attribution=self._people[number], status="failed" if fails else "answered",
                http_status=502 if fails else 200, cost_nano_usd=0 if fails else cost,
            )  # fmt: skip


INCIDENT_S = 5.0
NOTHING = Regression(name="nothing", promised=False)
SPREAD = {1.0: -math.inf, 0.05: 1.6449, 0.01: 2.3263}
"""Share of the slowest -> where they begin, in standard deviations."""


def main() -> int:
    """Measures and prints; 1 where a promise is broken."""
    options = _options()
    started = time.perf_counter()
    print("; ".join(described().values()))
    print(
        f"{options.rate:g} requests/s, {options.users:,} users by Zipf, seed {options.seed}; live errors 1 %, in null "
        f"canaries {_percents(ERROR_RATES)} in turn\n"
    )
    print(f"{'planted':<22} {'runs':>5} {'<= 60 s':>8} {'p50 s':>7} {'p95 s':>7} {'max s':>7}  guards", flush=True)
    times = []
    for one in PLANTED:
        times.append(_planted(one, options))
        _print_times(times[-1])
    print(f"\n{'null canaries':<24} {'runs':>5} {'back':>5}   95 %", flush=True)
    nulls = []
    for crowd in CROWDS:
        nulls.append(_nulls(crowd, options))
        _print_nulls(nulls[-1])
    held = _promises(times, nulls)
    print(f"\n{time.perf_counter() - started:.0f} s, load average {os.getloadavg()[0]:.1f}\n")
    for promise, kept in held.items():
        print(f"{'holds ' if kept else 'BROKEN'}  {promise}")
    if options.json:
        found = {
            "machine": described(), "seed": options.seed, "rate": options.rate, "users": options.users,
            "planted": [asdict(one) for one in times], "nulls": [asdict(one) for one in nulls], "promises": held,
        }  # fmt: skip
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(held.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="canary.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=200, help="of each regression (default 200)")
    parser.add_argument("--nulls", type=int, default=200, help="null canaries of each crowd (default 200)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of a null canary (default 10)")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second (default 50)")
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def _planted(worse: Regression, options: argparse.Namespace) -> Times:
    took: list[float] = []
    guards: dict[str, int] = {}
    for run in range(options.runs):
        traffic = _traffic(options, run, worse.name, worse.live_errors)
        watch = Watch(_active(STAGE, PLANTED_MAX_S / 60), LIVE)
        at_s, guard = _play(watch, traffic.calls(0, PLANTED_MAX_S, SHARES[STAGE], worse), PLANTED_MAX_S)
        took.append(at_s if guard else math.inf)
        guards[guard] = guards.get(guard, 0) + 1
    took.sort()
    never = sum(map(math.isinf, took))
    guards.pop("", None)
    return Times(
        name=worse.name, promised=worse.promised, runs=len(took), within=sum(one <= WITHIN_S for one in took),
        never=never, p50_s=_quantile(took, 0.5), p95_s=_quantile(took, 0.95), max_s=_quantile(took, 1.0),
        guards=guards,
    )  # fmt: skip


def _nulls(crowd: Crowd, options: argparse.Namespace) -> Nulls:
    wrong = calls = 0
    guards: dict[str, int] = {}
    cpu = 0.0
    for run in range(options.nulls):
        name = NOTHING.name if crowd is USUAL else crowd.name
        traffic = _traffic(options, run, name, ERROR_RATES[run % len(ERROR_RATES)], crowd)
        seconds = options.minutes * 60
        made = list(traffic.calls(0, seconds, SHARES[STAGE], NOTHING))
        watch = Watch(_active(0, options.minutes, (SHARES[STAGE],)), LIVE)
        begun = time.process_time()
        _, guard = _play(watch, iter(made), seconds)
        cpu += time.process_time() - begun
        calls += len(made)
        if guard:
            wrong += 1
            guards[guard] = guards.get(guard, 0) + 1
    interval = clopper_pearson(wrong, options.nulls)
    return Nulls(
        name=crowd.name, runs=options.nulls, wrong=wrong, low=interval[0], high=interval[1], guards=guards, calls=calls,
        cpu_us_per_call=cpu / max(calls, 1) * 1e6,
    )  # fmt: skip


def _traffic(options: argparse.Namespace, run: int, name: str, error_rate: float, crowd: Crowd = USUAL) -> Traffic:
    seed = int.from_bytes(hashlib.sha256(f"{options.seed} {run} {name}".encode()).digest()[:6])
    return Traffic(seed, options.users, options.rate, error_rate=error_rate, crowd=crowd)


def _play(watch: Watch, calls: Iterator[Call], seconds: float) -> tuple[float, str]:
    """When which guard broke, as the watcher would see it: looked at every second; an empty name where none did."""
    ended: list[Call] = []
    look_s = 1.0
    for call in calls:
        while call.opened_ns >= look_s * NS:
            guard = _look(watch, ended, look_s)
            if guard:
                return look_s, guard
            look_s += 1.0
        ended.append(call)
    while look_s <= seconds:
        guard = _look(watch, ended, look_s)
        if guard:
            return look_s, guard
        look_s += 1.0
    return seconds, ""


def _look(watch: Watch, ended: list[Call], now_s: float) -> str:
    """Feeds what has ended by now; the guard that broke."""
    running = []
    for call in ended:
        if call.closed_ns <= now_s * NS:
            watch.see(call)
        else:
            running.append(call)
    ended[:] = running
    step = watch.look(int(now_s * NS))
    return step.guard if step is not None and step.event == "aborted" else ""


def _active(stage: int, minutes: float, shares: tuple[float, ...] = SHARES) -> ActiveRollout:
    guards = tuple(GuardV1(watch=one.watch, margin=one.margin) for one in DEFAULT_GUARDS)
    stages = tuple(StageV1(share_ppm=int(share * WHOLE), minutes=minutes, units=20) for share in shares)
    return ActiveRollout(
        release=2, snapshot=CANDIDATE, workflows=("triage",),
        rollout=RolloutV1(id="0" * 16, stages=stages, guards=guards, level=EVIDENCE_LEVEL), stage=stage, stage_ns=0,
        started_ns=0,
    )  # fmt: skip


def _coin(rollout: str, user: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{rollout} {user}".encode()).digest()[:8]) / 2**64


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def _promises(times: list[Times], nulls: list[Nulls]) -> dict[str, bool]:
    held = {
        f"{one.name}: rolled back within {WITHIN_S:.0f} s in {one.within} of {one.runs} runs": one.within == one.runs
        for one in times
        if one.promised
    }
    for one in nulls:
        told = f"null canaries, {one.name}, rolled back <= {WRONG_MAX:.0%}: {one.wrong} of {one.runs}"
        held[told] = one.wrong / one.runs <= WRONG_MAX
    return held


def _print_times(one: Times) -> None:
    figures = " ".join("      -" if math.isinf(s) else f"{s:7.0f}" for s in (one.p50_s, one.p95_s, one.max_s))
    print(f"{one.name:<22} {one.runs:>5} {one.within:>8} {figures}  {_counts(one.guards)}", flush=True)


def _print_nulls(one: Nulls) -> None:
    print(
        f"{one.name:<24} {one.runs:>5} {one.wrong:>5}   {one.low:.2%} to {one.high:.2%}; {one.calls:,} Calls, "
        f"{one.cpu_us_per_call:.1f} us of CPU each, looks included  {_counts(one.guards)}",
        flush=True,
    )


def _counts(guards: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(guards.items()))


def _percents(shares: tuple[float, ...]) -> str:
    return ", ".join(f"{one:.1%}" for one in shares)


if __name__ == "__main__":
    sys.exit(main())
