"""A run's own budget, whatever the order in which its attempts begin and end."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from drivetrain.core.calls import Attribution
from drivetrain.core.limits import Refusal
from drivetrain.embedded.run_budget import RunBudget
from drivetrain.limits.slices import Hold

ATTEMPTS = 40


def _told(
    running: list[tuple[Hold, int]], refused: list[Hold], hold: Hold, worst: int
) -> Callable[[Refusal | None], None]:
    """What an attempt does that was let wait: it runs, or is refused."""
    return lambda short: running.append((hold, worst)) if short is None else refused.append(hold)


def test_no_order_of_attempts_spends_more_than_a_run_may() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(200):
        later: deque[Callable[[], object]] = deque()
        cap = chance.randrange(1, 2_000)
        budget = RunBudget(cap, None, later.append)
        running: list[tuple[Hold, int]] = []
        refused: list[Hold] = []
        ended = 0
        for _ in range(ATTEMPTS):
            hold = budget.admit(Attribution(), "w", 0, lambda _: None, 1)
            assert isinstance(hold, Hold)
            worst = chance.randrange(1, 400)
            answer = budget.reserve(hold, worst, 0, _told(running, refused, hold, worst))
            if answer is None:
                running.append((hold, worst))
            elif isinstance(answer, Refusal):
                refused.append(hold)
            while running and chance.random() < 0.6:
                one, most = running.pop(chance.randrange(len(running)))
                budget.settle(one, chance.randrange(most + 1))
                budget.close_hold(one)
                ended += 1
                while later:
                    later.popleft()()
            assert budget.spent_nano_usd + sum(most for _, most in running) <= cap
        while running:
            one, most = running.pop()
            budget.settle(one, most)
            budget.close_hold(one)
            ended += 1
            while later:
                later.popleft()()
        assert budget.spent_nano_usd <= cap
        assert ended + len(refused) == ATTEMPTS, "nobody waits for ever"
        assert budget.over == bool(refused)
