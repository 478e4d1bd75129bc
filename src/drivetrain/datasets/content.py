"""The content hash: what a Dataset says, however its files encode it.

SHA-256 over msgpack: first `["dataset.1", [[name, type], ...]]`, then each row in order as an array of its
cells. An int64 is an integer, a float64 a 64-bit float, a bool a boolean; string and json are text, a date is ISO text,
a timestamp is an integer of UTC microseconds, and what is missing is nil.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from drivetrain.core.codec import MSGPACK
from drivetrain.core.datasets import ColumnV1
from drivetrain.datasets.staging import Bench, identifier

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


def _plain(column: ColumnV1, cell: str) -> str:
    if column.type == "timestamp":
        return f"epoch_us({cell})"
    return f"CAST({cell} AS VARCHAR)" if column.type == "date" else cell
