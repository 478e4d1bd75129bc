"""The trained models that a Snapshot's routes name, loaded and ready for whoever answers their Calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.core.declarations import Variant
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned
from drivetrain.project.pins import models_folder
from drivetrain.project.snapshot import Snapshot

if TYPE_CHECKING:
    from drivetrain.inference.door import ModelsDoor
    from drivetrain.ports.inference import Scorer

INLINE_BYTES_MAX = 256 * 1024 * 1024
"""Of a model's files: a larger one is not even loaded into a gateway worker to see how fast it is."""


def models_named(snapshot: Snapshot) -> list[Pinned]:
    """What its routes ask for, each once."""
    found = {
        step.model: snapshot.pinned[step.model]
        for workflow in snapshot.workflows.values()
        for step in workflow.route
        if isinstance(step, Variant) and step.model in snapshot.pinned
    }
    return list({one.digest: one for one in found.values()}.values())


def whole_models(data_folder: Path, models: Sequence[Pinned]) -> tuple[list[Pinned], list[DrivetrainError]]:
    """Those whose files are what was approved, and what is wrong with the others."""
    from drivetrain.registry.artifacts import open_artifact

    whole: list[Pinned] = []
    broken: list[DrivetrainError] = []
    for model in models:
        try:
            open_artifact(models_folder(data_folder), model)
        except DrivetrainError as error:
            broken.append(error)
        else:
            whole.append(model)
    return whole, broken


def models_door(
    data_folder: Path, loop: asyncio.AbstractEventLoop, *, sockets: Sequence[Path] = (), wanted: Path | None = None
) -> ModelsDoor:
    """Scores rows of small models in this process; of larger ones in model workers, or in a thread without any.

    sockets: of the model workers. wanted: a file that is made as soon as there is a larger model: the supervisor
    starts model workers then.
    """
    from drivetrain.inference.door import INLINE_US, Apart, ModelsDoor
    from drivetrain.inference.local import LocalModels
    from drivetrain.inference.pool import WorkerModels
    from drivetrain.inference.scorers import open_scorer, scorer_time_us
    from drivetrain.inference.threaded import ThreadModels
    from drivetrain.registry.artifacts import artifact_folder, open_artifact

    folder = models_folder(data_folder)
    measured: dict[str, Scorer] = {}

    def load(pinned: Pinned) -> Scorer:
        known = measured.pop(pinned.digest, None)
        return known if known is not None else open_scorer(open_artifact(folder, pinned), pinned)

    def is_small(pinned: Pinned) -> bool:
        stored = artifact_folder(folder, pinned.name, pinned.number)
        size = sum(file.stat().st_size for file in stored.rglob("*") if file.is_file())
        if size <= INLINE_BYTES_MAX:
            scorer = load(pinned)
            if scorer_time_us(scorer) <= INLINE_US:
                measured[pinned.digest] = scorer
                return True
        if wanted is not None:
            wanted.touch()
        return False

    apart: Apart = WorkerModels(sockets, loop) if sockets else ThreadModels(loop, load)
    return ModelsDoor(LocalModels(load, loop.call_soon, time.monotonic_ns), apart, is_small)
