"""Whatever becomes of a rollout's shadow, callers and records of the live path are as they would be without it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest
from promise_gateway import Gateway, best_s, chat_project, eventually, gateway, gone, simulated

from drivetrain.core.calls import Call
from drivetrain.simulator import SimulatorProcess
from support import shadows, wire
from support.projects import model
from support.served import FAULT

CALLS = 200
SLOWER_MAX = 4
"""Times the p99 without a shadow, on a machine that does other things as well; a sender that waits for a stopped shadow
waits for seconds, or for ever."""
ALLOWED_S = 0.05
MINE = ("call_id", "id", "created")
"""What is another with every Call."""


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    slow = simulated(output_tokens=5, latency_ms=1_000)
    models = {"m": simulated(output_tokens=5), "n": simulated(output_tokens=7), "slow": slow}
    with SimulatorProcess({"seed": 1, "server": {"allow_overrides": True}, "models": models}) as running:
        yield running


@contextlib.contextmanager
def shadowed(simulator: SimulatorProcess, candidate: str, *, workers: int = 1) -> Iterator[Gateway]:
    """A gateway that serves Release 1, and shadows another model with Release 2."""
    files = chat_project(simulator.url, more=model("sim/n") + model("sim/slow"))
    with gateway(files, workers=workers, start=False) as running:
        toml = running.root / "drivetrain.toml"
        live = shadows.stored(running.root)
        toml.write_text(files["drivetrain.toml"].replace('model = "sim/m"', f'model = "{candidate}"'))
        other = shadows.stored(running.root)
        shadows.release(running.root, live, number=1)
        running.start()
        shadows.release(running.root, other, "help", number=2, rolled=shadows.rollout())
        yield running


def shadow_pid(of: Gateway) -> int:
    """Of the gateway's shadow; 0 where there is none now."""
    return next(iter(of.pids_beside("drivetrain.embedded.shadowing")), 0)


def shadow_calls(of: Gateway) -> list[Call]:
    return [one for one in of.calls() if one.door == "shadow"]


def asked(of: Gateway) -> tuple[list[Any], list[float]]:
    """What `CALLS` requests are answered, one after the other, and how long each took."""
    answers, took_s = [], []
    with wire.connect(of.port) as connection:
        for number in range(CALLS):
            said = "[[simulate failure=status:400]]" if number % 40 == 7 else f"question {number}"
            body = {"model": "help", "messages": [{"role": "user", "content": said}], "stream": number % 5 == 0}
            began = time.perf_counter()
            connection.sendall(wire.request(body))
            answer = wire.hear(connection).answers[0]
            took_s.append(time.perf_counter() - began)
            answers.append((answer.status, _told(answer)))
    return answers, took_s


def _told(answer: wire.Answered) -> Any:
    """An answer without what is another with every Call."""
    text = answer.body.decode()
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [
        {name: value for name, value in json.loads(one).items() if name not in MINE} for one in events or [text]
    ]  # fmt: skip


def recorded(of: Gateway, after_ns: int) -> list[Any]:
    """The live Calls since a time, without ids and times."""
    return [
        (
            one.snapshot, one.workflow, one.door, one.stream, one.attribution, one.status, one.http_status, one.variant,
            one.cost_nano_usd, one.error, one.finish_reason, one.notes, one.retained, len(one.request) > 0,
            [(each.variant, each.model, each.purpose, each.verdict, each.status, each.usage, each.cost_nano_usd)
             for each in one.attempts],
        )
        for one in of.calls()
        if one.door != "shadow" and one.opened_ns >= after_ns
    ]  # fmt: skip


def p99(took_s: list[float]) -> float:
    return statistics.quantiles(took_s, n=100)[98]


def unsent(of: Gateway) -> int:
    """Copies that nobody took."""
    text = wire.one(of.port, wire.request(method="GET", path="/metrics")).body.decode()
    found = re.search(r'drivetrain_shadow_copies_total{workflow="help",end="unsent"} (\d+)', text)
    return int(found[1]) if found else 0


def fill_its_queue(of: Gateway) -> None:
    """Ask until the kernel takes no more of what a stopped shadow does not read."""
    before = unsent(of)

    def is_full() -> bool:
        for _ in range(20):
            wire.one(of.port, wire.request({"model": "help", "messages": [{"role": "user", "content": "more"}]}))
        return unsent(of) > before

    assert eventually(is_full), "its queue is never full"


def await_copies(of: Gateway) -> None:
    """Return once the shadow answers them."""
    before = len(shadow_calls(of))

    def answers() -> bool:
        wire.one(of.port, wire.request({"model": "help", "messages": [{"role": "user", "content": "there?"}]}))
        time.sleep(0.1)
        return len(shadow_calls(of)) > before

    assert eventually(answers), of.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("state", "candidate"), [("well", "sim/n"), ("slow", "sim/slow"), ("stopped", "sim/n"),
                                                   ("killed", "sim/n")])  # fmt: skip
def test_answers_records_and_times_are_the_same(simulator: SimulatorProcess, state: str, candidate: str) -> None:
    """Answers and records, every time; the times by the best of a few whole runs, each beside the same shadow."""
    with shadowed(simulator, candidate) as running:
        await_copies(running)
        shadows.event(running.root, "paused", release=2)
        assert eventually(lambda: not shadow_pid(running))
        began_ns = time.time_ns()
        answers, took_s = asked(running)
        assert {status for status, _ in answers} == {200, 400}
        without = recorded(running, began_ns)
        assert len(without) == CALLS

        shadows.event(running.root, "resumed", release=2)
        assert eventually(lambda: shadow_pid(running))
        await_copies(running)
        pid = shadow_pid(running)
        if state == "stopped":
            os.kill(pid, signal.SIGSTOP)
            fill_its_queue(running)
        seen = len(shadow_calls(running))

        def shadowed_p99_s() -> float:
            if state == "killed":
                os.kill(eventually(lambda: shadow_pid(running)), signal.SIGKILL)
            began_ns = time.time_ns()
            shadowed_answers, shadowed_s = asked(running)
            assert shadowed_answers == answers
            assert recorded(running, began_ns) == without
            return p99(shadowed_s)

        allowed_s = SLOWER_MAX * p99(took_s) + ALLOWED_S
        assert best_s(shadowed_p99_s, allowed_s) <= allowed_s
        if state == "stopped":
            assert len(shadow_calls(running)) <= seen + 1, "it was not stopped"
            os.kill(pid, signal.SIGCONT)
            await_copies(running)
        elif state == "killed":
            await_copies(running)
            assert shadow_pid(running) != pid
        elif state == "well":
            assert eventually(lambda: len(shadow_calls(running)) >= seen + CALLS / 2), "it was not shadowed"
        assert running.stop() == 0
        assert not FAULT.search(running.stderr), running.stderr


@pytest.mark.slow
def test_a_shadow_ends_with_its_gateway_however_that_ends(simulator: SimulatorProcess) -> None:
    with shadowed(simulator, "sim/n", workers=2) as running:
        assert eventually(lambda: shadow_pid(running))
        await_copies(running)
        pid = shadow_pid(running)
        os.kill(running.pid, signal.SIGKILL)
        assert gone(pid), "the shadow outlives its supervisor"
        running.wait()
