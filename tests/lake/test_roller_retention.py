"""Retention: what is over goes, what somebody still needs stays, and no reader sees anything twice or not at all."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from roller_world import Halted, HaltingTables, outcome, roller, seen_calls, seen_outcomes, spent, stores, table_rows

from drivetrain.core.calls import OutcomeV1
from drivetrain.lake import plans
from drivetrain.lake.plans import PlanGone
from drivetrain.lake.retention import SEGMENT_GRACE_S, Keep, Maintained, maintain
from drivetrain.lake.roller import Roller
from drivetrain.lake.rows import Tail, tail
from drivetrain.ledger.frames import segments
from drivetrain.ledger.journal import FrameJournal
from support.records import T0_NS, attempt, closed, opened, put, write

pytestmark = pytest.mark.slow

FOR_EVER = Keep()


def roll(folder: Path, at_s: float = 0) -> None:
    Roller(folder, stores(folder), now_ns=lambda: T0_NS + int(at_s * 1e9)).roll()


def tidy(folder: Path, *, at_s: float = 0, keep: Keep = FOR_EVER, **options: Any) -> Maintained:
    given: dict[str, Any] = {"history_s": 86_400, "now_ns": lambda: T0_NS + int(at_s * 1e9), **options}
    return maintain(folder, stores(folder), keep=keep, **given)


def names(folder: Path) -> list[str]:
    return [segment.writer for segment in segments(folder)]


def test_segments_go_once_all_of_them_is_in_the_lake_for_a_while(tmp_path: Path) -> None:
    live = write(tmp_path, opened(1), closed(1, attempt()), writer="live", keep_open=True)
    write(tmp_path, opened(2), closed(2, attempt()), outcome(2), writer="dead")
    calls, outcomes = seen_calls(tmp_path), seen_outcomes(tmp_path)
    assert tidy(tmp_path, at_s=10_000).segments == 0
    roll(tmp_path)
    assert tidy(tmp_path, at_s=SEGMENT_GRACE_S - 1).segments == 0
    assert tidy(tmp_path, at_s=SEGMENT_GRACE_S + 1).segments == 1
    assert names(tmp_path) == ["live"]
    assert (seen_calls(tmp_path), seen_outcomes(tmp_path)) == (calls, outcomes)
    put(live, opened(3))
    live.close()
    roll(tmp_path, 2_000)
    assert tidy(tmp_path, at_s=9_000).segments == 1
    assert names(tmp_path) == []
    assert [call.status for call in seen_calls(tmp_path)] == ["answered", "answered", "interrupted"]
    roll(tmp_path, 10_000)
    assert len(seen_calls(tmp_path)) == 3


def test_a_segment_with_a_call_that_still_runs_stays(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path, segment_bytes_max=400, writer="busy")
    put(journal, opened(1, payload=b"x" * 500))
    put(journal, opened(2), closed(2, attempt()))
    assert len(names(tmp_path)) > 1
    roll(tmp_path)
    tidy(tmp_path, at_s=SEGMENT_GRACE_S + 1)
    put(journal, closed(1, attempt()))
    roll(tmp_path, 2_000)
    assert [(call.status, len(call.request)) for call in seen_calls(tmp_path)] == [("answered", 500), ("answered", 0)]
    tidy(tmp_path, at_s=9_000)
    assert len(names(tmp_path)) == 1
    assert len(seen_calls(tmp_path)) == 2
    journal.close()


@pytest.mark.parametrize("position", ["", "first"])
def test_a_segment_that_a_budget_is_still_to_be_settled_from_stays(tmp_path: Path, position: str) -> None:
    journal = write(tmp_path, opened(1), closed(1, attempt()), writer="dead")
    roll(tmp_path)
    first = journal.segment.name if position else ""
    assert tidy(tmp_path, at_s=9_000, needed=lambda: {"dead": first}).segments == 0
    assert tidy(tmp_path, at_s=9_000, needed=lambda: {"dead": "~", "other": ""}).segments == 1


def test_a_roll_that_is_not_in_every_table_frees_no_segment(tmp_path: Path) -> None:
    write(tmp_path, opened(1), closed(1, attempt()), writer="dead")
    roll(tmp_path)
    write(tmp_path, opened(2), closed(2, attempt()), writer="later")
    halting = Roller(tmp_path, HaltingTables(stores(tmp_path), 2), now_ns=lambda: T0_NS)  # type: ignore[arg-type]
    with pytest.raises(Halted):
        halting.roll()
    assert tidy(tmp_path, at_s=9_000).segments == 1
    assert names(tmp_path) == ["later"]
    roll(tmp_path, 10_000)
    assert len(seen_calls(tmp_path)) == 2
    assert len({row["call_id"] for row in rows_of(tmp_path, "calls")}) == 2


def rows_of(folder: Path, table: str) -> list[dict[str, object]]:
    files = stores(folder).files(table)
    return [] if files is None else table_rows(files)


def test_a_reader_whose_segments_went_begins_again(tmp_path: Path) -> None:
    write(tmp_path, opened(1), closed(1, attempt()), writer="dead")
    kept = Tail(tmp_path, None, None)
    assert kept.read().calls.num_rows == 1
    roll(tmp_path)
    first = plans.newest(tmp_path)
    reading = Tail(tmp_path, first, first)
    assert reading.read().calls.num_rows == 0
    write(tmp_path, opened(2), closed(2, attempt()), writer="next")
    assert reading.read().calls.num_rows == 1
    roll(tmp_path, 1)
    assert tidy(tmp_path, at_s=SEGMENT_GRACE_S + 2).segments == 2
    for old in (kept, reading):
        with pytest.raises(PlanGone):
            old.read()
    with pytest.raises(PlanGone):
        tail(first, tmp_path)
    assert len(seen_calls(tmp_path)) == 2


def at_day(day: int) -> float:
    return (day + 0.5) * 86_400


def test_calls_and_outcomes_stay_as_long_as_their_workflow_says(tmp_path: Path) -> None:
    number = 0
    for day in range(4):
        for workflow in ("short", "plain", "o'long"):
            number += 1
            write(
                tmp_path,
                opened(number, day=day, workflow=workflow),
                closed(number, attempt("small", 7), day=day),
                outcome(number, day=day),
                outcome(number, "bad", day=day, metric="why"),
            )
    by_key = OutcomeV1("", "resolved", "crm", True, T0_NS, T0_NS, "", "short", "order 7")
    journal = write(tmp_path, outcome(500, day=0), by_key, keep_open=True)
    roll(tmp_path)
    keep = Keep(workflows={"short": 1, "o'long": 100}, days=2)
    early = tidy(tmp_path, at_s=at_day(1), keep=keep)
    assert (early.calls, early.outcomes) == (0, 0)
    done = tidy(tmp_path, at_s=at_day(3), keep=keep)
    # Over on day 3: `short` of days 0 and 1, all others but `o'long` of day 0.
    assert (done.calls, done.outcomes) == (3, 2 * 3 + 1)
    left = [(call.workflow, datetime.fromtimestamp(call.opened_ns / 1e9, UTC).day - 1) for call in seen_calls(tmp_path)]
    assert sorted(left) == sorted(
        [("short", 2), ("short", 3), ("plain", 1), ("plain", 2), ("plain", 3), *(("o'long", day) for day in range(4))]
    )
    ids = {call.call_id for call in seen_calls(tmp_path)}
    about = seen_outcomes(tmp_path)
    assert {one.call_id for one in about} == ids | {outcome(500).call_id}
    assert len(about) == 2 * 9 + 1
    again = tidy(tmp_path, at_s=at_day(3), keep=keep)
    assert (again.calls, again.outcomes) == (0, 0)
    assert tidy(tmp_path, at_s=at_day(102), keep=keep).calls == 7
    ids = {call.call_id for call in seen_calls(tmp_path)}
    assert len(ids) == 2
    assert seen_outcomes(tmp_path) == [one for one in about if one.call_id in ids]
    assert spent(tmp_path)[()][3] == 12 * 7
    journal.close()


def test_what_is_kept_for_ever_stays_and_a_workflow_that_says_so_goes(tmp_path: Path) -> None:
    write(tmp_path, opened(1, workflow="a"), closed(1), opened(2, workflow="b"), closed(2), outcome(2), outcome(1))
    roll(tmp_path)
    assert tidy(tmp_path, at_s=at_day(9_999)).calls == 0
    done = tidy(tmp_path, at_s=at_day(9_999), keep=Keep(workflows={"a": 0}))
    assert (done.calls, done.outcomes) == (1, 1)
    assert [call.workflow for call in seen_calls(tmp_path)] == ["b"]
    assert len(seen_outcomes(tmp_path)) == 1


def test_sums_of_many_rolls_are_added_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivetrain.lake.retention.SPEND_FILES_MAX", 3)
    journal = FrameJournal(tmp_path)
    count = 4
    for number in range(count):
        put(journal, opened(number), closed(number, attempt("small", 10**17), attempt("large", 3)))
        roller(tmp_path).roll()
    before = spent(tmp_path, ["variant", "team", "day"])
    assert len(rows_of(tmp_path, "spend")) == 2 * count
    assert tidy(tmp_path, at_s=60).compacted > 0
    assert spent(tmp_path, ["variant", "team", "day"]) == before
    assert len(rows_of(tmp_path, "spend")) == 2
    put(journal, opened(900), closed(900, attempt("small", 1)))
    roller(tmp_path).roll()
    assert spent(tmp_path)[()] == (count + 1, 2 * count + 1, 50 * (2 * count + 1), count * (10**17 + 3) + 1)
    files = stores(tmp_path).files("calls")
    assert files is not None
    assert len(files.paths) <= 2
    journal.close()


def test_replaced_files_are_deleted_when_their_history_is_over(tmp_path: Path) -> None:
    write(tmp_path, opened(1, workflow="gone", payload=b"sealed-words"), closed(1, attempt()))
    write(tmp_path, opened(2, workflow="kept"), closed(2, attempt()))
    roll(tmp_path)
    files = stores(tmp_path).files("calls")
    assert files is not None
    on_disk = {str(path) for path in (tmp_path / "lake").rglob("*.parquet") if "/calls/" in str(path)}
    assert on_disk == set(files.paths)


def test_nothing_is_tidied_up_during_a_roll(tmp_path: Path) -> None:
    write(tmp_path, opened(1), closed(1))
    roll(tmp_path)
    with plans.locked(tmp_path) as held:
        assert held
        assert tidy(tmp_path, at_s=9_999).elsewhere
    assert tidy(tmp_path, at_s=9_999).segments == 1
