"""A retry budget: retries to one endpoint stay a tenth of its attempts, so that they never become its load.

Owns one endpoint's budget in one worker; who is retried, and when, is the execution's. Called by `health`.
Retries <= 0.1 * first attempts + `FLOOR_PER_S` * seconds + `BANK`, for every stretch of time.
"""

from __future__ import annotations

from drivetrain.core.times import NS_PER_S

ATTEMPTS_PER_RETRY = 10
"""A first attempt earns a tenth of a retry: the worst failure makes 1.1 requests of one."""
FLOOR_PER_S = 1
"""Earned by time alone, so that a quiet endpoint's Calls are retried as well."""
BANK = 20
"""Retries that can be saved up: what a moment's fault after a calm time may add at once."""

_PRICE = ATTEMPTS_PER_RETRY + 1
"""In tenths. A retry is an attempt and earns its tenth too, which is taken back here."""
_FULL = BANK * ATTEMPTS_PER_RETRY
_TENTH_NS = NS_PER_S // (FLOOR_PER_S * ATTEMPTS_PER_RETRY)


class RetryBudget:
    """The retries of one endpoint, in integer tenths; full at the start."""

    __slots__ = ("_at_ns", "_seen", "_tenths")

    def __init__(self) -> None:
        self._tenths = _FULL
        self._seen = 0
        self._at_ns = 0

    def take(self, now_ns: int, attempts: int) -> bool:
        """Take one retry; False where there is none.

        attempts: all that ended so far, retries included. What they earned is added here, so they cost nothing.
        """
        by_time = max(0, (now_ns - self._at_ns) // _TENTH_NS)
        self._at_ns += by_time * _TENTH_NS
        self._tenths = min(_FULL, self._tenths + by_time + attempts - self._seen)
        self._seen = attempts
        if self._tenths < _PRICE:
            return False
        self._tenths -= _PRICE
        return True
