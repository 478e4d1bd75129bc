"""Everything that is wrong with the trained models in a workflow's route: what they stand for, take and give.

Called by `checks`; notices are told by `drivetrain check`. How names meet is for `model_fit`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.core.declarations import Variant, Workflow
from drivetrain.core.models import REFERENCE, Pinned, is_trained
from drivetrain.project.model_fit import Misfits, fit
from drivetrain.project.pins import reference_mistake
from drivetrain.project.workflow_notes import WorkflowNotes, is_record, written

if TYPE_CHECKING:
    from drivetrain.project.snapshot import Snapshot

NOT_FOR_MODELS = ("prompt", "system", "parameters")
NEEDS = {"linear-text": ("numpy",), "onnx": ("onnxruntime",), "lightgbm": ("lightgbm",), "xgboost": ("xgboost",)}
"""Format -> the libraries that open it, all of them of the extra `models`."""


def notices(snapshot: Snapshot) -> Iterator[str]:
    """What is no mistake of the project and worth knowing of the trained models in its routes."""
    yield from _missing_libraries(snapshot)
    for workflow in snapshot.workflows.values():
        for step, after in pairwise(workflow.route):
            if isinstance(step, Variant) and is_trained(step.model) and step.accept is None:
                yield (
                    f"workflow `{workflow.name}`: Variant `{step.name}` has no `accept`, so every answer of it is "
                    f"taken; `{after.name}` is reached only where `{step.name}` fails"
                )


def _missing_libraries(snapshot: Snapshot) -> Iterator[str]:
    for pinned in {one.id: one for one in snapshot.pinned.values()}.values():
        for library in NEEDS.get(pinned.format, ()):
            if importlib.util.find_spec(library) is None:
                yield (
                    f"model {pinned.id} ({pinned.format}) needs `{library}`, which is not installed: "
                    'run `pip install "drivetrain[models]"`'
                )


class ModelCheck:
    """One workflow being checked."""

    def __init__(
        self, notes: WorkflowNotes, pinned: Mapping[str, Pinned], data_folder: Path, leaves_models: bool = False
    ) -> None:
        """leaves_models: whether references that cannot be resolved are no mistake."""
        self.workflow: Workflow[Any, Any] = notes.workflow
        self.notes = notes
        self.pinned = pinned
        self.data_folder = data_folder
        self.leaves_models = leaves_models

    def run(self) -> None:
        """Notes every mistake."""
        for step in self.workflow.route:
            if isinstance(step, Variant) and is_trained(step.model):
                self._variant(step)

    def _variant(self, variant: Variant) -> None:
        pinned = self.pinned.get(variant.model)
        if pinned is None and self.leaves_models and REFERENCE.fullmatch(variant.model):
            return
        if pinned is None:
            what, do = reference_mistake(variant.model, self.data_folder)
            self.notes.note(f"has a `model` that {what}", "model", value=written(variant.model), do=do, of=variant)
            return
        for argument in NOT_FOR_MODELS:
            if getattr(variant, argument):
                self.notes.note(
                    f"has `{argument}`, which a trained model does not take.", argument, do="Remove it.", of=variant
                )
        types = (self.workflow.input, self.workflow.output)
        if not all(declared is None or is_record(declared) for declared in types):
            return  # noted as the workflow's own mistake
        try:
            fit(pinned.signature, self.workflow)
        except Misfits as misfits:
            for what, do in misfits.found:
                self.notes.note(f"has the model {pinned.id}, which {what}", "model", do=do, of=variant)
        except (TypeError, NameError, ValueError):
            return  # a type that cannot be resolved is noted as the workflow's own mistake
