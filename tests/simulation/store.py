"""The way to the counter store, and each worker's door to its limits, in virtual time.

`Door` stands where `limits.leasing.Limits` stands and keeps its order of events: Book and Renewal are real, and so is
the store's model; only the thread between them is played. Requests and answers take time, get lost or arrive twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from drivetrain.core.calls import Attribution
from drivetrain.core.limits import Limit, Refusal
from drivetrain.limits.book import Book
from drivetrain.limits.leasing import BEAT_S, DEAD_BEATS, LEAST_WATCH_S, LOOK_S, RECALL_MS, WAIT_MS, WATCH_S
from drivetrain.limits.memory_counters import MemoryCounters
from drivetrain.limits.places import NORMAL
from drivetrain.limits.recovery import resolve
from drivetrain.limits.renewal import Renewal
from drivetrain.limits.slices import Hold, Short, Waiter
from drivetrain.ports.counters import PENDING, DeadWorker, StoreUnavailable, SyncReply, SyncRequest

from .kernel import MS, SECOND, Kernel

if TYPE_CHECKING:
    from .laws import Laws
    from .worker import Worker

HOP_NS = MS
"""Of a message on a good day: a whole recall takes at most a dozen of them, well within `RECALL_MS`."""
FEW = 1
"""Full reports are seldom, as where thousands of budgets are busy."""
UNAVAILABLE = Refusal(code="limits_unavailable")


class Store:
    """One counter store, the ways to it, and how they are at present."""

    def __init__(self, kernel: Kernel) -> None:
        self.truth = MemoryCounters(kernel.wall_ns)
        self.loses = 0.0
        """How likely a message is lost or arrives twice."""
        self.slow_ns = 0
        """What a message takes at most beyond a hop."""
        self.troubled_ns = 0
        """Until when Calls may be refused because of the store's troubles."""
        self.doors: list[Door] = []
        self._kernel = kernel

    def trouble(self) -> None:
        """From now on, and for as long as a Call waits, a refusal may be the store's fault."""
        self.troubled_ns = self._kernel.now_ns + 2 * self.slow_ns + (WAIT_MS + RECALL_MS) * MS

    def hop_ns(self) -> int:
        """How long the next message takes."""
        if self.slow_ns:
            self.trouble()
        return self._kernel.dice.randrange(HOP_NS) + (self._kernel.dice.randrange(self.slow_ns) if self.slow_ns else 0)

    def fate(self) -> str:
        """What becomes of the next request."""
        if self._kernel.dice.random() >= self.loses:
            return "arrives"
        self.trouble()
        return self._kernel.dice.choice(("lost", "answer lost", "twice"))

    def ring(self) -> None:
        """Whoever was rung hears it a moment later."""
        for door in self.doors:
            if not door.worker.dead and door.handle.wait(0):
                self._kernel.after(self.hop_ns(), door.rung, door.worker)


class Door:
    """One worker's limits, as `execution.environment.LimitsDoor` asks for them."""

    def __init__(
        self, kernel: Kernel, worker: Worker, store: Store, limits: Iterable[Limit], laws: Laws,
        read_ledger: Callable[[str, str], Iterable[Any]],
    ) -> None:  # fmt: skip
        self.worker = worker
        self.book = Book(
            limits, position=lambda: worker.journal.segment, now_ns=kernel.wall_ns, monotonic_ns=kernel.monotonic_ns
        )
        self.book.urgent = self._soon
        self.renewal = Renewal(self.book, worker.name, monotonic_ns=kernel.monotonic_ns, recall_ms=RECALL_MS)
        self.renewal.few = FEW
        self.renewal.watch = self._watch_soon
        self.handle = store.truth.handle()
        self.under_way = False
        self._kernel = kernel
        self._store = store
        self._laws = laws
        self._read_ledger = read_ledger
        self._scheduled = self._watching = self._was_rung = False
        self._beats = 0
        self._looked_ns = 0
        self._burying: set[str] = set()
        self.handle.join(worker.name, worker.journal.segment)
        store.doors.append(self)
        self._beat()

    # A Call.

    def admit(
        self,
        who: Attribution,
        workflow: str,
        now_ns: int,
        then: Callable[[Hold | Refusal], None],
        priority: int = NORMAL,
    ) -> Hold | Refusal | Waiter:
        self.worker.edge("admit")
        accounts = self.book.accounts(who, workflow, now_ns)
        assert accounts is not None

        def heard(held: Hold | Refusal) -> None:
            self._note_admitted(held)
            then(held)

        taken = self.book.admit(accounts)
        if isinstance(taken, Short):
            return self._wait(taken, lambda: self.book.admit(accounts), heard, priority)
        self._note_admitted(taken)
        return taken

    def reserve(
        self, hold: Hold, worst_nano_usd: int, tokens: int, then: Callable[[Refusal | None], None]
    ) -> Refusal | Waiter | None:
        self.worker.edge("reserve")
        laws, name = self._laws, self.worker.name
        wants = laws.wants(name, hold, worst_nano_usd)

        def heard(short: Refusal | None) -> None:
            laws.heard(name, wants, hold, short)
            then(short)

        taken = self.book.reserve(hold, worst_nano_usd, tokens)
        if isinstance(taken, Short):
            # Its Call may have been closed while it waited; then nothing may be taken for it.
            waits = self._wait(
                taken, lambda: None if hold.closed else self.book.reserve(hold, worst_nano_usd, tokens), heard
            )
            if isinstance(waits, Refusal):
                laws.heard(name, wants, hold, waits)
            return waits
        laws.heard(name, wants, hold, taken)
        return taken

    def settle(self, hold: Hold, cost_nano_usd: int, tokens: int = 0) -> int:
        self.worker.edge("settle")
        overrun = self.book.settle(hold, cost_nano_usd, tokens)
        self._laws.holds(self.worker.name, hold)
        return overrun

    def close_hold(self, hold: Hold) -> None:
        self.worker.edge("close")
        self._laws.lets_go(self.worker.name, hold)  # first: its place may be somebody else's before this returns
        self.book.close(hold)

    def is_hard(self, hold: Hold) -> bool:
        return any(not one.terms.counted for one in hold.accounts.money)

    # Ends.

    def leave(self) -> bool:
        """Say the last words and go, at rest; whether nothing was left open."""
        request = self.renewal.request(always=True, full=True)
        assert request is not None
        self.handle.sync(request)
        return self.handle.leave()

    # As in `leasing`, on the loop.

    def _note_admitted(self, held: Hold | Refusal | Short) -> None:
        if isinstance(held, Hold):
            self._laws.admitted(self.worker.name, held)
        elif isinstance(held, Refusal):
            self._laws.not_admitted(held)

    def _wait(
        self, short: Short, take: Callable[[], object], then: Callable[..., None], priority: int = NORMAL
    ) -> Waiter | Refusal:
        waiter = self.renewal.wait(short, take, then, priority)
        assert waiter is not None
        if isinstance(waiter, Waiter):
            if not waiter.asked:
                self._soon()
            self._watch_soon()
        return waiter

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._kernel.after(0, self._go, self.worker)

    def _go(self) -> None:
        self._scheduled = False
        if self.under_way:
            return
        request = self.renewal.request(always=self._was_rung)
        self._was_rung = False
        if request is not None:
            self.under_way = True
            fate = self._store.fate()
            self._kernel.after(self._store.hop_ns(), lambda: self._arrive(request, fate), self.worker)

    def _arrive(self, request: SyncRequest, fate: str) -> None:
        worker, store, hop_ns = self.worker, self._store, self._store.hop_ns()
        worker.edge("sync")
        try:
            if fate == "lost":
                raise StoreUnavailable("the request was lost")
            reply = self.handle.sync(request)
            if fate == "twice":
                worker.edge("synced once")
                reply = self.handle.sync(request)
            self._laws.stored()
            store.ring()
            worker.edge("synced")
            if fate == "answer lost":
                raise StoreUnavailable("the answer was lost")
        except StoreUnavailable:
            store.trouble()
            self._kernel.after(hop_ns, self._unanswered, worker)
        else:
            self._kernel.after(hop_ns, lambda: self._answered(reply), worker)

    def _answered(self, reply: SyncReply) -> None:
        self.under_way = False
        self.renewal.apply(reply)
        if any(verdict.outcome == PENDING for verdict in reply.verdicts):
            self._look_soon()
        if self._was_rung or self.renewal.presses:
            self._go()

    def _unanswered(self) -> None:
        self.under_way = False
        self._was_rung = True
        self.renewal.failed()
        self.renewal.give_up(0, UNAVAILABLE)

    def rung(self) -> None:
        """Another worker returned something, or wants some."""
        self.renewal.rung()
        self._was_rung = True
        self._go()

    def _watch(self) -> None:
        self._watching = False
        renewal = self.renewal
        renewal.end_lingering()
        renewal.expire()
        renewal.give_up(WAIT_MS, UNAVAILABLE)
        if renewal.pressed:
            self._go()
        if renewal.waiting or renewal.lingers:
            self._watch_soon()

    def _watch_soon(self) -> None:
        if self._watching:
            return
        self._watching = True
        expires_in_ns = self.renewal.expires_in_ns
        wait_ns = int(WATCH_S * SECOND)
        if expires_in_ns is not None:
            wait_ns = min(wait_ns, max(int(LEAST_WATCH_S * SECOND), expires_in_ns))
        self._kernel.after(wait_ns, self._watch, self.worker)

    def _beat(self) -> None:
        self._beats += 1
        if self._beats > 1:
            self.renewal.tidy()
            self._go()
            if self._beats % DEAD_BEATS == 0:
                self._look_soon()
        self._kernel.after(int(BEAT_S * SECOND), self._beat, self.worker, keeps_awake=False)

    def _look_soon(self) -> None:
        if self._kernel.now_ns - self._looked_ns >= int(LOOK_S * SECOND):
            self._looked_ns = self._kernel.now_ns
            self._kernel.after(self._store.hop_ns(), self._look_for_dead, self.worker)

    def _look_for_dead(self) -> None:
        try:
            found = self.handle.dead()
        except StoreUnavailable:
            return
        for dead in found:
            if dead.worker not in self._burying:
                self._burying.add(dead.worker)
                self._kernel.after(self._store.hop_ns(), partial(self._bury, dead), self.worker)

    def _bury(self, dead: DeadWorker) -> None:
        self._burying.discard(dead.worker)
        resolution = resolve(self._read_ledger(dead.worker, dead.position), dead)
        self.worker.edge("bury")
        try:
            buried = self.handle.bury(dead, resolution.charges)
        except StoreUnavailable:
            return
        self._kernel.note("buried", dead.worker, buried, sorted(resolution.charges.items()))
        self._laws.stored()
        self._store.ring()
        self.worker.edge("buried")
