"""Leaving on request: who writes goes on in a new segment, and who does not answer is named."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from drivetrain.core.errors import DrivetrainError
from drivetrain.ledger.frames import is_locked, segments
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ledger.leaving import LEAVE_NAME, leave_all
from drivetrain.ledger.reader import LedgerReader
from support.records import attempt, call_id, closed, opened, write
from support.tries import PATIENCE_S


class Looks:
    """A journal's owner: looks whenever the one who waits sleeps."""

    def __init__(self, *journals: FrameJournal) -> None:
        self.journals = journals
        self.slept = 0
        self.now_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        self.now_s += seconds
        for journal in self.journals:
            journal.look()

    def monotonic(self) -> float:
        return self.now_s


def test_every_writer_goes_on_in_a_new_segment_and_no_call_is_lost(tmp_path: Path) -> None:
    journals = [FrameJournal(tmp_path) for _ in range(3)]
    for number, journal in enumerate(journals):
        journal.append(opened(number))
        journal.flush()
    before = [journal.segment for journal in journals]
    looks = Looks(*journals)
    mark = leave_all(tmp_path, sleep=looks.sleep, monotonic=looks.monotonic)
    assert looks.slept == 1
    for journal, old in zip(journals, before, strict=True):
        assert journal.segment != old
        assert not is_locked(old)
        assert is_locked(journal.segment)
        assert int(journal.segment.name.partition("-")[0], 16) >= mark
    assert {call.status for call in LedgerReader(tmp_path).calls()} == {"running"}
    now = [journal.segment for journal in journals]
    for number, journal in enumerate(journals):
        journal.append(closed(number, attempt()))
        journal.flush()
        journal.look()
    assert [journal.segment for journal in journals] == now, "one mark is obeyed once"
    for journal in journals:
        journal.close()
    calls = list(LedgerReader(tmp_path).calls())
    assert sorted(call.call_id for call in calls) == [call_id(number) for number in range(3)]
    assert {call.status for call in calls} == {"answered"}


def test_what_is_buffered_when_the_segment_is_left_is_written_to_the_next(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path)
    journal.append(opened(1))
    journal.flush()
    seen: list[bool] = []
    journal.append(closed(1, attempt()), seen.append, sync=True)
    looks = Looks(journal)
    leave_all(tmp_path, sleep=looks.sleep, monotonic=looks.monotonic)
    journal.close()
    assert seen == [True]
    assert [call.status for call in LedgerReader(tmp_path).calls()] == ["answered"]


def test_a_writer_without_records_has_nothing_to_leave(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path)
    empty = journal.segment
    leave_all(tmp_path, 0)
    journal.look()
    assert journal.segment == empty
    journal.append(opened(1))
    journal.flush()
    journal.look()
    assert journal.segment != empty, "the mark still stands when it has some"
    journal.close()


def test_who_does_not_answer_is_named(tmp_path: Path) -> None:
    hung = write(tmp_path, opened(1), writer="hung.1", keep_open=True)
    well = write(tmp_path, opened(2), writer="well.1", keep_open=True)
    write(tmp_path, opened(3), writer="dead.1")
    looks = Looks(well)
    with pytest.raises(DrivetrainError, match=r"1 of .* within 2 s: `hung\.1`") as raised:
        leave_all(tmp_path, 2, sleep=looks.sleep, monotonic=looks.monotonic)
    assert raised.value.looked == (str(hung.segment),)
    assert "process id" in raised.value.do
    assert 2 <= looks.now_s < 2.1
    hung.close()
    well.close()
    leave_all(tmp_path, 0)


def test_a_segment_that_is_deleted_meanwhile_is_waited_for_no_longer(tmp_path: Path) -> None:
    journal = write(tmp_path, opened(1), keep_open=True)
    leave_all(tmp_path, 5, sleep=lambda _: journal.segment.unlink())
    journal.close()


def test_a_folder_without_a_ledger_is_left_alone(tmp_path: Path) -> None:
    leave_all(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"soon", b"-5", b"9" * 400, b"\xff\xfe"])
def test_a_mark_that_is_none_is_ignored(content: bytes, tmp_path: Path) -> None:
    journal = write(tmp_path, opened(1), keep_open=True)
    before = journal.segment
    mark = tmp_path / "calls" / LEAVE_NAME
    mark.write_bytes(content)
    journal.look()
    assert journal.segment == before
    leave_all(tmp_path, 5, sleep=lambda _: journal.look())
    assert journal.segment != before
    assert len(segments(tmp_path)) == 2, "a mark is no segment"
    journal.close()


def test_a_mark_never_goes_back(tmp_path: Path) -> None:
    """Two who ask at once both get what they asked for, whichever mark comes last."""
    FrameJournal(tmp_path).close()
    assert leave_all(tmp_path, 0, now_ns=lambda: 2_000) == 2_000
    assert leave_all(tmp_path, 0, now_ns=lambda: 1_000) == 2_000
    assert (tmp_path / "calls" / LEAVE_NAME).read_bytes() == b"2000"
    assert [path.name for path in (tmp_path / "calls").iterdir() if path.name.startswith(LEAVE_NAME + ".")] == []


def test_a_full_disk_is_left_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = write(tmp_path, opened(1), keep_open=True)
    before = journal.segment
    looks = Looks(journal)
    real = os.open

    def full(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT and str(path).endswith(".seg"):
            raise OSError(28, "No space left on device")
        return real(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(DrivetrainError):
            leave_all(tmp_path, 1, sleep=looks.sleep, monotonic=looks.monotonic)
        assert "No space" in journal.failed
    journal._retry_at = 0.0
    journal.append(opened(2))
    journal.flush()
    assert journal.segment == before
    journal.look()
    assert journal.segment != before
    journal.close()


def test_a_writer_of_another_thread_is_waited_for(tmp_path: Path) -> None:
    journal = write(tmp_path, opened(1), keep_open=True)
    old = journal.segment
    timer = threading.Timer(0.1, journal.look)
    timer.start()
    leave_all(tmp_path, PATIENCE_S)
    timer.join()
    assert not is_locked(old)
    journal.close()


BUSY = """
import asyncio, os, sys
from pathlib import Path
from support.records import opened, closed, attempt
from drivetrain.ledger.journal import FrameJournal

async def main(folder, first):
    journal = FrameJournal(folder, segment_bytes_max=30_000)
    number = first
    while os.getppid() != 1:
        for _ in range(3 if number % 2 else 41):
            journal.append(opened(number))
            said = b"%d\\n" % number
            journal.append(closed(number, attempt()), lambda _, said=said: os.write(1, said), sync=number % 7 == 0)
            number += 1
        await asyncio.sleep(0.001)
        journal.look()

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.slow
def test_busy_writers_leave_what_then_stands_still_and_lose_nothing(tmp_path: Path) -> None:
    """Asked again and again under load, by rotation and by kill at the end: what was left never changes again."""
    out = [(tmp_path / f"{number}.out").open("wb") for number in range(2)]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(BUSY), str(tmp_path), str(number * 1_000_000)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            stdout=file,
        )
        for number, file in enumerate(out)
    ]
    left: dict[Path, bytes] = {}
    try:
        while sum(path.stat().st_size > 0 for path in tmp_path.glob("*.out")) < len(writers):
            assert all(writer.poll() is None for writer in writers)
            time.sleep(0.01)
        for _ in range(8):
            mark = leave_all(tmp_path, PATIENCE_S)
            for segment in segments(tmp_path):
                if segment.opened_ns is not None and segment.opened_ns < mark and not segment.live:
                    content = segment.path.read_bytes()
                    assert left.setdefault(segment.path, content) == content
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
        for file in out:
            file.close()
    assert len(left) >= 8
    assert all(path.read_bytes() == content for path, content in left.items())
    confirmed = {
        int(line)
        for path in tmp_path.glob("*.out")
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    }
    reader = LedgerReader(tmp_path)
    found = [call.call_id for call in reader.calls() if call.status == "answered"]
    assert len(set(found)) == len(found)
    assert confirmed <= {int(one[-8:], 16) for one in found}
    assert {problem.kind for problem in reader.problems} <= {"torn"}
