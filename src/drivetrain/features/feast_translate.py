"""What a Feast repository declares -> the same in our declarations, and a note of everything that is not the same.

Owns which argument means what. How the module reads is for `feast_module.py`. Called by `feast_import.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from drivetrain.core.features import AGGREGATIONS
from drivetrain.core.times import DURATION_DAYS_MAX
from drivetrain.features.checks import COLUMN, RESERVED
from drivetrain.features.feast_functions import Carried, carry, function_source
from drivetrain.features.feast_reading import (
    Declared,
    Duration,
    FeastRepository,
    FunctionAt,
    Note,
    Projected,
    TypeName,
    Unknown,
)
from drivetrain.features.feast_records import (
    TAggregation,
    TEntity,
    TField,
    TFunction,
    TPart,
    Translation,
    TRequest,
    TService,
    TSource,
    TView,
)
from drivetrain.features.scratch import literal
from drivetrain.project.settings import E_MAIL, NAME
from drivetrain.project.source_checks import SECRET_IN_TEXT, USER_IN_URL

NOBODY = "nobody@example.com"
"""Owner of a source outside whose owner nobody wrote down: every Source has one."""
TYPES = {
    "int32": "int64", "int64": "int64", "float32": "float64", "float64": "float64", "float": "float64",
    "double": "float64", "string": "string", "uuid": "string", "timeuuid": "string", "time_uuid": "string",
    "bool": "bool", "unixtimestamp": "timestamp", "unix_timestamp": "timestamp",
}  # fmt: skip
"""Type of Feast's, in small letters -> dtype."""
FUNCTIONS = {"avg": "mean", "count_distinct": "approx_distinct", **{one: one for one in AGGREGATIONS}}
STREAMS = ("KafkaSource", "KinesisSource")
REQUESTS = ("RequestSource", "RequestDataSource")
PLAIN_VIEWS = ("FeatureView", "BatchFeatureView", "StreamFeatureView")
VIEWS = (*PLAIN_VIEWS, "OnDemandFeatureView", "LabelView")
SILENT = (*REQUESTS, "Field", "Feature", "Aggregation", "Project", "LoggingConfig")
"""Kinds that are carried with what holds them, or that say nothing here."""

_CARRIED = {
    "Entity": {"name", "value_type", "join_key", "join_keys", "description", "owner", "tags", "labels"},
    "FeatureView": {
        "name", "entities", "ttl", "source", "batch_source", "stream_source", "schema", "features", "online",
        "description", "owner", "tags",
    },
    "OnDemandFeatureView": {
        "name", "sources", "inputs", "input_schema", "schema", "features", "udf", "udf_string", "mode",
        "feature_transformation", "singleton", "description", "owner", "tags",
    },
    "FeatureService": {"name", "features", "description", "owner", "tags"},
}  # fmt: skip
_CARRIED["BatchFeatureView"] = _CARRIED["StreamFeatureView"] = {
    *_CARRIED["FeatureView"], "aggregations", "mode", "udf", "udf_string", "feature_transformation", "timestamp_field",
}  # fmt: skip
_SAYS_NOTHING = {"offline", "version", "org", "track_metrics", "enabled", "stream_engine", "batch_engine",
                 "enable_tiling", "tiling_hop_size", "precompute_online"}  # fmt: skip
"""Arguments that tune Feast's own engines."""
_UNITS_US = {"w": 604_800_000_000, "d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000}
_PHYSICAL = (
    (("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"), "int64"),
    (("FLOAT", "DOUBLE", "DECIMAL"), "float64"), (("VARCHAR",), "string"), (("BOOLEAN",), "bool"),
    (("TIMESTAMP",), "timestamp"),
)  # fmt: skip


def translate(repository: FeastRepository, project: Path) -> Translation:
    """The repository's declarations as ours. project: the folder that paths of files become relative to."""
    return _Translator(repository, project.resolve()).run()


class _LeftOut(Exception):
    """A view cannot be carried over; why is noted."""


class _Translator:
    def __init__(self, repository: FeastRepository, project: Path) -> None:
        self._repository = repository
        self._project = project
        self._notes: list[Note] = []
        self._names: dict[str, set[str]] = {}
        self._entities: dict[int, TEntity] = {}
        self._sources: dict[int, TSource] = {}
        self._views: dict[int, TView | TFunction | None] = {}
        self._requests: dict[int, TRequest] = {}
        self._columns: dict[str, dict[str, str]] = {}
        self._left_out: list[tuple[Declared, str]] = []
        self._key_types: dict[str, str] = {}
        self._texts: dict[str, str] = {}

    def run(self) -> Translation:
        wanted = []
        for one in self._wanted():
            if one.name or one.kind not in ("Entity", "FeatureService", *VIEWS):
                wanted.append(one)
            else:
                self._note(one, f"The name of this {one.kind} cannot be read: {_shown(one.arguments.get('name'))}.",
                           "Write it out.")  # fmt: skip
        for one in wanted:
            self._learn_keys(one)
        for one in wanted:
            if one.kind == "Entity":
                self._entity(one)
            elif one.kind in VIEWS:
                self._view(one)
        services = [self._service(one) for one in wanted if one.kind == "FeatureService"]
        for one in wanted:
            if one.kind not in ("Entity", "FeatureService", *VIEWS, *SILENT) and not one.kind.endswith("Format"):
                self._leave(one)
        self._note_settings()
        views = [one for one in self._views.values() if one is not None]
        notes = (*self._repository.notes, *self._notes)
        return Translation(
            entities=tuple(self._entities.values()), sources=tuple(self._sources.values()),
            views=tuple(one for one in views if isinstance(one, TView)), requests=tuple(self._requests.values()),
            functions=tuple(one for one in views if isinstance(one, TFunction)),
            services=tuple(one for one in services if one is not None), left_out=tuple(self._left_out),
            notes=tuple(sorted(dict.fromkeys(notes), key=lambda one: (one.file, one.line))),
        )  # fmt: skip

    def _wanted(self) -> list[Declared]:
        """What a module holds, as Feast applies it, and what that is made of."""
        found: dict[int, Declared] = {}
        waiting: list[Any] = [one for one in self._repository.declared if one.variable]
        while waiting:
            one = waiting.pop(0)
            if isinstance(one, Projected):
                one = one.view
            if isinstance(one, list | tuple):
                waiting += one
            elif isinstance(one, dict):
                waiting += one.values()
            elif isinstance(one, Declared) and id(one) not in found:
                found[id(one)] = one
                waiting += one.arguments.values()
        return [one for one in self._repository.declared if id(one) in found]

    # Entities.

    def _learn_keys(self, view: Declared) -> None:
        """Types of keys that only a view's schema says."""
        if view.kind in VIEWS:
            for field in [*view.listed("schema"), *view.listed("features")]:
                if isinstance(field, Declared) and field.name:
                    dtype = self._dtype(field.arguments.get("dtype"))
                    if dtype is not None:
                        self._key_types.setdefault(field.name, dtype)

    def _entity(self, one: Declared) -> TEntity:
        known = self._entities.get(id(one))
        if known is not None:
            return known
        self._check_arguments(one)
        keys = [
            key for key in (one.arguments.get("join_keys") or [one.text("join_key")]) if isinstance(key, str) and key
        ]
        keys = keys or [one.name]
        made = TEntity(
            at=one, name=self._name("entity", one), join_keys=tuple(keys), dtype=self._key_type(one, keys),
            description=one.text("description"), owner=one.text("owner"),
        )  # fmt: skip
        self._entities[id(one)] = made
        return made

    def _key_type(self, one: Declared, keys: Sequence[str]) -> str:
        declared = one.arguments.get("value_type")
        dtype = None
        if isinstance(declared, TypeName) and declared.name != "UNKNOWN":
            dtype = self._dtype(declared)
        dtype = dtype or self._key_types.get(keys[0]) or self._physical_key(one, keys[0])
        if dtype is None:
            self._note(one, f"The type of `{keys[0]}` is not declared; it is taken to be a string.",
                       "Correct `value_type` where it is another.")  # fmt: skip
        elif dtype == "float64":
            self._note(one, f"`{keys[0]}` is a fraction, which no key is; it is taken to be a string.",
                       "Make it a whole number or a text in the source.")  # fmt: skip
        return "string" if dtype in (None, "float64") else str(dtype)

    def _physical_key(self, entity: Declared, key: str) -> str | None:
        """What the files of the views that use the entity say."""
        for view in self._repository.declared:
            if view.kind in VIEWS and any(one is entity or one == entity.name for one in view.listed("entities")):
                batch, _ = self._batch_of(view)
                dtype = None if batch is None else self._file_columns(batch).get(key)
                if dtype is not None:
                    return dtype
        return None

    # Sources.

    def _batch_of(self, view: Declared) -> tuple[Declared | None, Declared | None]:
        """The source of a view's history, and the one that rows are pushed by."""
        source, stream = view.arguments.get("source"), view.arguments.get("stream_source")
        batch = view.arguments.get("batch_source")
        if isinstance(source, Declared) and source.kind in ("PushSource", *STREAMS):
            stream, source = source, None
        source = source if isinstance(source, Declared) else batch
        if isinstance(stream, Declared) and not isinstance(source, Declared):
            source = stream.arguments.get("batch_source")
        return (source if isinstance(source, Declared) else None), (stream if isinstance(stream, Declared) else None)

    def _source_of(self, view: Declared) -> TSource | None:
        """None, with a note, where there is none that can be read."""
        batch, stream = self._batch_of(view)
        if batch is not None and not batch.kind.endswith("Source"):
            return None
        if stream is None:
            return None if batch is None else self._batch(batch, view)
        known = self._sources.get(id(stream))
        if known is not None:
            return known
        before = None if batch is None else self._batch(batch, view, stream)
        if stream.kind in STREAMS:
            self._note(stream, f"A {stream.kind} becomes a PushSource: nothing here reads the stream.",
                       "Have its consumer push rows, by `drivetrain features push`.")  # fmt: skip
        made = TSource(
            at=stream, kind="PushSource", name=self._name("source", stream), batch=before,
            timestamp=stream.text("timestamp_field") or stream.text("event_timestamp_column")
            or (before.timestamp if before else "event_timestamp"),
            created=stream.text("created_timestamp_column") or (before.created if before else ""),
            description=stream.text("description"), owner=stream.text("owner"),
        )  # fmt: skip
        self._sources[id(stream)] = made
        return made

    def _batch(self, one: Declared, view: Declared, stream: Declared | None = None) -> TSource:
        known = self._sources.get(id(one))
        if known is not None:
            return known
        if one.listed("field_mapping"):
            mapping = one.arguments["field_mapping"]
            self._note(one, f"`field_mapping` is not carried over: {mapping if isinstance(mapping, dict) else ''}.",
                       "Rename the columns in the data, or read them by a SqlSource: `SELECT a AS b ...`.")  # fmt: skip
        columns = self._file_columns(one)
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
        name = one.name or _without_secrets(self._where(one)) or f"{view.name}_source"
        path, outside = self._place(one)
        dataset = self._shape(name)
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
            unique = self._unique("source", dataset)
            made = TSource(at=one, kind="TableSource", name=unique, reads=f"dataset.{dataset}", outside=outside,
                           outside_owner=owner, **shared)  # fmt: skip
        self._sources[id(one)] = made
        return made

    def _where(self, one: Declared) -> str:
        return one.text("path") or one.text("file_url") or one.text("table") or one.text("table_ref")

    def _place(self, one: Declared) -> tuple[str, str]:
        """(path in the project, "") of a file that can stand there; ("", where it is) of everything else."""
        where = self._where(one)
        formatted = one.arguments.get("file_format")
        kind = formatted.kind.removesuffix("Format") if isinstance(formatted, Declared) else str(formatted or "parquet")
        delta = kind.lower() not in ("parquet", "csv")
        # Spark and Ray read local files too.
        local = one.kind == "FileSource" or one.text("path") == where
        if not where or not local or delta or "://" in where.removeprefix("file://"):
            return "", self._outside(one, where, kind if delta else "")
        file = Path(where.removeprefix("file://"))
        absolute = Path(self._lexical(file if file.is_absolute() else self._repository.root / file))
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

    def _lexical(self, path: Path) -> str:
        """Without `..`, and without following links."""
        parts: list[str] = []
        for part in path.parts:
            if part == "..":
                parts = parts[:-1] if len(parts) > 1 else parts
            else:
                parts.append(part)
        return str(Path(*parts))

    def _outside(self, one: Declared, where: str, kind: str) -> str:
        system = kind or one.kind.removesuffix("Source") or "a system"
        parts = [one.text(name) for name in ("database", "schema")]
        named = ".".join(part for part in (*parts, _without_secrets(where)) if part)
        text = f"{system} {named}" if named else f"{system}, as {one.file}:{one.line} says"
        if USER_IN_URL.search(text) or SECRET_IN_TEXT.search(text) or len(text) > 300:
            return f"{system}, as {one.file}:{one.line} says"
        return text

    def _file_columns(self, one: Declared) -> dict[str, str]:
        """Column -> dtype of a Parquet file in the repository; nothing where there is none."""
        where = self._where(one)
        if not where.endswith(".parquet") or "://" in where.removeprefix("file://"):
            return {}
        path = (self._repository.root / where.removeprefix("file://")).resolve()
        if not path.is_file() or not path.is_relative_to(self._repository.root):
            return {}
        if str(path) not in self._columns:
            self._columns[str(path)] = _columns(path)
        return self._columns[str(path)]

    # Views.

    def _view(self, one: Declared) -> TView | TFunction | None:
        if id(one) not in self._views and one.name:
            self._views[id(one)] = None  # a view that reads itself is left out
            self._check_arguments(one)
            made: TView | TFunction | None = None
            with suppress(_LeftOut):
                made = self._on_demand(one) if one.kind == "OnDemandFeatureView" else self._plain_view(one)
            self._views.pop(id(one))
            self._views[id(one)] = made
        return self._views.get(id(one))

    def _plain_view(self, one: Declared) -> TView:
        if one.kind == "LabelView":
            raise self._out(one, "A LabelView is not carried over.", "Record labels as Outcomes.")
        function = self._function_of(one)
        if function is not None:
            do = "Compute its features in a query, and read them by a SqlSource; or store what Feast computed."
            raise self._out(one, f"The transformation of {one.kind} `{one.name}` is not carried over.", do, function)
        source = self._source_of(one)
        if source is None:
            raise self._out(one, f"{one.kind} `{one.name}` has no source of rows.",
                             "Declare it by hand, with a FileSource, TableSource or SqlSource.")  # fmt: skip
        entities = self._entities_of(one)
        keys = {key for entity in entities for key in entity.join_keys}
        aggregations = self._aggregations(one)
        fields = (
            () if aggregations else self._fields(one, [*one.listed("schema"), *one.listed("features")], keys, source)
        )
        if not fields and not aggregations and not one.listed("schema") and not one.listed("features"):
            fields = self._inferred(one, keys, source)
        if not fields and not aggregations:
            raise self._out(one, f"{one.kind} `{one.name}` has no feature that can be carried over.", "")
        ttl = self._ttl(one)
        if ttl is not None and aggregations:
            self._note(one, "A `ttl` says nothing about windows; it is left out.")
            ttl = None
        tags = one.arguments.get("tags")
        return TView(
            at=one, name=self._name("view", one), entities=entities, source=source, fields=fields,
            aggregations=aggregations, ttl_us=ttl, online=one.arguments.get("online") is not False,
            description=one.text("description"), owner=one.text("owner"),
            tags={str(key): str(value) for key, value in tags.items()} if isinstance(tags, dict) else {},
        )  # fmt: skip

    def _entities_of(self, view: Declared) -> tuple[TEntity, ...]:
        found: list[TEntity] = []
        for one in view.listed("entities"):
            entity = one
            if isinstance(one, str):
                entity = next((d for d in self._repository.declared if d.kind == "Entity" and d.name == one), None)
            if not isinstance(entity, Declared) or entity.kind != "Entity" or not entity.name:
                raise self._out(view, f"{view.kind} `{view.name}` names an entity that is not declared: {_shown(one)}.",
                                "Declare the Entity.")  # fmt: skip
            found.append(self._entity(entity))
        return tuple(found)

    def _fields(
        self, view: Declared, listed: Sequence[Any], keys: set[str], source: TSource | None = None
    ) -> tuple[TField, ...]:
        made: dict[str, TField] = {}
        times = {*RESERVED, *((source.timestamp, source.created) if source else ())} - {""}
        for one in listed:
            if not isinstance(one, Declared) or not one.name:
                self._note(view, f"A field of `{view.name}` cannot be read: {_shown(one)}.", "Add it by hand.")
                continue
            dtype = self._dtype(one.arguments.get("dtype"))
            if one.name in keys:
                continue
            where = f"`{one.name}` of `{view.name}`"
            if dtype is None:
                self._note(one, f"{where} has the type {_shown(one.arguments.get('dtype'))}, which no feature has.",
                           "Split it into columns of numbers, texts, booleans or times.")  # fmt: skip
            elif not COLUMN.fullmatch(one.name) or one.name.lower() in {name.lower() for name in made}:
                self._note(one, f"{where} is a name that no column has here, or has twice.", "Rename the column.")
            elif one.name.lower() in {name.lower() for name in (*times, *keys)}:
                self._note(one, f"{where} is a time or a key, and no feature.")
            else:
                if one.arguments.get("vector_index"):
                    self._note(one, f"The vector index of {where} is not carried over.")
                made[one.name] = TField(name=one.name, dtype=dtype, description=one.text("description"))
        return tuple(made.values())

    def _inferred(self, view: Declared, keys: set[str], source: TSource) -> tuple[TField, ...]:
        """As Feast does: every column of the file that is neither a key nor a time."""
        batch = (source.batch or source).at
        found = {
            name: dtype
            for name, dtype in self._file_columns(batch).items()
            if name not in keys and name not in (source.timestamp, source.created, *RESERVED)
        }
        if not found:
            self._note(view, f"`{view.name}` lists no features, and its columns cannot be looked up.",
                       "List them in `schema`.")  # fmt: skip
        for name, dtype in found.items():
            if not dtype or not COLUMN.fullmatch(name):
                self._note(view, f"`{name}` of `{view.name}` has a type that no feature has, or a name.")
        return tuple(
            TField(name=name, dtype=dtype) for name, dtype in found.items() if dtype and COLUMN.fullmatch(name)
        )

    def _aggregations(self, view: Declared) -> tuple[TAggregation, ...]:
        made: dict[str, TAggregation] = {}
        for one in view.listed("aggregations"):
            if not isinstance(one, Declared):
                continue
            function, window = FUNCTIONS.get(one.text("function").lower()), one.arguments.get("time_window")
            over = duration_text(window.us) if isinstance(window, Duration) and window.us > 0 else None
            column = one.text("column")
            if function is None or over is None or not isinstance(window, Duration) or not COLUMN.fullmatch(column):
                self._note(one, f"The aggregation `{one.text('function')}` of `{column}` is not carried over.",
                           f"Functions are {', '.join(AGGREGATIONS)}, over whole seconds.")  # fmt: skip
                continue
            if one.text("function") == "count_distinct":
                self._note(one, f"`count_distinct` of `{column}` becomes `approx_distinct`, which is an estimate.")
            seconds = window.us // 1_000_000
            name = one.name or f"{one.text('function')}_{column}_{seconds}s"
            made[name] = TAggregation(function=function, column=column, over=over, name=name)
        return tuple(made.values())

    def _ttl(self, view: Declared) -> int | None:
        ttl = view.arguments.get("ttl")
        if isinstance(ttl, Duration) and 0 < ttl.us <= DURATION_DAYS_MAX * _UNITS_US["d"]:
            return ttl.us
        if ttl is not None and (not isinstance(ttl, Duration) or ttl.us < 0):
            self._note(view, f"The ttl of `{view.name}` cannot be read: {_shown(ttl)}; its rows hold for ever.",
                       'Write it: `ttl="2d"`.')  # fmt: skip
        return None

    # On-demand views.

    def _function_of(self, view: Declared) -> FunctionAt | Unknown | None:
        udf = view.arguments.get("udf")
        transformation = view.arguments.get("feature_transformation")
        if udf is None and isinstance(transformation, Declared):
            udf = transformation.arguments.get("udf")
        if isinstance(udf, FunctionAt):
            return udf
        return Unknown("function") if udf is not None or transformation is not None else None

    def _on_demand(self, one: Declared) -> TFunction:
        udf = self._function_of(one)
        head = f"OnDemandFeatureView `{one.name}`"
        if not isinstance(udf, FunctionAt):
            raise self._out(one, f"{head} has no function that can be read.", "Declare it by hand.")
        transformation = one.arguments.get("feature_transformation")
        mode = one.arguments.get("mode")
        if isinstance(transformation, Declared):
            mode = mode or transformation.kind.removesuffix("Transformation").lower()
        if mode != "python":
            raise self._out(
                one, f"{head} computes on data frames ({mode or 'pandas'}), and is not carried over.",
                'Its source is a comment in the module: write it for one row, `{"feature": value}` out.', udf,
            )  # fmt: skip
        parts = self._sources_of(one)
        requested = self._fields(one, one.listed("input_schema"), set())
        if requested:
            request = TRequest(at=one, name=f"{one.name}_input", fields=requested)
            self._requests[id(one)] = request
            parts = (*parts, request)
        fields = self._fields(one, [*one.listed("schema"), *one.listed("features")], set())
        if not fields or not parts:
            raise self._out(one, f"{head} has no source or no feature that can be carried over.", "", udf)
        code = carry(self._repository.source(udf.file), udf.line, f"compute_{re.sub(r'[^A-Za-z0-9_]', '_', one.name)}")
        if not isinstance(code, Carried):
            raise self._out(one, f"The function of {head} is not carried over: {code.why}.",
                             "Its source is a comment in the module.", udf)  # fmt: skip
        texts = {code.name: code.text, **code.imports, **code.before}
        clash = [name for name, text in texts.items() if self._texts.setdefault(name, text) != text]
        if clash:
            raise self._out(one, f"The function of {head} needs a `{clash[0]}` of its own, and another has that name.",
                             "Its source is a comment in the module.", udf)  # fmt: skip
        if code.clock:
            self._note(one, f"The function of {head} seems to read a clock or dice: training and serving would differ.",
                       "Give the moment along, in a RequestSource.")  # fmt: skip
        return TFunction(
            at=one, name=self._name("view", one), parts=parts, fields=fields, code=code,
            columns=one.arguments.get("singleton") is not True, renamed=_renamed(parts, code.strings),
            description=one.text("description"), owner=one.text("owner"),
        )  # fmt: skip

    def _sources_of(self, one: Declared) -> tuple[TPart | TRequest, ...]:
        parts: list[TPart | TRequest] = []
        for source in [*one.listed("sources"), *one.listed("inputs")]:
            if isinstance(source, Declared) and source.kind in REQUESTS:
                parts.append(self._request(source))
                continue
            part = self._part(source, one)
            if part is None or isinstance(part.view, TFunction):
                raise self._out(one, f"`{one.name}` reads {_shown(source)}, which is not carried over.",
                                "Declare that first.", self._function_of(one))  # fmt: skip
            parts.append(part)
        return tuple(parts)

    def _request(self, one: Declared) -> TRequest:
        known = self._requests.get(id(one))
        if known is None:
            schema = one.arguments.get("schema")
            if isinstance(schema, dict):
                fields: tuple[TField, ...] = tuple(
                    TField(name=name, dtype=dtype)
                    for name, declared in schema.items()
                    if (dtype := self._dtype(declared)) is not None
                )
            else:
                fields = self._fields(one, one.listed("schema"), set())
            known = self._requests[id(one)] = TRequest(at=one, name=one.name, fields=fields)
        return known

    def _part(self, source: Any, reader: Declared) -> TPart | None:
        if isinstance(source, Projected):
            if source.keys:
                self._note(reader, f"The join key map of `{source.view.name}` is not carried over.",
                           "Declare a second Entity and FeatureView with those keys.")  # fmt: skip
                return None
            if source.alias:
                self._note(reader, f"The alias `{source.alias}` of `{source.view.name}` is not carried over.")
            view = self._view(source.view) if source.view.kind in VIEWS else None
            if view is None:
                return None
            names = tuple(name for name in source.names or () if name in view.features)
            return None if source.names is not None and not names else TPart(view, names)
        if isinstance(source, Declared) and source.kind in VIEWS:
            view = self._view(source)
            return None if view is None else TPart(view, ())
        return None

    # Services.

    def _service(self, one: Declared) -> TService | None:
        self._check_arguments(one)
        parts: list[TPart] = []
        for source in one.listed("features"):
            part = self._part(source, one)
            if part is None:
                self._note(one, f"FeatureService `{one.name}` has a part that is not carried over: {_shown(source)}.",
                           "Add it once it is declared.")  # fmt: skip
                continue
            missing = set(source.names or ()) - set(part.view.features) if isinstance(source, Projected) else set()
            if missing:
                self._note(one, f"FeatureService `{one.name}` has features that are not carried over: "
                           f"{', '.join(sorted(missing))}.")  # fmt: skip
            parts.append(part)
        if not parts:
            self._note(one, f"FeatureService `{one.name}` is left out: nothing of it could be carried over.")
            return None
        return TService(
            at=one, name=self._name("service", one), parts=tuple(parts), description=one.text("description"),
            owner=one.text("owner"),
        )  # fmt: skip

    # What they share.

    def _leave(self, one: Declared) -> None:
        """Notes what is declared and has no counterpart; sources that nothing reads say nothing."""
        if not one.kind.endswith(("Source", "Transformation")):
            self._note(one, f"{one.kind} `{one.name}` has no counterpart here.")

    def _note_settings(self) -> None:
        settings = self._repository.settings
        online = settings.get("online_store.type") or settings.get("online_store")
        if online:
            self._notes.append(
                Note(file="feature_store.yaml", what=f"Values in the online store ({online}) are not carried over.",
                     do="Run `drivetrain features materialize`.")
            )  # fmt: skip

    def _check_arguments(self, one: Declared) -> None:
        for name, value in one.arguments.items():
            carried = _CARRIED.get(one.kind, set())
            if name in carried or name in _SAYS_NOTHING or value in (None, False, "", [], {}) or not carried:
                continue
            self._note(one, f"`{name}` of {one.kind} `{one.name}` is not carried over.")
        if (
            one.kind != "FeatureView"
            and one.listed("tags")
            and one.kind in ("Entity", "FeatureService", "OnDemandFeatureView")
        ):
            self._note(one, f"The tags of {one.kind} `{one.name}` are not carried over.")

    def _dtype(self, declared: Any) -> str | None:
        if isinstance(declared, TypeName):
            return TYPES.get(declared.name.lower())
        return None

    def _name(self, kind: str, one: Declared) -> str:
        """A name as they are here, once."""
        shaped = self._shape(one.name)
        made = self._unique(kind, shaped)
        if made != one.name:
            self._note(one, f"{one.kind} `{one.name}` is called `{made}` here.",
                       "Names are lower-case here, and there once.")  # fmt: skip
        return made

    def _shape(self, name: str) -> str:
        if NAME.fullmatch(name):
            return name
        shaped = re.sub(r"[^a-z0-9_-]+", "_", name.lower()).strip("_-")[:60]
        return shaped if NAME.fullmatch(shaped) else f"f_{shaped}"[:64]

    def _unique(self, kind: str, name: str) -> str:
        taken = self._names.setdefault(kind, set())
        made, number = name, 1
        while made in taken:
            number += 1
            made = f"{name[:58]}_{number}"
        taken.add(made)
        return made

    def _out(self, one: Declared, what: str, do: str, function: FunctionAt | Unknown | None = None) -> _LeftOut:
        """Notes why a view is left out, and its function's source for a comment; to be raised."""
        self._note(one, what, do)
        text = ""
        if isinstance(function, FunctionAt):
            text = function_source(self._repository.source(function.file), function.line)
        self._left_out.append((one, text))
        return _LeftOut()

    def _note(self, one: Declared, what: str, do: str = "") -> None:
        self._notes.append(Note(file=one.file, line=one.line, what=what, do=do))


def duration_text(us: int) -> str | None:
    """`2d`, in the largest unit that is whole; None where it is no whole number of seconds."""
    for unit, size in _UNITS_US.items():
        if unit != "w" and us % size == 0:
            return f"{us // size}{unit}"
    return None


def _renamed(parts: Sequence[TPart | TRequest], strings: frozenset[str]) -> dict[str, str]:
    """Columns that the function reads by `VIEW__FEATURE`, which here have short names where these are unique."""
    read = [(part.view, name) for part in parts if isinstance(part, TPart) for name in part.names or part.view.features]
    every = [name for _, name in read] + [
        one.name for part in parts if isinstance(part, TRequest) for one in part.fields
    ]
    return {
        full: name for view, name in read if (full := f"{view.at.name}__{name}") in strings and every.count(name) == 1
    }


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


def _shown(value: Any) -> str:
    if isinstance(value, Projected):
        value = value.view
    if isinstance(value, Declared):
        return f"{value.kind} `{value.name}`"
    if isinstance(value, TypeName):
        return value.name
    if isinstance(value, Unknown):
        return value.text
    return repr(value)[:80]
