"""Promise 18: a broken provider is left in peace, probed a little, and led back to its load without a herd.

Four workers offer 500 Calls a second to one provider that breaks for a minute, on a virtual clock. What is counted is
what reaches the provider, second by second.
"""

from __future__ import annotations

import random
from collections import deque

import pytest

from drivetrain.routing.health import Health

pytestmark = pytest.mark.slow

S = 1_000_000_000
WORKERS, PER_S = 4, 500
BREAKS_S, BACK_S, END_S = 5, 65, 105
ANSWER_NS, FAILURE_NS, BACKOFF_NS = 60_000_000, 20_000_000, 100_000_000
ATTEMPTS_MAX = 4
FULL = PER_S // WORKERS


class Run:
    """One run, and what reached the provider in each second."""

    def __init__(self, seed: int, back_s: int = BACK_S, end_s: int = END_S, *, to_the_end: bool = True) -> None:
        self.back_ns = back_s * S
        self.first = [0] * (end_s + 1)
        self.retried = [0] * (end_s + 1)
        self.by_worker = [[0] * (end_s + 1) for _ in range(WORKERS)]
        chance = random.Random(seed)
        self.workers = [Health(["east"], random.Random(chance.random()).random) for _ in range(WORKERS)]
        self.closed_ns = [0] * WORKERS
        self._ends: dict[bool, deque[tuple[int, int, int, int]]] = {True: deque(), False: deque()}
        self._retries: deque[tuple[int, int, int]] = deque()
        for number in range(end_s * PER_S):
            if not to_the_end and all(self.closed_ns):
                break
            self._arrives(number * S // PER_S, chance.randrange(WORKERS))

    def reached(self, second: int) -> int:
        return self.first[second] + self.retried[second]

    def _arrives(self, now: int, which: int) -> None:
        for good, ends in self._ends.items():
            while ends and ends[0][0] <= now:
                at, ended, granted, attempt = ends.popleft()
                self._end(at, ended, granted, attempt, good)
        while self._retries and self._retries[0][0] <= now:
            at, again, attempt = self._retries.popleft()
            self._send(at, again, attempt)
        self._send(now, which, 1)

    def _send(self, now: int, which: int, attempt: int) -> None:
        if self.workers[which].may_send("east", now) is not None:
            return
        (self.first if attempt == 1 else self.retried)[now // S] += 1
        self.by_worker[which][now // S] += 1
        good = not BREAKS_S * S <= now < self.back_ns
        self._ends[good].append((now + (ANSWER_NS if good else FAILURE_NS), which, now, attempt))

    def _end(self, now: int, which: int, granted: int, attempt: int, good: bool) -> None:
        health = self.workers[which]
        health.ended("east", granted, now, "ok" if good else "failed")
        if good:
            if not self.closed_ns[which] and now > self.back_ns and health.states(now)["east"] == "closed":
                self.closed_ns[which] = now
        elif attempt < ATTEMPTS_MAX and health.may_retry("east", now):
            self._retries.append((now + BACKOFF_NS, which, attempt + 1))


@pytest.mark.parametrize("seed", range(25))
def test_a_broken_provider_is_probed_and_led_back_without_a_herd(seed: int) -> None:
    print(f"seed {seed}")
    run = Run(seed)
    per_second = [run.reached(second) for second in range(END_S)]
    print(per_second)

    assert all(run.first[second] == PER_S for second in range(BREAKS_S)), "health costs no Call"
    assert per_second[BREAKS_S] < PER_S / 3, "the circuits open at once"
    broken = per_second[BREAKS_S + 2 : BACK_S]
    assert max(broken) <= 2 * WORKERS
    assert sum(broken) / len(broken) <= 1, "a few probes"
    assert sum(broken) >= WORKERS, "but it is probed"

    # A step is at most a doubling of what each worker sends, above what is no load at all.
    for worker in run.by_worker:
        for second in range(BACK_S, END_S - 1):
            assert worker[second + 1] <= 2 * worker[second] + 30
            if worker[second + 1] > FULL / 2:
                assert worker[second] > FULL / 8
    assert max(per_second[BACK_S : BACK_S + 2]) < PER_S / 4

    # 30 s at most until a probe, and 5 s of ramp.
    assert all(BACK_S * S < closed <= (BACK_S + 32) * S for closed in run.closed_ns)
    assert max(run.closed_ns) - min(run.closed_ns) > S / 10, "each by its own chance"
    assert per_second[-1] == PER_S

    calls = sum(run.first)
    assert sum(run.retried) <= 0.1 * calls + WORKERS * (END_S + 20)
    while_broken = slice(BREAKS_S, BACK_S)
    assert sum(run.retried[while_broken]) <= 0.1 * sum(run.first[while_broken]) + WORKERS * (BACK_S - BREAKS_S + 20)


def test_workers_do_not_come_back_in_the_same_moment() -> None:
    spreads = []
    for seed in range(100, 175):
        run = Run(seed, back_s=25, end_s=58, to_the_end=False)
        assert all(run.closed_ns), f"seed {seed}"
        spreads.append((max(run.closed_ns) - min(run.closed_ns)) / S)
    spreads.sort()
    print("spread of closings, s: ", spreads[:3], spreads[len(spreads) // 2])
    assert spreads[len(spreads) // 2] > 3
