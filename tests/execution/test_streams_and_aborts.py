"""Streams, and clients that leave: at every step, charged what was delivered."""

from __future__ import annotations

import json

import pytest
from execution_world import (
    STREAM_HEAD,
    World,
    chat,
    completion,
    event,
    events,
    fails,
    message,
    refuses,
    says,
    streams,
    whole,
)

from drivetrain.execution.plan import Plans

WORDS = ("Fine, ", "thank ", "you, ", "and ", "yourself?")
STREAM = b"".join(events(*WORDS))


def text_of(heard: bytes) -> str:
    """The content of a stream's events."""
    found = ""
    for block in heard.split(b"\n\n"):
        if block.startswith(b"data: {"):
            for choice in json.loads(block[6:]).get("choices", []):
                found += choice["delta"].get("content") or ""
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 100_000])
def test_a_stream_is_the_same_however_it_is_cut_into_reads(plans: Plans, size: int) -> None:
    reads = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    world = World(plans, streams(reads)).call("plain", chat(stream=True))
    assert text_of(world.client.heard) == "".join(WORDS)
    assert world.client.heard.count(b"data: [DONE]") == 1
    assert b'"usage"' not in world.client.heard  # the client did not ask for it
    assert world.result.status == "answered"
    assert world.result.cost_nano_usd == 1_020_000
    assert world.closed[0].finish_reason == "stop"


def test_the_end_of_a_stream_leaves_after_its_record(plans: Plans) -> None:
    world = World(plans, streams(events(*WORDS))).call("plain", chat(stream=True), run=False)
    while not world.client.finished:
        assert b"[DONE]" not in b"".join(world.client.stream)
        assert world.step()
    assert world.closed
    assert world.result.tail.endswith(b"data: [DONE]\n\n")


def test_what_follows_the_end_of_a_stream_reaches_nobody(plans: Plans) -> None:
    world = World(plans, streams([*events(*WORDS), *events("more")])).call("plain", chat(stream=True))
    assert "more" not in text_of(world.client.heard)
    assert world.client.late == 0
    assert len(world.closed) == 1


def test_a_stream_without_its_done_is_whole_once_it_said_stop(plans: Plans) -> None:
    world = World(plans, streams(events(*WORDS, done=False))).call("plain", chat(stream=True))
    assert world.result.status == "answered"
    assert world.client.heard.endswith(b"data: [DONE]\n\n")


def test_a_stream_without_usage_is_charged_by_estimate(plans: Plans) -> None:
    world = World(plans, streams(events(*WORDS, usage=None))).call("plain", chat(stream=True))
    (attempt,) = world.result.attempts
    assert attempt.usage.source == "estimated"
    assert attempt.usage.output_tokens >= len(WORDS)
    assert world.result.cost_nano_usd == attempt.cost_nano_usd > 0


@pytest.mark.parametrize("begun", range(9))
@pytest.mark.parametrize("how", ["end", "cut", "timeout", "error", "garbage"])
def test_a_stream_that_breaks_never_ends_cleanly(plans: Plans, how: str, begun: int) -> None:
    """Broken after `begun` events: before the first, the Call goes on; after it, the client is told."""
    said = events(*WORDS)[:begun]
    last = {
        "end": streams(said),
        "cut": streams(said, lambda one: one.fail("cut")),
        "timeout": streams(said, lambda one: one.fail("timeout")),
        "error": streams([*said, event({"error": {"message": "overloaded", "code": "x"}})]),
        "garbage": streams([*said, b"data: {nonsense\n\n"]),
    }[how]
    # `stop` is the seventh event: a stream that merely ends behind it is whole.
    whole_already = how == "end" and begun >= 7
    world = World(plans, last, streams(events("again"))).call("plain", chat(stream=True))
    heard = world.client.heard
    if begun == 0:
        assert world.result.status == "answered"
        assert text_of(heard) == "again"
        assert world.result.attempts[0].verdict == "failed"
    elif whole_already:
        assert world.result.status == "answered"
    else:
        assert world.result.status == "failed"
        assert b"[DONE]" not in heard
        assert heard.endswith(b"\n\n")
        assert json.loads(heard.rsplit(b"data: ", 1)[1])["error"]["code"] == "stream_interrupted"
        assert len(world.exchanges) == 1
    assert world.result.cost_nano_usd > 0 or begun == 0
    assert len(world.closed) == 1


def test_a_buffered_variant_is_judged_before_any_of_it_leaves(plans: Plans) -> None:
    world = World(plans, says("reject this"), says("a good one")).call("checked", chat(stream=True))
    assert "reject" not in text_of(world.client.heard)
    assert text_of(world.client.heard) == "a good one"
    assert [one.asked.get("stream") for one in world.exchanges] == [None, None]


@pytest.mark.parametrize("include", [True, False])
def test_usage_reaches_whoever_asks_for_it(plans: Plans, include: bool) -> None:
    options = {"include_usage": include}
    live = World(plans, streams(events("x"))).call("plain", chat(stream=True, stream_options=options))
    buffered = World(plans, says("a good one")).call("checked", chat(stream=True, stream_options=options))
    for world in (live, buffered):
        assert (b'"prompt_tokens":' in world.client.heard) is include


# Clients that leave.


@pytest.mark.parametrize("step", range(12))
def test_a_client_that_leaves_a_stream_pays_for_what_was_delivered(plans: Plans, step: int) -> None:
    world = World(plans, streams(events(*WORDS)))
    world.abort_at = step
    world.call("plain", chat(stream=True))
    delivered = text_of(b"".join(world.client.stream))
    assert len(world.closed) == 1
    assert world.closed[0].status == world.result.status
    assert world.result.cost_nano_usd == sum(one.cost_nano_usd for one in world.result.attempts)
    if not world.exchanges:
        assert (world.result.status, world.result.cost_nano_usd) == ("aborted", 0)
    elif world.result.status == "aborted" and delivered:
        (attempt,) = world.result.attempts
        assert attempt.verdict in ("aborted", "accepted")
        assert attempt.usage.output_tokens >= len(delivered) // 4
        assert world.result.cost_nano_usd > 0
    assert all(one.over for one in world.exchanges)


def test_a_cut_stream_is_cancelled_at_the_provider(plans: Plans) -> None:
    world = World(plans, streams(events(*WORDS)))
    world.abort_at = 5
    world.call("plain", chat(stream=True))
    assert world.exchanges[0].cancelled
    assert world.result.status == "aborted"


@pytest.mark.parametrize("step", range(8))
def test_an_answer_nobody_waits_for_is_still_paid_as_the_provider_bills_it(plans: Plans, step: int) -> None:
    world = World(plans, says("Fine."))
    world.abort_at = step
    world.call("plain", chat())
    assert len(world.closed) == 1
    if world.exchanges:
        assert world.result.cost_nano_usd == 1_020_000
        assert not world.exchanges[0].cancelled
    else:
        assert (world.result.status, world.result.cost_nano_usd) == ("aborted", 0)


@pytest.mark.parametrize("first", [refuses(500), fails("connect"), says('{"intent": "x", "confidence": 0.1}')])
def test_nothing_more_is_tried_for_a_client_that_left(plans: Plans, first: list[object]) -> None:
    world = World(plans, first)  # a second attempt would fail this test
    world.abort_at = 2
    world.call("triage", chat("hm"))
    assert world.result.status == "aborted"
    assert len(world.exchanges) == 1


@pytest.mark.parametrize("step", range(1, 9))
def test_a_client_that_leaves_in_a_pause_ends_its_call(plans: Plans, step: int) -> None:
    world = World(plans, refuses(500), says("Fine."))
    world.abort_at = step
    world.call("plain", chat())
    assert len(world.closed) == 1
    assert len(world.client.finished) == 1


def test_leaving_twice_is_leaving_once(plans: Plans) -> None:
    world = World(plans, streams(events(*WORDS))).call("plain", chat(stream=True), run=False)
    for _ in range(4):
        world.step()
    assert world.execution is not None
    world.execution.abort()
    world.execution.abort()
    world.run()
    world.execution.abort()
    assert len(world.closed) == len(world.client.finished) == 1


def test_a_slow_client_pauses_its_provider_and_no_other(plans: Plans) -> None:
    world = World(plans, streams(events(*WORDS))).call("plain", chat(stream=True), run=False)
    assert world.execution is not None
    world.execution.pause()  # nothing runs yet
    while not world.exchanges:
        world.step()
    world.execution.pause()
    assert world.exchanges[0].paused == 1
    world.execution.resume()
    world.run()
    assert world.exchanges[0].paused == 0
    world.execution.resume()


# First bytes.


def test_only_content_begins_an_answer(plans: Plans) -> None:
    """A head, a comment or a ping is no first byte: the limit on the first byte still holds."""
    said = [b": waiting\n\n", *events(*WORDS)]
    world = World(plans, streams(said)).call("plain", chat(stream=True), run=False)
    seen = []
    while world.step():
        if world.exchanges:
            seen.append(world.exchanges[0].answered)
    assert seen[:3] == [False, False, False]
    assert seen[-1]


def test_an_unpaid_failure_before_the_first_byte_costs_nothing(plans: Plans) -> None:
    stalled = fails("first_byte_timeout", lambda one: one.head(200, STREAM_HEAD))
    world = World(plans, stalled, streams(events("x"))).call("plain", chat(stream=True))
    assert [one.cost_nano_usd for one in world.result.attempts] == [0, 1_020_000]


def test_a_provider_that_answers_a_stream_whole_is_streamed_on(plans: Plans) -> None:
    world = World(plans, whole(completion("Fine."))).call("plain", chat(stream=True))
    assert text_of(world.client.heard) == "Fine."
    assert world.client.heard.endswith(b"data: [DONE]\n\n")


def test_another_dialect_answers_a_stream_whole(plans: Plans) -> None:
    world = World(plans, whole(message("Fine."))).call("claude", chat(stream=True))
    assert text_of(world.client.heard) == "Fine."
