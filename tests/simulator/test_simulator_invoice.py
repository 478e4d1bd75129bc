"""What the provider charges, against what it reported."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_wire import ANTHROPIC, OPENAI, chat, message, raw_request, send

from drivetrain.simulator import SimulatorProcess
from drivetrain.simulator.door import Usage
from drivetrain.simulator.invoice import nano_usd
from drivetrain.simulator.settings import Price
from support.tries import PATIENCE_S, Spoiled, eventually, in_one_try

CONFIG = {
    "server": {"allow_overrides": True},
    "models": {
        "priced": {
            "cached_input_share": 0.25,
            "reasoning_tokens": 10,
            "usd_per_million_input": "0.25",
            "usd_per_million_input_cached": "0.025",
            "usd_per_million_output": "2",
        },
        "slow": {"usd_per_million_output": "1", "output_tokens": 100, "stream_events": 10, "latency_ms": 2_000},
    },
}


@pytest.fixture(scope="module")
def running() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(CONFIG) as simulator:
        yield simulator


@pytest.fixture
def simulator(running: SimulatorProcess) -> SimulatorProcess:
    running.forget()
    return running


def test_the_invoice_is_the_sum_of_what_was_reported(simulator: SimulatorProcess) -> None:
    nano = 0
    for size in range(1, 40, 3):
        usage = send(simulator, OPENAI, chat("priced", "x" * size)).json["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        nano += (usage["prompt_tokens"] - cached) * 250 + cached * 25 + usage["completion_tokens"] * 2_000
        usage = send(simulator, ANTHROPIC, message("priced", "x" * size)).json["usage"]
        nano += usage["input_tokens"] * 250 + usage["cache_read_input_tokens"] * 25 + usage["output_tokens"] * 2_000
    invoice = simulator.requests()
    assert invoice["cost_nano_usd"] == invoice["models"]["priced"]["cost_nano_usd"] == nano
    assert invoice["models"]["priced"]["by_status"] == {"200": 26}
    assert invoice["models"]["priced"]["tokens_reasoning"] == 260


def test_a_stream_is_charged_like_a_whole_answer(simulator: SimulatorProcess) -> None:
    send(simulator, OPENAI, chat("priced"))
    whole = simulator.requests()["cost_nano_usd"]
    send(simulator, OPENAI, chat("priced", stream=True))
    send(simulator, ANTHROPIC, message("priced", stream=True))
    assert simulator.requests()["cost_nano_usd"] == 3 * whole > 0


@pytest.mark.parametrize(
    ("failure", "factor"),
    [
        ("no_usage", 1),
        ("negative_usage", 1),
        ("malformed_body", 1),
        ("explicit_zero_usage", 0),
        ("status:500", 0),
        ("cut_at_byte:0", 0),
    ],
)
def test_failures_charge_what_they_say(simulator: SimulatorProcess, failure: str, factor: int) -> None:
    send(simulator, OPENAI, chat("priced"))
    whole = simulator.requests()["cost_nano_usd"]
    if failure.startswith("cut"):
        with pytest.raises(ConnectionError):
            send(simulator, OPENAI, chat("priced"), {"x-simulate": f"failure={failure}"})
    else:
        send(simulator, OPENAI, chat("priced"), {"x-simulate": f"failure={failure}"})
    assert simulator.requests()["cost_nano_usd"] == whole * (1 + factor)


def test_a_stream_that_the_client_leaves_is_charged_for_what_was_sent(simulator: SimulatorProcess) -> None:
    def counters() -> dict[str, int]:
        found: dict[str, int] = simulator.requests()["models"]["slow"]
        return found

    def left() -> None:
        simulator.forget()
        with socket.create_connection(("127.0.0.1", simulator.port), timeout=PATIENCE_S) as connection:
            connection.sendall(raw_request(OPENAI, chat("slow", stream=True)))
            got = b""
            while got.count(b'"content":') < 4:
                got += connection.recv(65_536)
        assert eventually(lambda: counters()["tokens_output"] > 0)
        ended = counters()
        assert ended["cost_nano_usd"] == ended["tokens_output"] * 1_000
        assert ended["tokens_output"] in range(30, 101, 10)
        assert ended["interrupted"] == (ended["tokens_output"] < 100)
        if ended["tokens_output"] > 40:
            raise Spoiled("more was sent before the client left, which stood still")

    in_one_try(left)


def test_refusals_without_a_model_are_counted_apart(simulator: SimulatorProcess) -> None:
    send(simulator, OPENAI, chat("no-such"))
    send(simulator, OPENAI, b"{")
    assert simulator.requests()["refused"] == {"requests": 2, "by_status": {"400": 1, "404": 1}}


@given(
    st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**13), st.integers(0, 10**13)
)
def test_the_price_is_exact_and_rounded_up_once(fresh: int, cached: int, output: int, dear: int, cheap: int) -> None:
    price = Price(
        input_nano_usd_per_million=dear, input_cached_nano_usd_per_million=cheap, output_nano_usd_per_million=dear
    )
    usage = Usage(input=fresh + cached, input_cached=cached, output=output, reasoning=0)
    charged = nano_usd(usage, price)
    exact_millionths = (fresh + output) * dear + cached * cheap
    assert 0 <= charged * 1_000_000 - exact_millionths < 1_000_000
