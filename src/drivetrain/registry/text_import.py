"""Fitted scikit-learn pipelines over texts, taken apart into plain data: TF-IDF vectorizers and one linear classifier.

Only what `linear-text` scores exactly is taken; what cannot be is named. skl2onnx is not used here: it knows no
`char_wb` n-grams, and its tokenizer is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.registry.candidates import FittedBlock, FittedText

TOKEN_PATTERN = r"(?u)\b\w\w+\b"  # noqa: S105 - scikit-learn's default, and no password
VECTORIZERS = ("CountVectorizer", "TfidfVectorizer")
SOFTMAX, SIGMOID, MARGIN = "softmax", "sigmoid", "margin"
_MARGINS = ("LinearSVC", "RidgeClassifier", "RidgeClassifierCV", "Perceptron", "PassiveAggressiveClassifier")


class TextSteps(msgspec.Struct, frozen=True):
    """A pipeline over texts."""

    vectorizers: list[Any]
    """What makes numbers of texts, in order."""
    classifier: Any


def text_steps(estimator: Any) -> TextSteps | None:
    """Of a pipeline that begins with a vectorizer; None for any other."""
    if type(estimator).__name__ != "Pipeline":
        return None
    steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
    if len(steps) < 2:
        return None
    first = steps[0]
    parts = [one for _, one in first.transformer_list] if type(first).__name__ == "FeatureUnion" else [first]
    is_text = any(type(one).__name__ in (*VECTORIZERS, "HashingVectorizer") for one in parts)
    return TextSteps(steps[:-1], steps[-1]) if is_text else None


def fitted_text(steps: TextSteps, labels: Sequence[str]) -> FittedText:
    """labels: of the classes, in their order. Raises: DrivetrainError that names what cannot be taken exactly."""
    import numpy as np

    blocks = _blocks(steps.vectorizers)
    weights, bias, link = _linear(steps.classifier)
    rows = sum(len(one.terms) for one in blocks)
    if weights.shape[1] != rows or len(weights) not in (1, len(labels)):
        raise _inexact(f"the classifier takes {weights.shape[1]:,} numbers where the texts give {rows:,}")
    if len(weights) == 1:
        # One margin d tells two classes apart: softmax(0, d) is the logistic function of d.
        weights = np.concatenate([np.zeros_like(weights), weights])
        bias = np.concatenate([np.zeros_like(bias), bias])
        link = MARGIN if link == MARGIN else SOFTMAX
    return FittedText(
        blocks=tuple(blocks), labels=tuple(labels), weights=np.ascontiguousarray(weights.T), bias=bias, link=link
    )  # fmt: skip


def has_probabilities(model: FittedText) -> bool:
    """Whether its confidence is one of the original's own."""
    return model.link != MARGIN


def _blocks(vectorizers: Sequence[Any]) -> list[FittedBlock]:
    first, *rest = vectorizers
    if type(first).__name__ == "FeatureUnion":
        if rest:
            raise _inexact(f"`{type(rest[0]).__name__}` stands between the texts and the classifier")
        factors = first.transformer_weights or {}
        named = [(name, one) for name, one in first.transformer_list if one not in ("drop", None)]
        return [_block(one, None, float(factors.get(name, 1.0))) for name, one in named]
    if len(rest) > 1 or (
        rest and (type(rest[0]).__name__ != "TfidfTransformer" or type(first).__name__ != VECTORIZERS[0])
    ):
        raise _inexact(f"`{type(rest[-1]).__name__}` stands between the texts and the classifier")
    return [_block(first, rest[0] if rest else None, 1.0)]


def _block(vectorizer: Any, transformer: Any, weight: float) -> FittedBlock:
    kind = type(vectorizer).__name__
    if kind not in VECTORIZERS:
        raise _inexact(f"`{kind}` keeps no vocabulary" if "Hash" in kind else f"`{kind}` is no TF-IDF vectorizer")
    for name, wanted in (("tokenizer", None), ("preprocessor", None), ("input", "content")):
        if getattr(vectorizer, name) != wanted:
            raise _inexact(f"`{kind}` has a `{name}` of its own")
    if vectorizer.analyzer not in ("word", "char", "char_wb"):
        raise _inexact(f"`{kind}` has an analyzer of its own")
    is_word = vectorizer.analyzer == "word"
    if is_word and vectorizer.token_pattern != TOKEN_PATTERN:
        raise _inexact(f"`{kind}` has the token pattern {vectorizer.token_pattern!r}")
    if vectorizer.strip_accents not in (None, "unicode", "ascii"):
        raise _inexact(f"`{kind}` strips accents in a way of its own")
    tfidf = transformer if transformer is not None else vectorizer if kind == "TfidfVectorizer" else None
    use_idf = bool(tfidf is not None and tfidf.use_idf)
    return FittedBlock(
        analyzer=vectorizer.analyzer,
        ngrams=(int(vectorizer.ngram_range[0]), int(vectorizer.ngram_range[1])),
        terms=tuple(sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.__getitem__)),
        idf=tfidf.idf_ if tfidf is not None and use_idf else None,
        use_idf=use_idf,
        lowercase=bool(vectorizer.lowercase),
        strip_accents=vectorizer.strip_accents or "",
        stop_words=tuple(sorted(vectorizer.get_stop_words() or ())) if is_word else (),
        binary=bool(vectorizer.binary),
        sublinear_tf=bool(tfidf is not None and tfidf.sublinear_tf),
        norm=(tfidf.norm or "") if tfidf is not None else "",
        weight=weight,
    )


def _linear(classifier: Any) -> tuple[Any, Any, str]:
    """(weights (1 or classes, terms), bias, link). Raises: DrivetrainError."""
    import numpy as np

    kind = type(classifier).__name__
    if kind == "CalibratedClassifierCV":
        return _calibrated(classifier)
    if kind in ("LogisticRegression", "LogisticRegressionCV"):
        one_by_one = classifier.solver == "liblinear" or getattr(classifier, "multi_class", "") == "ovr"
        link = SIGMOID if one_by_one else SOFTMAX
    elif kind == "SGDClassifier" and classifier.loss == "log_loss":
        link = SIGMOID
    elif kind in _MARGINS or (kind == "SGDClassifier" and classifier.loss != "modified_huber"):
        link = MARGIN
    else:
        of = f" with the loss `{classifier.loss}`" if kind == "SGDClassifier" else ""
        raise _inexact(f"`{kind}`{of} is no linear classifier whose probabilities are known to be equal")
    weights = np.atleast_2d(np.asarray(classifier.coef_, dtype=np.float64))
    return weights, np.broadcast_to(np.asarray(classifier.intercept_, dtype=np.float64), (len(weights),)).copy(), link


def _calibrated(classifier: Any) -> tuple[Any, Any, str]:
    """Platt's sigmoid on top of one linear model is a linear model: 1 / (1 + exp(a d + b))."""
    import numpy as np

    fitted = classifier.calibrated_classifiers_
    if len(fitted) != 1:
        raise _inexact(f"`CalibratedClassifierCV` averages {len(fitted)} models; fit it with `ensemble=False`")
    if classifier.method != "sigmoid":
        raise _inexact(f"`CalibratedClassifierCV` calibrates by `{classifier.method}`; fit it with `sigmoid`")
    if not hasattr(fitted[0].estimator, "decision_function"):
        raise _inexact(f"`{type(fitted[0].estimator).__name__}` is not linear")
    weights, bias, _ = _linear(fitted[0].estimator)
    slopes = np.array([one.a_ for one in fitted[0].calibrators], dtype=np.float64)
    offsets = np.array([one.b_ for one in fitted[0].calibrators], dtype=np.float64)
    return -slopes[:, None] * weights, -(slopes * bias + offsets), SIGMOID


def _inexact(why: str) -> DrivetrainError:
    return DrivetrainError(
        f"This model of texts cannot be taken exactly: {why}.",
        do="Taken are TfidfVectorizer (word, char, char_wb; default tokens) or a FeatureUnion of them, with "
        "LogisticRegression, LinearSVC, SGDClassifier, or CalibratedClassifierCV(..., ensemble=False).",
    )
