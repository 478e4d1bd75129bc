"""`kill -9` at any moment: what a client saw answered is in the ledger, once, at its cost.

DRIVETRAIN_SEED=n repeats the moments.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from promise_gateway import Gateway, chat_project, eventually, gateway, simulated
from promise_load import Load, Told

from drivetrain.adapters.files import FileVault
from drivetrain.lake.costs import LedgerQueries
from drivetrain.ledger.reader import LedgerReader
from drivetrain.simulator import SimulatorProcess
from support.lakes import lake_at

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("DRIVETRAIN_SEED") or random.SystemRandom().randrange(2**32))
LIVE_S = (0.05, 0.8)
"""How long a gateway lives under load before it is killed."""
WHOLE_MIN = 8
"""Answers that are exceeded by a life that ends by cutting a call."""
RESTARTS_MAX = 4
"""Workers that one supervisor loses here; it gives up beyond five in ten seconds."""


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    slow = simulated(first_token_ms=4, latency_ms={"median": 10, "p99": 40}, output_tokens={"min": 4, "max": 12})
    config = {"seed": 1, "server": {"record_requests": 20_000}, "models": {"m": slow}}
    with SimulatorProcess(config) as running:
        yield running


class Lives:
    """One folder, many lives of its gateway, and everything that was seen of them."""

    def __init__(self, served: Gateway, simulator: SimulatorProcess, dice: random.Random) -> None:
        self.served = served
        self.simulator = simulator
        self.dice = dice
        self.told: list[Told] = []
        self.invoiced: list[str] = []
        """The texts that reached the provider."""
        self.kills = 0

    def live_and_die(self, *, workers_killed: int = 0, cuts: bool) -> None:
        """One life under load, which ends by force; before that, some of its workers alone. cuts: not before it has
        answered some calls and while one runs; else at any moment, which may be while it takes over from the last."""
        self.simulator.forget()
        self.served.start()
        with Load(self.served.port, f"{SEED}.{self.kills}") as load:
            for _ in range(workers_killed):
                time.sleep(self.dice.uniform(*LIVE_S))
                workers = eventually(lambda: self.served.worker_pids)
                os.kill(self.dice.choice(workers), signal.SIGKILL)
                self.kills += 1
            time.sleep(self.dice.uniform(*LIVE_S))
            if cuts:
                assert eventually(lambda: sum(one.whole for one in load.told) > WHOLE_MIN)
                self._await_a_running_call()
            self.served.kill()
            self.kills += 1
        self.told += load.told
        time.sleep(0.08)  # what was on its way to the provider has arrived
        shown = self.simulator.requests()
        assert len(shown["last_requests"]) == sum(one["requests"] for one in shown["models"].values())
        self.invoiced += [one["body"]["messages"][-1]["content"] for one in map(body_read, shown["last_requests"])]

    def _await_a_running_call(self) -> None:
        """Returns with the workers stopped while a call runs: one that a kill cuts."""

        def cuts_one() -> bool:
            workers = self.served.worker_pids
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
            if any(call.status == "running" for call in self.served.calls()):
                return True
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
            return False

        assert eventually(cuts_one), "no call runs under load"

    def check(self) -> Counter[str]:
        """The laws; how many calls ended how."""
        reader = LedgerReader(self.served.data_folder)
        calls = list(reader.calls())
        by_id = {call.call_id: call for call in calls}
        assert len(by_id) == len(calls), "a call appears twice"
        assert {one.kind for one in reader.problems} <= {"torn"}, reader.problems
        assert {call.status for call in calls} <= {"answered", "interrupted", "aborted"}
        vault = FileVault(self.served.root / ".drivetrain" / "keys")
        texts: dict[str, str] = {}
        for call in calls:
            request = vault.open(call.call_id, "request", call.request)
            assert request is not None, f"the request of {call.call_id} cannot be read"
            text = json.loads(request)["messages"][-1]["content"]
            assert text not in texts, "one request became two calls"
            texts[text] = call.call_id
        for one in self.told:
            known = texts.get(one.text)
            if one.whole:
                assert known == one.call_id, f"an answered call is not in the ledger: {one}"
                call = by_id[one.call_id]
                assert call.status == "answered", f"{one} is {call.status}"
                assert call.cost_nano_usd == one.cost_nano_usd > 0, f"{one} cost {call.cost_nano_usd}"
            elif known is not None:
                call = by_id[known]
                assert one.call_id in ("", known)
                assert call.status != "interrupted" or call.cost_nano_usd == 0
            else:
                assert not one.call_id, f"a call that was begun is not in the ledger: {one}"
                assert one.text not in self.invoiced, f"the provider knows a call that the ledger does not: {one}"
        unknown = set(self.invoiced) - set(texts)
        assert not unknown, f"the provider knows {len(unknown)} calls that the ledger does not"
        total = LedgerQueries(lake_at(self.served.data_folder)).cost(("workflow",)).total
        assert total.cost_nano_usd == sum(call.cost_nano_usd for call in calls)
        assert total.calls == len(calls)
        return Counter(call.status for call in calls)


def body_read(request: dict[str, object]) -> dict[str, dict[str, list[dict[str, str]]]]:
    body = request["body"]
    return {"body": json.loads(body) if isinstance(body, str) else body}  # type: ignore[dict-item]


def die_often(simulator: SimulatorProcess, *, workers: int, lives: int, workers_killed: int = 0) -> None:
    print(f"seed {SEED}")
    dice = random.Random(f"{SEED} {workers}")
    with gateway(chat_project(simulator.url), workers=workers, start=False) as served:
        all_lives = Lives(served, simulator, dice)
        cutting = {lives - 1, *dice.sample(range(lives - 1), (lives - 1) // 2)}
        for life in range(lives):
            all_lives.live_and_die(workers_killed=workers_killed, cuts=life in cutting)
        statuses = all_lives.check()
        print(f"{all_lives.kills} kills, {dict(statuses)}, {sum(one.whole for one in all_lives.told)} seen answered")
        answered_min = WHOLE_MIN * len(cutting)
        assert statuses["answered"] > answered_min
        assert statuses["interrupted"] > 0, "no call was ever cut: these kills prove nothing"
        assert sum(one.whole for one in all_lives.told) > answered_min


def test_killed_now_and_then(simulator: SimulatorProcess) -> None:
    die_often(simulator, workers=1, lives=3)


def test_killed_now_and_then_with_two_workers(simulator: SimulatorProcess) -> None:
    die_often(simulator, workers=2, lives=1, workers_killed=1)


@pytest.mark.timeout(240)
def test_killed_seventy_times(simulator: SimulatorProcess) -> None:
    die_often(simulator, workers=1, lives=70)


@pytest.mark.timeout(240)
def test_killed_with_two_workers_one_by_one_and_together(simulator: SimulatorProcess) -> None:
    die_often(simulator, workers=2, lives=14, workers_killed=RESTARTS_MAX)
