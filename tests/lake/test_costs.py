"""Costs: every grouping adds up to the ledger's total, rolled or not, and the rollup says what the Calls say."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from named_lake import lake_in, roll

from drivetrain.core.calls import Attribution, OutcomeV1, Stored
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.money import Usage
from drivetrain.lake.costs import ATTEMPT_DIMENSIONS, CALL_DIMENSIONS, LedgerQueries
from drivetrain.ledger.journal import FrameJournal
from drivetrain.ledger.reader import LedgerReader
from support.records import LAW, T0_NS, attempt, call_id, closed, opened, write

pytestmark = pytest.mark.slow

DIMENSIONS = (*CALL_DIMENSIONS, *ATTEMPT_DIMENSIONS, "tag:env", "tag:o'clock")
NAMES = st.sampled_from(["", "a", "b c", "ä=ö", "'; DROP TABLE calls; --", '"', "\0", "😀"])
TAGS = st.lists(st.sampled_from(["env=prod", "env=dev", "env", "o'clock=5", "x", "a, b"]), max_size=3, unique=True)
TOKENS = st.integers(0, 10**12)


@st.composite
def calls(draw: st.DrawFn) -> list[Stored]:
    records: list[Stored] = []
    for number in range(draw(st.integers(0, 12))):
        who = Attribution(*[draw(NAMES) for _ in range(5)], tuple(sorted(draw(TAGS))))
        records.append(opened(number * 7_000_000, workflow=draw(NAMES), attribution=who, snapshot=draw(NAMES)))
        if draw(st.integers(0, 5)) == 0:
            continue
        attempts = [
            attempt(
                draw(NAMES),
                draw(st.integers(0, 10**18)),
                model=draw(NAMES),
                verdict=draw(st.sampled_from(["accepted", "escalated", "failed", "sent"])),
                purpose=draw(st.sampled_from(["answer", "escalation", "fallback", "retry"])),
                usage=Usage(draw(TOKENS), draw(TOKENS), 0, 0, draw(TOKENS), draw(TOKENS), "reported"),
            )
            for _ in range(draw(st.integers(0, 3)))
        ]
        fields: dict[str, object] = {"status": draw(st.sampled_from(["answered", "failed", "refused", "aborted"]))}
        if draw(st.booleans()):
            # What no attempt carries, such as a reservation settled after a crash.
            fields["cost_nano_usd"] = sum(one.cost_nano_usd for one in attempts) + draw(st.integers(-5, 10**9))
        records.append(closed(number * 7_000_000, *attempts, **fields))
    return records


@settings(LAW, max_examples=8)
@given(
    records=calls(),
    by=st.lists(st.sampled_from(DIMENSIONS), max_size=3, unique=True),
    live=st.booleans(),
    rolls=st.sets(st.integers(0, 24), max_size=2),
    attribute=st.sampled_from(sorted(ATTEMPT_DIMENSIONS)),
    where=st.sampled_from(
        [{}, {"variant": "a"}, {"model": ""}, {"purpose": "retry"}, {"tag:env": ["prod", ""], "variant": "a"}]
    ),
)
def test_law_every_grouping_adds_up_to_the_ledgers_total(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[Stored],
    by: list[str],
    live: bool,
    rolls: set[int],
    attribute: str,
    where: dict[str, str | list[str]],
) -> None:
    """Whatever was rolled before the rest was written; and `spend` says the same as `calls`, to the nano-dollar."""
    folder = tmp_path_factory.mktemp("law")
    journal = FrameJournal(folder)
    queries = LedgerQueries(lake_in(folder))
    for place, record in enumerate(records):
        if place in rolls:
            journal.flush()
            roll(folder)
            queries.cost()
        journal.append(record)
    journal.flush()
    if not live:
        journal.close()
    ledger = list(LedgerReader(folder).calls())
    total = sum(call.cost_nano_usd for call in ledger)
    for names in (by, [attribute]):
        table = queries.cost(names)
        assert table.total.cost_nano_usd == total
        assert table.total.calls == len(ledger)
        for measure in ("cost_nano_usd", "attempts", "input_tokens", "input_cached_tokens", "output_tokens"):
            rows = table.rows if names else (table.total,)
            assert sum(getattr(row, measure) for row in rows) == getattr(table.total, measure), (names, measure)
        assert table.total.attempts == sum(len(call.attempts) for call in ledger)
        assert table.total.output_tokens == sum(a.usage.output_tokens for call in ledger for a in call.attempts)
        assert len({row.keys for row in table.rows}) == len(table.rows)
    assert_same_money(queries, by, {})
    assert_same_money(queries, ["day", attribute], where)
    if not live:
        shutil.rmtree(folder)
    journal.close()


def assert_same_money(queries: LedgerQueries, by: list[str], where: dict[str, str | list[str]]) -> None:
    """The rollup, which answers where only money is asked for, against the Calls themselves."""
    for since_ns, until_ns in ((0, None), (T0_NS, T0_NS + 3 * 86_400 * 10**9)):
        every = queries.cost(by, where=where, since_ns=since_ns, until_ns=until_ns)
        money = queries.cost(by, where=where, since_ns=since_ns, until_ns=until_ns, money_only=True)
        rows = [
            msgspec.structs.replace(row, escalated_share=None, p50_ms=None, p95_ms=None, p99_ms=None)
            for row in (*every.rows, every.total)
        ]
        assert [*money.rows, money.total] == rows, (by, where)


def sample(folder: Path) -> None:
    write(
        folder,
        opened(1, attribution=Attribution(team="support", user="ann", tags=("beta", "env=prod"))),
        closed(1, attempt("small", 10, verdict="escalated"), attempt("large", 500, purpose="escalation")),
        opened(2, attribution=Attribution(team="support", user="bob", tags=("env=dev",))),
        closed(2, attempt("small", 20)),
        opened(3, attribution=Attribution(team="sales")),
        closed(3, attempt("", 0, model=""), status="failed"),
        opened(4),
    )


def test_money_by_attempt_comes_from_the_attempts(tmp_path: Path) -> None:
    sample(tmp_path)
    table = LedgerQueries(lake_in(tmp_path)).cost(["variant"])
    assert [(row.keys, row.cost_nano_usd, row.calls, row.escalated_share) for row in table.rows] == [
        (("large",), 500, 1, 0.0),
        (("small",), 30, 2, 0.5),
        (("",), 0, 2, 0.0),
    ]
    assert (table.total.calls, table.total.cost_nano_usd, table.total.attempts) == (4, 530, 4)


def test_calls_without_an_attribute_stand_under_an_empty_value(tmp_path: Path) -> None:
    sample(tmp_path)
    queries = LedgerQueries(lake_in(tmp_path))
    by_tag = {row.keys[0]: row.calls for row in queries.cost(["tag"]).rows}
    assert by_tag == {"beta, env=prod": 1, "env=dev": 1, "": 2}
    by_value = {row.keys[0]: row.calls for row in queries.cost(["tag:env"]).rows}
    assert by_value == {"prod": 1, "dev": 1, "": 2}
    assert {row.keys[0] for row in queries.cost(["tag:beta"]).rows} == {"true", ""}
    assert [row.keys for row in queries.cost(["day", "hour"]).rows] == [("2026-01-01", "2026-01-01T00")]


def test_filters_and_times(tmp_path: Path) -> None:
    sample(tmp_path)
    queries = LedgerQueries(lake_in(tmp_path))
    assert queries.cost(where={"team": "support"}).total.calls == 3
    assert queries.cost(where={"team": ["sales", "support"]}).total.calls == 4
    assert queries.cost(where={"variant": "small"}).total.cost_nano_usd == 30
    assert queries.cost(where={"user": ""}).total.calls == 2
    assert queries.cost(where={"tag:env": "dev"}).total.cost_nano_usd == 20
    assert queries.cost(since_ns=T0_NS + 2_000_000, until_ns=T0_NS + 3_000_000).total.cost_nano_usd == 20
    assert queries.cost(["team"], since_ns=T0_NS + 10**15).rows == ()


def test_latency_is_exact_and_of_answered_calls(tmp_path: Path) -> None:
    records: list[Stored] = []
    for number in range(1, 101):
        records += [opened(number), closed(number, attempt(sent_us=0, ended_us=number * 1_000))]
    write(tmp_path, *records, opened(200), closed(200, status="refused"))
    total = LedgerQueries(lake_in(tmp_path)).cost(["variant"]).total
    assert (total.p50_ms, total.p95_ms, total.p99_ms) == (50.0, 95.0, 99.0)
    assert LedgerQueries(lake_in(tmp_path)).cost().total.p99_ms == 7.0


def test_an_unknown_dimension_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DrivetrainError, match=r"`worfklow` is no dimension.\nDid you mean `workflow`\?"):
        LedgerQueries(lake_in(tmp_path)).cost(["worfklow"])
    with pytest.raises(DrivetrainError, match="`tag:` is no dimension"):
        LedgerQueries(lake_in(tmp_path)).cost(where={"tag:": "x"})


def test_outcomes_by_variant_use_what_holds_now(tmp_path: Path) -> None:
    sample(tmp_path)
    queries = LedgerQueries(lake_in(tmp_path))
    write(
        tmp_path,
        OutcomeV1(call_id(1), "ok", "human", False, 1, 10),
        OutcomeV1(call_id(1), "ok", "human", True, 1, 20),
        OutcomeV1(call_id(2), "ok", "human", False, 1, 10),
        OutcomeV1(call_id(2), "stars", "human", 4.5, 1, 10),
        OutcomeV1(call_id(2), "label", "crm", "billing", 1, 10),
        OutcomeV1(call_id(999), "ok", "human", False, 1, 10),
    )
    table = queries.outcomes("ok", ["variant"])
    assert {row.keys[0]: (row.count, row.mean) for row in table.rows} == {"large": (1, 1.0), "small": (1, 0.0)}
    assert (table.total.count, table.total.mean) == (2, 0.5)
    assert queries.outcomes("stars", []).total.mean == 4.5
    labels = queries.outcomes("label", ["value"])
    assert [(row.keys, row.count, row.mean) for row in labels.rows] == [(("billing",), 1, None)]


def test_the_rollup_is_asked_where_it_can_tell(tmp_path: Path) -> None:
    """Its file is the only one there: what needs Calls fails, what `spend` knows does not."""
    sample(tmp_path)
    roll(tmp_path)
    before = LedgerQueries(lake_in(tmp_path)).cost(["team", "variant"])
    for path in (tmp_path / "lake" / "tables" / "calls").rglob("*.parquet"):
        path.write_bytes(b"")
    queries = LedgerQueries(lake_in(tmp_path))
    money = queries.cost(["team", "variant"], money_only=True)
    assert [(row.keys, row.cost_nano_usd, row.calls) for row in money.rows] == [
        (row.keys, row.cost_nano_usd, row.calls) for row in before.rows
    ]
    for by in (["user"], ["hour"], ["variant", "model"]):
        with pytest.raises(DrivetrainError):
            queries.cost(by, money_only=True)
    with pytest.raises(DrivetrainError):
        queries.cost(["team"], since_ns=T0_NS + 1, money_only=True)


def test_the_rollup_says_what_the_calls_say_under_a_condition(tmp_path: Path) -> None:
    """Call 1 has an Attempt of each variant: under either condition it is one Call of the total."""
    sample(tmp_path)
    roll(tmp_path)
    queries = LedgerQueries(lake_in(tmp_path))
    for where in ({"variant": "small"}, {"variant": "large"}, {"purpose": "answer"}):
        assert_same_money(queries, ["team"], dict(where))
    assert queries.cost(where={"variant": "small"}, money_only=True).total.calls == 2


def test_a_query_sees_what_was_written_before_it(tmp_path: Path) -> None:
    """Rolls, a tail, Calls across both, and a rotation: always what was written."""
    queries = LedgerQueries(lake_in(tmp_path))
    journal = FrameJournal(tmp_path, segment_bytes_max=12_000)
    spent = 0
    for number in range(150):
        journal.append(opened(number))
        if number >= 10 and number % 7:
            journal.append(closed(number - 10, attempt("v", number)))
            spent += number
        if number % 5 == 0:
            journal.append(OutcomeV1(call_id(number), "ok", "human", True, 1, 1))
        if number % 30 == 29:
            journal.flush()
            for _ in range(2):
                table = queries.cost(["variant"])
                assert table.total.cost_nano_usd == spent
                assert table.total.calls == number + 1
                assert queries.cost(["team"], money_only=True).total.cost_nano_usd == spent
                assert queries.outcomes("ok", []).total.count == number // 5 + 1
                roll(tmp_path)
    journal.close()


def test_damage_is_told_by_every_query(tmp_path: Path) -> None:
    write(tmp_path, *[record for n in range(5) for record in (opened(n), closed(n, attempt()))])
    (segment,) = (tmp_path / "calls").glob("*.seg")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    queries = LedgerQueries(lake_in(tmp_path))
    for _ in range(2):
        assert "bad" in [problem.kind for problem in queries.cost().problems]


def test_pairs_of_dimensions_add_up(tmp_path: Path) -> None:
    sample(tmp_path)
    roll(tmp_path)
    queries = LedgerQueries(lake_in(tmp_path))
    for names in list(combinations(DIMENSIONS, 2))[::12]:
        table = queries.cost(names)
        assert sum(row.cost_nano_usd for row in table.rows) == table.total.cost_nano_usd == 530
        assert_same_money(queries, list(names), {})
