"""Changes of budgets: what the control log's records make of declared limits."""

from __future__ import annotations

import random

import msgspec
import pytest

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.limits import Limit
from drivetrain.limits.accounts import account_of
from drivetrain.limits.changes import (
    RAISED_MAX,
    RESET,
    SET,
    TOP_UP,
    ResetBody,
    SetBody,
    TopUpBody,
    amended,
    changes_of,
    fold,
)
from drivetrain.ports.control import ControlRecord

NOW_NS = 1_772_366_400_000_000_000
"""2026-03-01T12:00:00Z."""
MONTH_NS = 31 * 86_400 * 10**9
PERSON = Limit(name="person", kind="budget", dimension="user", amount=100, per="month")
PACE = Limit(name="pace", kind="rate", dimension="project", value="", unit="requests", amount=60, window_s=60)
DECLARED = {"person": PERSON, "pace": PACE}


class Log:
    """Records, numbered."""

    def __init__(self) -> None:
        self.records: list[ControlRecord] = []

    def add(self, kind: str, subject: str, body: msgspec.Struct) -> None:
        text = msgspec.json.encode(body).decode()
        seq = len(self.records) + 1
        self.records.append(
            ControlRecord(
                seq=seq, at_ns=NOW_NS, kind=kind, actor="ann", subject=subject, body=text, prev_hash="", hash=""
            )
        )

    def set(self, amount: int, *, declared: int = 100, name: str = "person", unit: str = "nano_usd") -> None:
        self.add(SET, name, SetBody(unit=unit, amount=amount, declared=declared))

    def top_up(self, value: str, amount: int, *, at_ns: int = NOW_NS, name: str = "person") -> None:
        account = account_of(PERSON, value, at_ns)
        self.add(TOP_UP, name, TopUpBody(account=account.terms.account, amount=amount, ends_ns=account.ends_ns))

    def reset(self, account: str = "", name: str = "person") -> None:
        self.add(RESET, name, ResetBody(account=account))

    def cap(self, value: str = "bob", at_ns: int = NOW_NS, declared: dict[str, Limit] = DECLARED) -> int:
        limits = amended(declared, fold(changes_of(self.records)))
        return account_of(limits["person"], value, at_ns).terms.cap


def test_the_latest_set_holds() -> None:
    log = Log()
    log.set(500)
    log.set(300)
    assert log.cap() == 300


def test_a_set_holds_until_the_project_declares_another_amount() -> None:
    log = Log()
    log.set(500)
    edited = {"person": msgspec.structs.replace(PERSON, amount=200)}
    assert log.cap(declared=edited) == 200
    log.set(600, declared=200)
    assert log.cap(declared=edited) == 600


def test_a_set_in_another_unit_changes_nothing() -> None:
    log = Log()
    log.set(500, unit="requests")
    assert log.cap() == 100


def test_a_rate_is_set_too() -> None:
    log = Log()
    log.set(600, declared=60, name="pace", unit="requests")
    limits = amended(DECLARED, fold(changes_of(log.records)))
    terms = account_of(limits["pace"], "", NOW_NS).terms
    assert (terms.cap, terms.refill) == (600, 600)


def test_a_top_up_is_for_one_value_in_one_period() -> None:
    log = Log()
    log.top_up("ann", 20)
    log.top_up("ann", 5)
    log.top_up("cid", 7)
    assert (log.cap("ann"), log.cap("bob"), log.cap("cid")) == (125, 100, 107)
    assert log.cap("ann", NOW_NS + MONTH_NS) == 100
    assert log.cap("ann", NOW_NS - MONTH_NS) == 100


def test_top_ups_come_on_top_of_what_was_set() -> None:
    log = Log()
    log.top_up("ann", 20)
    log.set(500)
    assert (log.cap("ann"), log.cap("bob")) == (520, 500)


def test_a_reset_gives_the_declared_amount_back() -> None:
    log = Log()
    log.set(500)
    log.top_up("ann", 20)
    log.reset()
    assert log.cap("ann") == 100
    log.top_up("ann", 1)
    assert log.cap("ann") == 101


def test_a_reset_of_one_account_ends_its_top_up_alone() -> None:
    log = Log()
    log.set(500)
    log.top_up("ann", 20)
    log.top_up("bob", 30)
    log.reset(account_of(PERSON, "ann", NOW_NS).terms.account)
    assert (log.cap("ann"), log.cap("bob")) == (500, 530)


def test_changes_of_a_limit_that_is_declared_no_more_are_kept_for_its_return() -> None:
    log = Log()
    log.set(500)
    changed = fold(changes_of(log.records))
    assert amended({"pace": PACE}, changed) == {"pace": PACE}
    assert amended(DECLARED, changed)["person"].amount == 500


def test_a_record_that_cannot_be_read_is_an_error_and_not_left_out() -> None:
    log = Log()
    log.add(SET, "person", ResetBody())
    with pytest.raises(DrivetrainError, match="Record 1"):
        log.cap()


def test_records_of_other_kinds_are_passed_over() -> None:
    log = Log()
    log.add("apply", "person", ResetBody())
    assert log.cap() == 100


def test_top_ups_are_bounded_and_those_that_end_first_go_first() -> None:
    log = Log()
    log.top_up("old", 1, at_ns=NOW_NS - MONTH_NS)
    for number in range(RAISED_MAX):
        log.top_up(f"u{number}", 1)
    (changed,) = fold(changes_of(log.records)).values()
    assert len(changed.raised) == RAISED_MAX
    assert log.cap("u0") == 101
    assert log.cap("old", NOW_NS - MONTH_NS) == 100


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_changes_is_what_a_person_would_add_up(seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    log, amount, more = Log(), 100, dict.fromkeys("abc", 0)
    for _ in range(60):
        match dice.randrange(4):
            case 0:
                amount = dice.randrange(1_000)
                log.set(amount)
            case 1 | 2:
                value, units = dice.choice("abc"), dice.randrange(1, 50)
                more[value] += units
                log.top_up(value, units)
            case _ if dice.random() < 0.5:
                value = dice.choice("abc")
                more[value] = 0
                log.reset(account_of(PERSON, value, NOW_NS).terms.account)
            case _:
                amount, more = 100, dict.fromkeys("abc", 0)
                log.reset()
        assert {value: log.cap(value) for value in "abc"} == {value: amount + more[value] for value in "abc"}
