"""`drivetrain run` says what the policy decided, and why `otherwise` was taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from policy_world import files, project
from typer.testing import CliRunner

from drivetrain.cli.run import run_command
from drivetrain.embedded import calls


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    calls.close()


def run(root: Path, amount: float, *more: str) -> Any:
    app = typer.Typer()
    app.command()(run_command)
    arguments = ["refunds", "--input", json.dumps({"amount": amount}), "--project", str(root), *more]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result


def test_the_decision_is_the_second_line(tmp_path: Path) -> None:
    project(tmp_path, '"refund.json"', files())
    result = run(tmp_path, 10)
    assert result.output.splitlines()[1] == "decision  refund because small_amount, rule small"
    assert result.stdout.splitlines() == ['{"intent":"refund","confidence":0.9}']
    said = json.loads(run(tmp_path, 70, "--json").stdout)["decision"]
    assert (said["action"], said["rule"], said["policy"], said["failed"]) == ("review", "middle", "refunds", "")


def test_a_policy_that_fails_says_why(tmp_path: Path) -> None:
    policy = 'dt.Policy("refund", decide=lambda case: {}["x"], otherwise=dt.act("review", "policy_failed"))'
    project(tmp_path, policy, {})
    line = run(tmp_path, 10).output.splitlines()[1]
    assert line.startswith("decision  review because policy_failed: `otherwise`, since its function raised KeyError at")
    assert "KeyError" in json.loads(run(tmp_path, 10, "--json").stdout)["decision"]["failed"]
