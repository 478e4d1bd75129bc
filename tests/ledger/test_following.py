"""A ledger that is followed: what ends is told once, across segments, torn ends and writers that die."""

from __future__ import annotations

import os
from pathlib import Path

from drivetrain.core.calls import Call, OutcomeV1
from drivetrain.ledger.following import Follower
from drivetrain.ledger.frames import HEAD
from drivetrain.ledger.journal import FrameJournal
from support.records import closed, opened, opened_ns, put, write


def ids(follower: Follower) -> list[str]:
    return [f"{int(one.call_id[-8:], 16)}:{one.status}" for one in follower.new() if isinstance(one, Call)]


def test_each_call_is_told_once_when_it_ends(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path)
    follower = Follower(tmp_path, 0)
    put(journal, opened(1), opened(2), closed(1))
    assert ids(follower) == ["1:answered"]
    assert ids(follower) == []
    put(journal, closed(2), opened(3))
    assert ids(follower) == ["2:answered"]
    journal.close()
    assert ids(follower) == ["3:interrupted"]  # its writer has gone
    assert ids(follower) == []


def test_many_records_in_one_block_are_told_once(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path)
    follower = Follower(tmp_path, 0)
    for start in (0, 100):
        numbers = range(start, start + 100)
        put(journal, *(opened(number) for number in numbers), *(closed(number) for number in numbers))
        assert len(ids(follower)) == 100
    journal.close()


def test_a_call_may_end_in_another_segment(tmp_path: Path) -> None:
    journal = FrameJournal(tmp_path, segment_bytes_max=1)
    follower = Follower(tmp_path, 0)
    put(journal, opened(1))
    assert ids(follower) == []
    put(journal, opened(2))
    put(journal, closed(1))
    assert len(list((tmp_path / "calls").glob("*.seg"))) > 1
    assert ids(follower) == ["1:answered"]
    journal.close()


def test_what_opened_before_and_what_is_half_written_is_not_told(tmp_path: Path) -> None:
    write(tmp_path, opened(1), closed(1), opened(5), closed(5))
    follower = Follower(tmp_path, opened_ns(5))
    assert ids(follower) == ["5:answered"]
    journal = FrameJournal(tmp_path)
    put(journal, opened(6))
    (segment,) = [
        one
        for one in (tmp_path / "calls").glob("*.seg")
        if one.stat().st_mtime_ns == max(other.stat().st_mtime_ns for other in (tmp_path / "calls").glob("*.seg"))
    ]
    whole = segment.stat().st_size
    with segment.open("ab") as file:
        file.write(HEAD.pack(50, 0) + b"half")
    assert ids(follower) == []
    os.truncate(segment, whole)
    put(journal, closed(6))
    assert ids(follower) == ["6:answered"]
    journal.close()


def test_segments_may_vanish(tmp_path: Path) -> None:
    write(tmp_path, opened(1), closed(1))
    follower = Follower(tmp_path, 0)
    assert ids(follower) == ["1:answered"]
    for one in (tmp_path / "calls").glob("*.seg"):
        one.unlink()
    assert ids(follower) == []
    write(tmp_path, opened(2), closed(2))
    assert ids(follower) == ["2:answered"]


def test_outcomes_come_behind_the_calls(tmp_path: Path) -> None:
    truth = OutcomeV1(opened(1).call_id, "solved", "desk", True, 1, 2)
    write(tmp_path, truth, opened(1), closed(1))
    found = list(Follower(tmp_path, 0).new())
    assert isinstance(found[0], Call)
    assert found[1] == truth
