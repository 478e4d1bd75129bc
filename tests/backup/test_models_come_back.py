"""A restored project has its trained models: every byte, the aliases, what was live when, and the Reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from backup_world import Said, answered, data_of, other_root, project, run

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.reports import ReportV1
from drivetrain.embedded import calls
from drivetrain.embedded.modelling import open_registry, open_reports
from support.projects import settings
from support.registered import register_words

CODE = """
import drivetrain as dt

class Ticket(dt.Record):
    text: str

class Route(dt.Record):
    intent: str

triage = dt.Workflow(
    "triage", input=Ticket, output=Route, owner="a@b.example", team="support", use_case="tests",
    route=[dt.Variant("small", model="models:/triage@champion")],
)
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    made = project(tmp_path / "project", settings())
    (made / "workflows").mkdir()
    (made / "workflows/triage.py").write_text(CODE)
    register_words(made, "triage", {"card": "cards", "refund": "refunds"})
    register_words(made, "triage", {"card": "plastic", "refund": "money"}, alias="challenger")
    yield made
    calls.close()


def report_on(root: Path) -> str:
    made = ReportV1(kind="train", subject="model:triage@1", made_ns=7, made_by="mia", verdict="91 % right")
    return open_reports(root).put(made)


def moved(root: Path, to: Path) -> Path:
    """The project elsewhere, from its repository and a backup with its keys."""
    run("backup", to / "b", "--with-keys", to / "k", "--project", root)
    new = other_root(root, to / "new")
    run("restore", to / "b", "--keys", to / "k", "--project", new)
    return new


def test_a_restored_project_answers_with_its_models_and_shows_its_reports(root: Path, tmp_path: Path) -> None:
    report = report_on(root)
    before = open_registry(root)
    new = moved(root, tmp_path)

    after = open_registry(new)
    assert after.versions("triage") == before.versions("triage")
    assert after.aliases("triage") == {"challenger": 2, "champion": 1}
    assert after.history("triage") == before.history("triage")
    assert run("models", "verify", "--project", new).count("whole: model:triage@") == 2
    (listed,) = answered("report", "list", "--subject", "model:triage@1", "--project", new)["reports"]
    assert (listed["id"], listed["verdict"]) == (report, "91 % right")
    assert answered("report", "show", report[:6], "--project", new)["id"] == report
    for text, intent in (("my card is gone", "cards"), ("a refund please", "refunds")):
        result = calls.call(new, "triage", json.dumps({"text": text}).encode())
        assert result.error is None
        assert result.output.intent == intent
        assert result.attempts[0].model == "models:/triage/1"
    # And life goes on: numbers, aliases and the control log's chain.
    assert register_words(new, "triage", {"card": "cards", "pin": "pins"}).number == 3
    assert open_registry(new).history("triage")[-1].before == 1
    assert run("models", "verify", "--project", new).count("whole: model:triage@") == 3
    assert answered("audit", "verify", "--project", new)["findings"] == []


def test_a_model_that_was_changed_between_backup_and_restore_is_found(root: Path, tmp_path: Path) -> None:
    new = moved(root, tmp_path)
    weights = data_of(new) / "models/triage/1/artifact/weights.f32"
    weights.write_bytes(bytes(reversed(weights.read_bytes())))
    with pytest.raises(Said):
        run("models", "verify", "--project", new)
    with pytest.raises(DrivetrainError, match=r"Model triage/1 is not what was approved.*`weights.f32` was changed"):
        calls.call(new, "triage", b'{"text": "card"}')
