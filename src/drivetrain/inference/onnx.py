"""Runs ONNX models with onnxruntime: rows of values in, probabilities or numbers out.

Takes either one tensor of the shape (rows, columns) or one named input per column, as skl2onnx makes them. One thread,
so that a model never takes its neighbours' cores. Graphs are optimised as far as `ORT_ENABLE_BASIC`: constants are
folded and idle nodes removed, which is the same on every machine; what lies above fuses operators by processor and so
changes last digits. No custom operators are loaded, no file but the model's own is read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.models import Signature
from drivetrain.inference.rows import RowFailed, Values

Floats64 = NDArray[np.float64]

THREADS = 1
"""Of one operator; a batch of small rows gains nothing from a second one."""
RUN_BYTES_MAX = 1024**3
"""Of what all ONNX models of a process compute with at a time, weights left out: a row takes kilobytes."""
MODEL_BYTES_MAX = 2 * 1024**3 - 1
"""What one protobuf message can hold."""
SUM_SLACK = 1e-3
"""How far probabilities may be from adding up to 1: float32 over thousands of labels."""

_KINDS = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
    "tensor(string)": "string",
}
_FLOATS = ("tensor(float)", "tensor(double)")
_ZIPMAPS = ("seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))")
_ERRORS = tuple(
    found
    for name in (
        "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoaded", "NoModel",
        "NoSuchFile", "NotImplemented", "RuntimeException",
    )
    if (found := getattr(ort_errors, name, None)) is not None
)  # fmt: skip
"""onnxruntime's errors have no base of their own; a newer one may lack some."""
_MEMORY_ADDRESS = b"_ORT_MEM_ADDR_"
"""Names a place in this process's memory as a tensor's data; no file has a reason to."""


class OnnxModel:
    """One loaded graph."""

    __slots__ = ("_columns", "_input", "_labels", "_one_by_one", "_output", "_ranks", "_session", "_zipped", "kinds")

    def __init__(self, file: Path, signature: Signature) -> None:
        """Raises: DrivetrainError where it cannot be loaded or does not fit the signature."""
        self._session = _session(file)
        self._labels = signature.labels if signature.task == "classification" else ()
        self._columns = [column.name for column in signature.inputs]
        inputs = {one.name: one for one in self._session.get_inputs()}
        for one in inputs.values():
            if one.type not in _KINDS:
                raise DrivetrainError(
                    f"The ONNX model takes `{one.name}` as {one.type}.", do=f"Known: {', '.join(_KINDS)}."
                )
        only = next(iter(inputs.values())) if len(inputs) == 1 else None
        self._input = only.name if only is not None and only.name not in self._columns else ""
        """The one tensor of all columns; empty where each has an input of its own."""
        if only is not None and self._input:
            _check_width(only, len(self._columns))
            self.kinds: Sequence[str] = [_KINDS[only.type]] * len(self._columns)
        else:
            self.kinds = [_KINDS[_named(inputs, name).type] for name in self._columns]
            if unknown := [name for name in inputs if name not in self._columns]:
                raise DrivetrainError(
                    f"The ONNX model takes an input `{unknown[0]}`, which its signature does not name.",
                    do=did_you_mean(unknown[0], self._columns),
                )
        self._ranks = {name: len(one.shape) for name, one in inputs.items()}
        self._one_by_one = _one_by_one(inputs.values())
        self._output, self._zipped = _output(self._session.get_outputs(), signature.task)

    def predict(self, values: Sequence[Values]) -> Floats64:
        """Shape (rows, numbers of one row). Raises: RowFailed where the model cannot compute a row among them."""
        if self._one_by_one and len(values) > 1:
            return np.concatenate([self.predict([one]) for one in values])
        try:
            (result,) = self._session.run([self._output], self._feed(values))
        except (*_ERRORS, ValueError, TypeError, RuntimeError) as error:
            raise RowFailed(f"The model could not compute it: {_first_line(error)}") from None
        numbers = self._unzipped(result) if self._zipped else np.asarray(result, dtype=np.float64)
        if not numbers.ndim or len(numbers) != len(values):
            raise RowFailed(f"The model gave a result of the shape {numbers.shape} for {len(values)} rows.")
        numbers = numbers.reshape(len(values), -1)
        if len(self._labels) > 1 and numbers.shape[1] > 1:
            _check_probabilities(numbers)
        return numbers

    def _feed(self, values: Sequence[Values]) -> dict[str, NDArray[Any]]:
        if self._input:
            table = np.array(values, dtype=_dtype(self.kinds[0]))
            return {self._input: table if self._ranks[self._input] == 2 else table.reshape(-1)}
        feed = {}
        for place, (name, kind) in enumerate(zip(self._columns, self.kinds, strict=True)):
            column = np.array([row[place] for row in values], dtype=_dtype(kind))
            feed[name] = column.reshape(-1, 1) if self._ranks[name] == 2 else column
        return feed

    def _unzipped(self, maps: Sequence[dict[Any, float]]) -> Floats64:
        """In the order of the labels: found by name, else whole numbers in their own order."""
        keys = list(maps[0]) if maps else []
        named = {str(key): key for key in keys}
        if set(named) == set(self._labels):
            keys = [named[label] for label in self._labels]
        elif self._labels and all(isinstance(key, int) for key in keys):
            keys.sort()
        elif self._labels:
            raise RowFailed(
                f"The model's classes are {', '.join(sorted(named))[:200]}, which the signature does not name."
            )
        return np.array([[one[key] for key in keys] for one in maps], dtype=np.float64)


@functools.cache
def _bound_memory() -> None:
    """One arena for every ONNX model of this process, of a bounded size: what a graph asks for at run time may depend
    on the row, so that no check and no trial can know it."""
    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg({"max_mem": RUN_BYTES_MAX}))


def _session(file: Path) -> Any:
    size = file.stat().st_size
    if size > MODEL_BYTES_MAX:
        raise DrivetrainError(
            f"The ONNX model has {size:,} bytes, the most is {MODEL_BYTES_MAX:,}.", looked=[str(file)]
        )
    content = file.read_bytes()
    if _MEMORY_ADDRESS in content:
        raise DrivetrainError("The ONNX model reads from memory that is not its own.", looked=[str(file)])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4  # errors reach us as exceptions
    # Of bytes there is no folder beside them that a tensor could be read from; and no other format is guessed.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")  # weights do not count
    try:
        _bound_memory()
        return onnxruntime.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])
    except (*_ERRORS, ValueError, RuntimeError) as error:
        raise DrivetrainError(
            f"onnxruntime {onnxruntime.__version__} cannot load the ONNX model: {_first_line(error)}",
            looked=[str(file)],
            do="The file is damaged, keeps tensors in other files, or needs operators that are not standard.",
        ) from None


def _named(inputs: dict[str, Any], name: str) -> Any:
    if name not in inputs:
        raise DrivetrainError(f"The ONNX model takes no input `{name}`.", do=did_you_mean(name, inputs))
    one = inputs[name]
    if len(one.shape) > 2 or (len(one.shape) == 2 and isinstance(one.shape[1], int) and one.shape[1] != 1):
        raise DrivetrainError(
            f"The ONNX model takes `{name}` in the shape {one.shape}; one column has [rows] or [rows, 1]."
        )
    return one


def _check_width(only: Any, columns: int) -> None:
    fits = len(only.shape) == 2 or (len(only.shape) == 1 and columns == 1)
    width = only.shape[1] if len(only.shape) == 2 else 1
    if not fits or (isinstance(width, int) and width != columns):
        raise DrivetrainError(
            f"The ONNX model takes `{only.name}` in the shape {only.shape}; its signature has {columns} columns.",
            do="Name as many columns as it takes, in their order.",
        )


def _one_by_one(inputs: Any) -> bool:
    """Whether the graph is fixed at one row."""
    fixed = {one.shape[0] for one in inputs if one.shape and isinstance(one.shape[0], int)}
    if fixed - {1}:
        raise DrivetrainError(
            f"The ONNX model takes exactly {max(fixed)} rows at a time.", do="Export it with a batch of any size."
        )
    return bool(fixed)


def _output(outputs: Sequence[Any], task: str) -> tuple[str, bool]:
    """(name, whether it is a list of dicts) of the output that holds probabilities or the number."""
    zipped = [one.name for one in outputs if one.type in _ZIPMAPS]
    floats = [one.name for one in outputs if one.type in _FLOATS]
    if task != "regression" and len(zipped) == 1:
        return zipped[0], True
    likely = [name for name in floats if "prob" in name.lower()] if task != "regression" else []
    found = floats if len(floats) == 1 else likely
    if len(found) != 1:
        listed = ", ".join(f"`{one.name}` {one.type}" for one in outputs)
        wanted = "probabilities" if task == "classification" else "numbers"
        raise DrivetrainError(
            f"The ONNX model has no output that is surely its {wanted}: {listed[:500]}.",
            do=f"Export it with one float output for a {task}, beside the label's.",
        )
    return found[0], False


def _check_probabilities(numbers: Floats64) -> None:
    finite = numbers[np.isfinite(numbers).all(axis=1)]
    if (finite < -SUM_SLACK).any() or (np.abs(finite.sum(axis=1) - 1) > SUM_SLACK).any():
        raise RowFailed(
            "The model's output holds no probabilities: they do not add up to 1. End its graph with Softmax."
        )


def _dtype(kind: str) -> Any:
    return {"string": object, "bool": np.bool_}.get(kind, kind)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
