"""The rows of a training: which columns of a Dataset are inputs, which rows train, and which are held out.

Owns that no row of the test split is among those that train, and that nobody's id is ever an input. Knows nothing of
models. Called by `training`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.datasets import SPLIT, SPLIT_GROUP, WEIGHT, ColumnV1, DatasetV1
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.models import Column
from drivetrain.core.recipes import (
    Examples,
    Recipe,
    TabularClassification,
    TabularRegression,
    TextClassification,
    TrainedModel,
)
from drivetrain.datasets import Datasets

ROWS_MAX = 5_000_000
CELLS_MAX = 50_000_000
"""Both are held in memory as Python's values, about 50 bytes each."""
CLASSES_MAX = 2_000
"""More different labels are a number or an id."""
LABEL_MAX = 1e100
"""Of a number that is predicted: the squares of errors, and their sum, stay finite."""
CATEGORIES_MAX = 1_000
"""A text column with more different values is no category: it would be learned by heart."""
CATEGORY_ROWS_MIN = 2
"""A value that fewer training rows have is treated as unknown, and is not written into the model."""
PERSONAL_ROWS_MIN = 10
"""A personal segment's value that fewer rows have is not told by itself: a Report is never erased."""
RARE = "(rare)"
HELD_OUT_SHARE = 0.2
OUTCOME = "outcome_"
"""What the column of an Outcome begins with, in a Dataset made from Calls."""
CALL_ID, INPUT = "call_id", "input"


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one side."""

    examples: Examples
    numbers: tuple[int, ...]
    """Row numbers in the Dataset, the first is 1."""
    groups: tuple[str, ...] | None
    """What must not part between folds, per row; None: every row for itself."""
    segments: Mapping[str, tuple[str, ...]]
    """Column -> its value as text, per row."""

    @property
    def size(self) -> int:
        """How many rows."""
        return len(self.numbers)


class TrainingData(msgspec.Struct, frozen=True, kw_only=True):
    """Both sides, and what was decided about them."""

    dataset: DatasetV1
    task: str
    columns: tuple[Column, ...]
    """The inputs, as a model's signature has them."""
    paths: tuple[str, ...]
    """Where the inputs stand in the Dataset: a column, or a field within the JSON that it holds."""
    target: str
    """The label's column, as an output's field names it."""
    train: Part
    test: Part
    held_out: str = ""
    """How the test rows were chosen, where the Dataset has no such split."""
    left_out: Mapping[str, str] = {}
    """Column -> why it is no input."""
    notices: tuple[str, ...] = ()
    """What a person should know of the rows."""


def task_of(recipe: object) -> str:
    """`classification` or `regression`."""
    if isinstance(recipe, Recipe):
        return recipe.task
    return "regression" if isinstance(recipe, TabularRegression) else "classification"


def training_data(
    datasets: Datasets, declared: TrainedModel, *, reading: Callable[[], object] = lambda: None
) -> TrainingData:
    """The rows that `declared` names. Costs a pass over the Dataset, about 5 s per million rows of ten columns.

    reading: called before the first row is read, once all that can be known without rows is right.
    Raises: DrivetrainError where a column is missing, or a side is empty.
    """
    dataset = datasets.show(declared.dataset)
    wanted = _Wanted(dataset, declared)
    if dataset.rows > ROWS_MAX or dataset.rows * len(wanted.paths) > CELLS_MAX:
        raise DrivetrainError(
            f"{dataset.artifact} has {dataset.rows:,} rows with {len(wanted.paths)} columns to read; a training takes "
            f"at most {ROWS_MAX:,} rows and {CELLS_MAX:,} cells.",
            do="Make a Dataset of a sample: `drivetrain dataset create NAME --sample ROWS`.",
        )
    reading()
    rows = _Rows(wanted)
    for number, row in enumerate(datasets.rows(f"{dataset.name}@{dataset.number}"), 1):
        rows.take(number, row)
    return rows.parted()


class _Wanted:
    """Which columns are read, and as what."""

    def __init__(self, dataset: DatasetV1, declared: TrainedModel) -> None:
        self.dataset = dataset
        self.declared = declared
        self.recipe = declared.recipe
        self.task = task_of(self.recipe)
        self.known = {one.name: one for one in dataset.all_columns}
        self.from_calls = CALL_ID in self.known and INPUT in self.known
        self.left_out: dict[str, str] = {}
        self.notices: list[str] = []
        label = self._check(declared.label, "label")
        if label.personal:
            self.notices.append(f"`{declared.label}` is personal, and its values stay in the model as labels")
        self.target = _last(declared.label).removeprefix(OUTCOME if self.from_calls else "")
        self.is_text = isinstance(self.recipe, TextClassification)
        self.has_text = self.is_text or isinstance(self.recipe, Recipe)
        self.inputs = self._inputs()
        self.weight = declared.weight or (WEIGHT if dataset.sample is not None else "")
        self.group = declared.group_by or (SPLIT_GROUP if dataset.split is not None else "")
        for name, what in ((self.weight, "weight"), (self.group, "group_by")):
            if name:
                self._check(name, what)
        self.rare: set[str] = set()
        for name in declared.segments:
            column = self._check(name, "segment")
            if column.subject:
                raise DrivetrainError(
                    f"`{name}` is a person's id, and a Report, which nothing erases, would list it.",
                    do="Take a segment that many people share.",
                )
            if column.personal:
                self.rare.add(name)
        self.given_split = SPLIT in self.known and self.known[SPLIT].type == "string"
        self.paths = tuple(dict.fromkeys([declared.label, *self.inputs, *declared.segments]))

    def _inputs(self) -> tuple[str, ...]:
        """Paths of the inputs, in order."""
        declared, recipe = self.declared, self.recipe
        if isinstance(recipe, TextClassification):
            if not declared.text:
                raise DrivetrainError(
                    f"`{declared.name}` is a text classification, and nobody said which column is the text.",
                    looked=[self.dataset.artifact],
                    do=f"Say `text=` or `--text`: one of {', '.join(self._texts())}.",
                )
            named: tuple[str, ...] = (declared.text,)
        elif isinstance(recipe, TabularClassification | TabularRegression) and recipe.columns:
            named = tuple(recipe.columns)
        else:
            named = self._every()
        names: dict[str, str] = {}
        for path in named:
            column = self._check(path, "input")
            if column.subject:
                raise DrivetrainError(
                    f"`{path}` of {self.dataset.artifact} is a person's id, which no model is trained on.",
                    do="Leave it out; to keep one person's rows together say `group_by=`.",
                )
            if path == declared.label:
                raise DrivetrainError(f"`{path}` is the label, so it cannot be an input.", do="Leave it out.")
            if column.personal:
                self.notices.append(
                    f"`{path}` is personal: what the model keeps of it (terms, categories) stays after "
                    "`drivetrain erase`, until it is trained anew"
                )
            before = names.setdefault(_last(path), path)
            if before != path:
                raise DrivetrainError(
                    f"The inputs `{before}` and `{path}` would both be called `{_last(path)}`.",
                    do="Rename one of them in the Dataset.",
                )
        return named

    def _every(self) -> tuple[str, ...]:
        """Every column that may be an input."""
        declared, found = self.declared, []
        keys = {one for one in (self.dataset.split.key if self.dataset.split else ()) if len(self.known) > 1}
        if self.from_calls:
            raise DrivetrainError(
                f"{self.dataset.artifact} was made from Calls, and nobody said which of their fields are inputs.",
                do=f"Name them in the recipe's `columns`, as `{INPUT}.FIELD`.",
            )
        for one in self.dataset.all_columns:
            name = one.name
            if self.has_text and name == declared.text:
                found.append(name)
                continue
            why = ""
            if name in (declared.label, declared.weight, declared.group_by, SPLIT, SPLIT_GROUP, WEIGHT):
                continue
            if one.subject or one.personal:
                why = "personal"
            elif one.unique or name in keys:
                why = "tells rows apart"
            elif one.type in ("timestamp", "date", "json"):
                why = f"a {one.type}"
            if why:
                self.left_out[name] = why
            else:
                found.append(name)
        if not found:
            raise DrivetrainError(
                f"No column of {self.dataset.artifact} can be an input of `{declared.name}`.",
                looked=[f"{name} ({why})" for name, why in self.left_out.items()],
                do="Name the columns in the recipe, or make a Dataset that has some.",
            )
        return tuple(found)

    def _texts(self) -> list[str]:
        return [one.name for one in self.dataset.schema.columns if one.type == "string"] or ["(no column is a text)"]

    def _check(self, path: str, what: str) -> ColumnV1:
        """The column that a path begins with. Raises: DrivetrainError where there is none."""
        if path in self.known:
            return self.known[path]
        head, dot, _ = path.partition(".")
        column = self.known.get(head)
        if column is None or not dot:
            raise DrivetrainError(
                f"{self.dataset.artifact} has no column `{path}`, which is the {what} of `{self.declared.name}`.",
                looked=list(self.known),
                do=did_you_mean(path, self.known),
            )
        if column.type not in ("json", "string"):
            raise DrivetrainError(
                f"`{path}` means a field within `{head}`, which is {column.type} and has none.",
                do="Name the column alone.",
            )
        return column


class _Rows:
    """Rows as they are read, and how they part."""

    def __init__(self, wanted: _Wanted) -> None:
        self.wanted = wanted
        self.values: dict[str, list[Any]] = {path: [] for path in wanted.paths}
        self.numbers: list[int] = []
        self.ids: list[str] = []
        self.weights: list[float] = []
        self.groups: list[str] = []
        """Empty where a row has none: it is a group of its own."""
        self.splits: list[str] = []
        self.without_label = 0
        self.without_text = 0

    def take(self, number: int, row: Mapping[str, Any]) -> None:
        """One row of the Dataset."""
        wanted, cells = self.wanted, Cells(row)
        label = cells.at(wanted.declared.label)
        if label is None:
            self.without_label += 1
            return
        if wanted.is_text and not isinstance(cells.at(wanted.inputs[0]), str):
            self.without_text += 1
            return
        for path, values in self.values.items():
            values.append(cells.at(path))
        self.numbers.append(number)
        self.ids.append(str(row[CALL_ID]) if wanted.from_calls else str(number))
        if wanted.weight:
            self.weights.append(_weight(cells.at(wanted.weight), wanted.weight, number))
        if wanted.group:
            self.groups.append(_text(cells.at(wanted.group)))
        if wanted.given_split:
            self.splits.append(_text(row[SPLIT]))

    def parted(self) -> TrainingData:
        """Both sides. Raises: DrivetrainError where one is empty."""
        wanted, declared = self.wanted, self.wanted.declared
        notices = [*wanted.notices]
        if self.without_label:
            notices.append(f"{self.without_label:,} rows without a label were left out")
        if self.without_text:
            notices.append(f"{self.without_text:,} rows without a text were left out")
        if alone := self.groups.count(""):
            notices.append(f"{alone:,} rows without `{wanted.group}` count as groups of their own")
        held_out, is_test = "", [split == declared.test for split in self.splits]
        if not any(is_test):
            is_test = [_is_held_out(self._unit(place)) for place in range(len(self.numbers))]
            held_out = (
                f"{wanted.dataset.artifact} has no split `{declared.test}`, so {HELD_OUT_SHARE * 100:g} % of the rows "
                "were held out, by a hash of their inputs"
            )
        train = [place for place, test in enumerate(is_test) if not test]
        test = [place for place, test in enumerate(is_test) if test]
        if not train or not test:
            raise self._one_sided(len(train), len(test), is_given=not held_out)
        labels = self._labels(train)
        columns = self._columns(train)
        shared = self._shared(train, test)
        if shared:
            notices.append(f"{shared:,} of {len(test):,} test rows have the same inputs as a row that trains")
        return TrainingData(
            dataset=wanted.dataset,
            task=wanted.task,
            columns=columns,
            paths=tuple(path for path in wanted.inputs if path not in wanted.left_out),
            target=wanted.target,
            train=self._part(train, columns, labels),
            test=self._part(test, columns, labels),
            held_out=held_out,
            left_out=wanted.left_out,
            notices=tuple(notices),
        )

    def _one_sided(self, train: int, test: int, *, is_given: bool) -> DrivetrainError:
        """Why one side has no row. is_given: whether the Dataset says which rows test."""
        wanted, rows = self.wanted, train + test
        what = f"{wanted.dataset.artifact} leaves {train:,} rows to train and {test:,} to test `{wanted.declared.name}`"
        if not rows:
            left = {"label": self.without_label, "text": self.without_text}
            return DrivetrainError(
                f"{what}.",
                looked=[f"{count:,} rows without a {name}" for name, count in left.items() if count],
                do=f"Make a Dataset with rows that have a `{wanted.declared.label}`.",
            )
        if is_given:
            return DrivetrainError(
                f"{what}: every row is of the split `{wanted.declared.test}`.",
                do="Make a Dataset with `--split train=0.8,test=0.2`.",
            )
        values = len({msgspec.json.encode(self._unit(place)) for place in range(rows)})
        by = f"`{wanted.group}`" if wanted.group else f"the input {', '.join(f'`{one}`' for one in wanted.inputs[:5])}"
        alike = "so all of them are one group" if values == 1 else "and rows of one value stay on one side"
        if wanted.declared.group_by:
            do = "Leave out --group-by (`group_by=`), or name a column with more values."
        else:
            do = "Make a Dataset with more different rows, or with `--split train=0.8,test=0.2`."
        return DrivetrainError(
            f"{what}: {by} has {values:,} value{'s' if values != 1 else ''} in {rows:,} rows, {alike}.", do=do
        )

    def _part(self, places: Sequence[int], columns: Sequence[Column], labels: Sequence[Any]) -> Part:
        wanted, paths = self.wanted, {_last(path): path for path in self.wanted.inputs}
        examples = Examples(
            columns={one.name: [self.values[paths[one.name]][place] for place in places] for one in columns},
            labels=[labels[place] for place in places],
            weights=[self.weights[place] for place in places] if wanted.weight else None,
            ids=[self.ids[place] for place in places],
        )
        return Part(
            examples=examples,
            numbers=tuple(self.numbers[place] for place in places),
            groups=tuple(self._group(place) for place in places) if wanted.group else None,
            segments={name: self._segment(name, places) for name in wanted.declared.segments},
        )

    def _segment(self, name: str, places: Sequence[int]) -> tuple[str, ...]:
        """A column's values as text; of a personal one only those that several rows share."""
        values = [_text(self.values[name][place]) for place in places]
        if name not in self.wanted.rare:
            return tuple(values)
        counts = Counter(values)
        return tuple(value if counts[value] >= PERSONAL_ROWS_MIN else RARE for value in values)

    def _labels(self, train: Sequence[int]) -> list[Any]:
        """Texts of a classification, numbers of a regression, of every row."""
        wanted, name = self.wanted, self.wanted.declared.label
        values = self.values[name]
        if wanted.task == "regression":
            for place, value in enumerate(values):
                if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LABEL_MAX:
                    raise DrivetrainError(
                        f"Row {self.numbers[place]} of {wanted.dataset.artifact} has no number as `{name}`, and a "
                        "regression predicts one.",
                        do="Take a classification, or another column.",
                    )
            return [float(value) for value in values]
        labels = [_text(value) for value in values]
        classes = {labels[place] for place in train}
        if not 2 <= len(classes) <= CLASSES_MAX:
            raise DrivetrainError(
                f"`{name}` has {len(classes):,} different values in the rows that train; a classification takes 2 to "
                f"{CLASSES_MAX:,}.",
                looked=[wanted.dataset.artifact],
                do="Take a regression for numbers." if len(classes) > 1 else "Collect rows of another class.",
            )
        return labels

    def _columns(self, train: Sequence[int]) -> tuple[Column, ...]:
        """Inputs with the types that the rows that train have; what cannot be one is left out."""
        wanted, found = self.wanted, []
        given = isinstance(wanted.recipe, TabularClassification | TabularRegression) and bool(wanted.recipe.columns)
        for path in wanted.inputs:
            values = [self.values[path][place] for place in train]
            nullable = None in self.values[path]
            whole = path in wanted.known and wanted.known[path].type == "int64"
            column, why = _column(
                _last(path), values, nullable, text=wanted.has_text and path == wanted.declared.text, whole=whole
            )
            if column is None and isinstance(wanted.recipe, Recipe) and why.startswith("text"):
                column = Column(name=_last(path), dtype="text", nullable=True)
            if column is not None:
                found.append(column)
            elif given:
                raise DrivetrainError(
                    f"`{path}` of {wanted.dataset.artifact} cannot be an input: {why}.", do="Leave it out."
                )
            else:
                wanted.left_out[path] = why
        if not found:
            raise DrivetrainError(
                f"No column of {wanted.dataset.artifact} is left as an input of `{wanted.declared.name}`.",
                looked=[f"{name} ({why})" for name, why in wanted.left_out.items()],
                do="Make a Dataset with numbers or categories.",
            )
        return tuple(found)

    def _unit(self, place: int) -> Any:
        """What parts as one: a group, or rows with the same inputs."""
        if self.groups and self.groups[place]:
            return self.groups[place]
        return [self.values[path][place] for path in self.wanted.inputs]

    def _group(self, place: int) -> str:
        """What must not part between folds; of a row without a group no other row has it."""
        return self.groups[place] or f"\0{self.numbers[place]}"

    def _shared(self, train: Sequence[int], test: Sequence[int]) -> int:
        """How many test rows have the inputs of a row that trains."""
        keys = [msgspec.json.encode([self.values[path][place] for path in self.wanted.inputs]) for place in train]
        seen = set(keys)
        return sum(
            msgspec.json.encode([self.values[path][place] for path in self.wanted.inputs]) in seen for place in test
        )


class Cells:
    """One row's values by path; JSON is read once."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self._parsed: dict[str, Any] = {}

    def at(self, path: str) -> Any:
        """The value of a column, or of a field within the JSON that a column holds; None where there is none."""
        if path in self._row:
            return self._row[path]
        head, *fields = path.split(".")
        if head not in self._parsed:
            try:
                self._parsed[head] = parse_json((self._row[head] or "null").encode())
            except MalformedJson:
                self._parsed[head] = None
        value = self._parsed[head]
        for field in fields:
            value = value.get(field) if isinstance(value, dict) else None
        return value


def _column(
    name: str, values: Collection[Any], nullable: bool, *, text: bool, whole: bool
) -> tuple[Column | None, str]:
    """A column by the values that train, or why there is none.

    whole: whether only whole numbers can come; a field of JSON is 3 now and 3.5 the next time.
    """
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if text:
        return Column(name=name, dtype="text", nullable=False), ""
    if not kinds:
        return None, "empty in every row that trains"
    if kinds == {bool}:
        return Column(name=name, dtype="bool", nullable=nullable), ""
    if kinds == {int} and whole:
        return Column(name=name, dtype="int", nullable=nullable), ""
    if kinds <= {int, float}:
        return Column(name=name, dtype="float", nullable=nullable), ""
    if kinds != {str}:
        return None, "neither numbers, truth values nor texts"
    counts = Counter(present)
    known = tuple(sorted(value for value, count in counts.items() if count >= CATEGORY_ROWS_MIN))
    if len(known) > CATEGORIES_MAX or len(counts) > max(CATEGORIES_MAX, len(present) // 2):
        return None, f"text with {len(counts):,} different values, which is no category"
    if not known:
        return None, "text that is another in every row, which is no category"
    # A value that nobody has seen counts as missing, so that a new country does not stop a Call.
    return Column(name=name, dtype="category", nullable=True, values=known), ""


def _is_held_out(unit: Any) -> bool:
    """Whether rows of this unit test: the same for every seed and however the Dataset grows."""
    digest = hashlib.sha256(msgspec.json.encode(unit)).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def _last(path: str) -> str:
    """The name that a path's value has by itself."""
    return path.rpartition(".")[2]


def _text(value: Any) -> str:
    """A value as a label or a segment: `true`, `3`, `2.5`; of what is missing an empty text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _weight(value: Any, name: str, number: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise DrivetrainError(
            f"Row {number} has no weight above 0 as `{name}`.", do="Correct the Dataset, or name another column."
        )
    return float(value)


def batches(part: Part, columns: Sequence[Column], size: int) -> Iterator[list[list[Any]]]:
    """Rows as a scorer takes them: values in the order of `columns`, `size` at a time."""
    listed = [part.examples.columns[one.name] for one in columns]
    for start in range(0, part.size, size):
        yield [[values[place] for values in listed] for place in range(start, min(start + size, part.size))]
