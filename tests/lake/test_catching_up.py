"""A long tail is rolled before it is read: each Call is decoded once, and not by every command that asks."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from named_lake import ended, lake_in, tables_in

from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.asking import open_lake
from drivetrain.lake import plans
from drivetrain.lake.lake import Lake
from drivetrain.lake.roller import Roller
from drivetrain.lake.waiting import ROLL_FIRST_BYTES, waiting_bytes
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ports.tables import TableStore

pytestmark = pytest.mark.slow

COUNT = "select count(*), count(distinct call_id), sum(cost_nano_usd) from calls"


def fill(data_folder: Path, calls: int, *, keep_open: bool = False) -> FrameJournal:
    """A ledger of a busy gateway: a thousand Calls a block."""
    journal = FrameJournal(data_folder)
    for number in range(calls):
        for record in ended(number, 10):
            journal.append(record)
        if number % 1_000 == 999:
            journal.flush()
    journal.flush()
    if not keep_open:
        journal.close()
    return journal


def plain(data_folder: Path) -> int:
    """Somewhat more than a question reads by itself, in plain frames; how many Calls."""
    journal = FrameJournal(data_folder)
    number = 0
    while waiting_bytes(data_folder, None) <= ROLL_FIRST_BYTES:
        for _ in range(100):
            number += 1
            for record in ended(number, 10):
                journal.append(record)
                journal.flush()
    journal.close()
    return number


class Failing:
    """A table store that takes no rows."""

    def __init__(self, inner: TableStore, failure: Exception) -> None:
        self._inner = inner
        self._failure = failure
        self.appends = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def append(self, table: str, rows: Any, **options: Any) -> bool:
        self.appends += 1
        raise self._failure


def asking(data_folder: Path, tables: TableStore) -> Lake:
    return Lake(data_folder, tables, catch_up=lambda: Roller(data_folder, tables).roll())


def test_a_ledger_of_200_000_calls_is_decoded_once_and_not_by_every_command(tmp_path: Path) -> None:
    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "tests"\n')
    data_folder = tmp_path / ".drivetrain" / "data"
    fill(data_folder, 200_000)
    assert waiting_bytes(data_folder, None) > ROLL_FIRST_BYTES
    spent = []
    for _ in range(3):
        started = time.process_time()
        assert open_lake(tmp_path).query(COUNT).rows == [(200_000, 200_000, 2_000_000)]
        spent.append(time.process_time() - started)
    assert waiting_bytes(data_folder, plans.newest(data_folder)) == 0
    assert max(spent[1:]) < spent[0] / 4, spent


def test_a_long_tail_is_rolled_by_who_asks_first_and_a_short_one_by_nobody(tmp_path: Path) -> None:
    calls = plain(tmp_path)
    lake = asking(tmp_path, tables_in(tmp_path))
    assert lake.query(COUNT).rows == [(calls, calls, calls * 10)]
    newest = plans.newest(tmp_path)
    assert newest is not None
    rolled = newest.number
    assert waiting_bytes(tmp_path, newest) == 0
    journal = FrameJournal(tmp_path)
    for record in ended(0, 10):
        journal.append(record)
    journal.flush()
    for asked in (lake, asking(tmp_path, tables_in(tmp_path))):
        assert asked.query(COUNT).rows == [(calls + 1, calls + 1, calls * 10 + 10)]
    assert plans.numbers(tmp_path)[-1] == rolled, "a short tail is read, not rolled"
    journal.close()


def test_a_lake_that_is_only_read_rolls_nothing(tmp_path: Path) -> None:
    calls = plain(tmp_path)
    assert lake_in(tmp_path).query(COUNT).rows == [(calls, calls, calls * 10)]
    assert plans.newest(tmp_path) is None


@pytest.mark.parametrize(
    "failure", [DrivetrainError("The lake is read-only."), PermissionError(13, "Permission denied")]
)
def test_where_nothing_can_be_rolled_everything_is_read_from_the_segments(tmp_path: Path, failure: Exception) -> None:
    calls = plain(tmp_path)
    tables = Failing(tables_in(tmp_path), failure)
    lake = asking(tmp_path, tables)
    for _ in range(2):
        assert lake.query(COUNT).rows == [(calls, calls, calls * 10)]
    assert tables.appends == 1, "it is not tried by every question"
    # The plan of the roll that failed is there; whoever can write finishes it.
    assert asking(tmp_path, tables_in(tmp_path)).query(COUNT).rows == [(calls, calls, calls * 10)]
    files = tables_in(tmp_path).info("calls")
    assert files is not None
    assert files.rows == calls


def test_while_another_process_rolls_the_tail_is_read(tmp_path: Path) -> None:
    calls = plain(tmp_path)
    with plans.locked(tmp_path) as held:
        assert held
        assert asking(tmp_path, tables_in(tmp_path)).query(COUNT).rows == [(calls, calls, calls * 10)]
    assert plans.newest(tmp_path) is None


def test_many_that_ask_at_once_see_each_call_once(tmp_path: Path) -> None:
    calls = plain(tmp_path)
    lake = asking(tmp_path, tables_in(tmp_path))
    seen: list[Any] = []
    asked = [threading.Thread(target=lambda: seen.append(lake.query(COUNT).rows)) for _ in range(4)]
    for one in asked:
        one.start()
    for one in asked:
        one.join()
    assert seen == [[(calls, calls, calls * 10)]] * 4
