"""Runs LightGBM and XGBoost models in their own formats: rows of numbers in, probabilities or numbers out.

Both libraries trust what they load: a child that points beyond its tree, or one stray character among parameters, ends
or hangs the process (seen with LightGBM 4.7 and XGBoost 3.2). So a library never sees the file. `lightgbm_text` and
`xgboost_document` read it and prove every tree to be a tree within its arrays, and the library is given a text written
anew from what was proven. One thread; a category is its code, what is missing is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Signature
from drivetrain.inference.booster_facts import Unsound
from drivetrain.inference.lightgbm_text import read_lightgbm
from drivetrain.inference.rows import RowFailed, Values, sigmoid, softmax
from drivetrain.inference.xgboost_document import read_xgboost
from drivetrain.registry.ubjson import decode_ubjson, json_of

Floats64 = NDArray[np.float64]

THREADS = 1
"""A row's trees take microseconds; a second thread costs more than it gives."""
MODEL_BYTES_MAX = 512 * 1024**2
"""Thousands of deep trees; a larger one takes minutes to check and to load."""
_SEVERAL = ("multiclass", "multiclassova", "multi:softprob", "multi:softmax")
_BINARY = ("binary", "cross_entropy", "binary:logistic", "binary:logitraw", "reg:logistic")


class LightGbmModel:
    """One loaded booster; probabilities and numbers as LightGBM itself gives them."""

    __slots__ = ("_booster", "kinds")

    def __init__(self, file: Path, signature: Signature) -> None:
        """Raises: DrivetrainError where it is no sound model, or not one of this signature."""
        import lightgbm

        content = _content(file)
        try:
            facts, text = read_lightgbm(content.decode())
        except (UnicodeDecodeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise _damaged("LightGBM", file, f"{type(error).__name__}: {error}"[:200]) from None
        except Unsound as unsound:
            raise _damaged("LightGBM", file, str(unsound)) from None
        _check_fit("LightGBM", signature, columns=facts.columns, outputs=facts.outputs, objective=facts.objective)
        try:
            self._booster = lightgbm.Booster(model_str=text)
        except lightgbm.basic.LightGBMError as error:
            raise _damaged("LightGBM", file, str(error)[:200]) from None
        self.kinds: Sequence[str] = ["float64"] * len(signature.inputs)

    def predict(self, values: Sequence[Values]) -> Floats64:
        """Shape (rows, numbers of one row)."""
        numbers = self._booster.predict(np.array(values, dtype=np.float64), num_threads=THREADS)
        return np.asarray(numbers, dtype=np.float64).reshape(len(values), -1)


class XgBoostModel:
    """One loaded booster; its margins become probabilities in float64."""

    __slots__ = ("_booster", "_link", "_margins", "kinds")

    def __init__(self, file: Path, signature: Signature) -> None:
        """Raises: DrivetrainError where it is no sound model, or not one of this signature."""
        import xgboost

        content = _content(file)
        self._booster = xgboost.Booster()
        try:
            written = content if file.suffix == ".json" else json_of(decode_ubjson(content))
            facts, anew = read_xgboost(msgspec.json.decode(written))
            self._booster.load_model(bytearray(msgspec.json.encode(anew)))
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, xgboost.core.XGBoostError) as error:
            raise _damaged("XGBoost", file, (str(error).strip().splitlines() or [""])[0][:200]) from None
        except Unsound as unsound:
            raise _damaged("XGBoost", file, str(unsound)) from None
        _check_fit("XGBoost", signature, columns=facts.columns, outputs=facts.outputs, objective=facts.objective)
        self._booster.set_param({"nthread": THREADS})
        self._margins = signature.task == "classification"
        self._link = softmax if facts.outputs > 1 else sigmoid
        self.kinds: Sequence[str] = ["float32"] * len(signature.inputs)

    def predict(self, values: Sequence[Values]) -> Floats64:
        """Shape (rows, numbers of one row)."""
        numbers = self._booster.inplace_predict(
            np.array(values, dtype=np.float32),
            predict_type="margin" if self._margins else "value",
            missing=np.nan,
            validate_features=False,
            strict_shape=True,
        )
        table = np.asarray(numbers, dtype=np.float64).reshape(len(values), -1)
        if not self._margins:
            return table
        if not np.isfinite(table).all():
            raise RowFailed("The model gave a margin that is not finite.")
        return self._link(table)


def _content(file: Path) -> bytes:
    size = file.stat().st_size
    if size > MODEL_BYTES_MAX:
        raise DrivetrainError(f"`{file.name}` has {size:,} bytes, the most is {MODEL_BYTES_MAX:,}.", looked=[str(file)])
    return file.read_bytes()


def _damaged(library: str, file: Path, why: str) -> DrivetrainError:
    return DrivetrainError(f"`{file.name}` is no sound {library} model: {why}.", looked=[str(file)])


def _check_fit(library: str, signature: Signature, *, columns: int, outputs: int, objective: str) -> None:
    if columns != len(signature.inputs):
        raise DrivetrainError(
            f"The {library} model takes {columns} columns, its signature names {len(signature.inputs)}.",
            do="Name as many columns as it takes, in their order.",
        )
    labels = len(signature.labels) if signature.task == "classification" else 0
    if not labels:
        if outputs != 1 or objective in _SEVERAL:
            raise DrivetrainError(
                f"The {library} model ({objective}) gives {outputs} numbers per row; a {signature.task} takes one."
            )
        return
    if outputs > 1 if labels == outputs else (outputs, labels) == (1, 2):
        if objective in (_SEVERAL if outputs > 1 else _BINARY):
            return
        raise DrivetrainError(
            f"The {library} model's objective is `{objective}`, which gives no probabilities.",
            do=f"Known: {', '.join(_SEVERAL if outputs > 1 else _BINARY)}.",
        )
    raise DrivetrainError(f"The {library} model tells {max(outputs, 2)} classes apart, its signature names {labels}.")
