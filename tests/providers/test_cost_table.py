"""Cost is exact: recorded answers of providers through a real gateway, against nano-USD worked out by hand.

Rates, in nano-USD per token:

    model                input   cached   write 5m   write 1h   output
    gpt-5-mini             250       25                           2,000
    gpt-4o-mini            150       75                             600
    claude-opus-4-5      5,000      500      6,250     10,000    25,000
    claude-sonnet-4-5    3,000      300      3,750      6,000    15,000   up to 200,000 input tokens
                         6,000      600      7,500     12,000    22,500   beyond, for the whole request
    house                 37.5                                      150   and 1,000,000 per request
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support import wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.upstream import (
    STREAM_HEAD,
    Asked,
    Upstream,
    Wire,
    anthropic_events,
    anthropic_message,
    chunk,
    completion,
    http,
    stream,
    stream_events,
)

MINI = "openai/gpt-5-mini-2025-08-07"
OLD_MINI = "openai/gpt-4o-mini-2024-07-18"
OPUS = "anthropic/claude-opus-4-5-20251101"
SONNET = "anthropic/claude-sonnet-4-5-20250929"
HOUSE = "house/model"
WORKFLOWS = {"mini": MINI, "old-mini": OLD_MINI, "opus": OPUS, "sonnet": SONNET, "house": HOUSE}
HOUSE_PRICE = 'usd_per_million_input = "0.0375"\nusd_per_million_output = "0.15"\nusd_per_request = "0.001"\n'


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Served]:
    tables = [
        provider("openai", f"{upstream.url}/openai"),
        provider("anthropic", f"{upstream.url}/anthropic", dialect="anthropic"),
        provider("house", f"{upstream.url}/house"),
        model(HOUSE, HOUSE_PRICE),
        *(workflow(name, one, more="attempts_max = 1\n") for name, one in WORKFLOWS.items()),
        workflow("unpriced", "house/unheard-of", more="attempts_max = 1\n"),
        workflow("falls-back", MINI, OPUS),
        workflow(
            "escalates",
            f'{{ name = "cheap", model = "{MINI}", accept = {{ chars_min = 100 }} }}',
            f'{{ name = "dear", model = "{OPUS}" }}',
        ),
        workflow(
            "bounded",
            f'{{ name = "five", model = "{HOUSE}", max_output_tokens = 1000, parameters = {{ n = 5 }} }}',
            more='budget = { usd_per_call = "0.0017" }\n',
        ),
        workflow("retries", MINI, more="attempts_max = 3\n"),
    ]
    with served({"drivetrain.toml": settings(tables="".join(tables))}) as running:
        yield running
        assert not running.faults, "\n".join(running.faults)


def request(name: str, **more: str) -> bytes:
    """A request whose body is 100 bytes long, so that its input is estimated as 25 tokens."""
    body = f'{{"model":"{name}"' + "".join(f',"{key}":{value}' for key, value in more.items())
    body += ',"messages":[{"role":"user","content":"'
    return wire.request(body + "x" * (100 - len(body) - 4) + '"}]}')


def cost(gateway: Served, name: str, **more: str) -> int:
    """What the ledger says that one call cost."""
    raw = request(name, **more)
    assert len(raw.partition(b"\r\n\r\n")[2]) == 100
    answer = wire.one(gateway.port, raw)
    call = gateway.call(answer.headers["x-request-id"])
    assert call.cost_nano_usd == sum(attempt.cost_nano_usd for attempt in call.attempts)
    if "x-drivetrain-cost-nano-usd" in answer.headers:
        assert int(answer.headers["x-drivetrain-cost-nano-usd"]) == call.cost_nano_usd
    return call.cost_nano_usd


def openai_usage(prompt: int, output: int, *, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def anthropic_usage(fresh: int, output: int, *, read: int = 0, written: int = 0, written_1h: int = 0) -> dict[str, Any]:
    return {
        "input_tokens": fresh,
        "cache_creation_input_tokens": written + written_1h,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": written_1h},
        "output_tokens": output,
        "service_tier": "standard",
    }


OPENAI_TABLE = [
    # 1,000 x 250 + 200 x 2,000
    ("mini", openai_usage(1_000, 200), 650_000),
    # (2,006 - 1,920) x 250 + 1,920 x 25 + 300 x 2,000 = 21,500 + 48,000 + 600,000
    ("mini", openai_usage(2_006, 300, cached=1_920), 669_500),
    # all of it cached: 1,024 x 25 + 1 x 2,000
    ("mini", openai_usage(1_024, 1, cached=1_024), 27_600),
    # reasoning is output: 75 x 250 + 1,186 x 2,000 = 18,750 + 2,372,000
    ("mini", openai_usage(75, 1_186, reasoning=1_024), 2_390_750),
    # (19 - 16) x 150 + 16 x 75 + 10 x 600 = 450 + 1,200 + 6,000
    ("old-mini", openai_usage(19, 10, cached=16), 7_650),
    # explicit zero is believed
    ("mini", openai_usage(0, 0), 0),
    # no output: 11 x 250
    ("mini", openai_usage(11, 0), 2_750),
    # a million of each: 250,000,000 + 2,000,000,000
    ("mini", openai_usage(1_000_000, 1_000_000), 2_250_000_000),
    # 3 x 37.5 + 1 x 150 = 262.5, rounded up once, and 1,000,000 for the request
    ("house", openai_usage(3, 1), 1_000_263),
    # 1 x 37.5, rounded up
    ("house", openai_usage(1, 0), 1_000_038),
    # 2 x 37.5 is whole
    ("house", openai_usage(2, 0), 1_000_075),
    # details that are missing or null count as none: 4 x 250 + 5 x 2,000
    ("mini", {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}, 11_000),
    ("mini", {"prompt_tokens": 4, "completion_tokens": 5, "prompt_tokens_details": None}, 11_000),
    ("mini", {"prompt_tokens": 4, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": None}}, 11_000),
]

ANTHROPIC_TABLE = [
    # 25 x 5,000 + 15 x 25,000 = 125,000 + 375,000
    ("opus", anthropic_usage(25, 15), 500_000),
    # input_tokens leaves cache reads out: 21 x 5,000 + 188,086 x 500 + 393 x 25,000 = 105,000 + 94,043,000 + 9,825,000
    ("opus", anthropic_usage(21, 393, read=188_086), 103_973_000),
    # 50 x 5,000 + 248 x 6,250 + 10 x 25,000 = 250,000 + 1,550,000 + 250,000
    ("opus", anthropic_usage(50, 10, written=248), 2_050_000),
    # 50 x 5,000 + 248 x 10,000 + 10 x 25,000 = 250,000 + 2,480,000 + 250,000
    ("opus", anthropic_usage(50, 10, written_1h=248), 2_980_000),
    # 2,048 x 5,000 + 1,800 x 500 + 148 x 6,250 + 100 x 10,000 + 503 x 25,000
    # = 10,240,000 + 900,000 + 925,000 + 1,000,000 + 12,575,000
    ("opus", anthropic_usage(2_048, 503, read=1_800, written=148, written_1h=100), 25_640_000),
    # without the split a write is one of five minutes: 8 x 5,000 + 100 x 6,250 + 1 x 25,000 = 40,000 + 625,000 + 25,000
    ("opus", {"input_tokens": 8, "cache_creation_input_tokens": 100, "output_tokens": 1}, 690_000),
    ("opus", anthropic_usage(0, 0), 0),
    # the last request of the lower tier: 200,000 x 3,000 + 1,000 x 15,000
    ("sonnet", anthropic_usage(200_000, 1_000), 615_000_000),
    # one token more: 200,001 x 6,000 + 1,000 x 22,500 = 1,200,006,000 + 22,500,000
    ("sonnet", anthropic_usage(200_001, 1_000), 1_222_506_000),
    # what is read from the cache counts towards the tier: 10 x 6,000 + 200,000 x 600 + 10 x 22,500
    ("sonnet", anthropic_usage(10, 10, read=200_000), 120_285_000),
    # and so do writes: 1 x 6,000 + 100,000 x 7,500 + 100,000 x 12,000 + 2 x 22,500
    # = 6,000 + 750,000,000 + 1,200,000,000 + 45,000
    ("sonnet", anthropic_usage(1, 2, written=100_000, written_1h=100_000), 1_950_051_000),
    # below it: 10 x 3,000 + 199,990 x 300 + 10 x 15,000 = 30,000 + 59,997,000 + 150,000
    ("sonnet", anthropic_usage(10, 10, read=199_990), 60_177_000),
]


@pytest.mark.parametrize(("name", "usage", "expected"), OPENAI_TABLE)
def test_a_whole_answer_of_openai(gateway: Served, upstream: Upstream, name: str, usage: Any, expected: int) -> None:
    upstream.on("/", http(completion(usage=usage)))
    assert cost(gateway, name) == expected


@pytest.mark.parametrize(("name", "usage", "expected"), OPENAI_TABLE)
@pytest.mark.parametrize("options", [{}, {"stream_options": '{"include_usage":true}'}, {"stream_options": "{}"}])
def test_a_stream_of_openai(
    gateway: Served, upstream: Upstream, name: str, usage: Any, expected: int, options: dict[str, str]
) -> None:
    upstream.on("/", stream(stream_events(usage=usage)))
    raw = {"stream": "true", **options}
    answer = wire.one(gateway.port, wire.request(request_body(name, raw)))
    assert gateway.call(answer.headers["x-request-id"]).cost_nano_usd == expected


def request_body(name: str, fields: dict[str, str]) -> str:
    written = "".join(f',"{key}":{value}' for key, value in fields.items())
    return f'{{"model":"{name}"{written},"messages":[{{"role":"user","content":"hello"}}]}}'


@pytest.mark.parametrize(("name", "usage", "expected"), ANTHROPIC_TABLE)
def test_a_whole_answer_of_anthropic(gateway: Served, upstream: Upstream, name: str, usage: Any, expected: int) -> None:
    upstream.on("/", http(anthropic_message(usage=usage)))
    assert cost(gateway, name) == expected


@pytest.mark.parametrize(("name", "usage", "expected"), ANTHROPIC_TABLE)
def test_a_stream_of_anthropic(gateway: Served, upstream: Upstream, name: str, usage: Any, expected: int) -> None:
    """Input comes with the start, output with the end; the start's own count of output is replaced."""
    upstream.on("/", stream(anthropic_events(usage=usage, output_tokens=usage["output_tokens"])))
    assert cost(gateway, name, stream="true") == expected


# Without a report: 100 bytes of request are 25 tokens, a quarter of the answer's UTF-8 bytes its tokens.


def test_an_answer_without_usage_is_estimated(gateway: Served, upstream: Upstream) -> None:
    # 41 bytes are 11 tokens: 25 x 250 + 11 x 2,000 = 6,250 + 22,000
    upstream.on("/", http(completion("x" * 41, usage=...)))
    assert cost(gateway, "mini") == 28_250
    # umlauts have two bytes: 20 of them are 10 tokens: 6,250 + 20,000
    upstream.on("/", http(completion("ü" * 20, usage=None)))
    assert cost(gateway, "mini") == 26_250


def test_a_stream_without_usage_is_estimated(gateway: Served, upstream: Upstream) -> None:
    # three events of 1 byte are 3 tokens, though 1 by their bytes: 25 x 250 + 3 x 2,000
    upstream.on("/", stream(stream_events("a", "b", "c", usage=...)))
    assert cost(gateway, "mini", stream="true") == 12_250
    # two events of 20 bytes are 10 tokens: 6,250 + 20,000
    upstream.on("/", stream(stream_events("a" * 20, "b" * 20, usage=...)))
    assert cost(gateway, "mini", stream="true") == 26_250


def test_a_tool_call_without_usage_is_estimated_by_its_arguments(gateway: Served, upstream: Upstream) -> None:
    # name 4 + arguments 16 = 20 bytes, 5 tokens: 6,250 + 10,000
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": '{"city":"Paris"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
    upstream.on("/", http(completion(usage=..., choices=choices)))
    assert cost(gateway, "mini") == 16_250


# Failures.


def cut(events: list[bytes]) -> Any:
    def script(_asked: Asked, to: Wire) -> None:
        to.send(STREAM_HEAD, *(chunk(one) for one in events))
        to.close()

    return script


def test_a_cut_stream_costs_what_was_delivered(gateway: Served, upstream: Upstream) -> None:
    # role, "Hel", "lo.": two events and 6 bytes, so 2 tokens: 25 x 250 + 2 x 2,000
    upstream.on("/", cut(stream_events()[:3]))
    assert cost(gateway, "mini", stream="true") == 10_250


def test_a_cut_stream_of_anthropic_costs_its_reported_input_and_what_was_delivered(
    gateway: Served, upstream: Upstream
) -> None:
    # start reports 25 of input; "Hel", "lo." are 2 tokens: 25 x 5,000 + 2 x 25,000
    upstream.on("/", cut(anthropic_events(usage=anthropic_usage(25, 0))[:5]))
    assert cost(gateway, "opus", stream="true") == 175_000


def test_a_refusal_costs_nothing(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/", http(b'{"error":{"message":"no"}}', status="500 Internal Server Error"))
    assert cost(gateway, "mini") == 0


def test_retries_and_fallbacks_cost_what_was_billed(gateway: Served, upstream: Upstream) -> None:
    numbers = iter(range(10))

    def second_time(_asked: Asked, to: Wire) -> None:
        first = next(numbers) == 0
        to.send(http(b"{}", status="503 Service Unavailable") if first else http(completion(usage=openai_usage(4, 5))))

    # 4 x 250 + 5 x 2,000, once
    upstream.on("/openai", second_time)
    assert cost(gateway, "retries") == 11_000
    # the first fails for nothing, the second: 25 x 5,000 + 15 x 25,000
    upstream.on("/openai", http(b"{}", status="503 Service Unavailable"))
    upstream.on("/anthropic", http(anthropic_message(usage=anthropic_usage(25, 15))))
    assert cost(gateway, "falls-back") == 500_000


def test_an_escalation_costs_both_answers(gateway: Served, upstream: Upstream) -> None:
    # 11,000 for the answer that was too short, 500,000 for the one that was taken
    upstream.on("/openai", http(completion(usage=openai_usage(4, 5))))
    upstream.on("/anthropic", http(anthropic_message(usage=anthropic_usage(25, 15))))
    assert cost(gateway, "escalates") == 511_000


def test_an_unusable_answer_that_was_billed_is_not_free(gateway: Served, upstream: Upstream) -> None:
    # 4 x 250 + 5 x 2,000: there is no choice in it, but usage
    upstream.on("/openai", http(completion(usage=openai_usage(4, 5), choices=[])))
    assert cost(gateway, "mini") == 11_000


def test_an_unusable_answer_of_anthropic_that_was_billed_is_not_free(gateway: Served, upstream: Upstream) -> None:
    # 25 x 5,000 + 15 x 25,000: there is no content in it, but usage, in Anthropic's words
    upstream.on("/anthropic", http(anthropic_message(usage=anthropic_usage(25, 15), content=None)))
    assert cost(gateway, "opus") == 500_000


def test_a_model_without_a_price_is_refused_with_what_to_write(gateway: Served, upstream: Upstream) -> None:
    upstream.forget()
    answer = wire.one(gateway.port, request("unpriced"))
    assert answer.status == 500
    assert answer.error["code"] == "unknown_price"
    for words in ('[models."house/unheard-of"]', "usd_per_million_input", "usd_per_million_output", "price_as"):
        assert words in answer.error["message"]
    assert upstream.asked == []


def test_the_choices_that_a_variant_asks_for_count_in_its_worst_case(gateway: Served, upstream: Upstream) -> None:
    # 1,000 x 150 + 1,000,000 and the input are below 1,700,000; 5 x 1,000 x 150 + 1,000,000 alone are above
    upstream.forget()
    upstream.on("/house", http(completion(usage=openai_usage(1, 5_000))))
    answer = wire.one(gateway.port, request("bounded"))
    assert answer.status == 400
    assert answer.error["code"] == "budget_per_call_exceeded"
    assert upstream.asked == []


def test_the_ledgers_total_is_the_sum_of_its_calls(gateway: Served, upstream: Upstream) -> None:
    from drivetrain.lake.costs import LedgerQueries
    from support.lakes import lake_at

    upstream.on("/openai", http(completion(usage=openai_usage(4, 5))))
    answers = [wire.one(gateway.port, request("mini")) for _ in range(7)]
    for answer in answers:
        gateway.call(answer.headers["x-request-id"])
    total = sum(call.cost_nano_usd for call in gateway.calls())
    assert total > 77_000
    queries = LedgerQueries(lake_at(gateway.data_folder))
    table = queries.cost(["workflow"])
    assert table.total.cost_nano_usd == total
    assert sum(row.cost_nano_usd for row in table.rows) == total
