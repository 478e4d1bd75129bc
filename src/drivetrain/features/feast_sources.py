"""Sources of a Feast repository -> ours: files that can stand in the project, and Datasets for what stays outside.

Owns where a source's rows are, and what its files say of columns that nobody declared. Called by the translation.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from drivetrain.core.sql import literal
from drivetrain.features.feast_notes import Notes, shape
from drivetrain.features.feast_reading import Declared, FeastRepository
from drivetrain.features.feast_records import TSource
from drivetrain.project.names import E_MAIL
from drivetrain.project.source_checks import SECRET_IN_TEXT, USER_IN_URL

NOBODY = "nobody@example.com"
"""Owner of a source outside whose owner nobody wrote down: every Source has one."""
STREAMS = ("KafkaSource", "KinesisSource")
_PHYSICAL = (
    (("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"), "int64"),
    (("FLOAT", "DOUBLE", "DECIMAL"), "float64"), (("VARCHAR",), "string"), (("BOOLEAN",), "bool"),
    (("TIMESTAMP",), "timestamp"),
)  # fmt: skip


class Sources:
    """The sources that views read, each once. project: the folder that paths of files become relative to."""

    def __init__(self, repository: FeastRepository, project: Path, notes: Notes) -> None:
        self._repository = repository
        self._project = project
        self._notes = notes
        self._note = notes.note
        self._made: dict[int, TSource] = {}
        self._columns: dict[str, dict[str, str]] = {}

    @property
    def made(self) -> tuple[TSource, ...]:
        """In the order in which views needed them."""
        return tuple(self._made.values())

    def batch_of(self, view: Declared) -> tuple[Declared | None, Declared | None]:
        """The source of a view's history, and the one that rows are pushed by."""
        source, stream = view.arguments.get("source"), view.arguments.get("stream_source")
        batch = view.arguments.get("batch_source")
        if isinstance(source, Declared) and source.kind in ("PushSource", *STREAMS):
            stream, source = source, None
        source = source if isinstance(source, Declared) else batch
        if isinstance(stream, Declared) and not isinstance(source, Declared):
            source = stream.arguments.get("batch_source")
        return (source if isinstance(source, Declared) else None), (stream if isinstance(stream, Declared) else None)

    def source_of(self, view: Declared) -> TSource | None:
        """The source of a view; None where there is none that can be read."""
        batch, stream = self.batch_of(view)
        if batch is not None and not batch.kind.endswith("Source"):
            return None
        if stream is None:
            return None if batch is None else self._batch(batch, view)
        known = self._made.get(id(stream))
        if known is not None:
            return known
        before = None if batch is None else self._batch(batch, view, stream)
        if stream.kind in STREAMS:
            self._note(stream, f"A {stream.kind} becomes a PushSource: nothing here reads the stream.",
                       "Have its consumer push rows, by `drivetrain features push`.")  # fmt: skip
        made = TSource(
            at=stream, kind="PushSource", name=self._notes.name("source", stream), batch=before,
            timestamp=stream.text("timestamp_field") or stream.text("event_timestamp_column")
            or (before.timestamp if before else "event_timestamp"),
            created=stream.text("created_timestamp_column") or (before.created if before else ""),
            description=stream.text("description"), owner=stream.text("owner"),
        )  # fmt: skip
        self._made[id(stream)] = made
        return made

    def _batch(self, one: Declared, view: Declared, stream: Declared | None = None) -> TSource:
        known = self._made.get(id(one))
        if known is not None:
            return known
        if one.listed("field_mapping"):
            mapping = one.arguments["field_mapping"]
            self._note(one, f"`field_mapping` is not carried over: {mapping if isinstance(mapping, dict) else ''}.",
                       "Rename the columns in the data, or read them by a SqlSource: `SELECT a AS b ...`.")  # fmt: skip
        columns = self.columns_of(one)
        times = [name for name, dtype in columns.items() if dtype == "timestamp"]
        created = one.text("created_timestamp_column")
        timestamp = one.text("timestamp_field") or one.text("event_timestamp_column")
        if not timestamp and stream is not None:
            timestamp = stream.text("timestamp_field") or view.text("timestamp_field")
        if not timestamp:
            rest = [name for name in times if name != created]
            timestamp = rest[0] if len(rest) == 1 else "event_timestamp"
            if len(rest) != 1:
                self._note(one, "It names no `timestamp_field`; `event_timestamp` is taken.", "Correct it if need be.")
        name = one.name or _without_secrets(_where(one)) or f"{view.name}_source"
        path, outside = self._place(one)
        dataset = shape(name)
        shared: dict[str, Any] = {"timestamp": timestamp, "created": created, "description": one.text("description"),
                  "owner": one.text("owner")}  # fmt: skip
        if path:
            made = TSource(at=one, kind="FileSource", name=one.name, reads=path, **shared)
        else:
            owner = next((text for text in (one.text("owner"), view.text("owner")) if E_MAIL.fullmatch(text)), NOBODY)
            self._note(
                one, f"The rows of `{name}` stay outside ({outside}); `dataset.{dataset}` is read.",
                f"Export them, then `drivetrain dataset create {dataset} --from-file EXPORT.parquet`."
                + (f" Write who answers for it instead of {NOBODY}." if owner == NOBODY else ""),
            )  # fmt: skip
            unique = self._notes.unique("source", dataset)
            made = TSource(at=one, kind="TableSource", name=unique, reads=f"dataset.{dataset}", outside=outside,
                           outside_owner=owner, **shared)  # fmt: skip
        self._made[id(one)] = made
        return made

    def _place(self, one: Declared) -> tuple[str, str]:
        """(path in the project, "") of a file that can stand there; ("", where it is) of everything else."""
        where = _where(one)
        formatted = one.arguments.get("file_format")
        kind = formatted.kind.removesuffix("Format") if isinstance(formatted, Declared) else str(formatted or "parquet")
        delta = kind.lower() not in ("parquet", "csv")
        # Spark and Ray read local files too.
        local = one.kind == "FileSource" or one.text("path") == where
        if not where or not local or delta or "://" in where.removeprefix("file://"):
            return "", _outside(one, where, kind if delta else "")
        file = Path(where.removeprefix("file://"))
        absolute = Path(_lexical(file if file.is_absolute() else self._repository.root / file))
        pattern = absolute.is_dir() or not PurePosixPath(where).suffix
        inside = absolute.is_relative_to(self._project)
        if inside:
            relative = absolute.relative_to(self._project).as_posix()
        else:
            root = self._repository.root
            kept = absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.name
            relative = kept if kept.startswith("data/") else f"data/{kept}"
            shown = absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else where
            self._note(one, f"The file `{shown}` is not in the project, where the source reads `{relative}`.",
                       f"Copy it: `cp -r {absolute} {relative}`.")  # fmt: skip
        return (f"{relative}/*.parquet" if pattern else relative), ""

    def columns_of(self, one: Declared) -> dict[str, str]:
        """Column -> dtype of a Parquet file in the repository; nothing where there is none."""
        where = _where(one)
        if not where.endswith(".parquet") or "://" in where.removeprefix("file://"):
            return {}
        path = (self._repository.root / where.removeprefix("file://")).resolve()
        if not path.is_file() or not path.is_relative_to(self._repository.root):
            return {}
        if str(path) not in self._columns:
            self._columns[str(path)] = _columns(path)
        return self._columns[str(path)]


def _where(one: Declared) -> str:
    return one.text("path") or one.text("file_url") or one.text("table") or one.text("table_ref")


def _lexical(path: Path) -> str:
    """Without `..`, and without following links."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts = parts[:-1] if len(parts) > 1 else parts
        else:
            parts.append(part)
    return str(Path(*parts))


def _outside(one: Declared, where: str, kind: str) -> str:
    system = kind or one.kind.removesuffix("Source") or "a system"
    parts = [one.text(name) for name in ("database", "schema")]
    named = ".".join(part for part in (*parts, _without_secrets(where)) if part)
    text = f"{system} {named}" if named else f"{system}, as {one.file}:{one.line} says"
    if USER_IN_URL.search(text) or SECRET_IN_TEXT.search(text) or len(text) > 300:
        return f"{system}, as {one.file}:{one.line} says"
    return text


def _without_secrets(where: str) -> str:
    """A path or URL without what comes after `?`, and without a user."""
    return re.sub(r"//[^/@\s]*@", "//", where.partition("?")[0])


def _columns(path: Path) -> dict[str, str]:
    """Column -> dtype of a Parquet file; empty for types that are none here."""
    import duckdb

    with duckdb.connect() as connection:
        try:
            rows = connection.execute(f"DESCRIBE SELECT * FROM read_parquet({literal(str(path))})").fetchall()  # noqa: S608
        except duckdb.Error:
            return {}
    return {
        name: "" if "[" in kind else next((dtype for names, dtype in _PHYSICAL if kind.startswith(names)), "")
        for name, kind, *_ in rows
    }
