"""What `drivetrain check` says of policies that load and would decide otherwise than meant."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from policy_world import files, project, table_node

from drivetrain.cli.check import check_project
from drivetrain.core.errors import Problem
from support.registered import register_words

PLAIN = 'dt.Policy("refund", table="refund.json")'


def told(root: Path, policy: str, rules: list[tuple[str, ...]], fields: list[str]) -> list[str]:
    """The notices of a table with a cell per field and an action; it must have no mistake."""
    answer = check_project(project(root, policy, files(table_node(rules, fields, ["action"]))), None)
    assert answer.problems == ()
    return list(answer.notices)


UNSURE = ("unsure", "< 0.6", "'review'")
REST = ("rest", "", "'refund'")
UNKNOWN = ("unknown", "null", "'review'")


@pytest.mark.parametrize("field", ["answer.confidence", "confidence"])
def test_a_null_that_slips_past_a_comparison_is_noticed(tmp_path: Path, field: str) -> None:
    (said,) = told(tmp_path, PLAIN, [UNSURE, REST], [field])
    assert f"`{field}` may be null, which fits no comparison" in said
    assert "passes rule `unsure` by, and `rest` may take it" in said


def test_a_table_that_says_what_null_means_is_not_noticed(tmp_path: Path) -> None:
    assert told(tmp_path, PLAIN, [UNSURE, UNKNOWN, REST], ["answer.confidence"]) == []
    assert told(tmp_path, PLAIN, [("sure", ">= 0.6", "'refund'"), ("rest", "", "'review'")], ["confidence"]) == []
    assert told(tmp_path, PLAIN, [("small", "< 50", "'refund'"), REST], ["input.amount"]) == []  # never null


def test_a_confidence_beyond_one_is_noticed(tmp_path: Path) -> None:
    (said,) = told(tmp_path, PLAIN, [("sure", "> 1.5", "'refund'"), REST], ["answer.confidence"])
    assert "rule `sure` compares `answer.confidence` with 1.5; a confidence is from 0 to 1" in said


ROUTE = "route=[dt.Rule("
OWN = 'route=[dt.Variant("own", model="models:/words@champion"), dt.Rule('
SPAM = [("spam", "'spamm'", "'close'"), ("late", "'parcel lost'", "'route'"), ("rest", "", "'route'")]


def with_model(root: Path, route: str) -> None:
    register_words(root, "words", {"refund": "refund", "casino": "spam"})
    code = (root / "workflows" / "refunds.py").read_text()
    (root / "workflows" / "refunds.py").write_text(code.replace(ROUTE, route))


def only_the_model(root: Path) -> None:
    code = (root / "workflows" / "refunds.py").read_text()
    start, end = code.index(", dt.Rule("), code.index("],\n    policy")
    (root / "workflows" / "refunds.py").write_text(code[:start] + code[end:])


def test_a_label_that_no_model_of_the_route_gives_is_noticed(tmp_path: Path) -> None:
    project(tmp_path, PLAIN, files(table_node(SPAM, ["answer.intent"], ["action"])))
    assert check_project(tmp_path, None).notices == ()
    with_model(tmp_path, OWN)
    near, reached = sorted(check_project(tmp_path, None).notices)  # a rule may answer 'parcel lost'
    assert "rule `spam` waits for 'spamm', which words/1 never says; did you mean `spam`?" in near
    assert "Variant `own` has no `accept`" in reached
    only_the_model(tmp_path)
    assert [one.partition("waits for ")[2].partition(",")[0] for one in check_project(tmp_path, None).notices] == [
        "'spamm'",
        "'parcel lost'",
    ]


def test_a_variant_that_takes_every_answer_before_others_is_noticed(tmp_path: Path) -> None:
    project(tmp_path, PLAIN, files())
    with_model(tmp_path, OWN)
    (said,) = check_project(tmp_path, None).notices
    assert "every answer of it is taken; `all` is reached only where `own` fails" in said
    code = (tmp_path / "workflows" / "refunds.py").read_text()
    code = code.replace('champion")', 'champion", accept=dt.confidence_at_least(0.8))')
    (tmp_path / "workflows" / "refunds.py").write_text(code)
    assert check_project(tmp_path, None).notices == ()


FUNCTION = """
import drivetrain as dt


def decide(case):
    {body}


workflow = dt.Workflow(
    "refunds", input={input}, output={output}, owner="team@acme.example", team="support", use_case="refunds",
    route=[dt.Rule("all", when=lambda order: True, then={then})],
    policy=dt.Policy("refund", decide=decide, actions=("refund", "review"), otherwise=dt.act("review", "failed")),
)
"""
TYPED = {"input": "Order", "output": "Said", "then": 'Said(intent="refund")'}


def function_problems(root: Path, body: str) -> list[Problem]:
    project(root, PLAIN, files())
    code = (root / "workflows" / "refunds.py").read_text().partition("refunds = dt.Workflow")[0]
    code += FUNCTION.format(body=body, **TYPED)
    (root / "workflows" / "refunds.py").write_text(code)
    return list(check_project(root, None).problems)


@pytest.mark.parametrize(
    ("body", "what", "do"),
    [
        ("return 'refund' if case.input.amont < 50 else 'review'", "reads `input.amont`", "Did you mean `amount`?"),
        ("return 'refund' if case.answer.inten == 'x' else 'review'", "reads `answer.inten`", "Did you mean `intent`?"),
        ("return 'refund' if case.confidenc else 'review'", "reads `confidenc`", "Did you mean `confidence`?"),
        ("return dt.act('refnd', 'small')", "takes the action `refnd`", "Did you mean `refund`?"),
        ("return 'refnd'", "takes the action `refnd`", "Did you mean `refund`?"),
    ],
)
def test_what_is_misspelt_in_a_function_is_a_mistake_at_its_line(tmp_path: Path, body: str, what: str, do: str) -> None:
    (problem,) = function_problems(tmp_path, body)
    assert what in problem.what
    assert problem.do == do
    assert problem.file == "workflows/refunds.py"
    assert body in (tmp_path / problem.file).read_text().splitlines()[problem.line - 1]


@pytest.mark.parametrize(
    "body",
    [
        "return dt.act('refund') if case.input.amount < 50 and case.answer.intent else 'review'",
        "case = case.input; return 'refund' if case.amount else 'review'",  # another thing by the same name
        "pick = lambda: 'refnd'; return 'review' if pick() else 'refund'",
        "return getattr(case.input, 'amont', 'review')",
    ],
)
def test_a_function_that_may_be_right_is_left_alone(tmp_path: Path, body: str) -> None:
    assert function_problems(tmp_path, body) == []


def test_a_missing_engine_is_one_mistake_and_no_table_is_called_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, PLAIN, files())
    code = (tmp_path / "workflows" / "refunds.py").read_text()
    second = code[code.index("refunds = ") :].replace("refunds", "returns").replace('"refund", table', '"other", table')
    (tmp_path / "workflows" / "refunds.py").write_text(code + second)
    assert check_project(tmp_path, None).ok
    monkeypatch.setitem(sys.modules, "zen", None)
    answer = check_project(tmp_path, None)
    assert [one.do for one in answer.problems] == ['Run `pip install "drivetrain[policies]"`.']
    assert answer.notices == ()


def test_a_missing_library_of_a_model_is_noticed_beside_what_else_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, PLAIN, files(table_node([REST], ["input.amount"], ["action"])))
    with_model(tmp_path, OWN)
    only_the_model(tmp_path)
    assert check_project(tmp_path, None).notices == ()
    for library in ("numpy", "zen"):
        monkeypatch.setitem(sys.modules, library, None)
    answer = check_project(tmp_path, None)
    assert 'pip install "drivetrain[policies]"' in answer.problems[0].do
    (said,) = answer.notices
    assert "model words/1 (linear-text) needs `numpy`" in said
    assert 'pip install "drivetrain[models]"' in said
