"""What an import hands over: files in one of our formats with a signature, and what the original says of a sample."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.models import TASKS, Column, Row, Signature

DATASET = re.compile(r"[a-z][a-z0-9_-]{0,63}@[1-9][0-9]{0,8}")
TARGETS = {"classification": "label", "regression": "value", "ranking": "score"}
"""What is predicted where nobody says."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever imports says of a model."""

    name: str
    task: str = ""
    """One of `TASKS`; empty: a ranking where `candidates` are named, else as the model tells it."""
    candidates: str = ""
    """Of a ranking: the input's field that lists the candidates."""
    candidate_id: str = ""
    """Of a ranking: the candidate's field that tells one from another."""
    target: str = ""
    """As the output's field names it; empty: `label` or `value`."""
    labels: tuple[str, ...] = ()
    """In the order of the model's classes; empty: as the model tells them."""
    columns: tuple[str, ...] = ()
    """Names of the inputs in order; empty: as the model tells them."""
    owner: str = ""
    licence: str = ""
    description: str = ""
    dataset: str = ""
    """`NAME@N` that it was trained on."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A model that was read or converted, and is not accepted yet."""

    format: str
    signature: Signature
    files: Mapping[str, bytes | Path]
    source: str
    """The kind of thing it was, and the hash of it where it was a file."""
    inputs: tuple[str, ...] = ()
    """Artifacts that it was made from."""


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """A sample, and what the original says of it."""

    rows: Sequence[Row]
    labels: Sequence[str] = ()
    """Of a classification: the label of each row."""
    probabilities: Sequence[Sequence[float]] = ()
    """Of each row, in the order of the signature's labels."""
    values: Sequence[float] = ()
    """Of a regression; of a ranking the score of each row as a candidate."""


class FittedBlock(msgspec.Struct, frozen=True, kw_only=True):
    """One fitted TF-IDF vectorizer: fields as `linear-text` calls them."""

    analyzer: str
    ngrams: tuple[int, int]
    terms: tuple[str, ...]
    idf: Any
    """Float array (terms,), or None."""
    use_idf: bool
    lowercase: bool
    strip_accents: str
    stop_words: tuple[str, ...]
    binary: bool
    sublinear_tf: bool
    norm: str
    weight: float


class FittedText(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted linear model over texts."""

    blocks: tuple[FittedBlock, ...]
    labels: tuple[str, ...]
    weights: Any
    """Float array (terms of all blocks, labels)."""
    bias: Any
    """Float array (labels,)."""
    link: str


class TextFormat(Protocol):
    """Writes and reads `linear-text`, which another room owns."""

    def write(self, model: FittedText) -> Mapping[str, bytes]:
        """Path -> content. Raises: DrivetrainError."""

    def labels(self, folder: Path) -> tuple[str, ...]:
        """Of a checked model in a folder. Raises: DrivetrainError."""


def signature_of(
    terms: Terms, task: str, columns: Sequence[Column], labels: Sequence[str] = (), *, told: Sequence[str] = ()
) -> Signature:
    """told: the labels that the model itself knows. Raises: DrivetrainError where names do not fit the model."""
    names = terms.columns
    if names and len(names) != len(columns):
        raise DrivetrainError(
            f"The model takes {len(columns)} columns, and {len(names)} are named: {', '.join(names[:20])}.",
            do="Name each in the order in which it was trained: `--columns a,b,c`.",
        )
    named = [msgspec.structs.replace(one, name=name) for one, name in zip(columns, names or (), strict=bool(names))]
    given = terms.labels or tuple(labels) or tuple(told)
    if task == "classification":
        if not given:
            raise DrivetrainError(
                "The model does not tell the labels of its classes.",
                do="Give each in the order of the classes: `--label a --label b`, or `labels=[...]` in Python.",
            )
        if told and (len(given) != len(told) or (set(given) != set(told) and not _are_codes(told))):
            raise DrivetrainError(
                f"The model knows the labels {_few(told)}, and {_few(given)} are given.",
                do="Leave them out, or give as many in the order of its classes.",
            )
        if told and set(given) == set(told):
            given = tuple(told)
    return Signature(
        task=task,
        inputs=tuple(named or columns),
        target=terms.target or TARGETS[task],
        labels=tuple(given) if task == "classification" else (),
        candidates=terms.candidates,
        candidate_id=terms.candidate_id,
    )


def task_of(terms: Terms, told: str) -> str:
    """told: by the model itself. Raises: DrivetrainError where what is said of it makes no task."""
    task = terms.task or ("ranking" if terms.candidates or terms.candidate_id else told)
    if task not in TASKS:
        raise DrivetrainError(f"`{task[:50]}` is no task of a model.", do=did_you_mean(task, TASKS))
    if task == "ranking" and not (terms.candidates and terms.candidate_id):
        raise DrivetrainError(
            "A ranking says which field of the input lists its candidates, and which of theirs tells them apart.",
            do="Name both: `--candidates items --candidate-id sku`.",
        )
    if task != "ranking" and (terms.candidates or terms.candidate_id):
        raise DrivetrainError(f"A {task} has no candidates.", do="Leave them out, or say `--task ranking`.")
    if terms.labels and task != "classification":
        raise DrivetrainError(f"A {task} has no labels.", do="Leave them out.")
    return task


def _are_codes(labels: Sequence[str]) -> bool:
    """Whether they are numbers, for which people have names."""
    return all(one.lstrip("-").isdecimal() for one in labels)


def _few(names: Sequence[str]) -> str:
    return ", ".join(f"`{one[:40]}`" for one in names[:8]) + (" ..." if len(names) > 8 else "")
