"""What a user declares of training: which Dataset becomes which model by which recipe. Data only.

The room `training/` holds the behaviour. A declaration keeps what was written, so that `drivetrain check` reports every
mistake at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Never

import msgspec

from drivetrain.core.declarations import Place, caller_place
from drivetrain.core.models import Signature


class TextClassification(msgspec.Struct, frozen=True, kw_only=True):
    """TF-IDF of words and characters with linear models, calibrated; gives a `linear-text` model."""

    word_ngrams: tuple[int, int] = (1, 2)
    char_ngrams: tuple[int, int] = (2, 5)
    """Within words, as scikit-learn's `char_wb`; (0, 0): none."""
    features_max: int = 0
    """Most terms of each kind; 0: every term."""
    folds: int = 5


class TabularClassification(msgspec.Struct, frozen=True, kw_only=True):
    """LightGBM or a linear model, chosen by cross-validation, calibrated."""

    columns: tuple[str, ...] = ()
    """Input columns; empty: every one but the label, the split's, the weights' and personal ones."""
    models: tuple[str, ...] = ("linear", "lightgbm")
    folds: int = 5


class TabularRegression(msgspec.Struct, frozen=True, kw_only=True):
    """LightGBM or a linear model, chosen by cross-validation."""

    columns: tuple[str, ...] = ()
    models: tuple[str, ...] = ("linear", "lightgbm")
    folds: int = 5


class Examples(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that a recipe is given: columns of equal length."""

    columns: Mapping[str, Sequence[Any]]
    """Inputs by name."""
    labels: Sequence[Any]
    weights: Sequence[float] | None = None
    ids: Sequence[str] = ()
    """What tells one row from another, for the Report."""


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """What a recipe gives back: a model as files, and its predictions on rows it was not trained on."""

    format: str
    """One of `core.models.FORMATS`."""
    files: Mapping[str, bytes]
    """Path in the artifact -> content."""
    signature: Signature
    predictions: Sequence[Any] = ()
    """Out of fold, one per training row: of a classification a list of probabilities in the order of
    `signature.labels`, of a regression a number. Empty: the training's own test rows are all there is."""
    facts: Mapping[str, str | int | float | bool] = {}
    """What the recipe wants told in the Report, such as which model won."""


class Recipe:
    """The user's own way to train: a function of (train: Examples, seed: int, progress) that gives Trained."""

    __slots__ = ("name", "place", "task", "train")

    def __init__(self, name: str, train: Callable[..., Trained], *, task: str, place: Place | None = None) -> None:
        self.name = name
        self.train = train
        self.task = task
        self.place = place or caller_place()


def recipe(name: str, *, task: str = "classification") -> Callable[[Callable[..., Trained]], Recipe]:
    """`@dt.recipe("mine")` above a function of `(train, seed, progress)`."""
    place = caller_place()
    return lambda train: Recipe(name, train, task=task, place=place)


AnyRecipe = TextClassification | TabularClassification | TabularRegression | Recipe


class TrainedModel:
    """A model that the project trains: `drivetrain train NAME` makes its next version."""

    __slots__ = (
        "dataset", "description", "group_by", "label", "licence", "name", "owner", "place", "recipe", "risks", "seed",
        "segments", "test", "text", "unknown", "weight",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        dataset: str,
        recipe: AnyRecipe,
        label: str,
        text: str = "",
        segments: Sequence[str] = (),
        risks: Sequence[float] = (0.01, 0.02, 0.05),
        test: str = "test",
        group_by: str = "",
        weight: str = "",
        seed: int = 0,
        owner: str = "",
        licence: str = "",
        description: str = "",
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.name = name
        self.dataset = dataset
        """`NAME` (its newest number) or `NAME@N`."""
        self.recipe = recipe
        self.label = label
        """The column that is predicted; the output's field of that name gets it."""
        self.text = text
        """Of a text classification: the column of the text."""
        self.segments = tuple(segments)
        """Columns by whose values the Report tells metrics apart."""
        self.risks = tuple(risks)
        """Error rates for which a threshold of confidence is chosen."""
        self.test = test
        """Name of the split that nothing is chosen by; every other row trains."""
        self.group_by = group_by
        """Rows that are alike in this column never part between folds."""
        self.weight = weight
        """Column of sampling weights; empty: the Dataset's own, if it has any."""
        self.seed = seed
        self.owner = owner
        self.licence = licence
        self.description = description
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown
