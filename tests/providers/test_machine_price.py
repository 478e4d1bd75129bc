"""Machine time is money: busy time is charged to the nano-dollar, and `drivetrain cost` shows the idle rest."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from drivetrain.cli import cost
from drivetrain.core.calls import AttemptV1, Attribution, Call, ClosedV1, OpenedV1, ReservedV1
from drivetrain.core.money import MachinePrice, Price, Rates, Usage
from drivetrain.ledger.journal import FrameJournal
from drivetrain.project.snapshot import ModelFacts
from drivetrain.providers.pricing import price_book
from support import wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.upstream import STREAM_HEAD, Asked, Script, Upstream, Wire, completion, http, stream, stream_events

pytestmark = pytest.mark.slow

HOUR_US = 3_600_000_000
MINUTE_US = 60_000_000
T0_NS = 1_767_225_600_000_000_000
"""2026-01-01T00:00:00Z."""
LLAMA = "local/llama-70b"
SPAN = ("--since", "2026-01-01T00:00:00", "--until", "2026-01-01T02:00:00")

app = typer.Typer()
app.command("cost")(cost.cost_command)


# The price of an attempt.


def test_a_model_with_an_hour_needs_no_price_of_tokens() -> None:
    facts = ModelFacts(name=LLAMA, machine_nano_per_hour=2_500_000_000, parallel=8)
    price = price_book(LLAMA, "http://gpu/v1", facts).on("2026-01-01")
    assert price.by_time
    assert price.source == "project"
    # 2.50 USD for a sixtieth of an hour, shared by 8: 5,208,333.3 nano-USD
    assert price.cost_nano_usd(Usage(), MINUTE_US) == 5_208_334
    assert price.cost_nano_usd(Usage(10**6, 0, 0, 0, 10**6, 0, "reported"), MINUTE_US) == 5_208_334
    assert price.worst_case_nano_usd(10**9, 10**9, MINUTE_US) == 5_208_334


@given(
    nano_per_hour=st.integers(0, 10**15),
    parallel=st.integers(1, 10_000),
    busy=st.lists(st.integers(0, HOUR_US), min_size=1, max_size=20),
)
@hypothesis_settings(max_examples=300, deadline=None, print_blob=True, database=None)
def test_busy_time_is_charged_exactly_and_rounded_up_once(nano_per_hour: int, parallel: int, busy: list[int]) -> None:
    price = MachinePrice(nano_per_hour=nano_per_hour, parallel=parallel)
    for busy_us in busy:
        assert price.cost_nano_usd(Usage(), busy_us) == math.ceil(Fraction(nano_per_hour * busy_us, HOUR_US * parallel))
        assert price.cost_nano_usd(Usage(), busy_us) <= price.worst_case_nano_usd(0, 0, busy_us + 1)
    # `parallel` attempts side by side pay the machine's whole time, and at most a nano-USD each more.
    whole = price.hours_nano_usd(busy[0])
    assert whole <= parallel * price.cost_nano_usd(Usage(), busy[0]) <= whole + parallel


def test_time_costs_nothing_where_tokens_are_paid() -> None:
    price = Price(base=Rates(input=250, output=2_000))
    usage = Usage(1_000_000, 0, 0, 0, 1_000_000, 0, "reported")
    assert not price.by_time
    assert price.cost_nano_usd(usage, HOUR_US) == price.cost_nano_usd(usage) == 2_250
    assert price.worst_case_nano_usd(1_000_000, 1_000_000, HOUR_US) == 2_250


# Through a gateway.


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Served]:
    tables = [
        provider("local", upstream.url),
        model(LLAMA, 'usd_per_hour = "36"\nparallel = 4\n'),
        workflow("own", LLAMA, more="attempts_max = 1\n"),
        workflow("bounded", LLAMA, more='attempts_max = 1\nbudget = { usd_per_call = "0.149" }\n'),
        workflow("fits", LLAMA, more='attempts_max = 1\nbudget = { usd_per_call = "0.150" }\n'),
    ]
    with served({"drivetrain.toml": settings(tables="".join(tables))}) as running:
        yield running
        assert not running.faults, "\n".join(running.faults)


def ask(gateway: Served, name: str, *, stream: bool = False) -> tuple[int, Call]:
    body = {"model": name, "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
    answer = wire.one(gateway.port, wire.request(json.dumps(body)))
    return answer.status, gateway.call(answer.headers["x-request-id"])


def slowly(answer: bytes) -> Script:
    def script(_asked: Asked, to: Wire) -> None:
        to.wait(0.05)
        to.send(answer)
        if not answer:
            to.close()

    return script


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (http(completion()), 200),
        (stream(stream_events("a", "b")), 200),
        (http(b'{"error":{"message":"out of memory"}}', status="500 Internal Server Error"), 502),
        (b"", 502),
    ],
    ids=["whole", "stream", "error", "cut"],
)
def test_an_attempt_costs_its_time_however_it_ends(
    gateway: Served, upstream: Upstream, answer: bytes, status: int
) -> None:
    """36 USD an hour are 10 nano-USD a microsecond, shared by 4; the stored attempt holds what its cost is made of."""
    upstream.on("/", slowly(answer))
    got, call = ask(gateway, "own", stream=answer.startswith(STREAM_HEAD))
    assert got == status
    (attempt,) = call.attempts
    busy_us = attempt.ended_us - attempt.sent_us
    assert busy_us >= 50_000
    assert call.cost_nano_usd == attempt.cost_nano_usd == (5 * busy_us + 1) // 2
    assert attempt.price_source == "project"


def test_the_worst_case_is_the_whole_timeout(gateway: Served, upstream: Upstream) -> None:
    """60 seconds of a quarter of 36 USD an hour are 0.15 USD."""
    upstream.on("/", http(completion()))
    assert ask(gateway, "fits")[0] == 200
    status, call = ask(gateway, "bounded")
    assert (status, call.error, call.cost_nano_usd) == (400, "budget_per_call_exceeded", 0)


# `drivetrain cost`.


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A machine at 6 USD an hour that served 4 attempts at a time, 90 minutes of them in all, by two teams."""
    (tmp_path / "drivetrain.toml").write_text(
        '[project]\nname = "shop"\n[providers.local]\ndialect = "openai"\nbase_url = "http://gpu/v1"\n'
        f'[models."{LLAMA}"]\nusd_per_hour = 6\nparallel = 4\n'
        '[models."local/spare"]\nusd_per_hour = "0.50"\n'
    )
    journal = FrameJournal(tmp_path / ".drivetrain" / "data")
    price = MachinePrice(nano_per_hour=6_000_000_000, parallel=4)
    for number, team, start_minute, minutes in ((1, "support", 10, 60), (2, "sales", 20, 30)):
        attempt = AttemptV1(
            "own", LLAMA, "answer", "accepted", sent_us=MINUTE_US, ended_us=MINUTE_US * (minutes + 1), status=200,
            usage=Usage(100, 0, 0, 0, 50, 0, "reported"),
            cost_nano_usd=price.cost_nano_usd(Usage(), minutes * MINUTE_US), price_source="project",
        )  # fmt: skip
        add(journal, number, team, start_minute - 1, attempt)
    hit = AttemptV1("own", LLAMA, "answer", "accepted", ended_us=5, cached=True, saved_nano_usd=9)
    add(journal, 3, "sales", 115, hit)
    journal.close()
    return tmp_path


def add(journal: FrameJournal, number: int, team: str, minute: int, attempt: AttemptV1) -> None:
    opened_ns = T0_NS + minute * MINUTE_US * 1_000
    call_id = f"call_{number:030x}"
    who = Attribution(team=team)
    journal.append(OpenedV1(call_id, opened_ns, "0" * 16, "triage", "chat", False, who))
    closed_ns = opened_ns + attempt.ended_us * 1_000
    journal.append(ClosedV1(call_id, closed_ns, "answered", 200, "own", attempt.cost_nano_usd, (attempt,)))


def run(project: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(app, ["--project", str(project), *arguments])
    assert result.exit_code == 0, result.output
    return result


def machines(project: Path, *arguments: str) -> dict[str, dict[str, object]]:
    whole = json.loads(run(project, "--json", *arguments).stdout)
    for one in whole["machines"]:
        assert one["charged_nano_usd"] + one["idle_nano_usd"] == one["total_nano_usd"]
    return {one["model"]: one for one in whole["machines"]}


def test_the_idle_rest_of_the_span_asked_for_is_shown(project: Path) -> None:
    found = machines(project, *SPAN)
    llama = found[LLAMA]
    # 2 hours at 6 USD are 12 USD; 90 minutes of a quarter of it are 2.25 USD
    assert (llama["total_usd"], llama["charged_usd"], llama["idle_usd"]) == ("12.00", "2.25", "9.75")
    assert found["local/spare"]["idle_usd"] == found["local/spare"]["total_usd"] == "1.00"


def test_idle_time_is_in_no_attributed_cost(project: Path) -> None:
    whole = json.loads(run(project, "--json", "--by", "team", *SPAN).stdout)
    assert {row["team"]: row["cost_usd"] for row in whole["rows"]} == {"support": "1.50", "sales": "0.75"}
    assert whole["total"]["cost_usd"] == "2.25"


def test_a_filter_leaves_the_machine_whole(project: Path) -> None:
    whole = json.loads(run(project, "--json", "--where", "team=sales", *SPAN).stdout)
    assert whole["total"]["cost_usd"] == "0.75"
    assert whole["machines"][0]["charged_usd"] == "2.25"


def test_without_a_span_it_reaches_from_the_first_attempt_to_the_last(project: Path) -> None:
    found = machines(project)
    assert list(found) == [LLAMA], "a machine that no call used has no span"
    llama = found[LLAMA]
    assert (llama["since"], llama["until"]) == ("2026-01-01T00:10:00.000Z", "2026-01-01T01:10:00.000Z")
    assert (llama["total_usd"], llama["idle_usd"]) == ("6.00", "3.75")
    assert machines(project, "--until", "2026-01-01T01:40:00")[LLAMA]["total_usd"] == "9.00"


def test_hours_to_come_cost_nothing_yet(project: Path) -> None:
    soon = machines(project, "--since", "1h", "--until", "2126-01-01")["local/spare"]
    assert 1 <= soon["span_us"] / HOUR_US < 1.1  # type: ignore[operator]


def test_people_see_charged_and_idle_side_by_side(project: Path) -> None:
    said = run(project, *SPAN).stdout
    assert "one machine per model name" in said
    head, row = (next(line for line in said.splitlines() if line.startswith(word)) for word in ("machine", LLAMA))
    assert head.split()[-3:] == ["charged", "idle", "USD"]
    assert row.split()[-3:] == ["2.25", "9.75", "12.00"]
    sheet = run(project, "--csv", *SPAN)
    assert "idle" not in sheet.stdout
    assert f"idle: {LLAMA} 9.75 USD" in sheet.stderr


def test_more_charged_than_the_hours_cost_is_told(project: Path) -> None:
    settings = project / "drivetrain.toml"
    settings.write_text(settings.read_text().replace("usd_per_hour = 6", "usd_per_hour = 1"))
    told = run(project, *SPAN)
    assert f"warning: {LLAMA} is charged more than its hours cost" in told.stderr
    assert machines(project, *SPAN)[LLAMA]["idle_usd"] == "-0.25"


def test_a_project_without_machines_shows_none(project: Path) -> None:
    (project / "drivetrain.toml").write_text('[project]\nname = "shop"\n')
    assert machines(project, *SPAN) == {}
    assert "Machines" not in run(project, *SPAN).stdout


def test_an_interrupted_call_costs_what_was_reserved(project: Path) -> None:
    journal = FrameJournal(project / ".drivetrain" / "data")
    call_id = f"call_{9:030x}"
    journal.append(OpenedV1(call_id, T0_NS, "0" * 16, "triage", "chat", False, Attribution(team="ops")))
    journal.append(ReservedV1(call_id, 1, (), amount_nano_usd=5_000, charged_nano_usd=70))
    journal.close()
    whole = json.loads(run(project, "--json", "--by", "team,status", *SPAN).stdout)
    (row,) = (row for row in whole["rows"] if row["team"] == "ops")
    assert (row["status"], row["cost_nano_usd"]) == ("interrupted", 5_070)
    assert whole["total"]["cost_nano_usd"] == 2_250_000_000 + 5_070
