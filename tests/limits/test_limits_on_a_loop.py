"""The door on a real loop with real threads: waiting, recall, a store that is down or frozen, a worker that dies."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from limits_world import WHO, Clock, Stores, budget

from drivetrain.core.calls import Attribution, ClosedV1
from drivetrain.core.limits import Alert, Limit, Refusal
from drivetrain.limits.leasing import Limits
from drivetrain.limits.slices import Hold, Waiter
from support.tries import Spoiled, in_one_try, measured

pytestmark = pytest.mark.slow

PURSE = [budget("all", 100)]


@pytest.fixture(params=("memory", "sqlite"))
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    made = Stores(request.param, Clock(), tmp_path)
    made.clock.wall_ns = time.time_ns()
    yield made
    made.close()


def made(stores: Stores, limits: list[Limit], name: str, **more: Any) -> Limits:
    store = more.pop("store", None) or stores.handle()
    loop = asyncio.get_running_loop()
    # Generous beyond what a busy machine needs; the deadline itself has a test of its own.
    more = {"recall_ms": 5_000, "wait_ms": 10_000, **more}
    return Limits(limits, store, worker=name, loop=loop, now_ns=stores.clock.now, **more)


async def heard(ask: Callable[[Callable[[Any], None]], Any]) -> Any:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    taken = ask(future.set_result)
    return await future if type(taken) is Waiter else taken


async def admit(limits: Limits, who: Attribution = WHO) -> Any:
    return await heard(lambda then: limits.admit(who, "w", time.time_ns(), then))


async def reserve(limits: Limits, hold: Hold, worst: int) -> Any:
    return await heard(lambda then: limits.reserve(hold, worst, 0, then))


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        await asyncio.wait_for(story(), 45)

    asyncio.run(all_of_it())


def test_another_workers_slice_is_recalled_before_anybody_is_refused(stores: Stores) -> None:
    async def story() -> None:
        one, other = made(stores, PURSE, "a"), made(stores, PURSE, "b")
        hold = await admit(one)
        assert await reserve(one, hold, 100) is None
        one.settle(hold, 1)
        one.close_hold(hold)
        hold = await admit(other)
        assert await reserve(other, hold, 99) is None, "refused while 99 were left"
        assert (await reserve(one, await admit(one), 1)).left == 0
        await one.close()
        await other.close()

    run(story)


def test_most_calls_ask_nobody(stores: Stores) -> None:
    async def story() -> None:
        limits = made(stores, [budget("all", 10**12), budget("team", 10**12, "team", None)], "a")
        asked = 0
        for _ in range(2_000):
            hold = limits.admit(WHO, "w", time.time_ns(), lambda _: None)
            assert isinstance(hold, Hold)
            if limits.book.reserve(hold, 1_000) is not None:
                asked += 1
                assert await reserve(limits, hold, 1_000) is None
            limits.settle(hold, 900)
            limits.close_hold(hold)
            await asyncio.sleep(0)
        await limits.close()
        if asked >= 50:
            raise Spoiled(f"{asked} Calls asked")  # more do where the store's thread stands still

    in_one_try(lambda: run(story))


def test_a_store_that_is_down_fails_closed_and_what_is_leased_may_be_spent() -> None:
    stores = Stores("memory", Clock())

    async def story() -> None:
        limits = made(stores, PURSE, "a")
        hold = await admit(limits)
        assert await reserve(limits, hold, 10) is None
        limits.settle(hold, 0)
        limits.close_hold(hold)
        leased = sum(one.free for one in limits.book.slices.values())
        stores.memory.down = True
        hold = await admit(limits)
        refused = await reserve(limits, hold, leased + 1)
        assert (refused.code, refused.status) == ("limits_unavailable", 503)
        assert "taken down" in limits.failed
        assert await reserve(limits, hold, leased) is None
        limits.close_hold(hold)
        stores.memory.down = False
        assert await reserve(limits, await admit(limits), 100) is None, "it does not recover"
        assert not limits.failed
        await limits.close()

    run(story)


def test_a_frozen_store_costs_a_call_its_deadline_and_no_more() -> None:
    stores = Stores("memory", Clock())

    took_ms: list[float] = []

    async def story() -> None:
        limits = made(stores, PURSE, "a", recall_ms=35, wait_ms=50)
        hold = await admit(limits)
        with stores.memory.lock:
            began = time.monotonic()
            refused = await reserve(limits, hold, 10)
            took_ms.append((time.monotonic() - began) * 1e3)
        assert refused.code == "limits_unavailable"
        assert took_ms[-1] > 45
        await limits.close()

    def one() -> float:
        run(story)
        return took_ms[-1]

    measured(1_000, one)


def test_a_holder_that_never_answers_delays_the_refusal_by_the_recall_only(stores: Stores) -> None:
    async def story() -> None:
        one = made(stores, PURSE, "a", recall_ms=60)
        hold = await admit(one)
        assert await reserve(one, hold, 60) is None
        other = made(stores, PURSE, "b", recall_ms=60)
        one._stopped = True  # it lives and hears nothing
        refused = await reserve(other, await admit(other), 90)
        assert (refused.code, refused.limit) == ("budget_exceeded", "all")
        one._stopped = False
        await one.close()
        await other.close()

    run(story)


def test_a_worker_that_died_is_resolved_by_another_while_a_call_waits(stores: Stores) -> None:
    frames: list[Any] = []
    resolved: list[Any] = []

    async def story() -> None:
        dying = made(stores, PURSE, "a")
        living = made(
            stores,
            PURSE,
            "b",
            read_ledger=lambda writer, _: list(frames) if writer == "a" else [],
            on_buried=lambda dead, resolution: resolved.append((dead.worker, resolution)),
        )
        sent, closed, unsent = [await admit(dying) for _ in range(3)]
        for hold in (sent, closed, unsent):
            assert await reserve(dying, hold, 30) is None
        frames.extend([sent.frame("sent"), closed.frame("closed"), ClosedV1("closed", 0, "answered", 200, "v", 4)])
        dying._stopped = dying._over = True
        dying._timer.cancel()
        dying._store.wake()
        dying._thread.join()
        dying._store.close()
        hold = await admit(living)
        assert await reserve(living, hold, 100 - 30 - 4) is None, "what the dead worker did not spend is not released"
        assert isinstance(await reserve(living, await admit(living), 1), Refusal)
        ((name, resolution),) = resolved
        assert (name, list(resolution.charges.values())) == ("a", [34])
        assert [(one.call_id, one.cost_nano_usd) for one in resolution.interrupted] == [("sent", 30)]
        living.close_hold(hold)
        await living.close()

    run(story)


def test_alerts_are_heard_on_the_loop(stores: Stores) -> None:
    async def story() -> None:
        alerts: list[Alert] = []
        limits = made(stores, [budget("all", 100, alerts=(50,))], "a", on_alert=alerts.append)
        hold = await admit(limits)
        await reserve(limits, hold, 60)
        limits.settle(hold, 60)
        limits.close_hold(hold)
        while not alerts:
            await asyncio.sleep(0.01)
        assert (alerts[0].share, alerts[0].settled, alerts[0].cap) == (50, 60, 100)
        await limits.close()

    run(story)


def test_a_call_that_is_closed_while_it_waits_takes_nothing(stores: Stores) -> None:
    async def story() -> None:
        one, other = made(stores, PURSE, "a"), made(stores, PURSE, "b")
        assert await reserve(one, await admit(one), 50) is None
        hold = await admit(other)
        assert type(other.reserve(hold, 40, 0, lambda _: None)) is Waiter
        other.close_hold(hold)
        await asyncio.sleep(0.1)
        assert await reserve(one, await admit(one), 50) is None
        await one.close()
        await other.close()

    run(story)


def test_it_ends_with_no_thread_left(stores: Stores) -> None:
    async def story() -> None:
        limits = made(stores, PURSE, "a")
        await admit(limits)
        await limits.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "limits"]

    run(story)
