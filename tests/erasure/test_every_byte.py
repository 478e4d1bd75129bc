"""After an erasure nothing of a person stands in any file of the data folder, while a gateway serves."""

from __future__ import annotations

import json
import threading

import pytest
from erasure_world import HER, HIM, World, needles, planted, project

from drivetrain.core.errors import DrivetrainError
from support import wire

PLAIN = ("order", "label", "late", "tag", "page", "note", "city", "mail", "badmail", "prompt", "answer")
"""What stands somewhere in plain; what was asked and answered does so in a Dataset made of Calls."""


@pytest.mark.slow
def test_nothing_of_a_person_is_left_and_everything_else_is() -> None:
    with project() as world:
        world.fill(HER, HIM, rolled=True)
        world.fill(HER, HIM)
        before, kept = world.totals(), world.left(needles(HIM))
        there = world.left(needles(HER))
        assert {name.partition("/")[0] for name in there} == {"calls", "lake", "limits", "online"}
        assert {text for texts in there.values() for text in texts} == {
            HER, *(planted(HER)[one] for one in PLAIN)
        }, "what the search can find before is what it proves to be gone"  # fmt: skip
        stop, failed = threading.Event(), []

        def ask() -> None:
            lake = world.lake
            while not stop.is_set():
                try:
                    assert lake.query("SELECT count(*), sum(cost_nano_usd) FROM calls").rows == before["calls_of"]
                except (DrivetrainError, AssertionError) as error:
                    failed.append(error)
                    return

        before["calls_of"] = world.lake.query("SELECT count(*), sum(cost_nano_usd) FROM calls").rows
        reader = threading.Thread(target=ask)
        reader.start()
        told = json.loads(world.erase("--subject", HER, "--yes", "--json").stdout)
        stop.set()
        reader.join()
        assert not failed, failed
        del before["calls_of"]
        assert world.left(needles(HER)) == {}
        assert world.totals() == before
        assert {text for texts in kept.values() for text in texts} == {
            text for texts in world.left(needles(HIM)).values() for text in texts
        }
        places = told["places"]
        assert (places["calls"], places["keys"] > 0, places["outcomes"]) == (5 + world.refused[HER], True, 6)
        assert places["pushed"] == {"clicks": 4, "bought": 2}
        assert places["datasets"] == {"dataset:people@1": 1, "dataset:people@2": 1, "dataset:asked@1": 1}
        assert places["quarantined"] == {"dataset:people@1": 1, "dataset:people@2": 1}
        assert told["elsewhere"]["models"] == ["model:triage@14"]
        assert [world.verified(one) for one in ("people@1", "people@2", "asked@1")] == [(), (), ()]
        assert world.control.verify().whole
        still_serves(world)


def still_serves(world: World) -> None:
    body = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}
    assert world.patience.answer(lambda: wire.one(world.gateway.port, wire.request(body))).status == 200
    assert not world.gateway.faults, world.gateway.faults
