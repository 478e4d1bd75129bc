"""The plan tells each kind of change by its content, and asks for what the rules in force ask."""

from __future__ import annotations

import pytest
from shop import Shop

from drivetrain.core.releases import ChangeV1, EvidenceV1
from drivetrain.embedded import promoting
from drivetrain.project.load import load, unload
from drivetrain.promotion.evidence import proof_in
from drivetrain.promotion.recorded import runs_in
from drivetrain.registry.reports import Stored

pytestmark = pytest.mark.slow

CODE, PROMPT, TOML, GOLDEN = "workflows/triage.py", "workflows/triage.j2", "drivetrain.toml", "evals/golden.py"
POLICY = "policy=dt.Policy('p', decide=lambda c: dt.act('keep'), actions=['keep'], otherwise=dt.act('keep'))"
LIMIT = '[limits.month]\nscope = "project"\nusd = "5"\nper = "month"'
EDITS: dict[str, tuple[str, str, str]] = {
    "a model": (CODE, 'model="openai/m1"', 'model="openai/m2"'),
    "a limit": (CODE, "max_output_tokens=64", "max_output_tokens=32"),
    "a rule": (CODE, "when=is_empty", "when=lambda t: False"),
    "what a rule calls": (CODE, "not ticket", "bool(ticket.text) and not ticket"),
    "a check": (CODE, 'model="openai/m1",', 'model="openai/m1", accept=lambda o, i: None,'),
    "a budget": (CODE, "usd_per_day=5", "usd_per_day=50"),
    "a type": (CODE, "intent: str", "intent: str\n    why: str = ''"),
    "an owner": (CODE, "a@b.example", "c@d.example"),
    "a prompt": (PROMPT, "Sort", "Route"),
    "a variant": (CODE, 'dt.Variant("large"', 'dt.Variant("big"'),
    "a policy": (CODE, "    budget=", f"    {POLICY},\n    budget="),
    "a rollout": (CODE, "    budget=", "    rollout=dt.Rollout(),\n    budget="),
    "a price": (TOML, 'input = "1"', 'input = "3"'),
    "a provider": (TOML, "api.openai.com", "api.other.example"),
    "a limit of all": (TOML, "[project]", f"{LIMIT}\n\n[project]"),
    "a gateway": (TOML, "[project]", "[gateway]\nport = 9\n\n[project]"),
    "people": (TOML, "[project]", '[people.ann]\nroles = ["lead"]\n\n[project]'),
    "a comment": (CODE, "import drivetrain as dt", "import drivetrain as dt  # new"),
    "an eval": (GOLDEN, "0.9", "0.5"),
}
"""Name -> file, before, after."""
TOLD: dict[str, tuple[str, str, str]] = {
    "a model": ("triage", "variants", "small: model openai/m1 became openai/m2"),
    "a limit": ("triage", "variants", "max_output_tokens 64 became 32"),
    "a rule": ("triage", "variants", "rule empty changed"),
    "what a rule calls": ("triage", "variants", "rule empty changed"),
    "a check": ("triage", "checks", "small: accept changed"),
    "a budget": ("triage", "budget", "usd_per_day 5"),
    "a type": ("triage", "workflow", "output type changed"),
    "an owner": ("triage", "workflow", "owner a@b.example became c@d.example"),
    "a prompt": ("triage", "prompts", "workflows/triage.j2 changed"),
    "a variant": ("triage", "variants", "variant big is new on openai/m2"),
    "a policy": ("triage", "policy", "policy none became p"),
    "a rollout": ("triage", "rollout", "rollout is new"),
    "a price": ("", "settings", "model openai/m1: input_nano_per_million"),
    "a provider": ("", "settings", "provider openai: endpoint changed"),
    "a limit of all": ("", "budget", "limit month is new"),
    "a gateway": ("", "settings", "[gateway] port 8080 became 9"),
    "people": ("", "rules", "person ann is new, with lead"),
    "a comment": ("", "settings", f"file {CODE} changed"),
    "an eval": ("triage", "evals", "gate `exact >= 0.9` is removed"),
}
"""Name -> workflow, aspect, what."""


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_told_under_its_aspect(shop: Shop, name: str) -> None:
    (file, before, after), (workflow, aspect, what) = EDITS[name], TOLD[name]
    shop.add_golden()
    shop.passed()
    promoting.propose(shop.place, "first")
    promoting.promote(shop.place, 1)
    shop.edit(file, before, after)
    changes = promoting.plan(shop.place).plan.changes
    found = [one for one in changes if (one.workflow, one.aspect) == (workflow, aspect) and what in one.what]
    assert found, f"{name}: {changes}"
    aspects = {one.aspect for one in changes}
    assert aspects <= {aspect, "variants", "settings"}, f"{name} is told as other changes too: {changes}"


def test_another_order_is_told(shop: Shop) -> None:
    promoting.propose(shop.place, "first")
    promoting.promote(shop.place, 1)
    text = (shop.root / CODE).read_text(encoding="utf-8").splitlines()
    small = next(place for place, line in enumerate(text) if '"small"' in line)
    text[small], text[small + 1] = text[small + 1], text[small]
    shop.write(CODE, "\n".join(text))
    [change] = promoting.plan(shop.place).plan.changes
    assert change == ChangeV1(
        workflow="triage", aspect="order", what="order empty, small, large became empty, large, small"
    )


def test_a_removed_workflow_is_told_with_its_evals(shop: Shop) -> None:
    shop.add_golden()
    shop.passed()
    promoting.propose(shop.place, "first")
    promoting.promote(shop.place, 1)
    shop.edit(CODE, '"triage", input', '"sorting", input')
    shop.edit("evals/golden.py", "triage-golden", "sorting-golden")
    plan = promoting.plan(shop.place).plan
    told = {(one.workflow, one.what) for one in plan.changes}
    assert {
        ("triage", "is removed"),
        ("sorting", "is new"),
        ("triage", "eval triage-golden is removed, with 1 gate"),
    } <= told
    assert plan.keys["triage"] == ""
    assert [one.eval for one in plan.evidence] == ["sorting-golden"]


def test_what_was_served_before_the_first_release_is_compared_with(shop: Shop) -> None:
    from drivetrain.embedded.applying import apply

    snapshot = load(shop.root)
    apply(snapshot)
    unload(snapshot)
    shop.edit("workflows/triage.j2", "Sort", "Route")
    planned = promoting.plan(shop.place)
    assert planned.against == f"what was served last ({snapshot.short_hash})"
    assert [one.aspect for one in planned.shown.changes] == ["prompts"]


def test_a_dataset_without_a_number_is_the_newest(shop: Shop) -> None:
    shop.add_golden()
    shop.edit("evals/golden.py", "golden@1", "golden")
    id = shop.passed()
    snapshot = load(shop.root)
    try:
        planned = promoting.plan(shop.place).plan.evidence[0]
        assert planned.report == "", "there is no Dataset golden, so nothing is its newest number"
        from drivetrain.embedded.modelling import open_reports

        stored: list[Stored] = open_reports(shop.root).list("eval")
        runs = runs_in(shop.place.log().records())
        needed = EvidenceV1(eval=planned.eval, workflow="triage", key=planned.key, eval_key=planned.eval_key)
        assert proof_in(stored, None, snapshot, lambda _: [1], runs)(needed) == id
        assert proof_in(stored, None, snapshot, lambda _: [2], runs)(needed) == ""
    finally:
        unload(snapshot)


def test_a_report_over_an_older_number_with_the_same_rows_counts(shop: Shop) -> None:
    shop.add_golden()
    shop.edit("evals/golden.py", "golden@1", "golden")
    shop.write("golden.csv", "text,expected\na,b\n")
    shop.ok("dataset", "create", "golden", "--from-file", "golden.csv")
    id = shop.passed()
    shop.ok("dataset", "create", "golden", "--from-file", "golden.csv")
    assert promoting.plan(shop.place).plan.evidence[0].report == id, "golden@2 holds the same"
    shop.write("golden.csv", "text,expected\na,b\nc,d\n")
    shop.ok("dataset", "create", "golden", "--from-file", "golden.csv")
    assert promoting.plan(shop.place).plan.evidence[0].report == "", "golden@3 does not"
    shop.write("golden.csv", "text,expected\na,b\n")
    shop.ok("dataset", "create", "golden", "--from-file", "golden.csv")
    assert promoting.plan(shop.place).plan.evidence[0].report == id, "golden@4 does again"
