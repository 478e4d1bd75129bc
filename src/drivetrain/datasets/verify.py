"""Whether a Dataset still is what its manifest says: files, rows, constraints, and the control log's word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from drivetrain.core.datasets import DatasetV1, FileV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.lineage import MADE, MadeV1
from drivetrain.core.sql import identifier, literals
from drivetrain.datasets.checks import ReferencedFiles, check
from drivetrain.datasets.content import content_hash
from drivetrain.datasets.numbers import Shelf, file_hash, files_of
from drivetrain.datasets.staging import Bench, Staged, stage_stream
from drivetrain.datasets.typed import STORED
from drivetrain.lineage.made import ERASED, ErasedV1
from drivetrain.ports.control import ControlRecord


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was found."""

    artifact: str
    rows: int
    content_hash: str
    findings: tuple[str, ...]
    """In words; empty where all is as it was made."""

    @property
    def whole(self) -> bool:
        """Whether nothing was changed."""
        return not self.findings


def verify(
    bench: Bench, dataset: DatasetV1, shelf: Shelf, records: Iterable[ControlRecord], *, referenced: ReferencedFiles
) -> Verified:
    """Costs as much as making it did. A reference's number that is gone is a finding, as is a Dataset nobody noted."""
    findings: list[str] = []
    found = [_file(shelf, file, findings) for file in files_of(dataset)][: len(dataset.files)]
    paths = [path for path in found if path is not None]
    if len(paths) == len(dataset.files):
        _rows(bench, dataset, paths, referenced, findings)
    findings.extend(_noted(dataset, records))
    return Verified(
        artifact=dataset.artifact, rows=dataset.rows, content_hash=dataset.content_hash, findings=tuple(findings)
    )


def _file(shelf: Shelf, file: FileV1, findings: list[str]) -> Path | None:
    """The file, where it can be read; whether it is the one that was written."""
    try:
        path = shelf.local(file)
    except DrivetrainError as error:
        findings.append(error.what)
        return None
    size = path.stat().st_size
    if size != file.bytes:
        findings.append(f"{file.path} has {size:,} bytes, and had {file.bytes:,}.")
    elif file_hash(path) != file.sha256:
        findings.append(f"{file.path} was changed: its SHA-256 is another.")
    return path


def _rows(
    bench: Bench, dataset: DatasetV1, paths: list[Path], referenced: ReferencedFiles, findings: list[str]
) -> None:
    import duckdb

    rows = f"FROM read_parquet({literals(map(str, paths))})"
    try:
        relation = bench.connection.cursor().sql(f"SELECT * {rows}")
        kinds = dict(zip(relation.columns, (str(one) for one in relation.types), strict=True))
        wanted = {one.name: STORED[one.type] for one in dataset.all_columns}
        if kinds != wanted or list(kinds) != list(wanted):
            findings.append("The columns of its rows are not those of its manifest.")
            return
        count = bench.one(f"SELECT count(*) {rows}")
        if count != dataset.rows:
            findings.append(f"It has {count:,} rows, and had {dataset.rows:,}.")
        if content_hash(bench, dataset.all_columns, rows) != dataset.content_hash:
            findings.append("Its content was changed: the hash of its rows is another.")
        findings.extend(_violations(bench, dataset, rows, referenced))
    except duckdb.Error as error:
        findings.append(f"Its rows cannot be read: {str(error).splitlines()[0]}")
    except DrivetrainError as error:
        findings.append(error.what)


def _violations(bench: Bench, dataset: DatasetV1, rows: str, referenced: ReferencedFiles) -> list[str]:
    """The constraints again, as of the moment at which it was made. A sample of unique rows is unique."""
    names = [one.name for one in dataset.schema.columns]
    listed = ", ".join(map(identifier, names))
    relation = bench.connection.cursor().sql(f"SELECT {listed} {rows}")
    staged: Staged = stage_stream(bench, names, [str(one) for one in relation.types], relation, naive_is_utc=False)
    fresh = dataset.schema
    if dataset.sample is not None or dataset.quarantine is not None:
        # The newest row of all need not be among those that were taken.
        columns = tuple(msgspec.structs.replace(one, fresh_within="") for one in fresh.columns)
        fresh = msgspec.structs.replace(fresh, columns=columns)
    found = check(bench, staged, fresh, referenced=referenced, now_ns=dataset.made_ns)
    if not found.total:
        return []
    return [f"{found.total:,} violations of its schema, the first: {found.violations[0]}."]


def _noted(dataset: DatasetV1, records: Iterable[ControlRecord]) -> list[str]:
    """Whether the control log says the same; it is chained, and a manifest is not."""
    last, told = None, False
    for record in records:
        if record.subject == dataset.artifact and record.kind == MADE:
            last = record
        elif record.subject == dataset.artifact and record.kind == ERASED:
            told = tells_of(record, dataset)
    if last is None:
        return ["The control log does not know that it was made."]
    try:
        made = msgspec.json.decode(last.body, type=MadeV1)
    except msgspec.MsgspecError:
        return [f"Record {last.seq} of the control log, which says how it was made, cannot be read."]
    hash_made = dataset.hash_before_erasure or dataset.content_hash
    if made.facts.get("content_hash") != hash_made or made.inputs != dataset.inputs:
        return [f"Its manifest is not what record {last.seq} of the control log says was made."]
    if dataset.erased and not told:
        return ["The control log does not know that rows of it were erased."]
    return []


def tells_of(record: ControlRecord, dataset: DatasetV1) -> bool:
    """Whether a record of the control log says that rows were erased, and that this is what was left."""
    try:
        erased = msgspec.json.decode(record.body, type=ErasedV1)
    except msgspec.MsgspecError:
        return False
    return record.subject == dataset.artifact and erased.facts.get("content_hash") == dataset.content_hash
