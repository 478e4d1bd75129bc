"""Judges: what they are asked, what they have said, and how far people's labels carry them."""

from __future__ import annotations

import random
from typing import Any

import pytest

import drivetrain as dt
from drivetrain import Score, scorers
from drivetrain.evals.calibration import KAPPA_MIN, LABELS_MIN, Calibration, Judged, calibrate, carries_gates
from drivetrain.evals.gates import judge_gates
from drivetrain.evals.judging import FLIPPED, STEADY, calibration_of, judge_inputs, label_of, read_verdict
from drivetrain.evals.rows import RowV1, Run
from drivetrain.evals.scoring import Answer

pytestmark = pytest.mark.slow


class Question(dt.Record):
    question: str
    answer: str
    expected: str = ""
    hint: str = "none"


class Pair(dt.Record):
    question: str
    first: str
    second: str


class Other(dt.Record):
    ticket: str
    reply: str


CRITIC = scorers.judge("critic", scale=(1, 5))
PAIRS = scorers.judge("pairs")


def asked(scorer: Any = CRITIC, input: Any = Question, expected: Any = "B", **answer: Any) -> Any:
    given = Answer(**{"text": "A", **answer})
    return judge_inputs(scorer, input, given, expected, {"text": "why?"}, row_id="r1")


# What a judge is asked.


def test_the_fields_of_a_judge_are_filled_by_their_names() -> None:
    assert asked().inputs == ({"question": "why?", "answer": "A", "expected": "B"},)
    assert asked(expected=None).inputs == ({"question": "why?", "answer": "A"},)


def test_what_is_no_text_is_shown_as_json_and_a_scored_field_alone() -> None:
    found = asked(value={"intent": "a", "n": 1}, expected={"intent": "b", "n": 1}).inputs[0]
    assert (found["answer"], found["expected"]) == ('{"intent":"a","n":1}', '{"intent":"b","n":1}')
    one = asked(scorers.judge("critic", field="intent"), value={"intent": "a"}, expected={"intent": "b"}).inputs[0]
    assert (one["answer"], one["expected"]) == ("a", "b")


def test_fields_of_other_names_take_what_the_scorer_says() -> None:
    scorer = scorers.judge("critic", inputs={"ticket": "text", "reply": "answer"})
    assert asked(scorer, Other).inputs == ({"ticket": "why?", "reply": "A"},)
    with pytest.raises(dt.DrivetrainError, match="`ticket`"):
        asked(CRITIC, Other)


def test_a_pair_is_shown_in_both_orders() -> None:
    found = asked(PAIRS, Pair)
    assert [(one["first"], one["second"]) for one in found.inputs] == [("A", "B"), ("B", "A")]
    assert found.answer_first == (True, False)


def test_without_swap_the_order_is_fixed_by_the_row_and_about_half_of_them_have_either() -> None:
    scorer = scorers.judge("pairs", swap=False)
    orders: list[bool] = []
    for number in range(200):
        found = judge_inputs(scorer, Pair, Answer(text="A"), "B", {"text": "?"}, row_id=str(number))
        assert (found.inputs[0]["first"] == "A") == found.answer_first[0]
        assert found == judge_inputs(scorer, Pair, Answer(text="A"), "B", {"text": "?"}, row_id=str(number))
        orders += found.answer_first
    assert 70 < sum(orders) < 130


def test_a_pair_of_one_is_refused_and_a_failed_call_is_not_judged() -> None:
    with pytest.raises(dt.DrivetrainError, match="compares two answers"):
        asked(PAIRS, Pair, expected=None)
    found = asked(error="upstream_timeout")
    assert found.inputs == ()
    assert read_verdict(CRITIC, found, []).score.value == 0


# What it has said.


@pytest.mark.parametrize(
    ("scorer", "said", "value"),
    [
        (CRITIC, {"score": 5}, 1.0),
        (CRITIC, {"score": 1, "why": "bad"}, 0.0),
        (CRITIC, {"why": "meh", "score": "3"}, 0.5),
        (CRITIC, {"score": 6}, None),
        (CRITIC, {"score": float("nan")}, None),
        (CRITIC, {"score": "five"}, None),
        (CRITIC, {"why": "no", "other": 3}, None),
        (CRITIC, None, None),
        (CRITIC, "4", 0.75),
        (scorers.judge("c"), {"verdict": True}, 1.0),
        (scorers.judge("c"), {"verdict": "No."}, 0.0),
        (scorers.judge("c"), {"score": 0.25}, 0.25),
        (scorers.judge("c"), {"score": 25}, None),
        (scorers.judge("c", verdict="mark", scale={"A": 1, "B": 0.5, "F": 0}), {"mark": "b", "score": 1}, 0.5),
        (scorers.judge("c", scale={"A": 1}), {"score": "G"}, None),
    ],
)  # fmt: skip
def test_a_verdict_is_read_in_its_scale_or_not_at_all(scorer: Any, said: Any, value: float | None) -> None:
    found = read_verdict(scorer, asked(scorer), [said])
    assert found.unread == (value is None)
    assert found.score.value == (value or 0.0)
    assert (found.score.cause == "scorer") == (value is None)


@pytest.mark.parametrize(
    ("said", "value", "flipped"),
    [
        (("first", "second"), 1.0, False),
        (("second", "first"), 0.0, False),
        (("tie", "tie"), 0.5, False),
        (("first", "first"), 0.5, True),
        (("B", "B"), 0.5, True),
        (("first", "tie"), 0.5, True),
    ],
)
def test_a_choice_that_hangs_on_the_order_is_a_tie_and_is_counted(
    said: tuple[str, str], value: float, flipped: bool
) -> None:
    found = read_verdict(PAIRS, asked(PAIRS, Pair), [{"choice": one} for one in said])
    assert (found.score.value, found.flipped) == (value, flipped)
    assert found.score.note == (FLIPPED if flipped else STEADY)


def test_nonsense_in_one_order_leaves_the_pair_unread() -> None:
    found = read_verdict(PAIRS, asked(PAIRS, Pair), [{"choice": "first"}, {"choice": "purple"}])
    assert found.unread
    assert found.score.cause == "scorer"


def test_what_people_say_is_read_in_the_same_scale() -> None:
    assert [label_of(CRITIC, one) for one in (5, "3", 9, None, "", "good")] == [1.0, 0.5, None, None, None, None]
    assert [label_of(PAIRS, one) for one in ("first", "second", "tie", "yes", 0.5)] == [1.0, 0.0, 0.5, 1.0, 0.5]


# How it agrees with people.


def judged(values: dict[str, float], **more: Any) -> list[Judged]:
    return [Judged(row=row, value=value, **more) for row, value in values.items()]


def noisy(dice: random.Random, count: int, error: float) -> tuple[dict[str, float], dict[str, float]]:
    """People's labels, and a judge that errs on a share of them."""
    labels = {f"r{number}": float(dice.random() < 0.6) for number in range(count)}
    return labels, {row: 1 - one if dice.random() < error else one for row, one in labels.items()}


def test_agreement_and_what_is_missed_are_counted_exactly() -> None:
    labels = {str(number): float(number < 60) for number in range(100)}
    said = dict(labels.items())
    for row in ("0", "1", "2"):
        said[row] = 0.0
    said["99"] = 1.0
    found = calibrate(judged(said), labels)
    assert (found.labels, found.agreement) == (100, 0.96)
    assert found.sensitivity == pytest.approx(57 / 60)
    assert found.specificity == pytest.approx(39 / 40)
    assert found.bias == pytest.approx(-0.02)
    chance = 0.6 * 0.58 + 0.4 * 0.42
    assert found.kappa == pytest.approx((0.96 - chance) / (1 - chance))
    assert found.kappa_low is not None
    assert KAPPA_MIN < found.kappa_low < 0.92
    assert carries_gates(found)


def test_a_judge_that_is_right_by_chance_or_hardly_compared_carries_no_gate() -> None:
    seed = 3
    print("seed", seed)
    dice = random.Random(seed)
    labels, by_chance = noisy(dice, 400, 0.5)
    assert not carries_gates(calibrate(judged(by_chance), labels))
    assert "kappa" in calibrate(judged(by_chance), labels).why
    few, right = noisy(dice, LABELS_MIN - 1, 0.0)
    assert f"needs {LABELS_MIN}" in calibrate(judged(right), few).why
    assert "0 answers" in calibrate(judged(right), {}).why
    assert not carries_gates(calibrate([], {}))


def test_a_judge_that_calls_all_alike_carries_no_gate_however_often_it_agrees() -> None:
    labels = {str(number): float(number > 2) for number in range(100)}
    generous = calibrate(judged(dict.fromkeys(labels, 1.0)), labels)
    assert generous.agreement == 0.97
    assert generous.kappa == pytest.approx(0.0)
    assert not carries_gates(generous)
    alike = calibrate(judged(dict.fromkeys(labels, 1.0)), dict.fromkeys(labels, 1.0))
    assert alike.kappa is None
    assert "alike" in alike.why


@pytest.mark.parametrize(("more", "word"), [({"flipped": True}, "order"), ({"unread": True}, "read")])
def test_unsteadiness_and_nonsense_keep_a_judge_from_gates(more: dict[str, Any], word: str) -> None:
    labels, right = noisy(random.Random(5), 200, 0.0)
    bad = dict(list(right.items())[:50])
    good = {row: one for row, one in right.items() if row not in bad}
    found = calibrate(judged(good, **({"flipped": False} if "flipped" in more else {})) + judged(bad, **more), labels)
    assert not carries_gates(found)
    assert word in found.why


def test_a_kind_judge_is_told_by_its_bias() -> None:
    labels = {str(number): float(number % 2) for number in range(200)}
    kinder = {row: min(1.0, 0.45 + 0.55 * one) for row, one in labels.items()}
    found = calibrate(judged(kinder), labels)
    assert found.agreement == 1.0
    assert found.bias == pytest.approx(0.225)
    assert found.bias_low is not None
    assert 0 < found.bias_low < 0.225
    assert "kinder" in found.why


def test_agreement_is_told_by_slice() -> None:
    said = [
        Judged(row=str(number), value=float(number % 4 != 0), slices={"country": "de" if number % 2 else "fr"})
        for number in range(100)
    ]
    found = calibrate(said, {str(number): 1.0 for number in range(100)})
    assert [(one.value, one.agreement, one.labels) for one in found.slices] == [("de", 1.0, 50), ("fr", 0.5, 50)]


def test_few_labels_and_many_verdicts_give_a_surer_mean_and_it_is_right() -> None:
    seed = 11
    print("seed", seed)
    dice = random.Random(seed)
    covered = used = 0
    for _ in range(100):
        truth, said = noisy(dice, 1_000, 0.08)
        labels = dict(list(truth.items())[:80])
        found = calibrate(judged(said), labels)
        covered += found.corrected_low <= sum(truth.values()) / len(truth) <= found.corrected_high
        used += found.corrected
    assert used >= 95
    assert covered >= 88  # of 100 at 95 %: fewer than 88 happen with a chance below 0.001


def test_a_judge_that_tells_nothing_is_not_used_for_the_mean() -> None:
    labels, _ = noisy(random.Random(2), 80, 0.0)
    said = dict.fromkeys([*labels, *(f"x{number}" for number in range(500))], 0.5)
    assert not calibrate(judged(said), labels).corrected


# From the rows of a run to a gate.


def test_the_gate_over_a_judge_counts_people_s_labels() -> None:
    dice = random.Random(4)
    truth = {f"{number:016x}": float(dice.random() < 0.7) for number in range(600)}
    kind = {row: 1.0 if dice.random() < 0.05 else one for row, one in truth.items()}
    rows = [
        RowV1(row=row, scores={"exact": Score(value=0.0), "critic": Score(value=value)}) for row, value in kind.items()
    ]
    run = Run(eval="e", workflow="w", workflow_key="0", eval_key="1", dataset="d@1", rows=tuple(rows))
    labels = {row: 5 if truth[row] else 1 for row in list(truth)[:100]}
    declared = [scorers.exact(), CRITIC]
    found = calibration_of(rows, CRITIC, labels)
    assert carries_gates(found)
    assert found.corrected
    gate = judge_gates(["critic >= 0.6"], run, scorers=declared, calibrations={"critic": found})[0]
    assert gate.state == "passed"
    assert gate.value == pytest.approx(found.corrected_value)
    assert "100 people's labels" in gate.why
    alone = judge_gates(
        ["critic >= 0.6"], run, scorers=declared, calibrations={"critic": Calibration(labels=0, judged=9)}
    )
    assert alone[0].value == pytest.approx(sum(kind.values()) / 600)


def test_verdicts_that_a_run_kept_are_told_apart_again() -> None:
    rows = [
        RowV1(row="a", scores={"pairs": read_verdict(PAIRS, asked(PAIRS, Pair), said).score})
        for said in (["first", "second"], ["first", "first"], ["first", "??"])
    ]
    found = calibration_of(rows, PAIRS, {"a": "first"})
    assert (found.judged, found.labels, found.flips, found.unread) == (3, 2, 0.5, 1 - 2 / 3)
