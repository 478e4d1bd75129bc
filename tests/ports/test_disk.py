"""Files that are whole or not there, and locks that end with their process."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from drivetrain.ports.disk import HALF_WRITTEN, SHARED_MODE, whole_file, whole_path, write_whole
from drivetrain.ports.locks import locked


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_what_fails_half_way_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_whole(path, b"before")
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert (path.read_bytes(), names(tmp_path)) == (b"before", ["note.json"])
    with pytest.raises(FileNotFoundError), whole_path(path):
        pass  # nobody wrote anything
    assert (path.read_bytes(), names(tmp_path)) == (b"before", ["note.json"])


def test_only_its_user_reads_a_store_and_everybody_what_they_asked_for(tmp_path: Path) -> None:
    write_whole(tmp_path / "store", b"x")
    write_whole(tmp_path / "asked", b"x", mode=SHARED_MODE)
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "asked").stat().st_mode & 0o600 == 0o600


def test_writers_at_once_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "current"
    contents = [bytes([65 + number]) * 100_000 for number in range(4)]
    wrong: list[bytes] = []

    def write(content: bytes) -> None:
        for _ in range(10):
            write_whole(path, content)
            if (seen := path.read_bytes()) not in contents:
                wrong.append(seen[:10])

    threads = [threading.Thread(target=write, args=(one,)) for one in contents]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert (wrong, names(tmp_path)) == ([], ["current"])


def test_what_a_killed_writer_left_is_found_by_its_name(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\nfrom drivetrain.ports.disk import whole_file\n"
        "with whole_file(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half')\n    file.flush()\n    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "note.json")], check=False).returncode == 9
    assert not (tmp_path / "note.json").exists()
    assert [one.name for one in tmp_path.glob(HALF_WRITTEN.format("note.json"))] == names(tmp_path)


def test_one_alone_or_many_together(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, shared=True) as one, locked(path, shared=True) as two, locked(path) as alone:
        assert (one, two, alone) == (True, True, False)
    with locked(path) as alone, locked(path, shared=True) as other:
        assert (alone, other) == (True, False)
    with locked(path) as free:
        assert free


def test_who_waits_looks_again_until_the_time_is_over(tmp_path: Path) -> None:
    path, now_s, slept = tmp_path / "lock", [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now_s[0] += seconds

    with locked(path), locked(path, wait_s=1.0, look_every_s=0.25, monotonic=lambda: now_s[0], sleep=sleep) as got:
        assert not got
    assert slept == [0.25] * 4


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\nfrom drivetrain.ports.locks import locked\n"
        "with locked(pathlib.Path(sys.argv[1])) as held:\n    print(held, flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with locked(tmp_path / "lock") as held:
            assert not held
        other.kill()
        other.wait()
        with locked(tmp_path / "lock") as held:
            assert held
