"""Text classification by one recipe: two linear models over TF-IDF, blended into one matrix and calibrated out of fold.

Owns folds, the blend, the temperature and the artifact. Each fold's models are fitted without its rows, down to the
vocabulary, so that what they say of them is what may be expected of new texts; the model that is served is fitted on
every row. The scores of a logistic regression and of a Crammer-Singer SVC are linear, and so is their sum: it is stored
as one `linear-text` matrix. Called by `training`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column, Signature
from drivetrain.core.recipes import Examples, TextClassification, Trained
from drivetrain.inference.linear_text_files import NGRAM_MAX, Block, LinearText, write_linear_text
from drivetrain.inference.rows import TEXT_CHARS_MAX
from drivetrain.training.calibration import ece, fit_temperature, log_loss, softmax
from drivetrain.training.progress import Progress
from drivetrain.training.tabular import fold_numbers
from drivetrain.training.text_models import (
    SUBLINEAR,
    Counted,
    Floats,
    Ints,
    Linear,
    Weighted,
    count,
    fit_logistic,
    fit_svc,
    values_of,
    weigh,
)

FITS_AT_ONCE = 2
"""Logistic regressions; results do not depend on it."""
BESIDE_MAX = 10_000_000
"""Terms times classes, beyond which there is one at a time: each takes some fifteen times its weights, of 4 bytes."""
FOLDS_MAX = 20
PARAMETERS_MAX = 50_000_000
"""Terms times classes: 200 MB of weights, and 3 GB while they are fitted."""


def train_text(
    train: Examples,
    recipe: TextClassification,
    *,
    text: str,
    label: str,
    seed: int,
    progress: Progress,
    groups: Sequence[Any] | None = None,
) -> Trained:
    """A calibrated `linear-text` model, and its probabilities of every row out of fold; the same bits every time.

    text: the column of texts. label: what is predicted, as the signature's target. groups: rows that are alike in it
    never part between folds; rows of the same text never do. Labels are told as text, in their order as text.
    10,000 short texts of 77 classes take some 30 s of one core. Raises: DrivetrainError where the rows cannot train.
    """
    _check(recipe)
    texts = _texts(train, text)
    labels, truth = _truth(train, label)
    weights = _weights(train)
    folds = _folds(texts, truth, groups, recipe.folds, seed)
    progress("counting terms", 0.0)
    counted = [
        count(texts, analyzer, ngrams)
        for analyzer, ngrams in (("word", recipe.word_ngrams), ("char_wb", recipe.char_ngrams))
        if ngrams != (0, 0)
    ]
    data = _Data(counted, truth, weights, len(labels), recipe.features_max, seed)
    _check_size(data)
    logistic, svc, fitted = _fit_all(data, folds, progress)
    progress("calibrating", 0.95)
    scales = [1 / fit_temperature(scores, truth, weights=weights) for scores in (logistic, svc)]
    blended = scales[0] * logistic + scales[1] * svc
    temperature = fit_temperature(blended, truth, weights=weights)
    chances = softmax(blended / temperature)
    right = chances.argmax(axis=1) == truth
    files = write_linear_text(
        LinearText(
            blocks=tuple(_block(one, known) for one, known in zip(counted, fitted.weighted, strict=True)),
            labels=labels,
            weights=_mixed([fitted.logistic.weights, fitted.svc.weights], scales),
            bias=_mixed([fitted.logistic.bias, fitted.svc.bias], scales),
            link="softmax",
            temperature=temperature,
        )
    )
    progress("done", 1.0)
    return Trained(
        format="linear-text",
        files=files,
        signature=Signature(
            task="classification", inputs=(Column(name=text, dtype="text"),), target=label, labels=labels
        ),
        predictions=chances.tolist(),
        facts={
            "folds": int(folds.max()) + 1,
            "terms": sum(len(known.columns) for known in fitted.weighted),
            "classes": len(labels),
            "artifact_bytes": sum(len(content) for content in files.values()),
            "logistic_scale": scales[0],
            "svc_scale": scales[1],
            "temperature": temperature,
            "accuracy_out_of_fold": float(np.average(right, weights=weights)),
            "log_loss_out_of_fold": log_loss(blended / temperature, truth, weights=weights),
            "ece_out_of_fold": ece(chances.max(axis=1), right, weights=weights),
        },
    )


class _Data(NamedTuple):
    """All rows, as numbers."""

    counted: list[Counted]
    truth: Ints
    weights: Floats
    classes: int
    features_max: int
    seed: int


class _Part(NamedTuple):
    """What is fitted on some of the rows, and the rows it says something of."""

    weighted: list[Weighted]
    values: Any
    truth: Ints
    """Numbers within `present`."""
    weights: Floats
    present: Ints
    """The classes that the rows have."""
    held_out: Ints
    held_out_values: Any


class _Fitted(NamedTuple):
    """Both models on every row."""

    weighted: list[Weighted]
    logistic: Linear
    svc: Linear


def _fit_all(data: _Data, folds: Ints, progress: Progress) -> tuple[Floats, Floats, _Fitted]:
    """Scores out of fold of the logistic regression and of the SVC, and both fitted on every row.

    Logistic regressions run beside each other and beside the SVCs, of which there is one at a time: all of them let go
    of the interpreter while they compute. Linear algebra gets one thread, so that its sums come in one order.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    every = np.arange(len(data.truth))
    parts = [_part(data, every[folds != one], every[folds == one]) for one in sorted(set(folds.tolist()))]
    whole = _part(data, every, every[:0])

    def logistic(part: _Part) -> Linear:
        return fit_logistic(part.values, part.truth, len(part.present), part.weights)

    def svc(part: _Part) -> Linear:
        return fit_svc(part.values, part.truth, len(part.present), part.weights, data.seed)

    at_once = FITS_AT_ONCE if whole.values.shape[1] * data.classes <= BESIDE_MAX else 1
    with (
        threadpool_limits(1),
        warnings.catch_warnings(),
        ThreadPoolExecutor(at_once) as beside,
        ThreadPoolExecutor(1) as alone,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        scored = [[pool.submit(_scored, fit, one) for one in parts] for pool, fit in ((beside, logistic), (alone, svc))]
        models = beside.submit(logistic, whole), alone.submit(svc, whole)
        try:
            for number, pair in enumerate(zip(*scored, strict=True)):
                progress(f"fold {number + 1} of {len(parts)}", 0.05 + 0.9 * number / (len(parts) + 1))
                for one in pair:
                    one.result()
            progress("all rows", 0.05 + 0.9 * len(parts) / (len(parts) + 1))
            fitted = _Fitted(whole.weighted, models[0].result(), models[1].result())
        except BaseException:
            for waiting in (beside, alone):
                waiting.shutdown(wait=False, cancel_futures=True)
            raise
    out_of_fold = [_out_of_fold(data, parts, [one.result() for one in of]) for of in scored]
    return out_of_fold[0], out_of_fold[1], fitted


def _scored(fit: Callable[[_Part], Linear], part: _Part) -> Floats:
    """What a model says of the rows held out; the model is not kept."""
    return fit(part).scores(part.held_out_values)


def _part(data: _Data, rows: Ints, held_out: Ints) -> _Part:
    weighted = [weigh(one, rows, data.features_max) for one in data.counted]
    present, truth = np.unique(data.truth[rows], return_inverse=True)
    weights = data.weights[rows]
    return _Part(
        weighted,
        values_of(data.counted, weighted, rows),
        truth,
        weights / weights.mean(),
        present,
        held_out,
        values_of(data.counted, weighted, held_out),
    )


def _out_of_fold(data: _Data, parts: Sequence[_Part], scored: Sequence[Floats]) -> Floats:
    """Shape (rows, classes); a class that a fold has not seen has the row's least score."""
    scores = np.empty((len(data.truth), data.classes))
    for part, own in zip(parts, scored, strict=True):
        scores[part.held_out] = own.min(axis=1, keepdims=True)
        scores[np.ix_(part.held_out, part.present)] = own
    return scores


def _mixed(arrays: Sequence[NDArray[np.float32]], scales: Sequence[float]) -> NDArray[np.float32]:
    return np.asarray(
        sum(scale * one.astype(np.float64) for one, scale in zip(arrays, scales, strict=True)), np.float32
    )


def _block(counted: Counted, known: Weighted) -> Block:
    return Block(
        analyzer=counted.analyzer,
        ngrams=counted.ngrams,
        terms=tuple(counted.terms[place] for place in known.columns.tolist()),
        idf=known.idf,
        sublinear_tf=SUBLINEAR,
    )


def _folds(texts: Sequence[str], truth: Ints, groups: Sequence[Any] | None, folds: int, seed: int) -> Ints:
    """The fold of each row. Raises: DrivetrainError where some fold would leave one class to train on."""
    numbers = fold_numbers(truth.tolist(), _together(texts, groups), folds, seed)
    for one in sorted(set(numbers.tolist())):
        if len(set(truth[numbers != one].tolist())) < 2:
            raise DrivetrainError(
                f"There are too few rows to calibrate on: without one of {folds} folds only one label is left.",
                do="Add rows of the rarer labels, at least two of each, or in more groups.",
            )
    return numbers


def _together(texts: Sequence[str], groups: Sequence[Any] | None) -> list[str]:
    """Each row's group by name: rows are together by their group, by their text, and by what these join."""
    parents: dict[tuple[str, Any], tuple[str, Any]] = {}

    def root(one: tuple[str, Any]) -> tuple[str, Any]:
        while (parent := parents.setdefault(one, one)) != one:
            parents[one] = one = parents[parent]
        return one

    keys = [("text", " ".join(text.lower().split())) for text in texts]
    if groups is not None:
        for key, group in zip(keys, groups, strict=True):
            if group is not None:
                parents[root(key)] = root(("group", group))
    names: dict[tuple[str, Any], str] = {}
    return [names.setdefault(root(key), str(len(names))) for key in keys]


def _texts(train: Examples, text: str) -> list[str]:
    if text not in train.columns:
        raise DrivetrainError(
            f"There is no column `{text}` to read texts from.",
            looked=[f"`{name}`" for name in train.columns],
            do="Name the column of the texts with `text=` or --text.",
        )
    values = train.columns[text]
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DrivetrainError(
                f"Row {row} of column `{text}` holds {type(value).__name__} where a text has to be.",
                do="Leave such rows out of the Dataset, or fill them with an empty text.",
            )
    # Half of a surrogate pair can be in a text from JSON, and in no file.
    return [value[:TEXT_CHARS_MAX].encode("utf-8", "replace").decode() for value in values]


def _truth(train: Examples, label: str) -> tuple[tuple[str, ...], Ints]:
    missing = sum(one is None for one in train.labels)
    if missing:
        raise DrivetrainError(
            f"{missing:,} of {len(train.labels):,} rows have no `{label}`.",
            do="Only rows whose label is known can train: leave the others out of the Dataset.",
        )
    told = [str(one) for one in train.labels]
    labels = tuple(sorted(set(told)))
    if len(labels) < 2:
        seen = f"every row has `{labels[0]}`" if labels else "there are no rows"
        raise DrivetrainError(
            f"A classification needs at least two labels in `{label}`, and {seen}.",
            do="Check the column of the label and the split that trains.",
        )
    number = {one: place for place, one in enumerate(labels)}
    return labels, np.array([number[one] for one in told], dtype=np.int64)


def _weights(train: Examples) -> Floats:
    """Per row, with mean 1."""
    if train.weights is None:
        return np.ones(len(train.labels))
    weights = np.asarray(train.weights, dtype=np.float64)
    if not np.isfinite(weights).all() or (weights <= 0).any():
        raise DrivetrainError(
            "A row's weight is not a positive number.", do="Leave rows that should not count out of the Dataset."
        )
    return np.asarray(weights / weights.mean())


def _check(recipe: TextClassification) -> None:
    ranges = {"word_ngrams": recipe.word_ngrams, "char_ngrams": recipe.char_ngrams}
    for name, (shortest, longest) in ranges.items():
        if (shortest, longest) != (0, 0) and not 1 <= shortest <= longest <= NGRAM_MAX:
            raise DrivetrainError(
                f"`{name}={(shortest, longest)}` is no range of n-grams.",
                do=f"Write (shortest, longest) between 1 and {NGRAM_MAX}, or (0, 0) for none.",
            )
    if all(one == (0, 0) for one in ranges.values()):
        raise DrivetrainError("The recipe counts neither words nor characters.", do="Give one of them a range.")
    if not 2 <= recipe.folds <= FOLDS_MAX or recipe.features_max < 0:
        raise DrivetrainError(f"A text classification has 2 to {FOLDS_MAX} folds, and no negative `features_max`.")


def _check_size(data: _Data) -> None:
    kept = [min(len(one.terms), data.features_max or len(one.terms)) for one in data.counted]
    if not sum(kept):
        raise DrivetrainError("No text has a single term to learn from.", do="Check the column of the texts.")
    if sum(kept) * data.classes > PARAMETERS_MAX:
        most = PARAMETERS_MAX // data.classes // len(kept)
        raise DrivetrainError(
            f"{sum(kept):,} terms x {data.classes:,} labels are more weights than the {PARAMETERS_MAX:,} that fit.",
            do=f"Set `features_max={most}` or less in the recipe: the most frequent terms are kept.",
        )
