"""The page of a training's Report, for a terminal and as Markdown. Called by the commands.

A Report cites mistakes by row; what the rows say is quoted from the Dataset where a page is made, while it has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from drivetrain.core.markup import Table, markdown_table, markdown_text
from drivetrain.core.reports import ReportV1
from drivetrain.core.times import iso
from drivetrain.datasets import Datasets
from drivetrain.training.data import Cells
from drivetrain.training.metrics import LEVEL
from drivetrain.training.report_words import against, as_stated, no_threshold_lines, number_text, percent, share_text

CURVE_SHOWN = 10
"""Points of the abstention curve on a page; the body has all."""
CLASSES_SHOWN = 30
"""On a page, the worst first; the body has all."""
QUOTE_CHARS_MAX = 120


class Section(msgspec.Struct, frozen=True):
    """A part of a page: sentences, then a table."""

    title: str
    lines: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    """Names of columns; those that end in `#` hold numbers."""
    rows: tuple[tuple[str, ...], ...] = ()


class Page(msgspec.Struct, frozen=True):
    """A Report for people, whatever shows it."""

    title: str
    verdict: str
    sections: tuple[Section, ...]


def read_quotes(datasets: Datasets, report: ReportV1) -> dict[int, str]:
    """Row -> what it says, of the mistakes that a Report cites; none where the rows changed since, as by an erasure.

    Reads the Dataset up to the last of these rows. Raises: DrivetrainError where the Dataset is gone.
    """
    body = report.body
    wanted = {one["row"] for one in body.get("wrong", ())}
    reference = body["dataset"].removeprefix("dataset:")
    if not wanted or datasets.show(reference).content_hash != body["dataset_hash"]:
        return {}
    found: dict[int, str] = {}
    for number, row in enumerate(datasets.rows(reference), 1):
        if number in wanted:
            cells = Cells(row)
            values = [(name, cells.at(name)) for name in body["quoted"]]
            said = values[0][1] if body["text"] else ", ".join(f"{name} {value}" for name, value in values)
            found[number] = " ".join(str(said).split())[:QUOTE_CHARS_MAX]
        if number >= max(wanted):
            break
    return found


def train_page(report: ReportV1, quotes: Mapping[int, str] | None = None) -> Page:
    """A Report of kind `train` for people. quotes: row of the Dataset -> what it says."""
    body = report.body
    sections = [_summary(report), _overall(body), _thresholds(report), _curve(body), _calibration(body)]
    sections += [_classes(body), *_segments(body), _confusion(body), _wrong(body, quotes or {})]
    sections += [_beside(body), _made(report)]
    return Page(f"Training of {body['model']}", report.verdict, tuple(one for one in sections if one.lines or one.rows))


def markdown(page: Page) -> str:
    """A page as Markdown."""
    parts = [f"# {page.title}\n", f"{markdown_text(page.verdict)}\n"]
    for section in page.sections:
        parts.append(f"## {section.title}\n")
        parts += ["".join(f"- {markdown_text(line)}\n" for line in section.lines)] if section.lines else []
        parts += [markdown_table(Table(section.head, section.rows))] if section.rows else []
    return "\n".join(parts)


def _summary(report: ReportV1) -> Section:
    body = report.body
    rows = body["rows"]
    split = f"split `{body['test_split']}`" if body["test_split"] else "held out"
    lines = [
        f"{body['dataset']}: {rows['train']:,} rows train, {rows['test']:,} test ({split})",
        f"predicts `{body['target']}` from {', '.join(f'`{name}`' for name in body['inputs'][:20])}",
    ]
    lines += [body["held_out"]] if body["held_out"] else []
    lines += [f"left out: `{name}` ({why})" for name, why in body["left_out"].items()]
    return Section("Rows", (*lines, *body["notices"]))


def _overall(body: Mapping[str, Any]) -> Section:
    rows = [(name, number_text(value)) for name, value in body["overall"].items()]
    rows += [("expected calibration error (ECE)", number_text(body["ece"]))] if "ece" in body else []
    return Section("Overall", (), ("metric", "value#"), tuple(rows))


def _thresholds(report: ReportV1) -> Section:
    body = report.body
    rows, lines = [], no_threshold_lines(report)
    for one in body.get("thresholds", ()):
        if one["threshold"] is None:
            rows.append((as_stated(one["risk"]), "none", "", "", "", ""))
            continue
        error = percent(one["test_error"]) if one["test_error"] is not None else "-"
        rows.append(
            (
                as_stated(one["risk"]), f"{one['threshold']:g}", percent(one["share"]), percent(one["error_bound"]),
                percent(one["test_share"]), error,
            )
        )  # fmt: skip
        lines.append(f"for a risk of {as_stated(one['risk'])} write accept=dt.confidence({one['threshold']:g})")
    if rows:
        level = body["thresholds"][0]["confidence_level"]
        lines.append(f"chosen on {body['thresholds_chosen_on']}; each bound holds at {as_stated(level)} confidence")
    head = ("risk#", "confidence from#", "answers#", "error at most#", "answers in test#", "error in test#")
    return Section("From which confidence it may answer", tuple(lines), head, tuple(rows))


def _curve(body: Mapping[str, Any]) -> Section:
    points = body.get("abstention", ())
    step = max(1, -(-len(points) // CURVE_SHOWN))
    shown = [one for place, one in enumerate(points, 1) if place % step == 0 or place == len(points)]
    rows = tuple(
        (
            f"{one['threshold']:.4f}", percent(one["share"]), percent(one["accuracy"]),
            f"{percent(one['accuracy_low'])} to {percent(one['accuracy_high'])}",
        )
        for one in shown
    )  # fmt: skip
    return Section(
        "Accuracy against share answered, test rows",
        (),
        ("confidence#", "answered#", "right#", f"{as_stated(LEVEL)}#"),
        rows,
    )


def _calibration(body: Mapping[str, Any]) -> Section:
    rows = tuple(
        (
            f"{one['low']:.2f} to {one['high']:.2f}", f"{one['rows']:,}", percent(one["confidence"]),
            percent(one["accuracy"]),
        )
        for one in body.get("calibration", ())
        if one["rows"]
    )  # fmt: skip
    lines = (
        (f"expected calibration error (ECE) {body['ece']:.4f}: how far the mean confidence is from the share that is "
         f"right, over {len(body['calibration'])} bins",)
        if rows
        else ()
    )  # fmt: skip
    return Section("Calibration, test rows", lines, ("confidence", "rows#", "mean confidence#", "right#"), rows)


def _classes(body: Mapping[str, Any]) -> Section:
    worst = sorted(body.get("classes", ()), key=lambda one: (one["f1"], one["label"]))
    rows = tuple(
        (
            one["label"], share_text(one["precision"]), share_text(one["recall"]), percent(one["f1"]),
            f"{one['support']:,}",
        )
        for one in worst[:CLASSES_SHOWN]
    )  # fmt: skip
    more = len(worst) - CLASSES_SHOWN
    lines = (f"the {CLASSES_SHOWN} worst of {len(worst)}",) if more > 0 else ()
    return Section("By class", lines, ("label", "precision#", "recall#", "F1#", "rows#"), rows)


def _segments(body: Mapping[str, Any]) -> list[Section]:
    columns: dict[str, list[tuple[str, ...]]] = {}
    show = percent if body["task"] == "classification" else number_text
    for one in body.get("segments", ()):
        bounds = f"{show(one['low'])} to {show(one['high'])}" if one["low"] is not None else "-"
        columns.setdefault(one["column"], []).append(
            (one["value"] or "(none)", f"{one['rows']:,}", show(one["score"]), bounds)
        )
    measure = "right#" if body["task"] == "classification" else "mean error#"
    head = ("value", "rows#", measure, f"{as_stated(LEVEL)}#")
    return [Section(f"By {name}", (), head, tuple(rows)) for name, rows in columns.items()]


def _confusion(body: Mapping[str, Any]) -> Section:
    rows = tuple((one["truth"], one["said"] or "(refused)", f"{one['rows']:,}") for one in body.get("confusion", ()))
    return Section("Most confused", (), ("truth", "predicted", "rows#"), rows)


def _wrong(body: Mapping[str, Any], quotes: Mapping[int, str]) -> Section:
    rows = []
    for one in body.get("wrong", ()):
        sure = share_text(one.get("confidence"))
        truth, said = (
            number_text(one[name]) if isinstance(one[name], float) else one[name] for name in ("truth", "said")
        )
        quote = quotes.get(one["row"], "")
        rows.append((str(one["row"]), truth, said or "(refused)", sure, quote)[: 5 if quotes else 4])
    title = "Most confident mistakes" if body["task"] == "classification" else "Largest errors"
    lines = () if quotes or not rows else (f"rows of {body['dataset']}; their text is not part of the Report",)
    quoted = "text" if body["text"] else "inputs"
    head = ("row#", "truth", "predicted", "confidence#", quoted)[: 5 if quotes else 4]
    return Section(title, lines, head, tuple(rows))


def _beside(body: Mapping[str, Any]) -> Section:
    champion = body.get("champion")
    if champion is None:
        return Section("Beside the champion")
    lines = [against(body)]
    lines += [champion["notice"]] if champion.get("notice") else []
    if champion.get("why"):
        return Section("Beside the champion", tuple(lines))
    show = percent if body["task"] == "classification" else number_text
    bounds = f"{show(champion['low'])} to {show(champion['high'])}" if champion["low"] is not None else "-"
    row = (show(champion["ours"]), show(champion["theirs"]), show(champion["difference"]), bounds)
    if body["task"] == "classification":
        only = champion.get("only_ours_right", 0), champion.get("only_theirs_right", 0)
        lines.append(f"only the new one is right on {only[0]:,} rows, only {champion['model']} on {only[1]:,}")
    measure = "right" if body["task"] == "classification" else "mean error"
    head = (f"{measure}, new#", f"{measure}, {champion['model']}#", "difference#", f"{as_stated(LEVEL)}#")
    return Section("Beside the champion", tuple(lines), head, (row,))


def _made(report: ReportV1) -> Section:
    body = report.body
    recipe = ", ".join(f"{name}={value}" for name, value in body["recipe"].items() if name != "recipe" and value)
    lines = [
        f"{iso(report.made_ns)} by {report.made_by or '-'}, in {body['took_s']:.1f} s",
        f"recipe {body['recipe']['recipe']}" + (f" ({recipe})" if recipe else ""),
        *(f"{name}: {number_text(value)}" for name, value in body["recipe_facts"].items()),
        f"seed {body['seed']}",
        f"artifact {body['digest']} ({body['format']})",
        f"code {body['code_hash']}",
        f"environment {body['environment_hash']}: "
        + ", ".join(f"{name} {version}" for name, version in body["environment"].items()),
        f"{body['dataset']}, content {body['dataset_hash']}",
    ]
    return Section("Made by", tuple(lines))
