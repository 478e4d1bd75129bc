"""What a Feast repository says, in our words: declarations as they will stand in the module, before they are text."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from drivetrain.features.feast_functions import Carried
from drivetrain.features.feast_reading import Declared, Note


class TField(msgspec.Struct, frozen=True, kw_only=True):
    """A Field."""

    name: str
    dtype: str
    description: str = ""


class TEntity(msgspec.Struct, frozen=True, kw_only=True):
    """An Entity."""

    at: Declared
    name: str
    join_keys: tuple[str, ...]
    dtype: str
    description: str
    owner: str


class TSource(msgspec.Struct, frozen=True, kw_only=True):
    """A source of rows, and what stays outside behind it."""

    at: Declared
    kind: str
    """`FileSource`, `TableSource` or `PushSource`."""
    name: str
    reads: str = ""
    """Path or table."""
    timestamp: str
    created: str
    description: str
    owner: str
    outside: str = ""
    """Where the rows really are, as a Source outside says it; empty: in the file."""
    outside_owner: str = ""
    batch: TSource | None = None


class TAggregation(msgspec.Struct, frozen=True, kw_only=True):
    """A window."""

    function: str
    column: str
    over: str
    name: str


class TView(msgspec.Struct, frozen=True, kw_only=True):
    """A FeatureView."""

    at: Declared
    name: str
    entities: tuple[TEntity, ...]
    source: TSource
    fields: tuple[TField, ...]
    aggregations: tuple[TAggregation, ...]
    ttl_us: int | None
    online: bool
    description: str
    owner: str
    tags: Mapping[str, str]

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.aggregations or self.fields)


class TRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A RequestSource."""

    at: Declared
    name: str
    fields: tuple[TField, ...]


class TPart(msgspec.Struct, frozen=True):
    """A view, or some of its features."""

    view: TView | TFunction
    names: tuple[str, ...]
    """Empty: all."""


class TFunction(msgspec.Struct, frozen=True, kw_only=True):
    """An OnDemandFeatureView."""

    at: Declared
    name: str
    parts: tuple[TPart | TRequest, ...]
    fields: tuple[TField, ...]
    code: Carried
    columns: bool
    """Whether the function takes and gives columns instead of one row."""
    renamed: Mapping[str, str]
    """`VIEW__FEATURE` as the function reads it -> the column's name here."""
    description: str
    owner: str

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.fields)


class TService(msgspec.Struct, frozen=True, kw_only=True):
    """A FeatureService."""

    at: Declared
    name: str
    parts: tuple[TPart, ...]
    description: str
    owner: str


class Translation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that could be carried over, in the order of the definitions, and what could not."""

    entities: tuple[TEntity, ...]
    sources: tuple[TSource, ...]
    views: tuple[TView, ...]
    requests: tuple[TRequest, ...]
    functions: tuple[TFunction, ...]
    services: tuple[TService, ...]
    left_out: tuple[tuple[Declared, str], ...]
    """Views with their source, for a comment."""
    notes: tuple[Note, ...]
