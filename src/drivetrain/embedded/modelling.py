"""The registry of a project, wired: its folder, the control log, lineage, and the scorers that prove an import."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.backup import layout
from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.asking import settings_of
from drivetrain.project.files import find_root

if TYPE_CHECKING:
    from drivetrain.core.models import ModelVersionV1
    from drivetrain.registry.candidates import FittedText
    from drivetrain.registry.importing import Importer
    from drivetrain.registry.reports import Reports
    from drivetrain.registry.store import Registry

LOADER = "drivetrain.inference.scorers:open_scorer"
"""What serves models, by its name: a trial's process imports it for itself."""


def open_registry(project: Path | str = ".", *, now_ns: Callable[[], int] = time.time_ns) -> Registry:
    """The models of the project in or above a folder, by its settings alone. Raises: DrivetrainError."""
    root = find_root(Path(project))
    ledger = settings_of(root).ledger
    return registry_in(root / ledger.folder, root / ledger.keys_folder, now_ns=now_ns)


def open_reports(project: Path | str = ".", *, now_ns: Callable[[], int] = time.time_ns) -> Reports:
    """The Reports of the project in or above a folder, by its settings alone. Raises: DrivetrainError."""
    root = find_root(Path(project))
    ledger = settings_of(root).ledger
    return reports_in(root / ledger.folder, root / ledger.keys_folder, now_ns=now_ns)


def registry_in(data_folder: Path, keys_folder: Path, *, now_ns: Callable[[], int] = time.time_ns) -> Registry:
    """The registry of a project whose folders are known. Raises: DrivetrainError."""
    from drivetrain.adapters.sqlite import open_control_log
    from drivetrain.embedded.applying import person
    from drivetrain.lineage.lineage import Lineage
    from drivetrain.project.pins import models_folder
    from drivetrain.registry.store import Registry

    layout.read_layout(data_folder)
    control = open_control_log(data_folder, keys_folder, now_ns=now_ns)
    lineage = Lineage(control, actor=person(), now_ns=now_ns)
    return Registry(models_folder(data_folder), control, lineage, now_ns=now_ns, actor=person())


def reports_in(data_folder: Path, keys_folder: Path, *, now_ns: Callable[[], int] = time.time_ns) -> Reports:
    """The Reports of a project whose folders are known. Raises: DrivetrainError."""
    from drivetrain.adapters.sqlite import open_control_log
    from drivetrain.embedded.applying import person
    from drivetrain.lineage.lineage import Lineage
    from drivetrain.registry.reports import FOLDER, Reports

    layout.read_layout(data_folder)
    control = open_control_log(data_folder, keys_folder, now_ns=now_ns)
    return Reports(data_folder / FOLDER, Lineage(control, actor=person(), now_ns=now_ns))


def import_model(
    estimator: Any,
    name: str,
    *,
    sample: Any,
    labels: Sequence[str] = (),
    columns: Sequence[str] = (),
    target: str = "",
    task: str = "",
    candidates: str = "",
    candidate_id: str = "",
    owner: str = "",
    licence: str = "",
    description: str = "",
    dataset: str = "",
    project: Path | str = ".",
) -> ModelVersionV1:
    """Converts a fitted estimator and registers it as the next version of a model, once it proved equal on a sample.

    estimator: of scikit-learn, LightGBM or XGBoost; a pipeline too. sample: rows as the estimator takes them, such as
    a test set. labels: names of its classes in their order, by default as it tells them. columns: names of its inputs,
    where the sample has none. target: what is predicted, as the output's field names it. task: where the estimator does
    not tell it. candidates, candidate_id: of a ranking, the input's field that lists them and the one of theirs
    that tells them apart; a row of the sample is one candidate. dataset: `NAME@N`.
    Raises: ConversionRefused with the rows that differ; DrivetrainError. Then nothing is registered.
    """
    from drivetrain.registry.candidates import Terms
    from drivetrain.registry.sklearn_import import import_estimator

    terms = Terms(
        name=name, target=target, task=task, candidates=candidates, candidate_id=candidate_id,
        labels=tuple(labels), columns=tuple(columns), owner=owner, licence=licence, description=description,
        dataset=dataset,
    )  # fmt: skip
    return import_estimator(importer_of(open_registry(project)), estimator, terms, sample)


def importer_of(registry: Registry) -> Importer:
    """Imports of files into a registry, proved by the scorers that serve. Raises: DrivetrainError."""
    from drivetrain.registry.importing import Importer
    from drivetrain.registry.trials import Trials

    return Importer(registry, Trials(LOADER).open, LinearTexts())


class LinearTexts:
    """`linear-text` for imports: the registry knows what was fitted, the format's room how it is written."""

    def write(self, model: FittedText) -> Mapping[str, bytes]:
        """Path -> content. Raises: DrivetrainError."""
        from drivetrain.inference.linear_text_files import Block, LinearText, write_linear_text

        blocks = tuple(Block(**{name: getattr(one, name) for name in one.__struct_fields__}) for one in model.blocks)
        return write_linear_text(
            LinearText(blocks=blocks, labels=model.labels, weights=model.weights, bias=model.bias, link=model.link)
        )

    def labels(self, folder: Path) -> tuple[str, ...]:
        """Of a model that was read and checked. Raises: DrivetrainError."""
        try:
            from drivetrain.inference.linear_text_files import read_linear_text
        except ImportError:
            raise DrivetrainError(
                "`linear-text` needs numpy, which is not installed.", do='Run `pip install "drivetrain[models]"`.'
            ) from None
        return read_linear_text(folder).labels
