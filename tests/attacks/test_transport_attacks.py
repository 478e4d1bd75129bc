"""Attacks on framing: two parties that disagree about where a message ends, on either side of the gateway.

Proved elsewhere: `Content-Length` beside `Transfer-Encoding`, repeated and odd lengths, bare line ends, HTTP/0.9 and
2, upgrades, `CONNECT`, stalled heads and bodies, the order of pipelined answers (gateway/test_hostile_input); encoded,
cut, doubled and endless answers of a provider (gateway/test_hostile_upstream). Here: the variants of these that a proxy
in front or a shared connection behind would turn into somebody else's request or answer.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from attack_world import ENVIRON, KEY, WITH_KEY, ask, body, chunked, echo, text_of, without_body

from support import wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.tries import within
from support.upstream import Asked, Upstream, Wire, chunk, completion, http

pytestmark = pytest.mark.slow

HEADER_MAX = 16_384
CLOSED_S = 2.0
"""Far below `header_timeout_ms`: whoever waits for that reads on."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Served]:
    tables = (
        provider("raw", f"{upstream.url}/raw", more=WITH_KEY + "connections_max = 2\n")
        + model("raw/m")
        + '[keys.app]\nsecret = "env:CLIENT_KEY"\nmay_override = ["user", "tags"]\n'
        + workflow("chat", "raw/m", more="attempts_max = 1\n")
    )
    files = {"drivetrain.toml": settings(gateway=f"header_bytes_max = {HEADER_MAX}\n", tables=tables)}
    with served(files, ENVIRON) as running:
        yield running
        assert running.stop() == 0
        assert not running.faults, "\n".join(running.faults)


@pytest.fixture(autouse=True)
def _fresh(upstream: Upstream) -> None:
    upstream.forget()
    upstream.on("/raw", echo)


GOOD = body("innocent")
RAW = json.dumps(GOOD).encode()
HIDDEN = wire.request(body("smuggled"), key=KEY)
CODED = without_body(wire.request(GOOD, key=KEY, length=False, headers="transfer-encoding: chunked\r\n"))
LENGTH = b"content-length: %d" % len(RAW)
ONE = wire.request(GOOD, key=KEY)


# Between a proxy in front and the gateway.


@pytest.mark.parametrize(
    "raw",
    [
        CODED.replace(b" chunked", b" \x0bchunked") + chunk(RAW) + b"0\r\n\r\n",
        CODED.replace(b" chunked", b" chunked;q=1") + chunk(RAW) + b"0\r\n\r\n",
        CODED.replace(b" chunked", b" gzip, chunked") + chunk(RAW) + b"0\r\n\r\n",
        CODED.replace(b" chunked", b"\r\n chunked") + chunk(RAW) + b"0\r\n\r\n",
        CODED.replace(b" chunked", b' "chunked"') + chunk(RAW) + b"0\r\n\r\n",
        CODED.replace(b"transfer-encoding:", b"transfer-encoding :") + chunk(RAW) + b"0\r\n\r\n",
        CODED.replace(b"\r\ntransfer-encoding", b"\r\nx: \rtransfer-encoding: identity\r\ntransfer-encoding"),
        CODED + b"%x\n" % len(RAW) + RAW + b"\r\n0\r\n\r\n",
        CODED + b"%x\r\n" % len(RAW) + RAW + b"\n0\r\n\r\n",
        CODED + b"%x;a\nb\r\n" % len(RAW) + RAW + b"\r\n0\r\n\r\n",
        CODED + b"%x \r\n" % len(RAW) + RAW + b"\r\n0\r\n\r\n",
        CODED + b"0x%x\r\n" % len(RAW) + RAW + b"\r\n0\r\n\r\n",
        CODED + b"-1\r\n" + RAW + b"\r\n0\r\n\r\n",
        CODED + b"1_0\r\n" + RAW,
        ONE.replace(LENGTH, LENGTH + b", %d" % len(RAW)),
        ONE.replace(LENGTH, LENGTH + b" %d" % len(RAW)),
        ONE.replace(LENGTH, b"content-length:\r\n %d" % len(RAW)),
        ONE.replace(LENGTH, LENGTH.replace(b": ", b": \x00")),
        ONE.replace(LENGTH, b"content-length: %de0" % len(RAW)),
    ],
)
def test_whose_end_is_doubtful_is_refused_and_what_stands_behind_is_never_a_request(
    gateway: Served, upstream: Upstream, raw: bytes
) -> None:
    def refused() -> None:
        with wire.connect(gateway.port) as connection:
            connection.sendall(raw + HIDDEN)
            heard = wire.hear(connection, answers=2)
        assert heard.end != "open", heard
        assert [400 <= one.status < 500 for one in heard.answers] == [True], heard
        assert upstream.asked == []

    within(CLOSED_S, refused)


def test_a_body_that_looks_like_requests_is_a_body(gateway: Served, upstream: Upstream) -> None:
    said = body(HIDDEN.decode())
    heard = wire.ask(gateway.port, wire.request(said, key=KEY) + chunked(said), answers=2)
    assert [text_of(one) for one in heard.answers] == ["you said " + HIDDEN.decode()] * 2
    assert heard.rest == b""
    assert len(upstream.asked) == 2


def test_a_body_of_a_get_is_not_the_next_request(gateway: Served, upstream: Upstream) -> None:
    raw = b"GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN
    with wire.connect(gateway.port) as connection:
        connection.sendall(raw + ONE)
        heard = wire.hear(connection, answers=2)
        assert heard.rest == b""
        assert wire.hear(connection, wait_s=0.5).answers == []
    assert [one.status for one in heard.answers] == [200, 200]
    assert [one.json["messages"] for one in upstream.asked] == [GOOD["messages"]]


@pytest.mark.parametrize("trailer", [f"authorization: Bearer {KEY}", f"Authorization:Bearer {KEY}"])
def test_a_key_in_the_trailers_is_none(gateway: Served, upstream: Upstream, trailer: str) -> None:
    answer = wire.one(gateway.port, chunked(GOOD, key=None, trailers=trailer.encode() + b"\r\n"))
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert upstream.asked == []


@pytest.mark.parametrize("given", ["", "x-drivetrain-user: ann\r\n"])
def test_trailers_say_nothing_about_who_asks(gateway: Served, given: str) -> None:
    """A proxy that sets or removes these headers looks at headers only."""
    trailers = b"x-drivetrain-user: mallory\r\nx-drivetrain-tags: a\r\nx-request-timeout-ms: 0\r\nhost: a\r\n"
    answer = wire.one(gateway.port, chunked(GOOD, trailers=trailers, headers=given))
    assert answer.status == 200, answer
    said = gateway.call(answer.headers["x-request-id"]).attribution
    assert (said.user, said.tags) == ("ann" if given else "", ())


@pytest.mark.parametrize("begin", [b"0\r\nx-t: ", b"1;", chunk(RAW) + b"0\r\nx-", b"0\r\n" + b"x: 1\r\n" * 90 + b"y: "])
def test_what_never_ends_around_a_body_is_ended_in_bounded_memory(gateway: Served, begin: bytes) -> None:
    before, sent = gateway.resident_bytes(), 0
    with wire.connect(gateway.port) as connection:
        connection.sendall(CODED + begin)
        try:
            while sent < 50_000_000:
                sent += connection.send(b"y" * 100_000)
        except OSError:
            pass
    assert sent < 20_000_000, "it was read on and on"
    assert gateway.resident_bytes() - before < 10_000_000


def test_many_small_chunks_with_extensions_are_still_read(gateway: Served) -> None:
    raw = CODED + b"".join(b"1;%b\r\n%c\r\n" % (b"e" * 200, one) for one in RAW) + b"0\r\n\r\n"
    parts = [raw[place : place + 999] for place in range(0, len(raw), 999)]
    assert text_of(wire.one(gateway.port, *parts)) == "you said innocent"


@pytest.mark.parametrize("host", ["", "host: \r\n", "host: 169.254.169.254\r\n", "host: evil@10.0.0.1:80/x?y#z\r\n"])
def test_the_host_of_a_request_leads_nowhere(gateway: Served, upstream: Upstream, host: str) -> None:
    raw = ONE.replace(b"host: gateway\r\n", host.encode())
    raw = raw.replace(b"\r\n\r\n", b"\r\nx-forwarded-host: 10.0.0.2\r\nx-original-url: /metrics\r\n\r\n", 1)
    answer = wire.one(gateway.port, raw)
    assert text_of(answer) == "you said innocent"
    (one,) = upstream.asked
    assert one.headers["host"] == f"127.0.0.1:{upstream.port}"
    assert one.path == "/raw/chat/completions"
    assert b"10.0.0" not in one.head + answer.body + str(answer.headers).encode()


@pytest.mark.parametrize("target", ["http://169.254.169.254/v1/chat/completions", "http://gateway/livez", "//x/livez"])
def test_a_whole_address_as_target_is_no_path_of_ours(gateway: Served, upstream: Upstream, target: str) -> None:
    answer = wire.one(gateway.port, wire.request(GOOD, key=KEY, path=target))
    assert answer.status == 404
    assert upstream.asked == []


# Between the gateway and its providers: an answer belongs to the request before it, or to nobody.


def test_under_load_everybody_gets_their_own_answer_whatever_follows_it(gateway: Served, upstream: Upstream) -> None:
    """Two connections carry everything; behind some answers stands a second one, a head, trailers or rubbish."""
    lock, turns = threading.Lock(), iter(range(1_000_000))
    surplus = (b"", http(completion("SECRET")), b"HTTP/1.1 200 OK\r\n", b"", b"\r\n", b"rubbish", b"")

    def script(asked: Asked, to: Wire) -> None:
        with lock:
            turn = next(turns)
        said = completion("you said " + asked.json["messages"][-1]["content"])
        if turn % 5 == 4:
            to.send(http(said, framing="chunked")[:-2] + b"content-encoding: gzip\r\nx-request-id: stolen\r\n\r\n")
        else:
            to.send(http(said) + surplus[turn % 7])

    upstream.on("/raw", script)

    def client(number: int) -> list[str]:
        with wire.connect(gateway.port) as connection:
            wrong = []
            for turn in range(12):
                connection.sendall(wire.request(body(f"{number}.{turn}"), key=KEY))
                answer = wire.hear(connection).answers[0]
                if answer.status != 200 or text_of(answer) != f"you said {number}.{turn}":
                    wrong.append(f"{number}.{turn}: {answer}")
            return wrong

    with ThreadPoolExecutor(16) as pool:
        assert [one for found in pool.map(client, range(16)) for one in found] == []
    assert len({one.connection for one in upstream.asked}) > 2, "a spoiled connection was used again"
    reported = [attempt.provider_request_id for call in gateway.calls() for attempt in call.attempts]
    assert "stolen" not in reported


def test_an_answer_that_comes_before_its_request_was_read_spoils_no_other(gateway: Served) -> None:
    """A provider that answers by the head alone, and takes the rest of the body for what it likes."""
    large = "x" * 3_000_000
    said: list[bytes] = []

    class Early(Upstream):
        def _carry(self, connection: socket.socket, number: int) -> None:
            got = b""
            with connection:
                while part := connection.recv(65_536):
                    got += part
                    if b"\r\n\r\n" in got:
                        said.append(got.partition(b"\r\n\r\n")[0])
                        connection.sendall(http(completion(f"early {len(said)}")))
                        time.sleep(0.3)
                        got = b""

    with Early() as early:
        tables = provider("early", early.url) + model("early/m") + workflow("chat", "early/m")
        with served({"drivetrain.toml": settings(tables=tables)}) as running:
            first = wire.one(running.port, wire.request(body(large)))
            second = wire.one(running.port, wire.request(body("next")))
            assert text_of(first) == "early 1"
            if second.status == 200:
                assert text_of(second) != "early 1"
            assert not running.faults


@pytest.mark.parametrize("streamed", [False, True])
def test_trailers_of_an_answer_are_no_headers_of_the_next(gateway: Served, upstream: Upstream, streamed: bool) -> None:
    trailers = (
        b"content-encoding: gzip\r\ncontent-type: text/event-stream\r\nx-request-id: earlier\r\nretry-after: 9\r\n"
    )
    upstream.on("/raw", http(completion("first"), framing="chunked")[:-2] + trailers + b"\r\n")
    assert text_of(ask(gateway)) == "first"
    upstream.on("/raw", http(completion("second")))
    answer = ask(gateway, body(stream=streamed))
    assert (answer.text if streamed else text_of(answer)) == "second"
    assert gateway.call(answer.headers["x-request-id"]).attempts[0].provider_request_id == ""
    assert len({one.connection for one in upstream.asked}) == 1, "the connection was not shared, so this proves nothing"


@pytest.mark.parametrize("begin", [b"0\r\nx-t: ", b"1;"])
def test_what_never_ends_around_an_answer_is_ended_in_bounded_memory(
    gateway: Served, upstream: Upstream, begin: bytes
) -> None:
    sent = [0]

    def script(_asked: Asked, to: Wire) -> None:
        to.send(http(completion(), framing="chunked")[: -len(b"0\r\n\r\n")] + begin)
        while to.open and sent[0] < 50_000_000:
            to.send(b"y" * 100_000)
            sent[0] += 100_000

    upstream.on("/raw", script)
    before = gateway.resident_bytes()
    answer = ask(gateway)
    assert answer.status == 502
    assert sent[0] < 20_000_000
    assert gateway.resident_bytes() - before < 10_000_000
