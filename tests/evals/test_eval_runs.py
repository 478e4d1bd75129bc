"""Runs of evals: what is asked, what is asked again, what they cost, and what their gates make of it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from eval_world import EVAL, TERSE, World, recorded, rows, simulated, write_world

from drivetrain.adapters.files import FileVault
from drivetrain.cli.dataset import datasets_of
from drivetrain.cli.eval_print import show_compared, show_run
from drivetrain.core.datasets import ColumnV1, SchemaV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.datasets.schema import Declared
from drivetrain.datasets.sources import FromCalls
from drivetrain.embedded.eval_reports import compare_reports, standings
from drivetrain.embedded.eval_runs import run_eval
from drivetrain.embedded.evaluating import asking
from drivetrain.evals.junit import junit
from drivetrain.evals.run_files import RunFiles
from drivetrain.project.load import load
from drivetrain.simulator import SimulatorProcess

pytestmark = pytest.mark.slow

EACH, BROKEN = 400, 12
SMALL = 30


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    file = recorded(tmp_path_factory.mktemp("recorded"), each=EACH, broken=BROKEN)
    with SimulatorProcess(simulated(file)) as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, simulator: SimulatorProcess) -> World:
    made = write_world(tmp_path / "project", simulator.url)
    made.dataset("golden", rows(SMALL))
    return made


def test_a_planted_regression_of_three_points_on_one_slice_is_stopped(
    tmp_path: Path, simulator: SimulatorProcess
) -> None:
    world = write_world(tmp_path / "project", simulator.url)
    world.dataset("golden", rows(EACH))
    before = world.drivetrain("eval", "run", "golden")
    assert before.code == 0, before.out + before.err
    assert run_eval("golden", world.root).passed, "asked again, nothing has changed"
    world.write("workflows/triage.j2", TERSE + "{{ text }}")
    after = world.drivetrain("eval", "run", "golden", "--json")
    assert after.code == 3, after.out + after.err
    said = json.loads(after.out)
    assert said["passed"] is False
    assert said["facts"]["passed"] is False
    overall, slices = said["body"]["gates"]
    assert (overall["state"], slices["state"]) == ("passed", "failed")
    (worse,) = [one for one in slices["slices"] if one["state"] == "worse"]
    assert (worse["column"], worse["value"], round(worse["difference"], 4)) == ("lang", "de", -BROKEN / EACH)
    assert "lang = de" in said["verdict"]
    world.write("workflows/triage.j2", "{{ text }}")
    assert run_eval("golden", world.root).passed
    assert len(world.calls("eval")) == 4 * EACH


def test_the_verdict_counts_the_gates_that_do_not_pass_beside_the_first(world: World) -> None:
    latency = '"mean latency <= 0.001 ms", "p95 latency <= 0.001 ms"'
    world.edit("evals/golden.py", '"accuracy >= 0.9"', f'"accuracy >= 0.9", {latency}')
    assert " 1 more gate does not pass. In all: " in run_eval("golden", world.root).report.verdict
    world.edit("evals/golden.py", latency, f'{latency}, "p99 latency <= 0.001 ms"')
    assert " 2 more gates do not pass. In all: " in run_eval("golden", world.root).report.verdict


def test_a_second_run_and_an_edited_gate_cost_nothing(world: World) -> None:
    first = run_eval("golden", world.root)
    asked = len(world.calls())
    assert asked == 2 * SMALL
    second = run_eval("golden", world.root)
    world.edit("evals/golden.py", "accuracy >= 0.9", "accuracy >= 0.99")
    edited = run_eval("golden", world.root)
    assert len(world.calls()) == asked
    assert (second.report.facts["spent_nano_usd"], edited.report.facts["spent_nano_usd"]) == (0, 0)
    assert first.report.facts["spent_nano_usd"] == sum(one.cost_nano_usd for one in world.calls()) > 0
    assert second.report.facts["accuracy"] == first.report.facts["accuracy"] == 1 - 2 / (2 * SMALL)
    assert (first.passed, edited.passed) == (True, False)
    assert edited.report.facts["eval_key"] != first.report.facts["eval_key"]
    fresh = run_eval("golden", world.root, fresh=True)
    assert len(world.calls()) == 2 * asked
    assert fresh.report.facts["spent_nano_usd"] == first.report.facts["spent_nano_usd"]


def test_without_a_cache_nothing_is_kept(world: World) -> None:
    run_eval("golden", world.root, cache=False)
    run_eval("golden", world.root, cache=False)
    assert len(world.calls()) == 4 * SMALL
    assert not list(world.data.glob("evals/golden/*.journal"))


def test_what_is_kept_quotes_nobody(world: World) -> None:
    result = run_eval("golden", world.root)
    kept = b"".join(one.read_bytes() for one in (world.data / "evals").rglob("*") if one.is_file())
    kept += b"".join(one.read_bytes() for one in (world.data / "reports").glob("*.json"))
    assert result.run.rows[0].row.encode() in kept
    assert b"ticket #" not in kept
    assert b'{"intent"' not in kept


def test_a_forgotten_persons_answers_are_asked_anew(world: World) -> None:
    subjects = [{**one, "who": f"user-{place % 4}"} for place, one in enumerate(rows(SMALL))]
    schema = SchemaV1(columns=(ColumnV1(name="who", type="string", subject=True),))
    world.dataset("golden", subjects, declared=Declared(schema=schema))
    result = run_eval("golden", world.root)
    assert len({one.group for one in result.run.rows}) == 4
    assert {one.attribution.user for one in world.calls()} == {f"user-{number}" for number in range(4)}
    FileVault(world.root / ".drivetrain" / "keys").forget("user-1")
    before = len(world.calls())
    run_eval("golden", world.root)
    assert len(world.calls()) == before + sum(one["who"] == "user-1" for one in subjects)


def test_a_run_stops_at_its_budget_and_goes_on(world: World) -> None:
    whole = run_eval("golden", world.root, cache=False).report.facts["spent_nano_usd"]
    assert isinstance(whole, int)
    cap = whole // 2
    part = run_eval("golden", world.root, limit_usd=f"{cap / 1e9:.9f}", concurrency=4)
    spent = part.report.facts["spent_nano_usd"]
    assert isinstance(spent, int)
    assert 0 < spent <= cap
    assert (part.passed, part.report.facts["finished"], part.gates) == (False, False, ())
    assert "budget" in part.stopped
    assert 0 < len(part.run.rows) < 2 * SMALL
    rest = run_eval("golden", world.root)
    assert rest.passed
    assert rest.report.facts["spent_nano_usd"] == whole - spent
    answered = [one for one in world.calls() if one.status == "answered"]
    assert len(answered) == 4 * SMALL


def test_a_provider_that_is_down_is_told_and_only_its_rows_are_asked_again(world: World) -> None:
    texts = [one if place % 3 else {**one, "text": f"[[simulate failure=status:401]] {one['text']}"}
             for place, one in enumerate(rows(SMALL))]  # fmt: skip
    world.dataset("golden", texts)
    result = run_eval("golden", world.root)
    down = [one for one in result.run.rows if one.status == "failed"]
    assert {one.error for one in down} == {"upstream_auth"}
    assert len(down) == 2 * SMALL // 3
    assert not result.passed
    assert any("20 by `upstream_auth`" in one for one in result.report.body["notices"])
    before = Counter(one.status for one in world.calls())
    run_eval("golden", world.root)
    after = Counter(one.status for one in world.calls())
    assert after["answered"] == before["answered"]
    assert after["failed"] == 2 * before["failed"]


def test_a_refused_input_is_a_wrong_row_and_costs_nothing(world: World) -> None:
    given = [{**one, "vip": "often" if place == 0 else "no"} for place, one in enumerate(rows(5))]
    world.dataset("golden", given)
    result = run_eval("golden", world.root)
    assert {one.status for one in result.run.rows} == {"refused"}
    assert {one.error for one in result.run.rows} == {"invalid_type"}
    assert result.report.facts["accuracy"] == 0
    assert not world.calls()


def test_answers_that_cannot_be_used_are_failures_of_form(world: World) -> None:
    given = [{**one, "text": f"[[simulate failure=truncated_json]] {one['text']}"} for one in rows(4)]
    world.dataset("golden", given)
    result = run_eval("golden", world.root)
    assert {one.scores["accuracy"].cause for one in result.run.rows} == {"format"}
    assert all(one.scores["accuracy"].unread for one in result.run.rows)
    asked = len(world.calls())
    run_eval("golden", world.root)
    assert len(world.calls()) == asked, "what a model said stands, be it unusable"


def test_repeats_are_asked_each_and_counted_together(world: World) -> None:
    result = run_eval("golden", world.root, repeats=3)
    assert len(result.run.rows) == 6 * SMALL
    assert len(world.calls()) == 6 * SMALL
    score = result.report.body["scores"]["accuracy"]
    assert (score["rows"], score["groups"]) == (2 * SMALL, 2 * SMALL)
    once = run_eval("golden", world.root).report.body["scores"]["accuracy"]
    assert (score["low"], score["high"]) == pytest.approx((once["low"], once["high"]), abs=0.01)


def test_a_part_of_the_rows_is_no_evidence(world: World) -> None:
    result = run_eval("golden", world.root, rows=10)
    assert len(result.run.rows) == 10
    assert result.report.facts["passed"] is False
    assert "Only 10 of 60 rows" in result.report.body["partial"]
    again = run_eval("golden", world.root, rows=10)
    assert [one.row for one in again.run.rows] == [one.row for one in result.run.rows]


def test_the_baseline_is_asked_once_and_its_cost_is_told(world: World, tmp_path: Path) -> None:
    other = tmp_path / "before"
    shutil.copytree(world.root, other)
    world.write("workflows/triage.j2", TERSE + "{{ text }}")
    result = run_eval("golden", world.root, against=str(other))
    assert result.baseline is not None
    assert result.baseline.workflow_key != result.run.workflow_key
    assert [one.row for one in result.baseline.rows] == [one.row for one in result.run.rows]
    against = result.report.body["against"]
    assert against["spent_nano_usd"] > 0
    assert against["what"] == "folder before"
    assert len(world.calls()) == 4 * SMALL
    assert not (other / ".drivetrain" / "data" / "calls").exists()
    again = run_eval("golden", world.root, against=str(other))
    assert again.report.body["against"]["spent_nano_usd"] == 0
    assert len(world.calls()) == 4 * SMALL
    by_report = run_eval("golden", world.root, against=result.report_id)
    assert "nothing differs" in by_report.report.body["notices"][0]
    with pytest.raises(DrivetrainError, match="Nothing is live"):
        run_eval("golden", world.root, against="live")


def test_one_run_at_a_time(world: World) -> None:
    with RunFiles(world.data).alone("golden"), pytest.raises(DrivetrainError, match="being run by another process"):
        run_eval("golden", world.root)
    assert not world.calls()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (EVAL.replace('dataset="golden"', 'dataset="goldn"'), "There is no Dataset `goldn`"),
        (EVAL.replace('slices=["lang"]', 'slices=["language"]'), "no column `language`"),
        (EVAL.replace('slices=["lang"]', 'expected="right"'), "no column `right`"),
        (EVAL.replace('slices=["lang"]', 'inputs={"text": "txt"}'), "no column `txt`"),
    ],
)
def test_what_is_wrong_with_rows_is_told_before_anything_is_asked(world: World, code: str, told: str) -> None:
    world.write("evals/golden.py", code)
    with pytest.raises(DrivetrainError, match=told):
        run_eval("golden", world.root)
    assert not world.calls()


def test_an_eval_that_is_not_declared_names_the_nearest(world: World) -> None:
    with pytest.raises(DrivetrainError, match="no eval `goldn`") as raised:
        run_eval("goldn", world.root)
    assert "golden" in raised.value.do


def test_rows_that_do_not_say_what_is_right_are_told(world: World) -> None:
    world.dataset("golden", [{"text": "a", "lang": "de"}, {"text": "b", "lang": "de"}])
    with pytest.raises(DrivetrainError, match="no column that says what is right"):
        run_eval("golden", world.root)
    world.dataset("golden", [{"text": "a", "lang": "de", "expected": "spam"}, {"text": "b", "lang": "de"}])
    with pytest.raises(DrivetrainError, match="Row 2 of `golden@3` does not say what is right"):
        run_eval("golden", world.root)


def test_one_row_and_no_gates(world: World) -> None:
    world.write("evals/golden.py", EVAL.partition("    gates=")[0] + ")\n")
    world.dataset("golden", rows(1)[:1])
    result = run_eval("golden", world.root)
    assert (result.report.facts["gates"], result.report.facts["rows"]) == (0, 1)
    assert "no gates" in result.report.verdict
    assert standings(world.root)[0].state == "no gates"


def test_suites_are_run_and_told_apart(world: World) -> None:
    code = EVAL.replace('slices=["lang"],', 'slices=["lang"], suites={"must": "must"},')
    world.write("evals/golden.py", code.replace('"no slice', '"no new failure in `must`", "no slice'))
    world.dataset("must", rows(3)[:2])
    result = run_eval("golden", world.root)
    assert Counter(one.suite for one in result.run.rows) == {"": 2 * SMALL, "must": 2}
    assert result.report.facts["accuracy"] == 1 - 2 / (2 * SMALL)
    assert [one["name"] for one in result.report.body["parts"]] == ["must", "lang=de", "lang=en"]
    assert result.report.inputs == ("dataset:golden@1", "dataset:must@1")


def test_eval_calls_are_in_no_dataset_of_calls(world: World) -> None:
    with asking(load(world.root)) as asker:
        asker.ask("triage", b'{"text": "a caller\'s own"}', door="python")
    run_eval("golden", world.root)
    datasets = datasets_of(world.root)
    assert datasets.create("callers", FromCalls("workflow = 'triage'")).dataset.rows == 1
    assert datasets.create("evals", FromCalls("workflow = 'triage' AND door = 'eval'")).dataset.rows == 2 * SMALL


def test_their_cost_counts_and_is_told_by_door(world: World) -> None:
    run_eval("golden", world.root)
    shown = json.loads(world.drivetrain("cost", "--by", "door,tag:eval", "--json").out)
    (row,) = shown["rows"]
    assert (row["door"], row["calls"]) == ("eval", 2 * SMALL)
    assert row["cost_nano_usd"] == shown["total"]["cost_nano_usd"] == sum(one.cost_nano_usd for one in world.calls())


def test_comparing_two_runs_names_what_was_fixed_and_broken(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_eval("golden", world.root)
    world.write("workflows/triage.j2", TERSE + "{{ text }}")
    second = run_eval("golden", world.root)
    found = compare_reports(first.report_id, second.report_id, world.root)
    body = found.report.body
    (scored,) = body["scorers"]
    broken = [one.row for one, old in zip(second.run.rows, first.run.rows, strict=True)
              if one.scores["accuracy"].value < old.scores["accuracy"].value]  # fmt: skip
    assert [one["row"] for one in scored["broken"]] == sorted(broken)
    assert (scored["fixed_rows"], scored["broken_rows"]) == (0, len(broken))
    assert body["rows"] == 2 * SMALL
    assert scored["comparison"]["verdict"] == "not enough evidence"
    assert "more rows would settle it" in found.report.verdict
    show_compared(found.report, True, world.root)
    shown = capsys.readouterr().out
    assert all(one.call_id in shown for one in second.run.rows if one.row in broken[:5])
    assert "| USD |" in shown
    with pytest.raises(DrivetrainError, match="Both are Report"):
        compare_reports(first.report_id, first.report_id, world.root)


def test_junit_says_which_gate_failed(world: World) -> None:
    world.edit("evals/golden.py", "accuracy >= 0.9", "accuracy >= 0.999")
    result = run_eval("golden", world.root)
    tree = ElementTree.fromstring(junit(result.report, result.report_id))
    (suite,) = tree
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    failed = [one.get("name") for one in suite.iter("testcase") if one.find("failure") is not None]
    assert failed == ["accuracy >= 0.999"]


def test_a_judge_is_asked_once_costed_and_measured(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    judge = 'dt.scorers.judge("grader", labels="people", name="graded")'
    code = EVAL.replace('dt.scorers.exact("intent", name="accuracy")', f'{judge}, dt.scorers.exact("intent")')
    code = code.replace('"accuracy >= 0.9", "no slice worse than -2 pp"', '"graded >= 0.01"')
    world.write("evals/golden.py", code)
    given = [{**one, "people": "right" if place % 2 else "wrong"} for place, one in enumerate(rows(SMALL))]
    world.dataset("golden", given)
    result = run_eval("golden", world.root)
    judged, asked = world.calls("judge"), world.calls("eval")
    assert (len(judged), len(asked)) == (2 * SMALL, 2 * SMALL)
    assert {one.workflow for one in judged} == {"grader"}
    assert result.report.facts["spent_nano_usd"] == sum(one.cost_nano_usd for one in (*judged, *asked))
    assert result.report.body["judged_nano_usd"] == sum(one.cost_nano_usd for one in judged)
    calibration = result.report.body["judges"]["graded"]
    assert calibration["labels"] == 2 * SMALL
    assert calibration["why"], "it labels at random, so it agrees with nobody"
    assert result.gates[0].state == "not enough evidence"
    show_run(result.report, False, world.root)
    assert "carries no gate alone" in capsys.readouterr().out
    again = run_eval("golden", world.root)
    assert again.report.facts["spent_nano_usd"] == 0
    assert len(world.calls("judge")) == 2 * SMALL


def test_a_judge_that_cannot_be_shown_the_rows_is_told_before_anything_is_asked(world: World) -> None:
    world.edit("workflows/tickets.py", '    expected: str = ""\n', "    mood: str\n")
    world.write("workflows/grader.j2", "{{ question }} {{ answer }} {{ mood }}")
    judge = 'dt.scorers.judge("grader", name="graded")'
    world.write("evals/golden.py", EVAL.replace('dt.scorers.exact("intent", name="accuracy")', judge))
    with pytest.raises(DrivetrainError, match="mood"):
        run_eval("golden", world.root)
    assert not world.calls()
