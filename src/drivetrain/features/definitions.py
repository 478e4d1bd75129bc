"""Declarations -> definitions: typed, resolved, and each under a fingerprint of everything that decides its values.

Everything else in this room works on definitions. `checks` reports what is wrong with a declaration, every mistake at
once with its line; here the first one is an error. Nothing is read: a definition needs no data and no database.
"""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.features import (
    Aggregation,
    AnySource,
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
from drivetrain.features.dtypes import coerce, dtype_name
from drivetrain.project.snapshot import Features

FINGERPRINT_HEX = 16
"""Digits kept of a SHA-256: 64 bits tell every definition that one project ever had from every other."""
COUNTING = ("count", "approx_distinct")
"""Aggregations that are whole numbers whatever they count, and 0 over nothing."""


class FeatureDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """One feature or request column."""

    name: str
    dtype: str
    """One of `DTYPES`."""
    default: Any = None
    """Stands where an entity or a value is missing or expired; None: null. 0 for windows that count."""
    personal: bool = False


class KeyDefinition(msgspec.Struct, frozen=True):
    """One join key."""

    name: str
    dtype: str


class WindowDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """How a feature sums up events in (t - over, t]."""

    feature: str
    function: str
    """One of `AGGREGATIONS`."""
    column: str
    """`*` counts events."""
    column_dtype: str
    """The type that its values are read as; empty: as they are, for what only counts them."""
    over_us: int


class ViewDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A FeatureView, resolved."""

    name: str
    entities: tuple[str, ...]
    keys: tuple[KeyDefinition, ...]
    """In the order of the entities and their join keys; none for a view whose every row holds for all."""
    features: tuple[FeatureDefinition, ...]
    windows: tuple[WindowDefinition, ...] = ()
    """One per feature where the view sums up events; else none."""
    source: AnySource
    ttl_us: int | None = None
    """None: a row counts for ever."""
    online: bool = True
    fingerprint: str

    @property
    def join_keys(self) -> tuple[str, ...]:
        return tuple(key.name for key in self.keys)

    def feature(self, name: str) -> FeatureDefinition:
        """Raises: DrivetrainError."""
        for one in self.features:
            if one.name == name:
                return one
        raise _no_feature(self.name, name, [one.name for one in self.features])


class InputDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """One feature that an on-demand function reads."""

    argument: str
    """Its key in the row: the feature's name, or `VIEW__FEATURE` where two inputs share a name."""
    view: str
    feature: str

    @property
    def full_name(self) -> str:
        """`VIEW__FEATURE`."""
        return f"{self.view}__{self.feature}"


class OnDemandDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """An OnDemandFeatureView, resolved."""

    name: str
    inputs: tuple[InputDefinition, ...]
    request: tuple[FeatureDefinition, ...]
    """Columns that the request brings, under their own names."""
    features: tuple[FeatureDefinition, ...]
    function: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    fingerprint: str


class ServiceFeature(msgspec.Struct, frozen=True, kw_only=True):
    """One feature of a service, in its place."""

    full_name: str
    """`VIEW__FEATURE`."""
    view: str
    feature: str
    dtype: str
    default: Any
    personal: bool
    on_demand: bool

    @property
    def reference(self) -> str:
        """`VIEW:FEATURE`."""
        return f"{self.view}:{self.feature}"


class ViewRead(msgspec.Struct, frozen=True):
    """The features that a service takes from one view, for itself and for its on-demand functions."""

    view: ViewDefinition
    features: tuple[FeatureDefinition, ...]


class EntityGroup(msgspec.Struct, frozen=True):
    """Views that share their join keys: one lookup finds them all."""

    keys: tuple[KeyDefinition, ...]
    reads: tuple[ViewRead, ...]


class ServiceDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A FeatureService, or features named one by one, resolved."""

    name: str
    """Empty where the features were named one by one."""
    features: tuple[ServiceFeature, ...]
    groups: tuple[EntityGroup, ...]
    on_demand: tuple[OnDemandDefinition, ...]
    request: tuple[FeatureDefinition, ...]
    """Columns that whoever asks brings along, for all on-demand functions."""
    fingerprint: str

    @property
    def reads(self) -> tuple[ViewRead, ...]:
        return tuple(read for group in self.groups for read in group.reads)

    @property
    def keys(self) -> tuple[KeyDefinition, ...]:
        """Every join key once, in the order of the groups."""
        return tuple(dict.fromkeys(key for group in self.groups for key in group.keys))


class Definitions(msgspec.Struct, frozen=True, kw_only=True):
    """What a project declares, resolved."""

    views: Mapping[str, ViewDefinition]
    on_demand: Mapping[str, OnDemandDefinition]
    services: Mapping[str, ServiceDefinition]

    def view(self, name: str) -> ViewDefinition:
        """Raises: DrivetrainError."""
        if name in self.views:
            return self.views[name]
        raise DrivetrainError(f"No FeatureView is called `{name}`.", do=did_you_mean(name, self.views))

    def service(self, name: str) -> ServiceDefinition:
        """Raises: DrivetrainError."""
        if name in self.services:
            return self.services[name]
        raise DrivetrainError(f"No FeatureService is called `{name}`.", do=did_you_mean(name, self.services))

    def select(self, features: str | FeatureService | Sequence[str]) -> ServiceDefinition:
        """A service by itself or its name, or `["VIEW:FEATURE", ...]`, as Feast takes them. Raises: DrivetrainError."""
        if isinstance(features, FeatureService):
            return self.service(features.name)
        if isinstance(features, str):
            return self.service(features)
        chosen = [self._chosen(reference) for reference in features]
        return _service("", chosen, self.views, self.on_demand)

    def _chosen(self, reference: str) -> tuple[str, tuple[str, ...]]:
        view, colon, feature = reference.partition(":")
        if not colon or not feature:
            raise DrivetrainError(f"`{reference}` names no feature.", do="Write `VIEW:FEATURE`, or a service's name.")
        if view not in self.views and view not in self.on_demand:
            known = [*self.views, *self.on_demand]
            raise DrivetrainError(f"No FeatureView is called `{view}`.", do=did_you_mean(view, known))
        return view, (feature,)


def define(features: Features) -> Definitions:
    """Everything that a project declares of features. Raises: DrivetrainError at the first mistake."""
    views = {name: define_view(view) for name, view in features.views.items()}
    on_demand = {name: define_on_demand(view) for name, view in features.on_demand.items()}
    services = {
        name: _service(name, [_parts(one) for one in service.features], views, on_demand)
        for name, service in features.services.items()
    }
    return Definitions(views=views, on_demand=on_demand, services=services)


def define_view(view: FeatureView) -> ViewDefinition:
    """One view. Raises: DrivetrainError at the first mistake."""
    where = f"FeatureView `{view.name}`"
    keys = tuple(dict.fromkeys(key for entity in view.entities for key in _entity_keys(entity)))
    features = (
        tuple(_aggregated(one, view.source, where) for one in view.aggregations)
        if view.aggregations
        else tuple(_field(one, where) for one in view.schema)
    )
    windows = tuple(_window(one, view.source, where) for one in view.aggregations)
    _refuse_twice([one.name for one in features], where)
    ttl_us = _duration(view.ttl, where) if view.ttl else None
    made = ViewDefinition(
        name=view.name, entities=tuple(one.name for one in view.entities), keys=keys, features=features,
        windows=windows, source=view.source, ttl_us=ttl_us, online=view.online, fingerprint="",
    )  # fmt: skip
    return msgspec.structs.replace(made, fingerprint=_fingerprint(_view_facts(made, made.features)))


def define_on_demand(view: OnDemandFeatureView) -> OnDemandDefinition:
    """One on-demand view. Raises: DrivetrainError at the first mistake."""
    where = f"OnDemandFeatureView `{view.name}`"
    read: list[tuple[str, str]] = []
    request: list[FeatureDefinition] = []
    for source in view.sources:
        if isinstance(source, RequestSource):
            request += [_field(one, where) for one in source.schema]
        else:
            owner, names = _parts(source)
            if isinstance(_view_of(source), OnDemandFeatureView):
                raise DrivetrainError(f"{where} reads the OnDemandFeatureView `{owner}`.", do="Read FeatureViews only.")
            read += [(owner, name) for name in names or _feature_names(_view_of(source))]
    read = list(dict.fromkeys(read))
    short = [feature for _, feature in read] + [one.name for one in request]
    inputs = tuple(
        InputDefinition(argument=name if short.count(name) == 1 else f"{owner}__{name}", view=owner, feature=name)
        for owner, name in read
    )
    features = tuple(_field(one, where) for one in view.schema)
    _refuse_twice([one.name for one in features], where)
    facts = {
        "name": view.name,
        "inputs": [msgspec.structs.astuple(one) for one in inputs],
        "request": [_feature_facts(one) for one in request],
        "features": [_feature_facts(one) for one in features],
        "code": _code_of(view.function),
    }
    return OnDemandDefinition(
        name=view.name, inputs=inputs, request=tuple(request), features=features, function=view.function,
        fingerprint=_fingerprint(facts),
    )  # fmt: skip


def _service(
    name: str,
    chosen: Sequence[tuple[str, tuple[str, ...]]],
    views: Mapping[str, ViewDefinition],
    on_demand: Mapping[str, OnDemandDefinition],
) -> ServiceDefinition:
    """A service of (view, names) in order; no names stand for all of the view's."""
    listed: list[ServiceFeature] = []
    read: dict[str, dict[str, FeatureDefinition]] = {}
    functions: dict[str, OnDemandDefinition] = {}
    for view_name, names in chosen:
        view = views.get(view_name) or on_demand.get(view_name)
        if view is None:
            known = [*views, *on_demand]
            raise DrivetrainError(
                f"FeatureService `{name}` names `{view_name}`, which is not declared.",
                do=did_you_mean(view_name, known),
            )
        known_features = {one.name: one for one in view.features}
        for feature_name in names or known_features:
            feature = known_features.get(feature_name)
            if feature is None:
                raise _no_feature(view_name, feature_name, known_features)
            listed.append(_listed(view_name, feature, isinstance(view, OnDemandDefinition)))
            if isinstance(view, ViewDefinition):
                read.setdefault(view_name, {})[feature_name] = feature
        if isinstance(view, OnDemandDefinition):
            functions[view_name] = view
            for one in view.inputs:
                read.setdefault(one.view, {})[one.feature] = _known_view(views, one.view, view_name).feature(
                    one.feature
                )
    _refuse_twice([one.full_name for one in listed], f"FeatureService `{name}`" if name else "The list of features")
    reads = [ViewRead(views[one], tuple(features.values())) for one, features in read.items()]
    facts = {
        "features": [[one.full_name, one.dtype, one.default] for one in listed],
        "views": [_view_facts(one.view, one.features) for one in reads],
        "on_demand": [one.fingerprint for one in functions.values()],
    }
    return ServiceDefinition(
        name=name, features=tuple(listed), groups=_groups(reads), on_demand=tuple(functions.values()),
        request=_request(functions.values(), name), fingerprint=_fingerprint(facts),
    )  # fmt: skip


def _listed(view: str, feature: FeatureDefinition, on_demand: bool) -> ServiceFeature:
    return ServiceFeature(
        full_name=f"{view}__{feature.name}", view=view, feature=feature.name, dtype=feature.dtype,
        default=feature.default, personal=feature.personal, on_demand=on_demand,
    )  # fmt: skip


def _groups(reads: Sequence[ViewRead]) -> tuple[EntityGroup, ...]:
    by_keys: dict[tuple[KeyDefinition, ...], list[ViewRead]] = {}
    for read in reads:
        by_keys.setdefault(read.view.keys, []).append(read)
    return tuple(EntityGroup(keys, tuple(views)) for keys, views in by_keys.items())


def _request(functions: Any, service: str) -> tuple[FeatureDefinition, ...]:
    columns: dict[str, FeatureDefinition] = {}
    for function in functions:
        for column in function.request:
            if columns.setdefault(column.name, column) != column:
                raise DrivetrainError(
                    f"FeatureService `{service}` needs the request column `{column.name}` in two ways.",
                    do="Declare one RequestSource and read it in both views.",
                )
    return tuple(columns.values())


def _known_view(views: Mapping[str, ViewDefinition], name: str, reader: str) -> ViewDefinition:
    if name in views:
        return views[name]
    raise DrivetrainError(
        f"OnDemandFeatureView `{reader}` reads `{name}`, which is not declared.", do=did_you_mean(name, views)
    )


def _parts(declared: FeatureView | OnDemandFeatureView | Projection) -> tuple[str, tuple[str, ...]]:
    if isinstance(declared, Projection):
        return declared.view.name, declared.names
    return declared.name, ()


def _view_of(declared: FeatureView | OnDemandFeatureView | Projection) -> FeatureView | OnDemandFeatureView:
    return declared.view if isinstance(declared, Projection) else declared


def _feature_names(view: FeatureView | OnDemandFeatureView) -> list[str]:
    if isinstance(view, FeatureView) and view.aggregations:
        return [one.feature for one in view.aggregations]
    return [one.name for one in view.schema]


def _entity_keys(entity: Entity) -> list[KeyDefinition]:
    dtype = _dtype(entity.value_type, f"Entity `{entity.name}`")
    return [KeyDefinition(name, dtype) for name in entity.join_keys]


def _field(field: Field, where: str) -> FeatureDefinition:
    dtype = _dtype(field.dtype, f"`{field.name}` of {where}")
    return FeatureDefinition(
        name=field.name, dtype=dtype, default=_default(dtype, field.default, field.name, where), personal=field.personal
    )


def column_dtype(aggregation: Aggregation, source: AnySource) -> str:
    """The type of an aggregation's column: as it says, or as a PushSource declares it, else float64; any where it is
    only counted.

    Raises: ValueError, with what to write.
    """
    if aggregation.dtype is not None:
        return dtype_name(aggregation.dtype)
    for field in source.schema if isinstance(source, PushSource) else ():
        if field.name == aggregation.column:
            return dtype_name(field.dtype)
    return "" if aggregation.function in COUNTING else "float64"


def aggregated_dtype(aggregation: Aggregation, source: AnySource) -> str:
    """The type of a window's feature. Counts are int64, means float64; others have their column's type.

    Raises: ValueError, with what to write.
    """
    if aggregation.function in COUNTING:
        return "int64"
    return "float64" if aggregation.function == "mean" else column_dtype(aggregation, source)


def _aggregated(aggregation: Aggregation, source: AnySource, where: str) -> FeatureDefinition:
    try:
        column_dtype(aggregation, source)
        dtype = aggregated_dtype(aggregation, source)
    except ValueError as error:
        raise DrivetrainError(f"`{aggregation.column}` of {where} has a wrong type.", do=str(error)) from None
    default = _default(dtype, aggregation.default, aggregation.feature, where)
    if default is None and aggregation.function in COUNTING:
        default = 0
    return FeatureDefinition(name=aggregation.feature, dtype=dtype, default=default)


def _window(aggregation: Aggregation, source: AnySource, where: str) -> WindowDefinition:
    return WindowDefinition(
        feature=aggregation.feature,
        function=aggregation.function,
        column=aggregation.column,
        column_dtype=column_dtype(aggregation, source),
        over_us=_duration(aggregation.over, f"`{aggregation.feature}` of {where}"),
    )


def _dtype(declared: Any, where: str) -> str:
    try:
        return dtype_name(declared)
    except ValueError as error:
        raise DrivetrainError(f"{where} has a wrong type: {declared!r}.", do=str(error)) from None


def _duration(declared: Any, where: str) -> int:
    try:
        return span_us(declared)
    except ValueError as error:
        raise DrivetrainError(f"{where} has a wrong duration: {declared!r}.", do=str(error)) from None


def _default(dtype: str, value: Any, name: str, where: str) -> Any:
    try:
        return coerce(dtype, value)
    except ValueError as error:
        raise DrivetrainError(f"`{name}` of {where} has a wrong default: {error}.") from None


def _refuse_twice(names: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DrivetrainError(f"{where} has `{name}` twice.", do="Remove one of them.")


def _no_feature(view: str, name: str, known: Any) -> DrivetrainError:
    return DrivetrainError(f"FeatureView `{view}` has no feature `{name}`.", do=did_you_mean(name, known))


def _view_facts(view: ViewDefinition, features: Sequence[FeatureDefinition]) -> dict[str, Any]:
    """Everything that decides the values of some of a view's features."""
    names = {one.name for one in features}
    return {
        "name": view.name,
        "keys": [[key.name, key.dtype] for key in view.keys],
        "features": [_feature_facts(one) for one in features],
        "windows": [msgspec.structs.astuple(one) for one in view.windows if one.feature in names],
        "source": source_facts(view.source),
        "ttl_us": view.ttl_us,
    }


def _feature_facts(feature: FeatureDefinition) -> list[Any]:
    return [feature.name, feature.dtype, feature.default]


def source_facts(source: AnySource) -> list[Any]:
    """Where a source's rows come from and which of its columns are times."""
    times = [source.timestamp_field, source.created_timestamp_column]
    if isinstance(source, FileSource):
        return ["file", source.path, *times]
    if isinstance(source, TableSource):
        return ["table", source.table, *times]
    if isinstance(source, SqlSource):
        return ["sql", source.query, *times]
    batch = source.batch_source
    return ["push", source.name, *times, source_facts(batch) if batch is not None else None]


def _code_of(function: Callable[..., Any]) -> str:
    """A function's own source, or its compiled code where there is none. What it calls is no part of it."""
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        if not isinstance(code, CodeType):
            return repr(type(function))
        constants = [one for one in code.co_consts if not isinstance(one, CodeType)]
        return f"{code.co_code.hex()} {constants!r} {code.co_names!r}"


def _fingerprint(facts: Any) -> str:
    encoded = msgspec.json.encode(facts, enc_hook=repr, order="deterministic")
    return hashlib.sha256(encoded).hexdigest()[:FINGERPRINT_HEX]
