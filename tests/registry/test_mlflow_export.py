"""What a version becomes in MLflow's layout, and what of it the layout cannot say: told, and kept beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from registry_world import SIGNATURE, World, linear_onnx
from typer.testing import CliRunner

from drivetrain.cli.models import app
from drivetrain.core.models import Column, ModelVersionV1, Signature
from drivetrain.registry.store import Draft

GROWERS = Signature(
    task="classification",
    inputs=(
        Column(name="alcohol", dtype="float"),
        Column(name="strength", dtype="category", nullable=True, values=("light", "strong")),
    ),
    target="grower",
    labels=("grower-0", "grower-1"),
)


def texts_onnx() -> Any:
    """One input for each column, of which the category is a text."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Identity", ["alcohol"], ["y"])],
        "texts",
        [
            helper.make_tensor_value_info("alcohol", TensorProto.FLOAT, [None, 1]),
            helper.make_tensor_value_info("strength", TensorProto.STRING, [None, 1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def register(world: World, model: Any, signature: Signature = GROWERS) -> ModelVersionV1:
    files = {"model.onnx": model.SerializeToString()}
    return world.registry.register(Draft(name="grower", format="onnx", signature=signature, files=files))


def columns(world: World) -> list[dict[str, Any]]:
    described = json.loads((world.root / "out" / "MLmodel").read_text())
    return list(json.loads(described["signature"]["inputs"]))


def test_labels_and_categories_are_told_and_kept_beside_it(world: World) -> None:
    made = register(world, linear_onnx())
    done = world.registry.export("grower", world.root / "out", layout="mlflow")
    assert "0 grower-0, 1 grower-1." in done.lost[0]
    assert done.lost[1].startswith("`strength` is a category")
    assert "0 light, 1 strong." in done.lost[1]
    card = (world.root / "out" / "README.md").read_text()
    assert all(line in card for line in done.lost)
    # What the graph takes, so that MLflow's own check lets through what the model can compute.
    assert [one["type"] for one in columns(world)] == ["double", "double"]
    beside = msgspec.json.decode((world.root / "out" / "manifest.json").read_bytes(), type=ModelVersionV1)
    assert beside == made


def test_a_category_that_the_graph_takes_as_a_text_stays_one(world: World) -> None:
    register(world, texts_onnx())
    done = world.registry.export("grower", world.root / "out", layout="mlflow")
    assert [one["type"] for one in columns(world)] == ["double", "string"]
    assert not any("`strength`" in line for line in done.lost)


@pytest.mark.parametrize("layout", ["mlflow", "folder"])
def test_where_nothing_is_lost_nothing_is_said(world: World, layout: str) -> None:
    number = msgspec.structs.replace(
        SIGNATURE, inputs=(Column(name="a", dtype="float"), Column(name="b", dtype="float"))
    )
    register(world, linear_onnx(), number if layout == "mlflow" else GROWERS)
    assert world.registry.export("grower", world.root / "out", layout=layout).lost == ()


def test_the_command_says_what_is_lost(world: World) -> None:
    (world.root / "drivetrain.toml").write_text('[project]\nname = "shop"\n')
    from drivetrain.embedded.modelling import open_registry

    files = {"model.onnx": linear_onnx().SerializeToString()}
    open_registry(world.root).register(Draft(name="grower", format="onnx", signature=GROWERS, files=files))
    given = ["export", "grower", "--as", "mlflow", "--to", str(world.root / "out"), "--project", str(world.root)]
    ran = CliRunner().invoke(app, given)
    assert ran.exit_code == 0, ran.output
    assert "note: `strength` is a category" in ran.stderr
    assert "note: The labels are no part of MLflow's layout" in ran.stderr


@pytest.mark.slow
def test_our_own_export_comes_back_with_its_labels(tmp_path: Path) -> None:
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    import drivetrain as dt
    from drivetrain.embedded.modelling import importer_of
    from drivetrain.registry.candidates import Terms

    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "tests"\n')
    rows = np.random.default_rng(3).normal(size=(60, 2))
    estimator = LogisticRegression().fit(rows, rows[:, 0] > 0)
    labels, columns = ("thin", "strong"), ("alcohol", "sugar")
    made = dt.import_model(
        estimator, "wine", sample=rows, labels=labels, columns=columns, target="kind", project=tmp_path
    )
    registry = dt.open_registry(tmp_path)
    registry.export("wine", tmp_path / "out", layout="mlflow")
    again = importer_of(registry).import_path(tmp_path / "out", Terms(name="wine2"))
    assert again.signature == made.signature
    beside = tmp_path / "out" / "manifest.json"
    beside.write_text(beside.read_text().replace(made.files[0].sha256, "0" * 64))
    other = importer_of(registry).import_path(tmp_path / "out", Terms(name="wine3"))
    assert other.signature.labels != labels
