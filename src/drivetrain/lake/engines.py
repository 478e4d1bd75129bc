"""Engines: DuckDB instances, each in its own scratch folder, private to a question or kept for the next.

Opening an instance costs more than most questions do, so those that were locked to the same files are used again, each
question with a connection of its own: what it registers and makes there is temporary, and nobody else's. Called by the
lake only.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.lake import sandbox

if TYPE_CHECKING:
    import duckdb

ENGINES_MAX = 4
"""Instances that are kept: a dashboard asks for a few sets of files in turn. An idle one takes some megabytes."""


class Engines:
    """Locked instances by the files that they may read, the last used one last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, ...], _Engine] = {}

    @contextmanager
    def connection(self, files: tuple[str, ...]) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that reads these files and nothing else, and keeps its settings."""
        with self._lock:
            engine = self._kept.pop(files, None)
            if engine is None:
                engine = _Engine()
                sandbox.lock(engine.connection, files, ())
            self._kept[files] = engine
            while len(self._kept) > ENGINES_MAX:
                # Whoever still asks it holds it; it ends with the last of them.
                del self._kept[next(iter(self._kept))]
            connection = engine.connection.cursor()
        try:
            yield connection
        finally:
            connection.close()
            del engine


@contextmanager
def private() -> Iterator[duckdb.DuckDBPyConnection]:
    """An instance of one's own, not locked yet; it is gone afterwards."""
    engine = _Engine()
    try:
        yield engine.connection
    finally:
        engine.close()


@contextmanager
def frugal(memory: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """An instance for the upkeep, beside what serves: one thread, so much memory; the rest waits on the disk."""
    import duckdb

    with tempfile.TemporaryDirectory(prefix="drivetrain-upkeep-") as scratch:
        config: dict[str, str | bool | int | float | list[str]] = {
            "threads": 1,
            "memory_limit": memory,
            "temp_directory": scratch,
        }
        with duckdb.connect(":memory:", config=config) as connection:
            connection.execute(sandbox.ZONE)
            yield connection


class _Engine:
    """One instance; it is closed, and its scratch folder deleted, when nobody holds it any more."""

    def __init__(self) -> None:
        import duckdb

        scratch = tempfile.mkdtemp(prefix="drivetrain-query-")
        try:
            self.connection = duckdb.connect(":memory:", config=sandbox.settings(Path(scratch)))
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        self.close = weakref.finalize(self, _end, self.connection, scratch)
        self.connection.execute(sandbox.ZONE)
        self.connection.execute("SET parquet_metadata_cache = true")  # files of a table never change


def _end(connection: duckdb.DuckDBPyConnection, scratch: str) -> None:
    connection.close()
    shutil.rmtree(scratch, ignore_errors=True)
