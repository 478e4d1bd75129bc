"""Decisions in the lake: what was recorded is what is read, in old lakes too, and an erasure leaves nothing of them."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from named_lake import lake_in, roll, tables_in

from drivetrain.core.calls import Attribution, Call, OutcomeV1, Stored
from drivetrain.core.policies import DecisionV1
from drivetrain.lake.calls import Calls
from drivetrain.lake.columns import CALL_COLUMNS
from drivetrain.lake.erasing import LakeErasing
from drivetrain.lake.lake import Lake
from drivetrain.lake.retention import Keep, maintain
from drivetrain.lake.roller import Roller
from drivetrain.lake.subjects import subject_of
from drivetrain.ledger.reader import LedgerReader
from drivetrain.ports.tables import TableStore
from support.records import DAY_NS, T0_NS, attempt, call_id, closed, opened, write

pytestmark = pytest.mark.slow

ANN = Attribution("acme", "support", "faq", "web", "ann-4711")
BOB = Attribution("acme", "support", "faq", "web", "bob-4712")
REFUND = DecisionV1(
    "refund", "0123456789abcdef", "refund", "ann is known", "row 2", "review", True, 0.05, 0.91, "", b"\x00sealed"
)
PLAIN = DecisionV1("refund", "0123456789abcdef", "review", chosen="review")
FAILED = DecisionV1("refund", "fedcba9876543210", "review", failed="raised KeyError", chosen="ann-4711")


def decided(
    number: int, decision: DecisionV1 | None, who: Attribution = ANN, day: int = 0, **more: Any
) -> list[Stored]:
    """Both frames of a Call."""
    return [
        opened(number, day, attribution=who, **more),
        closed(number, attempt(), day=day, decision=decision),
    ]


class Older:
    """The tables, as software wrote them that knew no Decision."""

    def __init__(self, tables: TableStore) -> None:
        self._tables = tables

    def append(self, table: str, rows: Any, **more: Any) -> bool:
        if table == "calls":
            rows = rows.select([name for name in CALL_COLUMNS if name != "decision"])
        return self._tables.append(table, rows, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tables, name)


def rolled_before(folder: Path) -> None:
    """As `roll`, by such software."""
    Roller(folder, Older(tables_in(folder))).roll()


def columns_in(folder: Path) -> list[set[str]]:
    """The columns of each file of `calls`."""
    files = tables_in(folder).files("calls")
    assert files is not None
    with duckdb.connect() as connection:
        return [set(connection.sql(f"from read_parquet('{path}') limit 0").columns) for path in files.paths]


def decisions(lake: Lake) -> dict[str, DecisionV1 | None]:
    return {call.call_id: call.decision for call in Calls(lake).calls()}


@pytest.mark.parametrize("rolled", [False, True])
def test_a_decision_is_read_as_it_was_recorded(tmp_path: Path, rolled: bool) -> None:
    made = {1: REFUND, 2: PLAIN, 3: None, 4: FAILED}
    for number, one in made.items():
        write(tmp_path, *decided(number, one))
    expected = {call_id(number): one for number, one in made.items()}
    ledger = {call.call_id: call for call in LedgerReader(tmp_path).calls()}
    assert {name: call.decision for name, call in ledger.items()} == expected
    if rolled:
        assert roll(tmp_path) == len(made)
    lake = lake_in(tmp_path)
    found: dict[str, Call] = {call.call_id: call for call in Calls(lake).calls()}
    assert found == ledger
    assert Calls(lake).call(call_id(1)) == ledger[call_id(1)]


@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_of_decisions_comes_back(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)

    def one() -> DecisionV1 | None:
        if chance.random() < 0.3:
            return None
        words = ["", "refund", "ünï 'quoted\"", "\x00", "a" * 300]
        return DecisionV1(
            "p", chance.choice(["v1", "v2"]), chance.choice(words), chance.choice(words), chance.choice(words),
            chance.choice(words), chance.random() < 0.5, chance.choice([1.0, 0.0, 0.05, 1e-300]),
            chance.choice([None, 0.0, -0.0, 1.0, 0.123456789]), chance.choice(words), chance.choice([b"", b"\x00\xff"]),
        )  # fmt: skip

    expected = {call_id(number): one() for number in range(200)}
    write(tmp_path, *[frame for number in range(200) for frame in decided(number, expected[call_id(number)])])
    half = decisions(lake_in(tmp_path))
    roll(tmp_path)
    for found in (half, decisions(lake_in(tmp_path))):
        assert {name: repr(value) for name, value in found.items()} == {  # repr tells 0.0 from -0.0
            name: repr(value) for name, value in expected.items()
        }


def test_decisions_are_a_table_beside_their_outcomes(tmp_path: Path) -> None:
    write(
        tmp_path,
        *decided(1, REFUND, business_key="order-7"),
        *decided(2, PLAIN, BOB),
        *decided(3, None),
        OutcomeV1(call_id(1), "kept", "crm", False, T0_NS, T0_NS + 1),
        OutcomeV1(call_id(1), "kept", "crm", True, T0_NS, T0_NS + 2),
    )
    lake = lake_in(tmp_path)
    for _ in range(2):
        rows = lake.query(
            'select call_id, day, workflow, team, "user", variant, business_key, policy, version, action, reason, '
            "rule, chosen, explored, propensity, confidence, failed, call_status from decisions order by call_id"
        ).rows
        day = datetime(2026, 1, 1, tzinfo=UTC).date()
        assert rows == [
            (call_id(1), day, "triage", "support", "ann-4711", "small", "order-7", "refund", "0123456789abcdef",
             "refund", "ann is known", "row 2", "review", True, 0.05, 0.91, "", "answered"),
            (call_id(2), day, "triage", "support", "bob-4712", "small", "", "refund", "0123456789abcdef",
             "review", "", "", "review", False, 1.0, None, "", "answered"),
        ]  # fmt: skip
        truth = lake.query(
            "select d.action, o.value from decisions d left join outcomes o using (call_id) order by d.call_id"
        )
        assert truth.rows == [("refund", "true"), ("review", None)]
        assert lake.query("select action, count(*) from decisions where day >= '2026-01-01' group by 1").rows
        roll(tmp_path)


# A lake from before.


def test_an_older_lake_is_read_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, *decided(1, None))
    rolled_before(tmp_path)
    assert all("decision" not in columns for columns in columns_in(tmp_path))
    lake = lake_in(tmp_path)
    assert decisions(lake) == {call_id(1): None}
    assert lake.query("select count(*) from decisions").rows == [(0,)]
    write(tmp_path, *decided(2, REFUND))
    assert decisions(lake) == {call_id(1): None, call_id(2): REFUND}
    assert lake.query("select action from decisions").rows == [("refund",)]


def test_an_older_lake_takes_decisions_from_then_on(tmp_path: Path) -> None:
    write(tmp_path, *decided(1, None), *decided(2, None, day=1))
    rolled_before(tmp_path)
    write(tmp_path, *decided(3, REFUND), *decided(4, FAILED, day=2))
    assert roll(tmp_path) == 2
    had = ["decision" in columns for columns in columns_in(tmp_path)]
    assert (had.count(False), had.count(True)) == (2, 2)
    expected = {call_id(1): None, call_id(2, 1): None, call_id(3): REFUND, call_id(4, 2): FAILED}
    assert decisions(lake_in(tmp_path)) == expected
    assert Calls(lake_in(tmp_path)).call(call_id(2, 1)) is not None
    # Compacted and with its oldest day written anew, it says the same.
    assert tables_in(tmp_path).compact("calls") > 0
    assert decisions(lake_in(tmp_path)) == expected


def test_retention_rewrites_an_older_day_of_a_newer_table(tmp_path: Path) -> None:
    """Its files lack a column that the table has by now."""
    write(tmp_path, *decided(1, None), *decided(2, None, workflow="other"))
    rolled_before(tmp_path)
    write(tmp_path, *decided(3, REFUND, day=1))
    roll(tmp_path)
    now_ns = T0_NS + 40 * DAY_NS
    done = maintain(
        tmp_path, tables_in(tmp_path), keep=Keep(workflows={"other": 1}), history_s=0, now_ns=lambda: now_ns
    )
    assert done.calls == 1
    assert decisions(lake_in(tmp_path)) == {call_id(1): None, call_id(3, 1): REFUND}


# A person's.


def searched(folder: Path) -> bytes:
    """All bytes of the table's folder, and what its Parquet files hold and say about themselves."""
    found = b""
    for path in (folder / "lake").rglob("*"):
        if path.is_file():
            found += path.read_bytes()
            if path.suffix == ".parquet":
                with duckdb.connect() as connection:
                    for said in ("read_parquet", "parquet_metadata"):
                        rows = connection.execute(f"SELECT CAST(COLUMNS(*) AS VARCHAR) FROM {said}(?)", [str(path)])
                        found += "\0".join(cell or "" for row in rows.fetchall() for cell in row).encode()
    return found


def erase(folder: Path, who: str) -> int:
    erasing = LakeErasing(tables_in(folder), subject_of(who), lambda workflow, key: "token")
    before = erasing.count(lake_in(folder)).calls
    changed = erasing.erase_calls()
    assert changed == before
    assert erasing.count(lake_in(folder)).calls == 0, "done twice it finds nothing"
    return changed


def test_an_erasure_leaves_the_action_and_nothing_that_was_said(tmp_path: Path) -> None:
    write(tmp_path, *decided(1, REFUND), *decided(2, FAILED), *decided(3, REFUND, BOB), *decided(4, PLAIN, BOB))
    roll(tmp_path)
    counted = (
        "select policy, version, action, rule, explored, propensity, confidence, count(*) from decisions "
        "group by all order by all"
    )
    before = lake_in(tmp_path).query(counted).rows
    content = searched(tmp_path)
    assert b"ann is known" in content
    assert b"raised KeyError" in content
    assert erase(tmp_path, "ann-4711") == 2
    found = decisions(lake_in(tmp_path))
    assert found[call_id(1)] == DecisionV1(
        "refund", "0123456789abcdef", "refund", "erased", "row 2", "review", True, 0.05, 0.91
    )
    assert found[call_id(2)] == DecisionV1("refund", "fedcba9876543210", "review", failed="erased", chosen="erased")
    assert (found[call_id(3)], found[call_id(4)]) == (REFUND, PLAIN)
    assert lake_in(tmp_path).query(counted).rows == before
    content = searched(tmp_path)
    assert b"raised KeyError" not in content
    assert b"ann-4711" not in content
    assert content.count(b"ann is known"), "somebody else's stays"
    assert erase(tmp_path, "bob-4712") == 2
    content = searched(tmp_path)
    assert b"ann is known" not in content
    assert b"\x00sealed" not in content


@pytest.mark.parametrize("newer", [False, True])
def test_an_older_lake_can_be_erased_from(tmp_path: Path, newer: bool) -> None:
    write(tmp_path, *decided(1, None), *decided(2, None, BOB))
    rolled_before(tmp_path)
    if newer:
        write(tmp_path, *decided(3, REFUND))
        roll(tmp_path)
    assert erase(tmp_path, "ann-4711") == 1 + newer
    found = decisions(lake_in(tmp_path))
    assert (found[call_id(1)], found[call_id(2)]) == (None, None)
    content = searched(tmp_path)
    assert b"ann-4711" not in content
    write(tmp_path, *decided(4, REFUND, BOB))
    roll(tmp_path)
    assert decisions(lake_in(tmp_path))[call_id(4)] == REFUND


def test_the_tables_log_says_nothing_of_a_decision(tmp_path: Path) -> None:
    write(tmp_path, *decided(1, REFUND), *decided(2, PLAIN))
    roll(tmp_path)
    said = b"".join(path.read_bytes() for path in (tmp_path / "lake").rglob("_delta_log/*"))
    assert b"opened_ns" in said
    for word in (b"ann is known", b"row 2", b"review"):
        assert word not in said
