"""One training: rows, recipe, the artifact judged by the scorer that will serve it, a Report, a new version.

Owns the order of it, and that nothing of it is registered before all of it has held. Never moves an alias. Called by
`drivetrain train` and from Python.
"""

from __future__ import annotations

import hashlib
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import ModelVersionV1, Pinned, Reference, Scored
from drivetrain.core.recipes import (
    Recipe,
    TabularClassification,
    TabularRegression,
    TextClassification,
    Trained,
    TrainedModel,
)
from drivetrain.core.reports import ReportV1
from drivetrain.datasets import Datasets
from drivetrain.lineage.lineage import Lineage
from drivetrain.ports.inference import Scorer
from drivetrain.registry.artifacts import artifact_digest, describe_files, write_files
from drivetrain.registry.reports import Reports, Stored
from drivetrain.registry.store import Draft, Registry, check_name
from drivetrain.training.data import Part, TrainingData, batches, training_data
from drivetrain.training.own import PATIENCE_S, plain_recipe, run_own
from drivetrain.training.progress import Progress, silent
from drivetrain.training.report import Beside, Judging, Provenance, train_report

CHAMPION = "champion"
"""The alias of the version that a new one is compared with."""
BATCH_ROWS = 1_000
"""Scored at once, between two signs of progress."""
SAME = 1e-5
"""How far what is served may be from what was trained; of values relative to their size."""
DIFFERENT_SHOWN = 10
SEED_MAX = 2**32 - 1
"""What scikit-learn takes."""
LIBRARIES = ("numpy", "scipy", "scikit-learn", "lightgbm", "onnx", "skl2onnx", "onnxruntime")
"""What may change the bits of a model."""

OpenScorer = Callable[[Path, Pinned], Scorer]


class Made(msgspec.Struct, frozen=True):
    """A training's result."""

    version: ModelVersionV1
    report_id: str
    report: ReportV1


class Training:
    """Trains the models of a project.

    open_scorer: loads an artifact as it will be served. patience_s: how long a recipe of the project's own may be
    silent.
    """

    def __init__(
        self,
        datasets: Datasets,
        registry: Registry,
        reports: Reports,
        lineage: Lineage,
        *,
        open_scorer: OpenScorer,
        actor: str = "",
        now_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._datasets = datasets
        self._registry = registry
        self._reports = reports
        self._lineage = lineage
        self._open_scorer = open_scorer
        self._actor = actor
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._patience_s = patience_s

    def train(self, declared: TrainedModel, *, progress: Progress = silent) -> Made:
        """The next version of a model, registered with its Report; no alias is moved.

        Raises: DrivetrainError; then nothing is registered.
        """
        begun = self._monotonic()
        _check(declared)
        data = training_data(self._datasets, declared, reading=lambda: progress("rows", 0.0))
        fitted = self._fitted(declared, data, _between(progress, 0.05, 0.9))
        trained = fitted.trained
        with self._registry.workplaces.folder() as work:
            folder = work / "trained"
            write_files(folder, trained.files)
            pinned = _pinned(declared.name, trained, folder)
            scorer = self._open_scorer(folder, pinned)
            scored = _score(scorer, data.test, _between(progress, 0.9, 0.95))
        if fitted.expected is not None:
            _check_served(declared.name, fitted.expected, scored, trained)
        report = train_report(
            declared,
            data,
            trained,
            Judging(
                scored=scored,
                refused=sum(bool(one.fault) for one in scored),
                champion=self._beside_champion(declared.name, data, _between(progress, 0.95, 1.0)),
            ),
            Provenance(
                digest=pinned.digest,
                recipe=plain_recipe(declared.recipe),
                code_hash=code_hash(declared),
                environment_hash=environment_hash(),
                environment=environment(),
                made_ns=self._now_ns(),
                made_by=self._actor,
                took_s=self._monotonic() - begun,
            ),
        )
        progress("register", 1.0)
        return self._registered(declared, data, trained, report)

    def _registered(self, declared: TrainedModel, data: TrainingData, trained: Trained, report: ReportV1) -> Made:
        begun: list[Stored] = []

        def keep(number: int) -> str:
            """The Report first: a version that names a Report which is not there would be half of one."""
            for one in self._reports.sweep(self._is_published):
                if not self._is_noted(one):
                    self._note(one)
            numbered = msgspec.structs.replace(report, subject=f"{report.subject}@{number}")
            begun.append(Stored(self._reports.begin(numbered), numbered))
            return begun[0].id

        try:
            version = self._registry.register(self._draft(declared, data, trained, report, keep))
        except BaseException:
            for one in begun:
                self._reports.drop(one.id)
            raise
        (kept,) = begun
        self._note(kept)
        self._reports.settle(kept.id)
        return Made(version, kept.id, kept.report)

    def _draft(
        self, declared: TrainedModel, data: TrainingData, trained: Trained, report: ReportV1, keep: Callable[[int], str]
    ) -> Draft:
        return Draft(
            name=declared.name,
            format=trained.format,
            signature=trained.signature,
            files=trained.files,
            owner=declared.owner,
            licence=declared.licence,
            description=declared.description,
            dataset=data.dataset.artifact.removeprefix("dataset:"),
            dataset_hash=data.dataset.content_hash,
            code_hash=report.body["code_hash"],
            environment_hash=report.body["environment_hash"],
            recipe=report.body["recipe"]["recipe"],
            seed=declared.seed,
            # A figure that overflowed is in the Report as it was told; a manifest holds finite numbers.
            metrics={name: float(value) for name, value in report.body["overall"].items() if math.isfinite(value)},
            thresholds={
                f"{one['risk']:g}": one["threshold"]
                for one in report.body.get("thresholds", ())
                if one["threshold"] is not None
            },
            report=keep,
        )

    def _is_published(self, found: Stored) -> bool:
        """Whether the version that a Report is about names it."""
        name, _, number = found.report.subject.removeprefix("model:").partition("@")
        if not number.isdecimal() or int(number) not in self._registry.numbers(name):
            return False
        try:
            return self._registry.version(name, int(number)).report == found.id
        except DrivetrainError:  # its manifest is damaged, which `verify` tells
            return True

    def _note(self, kept: Stored) -> None:
        """Its lineage."""
        self._lineage.made(
            f"report:{kept.report.kind}@{kept.id}",
            inputs=[kept.report.subject, *kept.report.inputs],
            code_hash=kept.report.body["code_hash"],
            facts={"verdict": kept.report.verdict[:200]},
        )

    def _is_noted(self, kept: Stored) -> bool:
        try:
            return bool(self._lineage.upstream(f"report:{kept.report.kind}@{kept.id}"))
        except DrivetrainError:  # nobody knows it
            return False

    def _fitted(self, declared: TrainedModel, data: TrainingData, progress: Progress) -> _Fitted:
        recipe, part = declared.recipe, data.train
        if isinstance(recipe, TextClassification):
            from drivetrain.training.text import train_text

            trained = train_text(
                part.examples, recipe, text=data.columns[0].name, label=data.target, seed=declared.seed,
                progress=progress, groups=part.groups,
            )  # fmt: skip
            return _Fitted(trained, None)
        if isinstance(recipe, TabularClassification | TabularRegression):
            from drivetrain.training.tabular import train_tabular

            fitted = train_tabular(
                part.examples, recipe, columns=data.columns, target=data.target, seed=declared.seed,
                progress=progress, groups=part.groups,
            )  # fmt: skip
            return _Fitted(fitted.trained, fitted.predict(data.test.examples).tolist())
        if isinstance(recipe, Recipe):
            trained = run_own(
                recipe, part.examples, seed=declared.seed, progress=progress, patience_s=self._patience_s,
                monotonic=self._monotonic,
            )  # fmt: skip
            if trained.signature.target != data.target:
                raise DrivetrainError(
                    f"Recipe `{recipe.name}` predicts `{trained.signature.target[:100]}`, and the label of "
                    f"`{declared.name}` is `{data.target}`.",
                    do="Set the signature's `target`. Nothing was registered.",
                )
            return _Fitted(trained, None)
        raise DrivetrainError(
            f"`{declared.name}` has a recipe that is a {type(recipe).__name__}.",
            do="Take dt.TextClassification, dt.TabularClassification, dt.TabularRegression, or your own `@dt.recipe`.",
        )

    def _beside_champion(self, name: str, data: TrainingData, progress: Progress) -> Beside | None:
        """What the version that is now the champion says of the same rows; None where there is none."""
        if CHAMPION not in self._registry.aliases(name):
            return None
        version = self._registry.find(Reference(name, CHAMPION))
        try:
            pinned = self._registry.resolve(Reference(name, CHAMPION))
            if (pinned.signature.task, pinned.signature.target) != (data.task, data.target):
                return Beside(version, why=f"it is a {pinned.signature.task} of `{pinned.signature.target}`")
            missing = [one.name for one in pinned.signature.inputs if one.name not in data.test.examples.columns]
            if missing:
                return Beside(version, why=f"it takes `{missing[0]}`, which is no input of this training")
            scorer = self._open_scorer(self._registry.open(pinned), pinned)
            return Beside(version, scored=_score(scorer, data.test, progress))
        except DrivetrainError as error:
            return Beside(version, why=error.what)


class _Fitted(msgspec.Struct, frozen=True):
    """What a recipe gave, and what the model said of the test rows before it was exported, where that is known."""

    trained: Trained
    expected: list[Any] | None


def code_hash(declared: TrainedModel) -> str:
    """SHA-256 over what decides how rows become a model: recipe, parameters, seed, columns, and its own source."""
    facts = {
        **plain_recipe(declared.recipe),
        "seed": declared.seed,
        "label": declared.label,
        "text": declared.text,
        "group_by": declared.group_by,
        "weight": declared.weight,
        "test": declared.test,
    }
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()


def environment() -> dict[str, str]:
    """What the bits of a model may depend on: Python, machine, and the libraries that are installed."""
    found = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": sys.platform,
        "machine": platform.machine(),
    }
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment_hash() -> str:
    """SHA-256 over `environment`."""
    return hashlib.sha256(msgspec.json.encode(environment(), order="deterministic")).hexdigest()


def _check(declared: TrainedModel) -> None:
    """What would be noticed only after all the work. Raises: DrivetrainError."""
    check_name(declared.name)
    if not isinstance(declared.seed, int) or not 0 <= declared.seed <= SEED_MAX:
        raise DrivetrainError(f"{declared.seed!r} is no seed.", do=f"Write a whole number from 0 to {SEED_MAX}.")
    for risk in declared.risks:
        if not isinstance(risk, int | float) or not 0 < risk < 1:
            raise DrivetrainError(f"{risk!r} is no risk.", do="Write a share of errors, such as 0.02 for 2 %.")


def _between(progress: Progress, low: float, high: float) -> Progress:
    """A part of the whole."""
    return lambda what, share: progress(what, low + (high - low) * share)


def _pinned(name: str, trained: Trained, folder: Path) -> Pinned:
    digest = artifact_digest(trained.format, trained.signature, describe_files(folder))
    return Pinned(name=name, number=0, digest=digest, format=trained.format, signature=trained.signature)


def _score(scorer: Scorer, part: Part, progress: Progress) -> list[Scored]:
    """Every row as it would be served. Raises: DrivetrainError where the model refuses all of them."""
    found: list[Scored] = []
    for rows in batches(part, scorer.pinned.signature.inputs, BATCH_ROWS):
        found += scorer.score(rows)
        progress("test rows", len(found) / part.size)
    faults = [one.fault for one in found if one.fault]
    if len(found) != part.size or len(faults) == len(found):
        raise DrivetrainError(
            f"The model of `{scorer.pinned.name}` scores none of the {part.size:,} test rows: "
            f"{faults[0] if faults else 'it gave another number of results'}",
            do="Nothing was registered. Look whether the recipe's signature says what the model takes.",
        )
    return found


def _check_served(name: str, expected: Sequence[Any], scored: Sequence[Scored], trained: Trained) -> None:
    """Raises: DrivetrainError where the exported model says something else than the trained one did."""
    different = [
        (place, said)
        for place, (wanted, one) in enumerate(zip(expected, scored, strict=True))
        if not one.fault and (said := _difference(wanted, one, trained.signature.labels))
    ]
    if different:
        raise DrivetrainError(
            f"The exported model of `{name}` differs from the trained one on {len(different):,} of {len(scored):,} "
            f"test rows by more than {SAME:g}.",
            looked=[f"row {place}: {said}" for place, said in different[:DIFFERENT_SHOWN]],
            do="Nothing was registered. Numbers beyond the precision of 32 bits do this: scale that column.",
        )


def _difference(wanted: Any, one: Scored, labels: Sequence[str]) -> str:
    """How a row differs, in words; empty where it does not."""
    if not labels:
        value = one.value if one.value is not None else float("nan")
        return "" if abs(value - wanted) <= SAME * max(1.0, abs(wanted)) else f"{wanted!r} became {value!r}"
    for label, chance in one.scores.items():
        trained = wanted[labels.index(label)]
        if not abs(trained - chance) <= SAME:
            return f"`{label}` {trained!r} became {chance!r}"
    best = max(wanted)
    if one.label is None or wanted[labels.index(one.label)] < best - SAME:
        return f"`{labels[wanted.index(best)]}` became `{one.label}`"
    return ""
