"""Imports of files: what a path is, told by content as well as by name; read as one of our formats; accepted.

Nothing of a file runs. What is refused leaves nothing behind: everything happens in a working folder, and a version has
a number only once it was scored. Fitted estimators come through `sklearn_import`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column, ModelVersionV1
from drivetrain.registry.accepting import accept
from drivetrain.registry.archives import is_archive, unpack
from drivetrain.registry.artifacts import hash_file, list_files, open_plain
from drivetrain.registry.boosters import Booster, is_ubjson, read_lightgbm, read_xgboost
from drivetrain.registry.candidates import Candidate, Expected, Terms, TextFormat, signature_of, task_of
from drivetrain.registry.mlflow import is_mlflow, read_mlflow
from drivetrain.registry.onnx_check import OnnxModel, OnnxValue, check_onnx
from drivetrain.registry.pickles import refuse_pickle
from drivetrain.registry.signatures import COLUMNS_MAX
from drivetrain.registry.store import Registry, check_name
from drivetrain.registry.trials import OpenTrial

LINEAR_TEXT_MARK = "linear_text.json"
"""The file by which a `linear-text` folder is known."""
LINEAR_TEXT_FILES = (LINEAR_TEXT_MARK, "terms.msgpack", "idf.f32", "weights.f32", "bias.f32")
SUFFIXES = {
    ".onnx": "onnx", ".txt": "lightgbm", ".lgb": "lightgbm", ".json": "xgboost", ".ubj": "xgboost", ".xgb": "xgboost",
}  # fmt: skip
FILES = {"onnx": "model.onnx", "lightgbm": "model.txt", "xgboost": "model.json"}
"""Format -> the name of its one file in an artifact."""
_DTYPES = {
    "float": "float", "double": "float", "float16": "float", "int64": "int", "int32": "int", "bool": "bool",
    "string": "text",
}  # fmt: skip
"""ONNX's element types -> ours."""


class Importer:
    """Imports into one registry. open_trial: loads a model as it will be served, where it can do no harm."""

    def __init__(self, registry: Registry, open_trial: OpenTrial, texts: TextFormat) -> None:
        self.registry = registry
        self.texts = texts
        self._open_trial = open_trial

    def import_path(self, path: Path, terms: Terms) -> ModelVersionV1:
        """A model file, a `linear-text` or MLflow folder, or an archive of one. Raises: DrivetrainError."""
        check_name(terms.name)
        if not path.exists():
            raise DrivetrainError(f"There is nothing at {path}.", do="Name a model's file, folder or archive.")
        try:
            if path.is_file() and is_archive(path):
                with self.registry.workplaces.folder() as work:
                    unpacked = work / "unpacked"
                    unpacked.mkdir()
                    source = _file_source("archive", path)
                    unpack(path, unpacked)
                    return self.take(self._folder(_descended(unpacked), terms, source), terms)
            source = _file_source("file", path) if path.is_file() else _Source("folder", "", ())
            candidate = self._file(path, terms, source) if path.is_file() else self._folder(path, terms, source)
            return self.take(candidate, terms)
        except OSError as error:
            raise DrivetrainError(f"{path} cannot be read: {error.strerror or error}.") from None

    def take(self, candidate: Candidate, terms: Terms, expected: Expected | None = None) -> ModelVersionV1:
        """Score, compare with what the original says, register. Raises: ConversionRefused, DrivetrainError."""
        return accept(self.registry, candidate, terms, open_trial=self._open_trial, expected=expected)

    def _folder(self, folder: Path, terms: Terms, source: _Source) -> Candidate:
        if is_mlflow(folder):
            found = read_mlflow(folder, terms.name)
            columns = terms.columns or found.columns
            named = msgspec.structs.replace(terms, columns=columns)
            given = source if source.hash else _file_source("file", found.file)
            candidate = self._read(found.file, found.format, named, given.of(f"mlflow {found.format}"))
            if found.signature is None or terms.labels or terms.columns or terms.task or terms.target:
                return candidate
            return msgspec.structs.replace(candidate, signature=found.signature)
        if (folder / LINEAR_TEXT_MARK).is_file():
            return self._linear_text(folder, terms, source)
        files = [one for one in sorted(folder.iterdir()) if one.is_file() and not one.is_symlink()]
        models = [one for one in files if one.suffix.lower() in SUFFIXES and one.name != "model.json"] or [
            one for one in files if one.suffix.lower() in SUFFIXES
        ]
        if len(models) == 1:
            return self._file(models[0], terms, source if source.hash else _file_source("file", models[0]))
        for one in files:
            refuse_pickle(one, terms.name)
        raise DrivetrainError(
            f"{folder.name[:200]!r} holds {len(models) or 'no'} files that could be a model.",
            looked=[str(folder)],
            do=f"Name the file itself ({', '.join(SUFFIXES)}), an MLflow folder, or a `linear-text` folder.",
        )

    def _file(self, path: Path, terms: Terms, source: _Source) -> Candidate:
        refuse_pickle(path, terms.name)
        format = SUFFIXES.get(path.suffix.lower())
        if format is None:
            raise DrivetrainError(
                f"{path.name[:200]!r} is no model by its name.",
                do=f"Known: {', '.join(SUFFIXES)}; archives of them, MLflow folders and `linear-text` folders.",
            )
        return self._read(path, format, terms, source.of(format))

    def _read(self, path: Path, format: str, terms: Terms, source: _Source) -> Candidate:
        refuse_pickle(path, terms.name)
        if format == "onnx":
            return onnx_candidate(path, terms, source=source.text, inputs=source.inputs)
        with open_plain(path) as file:
            start = file.read(5)
        if format == "lightgbm" or start == b"tree\n":
            return booster_candidate("lightgbm", read_lightgbm(path), terms, source=source.text, inputs=source.inputs)
        if start[:1] != b"{" and not is_ubjson(start[:2]):
            raise DrivetrainError(f"{path.name[:200]!r} is neither JSON nor UBJSON.", do="Save it with `save_model`.")
        return booster_candidate("xgboost", read_xgboost(path), terms, source=source.text, inputs=source.inputs)

    def _linear_text(self, folder: Path, terms: Terms, source: _Source) -> Candidate:
        files = {one: folder / one for one in LINEAR_TEXT_FILES}
        if extra := [one for one in list_files(folder) if one not in files]:
            raise DrivetrainError(f"{extra[0]!r} is no part of a `linear-text` model.", looked=[str(folder)])
        columns = (Column(name="text", dtype="text"),)
        if task_of(terms, "classification") != "classification":
            raise DrivetrainError("A `linear-text` model is a classification.", do="Leave the task out.")
        signature = signature_of(terms, "classification", columns, told=self.texts.labels(folder))
        told = source if source.hash else _Source("folder", hash_file(folder / LINEAR_TEXT_MARK), ())
        return Candidate(
            format="linear-text", signature=signature, files=files, source=told.of("linear-text").text,
            inputs=source.inputs,
        )  # fmt: skip


def onnx_candidate(
    path: Path,
    terms: Terms,
    *,
    source: str,
    inputs: tuple[str, ...] = (),
    columns: Sequence[Column] = (),
    labels: Sequence[str] = (),
) -> Candidate:
    """columns, labels: where the converter knows them better than the graph. Raises: DrivetrainError."""
    model = check_onnx(path)
    is_classifier = labels or terms.labels or model.labels or len(model.outputs) > 1
    task = task_of(terms, "classification" if is_classifier else "regression")
    found = tuple(columns) or _columns(model, terms)
    signature = signature_of(
        terms, task, found, labels, told=model.labels if task == "classification" and not labels else ()
    )
    return Candidate(
        format="onnx", signature=signature, files={FILES["onnx"]: path}, source=source, inputs=inputs
    )  # fmt: skip


def booster_candidate(
    format: str,
    booster: Booster,
    terms: Terms,
    *,
    source: str,
    inputs: tuple[str, ...] = (),
    labels: Sequence[str] = (),
) -> Candidate:
    """A booster keeps no labels: where nobody gives them, they are the classes' numbers. Raises: DrivetrainError."""
    numbers = tuple(map(str, range(booster.classes)))
    task = task_of(terms, "classification" if booster.classes else "regression")
    signature = signature_of(terms, task, booster.columns, labels, told=() if labels else numbers)
    files = {FILES[format]: booster.content}
    return Candidate(format=format, signature=signature, files=files, source=source, inputs=inputs)


class _Source(msgspec.Struct, frozen=True):
    kind: str
    hash: str
    inputs: tuple[str, ...]

    def of(self, kind: str) -> _Source:
        return msgspec.structs.replace(self, kind=kind)

    @property
    def text(self) -> str:
        return f"{self.kind} {self.hash}".strip()


def _columns(model: OnnxModel, terms: Terms) -> tuple[Column, ...]:
    """One per input, or one per column of the only input. Raises: DrivetrainError."""
    if len(model.inputs) == 1 and _width(model.inputs[0]) != 1:
        (only,) = model.inputs
        width = _width(only) or len(terms.columns)
        if not 0 < width <= COLUMNS_MAX:
            raise DrivetrainError(
                f"The ONNX model does not tell how many columns its input {only.name[:100]!r} has.",
                do="Name each: `--columns a,b,c`.",
            )
        return tuple(Column(name=f"f{place}", dtype=_dtype(only)) for place in range(width))
    return tuple(Column(name=one.name, dtype=_dtype(one)) for one in model.inputs)


def _width(value: OnnxValue) -> int:
    """Columns of a tensor; 0: not fixed."""
    if len(value.shape) < 2:
        return 1
    return max(value.shape[1], 0)


def _dtype(value: OnnxValue) -> str:
    if value.element not in _DTYPES or len(value.shape) > 2:
        raise DrivetrainError(
            f"The ONNX model takes {value.name[:100]!r} as {value.element or 'no tensor'} of {len(value.shape)} "
            "dimensions; rows have a number, a text or a truth value for each column.",
            do="Export it with one input of the shape (rows, columns), or one input for each column.",
        )
    return _DTYPES[value.element]


def _descended(folder: Path) -> Path:
    """The folder in which an archive has everything."""
    while True:
        entries = list(folder.iterdir())
        if len(entries) != 1 or not entries[0].is_dir():
            return folder
        folder = entries[0]


def _file_source(kind: str, path: Path) -> _Source:
    digest = hash_file(path)
    return _Source(kind, digest, (f"file:{path.name}@{digest}",))
