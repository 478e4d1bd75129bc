"""Whatever anybody appends to the log, nothing is live that lacks its approvals or its gates.

The check is independent of the fold: it counts in the raw records what each Release that was live needed.
"""

from __future__ import annotations

import random

import msgspec
import pytest
from release_world import (
    ENV,
    GATE,
    PROVED,
    TEAM,
    World,
    approval_of,
    event_of,
    release_of,
    withdrawal_of,
)

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import (
    ASPECTS,
    ApprovalRuleV1,
    ApprovalV1,
    ChangeV1,
    PersonV1,
    ProposalV1,
    ReleaseV1,
    RolloutV1,
    RulesV1,
    StageV1,
)
from drivetrain.promotion import releasing
from drivetrain.promotion.state import read

pytestmark = pytest.mark.slow

SEEDS = 120
STEPS = 60
NAMES = ("ann", "bob", "cid", "dee", "mallory")
STAGES = RolloutV1(id="0" * 16, stages=(StageV1(share_ppm=50_000, minutes=1), StageV1(share_ppm=500_000, minutes=1)))


def some_rules(dice: random.Random) -> RulesV1:
    roles = ("lead", "risk", "oncall")
    people = tuple(
        PersonV1(name=name, roles=tuple(dice.sample(roles, dice.randint(0, 2))))
        for name in NAMES[: dice.choice((0, 4))]
    )
    approvals = tuple(
        ApprovalRuleV1(
            aspect=dice.choice(("any", "policy", "prompts")),
            number=dice.randint(1, 2),
            roles=tuple(dice.sample(roles, dice.randint(0, 1))) if people else (),
            workflows=dice.choice(((), ("refund",))),
        )
        for _ in range(dice.randint(0, 2))
    )
    return RulesV1(people=people, approvals=approvals, override_roles=("oncall",), gates=dice.random() < 0.8)


def some_changes(dice: random.Random) -> tuple[ChangeV1, ...]:
    return tuple(
        ChangeV1(workflow=dice.choice(("refund", "triage", "")), aspect=dice.choice(ASPECTS), what="x")
        for _ in range(dice.randint(1, 3))
    )


def one_step(world: World, dice: random.Random) -> None:
    """Something that somebody does, often past the commands, and often what they may not."""
    state = world.state
    proposals = [one.proposal for one in state.proposals.values()]
    by, act = dice.choice(NAMES), dice.random()
    if not proposals or act < 0.15:
        plan = {"rules": some_rules(dice), "changes": some_changes(dice)}
        world.propose(by, evidence=dice.choice(((), (GATE,), (PROVED,))), **plan)
    elif act < 0.5:
        body = approval_of(dice.choice(proposals[-3:]), by)
        forged = msgspec.structs.replace(body, proposal_hash="0" * 64) if dice.random() < 0.1 else body
        world.force(forged, actor=dice.choice((by, by, by, "bob")))
    elif act < 0.55:
        world.force(withdrawal_of(dice.choice(proposals[-3:]), by))
    elif act < 0.85:
        proposal = dice.choice(proposals[-3:])
        more: dict[str, object] = {"evidence": dice.choice(((), (PROVED,), (GATE,)))}
        if dice.random() < 0.2:
            more |= dice.choice(
                (
                    {"way": "override", "reason": "fire", "lacks": ("all of it",)},
                    {"snapshot": "f" * 64}, {"previous": 0}, {"number": 1}, {"proposal_hash": "0" * 64},
                )
            )  # fmt: skip
        if dice.random() < 0.3:
            more["rollout"] = STAGES
        world.force(release_of(state, proposal, by, **more))
    elif act < 0.9 and state.live.release:
        releasing.roll_back(world.desk(by), dice.choice((None, 1, 2)), "worse")
    elif state.live.active is not None:
        event = dice.choice(("stage", "stage", "completed", "completed", "aborted"))
        world.force(event_of(state.live.active.release, event, state.live.active.stage + 1))


def needed(world: World, release: ReleaseV1, rules: RulesV1) -> list[str]:
    """What a promoted Release lacked, counted in the raw records."""
    bodies = [(record.kind, record.actor, record.body) for record in world.log.kept]
    proposal = next(
        body
        for kind, _, raw in bodies
        if kind == "release.proposed"
        and (body := msgspec.json.decode(raw, type=ProposalV1)).hash == release.proposal_hash
    )
    roles = {one.name: set(one.roles) for one in rules.people}
    approvers = {
        body.by
        for kind, actor, raw in bodies
        if kind == "release.approved"
        and (body := msgspec.json.decode(raw, type=ApprovalV1)).proposal_hash == release.proposal_hash
        and actor == body.by != proposal.by
        and (not roles or body.by in roles)
    }
    lacks = []
    for rule in rules.approvals:
        touched = [
            one
            for one in proposal.changes
            if rule.aspect in {"any", one.aspect} and (not rule.workflows or one.workflow in rule.workflows)
        ]
        able = {name for name in approvers if not rule.roles or roles.get(name, set()) & set(rule.roles)}
        if touched and len(able) < rule.number:
            lacks.append(f"{rule} has only {able}")
    if rules.gates and proposal.evidence and not any(one.report for one in (*release.evidence, *proposal.evidence)):
        lacks.append("no Report")
    if roles and not {release.by, proposal.by} <= set(roles):
        lacks.append("a stranger")
    return lacks


@pytest.mark.timeout(120)
def test_nothing_is_live_that_lacks_something() -> None:
    promoted = refused = overridden = 0
    for seed in range(SEEDS):
        dice = random.Random(seed)
        world = World(TEAM if seed % 2 else some_rules(dice))
        for _ in range(STEPS):
            try:
                one_step(world, dice)
            except DrivetrainError:
                continue
        state = world.state
        refused += len(state.live.refused)
        rules, live = None, [one for one in state.releases.values() if one.since_ns]
        for one in sorted(live, key=lambda one: one.since_ns):
            made = one.release
            if made.way == "rollback":
                continue
            proposal = state.proposals[made.proposal].proposal
            lacks = needed(world, made, proposal.rules if rules is None else rules)
            if made.way == "promote":
                assert not lacks, f"seed {seed}: Release {made.number} lacks {lacks}"
                promoted += 1
            else:
                holders = {person.name for person in (rules or proposal.rules).people if "oncall" in person.roles}
                assert made.by in holders, f"seed {seed}: {made.by} overrode"
                overridden += 1
            rules = proposal.rules
        assert read(world.log.kept, ENV) == state, f"seed {seed}: another reading, another state"
    assert promoted > SEEDS, "a world in which nothing is released proves nothing"
    assert refused > SEEDS * 5
    assert overridden
