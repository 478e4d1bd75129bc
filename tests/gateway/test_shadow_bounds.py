"""What a shadow may take: Calls at a time, copies that wait, the limits it shares; and what is the same answer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drivetrain.core.calls import Attribution
from drivetrain.embedded.runtime import Runtime
from drivetrain.embedded.shadow_calls import (
    RUNNING_MAX,
    SHADOW_TAG,
    WAITING_BYTES_MAX,
    WAITING_MAX,
    ShadowCalls,
    ShadowCounts,
    same_answer,
    shadowed,
)
from drivetrain.embedded.shadow_socket import Copy, Received
from drivetrain.ledger.reader import LedgerReader
from drivetrain.project import load
from support.projects import model, provider, settings, workflow
from support.tries import PATIENCE_S
from support.upstream import Asked, Upstream, Wire, completion, http

LIMITS = """
[limits.all-month]
scope = "project"
usd = "100"
per = "month"

[limits.team-month]
scope = "team:support"
usd = "100"
per = "month"

[limits.few]
scope = "project"
concurrent = 3

[limits.pace]
scope = "project"
requests = 5
per = "minute"
"""


@pytest.fixture
def slow() -> Iterator[tuple[Upstream, list[int]]]:
    """An upstream that answers the first at once and others when they are as many as may run; and how many asked at a
    time."""
    lock, running, full = threading.Lock(), [0, 0], threading.Event()

    def answer(asked: Asked, wire: Wire) -> None:
        with lock:
            running[0] += 1
            running[1] = max(running)
            if running[0] >= RUNNING_MAX:
                full.set()
        if len(upstream.asked) > 1:
            full.wait(PATIENCE_S)
        wire.wait(0.2)
        with lock:
            running[0] -= 1
        wire.send(http(completion("ok")))

    with Upstream() as upstream:
        upstream.on("/v1", answer)
        yield upstream, running


def written(root: Path, url: str, more: str = "", ladder: str = "") -> Path:
    tables = provider("raw", f"{url}/v1") + model("raw/m") + workflow("help", "raw/m", more=ladder) + more
    (root / "drivetrain.toml").write_text(settings(tables=tables))
    return root


def received(number: int, text: str = "hello") -> Received:
    request = json.dumps({"model": "help", "messages": [{"role": "user", "content": text}]}).encode()
    return Received(Copy(f"call_{number}", "help", "chat", Attribution(), len(request), 0), request, b"")


async def shadowing(
    root: Path, copies: list[Received], ended: Callable[[ShadowCounts], bool], nano_usd_per_day: int = 10**12
) -> tuple[ShadowCounts, ShadowCounts]:
    """What is counted right after all `copies` came, and once those that ran when `ended` became true have."""
    candidate = shadowed(load(root), nano_usd_per_day)
    runtime = Runtime(candidate, asyncio.get_running_loop())
    await runtime.prepare(candidate)
    calls = ShadowCalls(runtime, frozenset({"help"}), ShadowCounts())
    for one in copies:
        calls.take(one)
    at_once = ShadowCounts(dict(calls.counts.shadow_copies))
    async with asyncio.timeout(PATIENCE_S):
        while not ended(calls.counts):
            await asyncio.sleep(0.02)
    calls.close()
    while calls.running:
        await asyncio.sleep(0.02)
    await runtime.close()
    return at_once, calls.counts


def test_few_run_at_a_time_and_the_oldest_make_room(tmp_path: Path, slow: tuple[Upstream, list[int]]) -> None:
    upstream, running = slow
    more = 150
    copies = [received(number) for number in range(1 + WAITING_MAX + more)]

    def some_ran(counts: ShadowCounts) -> bool:
        return counts.shadow_copies.get("help\x00answered", 0) > RUNNING_MAX

    at_once, after = asyncio.run(shadowing(written(tmp_path, upstream.url), copies, some_ran))
    assert at_once.shadow_copies == {"help\x00late": more}
    assert running[1] == RUNNING_MAX
    answered = after.shadow_copies["help\x00answered"]
    assert after.shadow_copies == {"help\x00late": len(copies) - answered, "help\x00answered": answered}
    assert answered > RUNNING_MAX
    ran = {
        int(one.notes[0].rpartition("_")[2]) for one in LedgerReader(tmp_path / ".drivetrain" / "data").calls()
    }  # fmt: skip
    assert ran == {0, *range(1 + more, more + answered)}, "not the oldest were dropped"


def test_waiting_copies_take_bounded_memory(tmp_path: Path, slow: tuple[Upstream, list[int]]) -> None:
    upstream, _ = slow
    text = "x" * 100_000
    copies = [received(number, text) for number in range(1 + 300)]
    at_once, _ = asyncio.run(shadowing(written(tmp_path, upstream.url), copies, lambda _: True))
    kept = WAITING_BYTES_MAX // len(copies[0].request)
    assert at_once.shadow_copies == {"help\x00late": 300 - kept}


@pytest.mark.parametrize("ladder", ["", 'degrade = [{ static = "later" }]\n'])
def test_what_nothing_may_be_spent_for_is_not_run(
    tmp_path: Path, slow: tuple[Upstream, list[int]], ladder: str
) -> None:
    upstream, _ = slow
    copies = [received(number) for number in range(300)]

    def all_ended(counts: ShadowCounts) -> bool:
        return sum(counts.shadow_copies.values()) >= 300

    _, after = asyncio.run(shadowing(written(tmp_path, upstream.url, ladder=ladder), copies, all_ended, 0))
    assert after.shadow_copies == {"help\x00unaffordable": 300}
    assert not upstream.asked
    assert len(list(LedgerReader(tmp_path / ".drivetrain" / "data").calls())) == 1


def test_of_the_projects_limits_only_its_budgets_hold(tmp_path: Path) -> None:
    """What a shadow took of rates and places the live path would lack."""
    candidate = load(written(tmp_path, "http://127.0.0.1:9", LIMITS))
    assert set(candidate.limits) == {"all-month", "team-month", "few", "pace"}
    limits = shadowed(candidate, 7).limits
    assert set(limits) == {"all-month", SHADOW_TAG}
    own = limits[SHADOW_TAG]
    assert (own.kind, own.dimension, own.value, own.amount, own.per) == ("budget", "tag", SHADOW_TAG, 7, "day")


@pytest.mark.parametrize(
    ("live", "shadow", "same"),
    [
        ("yes", "yes", True),
        ("yes", "no", False),
        ('{"a": 1, "b": [2]}', '{"b":[2],"a":1}', True),
        ('{"a": 1}', '{"a": 2}', False),
        ('{"a": 1}', "a is one", False),
        ("", "", True),
        (None, None, None),
        ("yes", None, None),
    ],
)
def test_answers_are_the_same_where_they_say_the_same(live: Any, shadow: Any, same: bool | None) -> None:
    bodies = [
        json.dumps({"choices": [{"message": {"role": "assistant", "content": one}, "finish_reason": "stop"}]}).encode()
        for one in (live, shadow)
    ]
    assert same_answer(*bodies) is same
    assert same_answer(bodies[0], b"no completion") is None
