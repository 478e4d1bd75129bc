"""The counter store: one truth about every account, from which workers lease slices.

Workers send absolute totals per slice, so a request that was sent twice, or whose answer was lost, counts once. Laws
that every adapter keeps, and that the conformance suite in tests/limits checks:

- money: settled + held <= cap + over, where `over` is what providers charged beyond the limits that we sent;
- slots: held <= cap. Of a slot that came back, workers that hold less than their fair share are first, and among
  equals whoever waits longest;
- buckets: level + held <= cap, refilled by the store's clock;
- a want is granted whole or not at all; it is refused only when every other holder has returned what it does not
  need, or when the worker says that it can wait no longer. A slot is waited for in any case, because one comes back
  whenever a Call ends: the want stands, and its worker is rung when there may be one for it;
- a dead worker is buried exactly once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import msgspec

from drivetrain.core.times import NS_PER_S

MONEY, SLOTS, BUCKET = "money", "slots", "bucket"
GRANTED, PENDING, REFUSED = "granted", "pending", "refused"
CLOCK_BACK_NS = NS_PER_S
"""A clock that went back further than this was set; a smaller difference is the order of two readings."""

TURN_NS = NS_PER_S // 10
"""For so long a slot is kept for the worker that is first in turn: longer than a living one takes to answer a ring."""
ROUND_NS = NS_PER_S
"""How often the slots that do not divide evenly go to others: seldom, because each time they must be waited for."""


class StoreUnavailable(Exception):
    """The store did not answer, or the disk refused. Nothing may be spent beyond what is leased."""


class Fenced(Exception):
    """The store no longer knows this worker: others have resolved its reservations. It must not spend any more."""


class Terms(msgspec.Struct, frozen=True, gc=False):
    """What the store must know of an account."""

    account: str
    """`limit/value@period`; a new period is a new account, so nothing is ever reset."""
    kind: str
    """`money`, `slots` or `bucket`."""
    cap: int
    """As the asking worker's Snapshot has it."""
    ends_ns: int = 0
    """When its period ends; 0: never."""
    refill: int = 0
    """Of a bucket: units per `refill_ns`."""
    refill_ns: int = 0
    counted: bool = False
    """Only counted (`soft`): nothing is leased and nothing refused."""


class Report(msgspec.Struct, frozen=True, gc=False):
    """Totals of one slice since it was first leased; each only grows."""

    slice: int
    """Number that the worker gave it; a slice that was dropped never comes back under its number."""
    terms: Terms
    returned: int = 0
    """Units given back unused."""
    booked: int = 0
    """Money: settled cost of ended Calls. Bucket: units taken. Slots: 0."""
    over: int = 0
    """Part of the cost that no lease covered: the provider's own overrun."""
    refunded: int = 0
    """Bucket: units taken but not used after all; back into the bucket as far as they fit."""
    answered: int = 0
    """Tick of the latest recall after which everything free was returned."""
    dropped: bool = False
    """The worker lets the slice go; nothing is held any more."""


class Line(msgspec.Struct, frozen=True, gc=False):
    """One account of a want."""

    slice: int
    terms: Terms
    need: int
    """Units that are missing."""
    good: int
    """Units that would be good to have, need included."""
    amount: int
    """Units that the Call takes, what the worker has included."""


class Want(msgspec.Struct, frozen=True, gc=False):
    """What one waiting Call lacks: all lines or none."""

    number: int
    lines: tuple[Line, ...]
    last: bool = False
    """It cannot wait any longer: refuse rather than leave it pending."""


class SyncRequest(msgspec.Struct, frozen=True, gc=False):
    """Everything a worker has to say, in one transaction.

    `booked` and `over` of all its slices, `mark`, `open` and `position` belong together: a worker tells them as they
    were at one moment, and may repeat them in later requests, in which the other totals are newer.
    """

    worker: str
    mark: int
    """Every reservation numbered up to this is in what was booked, but those in `open`."""
    open: tuple[int, ...] = ()
    """Numbers of the reservations that have not ended."""
    position: str = ""
    """Where in the ledger the oldest open reservation may be: name of its segment."""
    reports: tuple[Report, ...] = ()
    wants: tuple[Want, ...] = ()
    """Every want that still waits; one that is not named any more is forgotten."""
    ahead: tuple[Line, ...] = ()
    """To be topped up where it costs nobody anything; `need` is 0."""
    alerts: tuple[tuple[str, int], ...] = ()
    """(account, share) that this worker saw passed."""


class LeaseState(msgspec.Struct, frozen=True, gc=False):
    """What the store knows of a slice."""

    slice: int
    granted: int
    """Total ever granted to it."""
    settled: int
    """Of its account, over all workers."""
    contended: bool
    """Others wait for this account: return what becomes free."""
    keep: int = 0
    """Of slots: this worker's fair share. So many it may use again for its own Calls even while others wait."""


class Refused(msgspec.Struct, frozen=True, gc=False):
    """An account that a want does not fit."""

    slice: int
    left: int
    """Neither settled nor held by anybody."""
    resets_at_ns: int = 0


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What became of a want."""

    number: int
    outcome: str
    """`granted`, `pending` (others are asked; ask again when rung) or `refused`."""
    refused: tuple[Refused, ...] = ()


class SyncReply(msgspec.Struct, frozen=True, gc=False):
    """The store's answer."""

    tick: int
    """Number of this transaction."""
    leases: tuple[LeaseState, ...] = ()
    """Of every slice in the request, and of those that are recalled."""
    verdicts: tuple[Verdict, ...] = ()
    recalls: tuple[int, ...] = ()
    """Slices of this worker that others wait for: return everything free and answer with this tick."""
    alerts: tuple[tuple[str, int], ...] = ()
    """Those that nobody had announced before: announce them."""


class DeadWorker(msgspec.Struct, frozen=True, gc=False):
    """A worker that ended without leaving, as its last request left it."""

    worker: str
    mark: int
    open: tuple[int, ...]
    position: str


class AccountState(msgspec.Struct, frozen=True, gc=False):
    """An account as it stands."""

    settled: int
    held: int
    over: int
    level: int = 0
    """Of a bucket: what is in it now."""


class NamedAccount(msgspec.Struct, frozen=True, gc=False):
    """One account of a listing."""

    name: str
    state: AccountState


class AccountListing(msgspec.Struct, frozen=True):
    """Accounts, most settled first, and the sums over all that there are."""

    first: tuple[NamedAccount, ...]
    count: int = 0
    settled: int = 0
    held: int = 0


class CounterStore(Protocol):
    """One worker's handle on the store. Methods block; all but `wake` are called from one thread.

    Raises (everywhere but `wait` and `wake`): StoreUnavailable.
    """

    def join(self, worker: str, position: str = "") -> None:
        """Begin as `worker`, a name that nobody had before; it lives until `leave`, or until its process ends."""

    def sync(self, request: SyncRequest) -> SyncReply:
        """Book totals, grant or refuse wants, ring those who wait for what came back. Raises: Fenced."""

    def wait(self, timeout_s: float) -> bool:
        """Until somebody rings or wakes this worker: whether another worker rang."""

    def wake(self) -> None:
        """End a `wait`; from any thread."""

    def leave(self) -> bool:
        """End as a worker: whether nothing was left open. Otherwise it is dead, and its reservations are resolved."""

    def dead(self) -> tuple[DeadWorker, ...]:
        """Workers that ended without leaving."""

    def positions(self) -> Mapping[str, str]:
        """Worker -> the `position` it last told, of all that have not left, dead or alive; needs no `join`.

        Whoever resolves their reservations reads the ledger from there on, so it must be kept until then.
        """

    def told(self) -> tuple[DeadWorker, ...]:
        """What every worker that has not left told last, dead or alive; needs no `join`."""

    def named(self, value: str) -> tuple[str, ...]:
        """The accounts `limit/value@period`, and `limit/tag=value@period`, of a value; needs no `join`."""

    def rename(self, names: Mapping[str, str]) -> int:
        """Accounts get other names, which nobody had; how many there were. Needs no `join`.

        What was spent stays with the account, and workers that hold some of it go on under its new name, whatever they
        call it. Whoever opens the old name later opens a new account. The old names are gone from the disk.
        """

    def bury(self, dead: DeadWorker, charges: Mapping[str, int]) -> bool:
        """Book `charges` (account -> units) and release the rest, in one transaction; False: somebody did already."""

    def account(self, account: str) -> AccountState | None:
        """How an account stands; None where nobody has used it."""

    def accounts(self, prefix: str, suffix: str, at_most: int) -> AccountListing:
        """The accounts whose names begin and end so, at one instant; changes nothing, and needs no `join`.

        At most `at_most` of them stand in `first`; the sums are over all. Costs a look at every such account.
        """

    def sweep(self, before_ns: int) -> int:
        """Forget accounts whose period ended before this and that nobody holds; they are never opened again."""

    def close(self) -> None:
        """Let go of everything, without leaving."""


def grant_units(need: int, good: int, available: int, workers: int, contended: bool) -> int:
    """How many units to lease: the need, and of what is good to have only what leaves plenty for every other worker."""
    if contended:
        return need
    return need + max(0, min(good - need, (available - need) // (2 * max(1, workers))))


def fair_share(cap: int, sharing: Collection[str], worker: str, now_ns: int) -> int:
    """Slots that one of the workers that want some may keep while the others wait; all shares make at most the cap.

    What the division leaves over is one more for some of them, for others every `ROUND_NS`. Where there are fewer slots
    than workers nobody keeps one: each goes round in turn.
    """
    each, over = divmod(cap, len(sharing))
    if not each or not over:
        return each
    return each + ((sorted(sharing).index(worker) + now_ns // ROUND_NS) % len(sharing) < over)


def refilled(level: int, room: int, filled_ns: int, now_ns: int, terms: Terms) -> tuple[int, int]:
    """(level, filled_ns) of a bucket at `now_ns`; `room` is the most it may hold beside what is leased.

    Whole units only: the rest of the elapsed time is kept for the next one. A clock set back refills nothing.
    """
    if now_ns < filled_ns:
        return min(level, room), (now_ns if filled_ns - now_ns > CLOCK_BACK_NS else filled_ns)
    gained = (now_ns - filled_ns) * terms.refill // terms.refill_ns
    if level + gained >= room:
        return min(max(level, 0) + gained, max(room, 0)), now_ns
    return level + gained, filled_ns + -(-gained * terms.refill_ns // terms.refill)


def is_of(account: str, value: str) -> bool:
    """Whether an account, `limit/value@period`, is that of a value, or of a tag with it."""
    whose = account.partition("/")[2].rpartition("@")[0]
    return value in (whose, whose.partition("=")[2]) and bool(value)


def under_new_names(request: SyncRequest, renamed: Mapping[int, str]) -> SyncRequest:
    """A request of a worker that calls accounts of these slices by names that they have no more.

    renamed: slice -> what its account is called now.
    """
    if not renamed:
        return request
    names: dict[str, str] = {}

    def terms(number: int, old: Terms) -> Terms:
        if number not in renamed:
            return old
        names[old.account] = renamed[number]
        return msgspec.structs.replace(old, account=renamed[number])

    def line(old: Line) -> Line:
        return msgspec.structs.replace(old, terms=terms(old.slice, old.terms))

    reports = [msgspec.structs.replace(one, terms=terms(one.slice, one.terms)) for one in request.reports]
    wants = [msgspec.structs.replace(one, lines=tuple(map(line, one.lines))) for one in request.wants]
    ahead = tuple(map(line, request.ahead))
    alerts = tuple((names.get(name, name), share) for name, share in request.alerts)
    return msgspec.structs.replace(request, reports=tuple(reports), wants=tuple(wants), ahead=ahead, alerts=alerts)


def refill_wait_ns(missing: int, terms: Terms) -> int:
    """How long a bucket takes to gain `missing` units."""
    return -(-missing * terms.refill_ns // terms.refill)
