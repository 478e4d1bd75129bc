"""Promise 5: one attempt budget per call. Retries never nest, never multiply, and stay a tenth of what is asked.

Counted where it matters: at the provider.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
from promise_gateway import Gateway, gateway

from drivetrain.routing.retries import ATTEMPTS_PER_RETRY, BANK, FLOOR_PER_S
from support import wire
from support.projects import model, provider, settings, workflow
from support.upstream import Asked, Script, Upstream, Wire, completion, http

pytestmark = pytest.mark.slow

ROUTES, BUDGETS = (1, 2, 3), (1, 2, 3, 4)
SDK_RETRIES = 2
"""OpenAI's SDK asks three times in all."""
KINDS = {
    "status": http(b'{"error":{"message":"no","type":"server_error"}}', status="503 Service Unavailable"),
    "limited": http(b'{"error":{"message":"no"}}', status="429 Too Many Requests", headers="retry-after: 0\r\n"),
    "cut": http(completion())[:40],
    "unusable": http(b"this is no JSON"),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        for kind, said in KINDS.items():
            running.on(f"/{kind}", said if kind != "cut" else _cut(said))
        running.on("/watched", KINDS["status"])
        turns = itertools.count()
        # Too seldom, and never often enough in a row, for its breaker to open.
        running.on(
            "/flaky", lambda _asked, to: to.send(KINDS["status"] if next(turns) % 5 in (0, 2) else http(completion()))
        )
        yield running


def _cut(said: bytes) -> Script:
    def script(_asked: Asked, to: Wire) -> None:
        to.send(said)
        to.close()

    return script


@pytest.fixture(scope="module")
def served(upstream: Upstream) -> Iterator[Gateway]:
    tables = ""
    for kind in ("watched", "flaky"):
        tables += provider(kind, f"{upstream.url}/{kind}", breaker=True) + model(f"{kind}/m")
        tables += workflow(kind, f"{kind}/m", more="attempts_max = 3\n")
    for kind in KINDS:
        tables += provider(kind, f"{upstream.url}/{kind}") + model(f"{kind}/m")
        for length, most in product(ROUTES, BUDGETS):
            tables += workflow(name(kind, length, most), *[f"{kind}/m"] * length, more=f"attempts_max = {most}\n")
    with gateway({"drivetrain.toml": settings(tables=tables)}) as running:
        yield running


def name(kind: str, length: int, most: int) -> str:
    return f"{kind}-{length}-{most}"


def ask(served: Gateway, workflow_name: str, *, stream: bool = False) -> wire.Answered:
    body = {"model": workflow_name, "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
    return wire.one(served.port, wire.request(body))


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_asks_as_often_as_it_may_and_no_more(served: Gateway, upstream: Upstream, kind: str) -> None:
    """A route that is longer than the budget ends with it; a shorter one spends the rest on its last variant."""
    upstream.forget()
    asked = [(length, most, stream) for length, most in product(ROUTES, BUDGETS) for stream in (False, True)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda one: ask(served, name(kind, one[0], one[1]), stream=one[2]), asked))
    assert {answer.status for answer in answers} <= {429, 502}
    for length, most in product(ROUTES, BUDGETS):
        calls = [call for call in served.calls() if call.workflow == name(kind, length, most)]
        assert len(calls) == 2
        for call in calls:
            assert len(call.attempts) == most, (kind, length, most, call)
    assert len(upstream.below(f"/{kind}")) == 2 * sum(most for _, most in product(ROUTES, BUDGETS))


def test_a_client_that_retries_adds_its_own_attempts_and_multiplies_no_others(
    served: Gateway, upstream: Upstream
) -> None:
    """Each of its requests is one call with one budget: no call inherits, repeats or nests another's retries."""
    upstream.forget()
    before = len(served.calls())
    for _ in range(1 + SDK_RETRIES):
        assert ask(served, name("status", 2, 3)).status == 502
    calls = served.calls()[before:]
    assert [len(call.attempts) for call in calls] == [3] * (1 + SDK_RETRIES)
    assert len(upstream.below("/status")) == 3 * (1 + SDK_RETRIES)


def test_a_failing_provider_is_not_asked_more_because_it_fails(served: Gateway, upstream: Upstream) -> None:
    """With its health watched, 300 requests of clients that retry reach it far less often than 300 times."""
    upstream.forget()
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: ask(served, "watched").status, range(300)))
    assert set(statuses) <= {502, 503}
    # 300 calls that may try three times each would be 900; the breaker and the retry budget leave a few.
    assert len(upstream.below("/watched")) <= 60, len(upstream.below("/watched"))
    assert all(len(call.attempts) <= 3 for call in served.calls() if call.workflow == "watched")


def test_retries_stay_a_tenth_of_what_is_asked(served: Gateway, upstream: Upstream) -> None:
    """Two of five requests fail. Every failure could be tried again, and only the retry budget keeps it from that."""
    upstream.forget()
    number, began = 400, time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: ask(served, "flaky").status, range(number)))
    seconds = time.monotonic() - began
    retries = len(upstream.below("/flaky")) - number
    assert 0 < retries <= number // ATTEMPTS_PER_RETRY + FLOOR_PER_S * (seconds + 1) + BANK, retries
    # A slow machine earns more retries, one a second; some calls are kept from them all the same.
    kept = [
        one for one in served.calls() if one.workflow == "flaky" and one.status == "failed" and len(one.attempts) < 3
    ]
    assert statuses.count(502) >= len(kept) > 0, "nothing had to be kept from being retried"
