"""What every `ObjectStore` promises, in a folder and on an S3-compatible server; and where a lake stands."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lake_stores import SECRET, Store, s3_options

from drivetrain.adapters.lake_places import lake_place
from drivetrain.core.errors import DrivetrainError

pytestmark = pytest.mark.slow

NAMES = ("model.onnx", "a b/ü=1%20/#?&.bin", "deep/er/and/deeper/x", "deep.er")


@pytest.mark.parametrize("path", NAMES)
def test_a_file_is_what_was_put(store: Store, path: str) -> None:
    objects = store.open().objects
    assert objects.get(path) is None
    assert objects.local(path) is None
    objects.put(path, b"one\0")
    assert store.open().objects.get(path) == b"one\0"
    objects.put(path, b"")
    assert store.open().objects.get(path) == b""
    objects.delete(path)
    objects.delete(path)
    assert objects.get(path) is None
    assert objects.list("") == []


def test_files_are_listed_below_a_folder(store: Store) -> None:
    objects = store.open().objects
    for path in NAMES:
        objects.put(path, b"1")
    assert objects.list("") == sorted(NAMES)
    assert objects.list("deep") == ["deep/er/and/deeper/x"]
    assert objects.list("deep/er") == ["deep/er/and/deeper/x"]
    assert objects.list("dee") == objects.list("none") == []
    objects.delete("deep/er/and/deeper/x")
    assert objects.list("deep") == []
    assert objects.get("deep.er") == b"1"


def test_a_local_copy_follows_the_file(store: Store) -> None:
    objects = store.open().objects
    for content in (b"one", b"two"):
        store.open().objects.put("model.onnx", content)
        copy = objects.local("model.onnx")
        assert copy is not None
        assert copy.read_bytes() == content
        assert copy.suffix == ".onnx"
    store.open().objects.delete("model.onnx")
    assert objects.local("model.onnx") is None
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_a_local_file_is_put(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    content = os.urandom(1_500_000)
    source.write_bytes(content)
    objects = store.open().objects
    objects.put_file("big/one", source)
    assert objects.get("big/one") == content
    assert source.read_bytes() == content


def test_of_many_who_put_a_new_file_one_succeeds(store: Store) -> None:
    together = threading.Barrier(6)

    def put(number: int) -> int | None:
        objects = store.open().objects
        together.wait()
        try:
            objects.put("plan", str(number).encode(), new=True)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(6) as pool:
        winners = [number for number in pool.map(put, range(6)) if number is not None]
    assert len(winners) == 1
    assert store.open().objects.get("plan") == str(winners[0]).encode()
    assert store.open().objects.list("") == ["plan"]


@pytest.mark.parametrize(
    "path", ["", "/etc/hostname", "..", "../x", "a/../../x", "a/./b", "a//b", "a/", "a\\b", "a\0b", "a\nb", "é" * 500]
)
def test_a_path_out_of_the_store_is_refused(store: Store, path: str, tmp_path: Path) -> None:
    objects = store.open().objects
    source = tmp_path / "source"
    source.write_bytes(b"1")
    for use in (
        lambda: objects.put(path, b"1"),
        lambda: objects.put_file(path, source),
        lambda: objects.get(path),
        lambda: objects.local(path),
        lambda: objects.delete(path),
        *([lambda: objects.list(path)] if path else []),
    ):
        with pytest.raises(DrivetrainError, match="not a path below"):
            use()
    assert objects.list("") == []


# In a folder.


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    objects = Store("", {}, tmp_path, False).open().objects
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"theirs")
    files = tmp_path / "lake" / "files"
    files.mkdir(parents=True)
    (files / "folder").symlink_to(outside)
    (files / "file").symlink_to(outside / "x")
    for path in ("folder/x", "file"):
        for use in (
            lambda path=path: objects.put(path, b"1"),
            lambda path=path: objects.get(path),
            lambda path=path: objects.local(path),
            lambda path=path: objects.delete(path),
        ):
            with pytest.raises(DrivetrainError, match="symbolic link"):
                use()
    assert (outside / "x").read_bytes() == b"theirs"


def test_a_half_written_file_is_not_seen(tmp_path: Path) -> None:
    """What a killed writer leaves is no file and goes with the next deletion; a source that fails leaves nothing."""
    objects = Store("", {}, tmp_path, False).open().objects
    objects.put("models/a", b"whole")
    (tmp_path / "lake" / "files" / "models" / ".0123456789abcdef.new").write_bytes(b"ha")
    assert objects.list("") == ["models/a"]
    with pytest.raises(DrivetrainError):
        objects.put_file("models/a", tmp_path)
    with pytest.raises(DrivetrainError):
        objects.put_file("models/a", tmp_path / "none")
    assert objects.get("models/a") == b"whole"
    folder = tmp_path / "lake" / "files" / "models"
    assert sorted(path.name for path in folder.iterdir()) == [".0123456789abcdef.new", "a"]
    with (folder / ".fedcba9876543210.new").open("wb") as being_written:
        fcntl.flock(being_written, fcntl.LOCK_EX)
        objects.delete("models/a")
        assert [path.name for path in folder.iterdir()] == [".fedcba9876543210.new"]


def test_a_file_in_the_way_of_a_folder_is_told(tmp_path: Path) -> None:
    objects = Store("", {}, tmp_path, False).open().objects
    objects.put("a", b"1")
    with pytest.raises(DrivetrainError, match="a file where a folder must be"):
        objects.put("a/b", b"2")
    assert objects.get("a/b") is None
    assert objects.list("") == ["a"]


# Where a lake stands.


def test_a_lake_in_a_folder_of_any_name(tmp_path: Path) -> None:
    named = tmp_path / "la ke ü#1%"
    for url in (str(named), f"file://{named}"):
        place = lake_place(url, {}, folder=tmp_path / "other", mirror=tmp_path / "mirror")
        place.objects.put("a", b"1")
    assert (named / "files" / "a").read_bytes() == b"1"
    assert not (tmp_path / "other").exists()
    with pytest.raises(DrivetrainError, match="cannot stand in"):
        lake_place("", {}, folder=tmp_path / "a%20b", mirror=tmp_path / "mirror")


@pytest.mark.parametrize("url", ["gs://bucket/x", "az://bucket/x", "http://x/y", "S4://bucket"])
def test_a_url_that_no_lake_stands_at_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DrivetrainError, match="which no lake stands at") as refused:
        lake_place(url, {}, folder=tmp_path, mirror=tmp_path)
    assert "s3://bucket/prefix" in refused.value.do


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///x", "s3://b/../x", "s3://b//x", f"s3://key:{SECRET}@bucket/x", f"s3://bucket/x?key={SECRET}"],
)
def test_a_url_that_is_not_a_bucket_and_a_path_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DrivetrainError, match="not like `s3://bucket/prefix`") as refused:
        lake_place(url, {}, folder=tmp_path, mirror=tmp_path)
    assert SECRET not in str(refused.value)


def test_options_are_checked_and_never_shown(tmp_path: Path) -> None:
    with pytest.raises(DrivetrainError, match="Did you mean `secret_access_key`") as refused:
        lake_place("s3://b/x", {"secret_acces_key": SECRET}, folder=tmp_path, mirror=tmp_path)
    assert SECRET not in str(refused.value)
    with pytest.raises(DrivetrainError, match="stands in a folder"):
        lake_place("", {"region": "eu-central-1"}, folder=tmp_path, mirror=tmp_path)
    place = lake_place("s3://b/x", s3_options("http://127.0.0.1:9"), folder=tmp_path, mirror=tmp_path)
    assert SECRET not in f"{place!r}{place.tables!r}{place.objects!r}"


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    with pytest.raises(DrivetrainError, match="obstore") as refused:
        lake_place("s3://bucket/x", {}, folder=tmp_path, mirror=tmp_path)
    assert "drivetrain[s3]" in refused.value.do
    lake_place("", {}, folder=tmp_path, mirror=tmp_path).objects.put("a", b"1")


def test_nothing_heavy_is_imported_before_a_lake_is_used() -> None:
    script = """
import sys
import drivetrain.adapters.lake_places
assert not {"deltalake", "obstore", "duckdb", "arro3"} & set(sys.modules), sorted(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
