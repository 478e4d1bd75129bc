"""Delta tables in a folder or an S3-compatible store, by the library `deltalake`: the `TableStore` of the lake.

Owns how the library is asked. Reading: one open table per name, brought up to date by looking whether its log went on,
so that a query costs well under a millisecond. Writing: a table opened anew for each commit, and the application's
transaction looked up in the very version that the commit is based on; the library then refuses a commit of the same
application that came between, and after a failure whose outcome is unknown the table is read again.

The library's errors are never passed on: they quote rows and requests.
"""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from drivetrain.adapters.delta_locks import TableLocks
from drivetrain.adapters.delta_vacuum import LOG, TableFile, TableVersion, committed_ns, vacuum
from drivetrain.adapters.objects import TableFolder, trouble
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.ports.tables import TableChanged, TableFiles, TableInfo

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
NAME_CHARACTERS_MAX = 200
TABLES_OPEN_MAX = 256
"""Tables and older versions that are kept open; each holds its list of files."""
CONFLICTS_MAX = 30
"""How often one write meets another that it cannot stand beside, before it gives up."""
COMMITS_MAX = 50
"""How often the library tries the next version number, where others only added rows."""
CONFLICT_PAUSE_S = 0.02
"""Longest wait after the first conflict; grows with each, up to a second."""
READS_MAX = 5
"""How often files are looked up again that were deleted while they were fetched."""
COMPACTED_BYTES = 128 * 1024 * 1024
"""Size of the files that compaction makes."""
ZSTD_LEVEL = 1
"""Higher ones cost a tenth more time per row, and save next to nothing."""
READABLE = frozenset({"timestampNtz"})
"""Features of a Delta table with which its Parquet files, read as they are, are its rows."""
_VANISHED = re.compile(
    r"not found|No such file|NoSuchKey|No files in log|Invalid table version|specified end version|missing",
    re.IGNORECASE,
)


class DeltaTables:
    """Tables below `uri`, whose files stand in `folder`. Processes and machines may use them at once.

    storage: options of the library for the url. locks: folder for lock files, where the tables are local.
    """

    def __init__(
        self,
        folder: TableFolder,
        *,
        uri: str,
        storage: Mapping[str, str] | None = None,
        locks: Path | None = None,
        now_s: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._folder = folder
        self._uri = uri.rstrip("/")
        self._storage = dict(storage) if storage else None
        self._locks = TableLocks(locks, sleep=sleep)
        self._now_s = now_s
        self._sleep = sleep
        self._chance = chance
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, int | None], _Opened] = OrderedDict()

    def __repr__(self) -> str:
        return f"DeltaTables({self._folder.place!r})"

    # Reading.

    def files(
        self,
        table: str,
        *,
        version: int | None = None,
        transactions: Sequence[str] = (),
        where: Mapping[str, Sequence[str]] | None = None,
    ) -> TableFiles | None:
        """See the port."""
        for _ in range(READS_MAX):
            with self._lock:
                try:
                    opened = self._up_to_date(table, version)
                    if opened is None:
                        return None
                    with _reading(self._folder.place):
                        seen = {name: opened.transaction(name) for name in transactions}
                except _Vanished:
                    # Its log was cleaned up between two looks.
                    self._drop(table)
                    continue
            chosen = opened.files if where is None else self._matching(table, opened, where)
            try:
                paths = self._folder.local_copies([f"{table}/{file.path}" for file in chosen])
            except FileNotFoundError:
                # Replaced and cleaned up since the version was read.
                self._forget(table)
                continue
            return TableFiles(opened.version, tuple(paths), seen, opened.partition_by)
        raise DrivetrainError(
            f"Files of the table `{table}` at {self._folder.place} are gone.",
            do="Ask for the newest version; `history_s` under [lake] says how long older ones are kept.",
        )

    def info(self, table: str) -> TableInfo | None:
        """See the port."""
        with self._lock:
            opened = self._up_to_date(table, None)
            if opened is None:
                return None
            commit = self._folder.get(f"{table}/{LOG}/{opened.version:020d}.json") or b""
            return TableInfo(
                version=opened.version,
                rows=opened.rows,
                files=len(opened.files),
                size_bytes=opened.size_bytes,
                changed_ns=committed_ns(commit),
            )

    def tables(self, prefix: str = "") -> list[str]:
        """See the port."""
        return sorted(self._below(_checked_name(prefix.rstrip("/")) if prefix else ""))

    # Writing.

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
        """See the port."""
        from deltalake import write_deltalake

        rows = _rereadable(rows)
        with self._locks.writing(_checked_name(table)):
            for handle in self._tries(table):
                if transaction is not None and handle is not None and _is_done(handle, transaction):
                    return False
                if handle is None:
                    self._refuse_nesting(table)
                try:
                    write_deltalake(
                        self._uri_of(table) if handle is None else handle,
                        rows,
                        # Not "append": the library would look again, and add to a table that came in between.
                        mode="error" if handle is None else "append",
                        schema_mode=None if handle is None else "merge",
                        partition_by=list(partition_by) or None if handle is None else None,
                        configuration=_configuration(statistics) if handle is None else None,
                        storage_options=self._storage if handle is None else None,
                        writer_properties=_writer(),
                        commit_properties=_commit(metadata, transaction, is_new=handle is None),
                        post_commithook_properties=_hooks(),
                    )
                except _faults() as error:
                    if self._is_conflict(table, handle, error):
                        continue
                    # The commit may have arrived although its answer did not.
                    if transaction is not None and self._has(table, transaction):
                        return True
                    raise self._refusal(table, handle, rows, error) from None
                return True
        raise self._contended(table)

    def replace(
        self,
        table: str,
        rows: Any,
        *,
        where: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        version: int | None = None,
    ) -> None:
        """See the port."""
        from deltalake import write_deltalake

        rows = _rereadable(rows)
        with self._locks.writing(_checked_name(table)):
            for handle in self._tries(table, version):
                if handle is None:
                    if where is not None or version is not None:
                        raise DrivetrainError(f"There is no table `{table}` at {self._folder.place}.")
                    self._refuse_nesting(table)
                predicate = None if where is None else _predicate(table, where, _partition_by(handle))
                try:
                    if handle is None:
                        write_deltalake(
                            self._uri_of(table),
                            rows,
                            mode="error",
                            configuration=_configuration(()),
                            storage_options=self._storage,
                            writer_properties=_writer(),
                            commit_properties=_commit(metadata, is_new=True),
                            post_commithook_properties=_hooks(),
                        )
                    else:
                        write_deltalake(
                            handle,
                            rows,
                            mode="overwrite",
                            schema_mode="overwrite" if predicate is None else "merge",
                            predicate=predicate,
                            writer_properties=_writer(),
                            commit_properties=_commit(metadata),
                            post_commithook_properties=_hooks(),
                        )
                except _faults() as error:
                    if not self._is_conflict(table, handle, error):
                        raise self._refusal(table, handle, rows, error) from None
                    if version is not None:
                        raise TableChanged(
                            f"The table `{table}` was changed after version {version}, of which rows were replaced.",
                            do="Compute them again from the newest version.",
                        ) from None
                    continue
                return
        raise self._contended(table)

    # Upkeep.

    def compact(self, table: str) -> int:
        """See the port."""
        with self._locks.writing(_checked_name(table)):
            for handle in self._tries(table):
                if handle is None:
                    return 0
                try:
                    done = handle.optimize.compact(
                        target_size=COMPACTED_BYTES,
                        max_concurrent_tasks=1,
                        writer_properties=_writer(),
                        post_commithook_properties=_hooks(),
                    )
                except _faults() as error:
                    if self._is_conflict(table, handle, error):
                        continue
                    raise trouble(error, self._folder.place) from None
                return int(done["numFilesRemoved"])
        raise self._contended(table)

    def vacuum(self, table: str, *, keep_s: int) -> int:
        """See the port."""
        with self._locks.cleaning(_checked_name(table)) as is_quiet:
            if self._opened_anew(table, None) is None:
                return 0
            now_s = self._now_s()
            return vacuum(
                self._folder,
                table,
                lambda version: self._version(table, version),
                since_s=now_s - keep_s if keep_s > 0 else float("inf"),
                now_s=now_s,
                is_quiet=is_quiet,
            )

    def drop(self, table: str) -> None:
        """See the port."""
        with self._locks.cleaning(_checked_name(table)):
            nested = self._below(table)
            if any(name != table for name in nested):
                raise DrivetrainError(f"`{table}` is no table: tables stand below it, as `{min(nested)}`.")
            self._folder.drop(table)
            self._forget(table)

    # What is open.

    def _up_to_date(self, table: str, version: int | None) -> _Opened | None:
        """The table at a version, or now. Held open: looking whether it is still so costs two looks at its log."""
        key = (_checked_name(table), version)
        opened = self._open.get(key)
        if opened is not None:
            if opened.stamp != self._stamp(table, opened.version):
                # Its log was cleaned, or the table was dropped and made anew.
                opened = None
            elif version is None and self._stamp(table, opened.version + 1) is not None:
                opened = self._brought_up_to_date(table, opened)
        if opened is None:
            opened = self._opened_anew(table, version)
        if opened is None:
            self._open.pop(key, None)
            return None
        self._open[key] = opened
        self._open.move_to_end(key)
        if len(self._open) > TABLES_OPEN_MAX:
            self._open.popitem(last=False)
        return opened

    def _brought_up_to_date(self, table: str, opened: _Opened) -> _Opened | None:
        try:
            opened.handle.update_incremental()
        except _faults():
            return None
        return self._described(table, opened.handle)

    def _opened_anew(self, table: str, version: int | None) -> _Opened | None:
        handle = self._handle(table, version)
        return None if handle is None else self._described(table, handle)

    def _handle(self, table: str, version: int | None = None) -> Any:
        """The library's table; None where there is none. Raises: DrivetrainError."""
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        if not self._has_log(table):
            return None
        for last in (False, True):
            try:
                handle = DeltaTable(self._uri_of(table), version=version, storage_options=self._storage)
            except _faults() as error:
                vanished = isinstance(error, TableNotFoundError) or _VANISHED.search(str(error)) is not None
                if vanished and version is not None:
                    raise DrivetrainError(
                        f"Version {version} of the table `{table}` at {self._folder.place} is not there (any more).",
                        do="Ask for a newer one; `history_s` under [lake] says how long older ones are kept.",
                    ) from None
                if not vanished or last:
                    raise trouble(error, self._folder.place) from None
                # The log was cleaned, or the table dropped, while it was read.
                if not self._has_log(table):
                    return None
            else:
                _refuse_unreadable(table, handle)
                return handle
        return None

    def _described(self, table: str, handle: Any) -> _Opened:
        with _reading(self._folder.place):
            _refuse_unreadable(table, handle)
            version = handle.version()
            partition_by = _partition_by(handle)
            actions = handle.get_add_actions(flatten=True)
            partitions = [[_text(one) for one in actions[f"partition.{name}"].to_pylist()] for name in partition_by]
            files = []
            for at, raw in enumerate(actions["path"].to_pylist()):
                path = unquote(raw)
                if path.startswith("/") or "://" in path or ".." in path.split("/"):
                    raise DrivetrainError(
                        f"The table `{table}` at {self._folder.place} names files outside its folder.",
                        do="The lake reads tables only that it wrote itself. Import the rows instead.",
                    )
                files.append(TableFile(path, {name: partitions[i][at] for i, name in enumerate(partition_by)}))
            return _Opened(
                version=version,
                handle=handle,
                stamp=self._stamp(table, version),
                files=tuple(files),
                partition_by=partition_by,
                rows=sum(count or 0 for count in actions["num_records"].to_pylist()),
                size_bytes=sum(actions["size_bytes"].to_pylist()),
                transactions={},
            )

    def _version(self, table: str, version: int | None) -> TableVersion:
        opened = self._opened_anew(table, version)
        if opened is None:
            raise DrivetrainError(f"There is no table `{table}` at {self._folder.place} any more.")

        def checkpoint() -> None:
            with _reading(self._folder.place):
                opened.handle.create_checkpoint()

        return TableVersion(version=opened.version, files=opened.files, checkpoint=checkpoint)

    def _forget(self, table: str) -> None:
        with self._lock:
            self._drop(table)

    def _drop(self, table: str) -> None:
        for key in [key for key in self._open if key[0] == table]:
            del self._open[key]

    def _stamp(self, table: str, version: int) -> tuple[Any, ...] | None:
        return self._folder.stamp(f"{table}/{LOG}/{version:020d}.json")

    def _matching(self, table: str, opened: _Opened, where: Mapping[str, Sequence[str]]) -> list[TableFile]:
        _check_partitions(table, where, opened.partition_by)
        wanted = [(name, frozenset(values)) for name, values in where.items()]
        return [file for file in opened.files if all(file.partition[name] in values for name, values in wanted)]

    # Tables by name.

    def _uri_of(self, table: str) -> str:
        return f"{self._uri}/{table}"

    def _has_log(self, table: str) -> bool:
        """Whether a commit was ever made there; also checks that no symbolic link leads elsewhere."""
        return any(re.match(r"\d{20}\.", one.path.rpartition("/")[2]) for one in self._folder.entries(f"{table}/{LOG}"))

    def _below(self, prefix: str) -> Iterator[str]:
        for name in self._folder.folders(prefix):
            path = f"{prefix}/{name}" if prefix else name
            if name == LOG:
                if prefix and self._has_log(prefix):
                    yield prefix
            elif NAME.fullmatch(name):
                yield from self._below(path)

    def _refuse_nesting(self, table: str) -> None:
        """A table's folder is its own: cleaning it deletes what it does not know."""
        parts = table.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts))]
        for name in [*(one for one in above if self._has_log(one)), *self._below(table)]:
            if name != table:
                raise DrivetrainError(
                    f"No table `{table}` can be made: `{name}` is one, and tables do not stand inside each other.",
                    do="Choose another name.",
                )

    # Writers beside each other.

    def _tries(self, table: str, version: int | None = None) -> Iterator[Any]:
        """The table as it is now, or at `version`; again after each conflict and a pause, `CONFLICTS_MAX` times."""
        for count in range(CONFLICTS_MAX):
            yield self._handle(table, version)
            self._sleep(min(CONFLICT_PAUSE_S * 1.5**count, 1.0) * self._chance())

    def _is_conflict(self, table: str, handle: Any, error: Exception) -> bool:
        """Whether another writer's commit is why this one was refused, so that it may be tried on what is there now."""
        from deltalake.exceptions import CommitFailedError

        if isinstance(error, CommitFailedError):
            return True
        if handle is None:
            return "already exists" in str(error)
        # Its base was cleaned away: the library misses commits that it must check.
        return _VANISHED.search(str(error)) is not None and self._stamp(table, handle.version()) is None

    def _has(self, table: str, transaction: tuple[str, int]) -> bool:
        handle = self._handle(table)
        return handle is not None and _is_done(handle, transaction)

    def _contended(self, table: str) -> DrivetrainError:
        return DrivetrainError(
            f"The table `{table}` at {self._folder.place} was changed by others {CONFLICTS_MAX} times while we wrote.",
            do="Try again when fewer write to it.",
        )

    def _refusal(self, table: str, handle: Any, rows: Any, error: Exception) -> DrivetrainError:
        """Why rows were not written, without any of their values."""
        said = str(error)
        if "failed validation check" in said:
            return DrivetrainError(
                f"Rows for the table `{table}` do not belong to the partition that they replace.",
                do="Give the partition's own rows only.",
            )
        if handle is not None and re.search(r"[Cc]ast|[Ss]chema|type|merge|column|field", said):
            differing = _differing(handle, rows)
            if differing:
                return DrivetrainError(
                    f"Rows do not fit the table `{table}`: {'; '.join(differing)}.",
                    do="Convert the column, or give it another name.",
                )
        return trouble(error, self._folder.place)


class _Opened(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a table, held open."""

    version: int
    handle: Any
    stamp: tuple[Any, ...] | None
    files: tuple[TableFile, ...]
    partition_by: tuple[str, ...]
    rows: int
    size_bytes: int
    transactions: dict[str, int]
    """Those that were asked for already."""

    def transaction(self, application: str) -> int:
        if application not in self.transactions:
            found = self.handle.transaction_version(application)
            self.transactions[application] = -1 if found is None else found
        return self.transactions[application]


class _Vanished(DrivetrainError):
    """What was being read is not there any more; looked up again, it may be."""


@contextlib.contextmanager
def _reading(place: str) -> Iterator[None]:
    """The library's failures while a log is read become ours."""
    try:
        yield
    except DrivetrainError:
        raise
    except _faults() as error:
        if _VANISHED.search(str(error)) is not None:
            raise _Vanished(f"A table at {place} was cleaned up while it was read.", do="Ask again.") from None
        raise trouble(error, place) from None


def _faults() -> type[Exception]:
    """What the library raises when a store, a table or rows fail it: for rows of a wrong type a bare `Exception`.

    Only its own calls stand in a `try` with this.
    """
    return Exception


def _checked_name(table: str) -> str:
    if not NAME.fullmatch(table) or len(table) > NAME_CHARACTERS_MAX or LOG in table.split("/"):
        raise DrivetrainError(
            f"{table[:120]!r} is not the name of a table.",
            do="Write letters, digits, `_`, `-` and `.`, with `/` between parts, none of which begins with `.` or `-`.",
        )
    return table


def _rereadable(rows: Any) -> Any:
    """Readers give their rows once; a second try needs them again."""
    if "Reader" not in type(rows).__name__:
        return rows
    from arro3.core import Table

    return Table.from_arrow(rows)


def _configuration(statistics: Sequence[str]) -> dict[str, str | None]:
    stats = {"delta.dataSkippingStatsColumns": ",".join(statistics)} if statistics else {}
    # Without columns none at all; the default would be the first 32. The log is cleaned by `vacuum` alone.
    return {**(stats or {"delta.dataSkippingNumIndexedCols": "0"}), "delta.enableExpiredLogCleanup": "false"}


def _writer() -> Any:
    from deltalake import WriterProperties

    return WriterProperties(compression="ZSTD", compression_level=ZSTD_LEVEL)


def _commit(
    metadata: Mapping[str, str] | None, transaction: tuple[str, int] | None = None, *, is_new: bool = False
) -> Any:
    from deltalake import CommitProperties, Transaction

    return CommitProperties(
        custom_metadata=dict(metadata) if metadata else None,
        # Who makes a table and finds that another just did must not add to it unseen: the library checks nothing then.
        max_commit_retries=0 if is_new else COMMITS_MAX,
        app_transactions=None if transaction is None else [Transaction(*transaction)],
    )


def _hooks() -> Any:
    from deltalake import PostCommitHookProperties

    return PostCommitHookProperties(cleanup_expired_logs=False)


def _is_done(handle: Any, transaction: tuple[str, int]) -> bool:
    found = handle.transaction_version(transaction[0])
    return found is not None and found >= transaction[1]


def _partition_by(handle: Any) -> tuple[str, ...]:
    return tuple(handle.metadata().partition_columns)


def _text(value: Any) -> str | None:
    """A partition's value as the folder's name has it."""
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _refuse_unreadable(table: str, handle: Any) -> None:
    unknown = sorted(set(handle.protocol().reader_features or ()) - READABLE)
    if unknown:
        raise DrivetrainError(
            f"The table `{table}` needs {', '.join(unknown)} to be read, which its Parquet files alone do not tell.",
            do="Rewrite it without (for `deletionVectors`: purge it, then switch the feature off), or import its rows.",
        )


def _check_partitions(table: str, names: Mapping[str, Any], partition_by: Sequence[str]) -> None:
    for name in names:
        if name not in partition_by:
            raise DrivetrainError(
                f"The table `{table}` is not partitioned by `{name}`.", do=did_you_mean(name, partition_by)
            )


def _predicate(table: str, where: Mapping[str, str], partition_by: Sequence[str]) -> str:
    """Partition columns only: a predicate stands in the log for as long as the log does."""
    _check_partitions(table, where, partition_by)
    if not where:
        raise DrivetrainError(f"No partition of the table `{table}` is named.", do="Leave `where` out for all rows.")

    def quoted(text: str, mark: str) -> str:
        return mark + text.replace(mark, mark * 2) + mark

    return " AND ".join(f"{quoted(name, '`')} = {quoted(value, chr(39))}" for name, value in where.items())


def _differing(handle: Any, rows: Any) -> list[str]:
    """Columns whose types in the table and in the rows are not the same, in words."""
    from arro3.core import RecordBatchReader

    table = handle.schema().to_arrow()
    there = {name: _type(table.field(name).type) for name in table.names}
    schema = RecordBatchReader.from_arrow(rows).schema
    given = {name: _type(schema.field(name).type) for name in schema.names}
    return [
        f"column `{name}` is {there[name]} there and {type_} in the rows"
        for name, type_ in given.items()
        if there.get(name, type_) != type_
    ]


def _type(arrow: Any) -> str:
    """`Int64`, as the library writes types between angle brackets."""
    return str(arrow).strip().removeprefix("arro3.core.DataType<").removesuffix(">")
