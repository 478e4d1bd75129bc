"""Versions and aliases through the registry's door: numbered, immutable, proved, and told by the control log."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from registry_world import HOUR_NS, SIGNATURE, T0_NS, World, draft

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import ModelVersionV1, Pinned
from drivetrain.project.pins import pins
from drivetrain.registry.store import Draft, Registry

pytestmark = pytest.mark.slow

PROCESS = str(Path(__file__).with_name("registering.py"))


def test_versions_are_numbered_and_found_by_every_name(world: World) -> None:
    first = world.registry.register(draft(content=b"one", owner="shop@acme.example", metrics={"rmse": 0.5}))
    second = world.registry.register(draft(content=b"two"))
    assert (first.number, second.number) == (1, 2)
    assert first.digest != second.digest
    assert first.made_ns == T0_NS
    assert first.made_by == "mia"
    world.registry.move_alias("price", "champion", 1, "the first")
    names = ("price", "price@champion", "price@1", "price/2", "models:/price@champion", "models:/price/2")
    found = {name: world.registry.find(name).number for name in names}
    assert found == {
        "price": 2, "price@champion": 1, "price@1": 1, "price/2": 2, "models:/price@champion": 1, "models:/price/2": 2,
    }  # fmt: skip
    assert world.registry.names() == ["price"]
    assert [one.number for one in world.registry.versions("price")] == [1, 2]
    assert world.registry.find("price@1") == first


def test_the_digest_is_over_format_signature_paths_and_contents(world: World) -> None:
    base = Draft(name="price", format="onnx", signature=SIGNATURE, files={"a.onnx": b"x", "b": b"y"})
    other = msgspec.structs.replace(SIGNATURE, target="cost")
    drafts = [
        base,
        msgspec.structs.replace(base, format="xgboost"),
        msgspec.structs.replace(base, signature=other),
        msgspec.structs.replace(base, files={"a.onnx": b"y", "b": b"x"}),
        msgspec.structs.replace(base, files={"a.onnx": b"x", "c": b"y"}),
        msgspec.structs.replace(base, files={"a.onnx": b"xy", "b": b""}),
    ]
    digests = [world.registry.register(one).digest for one in drafts]
    assert len(set(digests)) == len(drafts)
    assert world.registry.register(msgspec.structs.replace(base, owner="x", metrics={"m": 1.0})).digest == digests[0]


def test_a_report_is_kept_once_the_number_is_known_and_before_the_version_is_there(world: World) -> None:
    seen: list[tuple[int, list[int]]] = []

    def keep(number: int) -> str:
        seen.append((number, world.registry.numbers("price")))
        return f"report-of-{number}"

    made = [world.registry.register(draft(content=bytes([n]), report=keep)) for n in range(2)]
    assert [one.report for one in made] == ["report-of-1", "report-of-2"]
    assert seen == [(1, []), (2, [1])]
    assert world.registry.version("price", 2).report == "report-of-2"


def test_lineage_says_what_a_version_was_made_from(world: World) -> None:
    world.lineage.made("dataset:golden@3")
    made = world.registry.register(draft(dataset="golden@3", inputs=("file:x.onnx@ab12",), code_hash="5b" * 32))
    assert world.lineage.upstream(made.artifact) == {"dataset:golden@3": 1, "file:x.onnx@ab12": 1}
    assert "model:price@1" in world.lineage.downstream("dataset:golden@3")


def test_a_moved_alias_is_an_event_and_what_was_live_at_a_time_is_answered(world: World) -> None:
    for content in (b"one", b"two"):
        world.registry.register(draft(content=content))
    moves = []
    for hour, number in ((1, 1), (3, 2), (5, 1)):
        world.now_ns = T0_NS + hour * HOUR_NS
        moves.append(world.registry.move_alias("price", "champion", number, f"hour {hour}"))
    world.registry.move_alias("price", "challenger", 2, "tries")
    assert [one.before for one in moves] == [0, 1, 2]
    stood = [world.registry.alias_at("price", "champion", T0_NS + hour * HOUR_NS) for hour in (0, 1, 2, 3, 4, 9)]
    assert [one.number if one else None for one in stood] == [None, 1, 1, 2, 2, 1]
    assert stood[3] == moves[1]
    assert moves[1].digest == world.registry.version("price", 2).digest
    assert moves[1].actor == "mia"
    assert world.registry.aliases("price") == {"challenger": 2, "champion": 1}
    assert world.kinds()[-1] == ("model.alias", "price@challenger")
    assert world.registry.history("price")[:3] == moves


def test_a_project_resolves_the_references_that_the_registry_resolves(world: World) -> None:
    world.registry.register(draft(thresholds={"0.02": 0.9}))
    world.registry.move_alias("price", "champion", 1, "first")
    found = pins({"a.py": b'"models:/price@champion" "models:/price/1" "models:/price@none"'}, world.data)
    assert found == {
        "models:/price@champion": world.registry.resolve("price@champion"),
        "models:/price/1": world.registry.resolve("price/1"),
    }


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("prize", "Did you mean `price`"),
        ("price@7", "Its versions: 1"),
        ("price@champ", "Did you mean `champion`"),
        ("Price", "names no model"),
        ("../price", "names no model"),
        ("price@0", "names no model"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(world: World, reference: str, said: str) -> None:
    world.registry.register(draft())
    world.registry.move_alias("price", "champion", 1, "")
    with pytest.raises(DrivetrainError) as caught:
        world.registry.find(reference)
    assert said in str(caught.value)


def test_reading_a_registry_that_is_not_there_makes_nothing(world: World) -> None:
    assert world.registry.names() == []
    with pytest.raises(DrivetrainError, match="There is no model `price`"):
        world.registry.find("price")
    assert world.listing() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Price"}, "no name for a model"),
        ({"name": ".."}, "no name for a model"),
        ({"format": "pickle"}, "no format"),
        ({"files": {}}, "without any file"),
        ({"files": {"../x": b""}}, "no path of a file"),
        ({"files": {"/etc/x": b""}}, "no path of a file"),
        ({"files": {".hidden": b""}}, "no path of a file"),
        ({"files": {f"f{n}": b"" for n in range(65)}}, "at most 64 files"),
        ({"dataset": "a:b@@"}, "no artifact"),
        ({"signature": msgspec.structs.replace(SIGNATURE, inputs=())}, "input columns"),
        ({"signature": msgspec.structs.replace(SIGNATURE, task="classification", labels=("a", "a"))}, "there twice"),
        ({"signature": msgspec.structs.replace(SIGNATURE, inputs=SIGNATURE.inputs * 2)}, "there twice"),
        ({"signature": msgspec.structs.replace(SIGNATURE, task="ranking")}, "lists its candidates"),
    ],
)
def test_what_cannot_be_registered_leaves_nothing(world: World, change: dict[str, object], said: str) -> None:
    world.registry.register(draft())
    before, noted = world.listing(), world.kinds()
    with pytest.raises(DrivetrainError, match=said):
        world.registry.register(msgspec.structs.replace(draft(), **change))
    assert (world.listing(), world.kinds()) == (before, noted)


def test_a_version_that_cannot_be_noted_is_withdrawn(world: World) -> None:
    class Refusing:
        def made(self, *_: object, **__: object) -> None:
            raise DrivetrainError("The control log was changed from outside.")

    registry = Registry(world.data / "models", world.control, Refusing())  # type: ignore[arg-type]
    with pytest.raises(DrivetrainError, match="changed from outside"):
        registry.register(draft())
    assert world.registry.names() == []
    assert world.registry.register(draft()).number == 1


def test_changed_files_are_not_loaded_and_verify_says_which(world: World) -> None:
    made = world.registry.register(draft())
    pinned = world.registry.resolve("price")
    folder = world.registry.open(pinned)
    assert (folder / "model.onnx").read_bytes() == b"weights"
    assert world.registry.verify("price").whole

    (folder / "model.onnx").write_bytes(b"Weights")
    (folder / "more.bin").write_bytes(b"")
    for found in (_refusal(world, pinned), " ".join(world.registry.verify("price").findings)):
        assert "`model.onnx` was changed" in found
        assert "`more.bin` is not part of it" in found
    (folder / "more.bin").unlink()
    (folder / "model.onnx").unlink()
    assert "`model.onnx` is missing" in _refusal(world, pinned)
    (folder / "model.onnx").symlink_to("/etc/passwd")
    assert "link" in _refusal(world, pinned)
    assert made.number == 1


def test_a_manifest_that_was_rewritten_with_its_files_is_found(world: World) -> None:
    """Whoever changes files, digest and manifest alike still faces the Snapshot's pin and the chained log."""
    world.registry.register(draft())
    pinned = world.registry.resolve("price")
    forger = World(world.root / "forger")
    forged = forger.registry.register(draft(content=b"evil"))
    place = world.data / "models/price/1"
    (place / "artifact/model.onnx").write_bytes(b"evil")
    (place / "model.json").write_bytes(msgspec.json.encode(forged))
    assert "its manifest tells another digest" in _refusal(world, pinned)
    assert "Its digest is not the one in record 1 of the control log." in world.registry.verify("price").findings


def test_metrics_that_were_touched_up_are_found(world: World) -> None:
    world.registry.register(draft(metrics={"accuracy": 0.7}))
    path = world.data / "models/price/1/model.json"
    path.write_text(path.read_text().replace("0.7", "0.9"))
    (finding,) = world.registry.verify("price").findings
    assert finding == "Its manifest is not what record 1 of the control log says was made."


def test_an_alias_that_was_moved_by_hand_is_found_and_the_next_move_mends_it(world: World) -> None:
    for content in (b"one", b"two"):
        world.registry.register(draft(content=content))
    world.registry.move_alias("price", "champion", 1, "")
    path = world.data / "models/price/aliases.json"
    path.write_text(json.dumps({"type": "aliases.1", "aliases": {"champion": 2, "sneaked": 1}}))
    told = " ".join(world.registry.verify("price@1").findings)
    assert "`champion` stands at 2, and the control log says 1" in told
    assert "`sneaked` stands at 1, and the control log says nothing" in told
    world.registry.move_alias("price", "challenger", 2, "")
    assert world.registry.aliases("price") == {"challenger": 2, "champion": 1}
    assert world.registry.verify("price@1").whole


def test_an_alias_is_not_moved_to_files_that_were_changed(world: World) -> None:
    world.registry.register(draft())
    (world.data / "models/price/1/artifact/model.onnx").write_bytes(b"x")
    with pytest.raises(DrivetrainError, match="not what was approved"):
        world.registry.move_alias("price", "champion", 1, "")
    assert world.registry.history("price") == []


def test_diff_tells_signature_metrics_dataset_and_files(world: World) -> None:
    world.registry.register(draft(dataset="golden@1", metrics={"rmse": 0.5}))
    world.registry.register(
        msgspec.structs.replace(
            draft(content=b"WEIGHTS", dataset="golden@2", metrics={"rmse": 0.4}),
            signature=msgspec.structs.replace(SIGNATURE, target="cost"),
        )
    )
    found = world.registry.diff("price@1", "price@2")
    assert [(one.name, one.before, one.after) for one in (*found.facts, *found.metrics, *found.signature)] == [
        ("dataset", "golden@1", "golden@2"), ("rmse", 0.5, 0.4), ("target", "price", "cost"),
    ]  # fmt: skip
    assert [one.name for one in found.files] == ["model.onnx"]
    assert world.registry.diff("price@1", "price@1").is_same


def test_an_export_is_noted_and_replaces_nothing(world: World) -> None:
    made = world.registry.register(draft(owner="shop@acme.example", licence="Apache-2.0"))
    to = world.root / "out"
    done = world.registry.export("price", to)
    assert done.files == ("README.md", "artifact/model.onnx", "model.json")
    assert msgspec.json.decode((to / "model.json").read_bytes(), type=ModelVersionV1) == made
    card = (to / "README.md").read_text()
    assert "Apache-2.0" in card
    assert made.digest in card
    assert world.kinds()[-1] == ("exported", "model:price@1")
    with pytest.raises(DrivetrainError, match="is there already"):
        world.registry.export("price", to)


def test_threads_that_register_at_once_get_different_numbers(world: World) -> None:
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: numbers.append(world.registry.register(draft(content=bytes([n]))).number))
        for n in range(8)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(numbers) == list(range(1, 9))
    assert all(world.registry.verify(f"price@{number}").whole for number in numbers)


def test_two_processes_that_register_at_once_get_different_numbers(world: World) -> None:
    children = [
        subprocess.Popen([sys.executable, PROCESS, str(world.root), "none", "6"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [child.communicate()[0].split() for child in children]
    assert all(child.returncode == 0 for child in children)
    assert sorted(int(number) for numbers in said for number in numbers) == list(range(1, 13))
    assert all(world.registry.verify(f"price@{number}").whole for number in range(1, 13))
    assert world.listing()[-1] == "tmp/models.lock"


@pytest.mark.parametrize("moment", ["files", "manifest", "renamed", "noted"])
def test_a_killed_process_leaves_a_whole_version_or_none(world: World, moment: str) -> None:
    world.registry.register(draft(content=b"before"))
    child = subprocess.Popen([sys.executable, PROCESS, str(world.root), moment, "1"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "halted\n"
    child.kill()
    child.wait()
    child.stdout.close()

    published = moment in ("renamed", "noted")
    assert world.registry.numbers("price") == ([1, 2] if published else [1])
    assert any("drivetrain-model-" in one for one in world.listing()), "the killed process left something"
    made = world.registry.register(draft(content=b"after"))
    assert made.number == (3 if published else 2)
    assert all(world.registry.verify(f"price@{one}").whole for one in world.registry.numbers("price"))
    assert not [one for one in world.listing() if re.search(r"drivetrain-model-|unnoted", one)]
    said = {subject for kind, subject in world.kinds() if kind == "made"}
    assert said == {f"model:price@{one}" for one in world.registry.numbers("price")}


def _refusal(world: World, pinned: Pinned) -> str:
    with pytest.raises(DrivetrainError) as caught:
        world.registry.open(pinned)
    return str(caught.value)
