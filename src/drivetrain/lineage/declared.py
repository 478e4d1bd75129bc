"""What a project's declarations say about artifacts: what reads what, who owns it, what it holds.

Workflows read services, services read views, views read sources, and what stays outside says itself who reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from drivetrain.core.declarations import Workflow
from drivetrain.core.features import (
    AnySource,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    OnDemandFeatureView,
    Projection,
    PushSource,
    SqlSource,
    TableSource,
)
from drivetrain.core.sources import Source
from drivetrain.project.snapshot import Features, Snapshot

TABLE_IN_QUERY = re.compile(r"\b(?:from|join)\s+((?:\"[^\"]+\"|\w+)(?:\.(?:\"[^\"]+\"|\w+))?)", re.IGNORECASE)
"""A table's name after FROM or JOIN; names of the query's own are among what it finds."""
WITH_NAME = re.compile(r"(?:\bwith\s+(?:recursive\s+)?|,\s*)(\w+)\s+as\s+(?:materialized\s+)?\(", re.IGNORECASE)


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """One declared artifact."""

    inputs: tuple[str, ...] = ()
    """Artifacts that it reads."""
    owner: str = ""
    description: str = ""
    schema: tuple[tuple[str, str], ...] = ()
    """(column, type), as far as declared."""
    outside: bool = False
    """A system that stays outside."""
    location: str = ""
    """Of what stays outside."""


def declared_artifacts(snapshot: Snapshot | None) -> dict[str, Declared]:
    """Artifact without version -> what is declared of it; empty without a Snapshot."""
    if snapshot is None:
        return {}
    found = dict(_of_features(snapshot.features))
    for name, workflow in snapshot.workflows.items():
        if name not in snapshot.direct:
            found[f"workflow:{name}"] = _of_workflow(workflow)
    for name, source in snapshot.features.outside.items():
        for reader in source.readers:
            place = reader_artifact(str(reader), found)
            one = found.get(place, Declared())
            found[place] = msgspec.structs.replace(one, inputs=(*one.inputs, f"source:{name}"))
    return found


def reader_artifact(reader: str, declared: Mapping[str, Declared]) -> str:
    """The artifact that a Source's reader names: as it is with a kind, else what is declared, else a Dataset."""
    if ":" in reader:
        return reader
    kinds = ("workflow", "features", "service")
    return next((f"{kind}:{reader}" for kind in kinds if f"{kind}:{reader}" in declared), f"dataset:{reader}")


def table_artifact(table: str) -> str:
    """What a named table of the lake is: `dataset.golden` is a Dataset, `feature.VIEW` a view, `push.NAME` a source."""
    parts = [part.strip('"') for part in re.findall(r'"[^"]+"|[^."]+', table)]
    kinds = {"dataset": "dataset", "feature": "features", "push": "source"}
    if len(parts) > 1 and parts[0].lower() in kinds:
        return f"{kinds[parts[0].lower()]}:{parts[1]}"
    return f"table:{'.'.join(parts)}"


def _of_workflow(workflow: Workflow[Any, Any]) -> Declared:
    features = workflow.features
    service = features if isinstance(features, str) else getattr(features, "name", None)
    return Declared(inputs=(f"service:{service}",) if service else (), owner=workflow.owner)


def _of_features(features: Features) -> Iterator[tuple[str, Declared]]:
    for name, service in features.services.items():
        views = tuple(dict.fromkeys(f"features:{_view(one).name}" for one in service.features))
        yield f"service:{name}", _described(service, views, ())
    for name, view in features.views.items():
        made = tuple((one.feature, one.function) for one in view.aggregations)
        yield f"features:{name}", _described(view, (f"source:{view.source.name}",), (*_schema(view.schema), *made))
    for name, computed in features.on_demand.items():
        whole = [_view(one) for one in computed.sources]
        inputs = tuple(dict.fromkeys(f"features:{one.name}" for one in whole if isinstance(one, FeatureView)))
        yield f"features:{name}", _described(computed, inputs, _schema(computed.schema))
    for name, source in features.sources.items():
        schema = _schema(source.schema) if isinstance(source, PushSource) else ()
        yield f"source:{name}", _described(source, tuple(_read_by(source)), schema)
    for name, outside in features.outside.items():
        yield (
            f"source:{name}",
            Declared(
                owner=outside.owner,
                description=outside.description,
                schema=tuple((str(column), _type(kind)) for column, kind in outside.schema.items()),
                outside=True,
                location=outside.location,
            ),
        )


def _read_by(source: AnySource) -> Iterator[str]:
    """What a source itself reads."""
    if isinstance(source, FileSource):
        yield f"file:{source.path}"
    elif isinstance(source, TableSource):
        yield table_artifact(source.table)
    elif isinstance(source, SqlSource):
        own = set(WITH_NAME.findall(source.query))
        tables = [name for name in TABLE_IN_QUERY.findall(source.query) if name not in own]
        yield from dict.fromkeys(table_artifact(name) for name in tables)
    elif source.batch_source is not None:
        yield f"source:{source.batch_source.name}"


def _view(one: Any) -> Any:
    return one.view if isinstance(one, Projection) else one


def _described(
    one: FeatureService | FeatureView | OnDemandFeatureView | AnySource | Source,
    inputs: tuple[str, ...],
    schema: tuple[tuple[str, str], ...],
) -> Declared:
    return Declared(inputs=inputs, owner=str(one.owner), description=str(one.description), schema=schema)


def _schema(fields: tuple[Field, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((one.name, _type(one.dtype)) for one in fields)


def _type(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
