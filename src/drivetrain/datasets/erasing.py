"""Erasing in Datasets: a person's rows go from every number and its quarantine, and the number says that rows went.

Owns how a frozen number is written anew without some rows: its files, then its manifest, then the word in the control
log, then the old files go. Each step may be cut off and done again. Whose a row is, columns say that are marked
`subject`, and `call_id`. Called by erasure.
"""

# ruff: noqa: S608 - every name or text from outside is quoted

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.datasets import DatasetV1, ErasedRowsV1, QuarantineV1, Reference
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.sql import identifier, literal, literals
from drivetrain.datasets.checks import CALL_ID
from drivetrain.datasets.content import measured
from drivetrain.datasets.numbers import FOLDER, Shelf, file_of, files_of
from drivetrain.datasets.staging import Bench, open_bench
from drivetrain.datasets.verify import tells_of
from drivetrain.lake.subjects import ERASED, Subject
from drivetrain.lineage import made
from drivetrain.ports.control import ControlLog
from drivetrain.ports.tables import ObjectStore

FILE = re.compile(r"(rows|quarantine)-[0-9a-f]+\.parquet")
AT_ONCE = 10_000
"""Ids of one INSERT."""


class DatasetRows(msgspec.Struct, frozen=True, kw_only=True):
    """What one number of a Dataset has of a subject."""

    artifact: str
    """`dataset:golden@3`."""
    rows: int = 0
    violations: int = 0
    """Of the quarantine."""
    named: bool = False
    """Whether the text that it was made from names them."""
    unmarked: int = 0
    """Rows in which a cell is their id, in a column that is not marked `subject`: they stay."""

    @property
    def any(self) -> bool:
        """Whether there is anything to erase."""
        return bool(self.rows or self.violations or self.named)


class DatasetErasing:
    """What is to be erased of one subject in every Dataset of a store.

    call_ids: of their Calls. scratch: where working folders are made.
    """

    def __init__(
        self,
        objects: ObjectStore,
        control: ControlLog,
        subject: Subject,
        *,
        call_ids: Sequence[str] = (),
        scratch: Path | None = None,
        actor: str = "",
        now_ns: Callable[[], int] = time.time_ns,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._objects = objects
        self._shelf = Shelf(objects)
        self._control = control
        self._subject = subject
        self.unreadable: dict[str, None] = {}
        """Numbers that were passed over: `dataset:golden@3`."""
        self._call_ids = call_ids
        self._scratch = scratch
        self._actor = actor
        self._now_ns = now_ns
        self._entropy = entropy

    def count(self) -> list[DatasetRows]:
        """Every number that has anything of them; changes nothing. Reads each Dataset."""
        with open_bench(self._scratch) as bench:
            self._prepare(bench)
            found = [counted for dataset in self.readable() if (counted := self._count(bench, dataset)) is not None]
        return [one for one in found if one.any or one.unmarked]

    def erase(self) -> list[DatasetRows]:
        """What went, of every number that changed; no file of the store has it afterwards."""
        changed = []
        with open_bench(self._scratch) as bench:
            self._prepare(bench)
            for dataset in self.readable():
                found = self._count(bench, dataset)
                left = dataset
                if found is not None and found.any:
                    left = self._write(bench, dataset, found)
                    changed.append(found)
                self._tell(left)
            self._sweep(bench)
        return changed

    def readable(self) -> Iterator[DatasetV1]:
        """Every number of every Dataset whose manifest and files are there; the others are in `unreadable`."""
        for name, numbers in self._shelf.numbers().items():
            for number in numbers:
                try:
                    dataset = self._shelf.read(Reference(name, number))
                    for file in files_of(dataset):
                        self._shelf.local(file)
                except DrivetrainError:
                    self.unreadable[f"dataset:{name}@{number}"] = None
                else:
                    yield dataset

    def _prepare(self, bench: Bench) -> None:
        import arro3.core as arrow

        bench.connection.execute("CREATE TABLE their_calls (id VARCHAR)")
        for start in range(0, len(self._call_ids), AT_ONCE):
            some = arrow.Array(list(self._call_ids[start : start + AT_ONCE]), type=arrow.DataType.utf8())
            bench.connection.register("batch", arrow.Table.from_arrays([some], names=["id"]))
            bench.connection.execute("INSERT INTO their_calls SELECT id FROM batch")
            bench.connection.unregister("batch")

    # What is theirs.

    def _is_theirs(self, dataset: DatasetV1) -> str:
        """SQL of whether a row is about them."""
        parts = [
            f"{identifier(one.name)} IN (SELECT id FROM their_calls)"
            for one in dataset.schema.columns
            if one.name == CALL_ID and one.type == "string"
        ]
        parts += [self._subject.equals(identifier(one.name)) for one in dataset.schema.columns if one.subject]
        return f"coalesce({' OR '.join(parts)}, false)" if parts else "false"

    def _is_in_quarantine(self) -> str:
        theirs = literal(self._subject.id)
        return (
            f"(coalesce(list_contains(whose, {theirs}), false) OR {self._subject.equals('value')} OR "
            "coalesce(list_has_any(whose, (SELECT list(id) FROM their_calls)), false))"
        )

    def _count(self, bench: Bench, dataset: DatasetV1) -> DatasetRows | None:
        """What it has of them; None where its files are damaged."""
        import duckdb

        theirs = self._is_theirs(dataset)
        cells = [
            self._subject.equals(identifier(one.name))
            for one in dataset.schema.columns
            if not one.subject and one.type in ("string", "int64")
        ]
        other = f"NOT {theirs} AND ({' OR '.join(cells)})" if cells else "false"
        counted = f"SELECT count(*) FILTER (WHERE {theirs}), count(*) FILTER (WHERE {other}) FROM {self._read(dataset)}"
        violations = 0
        try:
            ((rows, unmarked),) = bench.connection.execute(counted).fetchall()
            if dataset.quarantine is not None:
                quarantine = f"{self._quarantine(dataset)} WHERE {self._is_in_quarantine()}"
                violations = bench.one(f"SELECT count(*) FROM {quarantine}")
        except duckdb.Error:
            self.unreadable[dataset.artifact] = None
            return None
        named = bench.one(f"SELECT {self._subject.named_in('origin')} FROM (SELECT ? AS origin)", [dataset.origin])
        return DatasetRows(
            artifact=dataset.artifact, rows=rows, violations=violations, named=bool(named), unmarked=unmarked
        )

    def _read(self, dataset: DatasetV1) -> str:
        return f"read_parquet({literals(str(self._shelf.local(one)) for one in dataset.files)})"

    def _quarantine(self, dataset: DatasetV1) -> str:
        assert dataset.quarantine is not None
        return f"read_parquet([{literal(str(self._shelf.local(dataset.quarantine.file)))}])"

    # Writing anew.

    def _write(self, bench: Bench, dataset: DatasetV1, found: DatasetRows) -> DatasetV1:
        """The number without their rows; its old files stay until `_sweep`."""
        token, folder = self._entropy(8).hex(), f"{FOLDER}/{dataset.name}/{dataset.number}"
        changes: dict[str, Any] = {}
        left = dataset
        if found.rows:
            path = bench.folder / f"rows-{token}.parquet"
            kept = f"SELECT * FROM {self._read(dataset)} WHERE NOT {self._is_theirs(dataset)}"
            bench.write_parquet(kept, path)
            written = f"FROM read_parquet({literal(str(path))})"
            file = file_of(f"{folder}/rows-{token}.parquet", path)
            self._objects.put_file(file.path, path)
            changes |= {
                "rows": dataset.rows - found.rows,
                "hash_before_erasure": dataset.hash_before_erasure or dataset.content_hash,
                "files": (file,),
            }
            left = measured(bench, dataset, written)
            path.unlink()
        if found.violations:
            changes["quarantine"] = self._write_quarantine(bench, dataset, folder, token)
        if found.named:
            changes["origin"] = ERASED
        went = ErasedRowsV1(at_ns=self._now_ns(), rows=found.rows, violations=found.violations)
        left = msgspec.structs.replace(left, **changes, erased=(*dataset.erased, went))
        content = msgspec.json.format(msgspec.json.encode(left), indent=1)
        self._objects.put(f"{folder}/manifest.json", content)
        return left

    def _write_quarantine(self, bench: Bench, dataset: DatasetV1, folder: str, token: str) -> QuarantineV1:
        assert dataset.quarantine is not None
        path = bench.folder / f"quarantine-{token}.parquet"
        bench.write_parquet(f"SELECT * FROM {self._quarantine(dataset)} WHERE NOT {self._is_in_quarantine()}", path)
        file = file_of(f"{folder}/quarantine-{token}.parquet", path)
        self._objects.put_file(file.path, path)
        rows, violations = bench.connection.execute(
            f'SELECT count(DISTINCT "row"), count(*) FROM read_parquet({literal(str(path))})'
        ).fetchall()[0]
        path.unlink()
        return QuarantineV1(rows=rows, violations=violations, file=file)

    def _tell(self, dataset: DatasetV1) -> None:
        """Note in the control log what is left, unless it is noted already."""
        if not dataset.erased or any(
            record.kind == made.ERASED and tells_of(record, dataset) for record in self._control.records()
        ):
            return
        last = dataset.erased[-1]
        made.record_erased(
            self._control,
            dataset.artifact,
            at_ns=last.at_ns,
            facts={"rows": last.rows, "violations": last.violations, "content_hash": dataset.content_hash},
            actor=self._actor,
        )

    def _sweep(self, bench: Bench) -> None:
        """Delete files that no manifest names: what was written anew, and what killed makers left, as far as it is
        in a number that is made or has anything of them. Who makes a Dataset of their rows just now makes it again."""
        named = {file.path for dataset in self.readable() for file in files_of(dataset)}
        folders = {path.rpartition("/")[0] for path in named}
        spared = {f"{FOLDER}/{one.removeprefix('dataset:').replace('@', '/')}" for one in self.unreadable}
        for folder in folders:
            self._objects.delete(f"{folder}/rows-0.parquet")  # nobody's: takes along what was left half written beside
        for path in self._objects.list(FOLDER):
            folder = path.rpartition("/")[0]
            if not FILE.fullmatch(path.rpartition("/")[2]) or path in named or folder in spared:
                continue
            local = self._objects.local(path)
            if local is not None and (folder in folders or self._may_hold(bench, local)):
                self._objects.delete(path)

    def _may_hold(self, bench: Bench, path: Path) -> bool:
        import duckdb

        source = f"read_parquet({literal(str(path))})"
        try:
            columns = bench.connection.cursor().sql(f"SELECT * FROM {source} LIMIT 0").columns
            cells = [self._subject.equals(identifier(name)) for name in columns]
            cells += [f"{identifier(CALL_ID)} IN (SELECT id FROM their_calls)"] * (CALL_ID in columns)
            cells += [self._is_in_quarantine()] * ("whose" in columns)
            return bool(bench.one(f"SELECT count(*) FROM {source} WHERE {' OR '.join(cells)}"))
        except duckdb.Error:
            return True  # half a file, which nobody can read and nobody names
