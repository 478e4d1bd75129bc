"""`drivetrain upgrade` on a project with records: logged Calls in, a candidate's answers, a verdict out."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from drivetrain.adapters.sqlite import open_control_log
from drivetrain.cli.main import application
from drivetrain.core.calls import Call
from drivetrain.embedded import calls as embedded
from drivetrain.embedded import upgrade_calls
from drivetrain.embedded.asking import open_lake
from drivetrain.embedded.modelling import open_reports
from drivetrain.embedded.outcomes import record_outcomes
from drivetrain.embedded.upgrading import Upgrading, Wanted
from drivetrain.evals.upgrading.verdict import Asked
from drivetrain.lake.calls import Calls
from drivetrain.project.stored import load_stored
from drivetrain.simulator import SimulatorProcess

pytestmark = pytest.mark.slow

LABELS = ("billing", "technical", "cancellation", "spam")
ROWS = 240
SETTINGS = """\
[project]
name = "upgrades"

[providers.sim]
dialect = "openai"
base_url = "{url}/v1"

[models."sim/old"]
usd_per_million_input = "10"
usd_per_million_output = "20"

[models."sim/better"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[models."sim/worse"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[models."sim/same"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[ledger]
retention = "{retention}"
"""
CODE = """\
from typing import Literal

import drivetrain as dt


class Ticket(dt.Record):
    text: str
    country: str = "DE"


class Route(dt.Record):
    intent: Literal["billing", "technical", "cancellation", "spam"]


triage = dt.Workflow(
    "triage", owner="team@acme.example", team="support", use_case="tests", input=Ticket, output=Route,
    route=[dt.Variant("model", model="sim/old")],
)
"""


def text_of(number: int) -> str:
    return f"ticket number {number} about something of ours"


def truth_of(number: int) -> str:
    return LABELS[number % 4]


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    examples = tmp_path_factory.mktemp("truth") / "examples.csv"
    with examples.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "category"])
        writer.writerows([text_of(number), truth_of(number)] for number in range(ROWS))
    quality = {"kind": "labels", "labels": list(LABELS), "examples_file": str(examples), "answer_field": "intent"}
    accuracy = {"old": 0.7, "better": 0.97, "worse": 0.35, "same": 0.7}
    models = {
        name: {
            "usd_per_million_input": "10" if name == "old" else "1",
            "usd_per_million_output": "20" if name == "old" else "2", "quality": {**quality, "accuracy": share},
        }
        for name, share in accuracy.items()
    }  # fmt: skip
    with SimulatorProcess({"seed": 3, "models": models}) as running:
        yield running


def write_project(root: Path, url: str, retention: str = "full") -> Path:
    (root / "workflows").mkdir(parents=True)
    (root / "drivetrain.toml").write_text(SETTINGS.format(url=url, retention=retention))
    (root / "workflows" / "triage.py").write_text(CODE)
    return root


@pytest.fixture
def root(tmp_path: Path, simulator: SimulatorProcess) -> Iterator[Path]:
    yield write_project(tmp_path / "ai", simulator.url)
    embedded.close()


def ask(root: Path, rows: int = ROWS, *, truths: bool = True) -> list[str]:
    ids = []
    for number in range(rows):
        raw = msgspec.json.encode({"text": text_of(number), "country": "FR" if number % 3 == 0 else "DE"})
        result = embedded.call(root, "triage", raw)
        assert result.error is None, result.error
        ids.append(result.call_id)
    embedded.close()
    if truths:
        record_outcomes(
            [{"call_id": one, "metric": "intent", "value": truth_of(number)} for number, one in enumerate(ids)],
            project=root,
        )
    return ids


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(application(["upgrade"]), ["upgrade", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def told(*arguments: str) -> tuple[dict[str, Any], str, str]:
    """(the body, the sentence, the Report's id)."""
    found = json.loads(run(*arguments, "--json"))
    return found["upgrade"], found["verdict"], found["report"]


def evals_of(root: Path) -> list[Call]:
    return [one for one in Calls(open_lake(root)).calls() if one.door == "eval"]


def test_a_better_candidate_is_an_upgrade_and_stops_early(root: Path) -> None:
    ids = ask(root)
    body, sentence, report_id = told("triage", "--candidate", "sim/better", "--project", str(root))
    assert sentence.startswith("Upgrade (sim/old -> sim/better)"), sentence
    assert body["truths"] == {"outcome": body["pairs"]}
    spent = body["spent"]
    assert spent["stopped"] == "settled"
    assert spent["asked"] + spent["saved_calls"] == spent["planned"] == ROWS
    assert spent["saved_nano_usd"] > 0
    stored = open_reports(root).get(report_id).report
    assert (stored.kind, stored.subject) == ("upgrade", "workflow:triage")
    assert stored.inputs == ("dataset:upgrade-triage@1",)
    for group in (*body["failures"]["fixed"], *body["failures"]["introduced"]):
        assert set(group["examples"]) <= set(ids)
    cost = next(one for one in body["changes"] if one["name"] == "cost")
    assert cost["high"] < 0
    # What it cost stands in the ledger, behind a door of its own.
    asked = evals_of(root)
    assert len(asked) == spent["asked"]
    assert sum(one.cost_nano_usd for one in asked) == spent["nano_usd"]
    assert {attempt.model for one in asked for attempt in one.attempts} == {"sim/better"}
    # No word of anybody stands in the Report.
    assert "ticket number" not in msgspec.json.encode(stored).decode()
    # Its Calls are of the Snapshot that a change to the candidate would be, and that one can be replayed.
    (short_hash,) = {one.snapshot for one in asked}
    snapshot = load_stored(root / ".drivetrain" / "snapshots", short_hash, root)
    assert [one.model for one in snapshot.workflows["triage"].route] == ["sim/better"]


def test_a_worse_candidate_stays_and_its_slices_are_judged(root: Path) -> None:
    ask(root)
    body, sentence, report_id = told("triage", "--candidate", "sim/worse", "--slice", "country", "--project", str(root))
    assert sentence.startswith("Stay "), sentence
    slices = {one["name"]: one for one in body["verdict"]["slices"]}
    assert set(slices) == {"DE", "FR"}
    page = CliRunner().invoke(application(["report"]), ["report", "show", report_id, "--project", str(root)]).output
    assert "Verdict: stay" in page
    assert "By slice" in page
    assert "label" in page


def test_one_look_asks_every_call_and_what_it_buys_instead_makes_sense(root: Path) -> None:
    ask(root)
    found, _, _ = told(
        "triage", "--candidate", "sim/better", "--fixed", "--hours", "4", "--rate", "90", "--project", str(root)
    )
    assert found["verdict"]["whole"]["mode"] == "fixed"
    assert (found["spent"]["asked"], found["spent"]["stopped"]) == (ROWS, "")
    # Settled, so that no number of Calls that the engineering's money pays would tell more.
    assert found["verdict"]["whole"]["more_needed"] == 0
    assert "more evidence" not in [one["what"] for one in found["instead"]]


def test_only_agreement_is_known_and_the_report_says_so(root: Path) -> None:
    ask(root, 60, truths=False)
    body, sentence, _ = told("triage", "--candidate", "sim/same", "--project", str(root))
    assert body["truths"] == {"agreement": body["pairs"]}
    assert body["verdict"]["word"] in ("stay", "not enough evidence")
    assert any("cannot be better" in one for one in body["warnings"]), sentence


def test_the_budget_ends_it_and_the_next_run_goes_on(root: Path) -> None:
    ask(root)
    arguments = ("triage", "--candidate", "sim/same", "--project", str(root))
    plan = json.loads(run(*arguments, "--dry-run", "--json"))
    assert (plan["calls"], plan["truths"]) == (ROWS, {"outcome": ROWS})
    assert not evals_of(root)
    per_call = plan["mean_nano_usd"]
    first, _, _ = told(*arguments, "--limit-usd", f"{per_call * 400 / 1e9:.9f}")
    asked = first["spent"]["asked"]
    assert first["spent"]["stopped"] == "budget"
    assert 0 < asked < ROWS
    assert sum(one.cost_nano_usd for one in evals_of(root)) <= per_call * 400
    second, _, _ = told(*arguments)
    assert any(f"{asked:,} answers are of a run that had not ended" in one for one in second["warnings"])
    assert second["about"]["dataset"] == first["about"]["dataset"] == "upgrade-triage@1"
    paid = [one for one in evals_of(root) if one.status == "answered"]
    assert len(paid) == second["spent"]["asked"]  # none was paid twice


def test_pages_quote_examples_and_their_export_is_noted(root: Path, tmp_path: Path) -> None:
    ask(root)
    html, markdown = tmp_path / "page.html", tmp_path / "page.md"
    run("triage", "--candidate", "sim/worse", "--project", str(root), "--html", str(html), "--markdown", str(markdown))
    assert "ticket number" in html.read_text()
    assert "ticket number" in markdown.read_text()
    control = open_control_log(root / ".drivetrain" / "data", root / ".drivetrain" / "keys")
    exports = [json.loads(one.body) for one in control.records() if one.kind == "exported"]
    assert [(one["format"], one["personal"]) for one in exports] == [("html", True), ("markdown", True)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("triage", "--candidate", "sim/old"), "has the model `sim/old` already"),
        (("triage", "--candidate", "nobody/model"), "names no provider"),
        (("triage", "--candidate", "sim/unpriced"), "What the candidate costs cannot be told"),
        (("triage", "--candidate", "sim/better", "--variant", "modell"), "has no variant `modell`"),
        (("triag", "--candidate", "sim/better"), "Did you mean `triage`?"),
        (("triage", "--candidate", "sim/better", "--since", "2020-01-01", "--reading", "yes"), "no way to read"),
        (("triage",), "No candidate is named"),
        (("triage", "--candidate", "sim/better", "--expected", "intend=truth"), "Did you mean `intent`?"),
        (("triage", "--candidate", "sim/better", "--hours", "4"), "hours times a rate"),
        (("triage", "--candidate", "sim/better", "--limit-usd", "0.000000001"), "Not one Call fits"),
    ],
)
def test_what_cannot_be_is_told_before_anybody_is_asked(root: Path, arguments: tuple[str, ...], said: str) -> None:
    ask(root, 3)
    assert said in " ".join(run(*arguments, "--project", str(root), code=1).split())
    assert not sum(one.cost_nano_usd for one in evals_of(root))


def test_without_calls_or_payloads_it_says_what_to_set(tmp_path: Path, simulator: SimulatorProcess) -> None:
    root = write_project(tmp_path / "ai", simulator.url, retention="none")
    arguments = ("triage", "--candidate", "sim/better", "--project", str(root))
    assert "has no answered Call" in run(*arguments, code=1)
    ask(root, 3)
    assert 'retention="full"' in run(*arguments, code=1)


def test_calls_whose_answers_are_too_large_are_left_out_and_told_of(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their size as it is kept: such an answer is not even read."""
    ask(root, 40)
    sizes = [len(one.answers) for one in Calls(open_lake(root)).calls(newest=40)]
    assert min(sizes) < max(sizes)
    monkeypatch.setattr(upgrade_calls, "STORED_BYTES_MAX", max(sizes) - 1)
    body, _, _ = told("triage", "--candidate", "sim/better", "--project", str(root))
    large = sizes.count(max(sizes))
    assert any(one.startswith(f"{large:,} Calls have a prompt or an answer") for one in body["warnings"]), body


def test_one_call_is_no_evidence(root: Path) -> None:
    ask(root, 1)
    body, sentence, _ = told("triage", "--candidate", "sim/better", "--project", str(root))
    assert body["verdict"]["word"] == "not enough evidence", sentence
    assert "One pair says nothing of others." in body["warnings"]


def test_what_an_eval_expects_of_the_same_input_is_the_truth(root: Path) -> None:
    (root / "golden.csv").write_text(
        "text,country,intent\n"
        + "".join(f"{text_of(one)},{'FR' if one % 3 == 0 else 'DE'},{truth_of(one)}\n" for one in range(60))
    )
    made = CliRunner().invoke(
        application(["dataset"]),
        ["dataset", "create", "golden", "--from-file", "golden.csv", "--project", str(root)],
    )
    assert made.exit_code == 0, made.output
    code = (root / "workflows" / "triage.py").read_text()
    golden = 'dt.Eval("triage-golden", dataset="golden", workflow="triage", scorers=[dt.scorers.exact("intent")])'
    (root / "workflows" / "triage.py").write_text(f"{code}\ngolden = {golden}\n")
    ask(root, 80, truths=False)
    body, sentence, _ = told("triage", "--candidate", "sim/worse", "--project", str(root))
    assert set(body["truths"]) == {"expected"}, sentence
    assert body["spent"]["planned"] == 60  # those that the eval knows, and no other
    assert "eval `triage-golden`" in body["about"]["scorer"]
    assert any(one["cause"] == "label" for one in body["failures"]["introduced"])


CHAT = """
[workflows.prime]
owner = "team@acme.example"
team = "support"
use_case = "tests"
route = [{ name = "model", model = "sim/thinks" }]

[models."sim/thinks"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[models."sim/terse"]
usd_per_million_input = "1"
usd_per_million_output = "2"
"""
THINKS = "Step 1: it is odd, so no even number divides it.\nStep 2: nothing else does.\nSo the answer is: Yes."


def test_a_chat_workflow_is_read_in_several_ways(tmp_path: Path) -> None:
    models = {"thinks": {"answer": THINKS}, "terse": {"answer": "```\nNo\n```"}}
    with SimulatorProcess({"seed": 1, "models": models}) as running:
        root = write_project(tmp_path / "ai", running.url)
        with (root / "drivetrain.toml").open("a") as file:
            file.write(CHAT)
        ids = [
            embedded.call(root, "prime", msgspec.json.encode({"text": f"Is {one} prime?"})).call_id for one in range(70)
        ]
        embedded.close()
        truths = [{"call_id": one, "metric": "expected", "value": "yes"} for one in ids]
        record_outcomes(truths, project=root)
        body, sentence, _ = told("prime", "--candidate", "sim/terse", "--project", str(root))
    assert sentence.startswith("Stay "), sentence
    readings = {one["reading"]: one for one in body["readings"]}
    assert readings["last_yes_no"]["chosen"]
    assert (readings["last_yes_no"]["before"], readings["last_yes_no"]["after"]) == (1.0, 0.0)
    assert readings["yes_no"]["unread"] == [1.0, 0.0]
    assert body["drift"]["length"]["word"] == "collapse"
    assert body["failures"]["introduced"][0]["cause"] == "label"


def test_slices_are_drawn_alike_and_weighted_back(root: Path) -> None:
    ask(root)
    body, _, _ = told("triage", "--candidate", "sim/same", "--slice", "country", "--rows", "60", "--project", str(root))
    assert {one["name"]: one["pairs"] for one in body["verdict"]["slices"]} == {"DE": 30, "FR": 30}
    parts = {one["name"]: one["comparison"] for one in body["verdict"]["slices"]}
    # Two thirds of the traffic are from DE, whatever was drawn.
    assert body["verdict"]["whole"]["before"] == pytest.approx(
        (160 * parts["DE"]["before"] + 80 * parts["FR"]["before"]) / 240
    )


def test_a_run_that_was_cut_goes_on_with_the_same_calls(root: Path) -> None:
    ask(root)

    class Cut(Exception):
        pass

    def cut(_stage: str, _share: float) -> None:
        raise Cut

    wanted = Wanted(workflow="triage", candidate="sim/same", rows=200)
    with pytest.raises(Cut):
        Upgrading(wanted, Asked(), root).run(cut)
    assert len(evals_of(root)) == 50
    done = Upgrading(wanted, Asked(), root).run()
    assert len(evals_of(root)) == len(done.pairs)
    assert any(one.startswith("50 answers are of a run that had not ended") for one in done.upgrade.warnings)
    assert done.upgrade.about.dataset == "upgrade-triage@1"
