"""Trained models: what one immutable, numbered version is, what it takes and gives, and how a route names it.

Stored types carry their version in their tag. A field may be added at the end, with a default; any other change is a
new version, and the old one stays readable.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError

SCHEME = "models:/"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
REFERENCE = re.compile(r"models:/([a-z][a-z0-9_-]{0,63})(?:@([a-z][a-z0-9_-]{0,63})|/([1-9][0-9]{0,8}))")
"""`models:/NAME@ALIAS` or `models:/NAME/NUMBER`."""
FORMATS = ("linear-text", "onnx", "lightgbm", "xgboost")
TASKS = ("classification", "regression", "ranking")
DTYPES = ("text", "float", "int", "bool", "category")
"""Types of input columns; `category` is a text that is one of `Column.values`."""
MANIFEST, ALIASES, ARTIFACT = "model.json", "aliases.json", "artifact"
"""In a registry's folder: `NAME/aliases.json`, `NAME/NUMBER/model.json` and `NAME/NUMBER/artifact/...`."""
ALIAS_MOVED = "model.alias"
"""The control log's kind of a moved alias; the subject is `NAME@ALIAS`."""


class Reference(msgspec.Struct, frozen=True):
    """What a route wrote: a model by alias or by number."""

    name: str
    alias: str = ""
    number: int = 0
    """0 where it was named by alias."""

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}@{self.alias}" if self.alias else f"{SCHEME}{self.name}/{self.number}"


def is_trained(model: object) -> bool:
    """Whether a variant's `model` means a trained one, rightly written or not."""
    return isinstance(model, str) and model.startswith("models:")


def parse_reference(text: str) -> Reference:
    """Raises: DrivetrainError where it is neither `models:/NAME@ALIAS` nor `models:/NAME/NUMBER`."""
    found = REFERENCE.fullmatch(text)
    if found is None:
        raise DrivetrainError(
            f"`{text[:100]}` names no trained model.", do="Write `models:/NAME@ALIAS` or `models:/NAME/NUMBER`."
        )
    return Reference(found[1], found[2] or "", int(found[3] or 0))


class Column(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One input of a model."""

    name: str
    dtype: str
    """One of `DTYPES`."""
    nullable: bool = False
    """Whether null may stand there; a float's null is NaN to the model."""
    values: tuple[str, ...] = ()
    """Of a `category`: the texts it knows, in the order of their codes 0, 1, 2 ..."""


class Signature(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model takes, column by column, and what it gives."""

    task: str
    """One of `TASKS`."""
    inputs: tuple[Column, ...]
    """Of a ranking: the columns of one candidate."""
    target: str
    """What is predicted, as the output's field names it: `intent`."""
    labels: tuple[str, ...] = ()
    """Of a classification: the label of each class, in the order of the model's classes."""
    candidates: str = ""
    """Of a ranking: the input's field that lists the candidates."""
    candidate_id: str = ""
    """Of a ranking: the candidate's field that tells one from another."""


class FileV1(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an artifact."""

    path: str
    """Relative to the artifact's folder, with `/`."""
    bytes: int
    sha256: str


class ModelVersionV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="model.1"):
    """One version: written last, so that what has a manifest is whole."""

    name: str
    number: int
    format: str
    """One of `FORMATS`."""
    digest: str
    """SHA-256 over the format, the signature and every file's path and content, 64 hex digits."""
    signature: Signature
    files: tuple[FileV1, ...]
    made_ns: int
    made_by: str
    owner: str = ""
    licence: str = ""
    description: str = ""
    dataset: str = ""
    """`NAME@N` of the Dataset it was trained on; empty where nobody said."""
    dataset_hash: str = ""
    code_hash: str = ""
    """SHA-256 over the recipe: its name, parameters, seed and, of the project's own, its source."""
    environment_hash: str = ""
    """SHA-256 over Python's version, the machine's kind and the versions of the libraries that trained it."""
    recipe: str = ""
    seed: int = 0
    metrics: dict[str, float] = {}
    """As measured on rows that it was not trained on."""
    thresholds: dict[str, float] = {}
    """Stated risk, such as `0.02`, to the confidence from which its error stays below it."""
    report: str = ""
    """Id of the Report of its training."""
    source: str = ""
    """Of an import: the kind of thing it was, and the hash of it."""

    @property
    def artifact(self) -> str:
        """As lineage names it."""
        return f"model:{self.name}@{self.number}"


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """What a reference stood for when a Snapshot was made; moving the alias later changes nothing."""

    name: str
    number: int
    digest: str
    format: str
    signature: Signature
    thresholds: dict[str, float] = {}

    @property
    def id(self) -> str:
        """`NAME/NUMBER`."""
        return f"{self.name}/{self.number}"


class AliasesV1(msgspec.Struct, frozen=True, kw_only=True, tag="aliases.1"):
    """Where a model's aliases stand now; each move is in the control log too."""

    aliases: dict[str, int]


class Ranked(msgspec.Struct, frozen=True):
    """One candidate of a ranking."""

    id: Any
    score: float


class Scored(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model says of one row, as it is recorded."""

    label: str | None = None
    """Of a classification: the likeliest label."""
    confidence: float | None = None
    """Of a classification: its calibrated probability, from 0 to 1."""
    scores: dict[str, float] = {}
    """Of a classification: the likeliest labels (at most `SCORES_MAX`) with their probabilities, likeliest first."""
    value: float | None = None
    """Of a regression."""
    ranking: tuple[Ranked, ...] = ()
    """Of a ranking: every candidate, best first."""
    fault: str = ""
    """Why this row could not be scored; then nothing else is set."""


SCORES_MAX = 5

Row = list[Any]
"""Values in the order of `Signature.inputs`; of a ranking one `[id, values]` per candidate."""
ROW_DECODER: msgspec.msgpack.Decoder[Row] = msgspec.msgpack.Decoder(list[Any])
SCORED_DECODER: msgspec.json.Decoder[Scored] = msgspec.json.Decoder(Scored)
