"""Outcomes through the public door: every shape, every mistake, and what the ledger shows of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from drivetrain.cli import calls, cost
from drivetrain.core.calls import Outcome
from drivetrain.core.times import iso
from drivetrain.lake.costs import LedgerQueries
from drivetrain.ledger.frames import segments
from drivetrain.ledger.reader import LedgerReader, collect_outcomes
from support import wire
from support.lakes import lake_at
from support.projects import model, provider, settings, workflow
from support.served import Served, served

pytestmark = pytest.mark.slow

KEY = "client-key-abcdefghij-very-secret"
OTHER_KEY = "other-key-klmnopqrst-very-secret"
UNKNOWN = "call_0123456789abcdef0123456789abcd"
DAY_NS = 86_400 * 10**9

app = typer.Typer()
app.add_typer(calls.app, name="calls")
app.command("cost")(cost.cost_command)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    tables = [
        provider("none", "http://127.0.0.1:9/v1"),
        model("none/m"),
        '[keys.app]\nsecret = "env:CLIENT_KEY"\n[keys.labels]\nsecret = "env:OTHER_KEY"\n',
        workflow("ruled", '{ rule = "all", matches = ".", answer = "by rule" }', "none/m"),
    ]
    files = {"drivetrain.toml": settings(tables="".join(tables))}
    with served(files, {"CLIENT_KEY": KEY, "OTHER_KEY": OTHER_KEY}) as running:
        yield running
        assert running.alive
        assert not running.faults, "\n".join(running.faults)


@pytest.fixture
def call_id(gateway: Served) -> str:
    """The id of a fresh Call."""
    raw = wire.request({"model": "ruled", "messages": [{"role": "user", "content": "hi"}]}, key=KEY)
    return wire.one(gateway.port, raw).headers["x-request-id"]


def sent(gateway: Served, body: Any, *, key: str | None = KEY) -> wire.Answered:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return wire.one(gateway.port, wire.request(raw, path="/v1/outcomes", key=key))


def recorded(gateway: Served, body: Any, **more: Any) -> int:
    answer = sent(gateway, body, **more)
    assert answer.status == 200, answer
    assert answer.json["object"] == "outcomes"
    return int(answer.json["recorded"])


def refused(gateway: Served, body: Any, named: str = "") -> dict[str, Any]:
    answer = sent(gateway, body)
    assert answer.status == 400, answer
    error = answer.error
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]
    assert len(answer.body) < 2_000
    return error


def of(gateway: Served, call_id: str) -> list[Outcome]:
    return list(gateway.call(call_id).outcomes)


def values(gateway: Served, call_id: str) -> dict[tuple[str, str], Any]:
    return {(one.metric, one.source): one.value for one in of(gateway, call_id)}


def all_outcomes(gateway: Served) -> dict[str, tuple[Outcome, ...]]:
    """Those of calls that the ledger does not hold, too."""
    return collect_outcomes(segments(gateway.data_folder))


def command(gateway: Served, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--project", str(gateway.root)])


def good(call_id: str, **more: Any) -> dict[str, Any]:
    return {"call_id": call_id, "metric": "solved", "value": True, **more}


# What is taken.


def test_one_a_list_and_an_object_of_them(gateway: Served, call_id: str) -> None:
    before = time.time_ns()
    assert recorded(gateway, good(call_id)) == 1
    assert recorded(gateway, [good(call_id, metric="stars", value=4), good(call_id, metric="note", value="fine")]) == 2
    assert recorded(gateway, {"outcomes": [good(call_id, source="agent", value=False)]}) == 1
    found = of(gateway, call_id)
    assert [(one.metric, one.source, one.value) for one in found] == [
        ("note", "api", "fine"),
        ("solved", "agent", False),
        ("solved", "api", True),
        ("stars", "api", 4.0),
    ]
    for one in found:
        assert before <= one.event_ns == one.arrived_ns <= time.time_ns()


@pytest.mark.parametrize("empty", [[], {"outcomes": []}], ids=["list", "object"])
def test_none_at_all_is_a_400(gateway: Served, empty: Any) -> None:
    refused(gateway, empty, "between 1 and 10000")


@pytest.mark.parametrize(
    "value", [True, False, 0, 1, -1, 0.5, 4, 2**53, -1e300, "", "yes", "é\n\t", "x" * 4_096], ids=lambda v: str(v)[:20]
)
def test_values_come_back_as_they_were_given(gateway: Served, call_id: str, value: Any) -> None:
    recorded(gateway, good(call_id, value=value))
    (one,) = of(gateway, call_id)
    assert one.value == value
    assert isinstance(one.value, bool) == isinstance(value, bool)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31T12:00:00.123456Z", "2026-01-31T12:00:00.123Z"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00.000Z"),
        ("2026-01-31T12:00:00", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31 12:00", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31", "2026-01-31T00:00:00.000Z"),
        ("20260131T120000Z", "2026-01-31T12:00:00.000Z"),
        ("1969-12-31T23:59:59Z", "1969-12-31T23:59:59.000Z"),
        (None, None),
    ],
)
def test_the_time_of_the_event(gateway: Served, call_id: str, given: str | None, meant: str | None) -> None:
    recorded(gateway, good(call_id, event_time=given))
    (one,) = of(gateway, call_id)
    if meant is None:
        assert one.event_ns == one.arrived_ns
    else:
        assert iso(one.event_ns) == meant
        assert time.time_ns() - one.arrived_ns < 60 * 10**9


# What holds.


def test_the_last_arrival_holds_whatever_its_event_and_its_value(gateway: Served, call_id: str) -> None:
    for value, event_time in (("b", "2026-01-02"), ("z", "2026-01-03"), ("a", "2026-01-01")):
        recorded(gateway, good(call_id, value=value, event_time=event_time))
        assert values(gateway, call_id) == {("solved", "api"): value}
    assert iso(of(gateway, call_id)[0].event_ns) == "2026-01-01T00:00:00.000Z"


def test_a_correction_may_change_the_type_and_touches_nothing_else(gateway: Served, call_id: str) -> None:
    recorded(gateway, [good(call_id), good(call_id, source="agent"), good(call_id, metric="stars", value=1)])
    recorded(gateway, good(call_id, value="partly"))
    assert values(gateway, call_id) == {
        ("solved", "api"): "partly",
        ("solved", "agent"): True,
        ("stars", "api"): 1.0,
    }


def test_sending_the_same_again_changes_nothing(gateway: Served, call_id: str) -> None:
    one = good(call_id, value=3, event_time="2026-01-31")
    for _ in range(3):
        recorded(gateway, [one, one])
    assert values(gateway, call_id) == {("solved", "api"): 3.0}
    table = LedgerQueries(lake_at(gateway.data_folder)).outcomes("solved", ("variant",))
    assert sum(row.count for row in table.rows) == len(
        [found for held in all_outcomes(gateway).values() for found in held if found.metric == "solved"]
    )


@pytest.mark.parametrize(("first", "second"), [("wrong", "corrected"), ("a", "b"), (True, False), (9, 10)])
def test_of_one_list_the_last_holds(gateway: Served, call_id: str, first: Any, second: Any) -> None:
    recorded(gateway, [good(call_id, value=first), good(call_id, value=second)])
    assert values(gateway, call_id) == {("solved", "api"): second}


def test_another_keys_outcome_of_the_same_source_corrects_too(gateway: Served, call_id: str) -> None:
    recorded(gateway, good(call_id, value=1))
    recorded(gateway, good(call_id, value=2), key=OTHER_KEY)
    assert values(gateway, call_id) == {("solved", "api"): 2.0}


# What is refused.

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no-call": ({"call_id": ...}, "call_id"),
    "call-number": ({"call_id": 5}, "call_id"),
    "call-null": ({"call_id": None}, "call_id"),
    "call-text": ({"call_id": "chatcmpl-1"}, "call_id"),
    "call-short": ({"call_id": UNKNOWN[:-1]}, "call_id"),
    "call-long": ({"call_id": UNKNOWN + "0"}, "call_id"),
    "call-capitals": ({"call_id": "call_" + "A" * 30}, "call_id"),
    "call-other-digits": ({"call_id": "call_" + "\u0660" * 30}, "call_id"),
    "call-huge": ({"call_id": "call_" + "0" * 100_000}, "call_id"),
    "no-metric": ({"metric": ...}, "metric"),
    "metric-null": ({"metric": None}, "metric"),
    "metric-number": ({"metric": 5}, "metric"),
    "metric-empty": ({"metric": ""}, "metric"),
    "metric-long": ({"metric": "m" * 129}, "metric"),
    "metric-huge": ({"metric": "m" * 1_000_000}, "metric"),
    "metric-line-feed": ({"metric": "a\nb"}, "metric"),
    "metric-escape": ({"metric": "\x1b[31mred"}, "metric"),
    "source-null": ({"source": None}, "source"),
    "source-list": ({"source": ["a"]}, "source"),
    "source-empty": ({"source": ""}, "source"),
    "source-long": ({"source": "s" * 129}, "source"),
    "no-value": ({"value": ...}, "value"),
    "value-null": ({"value": None}, "value"),
    "value-list": ({"value": [1]}, "value"),
    "value-object": ({"value": {"a": 1}}, "value"),
    "value-long": ({"value": "x" * 4_097}, "value"),
    "value-huge": ({"value": "x" * 1_000_000}, "value"),
    "value-beyond-floats": ({"value": 10**400}, "value"),
    "value-beyond-negative-floats": ({"value": -(10**400)}, "value"),
    "time-number": ({"event_time": 1_767_225_600}, "event_time"),
    "time-true": ({"event_time": True}, "event_time"),
    "time-empty": ({"event_time": ""}, "event_time"),
    "time-words": ({"event_time": "yesterday"}, "event_time"),
    "time-day-32": ({"event_time": "2026-01-32"}, "event_time"),
    "time-zone": ({"event_time": "2026-01-31T12:00:00 CET"}, "event_time"),
    "time-list": ({"event_time": ["2026-01-31"]}, "event_time"),
    "time-year-1": ({"event_time": "0001-01-01"}, "event_time"),
    "time-year-2400": ({"event_time": "2400-01-01"}, "event_time"),
    "time-year-9999": ({"event_time": "9999-12-31T23:59:59Z"}, "event_time"),
    "time-before-year-1": ({"event_time": "0001-01-01T00:00:00+23:59"}, "event_time"),
    "time-huge": ({"event_time": "2" * 1_000_000}, "event_time"),
}


@pytest.mark.parametrize(("change", "field"), WRONG.values(), ids=WRONG)
def test_a_wrong_field_is_a_400_that_names_it_and_nothing_is_recorded(
    gateway: Served, call_id: str, change: dict[str, Any], field: str
) -> None:
    wrong = {name: value for name, value in {**good(call_id), **change}.items() if value is not ...}
    assert refused(gateway, wrong, f"outcomes[0].{field}")["param"] == f"outcomes[0].{field}"
    several = [good(call_id), good(call_id, metric="other"), wrong, good(call_id, metric="last")]
    assert refused(gateway, several, f"outcomes[2].{field}")["param"] == f"outcomes[2].{field}"
    assert of(gateway, call_id) == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e999", "0x10", "01", "1" + "0" * 5_000])
def test_a_number_that_is_no_json_is_a_400(gateway: Served, call_id: str, number: str) -> None:
    raw = json.dumps(good(call_id, value="HERE")).replace('"HERE"', number).encode()
    assert refused(gateway, raw, "JSON")["code"] == "invalid_json"
    assert of(gateway, call_id) == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"\xff", b'{"call_id": "\xff"}', b'{"metric": "\\ud800"}', b"[" * 100_000],
    ids=["empty", "half", "words", "byte", "utf8", "surrogate", "deep"],
)
def test_a_body_that_is_no_json_is_a_400(gateway: Served, body: bytes) -> None:
    assert refused(gateway, body)["code"] == "invalid_json"


@pytest.mark.parametrize("body", ["text", 5, None, True, ["text"], [[]], [None], {"outcomes": [5]}, {"outcomes": "x"}])
def test_what_is_no_object_is_a_400(gateway: Served, body: Any) -> None:
    assert refused(gateway, body, "outcomes[0]")["param"] == "outcomes[0]"


@pytest.mark.parametrize(
    ("name", "near"),
    [("callid", "call_id"), ("metrics", "metric"), ("vlaue", "value"), ("sources", "source"), ("eventtime", "event")],
)
def test_an_unknown_field_is_a_400_with_the_nearest_name(gateway: Served, call_id: str, name: str, near: str) -> None:
    error = refused(gateway, good(call_id, **{name: "x"}), f"`{name}`")
    assert f"Did you mean `{near}" in error["message"]
    assert of(gateway, call_id) == []


def test_an_unknown_field_of_any_length_is_shown_short(gateway: Served, call_id: str) -> None:
    refused(gateway, good(call_id, **{"x" * 1_000_000: 1}), "has no field")


@pytest.mark.parametrize("more", [{"source": "agent"}, {"outcome": []}, {"event_time": "2026-01-31"}], ids=str)
def test_a_field_beside_the_list_is_refused_rather_than_lost(
    gateway: Served, call_id: str, more: dict[str, Any]
) -> None:
    """A client that writes `source` once for all would lose it without a word."""
    (name,) = more
    refused(gateway, {"outcomes": [good(call_id)], **more}, f"`{name}`")
    assert of(gateway, call_id) == []


@pytest.mark.parametrize("key", [None, "", "wrong", KEY[:-1]])
def test_without_a_good_key_nothing_is_recorded(gateway: Served, call_id: str, key: str | None) -> None:
    answer = sent(gateway, good(call_id), key=key)
    assert answer.status == 401
    assert of(gateway, call_id) == []


def test_only_post_is_answered(gateway: Served) -> None:
    answer = wire.one(gateway.port, wire.request(method="GET", path="/v1/outcomes", key=KEY))
    assert answer.status == 405


# What the ledger makes of them.


def test_an_outcome_of_a_call_that_nobody_knows_is_kept_and_harms_nothing(gateway: Served, call_id: str) -> None:
    before = {one.call_id: one.cost_nano_usd for one in gateway.calls()}
    assert recorded(gateway, good(UNKNOWN, metric="lost", value="kept")) == 1
    assert [(one.metric, one.value) for one in all_outcomes(gateway)[UNKNOWN]] == [("lost", "kept")]
    reader = LedgerReader(gateway.data_folder)
    assert reader.call(UNKNOWN) is None
    assert {one.call_id: one.cost_nano_usd for one in reader.calls()} == before
    assert all(one.kind == "torn" for one in reader.problems)
    listed = command(gateway, "calls", "--limit", "1000")
    assert listed.exit_code == 0, listed.output
    assert call_id in listed.output
    assert UNKNOWN not in listed.output
    priced = command(gateway, "cost", "--json")
    assert priced.exit_code == 0, priced.output
    assert json.loads(priced.stdout)["total"]["calls"] == len(before)
    counted = LedgerQueries(lake_at(gateway.data_folder)).outcomes("lost", ("variant",))
    assert sum(row.count for row in counted.rows) in (0, 1)


def test_every_outcome_that_was_taken_can_be_read_and_counted(gateway: Served, call_id: str) -> None:
    """What the door lets in may break no command: extreme values and times."""
    times = ["1700-01-01", "1969-12-31T23:59:59Z", "2100-01-01", "2261-12-31"]
    extreme = [
        good(call_id, metric="wide", source=at, event_time=at, value=value) for at in times for value in (1e308,)
    ]
    recorded(gateway, [*extreme, good(call_id, metric="wide", source="text", value="\x00\x1b[2J' OR 1=1 --")])
    counted = LedgerQueries(lake_at(gateway.data_folder)).outcomes("wide", ("variant", "value"))
    assert sum(row.count for row in counted.rows) == 5
    for arguments in (("calls",), ("calls", "--json"), ("calls", "show", call_id), ("cost",)):
        said = command(gateway, *arguments)
        assert said.exit_code == 0, (arguments, said.output)
        assert "\x1b[2J" not in said.output
        assert "\x00" not in said.output


def test_outcomes_are_counted_by_what_answered(gateway: Served, call_id: str) -> None:
    recorded(gateway, good(call_id, metric="counted", value=2))
    recorded(gateway, good(call_id, metric="counted", value=4))
    recorded(gateway, good(call_id, metric="counted", source="agent", value=6))
    (row,) = LedgerQueries(lake_at(gateway.data_folder)).outcomes("counted", ("variant",)).rows
    assert row.keys == ("all",)
    assert row.count == 2


def test_keys_stand_in_nothing_that_was_written(gateway: Served, call_id: str) -> None:
    recorded(gateway, good(call_id))
    written = gateway.everything_written()
    assert KEY.encode() not in written
    assert OTHER_KEY.encode() not in written


def test_ten_thousand_at_once_and_not_one_more(gateway: Served, call_id: str) -> None:
    """Stands last: it makes the ledger slower to read."""
    many = [good(call_id, metric=f"m{number}") for number in range(10_001)]
    error = refused(gateway, many, "10000")
    assert error["param"] == "outcomes"
    assert of(gateway, call_id) == []
    assert recorded(gateway, many[:-1]) == 10_000
    assert len(of(gateway, call_id)) == 10_000
