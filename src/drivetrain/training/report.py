"""The Report of a training: what it measured, put into a body of plain values, and the pages that are made of that.

Owns the shape of a Report of kind `train` and how it reads for people. Nothing of a person's text is in it: mistakes
are cited by row, and quoted only where a page is made, from the Dataset. Called by `training` and by the commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.markup import Table, markdown_table, markdown_text
from drivetrain.core.models import ModelVersionV1, Scored
from drivetrain.core.recipes import Trained, TrainedModel
from drivetrain.core.reports import ReportV1
from drivetrain.core.times import iso
from drivetrain.datasets import Datasets
from drivetrain.training.calibration import ece_of, reliability
from drivetrain.training.data import Cells, TrainingData
from drivetrain.training.metrics import (
    LEVEL,
    Judged,
    judge_labels,
    judge_values,
    paired_labels,
    paired_values,
    plain_judged,
)
from drivetrain.training.thresholds import RISKS_TRIED, abstention_curve, lowest_risk, threshold_for

KIND = "train"
FACTS = ("accuracy", "macro_f1", "rmse", "mae")
"""Of the metrics, what is worth knowing at a glance."""
CURVE_SHOWN = 10
"""Points of the abstention curve on a page; the body has all."""
CLASSES_SHOWN = 30
"""On a page, the worst first; the body has all."""
QUOTE_CHARS_MAX = 120


class Beside(msgspec.Struct, frozen=True):
    """The champion on the same test rows, or why it could not be asked."""

    version: ModelVersionV1
    scored: list[Scored] = []
    why: str = ""


class Judging(msgspec.Struct, frozen=True, kw_only=True):
    """What the new model, and the one it would follow, said of the test rows."""

    scored: list[Scored]
    refused: int
    """Rows that it would not score; they count as wrong."""
    champion: Beside | None = None


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """By what, when and by whom it was made."""

    digest: str
    recipe: dict[str, Any]
    code_hash: str
    environment_hash: str
    environment: dict[str, str]
    made_ns: int
    made_by: str
    took_s: float


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


def train_report(
    declared: TrainedModel, data: TrainingData, trained: Trained, judging: Judging, provenance: Provenance
) -> ReportV1:
    """The whole Report, about the model: its version has no number yet. Pure."""
    judged = _judged(data, judging.scored)
    body: dict[str, Any] = {
        "model": declared.name,
        "digest": provenance.digest,
        "format": trained.format,
        "task": data.task,
        "target": data.target,
        "dataset": data.dataset.artifact,
        "dataset_hash": data.dataset.content_hash,
        "rows": {"train": data.train.size, "test": data.test.size, "refused": judging.refused},
        "test_split": "" if data.held_out else declared.test,
        "held_out": data.held_out,
        "inputs": [one.name for one in trained.signature.inputs],
        "text": declared.text,
        "quoted": list(data.paths),
        "left_out": dict(data.left_out),
        "notices": [*data.notices, *_notices(data, judging)],
        **plain_judged(judged),
        "recipe": {name: value for name, value in provenance.recipe.items() if name != "source"},
        "recipe_facts": {name: _fact(value) for name, value in trained.facts.items()},
        "seed": declared.seed,
        "code_hash": provenance.code_hash,
        "environment_hash": provenance.environment_hash,
        "environment": provenance.environment,
        "took_s": round(provenance.took_s, 3),
    }
    if data.task == "classification":
        body |= _confidence(declared.risks, data, trained, judging.scored)
    champion = _champion(data, judging)
    if champion:
        body["champion"] = champion
    return ReportV1(
        kind=KIND,
        subject=f"model:{declared.name}",
        made_ns=provenance.made_ns,
        made_by=provenance.made_by,
        inputs=(data.dataset.artifact,),
        verdict=_verdict(body),
        facts={
            "digest": provenance.digest,
            "rows_train": data.train.size,
            "rows_test": data.test.size,
            **{
                name: value for name, value in judged.overall.items() if name in ("accuracy", "macro_f1", "rmse", "mae")
            },
            **({"ece": body["ece"]} if "ece" in body else {}),
            "seed": declared.seed,
            "took_s": body["took_s"],
        },
        body=body,
    )


def accept_lines(report: ReportV1) -> list[str]:
    """What a route may say, one line for each stated risk that is reached, and what it means."""
    return [
        f"accept=dt.confidence({one['threshold']:g})  # at most {_stated(one['risk'])} wrong, "
        f"answers {_percent(one['share'])}"
        for one in report.body.get("thresholds", ())
        if one["threshold"] is not None
    ]


def no_threshold_lines(report: ReportV1) -> list[str]:
    """One line for each stated risk that is not reached, with why, and after them what a person can do."""
    body = report.body
    missed = [one for one in body.get("thresholds", ()) if one["threshold"] is None]
    lines = [f"no threshold for a risk of {_stated(one['risk'])}: {one['reason']}" for one in missed]
    if not missed:
        return lines
    if "risk_to_state" not in body:  # a Report of before there were hints
        return lines
    could = body["risk_to_state"]
    if could is None:
        lines.append(f"no risk up to {_stated(RISKS_TRIED[-1])} would have a threshold on these rows")
    elif all(one["risk"] > could for one in body["thresholds"] if one["threshold"] is not None):
        lines.append(
            f"a risk of {_stated(could)} would have a threshold on these rows: state it as `risks=[{could:g}]` or "
            f"`--risk {could:g}`"
        )
    look = '; "Most confident mistakes" shows labels that may be wrong' if body.get("wrong") else ""
    return [*lines, f"a lower risk takes more rows, or fewer mistakes{look}"]


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


def _judged(data: TrainingData, scored: Sequence[Scored]) -> Judged:
    part = data.test
    if data.task == "classification":
        return judge_labels(
            part.examples.labels, scored, numbers=part.numbers, ids=part.examples.ids, segments=part.segments,
            weights=part.examples.weights,
        )  # fmt: skip
    kept = [place for place, one in enumerate(scored) if not one.fault]
    return judge_values(
        [part.examples.labels[place] for place in kept],
        [scored[place] for place in kept],
        numbers=[part.numbers[place] for place in kept],
        ids=[part.examples.ids[place] for place in kept],
        segments={name: [values[place] for place in kept] for name, values in part.segments.items()},
        groups=[part.groups[place] for place in kept] if part.groups else None,
    )


def _notices(data: TrainingData, judging: Judging) -> list[str]:
    found = []
    if judging.refused:
        first = next(one.fault for one in judging.scored if one.fault)
        how = "count as wrong" if data.task == "classification" else "are in no figure"
        found.append(f"{judging.refused:,} test rows cannot be scored and {how}; the first: {first}")
    unknown = set(data.test.examples.labels) - set(data.train.examples.labels) if data.task == "classification" else ()
    if unknown:
        listed = ", ".join(sorted(map(str, unknown))[:5])
        found.append(f"{len(unknown):,} labels of the test rows are in no row that trains: {listed}")
    if not data.train.groups and data.dataset.split is None:
        found.append("rows count as independent: where several tell of one person, say `group_by=`")
    return found


def _confidence(
    risks: Sequence[float], data: TrainingData, trained: Trained, scored: Sequence[Scored]
) -> dict[str, Any]:
    """Calibration on the test rows; thresholds chosen out of fold, and what became of them on the test rows."""
    sure = [one.confidence or 0.0 for one in scored]
    right = [one.label == truth for one, truth in zip(scored, data.test.examples.labels, strict=True)]
    table = reliability(sure, right)
    chosen_on = "out-of-fold predictions of the rows that train"
    if len(trained.predictions):
        labels = trained.signature.labels
        best = [max(range(len(labels)), key=chances.__getitem__) for chances in trained.predictions]
        chosen_sure = [float(chances[place]) for chances, place in zip(trained.predictions, best, strict=True)]
        chosen_right = [labels[place] == truth for place, truth in zip(best, data.train.examples.labels, strict=True)]
    else:
        chosen_on = "the test rows, so that no other rows confirm it"
        chosen_sure, chosen_right = sure, right
    thresholds = []
    for risk in risks:
        found = threshold_for(chosen_sure, chosen_right, risk)
        told = msgspec.to_builtins(found)
        if found.threshold is not None:
            answered = [hit for one, hit in zip(sure, right, strict=True) if one >= found.threshold]
            told["test_answered"] = len(answered)
            told["test_share"] = len(answered) / len(right)
            told["test_error"] = 1 - sum(answered) / len(answered) if answered else None
        thresholds.append(told)
    missed = [one["risk"] for one in thresholds if one["threshold"] is None]
    hint = {"risk_to_state": lowest_risk(chosen_sure, chosen_right, min(missed))} if missed else {}
    return {
        **hint,
        "ece": ece_of(table),
        "calibration": [msgspec.to_builtins(one) for one in table],
        "thresholds": thresholds,
        "thresholds_chosen_on": chosen_on,
        "abstention": [msgspec.to_builtins(one) for one in abstention_curve(sure, right)],
    }


def _champion(data: TrainingData, judging: Judging) -> dict[str, Any]:
    beside = judging.champion
    if beside is None:
        return {}
    version = beside.version
    found: dict[str, Any] = {"model": version.artifact, "dataset": version.dataset}
    if beside.why:
        return {**found, "why": beside.why}
    if version.dataset and version.dataset.partition("@")[0] != data.dataset.name:
        found["notice"] = "it was trained on another Dataset, and may have seen some of these rows"
    elif version.dataset_hash != data.dataset.content_hash and not data.held_out:
        found["notice"] = "it was trained on another number of the Dataset, and may have seen some of these rows"
    # What either refuses counts as wrong of a classification, and is in no figure of a regression.
    both = list(zip(data.test.examples.labels, judging.scored, beside.scored, strict=True))
    if data.task == "classification":
        return {**found, **msgspec.to_builtins(paired_labels(*map(list, zip(*both, strict=True))))}
    kept = [one for one in both if not one[1].fault and not one[2].fault]
    if not kept:
        return {**found, "why": "it scores none of these rows"}
    return {**found, **msgspec.to_builtins(paired_values(*map(list, zip(*kept, strict=True))))}


def _verdict(body: Mapping[str, Any]) -> str:
    overall = body["overall"]
    if body["task"] == "classification":
        whole = body["accuracy"]
        said = (
            f"{_percent(whole['share'])} of {whole['of']:,} test rows are right "
            f"({_percent(whole['low'])} to {_percent(whole['high'])})"
        )
        reached = [one for one in body["thresholds"] if one["threshold"] is not None]
        if reached:
            safest = min(reached, key=lambda one: float(one["risk"]))
            said += (
                f"; from confidence {safest['threshold']:g} on, at most {_stated(safest['risk'])} of its answers are "
                f"wrong, and it answers {_percent(safest['share'])}"
            )
        elif body["thresholds"]:
            stated = ", ".join(_stated(one["risk"]) for one in body["thresholds"])
            said += f"; no confidence holds a risk of {stated}"
            if body["risk_to_state"] is not None:
                said += f", but one holds {_stated(body['risk_to_state'])}"
    else:
        bounds = f" ({overall['mae_low']:.4g} to {overall['mae_high']:.4g})" if "mae_low" in overall else ""
        said = f"the mean error on {body['rows']['test']:,} test rows is {overall['mae']:.4g}{bounds}"
    return f"{said}; {_against(body)}." if "champion" in body else f"{said}."


def _against(body: Mapping[str, Any]) -> str:
    """Against the champion, in words."""
    champion = body["champion"]
    if champion.get("why"):
        return f"not compared with {champion['model']}: {champion['why']}"
    is_share = body["task"] == "classification"
    difference, low, high = champion["difference"], champion["low"], champion["high"]
    if low is None or low <= 0 <= high:
        return f"on these rows it cannot be told from {champion['model']}"
    better = (difference > 0) == is_share
    by = f"{abs(difference) * 100:.1f} points" if is_share else f"{abs(difference):.4g}"
    return f"{'better' if better else 'worse'} than {champion['model']} by {by}"


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
    rows = [(name, _number(value)) for name, value in body["overall"].items()]
    rows += [("expected calibration error (ECE)", _number(body["ece"]))] if "ece" in body else []
    return Section("Overall", (), ("metric", "value#"), tuple(rows))


def _thresholds(report: ReportV1) -> Section:
    body = report.body
    rows, lines = [], no_threshold_lines(report)
    for one in body.get("thresholds", ()):
        if one["threshold"] is None:
            rows.append((_stated(one["risk"]), "none", "", "", "", ""))
            continue
        error = _percent(one["test_error"]) if one["test_error"] is not None else "-"
        rows.append(
            (
                _stated(one["risk"]), f"{one['threshold']:g}", _percent(one["share"]), _percent(one["error_bound"]),
                _percent(one["test_share"]), error,
            )
        )  # fmt: skip
        lines.append(f"for a risk of {_stated(one['risk'])} write accept=dt.confidence({one['threshold']:g})")
    if rows:
        level = body["thresholds"][0]["confidence_level"]
        lines.append(f"chosen on {body['thresholds_chosen_on']}; each bound holds at {_stated(level)} confidence")
    head = ("risk#", "confidence from#", "answers#", "error at most#", "answers in test#", "error in test#")
    return Section("From which confidence it may answer", tuple(lines), head, tuple(rows))


def _curve(body: Mapping[str, Any]) -> Section:
    points = body.get("abstention", ())
    step = max(1, -(-len(points) // CURVE_SHOWN))
    shown = [one for place, one in enumerate(points, 1) if place % step == 0 or place == len(points)]
    rows = tuple(
        (
            f"{one['threshold']:.4f}", _percent(one["share"]), _percent(one["accuracy"]),
            f"{_percent(one['accuracy_low'])} to {_percent(one['accuracy_high'])}",
        )
        for one in shown
    )  # fmt: skip
    return Section(
        "Accuracy against share answered, test rows",
        (),
        ("confidence#", "answered#", "right#", f"{_stated(LEVEL)}#"),
        rows,
    )


def _calibration(body: Mapping[str, Any]) -> Section:
    rows = tuple(
        (
            f"{one['low']:.2f} to {one['high']:.2f}", f"{one['rows']:,}", _percent(one["confidence"]),
            _percent(one["accuracy"]),
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
            one["label"], _share(one["precision"]), _share(one["recall"]), _percent(one["f1"]), f"{one['support']:,}",
        )
        for one in worst[:CLASSES_SHOWN]
    )  # fmt: skip
    more = len(worst) - CLASSES_SHOWN
    lines = (f"the {CLASSES_SHOWN} worst of {len(worst)}",) if more > 0 else ()
    return Section("By class", lines, ("label", "precision#", "recall#", "F1#", "rows#"), rows)


def _segments(body: Mapping[str, Any]) -> list[Section]:
    columns: dict[str, list[tuple[str, ...]]] = {}
    show = _percent if body["task"] == "classification" else _number
    for one in body.get("segments", ()):
        bounds = f"{show(one['low'])} to {show(one['high'])}" if one["low"] is not None else "-"
        columns.setdefault(one["column"], []).append(
            (one["value"] or "(none)", f"{one['rows']:,}", show(one["score"]), bounds)
        )
    measure = "right#" if body["task"] == "classification" else "mean error#"
    head = ("value", "rows#", measure, f"{_stated(LEVEL)}#")
    return [Section(f"By {name}", (), head, tuple(rows)) for name, rows in columns.items()]


def _confusion(body: Mapping[str, Any]) -> Section:
    rows = tuple((one["truth"], one["said"] or "(refused)", f"{one['rows']:,}") for one in body.get("confusion", ()))
    return Section("Most confused", (), ("truth", "predicted", "rows#"), rows)


def _wrong(body: Mapping[str, Any], quotes: Mapping[int, str]) -> Section:
    rows = []
    for one in body.get("wrong", ()):
        sure = _share(one.get("confidence"))
        truth, said = (_number(one[name]) if isinstance(one[name], float) else one[name] for name in ("truth", "said"))
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
    lines = [_against(body)]
    lines += [champion["notice"]] if champion.get("notice") else []
    if champion.get("why"):
        return Section("Beside the champion", tuple(lines))
    show = _percent if body["task"] == "classification" else _number
    bounds = f"{show(champion['low'])} to {show(champion['high'])}" if champion["low"] is not None else "-"
    row = (show(champion["ours"]), show(champion["theirs"]), show(champion["difference"]), bounds)
    if body["task"] == "classification":
        only = champion.get("only_ours_right", 0), champion.get("only_theirs_right", 0)
        lines.append(f"only the new one is right on {only[0]:,} rows, only {champion['model']} on {only[1]:,}")
    measure = "right" if body["task"] == "classification" else "mean error"
    head = (f"{measure}, new#", f"{measure}, {champion['model']}#", "difference#", f"{_stated(LEVEL)}#")
    return Section("Beside the champion", tuple(lines), head, (row,))


def _made(report: ReportV1) -> Section:
    body = report.body
    recipe = ", ".join(f"{name}={value}" for name, value in body["recipe"].items() if name != "recipe" and value)
    lines = [
        f"{iso(report.made_ns)} by {report.made_by or '-'}, in {body['took_s']:.1f} s",
        f"recipe {body['recipe']['recipe']}" + (f" ({recipe})" if recipe else ""),
        *(f"{name}: {_number(value)}" for name, value in body["recipe_facts"].items()),
        f"seed {body['seed']}",
        f"artifact {body['digest']} ({body['format']})",
        f"code {body['code_hash']}",
        f"environment {body['environment_hash']}: "
        + ", ".join(f"{name} {version}" for name, version in body["environment"].items()),
        f"{body['dataset']}, content {body['dataset_hash']}",
    ]
    return Section("Made by", tuple(lines))


def _fact(value: str | int | float | bool) -> str | int | float | bool:
    """Of Python's own types, where a library's number was given."""
    kind = next(one for one in (bool, int, float, str) if isinstance(value, one))
    return kind(value)


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _stated(share: float) -> str:
    """A share that somebody chose, as it was written: `2 %`."""
    return f"{share * 100:.6g} %"


def _share(share: float | None) -> str:
    return "-" if share is None else _percent(share)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
