"""What the world decided about a recorded Call, given back: limits, the providers' health, the cache.

Stands in for `limits`, `health` and `cache` of an Environment when a Call is replayed. Every verdict is read from the
attempt that the record holds next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from drivetrain.cache.answers import Kept
from drivetrain.core.calls import Answers, AttemptV1, Attribution, Call
from drivetrain.core.errors import RequestError
from drivetrain.core.features import FeatureRecordV1, ViewSeen
from drivetrain.core.limits import Refusal
from drivetrain.core.money import NO_USAGE
from drivetrain.execution.featured import MISSING, UNAVAILABLE, unavailable
from drivetrain.limits.slices import Accounts, Hold, Short, Waiter
from drivetrain.ports.journal import JournalFull
from drivetrain.routing.health import Denied, Outcome

UNSENT = frozenset({"denied", "limit", "limit_call", "unbounded", "deadline"})
"""Words in `AttemptV1.failure` for what kept an attempt from being sent."""
LIMIT_CODES = frozenset({"budget_exceeded", "rate_limit_exceeded", "concurrency_limit_exceeded", "limits_unavailable"})
LOST = "ledger_unavailable"
NOTHING = AttemptV1("", "", "", "")
WAITER = Waiter(0, Short([]), lambda: None, lambda _: None, since_ns=0, priority=1)
"""Stands for whoever waits; nobody looks into it."""


class Recorded(msgspec.Struct, frozen=True):
    """A Call with its payloads opened."""

    call: Call
    request: bytes
    answers: Answers
    features: FeatureRecordV1 | None = None
    """What its FeatureService gave it."""

    @property
    def answer(self) -> bytes:
        """The body that the client got; of a stream, the provider's events."""
        if self.answers.answer is not None:
            return self.answers.answer
        return self.answers.attempts[-1] if self.answers.attempts else b""


class SeenAgain(msgspec.Struct, frozen=True):
    """The features of a recorded Call."""

    given: Mapping[str, Any]
    values: Mapping[str, Any]
    fingerprint: str
    as_of_ns: int
    stale: tuple[str, ...]
    missing: tuple[str, ...]
    views: Mapping[str, ViewSeen]


class Verdicts:
    """The recorded verdicts.

    made: how many attempts the replay has made so far. leaves: has the client leave soon, then goes on.
    """

    def __init__(
        self, recorded: Recorded, made: Callable[[], int], leaves: Callable[[Callable[[], None]], None]
    ) -> None:
        self._call = recorded.call
        self._features = recorded.features
        self._bodies = recorded.answers.attempts
        self._made = made
        self._leaves = leaves
        self._hold = Hold(0, Accounts([]))

    @property
    def upcoming(self) -> AttemptV1:
        """The attempt that the record holds next."""
        attempts = self._call.attempts
        made = self._made()
        return attempts[made] if made < len(attempts) else NOTHING

    # Features.

    def read(self, _service: str, _given: Mapping[str, Any], _now_ns: int) -> SeenAgain:
        """As they were. Raises: RequestError where they were not to be had, or the entity was missing."""
        call, record, seen = self._call, self._features, self._call.features
        if call.error in (MISSING, UNAVAILABLE):
            raise RequestError(call.http_status, "as recorded", code=call.error)
        if record is None or seen is None:
            raise unavailable(call.workflow, "the record holds none")
        return SeenAgain(
            record.given, record.values, seen.fingerprint, seen.as_of_ns, seen.stale, seen.missing, record.views
        )

    # Limits.

    def admit(
        self,
        _who: Attribution,
        _workflow: str,
        _now_ns: int,
        then: Callable[[Hold | Refusal], None],
        _priority: int,
    ) -> Hold | Refusal | Waiter:
        """As it was admitted; a client that left before any attempt leaves while its Call waits for that."""
        call = self._call
        first = call.attempts[0] if call.attempts else NOTHING
        if first is NOTHING and call.status == "aborted":
            self._leaves(lambda: then(self._hold))
            return WAITER
        if call.error in LIMIT_CODES and not call.attempts:
            return Refusal(code=call.error)
        if first.purpose == "degraded":
            return Refusal(code="rate_limit_exceeded")
        return self._hold

    def reserve(
        self, _hold: Hold, _worst_nano_usd: int, _tokens: int, then: Callable[[Refusal | None], None]
    ) -> Refusal | Waiter | None:
        """As it was reserved; a client that left between two attempts leaves while this one waits."""
        if self.upcoming is NOTHING and self._call.status == "aborted":
            self._leaves(lambda: then(None))
            return WAITER
        upcoming = self.upcoming
        if upcoming is NOTHING and self._call.error == LOST:
            raise JournalFull("as it was")
        failure = upcoming.failure
        if failure == "limit":
            return Refusal(code="budget_exceeded", closes="variant")
        return Refusal(code=self._call.error or "budget_exceeded") if failure == "limit_call" else None

    def is_hard(self, _hold: Hold) -> bool:
        """Whether what has no bound was refused."""
        return self.upcoming.failure == "unbounded"

    def settle(self, _hold: Hold, _cost_nano_usd: int, _tokens: int = 0) -> int:
        """Nothing is charged again."""
        return 0

    def close_hold(self, _hold: Hold) -> None:
        """Nothing is held."""

    # Health.

    def may_send(self, _name: str, _now_ns: int) -> Denied | None:
        """As leave was given."""
        upcoming = self.upcoming
        if upcoming.failure != "denied":
            return None
        return Denied(kind="open", reason=upcoming.reason, retry_after_ms=1)

    def may_retry(self, _name: str, _now_ns: int) -> bool:
        """As it was tried again."""
        upcoming = self.upcoming
        if upcoming is NOTHING:  # the client left in the pause, or the frame of a further attempt was not written
            return self._call.status == "aborted" or self._call.error == LOST
        return upcoming.purpose == "retry"

    def withdrawn(self, _name: str, _granted_ns: int) -> None:
        """Nobody's health is kept."""

    def answered(self, _name: str, _granted_ns: int, _now_ns: int) -> None:
        """Nobody's health is kept."""

    def ended(self, _name: str, _granted_ns: int, _now_ns: int, _outcome: Outcome, _retry_after_ms: int = -1) -> None:
        """Nobody's health is kept."""

    # Cache.

    def key(self, _tenant: str, _variant: bytes, _body: bytes) -> bytes:
        """One for all: what was given again is read from the record."""
        return b"replay"

    def fresh(self, _key: bytes, _ttl_s: int, _max_age_s: int | None = None) -> Kept | None:
        """What was given again."""
        return self._kept() if self.upcoming.purpose != "degraded" else None

    def stale(self, _key: bytes, _max_age_s: int) -> Kept | None:
        """What was given although stale."""
        return self._kept() if self.upcoming.purpose == "degraded" else None

    def keep(self, _key: bytes, _kept: Kept, _hold_s: int) -> bool:
        """Nothing is kept."""
        return False

    def _kept(self) -> Kept | None:
        upcoming = self.upcoming
        if not upcoming.cached:
            return None
        body = self._bodies[self._made()]
        return Kept(body, upcoming.streamed, NO_USAGE, upcoming.saved_nano_usd, upcoming.price_source, "stop", 0)
