"""Laws that hold whatever providers, clients and the disk do: random scripts from a printed seed.

DRIVETRAIN_SEED=n repeats a run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from execution_world import (
    JSON_HEAD,
    STREAM_HEAD,
    Script,
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

from drivetrain.core.calls import ClosedV1, OpenedV1
from drivetrain.execution.plan import Plans

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("DRIVETRAIN_SEED") or random.SystemRandom().randrange(2**32))
CALLS = 1_500
DOORS = {"triage": ("chat", "workflow", "python"), "up/small": ("direct",)}
WORKFLOWS = (
    "plain", "fallback", "claude", "triage", "checked", "frugal", "frugal-retries", "stubborn", "audited", "up/small",
)  # fmt: skip
TEXTS = (
    "How are you?", "", "SHOUT", "a broken rule", "a broken then", "größer als 🙂", "x" * 300, "y" * 3_000,
    "z" * 20_000,
)  # fmt: skip
ANSWERS = (
    '{"intent": "x", "confidence": 0.95}', '{"intent": "x", "confidence": 0.6}', '{"intent": "x", "confidence": 0.1}',
    '```json\n{"intent": "x", "confidence": 0.99}\n```', '{"intent": "x", "confidence": 0.99,}', "reject", "raise", "x",
    "none of it", "größer als 🙂", "", '{"intent": 1}', "Here: {}",
)  # fmt: skip
USAGES: tuple[Any, ...] = (
    {"prompt_tokens": 1000, "completion_tokens": 10},
    {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 500}},
    {"prompt_tokens": 0, "completion_tokens": 0},
    {"prompt_tokens": -5, "completion_tokens": 10},
    {"prompt_tokens": 10, "completion_tokens": 10**7},
    None,
    {},
)


def pieces(data: bytes, dice: random.Random) -> list[bytes]:
    """`data` in reads of random sizes."""
    found = []
    while data:
        size = dice.choice((1, 5, 40, 200, 4_000)) if len(data) < 5_000 else 2_000
        found.append(data[:size])
        data = data[size:]
    return found


def whole_answer(dice: random.Random) -> Script:
    text, usage = dice.choice(ANSWERS), dice.choice(USAGES)
    body = completion(text, usage) if dice.random() < 0.7 else message(text)
    return whole(body, parts=dice.choice((1, 2, 5)))


def stream_of(dice: random.Random) -> list[bytes]:
    words = dice.choice(ANSWERS).split(" ") or [""]
    return pieces(b"".join(events(*words, usage=dice.choice(USAGES), done=dice.random() < 0.8)), dice)


def broken_stream(dice: random.Random) -> Script:
    said = stream_of(dice)
    said = said[: dice.randrange(len(said))]
    how = dice.randrange(5)
    if how == 0:
        return streams(said)
    if how == 1:
        return streams(said, lambda one: one.fail(dice.choice(("cut", "timeout", "protocol", "oversized"))))
    if how == 2:
        return streams([*said, b"\n\n" + event({"error": {"message": "overloaded", "type": "x"}})])
    if how == 3:
        return streams([*said, b'\n\ndata: {"choices": 5}\n\n'])
    return streams([*said, b"\n\n\xff\xfe\n\n"])


def cut_answer(dice: random.Random) -> Script:
    body = completion(dice.choice(ANSWERS))
    body = body[: dice.randrange(len(body))]
    return fails(
        "cut", lambda one: one.head(200, JSON_HEAD), *((lambda one, data=p: one.chunk(data)) for p in [body] if p)
    )


SCRIPTS: tuple[tuple[int, Callable[[random.Random], Script]], ...] = (
    (8, whole_answer),
    (4, lambda dice: streams(stream_of(dice))),
    (2, broken_stream),
    (1, cut_answer),
    (1, lambda dice: says(dice.choice(ANSWERS), None)),
    (2, lambda dice: refuses(dice.choice((429, 500, 502, 503, 529, 408, 301, 204)))),
    (1, lambda dice: refuses(dice.choice((400, 401, 403, 404, 413, 422)))),
    (1, lambda _dice: refuses(400, "context_length_exceeded")),
    (1, lambda dice: refuses(429, retry_after=dice.choice(("0", "1", "4.9", "60", "soon")))),
    (
        1,
        lambda dice: fails(
            dice.choice(("connect", "connect_timeout", "tls", "first_byte_timeout", "pool_full", "closed"))
        ),
    ),
    (1, lambda _dice: fails("first_byte_timeout", lambda one: one.head(200, STREAM_HEAD))),
    (1, lambda dice: whole(dice.choice((b"", b"{", b"null", b"[]", b'{"choices":[]}', b"\xff\xfe", b"<html>")))),
)


def script(dice: random.Random) -> Script:
    made = dice.choices([one for _, one in SCRIPTS], [weight for weight, _ in SCRIPTS])[0]
    return made(dice)


def random_world(plans: Plans, dice: random.Random) -> tuple[World, str, dict[str, Any], str]:
    workflow = dice.choice(WORKFLOWS)
    door = dice.choice(DOORS.get(workflow, ("chat",)))
    world = World(plans, *(script(dice) for _ in range(6)), dice=dice.random)
    text = dice.choice(TEXTS)
    if door in ("workflow", "python"):
        return world, workflow, {"text": text}, door
    body = chat(text)
    if dice.random() < 0.5:
        body["stream"] = True
        if dice.random() < 0.3:
            body["stream_options"] = {"include_usage": dice.random() < 0.7}
    if dice.random() < 0.3:
        body["max_tokens"] = dice.choice((1, 50, 5_000))
    if workflow != "triage" and dice.random() < 0.2:
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        body["tools"] = [tool]
    return world, workflow, body, door


def lawful(world: World, attempts_max: int) -> None:
    """What holds of every Call that has ended."""
    assert len(world.client.finished) == 1, "on_finished was not called exactly once"
    assert world.client.late == 0, "a stream went on after its end"
    assert len(world.exchanges) <= attempts_max, "more attempts than the Call's budget"
    assert all(one.over for one in world.exchanges), "an attempt runs on"
    assert len(world.opened) <= 1
    assert len(world.closed) <= 1
    result = world.result
    assert result.cost_nano_usd == sum(one.cost_nano_usd for one in result.attempts)
    assert sum(1 for one in result.attempts if one.status or one.failure) <= len(world.exchanges)
    if not world.closed:
        assert result.status == "failed", "an answer without a record"
        assert b"[DONE]" not in world.client.heard
        return
    (closed,) = world.closed
    assert closed.call_id == world.opened[0].call_id
    assert (closed.status, closed.cost_nano_usd, closed.attempts) == (
        result.status,
        result.cost_nano_usd,
        result.attempts,
    )
    if result.status == "answered":
        assert result.attempts[-1].verdict == "accepted"
        assert result.attempts[-1].variant == result.variant
        assert world.opened[0].stream is world.client.heard.endswith(b"data: [DONE]\n\n")
    else:
        assert not world.client.heard.endswith(b"data: [DONE]\n\n") or result.status == "aborted"
    if world.client.stream and b"content" in b"".join(world.client.stream):
        zero = result.attempts[-1].usage.source == "reported"  # an explicit zero stays zero
        assert result.cost_nano_usd > 0 or zero, "something was delivered and nothing charged"


@pytest.mark.parametrize("disturbed", ["nothing", "the client leaves", "the disk is full"])
def test_whatever_happens_a_call_ends_once_and_its_money_adds_up(
    plans: Plans, disturbed: str, capfd: pytest.CaptureFixture[str]
) -> None:
    print(f"seed {SEED}")
    statuses: dict[str, int] = {}
    for number in range(CALLS):
        dice = random.Random(f"{SEED} {disturbed} {number}")
        world, workflow, body, door = random_world(plans, dice)
        if disturbed == "the client leaves":
            world.abort_at = dice.randrange(15)
        if disturbed == "the disk is full":
            kind = dice.choice((OpenedV1, ClosedV1))
            world.journal.refuse = lambda record, kind=kind: isinstance(record, kind)
        try:
            world.call(workflow, body, door=door)
            lawful(world, plans.workflows[workflow].workflow.attempts_max)
        except AssertionError as broken:
            raise AssertionError(f"seed {SEED}, Call {number} of {workflow} by {door}: {body}: {broken}") from broken
        statuses[world.result.status] = statuses.get(world.result.status, 0) + 1
    expected = {"the disk is full": {"failed"}, "the client leaves": {"answered", "failed", "aborted"}}
    assert expected.get(disturbed, {"answered", "failed", "refused"}) <= set(statuses), statuses
    assert "Error at" not in capfd.readouterr().err, "a fault of ours"


@pytest.mark.parametrize("disturbed", ["nothing", "the client leaves"])
def test_whatever_happened_a_replay_gives_the_same(plans: Plans, disturbed: str) -> None:
    print(f"seed {SEED}")
    different = []
    for number in range(CALLS):
        dice = random.Random(f"{SEED} replay {disturbed} {number}")
        world, workflow, body, door = random_world(plans, dice)
        if disturbed == "the client leaves":
            world.abort_at = dice.randrange(15)
        world.call(workflow, body, door=door)
        replayed = world.replayed()
        found = list(replayed.differences)
        live = b"".join(world.client.stream)
        if world.result.status != "aborted" and (replayed.stream, replayed.result.tail) != (live, world.result.tail):
            found.append("another stream")
        if found:
            shown = [(one.variant, one.verdict, one.reason) for one in world.result.attempts]
            different.append(f"Call {number} of {workflow} by {door}, {world.result.status} {shown}: {found}")
    assert not different, f"seed {SEED}: {len(different)} of {CALLS} differ:\n" + "\n".join(different[:5])
