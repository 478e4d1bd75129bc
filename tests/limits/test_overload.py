"""More Calls than places or tokens: who is refused, how soon, in what order, and how workers share what there is."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from limits_world import WHO, Clock, Stores, Worker, bury_all, pump, waited

from drivetrain.core.calls import Attribution
from drivetrain.core.limits import Limit, Refusal
from drivetrain.limits.leasing import Limits
from drivetrain.limits.places import FULL_NS, HIGH, LOW, NORMAL, PLACE_WAIT_MS, QUEUE_SHARE
from drivetrain.limits.slices import Hold, Waiter
from drivetrain.ports.counters import fair_share
from support.tries import PATIENCE_S, TRIES

pytestmark = pytest.mark.slow

CAP = 32
MAY_WAIT = CAP // QUEUE_SHARE
GATE = Limit(name="gate", kind="concurrency", dimension="project", value="", unit="calls", amount=CAP)
WAIT_S = PLACE_WAIT_MS / 1000


def full(count: int = 1, limits: list[Limit] | None = None) -> tuple[Stores, list[Worker], list[Hold]]:
    """Workers of which the first runs all the Calls that may run, and knows that there are no more places."""
    stores = Stores("memory", Clock())
    workers = [Worker(stores, limits or [GATE]) for _ in range(count)]
    holds = [waited(workers[0].admit(WHO), workers) for _ in range(CAP)]
    assert all(isinstance(hold, Hold) for hold in holds)
    waiting = workers[0].admit(WHO)
    pump(workers)
    assert waiting == []
    stores.clock.pass_s(WAIT_S)
    workers[0].renewal.expire()
    assert isinstance(waiting[0], Refusal)
    return stores, workers, holds


# One worker's queue.


def test_the_most_urgent_gets_the_next_place_and_among_equals_the_oldest() -> None:
    _, (worker,), holds = full()
    asked = [worker.admit(WHO, priority=priority) for priority in (LOW, NORMAL, HIGH, NORMAL)]
    for hold, expected in zip(holds, (2, 1, 3, 0), strict=False):
        worker.book.close(hold)
        assert [number for number, heard in enumerate(asked) if heard] == [expected]
        assert isinstance(asked[expected].pop(), Hold)
    assert len(worker.book.open) == CAP


def test_where_the_queue_is_full_a_call_is_refused_at_once_and_the_store_is_not_asked() -> None:
    stores, (worker,), _ = full()
    asked = stores.memory.tick
    waiting = [worker.admit(WHO) for _ in range(MAY_WAIT)]
    assert waiting == [[]] * MAY_WAIT
    for priority in (NORMAL, LOW):
        refused = worker.admit(WHO, priority=priority)
        assert isinstance(refused, Refusal)
        assert (refused.code, refused.limit, refused.cap) == ("concurrency_limit_exceeded", "gate", CAP)
    assert not worker.renewal.presses
    assert stores.memory.tick == asked
    assert waiting == [[]] * MAY_WAIT, "one that waited was sent away by one that is not more urgent"


def test_a_more_urgent_call_sends_the_youngest_of_the_least_urgent_away() -> None:
    _, (worker,), _ = full()
    first, low, younger, last = (worker.admit(WHO, priority=one) for one in (NORMAL, LOW, LOW, NORMAL))
    youngest = worker.admit(WHO, priority=NORMAL)
    assert isinstance(younger[0], Refusal)
    assert [first, low, last] == [[], [], []]
    assert worker.admit(WHO, priority=HIGH) == []
    assert isinstance(low[0], Refusal)
    assert worker.admit(WHO, priority=HIGH) == []
    assert isinstance(youngest[0], Refusal)
    assert [first, last] == [[], []]


def test_a_place_is_waited_for_so_long_and_no_longer() -> None:
    stores, (worker,), _ = full()
    waiting = worker.admit(WHO)
    assert worker.renewal.expires_in_ns == PLACE_WAIT_MS * 1_000_000
    stores.clock.pass_s(WAIT_S - 1e-6)
    worker.renewal.expire()
    assert waiting == []
    stores.clock.pass_s(1e-6)
    worker.renewal.expire()
    assert isinstance(waiting[0], Refusal)
    assert worker.renewal.expires_in_ns is None


def test_nobody_is_refused_a_place_before_the_store_has_spoken() -> None:
    stores, workers, _ = full(2)
    waiting = workers[1].admit(WHO)
    stores.clock.pass_s(WAIT_S)
    workers[1].renewal.expire()
    assert waiting == []
    pump(workers)
    assert isinstance(waiting[0], Refusal), "it has waited long enough, and now the store has spoken"


def test_one_ring_brings_a_place_that_another_worker_returned() -> None:
    _, workers, holds = full(2)
    waiting = workers[1].admit(WHO)
    pump(workers)
    assert waiting == []
    workers[0].book.close(holds[0])
    pump(workers)
    assert isinstance(waiting[0], Hold)


def test_the_store_is_asked_again_after_a_while_though_it_never_rang() -> None:
    stores, (worker,), _ = full()
    stores.clock.pass_s(FULL_NS / 1e9)
    assert worker.admit(WHO) == []
    assert worker.renewal.presses


def test_a_call_that_needs_two_places_waits_for_both_and_keeps_neither_alone() -> None:
    each = Limit(name="each", kind="concurrency", dimension="key", unit="calls", amount=CAP // 2)
    stores = Stores("memory", Clock())
    worker = Worker(stores, [GATE, each])
    other_key = Attribution(key="other")
    mine = [waited(worker.admit(WHO), [worker]) for _ in range(CAP // 2)]
    others = [waited(worker.admit(other_key), [worker]) for _ in range(CAP // 2)]
    waiting = worker.admit(WHO)
    pump([worker])
    worker.book.close(others[0])
    pump([worker])
    assert waiting == [], "its key has no place"
    assert isinstance(waited(worker.admit(other_key), [worker]), Hold), "what it cannot use is not kept for it"
    worker.book.close(mine[0])
    pump([worker])
    assert isinstance(waiting[0], Hold)


# Shares.


@pytest.mark.parametrize(("cap", "count"), [(30, 4), (30, 1), (7, 7), (3, 4), (0, 2), (1, 1)])
def test_shares_are_fair_and_never_more_than_there_is(cap: int, count: int) -> None:
    names = [f"w{number}" for number in range(count)]
    had = dict.fromkeys(names, 0)
    for second in range(count):
        shares = {name: fair_share(cap, names, name, second * 10**9) for name in names}
        assert sum(shares.values()) == (cap if cap >= count else 0)
        assert max(shares.values()) - min(shares.values()) <= 1
        for name in names:
            had[name] += shares[name]
    assert len(set(had.values())) == 1, "what is left over does not go round"


class Flood:
    """Workers under an open load, in steps of a millisecond; what they say arrives a step later, or is lost."""

    CALL_MS = 100

    def __init__(self, seed: int, kind: str, limit: Limit, shares: tuple[int, ...], *, loses: float = 0.0) -> None:
        print(f"seed {seed}")
        self.dice = random.Random(seed)
        self.stores = Stores(kind, Clock())
        self.ledgers: dict[str, list[Any]] = {}
        self.limit = limit
        self.workers = [Worker(self.stores, [limit], ledgers=self.ledgers) for _ in shares]
        self.shares = shares
        """Calls per second at each worker."""
        self.running: list[tuple[int, Worker, Hold]] = []
        self.waits: list[tuple[Worker, int, list[Any]]] = []
        self.served = dict.fromkeys(self.workers, 0)
        self.refused_ms: list[int] = []
        self.now_ms = 0
        self.loses = loses
        self.rung: set[Worker] = set()

    def run(self, milliseconds: int) -> None:
        for _ in range(milliseconds):
            self.step()

    def step(self) -> None:
        self.now_ms += 1
        self.stores.clock.pass_s(0.001)
        for ends_ms, worker, hold in self.running:
            if ends_ms <= self.now_ms and not worker.gone:
                worker.book.settle(hold, 0)
                worker.book.close(hold)
        self.running = [one for one in self.running if one[0] > self.now_ms and not one[1].gone]
        living = [worker for worker in self.workers if not worker.gone]
        for worker, per_second in zip(self.workers, self.shares, strict=True):
            if not worker.gone and self.dice.random() < per_second / 1000:
                self.heard(worker, self.now_ms, worker.admit(WHO, priority=self.dice.randrange(3)))
        self.dice.shuffle(living)
        for worker in living:
            self.talk(worker)
        still = [one for one in self.waits if not one[2] and not one[0].gone]
        ended = [one for one in self.waits if one[2] and not one[0].gone]
        self.waits = still
        for worker, since_ms, heard in ended:
            self.heard(worker, since_ms, heard[0])
        assert sum(1 for _, worker, _ in self.running if not worker.gone) <= self.limit.cap

    def talk(self, worker: Worker) -> None:
        renewal = worker.renewal
        if worker.under_way is not None:
            if self.dice.random() < self.loses:
                worker.deliver()
                worker.lose()
                self.rung.add(worker)
            else:
                worker.finish()
        renewal.end_lingering()
        renewal.expire()
        if worker.store.wait(0):
            renewal.rung()
            self.rung.add(worker)
        if worker in self.rung or renewal.presses or renewal.pressed or worker.book.dirty:
            sent = worker.build(always=worker in self.rung)
            self.rung.discard(worker)
            if sent and self.dice.random() < 0.5:
                worker.finish()

    def heard(self, worker: Worker, since_ms: int, taken: Any) -> None:
        if isinstance(taken, list):
            self.waits.append((worker, since_ms, taken))
        elif isinstance(taken, Hold):
            self.served[worker] += 1
            self.running.append((self.now_ms + self.CALL_MS, worker, taken))
        else:
            self.refused_ms.append(self.now_ms - since_ms)

    def nothing_is_lost(self) -> None:
        """At rest every place can be had again, by one worker."""
        living = [worker for worker in self.workers if not worker.gone]
        for _ in range(3):
            for worker in living:
                worker.finish()
                for hold in list(worker.book.open.values()):
                    worker.book.close(hold)
                worker.renewal.end_lingering()
                worker.renewal.expire()
            pump(living)
            self.stores.clock.pass_s(FULL_NS / 1e9)
        last = Worker(self.stores, [self.limit], ledgers=self.ledgers)
        bury_all(last, self.ledgers)
        everybody = [*self.workers, last]
        pump(everybody)
        taken = [waited(last.admit(WHO), everybody) for _ in range(self.limit.cap)]
        assert all(isinstance(one, Hold) for one in taken), "a place was lost"
        assert last.admit(WHO) == [], "a place was invented"
        self.stores.close()


PLACES = Limit(name="gate", kind="concurrency", dimension="project", value="", unit="calls", amount=30)
CAPACITY = 300


@pytest.mark.parametrize("kind", ["memory", "twin"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_five_times_the_load_is_refused_in_time_and_shared_fairly(kind: str, count: int) -> None:
    flood = Flood(count, kind, PLACES, (1_500 // count,) * count)
    flood.shares, whole = (750,) + (0,) * (count - 1), flood.shares
    flood.run(300)  # one worker alone has taken every place
    flood.shares = whole
    flood.run(700)
    flood.served = dict.fromkeys(flood.workers, 0)
    flood.refused_ms.clear()
    asked = flood.stores.memory.tick
    flood.run(2_000)
    served = sum(flood.served.values())
    assert served >= 0.9 * 2 * CAPACITY
    for worker, had in flood.served.items():
        assert had >= 0.8 * 2 * CAPACITY / count, (worker.name, flood.served)
    assert max(flood.refused_ms) < 10
    assert flood.stores.memory.tick - asked < served / 2, "a Call costs a visit to the store"
    flood.nothing_is_lost()


def test_a_worker_with_few_calls_gets_its_part_beside_three_that_are_flooded() -> None:
    flood = Flood(7, "memory", PLACES, (30, 600, 600, 600))
    flood.run(4_000)
    few = flood.workers[0]
    assert flood.served[few] >= 0.5 * 30 * 4, "it asks for three places where seven are its share"
    assert sum(flood.served.values()) >= 0.85 * 4 * CAPACITY, "what it does not need is not used"
    flood.nothing_is_lost()


def test_fewer_places_than_workers_go_round() -> None:
    limit = Limit(name="gate", kind="concurrency", dimension="project", value="", unit="calls", amount=2)
    flood = Flood(3, "memory", limit, (200,) * 4)
    flood.run(8_000)
    assert sum(flood.served.values()) >= 0.8 * 8 * 20
    assert min(flood.served.values()) >= 0.5 * 8 * 20 / 4, flood.served
    flood.nothing_is_lost()


@pytest.mark.parametrize("seed", range(12))
def test_no_place_is_lost_or_invented(seed: int) -> None:
    """Loads that change, answers that are lost, and a worker that dies."""
    dice = random.Random(seed)
    amount = dice.choice([1, 2, 3, 5, 30])
    limit = Limit(name="gate", kind="concurrency", dimension="project", value="", unit="calls", amount=amount)
    count = dice.choice([2, 3, 4])
    flood = Flood(seed, "twin" if seed % 4 == 0 else "memory", limit, (0,) * count, loses=0.1)
    for _ in range(6):
        flood.shares = tuple(dice.choice([0, 20, 400]) for _ in range(count))
        flood.run(150)
    dying = flood.workers[-1]
    dying.finish()
    dying.crash()
    flood.run(150)
    bury_all(flood.workers[0], flood.ledgers)
    flood.run(150)
    flood.nothing_is_lost()


# Rates.


RATE = Limit(name="rps", kind="rate", dimension="project", value="", unit="requests", amount=300, window_s=1, burst=10)


def test_an_empty_bucket_is_not_asked_again_before_a_unit_can_be_there() -> None:
    limit = Limit(name="r", kind="rate", dimension="project", value="", unit="requests", amount=20, window_s=1, burst=1)
    stores = Stores("memory", Clock())
    worker = Worker(stores, [limit])
    assert isinstance(waited(worker.admit(WHO), [worker]), Hold)
    assert isinstance(waited(worker.admit(WHO), [worker]), Refusal)
    asked = stores.memory.tick
    for _ in range(49):
        stores.clock.pass_s(0.001)
        refused = worker.admit(WHO)
        assert isinstance(refused, Refusal)
        assert (refused.code, refused.left) == ("rate_limit_exceeded", 0)
        assert refused.resets_at_ns > stores.clock.now()
    assert stores.memory.tick == asked
    stores.clock.pass_s(0.001)
    assert isinstance(waited(worker.admit(WHO), [worker]), Hold), "refused though the unit is there"


@pytest.mark.parametrize("count", [1, 4])
def test_what_a_rate_allows_is_used_under_five_times_the_load_and_not_one_unit_more(count: int) -> None:
    flood = Flood(5, "memory", RATE, (1_500 // count,) * count)
    flood.CALL_MS = 1
    flood.run(3_000)
    served = sum(flood.served.values())
    assert 0.9 * 900 <= served <= 900 + 10
    assert min(flood.served.values()) >= 0.5 * 900 / count
    assert max(flood.refused_ms) < 10


# On a real loop.


def test_a_refusal_comes_in_time_on_a_real_loop(tmp_path: Path) -> None:
    stores = Stores("sqlite", Clock(), tmp_path)
    stores.clock.wall_ns = time.time_ns()
    gate = Limit(name="gate", kind="concurrency", dimension="project", value="", unit="calls", amount=4)

    async def story() -> None:
        loop = asyncio.get_running_loop()
        # A wait for money that would not be over before the test is.
        one, other = (
            Limits([gate], stores.handle(), worker=name, loop=loop, wait_ms=60_000, recall_ms=60_000)
            for name in ("a", "b")
        )

        async def admit(limits: Limits, priority: int = NORMAL) -> Any:
            heard: asyncio.Future[Any] = loop.create_future()
            taken = limits.admit(WHO, "w", time.time_ns(), heard.set_result, priority)
            return await heard if type(taken) is Waiter else taken

        holds = [await admit(one) for _ in range(4)]
        # The wait is 5 ms; the rest, and another try, is for a busy machine.
        for _ in range(TRIES):
            took_s = []
            for _ in range(20):
                began = time.monotonic()
                assert isinstance(await admit(other), Refusal)
                took_s.append(time.monotonic() - began)
            if median(took_s) < 0.030:
                break
        assert median(took_s) < 0.030, took_s
        one.close_hold(holds.pop())
        until = time.monotonic() + PATIENCE_S
        while not isinstance(got := await admit(other, HIGH), Hold) and time.monotonic() < until:
            pass
        assert isinstance(got, Hold), "a place that another worker returned did not arrive"
        other.close_hold(got)
        for hold in holds:
            one.close_hold(hold)
        await one.close()
        await other.close()

    asyncio.run(asyncio.wait_for(story(), 50))
    stores.close()
