"""The roller: each Call and each Outcome is in the lake or beyond it, once, whatever happens between."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roller_world import Halted, HaltingTables, outcome, roller, seen_calls, seen_outcomes, spent, stores, table_rows

from drivetrain.core.calls import Attribution, Call, OutcomeV1, ReservedV1, Stored
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.features import FeaturesSeenV1
from drivetrain.core.money import Usage
from drivetrain.lake import plans
from drivetrain.lake.roller import Roller
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ledger.reader import LedgerReader
from support.records import LAW, T0_NS, attempt, call_id, closed, opened, put, write
from support.tries import PATIENCE_S

pytestmark = pytest.mark.slow

NAMES = st.sampled_from(["", "a", "b c", "ä=ö", "'; DROP TABLE calls; --", '"', "\0", "😀"])
NUMBERS = st.one_of(st.integers(0, 10**6), st.sampled_from([0, 2**31, 2**53 + 1, 2**63 - 1]))
BYTES = st.binary(max_size=40)
TEXTS = st.lists(NAMES, max_size=3).map(tuple)
FEATURES = st.none() | st.builds(FeaturesSeenV1, NAMES, NAMES, NUMBERS, TEXTS, TEXTS, BYTES)


def ledger_calls(data_folder: Path) -> list[Call]:
    return sorted(LedgerReader(data_folder).calls(outcomes=False), key=lambda call: call.call_id)


@st.composite
def histories(draw: st.DrawFn) -> list[list[Stored | str]]:
    """Per writer, its records in order, with `roll` between some and `end` where its process ends."""
    found: list[list[Stored | str]] = []
    number = 0
    for _ in range(draw(st.integers(1, 3))):
        pending: list[int] = []
        steps: list[Stored | str] = []
        for _ in range(draw(st.integers(0, 8))):
            number += 1
            step = draw(st.sampled_from(["open", "open", "close", "close", "reserve", "outcome", "roll", "twice"]))
            if step == "open":
                pending.append(number)
                steps.append(
                    opened(
                        number,
                        workflow=draw(NAMES),
                        stream=draw(st.booleans()),
                        attribution=Attribution(*[draw(NAMES) for _ in range(5)], draw(TEXTS)),
                        features=draw(FEATURES),
                        payload=draw(BYTES),
                        retained=draw(st.integers(0, 2)),
                        business_key=draw(NAMES),
                        reserved_number=draw(st.integers(0, 1)),
                        reserved_nano_usd=draw(NUMBERS),
                    )
                )
            elif step in ("close", "twice") and pending:
                one = pending.pop(draw(st.integers(0, len(pending) - 1)))
                record = closed(
                    one,
                    *[
                        attempt(
                            draw(NAMES),
                            draw(st.integers(0, 10**15)),
                            reason=draw(NAMES),
                            verdict=draw(st.sampled_from(["accepted", "escalated", "failed", "sent"])),
                            usage=Usage(*[draw(NUMBERS) // 8 for _ in range(6)], "mended"),
                            retry_after_ms=draw(st.integers(-1, 5)),
                            cached=draw(st.booleans()),
                            saved_nano_usd=draw(NUMBERS),
                        )
                        for _ in range(draw(st.integers(0, 3)))
                    ],
                    status=draw(st.sampled_from(["answered", "failed", "refused", "aborted"])),
                    notes=draw(TEXTS),
                    payload=draw(BYTES),
                    degraded=draw(NAMES),
                )
                steps += [record, "roll", record] if step == "twice" else [record]
            elif step == "reserve" and pending:
                steps.append(ReservedV1(call_id(pending[-1]), 2, ("team:a",), draw(NUMBERS) // 4, draw(NUMBERS) // 4))
            elif step == "outcome":
                value = draw(st.one_of(NAMES, st.booleans(), st.floats(allow_nan=False)))
                steps.append(outcome(number, value, workflow=draw(NAMES), business_key=draw(NAMES)))
            elif step == "roll":
                steps.append("roll")
        steps.append("end" if draw(st.booleans()) else "stay")
        found.append(steps)
    return found


@settings(LAW, max_examples=4)
@given(writers=histories(), rows=st.integers(1, 5))
def test_law_lake_and_tail_are_the_ledger(
    tmp_path_factory: pytest.TempPathFactory, writers: list[list[Stored | str]], rows: int
) -> None:
    follow(tmp_path_factory.mktemp("law"), writers, rows)


@pytest.mark.timeout(900)
@settings(LAW, max_examples=40)
@given(writers=histories(), rows=st.integers(1, 5))
def test_law_lake_and_tail_are_the_ledger_over_many_histories(
    tmp_path_factory: pytest.TempPathFactory, writers: list[list[Stored | str]], rows: int
) -> None:
    follow(tmp_path_factory.mktemp("law"), writers, rows)


def follow(folder: Path, writers: list[list[Stored | str]], rows: int) -> None:
    """Write and roll as a history says, and look at each of its ends."""
    rolling = roller(folder, rows=rows)
    journals = []
    expected_outcomes = []
    for index, steps in enumerate(writers):
        journal = FrameJournal(folder, writer=f"w{index}")
        journals.append(journal)
        for step in steps:
            if step == "roll":
                rolling.roll()
            elif step == "end":
                journal.close()
            elif not isinstance(step, str):
                put(journal, step)
                if step.__class__.__name__ == "OutcomeV1":
                    expected_outcomes.append(step)
    expected = ledger_calls(folder)
    assert seen_calls(folder) == expected
    rolling.roll()
    assert seen_calls(folder) == expected
    assert seen_outcomes(folder) == sorted(expected_outcomes, key=str)
    in_lake = [call for call in expected if call.status != "running"]
    total = spent(folder)[()] if in_lake else (0, 0, 0, 0)
    assert total[0] == len(in_lake)
    assert total[1] == sum(len(call.attempts) for call in in_lake)
    assert total[3] == sum(call.cost_nano_usd for call in in_lake)
    for journal in journals:
        journal.close()
    rolling.roll()
    assert [call.status for call in seen_calls(folder)].count("running") == 0
    assert seen_calls(folder) == ledger_calls(folder)
    shutil.rmtree(folder)


def fill(folder: Path, first: int, count: int, journal: FrameJournal | None = None) -> FrameJournal:
    """Calls with an end, every seventh without; an Outcome for every fifth."""
    journal = journal or FrameJournal(folder)
    for number in range(first, first + count):
        put(journal, opened(number, attribution=Attribution(team=f"t{number % 3}", tags=("env=prod",))))
        if number % 7:
            put(journal, closed(number, attempt("small", 10, verdict="escalated"), attempt("large", number)))
        if number % 5 == 0:
            put(journal, outcome(number))
    return journal


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("first", [True, False], ids=["first roll", "later roll"])
def test_a_roll_that_is_cut_off_anywhere_is_finished_by_the_next(tmp_path: Path, at: int, first: bool) -> None:
    journal = fill(tmp_path, 0, 20)
    if not first:
        roller(tmp_path).roll()
        fill(tmp_path, 100, 20, journal)
    with pytest.raises(Halted):
        Roller(tmp_path, HaltingTables(stores(tmp_path), at)).roll()  # type: ignore[arg-type]
    expected = ledger_calls(tmp_path)
    assert seen_calls(tmp_path) == expected
    put(journal, opened(900), closed(900, attempt("small", 5)), closed(7, attempt("late", 3)))
    journal.close()
    done = roller(tmp_path).roll()
    assert done.rolls == (1 if at == 5 else 2)
    expected = ledger_calls(tmp_path)
    assert seen_calls(tmp_path) == expected
    assert len(seen_outcomes(tmp_path)) == (4 if first else 8)
    assert spent(tmp_path)[()][3] == sum(call.cost_nano_usd for call in expected)
    assert spent(tmp_path)[()][0] == len(expected)


def test_a_roll_that_is_cut_off_before_its_plan_was_never_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 0, 20).close()

    def halt(*_: object) -> None:
        raise Halted

    with monkeypatch.context() as patched:
        patched.setattr(plans, "write_plan", halt)
        with pytest.raises(Halted):
            roller(tmp_path).roll()
    assert seen_calls(tmp_path) == ledger_calls(tmp_path)
    assert roller(tmp_path).roll().calls == 20
    assert seen_calls(tmp_path) == ledger_calls(tmp_path)


@pytest.mark.parametrize("where", ["plan", "commit"])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    journal = fill(tmp_path, 0, 20)
    roller(tmp_path).roll()
    fill(tmp_path, 100, 20, journal)
    before = seen_calls(tmp_path)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(fd: int) -> None:
        raise full

    failing = Roller(tmp_path, HaltingTables(stores(tmp_path), 2 if where == "commit" else -1, full))  # type: ignore[arg-type]
    with monkeypatch.context() as patched:
        if where == "plan":
            patched.setattr("drivetrain.lake.plans.os.fsync", refuse)
        with pytest.raises(DrivetrainError, match="No space left") as raised:
            failing.roll()
    assert "Nothing is lost" in str(raised.value)
    assert seen_calls(tmp_path) == before
    assert len(seen_outcomes(tmp_path)) == 8
    if where == "plan":
        assert plans.numbers(tmp_path) == [0, 1]
    roller(tmp_path).roll()
    assert seen_calls(tmp_path) == before
    assert len(seen_outcomes(tmp_path)) == 8
    journal.close()


def test_two_rollers_at_once_roll_each_call_once(tmp_path: Path) -> None:
    journal = fill(tmp_path, 0, 200)
    inside, go = threading.Event(), threading.Event()

    class Waiting(HaltingTables):
        def _step(self) -> None:
            inside.set()
            go.wait(PATIENCE_S)

    results = []
    slow = Roller(tmp_path, Waiting(stores(tmp_path), -1))  # type: ignore[arg-type]
    thread = threading.Thread(target=lambda: results.append(slow.roll()))
    thread.start()
    assert inside.wait(PATIENCE_S)
    second = roller(tmp_path).roll()
    assert second.elsewhere
    assert second.calls == 0
    go.set()
    thread.join()
    assert results[0].calls == len([one for one in range(200) if one % 7])
    assert roller(tmp_path).roll().calls == 0
    assert seen_calls(tmp_path) == ledger_calls(tmp_path)
    journal.close()


def test_a_roll_takes_as_many_commits_as_its_limits_say(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path, segment_bytes_max=4_000)
    for number in range(70):
        put(journal, opened(number), closed(number, attempt("small", number)))
    assert len(list((tmp_path / "calls").glob("*.seg"))) > 4
    done = roller(tmp_path, rows=20).roll()
    assert (done.rolls, done.calls, done.number) == (4, 70, 4)
    files = stores(tmp_path).files("calls")
    assert files is not None
    assert Counter(row["roll"] for row in table_rows(files)) == {1: 20, 2: 20, 3: 20, 4: 10}
    assert roller(tmp_path, bytes=1).roll().rolls == 0
    put(journal, *(opened(number) for number in range(100, 104)), *(closed(number) for number in range(100, 104)))
    assert roller(tmp_path, bytes=1).roll().calls == 4
    assert seen_calls(tmp_path) == ledger_calls(tmp_path)
    journal.close()


def test_frames_of_a_block_are_rolled_together_whatever_the_limits(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path)
    for first in (0, 100):
        for number in range(first, first + 60):
            journal.append(opened(number))
            if number % 3:
                journal.append(closed(number, attempt("small", number)))
            journal.append(outcome(number))
        journal.flush()
    assert b"block.1" in journal.segment.read_bytes()
    assert roller(tmp_path, rows=7).roll().rolls == 2
    put(journal, *(closed(number) for number in range(0, 160, 3) if number < 60 or number > 99))
    journal.close()
    roller(tmp_path, rows=7).roll()
    assert seen_calls(tmp_path) == ledger_calls(tmp_path)
    assert len(seen_outcomes(tmp_path)) == 120


def test_torn_ends_and_bad_frames_cost_only_themselves(tmp_path: Path) -> None:
    torn = write(tmp_path, opened(1), closed(1, attempt()), opened(2), writer="torn")
    with torn.segment.open("ab") as file:
        file.write(b"\x50\0\0\0half")
    bad = write(tmp_path, opened(3), closed(3, attempt()), opened(4), closed(4, attempt("small", 77)), writer="bad")
    content = bytearray(bad.segment.read_bytes())
    at = content.index(call_id(4).encode())
    content[at] ^= 0xFF
    bad.segment.write_bytes(content)
    done = roller(tmp_path).roll()
    assert {problem.kind for problem in done.problems} == {"torn", "bad", "orphan"}
    calls = seen_calls(tmp_path)
    assert calls == ledger_calls(tmp_path)
    assert [(call.status, call.cost_nano_usd) for call in calls] == [
        ("answered", 1_000),
        ("interrupted", 0),
        ("answered", 1_000),
        ("answered", 77),
    ]
    assert roller(tmp_path).roll().rolls == 0


def test_a_frame_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path)
    put(journal, opened(1), closed(1, attempt("small", 10)))
    roller(tmp_path).roll()
    put(journal, closed(1, attempt("small", 999)))
    (seen,) = seen_calls(tmp_path)
    assert seen.cost_nano_usd == 10
    roller(tmp_path).roll()
    put(journal, closed(2, attempt("small", 5)), opened(2), closed(1, attempt("small", 999)), opened(1))
    assert [call.cost_nano_usd for call in seen_calls(tmp_path)] == [10, 5]
    journal.close()
    roller(tmp_path).roll()
    assert [call.cost_nano_usd for call in seen_calls(tmp_path)] == [10, 5]
    assert seen_calls(tmp_path)[0] == seen
    assert spent(tmp_path)[()] == (2, 2, 100, 15)


def test_what_a_call_that_nobody_ended_had_reserved_is_its_cost(tmp_path: Path) -> None:
    reserved = {"reserved_number": 1, "reserved_accounts": ("team:a",), "reserved_nano_usd": 500}
    journal = write(tmp_path, opened(1, **reserved), opened(2, **reserved), keep_open=True)
    roller(tmp_path).roll()
    put(journal, ReservedV1(call_id(2), 2, ("team:a",), 300, 100), opened(3), closed(3))
    assert roller(tmp_path).roll().calls == 1
    assert [call.status for call in seen_calls(tmp_path)] == ["running", "running", "answered"]
    journal.close()
    roller(tmp_path).roll()
    calls = seen_calls(tmp_path)
    assert [(call.status, call.cost_nano_usd) for call in calls] == [
        ("interrupted", 500),
        ("interrupted", 400),
        ("answered", 0),
    ]
    assert calls == ledger_calls(tmp_path)
    assert spent(tmp_path, ["status"]) == {("interrupted",): (2, 0, 0, 900), ("answered",): (1, 0, 0, 0)}


def test_commits_that_a_power_failure_took_are_made_again(tmp_path: Path) -> None:
    journal = fill(tmp_path, 0, 12)
    roller(tmp_path).roll()
    shutil.copytree(tmp_path / "lake", tmp_path / "old")
    for first in (100, 200):
        fill(tmp_path, first, 12, journal)
        roller(tmp_path).roll()
    shutil.rmtree(tmp_path / "lake")
    (tmp_path / "old").rename(tmp_path / "lake")
    expected = ledger_calls(tmp_path)
    assert seen_calls(tmp_path) == expected
    assert roller(tmp_path).roll().rolls == 2
    assert seen_calls(tmp_path) == expected
    assert len(seen_outcomes(tmp_path)) == 9
    assert spent(tmp_path)[()][3] == sum(call.cost_nano_usd for call in expected)
    journal.close()


def test_a_lake_that_does_not_match_the_plans_is_refused(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path)
    for number in range(3):
        put(journal, opened(number), closed(number))
        roller(tmp_path).roll()
    (tmp_path / "lake-plans" / "0").unlink()
    (tmp_path / "lake").rename(tmp_path / "moved")
    with pytest.raises(DrivetrainError, match="has 0 rolls of these records, and 3 were made"):
        roller(tmp_path).roll()
    (tmp_path / "moved").rename(tmp_path / "lake")
    (tmp_path / "lake-plans" / "3").unlink()
    with pytest.raises(DrivetrainError, match="has 3 rolls of these records, and 2 were made"):
        roller(tmp_path).roll()
    (tmp_path / "lake-plans" / "ledger").unlink()
    with pytest.raises(DrivetrainError, match="ledger's id is gone"):
        roller(tmp_path).roll()
    journal.close()


def test_days_of_the_table_are_those_of_its_calls(tmp_path: Path) -> None:
    write(tmp_path, opened(1), closed(1), opened(2, day=3), closed(2, day=3), outcome(2, day=3), outcome(9, day=-1))
    roller(tmp_path).roll()
    for table, days in (("calls", ["2026-01-01", "2026-01-04"]), ("outcomes", ["2025-12-31", "2026-01-04"])):
        files = stores(tmp_path).files(table)
        assert files is not None
        assert sorted(str(row["day"]) for row in table_rows(files)) == days


def test_no_odd_record_ends_the_rolling(tmp_path: Path) -> None:
    much = Usage(2**64 - 1, 0, 0, 0, 2**63, 0, "mended")
    write(
        tmp_path,
        opened(1, reserved_nano_usd=2**64 - 1, features=FeaturesSeenV1("s", "f", 2**63)),
        closed(
            1, attempt("small", 2**63 - 1, usage=much), attempt("small", 2**63 - 1, usage=much), cost_nano_usd=2**64 - 1
        ),
        OutcomeV1("call_" + "f" * 30, "m", "s", float("nan"), 2**64 - 1, T0_NS),
        OutcomeV1("no id of ours", "m", "s", float("-inf"), -(2**63), T0_NS),
    )
    assert len(seen_calls(tmp_path)) == 1
    done = roller(tmp_path).roll()
    assert (done.calls, done.outcomes) == (1, 2)
    (call,) = seen_calls(tmp_path)
    assert call.cost_nano_usd == 2**63 - 1
    assert [one.usage.input_tokens for one in call.attempts] == [2**63 - 1] * 2
    assert spent(tmp_path)[()][3] == 2**63 - 1
    files = stores(tmp_path).files("outcomes")
    assert files is not None
    assert {str(row["day"]) for row in table_rows(files)} == {"2026-01-01"}


def test_spend_by_variant_model_and_purpose_counts_each_call_in_every_group_it_is_in(tmp_path: Path) -> None:
    write(
        tmp_path,
        opened(1),
        closed(1, attempt("a", 1, verdict="failed"), attempt("a", 2, purpose="retry"), attempt("b", 4)),
        opened(2),
        closed(2, attempt("b", 8), cost_nano_usd=24),
        opened(3),
        closed(3, status="refused"),
    )
    roller(tmp_path).roll()
    files = stores(tmp_path).files("spend")
    assert files is not None
    rows = table_rows(files)

    def counted(name: str) -> dict[str, tuple[int, int]]:
        groups = {row[name] for row in rows}
        return {
            group: (
                sum(row[f"{name}_calls"] for row in rows if row[name] == group),
                int(sum(row["cost_nano_usd"] for row in rows if row[name] == group)),
            )
            for group in groups
        }

    assert counted("variant") == {"a": (1, 3), "b": (2, 12), "": (2, 16)}
    assert counted("purpose") == {"answer": (2, 13), "retry": (1, 2), "": (2, 16)}
    assert spent(tmp_path)[()] == (3, 4, 200, 31)
    assert {row["day"].isoformat() for row in rows} == {"2026-01-01"}


def test_columns_that_repeat_and_columns_made_of_several_attempts(tmp_path: Path) -> None:
    """Many equal Calls and one that differs in the middle; what is summed up or chosen from Attempts is its own."""
    first = attempt("small", 10, verdict="escalated", purpose="answer")
    second = attempt("large", 30, verdict="accepted", purpose="escalation")
    records: list[Stored] = []
    for number in range(1, 8):
        attempts = {4: (first, second), 5: ()}.get(number, (attempt("small", 10),))
        status = "failed" if number == 5 else "answered"
        who = Attribution(team="sales" if number == 4 else "support")
        records += [opened(number, attribution=who), closed(number, *attempts, status=status)]
    records += [outcome(1, 0.0), outcome(2, -0.0), outcome(3, 0.0)]
    write(tmp_path, *records)
    roller(tmp_path).roll()
    calls = stores(tmp_path).files("calls")
    outcomes = stores(tmp_path).files("outcomes")
    assert calls is not None
    assert outcomes is not None
    names = ("team", "model", "escalated", "attempt_count", "output_tokens", "latency_us", "cost_nano_usd")
    rows = sorted(table_rows(calls), key=lambda row: str(row["call_id"]))
    usual = ("support", "openai/small", False, 1, 50, 7_000, 10)
    assert [tuple(row[name] for name in names) for row in rows] == [
        usual,
        usual,
        usual,
        ("sales", "openai/large", True, 2, 100, 7_000, 40),
        ("support", "", False, 0, 0, None, 0),
        usual,
        usual,
    ]
    signs = [str(row["number"]) for row in sorted(table_rows(outcomes), key=lambda row: str(row["call_id"]))]
    assert signs == ["0.0", "-0.0", "0.0"]
