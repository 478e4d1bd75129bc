"""The traffic of the demo's canary: many users ask `assistant` until the canary is over, and then once more.

Owns who asks, and what the clients count by themselves. Which of them the candidate answers, and that it goes back, is
the gateway's and its watcher's doing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle, islice

import msgspec

from drivetrain.cli.demo_http import HttpConnection, connections
from drivetrain.cli.demo_texts import Texts
from drivetrain.cli.demo_traffic import CHAT, CONCURRENCY
from drivetrain.core.errors import DrivetrainError

KEY = "web-chat"
USERS = 600
"""So many that a share of 5 % is about thirty of them."""
PAUSE_S = 0.04
"""Of each client after an answer, so that the canary sees a steady stream and not one burst."""
LOOK_S = 0.1
BEGINS_S_MAX = 15.0
"""For the gateway to load the candidate; it takes less than a second."""
CANARY_S_MAX = 40.0
"""A canary that was not over by then, on whatever machine, did not go back by itself."""
AFTERWARDS = 200
"""Requests once it is over."""


class CanaryTraffic(msgspec.Struct, kw_only=True):
    """What the clients counted."""

    calls: int = 0
    """Requests that were answered, well or not; the others are `dropped`."""
    cost_nano_usd: int = 0
    by_status: Counter[int] = Counter()
    dropped: int = 0
    """Requests without a whole answer."""
    took_s: float = 0.0
    """From the first request until the gateway served no candidate any more."""
    afterwards: int = 0
    """Of `calls`, those that were sent then."""
    afterwards_well: int = 0
    """Of these, the ones with status 200."""

    @property
    def well(self) -> int:
        """Calls with status 200."""
        return self.by_status[200]


def send_canary(port: int, key: str, texts: Texts, share_now: Callable[[], int]) -> CanaryTraffic:
    """Sends until the canary is over. Raises: DrivetrainError where it does not begin or does not end.

    share_now: the candidate's share in parts per million, as the gateway serves it; 0: none.
    """
    try:
        return asyncio.run(_send(port, key, texts, share_now))
    except ExceptionGroup as several:
        raise several.exceptions[0] from None


async def _send(port: int, key: str, texts: Texts, share_now: Callable[[], int]) -> CanaryTraffic:
    seen = CanaryTraffic(by_status=Counter())
    bodies = _bodies(texts)
    over = asyncio.Event()
    async with connections("127.0.0.1", port, CONCURRENCY) as opened:
        await _until(share_now, lambda share: share > 0, BEGINS_S_MAX, "did not begin")
        began_s = time.monotonic()

        async def ask(connection: HttpConnection) -> None:
            while not over.is_set() and await _ask(connection, key, next(bodies), seen):
                await asyncio.sleep(PAUSE_S)

        async def watch() -> None:
            try:
                await _until(share_now, lambda share: share == 0, CANARY_S_MAX, "was not over in time")
            finally:
                over.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(watch())
            for connection in opened:
                group.create_task(ask(connection))
        seen.took_s = time.monotonic() - began_s
        well, calls = seen.well, seen.calls
        for body in islice(bodies, AFTERWARDS):
            if not await _ask(opened[0], key, body, seen):
                break
        seen.afterwards, seen.afterwards_well = seen.calls - calls, seen.well - well
    return seen


async def _ask(connection: HttpConnection, key: str, body: bytes, seen: CanaryTraffic) -> bool:
    """Whether there was an answer; without one the connection is of no more use."""
    try:
        answer = await connection.post("/v1/chat/completions", key, body)
    except DrivetrainError:
        seen.dropped += 1
        return False
    seen.calls += 1
    seen.by_status[answer.status] += 1
    seen.cost_nano_usd += int(answer.headers.get("x-drivetrain-cost-nano-usd", "0"))
    return True


async def _until(share_now: Callable[[], int], wanted: Callable[[int], bool], seconds: float, what: str) -> None:
    deadline_s = time.monotonic() + seconds
    while not wanted(share_now()):
        if time.monotonic() > deadline_s:
            raise DrivetrainError(
                f"The demo's canary {what}: {seconds:g} s.", do="Look at gateway.log in its folder, and run it again."
            )
        await asyncio.sleep(LOOK_S)


def _bodies(texts: Texts) -> Iterator[bytes]:
    """Users in turn, each with another message every time."""
    for place, example in enumerate(cycle(texts.examples)):
        message = {"role": "user", "content": example.text}
        yield msgspec.json.encode({"model": CHAT, "user": f"user-{place % USERS}", "messages": [message]})
