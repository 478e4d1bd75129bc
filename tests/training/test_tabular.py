"""Tabular recipes: the better model wins by cross-validation, what is served says what was trained, bit for bit."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import pytest

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column
from drivetrain.core.recipes import Examples, TabularClassification, TabularRegression, Trained
from drivetrain.training.tabular import Fitted, fold_numbers, train_tabular

pytestmark = pytest.mark.slow

COLUMNS = (
    Column(name="x", dtype="float", nullable=True),
    Column(name="kind", dtype="category", nullable=True, values=("a", "b", "c")),
    Column(name="flag", dtype="bool"),
)


def rows(count: int, *, bent: bool, seed: int = 3) -> Examples:
    """Labels that follow from x, kind and flag: along a line, or bent so that no line tells them apart."""
    chance = random.Random(seed)
    x = [chance.gauss(0, 1) for _ in range(count)]
    kind = [chance.choice("abc") for _ in range(count)]
    flag = [chance.random() < 0.5 for _ in range(count)]
    score = [
        (value * value - 1 if bent else value) + (one == "b") - 0.5 * up + chance.gauss(0, 0.3)
        for value, one, up in zip(x, kind, flag, strict=True)
    ]
    return Examples(
        columns={"x": [None if number % 19 == 0 else value for number, value in enumerate(x)], "kind": kind,
                 "flag": flag},
        labels=["yes" if one > 0 else "no" for one in score],
    )  # fmt: skip


def fit(train: Examples, recipe: Any = None, **options: Any) -> Fitted:
    given: dict[str, Any] = {
        "columns": COLUMNS, "target": "answer", "seed": 1, "progress": lambda _what, _share: None, **options,
    }  # fmt: skip
    return train_tabular(train, recipe or TabularClassification(folds=3), **given)


def digests(trained: Trained) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in trained.files.items()}


def test_a_bend_is_for_trees_and_a_line_for_the_linear_model() -> None:
    assert fit(rows(500, bent=True)).trained.format == "lightgbm"
    assert fit(rows(500, bent=False)).trained.format == "onnx"


@pytest.mark.parametrize("model", ["linear", "lightgbm"])
def test_the_same_seed_gives_the_same_bits(model: str) -> None:
    recipe = TabularClassification(models=(model,), folds=3)
    one, again = (fit(rows(300, bent=False), recipe).trained for _ in range(2))
    assert digests(one) == digests(again)
    assert list(one.predictions) == list(again.predictions)
    other = fit(rows(300, bent=False), recipe, seed=2).trained
    assert list(one.predictions) != list(other.predictions)


def test_predictions_are_out_of_fold_and_calibrated() -> None:
    train = rows(400, bent=False)
    noise = Examples(columns=train.columns, labels=[random.Random(7 + n).choice(["no", "yes"]) for n in range(400)])
    trained = fit(noise, TabularClassification(models=("lightgbm",), folds=4)).trained
    chances = np.array(trained.predictions)
    assert chances.shape == (400, 2)
    assert np.allclose(chances.sum(axis=1), 1)
    # Trees learn noise by heart; predictions on rows that they had seen would be right and sure.
    right = np.mean([trained.signature.labels[int(row.argmax())] == one for row, one in zip(chances, noise.labels,
                                                                                           strict=True)])  # fmt: skip
    assert right < 0.62
    assert chances.max(axis=1).mean() < 0.65
    assert float(trained.facts["temperature"]) > 1.5


def test_numbers_are_predicted_too() -> None:
    train = rows(300, bent=False)
    values = [3 * (x or 0.0) + 10 * (kind == "c") for x, kind in zip(train.columns["x"], train.columns["kind"],
                                                                     strict=True)]  # fmt: skip
    fitted = fit(Examples(columns=train.columns, labels=values), TabularRegression(models=("linear",), folds=3))
    assert fitted.trained.signature.task == "regression"
    assert float(np.abs(fitted.predict(Examples(columns=train.columns, labels=values)) - values).mean()) < 0.1


def test_weights_count() -> None:
    train = rows(300, bent=False)
    heavy = [100.0 if one == "yes" else 1.0 for one in train.labels]
    recipe = TabularClassification(models=("linear",), folds=3)
    plain, weighted = (
        fit(train, recipe),
        fit(Examples(columns=train.columns, labels=train.labels, weights=heavy), recipe),
    )
    yes = plain.trained.signature.labels.index("yes")
    assert weighted.predict(train)[:, yes].mean() > plain.predict(train)[:, yes].mean() + 0.1


def test_groups_stay_whole_and_labels_are_dealt_evenly() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    labels = [chance.choice(["a", "b", "b", "b"]) for _ in range(200)]
    groups = [f"g{chance.randrange(30)}" for _ in range(200)]
    folds = fold_numbers(labels, groups, 5, seed)
    for group in set(groups):
        assert len({int(fold) for fold, one in zip(folds, groups, strict=True) if one == group}) == 1
    even = fold_numbers(labels, None, 5, seed)
    counts = [sum(one == "a" for one, fold in zip(labels, even, strict=True) if fold == number) for number in range(5)]
    assert max(counts) - min(counts) <= 1
    assert (even == fold_numbers(labels, None, 5, seed)).all()


def test_rows_that_cannot_be_parted_are_refused() -> None:
    one = Examples(columns={"x": [1.0, 2.0], "kind": ["a", "b"], "flag": [True, False]}, labels=["no", "yes"])
    with pytest.raises(DrivetrainError, match="one class only"):
        fit(one)
    with pytest.raises(DrivetrainError, match="all are one group"):
        fit(rows(30, bent=False), groups=["same"] * 30)
    with pytest.raises(DrivetrainError, match="`forest` is no model"):
        fit(rows(30, bent=False), TabularClassification(models=("forest",)))


def test_a_class_that_one_fold_never_saw_is_still_a_class() -> None:
    train = rows(60, bent=False)
    labels = ["rare" if number == 5 else one for number, one in enumerate(train.labels)]
    for model in ("linear", "lightgbm"):
        trained = fit(Examples(columns=train.columns, labels=labels),
                      TabularClassification(models=(model,), folds=3)).trained  # fmt: skip
        assert trained.signature.labels == ("no", "rare", "yes")
        assert np.isfinite(np.array(trained.predictions)).all()
