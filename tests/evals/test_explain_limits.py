"""What `explain` does where a period is mixed, payloads are gone, or only a provider could tell: known, or said."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from evals_world import RULE, Desk, Vault, table, without_payloads, write_project

import drivetrain as dt
from drivetrain.core.calls import Call
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.policies import Policy
from drivetrain.evals.explain import Explanation, explain, metric_of
from drivetrain.evals.explain_report import report, verdict
from drivetrain.evals.past import GONE
from drivetrain.evals.replayed import Replayed
from drivetrain.evals.workflow_key import route_key, workflow_key
from drivetrain.project.snapshot import Snapshot

pytestmark = pytest.mark.slow

LOW, HIGH = ({"refund.json": table((f"< {limit}", "", "refund"), ("", "", "review"))} for limit in (0.4, 0.6))
SMALL, LARGE = (f'dt.Variant("only", model="up/{name}", max_output_tokens=64)' for name in ("small", "large"))
CLAIMS = [{"amount": float(number)} for number in range(100)]


def provider(body: dict[str, Any]) -> str:
    """The large model sees less risk than the small one."""
    amount = float(json.loads(body["messages"][-1]["content"])["amount"])
    return json.dumps({"risk": amount / 100 if "small" in body["model"] else amount / 200, "confidence": None})


def explained(
    first: list[Call], second: list[Call], snapshots: list[Snapshot], vault: Vault, metric: str = "refund_rate"
) -> Explanation:
    workflow = snapshots[-1].workflows["claims"]
    by_hash = {one.short_hash: one for one in snapshots}
    world = Replayed(workflow, by_hash.__getitem__, vault, lambda _pinned: pytest.fail("no model is asked"))
    assert isinstance(workflow.policy, Policy)
    periods = [[world.moment(call) for call in calls] for calls in (first, second)]
    return explain(periods[0], periods[1], world, metric_of(workflow.policy, metric), resamples=200)


def shares(found: Explanation) -> dict[str, float]:
    return {one.factor: one.interval.value for one in found.shares if one.interval is not None}


def test_a_period_with_two_policies_counts_both_by_their_decisions(tmp_path: Path) -> None:
    vault = Vault()
    old = write_project(tmp_path / "old", tables=LOW)
    new = write_project(tmp_path / "new", tables=HIGH)
    first = Desk(old, vault).calls(CLAIMS)
    second = Desk(old, vault).calls(CLAIMS[::2]) + Desk(new, vault).calls(CLAIMS[1::2])
    found = explained(first, second, [old, new], vault)
    assert found.change.value == pytest.approx(0.1)
    assert shares(found) == pytest.approx({"model": 0.0, "policy": 0.1, "traffic": 0.0}, abs=1e-9)
    assert [count for _, count in found.second.states] == [50, 50]


def test_another_policy_is_known_without_any_payload(tmp_path: Path) -> None:
    vault = Vault()
    old = write_project(tmp_path / "old", tables=LOW, retention="none")
    new = write_project(tmp_path / "new", tables=HIGH, retention="none")
    assert route_key(old, "claims") == route_key(new, "claims")
    first, second = (Desk(one, vault).calls(CLAIMS) for one in (old, new))
    assert not any(call.request for call in first)
    found = explained(first, second, [old, new], vault)
    assert shares(found) == pytest.approx({"model": 0.0, "policy": 0.2, "traffic": 0.0}, abs=1e-9)


def test_a_template_of_another_workflow_leaves_the_key_as_it_is(tmp_path: Path) -> None:
    bare = write_project(tmp_path / "bare", tables=LOW)
    reached = {"prompts/a.j2": '{% include "prompts/b.j2" %}', "prompts/b.j2": "one", "prompts/else.j2": "other"}
    variant = dt.Variant("asked", model="sim/m", prompt="prompts/a.j2")

    def key(templates: dict[str, str]) -> str:
        declared = copy.copy(bare.workflows["claims"])
        declared.route = (*declared.route, variant)
        return workflow_key(
            msgspec.structs.replace(bare, templates=templates, workflows={"claims": declared}), "claims"
        )

    assert key(reached) == key({**reached, "prompts/else.j2": "edited"})
    assert key(reached) != key({**reached, "prompts/b.j2": "edited"})
    by_name = {**reached, "prompts/a.j2": "{% include which %}"}
    assert key(by_name) != key({**by_name, "prompts/else.j2": "edited"})


def test_other_models_need_payloads_and_that_is_said(tmp_path: Path) -> None:
    vault = Vault()
    old = write_project(tmp_path / "old", tables=LOW)
    new = write_project(tmp_path / "new", tables=LOW, score="claim.amount / 200")
    assert route_key(old, "claims") != route_key(new, "claims")
    first, second = (Desk(one, vault).calls(CLAIMS) for one in (old, new))
    with pytest.raises(DrivetrainError, match="first period can be replayed: its prompt and answers were not kept"):
        explained([without_payloads(one) for one in first], second, [old, new], vault)
    some = [call if number % 2 else without_payloads(call) for number, call in enumerate(first)]
    found = explained(some, second, [old, new], vault)
    assert (found.first.decisions, found.first.used, sum(found.lost.values())) == (100, 50, 50)
    assert shares(found)["model"] == pytest.approx(0.4, abs=0.02)


def test_the_forgotten_are_left_out_and_counted(tmp_path: Path) -> None:
    vault = Vault()
    old = write_project(tmp_path / "old", tables=LOW)
    new = write_project(tmp_path / "new", tables=HIGH)
    first = [Desk(old, vault).call(claim, user="gone" if number < 10 else "") for number, claim in enumerate(CLAIMS)]
    second = Desk(new, vault).calls(CLAIMS)
    vault.forgotten.add("gone")
    found = explained(first, second, [old, new], vault)
    assert found.lost == {GONE: 10}
    assert found.first.used == 90


def test_what_only_a_provider_knows_is_bounded_and_never_guessed(tmp_path: Path) -> None:
    vault = Vault()
    old = write_project(tmp_path / "old", route=SMALL, tables=LOW)
    new = write_project(tmp_path / "new", route=LARGE, tables=HIGH)
    first, second = (Desk(one, vault, provider=provider).calls(CLAIMS) for one in (old, new))
    found = explained(first, second, [old, new], vault)
    assert not found.known
    assert found.asks == {"up/large": 100, "up/small": 100}
    # Risks below 0.4 of a hundred claims, then below 0.6 of half those risks: 40 become 100.
    assert found.change.value == pytest.approx(0.6)
    assert found.alone["policy in first"].value == pytest.approx(0.2)
    assert found.alone["policy in second"].value == pytest.approx(0.2)
    truth = {"model": 0.4, "policy": 0.2, "traffic": 0.0}
    for share in found.shares:
        assert share.interval is None
        assert share.least is not None
        assert share.most is not None
        assert share.least <= truth[share.factor] <= share.most
        assert share.most - share.least < 1.5
    assert [one.value for one in found.values if not one.known] == [None] * 4
    said = verdict(found, is_share=True)
    assert "known only in bounds" in said
    made = report(found, "claims", is_share=True, made_ns=1, made_by="me")
    assert made.facts["known"] is False


def test_a_provider_is_not_asked_for_what_the_record_has(tmp_path: Path) -> None:
    """A rule in front of the same model: what it does not answer is the very same request as before."""
    vault = Vault()
    rule = 'dt.Rule("cheap", when=lambda claim: claim.amount < 60, then=Risk(risk=0.0))'
    old = write_project(tmp_path / "old", route=SMALL, tables=LOW)
    new = write_project(tmp_path / "new", route=f"{rule}, {SMALL}", tables=LOW)
    first, second = (Desk(one, vault, provider=provider).calls(CLAIMS) for one in (old, new))
    found = explained(first, second, [old, new], vault)
    # Of the second period's Calls the rule answered 60, which the old route would have sent to the provider.
    assert found.asks == {"up/small": 60}
    model_of_old_traffic = next(one for one in found.values if one.second == ("model",))
    assert model_of_old_traffic.known
    assert model_of_old_traffic.value == pytest.approx(0.6)


def test_a_metric_may_be_a_function_and_unknown_names_are_told(tmp_path: Path) -> None:
    vault = Vault()
    old = write_project(tmp_path / "old", tables=LOW)
    first = Desk(old, vault).calls(CLAIMS)
    second = Desk(old, vault).calls([{"amount": one["amount"] * 2} for one in CLAIMS])
    found = explained(first, second, [old], vault, "paid")
    assert found.change.value == pytest.approx(49.5)
    assert shares(found) == pytest.approx({"model": 0.0, "policy": 0.0, "traffic": 49.5})
    with pytest.raises(DrivetrainError, match="refund_rate"):
        explained(first, second, [old], vault, "refund_rat")
    with pytest.raises(DrivetrainError, match="second period has no Decision"):
        explained(first, [], [old], vault)


def test_a_snapshot_that_is_not_stored_is_told(tmp_path: Path) -> None:
    vault = Vault()
    old = write_project(tmp_path / "old", route=RULE, tables=LOW)
    new = write_project(tmp_path / "new", route=RULE, tables=HIGH)
    first, second = (Desk(one, vault).calls(CLAIMS) for one in (old, new))

    def stored(short_hash: str) -> Snapshot:
        if short_hash == old.short_hash:
            raise DrivetrainError("No stored Snapshot has this hash.")
        return new

    workflow = new.workflows["claims"]
    world = Replayed(workflow, stored, vault, lambda _pinned: pytest.fail("no model is asked"))
    assert isinstance(workflow.policy, Policy)
    periods = [[world.moment(call) for call in calls] for calls in (first, second)]
    with pytest.raises(DrivetrainError, match="not stored any more"):
        explain(periods[0], periods[1], world, metric_of(workflow.policy, "refund_rate"))
