"""Scores `linear-text` models: TF-IDF and a linear model in one pass over the terms that a text has.

Equal to scikit-learn's TfidfVectorizer and linear models within 1e-5 on probabilities. A text costs the look-ups of its
n-grams, one row of the weights for each term that it has, and one exponential per label; never a pass over the
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned, Row, Scored
from drivetrain.inference.linear_text_files import Block, LinearText
from drivetrain.inference.rows import RowReader, classified, sigmoid, softmax
from drivetrain.inference.tokenizing import counter_of

Floats64 = NDArray[np.float64]


class LinearTextScorer:
    """One loaded `linear-text` model."""

    __slots__ = ("_bias", "_blocks", "_link", "_reader", "_temperature", "_weights", "pinned")

    def __init__(self, pinned: Pinned, model: LinearText) -> None:
        signature = pinned.signature
        texts = [column for column in signature.inputs if column.dtype == "text"]
        if signature.task != "classification" or len(signature.inputs) != 1 or len(texts) != 1:
            raise DrivetrainError(
                f"Model `{pinned.id}` is a `linear-text`, which classifies one column of texts; its signature says "
                f"{signature.task} of {len(signature.inputs)} columns."
            )
        if signature.labels != model.labels:
            raise DrivetrainError(f"The labels of model `{pinned.id}` and of its signature are not the same.")
        self.pinned = pinned
        self._reader = RowReader(pinned, ["string"])
        self._blocks, at = [], 0
        for block in model.blocks:
            self._blocks.append(_BlockValues(block, at))
            at += len(block.terms)
        self._weights = model.weights
        self._bias = model.bias.astype(np.float64)
        self._link = sigmoid if model.link == "sigmoid" else softmax
        self._temperature = model.temperature

    def score(self, rows: Sequence[Row]) -> list[Scored]:
        """One result per row; a text that is none, or too long, has a fault."""
        batch = self._reader.read(rows)
        results = iter(self._classified([values[0] for values in batch.values]))
        return [
            Scored(fault=batch.faults[number]) if number in batch.faults else next(results)
            for number in range(len(rows))
        ]

    def _classified(self, texts: Sequence[str]) -> list[Scored]:
        if not texts:
            return []
        margins, probabilities = self.probabilities(texts)
        return classified(self.pinned.signature.labels, probabilities, margins)

    def probabilities(self, texts: Sequence[str]) -> tuple[Floats64, Floats64]:
        """(margins, probabilities) of texts, each of the shape (texts, labels)."""
        margins = np.empty((len(texts), len(self._bias)))
        for number, text in enumerate(texts):
            margins[number] = self._products(text)
        margins += self._bias
        chances = self._link(margins / self._temperature)
        if self._link is sigmoid:
            total = chances.sum(axis=1, keepdims=True)
            chances = np.divide(chances, total, out=np.full_like(chances, 1 / len(self._bias)), where=total > 0)
        return margins, chances

    def _products(self, text: str) -> NDArray[np.float32]:
        """The sum over the text's terms of their values times their rows of weights."""
        found = [values for block in self._blocks if (values := block.of(text)) is not None]
        if not found:
            return np.zeros(len(self._bias), dtype=np.float32)
        places = np.concatenate([one.places for one in found])
        weighed = np.concatenate([one.values for one in found], dtype=np.float32, casting="same_kind")
        products: NDArray[np.float32] = weighed @ self._weights.take(places, axis=0)
        return products


class _Found(NamedTuple):
    """The terms of one block that a text has."""

    places: NDArray[np.intp]
    """Their rows of the weights."""
    values: Floats64


class _BlockValues:
    """The TF-IDF values of one block."""

    __slots__ = ("_block", "_count", "_idf", "_start")

    def __init__(self, block: Block, start: int) -> None:
        self._block = block
        self._count = counter_of(block)
        self._idf = None if block.idf is None else block.idf.astype(np.float64)
        self._start = start

    def of(self, text: str) -> _Found | None:
        """None where a text has none of the terms."""
        (places, values), block = self._count(text), self._block
        if not len(places):
            return None
        if block.binary:
            values = np.ones(len(places))
        elif block.sublinear_tf:
            np.log(values, out=values)
            values += 1
        if self._idf is not None:
            values *= self._idf.take(places)
        if block.norm:
            norm = math.sqrt(values.dot(values)) if block.norm == "l2" else float(np.abs(values).sum())
            values *= block.weight / (norm or 1.0)
        elif block.weight != 1:
            values *= block.weight
        return _Found(places + self._start, values)
