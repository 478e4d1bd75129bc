"""What every store of online features must do, on whichever it is: replaced whole, patched by pushes, never wrong."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from drivetrain.adapters.mapped_online import MappedOnline
from drivetrain.adapters.sqlite_online import SqliteOnline
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.online import (
    ABSENT,
    STRING_BYTES_MAX,
    Layout,
    OnlineStore,
    Part,
    PartRow,
    Pushed,
    entity_key,
    newer,
)
from support.tries import PATIENCE_S

Make = Callable[[], OnlineStore]
SEED = int(os.environ.get("DRIVETRAIN_TEST_SEED", "20260131"))

STATS = Part(
    "stats", (("count", "int64"), ("mean", "float64"), ("name", "string"), ("vip", "bool"), ("at", "timestamp"))
)
RISK = Part("risk", (("score", "float64"),))
LAYOUT = Layout(table="triage@customer", fingerprint="00" * 8, parts=(STATS, RISK))
OTHER = Layout(table="triage@customer", fingerprint="ff" * 8, parts=(STATS, RISK))


@pytest.fixture(params=["mapped", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Opens the same store again and again, as several processes do."""
    if request.param == "mapped":
        return lambda: MappedOnline(tmp_path / "online")
    return lambda: SqliteOnline(tmp_path / "online.db")


def key(name: Any) -> bytes:
    return entity_key((name,))


def stats(event_us: int, count: int | None = 1, *, created_us: int = 0, name: str | None = "Ada") -> PartRow:
    return PartRow(event_us, created_us, (count, count and count / 2, name, True, 1_700_000_000_000_000))


def risk(event_us: int, score: float | None, created_us: int = 0) -> PartRow:
    return PartRow(event_us, created_us, (score,))


def rows(store: OnlineStore, *names: Any, layout: Layout = LAYOUT) -> list[list[Any]]:
    """(events..., values...) per name."""
    found = store.read(layout, [key(name) for name in names])
    return [list(row) for row in zip(*found.events_us, *found.columns, strict=True)]


def test_what_is_written_is_read_with_every_type_and_null(make: Make) -> None:
    vectors: list[tuple[bytes, list[PartRow | None]]] = [
        (key("ada"), [stats(10, 3, name="Ada ✓"), risk(11, float("inf"))]),
        (key("bob"), [PartRow(12, 0, (None, None, None, None, None)), None]),
        (key(7), [PartRow(-5, 0, (-(2**63), -0.0, "", False, -1)), risk(13, None)]),
    ]
    assert make().replace(LAYOUT, vectors, (100, 200)) == 3
    store = make()
    assert rows(store, "ada", "nobody", "bob", 7, "7") == [
        [10, 11, 3, 1.5, "Ada ✓", True, 1_700_000_000_000_000, float("inf")],
        [ABSENT, ABSENT, None, None, None, None, None, None],
        [12, ABSENT, None, None, None, None, None, None],
        [-5, 13, -(2**63), -0.0, "", False, -1, None],
        [ABSENT, ABSENT, None, None, None, None, None, None],
    ]
    found = store.read(LAYOUT, [key("ada"), key("bob")])
    assert found.as_of_us == (100, 200)
    assert list(found.has_null) == [True] * 6
    assert list(store.read(LAYOUT, [key("ada")]).has_null) == [False] * 6
    state = store.state(LAYOUT.table)
    assert state is not None
    assert (state.layout, state.vectors, state.as_of_us, state.pushed) == (LAYOUT, 3, (100, 200), 0)
    assert store.tables() == [LAYOUT.table]


def test_a_table_that_is_not_there_has_no_entity(make: Make) -> None:
    store = make()
    assert rows(store, "ada") == [[ABSENT, ABSENT, None, None, None, None, None, None]]
    assert store.read(LAYOUT, []).as_of_us == (0, 0)
    assert store.state(LAYOUT.table) is None
    assert store.tables() == []
    assert list(store.scan(LAYOUT.table)) == []
    assert store.remove(LAYOUT.table, [key("ada")]) == 0
    store.drop(LAYOUT.table)


def test_vectors_of_another_definition_are_an_error_never_a_number(make: Make) -> None:
    make().replace(LAYOUT, [(key("ada"), [stats(10), None])], (1, 1))
    reader = make()
    with pytest.raises(DrivetrainError, match=r"definition 0{16}, not f{16}"):
        reader.read(OTHER, [key("ada")])
    with pytest.raises(DrivetrainError, match="definition"):
        reader.push(OTHER, [Pushed(key("ada"), "risk", risk(1, 1.0))])
    make().replace(OTHER, [(key("ada"), [stats(11, 9), None])], (2, 2))
    assert rows(reader, "ada", layout=OTHER)[0][2] == 9


def test_an_open_reader_sees_a_replaced_table_at_its_next_read(make: Make) -> None:
    writer, reader = make(), make()
    for generation in range(5):
        writer.replace(LAYOUT, [(key("ada"), [stats(10, generation), None])], (generation, generation))
        assert rows(reader, "ada")[0][2] == generation
        assert reader.read(LAYOUT, [key("ada")]).as_of_us == (generation, generation)
    writer.replace(LAYOUT, [(key("bob"), [stats(10), None])], (9, 9))
    assert rows(reader, "ada")[0][0] == ABSENT


def test_a_pushed_row_is_seen_at_once_and_a_late_one_never_overwrites(make: Make) -> None:
    writer, reader = make(), make()
    writer.replace(LAYOUT, [(key("ada"), [stats(10, 1, created_us=10), risk(10, 0.1, 10)])], (20, 20))
    assert rows(reader, "ada")[0][2] == 1
    assert writer.push(LAYOUT, [Pushed(key("ada"), "stats", stats(30, 2, created_us=31))]) == 1
    assert rows(reader, "ada")[0][2] == 2
    assert rows(reader, "ada")[0][-1] == 0.1  # the other view's row stands
    writer.push(LAYOUT, [Pushed(key("ada"), "stats", stats(29, 3, created_us=99))])
    assert rows(reader, "ada")[0][2] == 2
    writer.push(LAYOUT, [Pushed(key("ada"), "stats", stats(30, 4, created_us=30))])
    assert rows(reader, "ada")[0][2] == 2
    writer.push(LAYOUT, [Pushed(key("ada"), "stats", stats(30, 5, created_us=31))])
    assert rows(reader, "ada")[0][2] == 5
    writer.push(LAYOUT, [Pushed(key("ada"), "risk", risk(9, 0.9, 99)), Pushed(key("new"), "risk", risk(1, 0.7, 1))])
    assert rows(reader, "ada", "new") == [
        [30, 10, 5, 2.5, "Ada", True, 1_700_000_000_000_000, 0.1],
        [ABSENT, 1, None, None, None, None, None, 0.7],
    ]
    assert list(reader.read(LAYOUT, [key("new")]).created_us[1]) == [1]


def test_a_push_before_any_materialization_makes_the_table(make: Make) -> None:
    make().push(LAYOUT, [Pushed(key("ada"), "risk", risk(5, 0.5))])
    assert rows(make(), "ada")[0][-1] == 0.5
    assert make().read(LAYOUT, [key("ada")]).as_of_us == (0, 0)


def test_what_was_pushed_stays_until_the_sources_know_as_much(make: Make) -> None:
    store = make()
    store.replace(LAYOUT, [(key("ada"), [stats(10), risk(10, 0.1, 10)])], (20, 20))
    store.push(LAYOUT, [Pushed(key("ada"), "risk", risk(30, 0.3, 31)), Pushed(key("eve"), "risk", risk(30, 0.4, 31))])
    for as_of in (40, 50):  # the sources do not have it, once and again
        store.replace(LAYOUT, [(key("ada"), [stats(10), risk(10, 0.1, 10)])], (as_of, as_of))
        assert [row[-1] for row in rows(make(), "ada", "eve")] == [0.3, 0.4]
    same = risk(30, 0.3, 31)
    store.replace(LAYOUT, [(key("ada"), [stats(10), same]), (key("eve"), [None, risk(31, 0.5, 31)])], (60, 60))
    assert [row[-1] for row in rows(make(), "ada", "eve")] == [0.3, 0.5]
    # What they have had, they may take back.
    store.replace(LAYOUT, [(key("ada"), [stats(10), risk(10, 0.1, 10)])], (70, 70))
    assert [row[-1] for row in rows(make(), "ada", "eve")] == [0.1, None]


def test_a_push_while_the_table_is_replaced_is_not_lost(make: Make) -> None:
    store, other = make(), make()
    store.replace(LAYOUT, [], (1, 1))

    def vectors() -> Any:
        yield key("ada"), [stats(10), risk(10, 0.1)]
        other.push(LAYOUT, [Pushed(key("ada"), "risk", risk(30, 0.3)), Pushed(key("eve"), "risk", risk(30, 0.4))])
        yield key("bob"), [stats(10), risk(10, 0.2)]

    store.replace(LAYOUT, vectors(), (20, 20))
    assert [row[-1] for row in rows(make(), "ada", "bob", "eve")] == [0.3, 0.2, 0.4]


def test_a_changed_definition_keeps_what_was_pushed_to_the_views_that_are_the_same(make: Make) -> None:
    store = make()
    store.push(LAYOUT, [Pushed(key("ada"), "risk", risk(30, 0.3)), Pushed(key("ada"), "stats", stats(30, 4))])
    wider = Part("stats", (*STATS.columns, ("more", "int64")))
    changed = Layout(table=LAYOUT.table, fingerprint="ab" * 8, parts=(RISK, wider))
    store.replace(changed, [], (40, 40))
    assert rows(make(), "ada", layout=changed) == [[30, ABSENT, 0.3, None, None, None, None, None, None]]


def test_a_replacement_that_fails_leaves_the_old_table(make: Make) -> None:
    store, reader = make(), make()
    store.replace(LAYOUT, [(key("ada"), [stats(10, 1), None])], (1, 1))

    def broken() -> Any:
        yield key("bob"), [stats(10), None]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.replace(LAYOUT, broken(), (2, 2))
    for value, column in ((2**63, "count"), ("text", "mean"), (3.5, "count")):
        values = [1, 1.0, "x", True, 1]
        values[[name for name, _ in STATS.columns].index(column)] = value
        with pytest.raises(DrivetrainError, match=f"stats:{column}"):
            store.replace(LAYOUT, [(key("x"), [PartRow(1, 1, tuple(values)), None])], (2, 2))
        with pytest.raises(DrivetrainError, match=f"stats:{column}"):
            store.push(LAYOUT, [Pushed(key("ada"), "stats", PartRow(99, 99, tuple(values)))])
    long = PartRow(1, 1, (1, 1.0, "x" * (STRING_BYTES_MAX + 1), True, 1))
    with pytest.raises(DrivetrainError, match=r"stats:name.*at most"):
        store.push(LAYOUT, [Pushed(key("ada"), "stats", long)])
    assert rows(reader, "ada", "bob") == [
        [10, ABSENT, 1, 0.5, "Ada", True, 1_700_000_000_000_000, None],
        [ABSENT, ABSENT, *[None] * 6],
    ]


def test_removed_keys_are_in_no_file(make: Make, tmp_path: Path) -> None:
    store = make()
    secret, kept = "sub-5f3b9c1d", "sub-77aa"
    store.replace(
        LAYOUT, [(key(secret), [stats(1, name="Countess of Lovelace"), None]), (key(kept), [stats(1, 7), None])], (1, 1)
    )
    store.push(LAYOUT, [Pushed(key(secret), "risk", risk(2, 0.5)), Pushed(key(kept), "risk", risk(2, 0.6))])
    assert store.remove(LAYOUT.table, [key(secret), key("unknown")]) == 1
    assert [(row[2], row[-1]) for row in rows(make(), secret, kept)] == [(None, None), (7, 0.6)]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
            assert b"Lovelace" not in path.read_bytes(), path


def test_scanning_gives_what_reading_gives(make: Make) -> None:
    store = make()
    store.replace(LAYOUT, [(key(n), [stats(n, n), None]) for n in range(50)], (1, 1))
    store.push(LAYOUT, [Pushed(key(n), "risk", risk(n, n / 7)) for n in range(40, 60)])
    scanned = dict(store.scan(LAYOUT.table))
    assert len(scanned) == 60
    for n, row in enumerate(rows(make(), *range(60))):
        have = scanned[key(n)]
        assert row[2] == (have[0].values[0] if have[0] else None)
        assert row[-1] == (have[1].values[0] if have[1] else None)


def test_a_dropped_table_is_gone(make: Make) -> None:
    store = make()
    store.push(LAYOUT, [Pushed(key("ada"), "risk", risk(5, 0.5))])
    store.drop(LAYOUT.table)
    assert make().tables() == []
    assert rows(make(), "ada")[0][0] == ABSENT


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 300, "nul\0"])
def test_a_table_cannot_leave_its_folder(make: Make, name: str) -> None:
    with pytest.raises(DrivetrainError, match="no name of an online table"):
        make().replace(Layout(table=name, fingerprint="0", parts=(RISK,)), [], (1,))


def test_any_sequence_of_writes_reads_like_a_dictionary(make: Make) -> None:
    """Law: what is read is, per entity and view, the newest of the last sources and of every push."""
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    store, reader = make(), make()
    source: dict[str, list[PartRow | None]] = {}
    pushed: dict[tuple[str, int], PartRow] = {}
    names = [f"k{n}" for n in range(25)]

    def part_row(place: int) -> PartRow:
        event, created = dice.randrange(30), dice.randrange(4)
        return (
            stats(event, dice.randrange(99), created_us=created) if place == 0 else risk(event, dice.random(), created)
        )

    for _ in range(120):
        if dice.random() < 0.25:
            source = {
                name: [part_row(at) if dice.random() < 0.7 else None for at in range(2)]
                for name in dice.sample(names, dice.randrange(len(names)))
            }
            store.replace(LAYOUT, [(key(name), row) for name, row in source.items()], (1, 1))
            for place, row in list(pushed.items()):
                if newer(row, source.get(place[0], [None, None])[place[1]]) is not row:
                    del pushed[place]
        else:
            some = [(dice.choice(names), dice.randrange(2)) for _ in range(dice.randrange(1, 4))]
            given = [(name, at, part_row(at)) for name, at in some]
            store.push(LAYOUT, [Pushed(key(name), LAYOUT.parts[at].name, row) for name, at, row in given])
            for name, at, row in given:
                pushed[name, at] = newer(pushed.get((name, at)), row) or row
        expected = []
        for name in names:
            have = [newer(source.get(name, [None, None])[at], pushed.get((name, at))) for at in range(2)]
            events = [one.event_us if one else ABSENT for one in have]
            expected.append(
                [*events, *(have[0].values if have[0] else [None] * 5), *(have[1].values if have[1] else [None])]
            )
        assert rows(reader, *names) == expected


# What is true of files only.

KILLED = """
import sys, os
from pathlib import Path
from drivetrain.adapters.mapped_online import MappedOnline
from drivetrain.adapters.sqlite_online import SqliteOnline
from drivetrain.ports.online import *
kind, place, kind_of_write = sys.argv[1:]
store = MappedOnline(Path(place)) if kind == "mapped" else SqliteOnline(Path(place))
layout = Layout(table="t", fingerprint="0" * 16, parts=(Part("v", (("n", "int64"),)),))
print("go", flush=True)
n = 0
while True:
    n += 1
    if kind_of_write == "replace" or n % 7 == 0:
        store.replace(layout, [(entity_key((k,)), [PartRow(n, n, (n,))]) for k in range(300)], (n,))
    else:
        store.push(layout, [Pushed(entity_key((k,)), "v", PartRow(n, n, (n,))) for k in range(300)])
    print(n, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("write", ["replace", "push"])
@pytest.mark.parametrize("kind", ["mapped", "sqlite"])
def test_killed_at_any_point_it_is_old_or_new_and_never_half(kind: str, write: str, tmp_path: Path) -> None:
    place = tmp_path / ("online" if kind == "mapped" else "online.db")
    layout = Layout(table="t", fingerprint="0" * 16, parts=(Part("v", (("n", "int64"),)),))
    dice = random.Random(SEED)
    print(f"seed {SEED}")
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, kind, str(place), write], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        time.sleep(dice.uniform(0.01, 0.15))
        process.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in process.stdout.read().split() if line.isdigit()]
        process.wait()
        process.stdout.close()
        store: OnlineStore = MappedOnline(place) if kind == "mapped" else SqliteOnline(place)
        found = store.read(layout, [entity_key((k,)) for k in range(300)])
        assert len(set(found.columns[0])) == 1, "a vector of another write"
        if acknowledged:
            assert found.columns[0][0] in (acknowledged[-1], acknowledged[-1] + 1)
        store.drop("t")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mapped", "sqlite"])
def test_readers_beside_a_writer_never_see_a_mixture(kind: str, tmp_path: Path) -> None:
    place = tmp_path / ("online" if kind == "mapped" else "online.db")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, kind, str(place), "replace"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    layout = Layout(table="t", fingerprint="0" * 16, parts=(Part("v", (("n", "int64"),)),))
    try:
        assert process.stdout.readline() == "go\n"
        assert process.stdout.readline() == "1\n"
        reader: OnlineStore = MappedOnline(place) if kind == "mapped" else SqliteOnline(place)
        seen: list[int] = []
        began = time.monotonic()
        while (passed_s := time.monotonic() - began) < 0.7 or (passed_s < PATIENCE_S and seen[-1] == seen[0]):
            found = reader.read(layout, [entity_key((k,)) for k in range(0, 300, 7)])
            assert len(set(found.columns[0])) == 1
            assert found.as_of_us[0] == found.columns[0][0]
            seen.append(found.columns[0][0])
        assert seen == sorted(seen)
        assert seen[-1] > seen[0]
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_two_writers_lose_no_push(make: Make) -> None:
    make().replace(LAYOUT, [], (1, 1))

    def pushing(who: int) -> None:
        store = make()
        for n in range(20):
            store.push(LAYOUT, [Pushed(key(who * 100 + n), "risk", risk(n, float(n)))])

    threads = [threading.Thread(target=pushing, args=(who,)) for who in range(3)]
    for one in threads:
        one.start()
    make().replace(LAYOUT, [], (2, 2))
    for one in threads:
        one.join()
    assert [row[-1] for row in rows(make(), *[who * 100 + n for who in range(3) for n in range(20)])] == [
        float(n) for _ in range(3) for n in range(20)
    ]


def test_keys_chosen_to_collide_are_found_all_the_same(tmp_path: Path) -> None:
    """CRC-32 is linear: whoever chooses ids can make thousands that hash alike."""
    layout = Layout(table="t", fingerprint="0", parts=(RISK,))
    base = bytearray(b"\x91\xac" + bytes(12))
    basis = []
    for bit in range(96):
        one = bytearray(base)
        one[2 + bit // 8] ^= 1 << bit % 8
        basis.append((crc32(one) ^ crc32(base), 1 << bit))
    kernel = _kernel(basis)
    assert len(kernel) >= 8
    keys = []
    for choice in range(256):
        mask = 0
        for n in range(8):
            if choice >> n & 1:
                mask ^= kernel[n]
        content = bytearray(base)
        for bit in range(96):
            if mask >> bit & 1:
                content[2 + bit // 8] ^= 1 << bit % 8
        keys.append(bytes(content))
    assert len(set(keys)) == 256
    assert len({crc32(one) for one in keys}) == 1
    store = MappedOnline(tmp_path)
    store.replace(layout, [(one, [risk(1, float(n))]) for n, one in enumerate(keys)], (1,))
    assert list(store.read(layout, keys).columns[0]) == [float(n) for n in range(256)]
    assert store.read(layout, [key("absent")]).columns[0] == [None]


def _kernel(basis: list[tuple[int, int]]) -> list[int]:
    """Combinations of the vectors that add up to nothing, over GF(2)."""
    pivots: dict[int, tuple[int, int]] = {}
    kernel = []
    for value, which in basis:
        left, combined = value, which
        while left:
            high = left.bit_length()
            if high not in pivots:
                pivots[high] = (left, combined)
                break
            left, combined = left ^ pivots[high][0], combined ^ pivots[high][1]
        else:
            kernel.append(combined)
    return kernel


def test_a_reader_of_the_old_definition_goes_on_until_it_must_have_reloaded(tmp_path: Path) -> None:
    now = [0.0]
    reader = MappedOnline(tmp_path, monotonic=lambda: now[0])
    writer = MappedOnline(tmp_path)
    writer.replace(LAYOUT, [(key("ada"), [stats(1, 1), None])], (1, 1))
    assert rows(reader, "ada")[0][2] == 1
    writer.replace(OTHER, [(key("ada"), [stats(1, 2), None])], (2, 2))
    assert rows(reader, "ada")[0][2] == 1
    assert rows(reader, "ada", layout=OTHER)[0][2] == 2  # both Snapshots stand side by side
    assert reader.read(LAYOUT, [key("ada")]).as_of_us == (1, 1)
    now[0] = 3_700.0
    with pytest.raises(DrivetrainError, match="definition"):
        reader.read(LAYOUT, [key("ada")])


def test_a_file_that_is_cut_or_changed_is_refused(tmp_path: Path) -> None:
    store = MappedOnline(tmp_path)
    store.replace(LAYOUT, [(key(n), [stats(n, n), None]) for n in range(20)], (1, 1))
    [path] = (tmp_path / LAYOUT.table).glob("*.vectors")
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-30] + b"?" + whole[-29:], b"x" + whole[1:]):
        path.write_bytes(content)
        with pytest.raises(DrivetrainError, match="no file of online features"):
            MappedOnline(tmp_path).read(LAYOUT, [key(1)])
    path.write_bytes(whole)
    assert rows(MappedOnline(tmp_path), 1)[0][2] == 1


def test_a_push_that_was_torn_is_not_seen_and_the_next_one_is(tmp_path: Path) -> None:
    store = MappedOnline(tmp_path)
    store.push(LAYOUT, [Pushed(key("ada"), "risk", risk(1, 0.1))])
    [path] = (tmp_path / LAYOUT.table).glob("*.pushed")
    whole = path.read_bytes()
    store.push(LAYOUT, [Pushed(key("ada"), "risk", risk(2, 0.2)), Pushed(key("bob"), "risk", risk(2, 0.3))])
    both = path.read_bytes()
    for end in range(len(whole), len(both)):
        path.write_bytes(both[:end])
        assert [row[-1] for row in rows(MappedOnline(tmp_path), "ada", "bob")] == [0.1, None]
    path.write_bytes(both[:-3] + struct.pack("B", both[-3] ^ 1) + both[-2:])
    late = MappedOnline(tmp_path)
    assert rows(late, "ada")[0][-1] == 0.1
    late.push(LAYOUT, [Pushed(key("bob"), "risk", risk(5, 0.5))])
    assert [row[-1] for row in rows(MappedOnline(tmp_path), "ada", "bob")] == [0.1, 0.5]


def test_much_that_is_pushed_is_folded_in(tmp_path: Path) -> None:
    store = MappedOnline(tmp_path, pushed_bytes_max=4_000)
    reader = MappedOnline(tmp_path)
    for n in range(300):
        store.push(LAYOUT, [Pushed(key(n % 50), "risk", risk(n, float(n)))])
        assert rows(reader, n % 50)[0][-1] == n
    assert sum(path.stat().st_size for path in (tmp_path / LAYOUT.table).glob("*.pushed")) <= 4_100
    assert len(list((tmp_path / LAYOUT.table).glob("*.vectors"))) == 1
    store.replace(LAYOUT, [], (1, 1))  # the sources do not know of them: they stay
    assert [row[-1] for row in rows(reader, *range(50))] == [float(n) for n in range(250, 300)]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MappedOnline(tmp_path)
    store.replace(LAYOUT, [(key("ada"), [stats(1, 1), None])], (1, 1))

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DrivetrainError, match="No space left"):
            store.replace(LAYOUT, [(key("ada"), [stats(1, 2), None])], (2, 2))
    assert rows(MappedOnline(tmp_path), "ada")[0][2] == 1
    assert len(list((tmp_path / LAYOUT.table).iterdir())) == 5
