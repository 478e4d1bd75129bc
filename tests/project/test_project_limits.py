"""`[limits]` and workflows' budgets are part of a loaded project, per environment; a limit for nobody is a mistake."""

from __future__ import annotations

import pytest

from drivetrain import project
from drivetrain.core.errors import ProjectError

LIMITS = """
[teams.support]

[keys.web]
secret = "env:WEB_KEY"

[limits.support-month]
scope = "team:support"
usd = "500"
per = "month"

[limits.busy]
scope = "workflow:triage"
concurrent = 20

[limits.issued]
scope = "key:issued-later"
requests = 10
per = "second"

[env.prod.limits.support-month]
usd = "900"
mode = "soft"

[env.prod.limits.direct]
scope = "team:direct"
tokens = 1000
per = "minute"
"""


def with_budget(small: dict[str, str], budget: str) -> dict[str, str]:
    code = small["workflows/triage.py"].replace("    route=[", f"    budget=dt.Budget({budget}),\n    route=[", 1)
    return small | {"workflows/triage.py": code}


def mistakes(root) -> list[str]:
    with pytest.raises(ProjectError) as caught:
        project.load(root)
    return [str(problem) for problem in caught.value.problems]


def test_a_snapshot_holds_declared_limits_and_the_workflows_budgets(make, small) -> None:
    root = make(with_budget(small, 'usd_per_day="1.5"') | {"drivetrain.toml": small["drivetrain.toml"] + LIMITS})
    limits = project.load(root).limits
    assert list(limits) == ["support-month", "busy", "issued", "triage.usd_per_day"]
    assert all(name == limit.name for name, limit in limits.items())
    assert (limits["support-month"].amount, limits["support-month"].mode) == (500_000_000_000, "hard")
    assert (limits["triage.usd_per_day"].value, limits["triage.usd_per_day"].amount) == ("triage", 1_500_000_000)


def test_an_environment_overlays_limits(make, small) -> None:
    limits = project.load(make(small | {"drivetrain.toml": small["drivetrain.toml"] + LIMITS}), "prod").limits
    assert list(limits) == ["support-month", "busy", "issued", "direct"]
    month = limits["support-month"]
    assert (month.amount, month.mode, month.value, month.per) == (900_000_000_000, "soft", "support", "month")


def test_a_mistake_in_a_limit_of_another_environment_is_told(make, small) -> None:
    settings = small["drivetrain.toml"] + LIMITS + '[env.test.limits.busy]\nconcurrent = "many"\n'
    (told,) = mistakes(make(small | {"drivetrain.toml": settings}))
    assert "`limits.busy.concurrent` must be a whole number" in told


@pytest.mark.parametrize(
    ("scope", "said", "do"),
    [
        ("workflow:triag", "names the workflow `triag`, which is not declared", "Did you mean `triage`?"),
        ("team:suport", "names the team `suport`, which is not declared", "Did you mean `support`?"),
    ],
)
def test_a_limit_for_nobody_is_a_mistake_at_its_line(make, small, scope: str, said: str, do: str) -> None:
    settings = small["drivetrain.toml"] + LIMITS.replace("key:issued-later", scope)
    line = 1 + settings.splitlines().index(f'scope = "{scope}"')
    (told,) = mistakes(make(small | {"drivetrain.toml": settings}))
    assert told.startswith(f"drivetrain.toml:{line}: ")
    assert said in told
    assert do in told


def test_any_team_may_be_limited_where_none_is_declared(make, small) -> None:
    table = '[limits.x]\nscope = "team:anyone"\nusd = 1\nper = "day"\n'
    assert (
        project.load(make(small | {"drivetrain.toml": small["drivetrain.toml"] + table})).limits["x"].value == "anyone"
    )


def test_a_changed_limit_is_another_snapshot(make, small) -> None:
    table = '[limits.x]\nscope = "project"\nusd = 1\nper = "day"\n'
    one = project.load(make(small | {"drivetrain.toml": small["drivetrain.toml"] + table}))
    two = project.load(make({"drivetrain.toml": small["drivetrain.toml"] + table.replace("usd = 1", "usd = 2")}))
    assert one.hash != two.hash
    assert one.limits["x"].amount < two.limits["x"].amount
