"""Imports by conversion: equal to the original on every row of a sample, or refused with the rows that differ."""

from __future__ import annotations

import contextlib
import math
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from registry_world import (
    World,
    lightgbm_text,
    linear_onnx,
    linear_text_files,
    rows_and_classes,
    terms,
    xgboost_raw,
)

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import ModelVersionV1, Scored
from drivetrain.embedded.modelling import LOADER, LinearTexts
from drivetrain.inference.scorers import open_scorer
from drivetrain.registry.accepting import ConversionRefused
from drivetrain.registry.importing import Importer
from drivetrain.registry.sklearn_import import import_estimator
from drivetrain.registry.trials import Trials

calibration = pytest.importorskip("sklearn.calibration", reason="the extra `train` is not installed")
compose = pytest.importorskip("sklearn.compose", reason="the extra `train` is not installed")
ensemble = pytest.importorskip("sklearn.ensemble", reason="the extra `train` is not installed")
linear = pytest.importorskip("sklearn.linear_model", reason="the extra `train` is not installed")
pipeline = pytest.importorskip("sklearn.pipeline", reason="the extra `train` is not installed")
preprocessing = pytest.importorskip("sklearn.preprocessing", reason="the extra `train` is not installed")
svm = pytest.importorskip("sklearn.svm", reason="the extra `train` is not installed")
text = pytest.importorskip("sklearn.feature_extraction.text", reason="the extra `train` is not installed")

WORDS = ("card", "lost", "money", "refund", "pay", "top", "up", "transfer", "pending", "pin", "app", "Über", "漢字")
LABELS = ("refund", "card", "other")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning"),
]


def texts(count: int = 240) -> tuple[list[str], list[str]]:
    chance = np.random.default_rng(11)
    said = [" ".join(chance.choice(WORDS, 5)) for _ in range(count)]
    return said, ["refund" if "refund" in one else "card" if "card" in one else "other" for one in said]


def union() -> Any:
    parts = [
        ("words", text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode")),
        ("chars", text.TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), norm="l1")),
    ]
    return pipeline.FeatureUnion(parts, transformer_weights={"chars": 0.5})


TEXT_CLASSIFIERS = {
    "logistic": linear.LogisticRegression,
    "svc": svm.LinearSVC,
    "sgd": lambda: linear.SGDClassifier(loss="log_loss", random_state=0),
    "calibrated": lambda: calibration.CalibratedClassifierCV(svm.LinearSVC(), ensemble=False),
}


@pytest.mark.parametrize("classifier", TEXT_CLASSIFIERS)
@pytest.mark.parametrize("binary", [False, True])
def test_a_pipeline_of_texts_becomes_plain_data_with_the_same_answers(
    world: World, classifier: str, binary: bool
) -> None:
    said, labels = texts()
    labels = ["yes" if one == "refund" else "no" for one in labels] if binary else labels
    fitted = pipeline.make_pipeline(union(), TEXT_CLASSIFIERS[classifier]()).fit(said, labels)
    unseen = ["", "refund", "REFUND!", "carte bleue", "漢字 naïve", "refund\ncard\ttop-up " * 50, *said]
    made = import_estimator(world.importer, fitted, terms(), unseen)
    assert made.format == "linear-text"
    assert made.signature.labels == tuple(fitted.classes_)
    scored = score(world, made, [[one] for one in unseen])
    assert [one.label for one in scored] == list(fitted.predict(unseen))
    if classifier != "svc":
        expected = fitted.predict_proba(unseen).max(axis=1)
        assert max(abs((one.confidence or 0) - other) for one, other in zip(scored, expected, strict=True)) <= 1e-5


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda: text.TfidfVectorizer(tokenizer=str.split, token_pattern=None), "`tokenizer` of its own"),
        (lambda: text.TfidfVectorizer(preprocessor=str.lower), "`preprocessor` of its own"),
        (lambda: text.TfidfVectorizer(token_pattern=r"\w+"), "token pattern"),
        (lambda: text.TfidfVectorizer(analyzer=str.split), "analyzer of its own"),
        (lambda: text.HashingVectorizer(n_features=64), "keeps no vocabulary"),
    ],
)
def test_texts_that_would_be_cut_in_another_way_are_refused(world: World, part: Any, said: str) -> None:
    sentences, labels = texts()
    fitted = pipeline.make_pipeline(part(), linear.LogisticRegression()).fit(sentences, labels)
    refused(world, fitted, sentences, said)


@pytest.mark.parametrize(
    ("classifier", "said"),
    [
        (lambda: calibration.CalibratedClassifierCV(svm.LinearSVC()), "averages 5 models"),
        (lambda: calibration.CalibratedClassifierCV(svm.LinearSVC(), method="isotonic", ensemble=False), "isotonic"),
        (lambda: linear.SGDClassifier(loss="modified_huber"), "`modified_huber`"),
        (lambda: ensemble.RandomForestClassifier(5), "`RandomForestClassifier`"),
    ],
)
def test_classifiers_of_texts_that_are_not_linear_are_refused(world: World, classifier: Any, said: str) -> None:
    sentences, labels = texts()
    refused(world, pipeline.make_pipeline(text.TfidfVectorizer(), classifier()).fit(sentences, labels), sentences, said)


@pytest.mark.parametrize("kind", ["pipeline", "forest", "boosting"])
def test_a_classifier_of_numbers_becomes_onnx(world: World, kind: str) -> None:
    rows, classes = rows_and_classes()
    made_of = {
        "pipeline": lambda: pipeline.make_pipeline(preprocessing.StandardScaler(), linear.LogisticRegression()),
        "forest": lambda: ensemble.RandomForestClassifier(8, random_state=0),
        "boosting": lambda: ensemble.GradientBoostingClassifier(n_estimators=4, random_state=0),
    }
    fitted = made_of[kind]().fit(rows, classes)
    made = import_estimator(world.importer, fitted, terms(labels=LABELS, columns=("a", "b", "c")), rows)
    assert (made.format, made.signature.labels) == ("onnx", LABELS)
    assert [one.name for one in made.signature.inputs] == ["a", "b", "c"]
    scored = score(world, made, rows.tolist())
    assert [one.label for one in scored] == [LABELS[one] for one in fitted.predict(rows)]


def test_a_search_over_parameters_stands_for_its_best(world: World) -> None:
    said, labels = texts()
    search = pytest.importorskip("sklearn.model_selection", reason="the extra `train` is not installed").GridSearchCV(
        pipeline.Pipeline([("t", text.TfidfVectorizer()), ("c", linear.LogisticRegression())]), {"c__C": [1.0]}, cv=2
    )
    assert import_estimator(world.importer, search.fit(said, labels), terms(), said).format == "linear-text"


def test_columns_of_several_types_keep_their_types(world: World) -> None:
    rows, classes = rows_and_classes()
    kinds = np.random.default_rng(3).choice(["x", "y", "z"], len(rows))
    mixed = np.array([[float(row[0]), str(kind)] for row, kind in zip(rows, kinds, strict=True)], dtype=object)
    parts = [("n", preprocessing.StandardScaler(), [0]), ("k", preprocessing.OneHotEncoder(), [1])]
    fitted = pipeline.make_pipeline(compose.ColumnTransformer(parts), linear.LogisticRegression()).fit(mixed, classes)
    made = import_estimator(world.importer, fitted, terms(columns=("age", "kind")), mixed)
    assert [(one.name, one.dtype) for one in made.signature.inputs] == [("age", "float"), ("kind", "text")]
    assert score(world, made, [[0.5, "x"]])[0].label in made.signature.labels


def test_a_regression_becomes_onnx_and_large_values_may_differ_by_their_share(world: World) -> None:
    rows, _ = rows_and_classes()
    fitted = linear.Ridge().fit(rows, rows[:, 0] * 1e6)
    made = import_estimator(world.importer, fitted, terms(target="price"), rows)
    assert (made.signature.task, made.signature.target) == ("regression", "price")
    (scored,) = score(world, made, [rows[0].tolist()])
    assert scored.value == pytest.approx(fitted.predict(rows[:1])[0], rel=1e-5)


class Shifted:
    """A scorer that is wrong on some rows: by so much, or with another label."""

    def __init__(self, inner: Any, wrong: Any) -> None:
        self.pinned = inner.pinned
        self._inner = inner
        self._wrong = wrong
        self._seen = 0

    def score(self, rows: Any) -> list[Scored]:
        scored = [self._wrong(self._seen + place, one) for place, one in enumerate(self._inner.score(rows))]
        self._seen += len(rows)
        return scored


def shifted_importer(world: World, wrong: Any) -> Importer:
    @contextlib.contextmanager
    def opened(folder: Path, pinned: Any) -> Iterator[Any]:
        with Trials(LOADER).open(folder, pinned) as inner:
            yield Shifted(inner, wrong)

    return Importer(world.registry, opened, LinearTexts())


@pytest.mark.parametrize("shift", [1.1e-5, math.nan, -0.3])
def test_rows_that_differ_are_told_and_nothing_is_registered(world: World, shift: float) -> None:
    rows, _ = rows_and_classes(1_200)
    fitted = linear.Ridge().fit(rows, rows[:, 0])
    bad = [5, *range(999, 1_199, 10)]

    def wrong(index: int, one: Scored) -> Scored:
        return Scored(value=(one.value or 0) + shift * max(1.0, abs(one.value or 0)) * 1.2) if index in bad else one

    before = world.listing()
    with pytest.raises(ConversionRefused) as caught:
        import_estimator(shifted_importer(world, wrong), fitted, terms(), rows)
    assert caught.value.count == len(bad)
    assert [one.index for one in caught.value.rows] == bad[:10]
    assert f"row 5: original {fitted.predict(rows[5:6])[0]:.9g}, converted " in str(caught.value)
    assert f"and {len(bad) - 10} more" in str(caught.value)
    assert [one for one in world.listing() if one != "tmp/models.lock"] == before
    assert world.kinds() == []


def test_a_difference_within_the_tolerance_is_taken(world: World) -> None:
    rows, _ = rows_and_classes()
    fitted = linear.Ridge().fit(rows, rows[:, 0] / 100)

    def wrong(_: int, one: Scored) -> Scored:
        return Scored(value=(one.value or 0) + 9e-6)

    assert import_estimator(shifted_importer(world, wrong), fitted, terms(), rows).number == 1


def test_another_label_is_refused_whatever_the_probabilities(world: World) -> None:
    said, labels = texts()
    fitted = pipeline.make_pipeline(text.TfidfVectorizer(), linear.LogisticRegression()).fit(said, labels)

    def wrong(index: int, one: Scored) -> Scored:
        return Scored(label="card" if one.label != "card" else "other", confidence=one.confidence) if not index else one

    with pytest.raises(ConversionRefused, match="1 of 240 rows"):
        import_estimator(shifted_importer(world, wrong), fitted, terms(), said)


def test_without_a_sample_nothing_is_converted(world: World) -> None:
    rows, classes = rows_and_classes()
    fitted = linear.LogisticRegression().fit(rows, classes)
    for sample in (None, [], [[1.0], [1.0, 2.0]]):
        with pytest.raises(DrivetrainError, match="sample"):
            import_estimator(world.importer, fitted, terms(), sample)


# Files.


@pytest.mark.parametrize("kind", ["json", "ubj"])
def test_an_xgboost_file_scores_as_xgboost_does(world: World, kind: str) -> None:
    import xgboost

    rows, _ = rows_and_classes()
    path = write(world, f"m.{kind}", xgboost_raw(kind))
    made = world.importer.import_path(path, terms(labels=LABELS, columns=("a", "b", "c")))
    assert [one.path for one in made.files] == ["model.json"]
    original = xgboost.Booster(model_file=str(path)).predict(xgboost.DMatrix(rows))
    scored = score(world, made, rows.tolist())
    assert max(abs((one.confidence or 0) - row.max()) for one, row in zip(scored, original, strict=True)) <= 1e-6


def test_an_onnx_file_takes_names_for_its_columns(world: World) -> None:
    path = write(world, "m.onnx", linear_onnx().SerializeToString())
    made = world.importer.import_path(path, terms(columns=("rooms", "age"), target="price"))
    assert score(world, made, [[3.0, 1.0]])[0].value == pytest.approx(5.0)
    assert made.source.startswith("onnx ")
    unnamed = world.importer.import_path(path, terms())
    assert [one.name for one in unnamed.signature.inputs] == ["f0", "f1"]
    with pytest.raises(DrivetrainError, match="takes 2 columns, and 3 are named"):
        world.importer.import_path(path, terms(columns=("a", "b", "c")))


def test_folders_and_archives_of_every_kind_are_taken(world: World) -> None:
    folder = world.root / "text"
    folder.mkdir()
    for name, content in linear_text_files().items():
        (folder / name).write_bytes(content)
    onnx = write(world, "m.onnx", linear_onnx().SerializeToString())
    with zipfile.ZipFile(world.root / "m.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(onnx, "deep/er/m.onnx")
    with tarfile.open(world.root / "m.tar.gz", "w:gz") as tarred:
        tarred.add(folder, "text")
    formats = [
        world.importer.import_path(path, terms()).format
        for path in (folder, onnx, world.root / "m.zip", world.root / "m.tar.gz")
    ]
    assert formats == ["linear-text", "onnx", "onnx", "linear-text"]


def test_an_mlflow_folder_goes_out_and_comes_back_the_same(world: World) -> None:
    path = write(world, "m.onnx", linear_onnx().SerializeToString())
    made = world.importer.import_path(path, terms(columns=("rooms", "age")))
    world.registry.export("price", world.root / "mlflow", layout="mlflow")
    again = world.importer.import_path(world.root / "mlflow", terms())
    assert again.files == made.files
    assert again.signature.inputs == made.signature.inputs
    assert again.source.startswith("mlflow onnx ")


def test_a_lightgbm_file_scores_as_lightgbm_does(world: World) -> None:
    import lightgbm

    rows, _ = rows_and_classes()
    path = write(world, "m.txt", lightgbm_text().encode())
    made = world.importer.import_path(path, terms(labels=LABELS))
    original = lightgbm.Booster(model_file=str(path)).predict(rows)
    scored = score(world, made, rows.tolist())
    assert [one.label for one in scored] == [LABELS[one] for one in original.argmax(axis=1)]
    assert max(abs((one.confidence or 0) - row.max()) for one, row in zip(scored, original, strict=True)) <= 1e-9


def score(world: World, made: ModelVersionV1, rows: list[Any]) -> list[Scored]:
    """As it is served: from the registry's checked files."""
    pinned = world.registry.resolve(f"{made.name}@{made.number}")
    return open_scorer(world.registry.open(pinned), pinned).score(rows)


def write(world: World, name: str, content: bytes) -> Path:
    path = world.root / name
    path.write_bytes(content)
    return path


def refused(world: World, fitted: Any, sample: Any, said: str) -> None:
    with pytest.raises(DrivetrainError) as caught:
        import_estimator(world.importer, fitted, terms(), sample)
    assert said in str(caught.value)
    assert world.registry.names() == []
