"""The reader: torn ends, damage, exactly once, who lives, and Outcomes."""

from __future__ import annotations

import os
from pathlib import Path
from zlib import crc32

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_samples import LAW, attempt, call_id, closed, opened, write

from drivetrain.core.calls import STORED_DECODER, Call, OutcomeV1, Stored
from drivetrain.core.codec import MSGPACK
from drivetrain.ledger.frames import HEAD, NewerRecord
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ledger.queries import LedgerQueries
from drivetrain.ledger.reader import LedgerReader


def frame(record: object) -> bytes:
    body = MSGPACK.encode(record)
    return HEAD.pack(len(body), crc32(body)) + body


def segment_file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / "calls" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def everything(folder: Path) -> dict[str, Call]:
    found = list(LedgerReader(folder).calls())
    by_id = {call.call_id: call for call in found}
    assert len(by_id) == len(found)
    return by_id


def test_a_call_comes_back_whole(tmp_path: Path) -> None:
    write(
        tmp_path,
        opened(1, payload=b"asked", retained=2, prices_date="2026-01-01"),
        closed(1, attempt("small", 7, verdict="escalated"), attempt("large", 8), payload=b"told", retained=2),
    )
    call = LedgerReader(tmp_path).call(call_id(1))
    assert call is not None
    assert (call.status, call.variant, call.cost_nano_usd, len(call.attempts)) == ("answered", "large", 15, 2)
    assert (call.request, call.answers, call.retained) == (b"asked", b"told", 2)
    assert call == everything(tmp_path)[call_id(1)]
    assert LedgerReader(tmp_path).call(call_id(2)) is None


def test_an_empty_ledger_is_no_error(tmp_path: Path) -> None:
    reader = LedgerReader(tmp_path / "nowhere")
    assert list(reader.calls()) == []
    assert reader.poll() == []
    assert LedgerQueries(tmp_path / "nowhere").cost(["team"]).total.calls == 0


def test_a_torn_end_at_every_byte_keeps_every_whole_frame(tmp_path: Path) -> None:
    records: list[Stored] = [opened(1), closed(1, attempt()), opened(2), closed(2, attempt())]
    pieces = [frame(record) for record in records]
    content = b"".join(pieces)
    ends = [sum(map(len, pieces[: count + 1])) for count in range(len(pieces))]
    for cut in range(len(content) + 1):
        folder = tmp_path / str(cut)
        segment_file(folder, "00-w.seg", content[:cut])
        reader = LedgerReader(folder)
        found = {call.call_id: call.status for call in reader.calls()}
        whole = sum(1 for end in ends if end <= cut)
        expected = {
            call_id(number): "answered" if whole >= 2 * number else "interrupted"
            for number in (1, 2)
            if whole >= 2 * number - 1
        }
        assert found == expected, cut
        assert bool(reader.problems) == (cut not in {0, *ends}), cut
        assert all(problem.kind == "torn" for problem in reader.problems)


def test_a_bad_frame_in_the_middle_is_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    pieces = [frame(record) for n in range(6) for record in (opened(n), closed(n, attempt()))]
    starts = [sum(map(len, pieces[:count])) for count in range(len(pieces))]
    for place in range(starts[4], starts[5]):
        content = bytearray(b"".join(pieces))
        content[place] ^= 0x41
        folder = tmp_path / str(place)
        segment_file(folder, "00-w.seg", bytes(content))
        reader = LedgerReader(folder)
        found = list(reader.calls())
        assert len(found) == 6, "the Call whose opened frame is lost is still there, with its money"
        bad = [problem for problem in reader.problems if problem.kind == "bad"]
        assert [(problem.offset, problem.size) for problem in bad] == [(starts[4], len(pieces[4]))]
        assert [problem.kind for problem in reader.problems if problem.kind != "bad"] == ["orphan"]
        assert str(starts[4]) in str(bad[0])
        assert sum(call.cost_nano_usd for call in found) == 6_000


def test_zeros_after_a_power_cut_are_a_torn_end(tmp_path: Path) -> None:
    segment_file(tmp_path, "00-w.seg", frame(opened(1)) + bytes(4096))
    reader = LedgerReader(tmp_path)
    assert len(list(reader.calls())) == 1
    assert [problem.kind for problem in reader.problems] == ["torn"]


def test_a_newer_record_is_named(tmp_path: Path) -> None:
    class ClosedV2(msgspec.Struct, array_like=True, tag="closed.2"):
        call_id: str

    segment_file(tmp_path, "00-w.seg", frame(opened(1)) + frame(ClosedV2("x")))
    for read in (
        lambda: list(LedgerReader(tmp_path).calls()),
        lambda: LedgerReader(tmp_path).poll(),
        lambda: LedgerQueries(tmp_path).cost(),
    ):
        with pytest.raises(NewerRecord, match=r"closed\.2"):
            read()


def test_who_lives_runs_and_who_is_gone_was_interrupted(tmp_path: Path) -> None:
    write(tmp_path, opened(1))
    journal = write(tmp_path, opened(2), keep_open=True)
    assert {call.call_id: call.status for call in LedgerReader(tmp_path).calls()} == {
        call_id(1): "interrupted",
        call_id(2): "running",
    }
    journal.close()
    assert {call.status for call in LedgerReader(tmp_path).calls()} == {"interrupted"}


def test_poll_returns_each_ended_call_once_and_reads_only_what_is_new(tmp_path: Path) -> None:
    reader = LedgerReader(tmp_path)
    journal = FrameJournal(tmp_path, segment_bytes_max=600)
    assert reader.poll() == []
    for number in range(12):
        journal.append(opened(number))
        journal.flush()
        assert reader.poll() == []
        if number % 2:
            journal.append(closed(number, attempt()))
            journal.flush()
            assert [call.call_id for call in reader.poll()] == [call_id(number)]
    journal.close()
    assert {(call.call_id, call.status) for call in reader.poll()} == {
        (call_id(number), "interrupted") for number in range(0, 12, 2)
    }
    assert reader.poll() == []
    assert reader.problems == ()


def test_the_last_arrival_of_an_outcome_holds_wherever_it_is_written(tmp_path: Path) -> None:
    write(tmp_path, OutcomeV1(call_id(1), "ok", "human", False, 5, 30))
    write(tmp_path, opened(1), closed(1, attempt()), OutcomeV1(call_id(1), "ok", "human", True, 5, 20))
    write(
        tmp_path,
        OutcomeV1(call_id(1), "ok", "human", True, 5, 10),
        OutcomeV1(call_id(1), "label", "crm", "billing", 5, 10),
    )
    call = LedgerReader(tmp_path).call(call_id(1))
    assert call is not None
    assert [(one.metric, one.source, one.value) for one in call.outcomes] == [
        ("label", "crm", "billing"),
        ("ok", "human", False),
    ]


@settings(LAW, max_examples=20)
@given(data=st.data())
def test_law_each_call_once_whatever_was_written_twice(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Frames of several writers, in order, in any segments, whole segments copied: each id once, and queries agree."""
    folder = tmp_path_factory.mktemp("law")
    calls = data.draw(st.integers(1, 8))
    writers = data.draw(st.integers(1, 3))
    expected: dict[str, str] = {}
    cost = 0
    for writer in range(writers):
        records: list[Stored] = []
        for number in range(writer * 10, writer * 10 + calls):
            ends = data.draw(st.sampled_from(("closed", "open")))
            for _ in range(data.draw(st.integers(1, 2))):
                records.append(opened(number))
            if ends == "closed":
                price = data.draw(st.integers(0, 10**12))
                cost += price
                for _ in range(data.draw(st.integers(1, 3))):
                    records.append(closed(number, attempt("v", price)))
            expected[call_id(number)] = "answered" if ends == "closed" else "interrupted"
        cuts = sorted(data.draw(st.lists(st.integers(0, len(records)), max_size=2)))
        for index, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(records)], strict=True)):
            content = b"".join(frame(record) for record in records[start:end])
            torn = content + content[: data.draw(st.integers(0, 7))]
            segment_file(folder, f"{index:02x}-w{writer}.seg", torn)
            if data.draw(st.booleans()):
                segment_file(folder, f"{index:02x}-w{writer}.copy.seg", torn)
    found = everything(folder)
    assert {name: call.status for name, call in found.items()} == expected
    assert sum(call.cost_nano_usd for call in found.values()) == cost
    for _ in range(2):
        table = LedgerQueries(folder).cost(["status"])
        assert (table.total.calls, table.total.cost_nano_usd) == (len(expected), cost)
        assert {row.keys[0]: row.calls for row in table.rows} == {
            status: list(expected.values()).count(status) for status in set(expected.values())
        }


def test_a_frame_seen_half_written_is_read_once_it_is_whole(tmp_path: Path) -> None:
    journal = write(tmp_path, opened(1), keep_open=True)
    reader = LedgerReader(tmp_path)
    whole = frame(closed(1, attempt()))
    fd = os.open(journal.segment, os.O_WRONLY | os.O_APPEND)
    for byte in range(len(whole)):
        assert reader.poll() == []
        os.write(fd, whole[byte : byte + 1])
    os.close(fd)
    assert [call.status for call in reader.poll()] == ["answered"]
    assert reader.problems == ()
    journal.close()


def test_stored_versions_of_today_stay_readable() -> None:
    """Each record decodes as itself, and as it was before it had its last fields."""
    before = ((opened(1), b"\x9b", b"\x9e", b"\x00\x90\x00"), (closed(1), b"\x9c", b"\x9e", b"\xa0\x90"))
    for record, short, whole, last in before:
        encoded = MSGPACK.encode(record)
        assert encoded[:1] == whole
        assert STORED_DECODER.decode(encoded) == record
        assert encoded.endswith(last)
        assert STORED_DECODER.decode(short + encoded[1:].removesuffix(last)) == record
