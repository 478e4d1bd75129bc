"""What changed from one Dataset to another: columns, rows by key, and how often each label is there."""

# ruff: noqa: S608 - cells are named by position, and every name or text from outside is quoted

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from drivetrain.core.datasets import SPLIT, ColumnV1, DatasetV1
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.sql import identifier
from drivetrain.datasets.staging import Bench

KEYS_SHOWN = 20
LABELS_MAX = 50
"""A column with more values is no label."""
LABEL_CHARS_MAX = 100


class LabelCount(msgspec.Struct, frozen=True):
    """How often one value is there."""

    value: str
    before: int
    after: int


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """From one Dataset to another."""

    before: str
    after: str
    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]
    columns_changed: tuple[str, ...]
    """Each as `NAME: FIELD OLD -> NEW`."""
    key: tuple[str, ...]
    """Columns that rows were told apart by; empty: whole rows, so that none can have changed."""
    rows_before: int
    rows_after: int
    added: int
    removed: int
    changed: int
    moved: int | None
    """Rows of both whose split is another; None where one has no splits or there is no key."""
    keys_added: tuple[str, ...]
    """The first of them, in order."""
    keys_removed: tuple[str, ...]
    keys_changed: tuple[str, ...]
    labels: dict[str, tuple[LabelCount, ...]]
    """Column -> its values; of the label that was asked for, or of every column of few values."""

    @property
    def is_same(self) -> bool:
        """Whether columns and rows are the same."""
        columns = self.columns_added or self.columns_removed or self.columns_changed
        return not (columns or self.added or self.removed or self.changed or self.moved)


def difference(
    bench: Bench, before: tuple[DatasetV1, str], after: tuple[DatasetV1, str], *, key: Sequence[str], label: str
) -> Difference:
    """before, after: a manifest and the FROM item of its rows. Raises: DrivetrainError."""
    (one, one_rows), (other, other_rows) = before, after
    common = [column.name for column in one.schema.columns if other.schema.column(column.name) is not None]
    keys = tuple(key) or _key_of(one, other)
    for name in keys:
        if name not in common:
            raise DrivetrainError(f"Not both have a column `{name}`.", do=did_you_mean(name, common))
    if label and label not in common:
        raise DrivetrainError(f"Not both have a column `{label}`.", do=did_you_mean(label, common))
    if not common:
        raise DrivetrainError(
            f"{one.name}@{one.number} and {other.name}@{other.number} have no column in common.",
            do="Compare two numbers of one Dataset.",
        )
    _prepare(bench, "one", before, common, keys)
    _prepare(bench, "other", after, common, keys)
    counts = {"added": 0, "removed": 0, "changed": 0, "moved": 0}
    shown: dict[str, tuple[str, ...]] = {"added": (), "removed": (), "changed": ()}
    for what, source in (
        ("added", "FROM other LEFT JOIN one USING (k) WHERE one.v IS NULL"),
        ("removed", "FROM one LEFT JOIN other USING (k) WHERE other.v IS NULL"),
        ("changed", "FROM one JOIN other USING (k) WHERE one.v <> other.v"),
    ):
        counts[what] = int(bench.one(f"SELECT count(*) {source}"))
        told = "other.told" if what == "added" else "one.told"
        first = bench.rows(f"SELECT {told} {source} ORDER BY 1 LIMIT {KEYS_SHOWN}")
        shown[what] = tuple(str(text) for (text,) in first)
    has_moved = bool(keys) and one.split is not None and other.split is not None
    if has_moved:
        counts["moved"] = int(bench.one("SELECT count(*) FROM one JOIN other USING (k) WHERE one.s <> other.s"))
    columns = _columns(one.all_columns, other.all_columns)
    return Difference(
        before=f"{one.name}@{one.number}", after=f"{other.name}@{other.number}",
        columns_added=columns[0], columns_removed=columns[1], columns_changed=columns[2], key=keys,
        rows_before=one.rows, rows_after=other.rows,
        added=counts["added"], removed=counts["removed"], changed=counts["changed"],
        moved=counts["moved"] if has_moved else None,
        keys_added=shown["added"], keys_removed=shown["removed"], keys_changed=shown["changed"],
        labels=_labels(bench, one_rows, other_rows, [label] if label else common, asked=bool(label)),
    )  # fmt: skip


def _key_of(one: DatasetV1, other: DatasetV1) -> tuple[str, ...]:
    """The columns that both are known to tell rows apart by; none where there are none."""

    def candidates(dataset: DatasetV1) -> list[tuple[str, ...]]:
        found = [(column.name,) for column in dataset.schema.columns if column.unique]
        return [*found, *dataset.schema.unique, *([dataset.split.key] if dataset.split and dataset.split.key else [])]

    others = candidates(other)
    return next((keys for keys in candidates(one) if keys in others), ())


def _prepare(bench: Bench, table: str, of: tuple[DatasetV1, str], common: Sequence[str], keys: Sequence[str]) -> None:
    """A table of key, hash of the common columns, split and the key in words."""
    dataset, rows = of
    values = _row_text(common)
    keyed = f"sha256({_row_text(keys)})" if keys else f"sha256({values})"
    told = " || ', ' || ".join(f"coalesce(left(CAST({identifier(one)} AS VARCHAR), 80), 'null')" for one in keys)
    split = identifier(SPLIT) if dataset.split is not None else "''"
    # Equal rows without a key are told apart by their turn, so that one copy less is one row removed.
    turn = f"row_number() OVER (PARTITION BY {keyed})"
    bench.connection.execute(
        f"CREATE TABLE {table} AS SELECT {keyed} || '.' || {turn} AS k, sha256({values}) AS v, {split} AS s, "
        f"{told or chr(39) * 2} AS told FROM {rows}"
    )


def _row_text(names: Sequence[str]) -> str:
    """Cells with their lengths, so that no two different rows give one text."""
    cells = (f"CAST({identifier(one)} AS VARCHAR)" for one in names)
    return " || ".join(f"coalesce(strlen({cell}) || ':' || {cell}, '-')" for cell in cells)


def _columns(
    one: Sequence[ColumnV1], other: Sequence[ColumnV1]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    before, after = {column.name: column for column in one}, {column.name: column for column in other}
    changed = []
    for name in before.keys() & after.keys():
        for field in ColumnV1.__struct_fields__:
            old, new = getattr(before[name], field), getattr(after[name], field)
            if old != new:
                changed.append(f"{name}: {field} {old!r} -> {new!r}")
    added = tuple(name for name in after if name not in before)
    return added, tuple(name for name in before if name not in after), tuple(sorted(changed))


def _labels(
    bench: Bench, one: str, other: str, names: Sequence[str], *, asked: bool
) -> dict[str, tuple[LabelCount, ...]]:
    found = {}
    for name in names:
        cell = f"left(coalesce(CAST({identifier(name)} AS VARCHAR), 'null'), {LABEL_CHARS_MAX})"
        both = f"SELECT {cell} AS x, 1 AS b, 0 AS a FROM {one} UNION ALL SELECT {cell}, 0, 1 FROM {other}"
        counts = list(
            bench.rows(
                f"SELECT x, sum(b), sum(a) FROM ({both}) GROUP BY x ORDER BY sum(a) DESC, x LIMIT {LABELS_MAX + 1}"
            )
        )
        total = sum(before + after for _, before, after in counts)
        if len(counts) <= LABELS_MAX and (asked or total >= 2 * len(counts) + 2):
            found[name] = tuple(LabelCount(str(x), int(before), int(after)) for x, before, after in counts)
        elif asked:
            raise DrivetrainError(
                f"Column `{name}` has more than {LABELS_MAX} values: it is no label.",
                do="Name a column with few values by `--label`.",
            )
    return found
