"""A version as a folder for others: its files with manifest and model card, or as MLflow lays models out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.models import ARTIFACT, MANIFEST, ModelVersionV1
from drivetrain.core.times import iso

LAYOUTS = ("folder", "mlflow")
CARD = "README.md"
FLAVORS = {"onnx": "onnx", "lightgbm": "lightgbm", "xgboost": "xgboost"}
"""Our format -> MLflow's flavor."""
_MLFLOW_TYPES = {"float": "double", "int": "long", "bool": "boolean", "text": "string", "category": "string"}


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    artifact: str
    path: str
    layout: str
    files: tuple[str, ...]


def export_version(
    version: ModelVersionV1, source: Path, to: Path, *, layout: str, noted: Callable[[], object]
) -> Export:
    """source: its checked files. `noted` is called before the folder is there. Raises: DrivetrainError."""
    if layout not in LAYOUTS:
        raise DrivetrainError(f"`{layout[:50]}` is no layout.", do=did_you_mean(layout, LAYOUTS))
    if layout == "mlflow" and version.format not in FLAVORS:
        raise DrivetrainError(
            f"MLflow has no flavor for `{version.format}`, the format of {version.artifact}.",
            do="Export it as a folder.",
        )
    if to.exists() or to.is_symlink():
        raise DrivetrainError(f"{to} is there already.", do="Name a folder that is not; nothing is ever replaced.")
    half = to.with_name(f".{to.name}.{os.getpid()}.new")
    try:
        half.mkdir(parents=True)
        if layout == "mlflow":
            _write_mlflow(version, source, half)
        else:
            shutil.copytree(source, half / ARTIFACT)
            (half / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(version), indent=1) + b"\n")
        (half / CARD).write_text(model_card(version), encoding="utf-8")
        noted()
        half.rename(to)
    except OSError as error:
        raise DrivetrainError(
            f"{to} cannot be written: {error.strerror or error}.", do="Nothing of it is left. Name another place."
        ) from None
    finally:
        shutil.rmtree(half, ignore_errors=True)
    files = tuple(sorted(str(one.relative_to(to)) for one in to.rglob("*") if one.is_file()))
    return Export(artifact=version.artifact, path=str(to), layout=layout, files=files)


def model_card(version: ModelVersionV1) -> str:
    """What a stranger should know of a version, as Markdown."""
    signature = version.signature
    told = {
        "format": version.format,
        "digest": version.digest,
        "made": f"{iso(version.made_ns)} by {version.made_by or 'unknown'}",
        "owner": version.owner or "not stated",
        "licence": version.licence or "not stated",
        "Dataset": version.dataset or "not stated",
        "recipe": version.recipe or "not stated",
        "source": version.source or "trained here",
    }
    lines = [f"# {version.name} {version.number}", "", version.description or f"A model for {signature.task}.", ""]
    lines += [f"- {name}: {value}" for name, value in told.items()]
    lines += ["", "## What it takes and gives", ""]
    lines += [
        f"- `{one.name}`: {one.dtype}{' or null' if one.nullable else ''}"
        + (f", one of {len(one.values)} values" if one.values else "")
        for one in signature.inputs
    ]
    gives = f", one of {len(signature.labels)} labels: {', '.join(signature.labels)}" if signature.labels else ""
    lines += ["", f"It gives `{signature.target}`{gives}."]
    lines += ["", "## Metrics", "", "On rows that it was not trained on:" if version.metrics else "None were recorded."]
    lines += [""] * bool(version.metrics) + [f"- {name}: {value:g}" for name, value in version.metrics.items()]
    return "\n".join(lines) + "\n"


def _write_mlflow(version: ModelVersionV1, source: Path, to: Path) -> None:
    """`MLmodel` is YAML, of which JSON is a part: no YAML library is needed to write it."""
    flavor = FLAVORS[version.format]
    files = sorted(one.path for one in version.files)
    if len(files) != 1:
        raise DrivetrainError(
            f"{version.artifact} has {len(files)} files, and MLflow's flavor `{flavor}` has one.",
            do="Export it as a folder; what it adds to the model, such as its calibration, would be lost.",
        )
    for path in files:
        target = to / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target)
    columns = [
        {"name": one.name, "type": _MLFLOW_TYPES[one.dtype], "required": not one.nullable}
        for one in version.signature.inputs
    ]
    described = {
        "artifact_path": "model",
        "flavors": {
            flavor: {"data": files[0], "code": None},
            "python_function": {"loader_module": f"mlflow.{flavor}", "data": files[0]},
        },
        "signature": {"inputs": msgspec.json.encode(columns).decode(), "outputs": None, "params": None},
        "metadata": {"drivetrain": f"{version.artifact} {version.digest}"},
    }
    (to / "MLmodel").write_bytes(msgspec.json.format(msgspec.json.encode(described), indent=1) + b"\n")
