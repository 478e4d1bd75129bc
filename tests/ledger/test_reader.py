"""The reader: torn ends, damage, exactly once, who lives, and Outcomes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.calls import (
    STORED_DECODER,
    Answers,
    AttemptV1,
    Attribution,
    Call,
    ClosedV1,
    OpenedV1,
    OutcomeV1,
    ReservedV1,
    SegmentV1,
    Stored,
)
from drivetrain.core.codec import MSGPACK
from drivetrain.core.features import FeaturesSeenV1
from drivetrain.core.money import Usage
from drivetrain.lake.costs import LedgerQueries
from drivetrain.ledger.frames import HEAD, NewerRecord, records, segments
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ledger.reader import LedgerReader
from support.lakes import lake_at
from support.records import LAW, T0_NS, attempt, call_id, closed, opened, write

pytestmark = pytest.mark.slow


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
    assert LedgerQueries(lake_at(tmp_path / "nowhere")).cost(["team"]).total.calls == 0


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
        lambda: LedgerQueries(lake_at(tmp_path)).cost(),
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
        table = LedgerQueries(lake_at(folder)).cost(["status"])
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
    """Each record decodes as itself, and as it was each time before it had its last fields."""
    outcome = OutcomeV1(call_id(1), "ok", "human", True, 5, 20)
    ages: tuple[tuple[Stored, bytes, tuple[tuple[bytes, bytes], ...]], ...] = (
        (opened(1), b"\xdc\x00\x10", ((b"\x9e", b"\xc0\xa0"), (b"\x9b", b"\x00\x90\x00\xc0\xa0"))),
        (closed(1), b"\x9f", ((b"\x9e", b"\xc0"), (b"\x9c", b"\xa0\x90\xc0"))),
        (outcome, b"\x9a", ((b"\x98", b"\xa0\xa0"),)),
    )
    for record, whole, before in ages:
        encoded = MSGPACK.encode(record)
        assert encoded.startswith(whole)
        assert STORED_DECODER.decode(encoded) == record
        for short, last in before:
            assert encoded.endswith(last)
            assert STORED_DECODER.decode(short + encoded.removeprefix(whole).removesuffix(last)) == record


STORED = Path(__file__).parent.parent / "stored"
"""What each age of this package wrote: every stored type by itself, and a segment. Ages are added, never changed."""
STORED_CALL = "call_019b76daa800a1b2c3d4e500000001"
STORED_ATTEMPT = AttemptV1(
    "small",
    "openai/gpt-4o-mini",
    "answer",
    "accepted",
    "mended json",
    120,
    2_000,
    9_000,
    200,
    Usage(100, 20, 3, 4, 50, 10, "reported"),
    4_200,
    "genai-prices",
    "req-1",
    True,
    "cut",
    1_500,
    True,
    True,
    900,
)
STORED_OPENED = OpenedV1(
    STORED_CALL,
    T0_NS,
    "0123456789abcdef",
    "triage",
    "chat",
    True,
    Attribution("acme", "support", "tickets", "app", "user-1", ("env=prod", "pilot")),
    "2026-01-01",
    2,
    b"asked",
    7,
    ("project", "team:support"),
    9_000,
)
STORED_TYPES: dict[str, Stored] = {
    "segment.1": SegmentV1("stored", T0_NS, "0.1.0"),
    "opened.1": STORED_OPENED,
    "reserved.1": ReservedV1(STORED_CALL, 7, ("project", "team:support"), 8_000, 4_200),
    "closed.1": ClosedV1(
        STORED_CALL,
        T0_NS + 9_500_000,
        "answered",
        200,
        "small",
        4_200,
        (STORED_ATTEMPT,),
        "late",
        "stop",
        2,
        b"told",
        "stale",
        ("2 turns dropped",),
    ),
    "outcome.1": OutcomeV1(STORED_CALL, "solved", "crm", True, T0_NS + 1, T0_NS + 2, "app"),
}
STORED_FEATURES = FeaturesSeenV1(
    "customer", "00112233445566ff", T0_NS - 60_000_000_000, ("orders",), ("customer",), b"sealed"
)
STORED_KEYED: dict[str, Stored] = {
    "opened.1": msgspec.structs.replace(STORED_OPENED, features=STORED_FEATURES, business_key="ticket-9"),
    "outcome.1": OutcomeV1("", "solved", "crm", True, T0_NS + 1, T0_NS + 2, "app", "triage", "ticket-9"),
}
AGES: dict[str, dict[str, Stored]] = {"1": STORED_TYPES, "2": STORED_TYPES | STORED_KEYED}


@pytest.mark.parametrize("age", sorted(AGES))
def test_what_earlier_versions_stored_is_read_for_ever(age: str, tmp_path: Path) -> None:
    for tag, record in AGES[age].items():
        assert STORED_DECODER.decode((STORED / age / f"{tag}.bin").read_bytes()) == record, tag
    answers = msgspec.msgpack.decode((STORED / age / "answers.1.bin").read_bytes(), type=Answers)
    assert answers == Answers((b"one", b""), b"told")
    shutil.copytree(STORED / age, tmp_path / "calls")
    reader = LedgerReader(tmp_path)
    call = reader.call(STORED_CALL)
    assert call is not None
    assert (call.status, call.attempts, call.request, call.answers) == (
        "answered",
        (STORED_ATTEMPT,),
        b"asked",
        b"told",
    )
    assert [one.value for one in call.outcomes] == [True]
    assert everything(tmp_path)[STORED_CALL] == call
    assert reader.problems == ()


def test_the_folder_of_stored_records_holds_every_age() -> None:
    assert sorted(path.name for path in STORED.iterdir()) == sorted(AGES)


def test_a_stored_block_is_read_for_ever(tmp_path: Path) -> None:
    body = (STORED / "2" / "block.1.bin").read_bytes()
    segment_file(tmp_path, "00-w.seg", HEAD.pack(len(body), crc32(body)) + body)
    (segment,) = segments(tmp_path)
    assert [record for _, _, record in records(segment, [])] == [AGES["2"]["opened.1"]] * 32
    shutil.copytree(STORED / "2", tmp_path / "two" / "calls")
    found = everything(tmp_path / "two")
    assert {found[f"{STORED_CALL[:-2]}{number:02x}"].business_key for number in range(2, 42)} == {
        f"ticket-{number}" for number in range(2, 42)
    }


def test_an_outcome_that_names_a_business_key_reaches_every_call_of_it(tmp_path: Path) -> None:
    seen = FeaturesSeenV1("customer", "00112233445566ff", T0_NS)
    write(
        tmp_path,
        opened(1, business_key="ticket-9", features=seen),
        closed(1, attempt()),
        opened(2, business_key="ticket-9"),
        opened(3, business_key="ticket-9", workflow="other"),
        opened(4),
        OutcomeV1("", "ok", "human", True, 5, 20, "", "triage", "ticket-9"),
        OutcomeV1("", "ok", "human", False, 5, 10, "", "triage", "ticket-9"),
        OutcomeV1("", "ok", "human", False, 5, 90, "", "triage", ""),
        OutcomeV1(call_id(2), "ok", "human", False, 5, 30),
        OutcomeV1(call_id(2), "label", "crm", "billing", 5, 10),
    )
    reader = LedgerReader(tmp_path)
    expected = {1: [("ok", True)], 2: [("label", "billing"), ("ok", False)], 3: [], 4: []}
    calls = everything(tmp_path)
    for number, outcomes in expected.items():
        for call in (reader.call(call_id(number)), calls[call_id(number)]):
            assert call is not None
            assert [(one.metric, one.value) for one in call.outcomes] == outcomes, number
    assert (calls[call_id(1)].business_key, calls[call_id(1)].features) == ("ticket-9", seen)
    assert (calls[call_id(4)].business_key, calls[call_id(4)].features) == ("", None)


def test_an_outcome_in_a_block_and_one_outside_hold_alike(tmp_path: Path) -> None:
    write(
        tmp_path,
        *(opened(number, business_key=f"ticket-{number}") for number in range(50)),
        *(OutcomeV1("", "ok", "human", True, 5, 20, "", "triage", f"ticket-{number}") for number in range(50)),
    )
    write(tmp_path, OutcomeV1(call_id(7), "ok", "human", False, 5, 30))
    reader = LedgerReader(tmp_path)
    for number, value in ((6, True), (7, False)):
        call = reader.call(call_id(number))
        assert call is not None
        assert [one.value for one in call.outcomes] == [value]
    assert sum(call.outcomes[0].value is True for call in reader.calls()) == 49


def test_a_long_record_is_found_behind_damage(tmp_path: Path) -> None:
    """Opened frames are arrays of the long kind, and what stands before a short one may look like a long one's head."""
    number = next(n for n in range(10_000) if frame(closed(n, attempt()))[6] == 0xDC)
    for after in (opened(number), closed(number, attempt())):
        content = bytearray(frame(opened(1)) + frame(closed(1, attempt())) + frame(after))
        content[len(frame(opened(1))) + 9] ^= 0x41
        segment_file(tmp_path, "00-w.seg", bytes(content))
        reader = LedgerReader(tmp_path)
        assert set(everything(tmp_path)) == {call_id(1), call_id(number)}
        list(reader.calls())
        bad = next(problem for problem in reader.problems if problem.kind == "bad")
        assert bad.size == len(frame(closed(1, attempt())))


def test_a_segment_that_vanishes_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, opened(1), closed(1, attempt()))
    gone = write(tmp_path, opened(2), closed(2, attempt())).segment
    journal = write(tmp_path, opened(3), keep_open=True)
    reader = LedgerReader(tmp_path)
    assert len(reader.poll()) == 2
    real = Path.stat

    def vanishing(path: Path, **options: Any) -> os.stat_result:
        """The segment is still there when its size is asked for, and gone when it is opened."""
        status = real(path, **options)
        if path.name == gone.name:
            path.unlink()
        return status

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", vanishing)
        assert set(everything(tmp_path)) == {call_id(1), call_id(3)}
    assert not gone.exists()
    assert LedgerReader(tmp_path).call(call_id(2)) is None
    journal.append(closed(3, attempt()))
    journal.flush()
    assert [call.call_id for call in reader.poll()] == [call_id(3)]
    journal.close()


def test_a_poll_keeps_nothing_of_segments_that_were_deleted(tmp_path: Path) -> None:
    reader = LedgerReader(tmp_path)
    for number in range(3):
        path = segment_file(tmp_path, "00-w.seg", frame(opened(number)) + frame(closed(number, attempt())))
        assert [call.call_id for call in reader.poll()] == [call_id(number)]
        path.unlink()
        assert reader.poll() == []
