"""Answers given again, for one Call: what it looked up, and its place among Calls that want the same answer.

Owns the Call's keys and its seat in a flight. It does not read or check answers, and it sends nothing. Made by the
Execution of a workflow that declares a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivetrain.cache.answers import Kept
from drivetrain.cache.flights import Flights, Seat
from drivetrain.cache.keeping import calls_tools, is_deterministic, may_keep
from drivetrain.core.declarations import Cache
from drivetrain.core.money import Usage
from drivetrain.execution.environment import Asked, CacheDoor
from drivetrain.execution.plan import VariantStep, WorkflowPlan

Landed = Callable[[Kept | None], None]


def may_be_same(rules: Cache, chat: dict[str, Any]) -> bool:
    """Whether another request may be the same as this one, under the workflow's rules. Most chats say no at once."""
    return (chat.get("n") or 1) == 1 if rules.when == "always" else is_deterministic(chat)


class Again:
    """One Call's side of the cache."""

    __slots__ = ("_asked", "_cache", "_flights", "_hold_s", "_key", "_rules", "_seat", "_tenant", "_tried")

    def __init__(
        self,
        plan: WorkflowPlan,
        cache: CacheDoor,
        flights: Flights,
        *,
        tenant: str,
        asked: Asked,
    ) -> None:
        assert plan.cache is not None
        self._rules: Cache = plan.cache
        self._hold_s = plan.cache_hold_s
        self._cache = cache
        self._flights = flights
        self._tenant = tenant
        self._asked = asked
        self._key = b""
        """Under which the running attempt's answer may be kept; empty: nowhere."""
        self._seat: Seat | None = None
        """Of the running attempt."""
        self._tried: tuple[tuple[int, bool, bytes], ...] = ()
        """(step, whether live, key) of every request that was looked up."""

    @property
    def keeps(self) -> bool:
        """Whether the running attempt's answer may be kept."""
        return bool(self._key)

    @property
    def waits(self) -> bool:
        """Whether another Call's answer is waited for."""
        return self._seat is not None and self._seat.waits

    def look_up(self, step: VariantStep, index: int, *, live: bool, body: bytes, landed: Landed) -> Kept | None:
        """The answer to this very request, where there is one; else see `waits`.

        landed: hears the answer that the Call waits for, or None: it is on this Call to ask. It is kept only as long
        as that takes: kept for good, it would make each Call a cycle that only the garbage collector frees.
        """
        rules, asked = self._rules, self._asked
        self._key = b""
        key = self._cache.key(self._tenant, step.identity, body)
        if asked.cache_read:
            self._tried += ((index, live, key),)
            kept = self._cache.fresh(key, rules.ttl_s, asked.cache_max_age_s)
            if kept is not None and self.may_give(kept):
                return kept
        if asked.cache_write:
            self._key = key
            if asked.cache_read:
                self._seat = self._flights.join(key, landed)
        return None

    def pass_by(self) -> None:
        """The attempt that follows is another one's, and its answer is not kept."""
        self._key = b""

    def may_give(self, kept: Kept) -> bool:
        """Whether this workflow gives such answers again; another one of the tenant may have kept it."""
        return may_keep(kept.finish_reason, kept.has_tool_calls, self._rules.tool_calls)

    def settle(
        self, verdict: str, body: bytes, *, whole: bool, streamed: bool, usage: Usage, cost_nano_usd: int,
        price_source: str, finish: str, now_ns: int,
    ) -> None:  # fmt: skip
        """The running attempt ended: keep an accepted answer, and give it to those who wait for it."""
        key, seat = self._key, self._seat
        self._key, self._seat = b"", None
        if not key:
            return
        if verdict == "accepted" and whole:
            kept = Kept(body, streamed, usage, cost_nano_usd, price_source, finish, now_ns, calls_tools(body))
            if self.may_give(kept):
                self._cache.keep(key, kept, self._hold_s)
                if seat is not None:
                    self._flights.land(seat, kept)
                return
        if seat is None:
            return
        if verdict in ("accepted", "escalated"):
            self._flights.release(seat)
        else:
            self._flights.leave(seat)

    def leave(self) -> None:
        """Others may have waited for an answer that will not come by this attempt."""
        seat, self._seat = self._seat, None
        if seat is not None:
            self._flights.leave(seat)

    def stale(self, max_age_s: int) -> tuple[int, bool, Kept] | None:
        """(step, whether live, answer) of the first request that was answered before, not too long ago."""
        for index, live, key in self._tried:
            kept = self._cache.stale(key, max_age_s)
            if kept is not None and self.may_give(kept):
                return index, live, kept
        return None
