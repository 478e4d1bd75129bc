"""A Dataset's manifest: what one frozen number of it holds, as stored beside its rows and readable for ever.

A field may be added at the end of a stored type, with a default; any other change is a new version.
"""

from __future__ import annotations

import re

import msgspec

from drivetrain.core.errors import DrivetrainError

TYPES = ("int64", "float64", "string", "bool", "timestamp", "date", "json")
"""Types of columns; `timestamp` is UTC with microseconds, `json` is text that holds one JSON value."""
NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
REFERENCE = re.compile(r"([a-z][a-z0-9_-]{0,63})(?:@([1-9][0-9]{0,8}))?")
SPLIT, SPLIT_GROUP, WEIGHT = "split", "split_group", "weight"
"""Columns that splitting and sampling add."""

Value = str | int | float | bool


class ColumnV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One column: its type and what each of its values must hold."""

    name: str
    type: str
    """One of `TYPES`."""
    nullable: bool = True
    minimum: Value | None = None
    """For `timestamp` and `date` as ISO text."""
    maximum: Value | None = None
    values: tuple[Value, ...] = ()
    """The only values that it may have; empty: any."""
    pattern: str = ""
    """A regular expression (RE2) that the whole text must match."""
    unique: bool = False
    references: str = ""
    """`DATASET@N.COLUMN`: every value is one of that column's."""
    fresh_within: str = ""
    """The oldest that its newest value may be when the Dataset is made: `6h`, `2d`."""
    personal: bool = False
    """Whether it says something about a person."""
    subject: bool = False
    """Whether it is a person's id, as payloads are encrypted under it: `drivetrain erase` removes its rows."""


class SchemaV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Columns in order, and what holds of several together."""

    columns: tuple[ColumnV1, ...]
    unique: tuple[tuple[str, ...], ...] = ()
    """Columns that together differ in every row."""
    timezone: str = ""
    """`UTC`: times without a zone are UTC; empty: such times are refused."""

    def column(self, name: str) -> ColumnV1 | None:
        """The column of that name."""
        return next((one for one in self.columns if one.name == name), None)


class SplitV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How rows came into `train`, `test` and so on."""

    shares: tuple[tuple[str, float], ...]
    seed: int = 0
    key: tuple[str, ...] = ()
    """Columns that tell one row from another; empty: all of them."""
    group_by: str = ""
    """Rows that are alike in this column never part; empty: every key for itself."""
    similar: float = 1.0
    """How alike texts must be, as Jaccard similarity of their shingles; 1: equal values only."""


class SampleV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How few rows were taken from many; each kept row carries `weight`, one over the chance that it was taken."""

    rows: int
    seed: int = 0
    by: str = ""
    """Column whose values are strata, with as equal a number of rows as they have; empty: one stratum."""
    of: int = 0
    """Rows that it was taken from."""


class FileV1(msgspec.Struct, frozen=True, kw_only=True):
    """One file beside the manifest."""

    path: str
    """In the object store."""
    bytes: int
    sha256: str


class QuarantineV1(msgspec.Struct, frozen=True, kw_only=True):
    """What was left out because it violated the schema."""

    rows: int
    violations: int
    file: FileV1


class ErasedRowsV1(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one person went; whose they were is not told."""

    at_ns: int
    rows: int
    violations: int = 0
    """Of the quarantine."""


class DatasetV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="dataset.1"):
    """One number of a Dataset: written last, so that what has a manifest is whole."""

    name: str
    number: int
    made_ns: int
    made_by: str
    schema: SchemaV1
    """Of the columns as they came; those that sampling and splitting added stand behind them."""
    rows: int
    content_hash: str
    """SHA-256 over types and rows in order, 64 hex digits; independent of how the files encode them."""
    files: tuple[FileV1, ...]
    inputs: tuple[str, ...] = ()
    """Artifacts that it was made from."""
    origin: str = ""
    """The query, file or filter that it was made from, as it was written."""
    split: SplitV1 | None = None
    split_rows: dict[str, int] = {}
    sample: SampleV1 | None = None
    quarantine: QuarantineV1 | None = None
    newest: dict[str, int] = {}
    """Timestamp column -> its newest value, UTC microseconds."""
    erased: tuple[ErasedRowsV1, ...] = ()
    """What went since it was made, oldest first."""
    hash_before_erasure: str = ""
    """`content_hash` as it was made; empty where nothing was erased."""

    @property
    def artifact(self) -> str:
        """Its id in lineage: `dataset:golden@3`."""
        return f"dataset:{self.name}@{self.number}"

    @property
    def all_columns(self) -> tuple[ColumnV1, ...]:
        """The schema's, and `weight`, `split` and `split_group` where they were added."""
        added: list[ColumnV1] = []
        if self.sample is not None:
            added.append(ColumnV1(name=WEIGHT, type="float64", nullable=False))
        if self.split is not None:
            added.append(ColumnV1(name=SPLIT, type="string", nullable=False))
            added.append(ColumnV1(name=SPLIT_GROUP, type="string", nullable=False))
        return (*self.schema.columns, *added)


class Reference(msgspec.Struct, frozen=True):
    """`golden` or `golden@3`, as people write it."""

    name: str
    number: int | None
    """None: the newest."""

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}@{self.number}"


def parse_reference(text: str) -> Reference:
    """`golden` or `golden@3`. Raises: DrivetrainError."""
    found = REFERENCE.fullmatch(text)
    if found is None:
        raise DrivetrainError(
            f"`{text[:100]}` names no Dataset.",
            do="Write NAME or NAME@NUMBER; a name starts with a small letter and has at most 64 of a-z, 0-9, `_`, `-`.",
        )
    return Reference(found[1], int(found[2]) if found[2] else None)
