"""`drivetrain budget`: what it shows, changes, refuses and draws."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from budget_world import CENT, Project, run, who

from drivetrain.core.money import NANO_PER_USD, usd
from drivetrain.lake.costs import LedgerQueries
from support.lakes import lake_at

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def spend(project: Project, *calls: tuple[str, int]) -> None:
    """(user, cost in cents) each."""

    async def story() -> None:
        worker = project.worker(f"w{time.time_ns()}", asyncio.get_running_loop())
        for user, cents in calls:
            assert await worker.spend(who(user, f"customer=of-{user}"), cents * CENT, cents * CENT) is None
        await worker.close()

    run(story)


def test_with_nothing_running_every_limit_is_shown_and_nothing_is_written(project: Project) -> None:
    found = {one["name"]: one for one in project.run("--json").json["limits"]}
    assert list(found) == ["all", "support", "person", "customer", "pace", "gate"]
    assert found["all"]["accounts"][0] == {
        "account": found["all"]["accounts"][0]["account"], "value": "",
        "cap_nano_usd": 10 * NANO_PER_USD, "cap_usd": "10.00", "settled_nano_usd": 0, "settled_usd": "0.00",
        "held_nano_usd": 0, "held_usd": "0.00", "over_nano_usd": 0, "over_usd": "0.00",
        "left_nano_usd": 10 * NANO_PER_USD, "left_usd": "10.00", "used_percent": 0,
    }  # fmt: skip
    assert (found["person"]["accounts"], found["person"]["scope"]) == ([], "each user")
    assert found["pace"]["accounts"][0]["left"] == 600
    assert found["gate"]["accounts"][0]["left"] == 20
    assert not project.data.exists()


def test_settled_is_what_the_ledger_says_and_left_is_the_rest(project: Project) -> None:
    spend(project, ("ann", 30), ("bob", 12), ("ann", 7), ("", 3))
    ledger = LedgerQueries(lake_at(project.data))
    month = project.run("show", "all", "--json").json
    assert month["settled_nano_usd"] == ledger.cost().total.cost_nano_usd == 52 * CENT
    team = ledger.cost(where={"team": "support"}).total.cost_nano_usd
    assert project.account("support")["settled_nano_usd"] == team
    assert project.account("support")["left_nano_usd"] == 2 * NANO_PER_USD - team
    by_user = {row.keys[0]: row.cost_nano_usd for row in ledger.cost(["user"]).rows}
    person = project.run("show", "person", "--json").json
    assert {one["value"]: one["settled_nano_usd"] for one in person["accounts"]} == by_user
    assert [one["value"] for one in person["accounts"]] == ["ann", "bob", ""]
    assert person["settled_nano_usd"] == sum(by_user.values())
    by_tag = {row.keys[0]: row.cost_nano_usd for row in ledger.cost(["tag:customer"]).rows}
    customers = project.run("show", "customer", "--json").json["accounts"]
    assert {one["value"]: one["settled_nano_usd"] for one in customers} == by_tag


def test_while_a_worker_runs_what_it_holds_is_shown(project: Project) -> None:
    async def story() -> None:
        worker = project.worker("a", asyncio.get_running_loop())
        assert await worker.spend(who(), 50 * CENT, CENT) is None
        shown = await asyncio.to_thread(project.account, "all")
        assert shown["held_nano_usd"] > 0
        assert shown["settled_nano_usd"] + shown["held_nano_usd"] + shown["left_nano_usd"] == shown["cap_nano_usd"]
        assert (await asyncio.to_thread(project.account, "gate"))["left"] < 20
        await worker.close()
        assert (await asyncio.to_thread(project.account, "all"))["held_nano_usd"] == 0

    run(story)


def test_of_many_those_that_spent_the_most_are_shown_and_all_are_summed(project: Project) -> None:
    spend(project, *((f"u{number:02}", 1 + number % 12) for number in range(12)))
    shown = project.run("show", "person", "--json").json
    assert [one["value"] for one in shown["accounts"]] == [f"u{number:02}" for number in range(11, 1, -1)]
    assert (shown["count"], shown["settled_nano_usd"]) == (12, 78 * CENT)
    assert len(project.run("show", "person", "--all", "--json").json["accounts"]) == 12
    assert "(2 more)" in project.run("show", "person").stdout
    assert "(2 more)" not in project.run("--all").stdout


def test_the_table_says_what_there_is_and_since_when_it_is_other_than_declared(project: Project) -> None:
    spend(project, ("ann", 30))
    project.run("set", "all", "--usd", "20.5", "--reason", "launch week")
    table = project.run().stdout
    line = next(line for line in table.splitlines() if line.startswith("all "))
    for word in ("project", "month", "0.30", "20.20", "20.50", "1%", "hard"):
        assert word in line.split()
    assert "`all` was set to this; 10.00 USD is declared." in table
    assert "600 requests per minute" in table
    assert "20 calls at a time" in table
    assert "launch week" in project.run("show", "all").stdout


def test_changes_are_hash_chained_records_with_actor_and_reason(project: Project) -> None:
    project.run("set", "all", "--usd", "20", "--reason", "launch")
    project.run("top-up", "person", "--usd", "0.5", "--for", "ann", "--reason", "she asked")
    project.run("reset", "all")
    assert [(one.kind, one.subject) for one in project.logged()] == [
        ("budget.set", "all"), ("budget.top_up", "person"), ("budget.reset", "all"),
    ]  # fmt: skip
    first = project.logged()[0]
    assert first.actor
    assert json.loads(first.body) == {
        "unit": "nano_usd", "amount": 20 * NANO_PER_USD, "declared": 10 * NANO_PER_USD, "reason": "launch",
    }  # fmt: skip
    assert project.log.verify().whole
    assert [one["reason"] for one in project.run("show", "person", "--json").json["changes"]] == ["she asked"]


def test_set_top_up_and_reset_change_the_cap(project: Project) -> None:
    spend(project, ("ann", 30), ("bob", 30))
    project.run("set", "person", "--usd", "3")
    project.run("top-up", "person", "--usd", "0.25", "--for", "ann")
    caps = {one["value"]: one["cap_usd"] for one in project.run("show", "person", "--json").json["accounts"]}
    assert caps == {"ann": "3.25", "bob": "3.00"}
    project.run("reset", "person", "--for", "ann")
    assert project.account("person", "ann")["cap_usd"] == "3.00"
    project.run("reset", "person")
    assert project.account("person", "ann")["cap_usd"] == "1.00"
    project.run("set", "gate", "--concurrent", "5")
    project.run("set", "pace", "--requests", "6000")
    assert (project.account("gate")["cap"], project.account("pace")["cap"]) == (5, 6000)


def test_another_declared_amount_has_the_last_word(project: Project) -> None:
    project.run("set", "all", "--usd", "20")
    text = (project.root / "drivetrain.toml").read_text()
    (project.root / "drivetrain.toml").write_text(text.replace('usd = "10"', 'usd = "12"'))
    assert project.account("all")["cap_usd"] == "12.00"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "al", "--usd", "1"), "`all`"),
        (("set", "all", "--requests", "1"), "`all` is limited in USD"),
        (("set", "all", "--usd", "1", "--requests", "1"), "no other amount"),
        (("set", "all"), "--usd AMOUNT"),
        (("set", "all", "--usd", "-1"), "not negative"),
        (("set", "all", "--usd", "0.0000000001"), "finer than one nano-USD"),
        (("set", "all", "--usd", "1", "--reason", "x" * 501), "at most 500"),
        (("top-up", "person", "--usd", "1"), "--for NAME"),
        (("top-up", "all", "--usd", "1", "--for", "ann"), "Leave out `--for`"),
        (("top-up", "pace", "--usd", "1"), "has no period"),
        (("top-up", "all", "--usd", "0"), "changes nothing"),
        (("top-up", "all", "--usd", "1000000000"), "more than a budget may have"),
        (("burn", "gate"), "has no period"),
        (("show", "nobody"), "no limit `nobody`"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do_and_not_logged(
    project: Project, arguments: tuple[str, ...], said: str
) -> None:
    assert said in project.run(*arguments, code=1).stderr
    assert project.logged() == []


def test_a_top_up_of_somebody_unknown_says_so(project: Project) -> None:
    assert "Nobody has spent anything for `anm`" in project.run("top-up", "person", "--usd", "1", "--for", "anm").stderr


def test_the_burn_down_is_the_ledgers_to_the_nano_dollar(project: Project) -> None:
    spend(project, ("ann", 30), ("bob", 12), ("ann", 7))
    ledger = LedgerQueries(lake_at(project.data))
    burn = project.run("burn", "all", "--json").json
    total = ledger.cost().total.cost_nano_usd
    assert burn["ledger_nano_usd"] == burn["settled_nano_usd"] == total == 49 * CENT
    assert sum(bar["cost_nano_usd"] for bar in burn["bars"]) == burn["bars"][-1]["total_nano_usd"] == total
    assert (burn["by"], burn["forecast"]) == ("day", None)
    ann = project.run("burn", "person", "--for", "ann", "--json").json
    assert ann["ledger_nano_usd"] == ledger.cost(where={"user": "ann"}).total.cost_nano_usd == 37 * CENT
    tagged = project.run("burn", "customer", "--for", "of-bob", "--json").json
    assert tagged["ledger_nano_usd"] == 12 * CENT
    assert project.run("burn", "support", "--json").json["by"] == "hour"


def test_the_burn_down_fits_80_columns_in_ascii_where_nobody_looks(project: Project) -> None:
    spend(project, ("ann", 90), ("bob", 90))
    drawn = project.run("burn", "support").stdout
    assert drawn.isascii()
    assert max(len(line) for line in drawn.splitlines()) <= 80
    assert f"spent {usd(180 * CENT)} USD of 2.00 USD (90%)" in drawn
    assert "Too little was spent for a forecast" in drawn
    assert "#" * 26 in drawn
