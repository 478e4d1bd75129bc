"""Clients that break every rule: a clear 4xx in OpenAI's error shape or an orderly end, and a gateway that lives on."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support import wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.tries import PATIENCE_S, eventually, within
from support.upstream import (
    STREAM_HEAD,
    Asked,
    Upstream,
    Wire,
    chunk,
    completion,
    delta,
    event,
    http,
    stream,
    stream_events,
)

pytestmark = pytest.mark.slow

PROVIDER_KEY = "sk-provider-0123456789-very-secret"
KEY = "client-key-abcdefghij-very-secret"
LIMITED_KEY = "client-key-limited-klmnop-very-secret"
BODY_MAX = 1_048_576
HEADER_MAX = 16_384
HEADER_TIMEOUT_S, BODY_TIMEOUT_S, IDLE_TIMEOUT_S, WRITE_TIMEOUT_S = 0.3, 0.4, 0.8, 0.5
"""Of the impatient gateway."""
SWEEP_S = 0.5
SLACK_S = 0.7


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Served]:
    """One whose timeouts no client of these tests reaches, though the machine stand still for seconds."""
    with serving(upstream, header_s=60, body_s=60, idle_s=60, write_s=60) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(upstream: Upstream) -> Iterator[Served]:
    """One that waits for nobody."""
    with serving(
        upstream,
        header_s=HEADER_TIMEOUT_S,
        body_s=BODY_TIMEOUT_S,
        idle_s=IDLE_TIMEOUT_S,
        write_s=WRITE_TIMEOUT_S,
    ) as running:
        yield running


@contextlib.contextmanager
def serving(upstream: Upstream, *, header_s: float, body_s: float, idle_s: float, write_s: float) -> Iterator[Served]:
    limits = (
        f"body_bytes_max = {BODY_MAX}\nheader_bytes_max = {HEADER_MAX}\nmessages_max = 5_000\n"
        f"header_timeout_ms = {header_s * 1_000:.0f}\nbody_timeout_ms = {body_s * 1_000:.0f}\n"
        f"idle_timeout_ms = {idle_s * 1_000:.0f}\nwrite_timeout_ms = {write_s * 1_000:.0f}\n"
    )
    key = 'key = "env:PROVIDER_KEY"\n'
    tables = [
        provider("raw", f"{upstream.url}/raw", more=key),
        provider("claude", f"{upstream.url}/claude", dialect="anthropic", more=key),
        model("raw/m"),
        model("claude/m"),
        '[teams.support]\n[teams.sales]\n[keys.app]\nsecret = "env:CLIENT_KEY"\nteam = "support"\n'
        'may_override = ["team", "use_case", "user", "tags"]\n'
        '[keys.limited]\nsecret = "env:LIMITED_KEY"\nteam = "support"\nworkflows = ["chat"]\n',
        workflow("chat", "raw/m", more="attempts_max = 1\n"),
        workflow("kept", "raw/m", more='retention = "full"\n'),
        workflow("other", "raw/m", more="attempts_max = 1\n"),
        workflow("claude", "claude/m", more="attempts_max = 1\n"),
        workflow("ruled", '{ rule = "all", matches = "hello|x|^$", answer = "by rule" }', "raw/m"),
    ]
    files = {"drivetrain.toml": settings(gateway=limits, tables="".join(tables))}
    environ = {"PROVIDER_KEY": PROVIDER_KEY, "CLIENT_KEY": KEY, "LIMITED_KEY": LIMITED_KEY}
    with served(files, environ) as running:
        yield running
        assert running.alive
        # Before it is told to end: a Call that was never ended is what it would wait for.
        assert settle(running, "drivetrain_calls_running", 0) == 0
        assert running.stop() == 0
        assert not running.faults, "\n".join(running.faults)


@pytest.fixture(autouse=True)
def _fresh_and_alive(gateway: Served, upstream: Upstream) -> Iterator[None]:
    upstream.forget()
    upstream.on("/raw", http(completion()))
    upstream.on("/claude", http(b'{"content":[{"type":"text","text":"Hello."}],"usage":{"input_tokens":1}}'))
    yield
    assert wire.one(gateway.port, wire.request(method="GET", path="/livez")).status == 200


USER = {"role": "user", "content": "hello"}
CHAT: dict[str, Any] = {"model": "chat", "messages": [USER]}


def chat(body: dict[str, Any] | bytes | str | None = None, *, key: str | None = KEY, **more: Any) -> bytes:
    """A chat request; without a body a good one."""
    return wire.request(CHAT if body is None else body, key=key, **more)


def refused(gateway: Served, raw: bytes, status: int = 400, code: str | None = None) -> wire.Answered:
    answer = wire.one(gateway.port, raw)
    assert answer.status == status, answer
    error = answer.error
    if code is not None:
        assert error["code"] == code, error
    return answer


def metric(gateway: Served, name: str) -> float:
    answer = wire.one(gateway.port, wire.request(method="GET", path="/metrics"))
    found = re.search(rf"^{name} (\S+)$", answer.body.decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


def settle(gateway: Served, name: str, value: float) -> float:
    """The gauge, as soon as it is `value` or the time is over."""
    eventually(lambda: metric(gateway, name) == value, every_s=0.05)
    return metric(gateway, name)


# Sizes.


def test_a_body_beyond_the_limit_is_a_413_by_its_length_alone(gateway: Served) -> None:
    head = chat(b"", headers="").replace(b"content-length: 0", b"content-length: %d" % (BODY_MAX + 1))
    refused(gateway, head, 413, "body_too_large")


def test_a_client_that_sends_all_of_an_oversized_body_still_reads_why(gateway: Served) -> None:
    body = json.dumps({**CHAT, "messages": [{"role": "user", "content": "x" * (4 * BODY_MAX)}]}).encode()
    for _ in range(5):
        refused(gateway, chat(body), 413, "body_too_large")


def test_an_oversized_chunked_body_is_a_413(gateway: Served) -> None:
    head = chat(length=False, headers="transfer-encoding: chunked\r\n").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    part = chunk(b"x" * 100_000)
    refused(gateway, head + part * 20, 413, "body_too_large")


def test_a_chunked_body_within_the_limit_is_read(gateway: Served, upstream: Upstream) -> None:
    head = chat(length=False, headers="transfer-encoding: chunked\r\n").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    body = json.dumps(CHAT).encode()
    parts = [head, *(chunk(body[place : place + 7]) for place in range(0, len(body), 7)), b"0\r\nx-trailer: 1\r\n\r\n"]
    assert wire.one(gateway.port, *parts).status == 200
    assert upstream.asked[0].json["messages"] == CHAT["messages"]


@pytest.mark.parametrize("pieces", [1, 20], ids=["one-write", "pieces"])
@pytest.mark.parametrize("where", ["header", "path"])
def test_an_oversized_head_is_a_431(gateway: Served, pieces: int, where: str) -> None:
    if where == "header":
        raw = wire.request(method="GET", path="/livez", headers=f"x-large: {'y' * 40_000}\r\n")
    else:
        raw = wire.request(method="GET", path="/livez?" + "y" * 40_000)
    size = -(-len(raw) // pieces)
    answer = wire.one(gateway.port, *(raw[place : place + size] for place in range(0, len(raw), size)))
    assert answer.status == 431
    assert answer.error["code"] == "headers_too_large"


def test_too_many_headers_are_a_431(gateway: Served) -> None:
    many = "".join(f"x-{number}: 1\r\n" for number in range(150))
    refused(gateway, wire.request(method="GET", path="/livez", headers=many), 431, "too_many_headers")


def test_a_name_of_a_megabyte_is_an_unknown_workflow_in_few_words(gateway: Served) -> None:
    answer = refused(gateway, chat({**CHAT, "model": "m" * 1_000_000}), 404, "model_not_found")
    assert len(answer.body) < 2_000


def test_ten_thousand_messages_are_refused(gateway: Served) -> None:
    answer = refused(gateway, chat({**CHAT, "messages": [USER] * 10_000}))
    assert answer.error["param"] == "messages"


def test_messages_within_the_limit_are_taken(gateway: Served, upstream: Upstream) -> None:
    assert wire.one(gateway.port, chat({**CHAT, "messages": [USER] * 5_000})).status == 200
    assert len(upstream.asked[0].json["messages"]) == 5_000


# Time.


def test_a_head_that_stalls_is_ended(impatient: Served) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
    answer = within(
        HEADER_TIMEOUT_S + SWEEP_S + SLACK_S,
        lambda: refused(impatient, head, 408, "stalled_head"),
        least_s=HEADER_TIMEOUT_S,
    )
    assert answer.headers["connection"] == "close"


def test_a_dripping_head_is_ended(impatient: Served) -> None:
    def drip() -> None:
        with wire.connect(impatient.port) as connection, contextlib.suppress(OSError):
            connection.sendall(b"GET /livez HTTP/1.1\r\nx: ")
            for _ in range(60):
                connection.sendall(b"x")
                time.sleep(0.05)

    within(HEADER_TIMEOUT_S + SWEEP_S + SLACK_S, drip, least_s=HEADER_TIMEOUT_S)


def test_a_body_that_stalls_is_ended(impatient: Served, upstream: Upstream) -> None:
    within(
        BODY_TIMEOUT_S + SWEEP_S + SLACK_S,
        lambda: refused(impatient, chat()[:-5], 408, "stalled_body"),
        least_s=BODY_TIMEOUT_S,
    )
    assert upstream.asked == []


def test_an_idle_connection_is_closed(impatient: Served) -> None:
    def idle() -> str:
        with wire.connect(impatient.port) as connection:
            return wire.ending(connection)

    assert within(IDLE_TIMEOUT_S + SWEEP_S + SLACK_S, idle, least_s=IDLE_TIMEOUT_S) == "fin"


def test_half_a_request_behind_a_running_one_is_ended_too(impatient: Served, upstream: Upstream) -> None:
    """Nobody may hold a connection for ever with a request that never comes."""

    def slow(_asked: Asked, to: Wire) -> None:
        to.wait(0.1)
        to.send(http(completion()))

    upstream.on("/raw", slow)

    def half() -> str:
        with wire.connect(impatient.port) as connection:
            connection.sendall(chat() + b"GET /livez HTTP/1.1\r\nhost:")
            assert wire.hear(connection).answers[0].status == 200
            heard = wire.hear(connection)
            return wire.ending(connection) if heard.end == "open" else heard.end

    assert within(0.1 + HEADER_TIMEOUT_S + SWEEP_S + SLACK_S, half) != "open"


def test_a_request_that_waits_behind_a_slow_one_costs_neither_its_answer(impatient: Served, upstream: Upstream) -> None:
    """The header timeout is over once the head is here; what then takes long is our answer."""

    def slow(_asked: Asked, to: Wire) -> None:
        to.wait(HEADER_TIMEOUT_S + SWEEP_S + 0.4)
        to.send(http(completion("slow")))

    upstream.on("/raw", slow)
    with wire.connect(impatient.port) as connection:
        connection.sendall(chat())
        assert eventually(lambda: upstream.asked)
        connection.sendall(wire.request(method="GET", path="/livez"))
        heard = wire.hear(connection, answers=2)
    assert [answer.status for answer in heard.answers] == [200, 200], heard


# Framing.


@pytest.mark.parametrize(
    "raw",
    [
        chat(headers="transfer-encoding: chunked\r\n"),
        chat(headers="transfer-encoding: identity\r\n"),
        chat(headers="content-length: 5\r\n"),
        chat(headers="content-length: 71\r\n"),
        chat().replace(b"content-length: ", b"content-length: +"),
        chat().replace(b"content-length: ", b"content-length: -"),
        chat().replace(b"content-length: ", b"content-length: 0x"),
        chat().replace(b"content-length: ", b"content-length: 99999999999999999999999"),
        chat(length=False, headers="transfer-encoding: chunked, identity\r\n"),
        chat(length=False, headers="transfer-encoding: xchunked\r\n"),
        chat(length=False, headers="transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n"),
        chat(length=False, headers="transfer-encoding: chunked\r\n").partition(b"{")[0] + b"zz\r\n",
        chat(length=False, headers="transfer-encoding: chunked\r\n").partition(b"{")[0] + b"fffffffffffffffff\r\n",
        chat().replace(b"\r\n", b"\n"),
        chat(headers="x-bare: 1\nx-other: 2\r\n"),
        chat(headers="x-bare: 1\rx-other: 2\r\n"),
        chat(headers="x y: 1\r\n"),
        chat(headers="x-space : 1\r\n"),
        chat(headers=": none\r\n"),
        chat(headers="x-nul: \x00\r\n"),
        b"POST /v1/chat/completions\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/0.9\r\n\r\n",
        b"GET /livez HTTP/2.0\r\n\r\n",
        b"GET /livez HTTP/3\r\n\r\n",
        b"GET /livez HTTP/1.1.1\r\n\r\n",
        b"get /livez HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_plain_http_1_1_is_refused_and_closed(gateway: Served, upstream: Upstream, raw: bytes) -> None:
    with wire.connect(gateway.port) as connection:
        connection.sendall(raw)
        heard = wire.hear(connection, answers=2)
    assert heard.end != "open", heard
    assert len(heard.answers) == 1, heard
    assert 400 <= heard.answers[0].status < 500, heard
    assert heard.answers[0].error
    assert upstream.asked == []


def test_a_folded_header_is_refused_or_read_as_one(gateway: Served, upstream: Upstream) -> None:
    answer = wire.one(gateway.port, chat(headers="x-drivetrain-user: a\r\n b\r\n"))
    if answer.status == 200:
        assert "\n" not in gateway.call(answer.headers["x-request-id"]).attribution.user
    else:
        assert answer.status == 400
        assert answer.error


@pytest.mark.parametrize(
    "raw",
    [
        wire.request(
            method="GET",
            path="/livez",
            headers="connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: eA==\r\n",
        ),
        wire.request(method="GET", path="/livez", headers="connection: upgrade, http2-settings\r\nupgrade: h2c\r\n"),
        chat(headers="connection: upgrade\r\nupgrade: h2c\r\n"),
        b"CONNECT internal:443 HTTP/1.1\r\nhost: internal:443\r\n\r\n",
    ],
    ids=["websocket", "h2c", "chat", "connect"],
)
def test_an_upgrade_gets_one_refusal_and_starts_nothing(gateway: Served, upstream: Upstream, raw: bytes) -> None:
    with wire.connect(gateway.port) as connection:
        connection.sendall(raw)
        heard = wire.hear(connection, answers=2)
    assert [answer.status for answer in heard.answers] == [400], heard
    assert heard.answers[0].error
    assert upstream.asked == []


def test_a_head_request_has_no_body(gateway: Served) -> None:
    """Else its body would be read as the next answer."""
    with wire.connect(gateway.port) as connection:
        connection.sendall(wire.request(method="HEAD", path="/livez", headers="connection: close\r\n"))
        raw = b""
        while part := connection.recv(65_536):
            raw += part
    assert raw.endswith(b"\r\n\r\n"), raw


def test_an_http_1_0_client_gets_no_chunks(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", stream(stream_events()))
    raw = chat({**CHAT, "stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0")
    with wire.connect(gateway.port) as connection:
        connection.sendall(raw)
        got = b""
        while part := connection.recv(65_536):
            got += part
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"data: ")
    assert body.endswith(b"data: [DONE]\n\n")


def test_an_encoded_body_is_a_415(gateway: Served) -> None:
    raw = chat(gzip.compress(json.dumps(CHAT).encode()), headers="content-encoding: gzip\r\n")
    refused(gateway, raw, 415, "encoded_body")


def test_a_body_announced_with_expect_is_asked_for(gateway: Served) -> None:
    raw = chat(headers="expect: 100-continue\r\n")
    head, _, body = raw.partition(b"\r\n\r\n")
    with wire.connect(gateway.port) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert wire.hear(connection).answers[0].status == 200


# Keys and attribution.


@pytest.mark.parametrize(
    "headers",
    [
        "",
        "authorization: \r\n",
        "authorization: Bearer\r\n",
        "authorization: Bearer \r\n",
        "authorization: Bearer wrong\r\n",
        f"authorization: Basic {KEY}\r\n",
        f"authorization: {KEY}\r\n",
        f"authorization: Bearer {KEY}x\r\n",
        f"authorization: Bearer {KEY[:-1]}\r\n",
        f"authorization: Bearer {KEY},{KEY}\r\n",
        "authorization: Bearer \xff\xfe\r\n",
        f"x-api-key: {KEY}\r\n",
        f"api-key: {KEY}\r\n",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("POST", "/v1/outcomes")]
)
def test_without_a_good_key_nothing_happens(
    gateway: Served, upstream: Upstream, headers: str, method: str, path: str
) -> None:
    body = CHAT if method == "POST" else None
    refused(gateway, wire.request(body, method=method, path=path, headers=headers), 401, "invalid_api_key")
    assert upstream.asked == []


def test_a_repeated_authorization_is_refused(gateway: Served, upstream: Upstream) -> None:
    refused(gateway, chat(headers="authorization: Bearer other\r\n"), 400, "repeated_header")
    refused(gateway, chat(headers=f"AUTHORIZATION: Bearer {KEY}\r\n"), 400, "repeated_header")
    assert upstream.asked == []


def test_a_key_sees_and_calls_only_its_workflows(gateway: Served, upstream: Upstream) -> None:
    assert wire.one(gateway.port, chat(key=LIMITED_KEY)).status == 200
    answer = refused(gateway, chat({**CHAT, "model": "other"}, key=LIMITED_KEY), 404, "model_not_found")
    assert b"`claude`" not in answer.body
    assert b"`ruled`" not in answer.body
    listed = wire.one(gateway.port, wire.request(method="GET", path="/v1/models", key=LIMITED_KEY))
    assert [one["id"] for one in listed.json["data"]] == ["chat"]


def test_allowed_attribution_is_recorded(gateway: Served) -> None:
    headers = (
        "x-drivetrain-team: sales\r\nx-drivetrain-use-case: r\xc3\xbcck\r\nX-Drivetrain-User: ann\r\n"
        "x-drivetrain-tags: b=2, a,a,\r\n"
    )
    answer = wire.one(gateway.port, chat(headers=headers))
    said = gateway.call(answer.headers["x-request-id"]).attribution
    assert (said.team, said.use_case, said.user, said.tags) == ("sales", "rück", "ann", ("a", "b=2"))
    assert said.key == "app"


@pytest.mark.parametrize("name", ["team", "use-case", "user", "tags"])
def test_attribution_that_the_key_may_not_set_is_a_403(gateway: Served, upstream: Upstream, name: str) -> None:
    raw = chat(key=LIMITED_KEY, headers=f"x-drivetrain-{name}: support\r\n")
    assert refused(gateway, raw, 403, "attribution_not_allowed").error["param"] == f"x-drivetrain-{name}"
    assert upstream.asked == []


@pytest.mark.parametrize(
    "headers",
    [
        "x-drivetrain-team: \xff\xfe\r\n",
        "x-drivetrain-user: \xc3\r\n",
        f"x-drivetrain-user: {'u' * 257}\r\n",
        f"x-drivetrain-tags: {','.join(str(number) for number in range(17))}\r\n",
        "x-drivetrain-user: a\tb\r\n",
        "x-drivetrain-team: nobody\r\n",
        "x-drivetrain-team: sale\r\n",
        "x-drivetrain-user: a\r\nx-drivetrain-user: b\r\n",
    ],
)
def test_attribution_that_is_no_name_is_a_400(gateway: Served, upstream: Upstream, headers: str) -> None:
    answer = refused(gateway, chat(headers=headers))
    if "sale\r" in headers:
        assert "Did you mean `sales`?" in answer.error["message"]
    assert upstream.asked == []


# JSON.


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"5",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"model":"chat","messages":' + b"[" * 100_000,
        json.dumps(CHAT).encode()[:-1] + b',"temperature":NaN}',
        json.dumps(CHAT).encode()[:-1] + b',"temperature":Infinity}',
        json.dumps(CHAT).encode()[:-1] + b',"temperature":1e999}',
        json.dumps(CHAT).encode()[:-1] + b',"x":"\\ud800"}',
        json.dumps(CHAT).encode()[:-1] + b',"x":"\\udc00\\ud800"}',
        json.dumps(CHAT).encode()[:-1] + b',"x":"\xff"}',
        json.dumps(CHAT).encode()[:-1] + b',"x":"\xed\xa0\x80"}',
        json.dumps(CHAT).encode()[:-1] + b',"\xff":1}',
        json.dumps(CHAT).encode()[:-1] + b",}",
        json.dumps(CHAT).encode() + b"{}",
        json.dumps(CHAT).encode()[:-1] + b',"x":"\x01"}',
        "\ufeff".encode() + json.dumps(CHAT).encode(),
        json.dumps(CHAT).encode("utf-16"),
    ],
    ids=lambda body: repr(body[:24])[2:-1] + f"...{len(body)}",
)
def test_a_body_that_is_no_json_object_is_a_400(gateway: Served, upstream: Upstream, body: bytes) -> None:
    refused(gateway, chat(body), 400, "invalid_json")
    assert upstream.asked == []


@pytest.mark.parametrize("name", ["chat", "claude"])
def test_nesting_is_refused_or_answered_at_every_depth(gateway: Served, name: str) -> None:
    """A depth that can be read but not written must not end the connection."""
    with wire.connect(gateway.port) as connection:
        for depth in (*range(800, 1_000, 2), 1_001, 2_000):
            nested = b"[" * depth + b"]" * depth
            key = b'"metadata":{"x":' if name == "chat" else b'"thinking":{"x":'
            body = json.dumps({**CHAT, "model": name}).encode()[:-1] + b"," + key + nested + b"}}"
            connection.sendall(chat(body))
            heard = wire.hear(connection)
            assert heard.answers, (depth, heard)
            assert heard.answers[0].status in (200, 400), (depth, heard)


@pytest.mark.parametrize(
    "number", ["123456789012345678901234567890", "-1e-400", "0.1e1", "1E5", "18446744073709551616"]
)
def test_unusual_numbers_are_passed_on_or_refused(gateway: Served, upstream: Upstream, number: str) -> None:
    raw = json.dumps(CHAT)[:-1] + f',"x_number":{number}}}'
    answer = wire.one(gateway.port, chat(raw))
    assert answer.status in (200, 400)
    if answer.status == 200:
        assert upstream.asked[0].json["x_number"] == json.loads(number)


def test_of_duplicate_keys_the_last_is_parsed_and_sent_once(gateway: Served, upstream: Upstream) -> None:
    body = (
        b'{"model":"other","model":"chat","temperature":0.1,'
        b'"messages":[{"role":"system","content":"first","role":"user","content":"x","content":"second"}],'
        b'"temperature":0.2,"max_tokens":5,"max_tokens":6,'
        b'"metadata":{"a":"1","a":"2"},"temperature":0.3}'
    )
    answer = wire.one(gateway.port, chat(body))
    assert answer.status == 200
    sent = upstream.asked[0].body
    assert sent.count(b'"temperature"') == 1
    assert sent.count(b'"content"') == 1
    assert sent.count(b'"a"') == 1
    assert json.loads(sent) == {
        "model": "m",
        "messages": [{"role": "user", "content": "second"}],
        "temperature": 0.3,
        "metadata": {"a": "2"},
        "max_tokens": 6,
    }
    assert gateway.call(answer.headers["x-request-id"]).workflow == "chat"


# Parameters.

ANYTHING: list[Any] = [None, True, 0, -1, 1.5, 10**30, "", "x", [], [1], [None], {}, {"a": 1}, [[]], [{}], {"type": 5}]
PARAMETERS = [
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "n", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "tools",
    "tool_choice", "parallel_tool_calls", "response_format", "user", "metadata", "reasoning_effort", "store",
    "service_tier", "modalities", "functions", "function_call", "thinking", "top_k", "verbosity", "prediction",
]  # fmt: skip


@pytest.mark.parametrize("name", ["chat", "claude", "ruled"])
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_no_value_of_any_parameter_breaks_a_connection(gateway: Served, name: str, parameter: str) -> None:
    with wire.connect(gateway.port) as connection:
        for value in ANYTHING:
            connection.sendall(chat({**CHAT, "model": name, parameter: value}))
            heard = wire.hear(connection)
            assert heard.answers, (parameter, value, heard)
            assert heard.answers[0].status in (200, 400, 404, 502), (parameter, value, heard)


FUNCTION = {"name": "f", "parameters": {"type": "object"}}
MESSAGE_FIELDS = ["role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "audio"]


@pytest.mark.parametrize("name", ["chat", "claude", "ruled"])
@pytest.mark.parametrize("role", ["user", "assistant", "system", "tool", "function"])
def test_no_value_in_a_message_breaks_a_connection(gateway: Served, name: str, role: str) -> None:
    with wire.connect(gateway.port) as connection:
        for field in MESSAGE_FIELDS:
            for value in ANYTHING:
                messages = [USER, {"role": role, "content": "x", field: value}]
                connection.sendall(chat({"model": name, "messages": messages}))
                heard = wire.hear(connection)
                assert heard.answers, (field, value, heard)
                assert heard.answers[0].status in (200, 400, 502), (field, value, heard)


@pytest.mark.parametrize("name", ["chat", "claude"])
@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 5, "arguments": {"a": 1}}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1"}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": {"a": 1}}]},
        {"messages": [{"role": "tool", "tool_call_id": {"a": 1}, "content": "x"}]},
        {"tools": [{"type": "function", "function": 5}]},
        {"tools": [{"type": "function", "function": {"name": 5, "parameters": 5}}]},
        {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": {"function": 5}},
        {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": {"function": {"name": {}}}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": 5}},
        {"response_format": {"type": "json_schema", "json_schema": "x"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
        {"response_format": {"type": ["json_schema"]}},
        {"stop": [5]},
        {"stop": [["x"]]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}]}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/x;base64"}}]}
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": 5}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file"}]}]},
        {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://x/"}}]}]},
    ],
)
def test_nothing_deep_in_a_request_breaks_a_connection(gateway: Served, name: str, more: dict[str, Any]) -> None:
    heard = wire.ask(gateway.port, chat({**CHAT, "model": name, **more}))
    assert heard.answers, heard
    assert heard.answers[0].status in (200, 400), heard


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, False, "5", [], 10**30, 10_000_001, 2**63])
def test_a_limit_that_is_none_is_a_400(gateway: Served, upstream: Upstream, name: str, value: Any) -> None:
    assert refused(gateway, chat({**CHAT, name: value})).error["param"] == name
    assert upstream.asked == []


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (None, "messages"),
        ("hello", "messages"),
        ({"role": "user"}, "messages"),
        ([None], "messages[0]"),
        (["hello"], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": "nobody", "content": "x"}], "messages[0].role"),
        ([{"role": 5, "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([USER, {"role": "user"}], "messages[1].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": {"type": "text"}}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "messages[0].content[0]"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
            "messages[0].content[0]",
        ),
    ],
)
def test_messages_that_are_none_are_a_400_that_says_which(
    gateway: Served, upstream: Upstream, messages: Any, param: str
) -> None:
    assert refused(gateway, chat({**CHAT, "messages": messages})).error["param"] == param
    assert upstream.asked == []


@pytest.mark.parametrize("given", [{}, {"model": None}, {"model": 5}, {"model": ["chat"]}, {"model": {"a": 1}}])
def test_a_missing_model_is_a_400(gateway: Served, given: dict[str, Any]) -> None:
    assert refused(gateway, chat({"messages": [USER], **given})).error["param"] == "model"


@pytest.mark.parametrize(
    "name", ["", "chatt", "CHAT", "chat ", "chat\x00", "../chat", "raw/m", "\u202echat", "a\r\nb: c"]
)
def test_an_unknown_workflow_is_a_404(gateway: Served, upstream: Upstream, name: str) -> None:
    answer = refused(gateway, chat({**CHAT, "model": name}), 404, "model_not_found")
    if name == "chatt":
        assert "Did you mean `chat`?" in answer.error["message"]
    assert upstream.asked == []


# Paths.


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat/completions/", "/v2/chat/completions", "/v1/embeddings", "//livez"]
)
def test_an_unknown_path_is_a_404(gateway: Served, path: str) -> None:
    refused(gateway, chat(path=path), 404, "unknown_path")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("PUT", "/v1/chat/completions"),
        ("DELETE", "/v1/models"),
        ("POST", "/livez"),
        ("GET", "/v1/workflows/chat"),
        ("POST", "/v1/models/chat"),
        ("OPTIONS", "/v1/chat/completions"),
    ],
)
def test_the_wrong_method_is_a_405(gateway: Served, method: str, path: str) -> None:
    refused(gateway, wire.request(method=method, path=path, key=KEY), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/workflows/%2e%2e",
        "/v1/workflows/../chat",
        "/v1/workflows/%2e%2e%2fchat",
        "/v1/workflows/chat%00",
        "/v1/workflows/%ff%fe",
        "/v1/workflows/%",
        "/v1/workflows/",
        "/v1/workflows/chat/x",
        "/v1/models/%2e%2e",
        "/v1/models/%00",
        "/v1/%63hat/completions",
        "/v1/../v1/chat/completions",
        "/v1/chat/completions%00",
        "http://elsewhere/v1/chat/completions",
        "/v1/chat/completions#fragment",
    ],
)
def test_no_spelling_of_a_path_reaches_another(gateway: Served, upstream: Upstream, path: str) -> None:
    method = "GET" if "models" in path else "POST"
    answer = wire.one(gateway.port, wire.request(CHAT, method=method, path=path, key=KEY))
    assert answer.status in (400, 404, 405), answer
    assert answer.error
    assert upstream.asked == []


def test_a_query_is_no_part_of_the_path(gateway: Served) -> None:
    assert wire.one(gateway.port, chat(path="/v1/chat/completions?api-version=1")).status == 200


# Order on one connection.


def unknown(number: int) -> bytes:
    return wire.request(method="GET", path=f"/number/{number}")


def test_sixteen_requests_in_one_write_are_answered_in_order(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", lambda one, to: to.send(http(completion(one.json["messages"][0]["content"]))))
    asked = [chat({**CHAT, "messages": [{"role": "user", "content": str(number)}]}) for number in range(16)]
    heard = wire.ask(gateway.port, b"".join(asked), answers=16)
    assert [one.json["choices"][0]["message"]["content"] for one in heard.answers] == [str(n) for n in range(16)]
    assert heard.rest == b""


def test_a_thousand_pipelined_requests_are_answered_in_order(gateway: Served) -> None:
    heard = wire.ask(gateway.port, b"".join(unknown(number) for number in range(1_000)), answers=1_000)
    found = [re.search(r"/number/(\d+)", one.error["message"]) for one in heard.answers]
    assert [int(one[1]) for one in found if one] == list(range(1_000))


def test_requests_that_arrive_while_others_are_answered_keep_their_order(gateway: Served, upstream: Upstream) -> None:
    """Fast and slow ones mixed, written in pieces of any size: an answer for another request is a leak."""
    upstream.on("/raw", lambda one, to: to.send(http(completion("n/" + one.json["messages"][0]["content"]))))
    seed = random.SystemRandom().randrange(10**6)
    dice = random.Random(seed)
    for _ in range(8):
        count = 150
        raw = b""
        for number in range(count):
            slow = dice.random() < 0.4
            body = {**CHAT, "messages": [{"role": "user", "content": str(number)}]}
            raw += chat(body) if slow else unknown(number)
        with wire.connect(gateway.port) as connection:

            def write(raw: bytes = raw, connection: socket.socket = connection) -> None:
                place = 0
                while place < len(raw):
                    size = dice.randrange(1, 900)
                    connection.sendall(raw[place : place + size])
                    place += size
                    if dice.random() < 0.3:
                        time.sleep(dice.random() * 0.001)

            writer = threading.Thread(target=write)
            writer.start()
            heard = wire.hear(connection, answers=count)
            writer.join()
        numbers = [re.search(rb"(?:number|n)/(\d+)", one.body) for one in heard.answers]
        assert [int(one[1]) for one in numbers if one] == list(range(count)), f"seed {seed}"


def test_a_request_written_byte_by_byte_is_read(gateway: Served) -> None:
    raw = chat()
    assert wire.one(gateway.port, *(raw[place : place + 1] for place in range(len(raw)))).status == 200


def test_a_connection_serves_many_requests(gateway: Served, upstream: Upstream) -> None:
    with wire.connect(gateway.port) as connection:
        for _ in range(300):
            connection.sendall(chat())
            heard = wire.hear(connection)
            assert heard.answers[0].status == 200
            assert heard.rest == b""
    assert len(upstream.asked) == 300
    assert len({one.connection for one in upstream.asked}) == 1


def test_a_connection_serves_on_after_a_refused_request(gateway: Served) -> None:
    heard = wire.ask(gateway.port, chat(b"{") + chat({}) + chat(), answers=3)
    assert [answer.status for answer in heard.answers] == [400, 400, 200]


# Clients that leave, or do not read.


@pytest.mark.parametrize("part", [1, 20, 150, -1])
def test_a_client_that_leaves_in_mid_request_costs_nothing(gateway: Served, upstream: Upstream, part: int) -> None:
    for reset in (False, True):
        with wire.connect(gateway.port) as connection:
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            connection.sendall(chat()[:part])
    assert settle(gateway, "drivetrain_connections", 1) == 1
    assert upstream.asked == []


def test_a_client_that_leaves_in_mid_answer_is_recorded_with_its_cost(gateway: Served, upstream: Upstream) -> None:
    has_left = threading.Event()

    def slow(_asked: Asked, to: Wire) -> None:
        has_left.wait(PATIENCE_S)
        to.send(http(completion()))

    upstream.on("/raw", slow)
    before = {call.call_id for call in gateway.calls()}
    with wire.connect(gateway.port) as connection:
        connection.sendall(chat())
        assert eventually(lambda: upstream.asked)
    assert settle(gateway, "drivetrain_connections", 1) == 1
    has_left.set()
    assert settle(gateway, "drivetrain_calls_running", 0) == 0
    (call,) = [call for call in gateway.calls() if call.call_id not in before]
    assert call.status == "aborted"
    assert call.cost_nano_usd == 11 * 1_000 + 7 * 2_000


def test_a_client_that_leaves_in_mid_stream_ends_the_providers_stream(gateway: Served, upstream: Upstream) -> None:
    ended = threading.Event()

    def endless(_asked: Asked, to: Wire) -> None:
        to.send(STREAM_HEAD)
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            to.send(chunk(event(delta(content="word "))))
            if not to.open or to.left(0.01):
                ended.set()
                return

    upstream.on("/raw", endless)
    before = {call.call_id for call in gateway.calls()}
    with wire.connect(gateway.port) as connection:
        connection.sendall(chat({**CHAT, "stream": True}))
        assert connection.recv(100)
    assert ended.wait(PATIENCE_S), "the provider was left writing"
    assert settle(gateway, "drivetrain_calls_running", 0) == 0
    (call,) = [call for call in gateway.calls() if call.call_id not in before]
    assert call.status == "aborted"
    assert call.cost_nano_usd > 0
    assert call.attempts[0].usage.source == "estimated"


def test_a_client_that_never_reads_a_large_stream_is_dropped_in_bounded_memory(
    impatient: Served, upstream: Upstream
) -> None:
    one = chunk(event(delta(content="y" * 60_000)))

    def never_reads() -> None:
        sent = [0]

        def flood(_asked: Asked, to: Wire) -> None:
            to.send(STREAM_HEAD)
            while to.open and sent[0] < 200_000_000:
                to.send(one)
                sent[0] += len(one)

        upstream.on("/raw", flood)
        before = impatient.resident_bytes()
        with wire.connect(impatient.port, receive_bytes=4_096) as connection:
            connection.sendall(chat({**CHAT, "stream": True}))
            assert eventually(lambda: sent[0])
            time.sleep(0.3)
            peak = impatient.resident_bytes()
            assert settle(impatient, "drivetrain_calls_running", 0) == 0
        assert peak - before < 30_000_000
        assert sent[0] < 40_000_000

    within(WRITE_TIMEOUT_S + SWEEP_S + SLACK_S + 0.3, never_reads)
    assert settle(impatient, "drivetrain_connections", 1) == 1


def test_clients_that_never_read_whole_answers_are_dropped(impatient: Served, upstream: Upstream) -> None:
    """However much of an answer is left in the gateway: much of it, or less than it takes to stop writing."""
    upstream.on("/raw", lambda one, to: to.send(http(completion("y" * one.json["seed"]))))
    sizes = (50_000, 200_000, 900_000, 2_600_000, 2_700_000, 2_800_000, 3_000_000, 6_000_000)

    def never_read() -> None:
        with contextlib.ExitStack() as clients:
            for size in sizes:
                for headers in ("", "connection: close\r\n"):
                    client = clients.enter_context(wire.connect(impatient.port, receive_bytes=4_096))
                    client.sendall(chat({**CHAT, "seed": size}, headers=headers))
            assert eventually(lambda: len(upstream.asked) >= 2 * len(sizes))
            left = settle(impatient, "drivetrain_connections", 1)
            assert left == 1, f"{left - 1:.0f} connections are held by clients that do not read"
        upstream.forget()

    within(0.2 + max(WRITE_TIMEOUT_S, IDLE_TIMEOUT_S) + WRITE_TIMEOUT_S + 2 * SWEEP_S + SLACK_S, never_read)


def test_a_slow_reader_gets_everything(gateway: Served, upstream: Upstream) -> None:
    text = "".join(chr(97 + number % 26) for number in range(300_000))
    upstream.on("/raw", http(completion(text)))
    with wire.connect(gateway.port, receive_bytes=8_192) as connection:
        connection.sendall(chat())
        got = b""
        while not got.endswith(b"}}"):
            part = connection.recv(16_384)
            assert part
            got += part
            time.sleep(0.002)
    assert json.loads(got.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"] == text


# Nothing leaks.


def test_no_header_of_a_client_reaches_the_provider(gateway: Served, upstream: Upstream) -> None:
    headers = (
        "cookie: session=abc\r\nx-custom: custom-value\r\nx-forwarded-for: 10.0.0.1\r\nuser-agent: client-agent\r\n"
        "openai-organization: org-1\r\nx-drivetrain-user: ann\r\naccept-language: de\r\nidempotency-key: i-1\r\n"
        "x-api-key: client-x-api-key\r\nforwarded: for=1\r\nreferer: http://page/\r\ntraceparent: 00-1-1-00\r\n"
    )
    assert wire.one(gateway.port, chat(headers=headers)).status == 200
    (one,) = upstream.asked
    assert set(one.headers) == {
        "host", "content-type", "accept", "accept-encoding", "user-agent", "authorization", "content-length",
    }  # fmt: skip
    assert one.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    for value in (KEY, "abc", "custom-value", "10.0.0.1", "client-agent", "org-1", "ann", "i-1", "client-x-api-key"):
        assert value.encode() not in one.head + one.body


def test_no_header_of_a_provider_reaches_the_client(gateway: Served, upstream: Upstream) -> None:
    headers = (
        "set-cookie: __cf_bm=1\r\nserver: secret-server\r\nx-request-id: req-provider\r\n"
        "openai-organization: org-ours\r\nx-ratelimit-remaining-requests: 5\r\n"
        "via: 1.1 proxy\r\naccess-control-allow-origin: *\r\ncf-ray: 1\r\n"
    )
    upstream.on("/raw", http(completion(), headers=headers))
    whole = wire.one(gateway.port, chat())
    assert set(whole.headers) == {
        "content-type", "content-length", "x-request-id", "openai-processing-ms", "x-drivetrain-cost-nano-usd",
        "x-drivetrain-variant",
    }  # fmt: skip
    upstream.on("/raw", stream(stream_events()).replace(b"\r\n", b"\r\n" + headers.encode(), 1))
    streamed = wire.one(gateway.port, chat({**CHAT, "stream": True}))
    assert set(streamed.headers) == {"content-type", "cache-control", "transfer-encoding", "x-request-id"}
    for answer in (whole, streamed):
        assert answer.headers["x-request-id"].startswith("call_")
        assert gateway.call(answer.headers["x-request-id"]).attempts[0].provider_request_id == "req-provider"


def test_what_a_client_sends_beyond_the_known_parameters_reaches_the_provider_only_in_its_body(
    gateway: Served, upstream: Upstream
) -> None:
    body = {**CHAT, "base_url": "http://elsewhere/", "api_key": "x", "extra_headers": {"authorization": "Bearer y"}}
    assert wire.one(gateway.port, chat(body)).status in (200, 400)
    for one in upstream.asked:
        assert one.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
        assert one.path == "/raw/chat/completions"


def test_secrets_stand_in_no_log_record_error_or_metric(gateway: Served, upstream: Upstream) -> None:
    said = [
        wire.one(gateway.port, chat()),
        wire.one(gateway.port, chat({**CHAT, "stream": True})),
        wire.one(gateway.port, chat({**CHAT, "model": "nobody"})),
        wire.one(gateway.port, chat(b"{")),
        wire.one(gateway.port, chat(key=KEY + "x")),
        wire.one(gateway.port, chat(headers=f"authorization: Bearer {KEY}\r\n")),
        wire.one(gateway.port, chat(path=f"/v1/{KEY[:3]}")),
        wire.one(gateway.port, wire.request(method="GET", path="/metrics")),
        wire.one(gateway.port, wire.request(method="GET", path="/readyz")),
        wire.one(gateway.port, wire.request(method="GET", path="/v1/models", key=KEY)),
    ]
    written = gateway.everything_written()
    assert b"call_" in written
    for secret in (PROVIDER_KEY, KEY, LIMITED_KEY):
        for answer in said:
            assert secret.encode() not in answer.body + str(answer.headers).encode()
        assert secret.encode() not in written


def test_payloads_are_not_written_in_the_clear(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", http(completion("a very private answer")))
    question = {"role": "user", "content": "a very private question"}
    answer = wire.one(gateway.port, chat({"model": "kept", "messages": [question]}))
    call = gateway.call(answer.headers["x-request-id"])
    assert call.request
    assert call.answers
    written = gateway.everything_written()
    assert b"very private" not in written


def test_no_call_is_left_running(gateway: Served, impatient: Served) -> None:
    """Stands last: whatever came before, every Call has ended and every connection is gone."""
    for one in (gateway, impatient):
        assert settle(one, "drivetrain_calls_running", 0) == 0
        assert settle(one, "drivetrain_connections", 1) == 1
        unfinished = [call for call in one.calls() if call.status == "running"]
        assert unfinished == []
