"""Runs of evals under attack: killed anywhere, out of money, without prices, with persons who are erased, and with
texts that want to be markup."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from drivetrain.core.datasets import ColumnV1, SchemaV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.datasets.schema import Declared
from drivetrain.embedded.eval_runs import run_eval
from drivetrain.embedded.evaluating import asking
from drivetrain.embedded.upgrading import Upgrading, Wanted
from drivetrain.evals.junit import junit
from drivetrain.evals.upgrading.verdict import Asked
from drivetrain.project.load import load
from drivetrain.simulator import SimulatorProcess
from evals.eval_world import COMMAND, EVAL, World, recorded, rows, simulated, write_world

pytestmark = pytest.mark.slow

SMALL = 6
PRICE = {"usd_per_million_input": "1", "usd_per_million_output": "2"}


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    config = simulated(recorded(tmp_path_factory.mktemp("recorded"), each=60, broken=3))
    config["models"]["echo"] = {**PRICE, "quality": {"kind": "echo"}}
    with SimulatorProcess(config) as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, simulator: SimulatorProcess) -> World:
    return write_world(tmp_path / "project", simulator.url)


ECHO = """
import drivetrain as dt

parrot = dt.Workflow(
    "parrot", owner="team@acme.example", team="support", use_case="tests",
    route=[dt.Variant("v", model="sim/echo", max_output_tokens=2000)],
)
"""
ECHO_EVAL = """\
import drivetrain as dt

parrots = dt.Eval(
    "parrots", workflow="parrot", dataset="parrots",
    scorers=[dt.scorers.within(absolute=1, name="near"), dt.scorers.normalised(name="same")],
    gates=["accuracy >= 0.1"],
)
"""


def test_a_run_is_not_broken_by_what_a_model_answers(tmp_path: Path, simulator: SimulatorProcess) -> None:
    world = write_world(tmp_path / "project", simulator.url)
    priced = 'usd_per_million_input = "1"\nusd_per_million_output = "2"'
    world.edit("drivetrain.toml", "[ledger]", f'[models."sim/echo"]\n{priced}\n\n[ledger]')
    world.write("workflows/parrot.py", ECHO)
    world.write("evals/golden.py", ECHO_EVAL)
    given = ["1" * 30, "-" + "1" * 400, "[" * 600 + "]" * 600, "1e999", '{"a": 1}', "5", '"\\ud800"']
    world.dataset("parrots", [{"text": one, "expected": "5"} for one in given])
    first = run_eval("parrots", world.root)
    assert len(first.run.rows) == len(given)
    assert first.report.facts["accuracy"] == 1 / len(given)
    second = run_eval("parrots", world.root)
    assert len(world.calls()) == len(given), "every answer was kept"
    assert [one.scores for one in second.run.rows] == [one.scores for one in first.run.rows]


def test_the_same_inputs_are_the_same_report(world: World) -> None:
    world.dataset("golden", rows(SMALL))
    run_eval("golden", world.root, now_ns=lambda: 1_790_000_000_000_000_000)
    ids = {run_eval("golden", world.root, now_ns=lambda: 1_790_000_000_000_000_000).report_id for _ in range(3)}
    assert len(ids) == 1


def test_a_cost_is_no_evidence_where_the_price_is_unknown(world: World) -> None:
    world.dataset("golden", rows(SMALL))
    world.edit("evals/golden.py", '"accuracy >= 0.9"', '"cost per call <= $0.000000001"')
    settings = (world.root / "drivetrain.toml").read_text()
    world.write("drivetrain.toml", settings.replace('usd_per_million_input = "1"\nusd_per_million_output = "2"\n', ""))
    for limit in (None, "1"):
        result = run_eval("golden", world.root, limit_usd=limit)
        assert {one.error for one in result.run.rows} == {"unknown_price"}
        assert {one.state for one in result.gates} == {"not enough evidence"}
        assert not result.passed


def test_a_run_never_spends_more_than_it_may(world: World) -> None:
    world.dataset("golden", rows(SMALL))
    whole = run_eval("golden", world.root, cache=False).report.facts["spent_nano_usd"]
    assert isinstance(whole, int)
    for limit in (1, whole // 2, whole - 1, whole):
        before = sum(one.cost_nano_usd for one in world.calls())
        result = run_eval("golden", world.root, cache=False, limit_usd=f"{limit / 1e9:.9f}")
        spent = sum(one.cost_nano_usd for one in world.calls()) - before
        assert spent == result.report.facts["spent_nano_usd"] <= limit
        if spent < whole:
            assert not result.passed
            assert result.report.facts["finished"] is False


def test_a_first_release_is_not_blocked_by_a_small_dataset(world: World) -> None:
    world.dataset("golden", rows(SMALL))
    world.edit("evals/golden.py", "accuracy >= 0.9", "accuracy >= 0.5")
    first = run_eval("golden", world.root)
    assert first.report.facts["passed"] is True, first.report.verdict
    assert "nothing was live before" in first.gates[1].why
    world.write("workflows/triage.j2", "Tersely: {{ text }}")
    second = run_eval("golden", world.root)
    assert second.baseline is not None
    assert second.gates[1].state == "not enough evidence", "now there is something to be worse than"


SPITE = (
    "[red]x[/red]|<img src=x onerror=alert(1)>\n# FAKE\n- all gates passed\x1b[31m\x07 [a](javascript:1) `` $x$ \u202e"
)


def test_what_a_dataset_says_is_markup_nowhere(world: World) -> None:
    world.dataset("golden", [{**one, "lang": SPITE} for one in rows(30)[:30]])
    world.write("workflows/triage.j2", "{{ text }}")
    run_eval("golden", world.root)
    world.write("workflows/triage.j2", "Tersely: {{ text }}")
    result = run_eval("golden", world.root)
    assert "lang" in result.gates[1].why
    shown = world.drivetrain("eval", "show", "golden").out
    page = world.drivetrain("eval", "show", "golden", "--markdown").out
    listed = world.drivetrain("report", "list").out
    for text in (shown, page, listed):
        assert not set("\x1b\x07\u202e") & set(text)
        assert not any(line.strip().startswith(("# FAKE", "- all gates passed")) for line in text.splitlines())
    assert "[red]x[/red]" in shown
    assert "<img" not in page.replace("\\<img", "")
    assert "](javascript" not in page.replace("\\](", "")
    tree = ElementTree.fromstring(junit(result.report, result.report_id))
    assert len(list(tree.iter("testcase"))) == 3


def test_a_slice_is_no_text(world: World) -> None:
    world.dataset("golden", [{**one, "lang": "x" * 201} for one in rows(3)])
    with pytest.raises(DrivetrainError, match="201 characters"):
        run_eval("golden", world.root)
    assert not world.calls()


SUBJECT = "ada.lovelace@example.com"
SECRET = "mysecretdisease"


def said_in(world: World, *words: str) -> list[str]:
    """Files of the project that hold one of these words."""
    files = [path for path in world.root.rglob("*") if path.is_file()]
    return [str(path) for path in files for word in words if word.encode() in path.read_bytes()]


def test_no_text_of_an_erased_person_stays(world: World) -> None:
    given = [{**one, "user": f"other{place}@example.com"} for place, one in enumerate(rows(SMALL))]
    given[3] |= {"user": SUBJECT, "text": f"{given[3]['text']} {SECRET}"}
    schema = Declared(
        schema=SchemaV1(
            columns=(
                ColumnV1(name="text", type="string", personal=True), ColumnV1(name="expected", type="string"),
                ColumnV1(name="lang", type="string"), ColumnV1(name="user", type="string", subject=True),
            )
        )
    )  # fmt: skip
    world.dataset("golden", given, declared=schema)
    (world.root / "golden.jsonl").unlink()
    first = run_eval("golden", world.root)
    world.write("workflows/triage.j2", "Tersely: {{ text }}")
    run_eval("golden", world.root)
    ended = world.drivetrain("erase", "--subject", SUBJECT, "--yes")
    assert ended.code == 0, ended.err
    assert said_in(world, SECRET, SUBJECT) == []
    shown = world.drivetrain("eval", "show", first.report_id)
    assert shown.code == 0, "the Report can still be read"
    asked = len(world.calls())
    again = run_eval("golden", world.root)
    assert len(again.run.rows) == 2 * SMALL - 1
    assert len(world.calls()) == asked, "answers of others are still kept"


def test_no_text_of_an_erased_person_stays_of_an_upgrade(world: World) -> None:
    def asked(number: int, said: str, user: str) -> None:
        asker.ask("triage", f'{{"text": "en ticket #{number}#{said}"}}'.encode(), door="python", user=user)

    with asking(load(world.root)) as asker:
        for number in range(1, 12):
            asked(number, "", f"other{number}@example.com")
        asked(30, f" {SECRET}", SUBJECT)
    done = Upgrading(Wanted(workflow="triage", candidate="sim/judging"), Asked(), world.root).run()
    assert len(done.pairs) == 12
    ended = world.drivetrain("erase", "--subject", SUBJECT, "--yes")
    assert ended.code == 0, ended.err
    assert said_in(world, SECRET, SUBJECT) == []
    page = world.drivetrain("report", "show", done.report_id, "--markdown")
    assert page.code == 0, page.err + page.out
    assert SECRET not in page.out
    assert "other1" not in page.out


@pytest.mark.parametrize("seed", [11, 12])
def test_killed_anywhere_nothing_is_lost_and_nothing_asked_twice(world: World, seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    world.write(
        "evals/golden.py",
        EVAL.replace(
            'scorers=[dt.scorers.exact("intent", name="accuracy")]',
            'scorers=[dt.scorers.exact("intent", name="accuracy"), dt.scorers.judge("grader", name="graded")]',
        ),
    )
    given = [{**one, "text": f"[[simulate latency_ms=15]] {one['text']}"} for one in rows(20)]
    world.dataset("golden", given)
    at_once, kills = 4, 5
    for _ in range(kills):
        with subprocess.Popen(
            [*COMMAND, "eval", "run", "golden", "--concurrency", str(at_once)], cwd=world.root,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as child:  # fmt: skip
            time.sleep(dice.uniform(0.4, 1.1))
            child.send_signal(signal.SIGKILL)
    result = run_eval("golden", world.root, concurrency=at_once)
    assert len(result.run.rows) == len(given)
    assert all(set(one.scores) == {"accuracy", "graded"} for one in result.run.rows)
    answered = Counter(one.workflow for one in world.calls() if one.status == "answered")
    for workflow in ("triage", "grader"):
        assert len(given) <= answered[workflow] <= len(given) + kills * at_once
    costs = {one.call_id: one.cost_nano_usd for one in world.calls()}
    assert all(costs[one.call_id] == one.cost_nano_usd for one in result.run.rows), "a run tells what the ledger does"
    again = run_eval("golden", world.root)
    assert again.report.facts["spent_nano_usd"] == 0
    assert [one.scores for one in again.run.rows] == [one.scores for one in result.run.rows]


def test_an_outage_while_the_baseline_is_asked_is_no_proof(tmp_path: Path) -> None:
    config = simulated(recorded(tmp_path, each=60, broken=3))
    with SimulatorProcess(config) as own:
        world = write_world(tmp_path / "project", own.url)
        world.dataset("golden", rows(SMALL))
        world.edit("evals/golden.py", '"accuracy >= 0.9", "no slice worse than -2 pp"', '"overall not worse than 0 pp"')
        assert run_eval("golden", world.root).passed
        (before,) = (world.data / "evals" / "golden").glob("answers-*.journal")
        world.write("workflows/triage.j2", "Tersely: {{ text }}")
        assert run_eval("golden", world.root).gates[0].value is not None
        before.unlink()
    result = run_eval("golden", world.root)
    assert {one.status for one in result.run.rows} == {"answered"}, "these answers were kept"
    assert result.baseline is not None
    assert result.baseline.rows[0].status == "failed"
    assert result.gates[0].state == "not enough evidence", result.report.verdict
    assert not result.passed
