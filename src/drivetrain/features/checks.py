"""What `drivetrain check` asks this room: every mistake in what a project declares of features, each with its line.

Nothing is read or run: a file that is not there yet is no mistake, and neither is a function's body.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.declarations import FEATURES_MISSING, Conversation, Place, Record, Workflow
from drivetrain.core.errors import DrivetrainError, Problem, did_you_mean
from drivetrain.core.features import (
    AGGREGATIONS,
    Aggregation,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    Projection,
    PushSource,
    RequestSource,
    SqlSource,
    TableSource,
)
from drivetrain.core.times import span_us
from drivetrain.features.definitions import ServiceDefinition, aggregated_dtype, column_dtype, define
from drivetrain.features.dtypes import coerce, dtype_name
from drivetrain.features.online import output_names
from drivetrain.features.usage_checks import unknown_names
from drivetrain.project.names import NAME, NAME_HELP
from drivetrain.project.snapshot import Features, Snapshot

COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
COLUMN_HELP = "A column starts with a letter or `_` and has at most 128 letters, digits and `_`."
RESERVED = ("event_timestamp",)
"""Columns that stand beside the features, in training sets and in what is materialized."""
NUMBERS = ("int64", "float64")

_KEY_TYPES = ("int64", "string", "bool", "timestamp")
_NOT_ARGUMENTS = ("self", "place", "unknown", "options")
_INPUT_TYPES: Mapping[type, Collection[str]] = {
    msgspec.inspect.IntType: ("int64", "float64"),
    msgspec.inspect.FloatType: ("float64",),
    msgspec.inspect.StrType: ("string", "timestamp"),
    msgspec.inspect.BoolType: ("bool",),
    msgspec.inspect.DateTimeType: ("timestamp",),
}
"""Field of a workflow's input -> dtypes that it can be."""


def check(snapshot: Snapshot) -> Iterator[Problem]:
    """Every mistake in the features, and in the workflows that use them."""
    notes = _Notes(str(snapshot.root))
    features = snapshot.features
    for entity in features.entities.values():
        _check_entity(notes, entity)
    sources: dict[int, Any] = {id(one): one for one in features.sources.values()}
    for view in features.views.values():
        _check_view(notes, view)
        sources.setdefault(id(view.source), view.source)
    for source in sources.values():
        _check_source(notes, source)
    for on_demand in features.on_demand.values():
        _check_on_demand(notes, on_demand, features)
    for service in features.services.values():
        _check_service(notes, service, features)
    _check_keys(notes, features)
    services = _defined(notes, features)
    for workflow in snapshot.workflows.values():
        named = _check_workflow(notes, workflow, features.services, services)
        if named is not None:
            given = [name for name, _ in output_names(named)]
            notes.found += unknown_names(snapshot, workflow, given)
    yield from notes.found


class _Notes:
    """Keeps mistakes, each at the place of its declaration."""

    def __init__(self, root: str) -> None:
        self._root = f"{root}/"
        self.found: list[Problem] = []

    def note(self, declaration: Any, what: str, *, value: Any = None, do: str = "") -> None:
        place: Place = getattr(declaration, "place", Place())
        label = f"{type(declaration).__name__} `{getattr(declaration, 'name', '')}`"
        shown = "" if value is None else f'"{value}"' if isinstance(value, str) else repr(value)
        problem = Problem(
            what=f"{label} {what}", file=place.file.removeprefix(self._root), line=place.line, value=shown[:120], do=do
        )
        if problem not in self.found:
            self.found.append(problem)

    def declared(self, declaration: Any) -> None:
        """Its name, and arguments that it does not have."""
        name = declaration.name
        if not isinstance(declaration, FileSource | TableSource) and not _is_name(name):
            self.note(declaration, "has a wrong name.", value=name, do=NAME_HELP)
        for argument in getattr(declaration, "unknown", ()):
            self.note(declaration, f"has no argument `{argument}`.", do=did_you_mean(argument, _arguments(declaration)))

    def dtype(self, declaration: Any, of: str, declared: Any) -> str | None:
        try:
            return dtype_name(declared)
        except ValueError as error:
            self.note(declaration, f"has a wrong type for `{of}`.", value=declared, do=str(error))
            return None

    def duration(self, declaration: Any, argument: str, declared: Any) -> None:
        try:
            span_us(declared)
        except ValueError as error:
            self.note(declaration, f"has a wrong `{argument}`.", value=declared, do=str(error))

    def default(self, declaration: Any, of: str, dtype: str | None, value: Any) -> None:
        if dtype is not None:
            try:
                coerce(dtype, value)
            except ValueError:
                self.note(declaration, f"has a default for `{of}` that is no {dtype}.", value=value)

    def fields(self, declaration: Any, fields: Sequence[Any], taken: Collection[str] = ()) -> None:
        """Names, types and defaults of Fields; `taken` are names that a Field may not have."""
        seen: set[str] = set()
        for field in fields:
            if not isinstance(field, Field):
                self.note(declaration, "has a schema with something that is no Field.", value=field)
                continue
            self.column(declaration, field.name, seen, taken)
            self.default(declaration, field.name, self.dtype(declaration, field.name, field.dtype), field.default)

    def column(self, declaration: Any, name: Any, seen: set[str], taken: Collection[str]) -> None:
        """The name of a feature or column: right, and not there twice. Case does not tell two apart."""
        if not isinstance(name, str) or not COLUMN.fullmatch(name):
            self.note(declaration, "has a wrong name for a column.", value=name, do=COLUMN_HELP)
            return
        if name.lower() in seen:
            self.note(declaration, f"has `{name}` twice.", do="Remove one, or give it another name.")
        if name.lower() in {one.lower() for one in taken if isinstance(one, str)}:
            self.note(declaration, f"calls a feature `{name}`, as a key or a time is called.", do="Rename it.")
        seen.add(name.lower())


def _check_entity(notes: _Notes, entity: Entity) -> None:
    notes.declared(entity)
    seen: set[str] = set()
    for key in entity.join_keys:
        notes.column(entity, key, seen, RESERVED)
    dtype = notes.dtype(entity, "value_type", entity.value_type)
    if dtype == "float64":
        notes.note(entity, "has keys that are fractions.", value=dtype, do=f"Take one of {', '.join(_KEY_TYPES)}.")


def _check_source(notes: _Notes, source: Any) -> None:
    if not isinstance(source, FileSource | TableSource | SqlSource | PushSource):
        return
    notes.declared(source)
    for argument in ("timestamp_field", "created_timestamp_column"):
        name = getattr(source, argument)
        if name is None and argument == "created_timestamp_column":
            continue
        if not isinstance(name, str) or not name:
            notes.note(
                source,
                f"has a wrong `{argument}`.",
                value=name,
                do="Name the column that says when a row's fact held."
                if argument == "timestamp_field"
                else "Name the column that says when a row was known.",
            )
    if source.fresh_within is not None:
        notes.duration(source, "fresh_within", source.fresh_within)
    if isinstance(source, FileSource):
        path = source.path
        if not isinstance(path, str) or not path or "://" in path or ".." in path.split("/"):
            notes.note(source, "has a path that is none in the project.", value=path, do="Write a path in the project.")
    elif isinstance(source, SqlSource):
        if not isinstance(source.query, str) or not source.query.strip():
            notes.note(source, "has no query.", value=source.query, do="Write one SELECT over named tables.")
    elif isinstance(source, PushSource):
        notes.fields(source, source.schema)
        if source.batch_source is not None:
            if isinstance(source.batch_source, FileSource | TableSource | SqlSource):
                _check_source(notes, source.batch_source)
            else:
                notes.note(source, "has a `batch_source` that is no file, table or query.", value=source.batch_source)


def _check_view(notes: _Notes, view: FeatureView) -> None:
    notes.declared(view)
    source = view.source
    times: list[Any] = list(RESERVED)
    if isinstance(source, FileSource | TableSource | SqlSource | PushSource):
        times += [source.timestamp_field, source.created_timestamp_column]
    else:
        notes.note(view, "has a source that is none.", value=source, do="Write a FileSource, TableSource or SqlSource.")
    for entity in view.entities:
        if isinstance(entity, Entity):
            _check_entity(notes, entity)
        else:
            notes.note(view, "has an entity that is no Entity.", value=entity)
    taken = [*times, *(key for one in view.entities if isinstance(one, Entity) for key in one.join_keys)]
    notes.fields(view, view.schema, taken)
    if view.ttl:
        notes.duration(view, "ttl", view.ttl)
    if not view.schema and not view.aggregations:
        notes.note(view, "has no features.", do="List them in `schema`, or windows in `aggregations`.")
    if view.schema and view.aggregations:
        notes.note(view, "has both `schema` and `aggregations`.", do="Make two views of the one source.")
    if view.ttl and view.aggregations:
        notes.note(view, "has `aggregations` and a `ttl`.", do="Remove the `ttl`: each window has its own length.")
    seen: set[str] = set()
    for aggregation in view.aggregations:
        if isinstance(aggregation, Aggregation):
            _check_aggregation(notes, view, aggregation, seen, taken)
        else:
            notes.note(view, "has an aggregation that is no Aggregation.", value=aggregation)


def _check_aggregation(
    notes: _Notes, view: FeatureView, aggregation: Aggregation, seen: set[str], taken: Collection[str]
) -> None:
    function, column = aggregation.function, aggregation.column
    if function not in AGGREGATIONS:
        notes.note(view, f"has the unknown aggregation `{function}`.", do=did_you_mean(str(function), AGGREGATIONS))
        return
    notes.duration(view, "over", aggregation.over)
    if column == "*" and function != "count":
        notes.note(view, f"has a `{function}` over no column.", do='Write `column="amount"`; only `count` takes `*`.')
        return
    notes.column(view, aggregation.feature, seen, taken)
    try:
        dtype = aggregated_dtype(aggregation, view.source)
        read = column_dtype(aggregation, view.source)
    except ValueError:
        return  # the source's own mistake
    if function in ("sum", "mean") and read not in NUMBERS:
        notes.note(view, f"has a `{function}` of `{column}`, which is {read}.", do="Take a column of numbers.")
    notes.default(view, aggregation.feature, dtype, aggregation.default)


def _check_on_demand(notes: _Notes, view: OnDemandFeatureView, features: Features) -> None:
    notes.declared(view)
    notes.fields(view, view.schema, RESERVED)
    if not view.schema:
        notes.note(view, "has no features.", do="List what the function returns in `schema`.")
    if not view.sources:
        notes.note(view, "reads nothing.", do="List FeatureViews or a RequestSource in `sources`.")
    for source in view.sources:
        if isinstance(source, RequestSource):
            notes.fields(source, source.schema)
        elif isinstance(source, FeatureView | Projection):
            _check_part(notes, view, source, features, functions=False)
        else:
            notes.note(view, "has a source that is no FeatureView and no RequestSource.", value=source)
    why = _wrong_function(view.function)
    if why:
        notes.note(
            view, f"has a function that {why}.", do="Write `def f(row): return {...}`: one row in, features out."
        )


def _wrong_function(function: Any) -> str:
    """Why something is no function of one row; empty where it is one."""
    if not callable(function):
        return "cannot be called"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        return "is async or a generator"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind({})
    except TypeError:
        return f"takes {len(signature.parameters)} arguments instead of one"
    return ""


def _check_service(notes: _Notes, service: FeatureService, features: Features) -> None:
    notes.declared(service)
    if not service.features:
        notes.note(service, "has no features.", do='List views, or some of their features: `stats[["orders_7d"]]`.')
    seen: set[tuple[str, str]] = set()
    for part in service.features:
        if not isinstance(part, FeatureView | OnDemandFeatureView | Projection):
            notes.note(
                service, "has something that is no view.", value=part, do='Write `stats` or `stats[["a", "b"]]`.'
            )
            continue
        for pair in _check_part(notes, service, part, features, functions=True):
            if pair in seen:
                notes.note(service, f"has `{':'.join(pair)}` twice.", do="Remove one of them.")
            seen.add(pair)


def _check_part(
    notes: _Notes,
    reader: Any,
    part: FeatureView | OnDemandFeatureView | Projection,
    features: Features,
    *,
    functions: bool,
) -> list[tuple[str, str]]:
    """The (view, feature)s that are meant, as far as they are there."""
    view = part.view if isinstance(part, Projection) else part
    if isinstance(view, OnDemandFeatureView) and not functions:
        notes.note(reader, f"reads the OnDemandFeatureView `{view.name}`.", do="Read FeatureViews only.")
        return []
    known: Mapping[str, Any] = features.on_demand if isinstance(view, OnDemandFeatureView) else features.views
    if view.name not in known:
        notes.note(reader, f"names `{view.name}`, which is not declared.", do=did_you_mean(str(view.name), known))
        return []
    names = _feature_names(view)
    if isinstance(part, Projection):
        for name in part.names:
            if name not in names:
                notes.note(
                    reader,
                    f"names the feature `{view.name}:{name}`, which is not there.",
                    do=did_you_mean(str(name), names),
                )
        names = [name for name in part.names if name in names]
    return [(view.name, name) for name in names]


def _feature_names(view: FeatureView | OnDemandFeatureView) -> list[str]:
    named = [one.name for one in view.schema if isinstance(one, Field)]
    if isinstance(view, FeatureView):
        named += [one.feature for one in view.aggregations if isinstance(one, Aggregation)]
    return named


def _check_keys(notes: _Notes, features: Features) -> None:
    """Notes join keys that are of one type here and of another there: one label column cannot be both."""
    types: dict[str, tuple[str, str]] = {}
    entities = [*features.entities.values(), *(one for view in features.views.values() for one in view.entities)]
    for entity in entities:
        if not isinstance(entity, Entity):
            continue
        try:
            dtype = dtype_name(entity.value_type)
        except ValueError:
            continue
        for key in entity.join_keys:
            first, other = types.setdefault(key, (dtype, entity.name))
            if first != dtype:
                notes.note(
                    entity,
                    f"has the key `{key}` as {dtype}; Entity `{other}` has it as {first}.",
                    do="Give both the same `value_type`.",
                )


def _defined(notes: _Notes, features: Features) -> Mapping[str, ServiceDefinition]:
    """The services, resolved; none where anything is wrong, which is noted if nothing else was."""
    try:
        return define(features).services
    except DrivetrainError as error:
        if not notes.found:
            notes.found.append(Problem(what=error.what, do=error.do))
    except Exception:  # what was noted makes anything possible
        if not notes.found:
            raise
    return {}


def _check_workflow(
    notes: _Notes,
    workflow: Workflow[Any, Any],
    declared: Mapping[str, FeatureService],
    services: Mapping[str, ServiceDefinition],
) -> ServiceDefinition | None:
    """The service whose features the workflow sees; None where it names none, or none that is right."""
    if workflow.features_missing not in FEATURES_MISSING:
        notes.note(
            workflow,
            "has a wrong `features_missing`.",
            value=workflow.features_missing,
            do=did_you_mean(str(workflow.features_missing), FEATURES_MISSING),
        )
    named = workflow.features
    if named is None:
        if workflow.entity_keys:
            notes.note(workflow, "has `entity_keys` but no `features`.", do="Name a FeatureService, or remove them.")
        return None
    name = named.name if isinstance(named, FeatureService) else named
    if not isinstance(name, str) or name not in declared:
        notes.note(
            workflow, f"names the FeatureService `{name}`, which is not declared.", do=did_you_mean(str(name), declared)
        )
        return None
    if name not in services:
        return None
    _check_inputs(notes, workflow, services[name])
    return services[name]


def _check_inputs(notes: _Notes, workflow: Workflow[Any, Any], service: ServiceDefinition) -> None:
    """Every key and request column of the service has to be a field of the input, of a type that fits."""
    wanted = {one.name: one.dtype for one in service.keys} | {one.name: one.dtype for one in service.request}
    optional = {one.name for one in service.request if one.default is not None}
    keys = workflow.entity_keys
    if not isinstance(keys, Mapping):
        notes.note(
            workflow, "has `entity_keys` that are no dict.", value=keys, do='Write `{"customer_id": "customer"}`.'
        )
        return
    for key in keys:
        if key not in wanted:
            notes.note(
                workflow,
                f"has `{key}` in `entity_keys`, which FeatureService `{service.name}` does not need.",
                do=did_you_mean(str(key), wanted),
            )
    types = _input_types(workflow.input if workflow.input is not None else Conversation)
    for column, dtype in wanted.items():
        field = keys.get(column, column)
        if types is None or (column in optional and column not in keys and field not in types):
            continue
        if field not in types:
            notes.note(
                workflow,
                f"has no input field `{field}`, which FeatureService `{service.name}` needs.",
                do=f'Add the field, or map it: `entity_keys={{"{column}": "..."}}`.',
            )
        elif types[field] and dtype not in types[field]:
            notes.note(
                workflow,
                f"has an input field `{field}` that is no {dtype}, as `{column}` of FeatureService"
                f" `{service.name}` is.",
                do="Give both one type.",
            )


def _input_types(declared: Any) -> Mapping[str, Collection[str]] | None:
    """Field -> the dtypes that it can be; none where it may be anything. None: no Record, as is noted elsewhere."""
    if not isinstance(declared, type) or not issubclass(declared, Record):
        return None
    try:
        shape = msgspec.inspect.type_info(declared)
    except Exception:  # noqa: BLE001  whatever the user's annotations raise is noted where types are checked
        return None
    assert isinstance(shape, msgspec.inspect.StructType)
    return {field.name: _dtypes(field.type) for field in shape.fields}


def _dtypes(declared: msgspec.inspect.Type) -> Collection[str]:
    if isinstance(declared, msgspec.inspect.Metadata):
        return _dtypes(declared.type)
    if isinstance(declared, msgspec.inspect.UnionType):
        return [name for one in declared.types for name in _dtypes(one)]
    return _INPUT_TYPES.get(type(declared), ())


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def _arguments(declaration: Any) -> list[str]:
    """The arguments of a declaration, and of what it extends."""
    named = dict.fromkeys(
        name for one in type(declaration).__mro__[:-1] for name in inspect.signature(vars(one)["__init__"]).parameters
    )
    return [name for name in named if name not in _NOT_ARGUMENTS]
