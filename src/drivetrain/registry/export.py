"""A version as a folder for others: its files with manifest and model card, or as MLflow lays models out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.models import ARTIFACT, MANIFEST, ModelVersionV1
from drivetrain.core.times import iso
from drivetrain.registry.onnx_check import check_onnx

LAYOUTS = ("folder", "mlflow")
CARD = "README.md"
BESIDE_MLFLOW = "manifest.json"
"""In MLflow's layout: the version's manifest."""
FLAVORS = {"onnx": "onnx", "lightgbm": "lightgbm", "xgboost": "xgboost"}
"""Our format -> MLflow's flavor."""
_MLFLOW_TYPES = {"float": "double", "int": "long", "bool": "boolean", "text": "string", "category": "string"}
SHOWN_MAX = 20
"""Labels, or values of a category, in what is told of them; the manifest has all."""


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    artifact: str
    path: str
    layout: str
    files: tuple[str, ...]
    lost: tuple[str, ...] = ()
    """What the layout cannot say of the model, each in a sentence; the manifest beside it does."""


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
        lost = _lost_in_mlflow(version, source) if layout == "mlflow" else ()
        manifest = BESIDE_MLFLOW if layout == "mlflow" else MANIFEST
        (half / manifest).write_bytes(msgspec.json.format(msgspec.json.encode(version), indent=1) + b"\n")
        (half / CARD).write_text(model_card(version, lost), encoding="utf-8")
        noted()
        half.rename(to)
    except OSError as error:
        raise DrivetrainError(
            f"{to} cannot be written: {error.strerror or error}.", do="Nothing of it is left. Name another place."
        ) from None
    finally:
        shutil.rmtree(half, ignore_errors=True)
    files = tuple(sorted(str(one.relative_to(to)) for one in to.rglob("*") if one.is_file()))
    return Export(artifact=version.artifact, path=str(to), layout=layout, files=files, lost=lost)


def _lost_in_mlflow(version: ModelVersionV1, source: Path) -> tuple[str, ...]:
    """What MLflow's layout has no place for, so that whoever scores with it has to do it."""
    signature, coded, found = version.signature, _coded(version, source), []
    if signature.labels:
        found.append(
            "The labels are no part of MLflow's layout; a file that gives numbers or probabilities means, in this "
            f"order: {_numbered(signature.labels)}."
        )
    found += [
        f"`{one.name}` is a category, which MLflow has to be given as a number, and NaN for any other: "
        f"{_numbered(one.values)}."
        for one in signature.inputs
        if one.name in coded
    ]
    if found:
        found.append(
            f"All of it is in `{BESIDE_MLFLOW}`, from which `drivetrain models import` of this folder takes it again."
        )
    return tuple(found)


def model_card(version: ModelVersionV1, lost: Sequence[str] = ()) -> str:
    """What a stranger should know of a version, as Markdown. lost: what its layout cannot say."""
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
    if lost:
        lines += ["", "## What MLflow does not know", "", *(f"- {one}" for one in lost)]
    lines += ["", "## Metrics", "", "On rows that it was not trained on:" if version.metrics else "None were recorded."]
    lines += [""] * bool(version.metrics) + [f"- {name}: {value:g}" for name, value in version.metrics.items()]
    return "\n".join(lines) + "\n"


def _coded(version: ModelVersionV1, source: Path) -> frozenset[str]:
    """The categories that the model's file takes as numbers; an ONNX graph may have an input of texts for one."""
    texts: set[str] = set()
    if version.format == "onnx":
        for file in version.files:
            texts.update(one.name for one in check_onnx(source / file.path).inputs if one.element == "string")
    return frozenset(one.name for one in version.signature.inputs if one.dtype == "category" and one.name not in texts)


def _numbered(names: Sequence[str]) -> str:
    more = f" ... {len(names):,} in all" if len(names) > SHOWN_MAX else ""
    return ", ".join(f"{place} {name}" for place, name in enumerate(names[:SHOWN_MAX])) + more


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
    coded = _coded(version, source)
    columns = [
        {
            "name": one.name, "type": "double" if one.name in coded else _MLFLOW_TYPES[one.dtype],
            "required": not one.nullable,
        }
        for one in version.signature.inputs
    ]  # fmt: skip
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
