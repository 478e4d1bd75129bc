"""Promise 2: settled + reserved <= budget, on the last dollar, whatever clients and providers do.

200 clients and four workers spend three nested budgets to their end: plain answers and streams, clients that leave,
providers that fail before, during and behind an answer, retries and fallbacks. Then the provider's own invoice, the
ledger and the counters are compared, and what is left is spent to the last call that fits.
"""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from promise_gateway import Gateway, eventually, gateway, simulated

from drivetrain.core.money import nano_usd
from drivetrain.simulator import SimulatorProcess
from support import books, wire
from support.projects import model, provider, settings, workflow

pytestmark = pytest.mark.slow

CLIENTS, WORKERS = 200, 4
TEAMS, USERS = ("red", "green", "blue"), tuple(f"user-{number}" for number in range(10))
CAPS = {"all": 30_000_000, "team": 13_000_000, "user": 5_000_000}
SCOPES = {"all": "project", "team": "team", "user": "user"}
INPUT_NANO, OUTPUT_NANO = 1_000, 2_000
ASKED_MAX, REFUSED_MAX = 40, 3
"""Requests of one client, and refusals after which it gives up."""
BUSY_S = 0.4
"""How long a client waits at most that is told to come back: the store of limits was too busy to say anything."""
REFUSED = re.compile(r"budget `(\w+)` of .*: this needs up to ([\d.]+) USD, and ([\d.]+) USD of ([\d.]+) USD is left")
TOO_MANY = 900_000
FAILURES = (
    "", "", "", "", "", "",
    "failure=status:503 model=m",  # falls back
    "failure=status:500 times=1",  # both fail, and the last one is tried again
    "failure=error_mid_stream", "failure=cut_at_byte:700 model=m", "failure=malformed_body model=m", "failure=no_usage",
)  # fmt: skip


def project(url: str) -> dict[str, str]:
    most = f"max_output_tokens = {TOO_MANY}"
    first, spare = (f'{{ name = "{name}", model = "sim/{name}", {most} }}' for name in ("m", "spare"))
    dear = 'usd_per_million_input = "3"\nusd_per_million_output = "6"\n'
    tables = (
        provider("sim", f"{url}/v1")
        + model("sim/m")
        + model("sim/spare", dear)
        + workflow("storm", first, spare)
        + workflow("exact", first)
        + books.limit("all", "project", usd="0.03")
        + books.limit("team", "each team", usd="0.013")
        + books.limit("user", "each user", usd="0.005")
    )
    return {"drivetrain.toml": settings(tables=tables)}


@dataclass
class Storm:
    """Clients that spend until they are refused for good."""

    port: int
    seed: int
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        threads = [threading.Thread(target=self._client, args=(n,), daemon=True) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
            assert not thread.is_alive(), "a client hangs"

    def _client(self, number: int) -> None:
        chance = random.Random(f"{self.seed}.{number}")
        who = (chance.choice(TEAMS), chance.choice(USERS))
        refused = 0
        for _ in range(ASKED_MAX):
            status = 0
            try:
                status = self._ask(chance, who)
            except OSError as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
            refused += status == 429
            if refused == REFUSED_MAX:
                return
            time.sleep(chance.random() * (BUSY_S if status == 503 else 0.05))

    def _ask(self, chance: random.Random, who: tuple[str, str]) -> int:
        """The status; 0 where the client left."""
        failure, tokens = chance.choice(FAILURES), chance.randint(1, 120)
        stream, leaves = chance.random() < 0.6, chance.random() < 0.2
        text = f"[[simulate {failure} first_token_ms={chance.randint(0, 20)} latency_ms={chance.randint(0, 60)}]]"
        body = {
            "model": "storm", "max_tokens": tokens, "stream": stream,
            "messages": [{"role": "user", "content": f"{text} {chance.random()}"}],
        }  # fmt: skip
        with wire.connect(self.port) as connection:
            connection.sendall(request(body, *who))
            if leaves:
                connection.settimeout(chance.random() * 0.1 + 0.001)
                with contextlib.suppress(TimeoutError):
                    connection.recv(chance.randint(1, 3_000))
                self.statuses["left"] += 1
                return 0
            heard = wire.hear(connection)
        if not heard.answers:
            self.wrong.append(f"no answer: {heard}")
            return 0
        self._note(heard.answers[0])
        return heard.answers[0].status

    def _note(self, answer: wire.Answered) -> None:
        if answer.status == 200:
            self.statuses["200"] += 1
            return
        code = answer.json["error"]["code"]
        self.statuses[f"{answer.status} {code}"] += 1
        if answer.status == 429:
            said = REFUSED.search(answer.json["error"]["message"])
            assert said is not None, answer
            if nano_usd(said[3]) >= nano_usd(said[2]):
                self.wrong.append(f"refused though it fits: {said[0]}")


def request(body: dict[str, object], team: str, user: str) -> bytes:
    headers = f"x-drivetrain-team: {team}\r\nx-drivetrain-user: {user}\r\n"
    return wire.request(body, headers=headers)


def test_the_last_dollar_is_spent_once_and_wholly(seed: int) -> None:
    with (
        SimulatorProcess(simulator_config(seed)) as simulator,
        gateway(project(simulator.url), workers=WORKERS) as served,
    ):
        storm = Storm(served.port, seed)
        storm.run()
        print(f"seed {seed}: {dict(storm.statuses)}")
        assert not storm.wrong, (len(storm.wrong), storm.wrong[:3])
        assert storm.statuses["200"] > 20
        assert storm.statuses["429 budget_exceeded"] > 20, "the money never ran out"
        assert eventually(lambda: books_agree(served)), (
            books.settled(served.data_folder, *SCOPES),
            spent(served),
        )
        spend_the_rest(served, random.Random(seed))
        assert served.stop() == 0
        check_the_end(served.data_folder, served, simulator)
        assert not re.search(r"Traceback|drivetrain: call_\w+: \w+ at ", served.stderr)


def simulator_config(seed: int) -> dict[str, object]:
    spare = {"usd_per_million_input": "3", "usd_per_million_output": "6", "output_tokens": {"min": 1, "max": 60}}
    models = {"m": simulated(output_tokens={"min": 1, "max": 150}), "spare": simulated(**spare)}
    return {"seed": seed, "server": {"allow_overrides": True}, "models": models}


def spent(served: Gateway) -> dict[str, int]:
    return books.spent(served.calls(), **SCOPES)


def books_agree(served: Gateway) -> bool:
    """Whether no Call runs, and the counters have settled what the ledger says."""
    calls = served.calls()
    done = not any(call.status == "running" for call in calls)
    return done and books.settled(served.data_folder, *SCOPES) == books.spent(calls, **SCOPES)


def spend_the_rest(served: Gateway, chance: random.Random) -> None:
    """Whatever is left is given to the call that fits it to the token, wherever slices of it are; one token more
    is refused."""
    for team in TEAMS:
        for user in chance.sample(USERS, 3):
            state = books.settled(served.data_folder, *SCOPES)
            left = min(CAPS[name] - state.get(f"{name}/{value}", 0) for name, value in
                       (("all", ""), ("team", team), ("user", user)))  # fmt: skip
            fits = tokens_for(served, team, user, left)
            if fits < 1:
                continue  # not one token: it was spent wholly
            assert exact(served, team, user, fits + 1).status == 429, "one token more than what is left was sold"
            answer = exact(served, team, user, fits)
            assert answer.status == 200, (left, answer.body, books.accounts(served.data_folder, *SCOPES))
            assert eventually(lambda: books_agree(served))


def tokens_for(served: Gateway, team: str, user: str, left: int) -> int:
    """The most tokens whose worst case is at most `left`, by what a refusal says that `TOO_MANY` need."""
    said = REFUSED.search(exact(served, team, user, TOO_MANY).json["error"]["message"])
    assert said is not None
    for digits in (5, 4, 3, 2, 1):
        input_nano = nano_usd(said[2]) - TOO_MANY * OUTPUT_NANO - (6 - digits) * INPUT_NANO
        fits = (left - input_nano) // OUTPUT_NANO
        if len(str(fits + 1)) <= digits and len(str(fits)) == digits == len(str(fits + 1)):
            return fits
    return 0


def exact(served: Gateway, team: str, user: str, tokens: int) -> wire.Answered:
    text = "[[simulate output_tokens=99999]] as much as there is"
    body = {"model": "exact", "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}
    while True:
        answer = wire.one(served.port, request(body, team, user))
        if answer.status != 503:
            return answer
        time.sleep(BUSY_S)


def check_the_end(data_folder: Path, served: Gateway, simulator: SimulatorProcess) -> None:
    calls, found = served.calls(), books.accounts(data_folder, *SCOPES)
    ledger = books.spent(calls, **SCOPES)
    assert {call.status for call in calls} <= {"answered", "failed", "refused", "aborted"}
    assert {name: state.settled for name, state in found.items() if state.settled} == ledger
    overruns = [(call.status, call.notes, call.attempts) for call in calls if call.notes]
    assert not overruns, f"the provider honours max_tokens: {overruns[:3]}"
    assert not any(state.held or state.over for state in found.values()), found
    for name, nano in ledger.items():
        assert nano <= CAPS[name.split("/")[0]], (name, nano)
    invoice = simulator.requests()["cost_nano_usd"]
    assert invoice <= CAPS["all"], f"the provider charges {invoice}, the ledger has {ledger['all/']}"
    assert ledger["all/"] > CAPS["all"] * 9 // 10 or all(
        ledger[f"team/{team}"] > CAPS["team"] * 9 // 10 for team in TEAMS
    ), f"money was left that fits: {ledger}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    fast = [1, 2, 3]
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 51)]
    metafunc.parametrize("seed", [*fast, *slow])
