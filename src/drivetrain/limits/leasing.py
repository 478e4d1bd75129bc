"""The door to limits: what a running Call asks, and the one thread that carries a worker's messages to the store.

Owns the Book, its Renewal and the thread. The hot path never leaves the Book; a Call that does not fit waits here, off
the loop, at most `WAIT_MS` for money and `PLACE_WAIT_MS` for a place. One request at a time is under way, so whatever
many Calls ask becomes one transaction. Called on the event loop; made by the runtime, which also says how to read the
ledger of a worker that died.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from drivetrain.core.calls import Attribution
from drivetrain.core.errors import report_fault
from drivetrain.core.limits import Alert, Limit, Refusal
from drivetrain.core.times import NS_PER_S
from drivetrain.limits.book import Book
from drivetrain.limits.places import NORMAL, PLACE_WAIT_MS
from drivetrain.limits.recovery import ReadLedger, Resolution, resolve
from drivetrain.limits.renewal import Renewal
from drivetrain.limits.slices import Hold, Short, Waiter
from drivetrain.ports.counters import (
    PENDING,
    CounterStore,
    DeadWorker,
    Fenced,
    StoreUnavailable,
    SyncReply,
    SyncRequest,
)

RECALL_MS = 35
"""How long other workers are asked for what they do not need, before the store decides with what it has."""
WAIT_MS = 50
"""How long a Call waits for a store that is silent: it is taken to be gone then, and the Call is refused."""
BUSY_WAITS = 5
"""So many times as long it waits for a store that answers but is asked by many: what it says is the truth, and a
refusal that nobody decided would send away Calls that there is money for."""
REPORT_MS = 0.1
"""So much longer it may be silent for each slice that it is told of: a full report of 20,000 takes 0.15 s, and 0.5 s on
a machine whose loop leaves no time."""
WATCH_S = 0.005
"""Between two looks at who has waited too long, while somebody waits."""
LEAST_WATCH_S = 0.001
"""As often at most, where somebody's time to wait for a place is nearly over."""
AHEAD_S = 0.05
"""Slices that run low are topped up together, so often at most: each time the disk is waited for, and where a project
has thousands of budgets there is always one that runs low."""
BEAT_S = 0.5
"""Between two reports of what was spent while nobody asks; what alerts and screens may lag behind."""
CLOSE_S = 5.0
"""For the last words at shutdown; what was not said then is resolved from the ledger."""
DEAD_BEATS = 4
"""Beats between two looks for workers that died."""
LOOK_S = 0.05
"""The least between two such looks."""


class Limits:
    """Limits of one worker, on its event loop.

    store: joined here, closed by `close`. position: as in `Book`. read_ledger: where None, somebody else buries the
    dead. on_buried: hears what was resolved, on the loop. Raises (constructor): StoreUnavailable.
    """

    def __init__(
        self,
        limits: Iterable[Limit],
        store: CounterStore,
        *,
        worker: str,
        loop: asyncio.AbstractEventLoop,
        position: Callable[[], str] = str,
        read_ledger: ReadLedger | None = None,
        on_alert: Callable[[Alert], None] | None = None,
        on_buried: Callable[[DeadWorker, Resolution], None] | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        recall_ms: int = RECALL_MS,
        wait_ms: int = WAIT_MS,
        place_wait_ms: int = PLACE_WAIT_MS,
    ) -> None:
        self.book = Book(limits, position=position, now_ns=now_ns)
        self.book.urgent = self._soon
        self.book.runs_low = self._before_long
        self.failed = ""
        """Why the store cannot be used at present; empty while it can."""
        self.fenced = False
        """Whether others have resolved this worker's reservations: it must end, and spends nothing until then."""
        self.settle = self.book.settle
        """As `Book.settle`."""
        self.close_hold = self.book.close
        """As `Book.close`."""
        self._loop = loop
        self._store = store
        self._read_ledger = read_ledger
        self._on_buried = on_buried
        self._wait_ms = wait_ms
        self._renewal = Renewal(
            self.book,
            worker,
            monotonic_ns=time.monotonic_ns,
            recall_ms=recall_ms,
            place_wait_ms=place_wait_ms,
            on_alert=on_alert,
        )
        self._renewal.watch = self._watch_soon
        self._under_way = False
        self._asked_s = 0.0
        """When the request that is under way went out."""
        self._reports_ms = 0.0
        """How much longer its answer may take for what it reports."""
        self._scheduled = False
        self._topping_up = False
        self._watching = False
        self._was_rung = False
        self._beats = 0
        self._looked = 0.0
        self._burying: set[str] = set()
        self._stopped = False
        self._over = False
        self._jobs: deque[Callable[[], None]] = deque()
        store.join(worker, position())
        self._thread = threading.Thread(target=self._carry, name="limits", daemon=True)
        self._thread.start()
        self._timer = loop.call_later(BEAT_S, self._beat)

    def use(self, limits: Iterable[Limit]) -> None:
        """Enforce these from now on; running Calls keep theirs."""
        self.book.use(limits)

    # A Call.

    def admit(
        self,
        who: Attribution,
        workflow: str,
        now_ns: int,
        then: Callable[[Hold | Refusal], None],
        priority: int = NORMAL,
    ) -> Hold | Refusal | Waiter:
        """Begin a Call, once, before its route; where it must wait, `then` hears what came of it.

        now_ns: the time of admission, whose periods the whole Call is charged to. priority: `HIGH`, `NORMAL` or `LOW`;
        while all places are taken the more urgent wait first, and the others are refused. End it with `close_hold`.
        """
        accounts = None if self.fenced else self.book.accounts(who, workflow, now_ns)
        if accounts is None:
            return self._unavailable()
        taken = self.book.admit(accounts)
        if type(taken) is Short:
            return self._wait(taken, lambda: self.book.admit(accounts), then, priority)
        return taken  # type: ignore[return-value]

    def reserve(
        self, hold: Hold, worst_nano_usd: int, tokens: int, then: Callable[[Refusal | None], None]
    ) -> Refusal | Waiter | None:
        """Reserve for one attempt; None: it is reserved. Where it must wait, `then` hears None or the refusal.

        End the attempt with `settle(hold, cost_nano_usd, tokens)`. Costs about 1 us for three budgets.
        """
        if self.fenced:
            return self._unavailable()
        taken = self.book.reserve(hold, worst_nano_usd, tokens)
        if type(taken) is Short:
            # Its Call may have been closed while it waited; then nothing may be taken for it.
            return self._wait(
                taken, lambda: None if hold.closed else self.book.reserve(hold, worst_nano_usd, tokens), then
            )
        return taken  # type: ignore[return-value]

    def is_hard(self, hold: Hold) -> bool:
        """Whether a budget must hold for this Call, so that what has no bound cannot be sent."""
        return any(not one.terms.counted for one in hold.accounts.money)

    async def close(self) -> None:
        """Tell the store everything and leave; Calls that still run are left to be resolved from the ledger.

        Takes at most `CLOSE_S` where the store hangs.
        """
        self._stopped = True
        self._timer.cancel()
        self._renewal.give_up(0, self._unavailable())
        until = self._loop.time() + CLOSE_S
        while self._under_way and self._loop.time() < until:
            await asyncio.sleep(WATCH_S / 5)
        request = None if self._under_way else self._renewal.request(full=True)
        leaves = not (self._under_way or self.book.open or self.fenced)
        self._ask(lambda: self._last_words(request, leaves))
        while self._thread.is_alive() and self._loop.time() < until:
            await asyncio.sleep(WATCH_S / 5)

    # On the loop.

    def _wait(
        self, short: Short, take: Callable[[], object], then: Callable[..., None], priority: int = NORMAL
    ) -> Waiter | Refusal:
        waiter = None if self._stopped else self._renewal.wait(short, take, then, priority)
        if waiter is None:
            return self._unavailable()
        if type(waiter) is Waiter:
            if not waiter.asked:
                self._soon()
            self._watch_soon()
        return waiter

    def _soon(self) -> None:
        if not self._scheduled and not self._stopped:
            self._scheduled = True
            self._loop.call_soon(self._go)

    def _before_long(self) -> None:
        if not self._topping_up and not self._stopped:
            self._topping_up = True
            self._loop.call_later(AHEAD_S, self._top_up)

    def _top_up(self) -> None:
        self._topping_up = False
        if not self.book.ahead:
            return  # another request took them along
        if self._under_way:
            self._before_long()
        else:
            self._go()

    def _go(self) -> None:
        """Send what there is to say, unless an answer is awaited: then it goes when that has come."""
        self._scheduled = False
        if self._under_way or self._stopped or self.fenced:
            return
        request = self._renewal.request(always=self._was_rung)
        self._was_rung = False
        if request is not None:
            self._under_way = True
            self._asked_s = self._loop.time()
            self._reports_ms = REPORT_MS * len(request.reports)
            self._ask(lambda: self._sync(request))

    def _answered(self, reply: SyncReply) -> None:
        self._under_way = False
        self.failed = ""
        self._renewal.apply(reply)
        if any(verdict.outcome == PENDING for verdict in reply.verdicts):
            self._look_soon()
        if self._was_rung or self._renewal.urges:
            self._go()

    def _unanswered(self, why: str, fenced: bool) -> None:
        self._under_way = False
        self.failed = why
        self.fenced = fenced
        # What the store told may have been lost with its answer: the next request asks for it.
        self._was_rung = True
        self._renewal.failed()
        self._renewal.give_up(0, self._unavailable())

    def _rung(self) -> None:
        self._renewal.rung()
        # Whether we are to return something or may now have it, only the store knows.
        self._was_rung = True
        self._go()

    def _watch(self) -> None:
        self._watching = False
        renewal = self._renewal
        renewal.end_lingering()
        renewal.expire()
        may_take_ms = self._wait_ms + self._reports_ms
        silent = self._under_way and self._loop.time() - self._asked_s >= may_take_ms / 1000
        renewal.give_up(self._wait_ms if silent else BUSY_WAITS * self._wait_ms + self._reports_ms, self._unavailable())
        if renewal.pressed:
            self._go()
        if renewal.waiting or renewal.lingers:
            self._watch_soon()

    def _watch_soon(self) -> None:
        if self._watching:
            return
        self._watching = True
        expires_in_ns = self._renewal.expires_in_ns
        wait_s = WATCH_S if expires_in_ns is None else min(WATCH_S, max(LEAST_WATCH_S, expires_in_ns / NS_PER_S))
        self._loop.call_later(wait_s, self._watch)

    def _beat(self) -> None:
        self._beats += 1
        self._renewal.tidy()
        self._go()
        if self._beats % DEAD_BEATS == 0:
            self._look_soon()
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def _look_soon(self) -> None:
        """Look for workers that died; at once where a Call waits for others, one of whom may never answer."""
        now = self._loop.time()
        if self._read_ledger is not None and now - self._looked >= LOOK_S:
            self._looked = now
            self._ask(self._look_for_dead)

    def _unavailable(self) -> Refusal:
        return Refusal(code="limits_unavailable")

    # In the thread.

    def _carry(self) -> None:
        while not self._over:
            if self._store.wait(BEAT_S):
                self._tell(self._rung)
            while self._jobs and not self._over:
                self._jobs.popleft()()

    def _sync(self, request: SyncRequest) -> None:
        try:
            reply = self._store.sync(request)
        except StoreUnavailable as error:
            self._tell(self._unanswered, str(error), False)
        except Fenced:
            self._tell(self._unanswered, "this worker was taken for dead", True)
        except Exception as fault:  # noqa: BLE001 - a boundary: the thread must live, and the Calls must be refused
            report_fault("limits", fault)
            self._tell(self._unanswered, type(fault).__name__, False)
        else:
            self._tell(self._answered, reply)

    def _look_for_dead(self) -> None:
        try:
            found = self._store.dead()
        except StoreUnavailable:
            return  # the next sync says so
        for dead in found:
            if dead.worker not in self._burying:
                self._burying.add(dead.worker)
                # Beside this thread: its ledger may be long, and Calls wait for this thread.
                threading.Thread(target=self._read_dead, args=(dead,), name="limits-recovery", daemon=True).start()

    def _read_dead(self, dead: DeadWorker) -> None:
        assert self._read_ledger is not None
        try:
            resolution = resolve(self._read_ledger(dead.worker, dead.position), dead)
        except Exception as fault:  # noqa: BLE001 - a boundary: its leases stay held, and it is tried again
            report_fault(f"limits: the ledger of {dead.worker}", fault)
            self._burying.discard(dead.worker)
            return
        self._ask(lambda: self._bury(dead, resolution))

    def _bury(self, dead: DeadWorker, resolution: Resolution) -> None:
        self._burying.discard(dead.worker)
        try:
            buried = self._store.bury(dead, resolution.charges)
        except StoreUnavailable:
            return  # it is found again
        if buried and self._on_buried is not None:
            self._tell(self._on_buried, dead, resolution)

    def _last_words(self, request: SyncRequest | None, leaves: bool) -> None:
        self._over = True
        try:
            if request is not None:
                self._store.sync(request)
            if leaves:
                self._store.leave()
        except (StoreUnavailable, Fenced) as error:
            report_fault("limits", error)
        finally:
            self._store.close()

    def _ask(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        self._store.wake()

    def _tell(self, what: Callable[..., None], *said: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *said)
        except RuntimeError:
            self._over = True  # the loop has ended, and with it everybody who would listen
