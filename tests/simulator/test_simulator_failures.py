"""Every failure, on the wire."""

import concurrent.futures
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from simulator_wire import ANTHROPIC, OPENAI, chat, message, raw, raw_request, send

from drivetrain.simulator import SimulatorProcess
from drivetrain.simulator.failures import FAILURE_KINDS
from support.tries import within

pytestmark = pytest.mark.slow

CHAOS: dict[str, Any] = {
    "seed": 3,
    "models": {
        "chaos": {
            "output_tokens": {"min": 5, "max": 50},
            "failures": {"status": {"429": 0.1, "500": 0.1}, "malformed_body": 0.1, "no_usage": 0.1, "empty": 0.1},
        },
    },
}
CONFIG: dict[str, Any] = {
    "server": {"allow_overrides": True, "record_requests": 2},
    "models": {
        "plain": {"answer": '{"intent": "a", "sure": true}', "stream_events": 6},
        "resets": {"failures": {"cut_with": "rst"}},
        "small": {"failures": {"oversized_bytes": 100_000}},
        "slow": {
            "first_token_ms": 100,
            "latency_ms": {"median": 100, "p99": 100},
            "tokens_per_s": 400,
            "output_tokens": 40,
        },
    },
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(CONFIG) as running:
        yield running


def with_failure(failure: str, model: str = "plain", **more: Any) -> dict[str, Any]:
    return chat(model, f"hello [[simulate failure={failure}]]", **more)


def content(simulator: SimulatorProcess, failure: str) -> str:
    text: str = send(simulator, OPENAI, with_failure(failure)).json["choices"][0]["message"]["content"]
    return text


def test_the_text_is_spoiled_as_named(simulator: SimulatorProcess) -> None:
    assert content(simulator, "fenced") == '```json\n{"intent": "a", "sure": true}\n```'
    assert content(simulator, "trailing_comma") == '{"intent": "a", "sure": true,}'
    assert content(simulator, "truncated_json") == '{"intent": "a"'
    assert content(simulator, "empty") == ""
    with pytest.raises(json.JSONDecodeError):
        json.loads(content(simulator, "malformed"))


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize("stream", [False, True])
def test_the_body_is_spoiled_as_named(simulator: SimulatorProcess, path: str, stream: bool) -> None:
    def get(failure: str) -> bytes:
        body = message("plain", f"hello [[simulate failure={failure}]]", stream=stream)
        return send(simulator, path, body).body

    with pytest.raises(UnicodeDecodeError):
        get("bad_utf8").decode()
    broken = get("malformed_body").decode()
    bodies = [line[6:] for line in broken.split("\n") if line.startswith("data: {")] if stream else [broken]
    assert [is_json(body) for body in bodies].count(False) == 1
    assert b"_tokens" not in get("no_usage")
    assert len(get("oversized:50000")) > 50_000


def test_usage_is_misreported_as_named(simulator: SimulatorProcess) -> None:
    assert "usage" not in send(simulator, OPENAI, with_failure("no_usage")).json
    assert send(simulator, OPENAI, with_failure("negative_usage")).json["usage"]["prompt_tokens"] < 0
    assert send(simulator, OPENAI, with_failure("explicit_zero_usage")).json["usage"]["total_tokens"] == 0
    over = send(simulator, OPENAI, with_failure("overrun", max_tokens=20)).json
    assert over["usage"]["completion_tokens"] == 40


@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_ends_at_its_byte_head_included(simulator: SimulatorProcess, stream: bool) -> None:
    whole, _ = raw(simulator, raw_request(OPENAI, chat("plain", stream=stream), headers="connection: close\r\n"))
    for at in (0, 1, 20, 200, 300, len(whole) - 1):
        got, end = raw(simulator, raw_request(OPENAI, with_failure(f"cut_at_byte:{at}", stream=stream)))
        assert (len(got), end) == (at, "fin")
    got, end = raw(simulator, raw_request(OPENAI, with_failure("cut", stream=stream)))
    assert 0 <= len(got) < len(whole) + 100
    assert end == "fin"


def test_a_cut_may_be_a_reset(simulator: SimulatorProcess) -> None:
    got, end = raw(simulator, raw_request(OPENAI, with_failure("cut_at_byte:100", "resets")))
    assert (len(got), end) == (100, "rst")


def test_stalls_wait_and_then_go_on(simulator: SimulatorProcess) -> None:
    for failure, stream in (
        ("stall_before_first_byte", False),
        ("stall_mid_stream", True),
        ("stall_mid_stream", False),
    ):
        answer = send(simulator, OPENAI, with_failure(f"{failure}:0.2", stream=stream))
        assert answer.after_s >= 0.19
        assert answer.body.rstrip().endswith(b"[DONE]" if stream else b"}")


def test_an_error_in_mid_stream_is_an_event(simulator: SimulatorProcess) -> None:
    events = send(simulator, OPENAI, with_failure("error_mid_stream", stream=True)).events
    assert "error" in events[-1]
    assert len(events) == 1 + 3 + 1
    body = message("plain", "hello [[simulate failure=error_mid_stream]]", stream=True)
    assert send(simulator, ANTHROPIC, body).events[-1]["type"] == "error"
    assert send(simulator, OPENAI, with_failure("error_mid_stream")).status == 500


@pytest.mark.parametrize("stream", [False, True])
def test_an_endless_line_goes_on_until_the_reader_leaves(simulator: SimulatorProcess, stream: bool) -> None:
    got, end = raw(simulator, raw_request(OPENAI, with_failure("endless_line", stream=stream)), most=3_000_000)
    assert end == "open"
    assert len(got) >= 3_000_000
    assert b"\n" not in got[-10_000:].replace(b"\r\n", b"")
    assert send(simulator, "/livez", None).status == 200


def test_times_are_kept(simulator: SimulatorProcess) -> None:
    now = {"x-simulate": "latency_ms=0, first_token_ms=0 tokens_per_s=0"}
    within(0.6, lambda: send(simulator, OPENAI, chat("slow")), least_s=0.29)
    within(0.6, lambda: send(simulator, OPENAI, chat("slow", stream=True)), least_s=0.29)
    within(0.1, lambda: send(simulator, OPENAI, chat("slow"), now))


def test_an_override_can_be_for_one_model_and_for_the_first_times_only(simulator: SimulatorProcess) -> None:
    def statuses(model: str, text: str, count: int) -> list[int]:
        return [send(simulator, OPENAI, chat(model, text)).status for _ in range(count)]

    once = "try again [[simulate failure=status:503 times=2]]"
    assert statuses("plain", once, 4) == [503, 503, 200, 200]
    only = "fall back [[simulate model=plain failure=status:500]]"
    assert statuses("plain", only, 1) + statuses("small", only, 1) == [500, 200]


@pytest.mark.parametrize(
    "override", ["failure=stal_mid_stream", "failure=status:200", "latency=3", "latency_ms=x", "nonsense"]
)
def test_a_wrong_override_is_a_400_that_says_why(simulator: SimulatorProcess, override: str) -> None:
    answer = send(simulator, OPENAI, chat("plain"), {"x-simulate": override})
    assert answer.status == 400
    assert "override" in answer.json["error"]["message"]


def test_an_override_reaches_the_answer_as_if_it_were_not_there(simulator: SimulatorProcess) -> None:
    kept = send(simulator, OPENAI, with_failure("fenced"), {"authorization": "Bearer secret"})
    assert kept.status == 200
    recorded = simulator.requests()["last_requests"]
    assert len(recorded) == 2
    assert "[[simulate failure=fenced]]" in recorded[-1]["body"]
    assert recorded[-1]["headers"]["authorization"] == "(hidden)"


def outcome(simulator: SimulatorProcess, number: int) -> tuple[int, bytes]:
    answer = send(simulator, OPENAI, chat("chaos", f"question {number % 150}"))
    if answer.status != 200 or b"oops" in answer.body:
        return answer.status, answer.body[:35]
    choice = answer.json["choices"][0]["message"]["content"]
    return answer.status, f"{len(choice)} {'usage' in answer.json}".encode()


def test_failures_repeat_whatever_the_concurrency_and_keep_their_shares() -> None:
    with SimulatorProcess(CHAOS) as first, SimulatorProcess(CHAOS) as second:
        serial = [outcome(first, number) for number in range(300)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            parallel = list(pool.map(lambda number: outcome(second, number), range(300)))
        by_failure = first.requests()["models"]["chaos"]["by_failure"]
    for question in range(150):
        assert Counter([serial[question], serial[question + 150]]) == Counter(
            [parallel[question], parallel[question + 150]]
        )
    assert serial[:150] != serial[150:]
    assert 0.12 < by_failure["status"] / 300 < 0.28
    assert 0.05 < by_failure["empty"] / 300 < 0.16


def test_without_permission_overrides_are_plain_text() -> None:
    with SimulatorProcess({"models": {"plain": {}}}) as simulator:
        assert send(simulator, OPENAI, with_failure("status:500"), {"x-simulate": "failure=status:500"}).status == 200


def test_every_failure_is_described() -> None:
    assert all(what for what in FAILURE_KINDS.values())


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET /nowhere HTTP/1.1\r\nconnection: close\r\n\r\n", b"404"),
        (b"GET /v1/messages HTTP/1.1\r\nconnection: close\r\n\r\n", b"405"),
        (b"GET /livez HTTP/1.0\r\n\r\n", b"200"),
    ],
)
def test_what_is_no_proper_request_is_refused(simulator: SimulatorProcess, request_bytes: bytes, status: bytes) -> None:
    got, end = raw(simulator, request_bytes)
    assert got[9:12] == status
    assert end == "fin"


def test_pipelined_requests_are_answered_in_order(simulator: SimulatorProcess) -> None:
    slow = raw_request(OPENAI, chat("slow", "first"))
    quick = raw_request(OPENAI, chat("plain"), headers="connection: close\r\n")
    got, end = raw(simulator, slow + quick * 1)
    assert end == "fin"
    assert got.index(b'"model":"slow"') < got.index(b'"model":"plain"')
