"""What every `TableStore` promises, of one in a folder and of one on an S3-compatible server."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from lake_stores import SECRET, S3Server, Store, ask, forward, http_server, is_readable_in, read, rows, s3_options

from drivetrain.adapters.lake_places import lake_place
from drivetrain.adapters.objects import FileObjects
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.tables import TableChanged

pytestmark = pytest.mark.slow

KILLS = 12
PERSON = "Jane Roe"
"""Never quoted."""
LOG = "_delta_log"


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store("", {}, tmp_path, False)


def three_days(name: str = "'n' || i") -> Any:
    return rows(f"select i::bigint as id, {name} as name, '2026-01-0' || (1 + i % 3) as day from range(9) t(i)")


# Rows come.


def test_appended_rows_are_read(store: Store) -> None:
    place = store.open()
    assert place.tables.files("calls") is None
    assert place.tables.info("calls") is None
    assert place.tables.tables() == []
    assert place.tables.append("calls", three_days(), partition_by=["day"])
    assert place.tables.append("calls", three_days())
    assert sorted(read(place, "calls", "id, name, day")) == sorted(
        2 * [(i, f"n{i}", f"2026-01-0{1 + i % 3}") for i in range(9)]
    )
    files = place.tables.files("calls")
    assert files is not None
    assert files.partition_by == ("day",)
    info = place.tables.info("calls")
    assert info is not None
    assert (info.rows, info.files, info.version) == (18, len(files.paths), files.version)
    assert info.size_bytes == sum(os.path.getsize(path) for path in files.paths)
    assert abs(info.changed_ns / 1e9 - time.time()) < 60


def test_rows_that_can_be_read_only_once_are_appended(store: Store) -> None:
    from arro3.core import RecordBatchReader

    place = store.open()
    place.tables.append("calls", RecordBatchReader.from_arrow(three_days()))
    assert len(read(place, "calls")) == 9


def test_a_transaction_is_there_once(store: Store) -> None:
    assert store.open().tables.append("calls", three_days(), transaction=("ledger", 4))
    for number in (4, 3):
        assert not store.open().tables.append("calls", three_days(), transaction=("ledger", number))
    assert store.open().tables.append("calls", three_days(), transaction=("other", 1))
    files = store.open().tables.files("calls", transactions=["ledger", "other", "unknown"])
    assert files is not None
    assert files.transactions == {"ledger": 4, "other": 1, "unknown": -1}
    assert len(read(store.open(), "calls")) == 18


def test_of_writers_of_one_transaction_one_wins(store: Store) -> None:
    together = threading.Barrier(6)

    def write(_: int) -> bool:
        place = store.open()
        together.wait()
        return place.tables.append("calls", three_days(), transaction=("ledger", 1))

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(write, range(6))) == [False] * 5 + [True]
    assert len(read(store.open(), "calls")) == 9


def test_writers_that_add_columns_at_once_all_succeed(store: Store) -> None:
    together = threading.Barrier(6)

    def write(number: int) -> None:
        place = store.open()
        together.wait()
        place.tables.append("calls", rows(f"select {number} as id, 'x' as column_{number}"))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert sorted(read(store.open(), "calls", "id")) == [(number,) for number in range(6)]
    assert len(read(store.open(), "calls", "column_0, column_5")) == 6


def test_columns_are_added_and_missing_ones_are_null(store: Store) -> None:
    place = store.open()
    place.tables.append("calls", rows("select 1 as id, {'a': 1} as nested, [{'b': 2}] as many"))
    place.tables.append("calls", rows("select 2 as id, 'new' as added"))
    place.tables.append("calls", rows("select 3 as id, {'a': 1, 'c': 'x'} as nested, [{'b': 3, 'd': 'y'}] as many"))
    assert sorted(read(place, "calls", "id, nested, many, added")) == [
        (1, {"a": 1, "c": None}, [{"b": 2, "d": None}], None),
        (2, None, None, "new"),
        (3, {"a": 1, "c": "x"}, [{"b": 3, "d": "y"}], None),
    ]


def test_rows_of_another_type_change_nothing_and_are_not_quoted(store: Store) -> None:
    place = store.open()
    place.tables.append("calls", rows("select 1::bigint as id"))
    with pytest.raises(DrivetrainError) as refused:
        place.tables.append("calls", rows(f"select '{PERSON}' as id"))
    assert "`id` is Int64 there and Utf8 in the rows" in str(refused.value)
    assert PERSON not in everything_said(refused.value)
    assert read(place, "calls") == [(1,)]


# What the log tells.


@pytest.mark.parametrize("columns", [["id"], []])
def test_the_log_knows_values_of_the_named_columns_only(local: Store, columns: list[str]) -> None:
    place = local.open()
    marker = secrets.token_hex(8)
    query = f"select 123454321 as id, '{marker}' as name, {{'s': '{marker}'}} as nested, '2026-01-01' as day"
    place.tables.append("calls", rows(query), partition_by=["day"], statistics=columns)
    place.tables.append("calls", rows(query))
    place.tables.compact("calls")
    place.tables.vacuum("calls", keep_s=0)
    log = local.root / "lake" / "tables" / "calls" / LOG
    assert is_readable_in(log, marker) == []
    assert (is_readable_in(log, "123454321") != []) is bool(columns)


def test_a_commit_carries_its_metadata(local: Store) -> None:
    place = local.open()
    place.tables.append("calls", three_days(), metadata={"plan": "17"})
    commit = (local.root / "lake" / "tables" / "calls" / LOG / f"{0:020d}.json").read_text()
    assert any(json.loads(line).get("commitInfo", {}).get("plan") == "17" for line in commit.splitlines())


# Rows are replaced.


def test_a_partition_is_replaced_and_others_stay(store: Store) -> None:
    place = store.open()
    place.tables.append("calls", three_days(), partition_by=["day"])
    place.tables.replace(
        "calls", rows("select 100::bigint as id, 'r' as name, '2026-01-02' as day"), where={"day": "2026-01-02"}
    )
    place.tables.replace(
        "calls", rows("select * from (select 1::bigint as id) where false"), where={"day": "2026-01-03"}
    )
    assert sorted(read(place, "calls", "id")) == [(0,), (3,), (6,), (100,)]


def test_a_partitions_name_is_no_query(store: Store) -> None:
    place = store.open()
    name = "it's' or 1=1 -- ü/%20"
    quoted = name.replace("'", "''")
    place.tables.append("t", rows(f"select 1 as id, unnest(['{quoted}', 'b']) as part"), partition_by=["part"])
    place.tables.replace("t", rows(f"select 2 as id, '{quoted}' as part"), where={"part": name})
    assert sorted(read(place, "t", "id, part")) == [(1, "b"), (2, name)]
    assert read(place, "t", "id", where={"part": [name]}) == [(2,)]


def test_rows_outside_the_replaced_partition_change_nothing(store: Store) -> None:
    place = store.open()
    place.tables.append("calls", three_days(), partition_by=["day"])
    with pytest.raises(DrivetrainError, match="do not belong to the partition") as refused:
        place.tables.replace(
            "calls",
            rows(f"select 1::bigint as id, '{PERSON}' as name, '2026-01-01' as day"),
            where={"day": "2026-01-02"},
        )
    assert PERSON not in everything_said(refused.value)
    assert len(read(place, "calls")) == 9


def test_only_partitions_are_named_when_rows_are_replaced(store: Store) -> None:
    place = store.open()
    place.tables.append("calls", three_days(), partition_by=["day"])
    with pytest.raises(DrivetrainError, match="not partitioned by `name`"):
        place.tables.replace("calls", three_days(), where={"name": "n1"})
    with pytest.raises(DrivetrainError, match="no table"):
        place.tables.replace("none", three_days(), where={"day": "2026-01-01"})


def test_all_rows_are_replaced_with_their_columns(store: Store) -> None:
    place = store.open()
    place.tables.replace("made", rows("select 1 as a"))
    assert read(place, "made") == [(1,)]
    place.tables.append("calls", three_days(), partition_by=["day"], statistics=["id"])
    place.tables.replace("calls", rows("select 'x' as other, '2026-01-01' as day"))
    assert read(place, "calls") == [("x", "2026-01-01")]
    place.tables.append("calls", rows("select 'y' as other, '2026-01-01' as day"))
    assert len(read(place, "calls")) == 2


def test_rows_computed_from_an_old_version_replace_nothing(store: Store) -> None:
    place = store.open()
    place.tables.append("calls", three_days(), partition_by=["day"])
    info = place.tables.info("calls")
    assert info is not None
    store.open().tables.append("calls", rows("select 50::bigint as id, 'late' as name, '2026-01-01' as day"))
    with pytest.raises(TableChanged):
        place.tables.replace(
            "calls",
            rows("select 1::bigint as id, 'r' as name, '2026-01-01' as day"),
            where={"day": "2026-01-01"},
            version=info.version,
        )
    assert len(read(place, "calls")) == 10
    # What came to other partitions does not matter.
    place.tables.replace(
        "calls",
        rows("select 1::bigint as id, 'r' as name, '2026-01-02' as day"),
        where={"day": "2026-01-02"},
        version=info.version,
    )
    assert len(read(place, "calls")) == 8


def test_partitions_are_replaced_while_others_append(store: Store) -> None:
    """Rows that came before the replacement are gone, rows that come after it stay; none is there twice."""
    store.open().tables.append("calls", rows("select 0 as id, 'a' as part"), partition_by=["part"])

    def append(number: int) -> None:
        store.open().tables.append("calls", rows(f"select {number} as id, 'a' as part"))

    def replace(number: int) -> None:
        store.open().tables.replace("calls", rows(f"select {number} as id, 'a' as part"), where={"part": "a"})

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(replace if number % 3 == 0 else append, number) for number in range(1, 13)]
        for one in done:
            one.result()
    held = [number for (number,) in read(store.open(), "calls", "id")]
    assert len(held) == len(set(held))
    assert 0 not in held
    assert len([number for number in held if number % 3 == 0]) == 1
    info = store.open().tables.info("calls")
    assert info is not None
    assert info.version == 12


# Versions.


def test_a_version_stays_what_it_was(store: Store) -> None:
    place = store.open()
    place.tables.append("calls", three_days(), partition_by=["day"], transaction=("ledger", 1))
    first = place.tables.files("calls", transactions=["ledger"])
    assert first is not None
    place.tables.append("calls", three_days(), transaction=("ledger", 2))
    place.tables.replace("calls", rows("select 7::bigint as id, 'r' as name, '2026-01-01' as day"))
    assert place.tables.files("calls", version=first.version, transactions=["ledger"]) == first
    assert [len(read(place, "calls", version=version)) for version in range(3)] == [9, 18, 1]
    with pytest.raises(DrivetrainError, match="Version 3"):
        place.tables.files("calls", version=3)


def test_partitions_are_chosen(store: Store) -> None:
    place = store.open()
    place.tables.append("calls", three_days(), partition_by=["day"])
    assert sorted(read(place, "calls", "id", where={"day": ["2026-01-01", "2026-01-02", "2031-01-01"]})) == [
        (0,), (1,), (3,), (4,), (6,), (7,),
    ]  # fmt: skip
    with pytest.raises(DrivetrainError, match="not partitioned by `dat`"):
        place.tables.files("calls", where={"dat": ["x"]})


def test_a_reader_sees_what_others_did(store: Store) -> None:
    reader = store.open()
    writer = store.open()
    for number in range(1, 4):
        writer.tables.append("calls", rows(f"select {number} as id"))
        assert len(read(reader, "calls")) == number
    # Several commits, of which only the last one's log is left.
    for _ in range(3):
        writer.tables.replace("calls", rows("select 9 as id"))
    writer.tables.vacuum("calls", keep_s=0)
    assert read(reader, "calls") == [(9,)]
    # The same name, another table.
    writer.tables.drop("calls")
    assert reader.tables.files("calls") is None
    for number in range(5):
        writer.tables.append("calls", rows(f"select {number} as other"))
    assert len(read(reader, "calls", "other")) == 5


# Upkeep.


def test_compaction_keeps_the_rows_in_fewer_files(store: Store) -> None:
    place = store.open()
    for _ in range(4):
        place.tables.append("calls", three_days(), partition_by=["day"], transaction=None)
    before = sorted(read(place, "calls", "id, name, day"))
    assert place.tables.compact("calls") == 12
    info = place.tables.info("calls")
    assert info is not None
    assert info.files == 3
    assert sorted(read(place, "calls", "id, name, day")) == before
    assert place.tables.compact("calls") == 0
    assert place.tables.compact("none") == 0


def test_after_vacuum_a_replaced_value_is_readable_nowhere(store: Store) -> None:
    place = store.open()
    marker, kept = secrets.token_hex(16), secrets.token_hex(16)
    for number in range(3):
        place.tables.append(
            "calls",
            rows(f"select {number} as id, '{marker}' as name, '2026-01-01' as day"),
            partition_by=["day"],
            statistics=["id"],
            transaction=("ledger", number),
        )
    place.tables.compact("calls")
    read(place, "calls")
    assert is_readable_in(here(store), marker) != []
    place.tables.replace(
        "calls", rows(f"select 1 as id, '{kept}' as name, '2026-01-01' as day"), where={"day": "2026-01-01"}
    )
    assert place.tables.vacuum("calls", keep_s=0) > 0
    assert read(place, "calls", "id, name") == [(1, kept)]
    assert is_readable_in(here(store), marker) == []
    assert is_readable_in(here(store), kept) != []
    names = [one for one in store.listed() if f"/{LOG}/" in one]
    assert sorted(name.rpartition("/")[2] for name in names) == [
        f"{4:020d}.checkpoint.parquet",
        f"{4:020d}.json",
        "_last_checkpoint",
    ]
    assert sum(name.endswith(".parquet") and LOG not in name for name in store.listed()) == 1
    # What was rolled is still known, and the table goes on.
    assert not store.open().tables.append("calls", three_days(), transaction=("ledger", 2))
    assert store.open().tables.append("calls", rows("select 5 as id"), transaction=("ledger", 3))
    assert len(read(store.open(), "calls")) == 2


def test_vacuum_keeps_the_history_that_it_is_told_to(store: Store) -> None:
    place = store.open()
    place.tables.append("calls", rows("select 1 as id"))
    place.tables.replace("calls", rows("select 2 as id"))
    assert place.tables.vacuum("calls", keep_s=3600) == 0
    assert read(place, "calls", version=0) == [(1,)]
    later = store.open(now_s=lambda: time.time() + 3660)
    place.tables.append("calls", rows("select 3 as id"))
    # Of what was newest an hour ago nothing is needed but the newest.
    assert later.tables.vacuum("calls", keep_s=3600) > 0
    assert sorted(read(place, "calls")) == [(2,), (3,)]
    with pytest.raises(DrivetrainError, match="Version 0"):
        place.tables.files("calls", version=0)
    assert later.tables.vacuum("calls", keep_s=3600) == 0
    assert place.tables.vacuum("none", keep_s=0) == 0


def test_vacuum_keeps_the_version_that_was_the_newest_then(local: Store) -> None:
    """The log's first version is long gone, the second was current an hour ago: it stays, the first goes."""
    place = local.open()
    for number in range(4):
        place.tables.replace("calls", rows(f"select {number} as id"))
    log = local.root / "lake" / "tables" / "calls" / LOG
    now_s = time.time()
    for version, age_s in enumerate((9000, 5000, 1000, 500)):
        os.utime(log / f"{version:020d}.json", (now_s - age_s, now_s - age_s))
    assert place.tables.vacuum("calls", keep_s=3600) == 2
    assert [read(place, "calls", version=version) for version in (1, 2, 3)] == [[(1,)], [(2,)], [(3,)]]
    with pytest.raises(DrivetrainError, match="Version 0"):
        place.tables.files("calls", version=0)


def test_vacuum_takes_what_killed_writers_left(store: Store) -> None:
    place = store.open()
    place.tables.append("calls", rows("select 1 as id"))
    left = ["calls/part-0-left.parquet", *([] if store.is_remote else [f"calls/{LOG}/_commit_1.json.tmp", "calls/p#1"])]
    for path in left:
        store.beside().put(path, b"left")
    place.tables.vacuum("calls", keep_s=0)
    # In a folder it is known that nobody writes; in a store only age tells.
    assert [path for path in left if path in store.listed()] == (left if store.is_remote else [])
    store.open(now_s=lambda: time.time() + 3601).tables.vacuum("calls", keep_s=0)
    assert not set(left) & set(store.listed())
    assert read(place, "calls") == [(1,)]


def test_a_reader_whose_log_is_cleaned_between_two_looks_reads_the_newest(local: Store, monkeypatch: Any) -> None:
    place = local.open()
    place.tables.append("calls", rows("select 1 as id"), transaction=("ledger", 1))
    place.tables.append("calls", rows("select 2 as id"), transaction=("ledger", 2))
    assert len(read(place, "calls")) == 2
    look, looks = FileObjects.stamp, 0

    def cleaned_after_the_last_look(folder: FileObjects, path: str) -> Any:
        nonlocal looks
        found = look(folder, path)
        looks += 1
        if looks == 2:
            other = local.open()
            other.tables.replace("calls", rows("select 3 as id"))
            other.tables.vacuum("calls", keep_s=0)
        return found

    monkeypatch.setattr(FileObjects, "stamp", cleaned_after_the_last_look)
    files = place.tables.files("calls", transactions=["ledger"])
    assert files is not None
    assert files.transactions == {"ledger": 2}
    monkeypatch.undo()
    assert read(place, "calls") == [(3,)]


def test_vacuum_leaves_what_is_being_written(local: Store) -> None:
    """A writer holds its lock while it asks for rows: what it wrote so far is no waste."""
    from arro3.core import RecordBatchReader, Table

    place = local.open()
    place.tables.append("calls", rows("select 1 as id"))
    cleaned: list[int] = []

    class Slow:
        """Rows during whose reading the table is cleaned."""

        def __arrow_c_schema__(self) -> Any:
            return RecordBatchReader.from_arrow(rows("select 2 as id")).schema.__arrow_c_schema__()

        def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
            local.beside().put("calls/part-0-being-written.parquet", b"half")
            cleaned.append(local.open(sleep=lambda _: None).tables.vacuum("calls", keep_s=0))
            return Table.from_arrow(rows("select 2 as id")).__arrow_c_stream__()

    place.tables.append("calls", Slow())
    assert cleaned
    assert "calls/part-0-being-written.parquet" in local.listed()
    assert sorted(read(place, "calls")) == [(1,), (2,)]


def test_cleaning_and_compacting_lose_nothing_that_is_written_meanwhile(local: Store) -> None:
    together = threading.Barrier(3)
    writing = [True]

    def write(name: str) -> None:
        place = local.open()
        together.wait()
        for number in range(12):
            place.tables.append("calls", rows(f"select '{name}' as writer, {number} as id"), transaction=(name, number))

    def tidy() -> None:
        place = local.open()
        together.wait()
        while writing[0]:
            place.tables.compact("calls")
            place.tables.vacuum("calls", keep_s=0)

    with ThreadPoolExecutor(3) as pool:
        tidied = pool.submit(tidy)
        for one in [pool.submit(write, name) for name in ("a", "b")]:
            one.result()
        writing[0] = False
        tidied.result()
    assert sorted(read(local.open(), "calls", "writer, id")) == [
        (name, number) for name in "ab" for number in range(12)
    ]


def test_a_dropped_table_leaves_nothing(store: Store) -> None:
    place = store.open()
    marker = secrets.token_hex(16)
    for table in ("push/clicks", "push/views"):
        place.tables.append(table, rows(f"select '{marker}' as name"))
        read(place, table)
    assert place.tables.tables() == place.tables.tables("push") == ["push/clicks", "push/views"]
    with pytest.raises(DrivetrainError, match="tables stand below it"):
        place.tables.drop("push")
    place.tables.drop("push/clicks")
    assert place.tables.tables() == ["push/views"]
    assert place.tables.files("push/clicks") is None
    place.tables.drop("push/views")
    place.tables.drop("push/views")
    assert store.listed() == []
    assert is_readable_in(here(store), marker) == []


# What is refused.


@pytest.mark.parametrize(
    "name",
    ["", "..", "../calls", "a/../b", "/calls", "a//b", "a/", ".calls", "a b", "a\0b", "x" * 201, "a\\b", LOG, "-a"],
)
def test_a_name_that_is_none_is_refused(local: Store, name: str) -> None:
    tables = local.open().tables
    for use in (
        lambda: tables.append(name, three_days()),
        lambda: tables.replace(name, three_days()),
        lambda: tables.files(name),
        lambda: tables.info(name),
        lambda: tables.compact(name),
        lambda: tables.vacuum(name, keep_s=0),
        lambda: tables.drop(name),
    ):
        with pytest.raises(DrivetrainError, match="not the name of a table"):
            use()
    assert not (local.root / "lake" / "tables").exists()


def test_tables_do_not_stand_inside_each_other(store: Store) -> None:
    place = store.open()
    place.tables.append("push/clicks", three_days())
    for name in ("push", "push/clicks/more"):
        with pytest.raises(DrivetrainError, match="inside each other"):
            place.tables.append(name, three_days())
        with pytest.raises(DrivetrainError, match="inside each other"):
            place.tables.replace(name, three_days())
    assert place.tables.tables() == ["push/clicks"]


def test_a_link_out_of_the_lake_is_not_followed(local: Store, tmp_path: Path) -> None:
    outside = Store("", {}, tmp_path / "outside", False)
    outside.open().tables.append("calls", three_days())
    tables = local.root / "lake" / "tables"
    tables.mkdir(parents=True)
    (tables / "calls").symlink_to(tmp_path / "outside" / "lake" / "tables" / "calls")
    place = local.open()
    for use in (
        lambda: place.tables.files("calls"),
        lambda: place.tables.append("calls", three_days()),
        lambda: place.tables.drop("calls"),
    ):
        with pytest.raises(DrivetrainError, match="symbolic link"):
            use()
    assert len(read(outside.open(), "calls")) == 9


def test_a_table_with_deletion_vectors_is_refused(store: Store) -> None:
    place = store.open()
    place.tables.append("calls", three_days())
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["deletionVectors"],
        "writerFeatures": ["deletionVectors"],
    }
    store.beside().put(f"calls/{LOG}/{1:020d}.json", json.dumps({"protocol": protocol}).encode())
    for reader in (place, store.open()):
        with pytest.raises(DrivetrainError, match="needs deletionVectors to be read"):
            reader.tables.files("calls")
    with pytest.raises(DrivetrainError, match="deletionVectors"):
        place.tables.append("calls", three_days())


def test_a_table_that_names_files_elsewhere_is_refused(local: Store) -> None:
    place = local.open()
    place.tables.append("calls", three_days())
    for path in ("/etc/hostname", "../../../secret.parquet", "file:///etc/hostname"):
        add = {"path": path, "partitionValues": {}, "size": 1, "modificationTime": 1, "dataChange": True}
        commit = local.root / "lake" / "tables" / "calls" / LOG / f"{1:020d}.json"
        commit.write_text(json.dumps({"add": add}) + "\n")
        with pytest.raises(DrivetrainError, match="outside its folder"):
            local.open().tables.files("calls")


# A store that fails.


def test_a_missing_bucket_is_named(server: S3Server, tmp_path: Path) -> None:
    refused_everywhere("s3://no-such-bucket/x", s3_options(server.url), tmp_path, "has no such bucket")


def test_refused_credentials_are_told_without_them(tmp_path: Path) -> None:
    def refuse(request: BaseHTTPRequestHandler, _: bytes) -> None:
        said = f"<Error><Code>SignatureDoesNotMatch</Code><Message>{SECRET} AKIAOFTHETESTS</Message></Error>".encode()
        request.send_response(403)
        request.send_header("content-length", str(len(said)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(said)

    with http_server(refuse) as url:
        refused_everywhere("s3://lake/x", s3_options(url), tmp_path, "refused us")


def test_a_store_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    refused_everywhere("s3://lake/x", s3_options("http://127.0.0.1:9"), tmp_path, "cannot be reached")


def test_a_full_disk_leaves_the_table_as_it_was(local: Store) -> None:
    """The limit of a process on the size of its files stands for a disk that fills in mid-write."""
    local.open().tables.append("calls", three_days())
    script = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.path.insert(0, sys.argv[2])
from lake_stores import Store, rows
from drivetrain.core.errors import DrivetrainError
place = Store("", {}, Path(sys.argv[1]), False).open()
try:
    place.tables.append("calls", rows("select i as id, md5(i::varchar) as name, 'd' as day from range(20000) t(i)"))
except DrivetrainError as error:
    sys.exit(7 if "md5" not in str(error) else 1)
"""
    ran = subprocess.run([sys.executable, "-c", script, str(local.root), str(Path(__file__).parent)], check=False)
    assert ran.returncode == 7
    assert len(read(local.open(), "calls")) == 9
    local.open().tables.vacuum("calls", keep_s=0)
    assert sum(name.endswith(".parquet") and LOG not in name for name in local.listed()) == 1


def test_an_append_whose_answer_was_lost_is_there_once(server: S3Server, tmp_path: Path) -> None:
    """The commit arrives and the connection breaks before the answer does."""
    lost: list[str] = []

    def drop_answers(request: BaseHTTPRequestHandler, body: bytes) -> None:
        if request.command != "PUT" or LOG not in request.path or request.path in lost:
            forward(request, body, server.port)
            return
        ask(request, body, server.port)
        lost.append(request.path)
        request.close_connection = True
        request.connection.close()

    with http_server(drop_answers) as url:
        place = server.store(tmp_path, endpoint=url).open()
        for number in range(3):
            place.tables.append("calls", rows(f"select {number} as id"), transaction=("ledger", number))
        assert len(lost) >= 3
        assert sorted(read(place, "calls")) == [(0,), (1,), (2,)]


# Copies of a remote table's files.


def test_a_lake_that_was_copied_to_a_store_is_the_same_lake(server: S3Server, local: Store, tmp_path: Path) -> None:
    place = local.open()
    for number in range(2):
        place.tables.append(
            "calls", rows("select 1 as id, 'a b/ü' as part"), partition_by=["part"], transaction=("ledger", number)
        )
    store = server.store(tmp_path / "moved")
    for path in local.listed():
        store.beside().put_file(path, tmp_path / "lake" / "tables" / path)
    assert sorted(read(store.open(), "calls", "id, part")) == [(1, "a b/ü")] * 2
    assert not store.open().tables.append("calls", rows("select 1 as id, 'c' as part"), transaction=("ledger", 1))
    assert store.open().tables.append("calls", rows("select 1 as id, 'c' as part"), transaction=("ledger", 2))
    assert len(read(store.open(), "calls")) == 3


def test_a_file_is_fetched_once(server: S3Server, tmp_path: Path) -> None:
    fetched: list[str] = []

    def count(request: BaseHTTPRequestHandler, body: bytes) -> None:
        if request.command == "GET" and request.path.endswith(".parquet"):
            fetched.append(request.path)
        forward(request, body, server.port)

    with http_server(count) as url:
        store = server.store(tmp_path, endpoint=url)
        place = store.open()
        place.tables.append("calls", three_days(), partition_by=["day"])
        for _ in range(2):
            assert len(read(place, "calls")) == 9
        assert len(read(store.open(), "calls")) == 9
        assert len(fetched) == len(set(fetched)) == 3


def test_copies_are_bounded_and_the_least_recently_read_go_first(server: S3Server, tmp_path: Path) -> None:
    store = server.store(tmp_path)
    place = store.open()
    for number in range(4):
        place.tables.append(f"t{number}", rows("select md5(i::varchar) as name from range(3000) t(i)"))
    info = place.tables.info("t0")
    assert info is not None
    clock = [time.time()]
    small = store.open(mirror_bytes_max=int(info.size_bytes * 2.5), now_s=lambda: clock[0])
    for number in (0, 1, 0, 2):
        clock[0] += 100
        small.tables.files(f"t{number}")
    held = sorted(path.parent.name for path in (tmp_path / "mirror").rglob("*.parquet"))
    assert held == ["t0", "t2"]
    # What was asked for a moment ago may be about to be opened: not deleted, refused instead.
    small.tables.files("t0")
    small.tables.files("t2")
    with pytest.raises(DrivetrainError, match="may take"):
        small.tables.files("t3")
    assert sorted(path.parent.name for path in (tmp_path / "mirror").rglob("*.parquet")) == ["t0", "t2"]
    clock[0] += 100
    assert small.tables.files("t3") is not None


def test_copies_of_what_another_machine_cleaned_up_go_with_the_next_cleaning(server: S3Server, tmp_path: Path) -> None:
    store = server.store(tmp_path / "ours")
    theirs = Store(store.url, store.options, tmp_path / "theirs", True)
    marker = secrets.token_hex(16)
    place = store.open()
    place.tables.append("calls", rows(f"select '{marker}' as name"))
    read(place, "calls")
    theirs.open().tables.replace("calls", rows("select 'other' as name"))
    theirs.open().tables.vacuum("calls", keep_s=0)
    assert is_readable_in(store.root, marker) != []
    place.tables.vacuum("calls", keep_s=0)
    assert is_readable_in(store.root, marker) == []


# Speed.


def test_the_files_of_a_large_table_are_told_fast(local: Store) -> None:
    place = local.open()
    for _ in range(10):
        place.tables.append(
            "calls", rows("select i as id, 'd' || i % 100 as day from range(100) t(i)"), partition_by=["day"]
        )
    taken = []
    for _ in range(20):
        began = time.perf_counter()
        found = place.tables.files("calls", transactions=["ledger"])
        taken.append(time.perf_counter() - began)
        assert found is not None
        assert len(found.paths) == 1000
    assert min(taken) < 0.005


# Processes.


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from lake_stores import Store, rows
root, name, first, last = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
place = Store("", {}, root, False).open()
import deltalake
for number in range(first, last):
    query = f"select {number} as number, '{name}' as writer, i as id, 'd' || i % 3 as day from range(30) t(i)"
    place.tables.append("calls", rows(query), transaction=(name, number), partition_by=["day"])
    print(number, flush=True)
"""


def writer(store: Store, name: str, first: int, last: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(store.root), name, str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_processes_append_at_once_and_nothing_is_lost(local: Store) -> None:
    processes = [writer(local, f"w{number}", 0, 15) for number in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    found = read(local.open(), "calls", "writer, number, id")
    assert len(found) == len(set(found)) == 3 * 15 * 30


def test_a_killed_append_is_there_wholly_or_not_at_all(local: Store) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    first = 0
    for _ in range(KILLS):
        process = writer(local, "ledger", first, first + 1000)
        assert process.stdout is not None
        # The first commit of all but the first writer is there already; one more is waited for, so that each goes on.
        for _ in range(chance.randint(2, 3)):
            assert process.stdout.readline()
        acknowledged = first + 1
        time.sleep(chance.uniform(0.0, 0.04))
        process.kill()
        process.wait()
        found = local.open().tables.files("calls", transactions=["ledger"])
        last = -1 if found is None else found.transactions["ledger"]
        assert last >= acknowledged, f"seed {seed}"
        held = [] if found is None else read(local.open(), "calls", "number, id")
        assert sorted(held) == [(number, at) for number in range(last + 1) for at in range(30)], f"seed {seed}"
        # The same transaction again is what a writer does that was killed.
        first = max(last, 0)
    assert last >= KILLS - 1
    local.open().tables.vacuum("calls", keep_s=0)
    found = local.open().tables.files("calls")
    assert found is not None
    data = [name for name in local.listed() if LOG not in name]
    assert len(data) == len(found.paths)


# Helpers.


def here(store: Store) -> Path:
    """A folder with all that is held of a store: the remote store's files are copied beside the mirror's."""
    if not store.is_remote:
        return store.root
    shutil.rmtree(store.root / "remote", ignore_errors=True)
    for path in store.listed():
        content = store.beside().get(path)
        assert content is not None
        (store.root / "remote" / path).parent.mkdir(parents=True, exist_ok=True)
        (store.root / "remote" / path).write_bytes(content)
    return store.root


def refused_everywhere(url: str, options: dict[str, str], root: Path, what: str) -> None:
    place = lake_place(url, options, folder=root, mirror=root / "mirror")
    assert SECRET not in repr(place)
    source = root / "some"
    source.write_bytes(b"1")
    for use in (
        lambda: place.tables.append("calls", three_days()),
        lambda: place.tables.files("calls"),
        place.tables.tables,
        lambda: place.tables.vacuum("calls", keep_s=0),
        lambda: place.tables.drop("calls"),
        lambda: place.objects.put("a", b"1"),
        lambda: place.objects.put_file("a", source),
        lambda: place.objects.get("a"),
        lambda: place.objects.list(""),
    ):
        with pytest.raises(DrivetrainError, match=what) as refused:
            use()
        assert refused.value.do
        said = everything_said(refused.value)
        assert SECRET not in said
        assert "AKIAOFTHETESTS" not in said


def everything_said(error: BaseException) -> str:
    """The error as it is printed, with what caused it."""
    return "".join(traceback.format_exception(error))
