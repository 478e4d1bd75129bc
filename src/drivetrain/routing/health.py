"""What one worker knows about its providers' health: whom to ask now, and whom to leave in peace.

Owns, per endpoint (named by its provider), a circuit breaker, a throttle, a retry budget and the pause that the
endpoint asked for. Pure: time is the caller's monotonic reading, chance is injected, nothing is shared between
workers. Called by the execution, around every attempt:

    denied = health.may_send(name, now_ns)           # None: granted, and `now_ns` is the attempt's name from here on
    health.answered(name, granted_ns, now_ns)        # when a 2xx head came
    health.ended(name, granted_ns, now_ns, "ok")     # or, where it said nothing: withdrawn(name, granted_ns)

Memory: about 3 KB per endpoint, and endpoints come from the project only. A healthy attempt costs one look-up and one
comparison when it is sent, and one look-up and one addition when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from drivetrain.routing.breaker import CLOSED, HALF_OPEN, OPEN, Breaker
from drivetrain.routing.retries import RetryBudget
from drivetrain.routing.throttle import SLICE_NS, Throttle

Outcome = Literal["ok", "failed", "limited", "ours"]
"""ok: answered. failed: no connection, timeout, 5xx, cut. limited: 429, 529, 503 with a pause. ours: any other 4xx."""
Kind = Literal["open", "throttled", "paused"]

PAUSE_MAX_MS = 60_000
"""The longest `Retry-After` that is honoured; beyond, asking again costs one refusal, and not asking costs an hour."""
PAUSE_SPREAD = 0.1
"""Share of a pause that is added at random, so that workers who were told the same do not come back together."""
ASK_AGAIN_MS = 1_000
"""What a Call is told that was turned away for no known time."""
SAID_AGAIN_NS = 100_000_000
"""How long a refusal is said again before its text is made anew: turning away costs less than serving."""

_NS_PER_MS = 1_000_000


class Denied(msgspec.Struct, frozen=True, kw_only=True):
    """Why an attempt must not be sent now."""

    kind: Kind
    reason: str
    """For people: `circuit open after 12 of 20 failed; next probe in 3.2 s`."""
    retry_after_ms: int
    """When asking again may help; at most `SAID_AGAIN_NS` old."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What was turned away for one endpoint since the worker began."""

    open: int
    throttled: int
    paused: int
    retries: int
    """Retries that the budget did not allow."""


class Health:
    """The health of every endpoint, as one worker sees it.

    names: of the project's providers. One that is not named (a provider that a reload removed, while old Calls still
    end) is always granted and never retried.
    random: in [0, 1).
    """

    def __init__(self, names: Iterable[str], random: Callable[[], float]) -> None:
        self._random = random
        self._endpoints: dict[str, _Endpoint] = {}
        self.use(names)

    def use(self, names: Iterable[str]) -> None:
        """Know exactly these from now on; those known already keep their state, also where their address changed."""
        known = self._endpoints
        self._endpoints = {name: known.get(name) or _Endpoint(self._random) for name in names}

    def may_send(self, name: str, now_ns: int) -> Denied | None:
        """None grants one attempt, which must come to `ended` or `withdrawn`; while half-open it is the only one."""
        endpoint = self._endpoints.get(name)
        if endpoint is None or endpoint.healthy:
            return None
        return endpoint.ask(now_ns)

    def withdrawn(self, name: str, granted_ns: int) -> None:
        """A granted attempt was never sent, or its client left before a status came: nothing was learnt."""
        endpoint = self._endpoints.get(name)
        if endpoint is not None:
            endpoint.breaker.give_back(granted_ns)

    def answered(self, name: str, granted_ns: int, now_ns: int) -> None:
        """A 2xx head came. That is what a probe is for: a long answer must not keep everyone else waiting."""
        endpoint = self._endpoints.get(name)
        if endpoint is not None and not endpoint.healthy:
            endpoint.show_life(granted_ns, now_ns)

    def ended(self, name: str, granted_ns: int, now_ns: int, outcome: Outcome, retry_after_ms: int = -1) -> None:
        """A granted attempt ended.

        `failed` counts for the breaker and the throttle, `limited` for the throttle alone: who refuses is not broken.
        As a probe, `limited` fails all the same (who refuses one request is not ready for all) and `ours` succeeds.

        retry_after_ms: the pause that the endpoint asked for, -1 where it did not. It is the whole endpoint's.
        """
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            return
        if outcome == "ok" and endpoint.healthy and now_ns < endpoint.counted_until_ns:
            endpoint.oks += 1
            return
        endpoint.end(granted_ns, now_ns, outcome, retry_after_ms)

    def may_retry(self, name: str, now_ns: int) -> bool:
        """Take a retry from the endpoint's budget; the attempt itself still needs `may_send`."""
        endpoint = self._endpoints.get(name)
        return endpoint is not None and endpoint.take_retry(now_ns)

    def states(self, now_ns: int) -> dict[str, str]:
        """`closed`, `open`, `half_open` (a probe is due or runs) or `paused`, of every endpoint."""
        return {name: endpoint.state(now_ns) for name, endpoint in self._endpoints.items()}

    def counts(self) -> dict[str, Counts]:
        """What was turned away, of every endpoint."""
        return {name: endpoint.counts() for name, endpoint in self._endpoints.items()}


class _Endpoint:
    """One endpoint: what its parts say together, and the short cut while all of them say yes."""

    __slots__ = (
        "_attempts", "_denials", "_paused_until_ns", "_random", "_retries", "_retries_denied", "_said", "_said_ns",
        "_throttle", "breaker", "counted_until_ns", "healthy", "oks",
    )  # fmt: skip

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.breaker = Breaker(random)
        self._throttle = Throttle(random)
        self._retries = RetryBudget()
        self._paused_until_ns = 0
        self._attempts = 0
        """That ended, but for `oks`."""
        self._denials: dict[Kind, int] = {"open": 0, "throttled": 0, "paused": 0}
        self._retries_denied = 0
        self._said: Denied | None = None
        self._said_ns = 0
        self.healthy = True
        """Closed, not paused and not throttled: every attempt is granted."""
        self.oks = 0
        """Successes while healthy that the windows have not heard of."""
        self.counted_until_ns = 0
        """Until then `oks` belong to one slice of the windows."""

    def ask(self, now_ns: int) -> Denied | None:
        if now_ns < self._paused_until_ns:
            return self._deny("paused", now_ns, self._paused_until_ns)
        if self.breaker.state != CLOSED:
            return None if self.breaker.grants(now_ns) else self._deny("open", now_ns, self.breaker.until_ns)
        if not self._throttle.admits(now_ns):
            return self._deny("throttled", now_ns, now_ns)
        self.healthy = self._throttle.is_idle(now_ns)
        return None

    def show_life(self, granted_ns: int, now_ns: int) -> None:
        if self.breaker.succeeded(granted_ns, now_ns):
            self._throttle.lead_back(now_ns)

    def end(self, granted_ns: int, now_ns: int, outcome: Outcome, retry_after_ms: int) -> None:
        self._count(now_ns)
        self._attempts += 1
        if outcome in {"ok", "ours"}:
            self.show_life(granted_ns, now_ns)
            if outcome == "ok" and self.breaker.state == CLOSED:
                self.breaker.worked(now_ns, 1)
                self._throttle.accepted(now_ns)
        elif not self.breaker.is_stale(granted_ns):
            self._throttle.refused(now_ns)
            if outcome == "failed" or self.breaker.state != CLOSED:
                self.breaker.failed(now_ns)
        if retry_after_ms > 0:
            pause_ns = min(retry_after_ms, PAUSE_MAX_MS) * _NS_PER_MS
            until_ns = now_ns + pause_ns + int(self._random() * PAUSE_SPREAD * pause_ns)
            self._paused_until_ns = max(self._paused_until_ns, until_ns)
        self.healthy = (
            self.breaker.state == CLOSED and now_ns >= self._paused_until_ns and self._throttle.is_idle(now_ns)
        )

    def take_retry(self, now_ns: int) -> bool:
        taken = self._retries.take(now_ns, self._attempts + self.oks)
        self._retries_denied += not taken
        return taken

    def state(self, now_ns: int) -> str:
        if now_ns < self._paused_until_ns:
            return "paused"
        state = self.breaker.state
        return HALF_OPEN if state == OPEN and now_ns >= self.breaker.until_ns else state

    def counts(self) -> Counts:
        return Counts(**self._denials, retries=self._retries_denied)

    def _count(self, now_ns: int) -> None:
        """Tell the windows of the successes so far, at the time that they belong to."""
        if self.oks:
            at_ns = min(now_ns, self.counted_until_ns)
            self.breaker.worked(at_ns, self.oks)
            self._throttle.accepted(at_ns, self.oks)
            self._attempts += self.oks
            self.oks = 0
        self.counted_until_ns = now_ns + SLICE_NS

    def _deny(self, kind: Kind, now_ns: int, until_ns: int) -> Denied:
        self._denials[kind] += 1
        said = self._said
        if said is None or said.kind != kind or now_ns >= self._said_ns + SAID_AGAIN_NS:
            said = self._said = self._denied(kind, until_ns - now_ns)
            self._said_ns = now_ns
        return said

    def _denied(self, kind: Kind, wait_ns: int) -> Denied:
        wait_ms = max(1, -(-wait_ns // _NS_PER_MS))
        if kind == "paused":
            reason = f"the provider asked for a pause; it ends in {wait_ms / 1000:.1f} s"
        elif kind == "throttled":
            reason, wait_ms = "throttled: the provider refuses too much, or is being led back to its load", ASK_AGAIN_MS
        elif self.breaker.state == HALF_OPEN:
            reason, wait_ms = f"circuit half open after {self.breaker.cause}; a probe is running", ASK_AGAIN_MS
        else:
            reason = f"circuit open after {self.breaker.cause}; next probe in {wait_ms / 1000:.1f} s"
        return Denied(kind=kind, reason=reason, retry_after_ms=wait_ms)
