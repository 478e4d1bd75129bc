"""`drivetrain models` and `dt.import_model` in a project: import, list, show, diff, alias, history, verify, export."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import msgspec
import pytest
from registry_world import linear_onnx, rows_and_classes
from typer.testing import CliRunner, Result

from drivetrain.cli.models import app
from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.modelling import import_model, open_registry
from drivetrain.project.pins import reference_mistake

pytestmark = pytest.mark.slow

SETTINGS = '[project]\nname = "shop"\n'


class Shop:
    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "drivetrain.toml").write_text(SETTINGS)
        for name, weights in (("one", (2.0, -1.0)), ("two", (3.0, -1.0))):
            (root / f"{name}.onnx").write_bytes(linear_onnx(weights).SerializeToString())

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--project", str(self.root)])

    def said(self, *arguments: str) -> str:
        ran = self.run(*arguments)
        assert ran.exit_code == 0, ran.output
        return ran.output

    def imported(self, name: str = "one") -> str:
        given = ("--name", "price", "--columns", "rooms,age", "--target", "price", "--owner", "shop@acme.example")
        return self.said("import", str(self.root / f"{name}.onnx"), *given)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_from_import_to_alias_to_export(shop: Shop) -> None:
    assert "There is no model." in shop.said("list")
    assert "price@1: onnx, digest " in shop.imported()
    assert "It is live nowhere." in shop.imported("two")
    assert "price@champion: to 1," in shop.said("alias", "price", "champion", "1", "--reason", "first")
    assert "from 1 to 2," in shop.said("alias", "price", "champion", "2", "--reason", "better")
    listed = shop.said("list")
    assert "champion 2" in listed
    shown = shop.said("show", "price@champion")
    for part in ("price@2 of 1, 2", "rooms", "float", "shop@acme.example", "price (regression)"):
        assert part in shown
    assert "model.onnx" in shop.said("diff", "price@1", "price@2")
    assert "are the same" in shop.said("diff", "price@2", "price@champion")
    assert shop.said("verify").count("whole: model:price@") == 2
    assert "model.json" in shop.said("export", "price@1", "--to", str(shop.root / "out"))


def test_an_alias_that_stands_for_an_older_version_is_not_read_as_the_newest(shop: Shop) -> None:
    shop.imported()
    shop.imported("two")
    moved = shop.run("alias", "price", "champion", "1", "--reason", "first")
    assert "until it loads the project anew: restart it, or send it SIGHUP" in moved.stderr
    head, line = shop.said("list").splitlines()
    cells = dict(zip(re.split(r"  +", head.strip()), re.split(r"  +", line.strip()), strict=True))
    assert (cells["model"], cells["aliases"], cells["newest"]) == ("price", "champion 1", "2")


def test_the_hints_for_an_alias_are_commands_that_work(shop: Shop) -> None:
    printed = shop.run("import", str(shop.root / "one.onnx"), "--name", "price", "--target", "price").stderr
    _, do = reference_mistake("models:/price@challenger", open_registry(shop.root).folder.parent)
    for said in (printed, do):
        command = re.findall(r"`drivetrain models (alias [^`]+)`", said)
        assert shop.said(*shlex.split(command[0].replace("NUMBER", "1"))).startswith("price@")


def test_a_threshold_is_told_with_every_digit(shop: Shop) -> None:
    """What is copied into a route must not be lower than what was tested."""
    registry = open_registry(shop.root)
    shop.imported()
    given = registry.find("price")
    manifest = next(shop.root.rglob("price/1/model.json"))
    manifest.write_bytes(
        msgspec.json.encode(msgspec.structs.replace(given, thresholds={"0.02": 0.511669, "0.05": 0.390043}))
    )
    assert "0.511669 for a risk of 2 %, 0.390043 for a risk of 5 %" in shop.said("show", "price")


def test_a_difference_has_its_units(shop: Shop) -> None:
    shop.imported()
    (shop.root / "two.onnx").write_bytes(linear_onnx((4.0, -1.0)).SerializeToString())
    shop.imported("two")
    sizes = [one.stat().st_size for one in sorted(shop.root.rglob("artifact/model.onnx"))]
    told = next(line for line in shop.said("diff", "price@1", "price@2").splitlines() if line.startswith("model.onnx"))
    cells = [rf"{size} bytes, SHA-256 [0-9a-f]{{16}}" for size in sizes]
    assert re.fullmatch(rf"model.onnx +{cells[0]} +{cells[1]}", told.strip())


def test_history_answers_what_was_live_at_a_time(shop: Shop) -> None:
    shop.imported()
    assert "had no alias." in shop.said("history", "price")
    shop.said("alias", "price", "champion", "1", "--reason", "the first one")
    assert "the first one" in shop.said("history", "price")
    assert "champion" in shop.said("history", "price", "--at", "now")
    assert "had no alias then" in shop.said("history", "price", "--at", "2020-01-01")
    (move,) = json.loads(shop.said("history", "price", "--json"))["moves"]
    assert (move["alias"], move["number"], move["reason"]) == ("champion", 1, "the first one")


def test_json_has_what_the_pages_have(shop: Shop) -> None:
    shop.imported()
    shop.imported("two")
    shop.said("alias", "price", "champion", "1", "--reason", "first")
    (model,) = json.loads(shop.said("list", "--json"))["models"]
    assert (model["number"], model["aliases"]) == (2, {"champion": 1})
    assert json.loads(shop.said("show", "price", "--json"))["signature"]["target"] == "price"
    assert json.loads(shop.said("diff", "price@1", "price@2", "--json"))["same"] is False
    assert json.loads(shop.said("verify", "price@1", "--json"))["whole"] is True


def test_what_is_wrong_is_told_on_one_page_with_exit_code_1(shop: Shop) -> None:
    shop.imported()
    for arguments, said in (
        (("show", "prize"), "Did you mean `price`"),
        (("import", str(shop.root / "none.onnx"), "--name", "x"), "There is nothing at"),
        (("alias", "price", "Champion", "1", "--reason", "x"), "is no alias"),
        (("alias", "price", "champion", "9", "--reason", "x"), "has no version 9"),
        (("export", "price", "--as", "tarball"), "is no layout"),
        (("history", "prize"), "There is no model"),
    ):
        ran = shop.run(*arguments)
        assert (ran.exit_code, said in ran.output) == (1, True), ran.output


def test_verify_ends_with_1_where_a_byte_was_changed(shop: Shop) -> None:
    shop.imported()
    file = next(shop.root.rglob("artifact/model.onnx"))
    file.write_bytes(file.read_bytes().replace(b"linear", b"linearr"[:6][::-1]))
    ran = shop.run("verify")
    assert ran.exit_code == 1
    assert "model:price@1: `Model.onnx` was changed".lower() in ran.output.lower()


def test_an_estimator_is_imported_from_python(shop: Shop) -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="the extra `train` is not installed")
    rows, _ = rows_and_classes()
    fitted = linear.Ridge().fit(rows, rows[:, 0])
    made = import_model(
        fitted, "price", sample=rows, columns=["a", "b", "c"], target="price", licence="Apache-2.0", project=shop.root
    )
    assert open_registry(shop.root).find("price") == made
    assert (made.licence, made.source) == ("Apache-2.0", "sklearn Ridge")
    with pytest.raises(DrivetrainError, match="no name for a model"):
        import_model(fitted, "Price", sample=rows, project=shop.root)
