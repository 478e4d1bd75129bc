"""Promises 8 and 9 where budgets are enforced: a reload changes them under running calls, and a shutdown settles them.

What holds without limits is in test_shutdown_and_reload.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from promise_gateway import Gateway, begun, chat_project, eventually, gateway, settled_answer, simulated
from promise_load import Load

from drivetrain.simulator import SimulatorProcess
from support import books, wire
from support.busy import LIMITS, Patience
from support.tries import in_one_try

pytestmark = pytest.mark.slow

SCOPES = {"all": "project", "team": "team"}


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    paced = simulated(first_token_ms=10, latency_ms=20, output_tokens=10)
    with SimulatorProcess({"seed": 1, "server": {"allow_overrides": True}, "models": {"m": paced}}) as running:
        yield running


def project(url: str, usd: str | None = "5", more: str = "") -> dict[str, str]:
    limits = "" if usd is None else books.limit("all", "project", usd=usd) + books.limit("team", "each team", usd="5")
    return chat_project(url, more=limits + more)


def answer(served: Gateway, tokens: int = 50) -> wire.Answered:
    body = {"model": "help", "max_tokens": tokens, "messages": [{"role": "user", "content": "hello"}]}
    return settled_answer(served, wire.request(body))


def reload(served: Gateway, files: dict[str, str], *, lives: int = 1) -> None:
    """The new project, in every worker."""
    before = served.stderr.count("serving snapshot")
    served.write(files)
    served.signal(signal.SIGHUP)
    assert eventually(lambda: served.stderr.count("serving snapshot") >= before + lives), served.stderr


def agree(served: Gateway) -> bool:
    return books.settled(served.data_folder, *SCOPES) == books.spent(served.calls(), **SCOPES)


def held(served: Gateway) -> dict[str, int]:
    return {name: one.held for name, one in books.accounts(served.data_folder, *SCOPES).items() if one.held}


def test_amounts_that_change_under_load_drop_no_call_and_lose_no_cost(simulator: SimulatorProcess) -> None:
    def story() -> None:
        with gateway(project(simulator.url), workers=2) as served:
            with Load(served.port, "reload", clients=6, patience=Patience(LIMITS)) as load:
                for usd in ("6", "4", "7.5"):
                    time.sleep(0.2)
                    reload(served, project(simulator.url, usd), lives=2)
                assert eventually(lambda: len(load.told) > 20)
            lost = [one for one in load.told if not one.whole]
            assert not lost, lost[:3]
            assert eventually(lambda: agree(served)), books.settled(served.data_folder, *SCOPES)
            assert served.stop() == 0
            assert not held(served)

    in_one_try(story)


def test_a_lower_amount_holds_at_once_and_a_higher_one_opens_again(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url)) as served:
        assert answer(served).status == 200
        spent = served.calls()[0].cost_nano_usd
        reload(served, project(simulator.url, f"{spent / 1e9:.9f}"))
        refused = answer(served)
        assert (refused.status, refused.json["error"]["code"]) == (429, "budget_exceeded")
        reload(served, project(simulator.url, "5"))
        assert answer(served).status == 200
        assert eventually(lambda: agree(served))


def test_a_project_with_a_wrong_budget_is_refused_and_the_old_one_enforced(simulator: SimulatorProcess) -> None:
    with gateway(project(simulator.url, "0.0001")) as served:
        assert answer(served).status == 429
        served.write(project(simulator.url, "five", more=books.limit("none", "each planet", usd="1")))
        served.signal(signal.SIGHUP)
        assert eventually(lambda: "the old one is served on" in served.stderr)
        assert "each planet" in served.stderr
        assert answer(served).status == 429, "a project that was refused is enforced"
        reload(served, project(simulator.url, "5"))
        assert answer(served).status == 200


def test_limits_come_and_go_with_a_reload_while_calls_run(simulator: SimulatorProcess) -> None:
    """A call is charged to what it was admitted under: none before, none after, and nothing is left held."""
    with gateway(project(simulator.url, None)) as served, wire.connect(served.port) as slow:
        text = "[[simulate latency_ms=700]]"
        slow.sendall(wire.request({"model": "help", "messages": [{"role": "user", "content": text}]}))
        assert eventually(served.calls)
        reload(served, project(simulator.url, "5"))
        limited = answer(served)
        assert limited.status == 200
        assert wire.hear(slow).answers[0].status == 200
        cost = served.call(limited.headers["x-request-id"]).cost_nano_usd
        assert eventually(lambda: books.settled(served.data_folder, "all") == {"all/": cost})
        reload(served, project(simulator.url, None))
        assert answer(served).status == 200
        assert books.settled(served.data_folder, "all") == {"all/": cost}
        assert served.stop() == 0
        assert not held(served)


@pytest.mark.parametrize("workers", [1, 3])
def test_sigterm_lets_streams_finish_and_settles_every_cost(simulator: SimulatorProcess, workers: int) -> None:
    def story() -> None:
        patience = Patience(LIMITS)
        with gateway(project(simulator.url), workers=workers) as served:
            with Load(served.port, "term", clients=6, patience=patience) as load:
                assert eventually(lambda: sum(one.whole for one in load.told) > 20)
                served.signal(signal.SIGTERM)
                assert served.wait() == 0
            calls = {call.call_id: call for call in begun(served.calls(), patience.refused)}
            assert {call.status for call in calls.values()} <= {"answered", "aborted"}
            whole = [one for one in load.told if one.whole]
            assert len(whole) > 5
            assert all(calls[one.call_id].cost_nano_usd == one.cost_nano_usd for one in whole)
            assert all(one.whole or not one.call_id for one in load.told), "an answer was cut"
            assert agree(served), (books.settled(served.data_folder, *SCOPES), books.spent(calls.values(), **SCOPES))
            assert not held(served)
            assert "Traceback" not in served.stderr

    in_one_try(story)
