"""Pickles, and what else runs code when it is loaded: told by name or by content, never opened."""

from __future__ import annotations

from pathlib import Path

from drivetrain.core.errors import DrivetrainError
from drivetrain.registry.artifacts import open_plain

SUFFIXES = (".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".skops", ".pt", ".pth", ".bin", ".model", ".h5")
MAGICS = {
    b"\x80\x02": "a pickle", b"\x80\x03": "a pickle", b"\x80\x04": "a pickle", b"\x80\x05": "a pickle",
    b"\x89HDF": "an HDF5 file", b"binf": "XGBoost's old binary form", b"bs64": "XGBoost's old binary form",
}  # fmt: skip
LOADERS = {"mlflow": "mlflow.sklearn.load_model", "joblib": "joblib.load"}


def refuse_pickle(path: Path, name: str) -> None:
    """Raises: DrivetrainError with three lines for whoever trusts it, where a file is a pickle by name or content."""
    with open_plain(path) as file:
        start = file.read(4)
    kind = next((told for magic, told in MAGICS.items() if start.startswith(magic)), "")
    if kind or path.suffix.lower() in SUFFIXES:
        raise code_refused(path, name, kind or f"a `{path.suffix.lower()}` file")


def code_refused(path: Path, name: str, kind: str, *, loader: str = "joblib") -> DrivetrainError:
    """That it is not loaded here, and how it is converted where it is trusted."""
    module = loader.partition(".")[0]
    return DrivetrainError(
        f"{path.name[:200]!r} is {kind}: to load it is to run what is in it, so it is never loaded here.",
        do="Where you trust it, in the environment that trained it, run these three lines:\n"
        f"import {module}, drivetrain as dt\n"
        f"model = {LOADERS[module]}({str(path)!r})\n"
        f"dt.import_model(model, {name!r}, sample=rows)  # rows as the model sees them",
    )
