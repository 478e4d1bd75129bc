"""What a Feast repository declares -> the same in our declarations, and a note of everything that is not the same.

Owns which declarations become which, and which are left out. How the module reads is for `feast_module.py`. Called by
`feast_import.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from drivetrain.features.feast_fields import aggregations_of, dtype_of, fields_of, inferred, ttl_us_of
from drivetrain.features.feast_functions import Carried, carry, function_source
from drivetrain.features.feast_notes import Notes, shown
from drivetrain.features.feast_reading import (
    Declared,
    FeastRepository,
    FunctionAt,
    Note,
    Projected,
    TypeName,
    Unknown,
)
from drivetrain.features.feast_records import (
    TEntity,
    TField,
    TFunction,
    TPart,
    Translation,
    TRequest,
    TService,
    TView,
)
from drivetrain.features.feast_sources import Sources

REQUESTS = ("RequestSource", "RequestDataSource")
PLAIN_VIEWS = ("FeatureView", "BatchFeatureView", "StreamFeatureView")
VIEWS = (*PLAIN_VIEWS, "OnDemandFeatureView", "LabelView")
SILENT = (*REQUESTS, "Field", "Feature", "Aggregation", "Project", "LoggingConfig")
"""Kinds that are carried with what holds them, or that say nothing here."""


def translate(repository: FeastRepository, project: Path) -> Translation:
    """The repository's declarations as ours. project: the folder that paths of files become relative to."""
    return _Translator(repository, project.resolve()).run()


class _LeftOut(Exception):
    """A view cannot be carried over; why is noted."""


class _Translator:
    def __init__(self, repository: FeastRepository, project: Path) -> None:
        self._repository = repository
        self._notes = Notes()
        self._note = self._notes.note
        self._sources = Sources(repository, project, self._notes)
        self._entities: dict[int, TEntity] = {}
        self._views: dict[int, TView | TFunction | None] = {}
        self._requests: dict[int, TRequest] = {}
        self._left_out: list[tuple[Declared, str]] = []
        self._key_types: dict[str, str] = {}
        self._texts: dict[str, str] = {}

    def run(self) -> Translation:
        wanted = []
        for one in self._wanted():
            if one.name or one.kind not in ("Entity", "FeatureService", *VIEWS):
                wanted.append(one)
            else:
                self._note(one, f"The name of this {one.kind} cannot be read: {shown(one.arguments.get('name'))}.",
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
        notes = (*self._repository.notes, *self._notes.all)
        return Translation(
            entities=tuple(self._entities.values()), sources=self._sources.made,
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
                    dtype = dtype_of(field.arguments.get("dtype"))
                    if dtype is not None:
                        self._key_types.setdefault(field.name, dtype)

    def _entity(self, one: Declared) -> TEntity:
        known = self._entities.get(id(one))
        if known is not None:
            return known
        self._notes.check_arguments(one)
        keys = [
            key for key in (one.arguments.get("join_keys") or [one.text("join_key")]) if isinstance(key, str) and key
        ]
        keys = keys or [one.name]
        made = TEntity(
            at=one, name=self._notes.name("entity", one), join_keys=tuple(keys), dtype=self._key_type(one, keys),
            description=one.text("description"), owner=one.text("owner"),
        )  # fmt: skip
        self._entities[id(one)] = made
        return made

    def _key_type(self, one: Declared, keys: Sequence[str]) -> str:
        declared = one.arguments.get("value_type")
        dtype = None
        if isinstance(declared, TypeName) and declared.name != "UNKNOWN":
            dtype = dtype_of(declared)
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
                batch, _ = self._sources.batch_of(view)
                dtype = None if batch is None else self._sources.columns_of(batch).get(key)
                if dtype is not None:
                    return dtype
        return None

    # Views.

    def _view(self, one: Declared) -> TView | TFunction | None:
        if id(one) not in self._views and one.name:
            self._views[id(one)] = None  # a view that reads itself is left out
            self._notes.check_arguments(one)
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
        source = self._sources.source_of(one)
        if source is None:
            raise self._out(one, f"{one.kind} `{one.name}` has no source of rows.",
                             "Declare it by hand, with a FileSource, TableSource or SqlSource.")  # fmt: skip
        entities = self._entities_of(one)
        keys = {key for entity in entities for key in entity.join_keys}
        aggregations = aggregations_of(self._notes, one)
        fields = (
            ()
            if aggregations
            else fields_of(self._notes, one, [*one.listed("schema"), *one.listed("features")], keys, source)
        )
        if not fields and not aggregations and not one.listed("schema") and not one.listed("features"):
            fields = inferred(self._notes, one, keys, source, self._sources.columns_of((source.batch or source).at))
        if not fields and not aggregations:
            raise self._out(one, f"{one.kind} `{one.name}` has no feature that can be carried over.", "")
        ttl = ttl_us_of(self._notes, one)
        if ttl is not None and aggregations:
            self._note(one, "A `ttl` says nothing about windows; it is left out.")
            ttl = None
        tags = one.arguments.get("tags")
        return TView(
            at=one, name=self._notes.name("view", one), entities=entities, source=source, fields=fields,
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
                raise self._out(view, f"{view.kind} `{view.name}` names an entity that is not declared: {shown(one)}.",
                                "Declare the Entity.")  # fmt: skip
            found.append(self._entity(entity))
        return tuple(found)

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
        requested = fields_of(self._notes, one, one.listed("input_schema"), set())
        if requested:
            request = TRequest(at=one, name=f"{one.name}_input", fields=requested)
            self._requests[id(one)] = request
            parts = (*parts, request)
        fields = fields_of(self._notes, one, [*one.listed("schema"), *one.listed("features")], set())
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
            at=one, name=self._notes.name("view", one), parts=parts, fields=fields, code=code,
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
                raise self._out(one, f"`{one.name}` reads {shown(source)}, which is not carried over.",
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
                    if (dtype := dtype_of(declared)) is not None
                )
            else:
                fields = fields_of(self._notes, one, one.listed("schema"), set())
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
        self._notes.check_arguments(one)
        parts: list[TPart] = []
        for source in one.listed("features"):
            part = self._part(source, one)
            if part is None:
                self._note(one, f"FeatureService `{one.name}` has a part that is not carried over: {shown(source)}.",
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
            at=one, name=self._notes.name("service", one), parts=tuple(parts), description=one.text("description"),
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
            self._notes.all.append(
                Note(file="feature_store.yaml", what=f"Values in the online store ({online}) are not carried over.",
                     do="Run `drivetrain features materialize`.")
            )  # fmt: skip

    def _out(self, one: Declared, what: str, do: str, function: FunctionAt | Unknown | None = None) -> _LeftOut:
        """Notes why a view is left out, and its function's source for a comment; to be raised."""
        self._note(one, what, do)
        text = ""
        if isinstance(function, FunctionAt):
            text = function_source(self._repository.source(function.file), function.line)
        self._left_out.append((one, text))
        return _LeftOut()


def _renamed(parts: Sequence[TPart | TRequest], strings: frozenset[str]) -> dict[str, str]:
    """Columns that the function reads by `VIEW__FEATURE`, which here have short names where these are unique."""
    read = [(part.view, name) for part in parts if isinstance(part, TPart) for name in part.names or part.view.features]
    every = [name for _, name in read] + [
        one.name for part in parts if isinstance(part, TRequest) for one in part.fields
    ]
    return {
        full: name for view, name in read if (full := f"{view.at.name}__{name}") in strings and every.count(name) == 1
    }
