"""Virtual time: one queue of events, one source of chance, one trace. Nothing here waits."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Protocol

MS = 1_000_000
"""Nanoseconds."""
SECOND = 1_000_000_000
START_WALL_NS = 1_774_738_800_000_000_000
"""2026-03-28T23:00:00Z: midnight in Berlin, two hours before its clocks go forward, three days before April."""
EVENTS_MAX = 60_000
"""Of one seed; the largest take a tenth. A pipeline that takes more never comes to rest."""
READING_NS = 1_000
"""What each reading of the clock takes, so that no two events are at the same instant."""


class LawBroken(BaseException):
    """The pipeline did what it must never do. Not an `Exception`: the pipeline's own boundaries must not swallow it."""


class Killed(BaseException):
    """The process that is running was killed, between two of its steps."""


class Process(Protocol):
    """What owns events: when it has died, they do not happen."""

    dead: bool

    def die(self) -> None: ...


class Event:
    """Something that will happen."""

    __slots__ = ("at_ns", "cancelled", "keeps_awake", "number", "owner", "what")

    def __init__(
        self, at_ns: int, number: int, what: Callable[[], None], owner: Process | None, keeps_awake: bool
    ) -> None:
        self.at_ns = at_ns
        self.number = number
        self.what = what
        self.owner = owner
        self.keeps_awake = keeps_awake
        self.cancelled = False

    def __lt__(self, other: Event) -> bool:
        return (self.at_ns, self.number) < (other.at_ns, other.number)

    def cancel(self) -> None:
        """It will not happen."""
        self.cancelled = True


class Kernel:
    """Time, chance and what happened."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.now_ns = SECOND
        """Monotonic."""
        self.wall_offset_ns = START_WALL_NS
        self.trace: list[tuple[Any, ...]] = []
        self.after_each: Callable[[], None] = _nothing
        self._queue: list[Event] = []
        self._numbered = 0
        self._happened = 0
        self._awake = 0
        """Events in the queue that are more than housekeeping."""

    def monotonic_ns(self) -> int:
        """A reading of the monotonic clock."""
        self.now_ns += READING_NS
        return self.now_ns

    def wall_ns(self) -> int:
        """A reading of the wall clock, which may jump."""
        return self.wall_offset_ns + self.now_ns

    def note(self, *what: Any) -> None:
        """Add to the trace."""
        self.trace.append((self.now_ns, *what))

    def after(
        self, delay_ns: int, what: Callable[[], None], owner: Process | None = None, *, keeps_awake: bool = True
    ) -> Event:
        """`what` happens then, unless it is cancelled or its owner dies. keeps_awake: False for housekeeping."""
        self._numbered += 1
        event = Event(self.now_ns + delay_ns, self._numbered, what, owner, keeps_awake)
        heapq.heappush(self._queue, event)
        self._awake += keeps_awake
        return event

    def run(self) -> None:
        """Until nothing but housekeeping is left. Raises: LawBroken."""
        while self._awake:
            event = heapq.heappop(self._queue)
            self._awake -= event.keeps_awake
            owner = event.owner
            if event.cancelled or (owner is not None and owner.dead):
                continue
            self._happened += 1
            if self._happened > EVENTS_MAX:
                raise LawBroken(f"the pipeline does not come to rest within {EVENTS_MAX} events")
            self.now_ns = max(self.now_ns, event.at_ns)
            try:
                event.what()
            except Killed:
                assert owner is not None
                owner.die()
            self.after_each()

    def trace_hash(self) -> str:
        """One word for everything that happened."""
        return blake2b("\n".join(map(repr, self.trace)).encode(), digest_size=12).hexdigest()


def _nothing() -> None:
    """Nobody looks."""
