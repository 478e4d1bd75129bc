"""Past Decisions under a candidate: what changes and where, what it is worth, and what cannot be known."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from evals_world import Desk, Vault, table, without_payloads, write_project

from drivetrain.core.calls import Call
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.policies import Case, Explore, Gains, Policy, act
from drivetrain.evals.past import GONE, NOT_KEPT, PastReader
from drivetrain.evals.policy_replay import PolicyReplay, replay_policy, report, verdict
from drivetrain.evals.replayed import Replayed
from drivetrain.policies.compile import compile_policy
from drivetrain.project.snapshot import Snapshot
from support.seeds import SEED

OLD = table(("< 0.4", "", "refund"), ("", "", "review"))
NEW = table(("< 0.4", "", "refund"), ("< 0.7", "", "refund"), ("", "", "deny"))
READS_MORE = table(("", "< 30", "refund"), ("", "", "review"))
TABLES = {"refund.json": OLD, "new.json": NEW, "more.json": READS_MORE}
GAINS = Gains(
    metric="fraud",
    usd={
        "refund": {"true": -100.0, "false": 10.0}, "review": {"*": -5.0}, "deny": {"true": 0.0, "false": -20.0},
    },
)  # fmt: skip


def past(snapshot: Snapshot, vault: Vault, *, count: int = 100, truths: bool = True) -> list[Call]:
    """Claims of 0 to 99; from 70 on they are fraud."""
    desk = Desk(snapshot, vault)
    return [
        desk.call(
            {"amount": float(amount), "country": "DE" if amount % 4 else "FR"},
            user=f"u{amount}", fraud=(amount >= 70) if truths else None,
        )
        for amount in range(count)
    ]  # fmt: skip


def replayed(
    calls: list[Call], snapshot: Snapshot, vault: Vault, candidate: Policy, *, payloads: bool = True, **more: Any
) -> PolicyReplay:
    workflow = snapshot.workflows["claims"]
    world = Replayed(workflow, lambda _hash: snapshot, vault, lambda _pinned: pytest.fail("no model is asked"))
    reader = PastReader(vault, workflow, world.whole if payloads else None)
    return replay_policy(calls, compile_policy(candidate, snapshot.files), reader, resamples=300, **more)


def test_what_changes_by_rule_and_by_segment(tmp_path: Path) -> None:
    vault = Vault()
    snapshot = write_project(tmp_path, tables=TABLES)
    calls = past(snapshot, vault)
    found = replayed(calls, snapshot, vault, Policy("refund", table="new.json"), by="input.country")
    assert (found.decisions, found.redecided, found.changed) == (100, 100, 60)
    assert found.changed_low < 0.6 < found.changed_high
    kinds = {(one.old_rule, one.old_action, one.new_rule, one.new_action): one for one in found.changes}
    assert {kind: one.decisions for kind, one in kinds.items()} == {
        ("row1", "review", "row1", "refund"): 30,
        ("row1", "review", "row2", "deny"): 30,
    }
    ids = {call.call_id: number for number, call in enumerate(calls)}
    refunded = kinds[("row1", "review", "row1", "refund")]
    assert all(40 <= ids[one] < 70 for one in refunded.examples)
    assert refunded.share == pytest.approx(0.3)
    assert found.actions == {"deny": (0, 30), "refund": (40, 70), "review": (60, 0)}
    assert {one.name: (one.decisions, one.changed) for one in found.segments} == {"DE": (75, 45), "FR": (25, 15)}
    assert found.worth is None
    assert "no gains" in verdict(found)


def test_the_same_policy_changes_nothing(tmp_path: Path) -> None:
    vault = Vault()
    snapshot = write_project(tmp_path, tables=TABLES)
    found = replayed(past(snapshot, vault), snapshot, vault, Policy("refund", table="refund.json"), gains=GAINS)
    assert (found.changed, found.changes, found.rules) == (0, (), ())
    assert found.worth is not None
    assert found.worth.direct is not None
    assert found.worth.direct.difference == msgspec.structs.replace(
        found.worth.direct.difference, value=0, low=0, high=0
    )


def test_worth_where_the_truth_does_not_depend_on_the_action(tmp_path: Path) -> None:
    vault = Vault()
    snapshot = write_project(tmp_path, tables=TABLES)
    candidate = Policy("refund", table="new.json")
    found = replayed(past(snapshot, vault), snapshot, vault, candidate, gains=GAINS, by="input.country")
    assert found.worth is not None
    direct = found.worth.direct
    assert direct is not None
    # Before: 40 refunds of 10 and 60 reviews of -5. After: 70 refunds of 10, and 30 denied that were fraud.
    assert direct.before.value == pytest.approx((40 * 10 - 60 * 5) / 100)
    assert direct.candidate.value == pytest.approx(70 * 10 / 100)
    assert direct.difference.value == pytest.approx((30 * 15 + 30 * 5) / 100)
    assert direct.difference.low < 6.0 < direct.difference.high
    # Pairs: the interval of the difference is narrower than those of its parts would allow.
    parts = (direct.before.high - direct.before.low) + (direct.candidate.high - direct.candidate.low)
    assert direct.difference.high - direct.difference.low < parts
    assert set(found.worth.by_segment) == {"DE", "FR"}
    assert "is worth more" in verdict(found)
    made = report(found, made_ns=1, made_by="me", inputs=["policy:refund@1"])
    assert made.facts["difference_usd"] == pytest.approx(6.0)
    assert msgspec.json.decode(msgspec.json.encode(made), type=type(made)) == made


def test_what_the_candidate_reads_and_nobody_kept_is_not_guessed(tmp_path: Path) -> None:
    vault = Vault()
    old = table(("< 0.4", "", "refund"), ("", "", "review")).replace('"input.amount"', '"answer.risk"')
    snapshot = write_project(tmp_path, tables={**TABLES, "refund.json": old})
    calls = past(snapshot, vault)
    more = Policy("refund", table="more.json")
    kept = replayed(calls, snapshot, vault, more)
    assert (kept.redecided, kept.changed) == (100, 10)
    bare = [without_payloads(call) for call in calls]
    gone = replayed(bare, snapshot, vault, more)
    assert (gone.redecided, gone.lost) == (0, {NOT_KEPT: 100})
    assert "None of 100 Decisions could be re-decided" in verdict(gone)

    def by_function(case: Case) -> str:
        return "refund" if case.input.amount < 30 else "review"

    function = Policy("refund", decide=by_function)
    assert replayed(calls, snapshot, vault, function).changed == 10
    assert replayed(bare, snapshot, vault, function).lost == {NOT_KEPT: 100}


def test_the_forgotten_are_counted_and_others_stand(tmp_path: Path) -> None:
    vault = Vault()
    snapshot = write_project(tmp_path, tables=TABLES)
    calls = past(snapshot, vault)
    vault.forgotten |= {"u1", "u2", "u3"}
    found = replayed(calls, snapshot, vault, Policy("refund", table="new.json"))
    assert (found.redecided, found.lost) == (97, {GONE: 3})


def test_a_candidate_that_cannot_decide_is_told(tmp_path: Path) -> None:
    vault = Vault()
    gap = table(("< 0.4", "", "refund"))
    snapshot = write_project(tmp_path, tables={**TABLES, "gap.json": gap})
    calls = past(snapshot, vault)
    found = replayed(calls, snapshot, vault, Policy("refund", table="gap.json"), gains=GAINS)
    assert found.fails == 60
    assert "60 Calls would fail" in verdict(found)
    assert found.worth is not None
    assert any("cannot decide 60 Calls" in line for line in found.worth.unknown)
    instead = Policy("refund", table="gap.json", otherwise=act("review"))
    mended = replayed(calls, snapshot, vault, instead)
    assert (mended.fails, mended.candidate_failed, mended.changed) == (0, 60, 0)


def test_gains_that_do_not_say_are_refused_with_what_to_write(tmp_path: Path) -> None:
    vault = Vault()
    snapshot = write_project(tmp_path, tables=TABLES)
    calls = past(snapshot, vault)
    candidate = Policy("refund", table="new.json")
    usd: Mapping[str, Mapping[str, float]] = {"refund": {"*": 1.0}, "review": {"*": 0.0}}
    with pytest.raises(DrivetrainError, match="what `deny` is worth where `fraud` is `true`") as told:
        replayed(calls, snapshot, vault, candidate, gains=Gains(metric="fraud", usd=usd))
    assert '"deny": {"true": ...}' in told.value.do
    found = replayed(past(snapshot, vault, truths=False), snapshot, vault, candidate, gains=GAINS)
    assert found.worth is not None
    assert (found.worth.outcomes, found.worth.direct) == (0, None)
    with pytest.raises(DrivetrainError, match="told apart by"):
        replayed(calls, snapshot, vault, candidate, by="inputs.country")


def test_outcomes_that_only_some_actions_have_are_told(tmp_path: Path) -> None:
    vault = Vault()
    snapshot = write_project(tmp_path, tables=TABLES)
    calls = past(snapshot, vault)
    seen = [
        call
        if call.decision is not None and call.decision.action == "refund"
        else msgspec.structs.replace(call, outcomes=())
        for call in calls
    ]
    found = replayed(seen, snapshot, vault, Policy("refund", table="new.json"), gains=GAINS)
    assert found.worth is not None
    assert any("known for 0% of `review` and 100% of `refund`" in line for line in found.worth.unknown)


def bought(action: str, amount: float, dice: random.Random) -> bool:
    """Whether the customer comes back: refunds please, and more so the dearer."""
    return dice.random() < (0.3 + 0.006 * amount if action == "refund" else 0.4)


def log_of(snapshot: Snapshot, vault: Vault, count: int) -> tuple[list[Call], float]:
    """Calls whose Outcome came about by what was done, and what the candidate is truly worth beyond that."""
    dice, desk = random.Random(SEED), Desk(snapshot, vault)
    calls, gap = [], 0.0
    for number in range(count):
        amount = 100 * (number + 0.5) / count
        call = desk.call({"amount": amount}, fraud=False)
        assert call.decision is not None
        came = bought(call.decision.action, amount, dice)
        (truth,) = call.outcomes
        calls.append(
            msgspec.structs.replace(call, outcomes=(msgspec.structs.replace(truth, metric="back", value=came),))
        )
        if 40 <= amount < 70:
            gap += 0.3 + 0.006 * amount - 0.4
    return calls, gap / count


BACK = Gains(metric="back", usd=lambda _action, value, _case: 1.0 if value else 0.0)
HALF = table(("< 0.4", "", "refund"), ("< 0.7", "", "refund"), ("", "", "review"))


def test_worth_where_it_depends_on_the_action_comes_from_explored_calls(tmp_path: Path) -> None:
    vault = Vault()
    policy = 'table="refund.json", explore=dt.Explore(0.5, ("refund", "review"))'
    snapshot = write_project(tmp_path, policy=policy, tables={**TABLES, "half.json": HALF})
    calls, truth = log_of(snapshot, vault, 1_500)
    half = Policy("refund", table="half.json")
    found = replayed(calls, snapshot, vault, half, gains=BACK, depends_on_action=True)
    assert found.changed == 450, "exploration is no change of policy"
    assert found.worth is not None
    known = found.worth.off_policy
    assert known is not None
    assert (known.known, known.unknown_share, found.worth.needed) == (1_500, 0.0, ())
    for one in (known.ips, known.snips, known.doubly_robust):
        assert one is not None
        width = one.difference.high - one.difference.low
        # Twice the width of its 95 % interval: about eight standard errors.
        assert abs(one.difference.value - truth) < 2 * width, f"seed {SEED}"
    assert known.doubly_robust is not None
    assert "estimated from explored Calls" in verdict(found)


def test_without_exploration_it_says_what_cannot_be_known_and_what_it_takes(tmp_path: Path) -> None:
    vault = Vault()
    snapshot = write_project(tmp_path, tables={**TABLES, "half.json": HALF})
    calls, _ = log_of(snapshot, vault, 200)
    half = Policy("refund", table="half.json")
    found = replayed(calls, snapshot, vault, half, gains=BACK, depends_on_action=True)
    assert found.worth is not None
    known = found.worth.off_policy
    assert known is not None
    assert known.unknown_share == pytest.approx(0.3)
    assert known.known == 140
    assert any("30.0% of the candidate's actions had no chance" in line for line in found.worth.unknown)
    assert any("explore=dt.Explore" in line for line in found.worth.unknown)
    (need,) = found.worth.needed
    assert (need.action, need.calls) == ("refund", 385)
    assert "cannot be known" in verdict(found)


def test_a_candidate_may_explore_too_and_only_its_own_choice_counts(tmp_path: Path) -> None:
    vault = Vault()
    snapshot = write_project(tmp_path, tables=TABLES)
    calls = past(snapshot, vault)
    curious = Policy("refund", table="refund.json", explore=Explore(0.5, ("deny",)))
    assert replayed(calls, snapshot, vault, curious).changed == 0


def test_numbers_stand_in_bands_and_few_stand_together(tmp_path: Path) -> None:
    vault = Vault()
    snapshot = write_project(tmp_path, tables=TABLES)
    desk = Desk(snapshot, vault)
    calls = past(snapshot, vault)
    calls += [desk.call({"amount": 1.0, "country": name}) for name in ("IS", "MT", "LI")]
    candidate = Policy("refund", table="new.json")
    bands = replayed(calls, snapshot, vault, candidate, by="input.amount").segments
    assert len(bands) == 5
    assert max(one.decisions for one in bands) <= 25
    assert sum(one.decisions for one in bands) == 103
    countries = replayed(calls, snapshot, vault, candidate, by="input.country").segments
    assert {one.name: one.decisions for one in countries} == {"DE": 75, "FR": 25, "(few)": 3}
    rules = replayed(calls, snapshot, vault, candidate, by="rule").segments
    assert {one.name: one.changed for one in rules} == {"row0": 0, "row1": 60}
