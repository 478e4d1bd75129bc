"""Baselines of probes on disk: one file per model, whole or not there.

Owns `probes` in the data folder. A file holds figures and keyed hashes of words, never a text.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.evals.probing import BaselineV1
from drivetrain.ports.disk import write_whole

FOLDER = "probes"
_BASELINE: msgspec.json.Decoder[BaselineV1] = msgspec.json.Decoder(BaselineV1)


class Baselines:
    """Those of one project."""

    def __init__(self, data_folder: Path) -> None:
        self._folder = data_folder / FOLDER

    def read(self, model: str) -> BaselineV1 | None:
        """None where the model was never probed. Raises: DrivetrainError where the file is damaged."""
        path = self._path(model)
        try:
            return _BASELINE.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DrivetrainError(
                f"The baseline of {model} cannot be read: {error}.", looked=[str(path)],
                do="Restore the file from your backup, or remove it: the next probe then makes another.",
            ) from None  # fmt: skip

    def write(self, baseline: BaselineV1) -> None:
        """In the place of the one before. Raises: DrivetrainError."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._path(baseline.model), msgspec.json.encode(baseline))
        except OSError as error:
            raise DrivetrainError(
                f"A baseline cannot be written: {error.strerror}.", looked=[str(self._folder)]
            ) from None

    def _path(self, model: str) -> Path:
        slug = re.sub(r"[^a-z0-9.]+", "-", model.lower())[:60]
        return self._folder / f"{slug}-{hashlib.sha256(model.encode()).hexdigest()[:12]}.json"
