"""The content hash: what a Dataset says, however its files encode it.

SHA-256 over msgpack: first `["dataset.1", [[name, type], ...]]`, then each row in order as an array of its
cells. An int64 is an integer, a float64 a 64-bit float, a bool a boolean; string and json are text, a date is ISO text,
a timestamp is an integer of UTC microseconds, and what is missing is nil.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from drivetrain.core.codec import MSGPACK
from drivetrain.core.datasets import SPLIT, ColumnV1, DatasetV1
from drivetrain.core.sql import identifier
from drivetrain.datasets.staging import Bench

HEAD = "dataset.1"


def plain_cells(columns: Sequence[ColumnV1], cells: Iterable[str]) -> str:
    """A select list under which rows come as the hash and Python take them."""
    return ", ".join(_plain(column, cell) for column, cell in zip(columns, cells, strict=True))


def content_hash(bench: Bench, columns: Sequence[ColumnV1], rows: str) -> str:
    """64 hex digits over the rows of `rows`: a FROM clause, in order, with the columns by name."""
    digest = hashlib.sha256(MSGPACK.encode([HEAD, [[one.name, one.type] for one in columns]]))
    listed = plain_cells(columns, (identifier(one.name) for one in columns))
    cursor = bench.connection.cursor().execute(f"SELECT {listed} {rows}")
    while batch := cursor.fetchmany(10_000):
        digest.update(b"".join(map(MSGPACK.encode, batch)))
    return digest.hexdigest()


def measured(bench: Bench, dataset: DatasetV1, rows: str) -> DatasetV1:
    """`dataset` with the hash, the rows per split and the newest times of the rows of `rows`, a FROM clause."""
    per_split = f"SELECT {SPLIT}, count(*) {rows} GROUP BY 1 ORDER BY 1"
    newest_us = {
        one.name: bench.one(f"SELECT epoch_us(max({identifier(one.name)})) {rows}")
        for one in dataset.schema.columns
        if one.type == "timestamp"
    }
    return msgspec.structs.replace(
        dataset,
        content_hash=content_hash(bench, dataset.all_columns, rows),
        split_rows=dict(bench.rows(per_split)) if dataset.split is not None else {},
        newest={name: int(us) for name, us in newest_us.items() if us is not None},
    )


def _plain(column: ColumnV1, cell: str) -> str:
    if column.type == "timestamp":
        return f"epoch_us({cell})"
    return f"CAST({cell} AS VARCHAR)" if column.type == "date" else cell
