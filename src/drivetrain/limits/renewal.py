"""Renewal: what a Book says to the counter store, and what the store's answers change in it. No thread, no I/O.

Builds one request at a time from the slices' totals, the Calls that wait and the slices that run low; applies the
answer; wakes Calls that fit now and refuses those that the store refused. `leasing` carries the messages; tests carry
them by hand, so that every interleaving can be tried.

A **full** report tells what every slice has cost, together with the reservations that these costs contain. Where many
slices change it goes out seldom; the requests between repeat the costs, and the reservations, of the last full one, so
that a worker's death between them counts nothing twice. What they add concerns no reservation: units that went back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from operator import attrgetter

import msgspec

from drivetrain.core.limits import Alert, Refusal
from drivetrain.core.times import NS_PER_S
from drivetrain.limits.book import EMPTY_NS, Book
from drivetrain.limits.places import FULL_NS, LINGER_NS, NORMAL, PLACE_WAIT_MS, QUEUE_SHARE
from drivetrain.limits.slices import Short, Slice, Take, Then, Waiter
from drivetrain.ports.counters import (
    BUCKET,
    GRANTED,
    MONEY,
    PENDING,
    REFUSED,
    LeaseState,
    Line,
    Report,
    SyncReply,
    SyncRequest,
    Verdict,
    Want,
)

GOOD_FACTOR, MONEY_FACTOR = 8, 32
"""A slice asks for this many times what one Call takes, so that most Calls ask nobody; of money for more, because its
Calls give back most of what they take."""
OFTEN_NS, OFTEN_EACH_NS = 10 * NS_PER_S, 20_000_000
"""A slice that asks more often than every 10 s, or where there are many than every 20 ms for each of them, asks for
twice as much: so all of them together ask about fifty times a second."""
SELDOM_FACTOR = 6
"""One that asks so much more seldom than this asks for half."""
FEW = 64
"""While there are at most so many slices, every request is a full report: that costs 2 ms at most."""
REPORT_NS_MIN, REPORT_NS_MAX = NS_PER_S // 2, 30 * NS_PER_S
"""Between two full reports where there are more slices: what screens and alerts may lag behind."""
REPORT_SHARE = 50
"""The next full report waits so many times as long as the last one took, so that reporting takes 2 % of the time."""
WANTS_MAX = 64
"""In one request; the others wait for the next one, a few milliseconds later."""
AHEAD_MAX = 64
"""Slices that are topped up in one request; the others in a later one."""
WAITING_MAX = 4_096
"""Calls that wait for the store; more are refused at once."""
IDLE_NS = 20 * NS_PER_S
"""A slice that nobody has used for so long is returned and forgotten."""
LOOKED_AT_MAX, LET_GO_MAX = 2_000, 500
"""Slices that one `tidy` looks at and returns: a few milliseconds of the loop and of the store."""
_PRIORITY = attrgetter("priority")


class Sent(msgspec.Struct, frozen=True, gc=False):
    """What the request that is under way carries: to be said again should it fail."""

    full: bool
    costs: list[Slice]
    """Slices whose costs it tells."""
    moved: list[Slice]
    """Slices of which it tells what else changed."""
    alerts: list[tuple[str, int]]
    dropped: tuple[int, ...]
    """Numbers of the slices whose last words it carries."""


class Renewal:
    """One Book's side of the conversation with the store.

    monotonic_ns: for how long Calls wait. recall_ms: how long others are asked before the store must decide.
    place_wait_ms: how long a Call waits for a place.
    """

    def __init__(
        self,
        book: Book,
        worker: str,
        *,
        monotonic_ns: Callable[[], int],
        recall_ms: int,
        place_wait_ms: int = PLACE_WAIT_MS,
        on_alert: Callable[[Alert], None] | None = None,
    ) -> None:
        self.book = book
        self.worker = worker
        self.waiting: dict[int, Waiter] = {}
        self._monotonic_ns = monotonic_ns
        self._recall_ns = recall_ms * 1_000_000
        self._place_wait_ns = place_wait_ms * 1_000_000
        self._places: dict[int, Waiter] = {}
        """Those that wait for a place, oldest first."""
        self._full: set[Slice] = set()
        """Places that the store said are all taken: a want of ours stands there, and it rings."""
        self._busy: set[Slice] = set()
        """Places of which a Call found none a moment ago."""
        self._lingering: set[Slice] = set()
        """Places of which some are kept free for a moment."""
        self.few = FEW
        """While there are no more slices, every request is a full report."""
        self.watch: Callable[[], None] = _nothing
        """Called where `end_lingering` should be called soon."""
        book.freed = self._hand_on
        self._on_alert = on_alert
        self._numbered = 0
        self._alerts: list[tuple[str, int]] = []
        self._dropping: dict[int, Report] = {}
        """Last words of slices that were let go."""
        self._sent: Sent | None = None
        self._told: tuple[int, tuple[int, ...], str] | None = None
        """`mark`, `open` and `position` of the last full report; None: the next request must be one."""
        self._told_ns = 0
        """When that report was begun."""
        self._report_ns = REPORT_NS_MIN
        """The next one waits until so long after it."""
        self._round: list[Slice] = []
        """Slices that `tidy` has not looked at in this round."""
        self._positions: deque[tuple[int, str]] = deque([(1, book.position())])
        """(number, ledger position): reservations from this number on were written at or after this position."""

    # Calls that wait.

    def wait(self, short: Short, take: Take, then: Then, priority: int = NORMAL) -> Waiter | Refusal | None:
        """Queue a Call; a refusal where the queue for a place is full, None where too many wait already.

        A more urgent one sends the youngest of the least urgent away. The store need not be asked where the Waiter is
        `asked`: it has just said that all places are taken, and will ring.
        """
        if len(self.waiting) >= WAITING_MAX:
            return None
        self._numbered += 1
        waiter = Waiter(self._numbered, short, take, then, since_ns=self._monotonic_ns(), priority=priority)
        refusal = self._line_up(waiter)
        if refusal is not None:
            return refusal
        lacking = [one for one, units in waiter.lines if one.free < units]
        waiter.asked = waiter.heard = all(one.queue is not None and self._is_full(one) for one in lacking)
        self.waiting[waiter.number] = waiter
        return waiter

    def give_up(self, waited_ms: float, refusal: Refusal) -> None:
        """Refuse every Call that has waited this long without a word from the store."""
        until = self._monotonic_ns() - int(waited_ms * 1_000_000)
        for waiter in list(self.waiting.values()):
            if waiter.since_ns <= until:
                self._end(waiter, refusal)

    def expire(self) -> None:
        """Refuse every Call that has waited long enough for a place, if the store has said that all are taken."""
        until = self._monotonic_ns() - self._place_wait_ns
        for waiter in list(self._places.values()):
            if waiter.since_ns > until:
                return
            if waiter.heard and waiter.queues:
                self._end(waiter, self.book.refusal(waiter.queues[0], 1, 0))

    @property
    def expires_in_ns(self) -> int | None:
        """When `expire` should be called; None where nobody waits for a place."""
        first = next(iter(self._places.values()), None)
        return None if first is None else first.since_ns + self._place_wait_ns - self._monotonic_ns()

    @property
    def presses(self) -> bool:
        """Whether there is something to ask or to return."""
        return bool(self.book.ahead) or self.urges

    @property
    def urges(self) -> bool:
        """Whether the next request should go out now: slices that merely run low can wait a little."""
        book = self.book
        if any(not waiter.asked for waiter in islice(self.waiting.values(), WANTS_MAX)):
            return True
        if not book.contended:
            return False
        now_ns = self._monotonic_ns()
        return any(
            one.contended and (one.recalled or one.moved or (one.free > 0 and one.lingers_until_ns <= now_ns))
            for one in self._slices()
        )

    @property
    def lingers(self) -> bool:
        """Whether places are kept that must go back when no Call takes them."""
        return bool(self._lingering)

    def end_lingering(self) -> None:
        """Have places returned that were kept long enough."""
        now_ns = self._monotonic_ns()
        for one in [one for one in self._lingering if one.lingers_until_ns <= now_ns or one.free < 1]:
            self._lingering.discard(one)
            if one.contended and one.free > 0:
                self.book.return_free(one)
                self.book.urgent()

    @property
    def pressed(self) -> bool:
        """Whether a Call has waited so long that the store must decide."""
        until = self._monotonic_ns() - self._recall_ns
        return any(waiter.since_ns <= until and not waiter.queues for waiter in self.waiting.values())

    # Messages.

    def request(self, *, always: bool = False, full: bool = False) -> SyncRequest | None:
        """What to tell the store; None where there is nothing, unless `always`: to hear what others want.

        full: tell all costs, though it is not time yet: these are the last words. The answer must be applied, or
        `failed` called, before the next request.
        """
        assert self._sent is None
        book = self.book
        self._retry()
        self._return_contended()
        wants = self._wants()
        ahead = tuple(self._line(one, 0, 0) for one in self._take_ahead() if not one.contended)
        full = full or self._is_full_due()
        if not (always or (book.dirty and full) or book.moved or wants or ahead or self._alerts or self._dropping):
            return None
        if full:
            self._told = (book.numbered, tuple(book.open), self._position())
            self._told_ns = self._monotonic_ns()
        assert self._told is not None
        costs, moved = book.dirty if full else [], book.moved
        told = costs + [one for one in moved if not (full and one.dirty)]
        for one in costs:
            one.dirty = False
            one.told_booked, one.told_over = one.booked, one.over
        for one in moved:
            one.moved = False
            if one.terms.kind != MONEY:
                one.told_booked = one.booked  # no reservation is about places and buckets
        reports = [_report(one) for one in told if not one.gone]
        reports.extend(self._dropping.values())
        self._sent = Sent(full, costs, moved, self._alerts, tuple(self._dropping))
        if full:
            book.dirty = []
        book.moved, self._alerts = [], []
        return SyncRequest(self.worker, *self._told, tuple(reports), wants, ahead, tuple(self._sent.alerts))

    def _take_ahead(self) -> list[Slice]:
        book = self.book
        taken, book.ahead = book.ahead[:AHEAD_MAX], book.ahead[AHEAD_MAX:]
        for one in taken:
            one.ahead = False
            one.low //= 2
        if book.ahead:
            book.runs_low()
        return taken

    def _is_full_due(self) -> bool:
        if self._told is None or len(self.book.by_number) <= self.few:
            return True
        return self._monotonic_ns() - self._told_ns >= self._report_ns

    def failed(self) -> None:
        """The request that was under way was not answered; whether it was booked does not matter."""
        if self._sent is None:
            return
        sent, self._sent = self._sent, None
        for one in sent.costs:
            self.book.touch(one)
        for one in sent.moved:
            self.book.move(one)
        if sent.full:
            # Whether the store has these costs nobody knows, so nothing may be said as of them.
            self._told = None
        self._alerts.extend(sent.alerts)
        self._believe_nothing()

    def apply(self, reply: SyncReply) -> None:
        """Take in an answer: new units, recalls, alerts; wake and refuse Calls."""
        sent, self._sent = self._sent, None
        if sent is not None:
            for number in sent.dropped:
                self._dropping.pop(number, None)
        for state in reply.leases:
            one = self.book.by_number.get(state.slice)
            if one is not None:
                self._take_in(one, state)
        for number in reply.recalls:
            recalled = self.book.by_number.get(number)
            if recalled is not None:
                recalled.recalled = reply.tick
        for verdict in reply.verdicts:
            waiter = self.waiting.get(verdict.number)
            if waiter is not None:
                waiter.asked = verdict.outcome != GRANTED
                waiter.refused = verdict if verdict.outcome == REFUSED else None
                if verdict.outcome == PENDING:
                    waiter.heard = True
                    self._note_full(waiter)
            self._note_empty(verdict)
        self._retry()
        for one in list(self._full):
            self._shrink(one)
        for one in self._busy:
            if one.contended and one.free > 0:
                self._linger(one)
        self.expire()
        self._announce(reply.alerts)
        if sent is not None and sent.full:
            took_ns = self._monotonic_ns() - self._told_ns
            self._report_ns = min(max(REPORT_NS_MIN, REPORT_SHARE * took_ns), REPORT_NS_MAX)

    def rung(self) -> None:
        """Somebody returned units, or wants some: whoever waits asks again."""
        self._believe_nothing()

    def tidy(self) -> None:
        """Return slices that nobody has used for a while, and forget them; goes round all of them, a part at a time."""
        if self._sent is not None:
            return
        if not self._round:
            self._round = list(self.book.by_number.values())
        looked_at, self._round = self._round[:LOOKED_AT_MAX], self._round[LOOKED_AT_MAX:]
        now_ns = self._monotonic_ns()
        idle = []
        for one in looked_at:
            if one.dirty or one.moved or one.ahead or one.booked != one.seen:
                one.seen, one.idle_ns = one.booked, now_ns
            elif now_ns - one.idle_ns >= IDLE_NS and one.number in self.book.by_number:
                idle.append(one)
        if not idle:
            return
        used = {one for hold in self.book.open.values() for one in hold.accounts.all}
        used.update(one for waiter in self.waiting.values() for one, _ in waiter.lines)
        for one in [one for one in idle if one not in used][:LET_GO_MAX]:
            self._let_go(one)

    # Places.

    def _hand_on(self, one: Slice) -> None:
        """A place came free: to the store where others have less than their share, else to the first who fits here."""
        book = self.book
        assert one.queue is not None
        if one.contended:
            # Never more than this one: what the store granted beyond the share was granted to a Call that waits.
            book.return_free(one, min(1, one.granted - one.returned - one.keep))
        for waiter in one.queue:
            if one.free < 1:
                break
            self._try(waiter)
        if not one.contended:
            return
        self._linger(one)
        if one not in self._lingering:
            book.return_free(one)
        if one.moved:
            book.urgent()

    def _linger(self, one: Slice) -> None:
        """Keep what is free for the next Call, where a Call found no place a moment ago."""
        now_ns = self._monotonic_ns()
        if one.free > 0 and now_ns < one.busy_until_ns:
            one.lingers_until_ns = now_ns + LINGER_NS
            self._lingering.add(one)
            self.watch()
        else:
            one.lingers_until_ns = 0
            self._lingering.discard(one)

    def _try(self, waiter: Waiter) -> None:
        if self.waiting.get(waiter.number) is not waiter:
            return  # it was heard of while another one was told
        if all(one.free >= units for one, units in waiter.lines):
            # Out of the queues first: what it takes must not be offered to it again.
            self._forget(waiter)
            taken = waiter.take()
            assert not isinstance(taken, Short)
            waiter.then(taken)
            return
        refusal = self._line_up(waiter)
        if refusal is not None:
            self._end(waiter, refusal)

    def _line_up(self, waiter: Waiter) -> Refusal | None:
        """Enter the queue of every place that it lacks; the refusal where one of them is full of others as urgent."""
        lacking = [
            one
            for one, units in waiter.lines
            if one.queue is not None and one.free < units and one not in waiter.queues
        ]
        for one in lacking:
            assert one.queue is not None
            if self._is_full(one):
                self._note_busy(one)
            if not one.queue.admits(waiter.priority, self._most(one)):
                return self.book.refusal(one, 1, 0)
        for one in lacking:
            assert one.queue is not None
            one.queue.join(waiter)
            waiter.queues.append(one)
            self._places[waiter.number] = waiter
            self._shrink(one)
        return None

    def _shrink(self, one: Slice) -> None:
        assert one.queue is not None
        for waiter in one.queue.beyond(self._most(one)):
            self._end(waiter, self.book.refusal(one, 1, 0))

    def _most(self, one: Slice) -> int:
        """How many Calls may wait for a place here: before the store has spoken as many as it could grant."""
        if not self._is_full(one):
            return one.terms.cap
        return max(1, max(one.granted - one.returned, one.keep) // QUEUE_SHARE)

    def _is_full(self, one: Slice) -> bool:
        if one not in self._full:
            return False
        if self._monotonic_ns() < one.full_until_ns:
            return True
        self._full.discard(one)
        return False

    def _note_full(self, waiter: Waiter) -> None:
        for one in waiter.queues:
            if one.free < 1:
                one.full_until_ns = self._monotonic_ns() + FULL_NS
                self._full.add(one)
                self._note_busy(one)

    def _note_busy(self, one: Slice) -> None:
        one.busy_until_ns = self._monotonic_ns() + FULL_NS
        self._busy.add(one)

    def _note_empty(self, verdict: Verdict) -> None:
        """Remember what the store had left in buckets that refused."""
        now_ns = self._monotonic_ns()
        for refused in verdict.refused:
            one = self.book.by_number.get(refused.slice)
            if one is not None and one.terms.kind == BUCKET:
                one.left, one.left_ns, one.full_until_ns = refused.left, now_ns, now_ns + EMPTY_NS

    def _believe_nothing(self) -> None:
        """What the store said of full places may not be so any more."""
        self._full.clear()
        for waiter in self.waiting.values():
            waiter.asked = False

    def _forget(self, waiter: Waiter) -> None:
        del self.waiting[waiter.number]
        self._places.pop(waiter.number, None)
        for one in waiter.queues:
            assert one.queue is not None
            one.queue.leave(waiter)
        waiter.queues.clear()

    def _end(self, waiter: Waiter, told: Refusal) -> None:
        if self.waiting.get(waiter.number) is not waiter:
            return  # it was heard of while another one was told
        self._forget(waiter)
        waiter.then(told)

    # Building.

    def _slices(self) -> list[Slice]:
        return list(self.book.slices.values())

    def _wants(self) -> tuple[Want, ...]:
        until = self._monotonic_ns() - self._recall_ns
        wants = []
        spoken_for: dict[int, int] = {}
        # A want stands at the store until the next request; then only those named in it do.
        self._full = {one for one in self._full if one.queue}
        for waiter in islice(self._in_turn(), WANTS_MAX):
            waiter.asked = True
            lines = []
            for one, units in waiter.lines:
                free = one.free - spoken_for.get(one.number, 0)
                spoken_for[one.number] = spoken_for.get(one.number, 0) + min(units, max(free, 0))
                if free < units:
                    lines.append(self._line(one, units - max(free, 0), units))
            if lines:
                last = waiter.since_ns <= until and not waiter.queues
                wants.append(Want(waiter.number, tuple(lines), last))
        return (*wants, *self._reminders())

    def _reminders(self) -> list[Want]:
        """A place for the next Call, where one found none a moment ago and this worker has less than its share.

        Without it a worker with few Calls would never get any: the place that comes back for a Call comes after it.
        """
        now_ns = self._monotonic_ns()
        self._busy = {one for one in self._busy if now_ns < one.busy_until_ns and one.number in self.book.by_number}
        reminders = []
        for one in islice(self._busy, WANTS_MAX):
            if not one.queue and one.free < 1 and one.granted - one.returned < one.keep:
                self._numbered += 1
                reminders.append(Want(self._numbered, (Line(one.number, one.terms, 1, 1, 1),)))
        return reminders

    def _in_turn(self) -> Iterable[Waiter]:
        """Everybody who waits, the most urgent first; all that wait for money are as urgent."""
        waiting = list(self.waiting.values())
        return sorted(waiting, key=_PRIORITY) if self._places else waiting

    def _line(self, slice_: Slice, need: int, units: int) -> Line:
        now_ns = self._monotonic_ns()
        since = now_ns - slice_.asked_ns
        often_ns = max(OFTEN_NS, OFTEN_EACH_NS * len(self.book.by_number))
        if since < often_ns:
            slice_.good *= 2
        elif since > SELDOM_FACTOR * often_ns:
            slice_.good //= 2
        factor = MONEY_FACTOR if slice_.terms.kind == MONEY else GOOD_FACTOR
        slice_.good = min(max(slice_.good, units * factor), slice_.terms.cap)
        slice_.asked_ns = now_ns
        return Line(slice_.number, slice_.terms, need, max(need, slice_.good), units)

    def _return_contended(self) -> None:
        if not self.book.contended:
            return
        now_ns = self._monotonic_ns()
        for one in self._slices():
            if one.contended:
                if one.recalled:
                    one.answered, one.recalled = one.recalled, 0
                    self.book.move(one)
                if one.lingers_until_ns <= now_ns:
                    self.book.return_free(one)

    def _let_go(self, slice_: Slice) -> None:
        self.book.return_free(slice_)
        if slice_.contended:
            self.book.contended -= 1
        # All that it cost was told, or it would not be idle.
        assert not slice_.dirty
        slice_.told_booked = slice_.booked
        self._dropping[slice_.number] = _report(slice_, dropped=True)
        self.book.drop(slice_)

    def _position(self) -> str:
        """Where the oldest open reservation may be. Positions change seldom, so few are kept."""
        book, positions = self.book, self._positions
        here = book.position()
        oldest = next(iter(book.open), book.numbered + 1)
        while len(positions) > 1 and positions[1][0] <= oldest:
            positions.popleft()
        if positions[-1][1] != here:
            # What comes next is written here or later; what is open now may still stand in the segment before.
            positions.append((book.numbered + 1, here))
        return positions[0][1]

    # Applying.

    def _take_in(self, slice_: Slice, state: LeaseState) -> None:
        fresh = state.granted - slice_.granted
        slice_.granted = state.granted
        if not slice_.terms.counted:
            slice_.free += fresh
            if fresh > 0:
                slice_.low = slice_.free // 2
        slice_.settled = state.settled
        slice_.keep = state.keep
        if state.contended != slice_.contended:
            slice_.contended = state.contended
            self.book.contended += 1 if state.contended else -1
        for share in slice_.account.limit.alerts:
            if share not in slice_.alerted and state.settled * 100 >= share * slice_.terms.cap:
                slice_.alerted += (share,)
                self._alerts.append((slice_.terms.account, share))

    def _retry(self) -> None:
        """Give every waiting Call what fits now, in turn; refuse those that the store refused."""
        for waiter in self._in_turn():
            if self.waiting.get(waiter.number) is not waiter:
                continue
            if waiter.refused is None or all(one.free >= units for one, units in waiter.lines):
                self._try(waiter)
            elif self._fits_after_all(waiter, waiter.refused):
                waiter.asked, waiter.refused = False, None
            else:
                self._end(waiter, self._refusal(waiter, waiter.refused))

    def _fits_after_all(self, waiter: Waiter, verdict: Verdict) -> bool:
        """Whether enough became free here while the store was refusing: then it is asked again."""
        units_of = dict(waiter.lines)
        left = {self.book.by_number.get(refused.slice): refused.left for refused in verdict.refused}
        return all(one is not None and left[one] + one.free >= units_of.get(one, 0) for one in left)

    def _refusal(self, waiter: Waiter, verdict: Verdict) -> Refusal:
        units_of = {one.number: (one, units) for one, units in waiter.lines}
        refusals: list[Refusal] = []
        fits: list[Refusal] = []
        for refused in verdict.refused:
            one, units = units_of[refused.slice]
            left = refused.left + one.free
            said = self.book.refusal(one, units, min(left, units - 1), refused.resets_at_ns)
            (refusals if left < units else fits).append(said)
        # What became free since is not what it lacks, unless its time is over.
        refusals = refusals or fits
        # A hard limit closes the Call, whatever a `downgrade` budget would have left open.
        return next((refusal for refusal in refusals if refusal.closes == "call"), refusals[0])

    def _announce(self, alerts: tuple[tuple[str, int], ...]) -> None:
        for account, share in alerts:
            one = self.book.slices.get((account, True)) or self.book.slices.get((account, False))
            if one is not None and self._on_alert is not None:
                limit, cap = one.account.limit.name, one.terms.cap
                self._on_alert(Alert(limit=limit, account=account, share=share, settled=one.settled, cap=cap))


def _nothing() -> None:
    """Nobody watches."""


def _report(slice_: Slice, *, dropped: bool = False) -> Report:
    return Report(
        slice_.number,
        slice_.terms,
        slice_.returned,
        slice_.told_booked,
        slice_.told_over,
        slice_.refunded,
        slice_.answered,
        dropped,
    )
