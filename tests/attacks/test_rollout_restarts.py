"""A gateway that is ended and started again while a rollout is under way: whose the answers are, what is counted, and
that no guard blames the candidate for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rollout_world import CANARIES, GUARDS, ID, SHADOW, Callers, Heard, Rolled, rolled

from drivetrain.core.calls import Attribution, ClosedV1, OpenedV1, Stored
from drivetrain.core.ids import call_ids
from drivetrain.core.releases import RolloutV1, StageV1
from drivetrain.embedded.releasing import ReleasePlace, live_of, place_of, state_of
from drivetrain.embedded.rollouts import standing_of, steer, told_by
from drivetrain.embedded.watching import Watching
from drivetrain.gateway.arms import is_candidates
from promises.promise_gateway import eventually
from support.records import write
from support.rollouts import CANDIDATE, LIVE, placed, release

SHARE_PPM = CANARIES[0].share_ppm
LASTS_S = 1.0
"""Of traffic before, between and after."""
NEXT_ID = call_ids(time.time_ns)


def rolled_out(root: Path, stage: StageV1) -> ReleasePlace:
    place = placed(root)
    release(place, CANDIDATE, RolloutV1(id=ID, stages=(stage, CANARIES[-1]), guards=GUARDS))
    return place


def traffic(count: int, *, door: str = "chat", cut: bool = False) -> Iterator[Stored]:
    """Calls of both arms, one of five the candidate's; cut: those of the candidate never end."""
    for number in range(count):
        candidate = number % 5 == 0
        call_id, now_ns = NEXT_ID(), time.time_ns()
        by, snapshot = (door, CANDIDATE) if candidate else ("chat", LIVE)
        yield OpenedV1(call_id, now_ns, snapshot[:16], "triage", by, False, Attribution(user=f"u{number}"))
        if not (candidate and cut):
            yield ClosedV1(call_id, now_ns + 1_000_000, "answered", 200, "small", 1_000)


def is_under_way(place: ReleasePlace) -> bool:
    return live_of(place.root).active is not None


@pytest.mark.parametrize("door", ["chat", "shadow"])
def test_what_a_watcher_did_not_see_end_is_no_evidence(tmp_path: Path, door: str) -> None:
    """The gateway was killed, and its watcher with it."""
    place = rolled_out(tmp_path, CANARIES[0] if door == "chat" else SHADOW)
    before = Watching(place)
    write(place.data_folder, *traffic(200, door=door))
    before.look()
    write(place.data_folder, *traffic(200, door=door, cut=True))
    after = Watching(place)
    for _ in range(3):
        assert after.look()
    told = told_by(place.data_folder / "run")
    assert told is not None
    assert (told.standing.calls_live, told.standing.calls_candidate) == (320, 40)
    assert [round(one.log_evidence, 9) for one in told.standing.findings] == [0.0]
    assert is_under_way(place)
    now = standing_of(place, state_of(place), time.time_ns())
    assert now is not None
    assert now.findings == told.standing.findings, "who asks is told what the watcher sees"


def test_a_worker_that_dies_beside_its_watcher_counts_one_look_later(tmp_path: Path) -> None:
    place = rolled_out(tmp_path, CANARIES[0])
    watching = Watching(place)
    watching.look()
    write(place.data_folder, *traffic(400, cut=True))
    watching.look()
    assert is_under_way(place), "whatever ended the whole gateway has ended the watcher by the next look"
    watching.look()
    assert not is_under_way(place)


def test_a_shadow_that_dies_is_one_failure_whatever_it_ran(tmp_path: Path) -> None:
    place = rolled_out(tmp_path, SHADOW)
    watching = Watching(place)
    watching.look()
    write(place.data_folder, *traffic(200, door="shadow"))
    for deaths in (1, 2):
        write(place.data_folder, *traffic(100, door="shadow", cut=True))
        watching.look()
        watching.look()
        told = told_by(place.data_folder / "run")
        assert told is not None
        assert told.standing.calls_candidate == 40 + deaths
        assert told.standing.findings[0].comparison.hit_candidate == 1, "the same user each time"
    assert is_under_way(place)


@pytest.fixture(scope="module")
def world() -> Iterator[Rolled]:
    """A candidate that takes fifty times as long: of what a kill cuts, most is the candidate's."""
    with rolled() as found:
        found.doing.takes_s["candidate"] = 0.5
        found.roll(SHADOW, *CANARIES)
        assert eventually(lambda: found.beside("shadowing") and found.beside("watching"))
        yield found


def end(world: Rolled, how: str) -> None:
    """The gateway is ended, and started again where it has."""
    if how == "kill":
        world.served.kill()
    elif how == "term":
        assert world.served.stop() == 0
    else:
        for pid in (world.served.pid, *world.served.worker_pids):
            os.kill(pid, signal.SIGHUP)
    if not world.served.alive:
        world.served.start()


def restarted(world: Rolled, share_ppm: int, *ways: str) -> list[Heard]:
    """What callers heard before, while and after it; who asked while nobody listened asked again."""
    with Callers(world.served.port, at_once=16) as callers:
        time.sleep(LASTS_S)
        for how in ways:
            before = world.beside("watching")
            end(world, how)
            assert world.serves(share_ppm), world.served.stderr
            assert eventually(lambda: world.beside("watching")), world.served.stderr
            assert (before == world.beside("watching")) == (how == "hup")
            time.sleep(LASTS_S)
    assert {one.status for one in callers.heard} <= {0, 200}
    return [one for one in callers.heard if one.status]


def stands(world: Rolled, stage: int) -> None:
    """The rollout goes on, nothing is against the candidate, and both arms are counted whole."""
    live = live_of(world.served.root)
    assert live.active is not None, world.served.stderr
    assert (live.active.stage, live.refused) == (stage, ())
    since_ns = live.active.stage_ns
    # Copies that still waited for the shadow when the canary began are of no arm.
    arms = {
        name: len([
            one for one in world.calls(shadow=shadow)
            if one.opened_ns >= since_ns and one.status == "answered" and one.snapshot == snapshot.short_hash
        ])
        for name, snapshot, shadow in (("live", world.live, False), ("candidate", world.candidate, stage == 0))
    }  # fmt: skip

    def counted() -> bool:
        told = told_by(world.run_folder)
        if told is None or told.standing.stage != stage:
            return False
        found = told.standing
        return found.calls_live >= arms["live"] > 0 and found.calls_candidate >= arms["candidate"] > 0

    assert eventually(counted), (arms, told_by(world.run_folder))
    told = told_by(world.run_folder)
    assert told is not None
    assert [one.log_evidence < 1.0 for one in told.standing.findings] == [True]


@pytest.mark.slow
def test_a_shadow_comes_back_after_a_kill_and_is_not_blamed(world: Rolled) -> None:
    began_ns = time.time_ns()

    def goes_on() -> bool:
        with Callers(world.served.port, at_once=1):
            time.sleep(0.2)
        return any(one.opened_ns > began_ns and one.status == "answered" for one in world.calls(shadow=True))

    assert eventually(goes_on), world.served.stderr
    heard = restarted(world, 0, "kill")
    assert {one.text for one in heard} == {"live"}
    assert [one for one in world.calls(shadow=True) if one.status == "interrupted"], "nothing was cut"
    began_ns = time.time_ns()
    assert eventually(goes_on), world.served.stderr
    stands(world, 0)


@pytest.mark.slow
def test_arms_stay_over_every_restart_and_a_canary_is_not_blamed(world: Rolled) -> None:
    active = live_of(world.served.root).active
    assert active is not None
    if active.stage == 0:
        steer(place_of(world.served.root), "stage", "the shadow did well")
    assert world.serves(SHARE_PPM), world.served.stderr
    heard = restarted(world, SHARE_PPM, "hup", "term", "kill")
    assert {(one.user, one.text) for one in heard} == {
        (one.user, "candidate" if is_candidates(ID, one.user, SHARE_PPM) else "live") for one in heard
    }
    assert {one.text for one in heard} == {"candidate", "live"}
    active = live_of(world.served.root).active
    assert active is not None
    for call in world.calls(shadow=False):
        if call.opened_ns > active.stage_ns + 1_000_000_000:  # workers follow within a second
            mine = world.candidate if is_candidates(ID, call.attribution.user, SHARE_PPM) else world.live
            assert call.snapshot == mine.short_hash, call
    stands(world, 1)
