"""Where the lake's tables and files are: a folder or an object store.

A table is versioned: each commit makes the next version, and a version never changes. Rows come and go as Arrow
(`__arrow_c_stream__`), so no library's type is part of the contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from drivetrain.core.errors import DrivetrainError


class TableChanged(DrivetrainError):
    """The rows that were to be replaced are not the newest any more; nothing was written."""


class TableFiles(msgspec.Struct, frozen=True):
    """One version of a table, as files that a query engine on this machine reads."""

    version: int
    paths: tuple[str, ...]
    """Parquet files on a local disk; of a remote table, copies that were fetched."""
    transactions: Mapping[str, int]
    """Application -> its last transaction in this version, of the applications that were asked for; -1: none."""
    partition_by: tuple[str, ...] = ()
    """Columns that stand in the folders' names (`day=2026-01-31`) and not in the files."""


class TableInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a table's log tells without reading rows."""

    version: int
    rows: int
    files: int
    size_bytes: int
    changed_ns: int
    """When the version was committed."""


class TableStore(Protocol):
    """Tables by name (`calls`, `push/clicks`), each append, replacement or compaction one atomic commit."""

    def append(
        self,
        table: str,
        rows: Any,
        *,
        transaction: tuple[str, int] | None = None,
        partition_by: Sequence[str] = (),
        statistics: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> bool:
        """Add rows; the table is made where there is none, and columns it lacks are added. False: already there.

        transaction: (application, number): where the table has this number or a later one, nothing is written.
        statistics: columns whose min and max may stand in the table's log; set when the table is made. Personal data
        never belongs there. rows: anything with `__arrow_c_stream__`; read again where another writer's commit makes
        it necessary, and gathered in memory first where they can be read only once. Raises: DrivetrainError.
        """

    def replace(
        self,
        table: str,
        rows: Any,
        *,
        where: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        version: int | None = None,
    ) -> None:
        """All rows, or those of the partition that `where` names, are these from now on.

        Without `where` the columns are those of `rows` too; the table is made where there is none. version: the one
        from which `rows` were computed. Raises: TableChanged where rows there came or went since; DrivetrainError.
        """

    def files(
        self,
        table: str,
        *,
        version: int | None = None,
        transactions: Sequence[str] = (),
        where: Mapping[str, Sequence[str]] | None = None,
    ) -> TableFiles | None:
        """The table's files at a version, or now; None where there is no table.

        where: partition column -> values: other partitions' files are left out. Raises: DrivetrainError where the
        version is not kept any more, or the table needs more to be read than its files (deletion vectors).
        """

    def info(self, table: str) -> TableInfo | None:
        """None where there is no table."""

    def tables(self, prefix: str = "") -> list[str]:
        """Names of the tables below a prefix, sorted."""

    def compact(self, table: str) -> int:
        """Small files of a partition become few; how many were removed from the newest version."""

    def vacuum(self, table: str, *, keep_s: int) -> int:
        """Delete files that no version of the last `keep_s` seconds needs, and the log of what is older; how many.

        With 0 only the newest version is left, and what was replaced is readable in no file.
        """

    def drop(self, table: str) -> None:
        """The table, its files and its log are gone."""


class ObjectStore(Protocol):
    """Files by path beside the tables: immutable once written, seen whole or not at all."""

    def put(self, path: str, content: bytes, *, new: bool = False) -> None:
        """new: only where there is none. Raises: FileExistsError."""

    def put_file(self, path: str, source: Path) -> None:
        """A local file, copied."""

    def get(self, path: str) -> bytes | None:
        """None where there is none."""

    def local(self, path: str) -> Path | None:
        """A local file with its content, fetched where it is remote; None where there is none."""

    def list(self, prefix: str) -> list[str]:
        """Paths below a prefix, sorted."""

    def delete(self, path: str) -> None:
        """Gone; nothing happens where there was none."""
