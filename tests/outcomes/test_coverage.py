"""`drivetrain outcomes show`: how many Calls are labelled, how late, and which labels disagree."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from outcomes_world import T0_NS, S, World, call_id
from typer.testing import CliRunner

from drivetrain.cli import lake
from drivetrain.core.calls import OutcomeV1

pytestmark = pytest.mark.slow


def said(
    number: int, value: str | float | bool, *, after_s: float, source: str = "desk", metric: str = "ok"
) -> OutcomeV1:
    """About Call `number`, arriving so long after it opened."""
    arrived_ns = T0_NS + number * S + int(after_s * S)
    return OutcomeV1(call_id(number), metric, source, value, arrived_ns, arrived_ns)


def by_key(one: OutcomeV1, key: str, workflow: str = "refund") -> OutcomeV1:
    return msgspec.structs.replace(one, call_id="", workflow=workflow, business_key=key)


def rows(world: World, *arguments: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["workflow"], row["metric"]): row for row in world.answer("show", *arguments)["rows"]}


def test_a_workflow_that_nobody_knows_is_told_with_the_nearest(world: World) -> None:
    world.calls(range(1))
    ran = world.run("show", "--workflow", "refnd")
    assert ran.exit_code == 1
    assert "Did you mean `refund`?" in ran.stderr
    assert world.run("show", "--workflow", "plain").exit_code == 0, "it is declared, and has no Call yet"


def test_coverage_and_delay(world: World) -> None:
    world.calls(range(10))
    world.calls(range(10, 12), status="failed")
    world.calls(range(20, 24), workflow="plain")
    world.say(*(said(number, True, after_s=60 * (number + 1)) for number in range(4)), said(10, True, after_s=1))
    found = rows(world)
    assert set(found) == {("refund", "ok"), ("plain", "")}
    row = found["refund", "ok"]
    assert (row["calls"], row["labelled"], row["share"]) == (10, 4, 0.4)
    assert (row["delay_p50_s"], row["delay_p95_s"]) == (120.0, 240.0)
    assert (found["plain", ""]["calls"], found["plain", ""]["labelled"]) == (4, 0)
    assert set(rows(world, "--workflow", "plain")) == {("plain", "")}
    assert rows(world, "--since", "2026-01-01T00:00:02Z")["refund", "ok"]["labelled"] == 2


def test_by_business_key_every_call_is_labelled_and_the_first_arrival_counts(world: World) -> None:
    world.calls([1, 2], key="same")
    world.calls([3], key="same", workflow="plain")
    world.say(by_key(said(1, "a", after_s=100), "same"), said(1, "a", after_s=10))
    row = rows(world)["refund", "ok"]
    assert (row["calls"], row["labelled"]) == (2, 2)
    assert (row["delay_p50_s"], row["delay_p95_s"]) == (10.0, 99.0)
    assert ("plain", "ok") not in rows(world)


def test_corrected_and_contradictory(world: World) -> None:
    world.calls(range(6))
    world.say(
        said(0, "a", after_s=1), said(0, "a", after_s=2),  # said again: neither
        said(1, "a", after_s=1), said(1, "b", after_s=2),  # corrected
        said(2, "a", after_s=1), said(2, "b", after_s=2, source="shop"),  # contradictory
        said(3, "a", after_s=1), said(3, "b", after_s=2, source="shop"), said(3, "a", after_s=3, source="shop"),
        said(4, 1, after_s=1), said(4, "1.0", after_s=2, source="shop"),  # a number and a text
        said(5, "a", after_s=1), by_key(said(5, "b", after_s=2, source="shop"), "order-5"),
    )  # fmt: skip
    row = rows(world)["refund", "ok"]
    assert row["labelled"] == 6
    assert row["corrected"] == 2, "Calls 1 and 3"
    assert row["contradictory"] == 3, "Calls 2, 4 and 5; the shop agreed about 3 in the end"


def test_outcomes_of_calls_that_nobody_knows_are_counted_apart(world: World) -> None:
    world.calls([1])
    world.say(said(2, 1, after_s=1), by_key(said(1, 1, after_s=1), "nobody"), by_key(said(1, 1, after_s=1), "order-1"))
    assert world.answer("show")["unmatched"] == 2
    shown = world.run("show").stdout
    assert "2 outcomes name no Call" in shown
    assert "100.0%" in shown


def test_an_empty_ledger(world: World) -> None:
    assert world.answer("show") == {"rows": [], "unmatched": 0}
    assert "No Call was answered yet." in world.run("show").stdout


def test_what_a_client_sent_cannot_steer_the_terminal(world: World) -> None:
    world.calls([1])
    world.say(said(1, "x", after_s=1, metric="\x1b[2Jm"))
    shown = world.run("show").stdout
    assert "\x1b[2J" not in shown
    assert "[2Jm" in shown


def test_what_was_rolled_into_the_lake_is_known_and_counted_as_before(world: World) -> None:
    world.calls(range(4))
    rows = [f"refund,order-{number},ok,{value}" for number, value in ((0, "a"), (1, "a"), (1, "b"), (9, "a"))]
    file = world.file("labels.csv", "\n".join(["workflow,key,metric,value", *rows]))
    world.answer("import", file)
    before = world.answer("show")
    assert (before["rows"][0]["labelled"], before["rows"][0]["corrected"], before["unmatched"]) == (2, 1, 1)
    rolled = CliRunner().invoke(lake.app, ["roll", "--project", str(world.root)])
    assert rolled.exit_code == 0, rolled.output
    assert world.answer("show") == before
    assert world.answer("import", file)["new"] == 0
    world.answer("import", world.file("more.csv", "workflow,key,metric,value\nrefund,order-2,ok,a\n"))
    assert world.answer("show")["rows"][0]["labelled"] == 3
