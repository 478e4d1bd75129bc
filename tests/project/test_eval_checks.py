"""`drivetrain check` of evals: every mistake is found, with its place and what to write instead."""

from __future__ import annotations

from typing import Any

import pytest
from small_project import SMALL, TRIAGE, Make

from drivetrain.cli.check import CheckAnswer, check_project
from drivetrain.core.evals import Eval

JUDGES = """
class Asked(dt.Record):
    question: str
    answer: str


class Said(dt.Record):
    score: float
    why: str = ""


critic = dt.Workflow(
    "critic", input=Asked, output=Said, owner="support@acme.example", team="support", use_case="judging",
    route=[dt.Variant("small", model="openai/gpt-5-mini-2025-08-07", prompt="critic.j2", max_output_tokens=64)],
)
"""


def checked(make: Make, *arguments: str, name: str = "triage-golden", more: str = "") -> CheckAnswer:
    """A project with one eval of these arguments."""
    written = ",\n    ".join((f'"{name}"', 'dataset="golden"', *arguments))
    text = f"{TRIAGE}{JUDGES}\n\ndef polite(output):\n    return True\n\n{more}\ngolden = dt.Eval(\n    {written},\n)\n"
    root = make({**SMALL, "workflows/triage.py": text, "workflows/critic.j2": "{{ question }} {{ answer }}\n"})
    return check_project(root, None)


def told(answer: CheckAnswer) -> str:
    return "\n".join(map(str, answer.problems))


RIGHT = [
    [],
    ['scorers=[dt.scorers.exact("intent"), polite]', 'gates=["accuracy >= 0.9", "polite >= 0.5 at 95 %"]'],
    ['scorers=dt.scorers.exact("intent")', 'gates="accuracy >= 0.9"'],
    ['scorers=[dt.scorers.json_fields({"intent": dt.scorers.normalised()})]'],
    ['scorers=[dt.scorers.matches("^a(.)$", "intent"), dt.scorers.json_schema({"type": "object"})]'],
    ['scorers=[dt.scorers.exact(reading="last_yes_no")]'],
    ['scorers=[dt.scorers.exact(), dt.scorers.judge("critic", scale=(1, 5))]', 'gates=["critic >= 0.8"]'],
    ['scorers=[dt.scorers.judge("critic", labels="human")]', "workflow=triage"],
    ['scorers=[dt.scorers.judge(critic, inputs={"question": "text"})]'],
    [
        'inputs={"text": "body"}', 'expected={"intent": "label"}', 'slices=["country"]', 'suites={"hard": "hard@2"}',
        'usd="2.5"', "repeats=3", 'gates=["no slice worse than -2 pp", "no new failure in hard"]',
    ],
]  # fmt: skip


@pytest.mark.parametrize("arguments", RIGHT)
def test_an_eval_that_is_right_has_no_mistake(make: Make, arguments: list[str]) -> None:
    answer = checked(make, *arguments)
    assert answer.ok, told(answer)


WRONG = [
    ('scorers=[dt.scorers.exact("intnt")]', ["`exact-intnt`", "does not have", "Did you mean `intent`"]),
    ('scorers=[dt.scorers.exact("intent"), dt.scorers.exact("intent")]', ["name of another one"]),
    ('scorers=[dt.scorers.exact(), dt.scorers.f1(name="accuracy")]', ["gates call the first scorer"]),
    ('scorers=[dt.scorers.exact(name="my scorer")]', ["no name that gates can use"]),
    ("scorers=[3]", ["no scorer", "dt.scorers.exact"]),
    ('scorers=[dt.Scorer(name="a", kind="exakt")]', ["no known kind", "Did you mean `exact`"]),
    ('scorers=[dt.Scorer(name="a", kind="exact", options={"casing": 1})]', ["an option `casing`"]),
    ('scorers=[dt.Scorer(name="a", kind="function")]', ["is no function"]),
    ("scorers=[dt.scorers.function(polite, timeout_ms=0)]", ["`timeout_ms`"]),
    ('scorers=[dt.scorers.exact(reading="last_nmber")]', ["Did you mean `last_number`"]),
    ('scorers=[dt.scorers.matches("(")]', ["no regular expression"]),
    ("scorers=[dt.scorers.within(absolute=-1)]", ["wrong `absolute`", "at least 0"]),
    ("scorers=[dt.scorers.similarity(at_least=3)]", ["wrong `at_least`", "from 0 to 1"]),
    ('scorers=[dt.scorers.json_schema({"typ": "object"})]', ["`typ`", "Did you mean `type`"]),
    ("scorers=[dt.scorers.json_schema({})]", ["has no `schema`"]),
    ('scorers=[dt.scorers.json_fields(["amount"])]', ["does not have", "amount"]),
    ('scorers=[dt.scorers.json_fields({"intent": polite})]', ["scores `intent` with something that is no scorer"]),
    ('scorers=[dt.scorers.json_fields({"intent": dt.scorers.judge("critic")})]', ["by `judge`, which no field can be"]),
    ('scorers=[dt.scorers.json_fields({"intent": dt.scorers.matches("(")})]', ["no regular expression"]),
    ('scorers=[dt.scorers.judge("critc")]', ["not there", "Did you mean `critic`"]),
    ('scorers=[dt.scorers.judge("triage")]', ["the workflow that it judges"]),
    ('scorers=[dt.scorers.judge("critic", verdict="mark")]', ["reads a verdict", "mark"]),
    ('scorers=[dt.scorers.judge("critic", scale=(5, 1))]', ["wrong `scale`", "lowest"]),
    ('scorers=[dt.scorers.judge("critic", scale={"good": 3})]', ["wrong `scale`", "from 0 to 1"]),
    ('scorers=[dt.scorers.judge("critic", inputs={"question": "body"})]', ["cannot fill `question`", "body"]),
    ('scorers=[dt.scorers.judge("critic", inputs={"quest": "text"})]', ["does not take", "quest"]),
    ('gates=["acuracy >= 0.9"]', ["`acuracy`, which is no scorer", "Did you mean `accuracy`"]),
    ('gates=["accuracy >= 90"]', ["`90` stands at character 13"]),
    ('gates=["no slice worse than -2 pp"]', ["it has none", 'slices=["COLUMN"]']),
    ('gates=["no new failure in hard"]', ["no suite of it", 'suites={"hard": "DATASET"}']),
    ('gates=["unread <= 1 %", "unread <= 1 %"]', ["holds one twice"]),
    ("gates=[3]", ["holds what is no text"]),
    ('dataset="Golden set"', ["names no Dataset"]),
    ('suites=["hard"]', ["no object of names and Datasets"]),
    ('suites={"Hard one": "hard"}', ["is not a name"]),
    ('suites={"hard": 3}', ["names no Dataset"]),
    ('inputs={"txt": "body"}', ["the input of `triage` does not have", "Did you mean `text`"]),
    ('expected={"intnt": "label"}', ["the output of `triage` does not have", "Did you mean `intent`"]),
    ("expected=3", ["no column"]),
    ("slices=[3]", ["holds what is no text"]),
    ('usd="free"', ["no amount of USD"]),
    ("usd=0", ["no amount of USD"]),
    ("repeats=0", ["whole number from 1 to 20"]),
    ("concurrency=True", ["whole number"]),
    ("owner=3", ["is no text"]),
    ('workflow="triag"', ["names no workflow", "Did you mean `triage`"]),
    ('scorer=["x"]', ["is no argument of an Eval", "Did you mean `scorers`"]),
]


@pytest.mark.parametrize(("argument", "words"), WRONG)
def test_a_mistake_is_told_with_its_place(make: Make, argument: str, words: list[str]) -> None:
    arguments = [argument]
    if argument.startswith("dataset"):
        answer = checked(make, more=f"\nother = dt.Eval('triage-other', {argument})\n")
    else:
        answer = checked(make, *arguments)
    assert not answer.ok
    text = told(answer)
    assert len(answer.problems) == 1, text
    for word in words:
        assert word in text
    assert answer.problems[0].file == "workflows/triage.py"
    lines = (TRIAGE + JUDGES).count("\n")
    assert answer.problems[0].line > lines


def test_all_mistakes_of_an_eval_are_told_at_once(make: Make) -> None:
    answer = checked(
        make, 'scorers=[dt.scorers.exact("intnt"), dt.scorers.matches("(")]', "repeats=99", 'usd="free"', "slices=[3]"
    )
    assert len(answer.problems) == 5


def test_a_wrong_scorer_hides_no_mistake_in_gates_and_schemas(make: Make) -> None:
    answer = checked(
        make, 'scorers=[dt.scorers.exact("intnt"), dt.scorers.json_schema({"typ": "object"})]',
        'gates=["acuracy >= 0.9", "oops"]',
    )  # fmt: skip
    text = told(answer)
    assert len(answer.problems) == 4, text
    for word in ("`exact-intnt`", "`typ`", "`acuracy`, which is no scorer", "it ends at character 4"):
        assert word in text


def test_a_wrong_gate_is_told_at_its_own_line(make: Make) -> None:
    answer = checked(
        make, 'scorers=[dt.scorers.exact("intent")]', 'gates=[\n        "unread <= 1 %",\n        "oops",\n    ]'
    )
    (problem,) = answer.problems
    file = (TRIAGE + JUDGES).count("\n")
    assert problem.line - file == 13
    assert "it ends at character 4" in problem.what


def test_an_eval_without_gates_and_a_judge_without_labels_are_worth_a_notice(make: Make) -> None:
    assert any("has no gates" in one for one in checked(make).notices)
    alone = checked(make, 'scorers=[dt.scorers.judge("critic")]', 'gates=["accuracy >= 0.8"]')
    assert alone.ok
    assert any("no people's labels" in one for one in alone.notices)
    beside = checked(
        make, 'scorers=[dt.scorers.judge("critic"), dt.scorers.exact()]', 'gates=["accuracy >= 0.8", "exact >= 0.1"]'
    )
    assert not any("labels" in one for one in beside.notices)


def test_no_value_of_any_argument_breaks_the_check(make: Make) -> None:
    strange: list[Any] = [
        "None",
        "3",
        '"x"',
        "[None]",
        '{"a": None}',
        "object()",
        "[[]]",
        "b'x'",
        "lambda: 1",
        "[polite]",
    ]
    names = [name for name in Eval.__slots__ if name not in ("place", "unknown", "name", "dataset")]
    lines = "\n".join(
        f"try:\n    e{row}_{column} = dt.Eval('triage-{row}-{column}', dataset='golden', {name}={value})\n"
        "except TypeError:\n    pass"
        for row, name in enumerate(names)
        for column, value in enumerate(strange)
    )
    answer = checked(make, more=lines)
    assert not answer.ok
    assert all(one.file == "workflows/triage.py" for one in answer.problems)
