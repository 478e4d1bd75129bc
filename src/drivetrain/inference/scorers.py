"""Opens a verified artifact as a Scorer of its format, and measures what one row costs.

Formats are imported when the first model of theirs is opened; nothing that is loaded can run code. Called by the
registry's imports, training, the gateway and model workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.models import FORMATS, Pinned, Row, Scored
from drivetrain.ports.inference import Scorer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CALIBRATION = "calibration.json"
"""Beside a model that cannot hold it: `{"temperature": T}`, by which the margins of a classification are divided."""
CALIBRATION_BYTES_MAX = 64 * 1024
"""One number; a longer file is none of ours."""
SUFFIXES = {"onnx": (".onnx",), "lightgbm": (".txt",), "xgboost": (".json", ".ubj")}
"""Of the one file that holds a model; `linear-text` has files of fixed names."""
MEASURED_ROWS = 30
MEASURED_NS_MAX = 100_000_000
"""A measurement ends after so long, however few rows it saw: a model of 50 ms a row is slow without a doubt."""


class Calibration(msgspec.Struct, frozen=True):
    """What `calibration.json` says."""

    temperature: float = 1.0


class Predictor(Protocol):
    """One loaded model that knows numbers only."""

    kinds: Sequence[str]
    """How it takes each column."""

    def predict(self, values: Sequence[list[Any]]) -> NDArray[np.float64]:
        """Shape (rows, numbers of one row); of a classification probabilities. Raises: RowFailed."""


def open_scorer(folder: Path, pinned: Pinned) -> Scorer:
    """The model in a folder whose files were verified. Costs a read of all of it.

    Raises: DrivetrainError where a library is missing, a file is damaged, or the model does not fit its signature.
    """
    if pinned.format not in FORMATS:
        raise DrivetrainError(
            f"Model `{pinned.id}` has the format `{pinned.format}`.", do=did_you_mean(pinned.format, FORMATS)
        )
    try:
        return _opened(folder, pinned)
    except ModuleNotFoundError as error:
        raise DrivetrainError(
            f"Model `{pinned.id}` ({pinned.format}) needs `{error.name}`, which is not installed.",
            do='Run `pip install "drivetrain[models]"`.',
        ) from None
    except OSError as error:
        raise DrivetrainError(f"Model `{pinned.id}` cannot be read: {error}.", looked=[str(folder)]) from None


def scorer_time_us(scorer: Scorer, *, clock_ns: Callable[[], int] = time.perf_counter_ns) -> float:
    """Microseconds that scoring one middling row takes: the median of `MEASURED_ROWS`, after a first one that warms up.

    A ranking's row has `SAMPLE_CANDIDATES` here. Blocks for at most `MEASURED_NS_MAX` and the last row.
    """
    from drivetrain.inference.rows import sample_row

    row = sample_row(scorer.pinned)
    scorer.score([row])
    taken: list[int] = []
    began = clock_ns()
    while not taken or (len(taken) < MEASURED_ROWS and clock_ns() - began < MEASURED_NS_MAX):
        start = clock_ns()
        scorer.score([row])
        taken.append(clock_ns() - start)
    return sorted(taken)[len(taken) // 2] / 1000


def _opened(folder: Path, pinned: Pinned) -> Scorer:
    if pinned.format == "linear-text":
        from drivetrain.inference.linear_text import LinearTextScorer
        from drivetrain.inference.linear_text_files import read_linear_text

        return LinearTextScorer(pinned, read_linear_text(folder))
    file = _model_file(folder, pinned)
    temperature = _temperature(folder)
    predictor: Predictor
    if pinned.format == "onnx":
        from drivetrain.inference.onnx import OnnxModel

        predictor = OnnxModel(file, pinned.signature)
    elif pinned.format == "lightgbm":
        from drivetrain.inference.boosters import LightGbmModel

        predictor = LightGbmModel(file, pinned.signature)
    else:
        from drivetrain.inference.boosters import XgBoostModel

        predictor = XgBoostModel(file, pinned.signature)
    return TableScorer(pinned, predictor, temperature)


def _model_file(folder: Path, pinned: Pinned) -> Path:
    suffixes = SUFFIXES[pinned.format]
    found = sorted(one for one in folder.iterdir() if one.suffix in suffixes and one.name != CALIBRATION)
    if len(found) != 1:
        names = ", ".join(one.name for one in found[:8]) or "none"
        raise DrivetrainError(
            f"Model `{pinned.id}` ({pinned.format}) has one file {' or '.join(suffixes)}; found: {names}.",
            looked=[str(folder)],
        )
    return found[0]


def _temperature(folder: Path) -> float:
    file = folder / CALIBRATION
    if not file.exists():
        return 1.0
    try:
        if file.stat().st_size > CALIBRATION_BYTES_MAX:
            raise ValueError(f"it has more than {CALIBRATION_BYTES_MAX:,} bytes")
        temperature = msgspec.json.decode(file.read_bytes(), type=Calibration).temperature
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"the temperature is {temperature}, which is no positive number")
    except (msgspec.DecodeError, ValueError) as error:
        raise DrivetrainError(f"`{CALIBRATION}` is damaged: {error}.", looked=[str(folder)]) from None
    return temperature


class TableScorer:
    """A model of numbers as a Scorer: rows in, classes, numbers or rankings out."""

    __slots__ = ("_predictor", "_reader", "_temperature", "pinned")

    def __init__(self, pinned: Pinned, predictor: Predictor, temperature: float = 1.0) -> None:
        from drivetrain.inference.rows import RowReader

        self.pinned = pinned
        self._predictor = predictor
        self._reader = RowReader(pinned, predictor.kinds)
        self._temperature = temperature

    def score(self, rows: Sequence[Row]) -> list[Scored]:
        """One result per row; one that cannot be read or computed has a fault."""
        from drivetrain.inference import rows as reading

        batch = self._reader.read(rows)
        signature = self.pinned.signature
        outcome = reading.predicted(self._predictor.predict, batch.values, signature)
        labels = signature.labels
        classes = (
            reading.classified(labels, *reading.tempered(outcome.numbers, self._temperature))
            if signature.task == "classification" and batch.values
            else []
        )
        results: list[Scored] = []
        for number, (start, end) in enumerate(batch.spans):
            fault = batch.faults.get(number) or next(
                (outcome.faults[place] for place in range(start, end) if place in outcome.faults), ""
            )
            if fault:
                results.append(Scored(fault=fault))
            elif signature.task == "ranking":
                results.append(reading.ranked(batch.ids[number], outcome.numbers[start:end, 0].tolist()))
            elif signature.task == "classification":
                results.append(classes[start])
            else:
                results.append(Scored(value=float(outcome.numbers[start, 0])))
        return results
