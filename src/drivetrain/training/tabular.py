"""Tabular recipes: LightGBM or a linear model, chosen by cross-validation, calibrated out of fold, without a pickle.

Owns folds, candidates, the choice between them, and the artifact of the winner: LightGBM's own text with the
temperature beside it, or ONNX with the temperature within its weights. Called by `training`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column, Signature
from drivetrain.core.recipes import Examples, TabularClassification, TabularRegression, Trained
from drivetrain.training.calibration import fit_temperature, log_loss, softmax
from drivetrain.training.progress import Progress

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MODELS = ("linear", "lightgbm")
THREADS_MAX = 2
THREAD_CELLS = 2_000_000
"""Cells for each thread of LightGBM: with fewer the threads wait for one another longer than they work. The model is
the same whatever their number."""
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Of the linear model's regularisation: scikit-learn's C of a classification, one over alpha of a regression."""
LEAVES = (7, 31)
ROUNDS = (50, 100, 200, 400)
"""Judged along one fit, so that the most costs as much as all."""
TREES_MAX = 6_000
"""Rounds times classes: beyond it fewer rounds are tried, so that many classes train in minutes."""
LEARNING_RATE = 0.05
ITERATIONS_MAX = 2_000
ABSENT = 20.0
"""How far below the least score a class stands that a fold has not seen."""
MODEL_FILE, CALIBRATION_FILE, ONNX_FILE = "model.txt", "calibration.json", "model.onnx"
ONNX_INPUT = "inputs"


class Fitted(msgspec.Struct, frozen=True):
    """A model, and how it predicts before it was exported, for the comparison with what is served."""

    trained: Trained
    predict: Callable[[Examples], Floats]
    """Probabilities of shape (rows, classes), or values of shape (rows,)."""


class Fit(Protocol):
    """A fitted candidate; scores are before calibration, of shape (rows, classes), or (rows, 1) of a regression."""

    def scores(self, matrix: Floats) -> Floats:
        """Of every row."""

    def files(self, temperature: float) -> dict[str, bytes]:
        """The artifact, calibrated."""


class Task(msgspec.Struct, frozen=True):
    """What the candidates are fitted to."""

    columns: tuple[Column, ...]
    labels: tuple[str, ...]
    """Empty: a regression."""
    seed: int

    @property
    def loss(self) -> str:
        """What candidates are compared by."""
        return "log_loss" if self.labels else "rmse"

    @property
    def width(self) -> int:
        """Scores of a row."""
        return max(1, len(self.labels))


class Rows(msgspec.Struct, frozen=True):
    """Rows as numbers; all of the same length."""

    matrix: Floats
    """Shape (rows, columns): NaN is missing, a category is its place in `Column.values`."""
    truth: NDArray[Any]
    """Numbers of classes, or values."""
    weights: Floats

    def of(self, chosen: NDArray[np.bool_]) -> Rows:
        """Some of them."""
        return Rows(self.matrix[chosen], self.truth[chosen], self.weights[chosen])


def train_tabular(
    train: Examples,
    recipe: TabularClassification | TabularRegression,
    *,
    columns: Sequence[Column],
    target: str,
    seed: int,
    progress: Progress,
    groups: Sequence[str] | None = None,
) -> Fitted:
    """The best candidate by cross-validation, refitted on every row; the same bits in the same environment.

    Raises: DrivetrainError where the rows are too few for folds or the recipe is wrong.
    """
    check_recipe(recipe)
    labels = tuple(sorted({str(one) for one in train.labels})) if isinstance(recipe, TabularClassification) else ()
    task = Task(tuple(columns), labels, seed)
    rows = Rows(matrix_of(train, task.columns), _truth(train, labels), _weights(train))
    folds = fold_numbers(train.labels, groups, recipe.folds, seed)
    if labels and any(len(set(rows.truth[folds != fold].tolist())) < 2 for fold in set(folds.tolist())):
        raise DrivetrainError(
            "A part of the rows that train has one class only, so that nothing can be chosen by cross-validation.",
            do="Collect more rows of the rarer class, or in more groups.",
        )
    found: list[_Found] = []
    for number, model in enumerate(recipe.models):
        part = _part(progress, model, number / len(recipe.models), len(recipe.models))
        found += _CANDIDATES[model](task, rows, folds, part)
    # Of equals the first: the order is from simple to elaborate.
    best = min(found, key=lambda one: one.loss)
    progress("refit", 1.0)
    temperature = fit_temperature(best.scores, rows.truth, weights=rows.weights) if labels else 1.0
    fit = best.refit()
    predictions = softmax(best.scores / temperature) if labels else best.scores[:, 0]
    trained = Trained(
        format=best.format,
        files=fit.files(temperature),
        signature=Signature(
            task="classification" if labels else "regression", inputs=task.columns, target=target, labels=labels
        ),
        predictions=predictions.tolist(),
        facts={
            "model": best.name,
            "temperature": temperature,
            "folds": int(folds.max()) + 1,
            **{f"{task.loss} of {one.name}": one.loss for one in found},
        },
    )

    def predict(examples: Examples) -> Floats:
        scores = fit.scores(matrix_of(examples, task.columns))
        return softmax(scores / temperature) if labels else scores[:, 0]

    return Fitted(trained, predict)


def check_recipe(recipe: TabularClassification | TabularRegression) -> None:
    """Raises: DrivetrainError where it cannot be trained by."""
    for model in recipe.models:
        if model not in MODELS:
            raise DrivetrainError(f"`{model}` is no model of a tabular recipe.", do=f"One of {', '.join(MODELS)}.")
    if not recipe.models or not 2 <= recipe.folds <= 20:
        raise DrivetrainError("A tabular recipe has at least one model and 2 to 20 folds.")


def matrix_of(examples: Examples, columns: Sequence[Column]) -> Floats:
    """As `Rows.matrix`."""
    matrix = np.empty((len(examples.labels), len(columns)), dtype=np.float64)
    for place, column in enumerate(columns):
        values = examples.columns[column.name]
        if column.dtype == "category":
            codes = {value: float(code) for code, value in enumerate(column.values)}
            matrix[:, place] = [codes.get(value, np.nan) for value in values]
        else:
            matrix[:, place] = [np.nan if value is None else float(value) for value in values]
    return matrix


def fold_numbers(labels: Sequence[Any], groups: Sequence[str] | None, folds: int, seed: int) -> Ints:
    """The fold of each row: groups stay whole, and labels are dealt out evenly.

    Raises: DrivetrainError where there are fewer than two groups.
    """
    keys: Sequence[Any] = range(len(labels)) if groups is None else groups
    units: dict[Any, int] = {}
    unit_of = np.array([units.setdefault(key, len(units)) for key in keys], dtype=np.int64)
    if len(units) < 2:
        raise DrivetrainError(
            "The rows that train cannot be parted for cross-validation: there is one of them, or all are one group.",
            do="Collect more rows, or group them by another column.",
        )
    first: dict[int, Any] = {}
    for unit, label in zip(unit_of.tolist(), labels, strict=True):
        first.setdefault(unit, label)
    shuffled = np.random.default_rng(seed).permutation(len(units)).tolist()
    dealt = sorted(shuffled, key=lambda unit: first[unit])
    fold = np.empty(len(units), dtype=np.int64)
    fold[dealt] = np.arange(len(units)) % min(folds, len(units))
    return fold[unit_of]


class _Found(msgspec.Struct, frozen=True):
    """A candidate and how it did out of fold."""

    name: str
    format: str
    loss: float
    scores: Floats
    """Out of fold."""
    refit: Callable[[], Fit]


def _linear_candidates(task: Task, rows: Rows, folds: Ints, progress: Progress) -> Iterator[_Found]:
    for number, strength in enumerate(STRENGTHS):
        progress(f"C={strength:g}", number / len(STRENGTHS))
        scores = np.empty((len(folds), task.width))
        for fold in range(int(folds.max()) + 1):
            fit = _Linear(task, strength, rows.of(folds != fold))
            scores[folds == fold] = fit.scores(rows.matrix[folds == fold])
        refit = partial(_Linear, task, strength, rows)
        yield _Found(f"linear C={strength:g}", "onnx", _loss(task, scores, rows), scores, refit)


def _lightgbm_candidates(task: Task, rows: Rows, folds: Ints, progress: Progress) -> Iterator[_Found]:
    trees = task.width if task.width > 2 else 1
    rounds = [one for one in ROUNDS if one * trees <= TREES_MAX] or [max(1, TREES_MAX // trees)]
    for number, leaves in enumerate(LEAVES):
        progress(f"leaves={leaves}", number / len(LEAVES))
        by_rounds = {one: np.empty((len(folds), task.width)) for one in rounds}
        for fold in range(int(folds.max()) + 1):
            booster = _Booster(task, leaves, rounds[-1], rows.of(folds != fold))
            for one in rounds:
                by_rounds[one][folds == fold] = booster.scores(rows.matrix[folds == fold], one)
        for one, scores in by_rounds.items():
            refit = partial(_Booster, task, leaves, one, rows)
            name = f"lightgbm leaves={leaves} rounds={one}"
            yield _Found(name, "lightgbm", _loss(task, scores, rows), scores, refit)


_CANDIDATES: dict[str, Callable[[Task, Rows, Ints, Progress], Iterator[_Found]]] = {
    "linear": _linear_candidates,
    "lightgbm": _lightgbm_candidates,
}


def _loss(task: Task, scores: Floats, rows: Rows) -> float:
    if task.labels:
        return log_loss(scores, rows.truth, weights=rows.weights)
    return float(np.sqrt(np.average((scores[:, 0] - rows.truth) ** 2, weights=rows.weights)))


class _Linear:
    """Means for what is missing, standardised numbers, one column per category, then logistic or ridge regression."""

    def __init__(self, task: Task, strength: float, rows: Rows) -> None:
        from sklearn.compose import ColumnTransformer
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        self._task = task
        categories = [place for place, one in enumerate(task.columns) if one.dtype == "category"]
        numbers = [place for place, one in enumerate(task.columns) if one.dtype != "category"]
        steps: list[Any] = []
        if numbers:
            filled = SimpleImputer(strategy="mean", keep_empty_features=True)
            steps.append(("numbers", Pipeline([("filled", filled), ("scaled", StandardScaler())]), numbers))
        if categories:
            filled = SimpleImputer(strategy="constant", fill_value=-1.0, keep_empty_features=True)
            codes = [np.arange(len(task.columns[place].values), dtype=np.float64) for place in categories]
            hot = OneHotEncoder(categories=codes, handle_unknown="ignore")
            steps.append(("categories", Pipeline([("filled", filled), ("hot", hot)]), categories))
        if task.labels:
            model: Any = LogisticRegression(C=strength, max_iter=ITERATIONS_MAX, tol=1e-6)
        else:
            model = Ridge(alpha=1.0 / strength)
        self._pipeline = Pipeline([("prepared", ColumnTransformer(steps)), ("model", model)])
        with _calm(), _one_thread():
            self._pipeline.fit(_as_served(rows.matrix), rows.truth, model__sample_weight=rows.weights)

    def scores(self, matrix: Floats) -> Floats:
        """Before calibration."""
        if not self._task.labels:
            return np.asarray(self._pipeline.predict(_as_served(matrix)), dtype=np.float64)[:, None]
        margins = np.asarray(self._pipeline.decision_function(_as_served(matrix)), dtype=np.float64)
        if margins.ndim == 1:
            margins = np.stack([np.zeros_like(margins), margins], axis=1)
        classes = self._pipeline.named_steps["model"].classes_
        scores = np.repeat(margins.min(axis=1, keepdims=True) - ABSENT, len(self._task.labels), axis=1)
        scores[:, classes] = margins
        return scores

    def files(self, temperature: float) -> dict[str, bytes]:
        """One ONNX graph; the temperature divides its weights."""
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType

        model = self._pipeline.named_steps["model"]
        before = model.coef_, model.intercept_
        model.coef_, model.intercept_ = model.coef_ / temperature, model.intercept_ / temperature
        try:
            with _calm():
                graph = convert_sklearn(
                    self._pipeline,
                    name="drivetrain",  # its own would be another random one each time
                    initial_types=[(ONNX_INPUT, FloatTensorType([None, len(self._task.columns)]))],
                    options={id(self._pipeline): {"zipmap": False}} if self._task.labels else None,
                )
        finally:
            model.coef_, model.intercept_ = before
        return {ONNX_FILE: graph.SerializeToString(deterministic=True)}


class _Booster:
    """Gradient-boosted trees."""

    def __init__(self, task: Task, leaves: int, rounds: int, rows: Rows) -> None:
        import lightgbm

        self._task = task
        several = len(task.labels) > 2
        parameters: dict[str, Any] = {
            "objective": "multiclass" if several else "binary" if task.labels else "regression",
            "learning_rate": LEARNING_RATE,
            "num_leaves": leaves,
            "min_data_in_leaf": max(1, min(20, len(rows.truth) // 20)),
            "min_data_in_bin": 1 if len(rows.truth) < 100 else 3,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": _threads(rows.matrix),
            "seed": task.seed % 2**31,
            "verbosity": -1,
        }
        if several:
            parameters["num_class"] = len(task.labels)
        dataset = lightgbm.Dataset(
            rows.matrix,
            label=rows.truth,
            weight=rows.weights,
            feature_name=[f"f{place}" for place in range(len(task.columns))],
            categorical_feature=[place for place, one in enumerate(task.columns) if one.dtype == "category"],
            params={"verbosity": -1},
            free_raw_data=True,
        )
        with _calm():
            self._booster = lightgbm.train(parameters, dataset, num_boost_round=rounds)

    def scores(self, matrix: Floats, rounds: int | None = None) -> Floats:
        """Before calibration; rounds: of only so many."""
        raw = np.asarray(
            self._booster.predict(
                matrix, raw_score=bool(self._task.labels), num_iteration=rounds, num_threads=_threads(matrix)
            ),
            dtype=np.float64,
        )
        if len(self._task.labels) == 2:
            return np.stack([np.zeros_like(raw), raw], axis=1)
        return raw if raw.ndim == 2 else raw[:, None]

    def files(self, temperature: float) -> dict[str, bytes]:
        """LightGBM's own text; of a classification the temperature that divides its margins, in a file of its own."""
        files = {MODEL_FILE: self._booster.model_to_string(num_iteration=-1).encode()}
        if self._task.labels:
            files[CALIBRATION_FILE] = msgspec.json.encode({"temperature": temperature})
        return files


def _as_served(matrix: Floats) -> Floats:
    """As ONNX gets it: what a 32-bit float holds."""
    return matrix.astype(np.float32).astype(np.float64)


def _threads(matrix: Floats) -> int:
    return max(1, min(THREADS_MAX, matrix.size // THREAD_CELLS))


def _truth(train: Examples, labels: Sequence[str]) -> NDArray[Any]:
    if not labels:
        return np.asarray(train.labels, dtype=np.float64)
    places = {label: place for place, label in enumerate(labels)}
    return np.array([places[str(one)] for one in train.labels], dtype=np.int64)


def _weights(train: Examples) -> Floats:
    """With a mean of 1, so that regularisation means the same with and without."""
    if train.weights is None:
        return np.ones(len(train.labels))
    weights = np.asarray(train.weights, dtype=np.float64)
    return np.asarray(weights / weights.mean())


def _part(progress: Progress, name: str, begin: float, parts: int) -> Progress:
    return lambda what, share: progress(f"{name} {what}", begin + share / parts)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Of linear algebra: these matrices are narrow, and the sums are the same on any number of cores."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=1, user_api="blas"):
        yield


@contextmanager
def _calm() -> Iterator[None]:
    """Without warnings of libraries: what matters of them is judged by the Report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
