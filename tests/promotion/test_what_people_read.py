"""What people read of Releases and rollouts: reasons, what is needed first, and a rollout's Report."""

from __future__ import annotations

import msgspec
import pytest
from shop import GOLDEN, Shop

pytestmark = pytest.mark.slow


def test_the_history_gives_the_reason_of_a_proposal_where_its_release_has_none(shop: Shop) -> None:
    shop.ok("propose", "-m", "the first of all")
    shop.ok("promote", "1")
    shop.edit("workflows/triage.j2", "Sort", "Route")
    shop.ok("propose", "-m", "another verb")
    shop.ok("promote", "2", "-m", "on Monday")
    newest, oldest = shop.ok("history").splitlines()[1:3]
    assert "on Monday" in newest
    assert "another verb" not in newest
    assert "the first of all" in oldest


def test_a_proposal_says_what_leads_from_it_to_a_release(shop: Shop) -> None:
    assert shop.ok("propose").endswith("Next: `drivetrain promote 1`.\n")
    shop.write("evals/triage.py", GOLDEN)
    shop.edit("drivetrain.toml", "[providers", '[[releases.approvals]]\naspect = "any"\nnumber = 2\n\n[providers')
    said = shop.ok("propose")
    assert "It lacks:\n  eval triage-golden of triage: no Report that it passed\n" in said
    assert "0 of 2 approvals by anybody else" in said
    assert said.endswith(
        "Next: `drivetrain eval run triage-golden`, then `drivetrain approve 2` by others, then "
        "`drivetrain promote 2`.\n"
    )


def test_the_report_of_a_rollout_has_a_page(shop: Shop) -> None:
    shop.ok("propose")
    shop.ok("promote", "1")
    shop.edit("workflows/triage.j2", "Sort", "Route")
    shop.ok("propose")
    shop.ok("promote", "2", "--canary")
    shop.ok("rollout", "abort", "-m", "it is | slow")
    (head,) = msgspec.json.decode(shop.ok("report", "list", "--kind", "rollout", "--json"))["reports"]
    page = shop.ok("report", "show", head["id"])
    assert page.startswith("Rollout of release:default@2\nit is | slow\n")
    assert "begun" in page
    assert "aborted" in page
    guards = [line.split() for line in page.splitlines()[-3:]]
    assert guards[-1] == ["cost", "-", "10", "%"], "each guard with the harm that is accepted"
    assert "{" not in page, "no JSON"
    said = shop.ok("report", "show", head["id"], "--markdown")
    assert "# Rollout of release:default@2\n\nit is \\| slow\n" in said
    assert "| guard | metric | harm that is accepted |" in said
