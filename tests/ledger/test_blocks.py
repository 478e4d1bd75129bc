"""Blocks: what many frames of one flush become, that nothing is lost by it, and that damage stays where it is."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from pathlib import Path
from zlib import crc32

import msgspec
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.calls import BLOCK_DECODER, BlockV1, OpenedV1, Stored
from drivetrain.core.codec import MSGPACK
from drivetrain.ledger import blocks, frames, journal
from drivetrain.ledger.blocks import BLOCK_BODIES_MIN, BLOCK_TAG
from drivetrain.ledger.frames import HEAD, Damage, records, segments
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ledger.reader import LedgerReader
from support.records import LAW, attempt, call_id, closed, opened, write
from support.tries import PATIENCE_S

pytestmark = pytest.mark.slow


def read(folder: Path, start: int = 0) -> list[tuple[int, int, Stored]]:
    """Every record behind the first frame of the only segment."""
    damage: list[Damage] = []
    (segment,) = segments(folder)
    found = [one for one in records(segment, damage, start) if one[2].__class__.__name__ != "SegmentV1"]
    assert damage == []
    return found


def block_frame(raw_size: int, content: bytes) -> bytes:
    body = MSGPACK.encode(BlockV1(raw_size, content))
    return HEAD.pack(len(body), crc32(body)) + body


def place(folder: Path, *pieces: bytes) -> None:
    path = folder / "calls" / "00-w.seg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(pieces))


def plain(record: Stored) -> bytes:
    body = MSGPACK.encode(record)
    return HEAD.pack(len(body), crc32(body)) + body


def test_a_lone_call_is_plain_and_a_busy_tick_is_a_quarter_of_its_size(tmp_path: Path) -> None:
    few = write(tmp_path / "few", *(opened(number) for number in range(BLOCK_BODIES_MIN - 1)))
    assert BLOCK_TAG not in few.segment.read_bytes()
    everything = [one for number in range(500) for one in (opened(number), closed(number, attempt()))]
    many = write(tmp_path / "many", *everything)
    data = many.segment.read_bytes()
    assert data.count(BLOCK_TAG) == 1
    assert len(data) < sum(len(plain(one)) for one in everything) / 4
    assert [record for _, _, record in read(tmp_path / "many")] == everything


@settings(LAW, max_examples=60)
@given(data=st.data())
def test_law_what_is_appended_is_read_in_order_whatever_its_size(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any mix of small and large records, of ticks and of limits; and reading again from any place loses nothing."""
    folder = tmp_path_factory.mktemp("law")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES_MAX", data.draw(st.sampled_from((300, 9_000, 1_048_576))))
        made = FrameJournal(folder)
        appended: list[Stored] = []
        for _ in range(data.draw(st.integers(1, 3))):
            for _ in range(data.draw(st.integers(1, 120))):
                size = data.draw(st.sampled_from((0, 0, 0, 0, 10, 700, 5_000)))
                appended.append(opened(len(appended), payload=os.urandom(size)))
                made.append(appended[-1])
            made.flush()
        made.close()
    found = read(folder)
    assert [record for _, _, record in found] == appended
    for index in data.draw(st.lists(st.integers(0, len(found) - 1), max_size=4)):
        offset, end, record = found[index]
        assert record in [one for _, _, one in read(folder, offset)]
        rest = [one for _, _, one in read(folder, end)]
        assert rest[len(rest) - (len(appended) - index - 1) :] == appended[index + 1 :]


def test_incompressible_payloads_are_not_compressed(tmp_path: Path) -> None:
    large = write(tmp_path / "large", *(opened(number, payload=os.urandom(4_000)) for number in range(100)))
    assert BLOCK_TAG not in large.segment.read_bytes()
    # Not even tried, though these would shrink: what is as large as this is sealed in all likelihood.
    large = write(tmp_path / "even", *(opened(number, payload=bytes(4_000)) for number in range(100)))
    assert BLOCK_TAG not in large.segment.read_bytes()
    # Small in the mean, yet almost all noise: tried, and not kept.
    noise = [opened(number, payload=os.urandom(800)) for number in range(100)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_SHARE_MAX", 0.5)
        kept = write(tmp_path / "noise", *noise)
    assert BLOCK_TAG not in kept.segment.read_bytes()
    assert [record for _, _, record in read(tmp_path / "noise")] == noise


def test_a_poll_that_is_left_in_the_middle_of_a_block_goes_on_there(tmp_path: Path) -> None:
    write(tmp_path, *(one for number in range(100) for one in (opened(number), closed(number, attempt()))))
    reader = LedgerReader(tmp_path)
    seen = []
    for _ in range(1_000):
        for call in reader.new():
            seen.append(call.call_id)
            break
        else:
            break
    assert seen == [call_id(number) for number in range(100)]


def test_a_cut_at_every_byte_leaves_whole_blocks_only(tmp_path: Path) -> None:
    made = FrameJournal(tmp_path)
    for batch in range(2):
        for number in range(batch * 40, batch * 40 + 40):
            made.append(opened(number))
        made.flush()
    made.close()
    content = made.segment.read_bytes()
    second = content.index(BLOCK_TAG, content.index(BLOCK_TAG) + 1) - 9
    for cut in range(second - 3, len(content) + 1):
        made.segment.write_bytes(content[:cut])
        reader = LedgerReader(tmp_path)
        assert len(list(reader.calls())) == (80 if cut == len(content) else 40 if cut >= second else 0), cut
        torn = [problem.kind for problem in reader.problems]
        assert torn == ([] if cut in {second, len(content)} else ["torn"]), cut


def test_a_damaged_block_is_reported_and_what_follows_is_read(tmp_path: Path) -> None:
    made = FrameJournal(tmp_path)
    for batch in range(3):
        for number in range(batch * 40, batch * 40 + 40):
            made.append(opened(number))
        made.flush()
    made.close()
    content = made.segment.read_bytes()
    starts = [match - 9 for match in range(len(content)) if content.startswith(BLOCK_TAG, match)]
    for at in range(starts[1], starts[2], 7):
        broken = bytearray(content)
        broken[at] ^= 0x41
        made.segment.write_bytes(broken)
        reader = LedgerReader(tmp_path)
        numbers = {int(call.call_id[-8:], 16) for call in reader.calls()}
        assert numbers == {*range(40), *range(80, 120)}, at
        (bad,) = reader.problems
        assert (bad.kind, bad.offset, bad.size) == ("bad", starts[1], starts[2] - starts[1])


def compressed(content: bytes) -> bytes:
    return zstd.compress(content, 1)


BODY = MSGPACK.encode(opened(1))
BAD_BLOCKS = {
    "not zstd": (100, b"no zstd at all"),
    "says too much": (len(BODY) + 9, compressed((1).to_bytes(4, "little") + len(BODY).to_bytes(4, "little") + BODY)),
    "says too little": (len(BODY) + 7, compressed((1).to_bytes(4, "little") + len(BODY).to_bytes(4, "little") + BODY)),
    "no body": (4, compressed(bytes(4))),
    "nothing": (0, compressed(b"")),
    "more bodies than bytes": (8, compressed(b"\xff" * 8)),
    "bodies beyond the end": (9, compressed((1).to_bytes(4, "little") + (7).to_bytes(4, "little") + b"x")),
    "two frames of zstd": (9, compressed((1).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"x") * 2),
    "cut": (4_000, compressed(os.urandom(4_000))[:-100]),
    "beyond the limit": (frames.FRAME_BYTES_MAX + 1, compressed(bytes(100))),
    "negative": (-5, compressed(bytes(100))),
}


@pytest.mark.parametrize("what", BAD_BLOCKS)
def test_a_block_that_lies_is_reported_and_reading_goes_on(what: str, tmp_path: Path) -> None:
    bad = block_frame(*BAD_BLOCKS[what])
    place(tmp_path, plain(opened(1)), bad, plain(opened(2)))
    reader = LedgerReader(tmp_path)
    assert [call.call_id for call in reader.calls()] == [call_id(1), call_id(2)]
    (problem,) = reader.problems
    assert (problem.kind, problem.offset, problem.size) == ("bad", len(plain(opened(1))), len(bad))


def test_a_bomb_never_takes_more_than_it_says_or_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_BYTES_MAX", 1_000_000)
    bomb = compressed(bytes(400_000_000))
    assert len(bomb) < 100_000
    place(tmp_path, block_frame(400_000_000, bomb), block_frame(100_000, bomb), plain(opened(2)))
    tracemalloc.start()
    try:
        reader = LedgerReader(tmp_path)
        assert [call.call_id for call in reader.calls()] == [call_id(2)]
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert [problem.kind for problem in reader.problems] == ["bad", "bad"]


def test_a_newer_record_in_a_block_is_named_and_damage_in_one_is_reported(tmp_path: Path) -> None:
    class OpenedV9(msgspec.Struct, array_like=True, tag="opened.9"):
        call_id: str

    def block(*bodies: bytes) -> bytes:
        content = b"".join(len(body).to_bytes(4, "little") for body in bodies)
        content = len(bodies).to_bytes(4, "little") + content + b"".join(bodies)
        return block_frame(len(content), compressed(content))

    place(tmp_path, block(BODY, MSGPACK.encode(OpenedV9("x"))))
    with pytest.raises(frames.NewerRecord, match=r"opened\.9"):
        list(LedgerReader(tmp_path).calls())
    nested = MSGPACK.encode(BlockV1(1, b"x"))
    place(tmp_path, block(BODY, b"\x93\xa8opened.1\x01\x02", nested, MSGPACK.encode(opened(2))))
    reader = LedgerReader(tmp_path)
    assert [call.call_id for call in reader.calls()] == [call_id(1), call_id(2)]
    assert {problem.kind for problem in reader.problems} == {"bad"}


def test_callbacks_of_a_block_run_once_each_in_order_and_sync_ones_after_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = os.fdatasync

    def noted(fd: int) -> None:
        real(fd)
        order.append("disk")

    monkeypatch.setattr(os, "fdatasync", noted)

    async def main() -> None:
        made = FrameJournal(tmp_path)
        done = asyncio.Event()
        for number in range(100):
            made.append(opened(number), lambda ok, n=number: order.append(f"plain {n} {ok}"))  # type: ignore[misc]
            made.append(closed(number), lambda ok, n=number: order.append(f"sync {n} {ok}"), sync=True)  # type: ignore[misc]
        made.append(opened(100), lambda _: done.set(), sync=True)
        await asyncio.wait_for(done.wait(), PATIENCE_S)
        made.close()

    asyncio.run(main())
    assert order == [
        *(f"plain {number} True" for number in range(100)),
        "disk",
        *(f"sync {number} True" for number in range(100)),
    ]


def test_a_short_write_confirms_exactly_the_blocks_that_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the disk refuses, what was confirmed is what a reader finds: blocks whole or not at all."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES_MAX", 8_000)
    monkeypatch.setattr(journal, "RETRY_S", 0.0)
    real = os.write
    batch = [opened(number, payload=b"p" * 2_000 if number % 50 == 0 else b"") for number in range(300)]
    probe = write(tmp_path / "probe", *batch)
    size = probe.segment.stat().st_size
    assert probe.segment.read_bytes().count(BLOCK_TAG) > 3
    confirmed_counts = set()
    for taken in range(0, size, 97):
        folder = tmp_path / str(taken)
        made = FrameJournal(folder)
        seen: list[bool] = []
        for record in batch:
            made.append(record, seen.append)
        left = taken

        def short(fd: int, data: bytes) -> int:
            nonlocal left
            if left <= 0:
                raise OSError(28, "No space left on device")
            count = real(fd, bytes(data)[:left])
            left -= count
            return count

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", short)
            made.flush()
        assert sorted(seen, reverse=True) == seen
        assert "No space" in made.failed
        late: list[bool] = []
        made.append(opened(999), late.append)
        made.flush()
        made.close()
        assert late == [True]
        reader = LedgerReader(folder)
        stand = [record.call_id for _, _, record in read(folder) if isinstance(record, OpenedV1)]
        assert stand == [*(record.call_id for record in batch[: sum(seen)]), opened(999).call_id]
        assert reader.problems == ()
        confirmed_counts.add(sum(seen))
    assert len(confirmed_counts) > 3


def test_a_compressor_serves_many_blocks(tmp_path: Path) -> None:
    """Blocks are independent: each is read by itself, the last one first."""
    made = FrameJournal(tmp_path)
    for batch in range(3):
        for number in range(batch * 50, batch * 50 + 50):
            made.append(opened(number))
        made.flush()
    made.close()
    offsets = sorted({offset for offset, _, _ in read(tmp_path)})
    assert len(offsets) == 3
    content = made.segment.read_bytes()
    for offset in reversed(offsets):
        length, _ = HEAD.unpack_from(content, offset)
        block = BLOCK_DECODER.decode(content[offset + HEAD.size : offset + HEAD.size + length])
        assert len(zstd.decompress(block.content)) == block.raw_size
