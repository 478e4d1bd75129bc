"""Attacks on who asks: guessed, stolen, ended and misplaced keys, and rights that were not given.

Proved elsewhere: missing and mistyped keys on every path, repeated `authorization`, attribution without `may_override`
(gateway/test_hostile_input); revocation in every worker within a second, expiry, rotation, what is on the disk
(keys/test_keys_gateway, test_key_store); that a look-up compares digests that nobody can choose (keys/test_key_ring,
test_key_text). Here: keys in other places and other alphabets, the work of a look-up, connections that outlive their
key, and ways around a scope.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from attack_world import ENVIRON, KEY, OTHER_KEY, PROVIDER_KEY, WITH_KEY, ask, body, text_of
from typer.testing import CliRunner

from drivetrain.cli.keys import app
from drivetrain.core.errors import RequestError
from drivetrain.gateway.identity import KeyRing
from drivetrain.project.load import load
from support import wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.upstream import STREAM_END, STREAM_HEAD, Asked, Upstream, Wire, chunk, completion, http, stream_events

pytestmark = pytest.mark.slow

NARROW_KEY = "client-key-uvwxyz0123-very-secret"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Served]:
    tables = (
        provider("raw", f"{upstream.url}/raw", more=WITH_KEY)
        + model("raw/m")
        + "[teams.support]\n[teams.sales]\n"
        + '[keys.app]\nsecret = "env:CLIENT_KEY"\nteam = "support"\nmay_override = ["user"]\n'
        + '[keys.other]\nsecret = "env:OTHER_KEY"\nteam = "sales"\n'
        + '[keys.narrow]\nsecret = "env:NARROW_KEY"\nteam = "sales"\nworkflows = ["chat"]\n'
        + workflow("chat", "raw/m", more="attempts_max = 1\n")
        + workflow("secret-plans", "raw/m", more="attempts_max = 1\ncache = { ttl_s = 3600 }\n")
    )
    files = {"drivetrain.toml": settings(gateway='direct_models = ["raw/m"]\n', tables=tables)}
    with served(files, {**ENVIRON, "NARROW_KEY": NARROW_KEY}) as running:
        yield running
        written = running.everything_written()
        for secret in (KEY, OTHER_KEY, NARROW_KEY, PROVIDER_KEY):
            assert secret.encode() not in written
        assert running.stop() == 0
        assert not running.faults, "\n".join(running.faults)


@pytest.fixture(autouse=True)
def _fresh(upstream: Upstream) -> None:
    upstream.forget()
    upstream.on("/raw", http(completion()))


# Keys that are none, or stand elsewhere.


@pytest.mark.parametrize(
    "said",
    [
        "' OR '1'='1", "'; DROP TABLE keys; --", '" OR ""="', "x' UNION SELECT digest FROM keys --", "%", "_", "*",
        "%s%s%n", "{0.__class__}", "${CLIENT_KEY}", "env:CLIENT_KEY", "../keys/master.key", "\xc3\xa9" * 40, "\xff\xfe",
        "null", "undefined", "[]", "0", "true", "dt_" + "0" * 49, "dt_" + "\xd9\xa0" * 49, "A" * 15_000, KEY + "\t.",
        KEY.upper(), quote(KEY, safe="").replace("-", "%2D"), "Bearer " + KEY, KEY + " " + KEY, f'"{KEY}"',
        " " + KEY + "\x85",
    ],
)  # fmt: skip
def test_no_text_in_a_header_is_a_key_but_a_key(gateway: Served, upstream: Upstream, said: str) -> None:
    for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/v1/workflows/chat", "POST")):
        raw = wire.request(body(), method=method, path=path, headers=f"authorization: Bearer {said}\r\n")
        answer = wire.one(gateway.port, raw)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert len(answer.body) < 400, "what was sent is repeated"
    assert upstream.asked == []
    assert ask(gateway).status == 200, "the keys are still there"


@pytest.mark.parametrize("byte", ["\x00", "\x01", "\x7f", "\n", "\r"])
def test_a_control_character_in_a_key_ends_the_request(gateway: Served, upstream: Upstream, byte: str) -> None:
    for said in (KEY + byte, byte + KEY, KEY[:5] + byte + KEY[5:]):
        heard = wire.ask(gateway.port, wire.request(body(), headers=f"authorization: Bearer {said}\r\n"))
        assert [one.status in (400, 401) for one in heard.answers] == [True], heard
    assert upstream.asked == []


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (f"/v1/chat/completions?api_key={KEY}", ""),
        (f"/v1/chat/completions?authorization=Bearer%20{KEY}&access_token={KEY}&key={KEY}", ""),
        ("/v1/chat/completions", f"cookie: authorization=Bearer {KEY}; api_key={KEY}\r\n"),
        ("/v1/chat/completions", f"proxy-authorization: Bearer {KEY}\r\n"),
        ("/v1/chat/completions", f"x-authorization: Bearer {KEY}\r\nx-forwarded-authorization: Bearer {KEY}\r\n"),
        ("/v1/chat/completions", f"authorization2: Bearer {KEY}\r\nx-api-key: {KEY}\r\nopenai-api-key: {KEY}\r\n"),
        ("/v1/chat/completions", f"sec-websocket-protocol: openai-insecure-api-key.{KEY}\r\n"),
        ("/v1/chat/completions", f"x-drivetrain-key: {KEY}\r\nx-drivetrain-tenant: a\r\n"),
    ],
)
def test_a_key_stands_in_authorization_or_nowhere(gateway: Served, upstream: Upstream, path: str, headers: str) -> None:
    said = {**body(), "api_key": KEY, "key": KEY, "authorization": f"Bearer {KEY}"}
    answer = wire.one(gateway.port, wire.request(said, path=path, headers=headers))
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert upstream.asked == []


def test_a_look_up_does_the_same_whatever_was_guessed(tmp_path: Path) -> None:
    """Every function that runs, in its order: which it is depends on nothing that we keep. What remains is one keyed
    hash, whose time depends on the length of what came, and one look into a dict by that hash."""
    tables = provider("raw", "http://127.0.0.1:9") + model("raw/m") + workflow("chat", "raw/m")
    (tmp_path / "drivetrain.toml").write_text(settings(tables=tables + '[keys.app]\nsecret = "env:A"\n'))
    ring = KeyRing(load(tmp_path), lambda _reference: KEY)

    def done_for(guess: str) -> list[str]:
        done: list[str] = []

        def note(frame: Any, event: str, what: Any) -> None:
            if event in ("call", "c_call"):
                done.append(what.__name__ if what is not None else frame.f_code.co_name)

        said = f"Bearer {guess}".encode()
        sys.setprofile(note)
        try:
            ring.identify(said)
        except RequestError:
            pass
        finally:
            sys.setprofile(None)
        return [one for one in done if one != "setprofile"]

    near = ["0" * len(KEY), KEY[:16] + "0" * (len(KEY) - 16), KEY[:-1] + "0", "0" + KEY[1:]]
    work = [done_for(guess) for guess in near]
    assert all(one == work[0] for one in work)
    right = done_for(KEY)
    assert right == ["identify", "lower", "key_digest", "digest", "get"]
    assert work[0][: len(right)] == right


def test_wrong_keys_are_told_apart_by_nothing(gateway: Served) -> None:
    """Same status, words, headers and size, however near the guess."""
    near = [KEY[:-1] + "X", "X" + KEY[1:], KEY + "X", KEY[:-1], "X", KEY[: len(KEY) // 2]]
    answers = [ask(gateway, key=one) for one in near]
    assert len({(one.status, one.body, tuple(one.headers.items())) for one in answers}) == 1


# Keys that end while something runs.


def command(gateway: Served, *arguments: str) -> str:
    """`drivetrain keys`, and what it printed."""
    result = CliRunner().invoke(app, [*arguments, "--project", str(gateway.root)])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def becomes(gateway: Served, key: str, status: int, within_s: float = 30.0) -> None:
    """Returns once a request with `key` is answered `status`."""
    begun = time.monotonic()
    while ask(gateway, key=key).status != status:
        assert time.monotonic() - begun < within_s, f"still not {status}"
        time.sleep(0.02)


@pytest.mark.parametrize("ends", ["revoked", "expired"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_waits_behind_a_running_request_is_asked_for_its_key_when_its_turn_comes(
    gateway: Served, upstream: Upstream, ends: str, stream: bool
) -> None:
    """The answer that began goes to its end; the pipelined ones behind it, on the same connection, are refused."""
    name = f"{ends}-{stream}".lower()
    key = command(gateway, "issue", name, *(("--expires", "4s") if ends == "expired" else ()))
    becomes(gateway, key, 200)
    upstream.forget()
    go = threading.Event()

    def held(asked: Asked, to: Wire) -> None:
        if asked.json["messages"][0]["content"] != "first":
            to.send(http(completion()))
        elif stream:
            events = stream_events()
            to.send(STREAM_HEAD, chunk(events[0]))
            go.wait(100)
            to.send(b"".join(chunk(one) for one in events[1:]) + STREAM_END)
        else:
            go.wait(100)
            to.send(http(completion()))

    upstream.on("/raw", held)
    with wire.connect(gateway.port) as connection:
        first = wire.request(body("first", stream=stream), key=key)
        connection.sendall(first + b"".join(wire.request(body(f"behind {n}"), key=key) for n in range(5)))
        while not upstream.asked:
            time.sleep(0.01)
        if ends == "revoked":
            command(gateway, "revoke", name, "--now")
        becomes(gateway, key, 401)
        before = len(upstream.asked)
        go.set()
        heard = wire.hear(connection, answers=6)
        assert [one.status for one in heard.answers] == [200] + [401] * 5
        assert heard.answers[0].whole
        assert (heard.answers[0].text if stream else text_of(heard.answers[0])) == "Hello."
        assert len(upstream.asked) == before
        connection.sendall(wire.request(body(), key=OTHER_KEY))
        assert wire.hear(connection).answers[0].status == 200, "the connection itself is nobody's"


def test_a_connection_carries_no_rights_from_one_request_to_the_next(gateway: Served, upstream: Upstream) -> None:
    """As behind a proxy that sends everybody's requests through one connection."""
    raw = (
        wire.request(body(name="secret-plans"), key=KEY)
        + wire.request(body(name="secret-plans"), key=NARROW_KEY)
        + wire.request(body(name="secret-plans"))
        + wire.request(body(name="secret-plans"), key="wrong")
        + wire.request(body(), key=NARROW_KEY)
        + wire.request(body(name="secret-plans"), key=KEY)
    )
    heard = wire.ask(gateway.port, raw, answers=6)
    assert [one.status for one in heard.answers] == [200, 404, 401, 401, 200, 200]
    said = [gateway.call(one.headers["x-request-id"]).attribution.key for one in heard.answers if one.status == 200]
    assert said == ["app", "narrow", "app"]


# Ways around a scope.


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/chat/completions", body(name="secret-plans")),
        ("/v1/chat/completions", body(name="raw/m")),
        ("/v1/chat/completions", body(name="chat\x00secret-plans")),
        ("/v1/chat/completions", b'{"model":"chat","model":"secret-plans","messages":[{"role":"user","content":"x"}]}'),
        ("/v1/workflows/secret-plans", {"text": "hello"}),
        ("/v1/workflows/secret%2Dplans", {"text": "hello"}),
        ("/v1/workflows/raw%2Fm", {"text": "hello"}),
        ("/v1/workflows/raw/m", {"text": "hello"}),
        ("/v1/workflows/chat%2F..%2Fsecret-plans", {"text": "hello"}),
    ],
)
def test_a_scope_holds_at_every_door(gateway: Served, upstream: Upstream, path: str, said: Any) -> None:
    headers = "x-drivetrain-workflow: secret-plans\r\nx-drivetrain-key: app\r\nx-http-method-override: GET\r\n"
    answer = ask(gateway, said, key=NARROW_KEY, path=path, headers=headers)
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert b"secret-plans`." not in answer.body.replace(b"no workflow `secret-plans`", b"")
    assert upstream.asked == []


def test_what_others_may_call_is_given_to_nobody_else_from_memory(gateway: Served, upstream: Upstream) -> None:
    """Neither from the cache nor for a known Idempotency-Key."""
    said = body("kept", name="secret-plans", temperature=0)
    headers = "idempotency-key: identity-1\r\n"
    assert ask(gateway, said, headers=headers).status == 200
    assert ask(gateway, said).headers["x-drivetrain-cache"] == "hit"
    assert ask(gateway, said, key=NARROW_KEY).status == 404
    assert ask(gateway, said, key=NARROW_KEY, headers=headers).status == 404
    other = ask(gateway, said, key=OTHER_KEY, headers=headers)
    assert "idempotent-replayed" not in other.headers


@pytest.mark.parametrize("path", ["/v1/models/secret-plans", "/v1/models/secret%2Dplans", "/v1/models/raw%2Fm"])
def test_what_a_key_may_not_call_it_cannot_see(gateway: Served, path: str) -> None:
    answer = ask(gateway, b"", key=NARROW_KEY, path=path, method="GET")
    unknown = ask(gateway, b"", key=NARROW_KEY, path="/v1/models/nothing-here", method="GET")
    assert answer.status == unknown.status == 404
    assert set(answer.error) == set(unknown.error)
    assert answer.error["code"] == unknown.error["code"]


@pytest.mark.parametrize(
    "headers",
    [
        "x-drivetrain-team: sales\r\n",
        "X-DRIVETRAIN-TEAM: sales\r\n",
        "x-drivetrain-use-case: other\r\n",
        "x-drivetrain-tags: a\r\n",
        "x-drivetrain-user: ann\r\nx-drivetrain-team: sales\r\n",
        "x-drivetrain-team: \r\n",
    ],
)
def test_what_a_key_may_not_say_is_refused_and_not_ignored(gateway: Served, upstream: Upstream, headers: str) -> None:
    assert ask(gateway, headers=headers).error["code"] == "attribution_not_allowed"
    assert upstream.asked == []


def test_no_other_spelling_says_it(gateway: Served, upstream: Upstream) -> None:
    headers = (
        "x_drivetrain_team: sales\r\nx-drivetrain_team: sales\r\ndrivetrain-team: sales\r\n"
        "x-drivetrain-tenant: evil\r\n"
        "x-drivetrain-teams: sales\r\nopenai-organization: sales\r\nopenai-project: sales\r\n"
    )
    said = body(metadata={"team": "sales", "x-drivetrain-team": "sales", "user": "eve"}, user="ann")
    for key, user in ((KEY, "ann"), (OTHER_KEY, "")):
        answer = ask(gateway, said, key=key, headers=headers)
        who = gateway.call(answer.headers["x-request-id"]).attribution
        assert (who.tenant, who.team, who.user) == ("", "support" if key == KEY else "sales", user)
