"""Every mistake in how policies are declared and in their tables, found at once, each where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from policy_world import RULES, chain, expression_node, files, node, project, table_node

from drivetrain.core.errors import Problem, ProjectError
from drivetrain.policies import checks
from drivetrain.project import load, unload
from drivetrain.project.policy_checks import check_policies
from drivetrain.project.problems import Problems
from drivetrain.project.spots import Spots

TABLE = 'table="refund.json"'


def declared(root: Path, policy: str) -> list[Problem]:
    """What loading a project says of this policy."""
    try:
        unload(load(project(root, policy, files())))
    except ProjectError as error:
        return list(error.problems)
    return []


def in_table(root: Path, policy: str, tables: dict[str, bytes]) -> list[Problem]:
    """What the room `policies` says of this policy's tables."""
    snapshot = load(project(root, policy, tables))
    try:
        return list(checks.check(snapshot))
    finally:
        unload(snapshot)


@pytest.mark.parametrize(
    "policy", ['"refund.json"', f'dt.Policy("refund", {TABLE})', 'dt.Policy("p", decide=lambda case: "a")']
)
def test_a_policy_that_is_right(tmp_path: Path, policy: str) -> None:
    assert declared(tmp_path, policy) == []
    assert in_table(tmp_path, policy, files()) == []


ACTIONS = 'actions=("refund", "review")'


@pytest.mark.parametrize(
    ("policy", "what", "do"),
    [
        ('"refnd.json"', "decision table that is not there", "Did you mean `refund.json`?"),
        ('"../refund.json"', "decision table that is not there", ""),
        ("7", "policy that is none", "dt.Policy"),
        (f'dt.Policy("refund", {TABLE}, decide=len)', "both a table and a function", "one of"),
        ('dt.Policy("refund")', "neither a table nor a function", "one of"),
        (f'dt.Policy("refund", {TABLE}, otherwize=1)', "no argument `otherwize`", "Did you mean `otherwise`?"),
        (f'dt.Policy("Refund!", {TABLE})', "wrong name", ""),
        (f'dt.Policy("refund", {TABLE}, limit_ms=0)', "wrong `limit_ms`", ""),
        (f'dt.Policy("refund", {TABLE}, {ACTIONS}, otherwise=dt.act("reviw"))', "`otherwise` that is not", "`review`"),
        (f'dt.Policy("refund", {TABLE}, otherwise="review")', "`otherwise` that is no action", "dt.act"),
        (f'dt.Policy("refund", {TABLE}, explore=dt.Explore(0.6, ("refund",)))', "wrong share", ""),
        (f'dt.Policy("refund", {TABLE}, explore=dt.Explore(float("nan"), ("refund",)))', "wrong share", ""),
        (f'dt.Policy("refund", {TABLE}, explore=dt.Explore(0.1, ()))', "explores no actions", ""),
        (f'dt.Policy("p", {TABLE}, {ACTIONS}, explore=dt.Explore(0.1, ("refnd",)))', "explored action", "`refund`"),
        (f'dt.Policy("p", {TABLE}, {ACTIONS}, gains=dt.Gains("fraud", {{"refnd": {{}}}}))', "gains for", "`refund`"),
        (f'dt.Policy("refund", {TABLE}, gains=dt.Gains("fraud", {{"refund": {{"yes": "3"}}}}))', "no number", ""),
        (f'dt.Policy("refund", {TABLE}, {ACTIONS}, metrics={{"rate": "refnd"}})', "metric `rate`", "`refund`"),
        ('dt.Policy("refund", decide=len, reads=("inptu.amount",))', "reads what no case has", "`input`"),
        (f'dt.Policy("refund", {TABLE}, reads=("input.amount",))', "a table says by itself", "Leave it out"),
    ],
)  # fmt: skip
def test_a_wrong_declaration(tmp_path: Path, policy: str, what: str, do: str) -> None:
    (problem,) = declared(tmp_path, policy)
    assert what in problem.what
    assert do in problem.do
    assert problem.file == "workflows/refunds.py"
    assert problem.line


def test_two_policies_of_one_name_are_a_mistake() -> None:
    import drivetrain as dt

    spots, problems = Spots({}), Problems()
    workflows = [dt.Workflow(name, policy=dt.Policy("refund", decide=len)) for name in ("one", "other")]  # type: ignore[arg-type, var-annotated]
    check_policies(workflows, {}, spots, problems)
    assert "declared twice" in problems.sorted()[0].what
    shared, problems = dt.Policy("refund", decide=len), Problems()  # type: ignore[arg-type]
    check_policies([dt.Workflow(name, policy=shared) for name in ("one", "other")], {}, spots, problems)
    assert not problems


PLAIN = f'dt.Policy("refund", {TABLE})'
CAUGHT = f'dt.Policy("refund", {TABLE}, otherwise=dt.act("review"))'
SHADOWED = ("again", "< 40", "'refund'", "'refund'", "''")


def test_an_unreachable_rule_is_told_at_its_line(tmp_path: Path) -> None:
    tables = files(table_node([RULES[0], SHADOWED, *RULES[1:]]))
    (problem,) = in_table(tmp_path, PLAIN, tables)
    assert "rule `again` of table `table` never matches: `small` before it takes every case" in problem.what
    assert problem.what.endswith("It is rule 2 of 4.")
    assert problem.file == "policies/refund.json"
    assert b'"again"' in tables[problem.file].splitlines()[problem.line - 1]


def test_a_gap_is_a_mistake_only_without_otherwise(tmp_path: Path) -> None:
    (problem,) = in_table(tmp_path, PLAIN, files(table_node(RULES[:2])))
    assert "no `otherwise`" in problem.what
    assert problem.value == "input.amount = 101"
    assert in_table(tmp_path, CAUGHT, files(table_node(RULES[:2]))) == []


def test_contradictions_are_told(tmp_path: Path) -> None:
    rules = [("low", "< 50", "'refund'"), ("high", ">= 20", "'deny'")]
    collected = table_node(rules, ["input.amount"], ["action"], hit="collect", outputPath="all")
    (problem,) = in_table(tmp_path, PLAIN, files(collected, expression_node([("action", "all[0].action")])))
    assert "rules `low` and `high` of table `table` contradict each other" in problem.what
    assert "input.amount = 20" in problem.value


@pytest.mark.parametrize(
    ("field", "what", "do"),
    [
        ("input.amout", "reads `input.amout`", "Did you mean `input.amount`?"),
        ("answer.intnt", "reads `answer.intnt`", "Did you mean `answer.intent`?"),
        ("features.orders", "reads `features.orders`", "Give the workflow `features`"),
        ("amount", "reads `amount`", ""),
    ],
)
def test_a_field_that_no_case_has_is_told(tmp_path: Path, field: str, what: str, do: str) -> None:
    rules = [("small", "< 50", "'refund'"), ("rest", "", "'deny'")]
    (problem,) = in_table(tmp_path, PLAIN, files(table_node(rules, [field], ["action"])))
    assert what in problem.what
    assert do in problem.do


def test_an_action_that_the_policy_does_not_know_is_told(tmp_path: Path) -> None:
    (problem,) = in_table(tmp_path, f'dt.Policy("refund", {TABLE}, actions=("refund", "review", "denied"))', files())
    assert "rule `rest`" in problem.what
    assert (problem.value, problem.do) == ("deny", "Did you mean `denied`?")


def test_a_table_that_is_refused_is_told(tmp_path: Path) -> None:
    (problem,) = in_table(tmp_path, PLAIN, files(node("js", "functionNode", {"source": ""})))
    assert "JavaScript" in problem.what
    assert "Python function" in problem.do
    assert problem.file == "policies/refund.json"


def test_what_no_policy_uses_and_what_is_not_analysed_is_noticed(tmp_path: Path) -> None:
    rules = [("long", "len($) > 3", "'a'"), ("rest", "", "'b'")]
    tables = files(table_node(rules, ["input.text"], ["action"]), spare=chain(table_node()))
    snapshot = load(project(tmp_path, PLAIN, tables))
    try:
        said = list(checks.notices(snapshot))
        assert list(checks.check(snapshot)) == []
    finally:
        unload(snapshot)
    assert said == [
        "table `table`: rules `long` compare with more than constants and are not analysed",
        "policies/spare.json is a table that no policy uses",
    ]
