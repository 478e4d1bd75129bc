"""While somebody copies a data folder nothing that stood there is deleted; afterwards it is."""

from __future__ import annotations

import time
from pathlib import Path

from backup_world import calls_of, data_of, project, record, run

from drivetrain.core.times import NS_PER_S
from drivetrain.embedded.upkeep import Upkeep
from drivetrain.lake.holding import held
from drivetrain.lake.retention import SEGMENT_GRACE_S, Keep, Maintained, maintain


def tidied(root: Path) -> Maintained:
    """With nothing that needs to stay any longer."""
    later_ns = time.time_ns() + 2 * SEGMENT_GRACE_S * NS_PER_S
    return maintain(data_of(root), Upkeep(root).tables, keep=Keep(), history_s=0, now_ns=lambda: later_ns)


def test_nothing_is_deleted_while_a_copy_is_made(tmp_path: Path) -> None:
    root = project(tmp_path / "project")
    for _ in range(3):
        record(root, 5)
        run("lake", "roll", "--project", root)
    before = calls_of(root)
    there = {path for path in data_of(root).rglob("*") if path.is_file()}
    with held(data_of(root)):
        done = tidied(root)
        assert (done.segments, done.vacuumed) == (0, 0)
        assert there <= set(data_of(root).rglob("*"))
        record(root, 5)
        run("lake", "roll", "--project", root)
        assert len(calls_of(root)) == len(before) + 5
    done = tidied(root)
    assert done.segments >= 3
    assert done.vacuumed > 0
    assert len(calls_of(root)) == len(before) + 5
