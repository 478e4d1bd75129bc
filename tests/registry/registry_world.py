"""A registry with its control log and the scorers that serve, and small models of every format.

Libraries are imported by whoever asks for a model of theirs: processes that only register start in a moment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drivetrain.adapters.sqlite import open_control_log
from drivetrain.core.models import Column, Signature
from drivetrain.embedded.modelling import LinearTexts, importer_of
from drivetrain.lineage.lineage import Lineage
from drivetrain.registry.candidates import Terms
from drivetrain.registry.importing import Importer
from drivetrain.registry.store import Draft, Registry

T0_NS = 1_767_225_600_000_000_000
"""2026-01-01T00:00:00Z."""
HOUR_NS = 3_600_000_000_000
SIGNATURE = Signature(task="regression", inputs=(Column(name="x", dtype="float"),), target="price")


class World:
    """The registry of one data folder; `now_ns` is its clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.now_ns = T0_NS
        self.control = open_control_log(self.data, root / "keys", now_ns=lambda: self.now_ns)
        self.lineage = Lineage(self.control, actor="mia", now_ns=lambda: self.now_ns)
        self.registry = Registry(
            self.data / "models", self.control, self.lineage, now_ns=lambda: self.now_ns, actor="mia"
        )

    @property
    def importer(self) -> Importer:
        return importer_of(self.registry)

    def listing(self) -> list[str]:
        """Every file and folder of the registry, and of the place where versions are put together."""
        folders = [self.data / "models", self.data / "tmp"]
        return sorted(str(one.relative_to(self.data)) for folder in folders for one in folder.rglob("*"))

    def kinds(self) -> list[tuple[str, str]]:
        return [(one.kind, one.subject) for one in self.control.records()]


def draft(name: str = "price", content: bytes = b"weights", **given: Any) -> Draft:
    return Draft(name=name, format="onnx", signature=SIGNATURE, files={"model.onnx": content}, **given)


def terms(name: str = "price", **given: Any) -> Terms:
    return Terms(name=name, **given)


def linear_onnx(weights: tuple[float, ...] = (2.0, -1.0)) -> Any:
    """y = x @ weights, of one float input (rows, len(weights))."""
    from onnx import TensorProto, helper

    width = len(weights)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor("w", TensorProto.FLOAT, [width, 1], weights)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def rows_and_classes(count: int = 200, seed: int = 7) -> tuple[Any, Any]:
    """Numbers (count, 3) and one of three classes each."""
    import numpy as np

    rows = np.random.default_rng(seed).normal(size=(count, 3))
    return rows, (rows[:, 0] > 0).astype(int) + (rows[:, 1] > 0)


def lightgbm_text() -> str:
    import lightgbm

    rows, classes = rows_and_classes()
    model = lightgbm.LGBMClassifier(n_estimators=3, num_leaves=5, verbose=-1, n_jobs=1).fit(rows, classes)
    return str(model.booster_.model_to_string())


def xgboost_raw(kind: str = "json") -> bytes:
    import xgboost

    rows, classes = rows_and_classes()
    model = xgboost.XGBClassifier(n_estimators=3, max_depth=3, n_jobs=1).fit(rows, classes)
    return bytes(model.get_booster().save_raw(kind))


def linear_text_files() -> dict[str, bytes]:
    import numpy as np

    from drivetrain.registry.candidates import FittedBlock, FittedText

    block = FittedBlock(
        analyzer="word", ngrams=(1, 1), terms=("card", "refund"), idf=np.ones(2), use_idf=True, lowercase=True,
        strip_accents="", stop_words=(), binary=False, sublinear_tf=False, norm="l2", weight=1.0,
    )  # fmt: skip
    model = FittedText(
        blocks=(block,), labels=("card", "refund"), weights=np.eye(2), bias=np.zeros(2), link="softmax"
    )  # fmt: skip
    return dict(LinearTexts().write(model))
