"""Promises 2, 3 and 14 as laws: any interleaving of workers, messages, crashes and clocks.

At every step: what is settled and reserved never exceeds a cap by one nano-USD, the providers' own overruns apart. At
rest: a Call is refused exactly when it does not fit. At the end: nothing is held, and every account has settled what
the ledger says, to the nano-USD.
"""

from __future__ import annotations

import sys
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from limits_world import NOW_NS, Clock, Stores, Worker, budget, bury_all, pump, waited

from drivetrain.core.calls import Attribution
from drivetrain.core.limits import Refusal
from drivetrain.limits.renewal import FEW, IDLE_NS
from drivetrain.limits.slices import Hold

PROJECT, TEAM, USER = 100, 60, 25
TEAMS, USERS = ("red", "blue"), ("ann", "bob")
LIMITS = [
    budget("all", PROJECT, per="day", zone="Europe/Berlin"),
    budget("team", TEAM, "team", None, per="day", zone="America/New_York", mode="downgrade"),
    budget("user", USER, "user", None, per="month"),
    budget("watch", 30, "user", None, per="day", mode="soft", alerts=(50, 100)),
]
CAPS = {"all": PROJECT, "team": TEAM, "user": USER}
amounts = st.integers(0, 30)


class OneCall:
    def __init__(self, worker: Worker, hold: Hold, call_id: str) -> None:
        self.worker, self.hold, self.call_id = worker, hold, call_id
        self.framed: int | None = None
        """What the ledger says it costs, while it has no closed frame."""
        self.cost: int | None = None
        """What it cost, once its closed frame is written."""
        self.over = 0
        self.sent = False

    @property
    def running(self) -> bool:
        return not self.worker.gone and not self.hold.closed

    def spent(self) -> int:
        if self.cost is not None:
            return self.cost
        return self.hold.kept if self.running else self.framed or 0


class Interleaved(RuleBasedStateMachine):
    kind = "memory"

    @initialize(count=st.integers(1, 3), few=st.sampled_from([0, FEW]))
    def begin(self, count: int, few: int) -> None:
        self.few = few
        self.clock = Clock()
        self.stores = Stores(self.kind, self.clock)
        self.ledgers: dict[str, list[Any]] = {}
        self.workers = [self._worker() for _ in range(count)]
        self.calls: list[OneCall] = []
        self.pending: list[tuple[Worker, Hold, str, list[Any]]] = []
        self.numbered = 0

    def _worker(self) -> Worker:
        return Worker(self.stores, LIMITS, ledgers=self.ledgers, few=self.few)

    # What Calls do.

    @rule(which=st.integers(0, 2), team=st.sampled_from(TEAMS), user=st.sampled_from(USERS), worst=amounts)
    def call(self, which: int, team: str, user: str, worst: int) -> None:
        worker = self.workers[which % len(self.workers)]
        hold = worker.admit(Attribution("", team, "", "", user))
        assert isinstance(hold, Hold)
        self.numbered += 1
        taken = worker.reserve(hold, worst)
        if isinstance(taken, list):
            self.pending.append((worker, hold, f"c{self.numbered}", taken))
        else:
            self._taken(worker, hold, f"c{self.numbered}", taken)

    def _taken(self, worker: Worker, hold: Hold, call_id: str, taken: Refusal | None) -> None:
        if isinstance(taken, Refusal):
            worker.book.close(hold)
            return
        call = OneCall(worker, hold, call_id)
        self.calls.append(call)

    def _heard(self) -> None:
        still = []
        for worker, hold, call_id, heard in self.pending:
            if heard:
                self._taken(worker, hold, call_id, heard[0])
            elif not worker.gone:
                still.append((worker, hold, call_id, heard))
        self.pending = still

    def _running(self) -> list[OneCall]:
        self._heard()
        return [call for call in self.calls if call.running]

    @rule(which=st.integers(0, 50))
    def send(self, which: int) -> None:
        """The frame is written: from now on the attempt may be on its way."""
        if running := [call for call in self._running() if call.hold.reserved]:
            call = running[which % len(running)]
            call.worker.write_reserved(call.hold, call.call_id)
            call.framed = call.hold.charged + call.hold.reserved
            call.sent = True

    @rule(which=st.integers(0, 50), cost=amounts, closes=st.booleans())
    def end_attempt(self, which: int, cost: int, closes: bool) -> None:
        if running := self._running():
            call = running[which % len(running)]
            hold = call.hold
            if not call.sent:
                cost = 0
            call.sent = False
            call.over += max(0, cost - hold.reserved)
            call.worker.book.settle(hold, cost)
            if closes:
                call.worker.write_closed(hold, call.call_id)
                call.cost = hold.charged
                call.worker.book.close(hold)

    @precondition(lambda self: not self.pending)
    @rule(which=st.integers(0, 2), team=st.sampled_from(TEAMS), user=st.sampled_from(USERS), cost=st.integers(1, 5))
    def call_from_end_to_end(self, which: int, team: str, user: str, cost: int) -> None:
        """Every step of it, since chance alone seldom puts them in order."""
        worker = self.workers[which % len(self.workers)]
        self._come_to_rest(worker)
        hold = worker.admit(Attribution("", team, "", "", user))
        assert isinstance(hold, Hold)
        self.numbered += 1
        taken = waited(worker.reserve(hold, 5), self.workers)
        self._taken(worker, hold, f"c{self.numbered}", taken)
        if taken is None:
            call = self.calls[-1]
            worker.write_reserved(hold, call.call_id)
            worker.book.settle(hold, cost)
            worker.write_closed(hold, call.call_id)
            call.cost = cost
            worker.book.close(hold)

    @rule(which=st.integers(0, 50), worst=amounts)
    def next_attempt(self, which: int, worst: int) -> None:
        waiting = {id(hold) for _, hold, _, _ in self.pending}
        if running := [c for c in self._running() if not c.hold.reserved and id(c.hold) not in waiting]:
            call = running[which % len(running)]
            call.worker.reserve(call.hold, worst)  # where it must wait, it is taken whenever it is taken

    def _come_to_rest(self, worker: Worker) -> None:
        for one in self.workers:
            one.finish()
        bury_all(worker, self.ledgers)
        pump(self.workers)

    # What messages do.

    @rule(which=st.integers(0, 2), always=st.booleans(), full=st.booleans())
    def build(self, which: int, always: bool, full: bool) -> None:
        worker = self.workers[which % len(self.workers)]
        if worker.under_way is None:
            if worker.store.wait(0):
                worker.renewal.rung()
            worker.build(always=always, full=full)

    @rule(which=st.integers(0, 2))
    def deliver(self, which: int) -> None:
        worker = self.workers[which % len(self.workers)]
        if worker.under_way is not None:
            worker.deliver()  # twice, too: a request may be repeated

    @rule(which=st.integers(0, 2))
    def hear(self, which: int) -> None:
        worker = self.workers[which % len(self.workers)]
        if worker.said is not None:
            worker.hear()

    @rule(which=st.integers(0, 2))
    def lose(self, which: int) -> None:
        worker = self.workers[which % len(self.workers)]
        if worker.under_way is not None:
            worker.lose()

    @rule()
    def rest(self) -> None:
        pump(self.workers)

    @rule(which=st.integers(0, 2))
    def tidy(self, which: int) -> None:
        for _ in range(2):
            self.workers[which % len(self.workers)].renewal.tidy()
            self.clock.monotonic_ns += IDLE_NS
        self.workers[which % len(self.workers)].renewal.tidy()

    # What the world does.

    @rule(seconds=st.sampled_from([0.02, 0.04, 0.06, 0.1, 0.2, 1, 7 * 3_600, 86_400, 31 * 86_400]))
    def time_passes(self, seconds: float) -> None:
        self.clock.pass_s(seconds)

    @rule(seconds=st.integers(-40 * 86_400, 40 * 86_400))
    def clock_jumps(self, seconds: int) -> None:
        self.clock.wall_ns = max(NOW_NS - 90 * 86_400 * 10**9, self.clock.wall_ns + seconds * 10**9)

    @rule(which=st.integers(0, 2))
    def crash(self, which: int) -> None:
        index = which % len(self.workers)
        self._heard()
        self.workers[index].crash()
        self.workers[index] = self._worker()

    @rule(which=st.integers(0, 2))
    def bury(self, which: int) -> None:
        bury_all(self.workers[which % len(self.workers)], self.ledgers)

    # Laws.

    def _spent(self) -> tuple[dict[str, int], dict[str, int]]:
        self._heard()
        spent: dict[str, int] = {}
        over: dict[str, int] = {}
        for call in self.calls:
            for name in call.hold.accounts.names:
                spent[name] = spent.get(name, 0) + call.spent()
                over[name] = over.get(name, 0) + call.over
        return spent, over

    @invariant()
    def never_overspent(self) -> None:
        if not hasattr(self, "calls"):
            return
        spent, over = self._spent()
        for name, units in spent.items():
            limit = name.split("/")[0]
            if limit in CAPS:
                assert units <= CAPS[limit] + over[name], name
        for name, account in self.stores.memory.accounts.items():
            if name.split("/")[0] in CAPS:
                assert account.settled + account.held <= CAPS[name.split("/")[0]] + account.over, name
                assert account.held >= 0

    @precondition(lambda self: not self.pending)
    @rule(which=st.integers(0, 2), team=st.sampled_from(TEAMS), user=st.sampled_from(USERS), worst=st.integers(1, 30))
    def refused_only_when_it_does_not_fit(self, which: int, team: str, user: str, worst: int) -> None:
        worker = self.workers[which % len(self.workers)]
        self._come_to_rest(worker)
        spent, _ = self._spent()
        hold = worker.admit(Attribution("", team, "", "", user))
        assert isinstance(hold, Hold)
        left = {n: CAPS[n.split("/")[0]] - spent.get(n, 0) for n in hold.accounts.names if n.split("/")[0] in CAPS}
        taken = waited(worker.reserve(hold, worst), self.workers)
        if all(units >= worst for units in left.values()):
            assert taken is None, (taken, left, worst)
        # Where it does not fit it is refused; after an overrun, what was leased before may still be spent.
        elif not any(call.over for call in self.calls):
            assert isinstance(taken, Refusal), (left, worst)
            assert left[next(name for name in left if name.startswith(f"{taken.limit}/"))] < worst
        self.numbered += 1
        self._taken(worker, hold, f"c{self.numbered}", taken)

    def teardown(self) -> None:
        if not hasattr(self, "calls") or sys.exc_info()[0] is not None:
            return
        self.clock.pass_s(0.06)  # a Call that waits for what a dead worker holds is refused by then
        pump(self.workers)
        for call in self._running():
            call.worker.book.settle(call.hold, 0)
            call.worker.write_closed(call.hold, call.call_id)
            call.cost = call.hold.charged
            call.worker.book.close(call.hold)
        last = self._worker()
        for worker in self.workers:
            worker.finish()
            assert not worker.book.open
            assert worker.leave()
        bury_all(last, self.ledgers)
        spent, _ = self._spent()
        assert last.store.dead() == ()
        for name in spent:
            state = last.store.account(name)
            if state is None:
                assert spent[name] == 0
                continue
            assert state.held == 0, name
            assert state.settled == spent[name], name
        last.leave()
        self.stores.close()


class InterleavedTwin(Interleaved):
    """The same on SQLite and the model at once: every answer must be the same."""

    kind = "twin"


_FEW = {"deadline": None, "print_blob": True, "suppress_health_check": list(HealthCheck)}
TestInterleaved = Interleaved.TestCase
TestInterleaved.settings = settings(max_examples=150, stateful_step_count=50, **_FEW)
TestInterleavedTwin = InterleavedTwin.TestCase
TestInterleavedTwin.settings = settings(max_examples=25, stateful_step_count=40, **_FEW)
