"""The journal: order, one write per tick, and what happens when the disk refuses."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from drivetrain.ledger import journal as journal_module
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ledger.reader import LedgerReader
from support.records import attempt, closed, opened, write
from support.tries import PATIENCE_S

pytestmark = pytest.mark.slow


def test_callbacks_run_after_the_write_in_order_and_never_inside_append(tmp_path: Path) -> None:
    seen: list[tuple[int, bool, int]] = []

    async def main() -> None:
        journal = FrameJournal(tmp_path)
        before = journal.segment.stat().st_size
        for number in range(5):
            journal.append(
                opened(number),
                lambda ok, n=number: seen.append((n, ok, journal.segment.stat().st_size)),  # type: ignore[misc]
            )
        assert seen == []
        assert journal.segment.stat().st_size == before
        await asyncio.sleep(0)
        journal.close()

    asyncio.run(main())
    assert [(number, ok) for number, ok, _ in seen] == [(number, True) for number in range(5)]
    sizes = {size for _, _, size in seen}
    assert len(sizes) == 1, "all frames of a tick stand before the first callback runs"


def test_a_callback_that_raises_does_not_starve_the_others(tmp_path: Path) -> None:
    seen: list[int] = []

    def broken(_: bool) -> None:
        raise RuntimeError("mine")

    journal = FrameJournal(tmp_path)
    journal.append(opened(1), lambda _: seen.append(1))
    journal.append(opened(2), broken)
    journal.append(opened(3), lambda _: seen.append(3))
    journal.flush()
    journal.close()
    assert seen == [1, 3]


def test_records_of_a_loop_that_ended_are_written_by_the_next(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path)

    async def only_append(number: int) -> None:
        journal.append(opened(number))

    async def append_and_wait(number: int) -> None:
        journal.append(opened(number))
        await asyncio.sleep(0)

    asyncio.run(only_append(1))
    asyncio.run(append_and_wait(2))
    assert len(list(LedgerReader(tmp_path).calls())) == 2
    journal.close()


def test_sync_records_wait_for_the_disk_and_others_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = os.fdatasync

    def slow(fd: int) -> None:
        real(fd)
        order.append("disk")

    monkeypatch.setattr(os, "fdatasync", slow)

    async def main() -> None:
        journal = FrameJournal(tmp_path)
        done = asyncio.Event()
        journal.append(opened(1), lambda _: order.append("plain"))
        journal.append(closed(1), lambda ok: (order.append(f"sync {ok}"), done.set()), sync=True)
        await asyncio.sleep(0)
        journal.append(opened(2), lambda _: order.append("later"))
        await asyncio.wait_for(done.wait(), PATIENCE_S)
        journal.append(closed(2), lambda ok: order.append(f"at close {ok}"), sync=True)
        journal.close()

    asyncio.run(main())
    assert order[0] == "plain"
    assert order.index("disk") < order.index("sync True")
    assert order[-2:] == ["disk", "at close True"]


def test_a_failed_sync_is_told_and_the_segment_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    journal = FrameJournal(tmp_path)
    first = journal.segment
    seen: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        journal.append(opened(1), seen.append, sync=True)
        journal.flush()
    assert seen == [False]
    assert "Input/output" in journal.failed
    journal._retry_at = 0.0
    journal.append(opened(2), seen.append, sync=True)
    journal.flush()
    assert seen == [False, True]
    assert journal.segment != first
    assert journal.failed == ""
    journal.close()


def test_segments_rotate_and_a_call_may_span_them(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path, segment_bytes_max=2_000)
    for number in range(50):
        journal.append(opened(number))
        journal.flush()
    for number in range(50):
        journal.append(closed(number, attempt()))
        journal.flush()
    assert len(list((tmp_path / "calls").glob("*.seg"))) > 3
    journal.close()
    found = list(LedgerReader(tmp_path).calls())
    assert len(found) == 50
    assert {call.status for call in found} == {"answered"}


def test_beyond_the_buffer_an_append_fails_and_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "BUFFER_BYTES_MAX", 10_000)
    seen: list[tuple[str, bool]] = []

    async def main() -> None:
        journal = FrameJournal(tmp_path)
        journal.append(opened(1), lambda ok: seen.append(("small", ok)))
        journal.append(opened(2, payload=b"x" * 20_000), lambda ok: seen.append(("large", ok)))
        assert seen == []
        await asyncio.sleep(0.01)
        journal.close()

    asyncio.run(main())
    assert sorted(seen) == [("large", False), ("small", True)]
    assert len(list(LedgerReader(tmp_path).calls())) == 1


FILL = """
import asyncio, os, resource, signal, sys
from pathlib import Path
from support.records import opened
from drivetrain.ledger.journal import FrameJournal

async def main(folder, limit):
    journal = FrameJournal(folder)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    acknowledged, refused = [], []
    for start in range(0, 60, 6):
        for number in range(start, start + 6):
            journal.append(opened(number, payload=b"p" * 300),
                           lambda ok, n=number: (acknowledged if ok else refused).append(n))
        await asyncio.sleep(0)
    assert refused, "the limit was never met"
    assert journal.failed
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    for _ in range(1_500):
        await asyncio.sleep(0.02)
        if not journal.failed:
            break
    assert not journal.failed, "it recovers by itself, without an append"
    journal.append(opened(99), lambda ok: (acknowledged if ok else refused).append(99))
    await asyncio.sleep(0)
    journal.close()
    assert 99 in acknowledged
    print(",".join(map(str, sorted(acknowledged))))

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.parametrize("limit", [1_500, 2_111, 3_000, 4_097])
def test_a_full_disk_refuses_what_does_not_stand_and_recovers_by_itself(tmp_path: Path, limit: int) -> None:
    """The file may not grow beyond `limit`: what was acknowledged is exactly what stands."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FILL), str(tmp_path), str(limit)],
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    acknowledged = [int(number) for number in done.stdout.split(",")]
    reader = LedgerReader(tmp_path)
    stand = sorted(int(call.call_id[-8:], 16) for call in reader.calls())
    assert stand == acknowledged
    assert all(problem.kind == "torn" for problem in reader.problems)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_enospc_on_a_real_full_filesystem(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        journal = FrameJournal(tmp_path)
        ballast = tmp_path / "ballast"
        ballast.write_bytes(b"b" * 20_000)
        seen: list[bool] = []
        for number in range(300):
            journal.append(opened(number, payload=b"p" * 700), seen.append)
            if number % 4 == 3:
                journal.flush()
        assert False in seen
        assert "No space" in journal.failed
        ballast.unlink()
        journal._retry_at = 0.0
        journal.append(opened(999), seen.append)
        journal.flush()
        assert seen[-1] is True
        assert journal.failed == ""
        reader = LedgerReader(tmp_path)
        assert len(list(reader.calls())) == sum(seen)
        assert reader.problems == ()
        journal.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_bad_descriptor_leads_to_a_new_segment(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path)
    seen: list[bool] = []
    journal.append(opened(1), seen.append)
    journal.flush()
    os.close(journal._current.fd)
    journal.append(opened(2), seen.append)
    journal.flush()
    assert seen == [True, False]
    journal._retry_at = 0.0
    journal.append(opened(3), seen.append)
    journal.flush()
    journal.close()
    assert seen == [True, False, True]
    assert sorted(call.call_id for call in LedgerReader(tmp_path).calls()) == [
        opened(1).call_id,
        opened(3).call_id,
    ]


KILLED = """
import asyncio, os, sys
from pathlib import Path
from support.records import opened, closed, attempt
from drivetrain.ledger.journal import FrameJournal

async def main(folder):
    journal = FrameJournal(folder, segment_bytes_max=20_000)
    number = 0
    while True:
        for _ in range(4 if number % 3 else 40):
            journal.append(opened(number, payload=b"x" * (number % 97)))
            journal.append(closed(number, attempt()), lambda ok, n=number: os.write(1, b"%d\\n" % n))
            number += 1
        journal.append(opened(1_000_000 + number))
        await asyncio.sleep(0)

asyncio.run(main(Path(sys.argv[1])))
"""


def _kill_one(folder: Path, after_lines: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(after_lines)]
    reader = LedgerReader(folder)
    assert any(call.status == "running" for call in reader.calls(outcomes=False))
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().decode()
    acknowledged += [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    process.wait()
    found = list(reader.calls())
    answered = {int(call.call_id[-8:], 16) for call in found if call.status == "answered"}
    assert set(acknowledged) <= answered
    assert len({call.call_id for call in found}) == len(found)
    assert {call.status for call in found} == {"answered", "interrupted"}


def test_a_killed_writer_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    for round_number in range(3):
        _kill_one(tmp_path / str(round_number), 5 + 300 * round_number)


@pytest.mark.timeout(900)
def test_a_killed_writer_loses_nothing_over_many_kills(tmp_path: Path) -> None:
    for round_number in range(40):
        _kill_one(tmp_path / str(round_number), 1 + 61 * round_number)


def test_a_closed_journal_refuses(tmp_path: Path) -> None:
    journal = write(tmp_path, opened(1))
    seen: list[bool] = []
    journal.append(opened(2), seen.append)
    assert seen == [False]
