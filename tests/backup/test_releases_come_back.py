"""A restored project knows what is live, has the stored Snapshots of every Release, and can go back to each."""

from __future__ import annotations

from pathlib import Path

from backup_world import other_root, project, run

from drivetrain.embedded.releasing import live_of, place_of, state_of, stored_snapshot
from drivetrain.project.load import unload
from support.projects import settings

CODE = """
import drivetrain as dt

class Ticket(dt.Record):
    text: str

class Route(dt.Record):
    intent: str

triage = dt.Workflow(
    "triage", input=Ticket, output=Route, owner="a@b.example", team="support", use_case="tests",
    route=[dt.Rule("all", when=lambda t: True, then=Route(intent="first"))],
)
"""


def test_releases_come_back(tmp_path: Path) -> None:
    root = project(tmp_path / "project", settings())
    (root / "workflows").mkdir()
    for number, code in enumerate((CODE, CODE.replace("first", "second")), start=1):
        (root / "workflows/triage.py").write_text(code)
        run("propose", "--project", root)
        run("promote", str(number), "--project", root)
    run("backup", tmp_path / "b", "--with-keys", tmp_path / "k", "--project", root)
    new = other_root(root, tmp_path / "new")
    run("restore", tmp_path / "b", "--keys", tmp_path / "k", "--project", new)

    assert live_of(new) == live_of(root)
    place = place_of(new)
    for one in state_of(place).releases.values():
        unload(stored_snapshot(place, one.release.snapshot))
    run("rollback", "--reason", "after the fire", "--project", new)
    assert live_of(new).snapshot == state_of(place).releases[1].release.snapshot
