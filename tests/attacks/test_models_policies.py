"""Policies that misbehave, in a served project: every Call is answered or fails by name, and records what was seen."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drivetrain.adapters.files import FileVault
from drivetrain.core.errors import DrivetrainError, ProjectError
from drivetrain.core.policies import Action, Case, DecisionRecordV1, Explore, Gains, Policy
from drivetrain.evals.explain import metric_of
from drivetrain.evals.worth import gain
from drivetrain.policies import PolicyFailed, compile_policy
from drivetrain.project import load
from support import wire
from support.projects import settings
from support.served import Served, served

pytestmark = pytest.mark.slow

HEAD = """
import enum
import sys

import drivetrain as dt

WHO = {"owner": "team@acme.example", "team": "support", "use_case": "tests"}


class Line(dt.Record):
    sku: str


class Claim(dt.Record):
    text: str
    lines: list[Line] = []
    amount: float = 0.0


class Judged(dt.Record):
    label: str
    tags: list[str] = []


class Acts(enum.StrEnum):
    REFUND = "refund"


class Text(str):
    pass


class Odd(BaseException):
    pass


def raised(error):
    raise error


def changes_all(case):
    case.input.lines.append(Line(sku="planted"))
    case.answer.tags.append("planted")
    return "refund"

"""
FUNCTIONS = {
    "exits": "lambda case: sys.exit(case.input.text)",
    "interrupts": "lambda case: raised(GeneratorExit())",
    "odd": "lambda case: raised(Odd(case.input.text))",
    "surrogate": 'lambda case: "\\ud800"',
    "reason": 'lambda case: dt.act("refund", "\\ud800")',
    "value": 'lambda case: dt.act("refund", note="\\ud800")',
    "nan": 'lambda case: dt.act("refund", amount=float("nan"))',
    "deepnan": 'lambda case: dt.act("refund", amounts=[{"x": (1.0, float("inf"))}])',
    "numbers": 'lambda case: dt.Action("refund", "", {1: 2})',
    "none": "lambda case: None",
    "number": "lambda case: 7",
    "long": 'lambda case: "r" * 65',
    "deep": "lambda case: raised(RecursionError(case.input.text))",
    "huge": 'lambda case: dt.act("refund", note="x" * 100_000)',
    "big": 'lambda case: dt.act("refund", amount=10 ** 40)',
}
"""Name of a workflow -> its policy's function, which fails in each."""
TEXTS = {"enumerated": "lambda case: Acts.REFUND", "subclass": 'lambda case: dt.act(Text("refund"), Text("why"))'}
PRIVATE = "private-words-of-a-person"


def source() -> str:
    made = [HEAD, "ROUTE = [dt.Rule('all', when=lambda one: True, then=lambda one: Judged(label='claim'))]\n"]
    for name, function in {**FUNCTIONS, **TEXTS, "changes": "changes_all"}.items():
        for suffix, otherwise in (("", ""), ("_else", ', otherwise=dt.act("review", "policy_failed")')):
            made.append(
                f'{name}{suffix} = dt.Workflow("{name}{suffix}", input=Claim, output=Judged, route=ROUTE, **WHO, '
                f'retention="full", policy=dt.Policy("{name}{suffix}", decide={function}{otherwise}))\n'
            )
    return "".join(made)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    with served({"drivetrain.toml": settings(), "workflows/claims.py": source()}) as running:
        yield running
        assert running.alive
        assert not running.faults, "\n".join(running.faults)
        assert PRIVATE not in running.stderr


def asked(gateway: Served, name: str, value: Any) -> wire.Answered:
    return wire.one(gateway.port, wire.request(json.dumps(value), path=f"/v1/workflows/{name}"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_fails_fails_its_call_by_name_or_takes_otherwise(gateway: Served, name: str) -> None:
    failed = asked(gateway, name, {"text": PRIVATE})
    assert (failed.status, failed.error["code"]) == (500, "policy_failed"), failed.body
    assert PRIVATE not in failed.body.decode()
    other = asked(gateway, f"{name}_else", {"text": PRIVATE})
    assert other.status == 200, other.body
    assert other.json["decision"]["action"] == "review"
    assert gateway.call(other.headers["x-request-id"]).decision is not None


@pytest.mark.parametrize("name", TEXTS)
def test_an_action_of_another_kind_of_text_is_recorded_as_text(gateway: Served, name: str) -> None:
    answer = asked(gateway, name, {"text": "x"})
    assert answer.status == 200, answer.body
    decision = gateway.call(answer.headers["x-request-id"]).decision
    assert decision is not None
    assert (decision.action, answer.json["decision"]["action"]) == ("refund", "refund")


def test_a_function_that_changes_its_case_changes_neither_answer_nor_record(gateway: Served) -> None:
    answer = asked(gateway, "changes", {"text": "x", "lines": [{"sku": "own"}]})
    assert answer.status == 200, answer.body
    assert answer.json["output"] == {"label": "claim", "tags": []}
    call_id = answer.headers["x-request-id"]
    decision = gateway.call(call_id).decision
    assert decision is not None
    opened = FileVault(gateway.root / ".drivetrain" / "keys").open(call_id, "decision", decision.sealed)
    assert opened is not None
    record = msgspec.msgpack.decode(opened, type=DecisionRecordV1)
    assert record.inputs["input"]["lines"] == [{"sku": "own"}]
    assert record.inputs["answer"]["tags"] == []


# Declarations.

DECLARED = {
    "a reason that is a number": ('otherwise=dt.Action("a", 5)', "reason is no text"),
    "a long reason": ('otherwise=dt.Action("a", "x" * 1_000)', "reason is no text"),
    "values that are an object": ('otherwise=dt.Action("a", "", {"x": object()})', "values cannot be recorded"),
    "values that are none": ('otherwise=dt.Action("a", "", 5)', "values are no object"),
    "values that are NaN": ('otherwise=dt.act("a", x=float("nan"))', "not finite"),
    "large values": ('otherwise=dt.act("a", x="y" * 100_000)', "values are larger"),
    "half a surrogate pair": ('otherwise=dt.act("\\ud800")', "no action"),
    "an action of half a pair": ('actions=("\\ud800",)', "no text"),
    "a share of 400 digits": ('explore=dt.Explore(10**400, ("a",))', "wrong share"),
    "a share that is NaN": ('explore=dt.Explore(float("nan"), ("a",))', "wrong share"),
    "an unknown action explored": ('explore=dt.Explore(0.5, ("b",)), actions=("a",)', "explored action"),
    "a gain of 400 digits": ('gains=dt.Gains("m", {"a": {"x": 10**400}})', "no number"),
    "a gain that is NaN": ('gains=dt.Gains("m", {"a": {"x": float("nan")}})', "no number"),
}


@pytest.mark.parametrize("name", DECLARED)
def test_a_policy_that_is_declared_wrong_is_told_when_the_project_is_loaded(tmp_path: Path, name: str) -> None:
    declared, said = DECLARED[name]
    (tmp_path / "workflows").mkdir()
    (tmp_path / "drivetrain.toml").write_text(settings())
    (tmp_path / "workflows" / "claims.py").write_text(
        f"{HEAD}one = dt.Workflow('one', input=Claim, output=Judged, **WHO, policy=dt.Policy('p', "
        f"decide=lambda case: 'a', {declared}), route=[dt.Rule('r', when=lambda x: True, then=Judged(label='x'))])\n"
    )
    with pytest.raises(ProjectError, match="1 mistake in the project") as told:
        load(tmp_path)
    assert said in str(told.value)


# Tables.

GRAPH: dict[str, Any] = {
    "nodes": [
        {"id": "in", "type": "inputNode", "name": "in"},
        {
            "id": "t",
            "type": "decisionTableNode",
            "name": "t",
            "content": {
                "hitPolicy": "first",
                "inputs": [{"id": "i", "name": "i", "field": "input.amount"}],
                "outputs": [{"id": "o", "name": "o", "field": "action"}, {"id": "r", "name": "r", "field": "reason"}],
                "rules": [
                    {"_id": "r1", "i": "< 50", "o": "'refund'", "r": "'small'"},
                    {"_id": "r2", "i": "[50..100)", "o": "'review'", "r": ""},
                    {"_id": "r3", "i": "", "o": "input.amount > 1000 ? 'deny' : 'review'", "r": ""},
                ],
            },
        },
        {
            "id": "x",
            "type": "expressionNode",
            "name": "x",
            "content": {"expressions": [{"id": "e", "key": "action", "value": "action"}]},
        },
        {"id": "out", "type": "outputNode", "name": "out"},
    ],
    "edges": [
        {"id": "1", "sourceId": "in", "targetId": "t"},
        {"id": "2", "sourceId": "t", "targetId": "x"},
        {"id": "3", "sourceId": "x", "targetId": "out"},
    ],
}  # fmt: skip
ODD: list[Any] = [
    None, True, 0, -1, 2**63, 10**30, 0.5, "", "x", "in", "out", "t", "action", "input", "\0", "'", "functionNode",
    "decisionNode", "switchNode", "collect", "$", "$.x", "1/0", "map([1..1000000], #)", "input.amount ^ 999999",
    "9" * 500, "repeat('x', 1000000)", "date('now')", "[[[", "'" * 99, [], {}, [[]], {"id": "in"},
    "../../drivetrain.toml", "a" * 5_000,
    "-> action", "not(", "> > 5", "[1..", "true and", "null", "-9e999", "1e400", "$nodes.t", "#",
    "{{}}", "\\ud800",
]  # fmt: skip
GIVEN: list[Any] = [{}, None, {"amount": 5}, {"amount": 2**70}, {"amount": float("nan")}, {"amount": "x"}]
CASES = [Case(input=value) for value in GIVEN]
SLOWEST_S = 2.0


def spoiled(graph: Any, dice: random.Random) -> Any:
    """The graph with something of it replaced, doubled or gone."""
    copied = json.loads(json.dumps(graph))
    for _ in range(dice.randrange(1, 4)):
        at: Any = copied
        key: Any = dice.choice(["nodes", "edges"])
        while isinstance(at[key], dict | list) and at[key] and dice.random() < 0.85:
            at = at[key]
            key = dice.choice(list(at)) if isinstance(at, dict) else dice.randrange(len(at))
        kind = dice.random()
        if kind < 0.7:
            at[key] = dice.choice(ODD)
        elif kind < 0.85 and isinstance(at, list):
            at.append(at[key])
        else:
            del at[key]
        if not isinstance(copied.get("nodes"), list | dict) or not isinstance(copied.get("edges"), list | dict):
            break
    return copied


def test_whatever_a_table_says_it_decides_or_says_why_not() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    decided = refused = 0
    for _ in range(400):
        graph = spoiled(GRAPH, dice)
        started = time.process_time()
        try:
            policy = compile_policy(Policy("p", table="p.json"), {"policies/p.json": json.dumps(graph).encode()})
        except DrivetrainError:
            refused += 1
            continue
        for case in CASES:
            try:
                verdict = policy.decide(case, "call_1")
            except PolicyFailed:
                continue
            decided += 1
            assert isinstance(verdict.action, str), graph
        assert time.process_time() - started < SLOWEST_S, graph
    assert decided
    assert refused


def test_an_explored_action_has_the_chance_that_is_recorded() -> None:
    """Whatever is explored, doubled or the policy's own: chances add up, and how often each came agrees with them."""
    explore = Explore(0.5, ("b", "b", "a"))
    policy = compile_policy(Policy("p", decide=lambda case: "a", explore=explore), {})
    verdicts = [policy.decide(Case(), f"call_{number}") for number in range(6_000)]
    told = {one.action: one.propensity for one in verdicts}
    assert told == {"a": pytest.approx(0.5 + 0.5 / 3), "b": pytest.approx(1 / 3)}
    for action, chance in told.items():
        came = sum(one.action == action for one in verdicts) / len(verdicts)
        assert abs(came - chance) < 0.03  # five standard deviations


# What is asked of past Decisions.


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), 1e300, "x", None])
def test_a_gain_that_is_no_number_is_told(value: Any) -> None:
    with pytest.raises(DrivetrainError, match="no finite number"):
        gain(Gains("fraud", lambda action, truth, case: value), "refund", True, Case())


@pytest.mark.parametrize("value", [10**400, float("nan"), float("-inf"), 1e200, "x", None])
def test_a_metric_that_is_no_number_is_told(value: Any) -> None:
    metric = metric_of(Policy("p", decide=lambda case: "a", metrics={"paid": lambda action, case: value}), "paid")
    with pytest.raises(DrivetrainError, match="instead of a finite number"):
        metric.of(Action("a"), Case())


def test_a_metric_that_exits_is_told() -> None:
    metric = metric_of(Policy("p", decide=lambda case: "a", metrics={"paid": lambda action, case: sys.exit(3)}), "paid")
    with pytest.raises(DrivetrainError, match="fails with SystemExit"):
        metric.of(Action("a"), Case())


def test_a_gain_that_exits_is_told() -> None:
    with pytest.raises(DrivetrainError, match="fails on `refund` with SystemExit"):
        gain(Gains("fraud", lambda action, truth, case: sys.exit(3)), "refund", True, Case())
