"""A circuit breaker: whether one endpoint is broken, and who may find out whether it still is.

Owns the three states of one endpoint in one worker. It does not know pauses, overload or retries: those are `health`,
`throttle` and `retries`. Called by `health`, with the caller's monotonic time; it has no timer, so an endpoint that
nobody asks for is never probed.

An attempt is known by the time at which it was granted. What was granted before the circuit opened and ends later
(an answer takes up to a minute) is stale: it neither closes the circuit nor counts against the endpoint.
"""

from __future__ import annotations

from collections.abc import Callable

from drivetrain.core.times import NS_PER_S
from drivetrain.routing.window import Window

WINDOW_S = 10
"""What the share of failures is taken over: long enough for a share at 2 attempts/s, short enough to open in time."""
SAMPLES_MIN = 20
"""A share of fewer ends is chance: at 20 % failing, 10 or more of 20 do so in 0.3 % of windows."""
FAILED_PERCENT_MIN = 50
"""Below it, a retry succeeds more often than not, and the answer is worth more than the calm."""
IN_A_ROW_MAX = 5
"""Opens a quiet endpoint that never has `SAMPLES_MIN` in a window. A busy one, where short rows are chance, opens after
`SAMPLES_MIN` in a row: at once when it breaks, not when its failures outnumber ten seconds of success."""
OPEN_MIN_NS = NS_PER_S
"""The least time without an attempt: one probe per second and worker is no load."""
OPEN_MAX_NS = 30 * NS_PER_S
"""The most: how late a recovery may be noticed."""
CALM_NS = 30 * NS_PER_S
"""Closed for as long as this, the next opening starts again with short pauses; a flapping endpoint does not."""
PROBES_TO_CLOSE = 2
"""In a row. One could be luck: an endpoint that fails every second time would be closed half of the time."""
PROBE_LOST_NS = 60 * NS_PER_S
"""A probe that never ends stops counting after an attempt's default `timeout_ms`; another may then be sent."""

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"
_OK, _FAILED = 0, 1


class Breaker:
    """The circuit of one endpoint.

    random: in [0, 1); spreads the probes of workers that saw the same failure.
    """

    __slots__ = (
        "_closed_ns", "_in_a_row", "_opened_ns", "_openings", "_passed", "_probe_ns", "_random", "_window",
        "cause", "state", "until_ns",
    )  # fmt: skip

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._window = Window(2, slices=WINDOW_S, slice_ns=NS_PER_S)
        self._in_a_row = 0
        self._openings = 0
        """Without a calm time between them; the pause grows with it."""
        self._opened_ns = -1
        self._closed_ns = -CALM_NS
        self._passed = 0
        """Probes that succeeded since it became half-open."""
        self._probe_ns = -1
        """When the probe that runs was granted; -1: none runs."""
        self.state = CLOSED
        self.until_ns = 0
        """Open: when a probe may be sent. Half-open with a probe: when that counts as lost."""
        self.cause = ""
        """Why it opened, for people: `12 of 20 failed`."""

    def grants(self, now_ns: int) -> bool:
        """Whether an attempt may be sent; while half-open this grants the one probe."""
        if self.state == CLOSED:
            return True
        if now_ns < self.until_ns:
            return False
        if self.state == OPEN:
            self.state, self._passed = HALF_OPEN, 0
        self._probe_ns = now_ns
        self.until_ns = now_ns + PROBE_LOST_NS
        return True

    def give_back(self, granted_ns: int) -> None:
        """The attempt ended without a word about health; if it was the probe, another may be sent."""
        if granted_ns == self._probe_ns:
            self._probe_ns = -1
            self.until_ns = granted_ns

    def is_stale(self, granted_ns: int) -> bool:
        """Whether the attempt was granted before the circuit last opened."""
        return granted_ns < self._opened_ns

    def succeeded(self, granted_ns: int, now_ns: int) -> bool:
        """A probe showed that the endpoint answers; True where that closed the circuit. Costs nothing for others."""
        if granted_ns != self._probe_ns:
            return False
        self.give_back(granted_ns)
        self._passed += 1
        if self._passed < PROBES_TO_CLOSE:
            return False
        self.state, self._closed_ns, self._in_a_row = CLOSED, now_ns, 0
        self._window.clear()
        return True

    def worked(self, now_ns: int, count: int) -> None:
        """`count` attempts succeeded while closed."""
        self._in_a_row = 0
        self._window.add(now_ns, _OK, count)

    def failed(self, now_ns: int) -> None:
        """An attempt that is not stale failed."""
        if self.state != CLOSED:
            # Also a probe that was answered or counted as lost, and then failed.
            self._open(now_ns, "a failed probe")
            return
        self._in_a_row += 1
        self._window.add(now_ns, _FAILED)
        failed = self._window.totals[_FAILED]
        ended = failed + self._window.totals[_OK]
        if ended >= SAMPLES_MIN and failed * 100 >= ended * FAILED_PERCENT_MIN:
            self._open(now_ns, f"{failed} of {ended} failed")
        elif self._in_a_row >= (IN_A_ROW_MAX if ended < SAMPLES_MIN else SAMPLES_MIN):
            self._open(now_ns, f"{self._in_a_row} failures in a row")

    def _open(self, now_ns: int, cause: str) -> None:
        if self.state == CLOSED and now_ns - self._closed_ns >= CALM_NS:
            self._openings = 0
        self._openings += 1
        # Full jitter above a minimum: 1 to 2 s, 1 to 4 s, ... 1 to 30 s.
        longest_ns = min(OPEN_MAX_NS, OPEN_MIN_NS << min(self._openings, 6))
        self.state, self.cause, self._probe_ns = OPEN, cause, -1
        # An attempt granted at this very reading was granted before.
        self._opened_ns = now_ns + 1
        self.until_ns = now_ns + OPEN_MIN_NS + int(self._random() * (longest_ns - OPEN_MIN_NS))
