"""Rows and results: what fits a column, what does not and why, and that one bad row harms no other."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column, Pinned, Ranked, Scored, Signature
from drivetrain.inference.rows import CANDIDATES_MAX, KINDS, RowFailed
from drivetrain.inference.scorers import TableScorer


class Sum:
    """A model whose number is the sum of a row; above a hundred it fails, and at 99 its number is none."""

    def __init__(self, kinds: Sequence[str], *, labels: int = 1) -> None:
        self.kinds = kinds
        self.labels = labels
        self.batches: list[int] = []

    def predict(self, values: Sequence[list[Any]]) -> Any:
        self.batches.append(len(values))
        sums = np.array([sum(row) for row in values], dtype=np.float64)
        if (sums > 100).any():
            raise RowFailed("too much")
        sums[sums == 99] = np.nan
        return np.repeat(sums[:, None], self.labels, axis=1) if self.labels > 1 else sums[:, None]


def pinned(*columns: Column, task: str = "regression", labels: tuple[str, ...] = ()) -> Pinned:
    ranking = {"candidates": "shops", "candidate_id": "shop"} if task == "ranking" else {}
    signature = Signature(task=task, inputs=columns, target="t", labels=labels, **ranking)
    return Pinned(name="m", number=3, digest="", format="onnx", signature=signature)


class Echo:
    """A model of one column that keeps what it was given."""

    def __init__(self, kind: str) -> None:
        self.kinds = [kind]
        self.given: list[Any] = []

    def predict(self, values: Sequence[list[Any]]) -> Any:
        self.given += [row[0] for row in values]
        return np.zeros((len(values), 1))


def read(column: Column, kind: str, value: Any) -> Any:
    """What the model gets for a value, or the fault."""
    echo = Echo(kind)
    (scored,) = TableScorer(pinned(column), echo).score([[value]])
    assert bool(scored.fault) != bool(echo.given)
    return scored.fault or echo.given[0]


FLOAT, INT, BOOL = (Column(name="x", dtype=dtype) for dtype in ("float", "int", "bool"))
SHOP = Column(name="shop", dtype="category", values=("a", "b"))
TEXT = Column(name="x", dtype="text")


@pytest.mark.parametrize(
    ("column", "kind", "value", "given"),
    [
        (FLOAT, "float64", 1.5, 1.5),
        (FLOAT, "float64", 3, 3.0),
        (FLOAT, "float32", -3.4e38, -3.4e38),
        (INT, "float32", 7, 7),
        (INT, "float64", -(2**53), -(2**53)),
        (INT, "int64", 2**63 - 1, 2**63 - 1),
        (INT, "int64", -(2**63), -(2**63)),
        (INT, "int32", -(2**31), -(2**31)),
        (INT, "bool", 1, 1),
        (BOOL, "float32", True, 1),
        (BOOL, "bool", False, 0),
        (SHOP, "float64", "b", 1),
        (SHOP, "int64", "a", 0),
        (SHOP, "string", "b", "b"),
        (TEXT, "string", "", ""),
    ],
)
def test_what_fits_reaches_the_model(column: Column, kind: str, value: Any, given: Any) -> None:
    got = read(column, kind, value)
    assert got == given
    assert type(got) is type(given)


@pytest.mark.parametrize(
    ("column", "kind", "value", "fault"),
    [
        (FLOAT, "float64", None, "`x` is null, and the model takes no null there."),
        (FLOAT, "float64", math.nan, "`x` is null, and the model takes no null there."),
        (FLOAT, "float64", math.inf, "`x` is inf, which is not finite."),
        (FLOAT, "float64", -math.inf, "`x` is -inf, which is not finite."),
        (FLOAT, "float64", 10**400, "`x` is a number of hundreds of digits, which is not finite."),
        (FLOAT, "float32", 3.5e38, "`x` is 3.5e+38, which is beyond what the model's float32 holds."),
        (FLOAT, "float64", True, "`x` has to be a number: True."),
        (FLOAT, "float64", "1", '`x` has to be a number: "1".'),
        (FLOAT, "float64", [1], "`x` has to be a number: [1]."),
        (INT, "int64", 3.0, "`x` has to be a whole number: 3.0."),
        (INT, "int64", False, "`x` has to be a whole number: False."),
        (INT, "int64", None, "`x` is null, and the model takes no null there."),
        (INT, "int32", 2**31, "`x` is 2147483648; the model takes -2,147,483,648 to 2,147,483,647."),
        (INT, "int64", 2**63, f"`x` is {2**63}; the model takes {-(2**63):,} to {2**63 - 1:,}."),
        (INT, "float64", 2**53 + 1, f"`x` is {2**53 + 1}; the model takes {-(2**53):,} to {2**53:,}."),
        (INT, "bool", 2, "`x` is 2; the model takes 0 to 1."),
        (BOOL, "float64", 1, "`x` has to be true or false: 1."),
        (BOOL, "bool", "true", '`x` has to be true or false: "true".'),
        (SHOP, "float64", "c", '`shop` is "c", a value that the model never saw.'),
        (SHOP, "float64", 1, "`shop` has to be a text: 1."),
        (SHOP, "string", None, "`shop` is null, and the model takes no null there."),
        (TEXT, "string", b"x", "`x` has to be a text: b'x'."),
    ],
)
def test_what_does_not_fit_is_named_with_its_column(column: Column, kind: str, value: Any, fault: str) -> None:
    assert read(column, kind, value) == fault


def test_what_may_be_null_is_nan_or_an_empty_text() -> None:
    for dtype, kind in (("float", "float64"), ("int", "float32"), ("bool", "float32")):
        assert math.isnan(read(Column(name="x", dtype=dtype, nullable=True), kind, None))
    assert math.isnan(read(Column(name="x", dtype="float", nullable=True), "float32", math.nan))
    shop = Column(name="shop", dtype="category", values=("a", "b"), nullable=True)
    assert math.isnan(read(shop, "float64", "never seen"))
    assert math.isnan(read(shop, "float64", None))
    assert read(shop, "string", "never seen") == read(shop, "string", None) == ""
    assert read(Column(name="x", dtype="text", nullable=True), "string", None) == ""


def test_a_long_value_is_cut_in_the_fault() -> None:
    fault = read(SHOP, "float64", "z" * 10_000)
    assert len(fault) < 150
    assert f'"{"z" * 60}..."' in fault


@pytest.mark.parametrize(
    ("column", "kind", "why"),
    [
        (TEXT, "float32", "a number .float32. where column `x` is a text"),
        (FLOAT, "string", "a text where column `x` is `float`"),
        (FLOAT, "int64", "int64 where column `x` is `float`"),
        (Column(name="x", dtype="int", nullable=True), "int64", "which knows no null"),
        (Column(name="x", dtype="category"), "float64", "names no values"),
        (Column(name="x", dtype="date"), "float64", "has the type `date`"),
    ],
)
def test_a_column_that_can_never_fit_is_refused_when_the_model_is_opened(column: Column, kind: str, why: str) -> None:
    with pytest.raises(DrivetrainError, match=why):
        TableScorer(pinned(column), Echo(kind))


def test_a_signature_of_another_width_is_refused() -> None:
    with pytest.raises(DrivetrainError, match="`m/3` takes 1 columns, its signature names 2"):
        TableScorer(pinned(FLOAT, INT), Echo("float64"))


def test_bad_rows_have_faults_and_their_batch_mates_are_scored_at_once() -> None:
    model = Sum(["float64", "float64"])
    scorer = TableScorer(pinned(FLOAT, Column(name="y", dtype="float")), model)
    rows: list[Any] = [[1, 2], [1], [1, 2, 3], "ab", None, [None, 2], [3, 4], {"x": 1}, (5, 6)]
    scored = scorer.score(rows)
    assert [one.value for one in scored] == [3, None, None, None, None, None, 7, None, 11]
    assert [bool(one.fault) for one in scored] == [False, True, True, True, True, True, False, True, False]
    assert scored[1].fault == "The row has 1 values; the model takes 2: `x`, `y`."
    assert scored[4].fault == "The row has no list of values: None; the model takes 2: `x`, `y`."
    assert model.batches == [3], "what is readable goes to the model together"
    assert scorer.score([]) == []


def test_a_row_that_the_model_cannot_compute_fails_alone() -> None:
    model = Sum(["float64"])
    scored = TableScorer(pinned(FLOAT), model).score([[1], [101], [2], [99], [None]])
    assert [one.value for one in scored] == [1, None, 2, None, None]
    assert [one.fault for one in scored[1:4]] == ["too much", "", "The model gave a number that is not finite."]
    assert model.batches == [4, 1, 1, 1, 1]


def test_any_mix_of_rows_gives_each_what_it_gets_alone() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    values = [0, 1, -5.5, 50, 98, 99, 100, 101, None, math.nan, math.inf, True, "x", 10**400]
    scorer = TableScorer(pinned(FLOAT, Column(name="y", dtype="float", nullable=True)), Sum(["float64"] * 2))
    faulty = 0
    for _ in range(100):
        rows = [[chance.choice(values) for _ in range(chance.choice([1, 2, 2, 2, 2, 3]))] for _ in range(9)]
        together = scorer.score(rows)
        assert together == [scorer.score([row])[0] for row in rows], rows
        faulty += sum(bool(one.fault) for one in together)
        for one in together:
            assert one == Scored(fault=one.fault) if one.fault else math.isfinite(one.value or 0.0)
    assert 0 < faulty < 900


def test_candidates_are_ranked_best_first_and_equal_ones_keep_their_order() -> None:
    model = Sum(["float64"])
    scorer = TableScorer(pinned(FLOAT, task="ranking"), model)
    first, second, none = scorer.score([[["a", [1]], [7, [3]], ["c", [1]], [None, [3]]], [["z", [5]]], []])
    assert first.ranking == (Ranked(7, 3), Ranked(None, 3), Ranked("a", 1), Ranked("c", 1))
    assert second.ranking == (Ranked("z", 5),)
    assert none == Scored()
    assert model.batches == [5], "candidates of all rows go to the model together"


def test_one_bad_candidate_is_its_rankings_fault_alone() -> None:
    scorer = TableScorer(pinned(FLOAT, task="ranking"), Sum(["float64"]))
    rows: list[Any] = [
        [["a", [1]], ["b", [None]]], [["a", [2]]], [["a", [1]], "bc"], [["a", [101]], ["b", [1]]], "a", [["a", 7]],
        [[n, [n]] for n in range(CANDIDATES_MAX + 1)],
    ]  # fmt: skip
    scored = scorer.score(rows)
    assert [bool(one.fault) for one in scored] == [True, False, True, True, True, True, True]
    assert scored[0].fault == 'Candidate 1 ("b"): `x` is null, and the model takes no null there.'
    assert scored[1].ranking == (Ranked("a", 2),)
    assert scored[2].fault == 'Candidate 1 is no pair of an id and its values: "bc".'
    assert scored[3].fault == "too much"
    assert "1,001 candidates; at most 1,000" in scored[6].fault


def test_a_model_of_another_number_of_classes_is_each_rows_fault() -> None:
    scorer = TableScorer(pinned(FLOAT, task="classification", labels=("a", "b", "c")), Sum(["float64"], labels=2))
    assert scorer.score([[1]])[0].fault == "The model gave 2 numbers for a row where its signature has 3."


def test_one_chance_of_two_labels_is_the_seconds() -> None:
    scorer = TableScorer(pinned(FLOAT, task="classification", labels=("no", "yes")), Sum(["float64"]))
    assert scorer.score([[0.75]])[0] == Scored(label="yes", confidence=0.75, scores={"yes": 0.75, "no": 0.25})


def test_every_kind_has_a_column_that_fits_it() -> None:
    fitting = {"string": TEXT, "bool": BOOL, "float32": FLOAT, "float64": FLOAT, "int32": INT, "int64": INT}
    assert set(fitting) == set(KINDS)
    for kind, column in fitting.items():
        TableScorer(pinned(column), Echo(kind))
