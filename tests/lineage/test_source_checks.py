"""What is wrong with a declared Source outside: every mistake at once, and no secret is ever shown."""

from __future__ import annotations

from typing import Any

import pytest

import drivetrain as dt
from drivetrain.core.declarations import Place
from drivetrain.core.errors import Problem
from drivetrain.project.problems import Problems
from drivetrain.project.snapshot import Features
from drivetrain.project.source_checks import check_sources, duration_s
from drivetrain.project.spots import Spots

GOOD: dict[str, Any] = {
    "owner": "crm@acme.example",
    "location": "https://crm.acme.example/customers",
    "schema": {"customer_id": "string", "since": int},
    "fresh_within": "1d",
    "readers": ["triage", "stats", "workflow:triage", "features:risk", "service:inputs", "dataset:golden"],
}
customer = dt.Entity("customer")
stats = dt.FeatureView("stats", entities=[customer], source=dt.FileSource("x.csv"))
risk = dt.OnDemandFeatureView("risk", sources=[stats], schema=[], function=dict)
inputs = dt.FeatureService("inputs", features=[stats])


def problems(name: str = "crm", sources: dict[str, Any] | None = None, **given: Any) -> tuple[Problem, ...]:
    source = dt.Source(name, place=Place("features/outside.py", 7), **{**GOOD, **given})
    features = Features(
        views={"stats": stats},
        on_demand={"risk": risk},
        services={"inputs": inputs},
        sources=sources or {},
        outside={source.name: source},
    )
    found = Problems()
    check_sources(features, ["triage", "refund"], Spots({}), found)
    return found.sorted()


def test_a_good_one_has_no_mistake() -> None:
    assert problems() == ()
    assert problems(fresh_within=None, readers=[], schema=None) == ()


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "name": ({"name": "Big CRM!"}, "has a wrong name", "small letter"),
    "no-owner": ({"owner": ""}, "has no owner", "team@acme.example"),
    "owner": ({"owner": "Ada"}, "no e-mail address", ""),
    "no-location": ({"location": ""}, "has no location", "Write where it is"),
    "location-kind": ({"location": 5}, "a location that is no text", ""),
    "duration": ({"fresh_within": "1 day"}, "wrong `fresh_within`", "`2d`"),
    "duration-number": ({"fresh_within": 60}, "wrong `fresh_within`", "`2d`"),
    "duration-nothing": ({"fresh_within": "0s"}, "wrong `fresh_within`", "`2d`"),
    "duration-forever": ({"fresh_within": "999999999w"}, "wrong `fresh_within`", "3660 days"),
    "reader": ({"readers": ["triag"]}, "reader `triag` that is not declared", "Did you mean `triage`?"),
    "reader-view": ({"readers": ["features:stast"]}, "`features:stast` that is not", "Did you mean `stats`?"),
    "reader-kind": ({"readers": ["view:stats"]}, "a reader of an unknown kind", "`workflow`"),
    "reader-empty": ({"readers": [""]}, "a reader that is no name", ""),
    "schema": ({"schema": ["a"]}, "a `schema` that is no dict", ""),
    "schema-type": ({"schema": {"a": 5}}, "not column -> type", "customer_id"),
    "argument": ({"fresh_withn": "1d"}, "has no argument `fresh_withn`", "Did you mean `fresh_within`?"),
    "twice": ({"sources": {"crm": stats.source}}, "the name of a source that feature views read", "another name"),
}


@pytest.mark.parametrize(("given", "what", "do"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_its_place_and_what_to_do(given: dict[str, Any], what: str, do: str) -> None:
    (problem,) = problems(**given)
    assert what in problem.what
    assert problem.what.startswith("Source `")
    assert do in problem.do
    assert (problem.file, problem.line) == ("features/outside.py", 7)


SECRETS = [
    "postgres://ada:hunter2@db.acme.example/crm",
    "https://crm.acme.example?api_key=hunter2",
    "https://crm.acme.example/x?a=1&token=hunter2",
    "Server=db;Uid=ada;Pwd=hunter2",
    "the CRM, password: hunter2",
    "https://host/x?sig=hunter2",
]


@pytest.mark.parametrize("location", SECRETS)
def test_a_secret_in_a_location_is_a_mistake_and_is_not_shown(location: str) -> None:
    (problem,) = problems(location=location)
    assert "secret in it" in problem.what
    assert "hunter2" not in str(problem)


@pytest.mark.parametrize(
    "location",
    [
        "s3://bucket/customers",
        "https://crm.acme.example:8443/a@b",
        "the mainframe in Hall 2, ask Bo",
        "ada@db:/exports",
    ],
)
def test_places_without_a_secret_are_fine(location: str) -> None:
    assert problems(location=location) == ()


def test_every_mistake_is_told_at_once() -> None:
    assert len(problems(owner="", location="", fresh_within="x", readers=["nobody"])) == 4


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("6h", 21_600), ("2d", 172_800), ("-1d", None)]
)
def test_durations(text: str, seconds: int | None) -> None:
    assert duration_s(text) == seconds
