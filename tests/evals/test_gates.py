"""Gates: what their line may say, and what they make of runs with known differences."""

from __future__ import annotations

import contextlib
import math
import random
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from drivetrain import DrivetrainError, Score, scorers
from drivetrain.evals.calibration import Calibration
from drivetrain.evals.gates import SLICE_ROWS_MIN, GateResult, judge_gates, needs_baseline, parse_gate
from drivetrain.evals.rows import RowV1, Run

pytestmark = pytest.mark.slow

PASSED, FAILED, UNSETTLED = "passed", "failed", "not enough evidence"


def row(number: int, value: float = 1.0, **more: Any) -> RowV1:
    scores = more.pop("scores", {"exact": Score(value=value, cause="" if value == 1 else "wrong")})
    return RowV1(row=f"{number:016x}", scores=scores, **more)


def run(rows: Sequence[RowV1]) -> Run:
    return Run(
        eval="triage-golden", workflow="triage", workflow_key="0" * 16, eval_key="1" * 16, dataset="golden@1",
        rows=tuple(rows),
    )  # fmt: skip


def judge(gate: str, rows: Sequence[RowV1], before: Sequence[RowV1] | None = None, **more: Any) -> GateResult:
    return judge_gates([gate], run(rows), None if before is None else run(before), **more)[0]


def sliced(wrong: dict[str, int], rows_each: int = 400) -> list[RowV1]:
    """A frozen Dataset with slices, each answered with as many wrong."""
    return [
        row(10_000 * place + number, float(number >= count), slices={"country": name})
        for place, (name, count) in enumerate(wrong.items())
        for number in range(rows_each)
    ]


# The line.


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("accuracy >= 0.9", {"kind": "score", "scorer": "", "bound": 0.9, "at_least": True}),
        ("`f1` of suite `must-pass` >= 1", {"kind": "score", "scorer": "f1", "suite": "must-pass", "bound": 1.0}),
        ("tone > 80 %", {"kind": "score", "scorer": "tone", "bound": 0.8, "is_strict": True}),
        ("accuracy >= 0.9 at 95 %", {"level": 0.95}),
        ("no slice worse than -2 pp", {"kind": "slices", "bound": -0.02}),
        ("no slice of f1 worse than \u22120.5 pp at 90 %", {"scorer": "f1", "bound": -0.005, "level": 0.9}),
        ("overall not worse than -1 pp", {"kind": "overall", "bound": -0.01}),
        ("overall of f1 not worse than 0 pp", {"scorer": "f1", "bound": 0.0}),
        ("cost per call <= $0.004", {"kind": "cost", "bound_nano_usd": 4_000_000}),
        ("cost per call of suite hard < $1", {"suite": "hard", "bound_nano_usd": 10**9, "is_strict": True}),
        ("p95 latency <= 800 ms", {"kind": "latency", "bound": 800.0, "quantile": 0.95}),
        ("p99.9 latency <= 1.2 s", {"bound": 1200.0, "quantile": 0.999}),
        ("mean latency <= 800 ms", {"bound": 800.0, "quantile": 0.0}),
        ("unread <= 1 %", {"kind": "unread", "bound": 0.01}),
        ("unread of f1 of suite hard <= 0.01", {"scorer": "f1", "suite": "hard", "bound": 0.01}),
        ("failed calls <= 0.5 %", {"kind": "failed", "bound": 0.005}),
        ("no new failure in `must-pass`", {"kind": "new failures", "suite": "must-pass"}),
        ("no new failures of f1", {"kind": "new failures", "scorer": "f1", "suite": ""}),
    ],
)  # fmt: skip
def test_what_a_line_says(text: str, fields: dict[str, Any]) -> None:
    gate = parse_gate(text)
    assert {name: getattr(gate, name) for name in fields} == pytest.approx(fields)
    assert needs_baseline(text) == (gate.kind in ("slices", "overall", "new failures"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty", "accuracy >= 0.9"]),
        ("accuracy >= 90", ["`90` stands at character 13", "0 to 1", "`90 %`"]),
        ("accuracy <= 0.9", ["`<=` stands at character 10", "`>=`", "more is better"]),
        ("cost per call >= $1", ["`<=`", "less is better"]),
        ("cost per call <= 0.004", ["`0.004` stands at character 18", "`$0.004`"]),
        ("cost per call <= $0.0000000001", ["nano-USD"]),
        ("cost of call <= $1", ["`of` stands at character 6", "`per`"]),
        ("p95 latancy <= 800 ms", ["Did you mean `latency`"]),
        ("p95 latency <= 800", ["it ends at character 18", "`ms` or `s`"]),
        ("latency <= 800 ms", ["p95 latency"]),
        ("no slices worse than -2 pp", ["Did you mean `slice`"]),
        ("no slice worse than 2 pp", ["`2` stands at character 21", "`-2 pp`"]),
        ("no slice worse than -2 %", ["`%` stands at character 24", "`pp`"]),
        ("no slice worse than", ["it ends at character 19", "`-2 pp`"]),
        ("accuracy >= 0.9 at 95", ["`%`"]),
        ("accuracy >= 0.9 at 5 %", ["between 50 and 100"]),
        ("accuracy >= 0.9 and unread <= 1 %", ["`and` stands at character 17", "the end"]),
        ("no new failure in", ["a suite"]),
        ("no new failure at 95 %", ["`at` stands at character 16"]),
        ("accuracy ~ 0.9", ["`~` at character 10"]),
        ("overal not worse than -1 pp", ["Did you mean `overall not worse than -1 pp`"]),
        ("unread <= 101 %", ["0 to 1"]),
        ("x" * 300, ["200 characters"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_line_is_told_with_its_place_and_what_may_stand_there(text: str, words: list[str]) -> None:
    with pytest.raises(DrivetrainError) as caught:
        parse_gate(text)
    for word in words:
        assert word in str(caught.value)


def test_no_line_breaks_the_reader() -> None:
    seed = 20261121
    print("seed", seed)
    dice = random.Random(seed)
    line = "no slice new failure of worse than overall not cost per call p95 latency at suite unread f1 ` `a b` >= <= >"
    words = [*line.split(), "$1", "0.9", "-2", "pp", "%", "ms", "95", "\u2265", "\x00"]
    for _ in range(3_000):
        text = " ".join(dice.choices(words, k=dice.randint(0, 9)))
        with contextlib.suppress(DrivetrainError):
            gate = parse_gate(text)
            assert gate.text == text


# Figures.


def test_an_estimate_is_held_against_its_bound_and_its_interval_told() -> None:
    rows = [row(number, float(number >= 9)) for number in range(100)]
    found = judge("accuracy >= 0.91", rows)
    assert (found.state, found.n) == (PASSED, 100)
    assert found.value == pytest.approx(0.91)
    assert found.low is not None
    assert found.high is not None
    assert 0.83 < found.low < 0.91 < found.high < 0.96
    assert judge("accuracy > 0.91", rows).state == FAILED
    assert judge("accuracy >= 0.911", rows).state == FAILED
    assert found.why.startswith("exact is 91.0% (83.7% to 95.2% at"), "as tables tell it"
    assert "at least 91.0% is asked" in found.why
    near = [row(number, float(number >= 1001)) for number in range(10_000)]
    assert judge("accuracy >= 0.9", near).why.startswith("exact is 89.99% (")
    assert "100 answers" in found.why


def test_at_a_level_the_interval_s_end_is_asked_for() -> None:
    rows = [row(number, float(number >= 9)) for number in range(100)]
    assert judge("accuracy >= 0.9 at 95 %", rows).state == UNSETTLED
    assert judge("accuracy >= 0.92 at 95 %", rows).state == FAILED
    many = [row(number, float(number % 100 >= 9)) for number in range(10_000)]
    assert judge("accuracy >= 0.9 at 95 %", many).state == PASSED


def test_repeats_and_groups_make_an_interval_wider_and_not_narrower() -> None:
    alone = [row(number, float(number >= 10)) for number in range(100)]
    repeated = [row(number, float(number >= 10), repeat=repeat) for number in range(100) for repeat in range(10)]
    grouped = [row(number, float(number >= 10), group=f"g{number // 10}") for number in range(100)]
    width = [(found.high or 0) - (found.low or 0) for found in (judge("accuracy >= 0", one) for one in (
        alone, repeated, grouped))]  # fmt: skip
    assert width[1] == pytest.approx(width[0], rel=0.15)
    assert width[2] > 1.5 * width[0]


def test_weights_of_a_sampled_dataset_count() -> None:
    rows = [row(number, float(number >= 50), weight=1.0 if number < 50 else 9.0) for number in range(100)]
    assert judge("accuracy >= 0.9", rows).value == pytest.approx(0.9)
    slow = [row(number, latency_us=1000 * number, weight=9.0 if number <= 50 else 1.0) for number in range(1, 101)]
    assert judge("p90 latency <= 50 ms", slow).state == PASSED


def test_a_failed_call_is_wrong_and_counts_as_failed() -> None:
    rows = [row(number) for number in range(99)] + [row(99, status="failed", scores={})]
    assert judge("accuracy >= 1", rows).value == pytest.approx(0.99)
    assert judge("failed calls <= 0.5 %", rows).state == FAILED
    assert judge("failed calls <= 1 %", rows).state == PASSED


def test_the_share_that_could_not_be_read() -> None:
    unread = {"exact": Score(value=0, cause="format", unread=True)}
    rows = [row(number) for number in range(98)] + [row(98, scores=unread), row(99, scores=unread)]
    assert judge("unread <= 1 %", rows).state == FAILED
    assert judge("unread <= 2 %", rows).state == PASSED


def test_cost_is_compared_in_whole_nano_usd_and_a_cached_answer_costs_what_it_saved() -> None:
    rows = [row(number, cost_nano_usd=1_000_000_000_000_001) for number in range(3)]
    assert judge("cost per call <= $1000000", rows).state == FAILED
    assert judge("cost per call <= $1000000.000001", rows).state == PASSED
    cached = [row(number, saved_nano_usd=5_000_000, cached=True) for number in range(3)]
    assert judge("cost per call <= $0.004", cached).state == FAILED


def test_latency_is_of_answers_that_were_asked_for() -> None:
    rows = [row(number, latency_us=1000 * number) for number in range(1, 101)]
    found = judge("p95 latency <= 95 ms", rows)
    assert (found.state, found.value) == (PASSED, 95.0)
    assert found.low is not None
    assert found.high is not None
    assert 88 <= found.low < 95 < found.high <= 100
    assert judge("p95 latency <= 94 ms", rows).state == FAILED
    assert judge("p95 latency <= 95 ms at 95 %", rows).state == UNSETTLED
    assert judge("mean latency <= 50.5 ms", rows).state == PASSED
    cached = [row(number, cached=True, latency_us=10) for number in range(10)]
    assert judge("p95 latency <= 95 ms", cached).state == UNSETTLED


@pytest.mark.parametrize("gate", ["accuracy >= 0", "p90 latency <= 1 s", "mean latency <= 1 s"])
def test_intervals_hold_the_truth_for_groups_that_belong_together(gate: str) -> None:
    seed = 5
    print("seed", seed)
    dice = random.Random(seed)
    held = 0
    for _ in range(120):
        rows = []
        for group in range(60):
            right, slow = dice.betavariate(4, 1), dice.lognormvariate(0, 0.5)
            rows += [
                row(number, float(dice.random() < right), group=f"g{group}", weight=1.0 + group % 2,
                    latency_us=int(100_000 * slow * dice.lognormvariate(0, 0.5)))
                for number in range(10 * group, 10 * group + 5)
            ]  # fmt: skip
        found = judge(gate, rows)
        spread = 0.5**2 + 0.5**2
        truth = {
            "accuracy": 0.8, "p90": 100 * math.exp(1.2816 * spread**0.5), "mean": 100 * math.exp(spread / 2),
        }[gate.split(maxsplit=1)[0]]  # fmt: skip
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert held >= 106  # of 120 at 95 %: fewer happen with a chance below 0.002


# Against a baseline.


def test_a_planted_regression_of_three_points_on_one_slice_is_stopped_and_named() -> None:
    before = sliced({"de": 40, "fr": 40, "it": 40})
    after = sliced({"de": 40, "fr": 52, "it": 40})
    found = judge("no slice worse than -2 pp", after, before)
    assert found.state == FAILED
    assert found.value == pytest.approx(-0.03)
    worst = found.slices[0]
    assert (worst.column, worst.value, worst.state, worst.rows) == ("country", "fr", "worse", 400)
    assert worst.is_beyond_chance
    assert "country = fr" in found.why
    assert "-3.00 pp" in found.why
    assert judge("overall not worse than -2 pp", after, before).state == PASSED


def test_a_run_against_itself_passes_and_a_difference_of_just_the_margin_too() -> None:
    before = sliced({"de": 40, "fr": 40})
    assert judge("no slice worse than -2 pp", before, before).state == PASSED
    assert judge("no slice worse than -2 pp", sliced({"de": 48, "fr": 40}), before).state == PASSED
    assert judge("no slice worse than -2 pp", sliced({"de": 49, "fr": 40}), before).state == FAILED
    assert judge("overall not worse than -1 pp", sliced({"de": 48, "fr": 40}), before).state == PASSED


def test_at_a_level_every_slice_must_be_shown_to_be_no_worse() -> None:
    before = sliced({"de": 40, "fr": 40}, 100)
    thin = judge("no slice worse than -2 pp at 95 %", before, before)
    assert (thin.state, {one.state for one in thin.slices}) == (UNSETTLED, {"unsure"})
    assert judge("no slice worse than -2 pp at 95 %", sliced({"de": 45, "fr": 40}, 100), before).state == FAILED
    before = sliced({"de": 40, "fr": 40}, 4_000)
    assert judge("no slice worse than -2 pp at 95 %", before, before).state == PASSED


def test_null_reruns_of_a_model_that_answers_by_chance_are_seldom_called_beyond_chance() -> None:
    seed = 7
    print("seed", seed)
    dice = random.Random(seed)

    def asked() -> list[RowV1]:
        return [
            row(number, float(dice.random() < 0.9), slices={"country": f"c{number % 8}"}) for number in range(800)
        ]  # fmt: skip

    called = 0
    for _ in range(40):
        found = judge("no slice worse than -2 pp", asked(), asked())
        called += any(one.is_beyond_chance for one in found.slices)
    assert called <= 7  # 5 % of 40 are 2; more than 7 happen with a chance below 0.004


def test_a_slice_with_few_rows_is_told_and_fails_nothing_by_itself() -> None:
    few = SLICE_ROWS_MIN - 1
    places = range(90_000, 90_000 + few)
    before = [*sliced({"de": 40}), *[row(number, slices={"country": "lu"}) for number in places]]
    after = [
        *sliced({"de": 40}),
        *[row(number, 0.0, slices={"country": "lu"}) for number in places],
    ]
    found = judge("no slice worse than -2 pp", after, before)
    assert found.state == PASSED
    assert [(one.value, one.state) for one in found.slices] == [("de", "ok"), ("lu", "few rows")]
    assert "lu" in found.why
    only = judge("no slice worse than -2 pp", after[-few:], before[-few:])
    assert only.state == UNSETTLED
    assert only.slices[0].value == "lu"


def test_graded_scores_and_repeats_are_paired_row_by_row() -> None:
    before = [row(number, 0.8, repeat=repeat) for number in range(50) for repeat in range(3)]
    after = [row(number, 0.7 + 0.001 * (number % 2), repeat=repeat) for number in range(50) for repeat in range(2)]
    found = judge("overall not worse than -9 pp", after, before)
    assert (found.state, found.n) == (FAILED, 50)
    assert found.value == pytest.approx(-0.0995)
    assert found.low is not None
    assert found.high is not None
    assert -0.1 < found.low < found.high < -0.099


def test_rows_that_the_baseline_does_not_have_are_told() -> None:
    found = judge("overall not worse than -1 pp", [row(number) for number in range(60)], [row(n) for n in range(50)])
    assert (found.state, found.n) == (PASSED, 50)
    assert "10 rows are not in the baseline" in found.why
    other = judge("overall not worse than -1 pp", [row(1)], [row(2)])
    assert other.state == UNSETTLED
    assert "none of these rows" in other.why


def test_new_failures_are_named_and_old_ones_are_not() -> None:
    gate = "no new failure in `must-pass`"
    before = [row(number, float(number > 1), suite="must-pass") for number in range(10)]
    same = judge(gate, before, before)
    assert (same.state, same.value, same.n) == (PASSED, 0, 10)
    assert "2 failed before" in same.why
    after = [row(number, float(number not in (0, 5)), suite="must-pass") for number in range(10)]
    found = judge(gate, after, before)
    assert (found.state, found.value, found.rows) == (FAILED, 1, (f"{5:016x}",))
    assert judge(gate, [row(1, suite="must-pass")]).state == PASSED
    assert judge(gate, after).state == UNSETTLED
    flaky = [row(number, float(number > 1 or repeat), suite="must-pass", repeat=repeat) for number in range(10)
             for repeat in range(2)]  # fmt: skip
    assert judge(gate, flaky, [row(number, suite="must-pass") for number in range(10)]).value == 2


def test_suites_are_told_apart_from_the_dataset() -> None:
    rows = [row(1), row(2, 0.0, suite="hard")]
    assert judge("accuracy >= 1", rows).state == PASSED
    assert judge("accuracy of suite hard >= 1", rows).state == FAILED


def test_every_gate_is_judged_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    before = [row(number, 0.5, slices={"a": "b"}, group=f"g{number % 9}", latency_us=5) for number in range(60)]
    after = [row(number, 0.6, slices={"a": "b"}, group=f"g{number % 9}", latency_us=5) for number in range(60)]
    for gate in (
        "accuracy >= 0.5",
        "no slice worse than -1 pp",
        "overall not worse than 0 pp",
        "no new failure",
        "cost per call <= $1",
        "p50 latency <= 1 s",
        "mean latency <= 1 s",
        "unread <= 0",
        "failed calls <= 0",
    ):
        assert judge(gate, after, before).state == PASSED  # fmt: skip


# What is not enough.


@pytest.mark.parametrize(
    "gate",
    [
        "accuracy >= 0",
        "exact >= 0",
        "cost per call <= $1",
        "p95 latency <= 1 s",
        "mean latency <= 1 s",
        "unread <= 100 %",
        "failed calls <= 100 %",
        "overall not worse than -100 pp",
        "no slice worse than -100 pp",
        "no new failure",
    ],
)
def test_nothing_to_judge_by_never_passes(gate: str) -> None:
    for name in ([], [scorers.exact()]):
        found = judge(gate, [], [], scorers=name)
        assert found.state == UNSETTLED
        assert found.why.endswith(".")
    unscored = [RowV1(row="a", slices={"country": "de"})]
    if gate.split(maxsplit=1)[0] not in ("cost", "p95", "mean", "failed"):
        assert judge(gate, unscored, unscored, scorers=[scorers.exact()]).state != PASSED or "unread" in gate


@pytest.mark.parametrize("gate", ["no slice worse than -2 pp", "overall not worse than -1 pp"])
def test_without_a_baseline_or_slices_there_is_no_answer(gate: str) -> None:
    rows = [row(number) for number in range(100)]
    assert "no baseline" in judge(gate, rows).why
    assert judge(gate, rows).state == UNSETTLED
    assert judge("no slice worse than -2 pp", rows, rows).state == UNSETTLED


def test_one_example_is_judged_with_an_interval_that_says_how_little_it_is() -> None:
    found = judge("accuracy >= 0.9", [row(1)], [row(1)])
    assert (found.state, found.low, found.high) == (PASSED, 0.0, 1.0)
    assert judge("accuracy >= 0.9 at 95 %", [row(1)]).state == UNSETTLED
    overall = judge("overall not worse than -1 pp", [row(1, 0.5)], [row(1, 0.4)])
    assert overall.low is not None
    assert overall.low < -0.9
    assert judge("cost per call <= $1 at 95 %", [row(1, cost_nano_usd=5)]).state == UNSETTLED


def test_an_unknown_scorer_is_told() -> None:
    assert "`f1`" in judge("f1 >= 0", [row(1)]).why
    assert judge("f1 >= 0", [row(1)]).state == UNSETTLED


def test_answers_that_the_scorer_failed_at_count_as_wrong_and_are_told() -> None:
    rows = [row(number) for number in range(9)] + [row(9, scores={"exact": Score(value=0, cause="scorer")})]
    found = judge("accuracy >= 0.9", rows)
    assert found.value == pytest.approx(0.9)
    assert "the scorer failed at 1" in found.why


def test_a_result_is_plain_json_and_back() -> None:
    found = judge_gates(["no slice worse than -2 pp", "accuracy >= 0.9"], run(sliced({"de": 1, "fr": 0})), run(sliced(
        {"de": 0, "fr": 0})))  # fmt: skip
    assert msgspec.json.decode(msgspec.json.encode(found), type=tuple[GateResult, ...]) == found


# Judges.

GOOD = Calibration(labels=80, judged=200)
POOR = Calibration(labels=80, judged=200, why="agrees with people by kappa 0.10, at least 0.00, and needs 0.4")


@pytest.mark.parametrize(
    ("calibrations", "others", "state"),
    [
        ({"critic": GOOD}, [], PASSED),
        ({"critic": POOR}, [], UNSETTLED),
        ({}, [], UNSETTLED),
        ({"critic": POOR}, ["accuracy >= 0.5"], PASSED),
        ({"critic": POOR}, ["accuracy >= 1"], UNSETTLED),
        ({"critic": POOR}, ["cost per call <= $1", "unread <= 100 %"], UNSETTLED),
        ({"critic": POOR}, ["critic >= 0.1"], UNSETTLED),
    ],
)  # fmt: skip
def test_a_judge_with_poor_agreement_carries_no_gate_alone(
    calibrations: dict[str, Calibration], others: list[str], state: str
) -> None:
    rows = [
        row(number, scores={"exact": Score(value=float(number > 0)), "critic": Score(value=0.9)})
        for number in range(10)
    ]
    declared = [scorers.exact(), scorers.judge("critic")]
    found = judge_gates(["critic >= 0.8", *others], run(rows), scorers=declared, calibrations=calibrations)
    assert found[0].state == state
    worse = judge_gates(["critic >= 0.95", *others], run(rows), scorers=declared, calibrations=calibrations)
    assert worse[0].state == FAILED
