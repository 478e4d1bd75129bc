"""Where Calls wait for a place: one short queue per account of places, the most urgent first.

Owns the order, the bounds and who must go when a queue is full; when a place comes, and from where, is `renewal`'s
business. A place that nobody can use soon is not waited for: a refusal that comes at once lets the client go elsewhere.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

HIGH, NORMAL, LOW = 0, 1, 2
"""A Call's priority: the smaller, the more urgent."""
PLACE_WAIT_MS = 5
"""How long a Call waits for a place: a refusal is promised within 10 ms, and a busy loop needs the rest. Other workers
return what they have free in 1 to 3 ms."""
QUEUE_SHARE = 8
"""While all places are taken, one Call may wait for so many places held here. Calls that run for 40 ms free an eighth
of their places in one wait; a longer queue would wait in vain."""
FULL_NS = 100_000_000
"""For so long the store's word that all places are taken is believed, unless it rings. Then it is asked again, so that
who may keep how many is looked at ten times a second, not once per Call."""

LINGER_NS = 100_000_000
"""For so long a place within the worker's share is kept for the next Call here, while Calls are refused here: returning
it to fetch it back a moment later would cost every Call two visits to the store, and a worker with few Calls would
find none."""


class Queued(Protocol):
    """A Call that waits."""

    priority: int
    number: int
    """In the order of arrival."""


W = TypeVar("W", bound=Queued)


class PlaceQueue(Generic[W]):
    """Calls that wait for places of one account: by priority, then by age."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[W] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[W]:
        """The most urgent first; the queue may change meanwhile."""
        return iter(tuple(self._waiting))

    def admits(self, priority: int, most: int) -> bool:
        """Whether one that arrives now may wait: there is room, or somebody less urgent to send away."""
        return len(self._waiting) < most or self._waiting[most - 1].priority > priority

    def join(self, waiter: W) -> None:
        """Wait, behind everybody of the same priority that came earlier."""
        insort(self._waiting, waiter, key=_turn)

    def leave(self, waiter: W) -> None:
        """Wait no longer."""
        self._waiting.remove(waiter)

    def beyond(self, most: int) -> list[W]:
        """Those for whom there is no room: the youngest of the least urgent."""
        return self._waiting[most:]


def _turn(waiter: Queued) -> tuple[int, int]:
    return waiter.priority, waiter.number
