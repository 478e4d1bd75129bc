"""Thousands of limits, and of callers: what one Call costs does not grow with them, and nothing is charged wrongly."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import msgspec
import pytest
from limits_world import NOW_NS, WHO, Clock, Stores, Worker, budget, bury_all, waited

from drivetrain.core.calls import Attribution
from drivetrain.core.limits import DIMENSIONS, Limit
from drivetrain.limits import book as book_module
from drivetrain.limits.book import Book
from drivetrain.limits.leasing import Limits
from drivetrain.limits.memory_counters import MemoryCounters
from drivetrain.limits.slices import Accounts, Hold

pytestmark = pytest.mark.slow

NAMES = ("", "a", "b", "c")
TAGS = ("env", "env=", "env=a", "env=b", "tier=a", "=a")


def found(book: Book, who: Attribution, workflow: str = "w", now_ns: int = NOW_NS) -> Accounts:
    accounts = book.accounts(who, workflow, now_ns)
    assert accounts is not None
    return accounts


def names(accounts: Accounts) -> list[str]:
    return [one.terms.account for one in accounts.all]


def calls_made(work: Callable[[], object]) -> int:
    """How many Python functions run: a cost that no noisy machine changes."""
    count = 0

    def seen(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("seed", range(30))
def test_a_call_falls_under_every_limit_that_is_for_it_in_declared_order_and_no_other(seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    limits = [any_limit(dice, f"l{number}") for number in range(40)]
    book = Book(limits)
    for _ in range(60):
        tenant, team, use_case, key, user = (dice.choice(NAMES) for _ in range(5))
        who = Attribution(tenant, team, use_case, key, user, tuple(sorted(dice.sample(TAGS, dice.randrange(4)))))
        workflow = dice.choice(NAMES[1:])
        expected = [f"{limit.name}/{value}@2026-03" for limit in limits for value in values_of(limit, who, workflow)]
        assert names(found(book, who, workflow)) == expected


def any_limit(dice: random.Random, name: str) -> Limit:
    dimension = dice.choice(DIMENSIONS)
    if dimension == "project":
        return budget(name, 10)
    each = dice.random() < 0.4
    if dimension == "tag":
        return budget(
            name, 10, "tag", None if each else dice.choice(TAGS), tag=dice.choice(("env", "tier")) if each else ""
        )
    return budget(name, 10, dimension, None if each else dice.choice(NAMES))


def values_of(limit: Limit, who: Attribution, workflow: str) -> list[str]:
    """What scopes mean, said a second time: one limit after the other."""
    if limit.dimension == "project":
        return [""]
    if limit.dimension == "tag" and limit.value is None:
        of_name = [tag.partition("=") for tag in who.tags]
        return list(dict.fromkeys(value for name, _, value in of_name if name == limit.tag))
    if limit.dimension == "tag":
        return [tag for tag in who.tags if tag == limit.value]
    mine: str = {**msgspec.structs.asdict(who), "workflow": workflow}[limit.dimension]
    return [mine] if limit.value in (None, mine) else []


def test_meeting_somebody_costs_the_same_among_five_thousand_limits_as_among_ten() -> None:
    costs = []
    for count in (10, 5_000):
        limits = [budget("all", 10), budget("flow", 10, "workflow", None)]
        book = Book(limits + [budget(f"k{number}", 10, "key", f"k{number}") for number in range(count)])
        found(book, Attribution(key="k1"))
        costs.append(calls_made(partial(found, book, Attribution(key="k2"), "another")))
    assert costs[0] == costs[1] < 100


def test_who_is_met_often_is_remembered_whoever_else_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "KNOWN_MAX", 20)
    book = Book([budget("key", 10, "key", None)])
    often = found(book, Attribution(key="often"))
    for number in range(200):
        found(book, Attribution(key=f"k{number}"))
        assert found(book, Attribution(key="often")) is often
    once = found(book, Attribution(key="once"))
    for number in range(40):
        found(book, Attribution(key=f"another{number}"))
    assert found(book, Attribution(key="once")) is not once, "memory is bounded"


def test_one_that_is_let_go_makes_nobody_else_be_found_again() -> None:
    stores = Stores("memory", Clock())
    worker = Worker(stores, [budget("key", 100, "key", None)])
    gone, kept = Attribution(key="gone"), Attribution(key="kept")
    before = found(worker.book, kept)
    forgotten = found(worker.book, gone)
    spend(worker, gone)
    for _ in range(3):
        spend(worker, kept)
        worker.sync()
        worker.renewal.tidy()
        stores.clock.pass_s(20)
    spend(worker, kept)
    worker.sync()
    assert names(forgotten)[0] not in {name for name, _ in worker.book.slices}
    assert found(worker.book, kept) is before
    spend(worker, gone)
    worker.sync()
    assert stores.memory.accounts["key/gone@2026-03"].settled == 6, "what it spends later is charged all the same"


def test_a_want_among_hundreds_of_busy_budgets_tells_no_costs_and_a_crash_then_counts_each_once() -> None:
    clock, ledgers = Clock(), dict[str, list[Any]]()
    stores = Stores("twin", clock)
    worker, other = (Worker(stores, [budget("key", 10_000, "key", None)], ledgers=ledgers) for _ in range(2))
    keys = [Attribution(key=f"k{number}") for number in range(200)]
    for who in keys:
        recorded(worker, who, "first")
    clock.pass_s(1)
    worker.sync()  # a full report
    for who in keys:
        recorded(worker, who, "second")
    hold = worker.admit(Attribution(key="new"))
    assert isinstance(worker.reserve(hold, 5), list)
    assert worker.build()
    assert worker.under_way is not None
    assert len(worker.under_way.wants) == 1
    assert worker.under_way.reports == ()
    worker.finish()
    told = stores.memory.accounts["key/k1@2026-03"].settled
    worker.crash()
    bury_all(other, ledgers)
    settled = {name: one.settled for name, one in stores.memory.accounts.items()}
    spent = {f"key/{who.key}@2026-03": 6 for who in keys} | {"key/new@2026-03": 0}
    assert told == 3
    assert settled == spent
    stores.close()


def recorded(worker: Worker, who: Attribution, name: str) -> None:
    """A Call that the ledger knows."""
    hold = waited(worker.admit(who), [worker])
    assert waited(worker.reserve(hold, 5), [worker]) is None
    worker.write_reserved(hold, f"{who.key}-{name}")
    worker.book.settle(hold, 3)
    worker.write_closed(hold, f"{who.key}-{name}")
    worker.book.close(hold)


def test_after_a_full_report_that_was_lost_the_next_request_is_one() -> None:
    stores, ledgers = Stores("twin", Clock()), dict[str, list[Any]]()
    worker, other = (Worker(stores, [budget("key", 100, "key", None)], ledgers=ledgers, few=0) for _ in range(2))
    recorded(worker, Attribution(key="a"), "first")
    assert worker.build(full=True)
    worker.lose()
    recorded(worker, Attribution(key="b"), "second")  # it had to ask
    worker.crash()
    bury_all(other, ledgers)
    settled = {name: one.settled for name, one in stores.memory.accounts.items()}
    assert settled == {"key/a@2026-03": 3, "key/b@2026-03": 3}
    stores.close()


def test_what_was_recalled_between_two_full_reports_leaves_what_was_spent() -> None:
    stores, ledgers = Stores("twin", Clock()), dict[str, list[Any]]()
    worker, other = (Worker(stores, [budget("all", 100)], ledgers=ledgers, few=0) for _ in range(2))
    recorded(worker, WHO, "first")
    worker.sync(full=True)
    recorded(worker, WHO, "second")
    taken = other.reserve(other.admit(WHO), 94)
    assert isinstance(taken, list)
    assert waited(taken, [other, worker]) is None
    state = other.store.account("all/@2026-03")
    assert state is not None
    assert (state.settled, state.held) == (3, 97), "the second Call's cost is held, and nothing else of this worker"
    worker.crash()
    bury_all(other, ledgers)
    state = other.store.account("all/@2026-03")
    assert state is not None
    assert (state.settled, state.held, state.over) == (6, 94, 0)
    stores.close()


def test_costs_are_told_the_more_seldom_the_longer_telling_takes() -> None:
    clock = Clock()
    worker = Worker(Stores("memory", clock), [budget("key", 10**6, "key", None)], few=0)
    spend(worker, WHO)
    worker.sync(full=True)
    assert worker.book.dirty == []
    for took_s, pauses_s in ((0, 0.5), (0.1, 5), (10, 30)):
        clock.pass_s(60)
        spend(worker, WHO)
        assert worker.build()
        clock.pass_s(took_s)
        worker.finish()
        spend(worker, WHO)
        clock.pass_s(pauses_s - took_s - 0.01)
        assert not worker.build()
        clock.pass_s(0.02)
        assert worker.build()
        worker.finish()


def spend(worker: Worker, who: Attribution) -> None:
    hold = waited(worker.admit(who), [worker])
    assert isinstance(hold, Hold)
    assert waited(worker.reserve(hold, 5), [worker]) is None
    worker.book.settle(hold, 3)
    worker.book.close(hold)


def test_hundreds_of_budgets_that_run_low_are_topped_up_together() -> None:
    asyncio.run(asyncio.wait_for(_topped_up(), 45))


async def _topped_up() -> None:
    store = Counting(MemoryCounters(time.time_ns).handle())
    limits = Limits(
        [budget("key", 10**9, "key", None)], store, worker="a", loop=asyncio.get_running_loop(), wait_ms=10_000
    )
    keys = [Attribution(key=f"k{number}") for number in range(200)]
    for who in keys:
        await _spend(limits, who)
    store.syncs = store.topped_up = 0
    for _ in range(6):
        for who in keys:
            for _ in range(4):
                await _spend(limits, who)
            await asyncio.sleep(0.001)  # so that each would find the store idle, and be topped up alone
    await asyncio.sleep(0.2)
    assert store.topped_up >= len(keys), "nothing ran low, so nothing was tested"
    assert store.syncs < store.topped_up / 4
    await limits.close()


async def _spend(limits: Limits, who: Attribution) -> None:
    hold = limits.admit(who, "w", time.time_ns(), lambda _: None)
    assert isinstance(hold, Hold)
    heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    taken = limits.reserve(hold, 1_000, 0, heard.set_result)
    assert (taken if taken is None else await heard) is None
    limits.settle(hold, 1_000)
    limits.close_hold(hold)


class Counting:
    """A store that counts what it is asked."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.syncs = self.topped_up = 0

    def sync(self, request: Any) -> Any:
        self.syncs += 1
        self.topped_up += len(request.ahead)
        return self._store.sync(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
