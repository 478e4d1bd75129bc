"""The linear models of a text: TF-IDF of counted terms, a logistic regression, and a Crammer-Singer SVC.

Owns counting, weighting and fitting on any part of the rows, as numbers; `text.py` decides which parts and what becomes
of the scores. Everything here gives the same bits for the same rows and seed, in the same environment.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Single = NDArray[np.float32]
Matrix = Any
"""A scipy.sparse.csr_matrix, which has no types."""

SUBLINEAR = True
"""A term that stands twice counts 1 + ln 2: texts are short."""
LOGISTIC_C = 10.0
"""Inverse strength of the logistic regression's penalty; by cross-validation on BANKING77's training rows, as all here.
Its few steps regularise as much."""
LOGISTIC_STEPS = 20
"""Of L-BFGS from zero. With 12 the blend was half a point less accurate out of fold on BANKING77, with 30 no better."""
LOGISTIC_TOLERANCE = 1e-4
"""A step that lowers the loss by less of itself is the last."""
SVC_C = 0.5
SVC_TOLERANCE = 0.1
"""As accurate out of fold on BANKING77 as 0.0001, in a sixth of the time."""
SVC_STEPS_MAX = 1_000
"""Passes of liblinear over the rows; some twenty are taken."""
MEMORY = 5
"""Pairs of steps that L-BFGS keeps, each as large as two models."""
HALVINGS_MAX = 20
"""Of one step's length, before no better point is found."""

_LIBLINEAR = threading.Lock()
"""liblinear draws from one generator for the whole process: two fits at once would not repeat."""


class Counted(NamedTuple):
    """How often each term stands in each row, for one kind of terms."""

    analyzer: str
    ngrams: tuple[int, int]
    terms: tuple[str, ...]
    counts: Matrix
    """Shape (rows, terms), integers."""


class Weighted(NamedTuple):
    """Which terms one fit knows, and how it weighs them."""

    columns: Ints
    """Places in `Counted.terms`, rising."""
    idf: Single


class Linear(NamedTuple):
    """scores = values @ weights + bias."""

    weights: Single
    """Shape (terms, classes)."""
    bias: Single

    def scores(self, values: Matrix) -> Floats:
        """Shape (rows, classes)."""
        return np.asarray(values @ self.weights + self.bias, dtype=np.float64)


def count(texts: Sequence[str], analyzer: str, ngrams: tuple[int, int]) -> Counted:
    """Counts every term of every text; no term at all is no error."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(analyzer=analyzer, ngram_range=ngrams, dtype=np.int32)
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # "empty vocabulary": no text has a term
        return Counted(analyzer, ngrams, (), csr_matrix((len(texts), 0), dtype=np.int32))
    return Counted(analyzer, ngrams, tuple(vectorizer.get_feature_names_out().tolist()), counts)


def weigh(counted: Counted, rows: Ints, features_max: int) -> Weighted:
    """The terms that stand in `rows`, at most the `features_max` most frequent (0: all), with their idf among them.

    Nothing of any other row is used. idf = ln((1 + rows) / (1 + rows with the term)) + 1, as scikit-learn's.
    """
    own = counted.counts[rows]
    having = np.bincount(own.indices, minlength=own.shape[1])
    columns = np.flatnonzero(having)
    if 0 < features_max < len(columns):
        total = np.bincount(own.indices, weights=own.data, minlength=own.shape[1])[columns]
        columns = np.sort(columns[np.argsort(-total, kind="stable")[:features_max]])
    idf = np.log((1 + len(rows)) / (1 + having[columns])) + 1
    return Weighted(columns.astype(np.int64), idf.astype(np.float32))


def values_of(counted: Sequence[Counted], weighted: Sequence[Weighted], rows: Ints) -> Matrix:
    """TF-IDF of rows, each kind of terms with l2 norm 1, side by side; float32."""
    from scipy.sparse import hstack

    blocks = []
    for one, known in zip(counted, weighted, strict=True):
        values = one.counts[rows][:, known.columns].astype(np.float32)
        if SUBLINEAR:
            values.data = 1 + np.log(values.data)
        values.data *= known.idf[values.indices]
        row_of = np.repeat(np.arange(len(rows)), np.diff(values.indptr))
        squares = np.bincount(row_of, weights=values.data.astype(np.float64) ** 2, minlength=len(rows))
        values.data /= np.sqrt(squares)[row_of].astype(np.float32)
        blocks.append(values)
    return hstack(blocks, format="csr", dtype=np.float32)


def fit_logistic(
    values: Matrix,
    truth: Ints,
    classes: int,
    weights: Floats,
    *,
    steps: int = LOGISTIC_STEPS,
    tolerance: float = LOGISTIC_TOLERANCE,
) -> Linear:
    """Multinomial logistic regression with an l2 penalty on all but the bias; scikit-learn's, but for its few steps.

    truth: numbers below `classes`. weights: of the rows, with mean 1.
    """
    turned = values.T.tocsr()
    rows, terms = values.shape
    every = np.arange(rows)
    share = (weights / rows).astype(np.float32)
    penalty = 1 / (LOGISTIC_C * rows)

    def loss(point: Single) -> tuple[float, Single]:
        model, bias = point[:-1], point[-1]
        scores = values @ model
        scores += bias
        scores -= scores.max(axis=1, keepdims=True)
        true = scores[every, truth]
        chances = np.exp(scores, out=scores)
        sums = chances.sum(axis=1)
        total = float(share @ (np.log(sums) - true)) + penalty / 2 * float(np.vdot(model, model))
        chances *= (share / sums)[:, None]
        chances[every, truth] -= share
        slope = np.empty_like(point)
        slope[:-1] = turned @ chances
        slope[:-1] += np.float32(penalty) * model
        slope[-1] = chances.sum(axis=0)
        return total, slope

    point = minimised(loss, np.zeros((terms + 1, classes), dtype=np.float32), steps, tolerance)
    return Linear(point[:-1], point[-1])


def fit_svc(values: Matrix, truth: Ints, classes: int, weights: Floats, seed: int) -> Linear:
    """The multi-class SVM of Crammer and Singer (JMLR 2, 2001), by liblinear. Every class has to be in `truth`."""
    from sklearn.svm import LinearSVC

    model = LinearSVC(
        multi_class="crammer_singer", C=SVC_C, tol=SVC_TOLERANCE, max_iter=SVC_STEPS_MAX, random_state=seed
    )
    with _LIBLINEAR:
        model.fit(values, truth, sample_weight=weights)
    coefficients, bias = model.coef_.T, model.intercept_
    if classes == 2:  # one column, of the second class
        coefficients, bias = np.hstack([-coefficients, coefficients]) / 2, np.concatenate([-bias, bias]) / 2
    return Linear(coefficients.astype(np.float32), bias.astype(np.float32))


def minimised(loss: Callable[[Single], tuple[float, Single]], start: Single, steps: int, tolerance: float) -> Single:
    """A point of less loss, after at most `steps` steps of L-BFGS in float32; one that gains too little is the last.

    scipy's keeps everything twice as wide and takes four times as long for a model of millions of weights. Source:
    Nocedal and Wright, "Numerical Optimization", 2nd ed., algorithms 7.4 and 7.5, with backtracking (algorithm 3.1).
    """
    point, (value, slope) = start, loss(start)
    pairs: deque[tuple[Single, Single, float]] = deque(maxlen=MEMORY)
    for _ in range(steps):
        way = _direction(slope, pairs)
        descent = float(np.vdot(slope, way))
        if not descent < 0:
            break
        length = 1.0 if pairs else min(1.0, 1 / float(np.abs(slope).sum() or 1.0))
        for _ in range(HALVINGS_MAX):
            tried = point + np.float32(length) * way
            there, new_slope = loss(tried)
            if there <= value + 1e-4 * length * descent:
                break
            length /= 2
        else:
            break
        moved, bent = tried - point, new_slope - slope
        curve = float(np.vdot(moved, bent))
        if curve > 0:
            pairs.append((moved, bent, 1 / curve))
        gained, point, value, slope = value - there, tried, there, new_slope
        if len(pairs) > 1 and gained < tolerance * value:
            break
    return point


def _direction(slope: Single, pairs: deque[tuple[Single, Single, float]]) -> Single:
    """Minus the inverse Hessian times the slope, as far as the pairs tell it."""
    way = -slope
    pulls = []
    for moved, bent, inverse in reversed(pairs):
        pull = np.float32(inverse * float(np.vdot(moved, way)))
        way -= pull * bent
        pulls.append(pull)
    if pairs:
        _, bent, inverse = pairs[-1]
        way *= np.float32(1 / (inverse * float(np.vdot(bent, bent))))
    for (moved, bent, inverse), pull in zip(pairs, reversed(pulls), strict=True):
        way += (pull - np.float32(inverse * float(np.vdot(bent, way)))) * moved
    return way
