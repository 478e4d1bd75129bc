"""Promise 14: clock jumps, DST and month ends never reset a budget twice.

Three workers, each with a clock of its own that a test sets, spend what they can from one SQLite store. Whatever the
clocks do, every period has one account, so no period is ever paid for twice. What a period is, in every zone, is proved
in tests/limits/test_periods.py.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.core.calls import Attribution
from drivetrain.core.limits import Limit, Refusal
from drivetrain.core.times import NS_PER_S, parse_iso
from drivetrain.limits.book import Book
from drivetrain.limits.renewal import Renewal
from drivetrain.limits.slices import Short

pytestmark = pytest.mark.slow

CAP, COST = 100, 10
NAMES = itertools.count(1)
WHO = Attribution(team="red")


class Clock:
    """Wall time as one worker sees it; its monotonic time goes on whatever the wall does."""

    def __init__(self, at: str) -> None:
        self.wall_ns = parse_iso(at)
        self.monotonic_ns = 0

    def set(self, at: str) -> None:
        self.wall_ns = parse_iso(at)

    def jump(self, seconds: float) -> None:
        self.wall_ns += int(seconds * NS_PER_S)


class Spender:
    """One worker: it asks the store for every call, and waits for nothing."""

    def __init__(self, folder: Path, limit: Limit, clock: Clock) -> None:
        self.clock = clock
        self.store = SqliteCounters(folder, now_ns=lambda: clock.wall_ns)
        name = f"w{next(NAMES)}"
        self.store.join(name)
        self.book = Book([limit], now_ns=lambda: clock.wall_ns, monotonic_ns=self._monotonic)
        self.renewal = Renewal(self.book, name, monotonic_ns=self._monotonic, recall_ms=0)

    def _monotonic(self) -> int:
        self.clock.monotonic_ns += 1_000_000
        return self.clock.monotonic_ns

    def spend(self) -> str:
        """The account that paid `COST` for one call; empty where it was refused."""
        accounts = self.book.accounts(WHO, "help", self.clock.wall_ns)
        assert accounts is not None
        hold = self.book.admit(accounts)
        assert not isinstance(hold, Short | Refusal)
        heard: list[object] = []
        taken = self.book.reserve(hold, COST)
        if isinstance(taken, Short):
            assert self.renewal.wait(taken, lambda: self.book.reserve(hold, COST), heard.append) is not None
            while not heard:
                self.tell()
            taken = heard[0]  # type: ignore[assignment]
        if taken is None:
            self.book.settle(hold, COST)
        self.book.close(hold)
        self.tell()
        return "" if taken is not None else accounts.names[0]

    def tell(self) -> None:
        request = self.renewal.request(always=True)
        assert request is not None
        self.renewal.apply(self.store.sync(request))

    def give_back(self) -> None:
        """As the others ask it to: everything that is free."""
        for one in self.book.slices.values():
            self.book.return_free(one)
        self.tell()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "limits"


def budget(per: str, zone: str = "UTC", window_s: int = 0) -> Limit:
    return Limit(name="b", kind="budget", dimension="team", amount=CAP, per=per, zone=zone, window_s=window_s)


def spend_all(workers: list[Spender]) -> Counter[str]:
    """What each account pays until every worker is refused."""
    paid: Counter[str] = Counter()
    for worker in workers:
        while account := worker.spend():
            paid[account] += COST
        worker.give_back()
    return paid


def close(workers: list[Spender]) -> None:
    for worker in workers:
        worker.store.leave()
        worker.store.close()


JUMPS = {
    "back over the end of a month": ("month", "UTC", ["2026-02-01T00:00:01", "2026-01-31T23:59:59"]),
    "there and back, again and again": ("day", "UTC", ["2026-03-02T00:00:01", "2026-03-01T23:00:00"] * 5),
    "a year ahead and home": ("month", "UTC", ["2027-06-15T12:00:00", "2026-06-15T12:00:00"]),
    "to 1970 and home": ("day", "UTC", ["1970-01-01T00:00:00", "2026-06-15T12:00:00", "2026-06-15T12:00:00"]),
    "the hour that comes twice": (
        "day", "Europe/Berlin", ["2026-10-25T00:30:00", "2026-10-25T01:30:00", "2026-10-25T00:30:00"],
    ),
    "midnight that comes twice": (
        "day", "America/Sao_Paulo", ["2018-02-18T01:30:00", "2018-02-18T02:30:00", "2018-02-18T02:59:59"],
    ),
    "midnight that never comes": ("day", "America/Sao_Paulo", ["2018-11-04T02:59:59", "2018-11-04T03:00:00"]),
    "a leap day": ("month", "Asia/Tokyo", ["2028-02-29T14:59:59", "2028-02-29T15:00:00", "2028-02-29T14:59:59"]),
    "weeks over New Year": ("week", "UTC", ["2026-12-31T23:59:59", "2027-01-01T00:00:00", "2027-01-03T23:59:59"]),
}  # fmt: skip


@pytest.mark.parametrize("name", JUMPS)
def test_no_jump_pays_for_a_period_twice(folder: Path, name: str) -> None:
    per, zone, moments = JUMPS[name]
    workers = [Spender(folder, budget(per, zone), Clock(moments[0])) for _ in range(3)]
    paid: Counter[str] = Counter()
    for moment in moments:
        for worker in workers:
            worker.clock.set(moment)
        paid += spend_all(workers)
    periods = {_period(moment, per, zone) for moment in moments}
    assert len(paid) == len(periods), (paid, periods)
    assert set(paid.values()) == {CAP}, paid
    close(workers)


def _period(moment: str, per: str, zone: str) -> object:
    """The local day, ISO week or month, told by the standard library alone."""
    local = datetime.fromtimestamp(parse_iso(moment) // NS_PER_S, tz=UTC).astimezone(ZoneInfo(zone))
    day = local.date()
    return day if per == "day" else day - timedelta(days=day.weekday()) if per == "week" else (day.year, day.month)


@pytest.mark.parametrize("seed", range(20))
def test_clocks_that_disagree_and_jump_at_random_overspend_nothing(folder: Path, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    per = chance.choice(["day", "week", "month", "fixed"])
    zone = chance.choice(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia"])
    limit = budget(per, zone, window_s=5_400 if per == "fixed" else 0)
    workers = [Spender(folder, limit, Clock("2026-03-28T22:00:00")) for _ in range(3)]
    paid: Counter[str] = Counter()
    for _ in range(60):
        worker = chance.choice(workers)
        worker.clock.jump(chance.choice([1, -1, 3_600, -3_600, 86_400, -86_400, 32 * 86_400, -32 * 86_400]))
        for _ in range(chance.randint(1, 6)):
            account = worker.spend()
            paid[account] += COST if account else 0
    del paid[""]
    assert all(nano <= CAP for nano in paid.values()), paid
    for name, nano in paid.items():
        state = workers[0].store.account(name)
        assert state is not None
        assert state.settled == nano
    close(workers)


def test_a_call_is_charged_to_the_period_in_which_it_began(folder: Path) -> None:
    """It ends in the next month, by which its reservation was never made."""
    clock = Clock("2026-01-31T23:59:59")
    worker = Spender(folder, budget("month"), clock)
    accounts = worker.book.accounts(WHO, "help", clock.wall_ns)
    assert accounts is not None
    assert worker.spend() == accounts.names[0]
    hold = worker.book.admit(accounts)
    assert not isinstance(hold, Short | Refusal)
    assert worker.book.reserve(hold, COST) is None
    clock.jump(5)
    worker.book.settle(hold, COST)
    worker.book.close(hold)
    worker.tell()
    january = worker.store.account(accounts.names[0])
    assert january is not None
    assert january.settled == 2 * COST
    assert spend_all([worker]).total() == CAP  # and February has all of its own
    close([worker])


def test_a_period_that_was_forgotten_is_not_opened_again(folder: Path) -> None:
    """Counters of long ago are swept; a clock set back to them spends nothing, since nobody knows what was spent."""
    clock = Clock("2026-01-15T12:00:00")
    worker = Spender(folder, budget("month"), clock)
    assert spend_all([worker]).total() == CAP
    close([worker])
    clock.set("2026-06-15T12:00:00")
    later = Spender(folder, budget("month"), clock)
    assert later.store.sweep(parse_iso("2026-05-01T00:00:00")) == 1
    clock.set("2026-01-15T12:00:00")
    assert spend_all([later]).total() == 0, "January was reset"
    clock.set("2026-06-15T12:00:00")
    assert spend_all([later]).total() == CAP
    close([later])
