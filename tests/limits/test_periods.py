"""Promise 14: clocks, DST, month ends and odd zones never open a period twice, and never leave a gap."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.core.times import NS_PER_S, parse_iso
from drivetrain.limits.periods import period_at

HOUR = 3_600 * NS_PER_S
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia", "Africa/Cairo",
    "Australia/Lord_Howe", "America/St_Johns", "Asia/Beirut", "Pacific/Kiritimati", "America/Godthab",
)  # fmt: skip


@pytest.mark.parametrize(
    ("per", "zone", "at", "label", "hours"),
    [
        ("day", "UTC", "2026-03-01T00:00:00", "2026-03-01", 24),
        ("day", "UTC", "2026-02-28T23:59:59.999999", "2026-02-28", 24),
        ("day", "UTC", "2028-02-29T12:00:00", "2028-02-29", 24),
        ("day", "Europe/Berlin", "2026-03-28T23:00:00", "2026-03-29", 23),  # clocks go forward
        ("day", "Europe/Berlin", "2026-10-24T22:00:00", "2026-10-25", 25),  # clocks go back
        ("day", "Europe/Berlin", "2026-10-25T00:30:00", "2026-10-25", 25),  # 02:30, the first time
        ("day", "Europe/Berlin", "2026-10-25T01:30:00", "2026-10-25", 25),  # 02:30, the second time
        ("day", "America/Sao_Paulo", "2018-11-04T03:00:00", "2018-11-04", 23),  # midnight does not exist
        ("day", "America/Sao_Paulo", "2018-02-18T02:30:00", "2018-02-17", 25),  # 23:30, the second time
        ("day", "Pacific/Apia", "2011-12-30T10:00:00", "2011-12-31", 24),  # the 30th does not exist
        ("day", "Pacific/Apia", "2011-12-30T09:59:59", "2011-12-29", 24),
        ("week", "UTC", "2026-03-01T23:00:00", "2026-W09", 168),
        ("week", "UTC", "2026-03-02T00:00:00", "2026-W10", 168),
        ("week", "UTC", "2027-01-01T00:00:00", "2026-W53", 168),
        ("week", "Europe/Berlin", "2026-03-25T00:00:00", "2026-W13", 167),
        ("month", "UTC", "2026-01-31T23:59:59", "2026-01", 31 * 24),
        ("month", "UTC", "2026-02-01T00:00:00", "2026-02", 28 * 24),
        ("month", "UTC", "2028-02-15T00:00:00", "2028-02", 29 * 24),
        ("month", "UTC", "2026-12-31T23:59:59", "2026-12", 31 * 24),
        ("month", "Europe/Berlin", "2026-03-15T00:00:00", "2026-03", 31 * 24 - 1),
        ("month", "Europe/Berlin", "2026-10-15T00:00:00", "2026-10", 31 * 24 + 1),
        ("month", "Asia/Tokyo", "2026-02-28T15:00:00", "2026-03", 31 * 24),
    ],
)
def test_periods(per: str, zone: str, at: str, label: str, hours: int) -> None:
    now_ns = parse_iso(at)
    period = period_at(now_ns, per=per, zone=zone)
    assert period.label == label
    assert period.starts_ns <= now_ns < period.ends_ns
    assert period.ends_ns - period.starts_ns == hours * HOUR


@given(
    at=st.integers(4_000_000, 4_000_000_000),
    step=st.integers(0, 40 * 86_400),
    per=st.sampled_from(["day", "week", "month", "fixed"]),
    zone=st.sampled_from(ZONES),
)
def test_every_instant_has_one_period_and_time_never_goes_back_to_an_earlier_one(
    at: int, step: int, per: str, zone: str
) -> None:
    def period(second: int) -> tuple[str, int, int]:
        found = period_at(second * NS_PER_S, per=per, zone=zone, window_s=5_400)
        assert found.starts_ns <= second * NS_PER_S < found.ends_ns
        return found.label, found.starts_ns, found.ends_ns

    earlier, later = period(at), period(at + step)
    assert earlier[1] <= later[1]
    assert (earlier == later) == (earlier[0] == later[0]), "one name stands for two periods"
    assert period(earlier[2] // NS_PER_S)[1] == earlier[2], "there is a gap, or an overlap"


@given(zone=st.sampled_from(ZONES), at=st.integers(1_000_000_000, 2_000_000_000))
def test_a_day_is_the_local_date(zone: str, at: int) -> None:
    local = datetime.fromtimestamp(at, tz=UTC).astimezone(ZoneInfo(zone))
    if 3 <= local.hour < 21:  # beyond the hours in which zones change their clocks
        assert period_at(at * NS_PER_S, per="day", zone=zone).label == local.date().isoformat()


def test_fixed_windows_are_counted_in_elapsed_time() -> None:
    before = period_at(parse_iso("2026-03-29T00:59:59"), per="fixed", zone="Europe/Berlin", window_s=6 * 3_600)
    after = period_at(before.ends_ns, per="fixed", zone="Europe/Berlin", window_s=6 * 3_600)
    assert before.ends_ns - before.starts_ns == after.ends_ns - after.starts_ns == 6 * HOUR
    assert int(after.label[1:]) == int(before.label[1:]) + 1


@pytest.mark.parametrize("at", [-(10**30), -1, 0, 10**30])
def test_a_clock_beyond_reason_still_has_a_period(at: int) -> None:
    assert period_at(at, per="month", zone="Europe/Berlin").label


def test_an_unknown_zone_is_named() -> None:
    with pytest.raises(ZoneInfoNotFoundError, match="Mars"):
        period_at(0, per="day", zone="Mars/Olympus")
