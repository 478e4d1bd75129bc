"""What is live follows the rules, whoever writes to the log: by the commands' own functions, and past them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from release_world import (
    ENV,
    GATE,
    POLICY,
    PROVED,
    TEAM,
    World,
    approval_of,
    event_of,
    release_of,
    withdrawal_of,
)

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import ChangeV1, ReleaseV1, RolloutV1, RulesV1, StageV1
from drivetrain.promotion import approving, releasing
from drivetrain.promotion.rollouts import record_event
from drivetrain.promotion.state import live, read_at

STAGES = RolloutV1(id="0" * 16, stages=(StageV1(share_ppm=50_000, minutes=1), StageV1(share_ppm=500_000, minutes=1)))


def in_stages(_: int) -> RolloutV1:
    return STAGES


def team_world() -> World:
    """Release 1 is live, by the team's rules."""
    world = World(TEAM)
    world.release()
    return world


def test_a_lone_developer_needs_nobody() -> None:
    world = World()
    made = world.release(approvers=())
    assert (world.live.release, world.live.snapshot, world.live.way) == (1, made.snapshot, "promote")
    assert world.live.refused == ()


def test_without_its_approvals_a_proposal_is_not_released() -> None:
    world = team_world()
    proposal = world.propose()
    world.approve(proposal.number, "bob")
    with pytest.raises(DrivetrainError, match="1 of 2 approvals by risk"):
        world.promote(proposal.number)
    world.force(release_of(world.state, proposal, "ann"))
    assert world.live.release == 1
    assert "1 of 2 approvals" in world.refused()
    world.approve(proposal.number, "cid")
    assert world.promote(proposal.number).number == world.live.release == 2


def test_a_change_of_another_kind_needs_no_approval_of_that_kind() -> None:
    world = team_world()
    made = world.release(approvers=(), changes=(ChangeV1(workflow="triage", aspect="prompts", what="x"),))
    assert world.live.release == made.number == 2


def test_nobody_approves_their_own() -> None:
    world = team_world()
    proposal = world.propose("bob")
    with pytest.raises(DrivetrainError, match="nobody approves their own"):
        world.approve(proposal.number, "bob")
    world.force(approval_of(proposal, "bob"))
    world.approve(proposal.number, "cid")
    world.force(release_of(world.state, proposal, "bob"))
    assert world.live.release == 1


def test_one_person_counts_once() -> None:
    world = team_world()
    proposal = world.propose()
    world.approve(proposal.number, "bob")
    with pytest.raises(DrivetrainError, match="counts once"):
        world.approve(proposal.number, "bob")
    world.force(approval_of(proposal, "bob"))
    world.force(release_of(world.state, proposal, "ann"))
    assert world.live.release == 1


def test_an_approval_names_the_hash_of_what_is_approved() -> None:
    world = team_world()
    proposal = world.propose()
    world.approve(proposal.number, "bob")
    world.force(approval_of(proposal, "cid", hash="0" * 64))
    assert "another hash" in world.refused()
    edited = msgspec.structs.replace(proposal, snapshot="f" * 64)
    world.approve(proposal.number, "cid")
    world.force(release_of(world.state, edited, "ann"))
    assert world.live.release == 1
    world.force(release_of(world.state, edited, "ann", proposal_hash=proposal.hash))
    assert world.live.release == 1
    assert "not what proposal" in world.refused()


def test_an_approval_by_somebody_without_the_role_is_not_enough() -> None:
    world = team_world()
    proposal = world.propose()
    world.approve(proposal.number, "bob", "dee")
    with pytest.raises(DrivetrainError, match="1 of 2 approvals"):
        world.promote(proposal.number)


ACTS: dict[str, Callable[[World, int], object]] = {
    "propose": lambda world, number: world.propose("mallory"),
    "approve": lambda world, number: world.approve(number, "mallory"),
    "withdraw": lambda world, number: approving.withdraw(world.desk("mallory"), number),
    "promote": lambda world, number: world.promote(number, "mallory"),
    "roll back": lambda world, number: releasing.roll_back(world.desk("mallory"), 1, "why not"),
}


@pytest.mark.parametrize("act", ACTS)
def test_a_stranger_does_nothing_where_people_are_declared(act: str) -> None:
    world = team_world()
    world.release()
    number = world.propose().number
    before = world.state
    with pytest.raises(DrivetrainError, match="not among"):
        ACTS[act](world, number)
    assert world.state == before


def test_a_stranger_ends_no_rollout() -> None:
    world = team_world()
    proposal = world.propose()
    world.approve(proposal.number, "bob", "cid")
    world.promote(proposal.number, rolled=in_stages)
    with pytest.raises(DrivetrainError, match="not among"):
        record_event(world.log, ENV, event_of(2, "aborted", by="mallory"))
    assert world.live.active is not None


def test_gates_hold() -> None:
    world = team_world()
    proposal = world.propose(evidence=(GATE,))
    world.approve(proposal.number, "bob", "cid")
    with pytest.raises(DrivetrainError, match="no Report that it passed"):
        world.promote(proposal.number)
    other = msgspec.structs.replace(PROVED, key="d" * 16)
    world.force(release_of(world.state, proposal, "ann", evidence=(other,)))
    assert world.live.release == 1
    world.promote(proposal.number, evidence=(PROVED,))
    assert world.live.release == 2


def test_rules_change_under_the_rules_that_held_before() -> None:
    world = team_world()
    lax = RulesV1(gates=False)
    rules = (ChangeV1(aspect="rules", what="gates hold no more"), *POLICY)
    proposal = world.propose(rules=lax, changes=rules, evidence=(GATE,))
    world.force(release_of(world.state, proposal, "ann"))
    assert world.live.release == 1
    assert world.live.rules == TEAM
    world.approve(proposal.number, "bob", "cid")
    world.promote(proposal.number, evidence=(PROVED,))
    assert world.live.rules == lax
    world.release("mallory", (), rules=lax, evidence=(GATE,))
    assert world.live.by == "mallory"


def test_going_back_brings_no_laxer_rules_back() -> None:
    world = World()
    world.release("mallory", ())
    world.release("ann", (), rules=TEAM)
    releasing.roll_back(world.desk("ann"), 1, "slow")
    assert (world.live.release, world.live.rules) == (3, TEAM)
    with pytest.raises(DrivetrainError, match="not among"):
        world.propose("mallory")


def test_of_two_proposals_against_one_release_the_second_is_stale() -> None:
    world = team_world()
    first, second = world.propose(), world.propose()
    world.approve(first.number, "bob", "cid")
    world.approve(second.number, "bob", "cid")
    world.promote(first.number)
    with pytest.raises(DrivetrainError, match="stale"):
        world.promote(second.number)
    world.force(release_of(world.state, second, "ann"))
    assert world.live.snapshot == first.snapshot


def test_a_plan_against_what_is_live_no_more_is_not_proposed() -> None:
    world = team_world()
    plan = world.plan()
    world.release()
    with pytest.raises(DrivetrainError, match="Release 2 by `ann` became live"):
        approving.propose(world.desk("ann"), plan, "")


def test_a_withdrawn_proposal_is_released_no_more() -> None:
    world = team_world()
    proposal = world.propose()
    world.approve(proposal.number, "bob", "cid")
    approving.withdraw(world.desk("ann"), proposal.number)
    with pytest.raises(DrivetrainError, match="withdrawn by `ann`"):
        world.promote(proposal.number)
    world.force(withdrawal_of(proposal, "bob"))
    assert "not open any more" in world.refused()


def test_a_proposal_is_released_once() -> None:
    world = team_world()
    first = world.live.snapshot
    proposal = world.state.proposals[1].proposal
    world.release()
    world.force(release_of(world.state, proposal, "ann"))
    assert world.live.snapshot != first


def test_a_proposal_that_hides_what_it_changes_does_not_count() -> None:
    world = team_world()
    with pytest.raises(DrivetrainError, match="does not say what it changes"):
        world.propose(changes=())


def test_an_override_takes_a_role_a_reason_and_says_what_it_lacks() -> None:
    world = team_world()
    proposal = world.propose(evidence=(GATE,))
    with pytest.raises(DrivetrainError, match="may not override: that takes the role oncall"):
        world.promote(proposal.number, "ann", override=True, reason="fire")
    with pytest.raises(DrivetrainError, match="says why"):
        world.promote(proposal.number, "dee", override=True)
    world.force(release_of(world.state, proposal, "dee", way="override", reason="fire"))
    assert world.live.release == 1
    assert "does not say what it lacks" in world.refused()
    world.promote(proposal.number, "dee", override=True, reason="fire")
    assert world.live.way == "override"
    assert world.live.by == "dee"
    assert len(world.live.lacks) == 2
    assert "refund-golden" in world.live.lacks[0]
    overridden, lacks = world.live.release, world.live.lacks
    world.release()
    assert world.live.lacks == ()
    releasing.roll_back(world.desk("ann"), overridden, "better")
    assert world.live.lacks == lacks, "going back to it does not make it proved"


def test_what_lacks_nothing_is_not_overridden() -> None:
    world = team_world()
    proposal = world.propose()
    world.approve(proposal.number, "bob", "cid")
    with pytest.raises(DrivetrainError, match="lacks nothing"):
        world.promote(proposal.number, "dee", override=True, reason="fire")


def test_a_rollback_restores_what_was_live_before() -> None:
    world = team_world()
    snapshots = [world.live.snapshot, world.release().snapshot, world.release().snapshot]
    releasing.roll_back(world.desk("bob"), None, "worse")
    assert (world.live.release, world.live.snapshot, world.live.way) == (4, snapshots[1], "rollback")
    releasing.roll_back(world.desk("bob"), None, "still worse")
    assert world.live.snapshot == snapshots[0]
    with pytest.raises(DrivetrainError, match="no Release before"):
        releasing.roll_back(world.desk("bob"), None, "and on")
    with pytest.raises(DrivetrainError, match="restores what is live"):
        releasing.roll_back(world.desk("bob"), 1, "again")
    with pytest.raises(DrivetrainError, match="never live"):
        releasing.roll_back(world.desk("bob"), 9, "further")
    releasing.roll_back(world.desk("bob"), 3, "forth")
    assert world.live.snapshot == snapshots[2]


def test_a_rollback_restores_nothing_that_was_never_live() -> None:
    world = team_world()
    forged = ReleaseV1(
        number=2, environment=ENV, way="rollback", snapshot="f" * 64, previous=1, by="ann", restores=1, reason="x"
    )
    world.force(forged)
    assert world.live.release == 1
    assert "not what Release 1 was" in world.refused()


def test_a_rollout_goes_through_its_stages_and_then_is_live() -> None:
    world = team_world()
    before = world.live.snapshot
    proposal = world.propose()
    world.approve(proposal.number, "bob", "cid")
    world.promote(proposal.number, rolled=in_stages)
    active = world.live.active
    assert active is not None
    assert (active.release, active.share_ppm, active.snapshot) == (2, 50_000, proposal.snapshot)
    assert (world.live.release, world.live.snapshot) == (1, before)
    for event, why in (
        (event_of(2, "completed"), "not the last"), (event_of(2, "stage", 0), "does not follow"),
        (event_of(2, "stage", 2), "does not follow"), (event_of(1, "aborted"), "no rollout of Release 1"),
        (event_of(2, "resumed"), "not paused"), (event_of(2, "jumped"), "no event"),
    ):  # fmt: skip
        world.force(event)
        assert why in world.refused()
    record_event(world.log, ENV, event_of(2, "paused", by="bob"))
    world.force(event_of(2, "stage", 1))
    assert "paused" in world.refused()
    assert world.live.active is not None
    assert world.live.active.paused
    record_event(world.log, ENV, event_of(2, "resumed", by="bob"))
    record_event(world.log, ENV, event_of(2, "stage", 1))
    assert world.live.active is not None
    assert world.live.active.share_ppm == 500_000
    assert world.live.active.stage_ns > world.live.active.started_ns
    record_event(world.log, ENV, event_of(2, "completed"))
    assert (world.live.release, world.live.snapshot, world.live.active) == (2, proposal.snapshot, None)
    assert [one.state for one in world.state.releases.values()] == ["retired", "live"]


def test_an_aborted_rollout_leaves_what_was_live() -> None:
    world = team_world()
    proposal = world.propose()
    world.approve(proposal.number, "bob", "cid")
    world.promote(proposal.number, rolled=in_stages)
    record_event(world.log, ENV, event_of(2, "aborted"))
    assert (world.live.release, world.live.active) == (1, None)
    assert world.state.releases[2].state == "aborted"
    assert not world.state.releases[2].since_ns
    with pytest.raises(DrivetrainError, match="never live"):
        releasing.roll_back(world.desk("ann"), 2, "try it")


def test_one_rollout_at_a_time() -> None:
    world = team_world()
    first, second = world.propose(), world.propose()
    for one in (first, second):
        world.approve(one.number, "bob", "cid")
    world.promote(first.number, rolled=in_stages)
    with pytest.raises(DrivetrainError, match="rollout of Release 2 is under way"):
        world.promote(second.number)


def test_going_back_to_an_earlier_release_ends_the_rollout() -> None:
    world = team_world()
    world.release()
    proposal = world.propose()
    world.approve(proposal.number, "bob", "cid")
    world.promote(proposal.number, rolled=in_stages)
    releasing.roll_back(world.desk("ann"), 1, "both are bad")
    assert (world.live.release, world.live.active) == (4, None)
    assert world.state.releases[3].state == "aborted"


def test_a_rollout_that_no_worker_could_follow_does_not_count() -> None:
    world = team_world()
    proposal = world.propose()
    world.approve(proposal.number, "bob", "cid")
    for stages in ((), (StageV1(share_ppm=9, minutes=1), StageV1(share_ppm=5, minutes=1))):
        bad = msgspec.structs.replace(STAGES, stages=stages)
        world.force(release_of(world.state, proposal, "ann", rollout=bad))
        assert world.live.active is None
        assert "stages" in world.refused()


def test_records_that_are_not_what_they_say_are_told_and_ignored() -> None:
    world = team_world()
    proposal = world.propose()
    world.approve(proposal.number, "bob")
    world.force(approval_of(proposal, "cid"), actor="mallory")
    assert "its actor is not what its body says" in world.refused()
    world.force(approval_of(proposal, "cid"), subject=f"{ENV}/7")
    world.log.append(kind="release.promoted", actor="ann", subject=f"{ENV}/2", body={"type": "release.1"})
    assert "cannot be read" in world.refused()
    assert world.live.release == 1
    assert len(world.live.refused) == 3
    world.force(approval_of(proposal, "cid"), subject="staging/2")
    assert len(world.live.refused) == 3, "another environment's records are not this one's"


def test_environments_do_not_mix() -> None:
    world = team_world()
    assert live(world.log.kept, "staging").release == 0


def test_what_was_live_at_a_time() -> None:
    world = team_world()
    first_ns = world.live.since_ns
    world.release()
    second_ns = world.live.since_ns
    assert read_at(world.log.kept, ENV, first_ns - 1).live.release == 0
    assert read_at(world.log.kept, ENV, second_ns - 1).live.release == 1
    assert read_at(world.log.kept, ENV, second_ns).live.release == 2
