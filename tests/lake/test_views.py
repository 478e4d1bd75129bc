"""The named tables: the same rows whether rolled or not, what holds now, and tables of other rooms."""

from __future__ import annotations

import random
import re
from datetime import date, datetime
from pathlib import Path

import duckdb
import pytest
from named_lake import ended, lake_in, roll, tables_in

from drivetrain.core.calls import Attribution, Call, OutcomeV1, Stored
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.features import FeaturesSeenV1
from drivetrain.lake.calls import Calls, Wanted
from drivetrain.lake.lake import Lake
from drivetrain.ledger.reader import LedgerReader
from support.records import T0_NS, attempt, call_id, closed, opened, write

pytestmark = pytest.mark.slow

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "lake.md"
DAY_NS = 86_400 * 10**9
ANN = Attribution("acme", "support", "faq", "web", "ann", ("beta", "env=prod"))


def rich(folder: Path) -> None:
    """Calls of every kind over three days, and Outcomes."""
    records: list[Stored] = [
        opened(
            1, attribution=Attribution("acme", "support", "faq", "web", "ann", ("beta", "env=prod")), payload=b"\x00q"
        ),
        closed(
            1,
            attempt("small", 10, verdict="escalated", reason="too short"),
            attempt("large", 500, purpose="escalation", cached=True, saved_nano_usd=7),
            payload=b"\xffa",
            notes=("dropped 2 turns",),
        ),
        opened(2, business_key="order-7", features=FeaturesSeenV1("svc", "f" * 16, 5, ("v",), ("customer",), b"s")),
        closed(2, status="refused", error="over_budget", http_status=429),
        opened(3, business_key="order-7"),
        closed(3, attempt("small", 20), degraded="stale"),
        opened(86_400_000, workflow="other", business_key="order-7"),
        closed(86_400_000, attempt("small", 30)),
        opened(2 * 86_400_000),
        OutcomeV1(call_id(1), "ok", "human", False, T0_NS, T0_NS + 10, key="web"),
        OutcomeV1(call_id(1), "ok", "human", True, T0_NS, T0_NS + 20),
        OutcomeV1(call_id(1), "ok", "crm", False, T0_NS, T0_NS + 15),
        OutcomeV1(call_id(2), "stars", "human", 4.5, T0_NS, T0_NS + 10),
        OutcomeV1(call_id(999), "ok", "human", True, T0_NS, T0_NS + 10),
        OutcomeV1("", "paid", "erp", True, T0_NS, T0_NS + 30, workflow="triage", business_key="order-7"),
        OutcomeV1("", "paid", "erp", False, T0_NS, T0_NS + 30, workflow="triage", business_key="nobody"),
        OutcomeV1(call_id(3), "paid", "erp", False, T0_NS, T0_NS + 40),
    ]
    write(folder, *records)


@pytest.fixture(params=["segments", "rolled", "half"])
def lake(tmp_path: Path, request: pytest.FixtureRequest) -> Lake:
    if request.param == "half":
        write(tmp_path, opened(5), closed(5, attempt()), OutcomeV1(call_id(3), "paid", "erp", True, T0_NS, T0_NS + 1))
        roll(tmp_path)
    rich(tmp_path)
    if request.param != "half":
        write(tmp_path, opened(5), closed(5, attempt()), OutcomeV1(call_id(3), "paid", "erp", True, T0_NS, T0_NS + 1))
    if request.param == "rolled":
        assert roll(tmp_path) == 6
    return lake_in(tmp_path)


def test_every_table_is_the_same_rolled_or_not(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("unrolled")
    rich(other)
    write(other, opened(5), closed(5, attempt()), OutcomeV1(call_id(3), "paid", "erp", True, T0_NS, T0_NS + 1))
    plain = lake_in(other)
    assert lake.named() == plain.named()
    for table in plain.named():
        # Sums of two rolls are two rows of `spend`, so they are added up.
        query = f"select * from {table.name} order by all" if table.name != "spend" else (
            "select day, team, status, variant, model, purpose, tags, sum(calls), sum(attempts), sum(output_tokens), "
            "sum(cost_nano_usd) from spend group by all order by all"
        )  # fmt: skip
        assert lake.query(query).rows == plain.query(query).rows, table.name


def test_calls_and_attempts(lake: Lake) -> None:
    found = lake.query(
        "select call_id, day, opened, closed, latency_ms, status, tags, http_status from calls "
        "where workflow = 'triage'"
    )
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows[call_id(1)] == (
        date(2026, 1, 1), datetime(2026, 1, 1, 0, 0, 0, 1_000), datetime(2026, 1, 1, 0, 0, 0, 8_000), 7.0, "answered",
        ["beta", "env=prod"], 200,
    )  # fmt: skip
    assert rows[call_id(2 * 86_400_000)][2:5] == (None, None, "interrupted")
    attempts = lake.query(
        "select number, variant, purpose, call_status, cost_nano_usd, saved_nano_usd from attempts "
        f"where call_id = '{call_id(1)}' order by number"
    )
    assert attempts.rows == [(1, "small", "answer", "answered", 10, 0), (2, "large", "escalation", "answered", 500, 7)]


def test_outcomes_are_what_holds_now(lake: Lake) -> None:
    held = lake.query("select call_id, metric, source, value, number from outcomes order by all").rows
    assert held == sorted(
        [
            (call_id(1), "ok", "crm", "false", 0.0),
            (call_id(1), "ok", "human", "true", 1.0),
            (call_id(2), "stars", "human", "4.5", 4.5),
            (call_id(999), "ok", "human", "true", 1.0),
            # By its key it reaches both Calls of the workflow; what names Call 3 itself came later, and holds there.
            (call_id(2), "paid", "erp", "true", 1.0),
            (call_id(3), "paid", "erp", "false", 0.0),
        ]
    )
    assert lake.query("select count(*) from outcomes_history").rows == [(9,)]


def test_whole_calls_are_the_ledgers(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("unrolled")
    rich(other)
    write(other, *[opened(5), closed(5, attempt())], OutcomeV1(call_id(3), "paid", "erp", True, T0_NS, T0_NS + 1))
    expected = {call.call_id: call for call in LedgerReader(other).calls()}
    calls = Calls(lake)
    assert {call.call_id: call for call in calls.calls()} == expected
    for one in expected.values():
        assert calls.call(one.call_id) == one
    assert calls.call(call_id(77)) is None
    assert calls.call("call_x'; drop table calls") is None


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(team="support"),
        Wanted(workflow="other"),
        Wanted(status="refused"),
        Wanted(variant="small"),
        Wanted(since_ns=T0_NS + 2_000_000, until_ns=T0_NS + DAY_NS + 1),
        Wanted(since_ns=T0_NS + DAY_NS),
    ],
)
def test_calls_are_chosen_as_they_are_matched(lake: Lake, wanted: Wanted) -> None:
    calls = Calls(lake)
    every: list[Call] = sorted(calls.calls(), key=lambda call: call.opened_ns, reverse=True)
    expected = [call.call_id for call in every if wanted.matches(call)]
    assert expected
    assert [call.call_id for call in calls.calls(wanted, newest=100)] == expected
    assert [call.call_id for call in calls.calls(wanted, newest=1)] == expected[:1]
    assert sorted(call.call_id for call in calls.calls(wanted)) == sorted(expected)
    (first, *_) = calls.calls(Wanted(), newest=1, outcomes=False, payloads=False)
    assert (first.request, first.answers, first.outcomes) == (b"", b"", ())


def test_other_rooms_register_their_tables(tmp_path: Path) -> None:
    path, newer = tmp_path / "one'file.parquet", tmp_path / "two.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"copy (select 1 as id, 'x' as label) to '{str(path).replace(chr(39), chr(39) * 2)}'")
        connection.execute(f"copy (select 2 as id, true as fresh) to '{newer}'")
    asked: list[str] = []

    def datasets() -> dict[str, list[Path]]:
        asked.append("dataset")
        return {"golden": [path, newer], "golden@1": [path], "Empty": []}

    def broken() -> dict[str, list[Path]]:
        raise AssertionError("nobody named it")

    write(tmp_path, *ended(1))
    lake = Lake(tmp_path, registered={"dataset": datasets, "feature": broken})
    assert lake.query("select count(*) from calls").rows == [(1,)]
    assert not asked
    assert lake.query("select * from dataset.golden order by id").rows == [(1, "x", None), (2, None, True)]
    assert lake.query('select count(*) from dataset."golden@1", calls').rows == [(1,)]
    with pytest.raises(DrivetrainError, match=r"Did you mean `dataset\.golden`"):
        lake.query("select * from dataset.goldn")
    with pytest.raises(DrivetrainError, match="There is no table"):
        lake.query("select * from dataset.empty")
    extra = {("mine", "more"): [newer]}
    with Lake(tmp_path).connect(extra) as connection:
        assert connection.execute("select m.id from mine.more m, calls").fetchall() == [(2,)]


def test_pushed_rows_are_a_table(tmp_path: Path) -> None:
    tables = tables_in(tmp_path)
    with duckdb.connect() as connection:
        rows = connection.sql("select 'ann' as who, 3 as n, date '2026-01-01' as day")
        tables.append("push/clicks", rows, partition_by=("day",))
    lake = Lake(tmp_path, tables)
    assert lake.query("select who, n, day from push.clicks").rows == [("ann", 3, date(2026, 1, 1))]
    assert "push.clicks" in {table.name for table in lake.named()}


def test_the_reference_names_every_table_and_column(tmp_path: Path) -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    for table in lake_in(tmp_path).named():
        _, _, section = text.partition(f"### `{table.name}`")
        assert section, f"{table.name} is in no heading"
        told = set(re.findall(r"`([a-z_0-9]+)`", section.partition("\n##")[0]))
        assert set(table.columns) <= told, f"{table.name}: {set(table.columns) - told}"


def test_only_the_days_in_question_are_read(tmp_path: Path) -> None:
    """The other days' files are broken, and nobody notices."""
    for day in range(3):
        write(tmp_path, opened(day * 86_400_000), closed(day * 86_400_000, attempt(cost_nano_usd=day)))
    roll(tmp_path)
    for path in (tmp_path / "lake" / "tables" / "calls").glob("day=2026-01-0[12]/*.parquet"):
        path.write_bytes(random.Random(7).randbytes(100))
    lake = lake_in(tmp_path)
    with lake.connect(only=("calls",), days=["2026-01-03"]) as connection:
        assert connection.execute("select sum(cost_nano_usd) from calls").fetchall() == [(2,)]
    found = Calls(lake).call(call_id(2 * 86_400_000))
    assert found is not None
    assert found.cost_nano_usd == 2
