"""Single-flight in one worker: of equal requests that run at the same time, one asks the provider.

Owns who leads, who waits, and what each waiter is told: once, never before `join` returns, and not at all after it
has left. It does not know what is asked or kept. Called on the worker's loop, after the cache had no answer:

    seat = flights.join(key, then)
    if seat.waits: `then(kept)` follows, or `then(None)`: go on and ask the provider, as below
    else: ask the provider, and whatever happens, end with one of `land`, `release` or `leave`

Whoever asks the provider ends its seat before it goes on with anything else. So nobody waits for one answer while
others wait for its own, and no circle of waiters can form.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from drivetrain.cache.answers import Kept

WAITERS_MAX = 1_000
"""Of one key. Whoever comes later asks the provider by itself, as it would without a cache."""
WAITING_MAX = 10_000
"""Of all keys together, about 0.2 KB each beside their Calls."""
LEADERS_MAX = 3
"""Leaders of one flight that may fail; then all who wait go on by themselves. Each may take a whole timeout, so this
bounds how long others can make a Call wait."""
TELL_MAX = 64
"""Waiters told per tick of the loop, so that a thousand of them hold up nobody else's Call."""

Then = Callable[[Kept | None], None]

_LEADS, _WAITS, _CALLED, _ALONE, _OVER = range(5)


class Seat:
    """One request's place in a flight. Any method of Flights may be called with any seat, in any state."""

    __slots__ = ("_failed", "_key", "_state", "_then", "_waiters")

    def __init__(self, key: bytes, then: Then, state: int) -> None:
        self._key = key
        self._then = then
        self._state = state
        self._waiters: dict[Seat, None] | None = None
        """Of a leader, first come first; the leader's seat is the flight."""
        self._failed = 0
        """Leaders of this flight that have failed."""

    @property
    def leads(self) -> bool:
        """Whether others may be waiting for this one's answer."""
        return self._state == _LEADS

    @property
    def waits(self) -> bool:
        """Whether it has yet to hear how another one's request ended."""
        return self._state in (_WAITS, _CALLED)


class Flights:
    """The flights of one worker.

    call_soon: calls a function on a later tick of the loop, `loop.call_soon`.
    """

    __slots__ = ("_call_soon", "_called", "_leaders", "_telling", "shared", "waiters_max", "waiting", "waiting_max")

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        *,
        waiters_max: int = WAITERS_MAX,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        self._call_soon = call_soon
        self.waiters_max = waiters_max
        self.waiting_max = waiting_max
        self._leaders: dict[bytes, Seat] = {}
        self._telling: deque[tuple[Seat, Kept | None]] = deque()
        self._called = False
        """Whether `_tell_some` is on its way."""
        self.waiting = 0
        """Requests that are still to be told."""
        self.shared = 0
        """Requests that got another one's answer."""

    @property
    def running(self) -> int:
        """Keys that somebody is asking for."""
        return len(self._leaders)

    def join(self, key: bytes, then: Then) -> Seat:
        """A seat that leads, or waits, or (where too many wait) goes on by itself.

        then: told once where the seat waits: the answer, or None: go on and ask. By then the seat may lead.
        """
        leader = self._leaders.get(key)
        if leader is None:
            seat = self._leaders[key] = Seat(key, then, _LEADS)
            return seat
        waiters = leader._waiters
        if waiters is None:
            waiters = leader._waiters = {}
        if len(waiters) >= self.waiters_max or self.waiting >= self.waiting_max:
            return Seat(key, then, _ALONE)
        seat = Seat(key, then, _WAITS)
        waiters[seat] = None
        self.waiting += 1
        return seat

    def land(self, seat: Seat, kept: Kept | None) -> None:
        """The leader has its answer: everybody gets it. None: it failed, and the one who waits longest leads.

        Keep the answer in the cache before, so that none falls between the two. Nothing happens where the seat does
        not lead.
        """
        if seat._state == _LEADS:
            if kept is None:
                self._hand_over(seat)
            else:
                self._end(seat, kept)

    def release(self, seat: Seat) -> None:
        """The leader has an answer that may not be given again: all who wait go on by themselves.

        In turn they would most likely get the same kind of answer, each a whole attempt later than the one before.
        """
        if seat._state == _LEADS:
            self._end(seat, None)

    def leave(self, seat: Seat) -> None:
        """The request is over, whatever its seat: its client left, or its deadline passed. It is told nothing more."""
        if seat._state == _LEADS:
            self._hand_over(seat)
        elif seat._state == _WAITS:
            waiters = self._leaders[seat._key]._waiters
            assert waiters is not None
            del waiters[seat]
            self.waiting -= 1
        elif seat._state == _CALLED:
            self.waiting -= 1
        seat._state = _OVER

    def _hand_over(self, seat: Seat) -> None:
        waiters = seat._waiters
        if not waiters or seat._failed + 1 >= LEADERS_MAX:
            self._end(seat, None)
            return
        heir = next(iter(waiters))
        del waiters[heir]
        seat._state, seat._waiters = _OVER, None
        heir._state, heir._waiters, heir._failed = _LEADS, waiters, seat._failed + 1
        self._leaders[heir._key] = heir
        self.waiting -= 1
        self._tell(heir, None)

    def _end(self, seat: Seat, kept: Kept | None) -> None:
        del self._leaders[seat._key]
        waiters, seat._waiters = seat._waiters, None
        seat._state = _OVER
        for waiter in waiters or ():
            waiter._state = _CALLED
            self._tell(waiter, kept)

    def _tell(self, seat: Seat, kept: Kept | None) -> None:
        self._telling.append((seat, kept))
        if not self._called:
            self._called = True
            self._call_soon(self._tell_some)

    def _tell_some(self) -> None:
        telling, told = self._telling, 0
        try:
            while telling and told < TELL_MAX:
                seat, kept = telling.popleft()
                if seat._state == _CALLED:
                    seat._state = _ALONE if kept is None else _OVER
                    self.waiting -= 1
                    self.shared += kept is not None
                elif seat._state != _LEADS:
                    continue  # It has left meanwhile.
                told += 1
                seat._then(kept)
        finally:
            # Also where a `then` raised: that ends its own Call and goes to the loop; the others still wait.
            self._called = bool(telling)
            if self._called:
                self._call_soon(self._tell_some)
