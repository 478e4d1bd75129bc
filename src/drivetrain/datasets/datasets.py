"""Datasets: frozen, numbered, checked selections of rows, made whole or not at all.

Owns the order in which one is made: stage, check, sample, split, write, publish, note in the control log. What each
step means stands in its own file. Called by the commands, and by rooms that read Datasets.
"""

# ruff: noqa: S608 - cells are named by position, and every name or text from outside is quoted

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.core.datasets import (
    NAME,
    SPLIT,
    SPLIT_GROUP,
    WEIGHT,
    DatasetV1,
    FileV1,
    QuarantineV1,
    Reference,
    SampleV1,
    SchemaV1,
    SplitV1,
    parse_reference,
)
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.sql import identifier, literal, literals
from drivetrain.datasets.calls import stage_calls
from drivetrain.datasets.checks import DatasetRefused, Found, Violation, check, settle
from drivetrain.datasets.content import measured, plain_cells
from drivetrain.datasets.diff import Difference, difference
from drivetrain.datasets.export import Export, write_export
from drivetrain.datasets.files import copy_file, find_file, stage_file
from drivetrain.datasets.numbers import Shelf
from drivetrain.datasets.sampling import sample
from drivetrain.datasets.schema import NOTHING_DECLARED, Declared
from drivetrain.datasets.sources import FromFile, FromQuery, Origin, Source, stage_query
from drivetrain.datasets.splits import assign, member_id
from drivetrain.datasets.staging import BATCH_ROWS, Bench, open_bench
from drivetrain.datasets.verify import Verified, verify
from drivetrain.lake.lake import Lake
from drivetrain.lineage.made import record_made
from drivetrain.ports.control import ControlLog
from drivetrain.ports.journal import Vault
from drivetrain.ports.tables import ObjectStore

if TYPE_CHECKING:
    import duckdb

EXPORTED = "exported"
"""The control log's kind of exports."""


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """A Dataset that was made, and what was left out of it."""

    dataset: DatasetV1
    quarantined: tuple[Violation, ...] = ()
    """The first of them."""


class Datasets:
    """The Datasets of a project.

    lake: where `FromQuery` and `FromCalls` ask; None: only files. vault: opens what Calls were asked and answered.
    root: the folder that files must be in. scratch: where rows are staged, `staging_folder` of a data folder;
    None: the system's place for that.
    """

    def __init__(
        self,
        lake: Lake | None,
        objects: ObjectStore,
        control: ControlLog,
        *,
        vault: Vault | None = None,
        root: Path = Path(),
        scratch: Path | None = None,
        actor: str = "",
        now_ns: Callable[[], int] = time.time_ns,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._lake = lake
        self._control = control
        self._vault = vault
        self._root = root
        self._scratch = scratch
        self._actor = actor
        self._now_ns = now_ns
        self._entropy = entropy
        self._shelf = Shelf(objects)

    def create(
        self,
        name: str,
        origin: Origin,
        *,
        declared: Declared = NOTHING_DECLARED,
        sampling: SampleV1 | None = None,
        split: SplitV1 | None = None,
        key: Sequence[str] = (),
        allow_quarantine: bool = False,
    ) -> Created:
        """The next number of a Dataset: checked, hashed, whole.

        key: columns that tell rows apart, for sampling; `split` has its own. A million rows of six columns cost
        about 10 s as CSV.
        Raises: DatasetRefused with every violation; DrivetrainError. Then nothing is left of it.
        """
        if NAME.fullmatch(name) is None:
            raise DrivetrainError(
                f"`{name[:100]}` is no name for a Dataset.",
                do="A name starts with a small letter and has at most 64 of a-z, 0-9, `_` and `-`.",
            )
        self._shelf.sweep(self._now_ns(), name)
        with open_bench(self._scratch) as bench:
            source = self._stage(bench, origin, declared)
            schema = settle(bench, source.staged, source.declared)
            _check_columns(schema, sampling, split, key)
            found = check(bench, source.staged, schema, referenced=self._files, now_ns=self._now_ns())
            quarantine = _quarantine(bench, name, found, allow_quarantine)
            inputs = [self._pinned(one) for one in source.inputs]
            inputs += [f"dataset:{one.references.rpartition('.')[0]}" for one in schema.columns if one.references]
            if sampling is not None:
                sampling = sample(bench, schema, sampling, key)
            if split is not None:
                inputs += self._split(bench, name, schema, split)
            made = DatasetV1(
                name=name, number=0, made_ns=self._now_ns(), made_by=self._actor, schema=schema,
                rows=int(bench.one("SELECT count(*) FROM kept")), content_hash="", files=(), origin=source.origin,
                inputs=tuple(sorted(dict.fromkeys(inputs))), split=split, sample=sampling, quarantine=quarantine,
            )  # fmt: skip
            return Created(dataset=self._publish(bench, made), quarantined=found.violations)

    def newest(self) -> list[DatasetV1]:
        """The newest number of every Dataset, by name."""
        return [self._shelf.read(Reference(name, numbers[-1])) for name, numbers in self._shelf.numbers().items()]

    def numbers(self, name: str) -> list[int]:
        """Every number of a Dataset, rising; none where there is no such Dataset."""
        return self._shelf.numbers(name).get(name, [])

    def show(self, reference: str) -> DatasetV1:
        """`golden` or `golden@3`. Raises: DrivetrainError."""
        return self._shelf.read(parse_reference(reference))

    def rows(self, reference: str, *, split: str | None = None) -> Iterator[dict[str, Any]]:
        """Rows in order, as {column: value}; times are UTC microseconds, dates ISO text, json is text.

        Raises: DrivetrainError.
        """
        dataset = self.show(reference)
        check_split(dataset, split)
        names = [one.name for one in dataset.all_columns]
        cells = plain_cells(dataset.all_columns, map(identifier, names))
        with open_bench(self._scratch) as bench:
            for row in bench.rows(f"SELECT {cells} FROM {self._read(dataset)}{_only(split)}"):
                yield dict(zip(names, row, strict=True))

    def relation(
        self, connection: duckdb.DuckDBPyConnection, reference: str, *, split: str | None = None
    ) -> duckdb.DuckDBPyRelation:
        """A Dataset's rows as a relation of that connection, which must be able to read the store's local files."""
        dataset = self.show(reference)
        check_split(dataset, split)
        return connection.sql(f"SELECT * FROM {self._read(dataset)}{_only(split)}")

    def diff(self, before: str, after: str, *, key: Sequence[str] = (), label: str = "") -> Difference:
        """What changed from one to the other. Raises: DrivetrainError."""
        one, other = self.show(before), self.show(after)
        with open_bench(self._scratch) as bench:
            return difference(bench, (one, self._read(one)), (other, self._read(other)), key=key, label=label)

    def verify(self, reference: str) -> Verified:
        """Whether files, rows, constraints and the control log agree with the manifest. Raises: DrivetrainError."""
        dataset = self.show(reference)
        with open_bench(self._scratch) as bench:
            return verify(bench, dataset, self._shelf, self._control.records(), referenced=self._files)

    def export(
        self, reference: str, to: Path, *, format: str, split: str | None = None, personal: bool = True
    ) -> Export:
        """Its rows as a file of another format, which is noted in the control log before it is there.

        personal: whether personal columns are part of it. Raises: DrivetrainError.
        """
        dataset = self.show(reference)
        check_split(dataset, split)
        with open_bench(self._scratch) as bench:
            source = f"{self._read(dataset)}{_only(split)}"
            return write_export(
                bench, dataset, source, to, format=format, personal=personal,
                noted=lambda facts: self._control.append(
                    kind=EXPORTED, actor=self._actor, subject=dataset.artifact,
                    body={**facts, "split": split or "", "to": to.name},
                ),
            )  # fmt: skip

    def _stage(self, bench: Bench, origin: Origin, declared: Declared) -> Source:
        if isinstance(origin, FromFile):
            path = find_file(origin.path, self._root, anywhere=origin.anywhere)
            copied = copy_file(bench, path)
            staged = stage_file(bench, copied)
            root = self._root.resolve()
            told = path.relative_to(root) if path.is_relative_to(root) else path
            inputs = (f"file:{told}@{copied.sha256}",)
            return Source(staged=staged, inputs=inputs, origin=origin.path, declared=declared)
        if self._lake is None:
            raise DrivetrainError("There is no lake to ask here.", do="Make the Dataset from a file.")
        if isinstance(origin, FromQuery):
            return stage_query(bench, self._lake, origin, declared)
        if self._vault is None:
            raise DrivetrainError("Calls cannot be opened here.", do="Make the Dataset from a query or a file.")
        return stage_calls(bench, self._lake, self._vault, origin, declared)

    def _pinned(self, artifact: str) -> str:
        """`dataset:golden` with the number that was read."""
        kind, _, name = artifact.partition(":")
        if kind != "dataset" or "@" in name:
            return artifact
        return self._shelf.read(Reference(name, None)).artifact

    def _files(self, reference: str) -> list[Path]:
        return [self._shelf.local(one) for one in self.show(reference).files]

    def _read(self, dataset: DatasetV1) -> str:
        return f"read_parquet({literals(str(self._shelf.local(one)) for one in dataset.files)})"

    def _split(self, bench: Bench, name: str, schema: SchemaV1, split: SplitV1) -> list[str]:
        """Fills `s` and `g` of `kept`; what it depends on besides the rows."""
        import arro3.core as arrow

        names = [one.name for one in schema.columns]
        keys = [*(split.key or names), *([split.group_by] if split.group_by else [])]
        columns = [column for one in keys if (column := schema.column(one)) is not None]
        cells = plain_cells(columns, (f"v{names.index(one)}" for one in keys))
        rows = list(bench.rows(f"SELECT {cells} FROM kept ORDER BY r"))
        width = len(split.key or names)
        for row, values in enumerate(rows, 1):
            if split.key and None in values[:width]:
                missing = split.key[values.index(None)]
                raise DrivetrainError(
                    f"Row {row} that passed has no {missing}, and rows are told apart by it.",
                    do=f"Say `nullable = false` for {missing} in the schema, or choose another --key.",
                )
        earlier, before = self._earlier(bench, name, split)
        grouped = [values[width] for values in rows] if split.group_by else None
        assigned = assign(split, [values[:width] for values in rows], grouped, earlier)
        bench.connection.execute("CREATE TABLE split AS SELECT r, '' AS s, '' AS g FROM kept LIMIT 0")
        numbers = [row for (row,) in bench.rows("SELECT r FROM kept ORDER BY r")]
        for start in range(0, len(assigned), BATCH_ROWS):
            some = assigned[start : start + BATCH_ROWS]
            table = arrow.Table.from_arrays(
                [
                    arrow.Array(numbers[start : start + BATCH_ROWS], type=arrow.DataType.int64()),
                    arrow.Array([one.split for one in some], type=arrow.DataType.utf8()),
                    arrow.Array([one.group for one in some], type=arrow.DataType.utf8()),
                ],
                names=["r", "s", "g"],
            )
            bench.connection.register("batch", table)
            bench.connection.execute("INSERT INTO split SELECT * FROM batch")
            bench.connection.unregister("batch")
        bench.connection.execute("CREATE TABLE parted AS SELECT * FROM kept JOIN split USING (r) ORDER BY r")
        bench.connection.execute("DROP TABLE kept")
        bench.connection.execute("ALTER TABLE parted RENAME TO kept")
        return before

    def _earlier(self, bench: Bench, name: str, split: SplitV1) -> tuple[dict[str, str], list[str]]:
        """Member id -> group id of the newest number that was split alike, and that number."""
        if not split.group_by or not split.key:
            return {}, []
        for number in reversed(self.numbers(name)):
            before = self._shelf.read(Reference(name, number))
            if before.split is None or _law(before.split) != _law(split):
                continue
            keys = [column for one in split.key if (column := before.schema.column(one)) is not None]
            cells = plain_cells(keys, (identifier(one.name) for one in keys))
            rows = bench.rows(f"SELECT {SPLIT_GROUP}, {cells} FROM {self._read(before)}")
            return {member_id(key): group for group, *key in rows}, [before.artifact]
        return {}, []

    def _publish(self, bench: Bench, made: DatasetV1) -> DatasetV1:
        import duckdb

        if not made.rows:
            raise DrivetrainError(
                "No row is left, and a Dataset has at least one.",
                do="Look at what was left out, or choose a larger share.",
            )
        files = {"rows": bench.folder / "rows.parquet"}
        cells = [f"v{place}" for place in range(len(made.schema.columns))]
        cells += ["w"] * (made.sample is not None) + ["s", "g"] * (made.split is not None)
        listed = ", ".join(
            f"{cell} AS {identifier(column.name)}" for cell, column in zip(cells, made.all_columns, strict=True)
        )
        try:
            bench.write_parquet(f"SELECT {listed} FROM kept ORDER BY r", files["rows"])
            if made.quarantine is not None:
                files["quarantine"] = bench.folder / "quarantine.parquet"
                quarantined = 'SELECT r AS "row", v.* EXCLUDE (r), whose FROM violations v LEFT JOIN whose USING (r)'
                bench.write_parquet(f"{quarantined} ORDER BY 1, 2, 3", files["quarantine"])
        except duckdb.IOException as error:
            raise DrivetrainError(
                f"The rows cannot be written: {str(error).splitlines()[0]}",
                looked=[str(bench.folder)],
                do="Make room on that disk.",
            ) from None
        written = f"FROM read_parquet({literal(str(files['rows']))})"
        whole = measured(bench, made, written)
        published = self._shelf.publish(whole, files, self._entropy(8).hex(), self._now_ns)
        try:
            self._note(published)
        except BaseException:
            self._shelf.withdraw(published)
            raise
        return published

    def _note(self, made: DatasetV1) -> None:
        record_made(
            self._control,
            made.artifact,
            at_ns=made.made_ns,
            inputs=made.inputs,
            facts={"rows": made.rows, "content_hash": made.content_hash},
            actor=self._actor,
        )


def check_split(dataset: DatasetV1, split: str | None) -> None:
    """Whether a Dataset has that split. Raises: DrivetrainError."""
    if split is None:
        return
    known = [name for name, _ in dataset.split.shares] if dataset.split is not None else []
    if split not in known:
        do = did_you_mean(split, known) if known else "It has no splits: make one with --split train=0.8,test=0.2."
        raise DrivetrainError(f"Dataset `{dataset.name}@{dataset.number}` has no split `{split}`.", do=do)


def _only(split: str | None) -> str:
    return "" if split is None else f" WHERE {SPLIT} = {literal(split)}"


def _law(split: SplitV1) -> tuple[Any, ...]:
    """What must be the same for groups to stay."""
    return split.seed, split.key, split.group_by, split.similar


def _check_columns(schema: SchemaV1, sampling: SampleV1 | None, split: SplitV1 | None, key: Sequence[str]) -> None:
    names = [one.name for one in schema.columns]
    added = [WEIGHT] * (sampling is not None) + [SPLIT, SPLIT_GROUP] * (split is not None)
    for name in names:
        if name.casefold() in added:
            raise DrivetrainError(f"The rows have a column `{name}`, which would be added.", do="Rename it.")
    asked = [*key, *(split.key if split else ()), *([split.group_by] if split and split.group_by else [])]
    for one in asked:
        if one not in names:
            raise DrivetrainError(f"There is no column `{one}`.", do=did_you_mean(one, names))
    if split is not None and not 0 < split.similar <= 1:
        raise DrivetrainError(f"Texts cannot be {split.similar:g} alike.", do="Write a number above 0, at most 1.")


def _quarantine(bench: Bench, name: str, found: Found, allowed: bool) -> QuarantineV1 | None:
    if not found.total:
        return None
    kept = bench.one("SELECT count(*) FROM kept")
    if not allowed or found.whole or not kept:
        raise DatasetRefused(name, found)
    return QuarantineV1(rows=found.bad_rows, violations=found.total, file=FileV1(path="", bytes=0, sha256=""))
