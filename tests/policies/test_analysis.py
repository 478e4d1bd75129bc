"""What is said of a table is true of the engine: unreachable rules never decide, gaps are gaps, contradictions meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_world import RULES, compiled, table_node

from drivetrain.core.policies import Case
from drivetrain.policies.analysis import Analysis, analyse
from drivetrain.policies.cells import read_cell
from drivetrain.policies.domains import AMOUNT, SHARE, Kind
from support.records import LAW

ONE = ["input.n"]


def analysis(
    rules: Sequence[Sequence[str]], fields: Sequence[str] = ONE, *, hit: str = "first", kind: Kind | None = None
) -> Analysis:
    """Of a table whose rules have a cell per field; the action is the rule's id."""
    policy = compiled(table_node([(*rule, f"'{rule[0]}'") for rule in rules], fields, ["action"], hit=hit))
    assert policy.graphs is not None
    (node,) = policy.graphs.files[policy.graphs.main].tables
    return analyse(node) if kind is None else analyse(node, lambda field: kind)


def test_a_rule_behind_rules_that_take_all_its_cases_never_matches() -> None:
    rules = [("low", "< 50"), ("high", "> 40"), ("middle", "[20..60]"), ("rest", "")]
    found = analysis(rules)
    assert [(one.rule, one.because) for one in found.unreachable] == [("middle", ("low", "high"))]  # null is for `rest`
    assert found.gap is None
    found = analysis(rules, kind=AMOUNT)
    assert [(one.rule, one.because) for one in found.unreachable] == [
        ("middle", ("low", "high")),
        ("rest", ("low", "high")),
    ]


def test_a_rule_whose_cells_nothing_fits_never_matches() -> None:
    found = analysis([("odd", "> 5 and < 3"), ("sure", "> 2")], kind=SHARE)
    assert [(one.rule, one.because) for one in found.unreachable] == [("odd", ()), ("sure", ())]


def test_a_gap_is_told_with_an_example() -> None:
    assert analysis([("low", "< 50"), ("high", "> 50")]).gap == {"input.n": 50.0}
    assert analysis([("low", "< 50"), ("high", ">= 50")]).gap is None
    assert analysis([("a", "'a', 'b'")]).gap == {"input.n": "other"}
    assert analysis([("t", "true"), ("f", "false")]).gap is None
    two = analysis([("low", "< 50", "'a'"), ("high", ">= 50", ""), ("other", "", "'b'")], ["input.n", "input.t"])
    assert two.gap is not None
    assert two.gap["input.n"] < 50  # type: ignore[operator]
    assert two.gap["input.t"] not in ("a", "b")


def test_types_say_which_cases_there_are() -> None:
    whole = Kind(whole=True, text=False, truth=False, known=True)
    assert analysis([("low", "<= 50"), ("high", ">= 51")], kind=whole).gap is None
    assert analysis([("low", "<= 50"), ("high", ">= 51")]).gap == {"input.n": 50.5}
    texts = Kind(number=False, truth=False, texts=("a", "b"), known=True)
    assert analysis([("a", "'a'"), ("b", "'b'")], kind=texts).gap is None
    assert analysis([("any", "[0..1]")], kind=SHARE).gap == {"input.n": None}


def test_collected_rules_that_meet_contradict_each_other() -> None:
    found = analysis([("low", "< 50"), ("high", "> 40"), ("far", "> 90")], hit="collect")
    assert [(one.rule, one.other) for one in found.conflicts] == [("low", "high"), ("high", "far")]
    assert 40 < found.conflicts[0].example["input.n"] < 50  # type: ignore[operator]


def test_rules_beyond_comparisons_are_said_to_be_not_analysed() -> None:
    found = analysis([("long", "len($) > 3"), ("low", "< 50"), ("high", ">= 50")])
    assert found.complex == ("long",)
    assert (found.unreachable, found.gap) == ((), None)
    assert analysis([("any", "len($) > 0"), ("rest", "")]).unreachable == ()


def test_too_large_a_table_is_said_to_be_not_analysed() -> None:
    fields = [f"input.f{place}" for place in range(12)]
    rules = [
        (
            f"r{number}",
            *(f"[{(number * 7 + place * 13) % 90}..{(number * 7 + place * 13) % 90 + 9}]" for place in range(12)),
        )
        for number in range(150)
    ]
    found = analysis(rules, fields)
    assert found.unfinished
    assert found.gap is None


NUMBERS = st.sampled_from(["0", "1", "2.5", "-3"])
CELLS = st.one_of(
    st.just(""),
    NUMBERS,
    st.sampled_from(
        ["'a'", "'b'", "true", "null", "'a', 'b'", "1, 'a'", "!= 'a'", "!= 1", "not in ['a', 1]", "in [1, 2.5]"]
    ),
    st.builds(lambda mark, number: f"{mark} {number}", st.sampled_from(["<", "<=", ">", ">=", "=="]), NUMBERS),
    st.sampled_from(
        ["[0..1]", "(0..2.5)", "not in [0..1]", "> 0 and < 2.5", "< 0 or > 1", "'b', > 1", "> 1, 'b'", "$ > 1"]
    ),
)
VALUES: list[Any] = [None, True, False, "a", "b", "c", -4, -3, -1, 0, 0.5, 1, 2, 2.5, 3]


@LAW
@given(cell=CELLS.filter(bool))
def test_a_cell_is_read_as_the_engine_reads_it(cell: str) -> None:
    test = read_cell(cell)
    assert test is not None
    policy = compiled(table_node([("yes", cell, "'yes'")], ONE, ["action"]))
    for value in VALUES:
        said = policy.own(Case(input={"n": value})).action == "yes"
        plain = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        assert test.holds(plain) == said, (cell, value)


@settings(LAW, max_examples=40)
@given(rules=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
def test_what_is_said_of_a_table_is_what_the_engine_does(rules: list[tuple[str, str]]) -> None:
    fields = ["input.n", "input.t"]
    named = [(f"r{place}", *cells) for place, cells in enumerate(rules)]
    found = analysis(named, fields)
    policy = compiled(table_node([(*rule, f"'{rule[0]}'") for rule in named], fields, ["action"]))
    decided = {policy.own(Case(input={"n": n, "t": t})).action for n in VALUES for t in VALUES}
    assert not decided & {one.rule for one in found.unreachable}
    if found.gap is not None:
        gap = {name.partition(".")[2]: value for name, value in found.gap.items()}
        assert policy.own(Case(input=gap)).failed == "no rule matches" or len(gap) < 2


def test_the_example_of_a_gap_is_a_case_that_fails() -> None:
    policy = compiled(table_node(RULES[:2]))
    assert policy.graphs is not None
    gap = analyse(policy.graphs.files[policy.graphs.main].tables[0]).gap
    assert gap is not None
    case = Case(input={"amount": gap.get("input.amount")}, answer={"intent": gap.get("answer.intent")})
    assert policy.own(case).failed == "no rule matches"
