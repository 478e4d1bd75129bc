"""Promise 12: a store that freezes costs a call at most 50 ms; then it is refused, or goes on by what is leased.

The time is that of all calls of eleven but the slowest: a machine that stands still for a moment spoils one, and a
product that waits longer all of them.

Frozen: another process holds the store's lock and is stopped. Three of them: the queue before the counters, the
counters themselves, and the issued keys. Workflows that need none of it notice nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from promise_gateway import Gateway, eventually, gateway, simulated

from drivetrain.embedded.limiting import limits_folder
from drivetrain.simulator import SimulatorProcess
from support import books, wire
from support.projects import model, provider, settings, workflow

pytestmark = pytest.mark.slow

CALLS = 11
WITHIN_MS = 50
NOISE_MS = 60
"""For a busy machine: the client's and the worker's turns on its cores."""
HOLDERS = {
    "queue": "import fcntl,os; fd = os.open(sys.argv[1] + '/queue.lock', os.O_RDWR); fcntl.flock(fd, fcntl.LOCK_EX)",
    "counters": (
        "import sqlite3; db = sqlite3.connect(sys.argv[1] + '/counters.db', isolation_level=None); "
        "db.execute('BEGIN IMMEDIATE')"
    ),
    "keys": ("import sqlite3; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute('BEGIN EXCLUSIVE')"),
}


@contextlib.contextmanager
def frozen(what: str, place: Path) -> Iterator[None]:
    """Somebody else holds the lock, and is stopped."""
    script = f"import sys, time; {HOLDERS[what]}; print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", script, str(place)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        os.kill(holder.pid, signal.SIGSTOP)
        yield
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess({"seed": 1, "models": {"m": simulated(output_tokens=5)}}) as running:
        yield running


@pytest.fixture
def served(simulator: SimulatorProcess) -> Iterator[Gateway]:
    tables = (
        provider("sim", f"{simulator.url}/v1") + model("sim/m")
        + workflow("limited", "sim/m") + workflow("free", "sim/m")
        + books.limit("month", "workflow:limited", usd="50") + books.limit("each", "each user", usd="1", mode="soft")
    )  # fmt: skip
    with gateway({"drivetrain.toml": settings(tables=tables)}) as running:
        yield running


def ask(served: Gateway, name: str, tokens: int = 50, key: str | None = None) -> tuple[wire.Answered, float]:
    """The answer, and what it took in ms."""
    body = {"model": name, "max_tokens": tokens, "messages": [{"role": "user", "content": "hello"}]}
    began = time.monotonic()
    answer = wire.one(served.port, wire.request(body, key=key))
    return answer, (time.monotonic() - began) * 1000


def usual_ms(served: Gateway, name: str) -> float:
    """Of calls that were answered, once one was."""
    assert eventually(lambda: ask(served, name)[0].status == 200)
    return median(ask(served, name)[1] for _ in range(CALLS))


def most(took_ms: list[float]) -> float:
    """What all but one of these calls keep."""
    return sorted(took_ms)[-2]


def readyz(served: Gateway) -> wire.Answered:
    return wire.one(served.port, wire.request(method="GET", path="/readyz"))


@pytest.mark.parametrize("what", ["queue", "counters"])
def test_frozen_counters_cost_a_call_50_ms_and_others_nothing(served: Gateway, what: str) -> None:
    usual = usual_ms(served, "free")
    limited_ms, free_ms = [], []
    with frozen(what, limits_folder(served.data_folder)):
        # Nothing of this budget is leased here yet, so it must be refused: only the store may say that it fits.
        for _ in range(CALLS):
            answer, took = ask(served, "limited")
            assert (answer.status, answer.json["error"]["code"]) == (503, "limits_unavailable")
            assert "retry-after" in answer.headers
            limited_ms.append(took)
            answer, took = ask(served, "free")
            assert answer.status == 200
            free_ms.append(took)
    assert most(free_ms) <= usual + NOISE_MS, (usual, free_ms)
    assert most(limited_ms) <= WITHIN_MS + NOISE_MS, limited_ms
    assert eventually(lambda: ask(served, "limited")[0].status == 200), "it never recovers"
    assert eventually(lambda: readyz(served).status == 200)
    cost = sum(call.cost_nano_usd for call in served.calls() if call.workflow == "limited")
    assert eventually(lambda: books.settled(served.data_folder, "month") == {"month/limited": cost})


@pytest.mark.parametrize("what", ["queue", "counters"])
def test_what_is_leased_is_spent_while_the_counters_are_frozen(served: Gateway, what: str) -> None:
    usual = usual_ms(served, "limited")
    leased_ms, beyond_ms = [], []
    with frozen(what, limits_folder(served.data_folder)):
        for _ in range(CALLS):
            answer, took = ask(served, "limited", tokens=5)
            assert answer.status == 200, answer
            leased_ms.append(took)
        for _ in range(CALLS):
            refused, took = ask(served, "limited", tokens=4_000_000)
            assert refused.status in (429, 503)
            beyond_ms.append(took)
    assert most(leased_ms) <= usual + NOISE_MS, (usual, leased_ms)
    assert most(beyond_ms) <= WITHIN_MS + NOISE_MS, beyond_ms
    cost = sum(call.cost_nano_usd for call in served.calls())
    assert eventually(lambda: books.settled(served.data_folder, "month") == {"month/limited": cost})


def test_a_stuck_queue_lets_a_gateway_end(served: Gateway) -> None:
    """Its last words cannot be said; they are resolved from the ledger at the next start."""
    assert ask(served, "limited")[0].status == 200
    with frozen("queue", limits_folder(served.data_folder)):
        assert ask(served, "limited", tokens=5)[0].status == 200
        served.signal(signal.SIGTERM)
        served.wait()
    served.start()
    cost = sum(call.cost_nano_usd for call in served.calls())
    assert eventually(lambda: books.settled(served.data_folder, "month") == {"month/limited": cost})


def test_frozen_issued_keys_cost_nothing_for_keys_that_are_known(served: Gateway) -> None:
    key = served.command("keys", "issue", "shop", "--json")
    secret = next(word for word in key.replace('"', " ").split() if word.startswith("dt"))
    assert eventually(lambda: ask(served, "free", key=secret)[0].status == 200 and ask(served, "free")[0].status == 401)
    usual = median(ask(served, "free", key=secret)[1] for _ in range(CALLS))
    took_ms = []
    store = next(path for path in served.root.rglob("keys.db"))
    with frozen("keys", store):
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            answer, took = ask(served, "free", key=secret)
            assert answer.status == 200
            took_ms.append(took)
            assert ask(served, "free", key="dt_wrong")[0].status == 401
            time.sleep(0.05)
    assert most(took_ms) <= usual + NOISE_MS, (usual, took_ms)
    served.command("keys", "revoke", "shop", "--now")
    assert eventually(lambda: ask(served, "free", key=secret)[0].status == 401, wait_s=2)
