"""The way to a provider: TLS with authorities of one's own, proxies, pools and their limits."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from drivetrain.core.errors import DrivetrainError, ProjectError
from drivetrain.embedded.runtime import compiled
from drivetrain.project import load, unload
from support import wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.tls import LOOPBACK, OPENED, REFUSED, Authority, SixUpstream, TlsUpstream, Tunnels
from support.tries import PATIENCE_S, eventually, measured, within
from support.upstream import Asked, Upstream, Wire, completion, http, stream, stream_events

pytestmark = pytest.mark.slow

PROVIDER_KEY = "sk-provider-0123456789-very-secret"
USER, PASSWORD, QUOTED = "proxy-user", "hush@hush-very-secret", "hush%40hush-very-secret"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
QUESTION = "a question that nobody may overhear"
CONNECT_S, IDLE_S, SLACK_S = 0.4, 1.0, 0.7
CA_LINE = 'ca_file = "certificates/ca.pem"\n'


def _has_six() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


SIX = pytest.mark.skipif(not _has_six(), reason="this machine has no IPv6 loopback address")


class World:
    """Every upstream and proxy of these tests, and the gateway before them."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.good = TlsUpstream(context=self.authority.context(*LOOPBACK))
        self.misnamed = TlsUpstream(context=self.authority.context("other.example", "127.0.0.2"))
        self.expired = TlsUpstream(context=self.authority.context(*LOOPBACK, days=-1))
        self.plain = Upstream()
        self.six = SixUpstream()
        self.six_tls = SixUpstream(context=self.authority.context(*LOOPBACK))
        self.tunnels = Tunnels()
        self.mute = socket.create_server(("127.0.0.1", 0), backlog=64)
        """Connections come about, in the kernel; nobody ever says a word."""
        self.no_tls = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.nowhere = socket.socket()
        """Nobody listens there, and nobody else can."""
        self.nowhere.bind(("127.0.0.1", 0))
        threading.Thread(target=self._speak_plainly, daemon=True).start()

    def _speak_plainly(self) -> None:
        """Answers whatever comes as a server without TLS does."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.no_tls.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    @property
    def upstreams(self) -> list[Upstream]:
        sixes: list[Upstream] = [self.six, self.six_tls] if _has_six() else []
        return [self.good, self.misnamed, self.expired, self.plain, *sixes]

    def project(self) -> str:
        impatient = 'key = "env:PROVIDER_KEY"\n'
        key = impatient + "connect_timeout_ms = 25_000\n"
        hurried = f"connect_timeout_ms = {CONNECT_S * 1_000:.0f}\n" + impatient
        through = f'proxy = "http://127.0.0.1:{self.tunnels.port}"\n'
        secret = 'proxy = "env:TUNNELS"\n'
        port = self.nowhere.getsockname()[1]
        providers = {
            "good": (self.good.url, CA_LINE + key),
            "named": (f"https://localhost:{self.good.port}", CA_LINE + key),
            "untrusted": (self.good.url, key),
            "no-file": (self.good.url, 'ca_file = "certificates/none.pem"\n' + key),
            "no-pem": (self.good.url, 'ca_file = "certificates/text.pem"\n' + key),
            "misnamed": (self.misnamed.url, CA_LINE + key),
            "expired": (self.expired.url, CA_LINE + key),
            "no-tls": (f"https://127.0.0.1:{self.no_tls.getsockname()[1]}", CA_LINE + key),
            "mute": (f"https://127.0.0.1:{self.mute.getsockname()[1]}", CA_LINE + hurried),
            "tunnel": (self.good.url, CA_LINE + through + key),
            "secret-tunnel": (self.good.url, CA_LINE + secret + key),
            "expired-tunnel": (self.expired.url, CA_LINE + secret + key),
            "silent-tunnel": (self.expired.url, CA_LINE + secret + hurried),
            "no-proxy": (self.good.url, CA_LINE + f'proxy = "http://127.0.0.1:{port}"\n' + key),
            "forward": (f"http://127.0.0.1:{port}/v1", f'proxy = "http://127.0.0.1:{self.plain.port}"\n' + key),
            "secret-forward": (f"http://127.0.0.1:{port}/v1?a=b", 'proxy = "env:FORWARD"\n' + key),
            "few": (f"{self.plain.url}/few", "connections_max = 2\n" + key),
            "brief": (f"{self.plain.url}/brief", f"idle_s = {IDLE_S:.0f}\n" + key),
            "unnameable": ("http://" + "ü" * 64 + ".example/v1", key),
        }
        if _has_six():
            providers["six"] = (self.six.url, key)
            providers["six-tls"] = (self.six_tls.url, CA_LINE + key)
            providers["six-tunnel"] = (self.six_tls.url, CA_LINE + through + key)
        tables = [provider(name, url, more=more) for name, (url, more) in providers.items()]
        for name in providers:
            variant = f'{{ name = "only", model = "{name}/m", first_byte_timeout_ms = 25_000 }}'
            more = "" if name == "untrusted" else "attempts_max = 2\n"
            tables += [model(f"{name}/m"), workflow(name, variant, more=more)]
            tables.append(workflow(f"{name}-once", variant, more=ONCE))
        hurried_variant = '{ name = "only", model = "few/m", first_byte_timeout_ms = 300 }'
        tables.append(workflow("few-hurried", hurried_variant, more=ONCE))
        return settings(tables="".join(tables))

    def answer(self, script: Any) -> None:
        """What every upstream does from now on."""
        for one in self.upstreams:
            one.on("", script)


ONCE = "attempts_max = 1\n"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    with made.tunnels, made.good, made.misnamed, made.expired, made.plain:
        if _has_six():
            made.six.__enter__()
            made.six_tls.__enter__()
        yield made
        if _has_six():
            made.six.__exit__()
            made.six_tls.__exit__()
        made.mute.close()
        made.nowhere.close()
        made.no_tls.shutdown(socket.SHUT_RDWR)
        made.no_tls.close()


@pytest.fixture(scope="module")
def gateway(world: World) -> Iterator[Served]:
    files = {
        "drivetrain.toml": world.project(),
        "certificates/ca.pem": world.authority.pem,
        "certificates/text.pem": "no certificate\n",
    }
    pair = f"{USER}:{QUOTED}"
    environ = {
        "PROVIDER_KEY": PROVIDER_KEY,
        "TUNNELS": f"http://{pair}@127.0.0.1:{world.tunnels.port}",
        "FORWARD": f"http://{pair}@127.0.0.1:{world.plain.port}",
    }
    with served(files, environ) as running:
        yield running
        assert running.alive
        assert not running.faults, "\n".join(running.faults)


@pytest.fixture(autouse=True)
def _fresh(world: World) -> None:
    world.tunnels.forget()
    for one in world.upstreams:
        one.forget()
    world.answer(http(completion("through")))


def chat(name: str, **more: Any) -> bytes:
    return wire.request({"model": name, "messages": [{"role": "user", "content": QUESTION}], **more})


def asked(gateway: Served, name: str, **more: Any) -> wire.Answered:
    return wire.one(gateway.port, chat(name, **more))


def text(answer: wire.Answered) -> str:
    assert answer.status == 200, answer
    return str(answer.json["choices"][0]["message"]["content"])


def records(gateway: Served, answer: wire.Answered) -> Any:
    return gateway.call(answer.headers["x-request-id"])


def metric(gateway: Served, name: str) -> float:
    answer = wire.one(gateway.port, wire.request(method="GET", path="/metrics"))
    found = re.search(rf"^{name} (\S+)$", answer.body.decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


# TLS.


@pytest.mark.parametrize("name", ["good", "named"])
def test_a_provider_of_an_authority_of_ones_own_is_reached(gateway: Served, world: World, name: str) -> None:
    assert text(asked(gateway, name)) == "through"
    (one,) = world.good.asked
    assert one.json["messages"][0]["content"] == QUESTION
    assert one.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    host = "127.0.0.1" if name == "good" else "localhost"
    assert one.headers["host"] == f"{host}:{world.good.port}"


def test_a_tls_connection_is_used_again(gateway: Served, world: World) -> None:
    text(asked(gateway, "good"))
    before = world.good.connections
    for _ in range(5):
        text(asked(gateway, "good"))
    assert world.good.connections == before
    assert len({one.connection for one in world.good.asked}) == 1


def test_a_stream_through_tls(gateway: Served, world: World) -> None:
    def paced(_asked: Asked, to: Wire) -> None:
        whole = stream(stream_events("Hel", "lo ", "there."))
        for place in range(0, len(whole), 97):
            to.send(whole[place : place + 97])
            to.wait(0.005)

    world.good.on("", paced)
    answer = asked(gateway, "good", stream=True)
    assert answer.whole
    assert answer.text == "Hello there."
    assert answer.events[-1] == "[DONE]"


def test_a_large_request_and_a_large_answer_through_tls(gateway: Served, world: World) -> None:
    world.good.on("", lambda one, to: to.send(http(completion(one.json["messages"][0]["content"]))))
    content = "0123456789" * 100_000
    answer = wire.one(gateway.port, wire.request({"model": "good", "messages": [{"role": "user", "content": content}]}))
    assert text(answer) == content


UNTRUSTED = {
    "untrusted": ("good", "local issuer"),
    "misnamed": ("misnamed", "mismatch"),
    "expired": ("expired", "expired"),
}


@pytest.mark.parametrize("name", UNTRUSTED)
def test_a_certificate_that_does_not_hold_is_a_502_and_nothing_is_sent(
    gateway: Served, world: World, name: str
) -> None:
    upstream = getattr(world, UNTRUSTED[name][0])

    def tried() -> float:
        before, begun = upstream.connections, time.monotonic()
        answer = asked(gateway, name)
        took_s = time.monotonic() - begun
        assert answer.status == 502
        assert answer.error["code"] == "upstream_unreachable"
        assert "its certificate was not accepted" in answer.error["message"]
        assert upstream.asked == []
        call = records(gateway, answer)
        most = 4 if name == "untrusted" else 2
        assert 1 <= upstream.connections - before == len(call.attempts) <= most
        assert call.status == "failed"
        assert call.cost_nano_usd == 0
        assert {(one.failure, one.status, one.cost_nano_usd) for one in call.attempts} == {("tls", 0, 0)}
        return took_s

    measured(3, tried)


@pytest.mark.parametrize("name", UNTRUSTED)
def test_the_record_says_what_is_wrong_with_a_certificate(gateway: Served, name: str) -> None:
    (attempt,) = records(gateway, asked(gateway, f"{name}-once")).attempts
    assert UNTRUSTED[name][1] in attempt.reason.lower(), attempt.reason
    assert "127.0.0.1" in attempt.reason


@pytest.mark.parametrize("name", ["no-file", "no-pem"])
def test_a_ca_file_that_is_none_is_an_error_and_never_the_systems(gateway: Served, world: World, name: str) -> None:
    answer = asked(gateway, f"{name}-once")
    assert answer.status == 502
    assert answer.error["code"] == "upstream_unreachable"
    assert world.good.asked == []


def test_a_provider_that_speaks_no_tls_is_a_502(gateway: Served) -> None:
    answer = asked(gateway, "no-tls-once")
    assert answer.status == 502
    assert records(gateway, answer).attempts[0].failure == "tls"


def test_a_handshake_that_never_ends_is_a_504_in_time(gateway: Served) -> None:
    answer = within(CONNECT_S + SLACK_S, lambda: asked(gateway, "mute-once"), least_s=CONNECT_S - 0.05)
    assert answer.status == 504
    assert answer.error["code"] == "upstream_timeout"
    (attempt,) = records(gateway, answer).attempts
    assert attempt.failure == "connect_timeout"
    assert "400 ms" in attempt.reason


# Proxies.


@pytest.mark.parametrize("name", ["tunnel", "secret-tunnel"])
def test_an_https_provider_is_reached_through_a_tunnel(gateway: Served, world: World, name: str) -> None:
    assert text(asked(gateway, name)) == "through"
    (one,) = world.good.asked
    assert one.path == "/chat/completions"
    assert "proxy-authorization" not in one.headers
    assert one.headers["host"] == f"127.0.0.1:{world.good.port}"
    head = world.tunnels.heads[0]
    assert head.startswith(f"CONNECT 127.0.0.1:{world.good.port} HTTP/1.1\r\n")
    assert PROVIDER_KEY not in head
    assert QUESTION not in head
    assert (f"proxy-authorization: Basic {BASIC}\r\n" in head) == (name == "secret-tunnel")
    assert ("proxy-authorization" in head) == (name == "secret-tunnel")


def test_a_tunnel_is_used_again_and_carries_streams(gateway: Served, world: World) -> None:
    text(asked(gateway, "secret-tunnel"))
    world.tunnels.heads.clear()
    world.good.on("", stream(stream_events("Hel", "lo.")))
    for _ in range(3):
        answer = asked(gateway, "secret-tunnel", stream=True)
        assert answer.text == "Hello."
        assert answer.whole
    assert world.tunnels.heads == []


def test_the_certificate_beyond_a_tunnel_is_checked(gateway: Served, world: World) -> None:
    answer = asked(gateway, "expired-tunnel-once")
    assert answer.status == 502
    assert records(gateway, answer).attempts[0].failure == "tls"
    assert world.expired.asked == []
    assert len(world.tunnels.heads) == 1


@pytest.mark.parametrize("name", ["forward", "secret-forward"])
def test_an_http_provider_is_asked_for_by_its_whole_address(gateway: Served, world: World, name: str) -> None:
    assert text(asked(gateway, name)) == "through"
    (one,) = world.plain.asked
    query = "?a=b" if name == "secret-forward" else ""
    assert re.fullmatch(rf"http://127\.0\.0\.1:\d+/v1/chat/completions{re.escape(query)}", one.path)
    assert one.headers["host"] == one.path.split("/")[2]
    assert one.headers.get("proxy-authorization") == (f"Basic {BASIC}" if query else None)
    assert one.headers["authorization"] == f"Bearer {PROVIDER_KEY}"


@pytest.mark.parametrize("status", [b"407 Proxy Authentication Required", b"403 Forbidden", b"502 Bad Gateway"])
def test_a_proxy_that_opens_no_tunnel_is_a_502_that_says_so(gateway: Served, world: World, status: bytes) -> None:
    world.tunnels.answer = REFUSED % status
    answer = asked(gateway, "expired-tunnel")
    assert answer.status == 502
    assert answer.error["code"] == "upstream_unreachable"
    call = records(gateway, answer)
    assert world.expired.asked == []
    assert len(world.tunnels.heads) == len(call.attempts) <= 2
    assert {one.failure for one in call.attempts} == {"connect"}
    assert f"the proxy answered {status[:3].decode()}" in call.attempts[0].reason


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 Conn", b"\x00\x01\x02\r\n\r\n", b"\r\n\r\n", b"HTTP/1.1 200"], ids=repr
)
def test_a_proxy_that_closes_or_babbles_is_a_502(gateway: Served, world: World, said: bytes) -> None:
    world.tunnels.answer = said
    answer = asked(gateway, "expired-tunnel-once")
    assert answer.status == 502
    assert records(gateway, answer).attempts[0].failure == "connect"


def test_a_proxy_whose_head_never_ends_is_a_502(gateway: Served, world: World) -> None:
    world.tunnels.answer = b"HTTP/1.1 200 OK\r\n" + b"x-more: y\r\n" * 100_000
    answer = asked(gateway, "expired-tunnel-once")
    assert answer.status == 502
    assert "too long" in records(gateway, answer).attempts[0].reason


def test_a_proxy_that_says_nothing_is_a_504_in_time(gateway: Served, world: World) -> None:
    world.tunnels.answer = None
    answer = within(CONNECT_S + SLACK_S, lambda: asked(gateway, "silent-tunnel-once"), least_s=CONNECT_S - 0.05)
    assert answer.status == 504
    assert answer.error["code"] == "upstream_timeout"
    assert records(gateway, answer).attempts[0].failure == "connect_timeout"


def test_a_proxy_that_is_not_there_is_a_502(gateway: Served, world: World) -> None:
    answer = asked(gateway, "no-proxy-once")
    assert answer.status == 502
    assert records(gateway, answer).attempts[0].failure == "connect"
    assert world.good.asked == []


@pytest.mark.parametrize("said", [f"Basic {BASIC}", BASIC, PASSWORD, QUOTED, f"{USER}:{PASSWORD}"], ids=range(5))
def test_a_proxy_that_repeats_its_password_does_not_leak_it(gateway: Served, world: World, said: str) -> None:
    body = json.dumps({"error": {"message": f"no access with {said}", "code": said}}).encode()
    for status in ("407 Proxy Authentication Required", "403 Forbidden", "400 Bad Request", "500 Oh"):
        world.plain.on("", http(body, status=status))
        answer = asked(gateway, "secret-forward-once")
        assert answer.status >= 400
        call = records(gateway, answer)
        for secret in (BASIC, PASSWORD, QUOTED):
            assert secret not in answer.body.decode()
            assert secret not in str(call)


def test_a_password_in_the_projects_file_is_a_mistake_that_does_not_repeat_it(tmp_path: Path) -> None:
    tables = provider("p", "https://127.0.0.1/v1", more='proxy = "http://user:hush-hush@127.0.0.1:3128"\n')
    (tmp_path / "drivetrain.toml").write_text(settings(tables=tables + model("p/m") + workflow("w", "p/m")))
    with pytest.raises(ProjectError) as refused:
        load(tmp_path)
    assert "providers.p.proxy" in str(refused.value)
    assert "env:" in str(refused.value)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hush/hush@127.0.0.1:3128",
        "http://user:1234/hush@127.0.0.1:3128",
        "http://user:hush#hush@127.0.0.1:3128",
        "http://user:hush@127.0.0.1:hush",
        "127.0.0.1:3128",
        "user:hush@127.0.0.1:3128",
        "socks5://user:hush@127.0.0.1:1080",
        "https://user:hush@127.0.0.1:3128",
        "hush",
    ],
)
def test_a_referenced_proxy_that_is_no_http_url_is_refused_before_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Unread until the first call, it would fail every call, or send them elsewhere."""
    monkeypatch.setenv("BAD_PROXY", url)
    tables = provider("p", "https://127.0.0.1/v1", more='proxy = "env:BAD_PROXY"\n') + model("p/m")
    (tmp_path / "drivetrain.toml").write_text(settings(tables=tables + workflow("w", "p/m")))
    snapshot = load(tmp_path)
    try:
        with pytest.raises(DrivetrainError) as refused:
            compiled(snapshot)
    finally:
        unload(snapshot)
    assert "proxy" in str(refused.value)
    assert "hush" not in str(refused.value)


def test_an_address_that_cannot_be_encoded_fails_at_once(gateway: Served) -> None:
    assert within(1, lambda: asked(gateway, "unnameable-once")).status == 502


# Pools and their limits.


def test_attempts_beyond_the_limit_wait_and_are_served(gateway: Served, world: World) -> None:
    running, most, lock, full = [0], [0], threading.Lock(), threading.Event()

    def slow(_asked: Asked, to: Wire) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            if running[0] == 2:
                full.set()
        full.wait(PATIENCE_S)
        to.wait(0.03)
        with lock:
            running[0] -= 1
        to.send(http(completion("served")))

    world.plain.on("/few", slow)
    before = world.plain.connections
    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda _: text(asked(gateway, "few")), range(24)))
    assert answers == ["served"] * 24
    assert most[0] == 2
    assert world.plain.connections - before == 2


def test_who_waits_too_long_for_a_connection_is_a_504_and_takes_none(gateway: Served, world: World) -> None:
    held = threading.Event()

    def hold(_asked: Asked, to: Wire) -> None:
        held.wait(PATIENCE_S)
        to.send(http(completion("late")))

    world.plain.on("/few", hold)
    with ThreadPoolExecutor(3) as clients:
        first = [clients.submit(asked, gateway, "few-once") for _ in range(2)]
        while len(world.plain.below("/few")) < 2:
            time.sleep(0.01)
        answer = asked(gateway, "few-hurried")
        held.set()
        assert [text(one.result()) for one in first] == ["late", "late"]
    assert answer.status == 504
    assert len(world.plain.below("/few")) == 2
    world.plain.on("/few", http(completion("free again")))
    assert text(asked(gateway, "few-once")) == "free again"


def test_an_unused_connection_is_dropped(gateway: Served, world: World) -> None:
    ended = threading.Event()

    def watch(_asked: Asked, to: Wire) -> None:
        to.send(http(completion("brief")))
        if to.left(PATIENCE_S):
            to.open = False
            ended.set()

    def unused() -> float:
        ended.clear()
        world.plain.on("/brief", watch)
        begun = time.monotonic()
        text(asked(gateway, "brief"))
        open_before = metric(gateway, "drivetrain_upstream_connections")
        if ended.is_set():
            return float("inf")  # the machine stood still, and it was looked at too late
        assert ended.wait(PATIENCE_S)
        took_s = time.monotonic() - begun
        assert took_s >= IDLE_S - 0.15
        # Those of other tests may end at any time.
        assert eventually(lambda: metric(gateway, "drivetrain_upstream_connections") < open_before)
        return took_s

    measured(IDLE_S + SLACK_S, unused)
    world.plain.on("/brief", http(completion("anew")))
    assert text(asked(gateway, "brief")) == "anew"


# IPv6.


@SIX
@pytest.mark.parametrize("name", ["six", "six-tls"])
def test_a_provider_at_an_ipv6_address(gateway: Served, world: World, name: str) -> None:
    upstream = world.six if name == "six" else world.six_tls
    assert text(asked(gateway, name)) == "through"
    assert upstream.asked[0].headers["host"] == f"[::1]:{upstream.port}"


@SIX
def test_a_provider_at_an_ipv6_address_through_a_tunnel(gateway: Served, world: World) -> None:
    answer = asked(gateway, "six-tunnel-once")
    assert world.tunnels.heads[0].startswith(f"CONNECT [::1]:{world.six_tls.port} HTTP/1.1\r\n")
    assert f"host: [::1]:{world.six_tls.port}\r\n" in world.tunnels.heads[0]
    assert text(answer) == "through"


# What was written.


def test_the_proxys_password_stands_in_no_error_log_record_or_metric(gateway: Served, world: World) -> None:
    """Stands last: whatever failed before, and whatever fails here."""
    said = []
    for tunnel_says in (OPENED, REFUSED % b"407 No", b"", b"HTTP/1.1 500 No\r\n\r\n"):
        world.tunnels.answer = tunnel_says
        said += [asked(gateway, f"{name}-once") for name in ("secret-tunnel", "expired-tunnel", "secret-forward")]
    said.append(wire.one(gateway.port, wire.request(method="GET", path="/metrics")))
    said.append(wire.one(gateway.port, wire.request(method="GET", path="/readyz")))
    written = gateway.everything_written()
    assert b"call_" in written
    for secret in (PASSWORD, QUOTED, BASIC, PROVIDER_KEY):
        assert secret.encode() not in written
        for answer in said:
            assert secret.encode() not in answer.body + str(answer.headers).encode()
