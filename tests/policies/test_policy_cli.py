"""`drivetrain policy` on a project's files, without any gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from policy_world import RULES, files, project, table_node
from typer.testing import CliRunner

from drivetrain.cli.policy import app

POLICY = 'dt.Policy("refund", table="refund.json", explore=dt.Explore(0.1, ("refund", "deny")))'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = project(tmp_path, POLICY, files())
    (folder / "case.json").write_text('{"input": {"amount": 70}, "answer": {"intent": "return", "confidence": 0.8}}')
    return folder


def run(root: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*arguments, "--project", str(root)])
    assert result.exit_code == code, result.output
    return result.output


def test_list_and_show(root: Path) -> None:
    (row,) = json.loads(run(root, "list", "--json"))["policies"]
    assert (row["policy"], row["workflow"], row["rules"], row["explore_share"]) == ("refund", "refunds", 3, 0.1)
    shown = run(root, "show", "refund")
    assert row["version"] in shown
    for text in ("answer.intent, input.amount", "the Call fails", "'middle_amount'"):
        assert text in shown
    assert json.loads(run(root, "show", "refunds", "--json"))["tables"][0]["rules"][0][0] == "small"
    assert "Did you mean `refund`?" in run(root, "show", "refnd", code=1)


def test_show_tells_actions_exploration_metrics_and_gains(root: Path) -> None:
    assert "any; its rules write refund, review, deny" in run(root, "list")
    policy = (
        POLICY[:-1]
        + """, actions=("refund", "review", "deny"), metrics={"rate": "refund"},
        gains=dt.Gains("fraud", {"refund": {"*": 1.0}}))"""
    )
    shown = run(project(root, policy, {}), "show", "refund")
    for line in (
        "actions    refund, review, deny",
        "explores   10.0% of Calls: refund, deny",
        "metrics    rate: refund",
        "gains      by the Outcome fraud: refund",
    ):
        assert line in shown.splitlines()


def test_a_workflow_without_a_policy_is_told_as_such(root: Path) -> None:
    code = (root / "workflows" / "refunds.py").read_text()
    bare = code[code.index("refunds = ") :].replace("refunds", "bare")
    (root / "workflows" / "refunds.py").write_text(code + bare[: bare.index("    policy=")] + ")\n")
    said = run(root, "run", "bare", "--case", str(root / "case.json"), code=1)
    assert "Workflow `bare` has no policy." in said


def test_run_says_why(root: Path) -> None:
    said = run(root, "run", "refund", "--case", str(root / "case.json"))
    for text in ("review", "middle_amount", "review 0.9, refund 0.05, deny 0.05", "input.amount is 70.0, not < 50"):
        assert text in said
    document = json.loads(run(root, "run", "refund", "--case", str(root / "case.json"), "--json"))
    assert document["verdict"]["rule"] == "middle"
    assert [rule["matches"] for rule in document["rules"]] == [False, True, True]
    assert [rule["after"] for rule in document["rules"]] == ["", "", "middle"]
    assert "`middle` before it matches" in said  # only the first rule that matches decides
    assert document["reads"] == {"answer": {"intent": "return"}, "input": {"amount": 70.0}}


def test_run_tosses_the_coin_of_a_call(root: Path) -> None:
    ids = [f"call_{number}" for number in range(40)]
    said = [
        json.loads(run(root, "run", "refund", "--case", str(root / "case.json"), "--call-id", id, "--json"))["verdict"]
        for id in ids
    ]
    assert {one["explored"] for one in said} == {True, False}
    assert {one["chosen"] for one in said} == {"review"}


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ('{"input": {"amount": "much"}}', "`input` of the case is no Order"),
        ('{"inptu": {}}', "Did you mean `input`?"),
        ("[]", "no JSON object"),
        ("{", "no JSON"),
    ],
)
def test_a_case_that_is_none_is_refused(root: Path, case: str, why: str) -> None:
    (root / "case.json").write_text(case)
    assert why in run(root, "run", "refund", "--case", str(root / "case.json"), code=1)


def test_check_tells_mistakes_and_notices(root: Path) -> None:
    assert run(root, "check") == "ok: 1 policy\n"
    (root / "policies" / "refund.json").write_bytes(files(table_node(RULES[:2]))["policies/refund.json"])
    assert "no rule of table `table` matches every case" in run(root, "check", "refund", code=1)
    assert json.loads(run(root, "check", "--json", code=1))["ok"] is False
    project(root, POLICY.replace("explore", 'otherwise=dt.act("review"), explore'), {})
    noticed = run(root, "check")
    assert "notice: refund: no rule of table `table` matches input.amount = 101; `otherwise` decides it" in noticed


def test_import_csv_makes_a_table_that_comes_back(root: Path) -> None:
    sheet = root / "rules.csv"
    sheet.write_text("input.amount,-> action\n< 50,refund\n-,review\n")
    said = run(root, "import-csv", str(sheet), "--name", "refund", code=1)
    assert "--replace" in said
    made = run(root, "import-csv", str(sheet), "--name", "refund", "--replace")
    assert made == "policies/refund.json: 2 rules. Now run `drivetrain check`.\n"
    assert run(root, "show", "refund", "--csv") == "rule,input.amount,-> action\nrow2,< 50,'refund'\nrow3,-,'review'\n"
    sheet.write_text("input.amount,-> action\n< a lot,refund\n")
    before = sorted(path.name for path in (root / "policies").iterdir())
    assert "row 2, column A" in run(root, "import-csv", str(sheet), "--name", "other", code=1)
    sheet.write_text("input.amount,-> reason,-> action\n< 10,small\n")
    short = run(root, "import-csv", str(sheet), "--name", "other", code=1)
    assert "row 2, column C holds no action: the row ends at column B" in short
    assert sorted(path.name for path in (root / "policies").iterdir()) == before
