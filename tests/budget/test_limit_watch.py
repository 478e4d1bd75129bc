"""Running workers follow the control log: within a second, without a Call lost, and without overspending."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from statistics import median

import pytest
from budget_world import CENT, Project, run, who, within

from drivetrain.adapters.sqlite_control_feed import SqliteControlFeed
from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.limit_watch import POLL_S, LimitWatch
from drivetrain.limits.changes import CHANGE_KINDS


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def test_a_top_up_lets_calls_in_again_in_every_worker_within_a_second(project: Project) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        one, other = project.worker("a", loop), project.worker("b", loop)
        assert await one.spend(who("ann"), 100 * CENT, 100 * CENT) is None
        for worker in (one, other):
            refused = await worker.spend(who("ann"), CENT, CENT)
            assert refused is not None
            assert (refused.limit, refused.left) == ("person", 0)
        await asyncio.to_thread(project.run, "top-up", "person", "--usd", "0.10", "--for", "ann")
        for worker in (one, other):
            await within(1, lambda worker=worker: _limit(worker, "person").raised != ())  # type: ignore[misc]
        assert await other.spend(who("ann"), 6 * CENT, 6 * CENT) is None
        assert await one.spend(who("ann"), 4 * CENT, 4 * CENT) is None
        refused = await one.spend(who("ann"), CENT, CENT)
        assert refused is not None
        assert (refused.left, refused.cap) == (0, 110 * CENT)
        refused = await one.spend(who("bob"), 101 * CENT, CENT)
        assert refused is not None, "another's cap was raised"
        await one.close()
        await other.close()

    run(story)


def test_a_reload_keeps_what_was_changed_and_a_new_declaration_ends_it(project: Project) -> None:
    project.run("set", "all", "--usd", "20")
    watch = LimitWatch(project.limits, SqliteControlFeed(project.data / "control.db"))
    assert _amount(watch) == 2_000 * CENT
    watch.declare(project.limits)
    assert _amount(watch) == 2_000 * CENT
    text = (project.root / "drivetrain.toml").read_text()
    (project.root / "drivetrain.toml").write_text(text.replace('usd = "10"', 'usd = "12"'))
    watch.declare(project.limits)
    assert _amount(watch) == 1_200 * CENT


def test_a_change_of_something_else_tells_nobody(project: Project) -> None:
    async def story() -> None:
        told: list[int] = []
        watch = LimitWatch(project.limits, SqliteControlFeed(project.data / "control.db"))
        watch.start(lambda limits: told.append(len(limits)), asyncio.get_running_loop())
        project.log.append(kind="apply", actor="ann", subject="x", body={})
        await asyncio.sleep(3 * POLL_S)
        assert told == []
        project.run("set", "all", "--usd", "20")
        await within(1, lambda: bool(told))
        assert told == [6]
        watch.close()
        project.run("set", "all", "--usd", "30")
        await asyncio.sleep(2 * POLL_S)
        assert told == [6]

    run(story)


def test_a_log_that_vanishes_or_is_cut_takes_nothing_back(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        project.run("set", "all", "--usd", "1")
        watch = LimitWatch(project.limits, SqliteControlFeed(project.data / "control.db"))
        watch.start(lambda _: None, asyncio.get_running_loop())
        kept = project.data.with_name("kept")
        shutil.copytree(project.data, kept)
        for left in project.data.glob("control.db*"):
            left.unlink()
        await within(2, lambda: "record 1 is missing" in watch.problem)
        assert _amount(watch) == 100 * CENT, "the declared, higher amount came back"
        shutil.copy(kept / "control.db", project.data / "control.db")
        await within(2, lambda: watch.problem == "")
        project.run("set", "all", "--usd", "2")
        await within(1, lambda: _amount(watch) == 200 * CENT)
        watch.close()

    run(story)
    said = capsys.readouterr().err
    assert said.count("cannot be read, those known hold on") == 1
    assert said.count("can be read again") == 1


def test_a_log_that_is_damaged_at_the_start_is_an_error(project: Project) -> None:
    project.data.mkdir(parents=True)
    (project.data / "control.db").write_bytes(b"no database" * 1_000)
    with pytest.raises(DrivetrainError, match="control log"):
        LimitWatch(project.limits, SqliteControlFeed(project.data / "control.db"))


def test_a_log_that_is_written_all_the_time_is_read_all_the_time(project: Project) -> None:
    """Whoever appends last puts the WAL away, and whoever reads just then is told that it is busy."""
    project.run("set", "all", "--usd", "1")
    over = threading.Event()
    log = project.log

    def write() -> None:
        while not over.is_set():
            log.append(kind="budget.reset", actor="ann", subject="pace", body={})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        feed, counts = SqliteControlFeed(project.data / "control.db"), []
        until = time.monotonic() + 2
        while time.monotonic() < until:
            feed.changed()
            counts.append(len(feed.read(CHANGE_KINDS)))
            feed.close()
    finally:
        over.set()
        writer.join()
    assert counts == sorted(counts)
    assert counts[-1] > 1


def test_a_look_costs_microseconds(project: Project) -> None:
    project.run("set", "all", "--usd", "1")
    feed = SqliteControlFeed(project.data / "control.db")
    assert feed.changed()
    took = []
    for _ in range(500):
        began = time.perf_counter_ns()
        assert not feed.changed()
        took.append(time.perf_counter_ns() - began)
    print(f"median {median(took) / 1_000:.1f} us")
    assert median(took) < 200_000
    feed.close()


def test_the_feed_reads_what_the_log_wrote_and_cannot_write(project: Project) -> None:
    for amount in ("1", "2", "3"):
        project.run("set", "all", "--usd", amount)
    feed = SqliteControlFeed(project.data / "control.db")
    assert feed.read(CHANGE_KINDS) == project.logged()
    assert feed.changed()
    assert feed._connection is not None
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        feed._connection.execute("DELETE FROM control")
    feed.close()


def _amount(watch: LimitWatch) -> int:
    return next(limit.amount for limit in watch.limits if limit.name == "all")


def _limit(worker, name):  # type: ignore[no-untyped-def]
    return next(limit for limit in worker.watch.limits if limit.name == name)
