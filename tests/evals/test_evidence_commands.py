"""`drivetrain policy replay` and `drivetrain explain` on a project with records: Calls in, a page and a Report out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from evals_world import table, write_project
from typer.testing import CliRunner

from drivetrain.cli import reports
from drivetrain.cli.explain import explain_command, period_ns
from drivetrain.cli.policy_replay import replay
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.times import iso, parse_iso
from drivetrain.embedded import calls as embedded
from drivetrain.embedded.modelling import open_reports
from drivetrain.embedded.outcomes import record_outcomes

pytestmark = pytest.mark.slow

CALLS = 60
TABLES = {
    "refund.json": table(("< 0.4", "", "refund"), ("", "", "review")),
    "refund_v2.json": table(("< 0.7", "", "refund"), ("", "", "deny")),
}


def asked(root: Path) -> list[str]:
    ids = []
    for number in range(CALLS):
        result = embedded.call(root, "claims", json.dumps({"amount": 100 * number / CALLS}).encode())
        assert result.error is None
        ids.append(result.call_id)
    embedded.close()
    return ids


def refusal(command: Any, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1, result.output
    return result.output


def run(command: Any, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def show(root: Path, report: str, *arguments: str) -> str:
    result = CliRunner().invoke(reports.app, ["show", report, *arguments, "--project", str(root)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    write_project(tmp_path, tables=TABLES)
    yield tmp_path
    embedded.close()


def test_a_policy_is_replayed_with_its_worth(root: Path) -> None:
    ids = asked(root)
    truths = [{"call_id": one, "metric": "fraud", "value": number >= 42} for number, one in enumerate(ids)]
    record_outcomes(truths, project=root)
    arguments = ["refund", "--candidate", "policies/refund_v2.json", "--since", "1h", "--project", str(root)]
    page = run(replay, *arguments, "--by", "input.country")
    assert "60 of 60 Decisions re-decided" in page
    assert "36 would change: 60.0%" in page
    assert "review (row1)" in page
    assert "the candidate is worth more" in page
    found = json.loads(run(replay, *arguments, "--json"))
    assert found["changed"] == 36
    assert found["worth"]["direct"]["decisions"] == CALLS
    stored = open_reports(root).get(found["report"]).report
    assert (stored.kind, stored.subject, stored.verdict) == ("policy-replay", "policy:refund", found["verdict"])
    assert page.count("Decisions would change") == 0  # its first line says so in other words
    assert "USD per Decision" in page
    assert run(replay, "refund", "--since", "1h", "--project", str(root)).startswith("60 of 60")
    printed, told = page.rsplit("report: ", 1)
    shown = told.split()[-1]
    assert told.startswith("drivetrain report show ")
    assert show(root, shown) == printed, "the kept Report reads as the command's own page"
    assert f"```text\n{printed.partition(chr(10) * 2)[0]}" in show(root, shown, "--markdown")


def without_gains(root: Path) -> None:
    code = (root / "workflows" / "claims.py").read_text()
    start, end = code.index("        gains="), code.index("        }),\n") + len("        }),\n")
    (root / "workflows" / "claims.py").write_text(code[:start] + code[end:])


def test_without_gains_nothing_is_shown_or_asked_of_worth(root: Path) -> None:
    asked(root)
    without_gains(root)
    page = run(replay, "refund", "--since", "1h", "--by", "input.country", "--project", str(root))
    assert "By input.country" in page
    assert "USD" not in page
    assert "All in all: the policy declares no gains" in page
    refused = refusal(replay, "refund", "--outcome-depends-on-action", "--project", str(root))
    assert "declares no gains" in refused


def test_what_moved_a_metric_is_explained(root: Path) -> None:
    asked(root)
    between = time.time_ns()
    write_project(
        root, score="claim.amount / 200", tables={"refund.json": table(("< 0.2", "", "refund"), ("", "", "review"))}
    )
    asked(root)
    split = iso(between + 1_000_000)
    arguments = ["claims", "--metric", "refund_rate", "--project", str(root)]
    arguments += ["--from", f"yesterday..{split}", "--to", f"{split}..2261-01-01"]
    page = run(explain_command, *arguments)
    assert "traffic mix" in page
    printed, told = page.rsplit("report: drivetrain report show ", 1)
    assert " %" in printed
    assert show(root, told.strip()) == printed, "the kept Report reads as the command's own page"
    found = json.loads(run(explain_command, *arguments, "--json"))
    shares = {one["factor"]: one["interval"]["value"] for one in found["shares"]}
    # Half the risk doubles the refunds (0.4 to 0.8, then 0.2 to 0.4); half the threshold halves them.
    assert shares == pytest.approx({"model": 0.3, "policy": -0.3, "traffic": 0.0}, abs=0.02)
    stored = open_reports(root).get(found["report"]).report
    assert (stored.kind, stored.subject) == ("explain", "workflow:claims")
    few = json.loads(run(explain_command, *arguments, "--calls", "30", "--json"))
    assert few["first"]["used"] == 30
    assert few["ledger_decisions"] == [CALLS, CALLS]


def test_wrong_names_are_told_with_the_nearest(root: Path) -> None:
    app = typer.Typer()
    app.command()(replay)
    wrong = CliRunner().invoke(app, ["refunds", "--project", str(root)])
    assert wrong.exit_code == 1
    assert "No workflow has a policy `refunds`" in wrong.output
    metric = refusal(explain_command, "claims", "--metric", "refundrate", *DAYS, "--project", str(root))
    assert metric.count("refund_rate") == 1
    assert "`refund`" in wrong.output


DAYS = ["--from", "2026-01-01", "--to", "2026-01-02"]


def test_periods_that_overlap_or_are_empty_are_refused(root: Path) -> None:
    arguments = ["claims", "--metric", "refund_rate", "--project", str(root)]
    same = refusal(explain_command, *arguments, "--from", "2026-01-01", "--to", "2026-01-01T20:40:40")
    assert "2026-01-01T00:00 to 2026-01-02T00:00 and 2026-01-01T20:40:40 to" in same
    assert "overlap" in same
    assert "None is recorded at all" in refusal(explain_command, *arguments, *DAYS)
    asked(root)
    empty = refusal(explain_command, *arguments, *DAYS)
    assert "made no Decision from 2026-01-01T00:00 to 2026-01-02T00:00" in empty
    assert f"({CALLS})" in empty  # of today, or of two days around midnight


def test_a_missing_extra_is_told_as_such(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(root)
    start = iso(time.time_ns() - 3_600 * 10**9)
    middle = iso(time.time_ns() - 10**6)
    spans = ["--from", f"{start}..{middle}", "--to", f"{middle}..2261-01-01"]
    asked(root)
    arguments = ["claims", "--metric", "refund_rate", "--project", str(root), *spans]
    assert "the second period was not over when this was made" in run(explain_command, *arguments)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "numpy", None)
        assert 'pip install "drivetrain[models]"' in refusal(explain_command, *arguments)
    monkeypatch.setitem(sys.modules, "zen", None)
    said = refusal(explain_command, *arguments)
    assert 'pip install "drivetrain[policies]"' in said
    assert "Snapshot" not in said


NOW = parse_iso("2026-02-10T12:00:00Z")


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2026-01-31", "2026-01-31", "2026-02-01"),
        ("2026-01-31T06:00", "2026-01-31T06:00", "2026-02-01T06:00"),
        ("2026-W05", "2026-01-26", "2026-02-02"),
        ("yesterday", "2026-02-09", "2026-02-10"),
        ("2026-01-01..2026-01-08", "2026-01-01", "2026-01-08"),
        ("2026-W05..2026-02-10", "2026-01-26", "2026-02-10"),
    ],
)
def test_periods(text: str, start: str, end: str) -> None:
    assert period_ns(text, NOW) == (parse_iso(start), parse_iso(end))


@pytest.mark.parametrize("text", ["2026-W60", "2026-02-01..2026-01-01", "soon"])
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(DrivetrainError):
        period_ns(text, NOW)
