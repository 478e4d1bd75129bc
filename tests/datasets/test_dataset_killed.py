"""A creator that is killed leaves the number, the shelf and the next creation as they were, and no rows behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dataset_killed import MOMENTS
from dataset_samples import NOW_NS, Place

from drivetrain.core.errors import DrivetrainError
from drivetrain.datasets import FromFile, sweep_strays
from drivetrain.datasets.numbers import LEFT_S, WRITE_S_MAX
from drivetrain.datasets.staging import open_bench
from drivetrain.datasets.workplaces import sweep_staging, working_folder

SECRET = b"secret-of-the-killed"
LATER_NS = NOW_NS + (LEFT_S + 1) * 1_000_000_000


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def halted(place: Place, moment: str) -> subprocess.Popen[str]:
    """A process that makes `golden` in the place's store, with the place's working folders, and stands still."""
    other = place.root.parent / "other"
    other.mkdir()
    (other / "lake").symlink_to(place.store)
    (other / "scratch").symlink_to(place.scratch)
    place.store.mkdir(exist_ok=True)
    place.scratch.mkdir(exist_ok=True)
    script = Path(__file__).with_name("dataset_killed.py")
    child = subprocess.Popen([sys.executable, str(script), str(other), moment], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "halted\n"
    return child


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def left(place: Place) -> list[str]:
    """Files below the store and the working folders."""
    folders = (place.store, place.scratch)
    return sorted(one.name for folder in folders for one in folder.rglob("*") if one.is_file())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_creator_leaves_everything_as_it_was(place: Place, moment: str) -> None:
    first = place.file("first.csv", "id,name\n1,a\n")
    child = halted(place, moment)
    try:
        assert sweep_staging(place.scratch.parent) == 0  # another place
        with working_folder(place.scratch):
            assert len(list(place.scratch.iterdir())) == 2, "what a living process holds is not swept"
    finally:
        kill(child)
    assert left(place), "the killed process left something, or this proves nothing"
    assert place.datasets.numbers("golden") == []
    with pytest.raises(DrivetrainError, match="There is no Dataset `golden`"):
        place.datasets.show("golden")

    datasets = place.over(place.objects, now_ns=lambda: LATER_NS)
    made = datasets.create("golden", FromFile(first)).dataset
    assert made.number == 1
    assert datasets.verify("golden@1").whole
    assert left(place) == sorted(["manifest.json", Path(made.files[0].path).name])
    assert not [path for path in place.store.rglob("*") if path.is_file() and SECRET in path.read_bytes()]
    place.state()


def test_a_file_without_a_manifest_is_left_only_when_no_creator_can_be_at_it(place: Place) -> None:
    made = place.datasets.create("golden", FromFile(place.file("a.csv", "id\n1\n"))).dataset
    token = Path(made.files[0].path).stem.removeprefix("rows-")
    others = [
        f"datasets/golden/2/rows-{token}.parquet",  # killed before its manifest
        f"datasets/golden/1/quarantine-{token[:8]}{'0' * 16}.parquet",  # lost the number, and was killed then
        f"datasets/new/1/rows-{token}.parquet",
    ]
    rewritten = f"datasets/golden/3/rows-{'0' * 16}.parquet"  # erasure's, which tells no time
    for path in (*others, rewritten):
        place.objects.put(path, b"rows")
    assert sweep_strays(place.objects, NOW_NS + LEFT_S * 1_000_000_000) == 0
    assert sweep_strays(place.objects, LATER_NS) == len(others)
    assert place.objects.list("datasets") == sorted([made.files[0].path, "datasets/golden/1/manifest.json", rewritten])
    assert sweep_strays(place.objects, LATER_NS) == 0


def test_a_creator_that_takes_longer_than_a_sweeper_waits_gives_up(place: Place) -> None:
    assert WRITE_S_MAX < LEFT_S

    class Slow:
        def __getattr__(self, name: str) -> object:
            return getattr(place.objects, name)

        def put_file(self, path: str, source: Path) -> None:
            place.objects.put_file(path, source)
            clock.append(NOW_NS + (WRITE_S_MAX + 1) * 1_000_000_000)

    clock = [NOW_NS]
    datasets = place.over(Slow(), now_ns=lambda: clock[-1])
    with pytest.raises(DrivetrainError, match="longer to write"):
        datasets.create("golden", FromFile(place.file("a.csv", "id\n1\n")))
    assert place.objects.list("datasets") == []
    place.state()


def test_a_working_folder_is_read_by_this_user_only_and_swept_when_nobody_holds_it(tmp_path: Path) -> None:
    below = tmp_path / "data" / "tmp"
    with open_bench(below) as bench:
        assert bench.folder.parent == below
        assert bench.folder.stat().st_mode & 0o777 == below.stat().st_mode & 0o777 == 0o700
        (bench.folder / "rows").write_text("decrypted")
        assert sweep_staging(tmp_path / "data") == 0
    assert list(below.iterdir()) == []
    abandoned = below / "drivetrain-dataset-abandoned"
    abandoned.mkdir()
    (abandoned / "held").touch()
    (abandoned / "rows").write_text("decrypted")
    begun = below / "drivetrain-dataset-begun"
    begun.mkdir()  # between its making and its lock
    (below / "notes").touch()
    assert sweep_staging(tmp_path / "data") == 1
    assert sorted(one.name for one in below.iterdir()) == ["drivetrain-dataset-begun", "notes"]
    assert sweep_staging(tmp_path / "nowhere") == 0
