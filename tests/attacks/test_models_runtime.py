"""Models that are harmless until a row asks for more: bounded where they run, since no check and no trial can know."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pytest

from drivetrain.core.models import Column, Pinned, Signature
from drivetrain.inference.scorers import open_scorer
from drivetrain.registry.onnx_check import check_onnx

SIDE = 60_000
"""A square of so many floats has 14 GB."""
GROWN_MAX_KB = 600_000
REFUSED_WITHIN_S = 5.0


def grows_with_its_row(path: Path) -> None:
    """x above 1,000: the sum of a matrix of `SIDE` x `SIDE`; else x. Every tensor that stands in it is small."""
    onnx = pytest.importorskip("onnx", reason="the extra `train` is not installed")
    from onnx import helper

    floats, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    nodes = [
        helper.make_node("Greater", ["x", "most"], ["large"]),
        helper.make_node("Reshape", ["large", "one"], ["flat"]),
        helper.make_node("Expand", ["flat", "side"], ["mask"]),
        helper.make_node("Compress", ["ones", "mask"], ["kept"], axis=0),
        helper.make_node("Unsqueeze", ["kept", "zero"], ["row"]),
        helper.make_node("Unsqueeze", ["kept", "one"], ["column"]),
        helper.make_node("Add", ["row", "column"], ["square"]),
        helper.make_node("ReduceSum", ["square"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    given = [
        helper.make_tensor("ones", floats, [SIDE], np.ones(SIDE, np.float32).tobytes(), raw=True),
        helper.make_tensor("most", floats, [1], [1000.0]),
        *(helper.make_tensor(name, whole, [1], [value]) for name, value in (("zero", 0), ("one", 1), ("side", SIDE))),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", floats, [None, 1])], [value("y", floats, [None, 1])], given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())


def test_a_graph_whose_memory_depends_on_the_row_fails_that_row_alone(tmp_path: Path) -> None:
    grows_with_its_row(tmp_path / "model.onnx")
    check_onnx(tmp_path / "model.onnx")  # nothing in it is too large
    signature = Signature(task="regression", inputs=(Column(name="x", dtype="float"),), target="y")
    pinned = Pinned(name="grows", number=1, digest="grows", format="onnx", signature=signature)
    scorer, another = open_scorer(tmp_path, pinned), open_scorer(tmp_path, pinned)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    calm, greedy, after = scorer.score([[0.5], [2000.0], [1.0]])
    assert time.process_time() - start < REFUSED_WITHIN_S
    assert (calm.value, after.value) == (0.5, 1.0)
    assert "could not compute" in greedy.fault
    assert another.score([[2.0]])[0].value == 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < GROWN_MAX_KB
