"""Durations: one parser for projects, schemas, sources and commands."""

from __future__ import annotations

from datetime import timedelta

import pytest

from drivetrain.cli.places import moment_ns
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.times import DURATION_DAYS_MAX, NS_PER_S, duration_text, duration_us, span_us
from drivetrain.datasets import parse_schema
from drivetrain.project.source_checks import duration_s

S = 1_000_000
GOOD = {
    "90s": 90 * S,
    "10m": 600 * S,
    "6h": 21_600 * S,
    "2d": 172_800 * S,
    "1w": 604_800 * S,
    "007s": 7 * S,
    f"{DURATION_DAYS_MAX}d": DURATION_DAYS_MAX * 86_400 * S,
}
BAD = ["", "s", "6", "6 h", " 6h", "6h\n", "6H", "-6h", "1.5h", "6h30m", "\u0666h", "6y", "9" * 30 + "s"]


@pytest.mark.parametrize("text", GOOD)
def test_a_duration_means_the_same_wherever_it_is_written(text: str) -> None:
    assert duration_us(text) == span_us(text) == GOOD[text]
    assert duration_us(timedelta(microseconds=GOOD[text])) == GOOD[text]
    columns = {"at": {"type": "timestamp", "fresh_within": text}}
    assert parse_schema({"columns": columns}).schema.columns[0].fresh_within == text
    if GOOD[text] <= 3_660 * 86_400 * S:
        assert duration_s(text) == GOOD[text] // S
        now = 10**9 * NS_PER_S
        assert moment_ns(text, now) == now - GOOD[text] * 1_000


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_duration_is_one_nowhere(text: str) -> None:
    for parse in (duration_us, span_us):
        with pytest.raises(ValueError):
            parse(text)
    assert duration_s(text) is None
    with pytest.raises(DrivetrainError, match="is no time"):
        moment_ns(text, 10**9 * NS_PER_S)
    if text:  # an empty one is none at all
        with pytest.raises(DrivetrainError, match="no duration such as"):
            parse_schema({"columns": {"at": {"type": "timestamp", "fresh_within": text}}})


@pytest.mark.parametrize("text", ["0d", "90s", "10m", "6h", "2d", "14d"])
def test_a_duration_is_written_as_it_is_read(text: str) -> None:
    assert duration_text(duration_us(text)) == text
    assert duration_text(duration_us(text) + 1) is None


def test_nothing_is_a_duration_and_no_span() -> None:
    assert duration_us("0s") == duration_us(timedelta()) == 0
    for nothing in ("0s", timedelta()):
        with pytest.raises(ValueError, match="more than nothing"):
            span_us(nothing)
    with pytest.raises(ValueError, match="less than nothing"):
        duration_us(timedelta(seconds=-1))


def test_a_span_is_at_most_a_hundred_years() -> None:
    longer = f"{DURATION_DAYS_MAX + 1}d"
    assert duration_us(longer) == (DURATION_DAYS_MAX + 1) * 86_400 * S  # how long ago may be longer
    with pytest.raises(ValueError, match=f"at most `{DURATION_DAYS_MAX}d`"):
        span_us(longer)
