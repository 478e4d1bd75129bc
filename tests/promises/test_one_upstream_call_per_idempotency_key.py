"""The same Idempotency-Key means one upstream call, whichever of four workers are asked, and whenever."""

from __future__ import annotations

import itertools
import os
import random
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from promise_gateway import Gateway, chat_project, eventually, gateway, gone, is_read, settled_answer

from support import wire
from support.busy import IDEMPOTENCY, Patience
from support.tries import Spoiled, in_one_try
from support.upstream import Asked, Upstream, Wire, completion, http, stream, stream_events

pytestmark = pytest.mark.slow

WORKERS = 4
CLIENTS = 12
KEYS = 25
REQUESTS = 200


class Provider:
    """An upstream that counts calls by their question, and answers each with another number."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.pause_s = 0.05
        self.go = threading.Event()
        """Whether answers may be given."""
        self.go.set()
        self.calls: Counter[str] = Counter()
        self._number = 0
        self._lock = threading.Lock()
        upstream.on("/v1", self._answer)

    def _answer(self, asked: Asked, wire: Wire) -> None:
        said = asked.json
        with self._lock:
            self.calls[said["messages"][0]["content"]] += 1
            self._number += 1
            number, pause_s = self._number, self.pause_s
        wire.wait(pause_s)
        self.go.wait(60)
        text = f"answer {number}"
        wire.send(stream(stream_events(text)) if said.get("stream") else http(completion(text)))


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Upstream() as upstream:
        yield Provider(upstream)


@pytest.fixture
def served(provider: Provider) -> Iterator[Gateway]:
    with gateway(chat_project(provider.upstream.url), workers=WORKERS) as running:
        running.patience = Patience(IDEMPOTENCY)
        yield running


def keyed(key: str, text: str, *, streams: bool = False) -> bytes:
    body: dict[str, Any] = {"model": "help", "messages": [{"role": "user", "content": text}], "stream": streams}
    return wire.request(body, headers=f"idempotency-key: {key}\r\n")


def ask(served: Gateway, key: str, text: str, *, streams: bool = False) -> wire.Answered:
    """On a connection of its own, so that any worker may get it; again where the store of keys had no time."""
    return settled_answer(served, keyed(key, text, streams=streams))


def together(served: Gateway, request: bytes, count: int) -> list[wire.Answered]:
    """The answers to a request, sent on `count` connections at once; again where the store of keys had no time."""
    connections = [wire.connect(served.port) for _ in range(count)]
    try:
        for connection in connections:
            served.patience.ask()
            connection.sendall(request)
        answers = [wire.hear(connection).answers[0] for connection in connections]
        refused = [served.patience.must_come_again(answer) for answer in answers]
        return [settled_answer(served, request) if no else one for no, one in zip(refused, answers, strict=True)]
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("streams", [False, True])
def test_a_concurrent_pair_makes_one_call(served: Gateway, provider: Provider, streams: bool) -> None:
    for number in range(20):
        text = f"pair {number}"
        one, other = together(served, keyed(text, text, streams=streams), 2)
        assert (one.status, other.status) == (200, 200)
        assert one.body == other.body
        assert one.headers["x-request-id"] == other.headers["x-request-id"]
        assert ("idempotent-replayed" in one.headers) != ("idempotent-replayed" in other.headers)
        assert provider.calls[text] == 1
    assert eventually(lambda: len(served.calls()) == 20)


def test_random_repeats_make_one_call_per_key_and_other_bodies_none(served: Gateway, provider: Provider) -> None:
    seed = secrets.randbits(32)
    print(f"seed: {seed}")
    dice = random.Random(seed)
    streams = {number: dice.random() < 0.4 for number in range(KEYS)}
    plan = [(dice.randrange(KEYS), dice.random() < 0.15, dice.random() * 0.02) for _ in range(REQUESTS)]
    # Whichever body comes first is the key's; so the right one comes first.
    first = {number: ask(served, f"key {number}", f"{number}", streams=streams[number]) for number in range(0, KEYS, 2)}

    def repeat(said: tuple[int, bool, float]) -> tuple[int, bool, wire.Answered]:
        number, changed, pause_s = said
        time.sleep(pause_s)
        changed = changed and number in first
        text = f"{number} changed" if changed else f"{number}"
        return number, changed, ask(served, f"key {number}", text, streams=streams[number])

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(repeat, plan))
    for number, changed, answer in answers:
        if changed:
            assert answer.status == 422, f"seed {seed}"
            assert answer.error["code"] == "idempotency_key_reused"
            assert provider.calls[f"{number} changed"] == 0, f"seed {seed}"
            continue
        expected = first.setdefault(number, answer)
        assert (answer.status, answer.body) == (200, expected.body), f"seed {seed}, key {number}"
        assert answer.headers["x-request-id"] == expected.headers["x-request-id"]
    made = [answer for _, changed, answer in answers if not changed and "idempotent-replayed" not in answer.headers]
    assert len(made) == len(first) - len(range(0, KEYS, 2)), f"seed {seed}: each key has one answer that is no repeat"
    assert provider.calls == {f"{number}": 1 for number in first}, f"seed {seed}"
    assert eventually(lambda: len(served.calls()) == len(first))


def test_a_worker_that_dies_gives_its_key_to_the_next(served: Gateway, provider: Provider) -> None:
    """Its call was sent and is charged; who waits for it makes another, and only one of them."""
    provider.pause_s = 300
    with wire.connect(served.port) as first:
        first.sendall(keyed("dies", "question"))
        assert eventually(lambda: provider.calls["question"] == 1)
        provider.pause_s = 0.3
        holder = eventually(lambda: _who_calls(served, provider.upstream.port))
        assert holder, "no worker calls the provider"
        waiting = [wire.connect(served.port) for _ in range(6)]
        try:
            for connection in waiting:
                connection.sendall(keyed("dies", "question"))
            time.sleep(0.3)
            assert provider.calls["question"] == 1
            os.kill(holder, signal.SIGKILL)
            assert gone(holder)
            heard = [wire.hear(connection) for connection in waiting]
        finally:
            for connection in waiting:
                connection.close()
    # Who was with the dead worker has none; and whom the store of keys had no time for was told to come again.
    found = [one.answers[0] for one in heard if one.answers]
    answers = [one for one in found if not served.patience.must_come_again(one)]
    answers.append(ask(served, "dies", "question"))
    assert {one.status for one in answers} == {200}
    assert len({one.body for one in answers}) == 1
    assert provider.calls["question"] == 2
    statuses = Counter(call.status for call in served.calls())
    assert statuses == {"answered": 1, "interrupted": 1}


def test_workers_that_are_told_to_end_answer_who_waits_for_another_worker(served: Gateway, provider: Provider) -> None:
    lives = itertools.count()

    def story() -> None:
        life = next(lives)
        if life:
            served.start()
        text = f"question {life}"
        provider.go.clear()
        connections = [wire.connect(served.port) for _ in range(12)]
        try:
            for connection in connections:
                connection.sendall(keyed(f"ends {life}", text))
            assert eventually(lambda: provider.calls[text] == 1 and all(is_read(one) for one in connections))
            served.signal(signal.SIGTERM)
            time.sleep(0.2)  # they have heard it, and some of them wait for another
            provider.go.set()
            answers = [wire.hear(connection).answers for connection in connections]
        finally:
            for connection in connections:
                connection.close()
        assert served.wait() == 0
        assert [len(one) for one in answers] == [1] * 12
        assert provider.calls[text] == 1
        if any(served.patience.is_refusal(one) for (one,) in answers):
            raise Spoiled("the store of keys had no time for one of them")
        assert {(one.status, one.body) for (one,) in answers} == {(200, answers[0][0].body)}

    in_one_try(story)


def test_answers_outlive_the_gateway(served: Gateway, provider: Provider) -> None:
    answers = {number: ask(served, f"lives {number}", f"{number}") for number in range(12)}
    served.kill()
    served.start()
    for number, answer in answers.items():
        again = ask(served, f"lives {number}", f"{number}")
        assert again.headers["idempotent-replayed"] == "true"
        assert (again.status, again.body) == (answer.status, answer.body)
    assert sum(provider.calls.values()) == 12


def _who_calls(served: Gateway, port: int) -> int:
    """The worker that has a connection to that port; 0: none has now."""
    remote = f":{port:04X}"
    for pid in served.worker_pids:
        sockets = set()
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # it was closed meanwhile
                sockets.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        with open(f"/proc/{pid}/net/tcp") as table:
            rows = [line.split() for line in table.readlines()[1:]]
        if any(row[2].endswith(remote) and row[3] == "01" and f"socket:[{row[9]}]" in sockets for row in rows):
            return pid
    return 0
