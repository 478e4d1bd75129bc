"""Steps of a rollout that a person with a key did not take: unsigned, another's, replayed, spelled anew."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest

from drivetrain.core.releases import PersonV1, RolloutEventV1, RolloutV1, RulesV1, StageV1
from drivetrain.promotion.rollouts import record_event
from drivetrain.promotion.signing import PersonKey, make_key
from promotion.release_world import ENV, World

ID = "0123456789abcdef"
STAGES = tuple(StageV1(share_ppm=share, minutes=1) for share in (50_000, 500_000))


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, PersonKey]:
    return {name: make_key(tmp_path / name) for name in ("ann", "bob")}


@pytest.fixture
def world(keys: dict[str, PersonKey]) -> World:
    """A canary is under way; `ann` and `bob` have keys, `cid` has none."""
    people = tuple(PersonV1(name=name, key=key.public) for name, key in keys.items())
    made = World(RulesV1(people=(*people, PersonV1(name="cid"))), keys)
    made.release(approvers=())
    made.propose()
    made.promote(2, rolled=lambda _: RolloutV1(id=ID, stages=STAGES))
    assert made.live.active is not None
    return made


def event(by: str, what: str = "paused", *, stage: int = 0, rollout: str = ID, why: str = "x") -> RolloutEventV1:
    return RolloutEventV1(
        environment=ENV, release=2, event=what, stage=stage, by=by, verdict=why, rollout=rollout
    )  # fmt: skip


def signed(body: RolloutEventV1, key: PersonKey) -> RolloutEventV1:
    return msgspec.structs.replace(body, signature=key.signature(body))


def test_who_has_a_key_steers_with_it(world: World, keys: dict[str, PersonKey]) -> None:
    record_event(world.log, ENV, event("ann"), keys["ann"])
    assert world.live.active is not None
    assert world.live.active.paused
    record_event(world.log, ENV, event("cid", "resumed"))
    assert not world.live.active.paused
    assert world.live.refused == ()


@pytest.mark.parametrize("what", ["paused", "aborted", "stage"])
def test_what_a_person_with_a_key_did_not_sign_is_not_done(world: World, keys: dict[str, PersonKey], what: str) -> None:
    body = event("ann", what, stage=1 if what == "stage" else 0)
    before = world.live.active
    world.force(body)
    assert "must sign" in world.refused()
    world.force(signed(body, keys["bob"]))
    assert "not signed with the key of `ann`" in world.refused()
    world.force(msgspec.structs.replace(signed(body, keys["ann"]), verdict="another reason"))
    assert "not signed with the key of `ann`" in world.refused()
    assert world.live.active == before


def test_a_step_that_was_signed_is_taken_once(world: World, keys: dict[str, PersonKey]) -> None:
    resumed = signed(event("ann", "resumed", why="it was nothing"), keys["ann"])
    world.force(signed(event("bob"), keys["bob"]))
    world.force(resumed)
    world.force(signed(event("bob", why="again"), keys["bob"]))
    assert world.live.active is not None
    assert world.live.active.paused
    world.force(resumed)
    assert "counts once" in world.refused()
    world.force(msgspec.structs.replace(resumed, signature=spelled_anew(resumed.signature)))
    assert world.live.active.paused, "another spelling of the signature is the same signature"


def spelled_anew(signature: str) -> str:
    """The same 64 bytes as other base64: the bits behind the last byte are not looked at."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = signature[-3]
    other = signature[:-3] + alphabet[alphabet.index(last) ^ 1] + "=="
    assert base64.b64decode(other, validate=True) == base64.b64decode(signature)
    return other


def test_a_step_of_another_rollout_is_not_taken(world: World, keys: dict[str, PersonKey]) -> None:
    """Of another project, where the same people have the same keys and the numbers are the same."""
    world.force(signed(event("ann", "stage", stage=1, rollout="f" * 16), keys["ann"]))
    assert "another rollout" in world.refused()
    world.force(signed(event("ann", "stage", stage=1, rollout=""), keys["ann"]))
    assert "another rollout" in world.refused()
    assert world.live.active is not None
    assert world.live.active.stage == 0
