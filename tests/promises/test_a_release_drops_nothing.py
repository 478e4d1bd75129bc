"""A change of what is live drops no request and misroutes none, and going back is complete within a second."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from promise_gateway import Gateway, best_s, chat_project, eventually, gateway, simulated

from drivetrain.embedded.serving import served_by
from drivetrain.simulator import SimulatorProcess
from support import wire
from support.projects import workflow
from support.releases import Releases
from support.tries import Spoiled, in_one_try

RATE = 1_000
WORKERS = 2
ROLLBACKS = 6
WITHIN_S = 1.0
"""Promised, from the record in the control log to the last worker."""
SILENT_MS = 1_000
"""What 99 of 100 answers take less than: a change that silences workers for longer lets more wait."""
SENT_WITHIN = 1.5
"""Of the time of the load; a gateway that cannot keep up with it is waited for."""
APART_S = 1.2
AFTER_A_KILL_S = 3.0
"""To go back where a worker must load what it has not served."""
NS = 1_000_000_000


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess({"seed": 1, "models": {"m": simulated(output_tokens=5)}}) as running:
        yield running


def project(url: str, answer: str) -> dict[str, str]:
    """`said` answers by a rule with the name of its Snapshot; a module that takes a while to import."""
    rule = f"{{ rule = 'all', matches = '[?]', answer = '{answer}' }}"
    files = chat_project(url, more=workflow("said", rule, '{ name = "v0", model = "sim/m" }'), ledger="")
    heavy = "\n".join(f"def f{number}(a, b={number}):\n    return [a + b, {number}]" for number in range(2_000))
    return {**files, "workflows/heavy.py": f"NAME = '{answer}'\n{heavy}\n"}


class Went:
    """One change of what is live: what it brought, when it was written, and when every worker had it."""

    def __init__(self, text: str, began_ns: int, all_ns: int) -> None:
        self.text = text
        self.began_ns = began_ns
        self.all_ns = all_ns

    @property
    def took_s(self) -> float:
        return (self.all_ns - self.began_ns) / NS


def served_in(went: list[Went], at: int, text: str, opened_ns: int) -> bool:
    """Whether a call may have had this answer after that change: since it was written, and until all had the next."""
    after = went[at + 1 :]
    return went[at].text == text and went[at].began_ns <= opened_ns and (not after or opened_ns <= after[0].all_ns)


def have(releases: Releases, number: int) -> bool:
    """Whether every worker serves it."""
    served = served_by(releases.run_folder)
    return len(served) == WORKERS and all(one.release == number for one in served)


@pytest.mark.slow
def test_changes_under_load_drop_and_misroute_nothing(simulator: SimulatorProcess) -> None:
    """The times, of going back and of answers, are those of the best of a few whole tries."""

    def story() -> None:
        with gateway(project(simulator.url, "a"), workers=WORKERS) as served:
            releases = Releases(served.root)
            hashes = {"a": releases.store({}).hash, "b": releases.store(project(simulator.url, "b")).hash}
            first = releases.release(hashes["a"])
            assert eventually(lambda: have(releases, first)), served.stderr
            seconds = 2.0 + (ROLLBACKS + 1) * APART_S
            script = Path(__file__).with_name("promise_rate.py")
            command = [sys.executable, str(script), str(served.port), str(RATE), str(seconds)]
            load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            went = [Went("a", 0, 0)]

            def change(text: str, make: object) -> None:
                began_ns = time.time_ns()
                number = make()  # type: ignore[operator]
                assert eventually(lambda: have(releases, number)), served.stderr
                went.append(Went(text, began_ns, time.time_ns()))
                time.sleep(max(0.0, APART_S - went[-1].took_s))

            time.sleep(1.0)
            change("b", lambda: releases.release(hashes["b"]))
            to = {"a": 1, "b": 2}
            for turn in range(ROLLBACKS):
                text = "ab"[turn % 2]
                change(text, lambda text=text: releases.roll_back(to[text], hashes[text]))
            heard = json.loads(load.communicate(timeout=200)[0])
            told, sent_s = heard["told"], heard["sent_s"]

            answers = [one for connection in told for one in connection]
            lost = [one for one in answers if one[0] != 200]
            assert not lost, f"{len(lost)} of {len(answers)} were dropped: {lost[:3]}"
            assert len(answers) == int(RATE * seconds)
            calls = {call.call_id: call for call in served.calls()}
            for connection in told:
                now = 0
                for _, call_id, text, _ in connection:
                    call = calls[call_id]
                    assert call.snapshot == hashes[text][:16], "an answer is not of the Snapshot that its record names"
                    # A connection has one worker: it goes through the changes in their order, though it may have had no
                    # call while one of them was live, and none may come early or late.
                    now = next((at for at in range(now, len(went)) if served_in(went, at, text, call.opened_ns)), -1)
                    assert now >= 0, "it was served when another was"
            took = [round(one.took_s, 2) for one in went[1:]]
            slowest_ms = sorted(one[3] for one in answers)[int(0.99 * len(answers))]
            said = f"{len(answers)} sent in {sent_s:.1f} s, p99 {slowest_ms:.1f} ms; changes took {took} s"
            print(said)
            if max(took[1:]) > WITHIN_S or slowest_ms >= SILENT_MS or sent_s >= SENT_WITHIN * seconds:
                raise Spoiled(said)

    in_one_try(story)


@pytest.mark.slow
def test_a_worker_killed_during_a_change_comes_back_with_what_is_live(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "a"), workers=WORKERS) as served:
        releases = Releases(served.root)
        first = releases.store({}).hash
        second = releases.store(project(simulator.url, "b")).hash
        assert releases.release(first) == 1
        assert eventually(lambda: have(releases, 1)), served.stderr
        workers = pids(releases)
        releases.release(second)
        time.sleep(0.3)  # it has heard of it, and loads
        os.kill(workers[0], signal.SIGKILL)
        # It may have served the second one already, and is there until somebody has seen that it ended.
        assert eventually(lambda: workers[0] not in pids(releases) and have(releases, 2)), served.stderr
        assert {said(served) for _ in range(16)} == {"b"}
        back = itertools.cycle([(1, first, "a"), (2, second, "b")])

        def rolled_back_s() -> float:
            """With a worker that has served nothing else than what is live."""
            if releases.live.release > 2:
                kill_one(releases)
            to, digest, text = next(back)
            began = time.monotonic()
            number = releases.roll_back(to, digest)
            assert eventually(lambda: have(releases, number)), served.stderr
            took_s = time.monotonic() - began
            assert {said(served) for _ in range(16)} == {text}
            return took_s

        assert best_s(rolled_back_s, AFTER_A_KILL_S) < AFTER_A_KILL_S


def kill_one(releases: Releases) -> None:
    """Returns once another one serves what is live."""
    number, worker = releases.live.release, pids(releases)[0]
    os.kill(worker, signal.SIGKILL)
    assert eventually(lambda: worker not in pids(releases) and have(releases, number))


def pids(releases: Releases) -> list[int]:
    """Of the workers that say what they serve."""
    return [int(one.worker.rpartition("-")[2]) for one in served_by(releases.run_folder)]


def said(served: Gateway) -> str:
    body = {"model": "said", "messages": [{"role": "user", "content": "?"}]}
    answer = wire.one(served.port, wire.request(body))
    assert answer.status == 200, answer
    text: str = answer.json["choices"][0]["message"]["content"]
    return text
