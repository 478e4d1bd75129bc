"""Attacks on budgets: every way to be answered and not be charged, to be charged to somebody else, or to pay less.

Proved elsewhere: the last dollar over workers, failures and aborts (promises/test_a_budget_is_never_overspent), aborts
at every chunk (execution/test_streams_and_aborts), values of `max_tokens` that are none (gateway/test_hostile_input),
provider's impossible usage (gateway/test_hostile_upstream). Here: every door and every path of a Call against the
provider's own invoice, the bound that is reserved, whose account is charged, and what one client can multiply.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from attack_world import (
    ENVIRON,
    INPUT_NANO,
    KEY,
    OTHER_KEY,
    OUTPUT_NANO,
    WITH_KEY,
    Till,
    ask,
    body,
    endless,
    text_of,
)

from drivetrain.core.money import nano_usd
from support import books, wire
from support.projects import model, provider, settings, workflow
from support.served import START, Served, served
from support.upstream import Asked, Upstream, Wire, completion, http

pytestmark = pytest.mark.slow

ONE_CALL = 11 * INPUT_NANO + 7 * OUTPUT_NANO
NEEDS = re.compile(r"needs up to ([\d.]+) USD")
RACE_CALLS = 5


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def till() -> Till:
    return Till()


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Served]:
    checked = '{ name = "first", model = "raw/m", accept = { chars_min = 1_000 } }'
    tables = (
        "".join(provider(name, f"{upstream.url}/{name}", more=WITH_KEY) for name in ("raw", "second"))
        + provider("watched", f"{upstream.url}/watched", more=WITH_KEY, breaker=True)
        + "".join(model(f"{name}/m") for name in ("raw", "second", "watched"))
        + '[keys.app]\nsecret = "env:CLIENT_KEY"\nmay_override = ["user", "tags"]\n'
        + '[keys.other]\nsecret = "env:OTHER_KEY"\n'
        + workflow("chat", "raw/m", more="attempts_max = 1\n")
        + workflow("cached", "raw/m", more="cache = { ttl_s = 3600 }\n")
        + workflow("retried", "raw/m", more="attempts_max = 3\n")
        + workflow("falls-back", "raw/m", "second/m")
        + workflow("escalates", checked, "second/m")
        + workflow("watched", "watched/m")
        + workflow("poor", "raw/m", more="attempts_max = 1\n")
        + workflow("race", "raw/m", more="attempts_max = 1\n")
        + workflow("tiered", "raw/m", more='parameters = { honour = ["service_tier", "web_search_options"] }\n')
        + books.limit("all", "project", usd="1000")
        + books.limit("user", "each user", usd="100")
        + books.limit("key", "each key", usd="100")
        + books.limit("customer", "each tag:customer", usd="100")
        + books.limit("poor", "workflow:poor", usd="0.000000001")
        + books.limit("race", "workflow:race", usd=f"{RACE_CALLS * 0.002}")
    )
    files = {"drivetrain.toml": settings(gateway='direct_models = ["raw/m"]\n', tables=tables)}
    with served(files, ENVIRON) as running:
        yield running
        # Last: what budgets have settled is what the ledger says, account by account.
        calls = running.calls()
        assert running.stop() == 0
        said = books.spent(calls, all="project", user="user", key="key")
        assert books.settled(running.data_folder, "all", "user", "key") == said
        assert not any(one.held or one.over for one in books.accounts(running.data_folder, "all", "user").values())
        assert not running.faults, "\n".join(running.faults)


@pytest.fixture(autouse=True)
def _fresh(upstream: Upstream, till: Till) -> None:
    upstream.forget()
    till.forget()
    for path in ("/raw", "/second", "/watched"):
        upstream.on(path, till)


def standing(gateway: Served, name: str) -> int:
    """What the account has settled as the store has it now."""
    return books.settled(gateway.data_folder, name.split("/", maxsplit=1)[0]).get(name, 0)


def settled(gateway: Served, name: str, wanted: int | None = None, within_s: float = 30.0) -> int:
    """What the account has settled, as soon as it is `wanted` or the time is over."""
    deadline = time.monotonic() + within_s
    while (now := standing(gateway, name)) != wanted and time.monotonic() < deadline:
        if wanted is None and not any(call.status == "running" for call in gateway.calls()):
            time.sleep(0.7)  # a worker reports every half second
            return standing(gateway, name)
        time.sleep(0.03)
    return now


@pytest.fixture
def before(gateway: Served) -> int:
    """What the project had settled when the test began: all that the ledger has."""
    return settled(gateway, "all/", sum(call.cost_nano_usd for call in gateway.calls()))


def is_charged(gateway: Served, before: int, cost_nano_usd: int) -> None:
    """The project's account has settled exactly that since."""
    assert settled(gateway, "all/", before + cost_nano_usd) - before == cost_nano_usd


# Every way to be answered.


def by_python(gateway: Served) -> None:
    """`drivetrain run` beside the gateway, on the same budgets."""
    command = [sys.executable, "-c", START, "run", "chat", "--project", str(gateway.root), "--input", '{"text": "hi"}']
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env={**os.environ, **ENVIRON}
    )
    assert ended.returncode == 0, ended.stderr


def twice(gateway: Served, said: dict[str, Any], headers: str = "") -> list[wire.Answered]:
    return [ask(gateway, said, headers=headers) for _ in range(2)]


DOORS: dict[str, tuple[Any, int]] = {
    "chat": (ask, 1),
    "stream": (lambda gateway: ask(gateway, body(stream=True)), 1),
    "stream without usage": (
        lambda gateway: ask(gateway, body(stream=True, stream_options={"include_usage": False})), 1,
    ),
    "direct model": (lambda gateway: ask(gateway, body(name="raw/m")), 1),
    "direct model, streamed": (lambda gateway: ask(gateway, body(name="raw/m", stream=True)), 1),
    "typed door": (lambda gateway: ask(gateway, {"text": "hi"}, path="/v1/workflows/chat"), 1),
    "typed door, direct model": (lambda gateway: ask(gateway, {"text": "hi"}, path="/v1/workflows/raw%2Fm"), 1),
    "python": (by_python, 1),
    "sixteen choices": (lambda gateway: ask(gateway, body(n=16)), 1),
    "idempotent replay": (lambda gateway: twice(gateway, body(), "idempotency-key: money-1\r\n"), 1),
    "cache hit": (lambda gateway: twice(gateway, body("cached", "cached", temperature=0)), 1),
    "cache forbidden": (
        lambda gateway: twice(gateway, body("no", "cached", temperature=0), "cache-control: no-store\r\n"), 2,
    ),
    "escalation": (lambda gateway: ask(gateway, body(name="escalates")), 2),
    "escalation, streamed": (lambda gateway: ask(gateway, body(name="escalates", stream=True)), 2),
    "expect": (lambda gateway: ask(gateway, headers="expect: 100-continue\r\n"), 1),
    "http 1.0": (lambda gateway: wire.one(gateway.port, wire.request(body(), key=KEY).replace(b"P/1.1", b"P/1.0")), 1),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_every_door_is_charged_what_the_provider_charges(gateway: Served, till: Till, before: int, door: str) -> None:
    go, answered = DOORS[door]
    go(gateway)
    assert till.answered == answered
    assert till.cost_nano_usd > 0
    is_charged(gateway, before, till.cost_nano_usd)


def failing_first(till: Till, times: int) -> Any:
    left = [times]

    def script(asked: Asked, to: Wire) -> None:
        left[0] -= 1
        if left[0] >= 0:
            to.send(http(b"{}", status="503 Unavailable"))
        else:
            till(asked, to)

    return script


@pytest.mark.parametrize("name", ["retried", "falls-back"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_was_answered_after_a_failure_is_charged_once(
    gateway: Served, upstream: Upstream, till: Till, before: int, name: str, stream: bool
) -> None:
    upstream.on("/raw", failing_first(till, 1))
    assert ask(gateway, body(name=name, stream=stream)).status == 200
    assert len(upstream.asked) == 2
    assert till.cost_nano_usd == ONE_CALL
    is_charged(gateway, before, ONE_CALL)


def test_an_unusable_answer_is_charged_and_its_fallback_too(
    gateway: Served, upstream: Upstream, till: Till, before: int
) -> None:
    """It was billed, whatever stands in it."""
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    upstream.on("/raw", http(completion(choices=[], usage=usage)))
    assert ask(gateway, body(name="falls-back")).status == 200
    is_charged(gateway, before, ONE_CALL + till.cost_nano_usd)


def test_whoever_leaves_before_the_answer_pays_for_it(
    gateway: Served, upstream: Upstream, till: Till, before: int
) -> None:
    def slowly(asked: Asked, to: Wire) -> None:
        to.wait(0.3)
        till(asked, to)

    upstream.on("/raw", slowly)
    for number in range(30):
        with wire.connect(gateway.port) as connection:
            connection.sendall(wire.request(body(f"{number}"), key=KEY))
            while len(upstream.asked) <= number:
                time.sleep(0.002)
    is_charged(gateway, before, 30 * ONE_CALL)
    assert till.cost_nano_usd == 30 * ONE_CALL


def test_whoever_leaves_in_mid_stream_pays_what_came(gateway: Served, upstream: Upstream, before: int) -> None:
    upstream.on("/raw", endless())
    known = {call.call_id for call in gateway.calls()}

    def leave(_number: int) -> None:
        with wire.connect(gateway.port) as connection:
            connection.sendall(wire.request(body(stream=True), key=KEY))
            assert connection.recv(100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(16)))
    deadline = time.monotonic() + 30
    while any(call.status == "running" for call in gateway.calls()) and time.monotonic() < deadline:
        time.sleep(0.05)
    calls = [call for call in gateway.calls() if call.call_id not in known]
    assert {call.status for call in calls} == {"aborted"}
    assert all(call.cost_nano_usd > 0 for call in calls)
    is_charged(gateway, before, sum(call.cost_nano_usd for call in calls))


# What is reserved.


def needed(gateway: Served, said: dict[str, Any]) -> int:
    """What a request needs at most, as the refusal of an empty budget says."""
    answer = ask(gateway, said)
    assert answer.status == 429, answer
    found = NEEDS.search(answer.json["error"]["message"])
    assert found, answer.body
    return nano_usd(found[1])


def poor(**more: Any) -> dict[str, Any]:
    return body(**{"name": "poor", "max_tokens": 10, **more})


HELLO = [{"role": "user", "content": "x"}]
INLINE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d" * 5_000, "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("more", "least_nano"),
    [
        ({}, 10 * OUTPUT_NANO),
        ({"max_tokens": 1_000}, 1_000 * OUTPUT_NANO),
        ({"max_tokens": 4_000_000}, 4_096 * OUTPUT_NANO),
        ({"max_tokens": 4_000_000, "max_completion_tokens": 100}, 100 * OUTPUT_NANO),
        ({"max_tokens": 100, "max_completion_tokens": 4_000_000}, 100 * OUTPUT_NANO),
        ({"max_tokens": None}, 4_096 * OUTPUT_NANO),
        ({"n": 16}, 160 * OUTPUT_NANO),
        ({"n": 16, "max_tokens": 4_000_000}, 16 * 4_096 * OUTPUT_NANO),
        ({"messages": [{"role": "user", "content": "x" * 5_000}]}, 5_000 * INPUT_NANO),
        ({"messages": [{"role": "user", "content": "\U0001f9ff" * 2_000}]}, 8_000 * INPUT_NANO),
        ({"messages": [{"role": "user", "content": "\u0b95\u0bcd" * 1_000}]}, 6_000 * INPUT_NANO),
        ({"messages": [{"role": "system", "content": "s" * 5_000}, *HELLO]}, 5_000 * INPUT_NANO),
        ({"messages": [{"role": "user", "content": "x", "name": "n" * 5_000}]}, 5_000 * INPUT_NANO),
        ({"messages": [{"role": "user", "content": "x"}] * 500}, 500 * 10 * INPUT_NANO),
        ({"tools": [TOOL]}, 5_000 * INPUT_NANO),
        ({"response_format": {"type": "json_object", "pad": "p" * 5_000}}, 5_000 * INPUT_NANO),
        ({"metadata": {"a": "m" * 5_000}}, 5_000 * INPUT_NANO),
        ({"x_unknown": "u" * 5_000}, 5_000 * INPUT_NANO),
        ({"stream": True, "stream_options": {"include_usage": False}}, 10 * OUTPUT_NANO),
        (
            {"messages": [{"role": "user", "content": [INLINE] * 3}]},
            3 * 16_384 * INPUT_NANO,
        ),
    ],
)  # fmt: skip
def test_the_bound_counts_all_that_is_billed(
    gateway: Served, upstream: Upstream, more: dict[str, Any], least_nano: int
) -> None:
    found = needed(gateway, poor(**more))
    assert least_nano <= found <= 4 * least_nano + 1_000 * INPUT_NANO
    assert upstream.asked == []


ODD_CHOICES: list[Any] = [-1, 0, 17, 10**9, 1.5, 2.0, True, False, "2", [2], -(2**63), 1e300]
ODD_LIMITS: list[Any] = [-5, 0.5, 3.0, 1e30, [5], {}, ""]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n", one) for one in ODD_CHOICES),
        *(("max_tokens", one) for one in ODD_LIMITS),
        *(("max_completion_tokens", one) for one in ODD_LIMITS),
    ],
)
def test_a_number_that_would_turn_a_bound_around_is_refused(
    gateway: Served, upstream: Upstream, name: str, value: Any
) -> None:
    for workflow_name in ("chat", "poor"):
        answer = ask(gateway, body(name=workflow_name, **{name: value}))
        assert (answer.status, answer.error["param"]) == (400, name)
    assert upstream.asked == []


@pytest.mark.parametrize(
    "name", ["max_output_tokens", "max_new_tokens", "num_predict", "max_tokens_to_sample", "best_of"]
)
def test_no_other_name_of_a_limit_slips_through(gateway: Served, upstream: Upstream, name: str) -> None:
    assert ask(gateway, body(**{name: 1_000_000})).error["param"] == name
    assert upstream.asked == []


def test_the_smaller_of_two_limits_is_sent_and_no_other(gateway: Served, upstream: Upstream) -> None:
    for limits in ({"max_tokens": 3, "max_completion_tokens": 500}, {"max_tokens": 500, "max_completion_tokens": 3}):
        assert ask(gateway, body(**limits)).status == 200
    for one in upstream.asked:
        assert [one.json[name] for name in ("max_tokens", "max_completion_tokens") if name in one.json] == [3]


IMAGE = {"type": "image_url", "image_url": {"url": "https://images.example/large.png"}}
UNBOUNDED: dict[str, dict[str, Any]] = {
    "image by address": {"messages": [{"role": "user", "content": [IMAGE]}]},
    "image of an earlier turn": {"messages": [{"role": "assistant", "content": [IMAGE]}, *HELLO]},
    "file": {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f1"}}]}]},
    "audio": {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}]},
    "earlier audio": {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "audio": {"id": "a1"}}]},
    "unheard of": {"messages": [{"role": "user", "content": [{"type": "whole_library"}]}]},
    "search tool": {"tools": [{"type": "web_search"}]},
    "tool without a type": {"tools": [{"function": {"name": "f"}}]},
    "tool of an odd type": {"tools": [{"type": ["function"]}]},
    "search": {"name": "tiered", "web_search_options": {}},
    "dear tier": {"name": "tiered", "service_tier": "priority"},
    "tier in another spelling": {"name": "tiered", "service_tier": "Default"},
    "odd tier": {"name": "tiered", "service_tier": ["auto"]},
}  # fmt: skip


@pytest.mark.parametrize("kind", UNBOUNDED)
def test_what_has_no_bound_is_refused_under_a_budget(gateway: Served, upstream: Upstream, kind: str) -> None:
    for more in ({}, {"stream": True}):
        answer = ask(gateway, body(**{**UNBOUNDED[kind], **more}))
        assert (answer.status, answer.error["code"]) == (400, "unbounded_cost")
    assert upstream.asked == []


@pytest.mark.parametrize("name", ["service_tier", "web_search_options", "store", "modalities", "audio", "prediction",
                                  "models", "plugins", "search_parameters", "speed", "mcp_servers"])  # fmt: skip
def test_nobody_buys_more_than_the_workflow_sells(gateway: Served, upstream: Upstream, name: str) -> None:
    for value in ("priority", ["a"], {"a": 1}):
        answer = ask(gateway, body(**{name: value}))
        assert (answer.status, answer.error["code"]) == (400, "unsupported_parameter")
    assert upstream.asked == []


# Whose account.


def test_who_may_not_name_a_user_pays_as_nobody_whatever_is_said(gateway: Served) -> None:
    """One account for all of them: another name with every request is no other budget."""
    settled(gateway, "user/")
    known = standing(gateway, "user/")
    for said in ({}, {"user": "ann"}, {"user": "bob"}, {"user": "zoe\x00"}, {"metadata": {"user": "eve"}}):
        assert ask(gateway, body(**said), key=OTHER_KEY).status == 200
    assert ask(gateway, key=OTHER_KEY, headers="x-drivetrain-user: ann\r\n").status == 403
    assert settled(gateway, "user/", known + 5 * ONE_CALL) == known + 5 * ONE_CALL
    accounts = books.settled(gateway.data_folder, "user")
    assert not {"user/ann", "user/bob", "user/eve", "user/zoe\x00"} & set(accounts)


def test_a_header_wins_over_the_body_and_neither_is_charged_twice(gateway: Served) -> None:
    said = body(user="from-body")
    assert ask(gateway, said, headers="x-drivetrain-user: from-header\r\n").status == 200
    assert ask(gateway, said).status == 200
    assert settled(gateway, "user/from-body", ONE_CALL) == ONE_CALL
    assert settled(gateway, "user/from-header", ONE_CALL) == ONE_CALL


@pytest.mark.parametrize("name", ["a/b", "x@2026-01", "all/", "%", "a'b--", "\u0430nn", "../user", "a" * 256])
def test_no_name_of_a_user_is_another_account(gateway: Served, before: int, name: str) -> None:
    assert ask(gateway, body(user=name)).status == 200
    assert settled(gateway, f"user/{name}", ONE_CALL) == ONE_CALL
    is_charged(gateway, before, ONE_CALL)


def test_tags_are_charged_once_each_in_any_order(gateway: Served) -> None:
    for said in (
        "customer=k1,customer=k1, customer=k1",
        "x,customer=k1,y",
        "customer=k2,customer=k1",
        "Customer=k1,customer",
    ):
        assert ask(gateway, headers=f"x-drivetrain-tags: {said}\r\n").status == 200
    assert settled(gateway, "customer/k1", 3 * ONE_CALL) == 3 * ONE_CALL
    assert settled(gateway, "customer/k2", ONE_CALL) == ONE_CALL


# Multiplied.


def test_a_hundred_pipelined_requests_on_many_connections_get_what_the_budget_holds(
    gateway: Served, upstream: Upstream, till: Till
) -> None:
    """A cap of about `RACE_CALLS` worst cases: whatever is sent at once, what is charged stays below it."""
    cap = RACE_CALLS * 2_000_000
    raw = b"".join(wire.request(body(f"{n}", "race", max_tokens=700, stream=n % 2 == 0), key=KEY) for n in range(100))
    codes: list[Any] = []

    def one(_number: int) -> None:
        with wire.connect(gateway.port) as connection:
            sender = threading.Thread(target=connection.sendall, args=(raw,))
            sender.start()
            heard = wire.hear(connection, answers=100)
            sender.join()
            codes.extend(
                (answer.status, answer.json["error"]["code"]) if answer.status != 200 else 200
                for answer in heard.answers
            )

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(6)))
    assert len(codes) == 600
    # A store that is busy for too long is a refusal too, never leave to spend.
    assert set(codes) <= {200, (429, "budget_exceeded"), (503, "limits_unavailable")}
    assert (429, "budget_exceeded") in codes
    assert codes.count(200) == till.answered == len(upstream.asked)
    assert 0 < till.cost_nano_usd <= cap
    assert settled(gateway, "race/race", till.cost_nano_usd) == till.cost_nano_usd
    assert cap - till.cost_nano_usd < 2_000_000, "money was left that fits another call"


def test_one_request_is_never_more_than_its_attempts(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", http(b"{}", status="503 Unavailable", headers="retry-after: 0\r\nx-should-retry: true\r\n"))
    headers = "x-stainless-retry-count: 0\r\nx-should-retry: true\r\nx-drivetrain-attempts: 99\r\nretry-after: 0\r\n"
    for stream in (False, True):
        upstream.forget()
        assert ask(gateway, body(name="retried", stream=stream), headers=headers).status == 502
        assert len(upstream.asked) == 3


def test_a_failing_provider_is_not_flooded_by_retries(gateway: Served, upstream: Upstream) -> None:
    """200 Calls may retry three times each; what reaches the provider stays near what clients sent."""
    upstream.on("/watched", http(b"{}", status="503 Unavailable"))
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda n: ask(gateway, body(f"{n}", "watched")), range(200)))
    assert {answer.status for answer in answers} <= {502, 503}
    assert 0 < len(upstream.asked) <= 200 * 1.1 + 30


def test_a_refusal_of_a_budget_asks_no_client_to_try_again(gateway: Served, upstream: Upstream) -> None:
    answer = ask(gateway, poor())
    assert (answer.status, answer.headers["x-should-retry"]) == (429, "false")
    assert int(answer.headers["retry-after"]) > 0
    assert upstream.asked == []


def test_what_was_refused_for_money_is_not_remembered_as_an_answer(gateway: Served, till: Till) -> None:
    headers = "idempotency-key: money-refused\r\n"
    assert ask(gateway, poor(), headers=headers).status == 429
    assert ask(gateway, poor(), headers=headers).status == 429
    assert text_of(ask(gateway, body(max_tokens=10), headers="idempotency-key: money-other\r\n")) == "Hello."
    assert till.answered == 1
