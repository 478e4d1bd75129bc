"""Who has a key counts only with its signature, and a signature stands for one thing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from release_world import POLICY, TEAM, World, approval_of, release_of, withdrawal_of

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import PersonV1, RulesV1
from drivetrain.promotion.signing import PersonKey, make_key, read_key


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, PersonKey]:
    return {name: make_key(tmp_path / f"{name}.pem") for name in ("bob", "cid", "eve")}


def signed_world(keys: dict[str, PersonKey]) -> World:
    """Release 1 is live; bob and cid, who approve policies, have keys."""
    people = [
        PersonV1(name=one.name, roles=one.roles, key=keys[one.name].public if one.name in ("bob", "cid") else "")
        for one in TEAM.people
    ]
    rules = RulesV1(people=tuple(people), approvals=TEAM.approvals, override_roles=TEAM.override_roles)
    world = World(rules, {name: keys[name] for name in ("bob", "cid")})
    world.release()
    return world


def test_an_approval_without_the_signature_does_not_count(keys: dict[str, PersonKey]) -> None:
    world = signed_world(keys)
    proposal = world.propose()
    world.approve(proposal.number, "bob")
    world.force(approval_of(proposal, "cid"))
    assert "`cid` has a key and must sign" in world.refused()
    unsigned = approval_of(proposal, "cid")
    world.force(msgspec.structs.replace(unsigned, signature=keys["eve"].signature(unsigned)))
    assert "not signed with the key of `cid`" in world.refused()
    world.force(msgspec.structs.replace(unsigned, signature="AAAA"))
    world.force(release_of(world.state, proposal, "ann"))
    assert world.live.release == 1
    world.approve(proposal.number, "cid")
    assert world.promote(proposal.number).number == world.live.release == 2


def test_a_signature_is_of_one_proposal_and_of_one_act(keys: dict[str, PersonKey]) -> None:
    world = signed_world(keys)
    first, second = world.propose(), world.propose()
    world.approve(first.number, "bob", "cid")
    taken = world.state.proposals[first.number].approvals[0].signature
    world.force(msgspec.structs.replace(approval_of(second, "bob"), signature=taken))
    assert "not signed" in world.refused()
    withdrawal = withdrawal_of(second, "bob")
    given = keys["bob"].signature(withdrawal)
    world.force(msgspec.structs.replace(approval_of(second, "bob"), signature=given))
    assert not world.state.proposals[second.number].approvals


def test_an_edited_reason_is_not_what_was_signed(keys: dict[str, PersonKey]) -> None:
    world = signed_world(keys)
    proposal = world.propose()
    said = approval_of(proposal, "bob")
    signed = msgspec.structs.replace(said, signature=keys["bob"].signature(said))
    world.force(msgspec.structs.replace(signed, reason="I checked all of it"))
    assert not world.state.proposals[proposal.number].approvals
    world.force(signed)
    assert len(world.state.proposals[proposal.number].approvals) == 1


def test_nobody_promotes_in_the_name_of_who_has_a_key(keys: dict[str, PersonKey]) -> None:
    world = signed_world(keys)
    proposal = world.propose(changes=(msgspec.structs.replace(POLICY[0], aspect="prompts"),))
    world.force(release_of(world.state, proposal, "bob"))
    assert world.live.release == 1
    assert "must sign" in world.refused()


def test_a_key_that_nobody_declared_is_nobodys(keys: dict[str, PersonKey]) -> None:
    world = signed_world(keys)
    world.keys = {"eve": keys["eve"]}
    with pytest.raises(DrivetrainError, match="of nobody whom the rules in force know"):
        world.propose("eve")


def test_the_key_says_who_somebody_is(keys: dict[str, PersonKey]) -> None:
    world = signed_world(keys)
    world.keys = {"root": keys["bob"]}
    assert world.propose("root").by == "bob"


def test_a_key_file_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "me.pem"
    made = make_key(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_key(file).public == made.public
    with pytest.raises(DrivetrainError, match="never written over"):
        make_key(file)
    file.chmod(0o640)
    with pytest.raises(DrivetrainError, match="Others may read"):
        read_key(file)
    other = tmp_path / "other.pem"
    other.write_text("no key", encoding="utf-8")
    other.chmod(0o600)
    with pytest.raises(DrivetrainError, match="holds no Ed25519 key"):
        read_key(other)
