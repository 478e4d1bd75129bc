"""FeatureStore: one object with Feast's method names, for notebooks, training code, the commands and the server.

Owns nothing but the order of things: definitions come from the Snapshot, rows from the lake, vectors from the online
store, and what was made goes into the control log. Made by `drivetrain.embedded.feature_store`, which wires it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.features import Entity, FeatureService, FeatureView, OnDemandFeatureView, ViewSeen
from drivetrain.features.definitions import Definitions, ServiceDefinition, ServiceFeature, define
from drivetrain.features.online import (
    EPOCH,
    EXPIRED,
    NOT_FOUND,
    PRESENT,
    ROWS_MAX,
    US,
    OnlineReader,
    OnlineRows,
    OnlineService,
    never_materialized,
    output_names,
)
from drivetrain.features.pushing import PushedRows, make_empty, push
from drivetrain.lineage.made import record_made
from drivetrain.ports.control import ControlLog
from drivetrain.ports.online import OnlineStore
from drivetrain.ports.tables import ObjectStore, TableStore
from drivetrain.project.snapshot import Snapshot

if TYPE_CHECKING:
    import duckdb

    from drivetrain.features.historical import Retrieved
    from drivetrain.features.materialize import Materialized
    from drivetrain.features.parity import ParityReport, Seeing

SELECTIONS_MAX = 256
"""Selections of features that are kept compiled; a program asks for few."""


class FeatureLake(Protocol):
    """What the store needs of the lake: `lake.Lake` has it."""

    tables: TableStore | None
    objects: ObjectStore | None

    def connect(self, *, trusted: bool = False) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A private DuckDB with every named table."""


class Applied(msgspec.Struct, frozen=True):
    """What `apply` found."""

    entities: tuple[str, ...]
    views: Mapping[str, str]
    """View -> fingerprint, on-demand ones too."""
    services: Mapping[str, str]
    changed: tuple[str, ...]
    """Views and services that were never applied as they are now."""


class OnlineResponse:
    """What `get_online_features` found, as Feast gives it."""

    def __init__(
        self, entities: Mapping[str, Sequence[Any]], rows: OnlineRows, names: Sequence[tuple[str, ServiceFeature]]
    ) -> None:
        self._entities = entities
        self._rows = rows
        self._names = names

    def to_dict(self) -> dict[str, list[Any]]:
        """Column -> one value per entity row, in their order; the join keys first."""
        columns = {**self._entities, **self._rows.columns}
        return {name: list(values) for name, values in columns.items()}

    def statuses(self) -> dict[str, list[str]]:
        """Feature -> `PRESENT`, `NOT_FOUND` or `OUTSIDE_MAX_AGE` per entity row; on-demand features are present."""
        views = self._rows.views()
        return {
            name: [_status(one) for one in views[feature.view]]
            if feature.view in views
            else [PRESENT] * len(self._rows.columns[name])
            for name, feature in self._names
        }

    def event_timestamps(self) -> dict[str, list[datetime | None]]:
        """Feature -> when its row's fact held, per entity row; None for on-demand features."""
        views = self._rows.views()
        return {
            name: [None if one.event_us is None else EPOCH + one.event_us * US for one in views[feature.view]]
            if feature.view in views
            else [None] * len(self._rows.columns[name])
            for name, feature in self._names
        }


def _status(seen: ViewSeen) -> str:
    if seen.event_us is None:
        return NOT_FOUND
    return EXPIRED if seen.expired else PRESENT


class FeatureStore:
    """The features of one Snapshot.

    lake: where sources are read and pushed rows are kept. online: where vectors are. control: where it is told what was
    made; None tells nobody.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        lake: FeatureLake,
        online: OnlineStore,
        control: Callable[[], ControlLog] | None = None,
        actor: str = "",
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.snapshot = snapshot
        self.definitions: Definitions = define(snapshot.features)
        self.online = online
        self._lake = lake
        self._control = control
        self._actor = actor
        self._now_ns = now_ns
        self._selected: dict[Any, tuple[ServiceDefinition, OnlineService]] = {}

    def apply(self) -> Applied:
        """Record what is declared now, so that lineage knows each definition from then on."""
        features = self.snapshot.features
        views = {name: one.fingerprint for name, one in self.definitions.views.items()}
        views |= {name: one.fingerprint for name, one in self.definitions.on_demand.items()}
        services = {name: one.fingerprint for name, one in self.definitions.services.items()}
        wanted = {f"service:{name}@{fingerprint}": name for name, fingerprint in services.items()}
        changed = []
        control = self._control() if self._control is not None else None
        if control is not None:
            known = {record.subject for record in control.records() if record.kind == "made"}
            for artifact, name in wanted.items():
                if artifact not in known:
                    service = self.definitions.services[name]
                    inputs = tuple(dict.fromkeys(f"features:{one.view}@{views[one.view]}" for one in service.features))
                    self._made(control, artifact, inputs, {"features": len(service.features)})
                    changed.append(name)
        return Applied(tuple(features.entities), views, services, tuple(changed))

    def list_entities(self) -> list[Entity]:
        return list(self.snapshot.features.entities.values())

    def list_feature_views(self) -> list[FeatureView]:
        return list(self.snapshot.features.views.values())

    def list_on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return list(self.snapshot.features.on_demand.values())

    def list_feature_services(self) -> list[FeatureService]:
        return list(self.snapshot.features.services.values())

    def get_feature_view(self, name: str) -> FeatureView:
        """Raises: DrivetrainError."""
        found: FeatureView = _named("FeatureView", name, self.snapshot.features.views)
        return found

    def get_feature_service(self, name: str) -> FeatureService:
        """Raises: DrivetrainError."""
        found: FeatureService = _named("FeatureService", name, self.snapshot.features.services)
        return found

    @contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection to ask on, for training sets that are worked on in SQL."""
        with self._lake.connect(trusted=True) as connection:
            make_empty(connection, self.definitions)
            yield connection

    def get_historical_features(
        self,
        entity_df: Any,
        features: str | FeatureService | Sequence[str],
        *,
        connection: duckdb.DuckDBPyConnection | None = None,
        full_feature_names: bool = False,
        **options: Any,
    ) -> Any:
        """A training set as an Arrow table: one row per label, in their order.

        entity_df: a path, a SELECT, `dataset:NAME@N`, Arrow data or a list of dicts. connection: then the answer is a
        `Retrieved` on it, for more SQL. options: see `historical_features`. Raises: DrivetrainError.
        """
        from drivetrain.features.historical import historical_features

        def ask(on: duckdb.DuckDBPyConnection) -> Retrieved:
            return historical_features(
                on, self.definitions, entity_df, features,
                root=self.snapshot.root, full_feature_names=full_feature_names, **options,
            )  # fmt: skip

        if connection is not None:
            return ask(connection)
        with self.connect() as made:
            return ask(made).arrow()

    def get_online_features(
        self,
        features: str | FeatureService | Sequence[str],
        entity_rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
        *,
        full_feature_names: bool = False,
    ) -> OnlineResponse:
        """Their values as of now. entity_rows: one mapping per entity, or columns, with join keys and request columns.

        Raises: DrivetrainError where a key is not given, or the vectors are of another definition.
        """
        service, reader = self._compiled(features, full_feature_names)
        if isinstance(entity_rows, Mapping):
            columns = entity_rows
            count = len(next(iter(columns.values()), ()))
            uneven = [name for name, values in columns.items() if len(values) != count]
            if uneven:
                raise DrivetrainError(f"`{uneven[0]}` has not as many values as others.", do="Give one per entity.")
        else:
            count = len(entity_rows)
            names = list(entity_rows[0]) if entity_rows else []
            try:
                columns = {name: [row[name] for row in entity_rows] for name in names}
            except KeyError as error:
                raise DrivetrainError(
                    f"`{error.args[0]}` is given for some entities and not for all.",
                    do="Give the same columns for each.",
                ) from None
        if count > ROWS_MAX:
            raise DrivetrainError(
                f"{count} entities are asked for at once; at most {ROWS_MAX} are read.",
                do="Ask in portions, or `get_historical_features` for a training set.",
            )
        rows = reader.read_rows(columns, columns, count, self._now_ns() // 1_000)
        keys = {key.name: columns[key.name] for key in service.keys if key.name in columns}
        return OnlineResponse(keys, rows, output_names(service, full=full_feature_names))

    def never_materialized(self, features: str | FeatureService | Sequence[str]) -> list[str]:
        """Views of these features whose online vectors nobody ever made."""
        return never_materialized(self.online, self.definitions.select(features))

    def reader(self) -> OnlineReader:
        """What a gateway asks per Call."""
        return OnlineReader(self.online, self.definitions.services.values())

    def materialize(
        self, start_date: datetime | None, end_date: datetime, feature_views: Sequence[str] | None = None
    ) -> Materialized:
        """The online vectors become what the sources say as of `end_date`, of entities with rows since `start_date`.

        Entities that were online before stay up to date whatever their age. Raises: DrivetrainError.
        """
        from drivetrain.datasets.workplaces import staging_folder
        from drivetrain.features.erasing import subject_keys
        from drivetrain.features.materialize import materialize, view_facts
        from drivetrain.features.snapshots import Snapshots

        objects, scratch = self._lake.objects, staging_folder(self.snapshot.data_folder)
        with self.connect() as connection:
            made = materialize(
                connection, self.online, self.definitions, root=self.snapshot.root,
                start_us=None if start_date is None else moment_us(start_date),
                end_us=moment_us(end_date), now_us=self._now_ns() // 1_000, views=feature_views,
                snapshots=None if objects is None else Snapshots(objects, scratch=scratch),
                persons=subject_keys(self.snapshot.features.entities),
            )  # fmt: skip
        if self._control is not None:
            control = self._control()
            for view in made.views:
                source = self.definitions.views[view.name].source.name
                self._made(
                    control, f"features:{view.name}@{view.fingerprint}", (f"source:{source}",),
                    {**view_facts(view), "as_of_ns": made.as_of_us * 1_000},
                )  # fmt: skip
        return made

    def materialize_incremental(
        self, end_date: datetime | None = None, feature_views: Sequence[str] | None = None
    ) -> Materialized:
        """The online vectors become what the sources say as of `end_date`, by default now.

        Unlike Feast's it needs no book of what was read before: late rows and moving windows count too.
        """
        end = end_date if end_date is not None else EPOCH + (self._now_ns() // 1_000) * US
        return self.materialize(None, end, feature_views)

    def push(
        self, push_source_name: str, rows: Iterable[Mapping[str, Any]], to: str = "online_and_offline"
    ) -> PushedRows:
        """Rows of a PushSource: into the lake, and online at once. rows: mappings, or Arrow data.

        to: `online`, `offline` or both. Raises: DrivetrainError that names every wrong row; then none is pushed.
        """
        if hasattr(rows, "__arrow_c_stream__"):
            from arro3.core import Table

            stream: Any = rows
            table = Table.from_arrow(stream)
            columns = [table.column(name).to_pylist() for name in table.column_names]
            rows = [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]
        return push(
            self.definitions, self._lake.tables, self.online, push_source_name, rows,
            now_us=self._now_ns() // 1_000, to=to,
        )  # fmt: skip

    def parity(self, seen: Iterable[Seeing]) -> ParityReport:
        """What Calls saw against what a training set would say of the same moments. Raises: DrivetrainError."""
        from drivetrain.features.parity import compare

        with self.connect() as connection:
            return compare(connection, self.definitions, seen, root=self.snapshot.root)

    def _compiled(
        self, features: str | FeatureService | Sequence[str], full: bool
    ) -> tuple[ServiceDefinition, OnlineService]:
        if isinstance(features, FeatureService):
            name: Any = features.name
        else:
            name = features if isinstance(features, str) else tuple(features)
        found = self._selected.get((name, full))
        if found is None:
            service = self.definitions.select(features)
            if len(self._selected) >= SELECTIONS_MAX:
                self._selected.clear()
            found = self._selected[name, full] = (service, OnlineService(self.online, service, full_names=full))
        return found

    def _made(self, control: ControlLog, artifact: str, inputs: Sequence[str], facts: Mapping[str, Any]) -> None:
        record_made(
            control, artifact, at_ns=self._now_ns(), inputs=inputs, code_hash=self.snapshot.hash, facts=facts,
            actor=self._actor,
        )  # fmt: skip


def moment_us(moment: datetime) -> int:
    """UTC microseconds; a time without an offset is UTC, as everywhere here."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (aware - EPOCH) // US


def _named(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    if name in known:
        return known[name]
    raise DrivetrainError(f"No {kind} is called `{name}`.", do=did_you_mean(name, known))
