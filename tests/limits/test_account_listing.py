"""What every counter store must list: the accounts of one limit in one period, most settled first, with their sums."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from limits_world import NOW_NS, Clock, Stores

from drivetrain.core.times import NS_PER_S
from drivetrain.ports.counters import (
    BUCKET,
    MONEY,
    AccountListing,
    AccountState,
    Line,
    NamedAccount,
    Report,
    SyncRequest,
    Terms,
    Want,
)

KINDS = ("memory", "sqlite")
SPENT = {"ann": 5, "bob": 30, "cid": 12, "": 7, "%": 1, "a_b": 2, "x@2026-03": 9, "o/o": 3}


@pytest.fixture(params=KINDS)
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    made = Stores(request.param, Clock())
    yield made
    made.close()


def purse(name: str, period: str = "2026-03") -> Terms:
    return Terms(f"{name}@{period}", MONEY, 100, ends_ns=NOW_NS + 10 * NS_PER_S)


def spend(stores: Stores, spent: dict[str, int], limit: str = "person", period: str = "2026-03") -> None:
    store = stores.handle()
    name = f"{limit}-{period}"
    store.join(name)
    terms = [purse(f"{limit}/{value}", period) for value in spent]
    lines = tuple(Line(number, one, 40, 40, 40) for number, one in enumerate(terms, 1))
    store.sync(SyncRequest(name, 0, wants=(Want(1, lines),)))
    reports = tuple(
        Report(number, one, booked=units)
        for number, (one, units) in enumerate(zip(terms, spent.values(), strict=True), 1)
    )
    store.sync(SyncRequest(name, 1, reports=reports))


def test_accounts_of_one_limit_and_period_are_listed_most_settled_first(stores: Stores) -> None:
    spend(stores, SPENT)
    spend(stores, {"ann": 33}, period="2026-02")
    spend(stores, {"ann": 33}, limit="persons")
    spend(stores, {"ann": 33}, limit="perso")
    listing = stores.handle().accounts("person/", "@2026-03", 100)
    by_name = sorted(SPENT.items(), key=lambda one: (-one[1], one[0]))
    assert listing.first == tuple(
        NamedAccount(f"person/{value}@2026-03", AccountState(units, 40 - units, 0)) for value, units in by_name
    )
    assert (listing.count, listing.settled) == (len(SPENT), sum(SPENT.values()))
    assert listing.held == 40 * len(SPENT) - sum(SPENT.values())


def test_the_sums_are_over_those_that_are_left_out_too(stores: Stores) -> None:
    spend(stores, SPENT)
    listing = stores.handle().accounts("person/", "@2026-03", 2)
    assert [one.name for one in listing.first] == ["person/bob@2026-03", "person/cid@2026-03"]
    assert (listing.count, listing.settled) == (len(SPENT), sum(SPENT.values()))


def test_where_there_is_nothing_nothing_is_listed(stores: Stores) -> None:
    spend(stores, SPENT)
    assert stores.handle().accounts("person/", "@2026-04", 10) == AccountListing(())


def test_a_listed_bucket_is_filled_up_to_now(stores: Stores) -> None:
    store = stores.handle()
    store.join("a")
    terms = Terms("pace/ann@rate", BUCKET, 10, refill=10, refill_ns=NS_PER_S)
    store.sync(SyncRequest("a", 0, wants=(Want(1, (Line(1, terms, 8, 8, 8),)),)))
    store.sync(SyncRequest("a", 1, reports=(Report(1, terms, booked=8),)))
    stores.clock.pass_s(0.5)
    (found,) = stores.handle().accounts("pace/", "@rate", 10).first
    assert found.state == store.account(terms.account)
    assert found.state.level == 7


def test_listing_changes_nothing(stores: Stores) -> None:
    spend(stores, SPENT)
    reader = stores.handle()
    before = [reader.account(f"person/{value}@2026-03") for value in SPENT]
    reader.accounts("person/", "@2026-03", 3)
    assert [reader.account(f"person/{value}@2026-03") for value in SPENT] == before
