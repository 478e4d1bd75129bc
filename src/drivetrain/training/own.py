"""The project's own recipes: run with patience, and what they give back checked as if a stranger had made it.

Owns that a recipe that raises, hangs or gives nonsense ends as an error for its author. What the model says is judged
elsewhere, by the same scorer that serves it. Called by `training`.
"""

from __future__ import annotations

import copy
import inspect
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.models import FORMATS, Signature
from drivetrain.core.recipes import Examples, Recipe, Trained
from drivetrain.registry.signatures import check_signature
from drivetrain.training.progress import Progress

PATIENCE_S = 3_600.0
"""How long a recipe may neither end nor report progress: longer is taken for a hang."""
LOOK_S = 0.1
FACTS_MAX = 32
"""Facts are for a glance."""
FACT_CHARS_MAX = 1_000
"""Of a fact, or of its name."""
NUMBER_MAX = 1e308
"""Of facts and predictions: neither NaN nor infinite, and no whole number that a float cannot hold."""
PROBABILITY_SLACK = 1e-3
"""How far the probabilities of one row may be from a sum of 1; 32-bit floats are closer."""


def run_own(
    recipe: Recipe,
    train: Examples,
    *,
    seed: int,
    progress: Progress,
    patience_s: float = PATIENCE_S,
    monotonic: Callable[[], float] = time.monotonic,
) -> Trained:
    """What the recipe's function gives, checked by `check_trained`. Raises: DrivetrainError.

    It runs in a thread of its own, which ends with this process where it hangs.
    """
    rows, columns = len(train.labels), dict(train.columns)
    work = _Work(recipe, _apart(train), seed, progress, monotonic)
    thread = threading.Thread(target=work.run, name=f"drivetrain-recipe-{recipe.name}", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_S)
        if thread.is_alive() and monotonic() - work.heard > patience_s:
            work.abandoned = True
            raise DrivetrainError(
                f"Recipe `{recipe.name}` neither ended nor called `progress` for {patience_s:g} s.",
                looked=[_place(recipe)],
                do="Let it call `progress(what, share)` while it works. Nothing was registered.",
            )
    if work.error is not None:
        raise DrivetrainError(
            f"Recipe `{recipe.name}` failed: {type(work.error).__name__}: {str(work.error)[:500]}",
            looked=[_raised_at(work.error) or _place(recipe)],
            do="Nothing was registered.",
        ) from work.error
    check_trained(recipe.name, work.result, rows=rows, task=recipe.task, columns=columns)
    return work.result  # type: ignore[no-any-return]


def check_trained(name: str, trained: Any, *, rows: int, task: str, columns: Mapping[str, Any]) -> None:
    """Whether a recipe gave a model that can be judged. rows: how many it was given. Raises: DrivetrainError."""

    def wrong(what: str, do: str = "") -> DrivetrainError:
        return DrivetrainError(f"Recipe `{name}` {what}", do=f"{do} Nothing was registered.".strip())

    if not isinstance(trained, Trained):
        raise wrong(f"gave back a {type(trained).__name__}, and not a `dt.Trained`.")
    if trained.format not in FORMATS:
        raise wrong(
            f"gave a model of the format {str(trained.format)[:50]!r}.", did_you_mean(str(trained.format), FORMATS)
        )
    files: Any = trained.files
    if not isinstance(files, Mapping) or not files:
        raise wrong("gave a model without files.")
    for path, content in files.items():
        if not isinstance(path, str) or not isinstance(content, bytes):
            raise wrong(f"gave a file {str(path)[:50]!r} that is no text with bytes behind it.")
    signature: Any = trained.signature
    if not isinstance(signature, Signature):
        raise wrong("gave a signature that is no `dt.Signature`.")
    if signature.task != task:
        raise wrong(f"gave a {signature.task}, and is declared as a {task}.")
    if task == "classification" and isinstance(signature.labels, tuple) and len(signature.labels) < 2:
        raise wrong("gave a classification with fewer than two labels.")
    try:
        msgspec.convert(msgspec.to_builtins(signature), Signature)
        check_signature(signature)
    except (msgspec.ValidationError, TypeError) as error:
        raise wrong(f"gave a signature that is none: {error}.") from None
    for column in signature.inputs:
        if column.name not in columns:
            raise wrong(f"gave a model that takes `{column.name}`.", did_you_mean(column.name, columns))
    facts: Any = trained.facts
    if not isinstance(facts, Mapping) or len(facts) > FACTS_MAX or not all(map(_is_fact, facts, facts.values())):
        raise wrong(
            f"gave facts that are not at most {FACTS_MAX} finite numbers and texts of at most {FACT_CHARS_MAX:,} "
            "characters by name."
        )
    _check_predictions(trained, rows, task, wrong)


def _apart(train: Examples) -> Examples:
    """The same rows in lists of their own: a recipe that sorts or empties them changes no report."""
    return msgspec.structs.replace(
        train, columns={name: copy.copy(values) for name, values in train.columns.items()},
        labels=copy.copy(train.labels), weights=copy.copy(train.weights), ids=copy.copy(train.ids),
    )  # fmt: skip


def _is_fact(name: object, value: object) -> bool:
    """Whether it can be kept in a Report."""
    if not isinstance(name, str) or not isinstance(value, str | int | float):
        return False
    texts = [one for one in (name, value) if isinstance(one, str)]
    try:
        kept = all(len(one.encode()) <= FACT_CHARS_MAX for one in texts)
    except UnicodeEncodeError:
        return False
    return kept and (isinstance(value, str) or abs(value) <= NUMBER_MAX)


def source_of(recipe: Recipe) -> str:
    """The text of the module that the recipe stands in, so that a change of its helpers is a change of it."""
    module = sys.modules.get(recipe.train.__module__)
    for thing in (module, recipe.train):
        try:
            return inspect.getsource(thing) if thing is not None else ""
        except (OSError, TypeError):
            continue
    return ""


def _check_predictions(trained: Trained, rows: int, task: str, wrong: Callable[..., DrivetrainError]) -> None:
    given: Any = trained.predictions
    try:
        if len(given) == 0:
            return
    except TypeError:
        raise wrong(f"gave a {type(given).__name__} as predictions.", "Give one per row, or none: `()`.") from None
    if len(given) != rows:
        raise wrong(
            f"gave {len(given):,} predictions for {rows:,} rows that train.",
            "Give one per row, made by a model that did not see the row, or none.",
        )
    for number, one in enumerate(given):
        if task == "regression":
            fits = isinstance(one, int | float) and abs(one) <= NUMBER_MAX
        else:
            try:
                fits = len(one) == len(trained.signature.labels) and (
                    abs(math.fsum(one) - 1) <= PROBABILITY_SLACK and min(one) >= 0
                )
            except (TypeError, ValueError):
                fits = False
        if not fits:
            kind = "number" if task == "regression" else "list of a probability per label"
            raise wrong(f"gave a prediction for row {number} that is no {kind}.")


class _Work:
    """A recipe's function at work in its thread."""

    def __init__(
        self, recipe: Recipe, train: Examples, seed: int, progress: Progress, monotonic: Callable[[], float]
    ) -> None:
        self._recipe = recipe
        self._train = train
        self._seed = seed
        self._progress = progress
        self._monotonic = monotonic
        self.heard = monotonic()
        self.abandoned = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._recipe.train(self._train, self._seed, self._hear)
        except BaseException as error:  # noqa: BLE001  the user's code may raise anything, SystemExit too; whoever waits tells it
            self.error = error

    def _hear(self, what: str, share: float = 0.0) -> None:
        self.heard = self._monotonic()
        if not self.abandoned:
            self._progress(str(what)[:100], min(1.0, max(0.0, float(share))))


def _place(recipe: Recipe) -> str:
    return f"{recipe.place.file}:{recipe.place.line}"


def _raised_at(error: BaseException) -> str:
    """The line of the recipe that was running."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    return f"{frames[0].filename}:{frames[0].lineno}" if frames else ""


def plain_recipe(recipe: Any) -> dict[str, Any]:
    """A recipe as data: its name and parameters, and of the project's own the source."""
    if isinstance(recipe, Recipe):
        return {"recipe": recipe.name, "task": recipe.task, "source": source_of(recipe)}
    return {"recipe": type(recipe).__name__, **msgspec.to_builtins(recipe)}
