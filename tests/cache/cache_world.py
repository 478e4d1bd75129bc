"""What the cache's tests share: a clock that is moved by hand, answers, and a loop that ticks when told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from drivetrain.cache.answers import Kept
from drivetrain.core.money import Usage
from drivetrain.core.times import NS_PER_S


class Clock:
    def __init__(self) -> None:
        self.ns = 5_000 * NS_PER_S

    def now(self) -> int:
        return self.ns

    def wait(self, seconds: float) -> None:
        self.ns += round(seconds * NS_PER_S)


class Ticks:
    """`call_soon` of a loop whose ticks are made by hand."""

    def __init__(self) -> None:
        self.soon: deque[Callable[[], None]] = deque()

    def call_soon(self, function: Callable[[], None]) -> None:
        self.soon.append(function)

    def tick(self) -> None:
        for _ in range(len(self.soon)):
            self.soon.popleft()()

    def rest(self) -> None:
        while self.soon:
            self.tick()


def answer(stored_ns: int = 0, body: bytes = b"{}", **changes: object) -> Kept:
    usage = Usage(1_000, 300, 400, 500, 600, 700, "reported")
    return msgspec.structs.replace(
        Kept(body, False, usage, 123_456_789, "project", "stop", stored_ns),
        **changes,
    )
