"""A worker that shows no life is killed and replaced, a lone one too; one that is busy, or was paused, is not."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drivetrain.core.calls import Call
from drivetrain.ledger.reader import LedgerReader
from drivetrain.simulator import SimulatorProcess
from promises.promise_gateway import gone
from support import wire
from support.projects import model, provider, settings, workflow
from support.served import READY, START, Served
from support.tries import PATIENCE_S, Spoiled, eventually, in_one_try, measured

pytestmark = pytest.mark.slow

SILENT_S = 2.0
REPLACED_S = 5.0
"""Silence, its noticing, the telling and a start, on a busy machine."""

RULES = """
import time

import drivetrain as dt


class Ask(dt.Record, frozen=True):
    text: str


class Said(dt.Record, frozen=True):
    text: str


def never_returns(ask):
    while "hang" in ask.text:
        pass
    return False


def takes_its_time(ask):
    if "nap" in ask.text:
        time.sleep(1.2)
    return True


ruled = dt.Workflow(
    "ruled", input=Ask, output=Said, owner="team@acme.example", team="support", use_case="tests",
    route=[
        dt.Rule("stuck", when=never_returns, then=Said("never")),
        dt.Rule("rest", when=takes_its_time, then=Said("ruled")),
        dt.Variant("small", model="sim/m", prompt="ruled.j2"),
    ],
)
"""


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    paced = {"dialect": "openai", "usd_per_million_input": "1", "usd_per_million_output": "2", "latency_ms": 20_000}
    with SimulatorProcess({"seed": 1, "models": {"m": paced}}) as running:
        yield running


@contextlib.contextmanager
def gateway(simulator: SimulatorProcess, *, workers: int) -> Iterator[Served]:
    """Serves `ruled`, which rules answer, and `help`, whose model takes 20 s."""
    tables = provider("sim", f"{simulator.url}/v1") + model("sim/m")
    tables += workflow("help", "sim/m", more='budget = { usd_per_day = "1" }\n')
    with tempfile.TemporaryDirectory(prefix="drivetrain-test-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        (root / "workflows").mkdir()
        (root / "workflows" / "ruled.py").write_text(RULES)
        (root / "workflows" / "ruled.j2").write_text("{{ text }}")
        (root / "drivetrain.toml").write_text(settings(tables=tables))
        command = [sys.executable, "-c", START, "serve", "--project", folder, "--port", "0", "--workers", str(workers)]
        with (root / "stderr.txt").open("w") as said:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        running = Served(root, child, 0, root / "stderr.txt")
        try:
            assert child.stdout is not None
            ready = READY.search(child.stdout.readline())
            assert ready, running.stderr
            running.port = int(ready[1])
            yield running
        finally:
            with contextlib.suppress(OSError):
                os.kill(child.pid, signal.SIGCONT)
            running.stop()
            if child.stdout is not None:
                child.stdout.close()


def ask(port: int, text: str, wait_s: float = PATIENCE_S) -> wire.Heard:
    return wire.ask(port, wire.request({"text": text}, path="/v1/workflows/ruled"), wait_s=wait_s)


def answers(port: int, wait_s: float = 3.0) -> bool:
    with contextlib.suppress(OSError):
        heard = ask(port, "hello", wait_s=wait_s)
        return bool(heard.answers) and heard.answers[0].status == 200
    return False


def replaced(running: Served, gone: int, workers: int) -> bool:
    pids = running.workers
    return gone not in pids and len(pids) == workers


def in_ledger(running: Served, name: str) -> list[Call]:
    return [call for call in LedgerReader(running.data_folder).calls() if call.workflow == name]


class Client(threading.Thread):
    """One request on a connection of its own, and how it ended."""

    def __init__(self, running: Served, request: bytes) -> None:
        super().__init__(daemon=True)
        self._connection = wire.connect(running.port)
        self._connection.sendall(request)
        self.heard: wire.Heard | None = None
        self.start()

    def run(self) -> None:
        with self._connection:
            self.heard = wire.hear(self._connection)


def hung(running: Served) -> Client:
    return Client(running, wire.request({"text": "hang"}, path="/v1/workflows/ruled"))


def slow_call(running: Served) -> Client:
    """A call that its provider takes 20 s for, begun."""
    client = Client(running, wire.request({"model": "help", "messages": [{"role": "user", "content": "x"}]}))
    assert eventually(lambda: in_ledger(running, "help"))
    return client


def test_a_lone_worker_in_an_endless_loop_is_replaced_and_its_calls_are_interrupted(
    simulator: SimulatorProcess,
) -> None:
    def story() -> float:
        with gateway(simulator, workers=1) as running:
            (pid,) = running.workers
            cut = slow_call(running)
            begun = time.monotonic()
            stuck = hung(running)
            # Who comes now waits in the queue of the port for the next worker, and is not refused.
            assert ask(running.port, "hello").answers or answers(running.port)
            took_s = time.monotonic() - begun
            assert took_s > SILENT_S - 0.3
            assert replaced(running, pid, 1)
            for client in (stuck, cut):
                client.join(PATIENCE_S)
                assert client.heard is not None
                assert (client.heard.answers, client.heard.end) in (([], "fin"), ([], "rst"))
            assert [call.status for call in in_ledger(running, "help")] == ["interrupted"]
            assert running.stderr.count("has been silent for 2 s") == 1
            assert f"worker 0 (process {pid})" in running.stderr
            assert "in never_returns" in running.stderr, "it names the function that did not return"
            assert "hang" not in running.stderr, "but nothing of what was asked"
            assert "worker 0 ended by SIGKILL; starting another." in running.stderr
            return took_s

    measured(REPLACED_S, story)


def test_others_serve_on_while_one_hangs(simulator: SimulatorProcess) -> None:
    def story() -> None:
        with gateway(simulator, workers=2) as running:
            known = running.workers
            os.kill(known[0], signal.SIGSTOP)
            begun = time.monotonic()

            def heard_s(_: int) -> float:
                """When an answer came; never, where the connection was cut."""
                return time.monotonic() - begun if answers(running.port, PATIENCE_S) else math.inf

            # The kernel gives each connection to either of them; those of the one that hangs wait for its end.
            with ThreadPoolExecutor(32) as pool:
                took_s = list(pool.map(heard_s, range(32)))
            assert min(took_s) < math.inf, "the other one answers, whenever it gets to it"
            assert eventually(lambda: replaced(running, known[0], 2))
            replaced_s = time.monotonic() - begun
            assert replaced_s > SILENT_S - 0.3
            assert known[1] in running.workers
            assert eventually(lambda: all(answers(running.port) for _ in range(16)))
            # So soon only the other one can have answered.
            if min(took_s) >= SILENT_S - 0.3 or replaced_s >= REPLACED_S:
                raise Spoiled(f"answered after {sorted(took_s)} s, replaced after {replaced_s:.3f} s")

    in_one_try(story)


@pytest.mark.parametrize("everybody", [True, False])
def test_nobody_is_blamed_for_a_pause_of_all_or_of_the_supervisor(simulator: SimulatorProcess, everybody: bool) -> None:
    with gateway(simulator, workers=2) as running:
        known = running.workers
        paused = [running.pid, *(known if everybody else [])]
        for pid in paused:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2 * SILENT_S)
        for pid in paused:  # the supervisor first: it looks before they can beat
            os.kill(pid, signal.SIGCONT)
        time.sleep(1.0)
        assert running.workers == known
        assert "silent" not in running.stderr
        assert answers(running.port)


def test_what_may_rightly_take_long_is_no_silence(simulator: SimulatorProcess) -> None:
    """A slow rule, and a project whose modules take longer to load than a worker may be silent."""
    with gateway(simulator, workers=1) as running:
        known = running.workers
        assert ask(running.port, "nap").answers[0].json["output"] == {"text": "ruled"}
        slow = RULES.replace("import time\n", f"import time\n\ntime.sleep({1.5 * SILENT_S})\n", 1)
        (running.root / "workflows" / "ruled.py").write_text(slow.replace('"ruled"))', '"loaded"))'))
        os.kill(running.pid, signal.SIGHUP)
        # Once by the supervisor, then by the worker.
        assert eventually(lambda: "serving snapshot" in running.stderr), running.stderr
        assert ask(running.port, "hello").answers[0].json["output"] == {"text": "loaded"}
        assert running.workers == known
        assert "silent" not in running.stderr


def test_a_worker_that_hangs_while_the_gateway_ends_is_not_waited_for(simulator: SimulatorProcess) -> None:
    def story() -> float:
        with gateway(simulator, workers=1) as running:
            (pid,) = running.workers
            hung(running)
            time.sleep(0.3)
            begun = time.monotonic()
            assert running.stop() == 0
            took_s = time.monotonic() - begun
            assert gone(pid)
            return took_s

    measured(REPLACED_S, story)


def test_a_worker_that_is_lost_again_and_again_is_started_again(simulator: SimulatorProcess) -> None:
    def story() -> float:
        """Its time: more than the supervisor's old bound was in its window."""
        with gateway(simulator, workers=1) as running:
            begun = time.monotonic()
            for _ in range(6):
                assert eventually(lambda: running.workers and answers(running.port))
                os.kill(running.workers[0], signal.SIGKILL)
            took_s = time.monotonic() - begun
            assert eventually(lambda: answers(running.port))
            assert running.alive
            if took_s < 10:
                assert "starting another in 0.8 s" in running.stderr, "with growing pauses"
            return took_s

    measured(10, story)


@pytest.mark.timeout(150)
def test_it_gives_up_only_when_none_serves_and_none_can_start(simulator: SimulatorProcess) -> None:
    with gateway(simulator, workers=2) as running:
        key = subprocess.run(
            [sys.executable, "-c", START, "keys", "issue", "app", "--project", str(running.root)],
            capture_output=True, text=True, timeout=50, check=True,
        ).stdout.strip()  # fmt: skip
        (running.data_folder / "keys.db").unlink()
        first, second = running.workers
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: running.stderr.count("keys.db is missing") > 6), running.stderr
        assert running.alive
        assert second in running.workers
        asked = wire.request({"text": "hello"}, path="/v1/workflows/ruled", key=key)
        assert wire.one(running.port, asked).status == 200, "the other one serves on"
        os.kill(second, signal.SIGKILL)
        assert eventually(lambda: not running.alive, 60)
        assert running.stop() == 1
        assert "giving up" in running.stderr


def test_a_gateway_that_cannot_start_says_why_once(simulator: SimulatorProcess, tmp_path: Path) -> None:
    del simulator
    secret = '[keys.app]\nsecret = "env:NOBODY_SET_THIS"\n'
    rule = '{ rule = "all", matches = ".", answer = "x" }'
    tables = provider("far", "http://127.0.0.1:9/v1") + model("far/m") + secret + workflow("help", rule, "far/m")
    (tmp_path / "drivetrain.toml").write_text(settings(tables=tables))
    ended = subprocess.run(
        [sys.executable, "-c", START, "serve", "--project", str(tmp_path), "--port", "0", "--workers", "3"],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.count("not set or empty") == 1, ended.stderr
    assert ended.stderr.startswith("drivetrain: ")
    assert "giving up" not in ended.stderr
    assert "starting another" not in ended.stderr, "it waits for nothing"


def test_a_lone_worker_leaves_the_port_as_soon_as_its_supervisor_is_gone(simulator: SimulatorProcess) -> None:
    def story() -> float:
        with gateway(simulator, workers=1) as running:
            (pid,) = running.workers
            begun = time.monotonic()
            os.kill(running.pid, signal.SIGKILL)
            assert eventually(lambda: free(running.port), every_s=0.01)
            took_s = time.monotonic() - begun
            assert gone(pid)
            return took_s

    measured(0.5, story)


def free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind(("127.0.0.1", port))
        return True
    return False


def test_a_worker_whose_reservations_others_have_resolved_makes_room_for_one_that_knows(
    simulator: SimulatorProcess,
) -> None:
    def story() -> float:
        with gateway(simulator, workers=1) as running:
            (pid,) = running.workers
            begun = time.monotonic()
            counters = sqlite3.connect(running.data_folder / "limits" / "counters.db", timeout=30)
            with contextlib.closing(counters), counters:
                assert counters.execute("DELETE FROM workers").rowcount == 1
            slow = Client(running, wire.request({"model": "help", "messages": [{"role": "user", "content": "x"}]}))
            slow.join(PATIENCE_S)
            assert slow.heard is not None
            assert [one.status for one in slow.heard.answers] == [503], "nothing is spent by who may not"
            assert eventually(lambda: replaced(running, pid, 1)), running.stderr
            took_s = time.monotonic() - begun
            assert eventually(lambda: answers(running.port))
            assert "others have resolved what this worker had reserved; it ends" in running.stderr
            return took_s

    measured(4, story)
