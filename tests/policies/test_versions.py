"""Whatever changes Decisions changes the version, and nothing else does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from policy_world import RULES, chain, compiled, files, node, project, table_node

import drivetrain as dt
from drivetrain.core.policies import Policy
from drivetrain.policies import compile_policy
from drivetrain.project import load, unload

OTHER_RULES = (("small", "< 51", "'refund'", "'refund'", "'small_amount'"), *RULES[1:])


@pytest.mark.parametrize(
    "terms",
    [
        {"actions": ("refund", "review", "deny")},
        {"explore": dt.Explore(0.1, ("deny",))},
        {"otherwise": dt.act("review")},
        {"limit_ms": 10},
    ],
)
def test_every_term_is_part_of_it(terms: dict[str, Any]) -> None:
    assert compiled(**terms).version != compiled().version
    assert compiled(**terms).version == compiled(**terms).version


def test_a_table_is_part_of_it_and_so_is_one_that_it_calls() -> None:
    assert re.fullmatch("[0-9a-f]{16}", compiled().version)
    assert compiled(table_node(OTHER_RULES)).version != compiled().version
    call = node("call", "decisionNode", {"key": "limits.json"})
    versions = {
        compile_policy("refund.json", files(call, limits=chain(table_node(rules)))).version
        for rules in (RULES, OTHER_RULES)
    }
    assert len(versions) == 2


def test_the_names_and_reasons_around_it_are_not_part_of_it() -> None:
    named = Policy("other", table="refund.json", metrics={"refund_rate": "refund"})
    assert compile_policy(named, files()).version == compiled().version


HELPERS = """
LIMITS = {"refund": 50}
class Rates:
    def half(self, amount):
        return amount / 2
def small(case):
    return Rates().half(case.input.amount) < LIMITS["refund"]
"""
FUNCTION = 'dt.Policy("refund", decide=decide)'
USES = """from helpers import small
def decide(case):
    return "refund" if small(case) else "review"

refunds = """


def version_of(root: Path, helpers: str, function: str = USES) -> str:
    project(root, FUNCTION, {})
    file = root / "workflows" / "refunds.py"
    file.write_text(file.read_text().replace("\nrefunds = ", f"\n{function}", 1))
    (root / "helpers.py").write_text(helpers)
    snapshot = load(root)
    try:
        return compile_policy(snapshot.workflows["refunds"].policy, snapshot.files).version
    finally:
        unload(snapshot)


def test_of_a_function_its_source_and_what_it_uses_are_part_of_it(tmp_path: Path) -> None:
    plain = version_of(tmp_path, HELPERS)
    assert version_of(tmp_path, HELPERS + "\n# a comment, and one more helper\ndef other(): return 1\n") == plain
    assert version_of(tmp_path, HELPERS.replace("50", "60")) != plain
    assert version_of(tmp_path, HELPERS.replace("/ 2", "/ 3")) != plain
    assert version_of(tmp_path, HELPERS, USES.replace('"review"', '"deny"')) != plain


def test_a_closure_is_part_of_it() -> None:
    def made(limit: int) -> str:
        return compile_policy(Policy("p", decide=lambda case: "a" if case.input.amount < limit else "b"), {}).version

    assert made(1) == made(1)
    assert made(1) != made(2)
