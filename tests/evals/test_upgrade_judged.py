"""An upgrade that a judge decides, as neither Outcomes nor an eval's Dataset say what is right."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from drivetrain.cli.main import application
from drivetrain.embedded import calls as embedded
from drivetrain.embedded.asking import open_lake
from drivetrain.lake.calls import Calls
from drivetrain.simulator import SimulatorProcess

pytestmark = pytest.mark.slow

SETTINGS = """\
[project]
name = "judged"

[providers.sim]
dialect = "openai"
base_url = "{url}/v1"

[models."sim/old"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[models."sim/new"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[ledger]
retention = "full"

[workflows.letters]
owner = "team@acme.example"
team = "support"
use_case = "tests"
route = [{{ name = "model", model = "sim/old" }}]
"""
CODE = """\
import drivetrain as dt


class Verdict(dt.Record):
    verdict: str


class Shown(dt.Record):
    {fields}


def always(_shown):
    return True


def judged(shown):
    return Verdict(verdict={said})


judge = dt.Workflow(
    "judge-of-letters", owner="team@acme.example", team="support", use_case="tests", input=Shown, output=Verdict,
    route=[dt.Rule("words", when=always, then=judged)],
)
letters = dt.Eval(
    "letters-judged", dataset="none-yet", workflow="letters", scorers=[dt.scorers.judge("judge-of-letters")]
)
"""
CALLS = 60
ALONE = ("question: str\n    answer: str", "'yes' if 'thank you' in shown.answer else 'no'")
BESIDE = (
    "first: str\n    second: str",
    "'first' if 'thank you' in shown.first else 'second' if 'thank you' in shown.second else 'tie'",
)


@pytest.mark.parametrize(("fields", "said"), [ALONE, BESIDE], ids=["alone", "side by side"])
def test_a_judge_is_asked_where_nothing_else_says_what_is_right(tmp_path: Path, fields: str, said: str) -> None:
    models = {"old": {"answer": "Send it back."}, "new": {"answer": "Please send it back, thank you."}}
    with SimulatorProcess({"seed": 1, "models": models}) as running:
        (tmp_path / "workflows").mkdir()
        (tmp_path / "drivetrain.toml").write_text(SETTINGS.format(url=running.url))
        (tmp_path / "workflows" / "judge.py").write_text(CODE.format(fields=fields, said=said))
        for number in range(CALLS):
            embedded.call(tmp_path, "letters", msgspec.json.encode({"text": f"letter {number}"}))
        embedded.close()
        arguments = ["upgrade", "letters", "--candidate", "sim/new", "--project", str(tmp_path), "--json"]
        ran = CliRunner().invoke(application(["upgrade"]), arguments)
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.output)
    body = told["upgrade"]
    assert told["verdict"].startswith("Upgrade (sim/old -> sim/new)")
    assert body["truths"] == {"judge": body["pairs"]}
    assert (body["verdict"]["whole"]["before"], body["verdict"]["whole"]["after"]) == (0.0, 1.0)
    assert "the judge `judge-of-letters`" in body["about"]["scorer"]
    assert any("agreement with people" in one for one in body["warnings"])
    doors = [one.door for one in Calls(open_lake(tmp_path)).calls()]
    assert doors.count("eval") == body["pairs"]
    assert doors.count("judge") == 2 * body["pairs"]


def test_a_judge_that_says_nonsense_decides_nothing(tmp_path: Path) -> None:
    with SimulatorProcess({"seed": 1, "models": {"old": {"answer": "a"}, "new": {"answer": "b"}}}) as running:
        (tmp_path / "workflows").mkdir()
        (tmp_path / "drivetrain.toml").write_text(SETTINGS.format(url=running.url))
        (tmp_path / "workflows" / "judge.py").write_text(CODE.format(fields=ALONE[0], said="'hm'"))
        embedded.call(tmp_path, "letters", msgspec.json.encode({"text": "a letter"}))
        embedded.close()
        arguments = ["upgrade", "letters", "--candidate", "sim/new", "--project", str(tmp_path)]
        ran = CliRunner().invoke(application(["upgrade"]), arguments)
    assert ran.exit_code == 1, ran.output
    assert "said nothing that can be read" in ran.output
