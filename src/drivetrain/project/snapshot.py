"""The Snapshot: everything a worker needs to serve a project, immutable, under one hash, without any secret."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.declarations import Workflow
from drivetrain.core.endpoints import Endpoint
from drivetrain.core.evals import Eval
from drivetrain.core.features import AnySource, Entity, FeatureService, FeatureView, OnDemandFeatureView
from drivetrain.core.limits import Limit
from drivetrain.core.models import Pinned
from drivetrain.core.recipes import TrainedModel
from drivetrain.core.releases import RulesV1
from drivetrain.core.sources import Source
from drivetrain.version import VERSION


class SecretRef(msgspec.Struct, frozen=True):
    """Where a secret is kept: `env:NAME` or `file:PATH` (relative to the project). Never the secret."""

    reference: str

    def __repr__(self) -> str:
        return f"SecretRef({self.reference!r})"


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream account: a dialect spoken at an endpoint."""

    name: str
    dialect: str
    """`openai` or `anthropic`."""
    endpoint: Endpoint
    key: SecretRef | None = None
    key_header: str = ""
    """Header that carries the key; empty: the dialect's own (`authorization: Bearer`, `x-api-key`)."""
    headers: dict[str, str] = {}
    """Sent with every attempt; values may be `env:` or `file:` references, resolved when serving starts."""
    breaker: bool = True
    """Whether a model of it that keeps failing is left alone for a while, and retries have a budget."""
    line: int = 0


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a project says about a model; None: take it from the built-in facts and prices."""

    name: str
    """`provider/model`, as routes name it."""
    upstream_name: str | None = None
    """What the provider calls it, where that differs."""
    capabilities: tuple[str, ...] | None = None
    """Among `tools`, `json_schema`, `images`, `streaming`, `reasoning`."""
    max_tokens_field: str | None = None
    """`max_tokens` or `max_completion_tokens`."""
    price_as: str | None = None
    """`provider/model` whose published price holds for it."""
    input_nano_per_million: int | None = None
    output_nano_per_million: int | None = None
    input_cached_nano_per_million: int | None = None
    cache_write_nano_per_million: int | None = None
    cache_write_1h_nano_per_million: int | None = None
    nano_per_request: int = 0
    machine_nano_per_hour: int | None = None
    """Where a machine is paid by the hour instead of tokens."""
    parallel: int = 1
    """Attempts that the machine serves at a time."""
    retires: str = ""
    """The day from which the provider serves it no more, `YYYY-MM-DD`; empty: none was announced."""
    replacement: str = ""
    """`provider/model` that is to follow it."""
    line: int = 0


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key that clients call with, and what it stands for."""

    name: str
    secret: SecretRef
    tenant: str = ""
    team: str = ""
    """Empty: the workflow's team."""
    use_case: str = ""
    workflows: tuple[str, ...] | None = None
    """Workflows it may call; None: all."""
    may_override: tuple[str, ...] = ()
    """Among `team`, `use_case`, `user`, `tags`: what the `x-drivetrain-*` headers may set."""
    line: int = 0


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the gateway; each has a reason in docs/reference/project.md."""

    host: str = "127.0.0.1"
    port: int = 8080
    direct_models: tuple[str, ...] = ()
    """Pinned `provider/model`s and trained models that clients may name instead of a workflow."""
    body_bytes_max: int = 20 * 1024 * 1024
    header_bytes_max: int = 32 * 1024
    header_timeout_ms: int = 10_000
    body_timeout_ms: int = 30_000
    idle_timeout_ms: int = 75_000
    write_timeout_ms: int = 60_000
    """A client that takes no byte for this long is dropped."""
    connections_max: int = 10_000
    messages_max: int = 2_000
    """Messages in one chat request."""
    cache_bytes_max: int = 16 * 1024 * 1024
    """What one worker's cached answers may take; 0 keeps none."""


class LedgerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where records go and how long payloads are kept."""

    folder: str = ".drivetrain/data"
    keys_folder: str = ".drivetrain/keys"
    """Payload keys; outside the data folder, so that data can be copied without them."""
    retention: str = "none"
    """For workflows that declare none."""
    payload_days: int = 30
    segment_bytes_max: int = 64 * 1024 * 1024


class LakeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the lake is and how long it keeps what."""

    url: str = ""
    """`s3://bucket/prefix`; empty: the folder `lake` beside the records."""
    options: dict[str, str | SecretRef] = {}
    """Of an object store: `endpoint`, `region`, `access_key_id`, `secret_access_key` ...; secrets by reference."""
    keep_days: int | None = None
    """How long Calls and Outcomes are kept, for workflows that do not say; None: for ever."""
    roll_every_s: int = 600
    """Records are rolled into the lake at least this often while the gateway runs."""
    roll_records: int = 10_000
    """And as soon as this many wait."""
    history_s: int = 86_400
    """How long replaced files and old versions of the lake's tables stay readable."""


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """What the project declares of features and of systems outside, by name."""

    entities: Mapping[str, Entity] = {}
    views: Mapping[str, FeatureView] = {}
    on_demand: Mapping[str, OnDemandFeatureView] = {}
    services: Mapping[str, FeatureService] = {}
    sources: Mapping[str, AnySource] = {}
    """What feature views read."""
    outside: Mapping[str, Source] = {}
    """Systems that stay outside."""


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """Versions that are part of a Snapshot's hash, because behaviour depends on them."""

    drivetrain: str = VERSION
    msgspec: str = msgspec.__version__


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One state of a project, loaded and checked."""

    hash: str
    """64 hex digits over every file's content and the resolved settings; no secret is part of it."""
    name: str
    environment: str
    root: Path
    package: str = ""
    """Name under which the project's code is imported in this process."""
    versions: Versions = Versions()
    """Versions it was made with."""
    files: Mapping[str, bytes]
    """Path relative to the project -> content: code, prompts, settings."""
    templates: Mapping[str, str]
    """Path relative to the project -> text, of every template that a route names or includes; loaded variants name
    their `prompt` and `system` by this path."""
    workflows: Mapping[str, Workflow[Any, Any]]
    """Declared ones, and one per `direct_models` entry, named as the provider's model or as the trained one."""
    direct: frozenset[str]
    """Names in `workflows` that are direct models."""
    providers: Mapping[str, Provider]
    models: Mapping[str, ModelFacts]
    keys: Mapping[str, Key]
    limits: Mapping[str, Limit] = {}
    """Of `[limits]` and of the workflows' budgets, by name."""
    teams: tuple[str, ...]
    gateway: GatewaySettings
    ledger: LedgerSettings
    lake: LakeSettings = LakeSettings()
    features: Features = Features()
    pinned: Mapping[str, Pinned] = {}
    """Reference to a trained model, as variants write it -> what it stood for when the Snapshot was made."""
    trained: Mapping[str, TrainedModel] = {}
    """Models that the project trains, by name."""
    evals: Mapping[str, Eval] = {}
    """By name; each names its workflow."""
    rules: RulesV1 = RulesV1()
    """Who may release what in this environment."""

    def __repr__(self) -> str:
        return f"Snapshot({self.name!r}, {self.environment!r}, {self.short_hash}, {len(self.workflows)} workflows)"

    @property
    def short_hash(self) -> str:
        """The first 16 hex digits, as records carry them."""
        return self.hash[:16]

    @property
    def data_folder(self) -> Path:
        """Where records go."""
        return self.root / self.ledger.folder

    @property
    def snapshots_folder(self) -> Path:
        """Where Snapshots are stored by hash; in the project, wherever its records go."""
        return self.root / ".drivetrain" / "snapshots"

    @property
    def keys_folder(self) -> Path:
        """Where payload keys are kept."""
        return self.root / self.ledger.keys_folder
