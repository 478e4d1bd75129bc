"""Small trained models in a project's registry, made of plain numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drivetrain.core.models import Column, ModelVersionV1, Signature
from drivetrain.embedded.modelling import registry_in
from drivetrain.inference.linear_text_files import Block, LinearText, write_linear_text
from drivetrain.registry.store import Draft, Registry


def registry(root: Path) -> Registry:
    """Of the project in `root`, with its folders where they are by default."""
    return registry_in(root / ".drivetrain" / "data", root / ".drivetrain" / "keys")


def word_model(words: dict[str, str], strength: float = 5.0) -> LinearText:
    """A text with a known word gets that word's label; one without any is as likely each."""
    labels = tuple(sorted(set(words.values())))
    weights = np.zeros((len(words), len(labels)), np.float32)
    for row, word in enumerate(sorted(words)):
        weights[row, labels.index(words[word])] = strength
    block = Block(analyzer="word", ngrams=(1, 1), terms=tuple(sorted(words)), use_idf=False)
    bias = np.zeros(len(labels), np.float32)
    return LinearText(blocks=(block,), labels=labels, weights=weights, bias=bias, link="softmax")


def register_words(root: Path, name: str, words: dict[str, str], *, alias: str = "champion") -> ModelVersionV1:
    """A `linear-text` version whose target is `intent`; the alias stands at it."""
    model, made = word_model(words), registry(root)
    signature = Signature(
        task="classification", inputs=(Column(name="text", dtype="text"),), target="intent", labels=model.labels
    )
    version = made.register(
        Draft(name=name, format="linear-text", signature=signature, files=write_linear_text(model), owner="a@b.example")
    )
    if alias:
        made.move_alias(name, alias, version.number, reason="a test")
    return version
