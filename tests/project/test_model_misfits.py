"""What is said of a trained model whose answer the output cannot hold."""

from __future__ import annotations

from typing import Any, Literal

import pytest

import drivetrain as dt
from drivetrain.core.models import Column, Signature
from drivetrain.project.model_fit import Misfits, fit

LABELS = ("billing", "cancellation", "spam", "technical")


class Note(dt.Record):
    text: str


class Number(dt.Record):
    topic: int


class Few(dt.Record):
    topic: Literal["other"]


class Most(dt.Record):
    topic: Literal["billing", "cancellation", "spam"]


class Text(dt.Record):
    topic: str


def misfits(output: type[Any], labels: tuple[str, ...] = LABELS) -> list[tuple[str, str]]:
    signature = Signature(
        task="classification", inputs=(Column(name="text", dtype="text"),), target="topic", labels=labels
    )
    with pytest.raises(Misfits) as told:
        fit(signature, dt.Workflow("notes", input=Note, output=output))
    return told.value.found


def test_every_label_that_is_counted_is_shown() -> None:
    ((what, do),) = misfits(Few)
    assert "4 labels that the output's `topic` does not allow: `billing`, `cancellation`, `spam`, `technical`." in what
    assert do == "Add them to its type."
    ((what, do),) = misfits(Most)
    assert "a label that the output's `topic` does not allow: `technical`." in what
    assert do == "Add it to its type."
    ((what, _),) = misfits(Few, tuple(f"l{number}" for number in range(12)))
    assert what.endswith("`l9` and 2 more.")


def test_a_field_of_another_kind_is_told_once() -> None:
    ((what, do),) = misfits(Number)
    assert what == "gives a label, which the output's `topic` cannot hold."
    assert do == "Make it a `str` or a `Literal` of the labels."
