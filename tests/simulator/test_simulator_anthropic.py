"""The Anthropic door over raw HTTP."""

import json
from collections.abc import Iterator

import pytest
from simulator_wire import ANTHROPIC, message, send

from drivetrain.simulator import SimulatorProcess

CONFIG = {
    "server": {"allow_overrides": True},
    "models": {
        "plain": {},
        "cached": {"cached_input_share": 0.5, "reasoning_tokens": 5, "stream_events": 7},
        "sized": {"answer_bytes": 1200},
        "other-door": {"dialect": "openai"},
    },
}
TOOL = {
    "name": "look_up",
    "input_schema": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]},
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(CONFIG) as running:
        yield running


def test_an_answer_has_anthropics_shape_and_counts(simulator: SimulatorProcess) -> None:
    answer = send(simulator, ANTHROPIC, message("cached", "x" * 60, system="y" * 4))
    assert answer.headers["request-id"].startswith("req_")
    assert answer.json["type"] == "message"
    assert answer.json["stop_reason"] == "end_turn"
    assert answer.json["content"][0]["type"] == "text"
    usage = answer.json["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == (1 + 4) + (15 + 4)
    assert usage["cache_read_input_tokens"] == 12
    assert usage["output_tokens"] == 45


def test_a_stream_has_anthropics_events_in_order(simulator: SimulatorProcess) -> None:
    whole = send(simulator, ANTHROPIC, message("cached")).json
    events = send(simulator, ANTHROPIC, message("cached", stream=True)).events
    kinds = [event["type"] for event in events]
    assert kinds == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * 7,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert "".join(event["delta"]["text"] for event in events[3:10]) == whole["content"][0]["text"]
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    assert events[0]["message"]["usage"]["input_tokens"] == whole["usage"]["input_tokens"]


def test_a_tool_is_used_whole_and_streamed(simulator: SimulatorProcess) -> None:
    whole = send(simulator, ANTHROPIC, message("plain", tools=[TOOL], tool_choice={"type": "any"})).json
    assert whole["stop_reason"] == "tool_use"
    assert whole["content"][0]["name"] == "look_up"
    assert isinstance(whole["content"][0]["input"]["id"], int)
    events = send(simulator, ANTHROPIC, message("plain", tools=[TOOL], stream=True)).events
    parts = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert json.loads("".join(parts)) == whole["content"][0]["input"]


def test_a_tools_result_is_answered_in_text(simulator: SimulatorProcess) -> None:
    body = message("plain", tools=[TOOL])
    body["messages"].append(
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look_up", "input": {}}]}
    )
    body["messages"].append(
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "42"}]}
    )
    assert send(simulator, ANTHROPIC, body).json["stop_reason"] == "end_turn"


def test_structured_output_fits_its_schema(simulator: SimulatorProcess) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wanted = {"format": {"type": "json_schema", "schema": schema}}
    answer = send(simulator, ANTHROPIC, message("plain", output_config=wanted)).json
    assert json.loads(answer["content"][0]["text"]) == {"ok": True}


def test_max_tokens_ends_the_answer(simulator: SimulatorProcess) -> None:
    answer = send(simulator, ANTHROPIC, message("plain", max_tokens=3)).json
    assert answer["stop_reason"] == "max_tokens"
    assert answer["usage"]["output_tokens"] == 3


def test_answer_bytes_sizes_the_body(simulator: SimulatorProcess) -> None:
    assert abs(len(send(simulator, ANTHROPIC, message("sized")).body) - 1200) <= 20


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (529, "overloaded_error"),
    ],
)
def test_every_status_has_anthropics_error_shape(simulator: SimulatorProcess, status: int, kind: str) -> None:
    answer = send(simulator, ANTHROPIC, message("plain"), {"x-simulate": f"failure=status:{status}"})
    assert answer.status == status
    assert answer.json["type"] == "error"
    assert answer.json["error"]["type"] == kind
    assert ("retry-after" in answer.headers) == (status in (429, 529))


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"model": "plain", "messages": [{"role": "user", "content": "hi"}]}, 400, "max_tokens"),
        (message("no-such"), 404, "no-such"),
        (message("other-door"), 404, "other-door"),
        ({"model": "plain", "max_tokens": 9, "messages": [{"role": "system", "content": "hi"}]}, 400, "system"),
    ],
)
def test_mistakes_are_named(simulator: SimulatorProcess, body: dict[str, object], status: int, word: str) -> None:
    answer = send(simulator, ANTHROPIC, body)
    assert answer.status == status
    assert word in answer.json["error"]["message"]


def test_the_version_header_is_required(simulator: SimulatorProcess) -> None:
    answer = send(simulator, "/v1/models", None)
    assert answer.json["data"][0]["type"] == "model"
    from simulator_wire import raw, raw_request

    got, _ = raw(simulator, raw_request(ANTHROPIC, message("plain"), headers="connection: close\r\n"))
    assert got.startswith(b"HTTP/1.1 400")
    assert b"anthropic-version" in got
