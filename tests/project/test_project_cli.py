"""`drivetrain init` writes a project that is right; `drivetrain check` says so, or every mistake."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from drivetrain import project
from drivetrain.cli.check import check_command
from drivetrain.cli.init import init_command
from drivetrain.cli.main import COMMANDS
from drivetrain.simulator import load_config

app = typer.Typer()
app.command("init")(init_command)
app.command("check")(check_command)


def run(*arguments: str):
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "My Shop"
    assert run("init", str(folder)).exit_code == 0
    return folder


def test_a_new_project_is_right_in_every_environment(made: Path) -> None:
    answer = run("check", "--project", str(made))
    assert answer.exit_code == 0, answer.output
    assert answer.output == f"ok: 2 workflows, snapshot {project.content_hash(made)[:16]}\n"
    assert run("check", "--project", str(made), "--env", "prod").exit_code == 0
    snapshot = project.load(made)
    assert snapshot.name == "my-shop"
    assert [type(step).__name__ for step in snapshot.workflows["triage"].route] == ["Rule", "Variant", "Variant"]


def test_a_new_project_has_a_simulator_for_all_its_models(made: Path) -> None:
    simulated = load_config(made / "simulator.toml")
    snapshot = project.load(made)
    for workflow in snapshot.workflows.values():
        for step in workflow.route:
            if hasattr(step, "model"):
                provider, _, model = step.model.partition("/")
                assert model in simulated.models
                assert snapshot.providers[provider].endpoint.port == simulated.server.port


def test_a_new_projects_key_is_its_own_and_is_not_committed(made: Path, tmp_path: Path) -> None:
    key = made / "secrets/dev.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "secrets/" in (made / ".gitignore").read_text().splitlines()
    run("init", str(tmp_path / "other"))
    assert (tmp_path / "other/secrets/dev.key").read_text() != key.read_text()
    assert all(
        key.read_text().strip() not in path.read_text() for path in made.rglob("*") if path.is_file() and path != key
    )


def test_init_writes_over_nothing(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    answer = run("init", str(made))
    assert answer.exit_code == 1
    assert "exists and is not empty; nothing was written" in answer.output
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_check_finds_the_project_upwards(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(made / "workflows")
    assert run("check").exit_code == 0
    monkeypatch.chdir(tmp_path)
    answer = run("check")
    assert answer.exit_code == 1
    assert "drivetrain init" in answer.output


def test_check_reports_mistakes_of_every_room(made: Path) -> None:
    settings = made / "drivetrain.toml"
    settings.write_text(settings.read_text().replace("usd_per_million_output =", "# "))
    (made / "workflows/bad.py").write_text("1 / 0\n")
    answer = run("check", "--project", str(made))
    assert answer.exit_code == 1
    assert "2 mistakes in the project:" in answer.output
    assert "workflows/bad.py:1: The module cannot be imported: ZeroDivisionError" in answer.output
    found = msgspec.json.decode(run("check", "--json", "--project", str(made)).output)
    assert (found["ok"], found["snapshot"]) == (False, "")
    assert [one["file"] for one in found["problems"]] == ["drivetrain.toml", "workflows/bad.py"]


def test_check_reports_a_model_without_a_price(made: Path) -> None:
    settings = made / "drivetrain.toml"
    settings.write_text(settings.read_text().replace("sim/gpt-5-nano-2025-08-07", "sim/our-own"))
    settings.write_text(settings.read_text().replace('[models."sim/our-own"]', '[models."sim/other"]'))
    answer = run("check", "--project", str(made))
    assert answer.exit_code == 1
    assert "sim/our-own" in answer.output


def test_a_missing_secret_is_a_notice(made: Path) -> None:
    (made / "secrets/dev.key").unlink()
    answer = run("check", "--project", str(made))
    assert answer.exit_code == 0
    assert answer.output.startswith("notice: `keys.dev.secret`: file secrets/dev.key does not exist\nok: 2 workflows")
    assert msgspec.json.decode(run("check", "--json", "--project", str(made)).output)["notices"] != []


def test_the_readme_of_a_new_project_names_commands_that_exist(made: Path) -> None:
    named = re.findall(r"^    drivetrain (\w+)", (made / "README.md").read_text(), re.MULTILINE)
    assert named == ["simulator", "check", "serve", "run", "cost"]
    assert set(named) <= set(COMMANDS)
