"""Baselines of probes on disk: one file per model, whole or not there.

Owns `probes` in the data folder. A file holds figures and keyed hashes of words, never a text.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
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

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One probe of a project at a time: two would count as one. Raises: DrivetrainError where another runs."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(self._folder, error) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise DrivetrainError("Another probe of this project runs.", do="Wait for its end.") from None
        try:
            yield
        finally:
            os.close(fd)

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
            write_whole(self._path(baseline.model), msgspec.json.encode(baseline))
        except OSError as error:
            raise _unwritable(self._folder, error) from None

    def _path(self, model: str) -> Path:
        slug = re.sub(r"[^a-z0-9.]+", "-", model.lower())[:60]
        return self._folder / f"{slug}-{hashlib.sha256(model.encode()).hexdigest()[:12]}.json"


def _unwritable(folder: Path, error: OSError) -> DrivetrainError:
    return DrivetrainError(f"A baseline cannot be written: {error.strerror}.", looked=[str(folder)])
