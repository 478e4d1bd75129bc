"""Promise 6: a provider that stalls before its first byte is left within the limit + 100 ms.

Measured at the providers: from the first one's request to the second one's. Every call of a run keeps it, in the best
of a few whole runs: a machine that stands still for a moment spoils one, and a deadline that is missed at times all.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from promise_gateway import Gateway, best_s, gateway

from support import wire
from support.projects import model, provider, settings, workflow
from support.upstream import Asked, Upstream, Wire, completion, http, stream, stream_events

pytestmark = pytest.mark.slow

LIMITS_MS = (150, 201, 330)
"""Not all of them whole multiples of how often deadlines are looked at."""
WITHIN_S = 0.1
TIMES = 20


class Clocked(Upstream):
    """Notes when the request of each call came to the first and to the second provider."""

    def __enter__(self) -> Clocked:
        super().__enter__()
        self.came: dict[str, dict[str, float]] = {}
        self._noting = threading.Lock()
        self.on("/first", self._stall)
        self.on("/second", self._answer)
        return self

    def _note(self, asked: Asked, which: str) -> str:
        text: str = asked.json["messages"][-1]["content"]
        with self._noting:
            self.came.setdefault(text, {})[which] = time.monotonic()
        return text

    def _stall(self, asked: Asked, to: Wire) -> None:
        if "head" in self._note(asked, "first"):
            to.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        to.left(60)
        to.close()

    def _answer(self, asked: Asked, to: Wire) -> None:
        self._note(asked, "second")
        to.send(stream(stream_events()) if asked.json.get("stream") else http(completion()))

    def took_ms(self, text: str) -> float:
        came = self.came[text]
        return (came["second"] - came["first"]) * 1000


@pytest.fixture(scope="module")
def upstream() -> Iterator[Clocked]:
    with Clocked() as running:
        yield running


@pytest.fixture(scope="module")
def served(upstream: Clocked) -> Iterator[Gateway]:
    tables = "".join(provider(name, f"{upstream.url}/{name}") + model(f"{name}/m") for name in ("first", "second"))
    for limit_ms in LIMITS_MS:
        first = f'{{ name = "first", model = "first/m", first_byte_timeout_ms = {limit_ms} }}'
        tables += workflow(f"w{limit_ms}", first, "second/m")
    with gateway({"drivetrain.toml": settings(tables=tables)}) as running:
        yield running


@pytest.mark.parametrize("how", ["whole", "stream", "stream with a head"])
def test_a_stall_before_the_first_byte_falls_back_within_the_limit_and_100_ms(
    served: Gateway, upstream: Clocked, how: str
) -> None:
    runs = itertools.count()

    def call(which: tuple[int, int, int]) -> float:
        run, limit_ms, number = which
        text = f"{how} {run} {limit_ms} {number}"
        body = {"model": f"w{limit_ms}", "stream": how != "whole", "messages": [{"role": "user", "content": text}]}
        time.sleep(number * 0.037)  # so that they begin anywhere between two looks at the deadlines
        answer = wire.one(served.port, wire.request(body))
        assert answer.status == 200
        return upstream.took_ms(text) - limit_ms

    def beyond_s() -> float:
        """The most of a whole run."""
        run = next(runs)
        asked = [(run, limit_ms, number) for limit_ms in LIMITS_MS for number in range(TIMES)]
        with ThreadPoolExecutor(len(asked)) as pool:
            beyond = sorted(pool.map(call, asked))
        print(f"{how}: {beyond[0]:.0f} to {beyond[-1]:.0f} ms beyond the limit, median {beyond[len(beyond) // 2]:.0f}")
        return beyond[-1] / 1000

    assert best_s(beyond_s, WITHIN_S) <= WITHIN_S
    # The stalling provider's thread may note its request late, so the gateway's own clock says whether it waited.
    waited = [
        ((first.ended_us - first.sent_us) / 1000, int(call.workflow[1:]))
        for call in served.calls()
        if (first := call.attempts[0]).failure == "first_byte_timeout"
    ]
    assert len(waited) >= len(LIMITS_MS) * TIMES
    assert all(waited_ms >= limit_ms - 1 for waited_ms, limit_ms in waited), "a provider was left before its time"
