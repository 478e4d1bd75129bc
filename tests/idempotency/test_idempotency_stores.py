"""What every store of Idempotency-Keys must do. An adapter passes by being added to `KINDS`."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator

import pytest
from idempotency_world import BYTES_MAX, KEEP_NS, ROWS_MAX, Stores

from drivetrain.core.times import NS_PER_S
from drivetrain.ports.idempotency import (
    ANSWERED,
    OTHER_BODY,
    RUNNING,
    SETTLED,
    YOURS,
    Ask,
    Claim,
    Found,
    IdempotencyStore,
    Keep,
    Release,
)

KINDS = ("model", "sqlite")
KEEP_S = KEEP_NS // NS_PER_S


@pytest.fixture(params=KINDS)
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    made = Stores(request.param)
    yield made
    made.close()


def one(store: IdempotencyStore, ask: Ask) -> Found:
    (found,) = store.visit((ask,))
    return found


def claim(store: IdempotencyStore, id_: bytes = b"id", body: bytes = b"body") -> Found:
    return one(store, Claim(id_, body))


def test_one_claims_and_everybody_else_waits(stores: Stores) -> None:
    first, other = stores.worker("a"), stores.worker("b")
    assert claim(first) == Found(YOURS)
    assert claim(other) == Found(RUNNING)
    assert claim(first) == Found(RUNNING), "the same worker, for another request"
    assert claim(other, b"another") == Found(YOURS)


def test_claims_of_one_visit_are_answered_in_their_order(stores: Stores) -> None:
    worker = stores.worker("a")
    asks = (Claim(b"1", b"x"), Claim(b"1", b"x"), Keep(b"1", b"sealed"), Claim(b"1", b"x"), Claim(b"2", b"x"))
    expected = (Found(YOURS), Found(RUNNING), Found(SETTLED), Found(ANSWERED, b"sealed"), Found(YOURS))
    assert worker.visit(asks) == expected


def test_an_answer_is_given_to_everybody(stores: Stores) -> None:
    first, other = stores.worker("a"), stores.worker("b")
    claim(first)
    one(first, Keep(b"id", b"sealed"))
    for worker in (other, first, stores.worker("c")):
        assert claim(worker) == Found(ANSWERED, b"sealed")


def test_an_answer_that_is_not_kept_is_known_to_have_been_given(stores: Stores) -> None:
    first, other = stores.worker("a"), stores.worker("b")
    claim(first)
    one(first, Keep(b"id", None))
    assert claim(other) == Found(ANSWERED, None)


def test_another_body_is_found_while_it_runs_and_after(stores: Stores) -> None:
    first, other = stores.worker("a"), stores.worker("b")
    claim(first)
    assert claim(other, body=b"another") == Found(OTHER_BODY)
    one(first, Keep(b"id", b"sealed"))
    assert claim(other, body=b"another") == Found(OTHER_BODY)
    assert claim(other) == Found(ANSWERED, b"sealed")


def test_a_released_key_may_be_claimed_with_any_body(stores: Stores) -> None:
    first, other = stores.worker("a"), stores.worker("b")
    claim(first)
    one(first, Release(b"id"))
    assert claim(other, body=b"another") == Found(YOURS)


def test_only_who_holds_a_key_settles_it(stores: Stores) -> None:
    first, other = stores.worker("a"), stores.worker("b")
    claim(first)
    for ask in (Release(b"id"), Keep(b"id", b"forged"), Keep(b"never claimed", b"forged")):
        assert one(other, ask) == Found(SETTLED)
    assert claim(other) == Found(RUNNING)
    one(first, Keep(b"id", b"sealed"))
    for ask in (Release(b"id"), Keep(b"id", b"changed")):
        one(first, ask)
    assert claim(other) == Found(ANSWERED, b"sealed")
    assert claim(other, b"never claimed") == Found(YOURS)


def test_what_a_worker_held_may_be_claimed_when_it_has_left(stores: Stores) -> None:
    first, other, third = stores.worker("a"), stores.worker("b"), stores.worker("c")
    claim(first)
    stores.clock.advance(10 * KEEP_S)
    assert claim(other) == Found(RUNNING), "no clock says that somebody is dead"
    first.close()
    assert claim(other) == Found(YOURS)
    assert claim(third) == Found(RUNNING)


def test_an_answered_key_is_known_for_its_time_and_no_longer(stores: Stores) -> None:
    worker = stores.worker("a")
    claim(worker)
    stores.clock.advance(KEEP_S / 2)
    one(worker, Keep(b"id", b"sealed"))
    stores.clock.advance(KEEP_S - 1)
    assert claim(worker) == Found(ANSWERED, b"sealed")
    assert claim(worker, body=b"another") == Found(OTHER_BODY)
    stores.clock.advance(1)
    assert claim(worker, body=b"another") == Found(YOURS)


def test_when_too_many_are_known_the_oldest_is_forgotten_and_never_one_that_runs(stores: Stores) -> None:
    worker = stores.worker("a")
    claim(worker, b"runs")
    for number in range(ROWS_MAX):
        stores.clock.advance(1)
        worker.visit((Claim(b"%d" % number, b"body"), Keep(b"%d" % number, b"sealed")))
    stores.clock.advance(1)
    assert claim(worker, b"runs") == Found(RUNNING)
    assert claim(worker, b"1") == Found(ANSWERED, b"sealed")
    assert claim(worker, b"0") == Found(YOURS), "the oldest had to go"


def test_when_too_much_is_kept_the_oldest_answers_go_and_their_keys_stay(stores: Stores) -> None:
    worker = stores.worker("a")
    for number in range(4):
        stores.clock.advance(1)
        worker.visit((Claim(b"%d" % number, b"body"), Keep(b"%d" % number, bytes(BYTES_MAX // 3))))
    assert claim(worker, b"0") == Found(ANSWERED, None)
    for number in range(1, 4):
        assert claim(worker, b"%d" % number) == Found(ANSWERED, bytes(BYTES_MAX // 3))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "model"])
def test_it_answers_as_the_model_does_whatever_is_asked(kind: str) -> None:
    seed = secrets.randbits(32)
    print(f"seed: {seed}")
    dice = random.Random(seed)
    real, model = Stores(kind), Stores("model")
    try:
        workers = {name: (real.worker(name), model.worker(name)) for name in "abc"}
        born = 3
        for _ in range(1500):
            name = dice.choice(sorted(workers))
            asks: list[Ask] = []
            for _ in range(dice.randint(1, 3)):
                id_ = b"%d" % dice.randint(0, ROWS_MAX + 4)
                kept = None if dice.random() < 0.1 else dice.randbytes(dice.choice((1, 50, 400)))
                said = (Claim(id_, dice.choice((b"x", b"x", b"y"))), Keep(id_, kept), Release(id_))
                asks.append(dice.choices(said, (6, 3, 1))[0])
            stepped = dice.choice((1, 1, 1, KEEP_S / 10))
            for stores in (real, model):
                stores.clock.advance(stepped)  # else it is open which of two is older
            answers = [store.visit(asks) for store in workers[name]]
            assert answers[0] == answers[1], f"seed {seed}: {name} asked {asks}"
            if dice.random() < 0.02:
                for store in workers.pop(name):
                    store.close()
                fresh = f"w{born}"
                born += 1
                workers[fresh] = (real.worker(fresh), model.worker(fresh))
    finally:
        real.close()
        model.close()


def test_dropped_answers_are_gone_and_their_keys_stay_known(stores: Stores) -> None:
    first, other = stores.worker("a"), stores.worker("b")
    for id_ in (b"one", b"two"):
        claim(first, id_)
        one(first, Keep(id_, b"an answer to " + id_))
    claim(first, b"runs")
    claim(first, b"unkept")
    one(first, Keep(b"unkept", None))
    assert other.drop_answers() == 2
    assert [claim(other, id_) for id_ in (b"one", b"two", b"unkept")] == [Found(ANSWERED)] * 3
    assert claim(other, b"one", b"another body") == Found(OTHER_BODY)
    assert claim(other, b"runs") == Found(RUNNING)
    one(first, Keep(b"runs", b"an answer of later"))
    assert claim(other, b"runs") == Found(ANSWERED, b"an answer of later")
    assert other.drop_answers() == 1
    assert other.drop_answers() == 0
