"""OpenAI's Python SDK, unchanged but for its base_url: everything an application does with it works here."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from drivetrain.simulator import SimulatorProcess
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.tries import PATIENCE_S, eventually

pytestmark = pytest.mark.slow

KEY = "client-key-abcdefghij"
LABELS = ["billing", "technical", "spam"]
PIXEL = base64.b64encode(
    bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010806000000")
    + bytes.fromhex("1f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082")
).decode()

TRIAGE = """\
from typing import Literal

import drivetrain as dt


class Ticket(dt.Record, frozen=True):
    text: str


class Route(dt.Record, frozen=True):
    intent: Literal["billing", "technical", "spam"]
    confidence: float | None = None


triage = dt.Workflow(
    "triage", input=Ticket, output=Route, owner="support@acme.example", team="support", use_case="tests",
    route=[
        dt.Rule("empty", when=lambda ticket: not ticket.text.strip(), then=Route(intent="spam")),
        dt.Variant("model", model="sim/labels", max_output_tokens=64),
    ],
)
"""

SIMULATED: dict[str, Any] = {
    "seed": 3,
    "server": {"record_requests": 20, "allow_overrides": True},
    "models": {
        "text": {"output_tokens": 12, "reasoning_tokens": 5},
        "echo": {"quality": {"kind": "echo"}},
        "labels": {
            "dialect": "openai",
            "quality": {"kind": "labels", "labels": LABELS, "confidence": True, "answer_field": "intent"},
        },
    },
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(SIMULATED) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(simulator: SimulatorProcess) -> Iterator[Served]:
    no_schema = 'capabilities = ["tools", "images", "streaming"]\nusd_per_million_input = "1"\n'
    tables = [
        provider("sim", f"{simulator.url}/v1"),
        provider("simclaude", simulator.url, dialect="anthropic"),
        *(model(f"{name}/{one}") for name in ("sim", "simclaude") for one in ("text", "echo")),
        model("sim/labels"),
        model("simclaude/text-by-tool", f'upstream_name = "text"\n{no_schema}usd_per_million_output = "2"\n'),
        '[teams.support]\n[keys.app]\nsecret = "env:CLIENT_KEY"\nteam = "support"\nmay_override = ["user", "tags"]\n',
        workflow("openai", "sim/text", more="attempts_max = 3\n"),
        workflow("anthropic", "simclaude/text", more="attempts_max = 3\n"),
        workflow("anthropic-by-tool", "simclaude/text-by-tool", more="attempts_max = 3\n"),
        workflow("echo", "sim/echo", more="attempts_max = 3\n"),
        workflow("echo-once", "sim/echo", more="attempts_max = 1\n"),
        workflow("anthropic-once", "simclaude/echo", more="attempts_max = 1\n"),
        workflow("two", "simclaude/echo", "sim/text"),
    ]
    files = {"drivetrain.toml": settings(tables="".join(tables)), "workflows/triage.py": TRIAGE}
    with served(files, {"CLIENT_KEY": KEY}) as running:
        yield running
        assert running.alive
        assert not running.faults, "\n".join(running.faults)


@pytest.fixture
def client(gateway: Served, simulator: SimulatorProcess) -> Iterator[openai.OpenAI]:
    simulator.forget()
    with openai.OpenAI(base_url=gateway.url, api_key=KEY, max_retries=0, timeout=PATIENCE_S) as made:
        yield made


def said(text: str = "hello") -> list[Any]:
    return [{"role": "user", "content": text}]


BOTH = pytest.mark.parametrize("name", ["openai", "anthropic"])
ALL = pytest.mark.parametrize("name", ["openai", "anthropic", "anthropic-by-tool"])


# Answers.


@BOTH
def test_a_chat(client: openai.OpenAI, gateway: Served, name: str) -> None:
    answer = client.chat.completions.create(model=name, messages=said())
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == 17


@BOTH
def test_a_chat_that_awaits(gateway: Served, name: str) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=gateway.url, api_key=KEY, max_retries=0) as client:
            many = [client.chat.completions.create(model=name, messages=said(f"hello {n}")) for n in range(10)]
            return [one.choices[0].message.content for one in await asyncio.gather(*many)]

    assert all(asyncio.run(ask()))


@BOTH
@pytest.mark.parametrize("usage", [None, False, True])
def test_a_stream(client: openai.OpenAI, name: str, usage: bool | None) -> None:
    more: dict[str, Any] = {} if usage is None else {"stream_options": {"include_usage": usage}}
    whole = client.chat.completions.create(model=name, messages=said())
    chunks = list(client.chat.completions.create(model=name, messages=said(), stream=True, **more))
    assert all(one.object == "chat.completion.chunk" for one in chunks)
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert len(text) == len(whole.choices[0].message.content or "")
    finishes = [one.choices[0].finish_reason for one in chunks if one.choices and one.choices[0].finish_reason]
    assert finishes == ["stop"]
    usages = [one.usage for one in chunks if one.usage is not None]
    assert [one.completion_tokens for one in usages] == ([17] if usage else [])
    if usage:
        assert chunks[-1].choices == []


@BOTH
def test_a_stream_that_awaits(gateway: Served, name: str) -> None:
    async def ask() -> tuple[str, int]:
        text, usages = "", 0
        async with openai.AsyncOpenAI(base_url=gateway.url, api_key=KEY, max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=name, messages=said(), stream=True, stream_options={"include_usage": True}
            )
            async for one in stream:
                usages += one.usage is not None
                text += (one.choices[0].delta.content or "") if one.choices else ""
        return text, usages

    text, usages = asyncio.run(ask())
    assert text
    assert usages == 1


@BOTH
def test_the_stream_helper(client: openai.OpenAI, name: str) -> None:
    with client.chat.completions.stream(model=name, messages=said()) as stream:
        kinds = {one.type for one in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content


@BOTH
def test_a_stream_that_is_left_early_is_recorded(client: openai.OpenAI, gateway: Served, name: str) -> None:
    slow = said("[[simulate output_tokens=200 tokens_per_s=100]]")
    with client.chat.completions.with_streaming_response.create(model=name, messages=slow, stream=True) as response:
        call_id = response.headers["x-request-id"]
        for _ in response.iter_lines():
            break
    call = gateway.call(call_id)
    assert call.status == "aborted"
    assert call.cost_nano_usd > 0


@BOTH
def test_a_limit_on_output_ends_an_answer_with_length(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.create(model=name, messages=said(), max_completion_tokens=7)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7


def test_requests_of_every_shape_reach_the_model_whole(client: openai.OpenAI, simulator: SimulatorProcess) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
        {"role": "user", "content": "grüße \U0001f600 \u2028 \\ \" \u0000"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        {"role": "user", "content": [{"type": "text", "text": "last"}]},
    ]  # fmt: skip
    client.chat.completions.create(
        model="echo", messages=messages, temperature=0.5, top_p=0.9, seed=7, stop=["x"], user="ann", metadata={"a": "b"}
    )
    (sent,) = [json.loads(one["body"]) for one in simulator.requests()["last_requests"]]
    assert sent["messages"] == messages
    assert (sent["temperature"], sent["top_p"], sent["seed"], sent["stop"]) == (0.5, 0.9, 7, ["x"])
    assert sent["model"] == "echo"


@BOTH
def test_an_image_as_a_data_url(client: openai.OpenAI, simulator: SimulatorProcess, name: str) -> None:
    url = f"data:image/png;base64,{PIXEL}"
    parts: list[Any] = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    messages: list[Any] = [{"role": "user", "content": parts}]
    assert client.chat.completions.create(model=name, messages=messages).choices[0].message.content
    (sent,) = [json.loads(one["body"]) for one in simulator.requests()["last_requests"]]
    image = sent["messages"][0]["content"][1]
    if name == "openai":
        assert image == parts[1]
    else:
        assert image == {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}


# Tools.

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@BOTH
def test_tools_there_and_back(client: openai.OpenAI, name: str) -> None:
    messages = said("what is the weather?")
    first = client.chat.completions.create(model=name, messages=messages, tools=[WEATHER])
    assert first.choices[0].finish_reason == "tool_calls"
    (call,) = first.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    messages += [
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "sun"}'},
    ]
    second = client.chat.completions.create(model=name, messages=messages, tools=[WEATHER])
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content
    assert not second.choices[0].message.tool_calls


@BOTH
@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}])
def test_streamed_tool_calls(client: openai.OpenAI, name: str, choice: Any) -> None:
    stream = client.chat.completions.create(
        model=name, messages=said(), tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, stream=True
    )
    names, arguments, finishes = [], "", []
    for one in stream:
        for choice_ in one.choices:
            finishes += [choice_.finish_reason] if choice_.finish_reason else []
            for call in choice_.delta.tool_calls or []:
                assert call.index == 0
                assert call.function is not None
                names += [call.function.name] if call.function.name else []
                arguments += call.function.arguments or ""
    assert names == ["get_weather"]
    assert finishes == ["tool_calls"]
    assert set(json.loads(arguments)) == {"city", "days"}


# Structured output.


class Person(BaseModel):
    name: str
    age: int
    tags: list[str]


@ALL
def test_a_parsed_answer(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.parse(model=name, messages=said("a person"), response_format=Person)
    person = answer.choices[0].message.parsed
    assert isinstance(person, Person)
    assert answer.choices[0].finish_reason == "stop"
    assert not answer.choices[0].message.tool_calls


@ALL
def test_a_parsed_stream(client: openai.OpenAI, name: str) -> None:
    with client.chat.completions.stream(model=name, messages=said("a person"), response_format=Person) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Person)
    assert final.choices[0].finish_reason == "stop"


@ALL
def test_a_json_schema(client: openai.OpenAI, name: str) -> None:
    schema = {"name": "person", "schema": Person.model_json_schema()}
    answer = client.chat.completions.create(
        model=name, messages=said(), response_format={"type": "json_schema", "json_schema": schema}
    )
    Person.model_validate_json(answer.choices[0].message.content or "")


def test_a_typed_workflow_answers_a_chat_with_its_output_as_json(client: openai.OpenAI, gateway: Served) -> None:
    raw = client.chat.completions.with_raw_response.create(model="triage", messages=said("My invoice is wrong"))
    content = json.loads(raw.parse().choices[0].message.content or "")
    assert content["intent"] in LABELS
    assert isinstance(content["confidence"], float)
    assert raw.headers["x-drivetrain-variant"] == "model"
    ruled = client.chat.completions.with_raw_response.create(model="triage", messages=said("  "))
    assert json.loads(ruled.parse().choices[0].message.content or "")["intent"] == "spam"
    assert ruled.headers["x-drivetrain-variant"] == "empty"
    assert ruled.headers["x-drivetrain-cost-nano-usd"] == "0"


def test_a_typed_workflow_streams_its_checked_answer(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(model="triage", messages=said("My invoice is wrong"), stream=True)
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert json.loads(text)["intent"] in LABELS


# What is served, and headers.


def test_models(client: openai.OpenAI) -> None:
    listed = [one.id for one in client.models.list()]
    assert {"openai", "anthropic", "triage"} <= set(listed)
    one = client.models.retrieve("triage")
    assert (one.id, one.object, one.owned_by) == ("triage", "model", "support@acme.example")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_raw_headers(client: openai.OpenAI, gateway: Served) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="openai", messages=said(), extra_headers={"x-drivetrain-user": "ann", "x-drivetrain-tags": "a=1"}
    )
    assert int(raw.headers["openai-processing-ms"]) >= 0
    call = gateway.call(raw.headers["x-request-id"])
    assert raw.parse()._request_id == call.call_id
    assert str(call.cost_nano_usd) == raw.headers["x-drivetrain-cost-nano-usd"]
    assert (call.attribution.user, call.attribution.tags, call.attribution.team) == ("ann", ("a=1",), "support")


# Errors.


def raised(kind: type[openai.APIStatusError], ask: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as found:
        ask()
    assert type(found.value) is kind, found.value
    assert found.value.message
    return found.value


def test_a_wrong_key(gateway: Served) -> None:
    wrong = openai.OpenAI(base_url=gateway.url, api_key="wrong", max_retries=0)
    error = raised(openai.AuthenticationError, lambda: wrong.chat.completions.create(model="openai", messages=said()))
    assert error.code == "invalid_api_key"
    raised(openai.AuthenticationError, wrong.models.list)


def test_an_unknown_workflow(client: openai.OpenAI) -> None:
    error = raised(openai.NotFoundError, lambda: client.chat.completions.create(model="openaii", messages=said()))
    assert error.code == "model_not_found"
    assert error.param == "model"
    assert "Did you mean `openai`?" in error.message


def test_a_bad_request(client: openai.OpenAI) -> None:
    error = raised(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model="openai", messages=said(), max_tokens=0),
    )
    assert error.param == "max_tokens"
    assert error.type == "invalid_request_error"
    raised(openai.BadRequestError, lambda: client.chat.completions.create(model="openai", messages=[]))
    raised(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model="triage", messages=said(), temperature=0.1),
    )


def test_what_a_dialect_cannot_say_is_a_bad_request(client: openai.OpenAI) -> None:
    error = raised(
        openai.BadRequestError, lambda: client.chat.completions.create(model="anthropic", messages=said(), n=2)
    )
    assert error.param == "n"


def test_a_key_that_may_not_set_a_team(client: openai.OpenAI) -> None:
    raised(
        openai.PermissionDeniedError,
        lambda: client.chat.completions.create(
            model="openai", messages=said(), extra_headers={"x-drivetrain-team": "support"}
        ),
    )


@pytest.mark.parametrize("name", ["echo-once", "anthropic-once"])
def test_a_rate_limit(client: openai.OpenAI, name: str) -> None:
    limited = said("[[simulate failure=status:429]] hello")
    error = raised(openai.RateLimitError, lambda: client.chat.completions.create(model=name, messages=limited))
    assert error.response.headers["retry-after"] == "1"
    assert error.code == "rate_limit_exceeded"


@pytest.mark.parametrize("status", [500, 503, 529])
@pytest.mark.parametrize("name", ["echo-once", "anthropic-once"])
def test_a_providers_failure(client: openai.OpenAI, name: str, status: int) -> None:
    failing = said(f"[[simulate failure=status:{status}]] hello")
    error = raised(openai.InternalServerError, lambda: client.chat.completions.create(model=name, messages=failing))
    assert error.status_code == 502


@pytest.mark.parametrize("failure", ["malformed_body", "cut_at_byte:0", "cut_at_byte:300"])
def test_an_answer_that_is_none(client: openai.OpenAI, failure: str) -> None:
    failing = said(f"[[simulate failure={failure}]] hello")
    raised(openai.InternalServerError, lambda: client.chat.completions.create(model="echo-once", messages=failing))


@pytest.mark.parametrize("failure", ["error_mid_stream", "cut_at_byte:700", "malformed_body"])
@pytest.mark.parametrize("name", ["echo-once", "anthropic-once"])
def test_a_failure_in_mid_stream_raises(client: openai.OpenAI, gateway: Served, name: str, failure: str) -> None:
    text = " ".join(f"word{number}" for number in range(60))
    failing = said(f"[[simulate failure={failure}]] {text}")
    stream = client.chat.completions.create(model=name, messages=failing, stream=True)
    got = ""

    def read() -> None:
        nonlocal got
        for one in stream:
            got += (one.choices[0].delta.content or "") if one.choices else ""

    with pytest.raises(openai.APIError) as found:
        read()
    assert found.value.code == "stream_interrupted"
    assert found.value.message.startswith("the provider's stream broke")
    assert text.startswith(got)
    assert len(got) < len(text)


def test_an_awaited_failure_in_mid_stream_raises(gateway: Served) -> None:
    failing = said("[[simulate failure=error_mid_stream]] " + "word " * 60)

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=gateway.url, api_key=KEY, max_retries=0) as client:
            async for _ in await client.chat.completions.create(model="echo-once", messages=failing, stream=True):
                pass

    with pytest.raises(openai.APIError, match="stream broke"):
        asyncio.run(ask())


def test_a_client_timeout(client: openai.OpenAI, gateway: Served, simulator: SimulatorProcess) -> None:
    hasty = client.with_options(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        hasty.chat.completions.create(model="echo-once", messages=said("[[simulate latency_ms=900]] hello"))


def test_a_gateway_that_is_not_there() -> None:
    nowhere = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key=KEY, max_retries=0)
    with pytest.raises(openai.APIConnectionError):
        nowhere.chat.completions.create(model="openai", messages=said())


# Retries.


@BOTH
@pytest.mark.parametrize("status", [pytest.param(429, marks=pytest.mark.slow), 500])
def test_the_last_variant_is_tried_again(
    client: openai.OpenAI, gateway: Served, simulator: SimulatorProcess, name: str, status: int
) -> None:
    # A played 429 asks for a second's pause; it is kept.
    failing = said(f"[[simulate failure=status:{status} times=1]] hello")
    begun = time.monotonic()
    raw = client.chat.completions.with_raw_response.create(model=name, messages=failing)
    assert raw.parse().choices[0].message.content
    assert time.monotonic() - begun >= (1 if status == 429 else 0)
    call = gateway.call(raw.headers["x-request-id"])
    assert [(one.purpose, one.verdict, one.status) for one in call.attempts] == [
        ("answer", "failed", status),
        ("retry", "accepted", 200),
    ]


def test_attempts_are_bounded_and_never_multiply(client: openai.OpenAI, simulator: SimulatorProcess) -> None:
    failing = said("[[simulate failure=status:500]] hello")
    raised(openai.InternalServerError, lambda: client.chat.completions.create(model="echo", messages=failing))
    assert simulator.requests()["models"]["echo"]["requests"] == 3


def test_a_failing_variant_falls_back_before_anything_is_retried(
    client: openai.OpenAI, gateway: Served, simulator: SimulatorProcess
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="two", messages=said("[[simulate failure=status:529 model=echo]] hello")
    )
    call = gateway.call(raw.headers["x-request-id"])
    assert [(one.variant, one.purpose, one.verdict) for one in call.attempts] == [
        ("v0", "answer", "failed"),
        ("v1", "fallback", "accepted"),
    ]


def test_the_sdks_own_retries_wait_as_long_as_they_are_told(client: openai.OpenAI, gateway: Served) -> None:
    patient = client.with_options(max_retries=2)
    limited = said("[[simulate failure=status:429 times=1]] hello")
    begun = time.monotonic()
    raw = patient.chat.completions.with_raw_response.create(model="echo-once", messages=limited)
    assert raw.parse().choices[0].message.content == "hello"
    assert raw.retries_taken == 1
    assert time.monotonic() - begun >= 1


def test_the_sdks_own_retries_see_a_502(client: openai.OpenAI) -> None:
    patient = client.with_options(max_retries=1)
    failing = said("[[simulate failure=status:500 times=1]] hello again")
    raw = patient.chat.completions.with_raw_response.create(model="echo-once", messages=failing)
    assert raw.retries_taken == 1


def test_the_sdk_keeps_one_connection(client: openai.OpenAI, gateway: Served) -> None:
    for _ in range(5):
        list(client.chat.completions.create(model="openai", messages=said(), stream=True))
        client.chat.completions.create(model="openai", messages=said())

    def metrics() -> str:
        return client._client.get(gateway.url.replace("/v1", "/metrics")).text

    # Those of the clients before may not have been seen to end yet.
    assert eventually(lambda: "drivetrain_connections 1\n" in metrics()), metrics()
