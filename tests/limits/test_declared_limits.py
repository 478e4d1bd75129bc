"""`[limits.NAME]` tables and a Workflow's Budget become Limits; every mistake is told at once."""

from __future__ import annotations

import tomllib

import pytest

import drivetrain as dt
from drivetrain.core.limits import Limit
from drivetrain.project.limits import budget_limits, declared_limits
from drivetrain.project.problems import Problems
from drivetrain.project.toml_lines import locate


def read(text: str) -> tuple[dict[str, Limit], list[str]]:
    problems = Problems()
    found = declared_limits(tomllib.loads(text)["limits"], problems, locate(text))
    return found, [str(problem) for problem in problems.sorted()]


def test_each_kind_of_limit() -> None:
    found, problems = read(
        """
        [limits.support-month]
        scope = "team:support"
        usd = "500"
        per = "month"
        zone = "Europe/Berlin"
        mode = "downgrade"
        alerts = [100, 50, 80]
        [limits.shift]
        scope = "each tag:customer"
        usd = 20
        per = "6h"
        [limits.rpm]
        scope = "each key"
        requests = 600
        per = "minute"
        burst = 50
        [limits.tpm]
        scope = "tag:env=prod"
        tokens = 100_000
        per = "10s"
        [limits.busy]
        scope = "project"
        concurrent = 20
        """
    )
    assert problems == []
    month, shift, rpm, tpm, busy = found.values()
    assert (month.dimension, month.value, month.amount, month.per) == ("team", "support", 500_000_000_000, "month")
    assert (month.zone, month.mode, month.alerts, month.line) == ("Europe/Berlin", "downgrade", (50, 80, 100), 2)
    assert (shift.dimension, shift.value, shift.tag, shift.per, shift.window_s) == (
        "tag", None, "customer", "fixed", 21_600,
    )  # fmt: skip
    assert (rpm.kind, rpm.unit, rpm.amount, rpm.window_s, rpm.bucket) == ("rate", "requests", 600, 60, 50)
    assert (tpm.value, tpm.unit, tpm.bucket, tpm.window_s) == ("env=prod", "tokens", 100_000, 10)
    assert (busy.kind, busy.unit, busy.cap) == ("concurrency", "calls", 20)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('scope = "project"', "must have exactly one of"),
        ('scope = "project"\nusd = 1\ntokens = 2\nper = "day"', "must have exactly one of"),
        ('usd = 1\nper = "day"', "`limits.x.scope` is missing"),
        ('scope = "team"\nusd = 1\nper = "day"', "is no scope"),
        ('scope = "each team:support"\nusd = 1\nper = "day"', "is no scope"),
        ('scope = "each tag"\nusd = 1\nper = "day"', "is no scope"),
        ('scope = "planet:earth"\nusd = 1\nper = "day"', "is no scope"),
        ('scope = "project"\nusd = 0.5\nper = "day"', "must not be a float"),
        ('scope = "project"\nusd = 1', "`limits.x.per` is missing"),
        ('scope = "project"\nusd = 1\nper = "fortnight"', "is no period"),
        ('scope = "project"\nusd = 1\nper = "day"\nzone = "Mars/Olympus"', "is no time zone"),
        ('scope = "project"\nusd = 1\nper = "day"\nmode = "strict"', "must be one of"),
        ('scope = "project"\nusd = 1\nper = "day"\nalerts = [0]', "must be whole percents"),
        ('scope = "project"\nusd = 1\nper = "day"\nburst = 3', "belongs to a rate"),
        ('scope = "project"\nrequests = 1\nper = "minute"\nmode = "soft"', "belongs to a budget"),
        ('scope = "project"\nrequests = -1\nper = "minute"', "must be a whole number"),
        ('scope = "project"\nconcurrent = 2\nper = "day"', "means nothing"),
        ('scope = "project"\nusd = 1\nper = "day"\nowner = "me"', "is not a key here"),
    ],
)
def test_each_mistake_is_told_with_its_line_and_the_limit_left_out(text: str, said: str) -> None:
    found, problems = read("[limits.x]\n" + text)
    assert found == {}
    assert any(said in problem for problem in problems), problems
    assert all(problem.startswith("drivetrain.toml:") for problem in problems)


def test_a_name_that_could_meet_a_workflows_budget_is_refused() -> None:
    found, problems = read('[limits."triage.usd_per_day"]\nscope = "project"\nusd = 1\nper = "day"')
    assert found == {}
    assert "has a wrong name" in problems[0]


def test_a_workflows_budget_has_its_mode_and_its_alerts() -> None:
    budget = dt.Budget(usd_per_day=1, usd_per_month=2, mode="downgrade", alerts=(100, 50, 100))
    limits = budget_limits(dt.Workflow("triage", budget=budget))
    assert [(limit.mode, limit.alerts) for limit in limits] == [("downgrade", (50, 100))] * 2


def test_a_workflows_budget_is_a_hard_limit_per_day_and_month() -> None:
    workflow = dt.Workflow("triage", budget=dt.Budget(usd_per_call="0.02", usd_per_day="1.5", usd_per_month=30))
    day, month = budget_limits(workflow)
    assert (day.name, day.amount, day.per, day.mode) == ("triage.usd_per_day", 1_500_000_000, "day", "hard")
    assert (month.name, month.amount, month.per) == ("triage.usd_per_month", 30_000_000_000, "month")
    assert (day.dimension, day.value, day.zone) == ("workflow", "triage", "UTC")
    assert budget_limits(dt.Workflow("free")) == ()
    assert budget_limits(dt.Workflow("wrong", budget=dt.Budget(usd_per_day="much"))) == ()
