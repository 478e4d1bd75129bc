"""What one run may cost, kept at the door that every attempt passes before it is sent.

An attempt is sent where its worst case fits what is left beside the worst cases of those under way. Where it does not,
it waits for them, since most end for less; where nothing is under way, it is refused, and the run is over. The
project's own budgets are asked after it and hold as for any Call. Used on the event loop only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from drivetrain.core.calls import Attribution
from drivetrain.core.limits import Refusal
from drivetrain.execution.environment import LimitsDoor
from drivetrain.limits.slices import Accounts, Hold, Short, Waiter

RUN_BUDGET = "of this run"
"""Stands as the limit's name in a refusal; no name that a project can declare."""
_WAITER = Waiter(0, Short([]), lambda: None, lambda _: None, since_ns=0, priority=1)
"""Stands for whoever waits; nobody looks into it."""
Then = Callable[[Refusal | None], None]


class RunBudget:
    """A `LimitsDoor` with the run's own budget before the project's limits.

    cap_nano_usd: None counts what is spent and refuses nothing. inner: None where the project limits nothing.
    """

    def __init__(
        self, cap_nano_usd: int | None, inner: LimitsDoor | None, call_soon: Callable[[Callable[[], None]], object]
    ) -> None:
        self.spent_nano_usd = 0
        self.over = False
        """Whether an attempt was refused because it did not fit."""
        self._cap = cap_nano_usd
        self._inner = inner
        self._call_soon = call_soon
        self._held: dict[Hold, int] = {}
        """Worst cases of the attempts under way."""
        self._waiting: deque[tuple[Hold, int, int, Then]] = deque()

    def admit(
        self, who: Attribution, workflow: str, now_ns: int, then: Callable[[Hold | Refusal], None], priority: int
    ) -> Hold | Refusal | Waiter:
        """As the project's limits say."""
        if self._inner is None:
            return self._weighed(Hold(0, Accounts([])))
        admitted = self._inner.admit(who, workflow, now_ns, lambda held: then(self._weighed(held)), priority)
        return admitted if isinstance(admitted, Waiter) else self._weighed(admitted)

    def reserve(self, hold: Hold, worst_nano_usd: int, tokens: int, then: Then) -> Refusal | Waiter | None:
        """None: it may be sent. Else why not, or `then` hears later what came of it."""
        fits = self._fits(worst_nano_usd)
        if fits is None:
            self._waiting.append((hold, worst_nano_usd, tokens, then))
            return _WAITER
        if not fits:
            return self._refusal(worst_nano_usd)
        return self._reserve(hold, worst_nano_usd, tokens, then)

    def settle(self, hold: Hold, cost_nano_usd: int, tokens: int = 0) -> int:
        """What an attempt cost, once."""
        self.spent_nano_usd += cost_nano_usd
        beyond = 0 if self._inner is None else self._inner.settle(hold, cost_nano_usd, tokens)
        self._release(hold)
        return beyond

    def close_hold(self, hold: Hold) -> None:
        """The Call has ended."""
        if self._inner is not None:
            self._inner.close_hold(hold)
        hold.closed = True
        self._release(hold)

    def is_hard(self, hold: Hold) -> bool:
        """Whether what has no bound must not be sent."""
        return self._cap is not None or (self._inner is not None and self._inner.is_hard(hold))

    def _weighed(self, held: Hold | Refusal) -> Hold | Refusal:
        """Where there is a cap, the worst case of each attempt is wanted, whether or not a budget asks for it."""
        if isinstance(held, Hold) and self._cap is not None:
            held.weighed = True
        return held

    def _fits(self, worst_nano_usd: int) -> bool | None:
        """None: perhaps, once one that is under way has ended."""
        if self._cap is None:
            return True
        held = sum(self._held.values())
        if self.spent_nano_usd + held + worst_nano_usd <= self._cap:
            return True
        return None if held else False

    def _reserve(self, hold: Hold, worst_nano_usd: int, tokens: int, then: Then) -> Refusal | Waiter | None:
        self._held[hold] = worst_nano_usd
        if self._inner is None:
            return None

        def told(short: Refusal | None) -> None:
            if short is not None:
                self._release(hold)
            then(short)

        short = self._inner.reserve(hold, worst_nano_usd, tokens, told)
        if type(short) is Refusal:
            self._release(hold)
        return short

    def _release(self, hold: Hold) -> None:
        self._held.pop(hold, None)
        if self._waiting:
            self._call_soon(self._go_on)

    def _go_on(self) -> None:
        """Those who wait, in their order, as far as they fit now."""
        while self._waiting:
            hold, worst_nano_usd, tokens, then = self._waiting[0]
            fits = self._fits(worst_nano_usd)
            if fits is None and not hold.closed:
                return
            self._waiting.popleft()
            if hold.closed:
                continue
            answer = (
                self._reserve(hold, worst_nano_usd, tokens, then) if fits else self._refusal(worst_nano_usd)
            )  # fmt: skip
            if not isinstance(answer, Waiter):
                then(answer)

    def _refusal(self, worst_nano_usd: int) -> Refusal:
        self.over = True
        cap = self._cap or 0
        return Refusal(
            code="budget_exceeded", limit=RUN_BUDGET, whose="the one who runs it", needed=worst_nano_usd,
            left=cap - self.spent_nano_usd, cap=cap,
        )  # fmt: skip
