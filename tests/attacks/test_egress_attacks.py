"""Attacks on where the gateway connects to, and on what of a provider leaks to clients.

Proved elsewhere: certificates that do not hold, proxies, one redirect per status, headers of a 200 that are not
relayed, keys that providers repeat (gateway/test_tls_and_proxy, test_hostile_upstream, test_hostile_input,
test_any_endpoint). Here: every way to name an address, redirects inwards, a name that resolves differently the second
time, the proxies of the environment, and every kind of answer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attack_world import ENVIRON, KEY, OTHER_KEY, PRIVATE, PROVIDER_KEY, WITH_KEY, Trap, ask, body, text_of, then_end

from drivetrain.adapters.http_pool import HttpPool
from drivetrain.core.endpoints import Endpoint
from drivetrain.ports.transport import UpstreamFailure, UpstreamHead, UpstreamRequest
from support import wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.tls import Authority, TlsUpstream
from support.upstream import Upstream, completion, http, stream, stream_events

OURS = {
    "content-type", "content-length", "x-request-id", "openai-processing-ms", "x-drivetrain-cost-nano-usd",
    "x-drivetrain-variant", "x-drivetrain-cache", "cache-control", "transfer-encoding", "retry-after", "connection",
    "idempotent-replayed",
}  # fmt: skip
THEIRS = (
    "set-cookie: session=theirs; HttpOnly\r\nset-cookie: second=1\r\nserver: theirs/1.0\r\nvia: 1.1 theirs\r\n"
    "alt-svc: h3=\":443\"\r\nlocation: http://theirs/\r\nlink: <http://theirs/>\r\nrefresh: 0;url=http://theirs/\r\n"
    "www-authenticate: Basic realm=theirs\r\naccess-control-allow-origin: *\r\nclear-site-data: \"*\"\r\n"
    "strict-transport-security: max-age=9\r\nx-drivetrain-variant: theirs\r\nx-drivetrain-cost-nano-usd: 0\r\n"
    "etag: theirs\r\nage: 5\r\nvary: *\r\ntrailer: x\r\nkeep-alive: timeout=1\r\nproxy-authenticate: Basic\r\n"
    "x-ratelimit-remaining-requests: 5\r\nopenai-organization: theirs\r\nrequest-id: theirs\r\n"
)  # fmt: skip


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    with Trap() as made:
        yield made


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, trap: Trap) -> Iterator[Served]:
    tables = (
        provider("raw", f"{upstream.url}/raw", more=WITH_KEY)
        + model("raw/m")
        + '[keys.app]\nsecret = "env:CLIENT_KEY"\n[keys.other]\nsecret = "env:OTHER_KEY"\n'
        + workflow("chat", "raw/m", more="attempts_max = 1\n")
        + workflow("cached", "raw/m", more="attempts_max = 1\ncache = { ttl_s = 3600 }\n")
    )
    proxies = {name: trap.url for one in ("http_proxy", "https_proxy", "all_proxy") for name in (one, one.upper())}
    with served({"drivetrain.toml": settings(tables=tables)}, {**ENVIRON, **proxies}) as running:
        yield running
        assert trap.connections == 0, "somebody made the gateway connect to where it has no business"
        assert running.stop() == 0
        assert not running.faults, "\n".join(running.faults)


@pytest.fixture(autouse=True)
def _fresh(upstream: Upstream) -> None:
    upstream.forget()
    upstream.on("/raw", http(completion()))


# Addresses that clients name.


@pytest.mark.parametrize(
    "name",
    ["base_url", "api_base", "endpoint", "api_key", "api_version", "extra_headers", "extra_body", "extra_query",
     "custom_llm_provider", "fallbacks", "models", "provider", "route", "plugins", "mcp_servers"],
)  # fmt: skip
def test_a_client_names_no_upstream(gateway: Served, upstream: Upstream, trap: Trap, name: str) -> None:
    """Some providers are proxies themselves that would obey: it is refused, not passed on."""
    for path, said in (("/v1/chat/completions", body()), ("/v1/workflows/chat", {"text": "hello"})):
        for value in (trap.url, {"host": trap.url}, [trap.url]):
            answer = ask(gateway, {**said, name: value}, path=path)
            assert (answer.status, answer.error["param"]) == (400, name)
    assert upstream.asked == []
    assert trap.connections == 0


def test_no_header_of_a_client_chooses_an_upstream(gateway: Served, upstream: Upstream, trap: Trap) -> None:
    names = (
        "x-base-url", "x-upstream", "x-api-base", "x-portkey-custom-host", "x-forwarded-host", "x-target-url",
        "forwarded", "openai-organization", "openai-base-url", "x-rewrite-url", "x-original-url", "destination", "via",
        "max-forwards",
    )  # fmt: skip
    assert ask(gateway, headers="".join(f"{name}: {trap.url}\r\n" for name in names)).status == 200
    (one,) = upstream.asked
    assert f":{trap.port}".encode() not in one.head
    assert trap.connections == 0


def test_no_address_in_a_conversation_is_fetched(gateway: Served, upstream: Upstream, trap: Trap) -> None:
    """Images by URL are the provider's to fetch, or not; text is text."""
    for url in (f"{trap.url}/image.png", *PRIVATE):
        image = {"type": "image_url", "image_url": {"url": url, "detail": "high"}}
        said = {**body(), "messages": [{"role": "user", "content": [{"type": "text", "text": url}, image]}]}
        assert ask(gateway, said).status == 200
        assert upstream.asked[-1].json["messages"] == said["messages"]
    assert trap.connections == 0


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "gopher://127.0.0.1:6379/_FLUSHALL", "ftp://x/", "//x/", "javascript:1"]
)
def test_an_image_has_an_address_of_the_web_or_none(gateway: Served, upstream: Upstream, url: str) -> None:
    image = {"type": "image_url", "image_url": {"url": url}}
    assert ask(gateway, {**body(), "messages": [{"role": "user", "content": [image]}]}).status == 400
    assert upstream.asked == []


# Redirects.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
def test_no_redirect_leads_inwards(gateway: Served, upstream: Upstream, trap: Trap, status: int, stream: bool) -> None:
    places = (
        f"{trap.url}/",
        "//169.254.169.254/",
        "/raw/elsewhere",
        "http://[::ffff:169.254.169.254]/",
        "file:///etc/",
    )
    for place in places:
        upstream.forget()
        said = http(b"", status=f"{status} Elsewhere", headers=f"location: {place}\r\nrefresh: 0;url={place}\r\n")
        upstream.on("/raw", said)
        answer = ask(gateway, body(stream=stream))
        assert answer.status == 502, (place, answer)
        assert "location" not in answer.headers
        assert place not in answer.body.decode()
        assert [one.path for one in upstream.asked] == ["/raw/chat/completions"]
    assert trap.connections == 0


# Names that resolve differently the second time.


class Rebinding(asyncio.SelectorEventLoop):
    """Resolves every name to the ports in `places`, one after the other, the last one for ever."""

    def __init__(self, *places: int) -> None:
        super().__init__()
        self.places = list(places)
        self.asked: list[str] = []

    async def getaddrinfo(self, host: Any, port: Any, **_more: Any) -> Any:
        self.asked.append(str(host))
        place = self.places.pop(0) if len(self.places) > 1 else self.places[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", place))]


class Sink:
    """Notes how one exchange ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ended: asyncio.Future[str] = loop.create_future()

    def on_head(self, head: UpstreamHead) -> None:
        self.status = head.status

    def on_chunk(self, data: bytes) -> None:
        """Whatever it says."""

    def on_end(self) -> None:
        self.ended.set_result(f"status {self.status}")

    def on_failure(self, failure: UpstreamFailure) -> None:
        self.ended.set_result(failure.kind)

    def on_fault(self, fault: Exception) -> None:
        self.ended.set_exception(fault)


def test_a_name_that_moves_between_two_connections_gets_nothing_without_its_certificate(tmp_path: Path) -> None:
    """A name is resolved by the connection itself, once: there is no check whose answer could be out of date. Who
    answers must prove the configured name before the first byte of a request."""
    authority = Authority()
    (tmp_path / "ca.pem").write_text(authority.pem)
    mine = TlsUpstream(context=authority.context("provider.example"))
    rogue = TlsUpstream(context=authority.context("localhost", "127.0.0.1", "inside.example"))
    with mine, rogue:
        for one in (mine, rogue):
            one.on("", then_end(http(completion(), headers="connection: close\r\n")))
        loop = Rebinding(mine.port, rogue.port)
        endpoint = Endpoint(
            name="p", scheme="https", host="provider.example", port=443, ca_file=str(tmp_path / "ca.pem")
        )
        head = b"POST /v1 HTTP/1.1\r\nhost: provider.example\r\nauthorization: Bearer secret\r\ncontent-length: "

        async def two() -> list[str]:
            pool = HttpPool(loop)
            found = []
            for _ in range(2):
                sink = Sink(loop)
                pool.send(UpstreamRequest(endpoint, head, b"{}", 3_000, 3_000), sink)
                found.append(await sink.ended)
            await pool.close()
            return found

        try:
            assert loop.run_until_complete(two()) == ["status 200", "tls"]
        finally:
            loop.close()
        assert loop.asked == ["provider.example"] * 2, "one look-up per connection, and none beside it"
        assert len(mine.asked) == 1
        assert rogue.connections == 1
        assert rogue.asked == [], "a request went to who could not prove the name"


# What of a provider reaches a client.


ANSWERS = {
    "whole": (http(completion(), headers=THEIRS), 200),
    "chunked": (http(completion(), headers=THEIRS, framing="chunked"), 200),
    "stream": (stream(stream_events()).replace(b"\r\n", b"\r\n" + THEIRS.encode(), 1), 200),
    "interim": (b"HTTP/1.1 103 Early Hints\r\n" + THEIRS.encode() + b"\r\n" + http(completion()), 200),
    "trailers": (http(completion(), framing="chunked")[:-2] + THEIRS.encode() + b"\r\n", 200),
    "bad": (http(b'{"error":{"message":"no"}}', status="400 Bad Request", headers=THEIRS), 400),
    "unauthorized": (http(b"{}", status="401 Unauthorized", headers=THEIRS), 502),
    "limited": (http(b"{}", status="429 Too Many Requests", headers=THEIRS + "retry-after: 3\r\n"), 429),
    "redirect": (http(b"", status="302 Found", headers=THEIRS), 502),
    "failed": (http(b"<html>", status="500 Error", headers=THEIRS), 502),
    "unusable": (http(b"<html>", headers=THEIRS), 502),
}


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("door", ["/v1/chat/completions", "/v1/workflows/chat", "stream"])
def test_no_header_of_a_provider_is_relayed(gateway: Served, upstream: Upstream, kind: str, door: str) -> None:
    said, status = ANSWERS[kind]
    upstream.on("/raw", said)
    if kind == "stream" and door != "stream":
        status = 502
    asked = {"text": "hello"} if door == "/v1/workflows/chat" else body(stream=door == "stream")
    answer = ask(gateway, asked, path=door if door.startswith("/") else "/v1/chat/completions")
    assert answer.status == status, answer
    assert set(answer.headers) <= OURS, set(answer.headers) - OURS
    assert "theirs" not in str(answer.headers)
    assert answer.headers["x-request-id"].startswith("call_")
    if "x-drivetrain-variant" in answer.headers:
        assert answer.headers["x-drivetrain-variant"] in ("v0", "")


def test_what_is_given_again_brings_no_cookie_either(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", http(completion("kept"), headers=THEIRS))
    said = body(name="cached", temperature=0)
    first, hit = ask(gateway, said), ask(gateway, said, key=OTHER_KEY)
    again = [ask(gateway, body(), headers="idempotency-key: egress-1\r\n") for _ in range(2)]
    assert hit.headers["x-drivetrain-cache"] == "hit"
    assert again[1].headers["idempotent-replayed"] == "true"
    for answer in (first, hit, *again):
        assert text_of(answer) == "kept"
        assert set(answer.headers) <= OURS


def test_no_secret_left_for_anybody_but_the_provider(gateway: Served, upstream: Upstream) -> None:
    ask(gateway, headers=f"cookie: a={KEY}\r\nproxy-authorization: Bearer {KEY}\r\n")
    (one,) = upstream.asked
    assert KEY.encode() not in one.head + one.body
    assert one.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert one.path == "/raw/chat/completions", "a proxy of the environment would be asked by a whole address"
    assert wire.one(gateway.port, wire.request(method="GET", path="/livez")).status == 200
