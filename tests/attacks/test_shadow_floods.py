"""A shadow that cannot keep up, behind a real gateway: callers feel nothing, what is lost is counted and shown, and
nothing grows without bound."""

from __future__ import annotations

import contextlib
import http.client
import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from rollout_world import CANARIES, SHADOW, Callers, Rolled, heard, rolled

from drivetrain.core.calls import Attribution, Call
from drivetrain.core.releases import ActiveRollout, GuardV1, RolloutV1, StageV1
from drivetrain.embedded.releasing import place_of
from drivetrain.embedded.rollouts import steer
from drivetrain.embedded.shadow_calls import RUNNING_MAX, WAITING_MAX
from drivetrain.embedded.upgrading import Upgrading, Wanted
from drivetrain.evals.upgrading.verdict import Asked
from drivetrain.promotion.watching import Step, Watch
from promises.promise_gateway import eventually

FLOOD_S = 1.5
GROWN_BYTES_MAX = 24 * 1024 * 1024
"""Of all processes, beyond what they had before: a thousand copies of these requests are half a megabyte."""
LARGE_BYTES = 60 * 1024 * 1024
IN_SOCKET_MAX = 2_000
"""Copies of these sizes in the kernel, and in the files of processes that publish twice a second."""
BROKE = msgspec.structs.replace(SHADOW, shadow_nano_usd_per_day=1_000_000)
"""For some six Calls."""


@pytest.fixture(scope="module")
def world() -> Iterator[Rolled]:
    with rolled(gateway_settings="body_bytes_max = 134217728\n", ledger='retention = "full"\n') as found:
        yield found


def memory(world: Rolled) -> int:
    """Resident bytes of the workers and of the shadow; the least of a few looks, since other processes come and go."""

    def now() -> int:
        pids = (*world.served.worker_pids, *world.beside("shadowing"))
        told = [re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids]
        return sum(int(one[1]) * 1024 for one in told if one is not None)

    found = []
    for _ in range(3):
        with contextlib.suppress(FileNotFoundError):
            found.append(now())
        time.sleep(0.05)
    return min(found)


@contextlib.contextmanager
def shadowed(world: Rolled, stage: StageV1) -> Iterator[None]:
    """A rollout with this shadow, aborted with the block."""
    world.roll(stage, *CANARIES, guards=())
    try:
        assert world.serves(0), world.served.stderr
        assert eventually(lambda: world.beside("shadowing"))
        yield
    finally:
        steer(place_of(world.served.root), "aborted", "the next attack")
        world.doing.hung.set()
    assert eventually(lambda: not world.beside("shadowing")), "the shadow outlives its stage"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["hanging", "broke"])
def test_a_flooded_shadow_costs_copies_and_nothing_else(world: Rolled, way: str) -> None:
    doing = world.doing
    if way == "hanging":
        doing.hung.clear()
    seen = len(world.calls(shadow=True))
    with shadowed(world, BROKE if way == "broke" else SHADOW):
        before = world.copies()
        with Callers(world.served.port, at_once=2):
            assert eventually(lambda: len(world.calls(shadow=True)) > seen, every_s=0.1), world.served.stderr
        begun = memory(world)
        with Callers(world.served.port, at_once=12, pause_s=0.002) as callers:
            time.sleep(FLOOD_S)
            grown = memory(world) - begun
        running = [one for one in world.calls(shadow=True)[seen:] if not one.closed_ns]
        asked = before["sent"] + before["unsent"] + len(callers.heard)
        assert eventually(lambda: world.copies()["sent"] + world.copies()["unsent"] >= asked), "some were not counted"
        found = world.status()
    assert {(one.status, one.text) for one in callers.heard} == {(200, "live")}
    assert grown < GROWN_BYTES_MAX, grown
    copies = {name: number - before[name] for name, number in found["copies"].items()}
    ended = copies["answered"] + copies["failed"]
    assert copies["lost"] == copies["unsent"] + copies["late"] + copies["unaffordable"]
    assert copies["lost"] > 0
    assert copies["open"] <= WAITING_MAX + RUNNING_MAX + IN_SOCKET_MAX
    if way == "hanging":
        assert not ended
        assert len(running) == RUNNING_MAX, "one that hangs is not waited for by the others"
    if way == "broke":
        assert ended < 20
        assert copies["unaffordable"] > ended


@pytest.mark.slow
def test_a_prompt_of_60_mb_is_answered_not_copied_and_left_out_of_an_upgrade(world: Rolled) -> None:
    with shadowed(world, SHADOW):
        before = world.copies()
        connection = http.client.HTTPConnection("127.0.0.1", world.served.port, timeout=60)
        large = heard(connection, "anna", "x y " * (LARGE_BYTES // 4))
        for number in range(55):
            assert heard(connection, f"user-{number}", f"short {number}").status == 200
        connection.close()
        assert (large.status, large.text) == (200, "live")
        assert eventually(lambda: world.copies()["unsent"] > before["unsent"])
    world.served.stop()
    done = Upgrading(Wanted(workflow="help", candidate="raw/candidate", rows=60), Asked(), world.served.root).run()
    assert len(done.pairs) >= 40
    (told,) = [one for one in done.upgrade.warnings if "are left out" in one and "4,194,304 bytes" in one]
    assert told.startswith("1 Calls"), told
    assert any(len(one.request) > LARGE_BYTES for one in world.calls(shadow=False)), "the ledger has lost it"


def test_a_shadow_that_has_answered_nobody_goes_on_to_nobody() -> None:
    """Few Calls fail that hang for a minute each: too few to break a guard, and yet no reason to go on."""
    _, step = watched([("failed", "deadline_exceeded")] * 4)
    assert step is None
    watch, _ = watched([("failed", "deadline_exceeded")] * 4)
    assert "evidence: the candidate has answered nobody" in watch.waits(NOW_NS)
    _, step = watched([("failed", "deadline_exceeded")] * 3 + [("answered", "")] * 30)
    assert step is not None
    assert step.event == "stage"


def test_what_fails_in_the_shadows_own_process_is_not_the_candidates() -> None:
    watch, step = watched([("failed", "limits_unavailable")] * 100 + [("answered", "")] * 30)
    assert step is not None
    assert step.event == "stage"
    assert watch.standing(NOW_NS).calls_candidate == 30
    _, step = watched([("failed", "upstream_error")] * 100 + [("answered", "")] * 30)
    assert step is not None
    assert step.event == "aborted"


NOW_NS = 3_600_000_000_000
LIVE, CANDIDATE = "a" * 64, "b" * 64


def watched(ended: list[tuple[str, str]]) -> tuple[Watch, Step | None]:
    """A shadow's stage whose minutes are over: what its Calls ended with, beside 1,000 live ones."""
    rollout = RolloutV1(id="0" * 16, stages=(SHADOW, *CANARIES), guards=(GuardV1(watch="errors"),))
    rollout = msgspec.structs.replace(rollout, stages=(msgspec.structs.replace(SHADOW, minutes=5.0), *CANARIES))
    active = ActiveRollout(
        release=2, snapshot=CANDIDATE, workflows=("help",), rollout=rollout, stage=0, stage_ns=1, started_ns=1
    )
    watch = Watch(active, LIVE)
    for number in range(1_000):
        watch.see(call(number, "chat", "answered", ""))
    for number, (status, error) in enumerate(ended):
        watch.see(call(number, "shadow", status, error))
    return watch, watch.look(NOW_NS)


def call(number: int, door: str, status: str, error: str) -> Call:
    return Call(
        call_id=f"{door}-{number}", opened_ns=2, closed_ns=3, snapshot=(CANDIDATE if door == "shadow" else LIVE)[:16],
        workflow="help", door=door, stream=False, attribution=Attribution(user=f"u{number}"), status=status,
        error=error,
    )  # fmt: skip
