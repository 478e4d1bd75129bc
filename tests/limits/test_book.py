"""One worker's Book: nested budgets, rates, places, what is refused and how it is said."""

from __future__ import annotations

from typing import Any

import pytest
from limits_world import NOW_NS, WHO, Clock, Stores, Worker, budget, bury_all, pump, waited

from drivetrain.core.calls import Attribution
from drivetrain.core.limits import Limit, Refusal
from drivetrain.core.times import NS_PER_S, parse_iso
from drivetrain.limits import book as book_module
from drivetrain.limits.slices import Hold

NESTED = [
    budget("all", 100),
    budget("team", 60, "team", None),
    budget("user", 25, "user", None, per="day", zone="Europe/Berlin"),
]


def world(limits: list[Limit], count: int = 1) -> tuple[Stores, list[Worker]]:
    stores = Stores("memory", Clock())
    return stores, [Worker(stores, limits) for _ in range(count)]


def admitted(worker: Worker, who: Attribution = WHO, workflow: str = "w") -> Hold:
    hold = waited(worker.admit(who, workflow), [worker])
    assert isinstance(hold, Hold)
    return hold


def frees(worker: Worker) -> dict[str, int]:
    return {one.terms.account: one.free for one in worker.book.slices.values()}


def test_nested_budgets_are_reserved_all_or_nothing() -> None:
    _, (worker,) = world(NESTED)
    first = admitted(worker)
    assert waited(worker.reserve(first, 20), [worker]) is None
    before = frees(worker)
    second = admitted(worker)
    refused = waited(worker.reserve(second, 10), [worker])
    assert isinstance(refused, Refusal)
    assert (refused.limit, refused.left, refused.needed) == ("user", 5, 10)
    worker.book.close(second)
    pump([worker])
    assert sum(frees(worker).values()) >= sum(before.values()), "a refused Call kept something"
    assert {name: one.granted - one.returned - one.booked - one.free for name, one in _by_name(worker)} == {
        "all": 20, "team": 20, "user": 20,
    }  # fmt: skip


def _by_name(worker: Worker) -> list[tuple[str, Any]]:
    return [(one.account.limit.name, one) for one in worker.book.slices.values()]


def test_somebody_elses_budget_is_not_touched() -> None:
    _, (worker,) = world(NESTED)
    assert waited(worker.reserve(admitted(worker), 25), [worker]) is None
    other = admitted(worker, Attribution(team="support", user="bob"))
    assert waited(worker.reserve(other, 25), [worker]) is None
    third = admitted(worker, Attribution(team="support", user="cleo"))
    assert waited(worker.reserve(third, 25), [worker]).limit == "team"


def test_an_attempt_keeps_what_it_did_not_use_until_the_call_ends_or_the_next_attempt_takes_it() -> None:
    stores, (worker,) = world([budget("all", 100)])
    hold = admitted(worker)
    assert waited(worker.reserve(hold, 80), [worker]) is None
    worker.book.settle(hold, 10)
    assert (hold.charged, hold.kept) == (10, 80)
    assert worker.reserve(hold, 70) is None, "the second attempt fits what the first one left"
    assert hold.frame("c").open_cost_nano_usd == 80
    assert waited(worker.reserve(admitted(worker), 30), [worker]).left == 20
    worker.book.settle(hold, 5)
    worker.book.close(hold)
    worker.book.close(hold)
    worker.sync()
    account = stores.memory.accounts["all/@2026-03"]
    assert (account.settled, account.over) == (15, 0)


def test_a_call_that_was_never_sent_costs_nothing() -> None:
    stores, (worker,) = world([budget("all", 100)])
    hold = admitted(worker)
    waited(worker.reserve(hold, 80), [worker])
    worker.book.close(hold)
    assert worker.leave()
    account = stores.memory.accounts["all/@2026-03"]
    assert (account.settled, account.held) == (0, 0)


def test_a_providers_overrun_is_booked_in_full() -> None:
    stores, (worker,) = world([budget("all", 100)])
    hold = admitted(worker)
    waited(worker.reserve(hold, 100), [worker])
    assert worker.book.settle(hold, 130) == 30
    worker.book.close(hold)
    worker.sync()
    account = stores.memory.accounts["all/@2026-03"]
    assert (account.settled, account.over, account.held) == (130, 30, 0)
    assert isinstance(worker.reserve(admitted(worker), 1), Refusal), "refused without asking: nothing is left"


def test_zero_stays_zero() -> None:
    _, (worker,) = world([budget("all", 0)])
    assert worker.reserve(admitted(worker), 0) is None
    assert isinstance(worker.reserve(admitted(worker), 1), Refusal)


def test_a_new_period_is_a_new_account_and_the_old_one_keeps_its_calls() -> None:
    stores, (worker,) = world([budget("day", 50, per="day")])
    late = admitted(worker)
    assert waited(worker.reserve(late, 50), [worker]) is None
    stores.clock.pass_s(86_400)
    assert waited(worker.reserve(admitted(worker), 50), [worker]) is None, "the new day has its own money"
    worker.book.settle(late, 50)
    worker.book.close(late)
    worker.sync()
    assert stores.memory.accounts["day/@2026-03-01"].settled == 50
    stores.clock.wall_ns -= 86_400 * NS_PER_S
    assert isinstance(waited(worker.reserve(admitted(worker), 1), [worker]), Refusal), "a clock that goes back resets"


def test_soft_refuses_nothing_and_announces_each_share_once() -> None:
    _, workers = world([budget("watch", 100, mode="soft", alerts=(50, 80, 100))], 2)
    for cost in (30, 30, 30, 30):
        for worker in workers:
            hold = admitted(worker)
            assert worker.reserve(hold, 1_000) is None
            worker.book.settle(hold, cost)
            worker.book.close(hold)
            worker.sync()
            worker.sync()
    told = [(alert.share, alert.account) for worker in workers for alert in worker.alerts]
    assert sorted(told) == [(50, "watch/@2026-03"), (80, "watch/@2026-03"), (100, "watch/@2026-03")]


def test_downgrade_closes_the_variant_and_hard_the_call() -> None:
    _, (worker,) = world([budget("cheap", 50, mode="downgrade"), budget("hard", 80)])
    hold = admitted(worker)
    assert waited(worker.reserve(hold, 60), [worker]).closes == "variant"
    assert waited(worker.reserve(hold, 40), [worker]) is None, "a cheaper variant fits"
    assert waited(worker.reserve(admitted(worker), 90), [worker]).closes == "call"


def test_places_are_taken_and_given_back() -> None:
    gate = Limit(name="gate", kind="concurrency", dimension="key", unit="calls", amount=2)
    _, workers = world([gate], 2)
    holds = [waited(worker.admit(WHO), workers) for worker in workers]
    assert all(isinstance(hold, Hold) for hold in holds)
    waiting = workers[0].admit(WHO)
    pump(workers)
    assert waiting == [], "a place is waited for while others hold one"
    workers[1].book.close(holds[1])
    pump(workers)
    assert isinstance(waiting[0], Hold)


def test_requests_and_tokens_come_from_buckets() -> None:
    limits = [
        Limit(name="rpm", kind="rate", dimension="key", unit="requests", amount=60, window_s=60, burst=2),
        Limit(name="tpm", kind="rate", dimension="key", unit="tokens", amount=600, window_s=60),
    ]
    stores, (worker,) = world(limits)
    one, _two = admitted(worker), admitted(worker)
    refused = waited(worker.admit(WHO), [worker])
    assert (refused.code, refused.limit, refused.retry_after_s) == ("rate_limit_exceeded", "rpm", 1)
    assert waited(worker.reserve(one, 0, 500), [worker]) is None
    refused = waited(worker.reserve(_two, 0, 500), [worker])
    assert (refused.limit, refused.left, refused.retry_after_s) == ("tpm", 100, 40)
    worker.book.settle(one, 0, 100)
    worker.sync()
    assert waited(worker.reserve(_two, 0, 500), [worker]) is None, "unused tokens come back"
    assert isinstance(waited(worker.reserve(_two, 0, 601), [worker]), Refusal)
    stores.clock.pass_s(1)
    assert isinstance(waited(worker.admit(WHO), [worker]), Hold)


@pytest.mark.parametrize(
    ("dimension", "value", "tag", "who", "account"),
    [
        ("tenant", None, "", Attribution(tenant="acme"), "x/acme@2026-03"),
        ("team", "support", "", Attribution(team="support"), "x/support@2026-03"),
        ("team", "support", "", Attribution(team="sales"), None),
        ("workflow", None, "", Attribution(), "x/w@2026-03"),
        ("use_case", None, "", Attribution(use_case="uc"), "x/uc@2026-03"),
        ("key", None, "", Attribution(key="k"), "x/k@2026-03"),
        ("user", None, "", Attribution(user="a/b@c"), "x/a/b@c@2026-03"),
        ("user", None, "", Attribution(), "x/@2026-03"),
        ("tag", "env=prod", "", Attribution(tags=("env=prod", "z")), "x/env=prod@2026-03"),
        ("tag", "env=prod", "", Attribution(tags=("env=test",)), None),
        ("tag", None, "env", Attribution(tags=("env=test",)), "x/test@2026-03"),
        ("tag", None, "env", Attribution(tags=("z",)), None),
    ],
)
def test_scopes(dimension: str, value: str | None, tag: str, who: Attribution, account: str | None) -> None:
    _, (worker,) = world([budget("x", 10, dimension, value, tag=tag)])
    accounts = worker.book.accounts(who, "w", NOW_NS)
    assert accounts is not None
    assert accounts.names == (() if account is None else (account,))


def test_an_edited_amount_holds_at_once_for_what_was_spent_before() -> None:
    _, (worker,) = world([budget("all", 100)])
    hold = admitted(worker)
    waited(worker.reserve(hold, 90), [worker])
    worker.book.use([budget("all", 200)])
    assert waited(worker.reserve(admitted(worker), 110), [worker]) is None
    worker.book.use([budget("all", 150)])
    assert isinstance(waited(worker.reserve(admitted(worker), 20), [worker]), Refusal)


def test_users_nobody_hears_of_any_more_are_returned_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "SLICES_MAX", 50)
    stores, (worker,) = world([budget("user", 100, "user", None)])
    for number in range(50):
        hold = admitted(worker, Attribution(user=f"u{number}"))
        assert waited(worker.reserve(hold, 5), [worker]) is None
        worker.book.settle(hold, 3)
        worker.book.close(hold)
    assert worker.book.accounts(Attribution(user="one too many"), "w", NOW_NS) is None, "memory is bounded"
    worker.sync()
    for _ in range(3):
        worker.renewal.tidy()
        stores.clock.pass_s(20)
    worker.sync()
    assert not worker.book.slices
    account = stores.memory.accounts["user/u7@2026-03"]
    assert (account.settled, account.held) == (3, 0)
    assert worker.book.accounts(Attribution(user="one too many"), "w", NOW_NS) is not None


def test_a_worker_that_died_is_resolved_from_its_frames() -> None:
    stores = Stores("memory", Clock())
    ledgers: dict[str, list[Any]] = {}
    limits = [budget("all", 100)]
    dying, living = (Worker(stores, limits, ledgers=ledgers) for _ in range(2))
    told, ended, sent, unsent = (admitted(dying) for _ in range(4))
    for hold, name in ((told, "told"), (ended, "ended"), (sent, "sent"), (unsent, "unsent")):
        assert waited(dying.reserve(hold, 20), [dying, living]) is None
        if hold is not unsent:
            dying.write_reserved(hold, name)
    for hold, name in ((told, "told"), (ended, "ended")):
        dying.book.settle(hold, 7)
        dying.write_closed(hold, name)
        dying.book.close(hold)
        if hold is told:
            dying.sync()
    dying.book.settle(sent, 2)
    assert dying.reserve(sent, 15) is None
    dying.write_reserved(sent, "sent")
    dying.crash()
    (resolution,) = bury_all(living, ledgers)
    assert resolution.charges == {"all/@2026-03": 7 + 2 + 15}
    assert [(one.call_id, one.cost_nano_usd) for one in resolution.interrupted] == [("sent", 17)]
    assert bury_all(living, ledgers) == []
    account = stores.memory.accounts["all/@2026-03"]
    assert (account.settled, account.held) == (7 + 7 + 17, 0)


def test_a_refusal_says_which_limit_how_much_is_left_and_when_it_resets() -> None:
    _, (worker,) = world([budget("support-month", 500_000_000_000, "team", "support", zone="Europe/Berlin")])
    hold = admitted(worker)
    waited(worker.reserve(hold, 499_990_000_000), [worker])
    refused = waited(worker.reserve(admitted(worker), 20_000_000), [worker])
    error = refused.error()
    assert (error.status, error.code, error.kind) == (429, "budget_exceeded", "insufficient_quota")
    assert error.what == (
        "budget `support-month` of team `support`: this needs up to 0.02 USD, and 0.01 USD of 500.00 USD is left; "
        "resets at 2026-03-31T22:00:00Z"
    )
    wait_s = (parse_iso("2026-03-31T22:00:00") - NOW_NS) // NS_PER_S
    assert dict(refused.headers()) == {
        "retry-after": str(wait_s),
        "x-should-retry": "false",
        "x-ratelimit-limit-usd": "500.00",
        "x-ratelimit-remaining-usd": "0.01",
        "x-ratelimit-reset-usd": "730h0m0s",
        "ratelimit-policy": f'"support-month";q=500000000;qu="micro-usd";w={31 * 86_400 - 3_600}',
        "ratelimit": f'"support-month";r=10000;t={wait_s}',
    }


def test_a_refusal_without_a_store_says_so() -> None:
    error = Refusal(code="limits_unavailable").error()
    assert (error.status, error.kind, error.retry_after_s) == (503, "server_error", 1)
