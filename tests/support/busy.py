"""Clients that come again where a store had no time for them, as they are told to, and how often that may be.

A request waits 50 ms for the store of limits, and a quarter of a second for that of Idempotency-Keys. Where a machine
stands still that time passes, which costs a 503 and begins nothing. A product that refuses often, or for long, does not
keep its promises: so whoever comes again counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from support import wire

LIMITS, IDEMPOTENCY = "limits_unavailable", "idempotency_unavailable"
SHARE_MAX = 0.05
"""Of the requests to one gateway."""
MOMENTS_MAX = 6
"""However few requests there were: a moment refuses all that are under way. So often one request comes again, too."""
REFUSED_MAX = 3
"""Of a whole try, however short it was."""
MOMENT_S = 0.1
"""What a client waits before it comes again; each further time twice as long, which makes six seconds of it."""


class Patience:
    """How often the stores of one gateway had no time for its clients, who may be many at once."""

    def __init__(self, *codes: str) -> None:
        """codes: of the errors that tell a client to come again."""
        self.asked = 0
        self.refused = 0
        self._codes = codes
        self._moments = 0
        self._moment_s = 0.0
        self._counting = threading.Lock()

    @property
    def kept(self) -> bool:
        """Whether it was no more often than a machine that stands still explains."""
        return self.refused <= SHARE_MAX * self.asked or self._moments <= MOMENTS_MAX

    @property
    def hardly_tried(self) -> bool:
        """Whether it hardly happened at all: for a whole try, which there may be another one of."""
        return self.refused <= max(REFUSED_MAX, SHARE_MAX * self.asked)

    def answer(self, send: Callable[[], wire.Answered]) -> wire.Answered:
        """What `send()` gives, sent again while a store has no time; the refusal where that lasts.

        Raises: AssertionError, where it was too often.
        """
        self.ask()
        for turn in range(MOMENTS_MAX):
            if not self.must_come_again(answer := send()):
                return answer
            time.sleep(MOMENT_S * 2**turn)
        return send()

    def must_come_again(self, answer: wire.Answered) -> bool:
        """Whether a store had no time for this request. Raises: AssertionError, where that was too often."""
        if not self.is_refusal(answer):
            return False
        self.refuse()
        assert self.kept, f"{self.refused} of {self.asked} requests were refused: {answer}"
        return True

    def is_refusal(self, answer: wire.Answered) -> bool:
        """Whether it says that a store had no time."""
        return answer.status == 503 and answer.error["code"] in self._codes

    def ask(self) -> None:
        """A request is sent."""
        with self._counting:
            self.asked += 1

    def refuse(self) -> None:
        """It was refused."""
        now_s = time.monotonic()
        with self._counting:
            self.refused += 1
            if now_s - self._moment_s >= MOMENT_S:
                self._moments += 1
                self._moment_s = now_s
