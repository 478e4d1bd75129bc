"""What a running Call needs of the world, as it sees it: every source of nondeterminism is named here.

Live, these are the worker's own (limits, cache, health); a replay gives back what was recorded. None stands for a
part that a project does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from drivetrain.cache.answers import Kept
from drivetrain.cache.flights import Flights
from drivetrain.core.calls import Attribution
from drivetrain.core.features import ViewSeen
from drivetrain.core.limits import Refusal
from drivetrain.limits.slices import Hold, Waiter
from drivetrain.ports.inference import Models
from drivetrain.ports.journal import Journal, Vault
from drivetrain.ports.transport import Transport
from drivetrain.routing.health import Denied, Outcome


class LimitsDoor(Protocol):
    """Budgets, rates and concurrency, as `limits.leasing.Limits` keeps them."""

    def admit(
        self, who: Attribution, workflow: str, now_ns: int, then: Callable[[Hold | Refusal], None], priority: int
    ) -> Hold | Refusal | Waiter: ...

    def reserve(
        self, hold: Hold, worst_nano_usd: int, tokens: int, then: Callable[[Refusal | None], None]
    ) -> Refusal | Waiter | None: ...

    def settle(self, hold: Hold, cost_nano_usd: int, tokens: int = 0) -> int: ...

    def close_hold(self, hold: Hold) -> None: ...

    def is_hard(self, hold: Hold) -> bool: ...


class HealthDoor(Protocol):
    """What is known of the providers' health, as `routing.health.Health` keeps it."""

    def may_send(self, name: str, now_ns: int) -> Denied | None: ...

    def withdrawn(self, name: str, granted_ns: int) -> None: ...

    def answered(self, name: str, granted_ns: int, now_ns: int) -> None: ...

    def ended(self, name: str, granted_ns: int, now_ns: int, outcome: Outcome, retry_after_ms: int = -1) -> None: ...

    def may_retry(self, name: str, now_ns: int) -> bool: ...


class CacheDoor(Protocol):
    """Answers of before, as `cache.answers.AnswerCache` keeps them."""

    def key(self, tenant: str, variant: bytes, body: bytes) -> bytes: ...

    def fresh(self, key: bytes, ttl_s: int, max_age_s: int | None = None) -> Kept | None: ...

    def stale(self, key: bytes, max_age_s: int) -> Kept | None: ...

    def keep(self, key: bytes, kept: Kept, hold_s: int) -> bool: ...


class Seen(Protocol):
    """One vector of features, as it was read."""

    @property
    def given(self) -> Mapping[str, Any]:
        """The keys and request columns that it depends on; the rest of the input is not kept with it."""

    @property
    def values(self) -> Mapping[str, Any]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def as_of_ns(self) -> int: ...

    @property
    def stale(self) -> tuple[str, ...]: ...

    @property
    def missing(self) -> tuple[str, ...]: ...

    @property
    def views(self) -> Mapping[str, ViewSeen]: ...


class FeaturesDoor(Protocol):
    """Features of a service for what a request gives: the keys of its entities and its request columns."""

    def read(self, service: str, given: Mapping[str, Any], now_ns: int) -> Seen: ...


class Environment(msgspec.Struct, frozen=True):
    """What a call needs of the world."""

    transport: Transport
    journal: Journal
    vault: Vault | None
    """None: no payload is kept, whatever workflows say."""
    now_ns: Callable[[], int]
    monotonic_ns: Callable[[], int]
    call_later: Callable[[float, Callable[[], None]], Any]
    random: Callable[[], float]
    limits: LimitsDoor | None = None
    """None: nothing is limited."""
    health: HealthDoor | None = None
    cache: CacheDoor | None = None
    flights: Flights | None = None
    features: FeaturesDoor | None = None
    """None: no workflow names a FeatureService."""
    models: Models | None = None
    """None: no route names a trained model."""


class Asked(msgspec.Struct, frozen=True):
    """What a client asked of one Call beside its input."""

    cache_read: bool = True
    """Whether an answer from the cache will do."""
    cache_write: bool = True
    """Whether the answer may be kept."""
    cache_max_age_s: int | None = None
    """Older answers will not do."""
    deadline_ms: int | None = None
    """How long it waits for the whole answer."""


NOTHING_ASKED = Asked()
