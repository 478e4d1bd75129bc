"""Promises 2 and 3 with real processes: four on the last dollar of one SQLite store, one of them killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from last_dollar_worker import CAP, read

from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.core.calls import ClosedV1
from drivetrain.limits.recovery import bury_dead
from drivetrain.ports.counters import GRANTED, MONEY, REFUSED, Line, SyncRequest, Terms, Want

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("last_dollar_worker.py")


def test_four_processes_never_overspend_and_leave_nothing_that_fits(tmp_path: Path) -> None:
    names = [f"p{number}" for number in range(4)]
    processes = [
        subprocess.Popen([sys.executable, str(WORKER), str(tmp_path), name], stderr=subprocess.PIPE) for name in names
    ]
    while not all((tmp_path / f"{name}.ready").exists() for name in names):
        time.sleep(0.005)
        assert all(process.poll() is None for process in processes)
    (tmp_path / "go").touch()
    until = time.monotonic() + 2
    while (tmp_path / "p0.frames").stat().st_size < 3_000:
        time.sleep(0.001)
        assert processes[0].poll() is None, processes[0].communicate()[1].decode()
    processes[0].kill()
    time.sleep(max(0.0, until - time.monotonic()))
    (tmp_path / "stop").touch()
    for process in processes:
        _, told = process.communicate(timeout=30)
        if process is not processes[0]:
            assert process.returncode == 0, told.decode()

    store = SqliteCounters(tmp_path / "counters")
    store.join("auditor")
    bury_dead(store, lambda writer, _: read(tmp_path / f"{writer}.frames"))
    assert store.dead() == ()

    spent, open_calls = 0, {}
    for name in names:
        for record in read(tmp_path / f"{name}.frames"):
            if isinstance(record, ClosedV1):
                open_calls.pop(record.call_id)
                spent += record.cost_nano_usd
            else:
                open_calls[record.call_id] = record
                account = record.accounts[0]
    assert all(call_id.startswith("p0-") for call_id in open_calls), "a process that was not killed left a Call open"
    spent += sum(record.open_cost_nano_usd for record in open_calls.values())
    state = store.account(account)
    assert state is not None
    assert (state.settled, state.held, state.over) == (spent, 0, 0)
    assert spent <= CAP
    # Whoever was refused had found less than `WORST` left; and what is left now can be spent to the last nano-USD.
    verdicts = [wanted(store, account, CAP - spent + more) for more in (1, 0)]
    assert verdicts == [REFUSED, GRANTED]
    store.leave()
    store.close()


def wanted(store: SqliteCounters, account: str, units: int) -> str:
    line = Line(1, Terms(account, MONEY, CAP), units, units, units)
    return store.sync(SyncRequest("auditor", 0, wants=(Want(1, (line,), last=True),))).verdicts[0].outcome
