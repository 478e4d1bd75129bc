"""Upstreams that break every rule: the client still gets a clear answer, an explicit error, and nobody else's bytes."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from support import wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.tries import PATIENCE_S, Spoiled, eventually, in_one_try, within
from support.upstream import (
    STREAM_END,
    STREAM_HEAD,
    Asked,
    Upstream,
    Wire,
    anthropic_events,
    anthropic_message,
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
SLACK_MS = 700
"""What a busy machine may add to a deadline."""
HURRIED_S = (300 + 100 + SLACK_MS) / 1_000
"""Until the second of `hurried` has answered."""
SOON_S = 2.0
"""For what waits for nothing: far below the time that an Attempt may take."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Served]:
    key = 'key = "env:PROVIDER_KEY"\nanswer_bytes_max = 4_194_304\n'
    closed = socket.socket()  # nobody listens there, and nobody else can
    closed.bind(("127.0.0.1", 0))
    refusing = closed.getsockname()[1]
    tables = [
        provider("raw", f"{upstream.url}/raw", more=key),
        provider("second", f"{upstream.url}/second", more=key),
        provider("claude", f"{upstream.url}/claude", dialect="anthropic", more=key),
        provider("absent", f"http://127.0.0.1:{refusing}/v1"),
        *(model(f"{name}/m") for name in ("raw", "second", "claude", "absent")),
        workflow("once", "raw/m", more="attempts_max = 1\n"),
        workflow("retried", "raw/m", more="attempts_max = 3\n"),
        workflow("falls-back", "raw/m", "second/m"),
        workflow("claude-once", "claude/m", more="attempts_max = 1\n"),
        workflow("refused", "absent/m", more="attempts_max = 1\n"),
        workflow("refused-falls-back", "absent/m", "second/m"),
        workflow(
            "hurried",
            '{ name = "first", model = "raw/m", first_byte_timeout_ms = 300 }',
            '{ name = "second", model = "second/m" }',
        ),
        workflow("short", '{ name = "only", model = "raw/m", timeout_ms = 400 }', more="attempts_max = 1\n"),
        workflow(
            "checked",
            '{ name = "first", model = "raw/m", accept = { chars_min = 1 } }',
            '{ name = "second", model = "second/m" }',
        ),
    ]
    files = {"drivetrain.toml": settings(tables="".join(tables))}
    with served(files, {"PROVIDER_KEY": PROVIDER_KEY}) as running:
        yield running
        assert running.alive
        assert not running.faults, "\n".join(running.faults)
    closed.close()


@pytest.fixture(autouse=True)
def _fresh(upstream: Upstream) -> None:
    upstream.forget()
    upstream.on("/second", http(completion("from the second")))


def chat(name: str, *, stream: bool = False, **more: Any) -> bytes:
    body = {"model": name, "messages": [{"role": "user", "content": "hello"}], **more}
    return wire.request({**body, "stream": True} if stream else body)


def asked(gateway: Served, name: str, **more: Any) -> wire.Answered:
    return wire.one(gateway.port, chat(name, **more))


def soon(gateway: Served, name: str, **more: Any) -> wire.Answered:
    """The answer, which does not wait for a time to be over."""
    return within(SOON_S, partial(asked, gateway, name, **more))


def whole_text(answer: wire.Answered) -> str:
    return str(answer.json["choices"][0]["message"]["content"])


def ended_cleanly(answer: wire.Answered) -> bool:
    """What a client takes for a complete stream."""
    return answer.whole and not any(isinstance(one, dict) and "error" in one for one in answer.events)


def broken(answer: wire.Answered) -> bool:
    """What no client takes for an answer."""
    return answer.status == 502 or not ended_cleanly(answer)


def longer(found: list[bool], than: int) -> bool:
    return len(found) > than


def records(gateway: Served, answer: wire.Answered) -> Any:
    return gateway.call(answer.headers["x-request-id"])


# Whole answers that are none.


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>ok</html>",
        b"null",
        b"[]",
        b'{"id":"x"}',
        b'{"choices":[]}',
        b'{"choices":null}',
        b'{"choices":{}}',
        b'{"choices":[null]}',
        completion()[:-10],
        completion().replace(b"Hello.", b"He\xff\xfello."),
    ],
    ids=[
        "empty",
        "html",
        "null",
        "list",
        "none",
        "no-choices",
        "null-choices",
        "object",
        "null-choice",
        "half",
        "utf8",
    ],
)
def test_a_body_that_is_no_answer_is_a_502(gateway: Served, upstream: Upstream, body: bytes) -> None:
    upstream.on("/raw", http(body))
    answer = asked(gateway, "once")
    assert answer.status == 502
    assert answer.error["code"] == "unusable_answer"
    assert whole_text(asked(gateway, "falls-back")) == "from the second"


ODD_USAGES: dict[str, Any] = {
    "negative": {"prompt_tokens": -5, "completion_tokens": -7, "total_tokens": -12},
    "half-negative": {"prompt_tokens": 5, "completion_tokens": -7},
    "strings": {"prompt_tokens": "5", "completion_tokens": "7"},
    "floats": {"prompt_tokens": 5.5, "completion_tokens": 7.5},
    "huge": {"prompt_tokens": 10**30, "completion_tokens": 7},
    "null": None,
    "a-list": [1, 2],
    "a-string": "many",
    "no-fields": {},
    "cached-string": {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": "5"},
    },
    "cached-more-than-all": {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 50},
    },
    "cached-list": {"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": [1]}},
    "reasoning-string": {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "completion_tokens_details": {"reasoning_tokens": "3"},
    },
    "details-list": {"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": [5]},
}


@pytest.mark.parametrize("usage", ODD_USAGES.values(), ids=ODD_USAGES)
def test_impossible_usage_never_loses_an_answer_nor_makes_it_free(
    gateway: Served, upstream: Upstream, usage: Any
) -> None:
    upstream.on("/raw", http(completion("a good answer", usage=usage)))
    answer = soon(gateway, "once")
    assert answer.status == 200
    assert whole_text(answer) == "a good answer"
    call = records(gateway, answer)
    assert call.cost_nano_usd > 0
    assert call.attempts[0].usage.source in ("reported", "mended", "estimated")


@pytest.mark.parametrize("usage", ODD_USAGES.values(), ids=ODD_USAGES)
def test_impossible_usage_never_breaks_a_stream(gateway: Served, upstream: Upstream, usage: Any) -> None:
    upstream.on("/raw", stream(stream_events(usage=usage)))
    answer = soon(gateway, "once", stream=True)
    assert ended_cleanly(answer), answer.body
    assert answer.text == "Hello."
    assert answer.events[-1] == "[DONE]"
    assert records(gateway, answer).cost_nano_usd > 0


ODD_FIELDS: dict[str, dict[str, Any]] = {
    "created-null": {"created": None},
    "created-float": {"created": 1.5},
    "created-text": {"created": "today"},
    "id-null": {"id": None},
    "id-number": {"id": 5},
    "model-null": {"model": None},
    "index-null": {"choices": [{"index": None, "message": {"role": "assistant", "content": "x"}}]},
    "no-message": {"choices": [{"index": 0, "finish_reason": "stop"}]},
    "null-message": {"choices": [{"index": 0, "message": None}]},
    "text-message": {"choices": [{"index": 0, "message": "hello"}]},
    "content-list": {"choices": [{"index": 0, "message": {"content": ["x"]}}]},
    "tool-calls-number": {"choices": [{"index": 0, "message": {"content": "x", "tool_calls": 5}}]},
    "tool-calls-numbers": {"choices": [{"index": 0, "message": {"content": "x", "tool_calls": [5]}}]},
    "arguments-number": {"choices": [{"message": {"content": None, "tool_calls": [{"function": {"arguments": 5}}]}}]},
}


@pytest.mark.parametrize("fields", ODD_FIELDS.values(), ids=ODD_FIELDS)
@pytest.mark.parametrize("name", ["once", "checked"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "as-stream"])
@pytest.mark.parametrize("usage", [{"prompt_tokens": 1, "completion_tokens": 1}, ...], ids=["usage", "no-usage"])
def test_odd_fields_of_an_answer_never_hang_a_call(
    gateway: Served, upstream: Upstream, fields: dict[str, Any], name: str, streamed: bool, usage: Any
) -> None:
    upstream.on("/raw", http(completion(usage=usage, **fields)))
    answer = soon(gateway, name, stream=streamed)
    assert answer.status in (200, 502)
    assert answer.whole
    records(gateway, answer)


def test_a_stream_that_is_answered_as_plain_json_is_streamed_all_the_same(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", http(completion("all at once")))
    answer = asked(gateway, "once", stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == "all at once"
    assert answer.events[-2]["usage"]["prompt_tokens"] == 11
    assert answer.events[-1] == "[DONE]"


# Sizes.


def _pour(line: bytes, most: int) -> Any:
    """Sends `line` again and again until the gateway hangs up or `most` bytes went."""
    poured = [0]

    def script(_asked: Asked, to: Wire) -> None:
        to.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n")
        while to.open and poured[0] < most:
            to.send(line)
            poured[0] += len(line)
        to.close()

    return script, poured


def test_an_endless_answer_is_cut_off_and_memory_stays(gateway: Served, upstream: Upstream) -> None:
    script, poured = _pour(b"x" * 1_000_000, 10_000_000_000)
    upstream.on("/raw", script)
    before = gateway.resident_bytes()
    answer = asked(gateway, "once")
    assert answer.status == 502
    assert "its answer is too large" in answer.error["message"]
    assert poured[0] < 100_000_000
    assert gateway.resident_bytes() - before < 60_000_000


def test_a_content_length_of_10_gb_is_cut_off(gateway: Served, upstream: Upstream) -> None:
    def script(_asked: Asked, to: Wire) -> None:
        to.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10000000000\r\n\r\n")
        while to.open:
            to.send(b"x" * 1_000_000)

    upstream.on("/raw", script)
    answer = asked(gateway, "once")
    assert answer.status == 502


def test_an_endless_head_is_cut_off(gateway: Served, upstream: Upstream) -> None:
    def script(_asked: Asked, to: Wire) -> None:
        to.send(b"HTTP/1.1 200 OK\r\n")
        for _ in range(1_000):
            if not to.open:
                return
            to.send(b"x-more: " + b"y" * 1_000 + b"\r\n")
        to.left(PATIENCE_S)

    upstream.on("/raw", script)
    assert soon(gateway, "once").status == 502


def test_a_stream_whose_line_never_ends_is_cut_off(gateway: Served, upstream: Upstream) -> None:
    def script(_asked: Asked, to: Wire) -> None:
        to.send(STREAM_HEAD, chunk(event(delta(content="first"))), chunk(b"data: "))
        while to.open:
            to.send(chunk(b"x" * 100_000))

    upstream.on("/raw", script)
    before = gateway.resident_bytes()
    answer = asked(gateway, "once", stream=True)
    assert not ended_cleanly(answer)
    assert answer.events[-1]["error"]["code"] == "stream_interrupted"
    assert gateway.resident_bytes() - before < 60_000_000


def test_a_stream_that_never_ends_is_cut_off(gateway: Served, upstream: Upstream) -> None:
    one = chunk(event(delta(content="y" * 10_000)))

    def script(_asked: Asked, to: Wire) -> None:
        to.send(STREAM_HEAD)
        while to.open:
            to.send(one)

    upstream.on("/raw", script)
    answer = asked(gateway, "once", stream=True)
    assert answer.events[-1]["error"]["code"] == "stream_interrupted"
    assert len(answer.body) < 10_000_000


# Framing.


def test_an_encoded_answer_that_nobody_asked_for_is_a_502(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", http(gzip.compress(completion()), headers="content-encoding: gzip\r\n"))
    assert asked(gateway, "once").status == 502
    assert upstream.asked[0].headers["accept-encoding"] == "identity"


def test_interim_answers_are_skipped(gateway: Served, upstream: Upstream) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 3
    upstream.on("/raw", b"HTTP/1.1 100 Continue\r\n\r\n" + hints + http(completion("after all")))
    for _ in range(2):
        assert whole_text(asked(gateway, "once")) == "after all"


def test_headers_of_an_interim_answer_do_not_frame_the_final_one(gateway: Served, upstream: Upstream) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\ncontent-length: 0\r\n\r\n"

    def script(_asked: Asked, to: Wire) -> None:
        to.send(interim + http(completion("until the end"), framing="close"))
        to.close()

    upstream.on("/raw", script)
    assert whole_text(asked(gateway, "once")) == "until the end"


def test_endless_interim_answers_end(gateway: Served, upstream: Upstream) -> None:
    def script(_asked: Asked, to: Wire) -> None:
        while to.open:
            to.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)

    upstream.on("/raw", script)
    assert soon(gateway, "once").status == 502


def test_switching_protocols_is_a_502(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nxxxx")
    assert soon(gateway, "once").status == 502


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Moved"])
def test_a_redirect_is_not_followed(gateway: Served, upstream: Upstream, status: str) -> None:
    target = f"location: {upstream.url}/second/chat/completions\r\n"
    upstream.on("/raw", http(b"", status=status, headers=target))
    assert asked(gateway, "once").status == 502
    assert upstream.below("/second") == []


@pytest.mark.parametrize("second", [http(completion("SECRET")), b"HTTP/1.1 200 OK\r\n", b"HT", b"\r\n\r\n" * 3])
def test_what_stands_behind_an_answer_never_reaches_another_request(
    gateway: Served, upstream: Upstream, second: bytes
) -> None:
    numbers = iter(range(1_000_000))

    def script(_asked: Asked, to: Wire) -> None:
        to.send(http(completion(f"answer {next(numbers)}")) + second)

    upstream.on("/raw", script)
    for number in range(4):
        assert whole_text(asked(gateway, "once")) == f"answer {number}"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_extra_bytes_behind_a_whole_answer_do_not_spoil_it(gateway: Served, upstream: Upstream, framing: str) -> None:
    """It is complete and was paid for; only its connection is not used again."""
    upstream.on("/raw", http(completion("complete"), framing=framing) + b"surplus")
    assert whole_text(asked(gateway, "once")) == "complete"
    assert whole_text(asked(gateway, "once")) == "complete"
    assert len({one.connection for one in upstream.below("/raw")}) == 2


def test_a_late_second_answer_never_reaches_another_request(gateway: Served, upstream: Upstream) -> None:
    dropped: list[bool] = []

    def script(_asked: Asked, to: Wire) -> None:
        to.send(http(completion("mine")))
        to.wait(0.05)
        to.send(http(completion("SECRET")))
        dropped.append(to.left(PATIENCE_S))
        to.close()

    upstream.on("/raw", script)
    for number in range(3):
        assert whole_text(asked(gateway, "once")) == "mine"
        # Not before: whoever asks on this connection while the bytes are under way gets them by HTTP/1.1's own rules.
        assert eventually(partial(longer, dropped, number))
    assert dropped == [True] * 3, "a connection with bytes that nobody asked for was kept"


def test_chunks_with_extensions_and_trailers_are_read(gateway: Served, upstream: Upstream) -> None:
    body = completion("in chunks")
    parts = b"".join(b"%x;name=value\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:40], body[40:]))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n"
    upstream.on("/raw", head + parts + b"0\r\nx-t: yes\r\n\r\n")
    for _ in range(2):
        assert whole_text(asked(gateway, "once")) == "in chunks"


def test_an_answer_without_a_length_ends_with_its_connection(gateway: Served, upstream: Upstream) -> None:
    def script(_asked: Asked, to: Wire) -> None:
        to.send(http(completion("until the end"), framing="close"))
        to.close()

    upstream.on("/raw", script)
    assert whole_text(asked(gateway, "once")) == "until the end"


def test_bytes_that_are_no_http_are_a_502(gateway: Served, upstream: Upstream) -> None:
    for nonsense in (
        b"SSH-2.0-OpenSSH\r\n",
        b"\x16\x03\x01\x00",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
    ):
        upstream.on("/raw", nonsense)
        assert soon(gateway, "once").status == 502


# Cuts.


def _cut_at(answer: bytes) -> Any:
    """A script that closes after as many bytes as the request's `seed` says."""

    def script(one: Asked, to: Wire) -> None:
        to.send(answer[: one.json["seed"]])
        to.close()

    return script


def _each_offset(gateway: Served, name: str, most: int, *, streamed: bool) -> list[wire.Answered]:
    with ThreadPoolExecutor(16) as pool:
        ask = [chat(name, stream=streamed, seed=place) for place in range(most)]
        return list(pool.map(lambda raw: wire.one(gateway.port, raw), ask))


@pytest.mark.parametrize("framing", ["length", pytest.param("chunked", marks=pytest.mark.slow)])
def test_a_whole_answer_cut_at_any_byte_is_a_502(gateway: Served, upstream: Upstream, framing: str) -> None:
    answer = http(completion(), framing=framing)
    upstream.on("/raw", _cut_at(answer))
    for place, said in enumerate(_each_offset(gateway, "once", len(answer), streamed=False)):
        assert said.status == 502, (place, said)
        assert said.error["type"] == "server_error"


def test_a_whole_answer_cut_at_any_byte_falls_back(gateway: Served, upstream: Upstream) -> None:
    answer = http(completion())
    upstream.on("/raw", _cut_at(answer))
    for place, said in enumerate(_each_offset(gateway, "falls-back", len(answer), streamed=False)):
        assert said.status == 200, (place, said)
        assert whole_text(said) == "from the second"


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_stream_cut_at_any_byte_never_ends_cleanly(gateway: Served, upstream: Upstream, dialect: str) -> None:
    path, name, events = ("/raw", "once", stream_events())
    if dialect == "anthropic":
        path, name, events = ("/claude", "claude-once", anthropic_events())
    answer = stream(events)
    last = answer.rindex(b"[DONE]" if dialect == "openai" else b"message_stop")
    upstream.on(path, _cut_at(answer) if dialect == "openai" else _cut_at_length(answer))
    ask = [chat(name, stream=True, **_place(dialect, place)) for place in range(last)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda raw: wire.one(gateway.port, raw), ask))
    for place, said in enumerate(found):
        assert said.whole, place
        if said.status != 200:
            assert said.status == 502, (place, said)
            assert said.error["code"] in ("upstream_unreachable", "stream_interrupted")
            continue
        assert not ended_cleanly(said), (place, said.body)
        assert said.events[-1]["error"]["code"] == "stream_interrupted", (place, said.body)
        assert "[DONE]" not in said.events


def _place(dialect: str, place: int) -> dict[str, Any]:
    # The Anthropic dialect knows no seed; its limit on tokens carries the place as well.
    return {"seed": place} if dialect == "openai" else {"max_tokens": place + 1}


def _cut_at_length(answer: bytes) -> Any:
    def script(one: Asked, to: Wire) -> None:
        to.send(answer[: one.json["max_tokens"] - 1])
        to.close()

    return script


def test_a_stream_without_framing_cut_at_any_byte_is_no_clean_end(gateway: Served, upstream: Upstream) -> None:
    """Nothing but [DONE] tells a whole answer from half of one here."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    answer = head + b"".join(stream_events())
    last = answer.index(b'"finish_reason": "stop"')
    upstream.on("/raw", _cut_at(answer))
    for place, said in enumerate(_each_offset(gateway, "once", last, streamed=True)):
        assert said.whole, place
        assert said.status in (200, 502)
        if said.status == 200:
            assert not ended_cleanly(said), (place, said.body)


def test_a_stream_whose_server_forgets_done_still_ends_with_it(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", stream(stream_events()[:-1]))
    answer = asked(gateway, "once", stream=True)
    assert answer.text == "Hello."
    assert ended_cleanly(answer)
    assert answer.events[-1] == "[DONE]"


@pytest.mark.parametrize("place", [0, 30, 200])
def test_a_reset_is_a_cut(gateway: Served, upstream: Upstream, place: int) -> None:
    def script(_asked: Asked, to: Wire) -> None:
        to.send(http(completion())[:place])
        to.wait(0.02)
        to.reset()

    upstream.on("/raw", script)
    assert asked(gateway, "once").status == 502
    assert whole_text(asked(gateway, "falls-back")) == "from the second"


# Stalls.


def test_a_stall_before_the_first_byte_falls_back_in_time(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", lambda _asked, to: to.wait(1.5))
    for streamed in (False, True):
        answer = within(HURRIED_S, partial(asked, gateway, "hurried", stream=streamed), least_s=0.3)
        assert answer.status == 200


def test_half_a_head_is_no_first_byte(gateway: Served, upstream: Upstream) -> None:
    def script(_asked: Asked, to: Wire) -> None:
        to.send(b"HTTP/1.1 200 OK\r\ncontent-ty")
        to.wait(1.5)

    upstream.on("/raw", script)
    assert whole_text(within(HURRIED_S, partial(asked, gateway, "hurried"))) == "from the second"


@pytest.mark.parametrize("head_only", [True, False], ids=["head", "ping"])
def test_a_stream_that_stalls_behind_its_head_falls_back_in_time(
    gateway: Served, upstream: Upstream, head_only: bool
) -> None:
    """Providers send the head at once; the first byte that counts is that of an event."""

    def script(_asked: Asked, to: Wire) -> None:
        to.send(STREAM_HEAD if head_only else STREAM_HEAD + chunk(b": ping\n\n"))
        to.wait(1.5)

    upstream.on("/raw", script)
    answer = within(HURRIED_S, partial(asked, gateway, "hurried", stream=True))
    assert answer.text == "from the second"


@pytest.mark.parametrize("drip", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["dripping", "silent"])
def test_a_stall_in_mid_stream_ends_with_an_error(gateway: Served, upstream: Upstream, drip: bool) -> None:
    def script(_asked: Asked, to: Wire) -> None:
        to.send(STREAM_HEAD, chunk(event(delta(content="half of"))))
        for _ in range(15):
            to.wait(0.1)
            if drip:
                to.send(chunk(b": ping\n\n"))

    upstream.on("/raw", script)

    def streamed() -> wire.Answered:
        begun = time.monotonic()
        answer = asked(gateway, "short", stream=True)
        took_s = time.monotonic() - begun
        assert answer.status in (200, 504)
        if answer.status == 504:
            raise Spoiled("what was sent at once came after the whole of the Call's time")
        if took_s >= (400 + 100 + SLACK_MS) / 1_000:
            raise Spoiled(f"it took {took_s:.3f} s")
        return answer

    answer = in_one_try(streamed)
    assert answer.text == "half of"
    assert answer.events[-1]["error"]["code"] == "stream_interrupted"
    call = records(gateway, answer)
    assert call.status == "failed"
    assert call.attempts[0].failure == "timeout"
    assert call.cost_nano_usd > 0


def test_a_stall_in_a_whole_answer_is_a_504(gateway: Served, upstream: Upstream) -> None:
    def script(_asked: Asked, to: Wire) -> None:
        to.send(http(completion())[:150])
        to.wait(1.5)

    upstream.on("/raw", script)
    answer = asked(gateway, "short")
    assert answer.status == 504
    assert answer.error["code"] == "upstream_timeout"


def test_a_broken_event_shape_with_a_stall_stops_no_deadlines(gateway: Served, upstream: Upstream) -> None:
    """What one answer holds must never end the watch over all others."""

    def script(_asked: Asked, to: Wire) -> None:
        to.send(STREAM_HEAD, chunk(event({"choices": 5})), chunk(event({"choices": [{"delta": {"tool_calls": 5}}]})))
        to.wait(1.2)

    upstream.on("/raw", script)
    first = soon(gateway, "short", stream=True)
    upstream.on("/raw", lambda _asked, to: to.wait(1.5))
    assert whole_text(within(HURRIED_S, partial(asked, gateway, "hurried"))) == "from the second"
    assert broken(first)


ODD_EVENTS: list[dict[str, Any]] = [
    {"choices": 5},
    {"choices": [5]},
    {"choices": [None]},
    {"choices": [{"delta": 5}]},
    {"choices": [{"delta": {"content": 5}}]},
    {"choices": [{"delta": {"tool_calls": 5}}]},
    {"choices": [{"delta": {"tool_calls": [5]}}]},
    {"choices": [{"delta": {"tool_calls": [{"function": 5}]}}]},
    {"choices": [{"delta": {"tool_calls": [{"function": {"name": 5, "arguments": [5]}}]}}]},
    {"choices": [{"delta": {}, "finish_reason": 5}]},
    {"error": 5},
    {"error": ""},
    {"error": {"message": 5}},
]


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("odd", ODD_EVENTS, ids=json.dumps)
def test_a_broken_event_shape_with_a_cut_never_hangs_a_call(
    gateway: Served, upstream: Upstream, odd: dict[str, Any], first: bool
) -> None:
    def script(_asked: Asked, to: Wire) -> None:
        to.send(STREAM_HEAD)
        if not first:
            to.send(chunk(event(delta(content="good"))))
            to.wait(0.03)
        to.send(chunk(event(odd)))
        to.close()

    upstream.on("/raw", script)
    answer = soon(gateway, "once", stream=True)
    assert broken(answer)
    if not first:
        assert records(gateway, answer).cost_nano_usd > 0


@pytest.mark.parametrize("odd", ODD_EVENTS, ids=json.dumps)
def test_a_broken_event_shape_in_a_whole_stream_is_passed_on_or_an_error(
    gateway: Served, upstream: Upstream, odd: dict[str, Any]
) -> None:
    events = stream_events(usage=...)
    upstream.on("/raw", stream([*events[:2], event(odd), *events[2:]]))
    answer = soon(gateway, "once", stream=True)
    assert broken(answer) or answer.events[-1] == "[DONE]"
    assert records(gateway, answer).cost_nano_usd > 0


# Connections.


def test_a_refused_connection_is_a_502_or_falls_back(gateway: Served) -> None:
    answer = asked(gateway, "refused")
    assert answer.status == 502
    assert answer.error["code"] == "upstream_unreachable"
    assert whole_text(asked(gateway, "refused-falls-back")) == "from the second"


def test_idle_connections_that_close_as_they_are_reused_cost_a_retry_at_most(
    gateway: Served, upstream: Upstream
) -> None:
    seen: set[int] = set()
    lock = threading.Lock()

    def script(one: Asked, to: Wire) -> None:
        with lock:
            reused = one.connection in seen
            seen.add(one.connection)
        if reused:
            to.close()
        else:
            to.send(http(completion("fresh")))

    upstream.on("/raw", script)
    for _ in range(6):
        assert whole_text(asked(gateway, "retried")) == "fresh"


def test_a_connection_that_closed_while_idle_is_not_used(gateway: Served, upstream: Upstream) -> None:
    closed: list[bool] = []

    def script(_asked: Asked, to: Wire) -> None:
        to.send(http(completion("fresh")))
        to.close()
        closed.append(to.left(PATIENCE_S))

    upstream.on("/raw", script)
    for number in range(4):
        assert whole_text(asked(gateway, "once")) == "fresh"
        # The gateway has seen the end: it closed its side.
        assert eventually(partial(longer, closed, number))
    assert closed == [True] * 4


# Refusals.


def error(status: str, message: str = "no", headers: str = "", **more: Any) -> bytes:
    said = {"message": message, "type": "x", "param": None, "code": None, **more}
    return http(json.dumps({"error": said}).encode(), status=status, headers=headers)


@pytest.mark.parametrize(
    "status",
    [
        "500 Internal Server Error",
        pytest.param("503 Service Unavailable", marks=pytest.mark.slow),
        pytest.param("529 Overloaded", marks=pytest.mark.slow),
    ],
)
def test_a_server_error_is_a_502_after_all_attempts(gateway: Served, upstream: Upstream, status: str) -> None:
    upstream.on("/raw", error(status))
    answer = asked(gateway, "retried")
    assert answer.status == 502
    assert answer.error["code"] == "upstream_error"
    assert len(upstream.below("/raw")) == 3
    assert whole_text(asked(gateway, "falls-back")) == "from the second"


def test_a_rate_limit_says_when_to_come_back(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", error("429 Too Many Requests", headers="retry-after: 17\r\n"))
    answer = asked(gateway, "retried")
    assert answer.status == 429
    assert answer.headers["retry-after"] == "17"
    assert answer.error["type"] == "rate_limit_error"
    assert len(upstream.below("/raw")) == 1, "a pause longer than a call waits is not cut short"


def test_a_pause_of_days_is_not_taken_for_none(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", error("429 Too Many Requests", headers="retry-after: 9999999999\r\n"))
    assert asked(gateway, "retried").status == 429
    assert len(upstream.below("/raw")) == 1


def test_a_short_pause_is_kept_before_the_retry(gateway: Served, upstream: Upstream) -> None:
    times: list[float] = []

    def script(_asked: Asked, to: Wire) -> None:
        times.append(time.monotonic())
        limited = error("429 Too Many Requests", headers="retry-after-ms: 300\r\n")
        to.send(limited if len(times) == 1 else http(completion("later")))

    upstream.on("/raw", script)
    assert whole_text(asked(gateway, "retried")) == "later"
    assert times[1] - times[0] >= 0.29


@pytest.mark.parametrize("pause", ["-5", "nan", "inf", "soon", "1e999", "", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_an_odd_pause_breaks_nothing(gateway: Served, upstream: Upstream, pause: str) -> None:
    upstream.on("/raw", error("503 Service Unavailable", headers=f"retry-after: {pause}\r\n"))
    assert soon(gateway, "once").status == 502


@pytest.mark.parametrize(
    ("status", "streamed"),
    [
        ("400 Bad Request", False),
        ("401 Unauthorized", False),
        ("403 Forbidden", False),
        ("404 Not Found", False),
        ("429 Too Many Requests", False),
        ("500 Internal Server Error", False),
        ("401 Unauthorized", True),
        ("500 Internal Server Error", True),
    ],
)
def test_a_provider_that_repeats_its_key_does_not_leak_it(
    gateway: Served, upstream: Upstream, status: str, streamed: bool
) -> None:
    upstream.on("/raw", error(status, f"Incorrect API key provided: {PROVIDER_KEY}", code=PROVIDER_KEY))
    answer = asked(gateway, "once", stream=streamed)
    assert PROVIDER_KEY.encode() not in answer.body
    if status[:3] in ("401", "403"):
        assert answer.status == 502
        assert answer.error["code"] == "upstream_auth"
    records(gateway, answer)
    assert PROVIDER_KEY.encode() not in gateway.everything_written()


def test_a_refused_key_is_not_tried_again(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", error("401 Unauthorized"))
    assert asked(gateway, "retried").status == 502
    assert len(upstream.below("/raw")) == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"null", b'{"error":null}', b'{"error":"text"}', b'{"error":{"message":5,"code":[1],"param":{}}}'],
)
def test_an_error_in_any_shape_is_an_error_in_ours(gateway: Served, upstream: Upstream, body: bytes) -> None:
    for status in ("400 Bad Request", "500 Internal Server Error"):
        upstream.on("/raw", http(body, status=status))
        answer = asked(gateway, "once")
        assert answer.status in (400, 502)
        assert answer.error["message"]


def test_a_status_that_is_no_error_is_no_answer_either(gateway: Served, upstream: Upstream) -> None:
    for status in ("201 Created", "202 Accepted", "204 No Content"):
        upstream.on("/raw", http(b"" if status[:3] == "204" else completion(), status=status))
        assert soon(gateway, "once").status == 502


# Streams that say strange things.


@pytest.mark.parametrize("before", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_an_error_event_is_an_explicit_error(gateway: Served, upstream: Upstream, dialect: str, before: bool) -> None:
    if dialect == "openai":
        path, name, first = "/raw", "once", [] if before else stream_events()[:2]
        said = event({"error": {"message": "overloaded", "type": "server_error", "code": "x"}})
    else:
        path, name, first = "/claude", "claude-once", [] if before else anthropic_events()[:4]
        said = event({"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}}, "error")
    upstream.on(path, stream([*first, said]))
    answer = asked(gateway, name, stream=True)
    if before:
        assert answer.status == 502
        assert "overloaded" in answer.error["message"]
    else:
        assert answer.status == 200
        assert "overloaded" in answer.events[-1]["error"]["message"]
        assert "[DONE]" not in answer.events


def test_an_error_event_first_falls_back(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", stream([event({"error": {"message": "overloaded"}})]))
    assert asked(gateway, "falls-back", stream=True).text == "from the second"


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
def test_events_behind_an_error_event_are_not_passed_on(gateway: Served, upstream: Upstream, together: bool) -> None:
    events = [*stream_events()[:2], event({"error": {"message": "over"}}), event(delta(content="behind"))]

    def script(_asked: Asked, to: Wire) -> None:
        if together:
            to.send(STREAM_HEAD + chunk(b"".join(events)) + STREAM_END)
            return
        to.send(STREAM_HEAD)
        for one in events:
            to.send(chunk(one))
            to.wait(0.02)
        to.send(STREAM_END)

    upstream.on("/raw", script)
    answer = asked(gateway, "once", stream=True)
    assert answer.text == "Hel"
    assert "error" in answer.events[-1]


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
@pytest.mark.parametrize("bad", [b"{not json", b'{"choices": [{"delta": {"content": "\xff"}}]}'], ids=["json", "utf8"])
def test_a_malformed_event_never_reaches_the_client(
    gateway: Served, upstream: Upstream, bad: bytes, together: bool
) -> None:
    """Whatever the network made of the stream's reads."""
    events = [*stream_events()[:2], event(bad), *stream_events()[2:]]

    def script(_asked: Asked, to: Wire) -> None:
        if together:
            to.send(stream(events))
            return
        to.send(STREAM_HEAD)
        for one in events:
            to.send(chunk(one))
            to.wait(0.02)
        to.send(STREAM_END)

    upstream.on("/raw", script)
    answer = asked(gateway, "once", stream=True)
    assert bad not in answer.body
    if answer.status == 200:
        assert "error" in answer.events[-1]
    else:
        assert answer.status == 502


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize(
    "spell",
    [
        lambda data: data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b": hello\n\n" + data.replace(b"\n\n", b"\n\n: ping\n\n"),
        lambda data: data.replace(b"data: ", b"data:"),
        lambda data: data.replace(b"data: ", b"id: 1\nretry: 5\ndata: "),
        lambda data: data.replace(b"\n\n", b"\n\n\n\n"),
    ],
    ids=["plain", "crlf", "pings", "no-space", "ids", "blank-lines"],
)
def test_every_spelling_of_server_sent_events_is_read(
    gateway: Served, upstream: Upstream, dialect: str, spell: Any
) -> None:
    path, name, events = "/raw", "once", stream_events()
    if dialect == "anthropic":
        path, name, events = "/claude", "claude-once", anthropic_events()
    upstream.on(path, stream([spell(b"".join(events))]))
    answer = asked(gateway, name, stream=True)
    assert ended_cleanly(answer), answer.body
    lines = [line for line in answer.body.replace(b"data:{", b"data: {").split(b"\n") if line.startswith(b"data")]
    assert lines[-1].replace(b" ", b"") == b"data:[DONE]"
    said = [json.loads(line[5:]) for line in lines[:-1]]
    text = "".join(one["choices"][0]["delta"].get("content") or "" for one in said if one["choices"])
    assert text == "Hello."
    assert records(gateway, answer).attempts[0].usage.output_tokens == 7


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_stream_written_byte_by_byte_is_the_same_stream(gateway: Served, upstream: Upstream, dialect: str) -> None:
    path, name, events = "/raw", "once", stream_events()
    if dialect == "anthropic":
        path, name, events = "/claude", "claude-once", anthropic_events()
    upstream.on(path, stream(events))
    together = asked(gateway, name, stream=True)
    raw = stream(events)
    upstream.on(path, lambda _asked, to: to.send(*(raw[place : place + 1] for place in range(len(raw)))))
    assert asked(gateway, name, stream=True).body == together.body


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_usage_is_passed_on_only_where_it_was_asked_for(
    gateway: Served, upstream: Upstream, dialect: str, wanted: bool
) -> None:
    path, name, events = "/raw", "once", stream_events()
    if dialect == "anthropic":
        path, name, events = "/claude", "claude-once", anthropic_events()
    upstream.on(path, stream(events))
    more = {"stream_options": {"include_usage": True}} if wanted else {}
    answer = asked(gateway, name, stream=True, **more)
    usages = [one["usage"] for one in answer.events[:-1] if one.get("usage")]
    assert [one["prompt_tokens"] for one in usages] == ([11] if wanted else [])
    assert (b"usage" in answer.body) == wanted
    call = records(gateway, answer)
    assert (call.attempts[0].usage.input_tokens, call.attempts[0].usage.output_tokens) == (11, 7)
    if dialect == "openai":
        assert upstream.asked[0].json["stream_options"]["include_usage"] is True


def test_an_anthropic_answer_is_one_of_openais(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/claude", http(anthropic_message("translated")))
    answer = asked(gateway, "claude-once")
    assert whole_text(answer) == "translated"
    assert answer.json["object"] == "chat.completion"
    assert upstream.asked[0].headers["x-api-key"] == PROVIDER_KEY


@pytest.mark.parametrize(
    "fields",
    [
        {"content": None},
        {"content": []},
        {"content": [None]},
        {"content": [{"type": "text", "text": 5}]},
        {"content": [{"type": "tool_use", "input": 5, "name": 5}]},
        {"content": [{"type": "unheard-of"}]},
        {"stop_reason": 5},
        {"stop_reason": "unheard-of"},
        {"stop_reason": ["x"]},
        {"usage": None},
        {"usage": {"input_tokens": -1, "output_tokens": -1}},
        {"usage": {"input_tokens": "5", "output_tokens": "5"}},
        {"usage": {"input_tokens": 5, "output_tokens": 5, "cache_creation": 5, "cache_read_input_tokens": "5"}},
        {"id": 5, "model": None},
    ],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "as-stream"])
def test_odd_fields_of_an_anthropic_answer_never_hang_a_call(
    gateway: Served, upstream: Upstream, fields: dict[str, Any], streamed: bool
) -> None:
    upstream.on("/claude", http(anthropic_message(**fields)))
    answer = soon(gateway, "claude-once", stream=streamed)
    assert answer.status in (200, 502)
    records(gateway, answer)


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize(
    "odd",
    [
        {"type": 5},
        {"type": "message_start", "message": 5},
        {"type": "message_start", "message": {"usage": 5}},
        {"type": "content_block_start", "index": [1], "content_block": {"type": "tool_use"}},
        {"type": "content_block_delta", "index": [1], "delta": {"type": "input_json_delta", "partial_json": "x"}},
        {"type": "content_block_delta", "delta": 5},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 5}},
        {"type": "message_delta", "delta": 5, "usage": 5},
        {"type": "message_delta", "delta": {"stop_reason": [1]}, "usage": {"output_tokens": "x"}},
    ],
)
def test_odd_events_of_an_anthropic_stream_never_hang_a_call(
    gateway: Served, upstream: Upstream, odd: dict[str, Any], place: int
) -> None:
    events = anthropic_events()
    upstream.on("/claude", stream([*events[:place], event(odd), *events[place:]]))
    records(gateway, soon(gateway, "claude-once", stream=True))
