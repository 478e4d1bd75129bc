"""Trainings that cannot be: recipes that give nonsense or change their rows, and numbers too large to be squared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from drivetrain.adapters.objects import FileObjects
from drivetrain.adapters.sqlite import open_control_log
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column, Signature
from drivetrain.core.recipes import Examples, Recipe, TabularRegression, Trained, TrainedModel
from drivetrain.datasets import Datasets, FromFile
from drivetrain.inference.linear_text_files import write_linear_text
from drivetrain.inference.scorers import open_scorer
from drivetrain.lineage.lineage import Lineage
from drivetrain.registry.reports import Reports
from drivetrain.registry.store import Registry
from drivetrain.training.own import FACT_CHARS_MAX, run_own
from drivetrain.training.training import Training
from support.registered import word_model

MODEL = word_model({"refund": "refund", "parcel": "delivery"})
SIGNATURE = Signature(
    task="classification", inputs=(Column(name="text", dtype="text"),), target="intent", labels=MODEL.labels
)


def examples() -> Examples:
    return Examples(
        columns={"text": ["a refund", "a parcel"] * 20},
        labels=["refund", "delivery"] * 20,
        weights=[1.0] * 40,
        ids=[str(number) for number in range(40)],
    )


def good(train: Examples, seed: int, progress: Any) -> Trained:
    return Trained(format="linear-text", files=write_linear_text(MODEL), signature=SIGNATURE, facts={"words": 2})


def run(function: Any, train: Examples, task: str = "classification") -> Trained:
    return run_own(Recipe("mine", function, task=task), train, seed=0, progress=lambda what, share: None)


def given(**changes: Any) -> Any:
    return lambda train, seed, progress: msgspec.structs.replace(good(train, seed, progress), **changes)


def signed(**changes: Any) -> Any:
    return given(signature=msgspec.structs.replace(SIGNATURE, **changes))


NONSENSE = {
    "no predictions": (given(predictions=None), "NoneType as predictions"),
    "a number of predictions": (given(predictions=5), "int as predictions"),
    "predictions that are NaN": (given(predictions=[[float("nan")] * 2] * 40), "prediction for row 0"),
    "no facts": (given(facts=None), "facts"),
    "a fact that is NaN": (given(facts={"share": float("nan")}), "facts"),
    "a fact of 400 digits": (given(facts={"rows": 10**400}), "facts"),
    "a long fact": (given(facts={"words": "x" * (FACT_CHARS_MAX + 1)}), "facts"),
    "half a surrogate pair": (given(facts={"words": "\ud800"}), "facts"),
    "no inputs": (signed(inputs=None), "signature that is none"),
    "labels that are numbers": (signed(labels=(1, 2)), "signature that is none"),
    "one label": (signed(labels=("refund",)), "fewer than two labels"),
    "a label twice": (signed(labels=("refund", "refund")), "there twice"),
    "a label without end": (signed(labels=("refund", "x" * 100_000)), "is no label"),
    "an input of no type": (signed(inputs=(Column(name="text", dtype="blob"),)), "has the type `blob`"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_a_recipe_gives_is_checked_before_anything_is_made_of_it(name: str) -> None:
    function, said = NONSENSE[name]
    assert run(good, examples()).facts == {"words": 2}
    with pytest.raises(DrivetrainError) as told:
        run(function, examples())
    assert said in str(told.value)


def test_a_recipe_that_empties_its_rows_changes_nobody_elses() -> None:
    def emptied(train: Examples, seed: int, progress: Any) -> Trained:
        given: list[Any] = [train.labels, train.columns["text"], train.ids, train.columns]
        for values in given:
            values.clear()
        return good(train, seed, progress)

    train = examples()
    assert run(emptied, train).signature == SIGNATURE
    assert train == examples()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"seed": "x"}, "'x' is no seed"), ({"seed": 1.5}, "1.5 is no seed"), ({"risks": ("2%",)}, "'2%' is no risk")],
)
def test_what_is_no_number_is_told(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(DrivetrainError, match=said):
        trained(tmp_path, "amount,value\n1,2\n", **options)


def test_numbers_whose_squares_are_infinite_are_told_before_any_work(tmp_path: Path) -> None:
    rows = "".join(f"{number},{'-' * (number % 2)}1e308\n" for number in range(60))
    with pytest.raises(DrivetrainError, match="has no number as `value`"):
        trained(tmp_path, f"amount,value\n{rows}")
    assert not (tmp_path / "data" / "models").exists()


def trained(folder: Path, rows: str, **options: Any) -> None:
    """A regression of `value` by `amount`."""
    data = folder / "data"
    control = open_control_log(data, folder / "keys")
    datasets, lineage = Datasets(None, FileObjects(data / "lake"), control, root=folder), Lineage(control)
    (folder / "rows.csv").write_text(rows)
    made = datasets.create("rows", FromFile("rows.csv")).dataset
    registry, reports = Registry(data / "models", control, lineage), Reports(data / "reports")
    declared = TrainedModel(
        "priced", dataset=made.artifact.removeprefix("dataset:"), recipe=TabularRegression(folds=3), label="value",
        **options,
    )  # fmt: skip
    Training(datasets, registry, reports, lineage, open_scorer=open_scorer).train(declared)
