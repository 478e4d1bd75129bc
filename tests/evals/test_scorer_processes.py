"""Scorers that run a user's code: what they see, and that one which raises, hangs or crashes ends nothing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import drivetrain as dt
from drivetrain import scorers
from drivetrain.core.evals import Scorer
from drivetrain.core.scorers import scorers_of
from drivetrain.evals import causes
from drivetrain.evals.eval_key import eval_key
from drivetrain.evals.isolation import HANGS_MAX
from drivetrain.evals.scoring import Answer, CompiledScorer, compiled
from drivetrain.project import load, unload

pytestmark = pytest.mark.slow


class Route(dt.Record):
    intent: str
    total: float = 0.0


def said(text: str = "", value: Any = None) -> Answer:
    return Answer(text=text, value=value)


@pytest.fixture
def function() -> Iterator[Any]:
    opened: list[CompiledScorer] = []

    def make(one: Any, timeout_ms: int = 30_000, **more: Any) -> CompiledScorer:
        opened.append(compiled(scorers.function(one, name="mine", timeout_ms=timeout_ms), **more))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_a_function_sees_output_expected_and_row_and_gives_what_it_likes(function: Any) -> None:
    answer, row = said("b", {"intent": "b", "total": 2}), {"limit": 3}
    by_row = function(lambda output, expected, row: row["limit"] >= output["total"] and expected == "b")
    typed = function(lambda output: output.intent == "b", output=Route)
    graded = function(lambda output, expected: 0.25)
    own = function(lambda *_: dt.Score(value=0.5, cause="tone", note="a word too many"))
    assert by_row(answer, "b", row) == dt.Score(value=1.0)
    assert typed(answer, "b", row) == dt.Score(value=1.0)
    assert graded(answer, "b", row).value == 0.25
    assert own(answer, "b", row) == dt.Score(value=0.5, cause="tone", note="a word too many")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.5, 2, "1", None, [1], {"value": 3}])
def test_what_is_no_score_is_a_failure_of_the_scorer(function: Any, value: Any) -> None:
    found = function(lambda output: value)(said("a"), "a", {})
    assert (found.value, found.cause) == (0, causes.SCORER)
    assert found.note


def test_a_function_that_raises_is_told_by_its_error_s_type_and_never_its_text(function: Any) -> None:
    def broken(output: str) -> float:
        raise KeyError(f"secret of {output}")

    found = function(broken)(said("Ann"), "a", {})
    assert found == dt.Score(value=0.0, cause=causes.SCORER, note="it raised KeyError")


def test_a_function_that_hangs_or_ends_its_process_is_told_and_the_next_answer_is_scored(function: Any) -> None:
    def sometimes(output: str) -> bool:
        while output == "hang":
            pass
        if output == "end":
            os._exit(3)
        return True

    # Long enough that a process which stands still for a moment does not count as one that hangs.
    one = function(sometimes, timeout_ms=3_000)
    found = [one(said(text), None, {}) for text in ("a", "hang", "a", "end", "a")]
    assert [each.value for each in found] == [1, 0, 1, 0, 1]
    assert found[1].note == "it took longer than it may and was ended"
    assert found[3].note == "its process ended"


def test_a_function_that_only_hangs_is_soon_not_asked_any_more(function: Any) -> None:
    def hangs(output: str) -> bool:
        time.sleep(3600)
        return True

    one = function(hangs, timeout_ms=50)
    found = [one(said("a"), None, {}) for _ in range(200)]
    assert {each.cause for each in found} == {causes.SCORER}
    assert "not asked any more" in found[HANGS_MAX].note


def test_a_pattern_that_takes_for_ever_does_not_hang_the_run() -> None:
    scorer = scorers.matches(r"(a+)+$")
    short = Scorer(name="slow", kind="matches", options=scorer.options, timeout_ms=3_000)
    with compiled(short) as one:
        assert one(said("a" * 40 + "b"), None, {}).cause == causes.SCORER
        assert one(said("aaa"), None, {}).value == 1


def test_a_scorer_holds_nothing_of_its_parent_open(function: Any) -> None:
    with open(__file__):
        one = function(lambda output: dt.Score(value=0.5, note=str(len(os.listdir("/proc/self/fd")))))
        assert int(one(said("a"), None, {}).note) <= 5  # three standard streams, its socket, and the folder it lists


def test_a_scorer_that_is_made_beside_busy_threads_works(function: Any) -> None:
    ended = threading.Event()

    def busy() -> None:
        while not ended.wait(0):
            json.dumps(list(range(100)))
            random.random()

    threads = [threading.Thread(target=busy) for _ in range(4)]
    for each in threads:
        each.start()
    try:
        for number in range(10):
            assert function(lambda output, number=number: number == 3)(said("a"), None, {}).value == (number == 3)
    finally:
        ended.set()
        for each in threads:
            each.join()


def test_threads_may_share_a_scorer(function: Any) -> None:
    one = function(lambda output, expected: float(output) / 100)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: one(said(str(number)), None, {}).value, range(101)))
    assert found == [number / 100 for number in range(101)]


ORPHANS = """
import os, sys, threading, time
from drivetrain import scorers
from drivetrain.evals.scoring import Answer, compiled

def hang(output):
    os.write(2, f"{os.getpid()} {os.getppid()}\\n".encode())
    time.sleep(3600)

compiled(scorers.function(hang, timeout_ms=60_000))(Answer(text="a"), None, {})
"""


def test_a_killed_run_leaves_no_process_behind() -> None:
    run = subprocess.Popen([sys.executable, "-c", ORPHANS], stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    children = [int(one) for one in run.stderr.readline().split()]
    run.kill()
    run.wait()
    run.stderr.close()
    assert len(children) == 2
    assert all(_ends(one) for one in children)


def _ends(pid: int) -> bool:
    """Whether a process soon runs no more; one that nobody has waited for yet does not run."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


PROJECT = """
import drivetrain as dt
from workflows.words import KNOWN


class Ticket(dt.Record):
    text: str


class Route(dt.Record):
    intent: str


triage = dt.Workflow(
    "triage", input=Ticket, output=Route, owner="a@b.example", team="t", use_case="u",
    route=[dt.Rule("all", when=lambda ticket: True, then=Route(intent="spam"))],
)


def known(output, expected, row):
    return isinstance(output, Route) and output.intent in KNOWN


golden = dt.Eval("triage-golden", dataset="golden", scorers=[known])
"""


def test_a_project_s_own_function_sees_its_own_types_and_modules(tmp_path: Path) -> None:
    (tmp_path / "workflows").mkdir()
    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "shop"\n')
    (tmp_path / "workflows" / "words.py").write_text('KNOWN = ("spam",)\n')
    (tmp_path / "workflows" / "triage.py").write_text(PROJECT)
    snapshot = load(tmp_path)
    declared, workflow = snapshot.evals["triage-golden"], snapshot.workflows["triage"]
    with compiled(scorers_of(declared)[0], ("intent",), output=workflow.output) as one:
        assert one(said(value={"intent": "spam"}), "spam", {}).value == 1
        assert one(said(value={"intent": "other"}), "spam", {}) == dt.Score(value=0.0, cause=causes.LABEL)
    other = {**snapshot.files, "workflows/words.py": b'KNOWN = ("ham",)\n'}
    before = eval_key(declared, snapshot)
    assert before == eval_key(declared, snapshot)
    unload(snapshot)
    (tmp_path / "workflows" / "words.py").write_bytes(other["workflows/words.py"])
    edited = load(tmp_path)
    assert eval_key(edited.evals["triage-golden"], edited) != before
    unload(edited)


def test_a_closed_scorer_leaves_no_process_behind(function: Any) -> None:
    def pid(output: str) -> dt.Score:
        return dt.Score(value=0.5, note=str(os.getpid()))

    one = function(pid)
    child = int(one(said("a"), None, {}).note)
    os.kill(child, 0)
    one.close()
    assert _ends(child)
