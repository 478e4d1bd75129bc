"""Everything that is wrong with what a project says of training: its trained models and their recipes.

Owns what can be told without reading a row. Whether the Dataset has such columns is for the room `training/`. Called
where a project is loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import msgspec

from drivetrain.core.datasets import REFERENCE
from drivetrain.core.errors import did_you_mean
from drivetrain.core.models import TASKS
from drivetrain.core.recipes import (
    Recipe,
    TabularClassification,
    TabularRegression,
    TextClassification,
    TrainedModel,
)
from drivetrain.project.names import E_MAIL, NAME, NAME_HELP
from drivetrain.project.problems import Problems
from drivetrain.project.spots import Spots
from drivetrain.project.workflow_notes import is_whole, kind, written

FOLDS_MIN, FOLDS_MAX = 2, 20
"""With more folds a training takes as many times longer, and chooses no better."""
NGRAM_MAX = 10
RISKS_MAX = 20
SEED_MAX = 2**32 - 1
"""What scikit-learn takes."""
MODELS = ("linear", "lightgbm")
TRAINABLE = tuple(task for task in TASKS if task != "ranking")


def check_trained_models(found: list[TrainedModel], spots: Spots, problems: Problems) -> None:
    """Notes every mistake in the declared trained models."""
    seen: dict[str, TrainedModel] = {}
    for declared in found:
        check = _TrainedModelCheck(declared, spots, problems)
        check.run()
        if isinstance(declared.name, str) and seen.setdefault(declared.name, declared) is not declared:
            before = spots.of(seen[declared.name])
            check.note(f"is declared twice; the other is at {before.file}:{before.line}.", do="Give it another name.")


class _TrainedModelCheck:
    """One TrainedModel being checked."""

    def __init__(self, declared: TrainedModel, spots: Spots, problems: Problems) -> None:
        self.declared = declared
        self.spots = spots
        self.problems = problems

    def note(self, what: str, *arguments: str, value: str = "", do: str = "") -> None:
        place = self.spots.of(self.declared, *arguments)
        label = f"Trained model `{self.declared.name}`"
        self.problems.add(f"{label} {what}", file=place.file, line=place.line, value=value, do=do)

    def run(self) -> None:
        declared = self.declared
        known = [name for name in inspect.signature(TrainedModel.__init__).parameters if name not in _NOT_ARGUMENTS]
        for name in declared.unknown:
            self.note(f"has no argument `{name}`.", name, do=did_you_mean(name, known))
        if not isinstance(declared.name, str) or not NAME.fullmatch(declared.name):
            self.note("has a wrong name.", value=written(declared.name), do=NAME_HELP)
        if not isinstance(declared.dataset, str) or not REFERENCE.fullmatch(declared.dataset):
            do = "Write NAME for its newest number, or NAME@NUMBER."
            self.note("names no Dataset.", "dataset", value=written(declared.dataset), do=do)
        self._texts()
        self._numbers()
        self._recipe()

    def _texts(self) -> None:
        declared = self.declared
        if not isinstance(declared.label, str) or not declared.label:
            do = "Name the column that is predicted."
            self.note("has no label.", "label", value=written(declared.label), do=do)
        for name in ("text", "test", "group_by", "weight", "licence", "description", "owner"):
            value = getattr(declared, name)
            if not isinstance(value, str):
                self.note(f"has a `{name}` that is no text.", name, value=kind(value))
        if not declared.test:
            self.note("has no name of a test split.", "test", do='Leave it out, or write `test="test"`.')
        if isinstance(declared.owner, str) and declared.owner and not E_MAIL.fullmatch(declared.owner):
            self.note("has an owner that is no e-mail address.", "owner", value=written(declared.owner))
        segments: Sequence[Any] = declared.segments
        if not all(isinstance(one, str) and one for one in segments):
            self.note("has `segments` that are no columns.", "segments", do='Write `segments=["country"]`.')

    def _numbers(self) -> None:
        declared = self.declared
        if not is_whole(declared.seed, 0, SEED_MAX):
            self.note(f"has a wrong `seed`; it is a whole number from 0 to {SEED_MAX}.", "seed",
                      value=written(declared.seed))  # fmt: skip
        risks: Sequence[Any] = declared.risks
        if len(risks) > RISKS_MAX or not all(
            isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < 1 for one in risks
        ):
            self.note(f"has wrong `risks`; they are at most {RISKS_MAX} shares between 0 and 1.", "risks",
                      value=written(str(list(risks))), do="Write `risks=[0.02]` for 2 % errors.")  # fmt: skip

    def _recipe(self) -> None:
        recipe: Any = self.declared.recipe
        if isinstance(recipe, Recipe):
            self._own(recipe)
        elif isinstance(recipe, TextClassification):
            if not self.declared.text:
                self.note("is a text classification without a text.", "recipe", do="Name its column with `text=`.")
            self._built_in(recipe)
        elif isinstance(recipe, TabularClassification | TabularRegression):
            unknown = [one for one in recipe.models if one not in MODELS]
            if unknown or not recipe.models:
                do = did_you_mean(str(unknown[0]), MODELS) if unknown else f"One or both of {', '.join(MODELS)}."
                self.note("has a recipe with an unknown model.", "recipe", "models", value=written(str(unknown)), do=do)
            if self.declared.label in recipe.columns:
                self.note("has its label among the inputs.", "recipe", "columns", do="Leave it out of `columns`.")
            self._built_in(recipe)
        else:
            self.note(
                "has no recipe.", "recipe", value=kind(recipe),
                do="Write dt.TextClassification(), dt.TabularClassification(), dt.TabularRegression(), or name your "
                "own `@dt.recipe`.",
            )  # fmt: skip

    def _own(self, recipe: Recipe) -> None:
        if recipe.task not in TRAINABLE:
            do = did_you_mean(str(recipe.task), TRAINABLE)
            self.note("has a recipe of an unknown task.", "recipe", value=written(recipe.task), do=do)
        try:
            takes = len(inspect.signature(recipe.train).parameters)
        except (TypeError, ValueError):
            return
        if takes != 3:
            self.note(
                f"has a recipe that takes {takes} arguments.", "recipe",
                do="Write `def train(train: dt.Examples, seed: int, progress)`.",
            )  # fmt: skip

    def _built_in(self, recipe: TextClassification | TabularClassification | TabularRegression) -> None:
        try:
            # A Struct checks nothing where it is made; converting it does.
            msgspec.convert(msgspec.to_builtins(recipe), type(recipe))
        except (msgspec.ValidationError, TypeError) as error:
            self.note(f"has a wrong recipe: {error}.", "recipe")
            return
        if not FOLDS_MIN <= recipe.folds <= FOLDS_MAX:
            what = f"has a recipe with wrong `folds`; it is a whole number from {FOLDS_MIN} to {FOLDS_MAX}."
            self.note(what, "recipe", "folds", value=written(recipe.folds))
        if isinstance(recipe, TextClassification):
            for name in ("word_ngrams", "char_ngrams"):
                low, high = getattr(recipe, name)
                if (low, high) != (0, 0) and not 1 <= low <= high <= NGRAM_MAX:
                    what = f"has a recipe with wrong `{name}`; they are two numbers from 1 to {NGRAM_MAX}, or (0, 0)."
                    self.note(what, "recipe", name, value=written(str((low, high))))
            if recipe.features_max < 0:
                self.note("has a recipe with a wrong `features_max`.", "recipe", "features_max",
                          value=written(recipe.features_max), do="0 means every term.")  # fmt: skip


_NOT_ARGUMENTS = ("self", "place", "unknown")
