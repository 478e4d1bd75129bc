"""SIGTERM ends a gateway after its calls, SIGHUP gives it new code, and a worker that dies is replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from promise_gateway import (
    TRIES,
    WAIT_S,
    Gateway,
    best_s,
    chat_project,
    eventually,
    gateway,
    gone,
    simulated,
    standing_still,
)
from promise_load import Load, Told, ask

from drivetrain.simulator import SimulatorProcess
from support import wire
from support.projects import workflow

pytestmark = pytest.mark.slow

REFUSES_S = 0.4
"""From SIGTERM until no new traffic is welcome."""
ENDS_S = 5.0
"""From SIGTERM until a gateway has ended for which nothing runs."""


def project(url: str, answer: str = "old") -> dict[str, str]:
    """`help` is slow; `said` answers by a rule, so that it tells which project is served."""
    rule = f"{{ rule = 'all', matches = '[?]', answer = '{answer}' }}"
    return chat_project(url, more=workflow("said", rule, '{ name = "v0", model = "sim/m" }'))


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    paced = simulated(first_token_ms=20, latency_ms=30, output_tokens=40)
    config = {"seed": 1, "server": {"allow_overrides": True, "record_requests": 100}, "models": {"m": paced}}
    with SimulatorProcess(config) as running:
        yield running


class Slow(threading.Thread):
    """One call that takes its time, and how it ended."""

    def __init__(self, port: int, *, stream: bool, ms: int = 900) -> None:
        super().__init__(daemon=True)
        self.told = Told(f"[[simulate latency_ms={ms} output_tokens=20]]", stream=stream)
        self._port = port
        self.begun = threading.Event()

    def run(self) -> None:
        with wire.connect(self._port) as connection:
            self.begun.set()
            ask(connection, self.told)

    def begin(self, simulator: SimulatorProcess) -> Slow:
        """Returns once the provider is at it."""
        before = arrived(simulator)
        self.start()
        assert eventually(lambda: arrived(simulator) > before)
        return self


def arrived(simulator: SimulatorProcess) -> int:
    return sum(int(one["requests"]) for one in simulator.requests()["models"].values())


def said(port: int) -> str:
    """What the rule of the served project answers; each time on a new connection."""
    body = {"model": "said", "messages": [{"role": "user", "content": "?"}]}
    answer = wire.one(port, wire.request(body))
    assert answer.status == 200, answer
    text: str = answer.json["choices"][0]["message"]["content"]
    return text


def ready(port: int) -> bool:
    """Whether new traffic is welcome; a refused connection says no as well."""
    try:
        answer = wire.ask(port, wire.request(method="GET", path="/readyz"))
    except OSError:
        return False
    return bool(answer.answers) and answer.answers[0].status == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_refuses_new_calls_at_once_and_finishes_the_old(simulator: SimulatorProcess, workers: int) -> None:
    def refused_s() -> float:
        with gateway(project(simulator.url), workers=workers) as served:
            assert ready(served.port)
            running = [Slow(served.port, stream=stream).begin(simulator) for stream in (True, False, True)]
            pids = served.worker_pids
            with standing_still(simulator.pid):
                told = time.monotonic()
                served.signal(signal.SIGTERM)
                assert eventually(lambda: not ready(served.port)), "it is ready though it was told to end"
                took_s = time.monotonic() - told
                assert served.alive, "it did not wait for its calls"
            for one in running:
                one.join(WAIT_S)
                assert one.told.whole, f"a call was cut by SIGTERM: {one.told}"
            assert served.wait() == 0
            assert all(gone(pid) for pid in pids)
            for one in running:
                call = served.call(one.told.call_id)
                assert (call.status, call.cost_nano_usd) == ("answered", one.told.cost_nano_usd)
            assert all(call.status == "answered" for call in served.calls())
            assert not list((served.data_folder / "run").glob("*.metrics"))
            assert "Traceback" not in served.stderr
            return took_s

    assert best_s(refused_s, REFUSES_S) < REFUSES_S


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_ends_a_gateway_that_has_nothing_to_do_soon(simulator: SimulatorProcess, workers: int) -> None:
    """What runs is given half a minute, and nothing runs."""
    with gateway(project(simulator.url), workers=workers, start=False) as served:

        def ended_s() -> float:
            served.start()
            done = Slow(served.port, stream=True).begin(simulator)
            done.join(WAIT_S)
            assert done.told.whole
            told = time.monotonic()
            served.signal(signal.SIGTERM)
            assert served.wait() == 0
            return time.monotonic() - told

        assert best_s(ended_s, ENDS_S) < ENDS_S


def test_sigterm_under_load_loses_no_answer(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url), workers=2) as served:
        with Load(served.port, "term") as load:
            assert eventually(lambda: sum(one.whole for one in load.told) > 20)
            served.signal(signal.SIGTERM)
            assert served.wait() == 0
        calls = {call.call_id: call for call in served.calls()}
        assert {call.status for call in calls.values()} <= {"answered", "aborted"}
        for one in load.told:
            assert not one.whole or calls[one.call_id].cost_nano_usd == one.cost_nano_usd
            assert one.whole or not one.call_id, f"an answer was cut: {one}"
        assert sum(one.whole for one in load.told) > 5


def test_a_kept_connection_hears_that_the_gateway_ends(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url)) as served, wire.connect(served.port) as idle:
        running = Slow(served.port, stream=True).begin(simulator)
        with standing_still(simulator.pid):
            served.signal(signal.SIGTERM)
            assert wire.ending(idle) == "fin"
            assert running.is_alive(), "it was not told before the last call ended"
        running.join(WAIT_S)
        assert served.wait() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_serves_the_new_project_while_old_calls_finish_with_the_old(
    simulator: SimulatorProcess, workers: int
) -> None:
    with gateway(project(simulator.url), workers=workers) as served:
        assert said(served.port) == "old"
        running = [Slow(served.port, stream=stream).begin(simulator) for stream in (True, False)]
        before = served.calls()[0].snapshot
        with standing_still(simulator.pid):
            served.write(project(simulator.url, "new"))
            served.signal(signal.SIGHUP)
            assert eventually(lambda: {said(served.port) for _ in range(20)} == {"new"})
            assert all(one.is_alive() for one in running), "they ended too soon to prove anything"
        for one in running:
            one.join(WAIT_S)
            assert one.told.whole
            assert served.call(one.told.call_id).snapshot == before
        assert {call.snapshot for call in served.calls() if call.workflow == "said"} >= {before}
        assert len({call.snapshot for call in served.calls()}) == 2


def test_sighup_under_load_drops_no_request(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url), workers=2) as served:
        with Load(served.port, "hup", clients=6) as load:
            for number in range(4):
                time.sleep(0.15)
                served.write(project(simulator.url, f"answer {number}"))
                served.signal(signal.SIGHUP)
            assert eventually(lambda: {said(served.port) for _ in range(8)} == {"answer 3"})
            assert eventually(lambda: len(load.told) > 20)
        lost = [one for one in load.told if not one.whole]
        assert not lost, lost[:3]


@pytest.mark.parametrize(
    ("workers", "file", "text", "told"),
    [
        (1, "drivetrain.toml", "[project\n", "TOML"),
        (2, "workflows/broken.py", "import drivetrain as dt\nthis is no Python\n", "broken.py"),
        (1, "workflows/broken.py", "raise RuntimeError('on import')\n", "broken.py"),
        (1, "workflows/broken.py", "import sys\nsys.exit(3)\n", "broken.py"),
    ],
)
def test_a_broken_project_is_refused_and_the_old_one_kept(
    simulator: SimulatorProcess, workers: int, file: str, text: str, told: str
) -> None:
    with gateway(project(simulator.url), workers=workers) as served:
        pids = served.worker_pids
        served.write({file: text})
        served.signal(signal.SIGHUP)
        assert eventually(lambda: "the old one is served on" in served.stderr), served.stderr
        assert told in served.stderr
        assert said(served.port) == "old"
        assert served.worker_pids == pids
        served.write(project(simulator.url, "mended"))
        (served.root / "workflows" / "broken.py").unlink(missing_ok=True)
        served.signal(signal.SIGHUP)
        assert eventually(lambda: {said(served.port) for _ in range(8)} == {"mended"})


def test_a_reloaded_project_can_be_replayed_once_it_has_changed_again(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url)) as served:
        for answer in ("second", "third"):
            served.write(project(simulator.url, answer))
            served.signal(signal.SIGHUP)
            assert eventually(lambda answer=answer: said(served.port) == answer)
        replayed = served.command("replay", "--json")
        assert '"different":[]' in replayed
        assert '"skipped":0' in replayed, replayed


# Workers.


def kill_one(served: Gateway) -> int:
    pid = served.worker_pids[0]
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_killed_worker_is_replaced_and_the_port_keeps_answering(simulator: SimulatorProcess) -> None:
    """Within a second: what waited in the dead worker's queue is reset, not left hanging. It is answered and replaced
    each time; the time is that of the best of a few whole tries."""
    with gateway(project(simulator.url), workers=2) as served:

        def answered_s() -> float:
            dead = kill_one(served)
            asked_at = time.monotonic()
            assert eventually(lambda: tried(served.port), every_s=0), "nobody answered once a worker was gone"
            took_s = time.monotonic() - asked_at
            assert eventually(lambda: len(served.worker_pids) == 2 and dead not in served.worker_pids)
            return took_s

        assert best_s(answered_s, 1.0, TRIES) < 1.0
        assert {said(served.port) for _ in range(20)} == {"old"}
        assert "starting another" in served.stderr


def test_a_replaced_worker_serves_what_the_others_serve(simulator: SimulatorProcess) -> None:
    """After a reload the project has changed; a worker started later must not bring the old one back."""
    with gateway(project(simulator.url), workers=2) as served:
        served.write(project(simulator.url, "new"))
        served.signal(signal.SIGHUP)
        assert eventually(lambda: {said(served.port) for _ in range(8)} == {"new"})
        dead = kill_one(served)
        assert eventually(lambda: len(served.worker_pids) == 2 and dead not in served.worker_pids)
        assert eventually(lambda: tried(served.port))
        assert {said(served.port) for _ in range(30)} == {"new"}


def tried(port: int) -> bool:
    try:
        return bool(said(port))
    except (OSError, AssertionError):
        return False


@pytest.mark.parametrize("workers", [2, 3])
def test_a_supervisor_that_is_told_to_end_leaves_no_worker_behind(simulator: SimulatorProcess, workers: int) -> None:
    with gateway(project(simulator.url), workers=workers) as served:
        pids = served.worker_pids
        assert len(pids) == workers
        assert served.stop() == 0
        assert all(gone(pid) for pid in pids)
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", served.port), 1):
            pass


def test_a_gateway_that_is_told_to_end_while_it_replaces_a_worker_ends(simulator: SimulatorProcess) -> None:
    for _ in range(3):
        with gateway(project(simulator.url), workers=2) as served:
            known = set(served.worker_pids)
            kill_one(served)
            # Right at the fork: the signal must reach a worker that has hardly begun.
            assert eventually(lambda served=served, known=known: set(served.worker_pids) - known, every_s=0)
            served.signal(signal.SIGTERM)
            pids = [*known, *served.worker_pids]
            try:
                assert served.wait() == 0
                assert all(gone(pid) for pid in pids)
            finally:
                served.kill()


def test_a_killed_supervisor_leaves_no_worker_behind(simulator: SimulatorProcess) -> None:
    """Nobody would reload, replace or end them, and they would answer beside the next gateway on that port."""
    with gateway(project(simulator.url), workers=2) as served:
        pids = served.worker_pids
        served.signal(signal.SIGKILL)
        served.wait()
        try:
            assert all(gone(pid) for pid in pids), "workers outlived their supervisor"
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_gateway_that_is_told_to_end_while_it_starts_leaves_nothing(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url), workers=3, start=False) as served:
        starting: Any = threading.Thread(target=lambda: _start(served), daemon=True)
        starting.start()
        assert eventually(lambda: served._child is not None and len(served.worker_pids) >= 1, every_s=0.002)
        pids = served.worker_pids
        served.signal(signal.SIGTERM)
        served.wait()
        starting.join(WAIT_S)
        pids += served.worker_pids
        try:
            assert all(gone(pid) for pid in pids), "a worker was left behind"
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _start(served: Gateway) -> None:
    with contextlib.suppress(AssertionError, ValueError):
        served.start()
