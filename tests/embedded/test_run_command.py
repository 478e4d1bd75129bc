"""`drivetrain run`: one input through a workflow from the command line."""

from __future__ import annotations

import json

import pytest
from embedded_project import Project

pytestmark = pytest.mark.slow

INPUT = '{"text": "My invoice is wrong"}'


def test_the_output_is_on_stdout_and_what_it_took_on_stderr(project: Project) -> None:
    ran = project.drivetrain("run", "triage", "--input", INPUT)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["intent"] in ("billing", "technical", "cancellation", "spam")
    (call,) = project.calls()
    assert call.call_id in ran.err
    assert call.variant in ran.err
    assert "USD" in ran.err
    assert (call.door, call.status) == ("python", "answered")


def test_the_input_may_come_from_stdin(project: Project) -> None:
    ran = project.drivetrain("run", "triage", "--input", "-", stdin='{"text": "größer als 🙂"}')
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["intent"]


def test_json_is_one_object_with_the_ledgers_numbers(project: Project) -> None:
    ran = project.drivetrain("run", "triage", "--input", INPUT, "--json")
    said = json.loads(ran.out)
    (call,) = project.calls()
    assert said["call_id"] == call.call_id
    assert said["cost_nano_usd"] == call.cost_nano_usd
    assert said["variant"] == call.variant
    assert said["attempts"] == len(call.attempts)
    assert said["output"]["intent"]
    assert ran.err == ""


def test_a_chat_workflow_answers_with_text(project: Project) -> None:
    by_rule = project.drivetrain("run", "assistant", "--input", '{"text": "hello"}')
    assert by_rule.out.strip() == "Hello! What can I do for you?"
    messages = '{"messages": [{"role": "user", "content": "How do I pay?"}]}'
    by_model = project.drivetrain("run", "assistant", "--input", messages)
    assert by_model.code == 0, by_model.err
    assert len(by_model.out.strip()) > 5


def test_an_unknown_workflow_names_the_nearest(project: Project) -> None:
    ran = project.drivetrain("run", "traige", "--input", INPUT)
    assert ran.code == 1
    assert "has no workflow `traige`" in ran.err
    assert "triage" in ran.err.replace("traige", "")
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "valid JSON"),
        ("no json", "valid JSON"),
        ("{}", "text"),
        ('{"text": 7}', "text"),
        ("[]", "Ticket"),
        ('{"text": "\ud800"}', ""),
    ],
)
def test_a_wrong_input_is_told_without_a_traceback(project: Project, given: str, said: str) -> None:
    ran = project.drivetrain("run", "triage", "--input", "-", stdin=given.encode("utf-8", "replace").decode())
    if said:
        assert ran.code == 1
        assert said in ran.err
        assert project.calls() == []
    assert "Traceback" not in ran.err


def test_a_failed_call_is_told_with_its_id_and_exit_code_1(project: Project) -> None:
    ran = project.drivetrain("run", "triage", "--input", '{"text": "[[simulate failure=status:400]]"}')
    assert ran.code == 1
    assert ran.out == ""
    (call,) = project.calls()
    assert call.call_id in ran.err
    assert "Traceback" not in ran.err


def test_outside_a_project_it_says_where_it_looked(project: Project) -> None:
    ran = project.drivetrain("run", "triage", "--input", INPUT, "--project", str(project.root.parent))
    assert ran.code == 1
    assert "drivetrain.toml" in ran.err
    assert "Traceback" not in ran.err


def test_an_undeclared_environment_is_told(project: Project) -> None:
    ran = project.drivetrain("run", "triage", "--input", INPUT, "--env", "prud")
    assert ran.code == 1
    assert "prud" in ran.err
    assert "prod" in ran.err
    assert "Traceback" not in ran.err


def test_a_template_that_fails_says_why_and_its_record_quotes_no_input(project: Project) -> None:
    (project.root / "workflows" / "triage.j2").write_text("Sort:\n{{ text | int }}\n")
    ran = project.drivetrain("run", "triage", "--input", INPUT)
    assert ran.code == 1
    assert "line 2: invalid operation (invalid float literal)" in ran.err
    (call,) = project.calls()
    reasons = [one.reason for one in call.attempts]
    assert any(one.endswith("triage.j2, line 2: invalid operation") for one in reasons), reasons
