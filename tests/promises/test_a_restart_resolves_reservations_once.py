"""Promise 3: what a killed worker had reserved is resolved exactly once, by whoever lives or comes after.

Sent with unknown end: settled at its reservation, and the Call says so. Never sent: released. The provider here takes
requests and never answers, so that a worker can be killed between reserve and settle.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from promise_gateway import Gateway, begun, eventually, gateway, gone, settled_answer

from drivetrain.core.calls import Call, OpenedV1, ReservedV1
from drivetrain.embedded.limiting import limits_folder
from drivetrain.ledger.frames import records, segments
from support import books, wire
from support.projects import model, provider, settings, workflow
from support.upstream import Asked, Upstream, Wire, completion, http

pytestmark = pytest.mark.slow

SCOPES = {"all": "project", "team": "team"}
MAX_TOKENS = 100


class Staller(Upstream):
    """Answers what says `answer`, and nothing else."""

    def __enter__(self) -> Staller:
        super().__enter__()
        self.on("/v1", self._script)
        return self

    def _script(self, asked: Asked, to: Wire) -> None:
        answer_or_stall(to, answers=b"answer" in asked.body)


def answer_or_stall(to: Wire, *, answers: bool) -> None:
    if answers:
        to.send(http(completion()))
    else:
        to.left(300)
        to.close()


@pytest.fixture
def upstream() -> Iterator[Staller]:
    with Staller() as running:
        yield running


def project(url: str) -> dict[str, str]:
    tables = (
        provider("up", f"{url}/v1") + model("up/m") + workflow("help", "up/m")
        + books.limit("all", "project", usd="1") + books.limit("team", "each team", usd="1")
    )  # fmt: skip
    return {"drivetrain.toml": settings(tables=tables)}


def request(text: str) -> bytes:
    return wire.request({"model": "help", "max_tokens": MAX_TOKENS, "messages": [{"role": "user", "content": text}]})


def stall(served: Gateway, upstream: Upstream, number: int) -> list[socket.socket]:
    """So many calls that the provider has and will not answer."""
    before = len(upstream.asked)
    connections = [wire.connect(served.port) for _ in range(number)]
    for connection in connections:
        served.patience.ask()
        connection.sendall(request("stall"))

    def all_asked() -> bool:
        # Only an answer that there was no time for the budget comes; that call is made again.
        for connection in select.select(connections, [], [], 0)[0]:
            assert served.patience.must_come_again(wire.hear(connection).answers[0])
            connection.sendall(request("stall"))
        return len(upstream.asked) == before + number

    assert eventually(all_asked)
    return connections


def close(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.close()


def interrupted(served: Gateway) -> list[Call]:
    return [call for call in served.calls() if call.status == "interrupted"]


def totals(served: Gateway) -> dict[str, int]:
    return books.settled(served.data_folder, *SCOPES)


def agree(served: Gateway) -> bool:
    return totals(served) == books.spent(served.calls(), **SCOPES)


def shown(served: Gateway, call_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(served.command("calls", "show", call_id, "--json"))
    return found


def check_resolved(served: Gateway, number: int) -> int:
    """So many calls are shown as cut and charged at their reservations, in ledger and counters alike; their sum."""
    assert eventually(lambda: len(interrupted(served)) == number and agree(served)), (
        [(one.status, one.cost_nano_usd) for one in served.calls()],
        totals(served),
        served.stderr,
    )
    cut = interrupted(served)
    worst = {call.cost_nano_usd for call in cut}
    assert len(worst) == 1
    assert worst.pop() > MAX_TOKENS * 2_000  # all of its output, and more than its input
    told = shown(served, cut[0].call_id)
    assert (told["status"], told["cost_nano_usd"]) == ("interrupted", cut[0].cost_nano_usd)
    return sum(call.cost_nano_usd for call in cut)


def test_others_that_live_settle_what_a_killed_worker_had_sent(upstream: Staller) -> None:
    with gateway(project(upstream.url), workers=3) as served:
        assert settled_answer(served, request("answer")).status == 200
        connections = stall(served, upstream, 12)
        pids = served.worker_pids
        for pid in pids[:2]:
            os.kill(pid, signal.SIGKILL)
            assert gone(pid)
        assert eventually(lambda: len(served.worker_pids) == 3)
        # The kernel spreads connections as it likes.
        assert eventually(lambda: len(interrupted(served))), "the killed workers had no call"
        check_resolved(served, len(interrupted(served)))
        served.kill()  # the calls of the third would be awaited
        close(connections)


def test_one_worker_alone_is_resolved_by_the_one_that_replaces_it(upstream: Staller) -> None:
    with gateway(project(upstream.url)) as served:
        connections = stall(served, upstream, 3)
        os.kill(served.worker_pids[0], signal.SIGKILL)
        check_resolved(served, 3)
        assert "3 calls were cut" in served.stderr
        assert settled_answer(served, request("answer")).status == 200
        close(connections)


def test_nobody_lives_and_every_later_start_resolves_no_more(upstream: Staller) -> None:
    with gateway(project(upstream.url), workers=4) as served:
        connections = stall(served, upstream, 5)
        served.kill()
        close(connections)
        charged = 0
        for restart in range(3):
            served.start()
            charged = charged or check_resolved(served, 5)
            time.sleep(0.7)  # longer than a worker takes to report and to look for the dead
            assert totals(served)["all/"] == charged, f"resolved once more at restart {restart}"
            assert agree(served)
            served.kill()
        served.start()
        assert settled_answer(served, request("answer")).status == 200
        assert eventually(lambda: agree(served) and totals(served)["all/"] > charged)
        assert served.stop() == 0
        assert not any(state.held for state in books.accounts(served.data_folder, *SCOPES).values())
        assert served.stderr.count("calls were cut") == 1 or _cut_calls(served) == 5


def _cut_calls(served: Gateway) -> int:
    """The calls that were announced as cut, over all lives of the gateway: of one worker, or of several."""
    lines = [line for line in served.stderr.splitlines() if "calls were cut" in line]
    return sum(int(line.partition("without a word: ")[2].split()[0]) for line in lines)


def test_what_no_frame_tells_of_was_never_sent_and_is_released(upstream: Staller) -> None:
    """A worker killed between reserving and writing: its ledger ends before the reservation."""
    with gateway(project(upstream.url)) as served:
        connections = stall(served, upstream, 2)
        assert eventually(lambda: all(s.held for s in books.accounts(served.data_folder, *SCOPES).values()))
        served.kill()
        close(connections)
        cut_before_reservations(served.data_folder)
        served.start()
        assert eventually(lambda: worker_names(served) == 1)
        assert totals(served) == {}
        assert served.stop() == 0
        assert not any(state.held for state in books.accounts(served.data_folder, *SCOPES).values())


def cut_before_reservations(data_folder: Path) -> None:
    """Ends the ledger before its first reservation, as if the worker had been killed there."""
    places = [
        (segment.path, offset)
        for segment in segments(data_folder)
        for offset, _, record in records(segment, [])
        if isinstance(record, ReservedV1) or (isinstance(record, OpenedV1) and record.reservation is not None)
    ]
    os.truncate(*places[0])


def test_a_further_attempt_is_settled_beside_what_earlier_ones_cost(upstream: Staller) -> None:
    """The first attempt was answered, and billed, but its answer failed its checks; the second one is cut."""
    files = project(upstream.url)
    checked = '{ name = "checked", model = "up/m", accept = { matches = "never said" } }'
    files["drivetrain.toml"] += workflow(
        "twice", checked, '{ name = "last", model = "up/m", system = "prompts/last.j2" }'
    )
    files["prompts/last.j2"] = "Now you stall."
    upstream.on("/v1", lambda asked, to: answer_or_stall(to, answers=b"stall" not in asked.body))
    with gateway(files) as served, wire.connect(served.port) as waiting:
        waiting.sendall(request("hello"))
        assert wire.hear(waiting).answers[0].status == 200
        body = {"model": "twice", "max_tokens": MAX_TOKENS, "messages": [{"role": "user", "content": "hello"}]}
        waiting.sendall(wire.request(body))
        assert eventually(lambda: len(upstream.asked) == 3)
        first_cost = served.calls()[0].cost_nano_usd
        os.kill(served.worker_pids[0], signal.SIGKILL)
        assert eventually(lambda: len(interrupted(served)) == 1 and agree(served)), (
            [(one.status, one.cost_nano_usd) for one in served.calls()],
            totals(served),
            served.stderr,
        )
        assert interrupted(served)[0].cost_nano_usd > first_cost + MAX_TOKENS * 2_000


def worker_names(served: Gateway) -> int:
    """Workers that the counters know; the dead are among them until they are resolved."""
    return len(list((limits_folder(served.data_folder) / "workers").glob("*.lock")))


def test_a_call_killed_while_it_waits_for_its_budget_costs_nothing(upstream: Staller) -> None:
    """Whoever is first in the queue before the counters is frozen: no slice comes, and nothing is sent."""
    with gateway(project(upstream.url)) as served:
        queue = os.open(limits_folder(served.data_folder) / "queue.lock", os.O_RDWR)
        with wire.connect(served.port) as waiting:
            fcntl.flock(queue, fcntl.LOCK_EX)
            waiting.sendall(request("stall"))
            time.sleep(0.02)
            os.kill(served.worker_pids[0], signal.SIGKILL)
            os.close(queue)
        assert eventually(lambda: "starting another" in served.stderr)
        assert eventually(lambda: worker_names(served) == 1)
        told = begun(served.calls(), 1)  # it may have been refused before the kill
        assert (upstream.asked, told, totals(served)) == ([], [], {})
        assert settled_answer(served, request("answer")).status == 200


def test_a_storm_of_kills_never_charges_a_call_twice(upstream: Staller) -> None:
    """Workers die at any moment, again and again; whatever the ledger says in the end, the counters say too."""
    with gateway(project(upstream.url), workers=3) as served:
        over = threading.Event()
        clients = [threading.Thread(target=_call_on, args=(served, over), daemon=True) for _ in range(6)]
        for client in clients:
            client.start()
        for _ in range(12):
            time.sleep(0.25)
            assert eventually(lambda: served.worker_pids)
            for pid in served.worker_pids[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        over.set()
        for client in clients:
            client.join(60)
        assert eventually(lambda: agree(served)), (totals(served), books.spent(served.calls(), **SCOPES))
        assert len(served.calls()) > 50
        assert served.stop() == 0
        assert not any(state.held for state in books.accounts(served.data_folder, *SCOPES).values())


def _call_on(served: Gateway, over: threading.Event) -> None:
    while not over.is_set():
        try:
            wire.one(served.port, request("answer"))
        except (OSError, AssertionError):
            time.sleep(0.02)
