"""What a worker has in memory of limits: slices of accounts, the accounts of a Call, and what a Call holds.

Plain mutable objects, because the hot path adds and subtracts on them. The Book owns them all; Renewal fills and
empties slices. Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivetrain.core.calls import ReservedV1
from drivetrain.core.limits import Refusal
from drivetrain.limits.accounts import Account, Whom
from drivetrain.limits.places import PlaceQueue
from drivetrain.ports.counters import SLOTS, Terms, Verdict

UNLIMITED = 2**62
"""What a slice that is only counted has free: more than can be spent."""


class Slice:
    """This worker's part of one account."""

    __slots__ = (
        "account", "ahead", "alerted", "answered", "asked_ns", "booked", "busy_until_ns", "contended", "dirty", "free",
        "full_until_ns", "gone", "good", "granted", "idle_ns", "keep", "left", "left_ns", "lingers_until_ns", "low",
        "moved", "number", "over", "place", "queue", "recalled", "refunded", "returned", "seen", "settled", "terms",
        "told_booked", "told_over", "whom",
    )  # fmt: skip

    def __init__(self, number: int, account: Account, whom: Whom) -> None:
        self.number = number
        self.account = account
        self.whom = whom
        self.place = 0
        """Of its limit among all that are declared."""
        self.gone = False
        """It was let go, and must not be charged any more."""
        self.terms: Terms = account.terms
        self.free = UNLIMITED if account.terms.counted else 0
        """Units that may be reserved without asking."""
        self.low = 0
        """Below this it is topped up ahead of need."""
        self.good = 0
        """What it asks for when it has to ask; grows while it asks often."""
        self.asked_ns = 0
        self.granted = self.returned = self.booked = self.over = self.refunded = self.answered = 0
        """Totals, as in `Report`."""
        self.told_booked = self.told_over = 0
        """`booked` and `over` as they were in the last full report."""
        self.settled = 0
        """Of the account, over all workers, as the store last said: at least this, and what it was not told yet."""
        self.alerted: tuple[int, ...] = ()
        """Shares that the store was told of."""
        self.seen = -1
        """`booked` when idleness was last looked at."""
        self.idle_ns = 0
        """Since when it is idle; monotonic."""
        self.dirty = False
        """Its costs have changed since the last full report."""
        self.moved = False
        """Something else has changed that the store does not know yet."""
        self.contended = False
        """Others wait for this account: what becomes free is returned at once."""
        self.ahead = False
        """Asked to be topped up, and not answered yet."""
        self.recalled = 0
        """Tick of the latest recall that is not answered yet; 0: none."""
        self.full_until_ns = 0
        """Monotonic time until which the store's word holds that nothing is left of it."""
        self.left = self.left_ns = 0
        """Of a bucket: what the store had when it said so, and when that was."""
        self.keep = 0
        """Of places: as many are used again here even while others wait."""
        self.busy_until_ns = 0
        """Of places: monotonic time until which it is remembered that a Call found none."""
        self.lingers_until_ns = 0
        """Monotonic time until which a place that is free here is kept, though others wait."""
        self.queue: PlaceQueue[Waiter] | None = PlaceQueue() if self.terms.kind == SLOTS else None
        """Of places: the Calls that wait for one here."""

    def __repr__(self) -> str:
        return f"Slice({self.terms.account!r}, free={self.free}, granted={self.granted}, booked={self.booked})"


class Accounts:
    """Every slice that one combination of workflow and attribution is charged to, until the next period begins."""

    __slots__ = ("calls", "ends_ns", "entry", "money", "names", "requests", "round", "starts_ns", "tokens")

    def __init__(self, slices: list[Slice]) -> None:
        self.round = -1
        """The Book's round in which these were last looked at: since then none was let go and no period has ended."""
        by_unit: dict[str, list[Slice]] = {"nano_usd": [], "requests": [], "tokens": [], "calls": []}
        for one in slices:
            by_unit[one.account.limit.unit].append(one)
        self.money = tuple(by_unit["nano_usd"])
        self.requests = tuple(by_unit["requests"])
        self.tokens = tuple(by_unit["tokens"])
        self.calls = tuple(by_unit["calls"])
        self.entry = self.requests + self.calls
        """What a Call takes one unit of when it is admitted."""
        self.names = tuple(one.terms.account for one in self.money)
        self.starts_ns = max((one.account.starts_ns for one in slices), default=-UNLIMITED)
        self.ends_ns = min((one.account.ends_ns for one in slices), default=UNLIMITED)

    @property
    def all(self) -> tuple[Slice, ...]:
        """Every slice."""
        return self.money + self.requests + self.tokens + self.calls


class Hold:
    """What one Call holds, from its admission to its end."""

    __slots__ = ("accounts", "charged", "closed", "kept", "number", "reserved", "tokens", "weighed")

    def __init__(self, number: int, accounts: Accounts) -> None:
        self.number = number
        self.accounts = accounts
        self.reserved = 0
        """nano-USD reserved for the attempt that runs."""
        self.tokens = 0
        """Tokens taken for the attempt that runs."""
        self.charged = 0
        """nano-USD that ended attempts have cost."""
        self.kept = 0
        """nano-USD taken from every budget's slice: at least `charged` and `reserved` together."""
        self.closed = False
        self.weighed = bool(accounts.money or accounts.tokens)
        """Whether each attempt's worst case is wanted."""

    def frame(self, call_id: str) -> ReservedV1:
        """The frame of the present reservation; written before the attempt is sent."""
        return ReservedV1(call_id, self.number, self.accounts.names, self.reserved, self.charged)


class Short:
    """What some slices lack: the store must be asked."""

    __slots__ = ("lines",)

    def __init__(self, lines: list[tuple[Slice, int]]) -> None:
        self.lines = lines
        """(slice, units that the Call takes) of every slice that the Call needs, short or not."""


class Waiter:
    """A Call that waits for the store or for a place: `take` tries again, `then` hears what came of it."""

    __slots__ = ("asked", "heard", "lines", "number", "priority", "queues", "refused", "since_ns", "take", "then")

    def __init__(self, number: int, short: Short, take: Take, then: Then, *, since_ns: int, priority: int) -> None:
        self.number = number
        self.lines = short.lines
        self.take = take
        self.then = then
        self.since_ns = since_ns
        self.priority = priority
        self.asked = False
        """Whether the store has been asked, and was not heard of again."""
        self.heard = False
        """Whether the store has said that it must wait."""
        self.refused: Verdict | None = None
        self.queues: list[Slice] = []
        """Places that it lacks, in whose queues it is."""


Take = Callable[[], Any]
Then = Callable[[Any], None]
Taken = Refusal | Short | None
"""None: it was taken."""
