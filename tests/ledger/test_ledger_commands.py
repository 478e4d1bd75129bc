"""`drivetrain calls`, `cost` and `audit` on a project's folder, even one whose code is broken."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from drivetrain.adapters.files import FileVault
from drivetrain.adapters.sqlite import SqliteControlLog
from drivetrain.cli import audit, calls, cost
from drivetrain.cli.places import ledger_places, moment_ns
from drivetrain.core.calls import Answers, Attribution, OutcomeV1
from drivetrain.core.codec import MSGPACK
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.money import nano_usd
from support.records import T0_NS, attempt, call_id, closed, opened, write
from support.tries import PATIENCE_S, within

pytestmark = pytest.mark.slow

app = typer.Typer()
app.add_typer(calls.app, name="calls")
app.command("cost")(cost.cost_command)
app.add_typer(audit.app, name="audit")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "shop"\n[ledger]\nfolder = "records"\n')
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "broken.py").write_text("this is no Python")
    data = tmp_path / "records"
    vault = FileVault(tmp_path / ".drivetrain" / "keys")
    answers = MSGPACK.encode(Answers((b'{"id":"up-1"}', b'{"id":"up-2"}'), None))
    write(
        data,
        opened(
            1,
            attribution=Attribution(team="support", user="ann", tags=("env=prod",)),
            retained=2,
            payload=vault.seal("ann", call_id(1), "request", b'{"ask":"\\u001b[31mred"}'),
        ),
        closed(
            1,
            attempt("small", 1_500, verdict="escalated", reason="confidence 0.4\x1b[2J"),
            attempt("large", 2_000_000_000, purpose="escalation", sent_us=5_100, first_byte_us=6_000, ended_us=6_900),
            retained=2,
            payload=vault.seal("ann", call_id(1), "answers", answers),
        ),
        OutcomeV1(call_id(1), "ok", "human", True, T0_NS, T0_NS),
        opened(2, workflow="route", attribution=Attribution(team="=sales")),
        closed(2, status="refused", http_status=429, error="rate_limited"),
        opened(3),
    )
    return tmp_path


def test_calls_are_listed_newest_first_and_filtered(project: Path) -> None:
    listed = run("calls", "--project", str(project))
    assert listed.exit_code == 0, listed.output
    lines = listed.output.splitlines()
    assert [number for line in lines for number in (1, 2, 3) if call_id(number) in line] == [3, 2, 1]
    assert "2.0000015" in listed.output

    def ids(*arguments: str) -> list[str]:
        found = run("calls", "--project", str(project), "--json", *arguments)
        assert found.exit_code == 0, found.output
        return [json.loads(line)["call_id"] for line in found.output.splitlines()]

    assert ids() == [call_id(3), call_id(2), call_id(1)]
    assert ids("--limit", "1") == [call_id(3)]
    assert ids("--workflow", "route") == [call_id(2)]
    assert ids("--team", "support") == [call_id(3), call_id(1)]
    assert ids("--status", "interrupted") == [call_id(3)]
    assert ids("--variant", "small") == [call_id(1)]
    assert ids("--since", "2026-01-01T00:00:00.002", "--until", "2026-01-01T00:00:00.003") == [call_id(2)]
    assert ids("--since", "1h") == []
    wrong = run("calls", "--project", str(project), "--status", "anwered")
    assert wrong.exit_code == 1
    assert "Did you mean `answered`?" in wrong.output


def test_one_call_is_shown_as_a_waterfall_without_its_control_characters(project: Path) -> None:
    shown = run("calls", "show", call_id(1), "--project", str(project))
    assert shown.exit_code == 0, shown.output
    for word in ("small", "openai/large", "escalation", "confidence 0.4\\x1b[2J", "ok = True from human", "2.00"):
        assert word in shown.output, word
    assert "\x1b" not in shown.output
    assert "up-1" not in shown.output
    first, second = (
        next(line for line in shown.output.splitlines() if f"openai/{name}" in line) for name in ("small", "large")
    )
    assert first.index("█") < second.index("█")
    missing = run("calls", "show", "call_nope", "--project", str(project))
    assert missing.exit_code == 1
    assert "There is no Call `call_nope`" in missing.output


def test_payloads_open_on_demand_and_not_once_forgotten(project: Path) -> None:
    shown = run("calls", "show", call_id(1), "--payload", "--project", str(project))
    assert shown.exit_code == 0, shown.output
    assert "up-2" in shown.output
    assert "\x1b" not in shown.output
    whole = json.loads(run("calls", "show", call_id(1), "--payload", "--json", "--project", str(project)).output)
    assert whole["answers"] == [{"id": "up-1"}, {"id": "up-2"}]
    assert whole["cost_nano_usd"] == 2_000_001_500
    assert whole["cost_usd"] == "2.0000015"
    FileVault(project / ".drivetrain" / "keys").forget("ann")
    gone = run("calls", "show", call_id(1), "--payload", "--project", str(project))
    assert gone.exit_code == 0
    assert "forgotten" in gone.output
    assert "up-2" not in gone.output
    none = run("calls", "show", call_id(2), "--payload", "--project", str(project))
    assert none.exit_code == 1
    assert "kept no payload" in none.output


def test_cost_says_the_same_in_every_form(project: Path) -> None:
    table = run("cost", "--by", "team,variant", "--project", str(project))
    assert table.exit_code == 0, table.output
    assert table.output.splitlines()[-1].split()[-1] == "2.0000015"
    whole = json.loads(run("cost", "--by", "team,variant", "--json", "--project", str(project)).output)
    assert sum(row["cost_nano_usd"] for row in whole["rows"]) == whole["total"]["cost_nano_usd"] == 2_000_001_500
    assert whole["total"]["calls"] == 3
    sheet = list(
        csv.DictReader(io.StringIO(run("cost", "--by", "team,variant", "--csv", "--project", str(project)).output))
    )
    assert sum(nano_usd(row["cost_usd"]) for row in sheet) == 2_000_001_500
    assert {row["team"] for row in sheet} == {"support", "'=sales"}
    few = json.loads(run("cost", "--where", "variant=small", "--json", "--project", str(project)).output)
    assert few["total"]["cost_nano_usd"] == 1_500
    wrong = run("cost", "--by", "taem", "--project", str(project))
    assert wrong.exit_code == 1
    assert "Did you mean `team`?" in wrong.output


def test_audit_tells_whole_from_changed(project: Path) -> None:
    places = ledger_places(project)
    assert run("audit", "verify", "--project", str(project)).exit_code == 0
    log = SqliteControlLog(places.control_log, places.keys_folder)
    log.append(kind="promote", actor="ann", subject="triage", body={"to": "prod"})
    whole = run("audit", "verify", "--project", str(project))
    assert whole.exit_code == 0, whole.output
    head = whole.output.split()[-1]
    log.append(kind="retire", actor="ann", subject="triage", body={})
    assert run("audit", "verify", "--expect", head, "--project", str(project)).exit_code == 0
    assert run("audit", "verify", "--expect", f"1:{'0' * 64}", "--project", str(project)).exit_code == 1
    listed = run("audit", "log", "--project", str(project))
    assert [line.split()[2] for line in listed.output.splitlines()] == ["promote", "retire"]
    places.control_log.write_bytes(b"")
    for leftover in places.data_folder.glob("control.db-*"):
        leftover.unlink()
    cut = run("audit", "verify", "--json", "--project", str(project))
    assert cut.exit_code == 1
    assert "tail was cut" in json.loads(cut.output)["findings"][0]


def test_tail_follows_what_ends(project: Path) -> None:
    code = (
        "import typer\nfrom drivetrain.cli import calls\napp = typer.Typer()\n"
        "app.add_typer(calls.app, name='calls')\napp.command('x')(lambda: None)\napp()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "calls", "--tail", "--json", "--project", str(project)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # Who runs the tests in the background ignores it, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - it only resets a signal
    )
    assert process.stdout is not None
    try:
        assert [json.loads(process.stdout.readline())["call_id"] for _ in range(3)] == [call_id(n) for n in (1, 2, 3)]
        told, numbers = process.stdout, itertools.count(4)

        def one_more() -> None:
            number = next(numbers)
            write(project / "records", opened(number), closed(number, attempt()))
            assert json.loads(told.readline())["call_id"] == call_id(number)

        within(2, one_more)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)
    assert process.returncode == 0


def test_times_as_people_write_them() -> None:
    now = T0_NS + 3_600 * 10**9
    assert moment_ns("30m", now) == now - 1_800 * 10**9
    assert moment_ns("today", now) == T0_NS
    assert moment_ns("2026-01-01", now) == T0_NS
    assert moment_ns("2026-01-01T01:00:00+01:00", now) == T0_NS
    with pytest.raises(DrivetrainError, match="`soon` is no time"):
        moment_ns("soon", now)


def test_places_honour_the_environment_and_say_where_they_looked(tmp_path: Path) -> None:
    (tmp_path / "drivetrain.toml").write_text(
        '[ledger]\nfolder = "a"\n[env.prod.ledger]\nfolder = "/b"\npayload_days = 3\n'
    )
    assert ledger_places(tmp_path, {}).data_folder == tmp_path / "a"
    prod = ledger_places(tmp_path, {"DRIVETRAIN_ENV": "prod"})
    assert (prod.data_folder, prod.payload_days) == (Path("/b"), 3)
    (tmp_path / "drivetrain.toml").write_text("[ledger\n")
    with pytest.raises(DrivetrainError, match="cannot be read"):
        ledger_places(tmp_path, {})
    nowhere = run("cost", "--project", "/")
    assert nowhere.exit_code == 1
    assert "drivetrain.toml" in nowhere.output
