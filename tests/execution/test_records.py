"""What is written, when, and what happens where it cannot be: no answer leaves without its record."""

from __future__ import annotations

import json
from typing import Any

import pytest
from execution_world import World, chat, completion, events, refuses, says, streams

from drivetrain.core.calls import ClosedV1, OpenedV1
from drivetrain.execution.plan import Plans
from drivetrain.ports.journal import JournalFull


def ended_unrecorded(world: World) -> None:
    """The client got an error, once, and nothing that looks like an answer."""
    result = world.result
    assert result.status == "failed"
    assert result.error is not None
    assert result.error.status in (500, 503)
    assert result.output is None
    if world.client.stream:
        assert b"[DONE]" not in world.client.heard
        assert "error" in json.loads(world.client.heard.rsplit(b"data: ", 1)[1])
    else:
        assert result.http_status in (500, 503)
        assert "error" in json.loads(result.body)


def refuse(world: World, kind: type[Any]) -> World:
    world.journal.refuse = lambda record: isinstance(record, kind)
    return world


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("workflow", ["plain", "fallback", "checked", "audited"])
def test_nobody_is_asked_where_the_opened_frame_is_not_written(plans: Plans, workflow: str, stream: bool) -> None:
    world = refuse(World(plans), OpenedV1).call(workflow, chat(stream=stream))
    assert not world.exchanges
    ended_unrecorded(world)
    assert world.result.error is not None
    assert world.result.error.code == "ledger_unavailable"
    assert "no space" in str(world.result.error)
    assert world.result.error.retry_after_s == 1


@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_leaves_where_the_closed_frame_is_not_written(plans: Plans, stream: bool) -> None:
    script = streams(events("Fine.")) if stream else says("Fine.")
    world = refuse(World(plans, script), ClosedV1).call("plain", chat(stream=stream))
    ended_unrecorded(world)
    assert b"Fine." not in world.result.body + world.result.tail
    assert not world.closed


@pytest.mark.parametrize("kind", [OpenedV1, ClosedV1])
def test_a_rules_answer_needs_its_record_too(plans: Plans, kind: type[Any]) -> None:
    world = refuse(World(plans), kind).call("triage", {"text": ""}, door="workflow")
    ended_unrecorded(world)


@pytest.mark.parametrize("kind", [OpenedV1, ClosedV1])
def test_a_refusal_needs_its_record_too(plans: Plans, kind: type[Any]) -> None:
    world = refuse(World(plans), kind).call("frugal", chat("x" * 20_000))
    ended_unrecorded(world)


def test_a_client_that_left_hears_nothing_of_a_full_disk(plans: Plans) -> None:
    world = World(plans, streams(events("Fine.")))
    world.abort_at = 4
    refuse(world, ClosedV1).call("plain", chat(stream=True))
    assert len(world.client.finished) == 1


@pytest.mark.parametrize("fault", [OSError, JournalFull, RuntimeError])
@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_leaves_where_its_payload_cannot_be_sealed(
    plans: Plans, stream: bool, fault: type[Exception], capfd: pytest.CaptureFixture[str]
) -> None:
    script = streams(events("Fine.")) if stream else says("Fine.")
    world = World(plans, script)
    world.vault.refuse, world.vault.fault = frozenset({"answers"}), fault
    world.call("plain", chat(stream=stream))
    ended_unrecorded(world)
    assert b"Fine." not in world.result.body + world.result.tail


@pytest.mark.parametrize("fault", [OSError, JournalFull, RuntimeError])
@pytest.mark.parametrize("refused", [{"request"}, {"request", "answers"}])
@pytest.mark.parametrize("workflow", ["plain", "triage", "frugal"])
def test_nobody_is_asked_where_the_request_cannot_be_sealed(
    plans: Plans, workflow: str, refused: set[str], fault: type[Exception], capfd: pytest.CaptureFixture[str]
) -> None:
    world = World(plans)
    world.vault.refuse, world.vault.fault = frozenset(refused), fault
    world.call(workflow, chat("" if workflow == "triage" else "x" * 20_000))
    assert not world.exchanges
    ended_unrecorded(world)


def test_the_frames_say_what_the_client_was_told(plans: Plans) -> None:
    world = World(plans, refuses(500), says("Fine.")).call("plain", chat())
    (opened,), (closed,) = world.opened, world.closed
    result = world.result
    assert opened.call_id == closed.call_id == result.call_id
    assert (opened.workflow, opened.door, opened.stream) == ("plain", "chat", False)
    assert closed.status == result.status
    assert closed.http_status == result.http_status
    assert closed.variant == result.variant
    assert closed.cost_nano_usd == result.cost_nano_usd == sum(one.cost_nano_usd for one in closed.attempts)
    assert closed.attempts == result.attempts
    assert closed.closed_ns > opened.opened_ns
    assert opened.snapshot == plans.snapshot.short_hash


@pytest.mark.parametrize(("workflow", "synced"), [("plain", [False, False]), ("audited", [True, True])])
def test_an_audited_call_waits_for_the_disk(plans: Plans, workflow: str, synced: list[bool]) -> None:
    world = World(plans, says("Fine.")).call(workflow, chat())
    assert world.journal.synced == synced


def test_what_is_not_to_be_kept_is_not_kept(plans: Plans) -> None:
    world = World(plans, says("Fine.")).call("private", chat("a secret"))
    written = str(world.journal.written)
    assert "a secret" not in written
    assert "Fine." not in written
    assert not world.opened[0].retained


def test_a_fault_of_ours_ends_its_call_as_failed_and_tells_no_values(
    plans: Plans, capfd: pytest.CaptureFixture[str]
) -> None:
    world = World(plans, says("a secret"))

    def broken(_bodies: object) -> None:
        raise RuntimeError("a secret")

    world.call("plain", chat(), run=False)
    while not world.exchanges:
        world.step()
    world.exchanges[0].answering = lambda: broken(None)  # type: ignore[method-assign]
    world.run()
    assert world.result.status == "failed"
    assert world.result.http_status == 500
    assert len(world.closed) == 1
    assert world.closed[0].attempts[0].verdict == "failed"
    assert "a secret" not in capfd.readouterr().err
    assert completion("a secret") != world.result.body


def test_a_client_that_breaks_when_it_is_told_does_not_spoil_its_record(
    plans: Plans, capfd: pytest.CaptureFixture[str]
) -> None:
    world = World(plans, streams(events("x", "y")))

    def gone(_data: bytes) -> None:
        raise ConnectionError("gone")

    world.client.on_stream = gone  # type: ignore[method-assign]
    world.call("plain", chat(stream=True))
    assert len(world.client.finished) == 1
    assert len(world.closed) == 1
    assert world.closed[0].status == "failed"
    assert world.closed[0].cost_nano_usd > 0


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_a_transport_that_breaks_ends_the_call(plans: Plans, attempt: int, capfd: pytest.CaptureFixture[str]) -> None:
    world = World(plans, *[refuses(500)] * (attempt - 1))
    send = world.send

    def breaking(request: Any, sink: Any) -> Any:
        if len(world.exchanges) == attempt - 1:
            raise RuntimeError("no more sockets")
        return send(request, sink)

    world.send = breaking  # type: ignore[method-assign]
    world.call("plain", chat())
    assert world.result.status == "failed"
    assert world.result.http_status == 500
    assert len(world.closed) == 1


def test_a_fault_when_the_client_leaves_ends_the_call(plans: Plans, capfd: pytest.CaptureFixture[str]) -> None:
    world = World(plans, streams(events("x", "y")))
    world.vault.refuse, world.vault.fault = frozenset({"answers"}), RuntimeError
    world.abort_at = 5
    world.call("plain", chat(stream=True))
    assert len(world.client.finished) == 1
