"""Attacks on answers that are given again: to the wrong tenant, from a poisoned entry, against the client's word.

Proved elsewhere: keys whose parts cannot be confused, ages, sizes, single flights and who leads them, `Cache-Control`
(cache/*); idempotency keys of other callers (gateway/test_idempotency). Here: the same through the public door.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from attack_world import ENVIRON, KEY, OTHER_KEY, WITH_KEY, ask, body, text_of, then_end, tool_call

from support import books, wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.upstream import STREAM_HEAD, Asked, Upstream, Wire, chunk, completion, http, stream, stream_events

pytestmark = pytest.mark.slow

THIRD_KEY = "client-key-third01234-very-secret"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Served]:
    cached = "attempts_max = 1\ncache = { ttl_s = 3600 }\n"
    tables = (
        provider("raw", f"{upstream.url}/raw", more=WITH_KEY)
        + model("raw/m")
        + '[keys.app]\nsecret = "env:CLIENT_KEY"\ntenant = "acme"\nmay_override = ["user", "tags"]\n'
        + '[keys.third]\nsecret = "env:THIRD_KEY"\ntenant = "acme"\n'
        + '[keys.other]\nsecret = "env:OTHER_KEY"\ntenant = "acm"\n'
        + workflow("chat", "raw/m", more=cached)
        + workflow("tools", "raw/m", more="attempts_max = 1\ncache = { ttl_s = 3600, tool_calls = true }\n")
        + workflow("always", "raw/m", more='attempts_max = 1\ncache = { ttl_s = 3600, when = "always" }\n')
        + workflow(
            "stale", "raw/m",
            more="attempts_max = 1\ncache = { ttl_s = 1 }\ndegrade = [{ stale_max_age_s = 3600 }]\n",
        )
        + books.limit("each", "each tenant", usd="10")
    )  # fmt: skip
    with served({"drivetrain.toml": settings(tables=tables)}, {**ENVIRON, "THIRD_KEY": THIRD_KEY}) as running:
        yield running
        assert running.stop() == 0
        assert not running.faults, "\n".join(running.faults)


_numbers = iter(range(1_000_000))


@pytest.fixture(autouse=True)
def _fresh(upstream: Upstream) -> None:
    upstream.forget()
    numbered(upstream)


def numbered(upstream: Upstream) -> None:
    """Every answer of the provider is another one."""

    def script(asked: Asked, to: Wire) -> None:
        said = f"answer {next(_numbers)}"
        to.send(stream(stream_events(said)) if asked.json.get("stream") else http(completion(said)))

    upstream.on("/raw", script)


def question(**more: Any) -> dict[str, Any]:
    """One that nobody asked before, and whose answer its bytes determine."""
    return body(f"question {next(_numbers)}", **{"temperature": 0, **more})


def is_hit(answer: wire.Answered) -> bool:
    return "x-drivetrain-cache" in answer.headers


def test_an_answer_is_given_again_within_its_tenant_and_to_nobody_else(gateway: Served, upstream: Upstream) -> None:
    said = question()
    first, again, third = ask(gateway, said), ask(gateway, said), ask(gateway, said, key=THIRD_KEY)
    assert text_of(first) == text_of(again) == text_of(third)
    assert (is_hit(first), is_hit(again), is_hit(third)) == (False, True, True)
    other = ask(gateway, said, key=OTHER_KEY)
    assert not is_hit(other)
    assert text_of(other) != text_of(first)
    assert len(upstream.asked) == 2
    assert text_of(ask(gateway, said)) == text_of(first), "the other tenant's answer took its place"


@pytest.mark.parametrize("name", ["user", "metadata", "tenant", "prompt_cache_key", "x_tenant", "safety_identifier"])
def test_no_field_of_a_request_reaches_into_another_tenant(gateway: Served, name: str) -> None:
    said = question(**{name: {"tenant": "acme"} if name == "metadata" else "acme"})
    mine = ask(gateway, said)
    for headers in ("", "x-drivetrain-tenant: acme\r\nx-tenant: acme\r\n"):
        other = ask(gateway, said, key=OTHER_KEY, headers=headers)
        assert text_of(other) != text_of(mine)


def test_two_tenants_that_ask_at_once_do_not_share_a_flight(gateway: Served, upstream: Upstream) -> None:
    go = threading.Event()

    def held(_asked: Asked, to: Wire) -> None:
        said = f"answer {next(_numbers)}"
        go.wait(60)
        to.send(http(completion(said)))

    upstream.on("/raw", held)
    said = question()
    with ThreadPoolExecutor(6) as pool:
        mine = [pool.submit(ask, gateway, said, key=key) for key in (KEY, KEY, THIRD_KEY)]
        theirs = [pool.submit(ask, gateway, said, key=OTHER_KEY) for _ in range(3)]
        while len(upstream.asked) < 2:
            time.sleep(0.01)
        time.sleep(0.1)  # for those who wait for the two that were sent
        go.set()
        ours, others = ({text_of(one.result()) for one in some} for some in (mine, theirs))
    assert len(upstream.asked) == 2
    assert len(ours) == len(others) == 1
    assert not ours & others


def test_who_leads_a_flight_and_leaves_spoils_nobodys_answer(gateway: Served, upstream: Upstream) -> None:
    def cut(_asked: Asked, to: Wire) -> None:
        to.send(STREAM_HEAD, chunk(stream_events("poison")[0]), chunk(stream_events("poison")[1]))
        to.left(60)

    upstream.on("/raw", cut)
    said = question(stream=True)
    leader = wire.connect(gateway.port)
    leader.sendall(wire.request(said, key=KEY))
    assert leader.recv(100)
    waiter = wire.connect(gateway.port)
    waiter.sendall(wire.request(said, key=THIRD_KEY))
    time.sleep(0.1)
    numbered(upstream)
    leader.close()
    with waiter:
        answer = wire.hear(waiter).answers[0]
    assert answer.whole
    assert answer.text.startswith("answer ")
    assert ask(gateway, said).text == answer.text


@pytest.mark.parametrize(
    "headers",
    [
        "x-forwarded-host: evil.example\r\nx-forwarded-proto: evil\r\nhost2: evil\r\n",
        "cookie: session=evil\r\naccept-language: evil\r\nuser-agent: evil\r\nreferer: http://evil/\r\n",
        "x-drivetrain-user: evil\r\nx-drivetrain-tags: evil=1\r\n",
        "x-http-method-override: PUT\r\nx-original-url: /evil\r\naccept: text/evil\r\naccept-encoding: gzip\r\n",
        "cache-control: max-age=3600, public, s-maxage=9\r\npragma: cache\r\nvary: *\r\nage: 0\r\n",
    ],
)
def test_no_header_poisons_what_others_are_given(gateway: Served, upstream: Upstream, headers: str) -> None:
    said = question()
    first = ask(gateway, said, headers=headers)
    clean = ask(gateway, said, key=THIRD_KEY)
    assert clean.headers["x-drivetrain-cache"] == "hit"
    assert clean.body == first.body
    assert b"evil" not in clean.body + str(clean.headers).encode()
    assert b"evil" not in upstream.asked[0].head + upstream.asked[0].body


def test_an_answer_that_calls_a_tool_is_given_again_only_where_that_is_allowed(
    gateway: Served, upstream: Upstream
) -> None:
    """Two workflows of one tenant ask the same model the same: one may keep such answers, the other never sees them."""
    tools = [{"type": "function", "function": {"name": "pay", "parameters": {"type": "object"}}}]
    for finish in ("tool_calls", "stop"):
        said = question(tools=tools)
        upstream.on("/raw", http(tool_call(finish)))
        assert not is_hit(ask(gateway, {**said, "model": "tools"}))
        assert is_hit(ask(gateway, {**said, "model": "tools"}))
        upstream.forget()
        for _ in range(2):
            assert not is_hit(ask(gateway, said)), "a payment would be made twice"
        assert len(upstream.asked) == 2


@pytest.mark.parametrize(
    "answer",
    [
        http(b'{"error":{"message":"no"}}', status="400 Bad Request"),
        http(b"{}", status="500 Internal Server Error"),
        http(completion(), status="203 Other"),
        http(b"<html>"),
        http(completion(choices=[])),
        http(completion(choices=[{"index": 0, "message": {"content": "cut"}, "finish_reason": "length"}])),
        http(completion(choices=[{"index": 0, "message": {"content": "no"}, "finish_reason": "content_filter"}])),
        http(completion(choices=[{"index": 0, "message": {"content": "?"}}])),
        http(completion(), headers="content-encoding: gzip\r\n"),
    ],
)
def test_what_is_no_whole_answer_is_never_given_again(gateway: Served, upstream: Upstream, answer: bytes) -> None:
    upstream.on("/raw", answer)
    said = question()
    ask(gateway, said)
    numbered(upstream)
    for key in (KEY, OTHER_KEY):
        now = ask(gateway, said, key=key)
        assert not is_hit(now)
        assert text_of(now).startswith("answer ")


@pytest.mark.parametrize("streamed", [False, True])
def test_what_was_cut_is_never_given_again(gateway: Served, upstream: Upstream, streamed: bool) -> None:
    cut = STREAM_HEAD + b"".join(map(chunk, stream_events("half")[:2])) if streamed else http(completion())[:-5]
    upstream.on("/raw", then_end(cut, reset=True))
    said = question(stream=streamed)
    first = ask(gateway, said)
    assert "error" in (first.events[-1] if streamed else first.json)
    numbered(upstream)
    again = ask(gateway, said)
    assert (again.text if streamed else text_of(again)).startswith("answer ")


@pytest.mark.parametrize(
    "headers",
    [
        "cache-control: no-store\r\n",
        "CACHE-CONTROL: No-Store\r\n",
        "cache-control: max-age=9,no-store,public\r\n",
        'cache-control: foo="no-cache, x", no-store\r\n',
        "x-drivetrain-cache: off\r\n",
        f"cache-control: {'x' * 600}, no-store\r\n",
    ],
)
def test_what_may_not_be_stored_is_not_stored_and_not_shared(gateway: Served, upstream: Upstream, headers: str) -> None:
    said = question()
    private = ask(gateway, said, headers=headers)
    public = ask(gateway, said)
    assert not is_hit(public)
    assert text_of(public) != text_of(private)
    assert not is_hit(ask(gateway, said, headers=headers)), "who forbids storing is given nothing stored"
    assert len(upstream.asked) == 3


def test_a_private_request_joins_nobodys_flight(gateway: Served, upstream: Upstream) -> None:
    go = threading.Event()

    def held(_asked: Asked, to: Wire) -> None:
        said = f"answer {next(_numbers)}"
        go.wait(60)
        to.send(http(completion(said)))

    upstream.on("/raw", held)
    said = question()
    with ThreadPoolExecutor(2) as pool:
        private = pool.submit(ask, gateway, said, headers="cache-control: no-store\r\n")
        while not upstream.asked:
            time.sleep(0.01)
        public = pool.submit(ask, gateway, said)
        while len(upstream.asked) < 2:
            time.sleep(0.01)
        go.set()
        assert text_of(private.result()) != text_of(public.result())


@pytest.mark.parametrize(
    "more",
    [{"temperature": 0.0001}, {"temperature": None}, {"n": 2}, {"tools": [{"type": "web_search"}]},
     {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/"}}]}]}],
)  # fmt: skip
def test_what_its_bytes_do_not_determine_is_asked_anew(
    gateway: Served, upstream: Upstream, more: dict[str, Any]
) -> None:
    said = {**question(), **more}
    answers = [ask(gateway, said) for _ in range(2)]
    assert not any(map(is_hit, answers))


def test_a_stale_answer_is_its_tenants_alone(gateway: Served, upstream: Upstream) -> None:
    said = question(model="stale")
    kept = text_of(ask(gateway, said))
    time.sleep(1.05)
    upstream.on("/raw", http(b"{}", status="500 Internal Server Error"))
    for key in (OTHER_KEY, KEY, OTHER_KEY):
        answer = ask(gateway, said, key=key)
        if key == KEY:
            assert answer.headers["x-drivetrain-cache"] == "stale"
            assert text_of(answer) == kept
        else:
            assert answer.status == 502
            assert kept.encode() not in answer.body
    assert ask(gateway, said, headers="cache-control: no-store\r\n").status == 502


def test_a_stream_and_a_whole_answer_are_kept_apart(gateway: Served, upstream: Upstream) -> None:
    said = question(model="always", temperature=0.7)
    whole, streamed = ask(gateway, said), ask(gateway, {**said, "stream": True})
    assert text_of(whole) != streamed.text
    for _ in range(2):
        assert text_of(ask(gateway, said)) == text_of(whole)
        again = ask(gateway, {**said, "stream": True})
        assert again.whole
        assert again.text == streamed.text
    assert len(upstream.asked) == 2
