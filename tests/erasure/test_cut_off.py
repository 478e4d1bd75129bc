"""An erasure that is cut off anywhere is finished by whoever looks next, and leaves the same."""

from __future__ import annotations

import itertools
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from erasure_world import HER, HIM
from kept_world import (
    Halted,
    build,
    control_of,
    copied,
    datasets_of,
    erasure,
    left,
    loaded,
    tables_of,
    totals,
    write,
)

from drivetrain.adapters.files import FileVault
from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.erasing import stores_of
from drivetrain.erasure.erasing import Erasure
from drivetrain.erasure.note import unfinished
from drivetrain.lake.roller import Roller

KILLED = """
import itertools, os, signal, sys
sys.path[:0] = [{folder!r}, {tests!r}]
from kept_world import erasure, loaded
from pathlib import Path
steps = itertools.count(1)
def tick():
    if next(steps) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
with loaded(Path({root!r})) as snapshot, erasure(snapshot, tick) as work:
    work.erase({id!r})
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("erasure") / "project"
    root.mkdir()
    build(root)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return copied(template, tmp_path / "project")


@pytest.mark.slow
def test_each_try_comes_further_and_the_last_one_ends_it(root: Path) -> None:
    with loaded(root) as snapshot:
        before = totals(snapshot)
        assert left(snapshot, HER)
        for at in itertools.count(1, 2):
            assert at < 200, "it never ends"
            steps = itertools.count(1)

            def tick(at: int = at, steps: Iterator[int] = steps) -> None:
                if next(steps) == at:
                    raise Halted

            try:
                with erasure(snapshot, tick) as work:
                    receipt = work.erase(HER)
            except Halted:
                continue
            break
        assert at > 10, "each step was reached"
        assert receipt is not None
        _is_gone(root, before, receipt.erasure)


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on(root: Path) -> None:
    seed = int(os.environ.get("SEED", secrets.randbits(32)))
    print(f"SEED={seed}")
    dice = random.Random(seed)
    with loaded(root) as snapshot:
        before = totals(snapshot)
    code, here = -signal.SIGKILL, Path(__file__).parent
    for _ in range(2):
        script = KILLED.format(
            folder=str(here), tests=str(here.parent), root=str(root), id=HER, at=dice.randrange(2, 30)
        )
        code = subprocess.run([sys.executable, "-c", script], check=False).returncode
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
    with loaded(root) as snapshot, erasure(snapshot) as work:
        receipt = work.resume()
        assert (receipt is None) is (code == 0)
    _is_gone(root, before)


@pytest.mark.slow
def test_whoever_is_asked_next_finishes_it_first(root: Path) -> None:
    steps = itertools.count(1)

    def tick() -> None:
        if next(steps) == 12:
            raise Halted

    with loaded(root) as snapshot:
        before = totals(snapshot)
        with pytest.raises(Halted), erasure(snapshot, tick) as work:
            work.erase(HER)
        note = unfinished(snapshot.keys_folder)
        assert note is not None
        assert note.subject == HER
        with erasure(snapshot) as work:
            assert work.erase("somebody-unknown") is None
        _is_gone(root, before, note.id)


@pytest.mark.slow
def test_what_was_rolled_since_it_was_cut_off_goes_as_well(root: Path) -> None:
    def cut(step: str) -> None:
        if step == "calls":
            raise Halted

    with loaded(root) as snapshot:
        with stores_of(snapshot) as stores, pytest.raises(Halted):
            Erasure(stores, actor="tests", on_step=cut).erase(HER)
        vault = FileVault(snapshot.keys_folder)
        write(snapshot, vault, [(11, HER)])
        vault.close()
        Roller(snapshot.data_folder, tables_of(snapshot)).roll()
        with erasure(snapshot) as work:
            assert work.resume() is not None
        assert [path for path in left(snapshot, HER) if not path.startswith("calls/")] == []


@pytest.mark.slow
def test_only_one_erases_at_a_time(root: Path) -> None:
    refused: list[str] = []

    def tick() -> None:
        if not refused:
            with pytest.raises(DrivetrainError) as told, erasure(snapshot) as other:
                other.erase(HIM)
            refused.append(str(told.value))

    with loaded(root) as snapshot, erasure(snapshot, tick) as work:
        work.erase(HER)
        assert "Another erasure is under way" in refused[0]
        assert left(snapshot, HIM)


def _is_gone(root: Path, before: object, erasure_id: str = "") -> None:
    with loaded(root) as snapshot:
        assert left(snapshot, HER) == {}
        assert totals(snapshot) == before
        assert {HIM} <= {text for texts in left(snapshot, HIM).values() for text in texts}
        assert [datasets_of(snapshot).verify(one).findings for one in ("people@1", "asked@1")] == [(), ()]
        receipts = [one for one in control_of(snapshot).records() if one.kind == "erase"]
        assert len(receipts) == 1, "one receipt, however often it was begun"
        assert erasure_id in receipts[0].body
        assert HER not in receipts[0].body + receipts[0].subject
        assert '"calls":3' in receipts[0].body, "what there was when it began"
        assert unfinished(snapshot.keys_folder) is None
        assert not any(HER.encode() in path.read_bytes() for path in snapshot.keys_folder.iterdir())
