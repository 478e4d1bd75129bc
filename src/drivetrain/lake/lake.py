"""The lake: every named table behind one connection, as fresh as the question.

Owns which version of each table a question sees, and that it sees each Call once: it fixes a version of a table, takes
from that very version how far the roller has come, and reads the segments beyond it. Where files vanish meanwhile, as
after an erasure, it begins again with a newer version. What it has read of the segments it keeps until the next roll,
so that the next question decodes only what is new; where much waits, it has that rolled first. Called by the commands
and by the rooms above.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.lake import sandbox
from drivetrain.lake.answers import Answer, Stream, collected
from drivetrain.lake.engines import Engines, private
from drivetrain.lake.plans import Ledger, Plan, PlanGone, ledger_of, read_plan
from drivetrain.lake.rows import Tail, TailRows
from drivetrain.lake.sandbox import FileGone
from drivetrain.lake.views import (
    NAMED,
    Known,
    NamedTable,
    Rows,
    control_rows,
    make_registered,
    make_views,
    stored_for,
    table_columns,
)
from drivetrain.lake.waiting import ROLL_FIRST_BYTES, waiting_bytes
from drivetrain.ledger.frames import Damage
from drivetrain.ports.control import ControlRecord
from drivetrain.ports.tables import ObjectStore, TableStore

if TYPE_CHECKING:
    import duckdb

Registered = Mapping[str, Callable[[], Mapping[str, Sequence[Path]]]]
"""Schema -> its tables and their Parquet files, asked for when a question names the schema: `dataset`, `feature`."""
Found = TypeVar("Found")
Parameters = Sequence[Any] | Mapping[str, Any]

TRIES = 5
"""How often a question begins anew because a roll or an erasure came between; each try needs another one to fail."""
TAILS_MAX = 2
"""Tails that are kept: in the moment of a roll one table stands at the next plan already."""
ROLLED = ("calls", "outcomes", "spend")
"""Stored tables that the roller fills."""
PUSH = "push"
"""Schema of the tables that push sources fill; in the store they are `push/NAME`."""


class Lake:
    """The named tables of a data folder. It may be kept: each question sees what was written before it.

    tables, objects: None where nothing was ever rolled: then the segments are all there is. control: gives the records
    of the table `control`. registered: tables of other rooms. catch_up: rolls what waits, unless another process does;
    None: this one only reads. Safe to use from several threads.
    """

    def __init__(
        self,
        data_folder: Path,
        tables: TableStore | None = None,
        objects: ObjectStore | None = None,
        *,
        control: Callable[[], Iterable[ControlRecord]] | None = None,
        registered: Registered | None = None,
        catch_up: Callable[[], object] | None = None,
    ) -> None:
        self.data_folder = data_folder
        self.tables = tables
        self.objects = objects
        self._control = control
        self._registered = dict(registered or {})
        self._catch_up = catch_up
        self._lock = threading.Lock()
        self._engines = Engines()
        self._tails: dict[tuple[int, ...], Tail] = {}
        """By the plans that they begin at, the last used one last."""
        self._problems: tuple[Damage, ...] = ()

    @property
    def problems(self) -> tuple[Damage, ...]:
        """What the last question found in the segments that is no good frame: torn ends (normal) and lost frames."""
        return self._problems

    @contextmanager
    def connect(
        self,
        extra: Mapping[tuple[str, str], Sequence[Path]] | None = None,
        *,
        folders: Sequence[Path] = (),
        trusted: bool = False,
        only: Collection[str] | None = None,
        days: Sequence[str] | None = None,
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A private DuckDB with every named table; it holds no lock, and nothing that it makes outlives it.

        extra: more tables, (schema, name) -> Parquet files. folders: what its SQL may read and write besides.
        trusted: its SQL is ours, so that every file may be read and written. only: these of the lake's own tables.
        days: of the lake only these are read (`2026-01-31`, UTC, of when a Call opened); of the segments all.
        Raises: DrivetrainError.
        """
        registered = (PUSH, *self._registered) if only is None else ()
        schemas = {schema: dict(self._tables_of(schema)) for schema in registered}
        for (schema, name), paths in (extra or {}).items():
            schemas.setdefault(schema, {})[name] = paths
        own = NAMED if only is None else only
        with private() as connection:

            def make() -> dict[str, Rows]:
                stored = self._stored(stored_for(own), days)
                with sandbox.translated(connection):
                    make_views(connection, own, stored)
                    for schema, tables in schemas.items():
                        make_registered(connection, schema, tables)
                return stored

            stored = again(make)
            if not trusted:
                others = [str(path) for tables in schemas.values() for paths in tables.values() for path in paths]
                sandbox.lock(connection, (*_files(stored), *others), [str(folder) for folder in folders])
            yield connection

    def query(self, sql: str, parameters: Parameters | None = None, *, timeout_s: float = sandbox.TIMEOUT_S) -> Answer:
        """The rows of one SELECT over the named tables.

        parameters: for `?` and `$1` a sequence, for `$name` a mapping. Raises: DrivetrainError, with the nearest name
        where a table or a column is unknown.
        """

        def ask() -> Answer:
            with self._streamed(sql, parameters, timeout_s) as rows:
                return collected(rows)

        return again(ask)

    @contextmanager
    def stream(
        self, sql: str, parameters: Parameters | None = None, *, timeout_s: float = sandbox.TIMEOUT_S
    ) -> Iterator[Stream]:
        """As `query`, in bounded memory: the rows are read once, while the context is open."""
        with ExitStack() as stack:
            yield again(lambda: stack.enter_context(self._streamed(sql, parameters, timeout_s)))

    def named(self) -> list[NamedTable]:
        """Every named table with its columns."""

        def ask() -> list[NamedTable]:
            with self.connect() as connection:
                return table_columns(connection)

        return again(ask)

    @contextmanager
    def reading(
        self, only: Collection[str], *, days: Sequence[str] | None = None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """As `connect`, with these of the lake's own tables, and cheaper: for SELECTs of this room."""
        with ExitStack() as stack:

            def make() -> duckdb.DuckDBPyConnection:
                stored = self._stored(stored_for(only), days)
                connection = stack.enter_context(self._engines.connection(_files(stored)))
                with sandbox.translated(connection):
                    make_views(connection, only, stored)
                return connection

            yield again(make)

    @contextmanager
    def _streamed(self, sql: str, parameters: Parameters | None, timeout_s: float) -> Iterator[Stream]:
        schemas: dict[str, Mapping[str, Sequence[Path]]] = {}

        def names(schema: str) -> Collection[str]:
            if not schema:
                return NAMED
            if schema not in schemas:
                schemas[schema] = self._tables_of(schema)
            return {name.lower() for name, paths in schemas[schema].items() if paths}

        with self._engines.connection(()) as connection:
            statement = sandbox.guarded(connection, sql, names)
        own = {name for schema, name in statement.tables if not schema}
        chosen = {
            schema: {name: paths for name, paths in tables.items() if (schema, name.lower()) in statement.tables}
            for schema, tables in schemas.items()
        }
        with ExitStack() as stack:
            if statement.whole:
                connection = stack.enter_context(self.connect())
            elif chosen:
                extra = {(schema, name): paths for schema, tables in chosen.items() for name, paths in tables.items()}
                connection = stack.enter_context(self.connect(extra, only=own))
            else:
                connection = stack.enter_context(self.reading(own))
            with sandbox.bounded(connection, timeout_s):
                yield Stream(connection.sql(statement.sql, params=parameters))

    def _tables_of(self, schema: str) -> Mapping[str, Sequence[Path]]:
        """A schema's tables; none where nobody registered it."""
        if schema == PUSH and self.tables is not None:
            found = {}
            for table in self.tables.tables(f"{PUSH}/"):
                files = self.tables.files(table)
                if files is not None:
                    found[table.removeprefix(f"{PUSH}/")] = [Path(path) for path in files.paths]
            return found
        ask = self._registered.get(schema)
        return {} if ask is None else ask()

    def _stored(self, wanted: Collection[str], days: Sequence[str] | None) -> dict[str, Rows]:
        """The stored tables' rows at one moment. Raises: PlanGone where a roll came between."""
        found: dict[str, Rows] = {}
        if "control" in wanted:
            found["control"] = control_rows(self._control() if self._control is not None else ())
        named = [name for name in ROLLED if name in wanted]
        if not named:
            return found
        ledger, at = self._standing(named, days)
        if self._rolled_first(at):
            ledger, at = self._standing(named, days)
        with self._lock:
            problems: dict[tuple[str, int], Damage] = {}
            for name in named:
                place = at[name]
                calls = place if name == "spend" else at["calls"]
                rows = self._tail_rows(calls.plan, at["outcomes"].plan, ledger)
                problems.update({(one.segment, one.offset): one for one in rows.problems})
                if name == "outcomes":
                    found[name] = Rows(rows.outcomes, place.paths)
                    continue
                known = None
                if rows.doubtful and ledger is not None and at["calls"].paths:
                    # A Call whose opened frame is missing stands under the day that it was closed, or another.
                    known = Known(self._at("calls", ledger, None).paths, ledger.id, place.number)
                found[name] = Rows(rows.calls, place.paths, rows.doubtful, known)
            self._problems = tuple(problems[where] for where in sorted(problems))
        return found

    def _standing(self, named: Collection[str], days: Sequence[str] | None) -> tuple[Ledger | None, dict[str, _At]]:
        """Where the tables stand now. Raises: PlanGone where a roll came between."""
        with self._lock:
            ledger = ledger_of(self.data_folder)
            if ledger is not None and self.tables is None:
                raise DrivetrainError(
                    "Records of this folder were rolled into a lake, and no lake was given.",
                    looked=[str(self.data_folder)],
                    do="Make the Lake with the tables of the project's lake.",
                )
            # One tail serves both, and usually all three.
            at = {name: self._at(name, ledger, days) for name in {"calls", "outcomes", *named}}
            if ledger is None and ledger_of(self.data_folder) is not None:
                raise PlanGone("The first roll came between.", do="Ask again.")
            return ledger, at

    def _rolled_first(self, at: Mapping[str, _At]) -> bool:
        """Whether a long tail was rolled. Where that cannot be, the segments are read as they are."""
        plans = [one.plan for one in at.values()]
        if self._catch_up is None or waiting_bytes(self.data_folder, *plans) <= ROLL_FIRST_BYTES:
            return False
        try:
            self._catch_up()
        except (DrivetrainError, OSError):
            # A folder or a lake that cannot be written stays so for a while; what is wrong with it, its upkeep tells.
            self._catch_up = None
        return True

    def _at(self, table: str, ledger: Ledger | None, days: Sequence[str] | None) -> _At:
        """A table's newest version, and how far the roller had come in it."""
        if self.tables is None:
            return _At(None, -1, ())
        asked = () if ledger is None else (ledger.application,)
        where = None if days is None else {"day": days}
        files = self.tables.files(table, transactions=asked, where=where)
        paths = () if files is None else files.paths
        version = -1 if files is None else files.version
        if ledger is None:
            return _At(None, version, paths)
        number = 0 if files is None else max(0, files.transactions[ledger.application])
        return _At(read_plan(self.data_folder, number), version, paths)

    def _tail_rows(self, calls: Plan | None, outcomes: Plan | None, ledger: Ledger | None) -> TailRows:
        """What the segments hold beyond these plans; decoded once as long as the plans are the same."""
        at = tuple(0 if plan is None else plan.number for plan in (calls, outcomes))
        tail = self._tails.pop(at, None)
        if tail is None:
            tail = Tail(self.data_folder, calls, outcomes, ledger="" if ledger is None else ledger.id)
        rows = tail.read()
        self._tails[at] = tail  # not where reading failed: it may have read half
        while len(self._tails) > TAILS_MAX:
            del self._tails[next(iter(self._tails))]
        return rows


class _At(msgspec.Struct, frozen=True):
    """A version of a stored table."""

    plan: Plan | None
    """Where the roller had come; None where nothing was ever rolled from this folder."""
    version: int
    paths: tuple[str, ...]

    @property
    def number(self) -> int:
        """The last roll that it has."""
        return 0 if self.plan is None else self.plan.number


def again(ask: Callable[[], Found]) -> Found:
    """What `ask` gives, tried anew where files vanished meanwhile. Raises: DrivetrainError, the last one."""
    for _ in range(TRIES - 1):
        try:
            return ask()
        except (PlanGone, FileGone):
            continue
    return ask()


def _files(stored: Mapping[str, Rows]) -> tuple[str, ...]:
    """Every file that these rows are read from."""
    known = [path for rows in stored.values() if rows.known is not None for path in rows.known.paths]
    return tuple(sorted({*(path for rows in stored.values() for path in rows.paths), *known}))
