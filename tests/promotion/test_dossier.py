"""The dossier: everything in it is from declarations and records, what is absent is said, and no text becomes code."""

from __future__ import annotations

import html.parser
import json
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner, Result

from drivetrain.adapters.sqlite import SqliteControlLog, open_control_log
from drivetrain.cli import dossier as dossier_cli
from drivetrain.core.calls import Attribution, OutcomeV1
from drivetrain.core.models import Column, Signature
from drivetrain.core.releases import (
    APPROVED,
    EVAL_RAN,
    PROMOTED,
    PROPOSED,
    ROLLOUT,
    WITHDRAWN,
    ApprovalV1,
    ChangeV1,
    EvalRanV1,
    ProposalV1,
    ReleaseV1,
    RolloutEventV1,
    RolloutV1,
    StageV1,
    WithdrawalV1,
)
from drivetrain.core.reports import ReportV1
from drivetrain.embedded.applying import apply
from drivetrain.embedded.dossier import DossierRoom
from drivetrain.evals.workflow_key import workflow_key
from drivetrain.project import load, unload
from drivetrain.promotion import dossier_pages
from drivetrain.promotion.recorded import subject_of_run
from drivetrain.registry.reports import Reports
from drivetrain.registry.store import Draft
from support.records import T0_NS, attempt, call_id, closed, opened, write
from support.registered import register_words, registry

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x> ![p](http://evil.example/p) | `x` \x1b[31m\u202e"
NOW_NS = T0_NS + 3_600_000_000_000
TRIAGE = '''\
"""Sorts tickets into queues, so that people see the urgent ones first."""

import drivetrain as dt


class Ticket(dt.Record):
    text: str
    language: str = "en"


class Route(dt.Record):
    intent: str
    confidence: float | None = None


def is_empty(ticket):
    return not ticket.text.strip()


def route_it(case):
    return dt.act("queue")


triage = dt.Workflow(
    "triage", input=Ticket, output=Route, owner="support@acme.example", team="support", use_case=USE_CASE,
    route=[
        dt.Rule("empty", when=is_empty, then=Route(intent="spam")),
        dt.Variant("small", model="models:/triage@champion", accept=dt.confidence(0.9)),
        dt.Variant("large", model="up/large", prompt="triage.j2", max_output_tokens=64),
    ],
    budget=dt.Budget(usd_per_month=500, usd_per_call="0.02"), slo=dt.SLO(p99_ms=1500), retention="full",
    rollout=dt.Rollout(
        stages=[dt.Stage(share=0.2)], guards=[dt.Guard(watch="errors", margin=0.01)],
        shadow=dt.Shadow(share=0.1, minutes=5),
    ),
    policy=dt.Policy("queueing", decide=route_it, actions=("queue", "drop")),
)

golden = dt.Eval("triage-golden", dataset="golden", workflow="triage", gates=["accuracy >= 0.9"])
'''
SETTINGS = """\
[project]
name = "shop"

[providers.up]
dialect = "openai"
base_url = "http://127.0.0.1:9/v1"

[models."up/large"]
usd_per_million_input = "1"
usd_per_million_output = "2"
retires = "2026-01-31"
"""
app = typer.Typer()
app.command()(dossier_cli.dossier_command)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def log_of(root: Path) -> SqliteControlLog:
    return open_control_log(root / ".drivetrain/data", root / ".drivetrain/keys", now_ns=lambda: NOW_NS)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    (root / "workflows").mkdir(parents=True)
    (root / "drivetrain.toml").write_text(SETTINGS)
    (root / "workflows/triage.py").write_text(TRIAGE.replace("USE_CASE", repr(HOSTILE)))
    (root / "workflows/triage.j2").write_text("Sort: {{ text }}")
    register_words(root, "triage", {"refund": "billing", "broken": "technical"})
    return root


def with_calls(root: Path) -> None:
    data = root / ".drivetrain" / "data"
    write(
        data,
        *(
            one
            for number in range(1, 5)
            for one in (
                opened(number, attribution=Attribution(team="support" if number < 4 else "sales")),
                closed(number, attempt("large", 1_000_000 * number)),
            )
        ),
        opened(5), closed(5, status="failed", http_status=502, error="no_answer"),
        opened(6, door="eval"), closed(6, attempt("large", 7_000_000)),
        opened(7, workflow="other"), closed(7, attempt("large", 9_000_000)),
        OutcomeV1(call_id(1), "right", "human", True, T0_NS, T0_NS),
    )  # fmt: skip


def with_evidence(root: Path, *, passed: bool = False, recorded: bool = True) -> str:
    """A run of its eval for what the folder holds; its Report's id. recorded: whether the log tells of the run."""
    snapshot = load(root)
    try:
        key = workflow_key(snapshot, "triage")
    finally:
        unload(snapshot)
    figure = {"value": 0.875, "low": 0.5, "high": 0.99, "rows": 8, "groups": 8}
    body: dict[str, Any] = {
        "gates": [{"gate": {"text": "accuracy >= 0.9"}, "state": "failed", "why": f"0.875 is below 0.9 {HOSTILE}"}],
        "scores": {"exact": figure},
        "parts": [{"name": "language=de", "rows": 4, "scores": {"exact": {**figure, "value": 0.5}}}],
        "failures": [{"scorer": "exact", "cause": "format", "answers": 1,
                      "cited": [{"row": "r1", "call_id": call_id(1)}]}],
    }  # fmt: skip
    report = ReportV1(
        kind="eval", subject="workflow:triage", made_ns=NOW_NS, made_by="ann", inputs=("dataset:golden@3",),
        verdict="a gate fails", body=body,
        facts={"eval": "triage-golden", "workflow_key": key, "passed": passed, "gates": 1, "dataset": "golden@3"},
    )  # fmt: skip
    made = Reports(root / ".drivetrain/data/reports").put(report)
    if recorded:
        ran = EvalRanV1(report=made, eval="triage-golden", workflow="triage", passed=passed, rows="0" * 64)
        log_of(root).append(
            kind=EVAL_RAN, actor="ann", subject=subject_of_run(made), body=msgspec.to_builtins(ran)
        )  # fmt: skip
    return made


def with_release(root: Path) -> str:
    """Release 1 of what the folder holds, made as the rules allow; the Snapshot's hash."""
    snapshot = load(root)
    try:
        apply(snapshot)
        rules = snapshot.rules
        key = workflow_key(snapshot, "triage")
        log = log_of(root)
        proposal = ProposalV1(
            number=1, environment="default", snapshot=snapshot.hash, base=0, by="ann", rules=rules,
            keys={"triage": key}, reason=f"first {HOSTILE}",
            changes=(ChangeV1(workflow="triage", aspect="workflow", what="workflow triage is new"),),
        )  # fmt: skip
        release = ReleaseV1(
            number=1, environment="default", way="promote", snapshot=snapshot.hash, previous=0, by="ann",
            proposal=1, proposal_hash=proposal.hash, workflows=("triage",), reason="go",
        )  # fmt: skip
        for kind, body in ((PROPOSED, proposal), (PROMOTED, release)):
            log.append(kind=kind, actor="ann", subject="default/1", body=msgspec.to_builtins(body))
        return snapshot.hash
    finally:
        unload(snapshot)


def told(root: Path, *more: str) -> dict[str, Any]:
    found = run("triage", "--project", str(root), "--json", *more)
    assert found.exit_code == 0, found.output
    return json.loads(found.output)  # type: ignore[no-any-return]


def section(found: dict[str, Any], title: str) -> dict[str, Any]:
    return next(one for one in found["sections"] if one["title"] == title)


def rows(part: dict[str, Any], title: str = "") -> list[list[str]]:
    return next(table["rows"] for table in part["tables"] if table.get("title", "").startswith(title))


def test_a_workflow_without_any_record_says_what_is_missing(project: Path) -> None:
    found = told(project)
    gaps = "\n".join(found["gaps"])
    for gap in ("never released", "No Call of it is recorded", "was never run", "No approval is declared",
                "trained on is not recorded", "licence"):  # fmt: skip
        assert gap in gaps, gap
    assert "retires in 30 days" in gaps or "was retired" in gaps
    assert section(found, "In use")["tables"][0]["rows"] == []
    facts = dict(section(found, "Purpose and ownership")["facts"])
    assert facts["Purpose"] == "Sorts tickets into queues, so that people see the urgent ones first."
    assert facts["Owner"] == "support@acme.example"


def test_route_types_policy_and_limits_are_as_declared(project: Path) -> None:
    found = told(project)
    route = rows(section(found, "Route"))
    assert [row[1] for row in route] == ["empty", "small", "large"]
    assert route[1][3].startswith("models:/triage@champion = triage/1, sha256 ")
    assert rows(section(found, "Route"), "Prompts")[0][0].endswith("triage.j2")
    types = rows(section(found, "Input and output"), "Input: Ticket")
    assert types == [["text", "str", "yes"], ["language", "str", "no"]]
    oversight = dict(section(found, "Human oversight")["facts"])
    assert oversight["How a Release reaches callers"] == (
        "a shadow of 10% for 5 min, then 20% of users for 10 min, then everybody"
    )
    assert oversight["Rolled back by itself on"] == "errors (margin 0.01)"
    assert oversight["Policy"] == "queueing, the function route_it"
    assert len(oversight["Policy's version"]) == 16
    assert ["triage.usd_per_month", "budget", "workflow triage", "500.00 USD per month", "hard"] in rows(
        section(found, "Budgets and limits")
    )


def test_use_is_what_the_ledger_says_and_evals_are_not_callers(project: Path) -> None:
    with_calls(project)
    use = section(told(project), "In use")
    teams = {row[0]: row for row in rows(use, "By team")}
    assert (teams["support"][1], teams["sales"][1], teams["total"][1]) == ("4", "1", "5")
    assert teams["total"][2] == "0.01"
    assert rows(use, "Errors") == [["no_answer", "1"]]
    assert dict(use["facts"])["Not answered"] == "1 of 5 (20.00%)"
    assert [(row[0], row[2]) for row in rows(use, "Outcomes")] == [("right", "1")]
    assert [row[0] for row in rows(use, "Calls that nobody waited for")] == ["eval"]


def test_a_run_is_shown_by_group_with_intervals_and_a_failed_gate_is_an_incident(project: Path) -> None:
    report = with_evidence(project)
    found = told(project)
    measured = section(found, "Metrics by group and gates")
    groups = rows(measured, "triage-golden: figures by group")
    assert ["language=de", "exact", "0.5000", "0.5000", "0.9900", "8", "8"] in groups
    assert rows(measured, "triage-golden: gates")[0][:2] == ["accuracy >= 0.9", "failed"]
    assert rows(measured, "triage-golden: what was not right") == [["exact", "format", "1"]]
    assert call_id(1) not in json.dumps(measured)
    assert any(row[1] == "gates not passed" and report in row[2] for row in rows(section(found, "Incidents")))
    assert "The newest run of the eval triage-golden did not pass its gates." in found["gaps"]
    (project / "workflows/triage.j2").write_text("Another prompt: {{ text }}")
    changed = "\n".join(told(project)["gaps"])
    assert "is of another version of the workflow" in changed


def test_a_report_that_no_run_made_is_left_out_and_told_of(project: Path) -> None:
    invented = with_evidence(project, passed=True, recorded=False)
    found = told(project)
    assert invented not in json.dumps(found["sections"])
    assert any(one.startswith("1 Reports of evals are left out") for one in found["gaps"]), found["gaps"]
    with_evidence(project)
    assert "triage-golden" in json.dumps(section(told(project), "Metrics by group and gates"))


def test_what_is_live_is_told_not_what_the_folder_has_become(project: Path) -> None:
    with_evidence(project, passed=True)
    (project / "workflows/triage.py").write_text(
        (project / "workflows/triage.py").read_text().replace('gates=["accuracy >= 0.9"]', "gates=[]")
    )
    live = with_release(project)
    (project / "workflows/triage.j2").write_text("Edited since")
    found = told(project)
    assert found["snapshot"] == live, section(found, "Incidents")
    assert dict(section(found, "Versions and Releases")["facts"])["Live"].startswith("Release 1, since ")
    kinds = [row[2] for row in rows(section(found, "Changes"))]
    assert {"apply", "release.proposed", "release.promoted", "model.alias", "made"} <= set(kinds)
    proposed = next(row for row in rows(section(found, "Changes")) if row[2] == "release.proposed")
    assert proposed[4] == "ann"
    assert "workflow triage is new" in proposed[5]
    assert "never released" not in "\n".join(found["gaps"])
    (project / "workflows/triage.py").write_text("this is no Python")
    assert told(project)["snapshot"] == live, "a broken folder hides nothing of what is live"


def test_changes_name_their_workflow_and_tell_what_does_not_count(project: Path) -> None:
    source = project / "workflows/triage.py"
    source.write_text(source.read_text().replace('gates=["accuracy >= 0.9"]', "gates=[]"))
    live = with_release(project)
    log = log_of(project)
    proposal = ProposalV1(
        number=2, environment="default", snapshot="1" * 64, base=1, base_snapshot=live, by="ann",
        changes=tuple(ChangeV1(workflow=name, aspect="workflow", what="is new") for name in ("sorting", "triage")),
    )  # fmt: skip
    withdrawal = WithdrawalV1(environment="default", proposal=2, proposal_hash=proposal.hash, by="ann")
    forged = ApprovalV1(environment="default", proposal=2, proposal_hash="0" * 64, by="bob")
    for kind, body, by in ((PROPOSED, proposal, "ann"), (APPROVED, forged, "bob"), (WITHDRAWN, withdrawal, "ann")):
        log.append(kind=kind, actor=by, subject="default/2", body=msgspec.to_builtins(body))
    found = told(project)
    proposed, approved, withdrawn = (row[5] for row in rows(section(found, "Changes"))[-3:])
    assert proposed == "triage: is new; sorting: is new"
    assert approved.startswith("does not count (")
    assert approved.endswith("): proposal 2 approved")
    assert withdrawn == "proposal 2 withdrawn"
    assert any("record" in one and "release.approved" in one for one in section(found, "Incidents")["notes"])


def test_a_rollout_in_its_shadow_answers_nobody(project: Path) -> None:
    source = project / "workflows/triage.py"
    source.write_text(source.read_text().replace('gates=["accuracy >= 0.9"]', "gates=[]"))
    live = with_release(project)
    log = log_of(project)
    proposal = ProposalV1(
        number=2, environment="default", snapshot="1" * 64, base=1, base_snapshot=live, by="ann",
        changes=(ChangeV1(workflow="triage", aspect="prompts", what="prompt triage.j2 changed"),),
        keys={"triage": "0" * 16},
    )  # fmt: skip
    stages = (StageV1(share_ppm=0, minutes=5, shadow_ppm=100_000), StageV1(share_ppm=200_000, minutes=10))
    release = ReleaseV1(
        number=2, environment="default", way="promote", snapshot="1" * 64, previous=1, by="ann", proposal=2,
        proposal_hash=proposal.hash, workflows=("triage",), rollout=RolloutV1(id="0" * 16, stages=stages),
    )  # fmt: skip
    for kind, body in ((PROPOSED, proposal), (PROMOTED, release)):
        log.append(kind=kind, actor="ann", subject="default/2", body=msgspec.to_builtins(body))
    said = dict(section(told(project), "Versions and Releases")["facts"])["Rolled out now"]
    assert said == "Release 2, as a shadow: it answers nobody yet"
    event = RolloutEventV1(environment="default", release=2, event="stage", stage=1, by="guards")
    log.append(kind=ROLLOUT, actor="guards", subject="default/2", body=msgspec.to_builtins(event))
    said = dict(section(told(project), "Versions and Releases")["facts"])["Rolled out now"]
    assert said == "Release 2, to 20 % of users"


class Tags(html.parser.HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_pages_load_nothing_run_nothing_and_escape_what_they_tell(project: Path, tmp_path: Path) -> None:
    with_evidence(project)
    page, text = tmp_path / "d.html", tmp_path / "d.md"
    done = run("triage", "--project", str(project), "--html", str(page), "--markdown", str(text))
    assert done.exit_code == 0, done.output
    seen = Tags()
    seen.feed(page.read_text())
    assert not seen.tags & {"script", "img", "link", "iframe", "a", "object", "form", "base"}
    assert seen.attributes <= {"lang", "charset", "http-equiv", "content", "name", "class", "scope"}
    assert "alert(1)" in seen.text
    assert "default-src 'none'" in page.read_text()
    written = text.read_text()
    assert r"\<script\>" in written
    assert "<script>" not in written
    assert "![p]" not in written
    for one in (page.read_text(), written):
        assert "\x1b" not in one
        assert "\u202e" not in one
    exports = [one for one in log_of(project).records() if one.kind == "exported"]
    assert [json.loads(one.body)["form"] for one in exports] == ["markdown", "html"]
    assert {one.subject for one in exports} == {"workflow:triage"}


def test_the_same_records_give_the_same_bytes(project: Path) -> None:
    with_calls(project)
    with_evidence(project)
    made = [DossierRoom(project, now_ns=lambda: NOW_NS).dossier("triage") for _ in range(2)]
    assert dossier_pages.page(made[0]) == dossier_pages.page(made[1])
    assert dossier_pages.markdown(made[0]) == dossier_pages.markdown(made[1])
    later = DossierRoom(project, now_ns=lambda: NOW_NS + 10**9).dossier("triage")
    assert dossier_pages.page(later) != dossier_pages.page(made[0])


def test_a_damaged_report_and_a_changed_log_are_told_and_the_rest_is_there(project: Path) -> None:
    report = with_evidence(project)
    log_of(project).append(kind="apply", actor="ann", subject="0" * 64, body={})
    path = next((project / ".drivetrain/data/reports").glob(f"{report}*.json"))
    path.write_bytes(path.read_bytes() + b" ")
    connection = sqlite3.connect(project / ".drivetrain/data/control.db", isolation_level=None)
    connection.execute("UPDATE control SET actor = 'eve' WHERE seq = 1")
    connection.close()
    gaps = "\n".join(told(project)["gaps"])
    assert "Its Reports cannot be read" in gaps
    assert "Record 1 was edited" in gaps


def test_the_model_card_is_what_the_hub_reads(project: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="the extra `train` has it")
    registry(project).register(
        Draft(
            name="price", format="onnx", files={"model.onnx": b"x"}, licence="Apache-2.0", dataset="golden@3",
            description=HOSTILE, metrics={"accuracy": 0.91, "macro_f1": 0.5},
            signature=Signature(task="classification", target="intent", labels=("a", "b: #c"),
                                inputs=(Column(name="x", dtype="float"),)),
        )
    )  # fmt: skip
    card = tmp_path / "README.md"
    done = run("triage", "--project", str(project), "--model-card", str(card), "--model", "price@1")
    assert done.exit_code == 0, done.output
    _, front, body = card.read_text().split("---\n", 2)
    told_of = yaml.safe_load(front)
    assert told_of["license"] == "apache-2.0"
    assert told_of["pipeline_tag"] == "tabular-classification"
    result = told_of["model-index"][0]["results"][0]
    assert result["task"]["type"] == "tabular-classification"
    assert (result["dataset"]["type"], result["dataset"]["revision"]) == ("golden", "3")
    assert {one["type"]: one["value"] for one in result["metrics"]} == {"accuracy": 0.91, "f1": 0.5}
    assert "<script>" not in body
    assert "No workflow of the project names it now." in body
    own = run("triage", "--project", str(project), "--model-card", str(card))
    assert own.exit_code == 0, own.output
    own_text = card.read_text()
    assert "model-index" not in own_text
    assert "It was not measured" in own_text
    assert r"triage: \<script\>" in own_text
    assert [one.subject for one in log_of(project).records() if one.kind == "exported"] == [
        "model:price@1", "model:triage@1"
    ]  # fmt: skip


def test_wrong_names_are_told_with_what_there_is(project: Path, tmp_path: Path) -> None:
    unknown = run("triag", "--project", str(project))
    assert unknown.exit_code == 1
    assert "`triage`" in unknown.output
    assert run("triage", "--project", str(project), "--model", "x").exit_code == 1
    assert run("triage", "--project", str(project), "--model-card", str(tmp_path / "c"), "--model", "x").exit_code == 1
    assert run("triage", "--project", str(project), "--html", str(tmp_path / "no" / "x.html")).exit_code == 1
    assert [one for one in log_of(project).records() if one.kind == "exported"] == []
