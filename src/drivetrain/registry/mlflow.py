"""MLflow's model folders: which of the flavors in `MLmodel` is a format of ours, and where its file is.

`MLmodel` is read as plain YAML of bounded size, without anchors. A folder whose model is a pickle is refused with the
lines that convert it where it is trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import ModelVersionV1, Signature
from drivetrain.registry.artifacts import MANIFEST_BYTES_MAX, check_path, open_plain
from drivetrain.registry.export import BESIDE_MLFLOW, FLAVORS
from drivetrain.registry.pickles import code_refused
from drivetrain.registry.signatures import check_signature

MARK = "MLmodel"
MARK_BYTES_MAX = 256 * 1024
"""Signatures of a thousand columns fit."""
DEPTH_MAX = 32
"""Mappings and lists in each other; MLflow writes five."""


class Input(msgspec.Struct, frozen=True):
    """A column of an MLflow signature."""

    name: str = ""
    type: str = ""
    required: bool = True


class MlflowModel(msgspec.Struct, frozen=True, kw_only=True):
    """What is taken of a folder."""

    format: str
    file: Path
    columns: tuple[str, ...] = ()
    """As its signature names them; empty where it has none, or a tensor's."""
    signature: Signature | None = None
    """Where the folder is an export of ours and its file is the one that was exported: what that version had."""


def is_mlflow(folder: Path) -> bool:
    """Whether a folder is one of MLflow's."""
    return (folder / MARK).is_file()


def read_mlflow(folder: Path, name: str) -> MlflowModel:
    """name: what the model will be called, for the lines that are proposed. Raises: DrivetrainError."""
    document = _document(folder / MARK)
    flavors = document.get("flavors")
    if not isinstance(flavors, dict) or not flavors:
        raise _refused(folder, "it names no flavor")
    for format, flavor in FLAVORS.items():
        described = flavors.get(flavor)
        if isinstance(described, dict):
            data = described.get("data", described.get("model", ""))
            if not isinstance(data, str):
                raise _refused(folder, f"its flavor `{flavor}` names no file")
            file = folder / check_path(data.removeprefix("./"))
            if file.is_symlink() or any(one.is_symlink() for one in file.parents if one.is_relative_to(folder)):
                raise _refused(folder, f"{data!r} leads through a link")
            if not file.is_file():
                raise _refused(folder, f"its file {data!r} is not there")
            return MlflowModel(
                format=format, file=file, columns=_columns(document), signature=_exported(folder, format, file)
            )
    known = ", ".join(f"`{str(one)[:40]}`" for one in list(flavors)[:8])
    if "sklearn" in flavors or "python_function" in flavors:
        raise code_refused(folder, name, f"an MLflow model of {known}, kept as a Python object", loader="mlflow")
    raise _refused(folder, f"its flavors are {known}; taken are {', '.join(FLAVORS.values())}")


def _document(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise DrivetrainError(
            "An MLflow folder is read with a library that is not installed.",
            do='Run `pip install "drivetrain[train]"`.',
        ) from None
    with open_plain(path) as file:
        raw = file.read(MARK_BYTES_MAX + 1)
    if len(raw) > MARK_BYTES_MAX:
        raise _refused(path.parent, f"its `{MARK}` has more than {MARK_BYTES_MAX:,} bytes")
    try:
        text = raw.decode("utf-8")
        _check_shape(path.parent, yaml.scan(text, Loader=yaml.SafeLoader))
        found = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _refused(path.parent, f"its `{MARK}` cannot be read: {why}") from None
    if not isinstance(found, dict):
        raise _refused(path.parent, f"its `{MARK}` is no mapping")
    return found


def _check_shape(folder: Path, tokens: Iterable[Any]) -> None:
    """By its tokens, which are read without recursion: no anchors, and not too deep."""
    depth = 0
    for one in tokens:
        kind = type(one).__name__
        if kind in ("AnchorToken", "AliasToken"):
            raise _refused(folder, f"its `{MARK}` has anchors, which MLflow never writes")
        depth += kind.endswith(("SequenceStartToken", "MappingStartToken"))
        depth -= kind in ("BlockEndToken", "FlowSequenceEndToken", "FlowMappingEndToken")
        if depth > DEPTH_MAX:
            raise _refused(folder, f"its `{MARK}` is nested too deeply")


def _columns(document: dict[str, Any]) -> tuple[str, ...]:
    signature = document.get("signature")
    described = signature.get("inputs") if isinstance(signature, dict) else None
    if not isinstance(described, str):
        return ()
    try:
        columns = msgspec.json.decode(described, type=list[Input])
    except msgspec.MsgspecError:
        return ()
    names = tuple(one.name for one in columns)
    return names if all(names) else ()


def _refused(folder: Path, why: str) -> DrivetrainError:
    return DrivetrainError(
        f"The MLflow model {folder.name[:200]!r} is not taken: {why}.", looked=[str(folder / MARK)],
        do="Save it with MLflow's flavor onnx, lightgbm or xgboost.",
    )  # fmt: skip


def _exported(folder: Path, format: str, file: Path) -> Signature | None:
    """What an export of ours keeps beside MLflow's files; None where there is none, or it is of another file."""
    manifest = folder / BESIDE_MLFLOW
    if manifest.is_symlink() or not manifest.is_file() or manifest.stat().st_size > MANIFEST_BYTES_MAX:
        return None
    try:
        version = msgspec.json.decode(manifest.read_bytes(), type=ModelVersionV1)
        check_signature(version.signature)
    except (msgspec.MsgspecError, DrivetrainError):
        return None
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    is_same = version.format == format and [one.sha256 for one in version.files] == [digest]
    return version.signature if is_same else None
