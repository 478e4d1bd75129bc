"""`drivetrain calls show` tells how a Call came about: from the cache, degraded, cut, held back, or never ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from drivetrain.cli import calls
from drivetrain.core.calls import AttemptV1, Attribution, ClosedV1, OpenedV1, Stored
from drivetrain.core.money import NO_USAGE, Usage
from drivetrain.ledger.journal import FrameJournal

pytestmark = pytest.mark.slow

T0_NS = 1_767_225_600_000_000_000
CIRCUIT = "the provider of `main` is not asked at present: circuit open after 5 failures in a row"

app = typer.Typer()
app.add_typer(calls.app, name="calls")


def call_id(number: int) -> str:
    return f"call_{T0_NS // 1_000_000 + number:012x}0123456789{number:08x}"


def opened(number: int, **fields: Any) -> OpenedV1:
    return OpenedV1(call_id(number), T0_NS + number, "0" * 16, "help", "chat", False, Attribution(), **fields)


def closed(number: int, *attempts: AttemptV1, **fields: Any) -> ClosedV1:
    given = {"status": "answered", "http_status": 200, "variant": attempts[-1].variant, **fields}
    cost = sum(one.cost_nano_usd for one in attempts)
    return ClosedV1(call_id(number), T0_NS + number + 5, cost_nano_usd=cost, attempts=attempts, **given)


def held_back(failure: str, reason: str) -> AttemptV1:
    return AttemptV1("main", "sim/large", "answer", "failed", reason, 10, 0, 10, failure=failure)


CACHED = AttemptV1(
    "main", "sim/large", "answer", "accepted", "", 10, 20, 30, 200, NO_USAGE, 0, cached=True, saved_nano_usd=31_500
)
ANSWERED = AttemptV1(
    "spare", "sim/small", "fallback", "accepted", "", 10, 20, 30, 200, Usage(9, 0, 0, 0, 5, 0, "reported"), 700
)
RECORDS: tuple[Stored, ...] = (
    opened(1),
    closed(1, CACHED),
    opened(2),
    closed(2, held_back("denied", CIRCUIT), AttemptV1("static", "", "degraded", "accepted"), degraded="static"),
    opened(3),
    closed(3, held_back("limit", "budget `each-user` of user `ann`"), ANSWERED, notes=("context: dropped 3 turns",)),
    opened(4, reserved_number=7, reserved_accounts=("each-user/ann@2026-01-01",), reserved_nano_usd=4_000_000),
    opened(5),
    opened(6),
    closed(6, held_back("", "sim/large has no tools"), ANSWERED),
    opened(7),
    closed(7, AttemptV1("main", "sim/large", "answer", "failed", "refused", 10, 0, 20, failure="connect"), ANSWERED),
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "shop"\n')
    journal = FrameJournal(tmp_path / ".drivetrain" / "data")
    for record in RECORDS:
        journal.append(record)
    journal.flush()
    journal.close()
    return tmp_path


def shown(project: Path, number: int) -> tuple[str, dict[str, Any]]:
    """For people, and as JSON."""
    said = []
    for more in ((), ("--json",)):
        ran = CliRunner().invoke(app, ["calls", "show", call_id(number), "--project", str(project), *more])
        assert ran.exit_code == 0, ran.output
        said.append(ran.output)
    return said[0], json.loads(said[1])


def test_an_answer_from_the_cache_says_what_it_saved(project: Path) -> None:
    text, whole = shown(project, 1)
    assert "accepted, cached" in text
    assert "main: from the cache, which saved 0.0000315 USD" in text
    assert whole["saved_nano_usd"] == whole["attempts"][0]["saved_nano_usd"] == 31_500
    assert whole["attempts"][0]["cached"] is True
    assert whole["attempts"][0]["sent"] is False
    assert "from the cache" not in shown(project, 3)[0]


def test_a_degraded_answer_says_so_and_why_nothing_was_sent(project: Path) -> None:
    text, whole = shown(project, 2)
    assert "degraded  static: no variant answered" in text
    assert "not sent" in text
    assert f"main: {CIRCUIT}" in text
    assert whole["degraded"] == "static"
    assert [one["sent"] for one in whole["attempts"]] == [False, False]
    assert shown(project, 1)[1]["degraded"] == ""


def test_what_was_done_to_the_request_is_noted(project: Path) -> None:
    text, whole = shown(project, 3)
    assert "note      context: dropped 3 turns" in text
    assert whole["notes"] == ["context: dropped 3 turns"]
    assert "main: budget `each-user` of user `ann`" in text
    assert [(one["failure"], one["sent"]) for one in whole["attempts"]] == [("limit", False), ("", True)]


def test_an_interrupted_call_costs_what_was_reserved_and_says_so(project: Path) -> None:
    text, whole = shown(project, 4)
    assert "0.004 USD, the most it can have cost" in text
    assert (whole["cost_nano_usd"], whole["charged_as_reserved"]) == (4_000_000, True)
    text, whole = shown(project, 5)
    assert "unknown: the process ended" in text
    assert (whole["cost_nano_usd"], whole["charged_as_reserved"]) == (0, False)
    listed = CliRunner().invoke(app, ["calls", "--project", str(project)]).output.splitlines()
    last = {number: line.split()[-1] for line in listed for number in (4, 5) if call_id(number) in line}
    assert last == {4: "0.004", 5: "unknown"}


def test_an_attempt_that_found_nobody_was_made_and_one_without_the_means_was_not(project: Path) -> None:
    text, whole = shown(project, 6)
    assert "not sent" in text
    assert [one["sent"] for one in whole["attempts"]] == [False, True]
    text, whole = shown(project, 7)
    assert "not sent" not in text
    assert [one["sent"] for one in whole["attempts"]] == [True, True]
