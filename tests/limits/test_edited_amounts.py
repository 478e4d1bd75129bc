"""Amounts that change while slices are out: no cap is passed that was in force, and what was added can be spent."""

from __future__ import annotations

import random

import msgspec
import pytest
from limits_world import WHO, Clock, Stores, Worker, budget, pump, waited

from drivetrain.core.limits import Limit, Refusal
from drivetrain.limits.accounts import account_of
from drivetrain.limits.slices import Hold

KINDS = ("memory", "sqlite")
PURSE = budget("all", 100)


def hold_of(worker: Worker) -> Hold:
    hold = worker.admit(WHO)
    assert isinstance(hold, Hold)
    return hold


def spend(worker: Worker, units: int, workers: list[Worker]) -> Refusal | None:
    hold = hold_of(worker)
    taken: Refusal | None = waited(worker.reserve(hold, units), workers)
    worker.book.settle(hold, units if taken is None else 0)
    worker.book.close(hold)
    return taken


def topped_up(limit: Limit, units: int, now_ns: int) -> Limit:
    return msgspec.structs.replace(limit, raised=((account_of(limit, "", now_ns).terms.account, units),))


@pytest.mark.parametrize("kind", KINDS)
def test_a_top_up_is_spent_to_the_last_unit_and_not_one_beyond(kind: str) -> None:
    stores = Stores(kind, Clock())
    workers = [Worker(stores, [PURSE]), Worker(stores, [PURSE])]
    assert spend(workers[0], 100, workers) is None
    assert isinstance(spend(workers[1], 1, workers), Refusal)
    for worker in workers:
        worker.book.use([topped_up(PURSE, 20, stores.clock.now())])
    assert spend(workers[0], 15, workers) is None
    assert spend(workers[1], 5, workers) is None
    refused = spend(workers[1], 1, workers)
    assert isinstance(refused, Refusal)
    assert (refused.cap, refused.left) == (120, 0)
    stores.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_top_up_is_over_with_its_period(kind: str) -> None:
    stores = Stores(kind, Clock())
    worker = Worker(stores, [topped_up(PURSE, 20, stores.clock.now())])
    assert spend(worker, 120, [worker]) is None
    stores.clock.pass_s(31 * 86_400)
    assert isinstance(spend(worker, 101, [worker]), Refusal)
    assert spend(worker, 100, [worker]) is None
    stores.close()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_amounts_follow_each_other_nothing_beyond_the_highest_is_spent(seed: int) -> None:
    """Workers hear of an amount at different times; Calls run on meanwhile."""
    print(f"seed {seed}")
    dice = random.Random(seed)
    stores = Stores("memory", Clock())
    workers = [Worker(stores, [PURSE]) for _ in range(3)]
    running: list[tuple[Worker, Hold, int]] = []
    highest, amount = 100, 100
    name = account_of(PURSE, "", stores.clock.now()).terms.account
    for _ in range(120):
        worker = dice.choice(workers)
        match dice.randrange(5):
            case 0:
                amount = dice.randrange(0, 200)
                highest = max(highest, amount)
                worker.book.use([msgspec.structs.replace(PURSE, amount=amount)])
            case 1 | 2:
                hold, units = hold_of(worker), dice.randrange(1, 30)
                if waited(worker.reserve(hold, units), workers) is None:
                    running.append((worker, hold, units))
                else:
                    worker.book.close(hold)
            case 3 if running:
                owner, hold, units = running.pop(dice.randrange(len(running)))
                owner.book.settle(hold, dice.randrange(0, units + 1))
                owner.book.close(hold)
            case _:
                worker.sync(always=True)
        state = stores.memory.accounts.get(name)
        if state is not None:
            assert state.settled + state.held <= highest
    for worker in workers:
        worker.book.use([msgspec.structs.replace(PURSE, amount=400)])
    for owner, hold, _ in running:
        owner.book.settle(hold, 0)
        owner.book.close(hold)
    pump(workers)
    for worker in workers:
        worker.sync(always=True)
    left = 400 - stores.memory.accounts[name].settled if name in stores.memory.accounts else 400
    assert spend(workers[0], left, workers) is None, "refused while money was left"
    assert isinstance(spend(workers[1], 1, workers), Refusal)
    stores.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lowered_cap_holds_at_once_though_more_was_leased_ahead(kind: str) -> None:
    stores = Stores(kind, Clock())
    workers = [Worker(stores, [PURSE]), Worker(stores, [PURSE])]
    for worker in workers:
        assert spend(worker, 4, workers) is None
    assert workers[0].book.slices["all/@2026-03", False].free > 2, "nothing was leased ahead, so nothing is shown here"
    for worker in workers:
        worker.book.use([msgspec.structs.replace(PURSE, amount=10)])
    assert spend(workers[0], 2, workers) is None
    for worker in workers:
        refused = spend(worker, 1, workers)
        assert isinstance(refused, Refusal), "more was spent than the cap that holds now"
        assert (refused.cap, refused.left) == (10, 0)
    stores.close()
