"""The Book: one worker's limits in memory. Reserve, settle and close are plain integer arithmetic; nothing waits.

Owns the slices, the accounts of each combination it has met, and what running Calls hold. It does not talk to the
store: `renewal` fills slices and `leasing` carries its messages. Called on one thread, by the door in `leasing`.

All or nothing: a reservation that fits every nested budget is taken from all of them, else from none. What does not
fit is `Short`, never refused here, unless the store has said that it can never fit in this period.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from operator import attrgetter

from drivetrain.core.calls import Attribution
from drivetrain.core.limits import Limit, Refusal
from drivetrain.core.times import NS_PER_S
from drivetrain.limits.accounts import Declared, Whom
from drivetrain.limits.slices import UNLIMITED, Accounts, Hold, Short, Slice, Taken
from drivetrain.ports.counters import BUCKET, MONEY, SLOTS, refill_wait_ns

KNOWN_MAX = 40_000
"""Combinations of workflow and attribution that are remembered, each about 0.5 KB. Beyond, the half that was not used
lately is forgotten and found again, which costs a few microseconds each; so 20,000 are always remembered."""
SLICES_MAX = 50_000
"""Slices in memory, about 0.5 KB each. Users and tags beyond it are refused until others have been idle."""
EMPTY_NS = 100_000_000
"""For so long the store's word that a bucket is empty is believed, whatever its rate."""
PAUSE_NS = 5_000_000
"""Between two questions about a bucket that was empty: at five times its rate, every unit would be asked for alone."""
Combination = tuple[object, ...]
"""Workflow and attribution, as far as limits ask for them."""
_PLACE = attrgetter("place")
_CODES = {MONEY: "budget_exceeded", BUCKET: "rate_limit_exceeded", SLOTS: "concurrency_limit_exceeded"}


class Book:
    """Limits of one worker.

    position: where in the ledger a frame that is written now would stand (its segment's name).
    """

    def __init__(
        self,
        limits: Iterable[Limit] = (),
        *,
        position: Callable[[], str] = str,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.position = position
        self.now_ns = now_ns
        self.monotonic_ns = monotonic_ns
        self.slices: dict[tuple[str, bool], Slice] = {}
        """(account, whether it is only counted) -> its slice."""
        self.by_number: dict[int, Slice] = {}
        self.open: dict[int, Hold] = {}
        """Holds that have not ended, oldest first."""
        self.numbered = 0
        """The last number given."""
        self.slice_numbered = 0
        self.dirty: list[Slice] = []
        """Slices whose costs the store does not know yet; at most all there are."""
        self.moved: list[Slice] = []
        """Slices of which the store must hear with the next request: what they returned, or took from a bucket."""
        self.contended = 0
        """Slices that others wait for; while there are any, what becomes free is returned at once."""
        self.urgent: Callable[[], None] = _nothing
        """Called when the store should hear soon: something became free that others wait for."""
        self.runs_low: Callable[[], None] = _nothing
        """Called when a slice runs low: the store should hear before it is empty."""
        self.freed: Callable[[Slice], None] = _nobody
        """Called with places of which one came free and that Calls wait for, here or elsewhere."""
        self.ahead: list[Slice] = []
        """Slices that run low."""
        self._known: dict[Combination, Accounts] = {}
        self._known_before: dict[Combination, Accounts] = {}
        """Of the two halves the older one: what is used moves to the other, and what was not goes with it."""
        self._by_whom: dict[Whom, list[Slice]] = {}
        """The slices of everybody who has any, of which combinations are made."""
        self._round = 0
        """How often slices were let go or a period ended, after which all combinations are looked at again."""
        self._starts_ns, self._ends_ns = -UNLIMITED, UNLIMITED
        """Between these every combination that was looked at in this round has its present periods."""
        self.use(limits)

    def use(self, limits: Iterable[Limit]) -> None:
        """Enforce these from now on; running Calls keep what they were admitted under."""
        self._declared = Declared(limits)
        self._by_user, self._by_tag = self._declared.by_user, self._declared.by_tag
        self._by_whom.clear()
        self._known.clear()
        self._known_before.clear()

    # A Call.

    def accounts(self, who: Attribution, workflow: str, now_ns: int) -> Accounts | None:
        """The accounts of a Call admitted now; None where memory is full."""
        key = (
            workflow, who.tenant, who.team, who.use_case, who.key,
            who.user if self._by_user else "", who.tags if self._by_tag else (),
        )  # fmt: skip
        known = self._known.get(key)
        if known is not None and known.round == self._round and self._starts_ns <= now_ns < self._ends_ns:
            return known
        return self._find(key, who, workflow, now_ns)

    def admit(self, accounts: Accounts) -> Hold | Short | Refusal:
        """Begin a Call: its request and its place among running ones are taken, all or nothing."""
        if accounts.entry:
            for one in accounts.entry:
                if one.free < 1:
                    return self._lacking([(each, 1) for each in accounts.entry])
            for one in accounts.requests:
                one.booked += 1
                if not one.moved:
                    self.move(one)
            for one in accounts.entry:
                one.free -= 1
                if one.free < one.low:
                    self._run_low(one)
        number = self.numbered = self.numbered + 1
        hold = self.open[number] = Hold(number, accounts)
        return hold

    def reserve(self, hold: Hold, worst_nano_usd: int, tokens: int = 0) -> Taken:
        """Reserve the worst case of an attempt in every budget, and take its tokens; None where that is done."""
        accounts = hold.accounts
        money = accounts.money
        # What an earlier attempt did not use is still kept, see `settle`.
        more = hold.charged + worst_nano_usd - hold.kept
        for one in money:
            if one.free < more:
                return self._lacking(_lines(accounts, more, tokens))
        if accounts.tokens:
            for one in accounts.tokens:
                if one.free < tokens:
                    return self._lacking(_lines(accounts, more, tokens))
            for one in accounts.tokens:
                one.free -= tokens
                one.booked += tokens
                if not one.moved:
                    self.move(one)
            hold.tokens = tokens
        if more > 0:
            for one in money:
                one.free -= more
                if one.free < one.low:
                    self._run_low(one)
            hold.kept += more
        hold.reserved = worst_nano_usd
        return None

    def settle(self, hold: Hold, cost_nano_usd: int, tokens: int = 0) -> int:
        """End an attempt at what it cost; 0 where it was not sent. Returns the provider's overrun in nano-USD.

        What it did not use is kept until the Call ends or its next attempt takes it: the ledger does not know this
        attempt's end yet, so after a crash it would be settled at its reservation, and that must still fit. What a
        provider charges beyond the reservation is booked in full: from what is free here, else over the cap.
        """
        overrun = cost_nano_usd - hold.reserved
        hold.charged += cost_nano_usd
        hold.reserved = 0
        if hold.charged > hold.kept:
            for one in hold.accounts.money:
                one.free -= hold.charged - hold.kept
                if one.free < 0:
                    one.over -= one.free
                    one.free = 0
                    self.touch(one)
            hold.kept = hold.charged
        if hold.tokens:
            self._refund(hold, tokens)
        return max(0, overrun)

    def close(self, hold: Hold) -> None:
        """End a Call: its cost is booked, the rest and its place are free. What still runs was not sent."""
        if hold.closed:
            return
        hold.closed = True
        if hold.tokens:
            self._refund(hold, 0)
        accounts, charged = hold.accounts, hold.charged
        back = hold.kept - charged
        for one in accounts.money:
            one.free += back
            one.booked += charged
            if not one.dirty:
                one.dirty = True
                self.dirty.append(one)
        del self.open[hold.number]
        if self.contended:
            self._give_back(accounts)
        for one in accounts.calls:
            one.free += 1
            if one.queue or one.contended:
                self.freed(one)

    # Slow paths.

    def refusal(self, slice_: Slice, needed: int, left: int, resets_at_ns: int = 0) -> Refusal:
        """What to say of a slice that a Call does not fit."""
        limit, terms = slice_.account.limit, slice_.terms
        account = slice_.account
        window_s = limit.window_s or (account.ends_ns - account.starts_ns) // NS_PER_S
        return Refusal(
            code=_CODES[terms.kind],
            closes="variant" if limit.mode == "downgrade" else "call",
            limit=limit.name,
            whose=account.whose,
            unit=limit.unit,
            cap=terms.cap,
            window_s=0 if terms.kind == SLOTS else window_s,
            needed=needed,
            left=left,
            resets_at_ns=resets_at_ns or terms.ends_ns,
            now_ns=self.now_ns(),
        )

    def return_free(self, slice_: Slice, most: int = UNLIMITED) -> None:
        """Take what is free out of a slice; its next report gives it back to the store."""
        slice_.low = 0
        units = min(slice_.free, most)
        if units > 0 and not slice_.terms.counted:
            slice_.returned += units
            slice_.free -= units
            self.move(slice_)

    def touch(self, slice_: Slice) -> None:
        """Have the next full report tell what it cost."""
        if not slice_.dirty:
            slice_.dirty = True
            self.dirty.append(slice_)

    def move(self, slice_: Slice) -> None:
        """Have the next request tell what else changed in it."""
        if not slice_.moved:
            slice_.moved = True
            self.moved.append(slice_)

    def drop(self, slice_: Slice) -> None:
        """Forget a slice that nobody uses; its last report must have been made."""
        del self.slices[slice_.terms.account, slice_.terms.counted]
        del self.by_number[slice_.number]
        self._by_whom.pop(slice_.whom, None)
        slice_.gone = True
        # Combinations are looked at when they are next used, since most have nothing to do with this one.
        self._round += 1

    def _lacking(self, lines: list[tuple[Slice, int]]) -> Short | Refusal:
        """What to do about lines of which some do not fit: ask, or refuse where the store's answer is known."""
        never: tuple[Slice, int] | None = None
        for one, units in lines:
            if one.free >= units:
                continue
            if units > _unspent(one) and (never is None or one.account.limit.mode == "hard"):
                never = (one, units)
        if never is not None:
            one, units = never
            return self.refusal(one, units, max(0, _unspent(one)))
        return self._known_empty(lines) or Short(lines)

    def _known_empty(self, lines: list[tuple[Slice, int]]) -> Refusal | None:
        """The refusal by a bucket that the store found empty a moment ago and that cannot hold enough by now.

        Only buckets: they fill at a known rate. What other workers returned meanwhile is missed for `EMPTY_NS` at most.
        """
        for one, units in lines:
            if one.terms.kind != BUCKET or one.free >= units:
                continue
            now_ns = self.monotonic_ns()
            if now_ns >= one.full_until_ns:
                continue
            since_ns = now_ns - one.left_ns
            there = one.free + one.left + since_ns * one.terms.refill // one.terms.refill_ns
            if there < units or since_ns < PAUSE_NS:
                wait_ns = refill_wait_ns(max(1, units - there), one.terms)
                return self.refusal(one, units, min(there, units - 1), self.now_ns() + wait_ns)
        return None

    def _refund(self, hold: Hold, tokens: int) -> None:
        unused = hold.tokens - tokens
        hold.tokens = 0
        for one in hold.accounts.tokens:
            if unused > 0:
                # By way of the store, which knows how much the bucket may still hold.
                one.refunded += unused
                one.full_until_ns = 0
                if not one.moved:
                    self.move(one)

    def _run_low(self, slice_: Slice) -> None:
        if not slice_.ahead and not slice_.contended:
            slice_.ahead = True
            self.ahead.append(slice_)
            self.runs_low()

    def _give_back(self, accounts: Accounts) -> None:
        """Return what is free where others wait, at once: else the next Call here would take it before they hear."""
        for one in accounts.money:
            if one.contended and one.free > 0:
                self.return_free(one)
                self.urgent()

    def _find(self, key: Combination, who: Attribution, workflow: str, now_ns: int) -> Accounts | None:
        if not self._starts_ns <= now_ns < self._ends_ns:
            self._round += 1
            self._starts_ns, self._ends_ns = -UNLIMITED, UNLIMITED
        found = self._known.get(key) or self._known_before.pop(key, None)
        if found is None or not found.starts_ns <= now_ns < found.ends_ns or any(one.gone for one in found.all):
            slices: list[Slice] = []
            for whom in self._declared.whoms(who, workflow):
                of_whom = self._by_whom.get(whom)
                if of_whom is None or not all(one.account.holds_at(now_ns) and not one.gone for one in of_whom):
                    of_whom = self._slices_of(whom, now_ns)
                    if of_whom is None:
                        return None
                slices += of_whom
            # Two tags may share one account: `each tag:env` takes `env` and `env=` for the same.
            found = Accounts(sorted(dict.fromkeys(slices), key=_PLACE))
        found.round = self._round
        self._starts_ns, self._ends_ns = max(self._starts_ns, found.starts_ns), min(self._ends_ns, found.ends_ns)
        if len(self._known) >= KNOWN_MAX // 2 and key not in self._known:
            self._known_before, self._known = self._known, {}
        self._known[key] = found
        return found

    def _slices_of(self, whom: Whom, now_ns: int) -> list[Slice] | None:
        """The slices of the present periods; None where memory is full."""
        slices = []
        for place, account in self._declared.accounts(whom, now_ns):
            name = (account.terms.account, account.terms.counted)
            found = self.slices.get(name)
            if found is None:
                if len(self.slices) >= SLICES_MAX:
                    return None
                self.slice_numbered += 1
                found = Slice(self.slice_numbered, account, whom)
                self.slices[name] = self.by_number[self.slice_numbered] = found
            elif found.account != account:
                # The limit was edited: the same account, so the same slice, under the new terms.
                if account.terms.cap < found.terms.cap:
                    # What was leased under the higher cap goes back; what this Call needs is asked for under the lower.
                    self.return_free(found)
                found.account, found.terms = account, account.terms
            found.whom, found.place = whom, place
            slices.append(found)
        if slices:  # Nobody without limits is remembered: there is no end of them.
            self._by_whom[whom] = slices
        return slices


def _unspent(slice_: Slice) -> int:
    """What is not settled, as far as this worker knows: what settled only grows."""
    return slice_.terms.cap - slice_.settled - (slice_.booked - slice_.told_booked if slice_.terms.kind == MONEY else 0)


def _lines(accounts: Accounts, nano_usd: int, tokens: int) -> list[tuple[Slice, int]]:
    """(slice, units) of an attempt."""
    return [(one, nano_usd) for one in accounts.money] + [(one, tokens) for one in accounts.tokens]


def _nothing() -> None:
    """Nobody listens."""


def _nobody(_: Slice) -> None:
    """Nobody listens."""
