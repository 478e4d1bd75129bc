"""Scorers, gates and judges under attack: what a model answers, and what a user's function does, breaks no run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drivetrain import scorers
from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.evals import Score, Scorer
from drivetrain.evals.gates import judge_gates, parse_gate
from drivetrain.evals.rows import RowV1, Run
from drivetrain.evals.scoring import Answer, compiled

pytestmark = pytest.mark.slow

DEEP = "[" * 600 + "]" * 600
ODD = (
    "1" * 30, "-" + "1" * 400, "1" * 6_000, DEEP, '{"a":' + "1" * 400 + "}", '{"a":' + DEEP + "}", '"\\ud800"', "a\0b",
    "NaN", "1e999", "x" * 1_200_000, "", " ", "```", "``", "```json\n{", ":", '{"a": {"a": {}}}', "\u202e1",
)  # fmt: skip
WANTED: tuple[Any, ...] = ("1", 1, 10**18, 1e308, True, [1], [[[]]], {"a": 1}, {"a": {"b": None}}, {}, None, "")
KINDS = (
    scorers.exact(), scorers.exact("a"), scorers.exact(reading="first_json"), scorers.normalised(),
    scorers.normalised(punctuation=True, reading="json"), scorers.f1(), scorers.f1(separator=","),
    scorers.within(absolute=1), scorers.within("a", relative=0.1), scorers.within(absolute=1, reading="json"),
    scorers.within(absolute=1, reading="last_number"), scorers.matches("(1+)"), scorers.similarity(),
    scorers.json_schema({"type": "object", "properties": {"a": {"type": "integer"}}}),
    scorers.json_fields({"a": scorers.within(absolute=1)}), scorers.json_fields({"a": scorers.normalised()}),
)  # fmt: skip


def answer(text: str) -> Answer:
    try:
        return Answer(text=text, value=parse_json(text.encode()))
    except MalformedJson:
        return Answer(text=text)


@pytest.mark.parametrize("scorer", KINDS, ids=lambda one: one.name + str(one.options)[:30])
def test_no_answer_breaks_a_scorer(scorer: Scorer) -> None:
    with compiled(scorer) as asked:
        for text in ODD:
            for wanted in WANTED:
                said = asked(answer(text), wanted, {"text": text[:50]})
                assert 0 <= said.value <= 1
                assert said.value == 1 or said.cause


def by(function: Any, times: int = 1) -> list[Score]:
    with compiled(scorers.function(function, timeout_ms=30_000)) as scorer:
        return [scorer(Answer(text=str(number)), number, {}) for number in range(times)]


def test_a_scorer_that_forks_gives_one_score_to_one_answer() -> None:
    def forks(output: str, expected: int) -> float:
        if os.fork() == 0:
            time.sleep(0.01)
            return 0.25
        return 1.0 if expected % 2 else 0.5

    assert [one.value for one in by(forks, 8)] == [0.5, 1.0] * 4


def test_a_scorer_cannot_break_what_it_answers_with() -> None:
    assert by(lambda output: msgspec.Raw(b"\xc1"), 2)[1].cause == "scorer"
    assert by(lambda output: msgspec.msgpack.Ext(3, b"x"))[0].cause == "scorer"


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -0.1, 1.1, 10**30, "true", None, [1], {"value": 0.5, "x": "\ud800"}]
)
def test_what_is_no_score_is_a_scorer_that_failed(value: Any) -> None:
    assert by(lambda output: value)[0].cause == "scorer"


@pytest.mark.parametrize(
    "cause", ["x" * 41, "the person said: my name is Ada, and\nI", "\x1b[31mred", "a|b", "<b>", "[a](b)"]
)
def test_a_cause_is_a_word_and_no_place_for_an_answer(cause: str) -> None:
    said = by(lambda output: Score(value=0.0, cause=cause))[0]
    assert said.cause == "scorer"
    assert cause not in said.note
    assert by(lambda output: Score(value=0.2, cause="too late"))[0] == Score(value=0.2, cause="too late")


PRINTS = """
import os, subprocess, sys
from drivetrain import scorers
from drivetrain.evals.scoring import Answer, compiled

def prints(output):
    print("x" * 100_000, flush=True)
    os.write(1, b"y" * 1000)
    left = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
    print(left.pid, file=sys.stderr, flush=True)
    return 1.0

print("{", end="")
with compiled(scorers.function(prints)) as scorer:
    print(scorer(Answer(text="a"), None, {}).value, end="")
print("}", end="")
"""


def test_what_a_scorer_prints_is_no_part_of_the_output_and_what_it_starts_ends() -> None:
    ended = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout == "{1.0}"
    (left,) = map(int, ended.stderr.split())
    deadline = time.monotonic() + 30
    while _runs(left) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(left)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("text", ["p0 latency <= 5 ms", "p00 latency <= 5 ms", "p0.0 latency <= 5 ms"])
def test_a_quantile_of_nothing_is_no_mean(text: str) -> None:
    with pytest.raises(DrivetrainError, match="p95 latency"):
        parse_gate(text)


# A first run, and what passes because there is nothing to compare with.


def run(values: list[float], *, judged: list[float] | None = None, lang: str = "de") -> Run:
    rows = []
    for number, value in enumerate(values):
        scores = {"exact": Score(value=value)}
        if judged is not None:
            scores["graded"] = Score(value=judged[number])
        rows.append(RowV1(row=f"{number:016x}", slices={"lang": lang}, scores=scores))
    return Run(eval="e", workflow="w", workflow_key="k", eval_key="e", dataset="d@1", rows=tuple(rows))


GATES = (
    "no slice worse than -2 pp",
    "overall not worse than 0 pp",
    "no new failure",
    "no slice worse than -2 pp at 95 %",
)


def test_nothing_can_be_worse_than_nothing() -> None:
    first = run([1.0, 0.0, 1.0])
    for found in judge_gates(GATES, first, first, alone="nothing was live before"):
        assert (found.state, found.value) == ("passed", None)
        assert "nothing to be worse than" in found.why
    assert {one.state for one in judge_gates(GATES[:1], first, first)} == {"not enough evidence"}


def test_a_first_run_passes_no_other_gate_and_nothing_unscored() -> None:
    first = run([1.0, 0.0, 1.0])
    (found,) = judge_gates(["accuracy >= 0.9"], first, first, alone="nothing was live before")
    assert found.state == "failed"
    unscored = msgspec.structs.replace(first, rows=(*first.rows, RowV1(row="f" * 16, slices={"lang": "de"})))
    (found,) = judge_gates(["no slice worse than -2 pp"], unscored, unscored, alone="nothing was live before")
    assert found.state == "not enough evidence"
    (found,) = judge_gates(["no new failure in `must-pass`"], first, first, alone="nothing was live before")
    assert found.state == "not enough evidence"


def test_a_gate_that_compared_with_nothing_carries_no_judge() -> None:
    first = run([1.0] * 40, judged=[1.0] * 40)
    both = [scorers.judge("grader", name="graded"), scorers.exact(name="exact")]
    gates = ["graded >= 0.9", "overall of exact not worse than 0 pp"]
    graded, compared = judge_gates(gates, first, first, scorers=both, alone="nothing was live before")
    assert compared.state == "passed"
    assert graded.state == "not enough evidence", graded.why
    graded, _ = judge_gates([gates[0], "exact >= 0.5"], first, first, scorers=both)
    assert graded.state == "passed", "a gate with a figure does carry it"


def test_a_sentence_stays_one_whatever_a_slice_is_called() -> None:
    value = "de\n\nAll gates passed\x1b[31m" + "x" * 150
    before, after = run([1.0] * 30, lang=value), run([0.0] * 30, lang=value)
    (found,) = judge_gates(["no slice worse than -2 pp"], after, before)
    assert found.state == "failed"
    assert "\n" not in found.why
    assert len(found.why) < 400
    assert "...." not in found.why


def test_a_baseline_that_could_not_be_asked_lets_nothing_through() -> None:
    after = run([0.0] * 10 + [1.0] * 30)
    fine = run([1.0] * 40)
    down = msgspec.structs.replace(
        fine,
        rows=tuple(
            msgspec.structs.replace(one, status="failed", error="upstream_unreachable", scores={})
            if place < 20
            else one
            for place, one in enumerate(fine.rows)
        ),
    )
    unscored = msgspec.structs.replace(
        fine,
        rows=tuple(
            msgspec.structs.replace(one, scores={"exact": Score(value=0.0, cause="scorer")}) if place < 20 else one
            for place, one in enumerate(fine.rows)
        ),
    )
    assert {one.state for one in judge_gates(GATES[:3], after, fine)} == {"failed"}
    for before in (down, unscored):
        for found in judge_gates(GATES, after, before):
            assert found.state == "not enough evidence", found.why
            assert "20 answers of the baseline" in found.why
    wrong = msgspec.structs.replace(down.rows[0], error="unusable_answer")
    honest = msgspec.structs.replace(fine, rows=(wrong, *fine.rows[1:]))
    assert judge_gates(GATES[1:2], fine, honest)[0].state == "passed", (
        "what a model answered wrongly is a fair baseline"
    )
