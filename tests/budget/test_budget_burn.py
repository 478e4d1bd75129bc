"""The burn-down over days and hours, and the forecast where there is enough to say."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from budget_world import CENT

from drivetrain.cli.budget_burn import Burn, burn_json, burned, print_burn
from drivetrain.core.calls import AttemptV1, Attribution, ClosedV1, OpenedV1
from drivetrain.core.ids import call_ids
from drivetrain.core.limits import Limit
from drivetrain.core.times import NS_PER_S, iso
from drivetrain.ledger.journal import FrameJournal
from drivetrain.limits.accounts import account_of
from drivetrain.limits.standing import account_standing
from support.lakes import lake_at

BERLIN = ZoneInfo("Europe/Berlin")


def at(*moment: int, zone: ZoneInfo = BERLIN) -> int:
    return int(datetime(*moment, tzinfo=zone).timestamp()) * NS_PER_S  # type: ignore[misc,arg-type]


def month(amount: int = 1_000 * CENT, **more: object) -> Limit:
    given = {"kind": "budget", "dimension": "project", "value": "", "per": "month", "zone": "Europe/Berlin", **more}
    return Limit(name="all", amount=amount, **given)  # type: ignore[arg-type]


def write(folder: Path, *calls: tuple[int, int], tags: tuple[str, ...] = ()) -> None:
    """(when, cents) each."""
    journal = FrameJournal(folder)
    for when_ns, cents in calls:
        cost = cents * CENT
        call_id = call_ids(lambda when_ns=when_ns: when_ns)()  # type: ignore[misc]
        attempt = AttemptV1(
            variant="v", model="far/m", purpose="answer", verdict="accepted", status=200, cost_nano_usd=cost
        )
        who = Attribution("", "support", "", "", "ann", tags)
        journal.append(OpenedV1(call_id, when_ns, "0123456789abcdef", "w", "chat", False, who), lambda _: None)
        journal.append(ClosedV1(call_id, when_ns + 1, "answered", 200, "v", cost, (attempt,)), lambda _: None)
    journal.close()


def burn(folder: Path, limit: Limit, now_ns: int, value: str = "") -> Burn:
    account = account_of(limit, value, now_ns)
    return burned(account, lake_at(folder), account_standing(limit, value, None, now_ns), now_ns)


def test_days_are_the_zones_and_the_period_is_exact(tmp_path: Path) -> None:
    write(
        tmp_path, (at(2026, 2, 28, 23, 59), 900), (at(2026, 3, 1, 0, 0), 10), (at(2026, 3, 1, 23, 59), 20),
        (at(2026, 3, 2, 0, 1), 5), (at(2026, 4, 1, 0, 0), 900),
    )  # fmt: skip
    found = burn(tmp_path, month(), at(2026, 3, 4, 12))
    assert [bar.cost_nano_usd // CENT for bar in found.bars] == [30, 5, 0, 0]
    assert [bar.total_nano_usd // CENT for bar in found.bars] == [30, 35, 35, 35]
    assert found.spent == 35 * CENT


def test_a_day_with_25_hours_has_25_bars(tmp_path: Path) -> None:
    write(tmp_path, (at(2026, 10, 25, 23, 30), 4))
    found = burn(tmp_path, month(per="day"), at(2026, 10, 25, 23, 59))
    assert (found.by, len(found.bars)) == ("hour", 25)
    assert found.bars[-1].cost_nano_usd == 4 * CENT


def test_half_hour_zones_lose_nothing(tmp_path: Path) -> None:
    zone = ZoneInfo("Asia/Kolkata")
    write(tmp_path, (at(2026, 3, 1, 0, 5, zone=zone), 7), (at(2026, 3, 1, 12, zone=zone), 8))
    found = burn(tmp_path, month(per="day", zone="Asia/Kolkata"), at(2026, 3, 1, 23, zone=zone))
    assert found.bars[0].cost_nano_usd == 7 * CENT
    assert found.bars[-1].total_nano_usd == found.spent == 15 * CENT


def test_a_straight_line_says_when_it_is_used_up(tmp_path: Path) -> None:
    write(tmp_path, *((at(2026, 3, day, 6), 100) for day in range(1, 5)))
    found = burn(tmp_path, month(), at(2026, 3, 5))
    assert iso(found.used_up_ns) == iso(at(2026, 3, 11))
    forecast = burn_json(found)["forecast"]
    assert forecast["used_up"] == iso(at(2026, 3, 11))
    assert forecast["since"] == iso(at(2026, 3, 1))


def test_the_pace_is_measured_from_the_first_cost(tmp_path: Path) -> None:
    write(tmp_path, *((at(2026, 3, day, 6), 100) for day in range(11, 15)))
    assert iso(burn(tmp_path, month(), at(2026, 3, 15)).used_up_ns) == iso(at(2026, 3, 21))


def test_a_slow_pace_says_what_will_be_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, *((at(2026, 10, day, 6), 1) for day in range(1, 11)))
    found = burn(tmp_path, month(zone="UTC"), at(2026, 10, 11, zone=ZoneInfo("UTC")))
    assert found.used_up_ns == 0
    assert found.at_reset == 31 * CENT
    print_burn(found)
    said = capsys.readouterr().out
    assert "0.31 USD (3%) will be spent when it resets" in said
    assert said.count("\n10-") == 11


def test_there_is_no_forecast_from_two_days(tmp_path: Path) -> None:
    write(tmp_path, (at(2026, 3, 1, 6), 100), (at(2026, 3, 2, 6), 100), (at(2026, 3, 2, 7), 100))
    found = burn(tmp_path, month(), at(2026, 3, 9))
    assert (found.paced_since_ns, found.used_up_ns) == (0, 0)


def test_what_is_over_the_cap_is_drawn_beyond_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, *((at(2026, 3, day, 6), 100) for day in range(1, 5)))
    print_burn(burn(tmp_path, month(200 * CENT, mode="soft"), at(2026, 3, 5, 12)))
    said = capsys.readouterr().out
    last = next(line for line in said.splitlines() if line.startswith("03-04"))
    assert "200%" in last
    assert last.split()[1] == "-" * 15 + "|" + "-" * 7 + "#" * 7
    assert "It is used up; it resets on 2026-04-01 00:00 CEST." in said


def test_a_call_with_a_tag_twice_counts_for_both(tmp_path: Path) -> None:
    write(tmp_path, (at(2026, 3, 1, 6), 3), tags=("customer=a", "customer=b"))
    limit = month(dimension="tag", value=None, tag="customer")
    now_ns = at(2026, 3, 1, 12)
    assert [burn(tmp_path, limit, now_ns, value).spent // CENT for value in ("a", "b", "c")] == [3, 3, 0]
    fixed = month(dimension="tag", value="customer=b")
    assert burn(tmp_path, fixed, now_ns, "customer=b").spent == 3 * CENT
