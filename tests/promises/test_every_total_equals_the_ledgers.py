"""Promise 15: every total that anybody is shown is the ledger's, to the nano-dollar.

Calls of every kind (plain, streams, fallbacks, retries, escalations, refusals, clients that leave, answers from the
cache) of several teams, users, keys and tags. Then everything that shows money is read: answers, `/metrics`, `cost` by
every attribute, `calls`, `budget`, and, of what the provider told the truth about, its own invoice.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
from promise_gateway import Gateway, eventually, gateway, simulated

from drivetrain.cli.main import main
from drivetrain.core.calls import Call
from drivetrain.core.money import nano_usd
from drivetrain.lake.costs import ATTEMPT_DIMENSIONS, CALL_DIMENSIONS
from drivetrain.simulator import SimulatorProcess
from support import books, wire
from support.projects import model, provider, settings, workflow

pytestmark = pytest.mark.slow

SEED = 20_261_121
CALLS = 120
SCOPES = {"all": "project", "team": "team", "user": "user", "flow": "workflow", "case": "use_case"}
TEAMS, USERS, TAGS = ("red", "green"), ("ann", "bob", "cleo"), ("env=prod", "env=dev", "customer=a,env=prod", "")
FLOWS = ("plain", "two", "checked", "kept")
TRUE, UNTRUE = (
    ("", "", "", "failure=status:503 model=m", "failure=status:500 times=1", "failure=status:400"),
    ("failure=error_mid_stream", "failure=cut_at_byte:900", "failure=no_usage", "failure=malformed_body"),
)
"""Failures of which the invoice knows what the ledger knows; and those that leave it to estimates."""
COST_SAMPLE = re.compile(r"^drivetrain_cost_nano_usd_total(?:\{.*\})? ([0-9.e+]+)$", re.MULTILINE)


def project(url: str) -> dict[str, str]:
    dear = 'usd_per_million_input = "3.3"\nusd_per_million_output = "7.77"\n'
    checked = '{ name = "checked", model = "sim/m", accept = { matches = "^a" } }'
    tables = (
        provider("sim", f"{url}/v1") + model("sim/m") + model("sim/spare", dear)
        + workflow("plain", "sim/m") + workflow("two", "sim/m", "sim/spare")
        + workflow("checked", checked, '{ name = "last", model = "sim/spare" }')
        + workflow("kept", "sim/spare", more='cache = { ttl_s = 600, when = "always" }\n')
        + "".join(books.limit(name, by if by == "project" else f"each {by}", usd="50") for name, by in SCOPES.items())
    )  # fmt: skip
    return {"drivetrain.toml": settings(tables=tables)}


@dataclass
class Traffic:
    """What the clients of one run were told."""

    served: Gateway
    failures: tuple[str, ...]
    leave: bool
    told: dict[str, int] = field(default_factory=dict)
    """Call -> what its answer said that it cost, in nano-USD."""

    def run(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self._ask, range(CALLS)))
        assert eventually(lambda: not any(call.status == "running" for call in self.served.calls()))

    def _ask(self, number: int) -> None:
        chance = random.Random(f"{SEED}.{self.failures}.{number}")
        flow, stream = chance.choice(FLOWS), chance.random() < 0.4
        simulate = f"[[simulate {chance.choice(self.failures)} output_tokens={chance.randint(1, 90)}]]"
        text = f"asked {chance.randint(0, 3)} again" if flow == "kept" else f"{simulate} {number}"
        body = {"model": flow, "stream": stream, "messages": [{"role": "user", "content": text}], "temperature": 0}
        headers = "".join(
            f"x-drivetrain-{name}: {chance.choice(values)}\r\n"
            for name, values in (("team", TEAMS), ("user", USERS), ("tags", TAGS))
        )
        with wire.connect(self.served.port) as connection:
            connection.sendall(wire.request(body, headers=headers))
            if self.leave and chance.random() < 0.2:
                connection.settimeout(0.05)
                with suppress(TimeoutError):
                    connection.recv(400)
                return
            answer = wire.hear(connection).answers[0]
        if "x-drivetrain-cost-nano-usd" in answer.headers:
            self.told[answer.headers["x-request-id"]] = int(answer.headers["x-drivetrain-cost-nano-usd"])


@pytest.fixture(scope="module", params=["told truly", "left to estimates"])
def traffic(request: pytest.FixtureRequest) -> Iterator[tuple[Traffic, SimulatorProcess]]:
    true = request.param == "told truly"
    print(f"seed {SEED}")
    spare = simulated(usd_per_million_input="3.3", usd_per_million_output="7.77")
    config = {"seed": 3, "server": {"allow_overrides": True}, "models": {"m": simulated(), "spare": spare}}
    with SimulatorProcess(config) as simulator, gateway(project(simulator.url), workers=3) as served:
        made = Traffic(served, TRUE if true else TRUE + UNTRUE, leave=not true)
        made.run()
        yield made, simulator


@pytest.fixture
def served(traffic: tuple[Traffic, SimulatorProcess]) -> Gateway:
    return traffic[0].served


@pytest.fixture
def calls(served: Gateway) -> list[Call]:
    found = served.calls()
    assert len(found) >= CALLS * 9 // 10
    assert len({call.cost_nano_usd for call in found}) > 20, "too much alike to prove anything"
    return found


@pytest.fixture
def total(calls: list[Call]) -> int:
    return sum(call.cost_nano_usd for call in calls)


def command(served: Gateway, *arguments: str) -> str:
    """What a command prints; in this process, since there are many."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()), pytest.raises(SystemExit) as ended:
        main([*arguments, "--project", str(served.root)])
    assert ended.value.code in (0, None), arguments
    return out.getvalue()


def test_every_call_costs_what_its_attempts_cost(calls: list[Call]) -> None:
    for call in calls:
        assert call.cost_nano_usd == sum(attempt.cost_nano_usd for attempt in call.attempts), call
    assert any(attempt.purpose == "retry" for call in calls for attempt in call.attempts)
    assert any(attempt.purpose == "fallback" for call in calls for attempt in call.attempts)
    assert any(attempt.purpose == "escalation" for call in calls for attempt in call.attempts)
    assert any(attempt.cached for call in calls for attempt in call.attempts)


def test_answers_say_it(traffic: tuple[Traffic, SimulatorProcess], calls: list[Call]) -> None:
    by_id = {call.call_id: call.cost_nano_usd for call in calls}
    told = traffic[0].told
    assert len(told) > CALLS // 3
    assert {call_id: by_id[call_id] for call_id in told} == told


def test_metrics_of_all_workers_say_it(served: Gateway, total: int) -> None:
    def counted() -> int:
        text = wire.one(served.port, wire.request(method="GET", path="/metrics")).body.decode()
        return sum(int(Decimal(one)) for one in COST_SAMPLE.findall(text))

    assert eventually(lambda: counted() == total), (counted(), total)


@pytest.mark.parametrize("by", [*CALL_DIMENSIONS, *ATTEMPT_DIMENSIONS, "tag:env", "team,variant", "user,day,status"])
def test_cost_by_anything_says_it(served: Gateway, total: int, by: str) -> None:
    told = json.loads(command(served, "cost", "--by", by, "--json"))
    assert told["total"]["cost_nano_usd"] == total
    assert nano_usd(told["total"]["cost_usd"]) == total
    assert sum(row["cost_nano_usd"] for row in told["rows"]) == total
    assert sum(nano_usd(row["cost_usd"]) for row in told["rows"]) == total


def test_cost_filtered_adds_up_to_it(served: Gateway, calls: list[Call], total: int) -> None:
    def cost(*where: str) -> int:
        found: int = json.loads(command(served, "cost", "--json", *where))["total"]["cost_nano_usd"]
        return found

    assert sum(cost("--where", f"team={team}") for team in TEAMS) == total
    assert cost(*(word for flow in FLOWS for word in ("--where", f"workflow={flow}"))) == total
    for user in USERS:
        own = [call for call in calls if call.attribution.user == user]
        assert cost("--where", f"user={user}") == sum(call.cost_nano_usd for call in own)


def test_tables_and_csv_say_it(served: Gateway, total: int) -> None:
    rows = list(csv.DictReader(io.StringIO(command(served, "cost", "--by", "team,user,workflow", "--csv"))))
    assert sum(int(row["cost_nano_usd"]) for row in rows) == total
    table = command(served, "cost", "--by", "workflow")
    assert nano_usd(re.findall(r"[\d.]+", table)[-1]) == total


def test_the_list_of_calls_says_it(served: Gateway, calls: list[Call], total: int) -> None:
    listed = [json.loads(line) for line in command(served, "calls", "--limit", "100000", "--json").splitlines()]
    assert sum(one["cost_nano_usd"] for one in listed) == total
    assert sum(nano_usd(one["cost_usd"]) for one in listed) == total
    assert sum(nano_usd(attempt["cost_usd"]) for one in listed for attempt in one["attempts"]) == total
    dearest = max(calls, key=lambda call: call.cost_nano_usd)
    shown = json.loads(command(served, "calls", "show", dearest.call_id, "--json"))
    assert shown["cost_nano_usd"] == dearest.cost_nano_usd


def test_budgets_say_it(served: Gateway, calls: list[Call], total: int) -> None:
    ledger = books.spent(calls, **SCOPES)
    assert eventually(lambda: books.settled(served.data_folder, *SCOPES) == ledger)
    told: list[dict[str, Any]] = json.loads(command(served, "budget", "--all", "--json"))["limits"]
    assert {one["name"] for one in told} == set(SCOPES)
    for one in told:
        own = {account["value"]: nano_usd(account["settled_usd"]) for account in one["accounts"]}
        expected = {name.partition("/")[2]: nano for name, nano in ledger.items() if name.startswith(f"{one['name']}/")}
        assert {value: nano for value, nano in own.items() if nano} == expected
        assert nano_usd(one["settled_usd"]) == total


def test_the_providers_invoice_says_it(
    traffic: tuple[Traffic, SimulatorProcess], calls: list[Call], total: int
) -> None:
    """Where the provider reported what it charged. An estimate, for what it did not report, is never less."""
    invoice = traffic[1].requests()["cost_nano_usd"]
    estimated = [one for call in calls for one in call.attempts if one.usage.source == "estimated"]
    if not traffic[0].leave:
        assert not estimated
        assert invoice == total
    else:
        assert estimated
