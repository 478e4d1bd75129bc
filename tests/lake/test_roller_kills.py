"""Kills: whatever moment the roller's process ends at, nothing is lost and nothing is there twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from roller_world import roller, seen_calls, seen_outcomes, spent, stores

from drivetrain.lake import plans
from drivetrain.lake.plans import ledger_of
from support.records import call_id
from support.tries import PATIENCE_S

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
WRITER = """
import os, sys, time
sys.path[:0] = [sys.argv[2], os.path.dirname(sys.argv[2])]
from pathlib import Path
from roller_world import outcome
from drivetrain.ledger.journal import FrameJournal
from support.records import attempt, closed, opened
journal = FrameJournal(Path(sys.argv[1]), segment_bytes_max=60_000)
sent = open(sys.argv[3], "a", buffering=1)
number = int(sys.argv[4])
parent, turn = os.getppid(), 0
while os.getppid() == parent:
    turn += 1
    # Alone, as an idle gateway writes, and sometimes as a busy one does, in blocks.
    several = 60 if turn % 20 == 0 else 1
    done = []
    for one in range(number, number + several):
        journal.append(opened(one))
        if one % 9:
            journal.append(closed(one, attempt("small", one)), lambda ok, one=one: done.append(one))
        if one % 5 == 0:
            journal.append(outcome(one))
    journal.flush()
    # What stands here has been answered: it is in the ledger for good.
    for one in done:
        sent.write(f"{one}\\n")
    number += several
    time.sleep(0.01)
"""
ROLLERS = """
import os, sys
sys.path[:0] = [sys.argv[2], os.path.dirname(sys.argv[2])]
from pathlib import Path
import deltalake, duckdb
from roller_world import roller
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        rolling = roller(Path(sys.argv[1]), rows=40)
        while True:
            rolling.roll()
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("gone", flush=True)
"""
"""Loads the libraries once, and has a child that rolls for each line that it gets."""


def start(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def check(folder: Path, log: Path) -> None:
    """Every answered Call is in lake and tail once, with its money; so is every Outcome."""
    answered = sorted({int(line) for line in log.read_text().splitlines() if line})
    calls = seen_calls(folder)
    ids = [call.call_id for call in calls]
    assert len(ids) == len(set(ids))
    cost = {call.call_id: (call.status, call.cost_nano_usd) for call in calls}
    wrong = [one for one in answered if cost.get(call_id(one)) != ("answered", one)]
    assert wrong == []
    about = [one.call_id for one in seen_outcomes(folder)]
    assert len(about) == len(set(about))
    assert {call_id(one) for one in answered if one % 5 == 0} <= set(about)


def rounds(folder: Path, kills: int, seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    log = folder / "answered"
    log.touch()
    writer = start(WRITER, folder, HERE, log, 0)
    rollers = start(ROLLERS, folder, HERE)
    assert rollers.stdin is not None
    assert rollers.stdout is not None
    longest, last, count = 0.2, [0], 0
    try:
        while not log.read_text():
            time.sleep(0.01)
        # A slow machine may take more of them until enough rolls have come to a commit.
        while count < kills or (count < 10 * kills and last[-1:] <= [kills // 8]):
            rollers.stdin.write(b"go\n")
            rollers.stdin.flush()
            pid = int(rollers.stdout.readline())
            time.sleep(dice.random() * longest)
            os.kill(pid, signal.SIGKILL)
            assert rollers.stdout.readline() == b"gone\n"
            made = plans.numbers(folder)[-1:]
            # Long enough that about every second one comes to a commit, whatever the machine does besides.
            longest = min(longest * 1.3, 3.0) if made == last else max(longest * 0.8, 0.02)
            last = made
            if count % 20 == 7:
                check(folder, log)
            if count % 25 == 24:
                kill(writer)
                next_number = int(log.read_text().splitlines()[-1]) + 100
                writer = start(WRITER, folder, HERE, log, next_number)
            count += 1
    finally:
        kill(rollers)
        kill(writer)
    check(folder, log)
    roller(folder).roll()
    check(folder, log)
    calls = seen_calls(folder)
    assert {call.status for call in calls} == {"answered", "interrupted"}
    total = spent(folder)[()]
    assert total[0] == len(calls)
    assert total[3] == sum(call.cost_nano_usd for call in calls)
    ledger, newest = ledger_of(folder), plans.newest(folder)
    assert ledger is not None
    assert newest is not None
    for table in ("calls", "outcomes", "spend"):
        files = stores(folder).files(table, transactions=[ledger.application])
        assert files is not None
        assert files.transactions[ledger.application] == newest.number
    assert newest.number > kills // 8


def test_a_roller_that_is_killed_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    rounds(tmp_path, 15, random.SystemRandom().randrange(10**6))


@pytest.mark.timeout(1_800)
def test_a_roller_that_is_killed_two_hundred_times_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    rounds(tmp_path, 200, random.SystemRandom().randrange(10**6))


def test_a_reader_sees_each_call_once_and_soon_while_it_is_rolled(tmp_path: Path) -> None:
    log = tmp_path / "answered"
    log.touch()
    writer = start(WRITER, tmp_path, HERE, log, 0)
    stop = threading.Event()

    def keep_rolling() -> None:
        rolling = roller(tmp_path, rows=200)
        while not stop.is_set():
            rolling.roll()

    thread = threading.Thread(target=keep_rolling)
    thread.start()
    try:
        tables = stores(tmp_path)
        looks, began = 0, time.monotonic()
        while (passed_s := time.monotonic() - began) < 2 or (
            passed_s < 2 * PATIENCE_S and (looks <= 1 or plans.numbers(tmp_path)[-1:] <= [1])
        ):
            answered = [int(line) for line in log.read_text().split("\n")[:-1]]
            calls = seen_calls(tmp_path, tables)
            ids = {call.call_id for call in calls if call.status == "answered"}
            assert len(calls) == len({call.call_id for call in calls})
            assert [one for one in answered if call_id(one) not in ids] == []
            looks += 1
        assert looks > 1
    finally:
        stop.set()
        thread.join()
        kill(writer)
    newest = plans.newest(tmp_path)
    assert newest is not None
    assert newest.number > 1
