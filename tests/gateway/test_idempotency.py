"""`Idempotency-Key` through a real gateway: one upstream call, the same answer, and nothing readable on disk."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from drivetrain.gateway.idempotency_answers import KEPT_BYTES_MAX
from support import wire
from support.busy import IDEMPOTENCY, Patience
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.tries import PATIENCE_S, TRIES, Spoiled, eventually, in_one_try, within
from support.upstream import (
    STREAM_HEAD,
    Asked,
    Upstream,
    Wire,
    chunk,
    completion,
    http,
    stream,
    stream_events,
)

pytestmark = pytest.mark.slow

KEYS = """
[keys.shop]
secret = "env:SHOP_KEY"
tenant = "acme"
may_override = ["user"]

[keys.other]
secret = "env:OTHER_KEY"
tenant = "acme"

[keys.shop-abroad]
secret = "env:ABROAD_KEY"
tenant = "other-tenant"
"""
SHOP, OTHER, ABROAD = "sk-shop-0123456789", "sk-other-0123456789", "sk-abroad-0123456789"
FRAMING = {"connection", "content-length", "transfer-encoding", "idempotent-replayed"}
HOLDER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Served]:
    tables = provider("raw", f"{upstream.url}/v1") + model("raw/m")
    tables += workflow("help", "raw/m", more="attempts_max = 1\n") + workflow("more", "raw/m") + KEYS
    files = {"drivetrain.toml": settings(tables=tables, ledger='retention = "none"\n')}
    environ = {"SHOP_KEY": SHOP, "OTHER_KEY": OTHER, "ABROAD_KEY": ABROAD}
    with served(files, environ) as running:
        yield running
        assert running.faults == []


@pytest.fixture(autouse=True)
def whole_answers(upstream: Upstream) -> None:
    upstream.forget()
    upstream.on("/v1", http(completion("The answer.")))


PATIENCE: WeakKeyDictionary[Served, Patience] = WeakKeyDictionary()
"""Of who asks each gateway."""
_numbers = iter(range(1_000_000))


def fresh() -> str:
    """A key that no test used."""
    return f"key-{next(_numbers)}"


def body(text: str = "question", **more: Any) -> dict[str, Any]:
    return {"model": "help", "messages": [{"role": "user", "content": text}], **more}


def sent(key: str, said: dict[str, Any] | None = None, *, by: str = SHOP, path: str = "/v1/chat/completions") -> bytes:
    return wire.request(said or body(), key=by, path=path, headers=f"idempotency-key: {key}\r\n")


def ask(gateway: Served, key: str, said: dict[str, Any] | None = None, **more: str) -> wire.Answered:
    """The answer, asked for again where the store had no time for it, which costs no Call; that is not often."""
    return patience(gateway).answer(lambda: ask_once(gateway, key, said, **more))


def ask_once(gateway: Served, key: str, said: dict[str, Any] | None = None, **more: str) -> wire.Answered:
    return wire.one(gateway.port, sent(key, said, **more))


def patience(gateway: Served) -> Patience:
    return PATIENCE.setdefault(gateway, Patience(IDEMPOTENCY))


def unavailable(answer: wire.Answered) -> bool:
    return answer.status == 503 and answer.error["code"] == IDEMPOTENCY


@contextlib.contextmanager
def begun(gateway: Served, upstream: Upstream, key: str, said: dict[str, Any] | None = None) -> Iterator[socket.socket]:
    """The connection of a request whose Call is at the provider."""
    patience(gateway).ask()
    for _ in range(TRIES):
        with wire.connect(gateway.port) as connection:
            connection.sendall(sent(key, said))
            while not upstream.asked and not select.select([connection], [], [], 0.01)[0]:
                pass
            if upstream.asked:
                yield connection
                return
            assert patience(gateway).must_come_again(wire.hear(connection).answers[0])
    raise AssertionError("the store of Idempotency-Keys did not answer")


def same(first: wire.Answered, second: wire.Answered) -> None:
    """The second is the first one again, and says so."""
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert (second.status, second.body) == (first.status, first.body)
    assert _ours(second) == _ours(first)
    assert _ours(first)["x-request-id"] == _ours(second)["x-request-id"]


def _ours(answer: wire.Answered) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in FRAMING}


def slow(seconds: float, answer: bytes) -> Any:
    def script(_asked: Asked, wire: Wire) -> None:
        wire.wait(seconds)
        wire.send(answer)

    return script


def held(until: threading.Event, answer: bytes) -> Any:
    def script(_asked: Asked, wire: Wire) -> None:
        until.wait(PATIENCE_S)
        wire.send(answer)

    return script


def endless_stream(_asked: Asked, wire: Wire) -> None:
    """Words until whoever asked is gone."""
    first, *_ = stream_events("word ")
    wire.send(STREAM_HEAD, chunk(first))
    for _ in range(1_000):
        wire.send(chunk(stream_events("word ")[1]))
        if wire.left(0.05):
            return


def test_a_repeat_gets_the_same_answer_and_makes_no_call(gateway: Served, upstream: Upstream) -> None:
    key = fresh()
    before = len(gateway.calls())
    first, second, third = (ask(gateway, key) for _ in range(3))
    assert first.status == 200
    assert first.json["choices"][0]["message"]["content"] == "The answer."
    same(first, second)
    same(first, third)
    assert len(upstream.asked) == 1
    gateway.call(first.headers["x-request-id"])
    assert len(gateway.calls()) == before + 1


def test_without_the_header_every_request_is_a_call(gateway: Served, upstream: Upstream) -> None:
    for _ in range(2):
        answer = wire.one(gateway.port, wire.request(body(), key=SHOP))
        assert "idempotent-replayed" not in answer.headers
    assert len(upstream.asked) == 2


def test_a_stream_is_given_again_as_a_stream(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/v1", stream(stream_events("Hel", "lo ", "again.")))
    key, said = fresh(), body(stream=True)
    first, second = ask(gateway, key, said), ask(gateway, key, said)
    assert first.text == "Hello again."
    assert second.headers["content-type"].startswith("text/event-stream")
    assert second.events[-1] == "[DONE]"
    same(first, second)
    assert len(upstream.asked) == 1


def test_the_typed_door_answers_again_too_and_is_another_scope(gateway: Served, upstream: Upstream) -> None:
    key, said = fresh(), {"messages": body()["messages"]}
    first = ask(gateway, key, said, path="/v1/workflows/help")
    assert first.status == 200, first.body
    same(first, ask(gateway, key, said, path="/v1/workflows/help"))
    same(first, ask(gateway, key, said, path="/v1/workflows/hel%70"))
    assert len(upstream.asked) == 1
    for number, path in enumerate(("/v1/workflows/more", "/v1/chat/completions"), 2):
        answer = ask(gateway, key, said if "workflows" in path else None, path=path)
        assert answer.status == 200
        assert "idempotent-replayed" not in answer.headers
        assert len(upstream.asked) == number


def test_another_body_is_refused_while_the_first_runs_and_after(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/v1", slow(0.5, http(completion())))
    key = fresh()
    with begun(gateway, upstream, key) as connection:
        running = ask(gateway, key, body("another"))
        assert wire.hear(connection).answers[0].status == 200
    for refused in (running, ask(gateway, key, body("another"))):
        assert refused.status == 422
        assert refused.error["code"] == "idempotency_key_reused"
    assert len(upstream.asked) == 1


def test_the_same_key_of_another_caller_is_another_key(gateway: Served, upstream: Upstream) -> None:
    key = fresh()
    answers = [ask(gateway, key, by=who) for who in (SHOP, OTHER, ABROAD)]
    assert {one.status for one in answers} == {200}
    assert len({one.headers["x-request-id"] for one in answers}) == 3
    assert len(upstream.asked) == 3
    same(answers[1], ask(gateway, key, by=OTHER))


def test_who_has_no_key_of_the_gateway_gets_no_answer_again(gateway: Served, upstream: Upstream) -> None:
    key = fresh()
    ask(gateway, key)
    assert ask(gateway, key, by="sk-nobody-0123456789").status == 401
    assert len(upstream.asked) == 1


def test_a_repeat_waits_for_the_first_and_gets_its_answer(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/v1", slow(0.6, http(completion())))
    key = fresh()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(gateway, key), range(8)))
    (first,) = [one for one in answers if "idempotent-replayed" not in one.headers]
    for other in answers:
        if other is not first:
            same(first, other)
    assert len(upstream.asked) == 1


def test_others_are_served_while_somebody_waits(gateway: Served, upstream: Upstream) -> None:
    done = threading.Event()
    upstream.on("/v1", held(done, http(completion())))
    key = fresh()

    def others() -> None:
        for _ in range(20):
            assert wire.one(gateway.port, wire.request(method="GET", path="/livez")).status == 200

    with begun(gateway, upstream, key) as first, ThreadPoolExecutor(1) as pool:
        second = pool.submit(ask, gateway, key)
        within(0.4, others)
        done.set()
        assert wire.hear(first).answers[0].body == second.result().body


@pytest.mark.parametrize("status", ["500 Internal Server Error", "429 Too Many Requests", "401 Unauthorized"])
def test_after_a_failure_a_repeat_makes_a_new_call(gateway: Served, upstream: Upstream, status: str) -> None:
    upstream.on("/v1", http(b'{"error":{"message":"no"}}', status=status))
    key = fresh()
    failed = ask(gateway, key)
    assert failed.status in (429, 502)
    upstream.on("/v1", http(completion()))
    answer = ask(gateway, key)
    assert answer.status == 200
    assert "idempotent-replayed" not in answer.headers
    same(answer, ask(gateway, key))


def test_a_final_refusal_is_an_answer_and_is_given_again(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/v1", http(b'{"error":{"message":"too hot","code":"invalid_value"}}', status="400 Bad Request"))
    key = fresh()
    first, second = ask(gateway, key), ask(gateway, key)
    assert first.status == 400
    same(first, second)
    assert len(upstream.asked) == 1


def test_a_stream_that_broke_is_not_given_again(gateway: Served, upstream: Upstream) -> None:
    def breaks(_asked: Asked, wire: Wire) -> None:
        wire.send(STREAM_HEAD, *(chunk(event) for event in stream_events(usage=...)[:2]))
        wire.reset()

    upstream.on("/v1", breaks)
    key, said = fresh(), body(stream=True)
    broken = ask(gateway, key, said)
    assert broken.events[-1]["error"]["code"] == "stream_interrupted"
    upstream.on("/v1", stream(stream_events()))
    answer = ask(gateway, key, said)
    assert answer.text == "Hello."
    same(answer, ask(gateway, key, said))


def test_a_client_that_leaves_a_whole_answer_gets_it_when_it_asks_again(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/v1", slow(0.6, http(completion("Paid for."))))
    key = fresh()
    with begun(gateway, upstream, key):
        pass
    again = ask(gateway, key)
    assert again.json["choices"][0]["message"]["content"] == "Paid for."
    assert again.headers["idempotent-replayed"] == "true"
    assert len(upstream.asked) == 1
    assert gateway.call(again.headers["x-request-id"]).cost_nano_usd == int(again.headers["x-drivetrain-cost-nano-usd"])


def test_a_client_that_leaves_a_call_that_fails_lets_the_next_one_try(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/v1", slow(0.4, http(b"{}", status="500 Internal Server Error")))
    key = fresh()
    with begun(gateway, upstream, key):
        pass
    upstream.on("/v1", http(completion("At last.")))
    again = ask(gateway, key)
    assert again.json["choices"][0]["message"]["content"] == "At last."
    assert "idempotent-replayed" not in again.headers


def test_a_stream_that_is_left_frees_its_key_for_who_waits(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/v1", endless_stream)
    key, said = fresh(), body(stream=True)
    with begun(gateway, upstream, key, said) as leaves, ThreadPoolExecutor(1) as pool:
        assert leaves.recv(10)
        waits = pool.submit(ask, gateway, key, said)
        time.sleep(0.2)
        assert len(upstream.asked) == 1
        upstream.on("/v1", stream(stream_events("Second.")))
        leaves.close()
        heard = waits.result()
    assert heard.text == "Second."
    assert "idempotent-replayed" not in heard.headers
    assert len(upstream.asked) == 2


def test_a_client_that_leaves_while_it_waits_disturbs_nobody(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/v1", slow(0.5, http(completion())))
    key = fresh()
    with begun(gateway, upstream, key) as first:
        with wire.connect(gateway.port) as leaves:
            leaves.sendall(sent(key))
            time.sleep(0.1)
        answer = wire.hear(first).answers[0]
    same(answer, ask(gateway, key))
    assert len(upstream.asked) == 1


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_too_long_to_keep_is_given_once(gateway: Served, upstream: Upstream, streams: bool) -> None:
    text = "x" * (KEPT_BYTES_MAX // 8)
    upstream.on("/v1", stream(stream_events(*[text] * 9)) if streams else http(completion(text * 9)))
    key, said = fresh(), body(stream=streams)
    first = ask(gateway, key, said)
    assert first.status == 200
    assert len(first.body) > KEPT_BYTES_MAX
    again = ask(gateway, key, said)
    assert again.status == 409
    assert again.error["code"] == "idempotency_answer_not_kept"
    assert len(upstream.asked) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "caf\xe9", "\x7f"])
def test_a_key_that_is_none_is_refused(gateway: Served, upstream: Upstream, key: str) -> None:
    answer = ask(gateway, key)
    assert answer.status == 400
    assert answer.error["code"] in ("invalid_value", "malformed_http")
    assert upstream.asked == []


def test_the_longest_key_is_taken_and_two_keys_are_refused(gateway: Served, upstream: Upstream) -> None:
    key = fresh().ljust(255, "x")
    same(ask(gateway, key), ask(gateway, key))
    doubled = wire.one(gateway.port, wire.request(body(), key=SHOP, headers="idempotency-key: a\r\n" * 2))
    assert (doubled.status, doubled.error["code"]) == (400, "repeated_header")
    assert len(upstream.asked) == 1


def test_pipelined_repeats_are_answered_in_order(gateway: Served, upstream: Upstream) -> None:
    key = fresh()
    heard = wire.ask(gateway.port, sent(key) * 3 + wire.request(method="GET", path="/livez"), answers=4)
    first, second, third, alive = heard.answers
    same(first, second)
    same(first, third)
    assert alive.json == {"status": "ok"}
    assert len(upstream.asked) == 1


def test_nothing_readable_is_on_disk(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/v1", http(completion("a confidential reply")))
    key = "a-telling-key"
    first = ask(gateway, key, body("a private question", user="anna"))
    upstream.on("/v1", stream(stream_events("a very ", "confidential reply")))
    ask(gateway, fresh(), body("a private question", stream=True))
    files = [path for path in (gateway.data_folder / "idempotency").rglob("*") if path.is_file()]
    written = b"".join(path.read_bytes() for path in files)
    assert len(written) > 1000
    for word in (key, "confidential", "private", "anna", "shop", "acme", "content", first.headers["x-request-id"]):
        assert word.encode() not in written, word
    secret = gateway.root / ".drivetrain" / "keys" / "idempotency.key"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.read_bytes() not in gateway.everything_written()


def test_an_answer_that_somebody_altered_is_not_given(gateway: Served, upstream: Upstream) -> None:
    key = fresh()
    first = ask(gateway, key)
    with sqlite3.connect(gateway.data_folder / "idempotency" / "keys.db") as db:
        db.execute("UPDATE known SET answer = zeroblob(length(answer)) WHERE answer IS NOT NULL")
    db.close()
    again = ask(gateway, key)
    assert first.status == 200
    assert (again.status, again.error["code"]) == (409, "idempotency_answer_not_kept")
    assert len(upstream.asked) == 1


def test_where_the_store_does_not_answer_keyed_requests_are_refused_and_no_others(
    gateway: Served, upstream: Upstream
) -> None:
    kept = fresh()
    first = ask(gateway, kept)
    path = gateway.data_folder / "idempotency" / "keys.db"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        os.kill(holder.pid, signal.SIGSTOP)
        for key in (fresh(), kept):
            refused = within(0.5, partial(ask_once, gateway, key))
            assert (refused.status, refused.error["code"]) == (503, "idempotency_unavailable")
            assert refused.headers["retry-after"] == "1"
        assert wire.one(gateway.port, wire.request(body(), key=SHOP)).status == 200
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    same(first, ask(gateway, kept))
    assert "Idempotency-Keys cannot be kept" in gateway.stderr
    assert eventually(lambda: "can be used again" in gateway.stderr)


def test_an_answer_leaves_though_the_store_was_lost_and_a_repeat_makes_no_call(
    gateway: Served, upstream: Upstream
) -> None:
    lost = threading.Event()
    upstream.on("/v1", held(lost, http(completion("Given."))))
    key = fresh()
    path = gateway.data_folder / "idempotency" / "keys.db"
    with begun(gateway, upstream, key) as connection:
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "held\n"
            lost.set()
            given = wire.hear(connection).answers[0]
        finally:
            holder.kill()
            holder.wait()
            holder.stdout.close()
    assert given.json["choices"][0]["message"]["content"] == "Given."
    again = ask(gateway, key)
    assert (again.status, again.error["code"]) == (409, "idempotency_answer_not_kept")
    assert len(upstream.asked) == 1


def test_a_store_that_is_no_database_refuses_until_it_is_removed(gateway: Served, upstream: Upstream) -> None:
    ask(gateway, fresh())
    folder = gateway.data_folder / "idempotency"
    for path in folder.glob("keys.db*"):
        path.unlink()
    (folder / "keys.db").write_bytes(b"no database" * 1000)
    assert unavailable(ask_once(gateway, fresh()))
    shutil.rmtree(folder)
    key = fresh()
    same(ask(gateway, key), ask(gateway, key))


def test_a_gateway_that_is_told_to_end_answers_who_waits(upstream: Upstream) -> None:
    tables = provider("raw", f"{upstream.url}/v1") + model("raw/m") + workflow("help", "raw/m")
    done = threading.Event()
    upstream.on("/v1", held(done, http(completion())))
    key = fresh()

    def both() -> None:
        done.clear()
        upstream.forget()
        with served({"drivetrain.toml": settings(tables=tables)}) as gateway, begun(gateway, upstream, key) as first:
            with wire.connect(gateway.port) as second, ThreadPoolExecutor(1) as pool:
                second.sendall(sent(key))
                # The second look comes behind the request of the one that the first look counts.
                assert eventually(lambda: "\ndrivetrain_connections 3\n" in metrics(gateway)), metrics(gateway)
                metrics(gateway)
                ending = pool.submit(gateway.stop)
                assert eventually(lambda: refuses(gateway))
                done.set()
                answers = [wire.hear(one).answers[0] for one in (first, second)]
                assert ending.result() == 0
            assert list((gateway.data_folder / "idempotency" / "workers").iterdir()) == []
            assert gateway.faults == []
        assert len(upstream.asked) == 1
        if any(unavailable(one) for one in answers):
            raise Spoiled("the store of keys had no time for one of them")
        assert [one.status for one in answers] == [200, 200]
        assert answers[0].body == answers[1].body

    in_one_try(both)


def metrics(gateway: Served) -> str:
    return wire.one(gateway.port, wire.request(method="GET", path="/metrics")).body.decode()


def refuses(gateway: Served) -> bool:
    """Whether nobody listens there any more."""
    try:
        wire.connect(gateway.port).close()
    except ConnectionError:
        return True
    return False


def test_without_any_key_there_is_neither_file_nor_thread(upstream: Upstream) -> None:
    tables = provider("raw", f"{upstream.url}/v1") + model("raw/m") + workflow("help", "raw/m")
    with served({"drivetrain.toml": settings(tables=tables)}) as gateway:
        assert wire.one(gateway.port, wire.request(body())).status == 200
        assert not (gateway.data_folder / "idempotency").exists()
        assert not (gateway.root / ".drivetrain" / "keys" / "idempotency.key").exists()
        before = _threads(gateway)
        ask(gateway, fresh())
        assert eventually(lambda: _threads(gateway) == before + 1), (before, _threads(gateway))


def _threads(gateway: Served) -> int:
    """Of the gateway and its workers."""
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in (gateway.pid, *gateway.workers))
