"""`drivetrain eval`: what it prints, how it ends, and how a failure becomes a row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from eval_world import COMMAND, EVAL, TERSE, World, recorded, rows, simulated, text_of, write_world

from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.eval_growing import add_failure
from drivetrain.embedded.eval_runs import run_eval
from drivetrain.embedded.evaluating import asking
from drivetrain.embedded.training import datasets_in
from drivetrain.project.load import load
from drivetrain.simulator import SimulatorProcess

EACH = 20


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    config = simulated(recorded(tmp_path_factory.mktemp("recorded"), each=EACH, broken=2))
    with SimulatorProcess(config) as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, simulator: SimulatorProcess) -> World:
    made = write_world(tmp_path / "project", simulator.url)
    made.dataset("golden", rows(EACH))
    return made


def called(world: World, text: str, *, door: str = "python") -> str:
    with asking(load(world.root)) as asker:
        return asker.ask("triage", json.dumps({"text": text}).encode(), door=door).call_id


def rows_of(world: World, reference: str) -> list[dict[str, object]]:
    return list(datasets_in(load(world.root)).rows(reference))


@pytest.mark.slow
def test_run_show_list_compare_and_junit(world: World) -> None:
    first = world.drivetrain("eval", "run", "golden")
    assert first.code == 0, first.err
    assert "all 2 gates pass" in first.out
    assert "by slice and suite" in first.out
    assert first.err == "", "no bar where nobody looks at a terminal"
    world.edit("evals/golden.py", "accuracy >= 0.9", "accuracy >= 0.99")
    failed = world.drivetrain("eval", "run", "golden", "--quiet", "--junit", "out.xml")
    assert failed.code == 3
    assert "gate `accuracy >= 0.99` fails" in failed.out
    assert "<failure" in (world.root / "out.xml").read_text()
    listed = json.loads(world.drivetrain("eval", "list", "--json").out)["evals"]
    assert [(one["eval"], one["state"]) for one in listed] == [("golden", "failed")]
    shown = world.drivetrain("eval", "show", "golden", "--markdown")
    assert shown.code == 0
    assert r"| accuracy \>= 0.99 | FAILED |" in shown.out
    missing = world.drivetrain("eval", "run", "goldn")
    assert (missing.code, "Traceback" in missing.err) == (1, False)
    assert "golden" in missing.err
    part = world.drivetrain("eval", "run", "golden", "--fresh", "--limit-usd", "0.000000001")
    assert part.code == 3, part.out + part.err
    assert "stopped by its budget" in part.out


@pytest.mark.slow
def test_watch_runs_again_when_a_file_changes(world: World) -> None:
    with subprocess.Popen(
        [*COMMAND, "eval", "watch", "golden"],
        cwd=world.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # Who runs the tests in the background ignores it, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - it only resets a signal
    ) as child:
        assert child.stdout is not None
        wait_for_reports(world, 1)
        world.edit("evals/golden.py", "accuracy >= 0.9", "accuracy >= 0.99")
        said = ""
        for line in child.stdout:
            said += line
            if "accuracy >= 0.99" in line:
                break
        child.send_signal(signal.SIGINT)
        rest, err = child.communicate(timeout=60)
    out = said + rest
    assert child.returncode == 130, err
    assert "all 2 gates pass" in out
    assert "gate `accuracy >= 0.99` fails" in out
    assert len(world.calls()) == 2 * EACH


def wait_for_reports(world: World, many: int) -> None:
    deadline = time.monotonic() + 60
    while len(list((world.data / "evals" / "golden").glob("runs/*.json"))) < many:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_failure_becomes_a_row_that_the_next_run_asks(world: World) -> None:
    wrong = text_of("de", 0)
    call_id = called(world, wrong)
    added = add_failure(call_id, "billing", eval_name="golden", more={"lang": "de"}, project=world.root)
    assert (added.dataset.number, added.dataset.rows) == (2, 2 * EACH + 1)
    row = rows_of(world, "golden@2")[-1]
    assert row == {"text": wrong, "expected": "billing", "lang": "de", "call_id": call_id}
    before = rows_of(world, "golden@1")
    assert [{**one, "call_id": None} for one in before] == rows_of(world, "golden@2")[:-1]
    with pytest.raises(DrivetrainError, match="is in `golden@2` already"):
        add_failure(call_id, "billing", to="golden", project=world.root)
    result = run_eval("golden", world.root)
    assert result.run.dataset == "golden@2"
    assert len(result.run.rows) == 2 * EACH + 1


def test_a_failure_may_begin_a_dataset(world: World) -> None:
    call_id = called(world, text_of("de", 3))
    made = add_failure(call_id, '{"intent": "billing"}', to="must-pass", project=world.root).dataset
    (row,) = rows_of(world, "must-pass@1")
    assert json.loads(str(row["input"]))["text"] == text_of("de", 3)
    assert json.loads(str(row["expected"])) == {"intent": "billing"}
    assert row["call_id"] == call_id
    assert {one.name for one in made.schema.columns if one.personal} == {"input"}
    world.write("evals/golden.py", EVAL.replace('slices=["lang"],', 'suites={"must": "must-pass"},'))
    result = run_eval("golden", world.root)
    (failure,) = [one for one in result.run.rows if one.suite]
    assert (failure.status, failure.scores["accuracy"].value) == ("answered", 1.0)


def test_what_was_not_kept_cannot_become_a_row(world: World) -> None:
    world.edit("drivetrain.toml", 'retention = "full"', 'retention = "none"')
    call_id = called(world, text_of("de", 3))
    with pytest.raises(DrivetrainError, match="was not kept") as raised:
        add_failure(call_id, "billing", to="golden", project=world.root)
    assert 'retention = "full"' in raised.value.do
    with pytest.raises(DrivetrainError, match="There is no Call"):
        add_failure("call_0", "billing", to="golden", project=world.root)
    with pytest.raises(DrivetrainError, match="Which Dataset"):
        add_failure(call_id, "billing", project=world.root)
    assert datasets_in(load(world.root)).numbers("golden") == [1]


@pytest.mark.slow
def test_what_is_live_is_the_baseline_and_another_one_justifies_no_release(world: World) -> None:
    first = run_eval("golden", world.root)
    proposed = world.drivetrain("propose", "-m", "the first")
    assert proposed.code == 0, proposed.out + proposed.err
    promoted = world.drivetrain("promote", "1")
    assert promoted.code == 0, promoted.out + promoted.err
    world.write("workflows/triage.j2", f"{TERSE}{{{{ text }}}}")
    against_live = run_eval("golden", world.root, against="live")
    assert against_live.report.body["against"]["what"] == "Release 1"
    assert against_live.report.body["against"]["workflow_key"] == first.run.workflow_key
    assert against_live.report.body["against"]["spent_nano_usd"] == 0
    assert against_live.report.body["partial"] == ""
    itself = run_eval("golden", world.root, against=against_live.report_id)
    assert itself.passed, "nothing is worse than itself"
    assert itself.report.facts["passed"] is False
    assert "not with what is live" in itself.report.body["partial"]
