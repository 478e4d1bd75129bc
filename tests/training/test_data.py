"""Which rows train and which test, and which columns are inputs: nobody's id, no label, and no test row among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_samples import COLUMNS, SPLIT, Place, fraud, orders

from drivetrain.core.datasets import ColumnV1, SchemaV1, SplitV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.recipes import TabularClassification, TextClassification, TrainedModel
from drivetrain.training.data import TrainingData, training_data

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def column(data: TrainingData, name: str) -> Any:
    return next(one for one in data.columns if one.name == name)


def test_the_test_split_is_apart_and_everything_else_trains(place: Place) -> None:
    shares = (("train", 0.6), ("other", 0.2), ("test", 0.2))
    reference = place.dataset("orders", orders(300), split=SplitV1(shares=shares, key=("order",)))
    data = training_data(place.datasets, fraud(reference))
    wanted = [number for number, row in enumerate(place.datasets.rows(reference), 1) if row["split"] == "test"]
    assert list(data.test.numbers) == wanted
    assert data.train.size == 300 - len(wanted)
    assert not data.held_out


def test_a_column_that_came_with_the_rows_can_be_the_split(place: Place) -> None:
    rows = [{**one, "split": "test" if number % 4 == 0 else "train"} for number, one in enumerate(orders(100))]
    data = training_data(place.datasets, fraud(place.dataset("orders", rows), TabularClassification()))
    assert list(data.test.numbers) == list(range(1, 101, 4))
    assert "split" not in {one.name for one in data.columns}


def test_without_a_split_the_same_fifth_is_held_out_however_the_dataset_grows(place: Place) -> None:
    small = training_data(place.datasets, fraud(place.dataset("orders", orders(600))))
    large = training_data(place.datasets, fraud(place.dataset("orders", orders(900)), seed=5))
    assert 0.13 < small.test.size / 600 < 0.27
    assert "no split `test`" in small.held_out
    assert [number for number in large.test.numbers if number <= 600] == list(small.test.numbers)


def test_rows_of_one_group_and_rows_that_are_alike_stay_on_one_side(place: Place) -> None:
    rows = [{**one, "shop": f"shop-{number % 40}"} for number, one in enumerate(orders(400))]
    grouped = training_data(place.datasets, fraud(place.dataset("orders", rows), group_by="shop"))
    assert grouped.train.groups is not None
    assert grouped.test.groups is not None
    assert not set(grouped.train.groups) & set(grouped.test.groups)
    twice = training_data(place.datasets, fraud(place.dataset("twice", [*orders(200), *orders(200)])))
    assert {number % 200 for number in twice.test.numbers}.isdisjoint(number % 200 for number in twice.train.numbers)


def test_columns_have_the_types_of_what_they_hold(place: Place) -> None:
    data = training_data(place.datasets, fraud(place.dataset("orders", orders(300), split=SPLIT)))
    assert [one.name for one in data.columns] == list(COLUMNS)
    assert (column(data, "amount").dtype, column(data, "amount").nullable) == ("float", True)
    assert (column(data, "fresh").dtype, column(data, "fresh").nullable) == ("bool", False)
    assert column(data, "country").values == ("br", "de", "fr", "us")


def test_what_tells_rows_apart_is_no_input_unless_it_is_named(place: Place) -> None:
    schema = SchemaV1(
        columns=(
            ColumnV1(name="country", type="string", personal=True),
            ColumnV1(name="minutes", type="float64", unique=False),
            ColumnV1(name="order", type="string", subject=True, personal=True),
        )
    )
    reference = place.dataset("orders", orders(300), schema=schema)
    data = training_data(place.datasets, fraud(reference, TabularClassification()))
    assert [one.name for one in data.columns] == ["amount", "fresh", "minutes"]
    assert data.left_out == {"order": "personal", "country": "personal"}
    named = training_data(place.datasets, fraud(reference, TabularClassification(columns=("amount", "country"))))
    assert any("`country` is personal" in one for one in named.notices)
    with pytest.raises(DrivetrainError, match="a person's id"):
        training_data(place.datasets, fraud(reference, TabularClassification(columns=("amount", "order"))))


def test_a_report_is_not_given_whose_rows_they_are(place: Place) -> None:
    columns = (
        ColumnV1(name="order", type="string", subject=True, personal=True),
        ColumnV1(name="city", type="string", personal=True),
    )
    rows = [{**one, "city": "village" if number % 40 == 0 else "town"} for number, one in enumerate(orders(400))]
    reference = place.dataset("orders", rows, schema=SchemaV1(columns=columns), split=SPLIT)
    data = training_data(place.datasets, fraud(reference, segments=("city",)))
    assert set(data.test.segments["city"]) == {"town", "(rare)"}
    with pytest.raises(DrivetrainError, match="nothing erases"):
        training_data(place.datasets, fraud(reference, segments=("order",)))


def test_a_text_that_is_another_in_every_row_is_no_category(place: Place) -> None:
    reference = place.dataset("orders", orders(300))
    data = training_data(place.datasets, fraud(reference, TabularClassification()))
    assert "order" in data.left_out
    with pytest.raises(DrivetrainError, match="`order` of dataset:orders@1 cannot be an input"):
        training_data(place.datasets, fraud(reference, TabularClassification(columns=("order",))))


def test_rows_without_a_label_are_left_out_and_counted(place: Place) -> None:
    rows = [{**one, "fraud": None if number % 3 == 0 else one["fraud"]} for number, one in enumerate(orders(300))]
    data = training_data(place.datasets, fraud(place.dataset("orders", rows)))
    assert data.train.size + data.test.size == 200
    assert "100 rows without a label were left out" in data.notices
    assert all(number % 3 != 1 for number in data.test.numbers)


def test_a_field_within_json_is_an_input_and_a_label(place: Place) -> None:
    rows = [
        {"asked": f'{{"text": "words {number}", "amount": {number}}}', "said": f'{{"intent": "i{number % 2}"}}'}
        for number in range(60)
    ]
    declared = TrainedModel(
        "triage", dataset=place.dataset("calls", rows), recipe=TextClassification(), label="said.intent",
        text="asked.text",
    )  # fmt: skip
    data = training_data(place.datasets, declared)
    assert data.target == "intent"
    assert [(one.name, one.dtype) for one in data.columns] == [("text", "text")]
    assert set(data.train.examples.labels) == {"i0", "i1"}
    assert set(data.train.examples.columns["text"]) < {f"words {number}" for number in range(60)}


def test_test_rows_that_a_model_has_seen_are_told(place: Place) -> None:
    rows = [{"text": f"t{number % 30}", "label": f"l{number % 2}", "id": str(number)} for number in range(60)]
    reference = place.dataset("texts", rows, split=SplitV1(shares=(("train", 0.5), ("test", 0.5)), key=("id",)))
    declared = TrainedModel("t", dataset=reference, recipe=TextClassification(), label="label", text="text")
    data = training_data(place.datasets, declared)
    seen = set(data.train.examples.columns["text"])
    shared = sum(text in seen for text in data.test.examples.columns["text"])
    assert shared
    assert any(one.startswith(f"{shared} of {data.test.size} test rows have the same inputs") for one in data.notices)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label": "frod"}, "Did you mean `fraud`"),
        ({"dataset": "nothing"}, "nothing"),
        ({"weight": "amount"}, "has no weight above 0"),
        ({"group_by": "shop"}, "no column `shop`"),
        ({"segments": ("shop",)}, "no column `shop`"),
        ({"recipe": TabularClassification(columns=("amount", "fraud"))}, "is the label"),
        ({"recipe": TextClassification()}, "which column is the text"),
    ],
)
def test_what_cannot_be_is_said_with_what_to_do(place: Place, options: dict[str, Any], says: str) -> None:
    reference = place.dataset("orders", orders(60))
    declared = TrainedModel(
        **{"name": "fraud", "dataset": reference, "recipe": TabularClassification(), "label": "fraud", **options}
    )
    with pytest.raises(DrivetrainError) as refused:
        training_data(place.datasets, declared)
    assert says in str(refused.value)


def test_one_class_or_one_side_is_refused(place: Place) -> None:
    same = place.dataset("same", [{**one, "fraud": "no"} for one in orders(60)])
    with pytest.raises(DrivetrainError, match="1 different values"):
        training_data(place.datasets, fraud(same))
    few = place.dataset("few", orders(1))
    with pytest.raises(DrivetrainError, match="rows to train"):
        training_data(place.datasets, fraud(few))


def test_rows_without_a_group_are_groups_of_their_own(place: Place) -> None:
    """Calls over HTTP tell no user, and must not count as one person's."""
    rows = [{**one, "user": "ann" if number % 10 == 0 else None} for number, one in enumerate(orders(400))]
    data = training_data(place.datasets, fraud(place.dataset("orders", rows), group_by="user"))
    assert data.train.size > 200
    assert 40 < data.test.size < 130
    groups = [*(data.train.groups or ()), *(data.test.groups or ())]
    assert (len(set(groups)), groups.count("ann")) == (361, 40)
    assert "360 rows without `user` count as groups of their own" in data.notices


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (1, "`shop` has 1 value in 200 rows, so all of them are one group"),
        (2, "`shop` has 2 values in 200 rows, and rows of one value stay"),
    ],
)
def test_a_group_that_leaves_a_side_empty_is_told_as_the_cause(place: Place, values: int, said: str) -> None:
    # Of these names both hash to the side that trains, so that nobody tests.
    rows = [{**one, "shop": ("ten", "six")[number % values]} for number, one in enumerate(orders(200))]
    rows[0]["fraud"] = rows[1]["fraud"] = None
    reference = place.dataset("orders", [*rows, *rows[2:4]])
    with pytest.raises(DrivetrainError) as refused:
        training_data(place.datasets, fraud(reference, group_by="shop"))
    assert said in str(refused.value)
    assert "Leave out --group-by" in refused.value.do
    assert not refused.value.looked


def test_why_a_side_is_empty_is_told_of_labels_and_of_splits(place: Place) -> None:
    unlabelled = place.dataset("unlabelled", [{**one, "fraud": None} for one in orders(20)])
    with pytest.raises(DrivetrainError, match="leaves 0 rows to train and 0 to test `fraud`") as refused:
        training_data(place.datasets, fraud(unlabelled))
    assert refused.value.looked == ("20 rows without a label",)
    tests = place.dataset("tests", [{**one, "split": "test"} for one in orders(20)])
    with pytest.raises(DrivetrainError, match="every row is of the split `test`"):
        training_data(place.datasets, fraud(tests))


def test_mistakes_that_need_no_rows_are_told_before_any_is_read(place: Place) -> None:
    read: list[str] = []
    reference = place.dataset("orders", orders(100))
    for wrong in (fraud("order"), fraud(reference, label="frau"), fraud(reference, group_by="shop")):
        with pytest.raises(DrivetrainError):
            training_data(place.datasets, wrong, reading=lambda: read.append("rows"))
    assert not read
    training_data(place.datasets, fraud(reference), reading=lambda: read.append("rows"))
    assert read == ["rows"]
