"""What a user declares of features: Entity, sources, FeatureView, OnDemandFeatureView, FeatureService. Data only.

Names and meanings are Feast's wherever it has them. A declaration never raises for a wrong value: it keeps what was
written and where, so that `drivetrain check` reports every mistake at once. The room `features/` holds the behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Never

import msgspec

from drivetrain.core.declarations import Place, caller_place

DTYPES = ("int64", "float64", "string", "bool", "timestamp")
"""Types of features and keys; `timestamp` is UTC with microseconds."""
AGGREGATIONS = ("sum", "count", "mean", "min", "max", "last", "approx_distinct")

Dtype = str | type
"""One of `DTYPES`, or `int`, `float`, `str`, `bool`, `datetime`."""


class Field(msgspec.Struct, frozen=True):
    """One feature or one column: its name, its type, and what stands for it where an entity has none."""

    name: str
    dtype: Dtype
    default: Any = None
    """Served where the entity or the value is missing or expired; None: null."""
    personal: bool = False
    """Whether it says something about a person: it is left out of exports that do not ask for it."""
    description: str = ""


class Entity:
    """What features are about: a customer, a product; told apart by its join keys."""

    __slots__ = ("description", "join_keys", "name", "owner", "place", "subject", "unknown", "value_type")

    def __init__(
        self,
        name: str,
        *,
        join_keys: Sequence[str] = (),
        value_type: Dtype = "string",
        subject: bool = False,
        description: str = "",
        owner: str = "",
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.name = name
        self.join_keys = tuple(join_keys) or (name,)
        """Columns that tell one from another."""
        self.value_type = value_type
        """Type of the join keys."""
        self.subject = subject
        """Whether its key is a person's id, as payloads are encrypted under it: `drivetrain erase` removes its rows."""
        self.description = description
        self.owner = owner
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown


class _Source:
    """What sources have in common."""

    __slots__ = (
        "created_timestamp_column",
        "description",
        "fresh_within",
        "name",
        "owner",
        "place",
        "timestamp_field",
        "unknown",
    )

    def __init__(
        self,
        name: str,
        *,
        timestamp_field: str = "event_timestamp",
        created_timestamp_column: str | None = None,
        fresh_within: str | None = None,
        owner: str = "",
        description: str = "",
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.name = name
        self.timestamp_field = timestamp_field
        """The column that says when a row's fact held."""
        self.created_timestamp_column = created_timestamp_column
        """The column that says when the row was known; None: as soon as it held."""
        self.fresh_within = fresh_within
        """The oldest that its newest row may be: `90s`, `10m`, `6h`, `2d`; None: nothing is promised."""
        self.owner = owner
        self.description = description
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown


class FileSource(_Source):
    """Rows of a Parquet, CSV or JSON-lines file, or of all files of a pattern, relative to the project's folder."""

    __slots__ = ("path",)

    def __init__(self, path: str, *, name: str = "", **options: Any) -> None:
        super().__init__(name or path, **{"place": caller_place(), **options})
        self.path = path


class TableSource(_Source):
    """Rows of a named table of the lake, as `drivetrain sql` knows it: `calls`, `outcomes`, `dataset.orders`."""

    __slots__ = ("table",)

    def __init__(self, table: str, *, name: str = "", **options: Any) -> None:
        super().__init__(name or table, **{"place": caller_place(), **options})
        self.table = table


class SqlSource(_Source):
    """Rows of a query over the lake's named tables."""

    __slots__ = ("query",)

    def __init__(self, name: str, *, query: str, **options: Any) -> None:
        super().__init__(name, **{"place": caller_place(), **options})
        self.query = query


class PushSource(_Source):
    """Rows that applications push; they are kept in the lake as `push.NAME`, and `batch_source` stands before them."""

    __slots__ = ("batch_source", "schema")

    def __init__(
        self, name: str, *, schema: Sequence[Field] = (), batch_source: BatchSource | None = None, **options: Any
    ) -> None:
        super().__init__(name, **{"place": caller_place(), **options})
        self.schema = tuple(schema)
        """Columns of a pushed row besides keys and times; empty: those of the views that read it."""
        self.batch_source = batch_source


class RequestSource:
    """What only the request knows: columns that whoever asks for features gives along."""

    __slots__ = ("name", "place", "schema")

    def __init__(self, name: str, *, schema: Sequence[Field], place: Place | None = None) -> None:
        self.name = name
        self.schema = tuple(schema)
        self.place = place or caller_place()


BatchSource = FileSource | TableSource | SqlSource
AnySource = BatchSource | PushSource


class Aggregation(msgspec.Struct, frozen=True, kw_only=True):
    """A feature that sums up a window of an event table: over the events in (t - over, t]."""

    function: str
    """One of `AGGREGATIONS`."""
    column: str = "*"
    """The event's column; `*` only for `count`."""
    over: str
    """`90s`, `1h`, `7d`."""
    name: str = ""
    """Empty: `COLUMN_FUNCTION_OVER`, `count_OVER` for `*`."""
    default: Any = None
    """Served where the window has no event; None: null, and 0 for `count` and `approx_distinct`."""
    dtype: Dtype | None = None
    """Of the column; None: as the source declares it, else `float64`."""

    @property
    def feature(self) -> str:
        """The feature's name."""
        if self.name:
            return self.name
        return f"{self.function}_{self.over}" if self.column == "*" else f"{self.column}_{self.function}_{self.over}"


class Projection(msgspec.Struct, frozen=True):
    """Some features of a view."""

    view: FeatureView | OnDemandFeatureView
    names: tuple[str, ...]


class FeatureView:
    """Features of entities from one source, each row valid from its event time for `ttl`."""

    __slots__ = (
        "aggregations",
        "description",
        "entities",
        "name",
        "online",
        "owner",
        "place",
        "schema",
        "source",
        "tags",
        "ttl",
        "unknown",
    )

    def __init__(
        self,
        name: str,
        *,
        entities: Sequence[Entity],
        source: AnySource,
        schema: Sequence[Field] = (),
        aggregations: Sequence[Aggregation] = (),
        ttl: timedelta | str | None = None,
        online: bool = True,
        description: str = "",
        owner: str = "",
        tags: Mapping[str, str] | None = None,
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.name = name
        self.entities = tuple(entities)
        self.source = source
        self.schema = tuple(schema)
        """Features that are columns of the source."""
        self.aggregations = tuple(aggregations)
        """Features that sum up windows of the source's events; such a view has no `schema`."""
        self.ttl = ttl
        """How long a row counts after its event time: a timedelta or `2d`; None: for ever."""
        self.online = online
        """Whether it is materialized for online reads."""
        self.description = description
        self.owner = owner
        self.tags: Mapping[str, str] = tags or {}
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown

    def __getitem__(self, names: Sequence[str]) -> Projection:
        """Only these features: `customer_stats[["orders_7d"]]`."""
        return Projection(self, tuple(names))


class OnDemandFeatureView:
    """Features that a Python function computes from other features and the request: the same offline and online."""

    __slots__ = ("description", "function", "name", "owner", "place", "schema", "sources", "unknown")

    def __init__(
        self,
        name: str,
        *,
        sources: Sequence[FeatureView | Projection | RequestSource],
        schema: Sequence[Field],
        function: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        description: str = "",
        owner: str = "",
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.name = name
        self.sources = tuple(sources)
        self.schema = tuple(schema)
        """What the function returns."""
        self.function = function
        """One row in, as {column: value}; its features out, as {name: value}. Pure: no clock, network or randomness."""
        self.description = description
        self.owner = owner
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown

    def __getitem__(self, names: Sequence[str]) -> Projection:
        """Only these features."""
        return Projection(self, tuple(names))


def on_demand_feature_view(
    *, sources: Sequence[FeatureView | Projection | RequestSource], schema: Sequence[Field], **options: Any
) -> Callable[[Callable[[Mapping[str, Any]], Mapping[str, Any]]], OnDemandFeatureView]:
    """A function of one row becomes an OnDemandFeatureView of its name."""
    place = caller_place()

    def declared(function: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> OnDemandFeatureView:
        name = options.pop("name", function.__name__)
        return OnDemandFeatureView(
            name, sources=sources, schema=schema, function=function, **{"place": place, **options}
        )

    return declared


class FeatureService:
    """What a model or a workflow needs, in one order: versioned by a fingerprint of everything that defines it."""

    __slots__ = ("description", "features", "name", "owner", "place", "unknown")

    def __init__(
        self,
        name: str,
        *,
        features: Sequence[FeatureView | OnDemandFeatureView | Projection],
        description: str = "",
        owner: str = "",
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.name = name
        self.features = tuple(features)
        self.description = description
        self.owner = owner
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown


class FeaturesSeenV1(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which features a Call saw; stored in its opened frame."""

    service: str
    fingerprint: str
    """Of the service's definition, 16 hex digits."""
    as_of_ns: int
    """The moment that the values were materialized for; the oldest where views differ."""
    stale: tuple[str, ...] = ()
    """Views whose freshness was beyond what was promised."""
    missing: tuple[str, ...] = ()
    """Names of entities (never their keys) that had no row, so that defaults stood in."""
    sealed: bytes = b""
    """A `FeatureRecordV1` as msgpack, encrypted under the subject's key."""


class ViewSeen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a read found of one view."""

    as_of_us: int
    """The moment that its values are of: of the materialization, or of the push that came after."""
    event_us: int | None
    """When its row held; None where there was none."""
    expired: bool = False


class FeatureRecordV1(msgspec.Struct, frozen=True, tag="features.1"):
    """What a Call's sealed features hold."""

    given: Mapping[str, Any]
    """The keys and request columns that the values depend on."""
    values: Mapping[str, Any]
    """Feature -> value, as the route saw it."""
    views: Mapping[str, ViewSeen]
    """View -> which moment its values are of: parity recomputes them as of then."""
