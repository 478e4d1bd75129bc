"""The sandbox: what somebody's SQL may do, and what it is told where it may not.

Owns the limits of a connection and the look at a statement before it runs. Two walls stand behind each other: the
statement must be one SELECT over named tables, by its syntax tree; and the connection that runs it reads no file but
those of the named tables, loads no extension and keeps its settings, whatever the statement says.
Called by the lake for each connection that it hands out.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean, nearest
from drivetrain.core.sql import literals

if TYPE_CHECKING:
    import duckdb

THREADS = 2
"""A query leaves the other cores to the gateway."""
MEMORY_MAX = "1GiB"
"""Of one connection; what needs more goes to its temporary folder, so that a query never starves the gateway."""
SPILL_MAX = "20GiB"
"""Of the temporary folder, which is gone with the connection."""
ZONE = "SET GLOBAL TimeZone = 'UTC'"
"""Of every connection of an instance: days and hours are UTC's."""
SQL_CHARACTERS_MAX = 1_000_000
"""A longer statement was not written by anybody, and its tree would be huge."""
TIMEOUT_S = 300.0
"""How long a query may take unless it is told otherwise."""

TABLE_FUNCTIONS = frozenset({"generate_series", "generate_subscripts", "range", "repeat", "unnest"})
"""They make rows from their arguments alone. Others read files, settings or other catalogues."""
HIDDEN_FUNCTIONS = frozenset({"current_setting", "getenv", "getvariable", "nextval", "currval", "write_log"})
"""They read or write what is not a row of a table."""
TABLES_HINT = "`drivetrain sql --tables` lists the named tables."
FILES_HINT = "Rows of a file become a table by `drivetrain dataset create NAME --from-file FILE`."
FILE_NAME = re.compile(r".*(/|\.(csv|json|jsonl|ndjson|parquet|tsv|txt)(\.gz)?$)", re.DOTALL)
"""What stands for a table, and is a file's name or address."""
UNQUOTED_VERSION = re.compile(r"\b(dataset|feature|push)\.([\w-]+@[\w.-]+)", re.IGNORECASE)
"""A table's version that the syntax wants in quotes."""
CATALOGUE = "information_schema"
"""The one schema besides ours that may be read: it says which tables and columns there are."""


class FileGone(DrivetrainError):
    """A file of a table vanished while it was read: what the lake's newest version has is to be read instead."""


class Statement(msgspec.Struct, frozen=True):
    """One SELECT that may run."""

    sql: str
    tables: frozenset[tuple[str, str]]
    """(schema, name) of the named tables that it reads, in lower case; the schema is empty for the lake's own."""
    whole: bool
    """It reads the catalogue too, so that every named table has to be there."""


def settings(scratch: Path) -> dict[str, Any]:
    """How a connection is opened, in bounds. scratch: where it may put what does not fit into memory."""
    return {
        "threads": THREADS,
        "memory_limit": MEMORY_MAX,
        "temp_directory": str(scratch),
        "max_temp_directory_size": SPILL_MAX,
        "python_enable_replacements": False,  # else a table's name could be a variable of our Python code
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }


def lock(connection: duckdb.DuckDBPyConnection, files: Sequence[str], folders: Sequence[str]) -> None:
    """From now on it reads these files, reads and writes these folders, and keeps its settings."""
    connection.execute(f"SET allowed_paths = {literals(files)}")
    connection.execute(f"SET allowed_directories = {literals(folders)}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def guarded(connection: duckdb.DuckDBPyConnection, sql: str, names: Callable[[str], Collection[str]]) -> Statement:
    """The statement, where it is one SELECT over named tables. Raises: DrivetrainError.

    names: the tables of a schema, in lower case; the lake's own are those of the empty schema.
    """
    text = sql.strip().rstrip(";").rstrip()
    if len(text) > SQL_CHARACTERS_MAX:
        raise DrivetrainError(
            f"The query has {len(text):,} characters; {SQL_CHARACTERS_MAX:,} are the most.", do="Ask something shorter."
        )
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise DrivetrainError(
            "The query has half of a surrogate pair, which no UTF-8 text holds.", do="Mend its encoding."
        )
    tree = _tree(connection, text)
    if len(tree) != 1:
        raise DrivetrainError(f"That is {len(tree)} statements.", do="Write one SELECT.")
    functions: set[str] = set()
    read: list[tuple[str, str, str]] = []
    named: set[str] = set()
    _walk(tree[0], functions, read, named)
    refused = sorted(functions & HIDDEN_FUNCTIONS)
    if refused:
        raise DrivetrainError(f"`{refused[0]}()` may not be used here.", do=TABLES_HINT)
    tables, whole = set(), False
    for catalogue, schema, name in read:
        if not schema and name in named:
            continue
        if schema == CATALOGUE or name == "*":
            whole = True
            continue
        if catalogue or name not in names(schema):
            raise _no_table(catalogue, schema, name, names)
        tables.add((schema, name))
    return Statement(text, frozenset(tables), whole)


@contextmanager
def bounded(connection: duckdb.DuckDBPyConnection, timeout_s: float) -> Iterator[None]:
    """What runs in it is interrupted after `timeout_s`; DuckDB's errors become ours. Raises: DrivetrainError."""
    import duckdb

    late = threading.Event()

    def interrupt() -> None:
        late.set()
        connection.interrupt()

    timer = threading.Timer(timeout_s, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except duckdb.Error as error:
        if late.is_set():
            raise DrivetrainError(
                f"The query took longer than {timeout_s:g} s.",
                do="Ask for fewer days (`where day >= ...`), or allow more time.",
            ) from None
        raise explained(error, connection) from error
    finally:
        timer.cancel()


@contextmanager
def translated(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """DuckDB's errors become ours. Raises: DrivetrainError."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise explained(error, connection) from error


def explained(error: duckdb.Error, connection: duckdb.DuckDBPyConnection) -> DrivetrainError:
    """DuckDB's error as one that names what is near."""
    import duckdb

    text = str(error)
    column = re.search(r'Referenced column "([^"]*)" not found|does not have a column named "([^"]*)"', text)
    if column is not None:
        name = column[1] or column[2]
        rows = connection.execute("SELECT DISTINCT column_name FROM duckdb_columns() WHERE NOT internal").fetchall()
        return DrivetrainError(
            f"There is no column `{name}` here.", do=_near_columns(text, name, [row[0] for row in rows])
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return DrivetrainError(
            f"The query needs more than {MEMORY_MAX} of memory.",
            do="Ask for fewer columns or days; `request` and `answers` are the large columns.",
        )
    # Where a file is not there, a locked connection looks for a folder of that name, and may not.
    looked = isinstance(error, duckdb.PermissionException) and '/**/*.parquet"' in text
    if looked or (isinstance(error, duckdb.IOException) and ("No files found" in text or "No such file" in text)):
        return FileGone(f"A file of a table was deleted while it was read: {text.strip()}", do="Ask again.")
    if isinstance(error, duckdb.PermissionException):
        return DrivetrainError("A query reads the named tables only, no files.", do=TABLES_HINT)
    return DrivetrainError(f"The query failed: {text.strip()}")


def _near_columns(text: str, name: str, known: Sequence[str]) -> str:
    """What to write instead: by our list, for DuckDB's own candidates are of the tables in question but few."""
    offered = re.findall(r'"([^"]+)"', text.partition("Candidate bindings:")[2].partition("\n")[0])
    near = nearest(name, [*offered, *known])
    if near is not None:
        return f"Did you mean `{near}`?"
    quoted = f"A text stands in single quotes: '{name}'."
    return f"{did_you_mean(name, offered)} {quoted}" if offered else quoted


def _tree(connection: duckdb.DuckDBPyConnection, text: str) -> list[dict[str, Any]]:
    """The syntax trees of the statements. Raises: DrivetrainError where one is no SELECT."""
    found = connection.execute("SELECT json_serialize_sql(?)", [text]).fetchall()[0][0]
    parsed = msgspec.json.decode(found)
    if not parsed["error"]:
        if not parsed["statements"]:
            raise DrivetrainError("The query is empty.", do='Write one SELECT: `drivetrain sql "from calls limit 5"`.')
        return [statement["node"] for statement in parsed["statements"]]
    if parsed["error_type"] == "not implemented":
        raise DrivetrainError(
            "That is no SELECT. The named tables are read-only.",
            do="Write one SELECT; `pivot` stands inside one: `select * from (pivot ...)`.",
        )
    message, place = parsed["error_message"], parsed.get("position")
    version = UNQUOTED_VERSION.search(text)
    raise DrivetrainError(
        f"The query cannot be read: {message}.{_pointed(text, place)}",
        do=f'Quote a version: {version[1]}."{version[2]}".' if version is not None else "",
    )


def _pointed(text: str, place: str | None) -> str:
    """The line in question, with a mark below the place."""
    if place is None:
        return ""
    at = min(int(place), len(text))
    line = text[text.rfind("\n", 0, at) + 1 :].split("\n", 1)[0]
    column = at - (text.rfind("\n", 0, at) + 1)
    start = max(0, column - 60)
    return f"\n    {line[start : start + 100]}\n    {' ' * (column - start)}^"


def _walk(node: Any, functions: set[str], read: list[tuple[str, str, str]], named: set[str]) -> None:
    """Every function, every table that is read, and every name that a WITH gives."""
    pending = [node]
    while pending:
        one = pending.pop()
        if isinstance(one, list):
            pending.extend(one)
            continue
        if not isinstance(one, Mapping):
            continue
        kind = one.get("type")
        if kind == "BASE_TABLE":
            read.append((one["catalog_name"].lower(), one["schema_name"].lower(), one["table_name"].lower()))
        elif kind == "SHOW_REF" and one.get("table_name"):
            read.append(("", "", "*"))
        elif kind == "TABLE_FUNCTION":
            function = one["function"]["function_name"].lower()
            if function not in TABLE_FUNCTIONS:
                raise DrivetrainError(
                    f"`{function}()` may not be used as a table: a query reads the named tables only.",
                    do=f"{TABLES_HINT} {FILES_HINT}" if function.startswith(("read_", "parquet_")) else TABLES_HINT,
                )
        elif kind == "FUNCTION":
            functions.add(one["function_name"].lower())
        ctes = one.get("cte_map")
        if ctes is not None:
            named.update(entry["key"].lower() for entry in ctes["map"])
        pending.extend(value for value in one.values() if isinstance(value, dict | list))


def _no_table(catalogue: str, schema: str, name: str, names: Callable[[str], Collection[str]]) -> DrivetrainError:
    if FILE_NAME.fullmatch(name):
        return DrivetrainError(f"`{name}` is no table, and a query reads no files.", do=f"{TABLES_HINT} {FILES_HINT}")
    written = ".".join(part for part in (catalogue, schema, name) if part)
    known = [f"{place}.{one}" if place else one for place in {"", schema} for one in names(place)]
    near = did_you_mean(written, known) if nearest(written, known) else TABLES_HINT
    return DrivetrainError(f"There is no table `{written}`.", do=near)
