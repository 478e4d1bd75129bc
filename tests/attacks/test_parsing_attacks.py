"""Attacks on what is read: bombs, numbers, names that end up in heads, and spellings of a path.

Proved elsewhere: sizes, depth, odd JSON, odd values of every parameter, one gzip body each way, `..` and NUL in paths
(gateway/test_hostile_input, test_hostile_upstream); terminal escapes in what the commands print (ledger). Here: bombs
of every coding in both directions, numbers of a million digits, and line feeds in everything that comes near a head.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from attack_world import ENVIRON, KEY, PROVIDER_KEY, WITH_KEY, ask, body, echo, text_of, then_end

from promises.promise_gateway import best_s
from support import books, wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.upstream import STREAM_END, Upstream, chunk, completion, http

pytestmark = pytest.mark.slow

INFLATED = 200_000_000
BOMB = gzip.compress(b" " * INFLATED)
MEMORY_MAX = 40_000_000
"""What a bomb may leave behind; inflated, it would be five times as much."""
EVIL = "x\r\nset-cookie: evil=1\r\nx-evil: 1\r\n\r\nGET /evil HTTP/1.1"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Served]:
    tables = (
        provider("raw", f"{upstream.url}/raw", more=WITH_KEY)
        + model("raw/m")
        + '[keys.app]\nsecret = "env:CLIENT_KEY"\nmay_override = ["user", "tags"]\n'
        + workflow("chat", "raw/m", more="attempts_max = 1\n")
        + workflow("poor", "raw/m", more="attempts_max = 1\n")
        + workflow("tiered", "raw/m", more='parameters = { honour = ["service_tier", "web_search_options"] }\n')
        + books.limit("all", "project", usd="1000")
        + books.limit("none-left", "workflow:poor", usd="0.000000001")
    )
    with served({"drivetrain.toml": settings(tables=tables)}, ENVIRON) as running:
        yield running
        assert running.stop() == 0
        assert not running.faults, "\n".join(running.faults)


@pytest.fixture(autouse=True)
def _fresh(upstream: Upstream) -> None:
    upstream.forget()
    upstream.on("/raw", echo)


# Bombs.


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip"])
def test_a_request_is_never_inflated(gateway: Served, upstream: Upstream, coding: str) -> None:
    before = gateway.resident_bytes()
    raw = wire.request(BOMB, key=KEY, headers=f"content-encoding: {coding}\r\n")
    answer = wire.one(gateway.port, raw)
    assert (answer.status, answer.error["code"]) == (415, "encoded_body")
    assert gateway.resident_bytes() - before < MEMORY_MAX
    assert upstream.asked == []


@pytest.mark.parametrize("headers", ["", "content-encoding: identity\r\n", "content-type: application/gzip\r\n"])
def test_what_does_not_say_that_it_is_encoded_is_no_json(gateway: Served, upstream: Upstream, headers: str) -> None:
    raw = wire.request(gzip.compress(json.dumps(body()).encode()), key=KEY, headers=headers)
    answer = wire.one(gateway.port, raw)
    assert (answer.status, answer.error["code"]) == (400, "invalid_json")
    assert upstream.asked == []


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("coding", ["gzip", "X-GZIP", "deflate", "br", "identity, gzip", "gzip, gzip", ""])
def test_an_answer_is_never_inflated_and_never_passed_on(
    gateway: Served, upstream: Upstream, coding: str, framing: str
) -> None:
    before = gateway.resident_bytes()
    packed = zlib.compress(b" " * INFLATED) if coding == "deflate" else BOMB
    said = http(packed, headers=f"content-encoding: {coding}\r\n" if coding else "", framing=framing)
    upstream.on("/raw", then_end(said))
    for stream in (False, True):
        answer = ask(gateway, body(stream=stream))
        assert answer.status == 502
        assert packed[:64] not in answer.body
    assert gateway.resident_bytes() - before < MEMORY_MAX
    assert {one.headers["accept-encoding"] for one in upstream.asked} == {"identity"}


def test_a_stream_that_is_packed_by_its_transfer_coding_is_no_stream(gateway: Served, upstream: Upstream) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: gzip, chunked\r\n\r\n"
    upstream.on("/raw", head + chunk(BOMB) + STREAM_END)
    before = gateway.resident_bytes()
    answer = ask(gateway, body(stream=True))
    assert answer.status == 502
    assert gateway.resident_bytes() - before < MEMORY_MAX


@pytest.mark.parametrize("digits", ["9" * 1_000_000, "0." + "9" * 1_000_000, "1e" + "9" * 100_000, "-" + "1" * 5_000])
@pytest.mark.parametrize("name", ["seed", "temperature", "max_tokens", "x_unknown"])
def test_a_number_of_a_million_digits_takes_no_time(gateway: Served, name: str, digits: str) -> None:
    """The best of a few whole tries: a machine that stands still spoils one."""

    def took_s() -> float:
        begun = time.monotonic()
        answer = ask(gateway, (json.dumps(body())[:-1] + f',"{name}":{digits}}}').encode())
        assert answer.status in (200, 400)
        return time.monotonic() - begun

    assert best_s(took_s, 1.5) < 1.5


@pytest.mark.parametrize(
    "name", ["tools", "service_tier", "web_search_options", "functions", "response_format", "audio"]
)
@pytest.mark.parametrize("value", [[1], ["x"], [None], [[]], [{"type": []}], [{"type": {}}], {}, {"type": [1]}, "", 5])
def test_nothing_that_is_weighed_for_a_budget_breaks_the_weighing(gateway: Served, name: str, value: Any) -> None:
    for workflow_name in ("chat", "tiered"):
        assert ask(gateway, body(name=workflow_name, **{name: value})).status in (200, 400)


# Names that come near a head.


@pytest.mark.parametrize("field", ["user", "model", "metadata", "messages"])
def test_no_line_feed_of_a_body_gets_into_any_head(gateway: Served, upstream: Upstream, field: str) -> None:
    value = {"metadata": {EVIL: EVIL}, "messages": [{"role": "user", "content": EVIL, "name": EVIL}]}.get(field, EVIL)
    for said in (body(**{field: value}), body(**{"stream": True, field: value})):
        with wire.connect(gateway.port) as connection:
            connection.sendall(wire.request(said, key=KEY))
            heard = wire.hear(connection)
        assert heard.rest == b""
        assert not {"set-cookie", "x-evil"} & set(heard.answers[0].headers)
    for one in upstream.asked:
        assert b"evil" not in one.head
        assert one.head.count(b"\r\n") == 7, one.head


@pytest.mark.parametrize("said", ["a%0d%0ax-evil: 1", "a\\r\\nx-evil: 1", '";r=0;x-evil="1', "\u2028x-evil", "a;b=c"])
def test_a_refusal_of_a_budget_repeats_no_name_in_its_head(gateway: Served, said: str) -> None:
    headers = f"x-drivetrain-user: {said}\r\nx-drivetrain-tags: {said}\r\n".encode().decode("latin-1")
    answer = ask(gateway, body(name="poor"), headers=headers)
    assert answer.status in (400, 429)
    assert "evil" not in str(answer.headers)
    if answer.status == 429:
        assert answer.headers["ratelimit"].startswith('"none-left";r=0;t=')


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "429 Too Many Requests", "500 Internal Server Error"])
def test_no_line_feed_of_a_provider_gets_into_our_head(gateway: Served, upstream: Upstream, status: str) -> None:
    choice = {"index": 0, "message": {"role": EVIL, "content": EVIL}, "finish_reason": EVIL}
    said = completion(choices=[choice], model=EVIL, id=EVIL, error={"message": EVIL, "code": EVIL, "type": EVIL})
    upstream.on("/raw", http(said, status=status, headers='x-request-id: a"\tb\r\nretry-after: 7;x-evil=1\r\n'))
    for stream in (False, True):
        with wire.connect(gateway.port) as connection:
            connection.sendall(wire.request(body(stream=stream), key=KEY))
            heard = wire.hear(connection)
        assert heard.rest == b""
        assert "evil" not in str(heard.answers[0].headers)


# Paths.


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("ch%61t", 200),
        ("chat?name=/v1/workflows/poor", 200),
        ("CHAT", 404),
        ("chat%20", 404),
        ("chat%2F..%2Fchat", 404),
        ("%2fv1%2fworkflows%2fchat", 404),
        ("chat;poor", 404),
        ("chat%3Fx", 404),
        ("chat%23x", 404),
        ("ch%2561t", 404),
        ("%c1%a3hat", 404),
        ("%63%00hat", 404),
        ("%E2%80%AEchat", 404),
        ("%EF%BD%83hat", 404),
        ("ch%CC%80at", 404),
        ("chat%0d%0ax-evil:%201", 404),
        ("chat%", 404),
        ("%zz", 404),
        ("", 404),
        ("%" * 5_000, 404),
    ],
)
def test_a_workflow_has_one_name(gateway: Served, upstream: Upstream, name: str, status: int) -> None:
    raw = wire.request({"text": "hello"}, key=KEY, path=f"/v1/workflows/{name}")
    answer = wire.one(gateway.port, raw)
    assert answer.status == status, answer
    assert len(upstream.asked) == (status == 200)
    assert len(answer.body) < 2_000
    assert "evil" not in str(answer.headers)


def test_what_was_parsed_is_what_was_sent(gateway: Served, upstream: Upstream) -> None:
    """Of a key given twice one value is validated, priced and sent."""
    raw = b'{"model":"chat","n":1,"n":2,"max_tokens":5,"max_tokens":3,"messages":[{"role":"user","content":"a"}],"n":1}'
    assert text_of(ask(gateway, raw)) == "you said a"
    (one,) = upstream.asked
    assert one.body.count(b'"n"') == one.body.count(b"max_tokens") == 1
    assert (one.json["n"], one.json["max_tokens"]) == (1, 3)
    assert PROVIDER_KEY not in one.body.decode()
