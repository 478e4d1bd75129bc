"""The Report of a training: its figures are right, it quotes nobody, and its pages say what a person acts on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from training_samples import COLUMNS, SPLIT, Place, fraud, orders
from typer.testing import CliRunner

from drivetrain.cli import reports as command
from drivetrain.core.models import Scored
from drivetrain.core.recipes import TabularClassification, TabularRegression, TextClassification
from drivetrain.core.reports import ReportV1
from drivetrain.training.metrics import judge_labels, judge_values, paired_labels
from drivetrain.training.report_page import markdown, read_quotes, train_page
from drivetrain.training.report_words import accept_lines, no_threshold_lines

pytestmark = pytest.mark.slow

QUICK = TabularClassification(columns=COLUMNS, models=("linear",), folds=3)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def said(*labels: str) -> list[Scored]:
    return [Scored(label, 0.5 + place / 100) for place, label in enumerate(labels)]


def judged(truth: list[str], scored: list[Scored], **options: Any) -> Any:
    numbers = list(range(1, len(truth) + 1))
    given: dict[str, Any] = {"numbers": numbers, "ids": [str(one) for one in numbers], "segments": {}, **options}
    return judge_labels(truth, scored, **given)


def test_figures_by_class_and_the_pairs_that_are_confused() -> None:
    truth = ["a", "a", "a", "a", "b", "b", "b", "c"]
    found = judged(truth, said("a", "a", "a", "b", "b", "b", "a", "b"))
    assert found.overall["accuracy"] == 5 / 8
    by_label = {one.label: one for one in found.classes}
    assert (by_label["a"].precision, by_label["a"].recall, by_label["a"].support) == (3 / 4, 3 / 4, 4)
    assert (by_label["b"].precision, by_label["b"].recall) == (2 / 4, 2 / 3)
    assert (by_label["c"].precision, by_label["c"].recall, by_label["c"].f1, by_label["c"].said) == (None, 0, 0, 0)
    assert found.overall["macro_f1"] == pytest.approx((3 / 4 + 4 / 7 + 0) / 3)
    assert [(one.truth, one.said, one.rows) for one in found.confusion] == [("a", "b", 1), ("b", "a", 1), ("c", "b", 1)]
    assert [one.row for one in found.wrong] == [8, 7, 4], "the most confident first"
    # Clopper-Pearson of 5 in 8, from a table.
    assert (found.accuracy.low, found.accuracy.high) == (
        pytest.approx(0.2449, abs=1e-4),
        pytest.approx(0.9148, abs=1e-4),
    )


def test_figures_by_segment_and_weights() -> None:
    truth = ["a"] * 10
    found = judged(
        truth, said(*["a"] * 7, *["b"] * 3), segments={"country": ["de"] * 6 + ["fr"] * 4},
        weights=[1.0] * 7 + [7.0] * 3,
    )  # fmt: skip
    by_value = {one.value: one for one in found.segments}
    assert (by_value["de"].score, by_value["de"].rows) == (1.0, 6)
    assert (by_value["fr"].score, by_value["fr"].rows) == (0.25, 4)
    assert by_value["fr"].low < 0.25 < by_value["fr"].high
    assert found.overall["accuracy_weighted"] == pytest.approx(7 / 28)


def test_figures_of_numbers() -> None:
    scored = [Scored(value=one) for one in (1.0, 2.0, 5.0)]
    found = judge_values([1.0, 3.0, 3.0], scored, numbers=[4, 5, 6], ids=["4", "5", "6"], segments={})
    assert found.overall["mae"] == 1.0
    assert found.overall["rmse"] == pytest.approx((5 / 3) ** 0.5)
    assert found.overall["bias"] == pytest.approx(1 / 3)
    assert found.overall["r2"] == pytest.approx(1 - 5 / (8 / 3))
    assert [one.row for one in found.wrong] == [6, 5, 4]


def test_two_models_are_compared_by_the_rows_on_which_they_differ() -> None:
    truth = ["a"] * 200
    ours, theirs = said(*["a"] * 190, *["b"] * 10), said(*["a"] * 160, *["b"] * 40)
    found = paired_labels(truth, ours, theirs)
    assert (found.only_ours_right, found.only_theirs_right, found.rows) == (30, 0, 200)
    assert found.difference == pytest.approx(0.15)
    assert found.low is not None
    assert found.low > 0.09
    even = paired_labels(truth, ours, [*ours[::-1]])
    assert even.low is not None
    assert even.high is not None
    assert even.low < 0 < even.high


def _trained(place: Place) -> ReportV1:
    rows = [{**one, "text": f"SECRET-{number} {one['country']} {'|' if number % 2 else '<b>'}"} for number, one in
            enumerate(orders(300))]  # fmt: skip
    reference = place.dataset("orders", rows, split=SPLIT)
    recipe = TextClassification(folds=3)
    return place.training().train(fraud(reference, recipe, text="text", segments=("country",))).report


def test_a_report_quotes_nobody_and_its_page_does_from_the_dataset(place: Place) -> None:
    report = _trained(place)
    stored = msgspec.json.encode(report).decode()
    assert "SECRET" not in stored
    assert report.body["wrong"]
    quotes = read_quotes(place.datasets, report)
    rows = list(place.datasets.rows(report.body["dataset"].removeprefix("dataset:")))
    assert set(quotes) == {one["row"] for one in report.body["wrong"]}
    for number, quote in quotes.items():
        assert quote == rows[number - 1]["text"]
    page = markdown(train_page(report, quotes))
    first = report.body["wrong"][0]["row"]
    assert f"SECRET-{int(rows[first - 1]['order'].partition('-')[2])}" in page
    assert "<b>" not in page, "what a row says is text, not markup"
    assert r"\<b\>" in page
    assert "SECRET" not in markdown(train_page(report))
    changed = msgspec.structs.replace(report, body={**report.body, "dataset_hash": "0" * 64})
    assert read_quotes(place.datasets, changed) == {}, "row numbers mean other rows once some were erased"


def test_a_page_has_every_part(place: Place) -> None:
    titles = [one.title for one in train_page(_trained(place)).sections]
    assert titles == [
        "Rows", "Overall", "From which confidence it may answer", "Accuracy against share answered, test rows",
        "Calibration, test rows", "By class", "By country", "Most confused", "Most confident mistakes", "Made by",
    ]  # fmt: skip


def test_a_page_of_numbers_has_errors_and_no_confidence(place: Place) -> None:
    reference = place.dataset("orders", orders(200), split=SPLIT)
    recipe = TabularRegression(columns=COLUMNS, models=("linear",), folds=3)
    report = place.training().train(fraud(reference, recipe, label="minutes", segments=("country",))).report
    assert "the mean error on" in report.verdict
    page = train_page(report, read_quotes(place.datasets, report))
    titles = [one.title for one in page.sections]
    assert titles == ["Rows", "Overall", "By country", "Largest errors", "Made by"]
    largest = next(one for one in page.sections if one.title == "Largest errors")
    assert largest.rows[0][-1].startswith("amount ")
    assert accept_lines(report) == []


def test_the_verdict_states_the_safest_threshold_that_holds(place: Place) -> None:
    reference = place.dataset("orders", orders(500, missing=0), split=SPLIT)
    report = place.training().train(fraud(reference, QUICK, risks=(0.3, 0.2, 1e-6))).report
    reached = {one["risk"]: one["threshold"] for one in report.body["thresholds"]}
    assert reached[1e-06] is None
    assert reached[0.2] is not None
    assert reached[0.2] >= reached[0.3]
    lines = accept_lines(report)
    assert [line.partition(" ")[0] for line in lines] == [
        f"accept=dt.confidence({reached[one]:g})" for one in (0.3, 0.2)
    ]
    assert "at most 20 % wrong" in lines[1]
    assert "at most 20 % of its answers are wrong" in report.verdict
    for one in report.body["thresholds"]:
        if one["threshold"] is not None:
            assert one["error_bound"] <= one["risk"]


def test_where_no_threshold_holds_the_report_says_what_would_and_what_to_do(place: Place) -> None:
    reference = place.dataset("orders", orders(500, missing=0), split=SPLIT)
    report = place.training().train(fraud(reference, QUICK, risks=(0.01, 0.02))).report
    assert [one["threshold"] for one in report.body["thresholds"]] == [None, None]
    could = report.body["risk_to_state"]
    assert could > 0.02
    stated = place.training().train(fraud(reference, QUICK, risks=(could,))).report
    assert stated.body["thresholds"][0]["threshold"] is not None, "what is proposed holds"
    assert f"no confidence holds a risk of 1 %, 2 %, but one holds {could * 100:g} %." in report.verdict
    section = next(one for one in train_page(report).sections if one.title.startswith("From which"))
    assert list(section.lines[:2]) == [line for line in no_threshold_lines(report) if line.startswith("no threshold")]
    assert f"state it as `risks=[{could:g}]` or `--risk {could:g}`" in section.lines[2]
    assert "Most confident mistakes" in section.lines[3]
    assert "risk_to_state" not in stated.body
    assert no_threshold_lines(stated) == []
    earlier = {name: value for name, value in report.body.items() if name != "risk_to_state"}
    assert len(no_threshold_lines(msgspec.structs.replace(report, body=earlier))) == 2, "older ones stay readable"
    both = place.training().train(fraud(reference, QUICK, risks=(0.01, could))).report
    assert not any("state it as" in line for line in no_threshold_lines(both)), "it is stated already"


def test_one_number_has_one_interval(place: Place) -> None:
    """The last point of the curve answers every row, so it is the accuracy."""
    for rows in (200, 100):  # beyond and below what intervals are exact up to
        body = place.training().train(fraud(place.dataset("orders", orders(rows), split=SPLIT), QUICK)).report.body
        last, whole = body["abstention"][-1], body["accuracy"]
        assert (last["accuracy_low"], last["accuracy_high"]) == (whole["low"], whole["high"])


def test_the_command_lists_and_shows_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from drivetrain.embedded.modelling import open_reports

    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "shop"\n')
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    trained = _trained(place)
    kept = open_reports(tmp_path)
    train_id = kept.put(trained)
    other = ReportV1(kind="explain", subject="workflow:triage", made_ns=2, made_by="me", verdict="The mix moved it.",
                     facts={"share": 0.25}, body={"parts": [1, 2]})  # fmt: skip
    explain_id = kept.put(other)

    def run(*arguments: str) -> str:
        ran = CliRunner().invoke(command.app, list(arguments))
        assert ran.exit_code == 0, ran.output
        return ran.stdout

    assert [one["id"] for one in json.loads(run("list", "--json"))["reports"]] == [train_id, explain_id]
    assert explain_id not in run("list", "--kind", "train")
    shown = run("show", train_id)
    assert trained.verdict in shown
    assert "SECRET" not in shown, "that project has no such Dataset"
    assert "accept=dt.confidence(" in shown or "no threshold" in shown
    assert run("show", train_id, "--markdown").startswith("# Training of fraud\n")
    assert json.loads(run("show", train_id[:8], "--json"))["body"] == json.loads(msgspec.json.encode(trained.body))
    assert "The mix moved it." in run("show", explain_id)
    assert "share: 0.25" in run("show", explain_id, "--markdown")
    nobody = CliRunner().invoke(command.app, ["show", "fraud"])
    assert nobody.exit_code == 1
    assert "`fraud` is neither the id of a Report nor a model with one" in nobody.stderr
    assert "NAME@NUMBER" in nobody.stderr
    long = msgspec.structs.replace(other, verdict="moved " * 100, subject="workflow:long")
    kept.put(long)
    assert max(map(len, run("list", "--subject", "workflow:long").splitlines())) < 180
    unknown = CliRunner().invoke(command.app, ["show", "ffffffff"])
    assert unknown.exit_code == 1
    assert "`drivetrain report list`" in unknown.stderr
