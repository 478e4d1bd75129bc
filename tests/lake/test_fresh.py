"""A query sees each Call once, and what was written before it: in the middle of a roll, and while files vanish."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from named_lake import ended, lake_in, roll, tables_in

from drivetrain.core.calls import OutcomeV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.lake.columns import OutcomeRows
from drivetrain.lake.lake import TRIES, Lake
from drivetrain.lake.roller import Roller
from drivetrain.ports.tables import TableFiles, TableStore
from support.records import T0_NS, attempt, call_id, closed, opened, write
from support.tries import PATIENCE_S

pytestmark = pytest.mark.slow

EACH_ONCE = "select count(*), count(distinct call_id), sum(cost_nano_usd) from calls"
TOTALS = (
    EACH_ONCE,
    "select sum(calls), count(distinct day), sum(cost_nano_usd) from spend",
    "select count(*), count(distinct value), sum(number) from outcomes_history",
)


class Watched:
    """A TableStore that does something before it is asked or written."""

    def __init__(
        self,
        inner: TableStore,
        *,
        before_files: Callable[[str], None] = lambda _: None,
        before_append: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._inner = inner
        self._before_files = before_files
        self._before_append = before_append
        self.given: list[TableFiles | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def files(self, table: str, **options: Any) -> TableFiles | None:
        self._before_files(table)
        found = self._inner.files(table, **options)
        self.given.append(found)
        return found

    def append(self, table: str, rows: Any, **options: Any) -> bool:
        self._before_append(table)
        return self._inner.append(table, rows, **options)


def totals(lake: Lake) -> list[tuple[Any, ...]]:
    return [lake.query(query).rows[0] for query in TOTALS]


def outcome(number: int) -> OutcomeV1:
    return OutcomeV1(call_id(number), "ok", "human", float(number), T0_NS, T0_NS + number)


@pytest.mark.parametrize("table", ["calls", "outcomes", "spend"])
def test_totals_hold_in_the_middle_of_a_roll(tmp_path: Path, table: str) -> None:
    """The roller dies before a table's commit; a lake that was asked before, and a new one, say what was written."""
    journal = write(tmp_path, *ended(1, 10), opened(2), outcome(1), keep_open=True)
    lake = lake_in(tmp_path)
    assert totals(lake) == [(2, 2, 10), (2, 1, 10), (1, 1, 1.0)]
    roll(tmp_path)
    for record in (closed(2, attempt(cost_nano_usd=20)), *ended(3, 30), outcome(2)):
        journal.append(record)
    journal.flush()
    expected = [(3, 3, 60), (3, 1, 60), (2, 2, 3.0)]
    assert totals(lake) == expected

    def die(at: str) -> None:
        if at == table:
            raise OSError(28, "No space left on device")

    with pytest.raises(DrivetrainError):
        Roller(tmp_path, Watched(tables_in(tmp_path), before_append=die)).roll()
    assert totals(lake) == totals(lake) == totals(lake_in(tmp_path)) == expected
    roll(tmp_path)
    assert totals(lake) == totals(lake_in(tmp_path)) == expected
    journal.append(opened(4))
    journal.flush()
    assert totals(lake)[0] == (4, 4, 60)
    journal.close()


@pytest.mark.parametrize("first", [True, False])
def test_a_roll_between_two_looks(tmp_path: Path, first: bool) -> None:
    """The roll ends after the lake has looked at the plans and before it looks at a table."""
    write(tmp_path, *ended(1, 10), outcome(1))
    if not first:
        roll(tmp_path)
        write(tmp_path, *ended(2, 20), outcome(2))
    expected = [(1, 1, 10), (1, 1, 10), (1, 1, 1.0)] if first else [(2, 2, 30), (2, 1, 30), (2, 2, 3.0)]
    for table in ("calls", "outcomes", "spend"):
        rolled: list[int] = []

        def then_roll(asked: str, table: str = table, rolled: list[int] = rolled) -> None:
            if asked == table and not rolled:
                rolled.append(roll(tmp_path))

        assert totals(Lake(tmp_path, Watched(tables_in(tmp_path), before_files=then_roll))) == expected
        assert rolled


def test_files_that_vanish_are_read_anew(tmp_path: Path) -> None:
    """As after an erasure with vacuum: the version that was fixed has no files any more, a newer one has."""
    write(tmp_path, *ended(1, 10))
    roll(tmp_path)
    tables = tables_in(tmp_path)
    stale = tables.files("calls", transactions=(_application(tables, tmp_path),))
    assert stale is not None
    missing = TableFiles(stale.version, tuple(f"{path}.gone" for path in stale.paths), stale.transactions)
    answers: list[TableFiles] = [missing, missing]

    class Late(Watched):
        def files(self, table: str, **options: Any) -> TableFiles | None:
            return answers.pop() if table == "calls" and answers else super().files(table, **options)

    assert Lake(tmp_path, Late(tables)).query("select sum(cost_nano_usd) from calls").rows == [(10,)]
    assert not answers
    answers.extend([missing] * (2 * TRIES**2))
    with pytest.raises(DrivetrainError, match="A file of a table was deleted while it was read"):
        Lake(tmp_path, Late(tables)).query("select sum(cost_nano_usd) from calls")


def _application(tables: TableStore, folder: Path) -> str:
    seen: list[Sequence[str]] = []

    class Asked(Watched):
        def files(self, table: str, *, transactions: Sequence[str] = (), **options: Any) -> TableFiles | None:
            seen.append(transactions)
            return super().files(table, transactions=transactions, **options)

    Lake(folder, Asked(tables)).query("select 1 from calls")
    return seen[0][0]


def test_a_lake_that_was_rolled_is_not_read_without_its_tables(tmp_path: Path) -> None:
    write(tmp_path, *ended(1))
    assert Lake(tmp_path).query("select count(*) from calls").rows == [(1,)]
    roll(tmp_path)
    with pytest.raises(DrivetrainError, match="no lake was given"):
        Lake(tmp_path).query("select count(*) from calls")


def test_the_next_query_reads_only_what_is_new(tmp_path: Path) -> None:
    """What was read before is overwritten on the disk, and the lake still knows it."""
    journal = write(tmp_path, *[record for number in range(50) for record in ended(number)], keep_open=True)
    lake = lake_in(tmp_path)
    assert totals(lake)[0] == (50, 50, 50_000)
    (segment,) = (tmp_path / "calls").glob("*.seg")
    size = segment.stat().st_size
    journal.append(opened(50))
    journal.append(closed(50, attempt()))
    journal.flush()
    with segment.open("r+b") as file:
        file.write(b"\0" * size)
    assert totals(lake)[0] == (51, 51, 51_000)
    assert totals(lake_in(tmp_path))[0] == (1, 1, 1_000)
    journal.close()


def test_many_looks_keep_few_pieces() -> None:
    rows = OutcomeRows("", None)
    for number in range(1_000):
        for _ in range(1 + number % 3):
            rows.add(outcome(number), "s")
        made = rows.batches()
        assert len(made) <= 16
    values = [one for batch in made for one in batch["number"].to_pylist()]
    assert values == [float(number) for number in range(1_000) for _ in range(1 + number % 3)]


WRITER = """
import os, sys, time
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from support.records import attempt
from drivetrain.core.calls import Attribution, ClosedV1, OpenedV1
from drivetrain.ledger.journal import FrameJournal
journal, number, started_s = FrameJournal(Path(sys.argv[1]), segment_bytes_max=200_000), 0, time.time()
while not os.path.exists(sys.argv[2]):
    for _ in range(20):
        number += 1
        now_ns = time.time_ns()
        name = f"call_{now_ns // 1_000_000:012x}0123456789{number:08x}"
        journal.append(OpenedV1(name, now_ns, "0" * 16, "triage", "chat", False, Attribution(team=f"t{number % 7}")))
        journal.append(ClosedV1(name, now_ns + 5_000_000, "answered", 200, "small", 1_000, (attempt(),)))
    journal.flush()
    print(number, flush=True)
    time.sleep(max(0, started_s + number / 2_000 - time.time()))
"""


class Writer:
    """A process that writes 2,000 Calls a second until it is told to end, and tells how many stand."""

    def __init__(self, folder: Path) -> None:
        self._end = folder / "enough"
        command = [sys.executable, "-c", WRITER, str(folder), str(self._end), str(Path(__file__).parent.parent)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.standing = 0
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.standing = int(line)

    def end(self) -> int:
        """How many stand in the end."""
        self._end.touch()
        self._thread.join()
        assert self.process.wait() == 0
        return self.standing


def test_every_call_is_seen_at_once_and_once_while_the_roller_rolls(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    writer, lake, done = Writer(tmp_path), lake_in(tmp_path), threading.Event()

    def keep_rolling() -> None:
        while not done.wait(dice.uniform(0, 0.4)):
            roll(tmp_path)

    roller = threading.Thread(target=keep_rolling)
    roller.start()
    looks, began = 0, time.monotonic()
    try:
        while (passed_s := time.monotonic() - began) < 5 or (
            passed_s < 2 * PATIENCE_S and (looks <= 5 or writer.standing <= 2_000)
        ):
            stood = writer.standing
            count, ids, cost = lake.query(
                "select count(*), count(distinct call_id), sum(cost_nano_usd) from calls"
            ).rows[0]
            assert count == ids >= stood
            assert (cost or 0) <= 1_000 * count
            (counted,) = lake.query("select sum(calls) from spend").rows[0]
            assert (counted or 0) >= count
            looks += 1
    finally:
        done.set()
        roller.join()
        total = writer.end()
    assert looks > 5
    assert total > 2_000
    assert lake.query(EACH_ONCE).rows == [(total, total, 1_000 * total)]


def test_a_query_pays_for_what_is_new_and_not_for_all_that_waits(tmp_path: Path) -> None:
    """While 2,000 Calls a second are written. CPU of all threads beside that of somebody who reads all of it anew.

    How long it takes is a benchmark's to say.
    """
    writer, lake = Writer(tmp_path), lake_in(tmp_path)
    query = "select team, count(*), sum(cost_nano_usd) from calls where opened_ns > $1 group by team"

    def cpu_ms(asked: Lake) -> float:
        started_s = time.process_time()
        rows = asked.query(query, [time.time_ns() - 10**9]).rows
        took_ms = (time.process_time() - started_s) * 1_000
        return took_ms if sum(row[1] for row in rows) > 500 else 0.0  # else the writer stands still

    while not writer.standing:
        time.sleep(0.05)
    lake.query(query, [0])
    going_on: list[float] = []
    anew: list[float] = []
    began = time.monotonic()
    try:
        while (passed_s := time.monotonic() - began) < 5 or (passed_s < 2 * PATIENCE_S and len(anew) < 3):
            time.sleep(1)
            pair = cpu_ms(lake), cpu_ms(lake_in(tmp_path))
            if all(pair):
                going_on.append(pair[0])
                anew.append(pair[1])
    finally:
        writer.end()
    print(f"{going_on} ms, anew {anew} ms, {os.getloadavg()[0]:.1f} at work")
    assert len(anew) >= 3
    assert min(going_on[-2:]) < 0.7 * min(anew[-2:])
