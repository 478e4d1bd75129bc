"""Policies that misbehave, in a served project: every Call is answered or fails by name, and records what was seen."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drivetrain.core.calls import Call
from drivetrain.core.policies import Action, DecisionRecordV1, Policy
from drivetrain.embedded.modelling import registry_in
from support import wire
from support.projects import settings
from support.served import Served, served

START = "from drivetrain.cli.main import main; main()"
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
    assert b"planted" not in answer.body
