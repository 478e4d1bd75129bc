"""Outcomes from Python: on disk on return, from any thread, with the mistakes that HTTP would find."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from outcomes_world import World, call_id

from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.outcomes import record_outcome, record_outcomes
from drivetrain.ledger.frames import is_locked, segments
from drivetrain.ledger.reader import LedgerReader

pytestmark = pytest.mark.slow


def test_one_and_several(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)
    when = datetime(2026, 1, 2, tzinfo=UTC)
    record_outcome(call_id=call_id(1), metric="ok", value=True, event_time=when)
    said = record_outcomes([{"workflow": "refund", "key": 7, "metric": "stars", "value": 3, "source": "desk"}])
    assert (said.new, said.known) == (1, 0)
    first, second = world.outcomes()
    assert (first.call_id, first.value, first.source, first.event_ns) == (
        call_id(1), True, "python", int(when.timestamp()) * 10**9,
    )  # fmt: skip
    assert (second.workflow, second.business_key, second.value, second.source) == ("refund", "7", 3.0, "desk")


def test_once_leaves_out_what_is_known_to_the_ledger(world: World) -> None:
    row = {"workflow": "refund", "key": "k", "metric": "m", "value": "x"}
    assert record_outcomes([row, row], project=world.root, once=True).new == 1
    again = record_outcomes([row, {**row, "value": "y"}], project=world.root, once=True)
    assert (again.new, again.known) == (1, 1)
    assert record_outcomes([row], project=world.root).new == 1, "asked to record it once more"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"call_id": "x", "metric": "m", "value": 1}, "outcomes[1] is wrong: call_id must be the id"),
        ({"workflow": "refnd", "key": "k", "metric": "m", "value": 1}, "Did you mean `refund`?"),
        ({"workflow": "plain", "key": "k", "metric": "m", "value": 1}, "declares no `outcome_key`"),
        ({"call_id": call_id(1), "metric": "m", "value": float("nan")}, "value must be"),
        ({"call_id": call_id(1), "metric": "m", "value": "\ud800"}, "value must be text that UTF-8 can hold"),
        ({"call_id": call_id(1), "metric": "m", "value": 1, "event_time": datetime(2026, 1, 1)}, "its time zone"),
        (5, "outcomes[1] is wrong: must be a mapping"),
    ],
)
def test_a_wrong_one_is_named_and_none_is_recorded(world: World, given: object, said: str) -> None:
    good = {"call_id": call_id(1), "metric": "m", "value": 1}
    with pytest.raises(DrivetrainError) as told:
        record_outcomes([good, given, good], project=world.root)  # type: ignore[list-item]
    assert said in str(told.value)
    assert world.outcomes() == []


def test_from_many_threads_and_from_a_running_loop(world: World) -> None:
    async def inside() -> None:
        record_outcome(call_id=call_id(1), metric="loop", value=1, project=world.root)
        await asyncio.sleep(0)

    def one(number: int) -> None:
        record_outcome(call_id=call_id(1), metric=f"m{number}", value=number, project=world.root)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(100)))
    asyncio.run(inside())
    assert {one.metric: one.value for one in world.outcomes()} == {f"m{n}": n for n in range(100)} | {"loop": 1.0}


def test_a_segment_is_let_go_when_nothing_more_comes(world: World) -> None:
    """Whoever rolls or backs up waits for open segments."""
    record_outcome(call_id=call_id(1), metric="m", value=1, project=world.root)
    (segment,) = segments(world.data_folder)
    waiting = threading.Event()
    for _ in range(300):
        if not is_locked(segment.path):
            break
        waiting.wait(0.1)
    assert not is_locked(segment.path)
    record_outcome(call_id=call_id(1), metric="m", value=2, project=world.root)
    assert [one.value for one in world.outcomes()] == [1.0, 2.0]


def test_by_key_it_reaches_every_call_of_the_workflow_with_that_key(world: World) -> None:
    world.calls([1, 2], key="same")
    world.calls([3], key="other")
    world.calls([4], key="same", workflow="plain")
    record_outcome(workflow="refund", key="same", metric="ok", value=True, project=world.root)
    found = {call.call_id: [one.value for one in call.outcomes] for call in LedgerReader(world.data_folder).calls()}
    assert found == {call_id(1): [True], call_id(2): [True], call_id(3): [], call_id(4): []}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(world: World) -> None:
    world.data_folder.mkdir(parents=True)
    world.data_folder.chmod(0o500)
    with pytest.raises(DrivetrainError, match="cannot be written"):
        record_outcome(call_id=call_id(1), metric="m", value=1, project=world.root)


def test_a_ledger_that_is_no_folder_is_told_and_the_next_one_is_tried(world: World) -> None:
    world.data_folder.parent.mkdir(parents=True)
    world.data_folder.write_text("a file")
    for _ in range(2):
        with pytest.raises(DrivetrainError, match="0 of 1 outcomes are recorded"):
            record_outcome(call_id=call_id(1), metric="m", value=1, project=world.root)
    world.data_folder.unlink()
    record_outcome(call_id=call_id(1), metric="m", value=1, project=world.root)
    assert len(world.outcomes()) == 1


def test_many_are_written_in_their_order(world: World) -> None:
    rows = [{"call_id": call_id(1), "metric": "m", "value": number} for number in range(6_000)]
    assert record_outcomes(rows, project=world.root).new == 6_000
    assert [one.value for one in world.outcomes()] == list(range(6_000))
