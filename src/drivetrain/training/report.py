"""The Report of a training: what it measured, put into a body of plain values. Called by `training`.

Owns the shape of a Report of kind `train`. Nothing of a person's text is in it: mistakes are cited by row. How it reads
for people is for `report_words` and `report_page`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.models import ModelVersionV1, Scored
from drivetrain.core.recipes import Trained, TrainedModel
from drivetrain.core.reports import ReportV1
from drivetrain.training.calibration import ece_of, reliability
from drivetrain.training.data import TrainingData
from drivetrain.training.metrics import (
    Judged,
    judge_labels,
    judge_values,
    paired_labels,
    paired_values,
    plain_judged,
)
from drivetrain.training.report_words import against, as_stated, percent
from drivetrain.training.thresholds import abstention_curve, lowest_risk, threshold_for

KIND = "train"
FACTS = ("accuracy", "macro_f1", "rmse", "mae")
"""Of the metrics, what is worth knowing at a glance."""


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
            **{name: value for name, value in judged.overall.items() if name in FACTS},
            **({"ece": body["ece"]} if "ece" in body else {}),
            "seed": declared.seed,
            "took_s": body["took_s"],
        },
        body=body,
    )


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
            f"{percent(whole['share'])} of {whole['of']:,} test rows are right "
            f"({percent(whole['low'])} to {percent(whole['high'])})"
        )
        reached = [one for one in body["thresholds"] if one["threshold"] is not None]
        if reached:
            safest = min(reached, key=lambda one: float(one["risk"]))
            said += (
                f"; from confidence {safest['threshold']:g} on, at most {as_stated(safest['risk'])} of its answers are "
                f"wrong, and it answers {percent(safest['share'])}"
            )
        elif body["thresholds"]:
            stated = ", ".join(as_stated(one["risk"]) for one in body["thresholds"])
            said += f"; no confidence holds a risk of {stated}"
            if body["risk_to_state"] is not None:
                said += f", but one holds {as_stated(body['risk_to_state'])}"
    else:
        bounds = f" ({overall['mae_low']:.4g} to {overall['mae_high']:.4g})" if "mae_low" in overall else ""
        said = f"the mean error on {body['rows']['test']:,} test rows is {overall['mae']:.4g}{bounds}"
    return f"{said}; {against(body)}." if "champion" in body else f"{said}."


def _fact(value: str | int | float | bool) -> str | int | float | bool:
    """Of Python's own types, where a library's number was given."""
    kind = next(one for one in (bool, int, float, str) if isinstance(value, one))
    return kind(value)
