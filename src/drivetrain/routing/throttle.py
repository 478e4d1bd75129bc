"""How much of the demand an overloaded endpoint is sent: adaptive throttling, and the ramp after a rest.

Owns one endpoint's share in one worker. Whether it is broken is `breaker`'s to say. Called by `health`.

Source of the formula: Site Reliability Engineering (Beyer et al., 2016), chapter 21 "Handling Overload",
"Client-Side Throttling": reject with probability max(0, (requests - K * accepts) / (requests + 1)). Three changes,
because an answer here takes a minute rather than a millisecond:

- An attempt counts when it ended. Counted when sent, twenty long answers on their way would look like twenty refusals.
- `FREE` requests are not held against the endpoint; else one refusal would turn away half of a quiet minute.
- Requests turned away here count only while the endpoint itself still refuses some. Else the throttle would feed on
  its own refusals until long answers, admitted one by one, outnumber them.
"""

from __future__ import annotations

from collections.abc import Callable

from drivetrain.core.times import NS_PER_S
from drivetrain.routing.window import Window

K = 2
"""Sends an overloaded endpoint twice what it accepts: half of it is wasted, and its recovery is seen at once."""
FREE = 5
"""Per window, admitted whatever is accepted: about one a second, which is how the end of an overload is noticed."""
SLICE_NS = NS_PER_S // 2
SLICES = 10
"""Five seconds. The book has two minutes, for tasks with thousands of requests; here a recovery must be seen soon."""
RAMP_S = 5
"""How long a recovered endpoint is led back to its load. Its caches are cold, and other workers come back as well."""
RAMP_FREE = 5
"""Per second, admitted during the ramp in any case: below it there is no herd to hold back."""

_ACCEPTED, _REFUSED, _DENIED = 0, 1, 2


class Throttle:
    """The share of one endpoint.

    random: in [0, 1).
    """

    __slots__ = ("_ramp_granted", "_ramp_ns", "_ramp_second", "_random", "_window")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._window = Window(3, slices=SLICES, slice_ns=SLICE_NS)
        self._ramp_ns = -1
        """Since when it is led back; -1: it is not."""
        self._ramp_second = -1
        self._ramp_granted = 0

    def accepted(self, now_ns: int, count: int = 1) -> None:
        """The endpoint did `count` attempts' work."""
        self._window.add(now_ns, _ACCEPTED, count)

    def refused(self, now_ns: int) -> None:
        """The endpoint refused or failed an attempt."""
        self._window.add(now_ns, _REFUSED)

    def lead_back(self, now_ns: int) -> None:
        """Begin the ramp: 1/32 of the demand now, twice as much every second, all of it after `RAMP_S`."""
        self._window.clear()
        self._ramp_ns, self._ramp_second = now_ns, -1

    def is_idle(self, now_ns: int) -> bool:
        """Whether it would turn nothing away."""
        self._window.advance(now_ns)
        return not self._ramps(now_ns) and self._excess() <= 0

    def admits(self, now_ns: int) -> bool:
        """Whether this attempt may be sent."""
        self._window.advance(now_ns)
        accepted, refused, denied = self._window.totals
        if denied and not refused:
            self.lead_back(now_ns)
        if self._ramps(now_ns) and not self._on_ramp(now_ns):
            return False
        excess = self._excess()
        if excess > 0 and self._random() * (accepted + refused + denied + 1) < excess:
            self._window.add(now_ns, _DENIED)
            return False
        return True

    def _excess(self) -> int:
        accepted, refused, denied = self._window.totals
        return accepted + refused + denied - K * accepted - FREE

    def _ramps(self, now_ns: int) -> bool:
        if self._ramp_ns >= 0 and now_ns - self._ramp_ns >= RAMP_S * NS_PER_S:
            self._ramp_ns = -1
        return self._ramp_ns >= 0

    def _on_ramp(self, now_ns: int) -> bool:
        elapsed_ns = now_ns - self._ramp_ns
        second = elapsed_ns // NS_PER_S
        if second != self._ramp_second:
            self._ramp_second, self._ramp_granted = second, 0
        if self._ramp_granted < RAMP_FREE:
            self._ramp_granted += 1
            return True
        share: float = 2.0 ** (elapsed_ns / NS_PER_S - RAMP_S)
        return self._random() < share
