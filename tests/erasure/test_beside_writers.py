"""An erasure beside whoever writes: what runs is waited for, what a budget still needs is kept until it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from erasure_world import HER, HIM
from kept_world import build, erasure, left, loaded, records_of, totals

from drivetrain.adapters.files import FileVault
from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.core.calls import OpenedV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.erasing import stores_of
from drivetrain.embedded.limiting import limits_folder
from drivetrain.erasure.erasing import Erasure
from drivetrain.erasure.note import unfinished
from drivetrain.ledger.frames import has_records, segments
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ports.counters import MONEY, Line, Report, SyncRequest, Terms, Want
from support.tries import PATIENCE_S


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("erasure") / "project"
    made.mkdir()
    build(made)
    return made


@contextmanager
def looking(journal: FrameJournal) -> Iterator[None]:
    """A writer that lives: it looks for the mark, as gateways do once a second."""
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.02):
            journal.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_a_call_that_runs_is_waited_for_and_erased_when_it_has_ended(root: Path) -> None:
    with loaded(root) as snapshot, stores_of(snapshot) as stores:
        vault = FileVault(snapshot.keys_folder)
        journal = FrameJournal(snapshot.data_folder)
        hers, *ended = records_of(7, HER, vault)
        journal.append(hers)
        journal.flush()
        with looking(journal):
            impatient = Erasure(stores, actor="tests", running_s=0.5)
            with pytest.raises(DrivetrainError, match="still hold Calls that run"):
                impatient.erase(HER)
            assert unfinished(snapshot.keys_folder) is not None
            patient = Erasure(stores, actor="tests", running_s=2 * PATIENCE_S)
            done: list[object] = []
            work = threading.Thread(target=lambda: done.append(patient.resume()))
            work.start()
            time.sleep(0.5)
            assert not done, "it runs"
        for record in ended:
            journal.append(record)
        journal.flush()
        with looking(journal):
            work.join(2 * PATIENCE_S)
        journal.close()
        assert done, "it has ended"
        # Its end, and what came after, was written after the erasure began: that is in the segment of later.
        later = [path for path in left(snapshot, HER) if not path.startswith("calls/")]
        assert later == []
        vault.close()


@pytest.mark.slow
def test_a_segment_that_a_budget_needs_stays_until_its_worker_has_told(root: Path) -> None:
    with loaded(root) as snapshot, stores_of(snapshot) as stores:
        vault = FileVault(snapshot.keys_folder)
        journal = FrameJournal(snapshot.data_folder)
        store = SqliteCounters(limits_folder(snapshot.data_folder))
        store.join(journal.writer, journal.segment.name)
        needed = journal.segment.name
        terms = Terms("shop/shop@2026-01", MONEY, 10_000)
        store.sync(SyncRequest(journal.writer, 0, (), needed, wants=(Want(1, (Line(1, terms, 900, 900, 900),)),)))
        opened, *rest = records_of(8, HIM, vault)
        assert isinstance(opened, OpenedV1)
        reserved = OpenedV1(
            opened.call_id, opened.opened_ns, opened.snapshot, opened.workflow, opened.door, False, opened.attribution,
            reserved_number=1, reserved_accounts=(terms.account,), reserved_nano_usd=900,
        )  # fmt: skip
        for record in (reserved, *rest):
            journal.append(record)
        journal.flush()
        before = totals(snapshot)
        with looking(journal):
            with pytest.raises(DrivetrainError, match="reservations that nobody has resolved"):
                Erasure(stores, actor="tests", running_s=0.5).erase(HIM)
            assert needed in {one.name for one in segments(snapshot.data_folder)}
            # Half a second after the Call's end a worker tells what it has cost.
            store.sync(SyncRequest(journal.writer, 1, (), needed, reports=(Report(1, terms, booked=500),)))
            assert Erasure(stores, actor="tests", running_s=PATIENCE_S).resume() is not None
        assert needed not in {one.name for one in segments(snapshot.data_folder)}
        assert totals(snapshot) == before
        assert left(snapshot, HIM) == {}
        assert store.leave()
        store.close()
        journal.close()
        vault.close()


@pytest.mark.slow
def test_what_a_dead_worker_had_reserved_is_charged_before_its_records_go(root: Path) -> None:
    with loaded(root) as snapshot:
        vault = FileVault(snapshot.keys_folder)
        journal = FrameJournal(snapshot.data_folder)
        store = SqliteCounters(limits_folder(snapshot.data_folder))
        store.join(journal.writer, journal.segment.name)
        terms = Terms("shop/shop@2026-02", MONEY, 10_000)
        store.sync(
            SyncRequest(journal.writer, 0, (), journal.segment.name, wants=(Want(1, (Line(1, terms, 900, 900, 900),)),))
        )
        opened, *_ = records_of(9, "carol-1", vault)
        assert isinstance(opened, OpenedV1)
        cut = OpenedV1(
            opened.call_id, opened.opened_ns, opened.snapshot, opened.workflow, opened.door, False, opened.attribution,
            reserved_number=1, reserved_accounts=(terms.account,), reserved_nano_usd=900,
        )  # fmt: skip
        journal.append(cut)
        journal.flush()
        journal.close()
        store.close()  # without leaving: it died
        with erasure(snapshot) as work:
            assert work.erase("carol-1") is not None
        other = SqliteCounters(limits_folder(snapshot.data_folder))
        account = other.account(terms.account)
        other.close()
        assert account is not None
        assert (account.settled, account.held) == (900, 0)
        assert not any(has_records(one) for one in segments(snapshot.data_folder))
        vault.close()
