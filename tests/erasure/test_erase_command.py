"""`drivetrain erase` as people meet it: it shows, asks, refuses, and says what is not its business."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from erasure_world import HER, HIM
from kept_world import Halted, build, control_of, copied, datasets_of, erasure, left, loaded
from typer.testing import CliRunner, Result

from drivetrain.adapters.files import FileVault
from drivetrain.cli.erase import erase_command
from drivetrain.core.errors import DrivetrainError
from drivetrain.datasets.sources import FromFile
from drivetrain.embedded.asking import lake_for
from drivetrain.execution.replay import open_payloads
from drivetrain.lake.calls import Calls

pytestmark = pytest.mark.slow

app = typer.Typer()
app.command()(erase_command)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("erasure") / "project"
    root.mkdir()
    build(root)
    return root


def said(root: Path, *arguments: str, code: int = 0) -> Result:
    ended = CliRunner().invoke(app, [*arguments, "--project", str(root)])
    assert ended.exit_code == code, (ended.output, ended.exception)
    return ended


def test_it_shows_and_refuses_and_changes_nothing(template: Path) -> None:
    with loaded(template) as snapshot:
        before = left(snapshot, HER)
        shown = said(template, "--subject", HER, "--dry-run").output
        assert all(part in shown for part in ("Calls", "3", "dataset:people@1", "model:triage@14", "crm", "raw"))
        told = json.loads(said(template, "--subject", HER, "--dry-run", "--json").stdout)
        assert told["known"] is True
        assert (told["places"]["calls"], told["elsewhere"]["providers"]) == (3, ["raw"])
        assert told["elsewhere"]["files"] == ["data/stats.csv"]
        assert "nobody is here who could be asked" in said(template, "--subject", HER, code=1).output
        assert left(snapshot, HER) == before


def test_who_is_unknown_is_said_to_be(template: Path) -> None:
    for more in (["--yes"], ["--dry-run"], []):
        shown = said(template, "--subject", "nobody", *more, code=1).output
        assert "nothing of `nobody` was found where persons are declared" in shown
        assert "entity product has no `subject=True`: with it, features of view both, rows pushed to bought" in shown
        assert "entity customer" not in shown
        assert "data/stats.csv: your own file" in shown
    told = json.loads(said(template, "--subject", "nobody", "--yes", "--json", code=1).stdout)
    assert (told["known"], told["elsewhere"]["files"]) == (False, ["data/stats.csv"])


def test_a_dataset_without_a_subject_is_named_where_nothing_is_found(template: Path, tmp_path: Path) -> None:
    root = copied(template, tmp_path / "project")
    with loaded(root) as snapshot:
        for _ in range(3):
            datasets_of(snapshot).create("loose", FromFile("data/people.csv"))
    shown = said(root, "--subject", "nobody", code=1).output
    assert "dataset:loose@1-3: no column is marked `subject`" in shown
    assert "dataset:people" not in shown
    assert "dataset:asked" not in shown


def test_what_a_restore_moved_aside_is_named_by_its_path(template: Path, tmp_path: Path) -> None:
    root = copied(template, tmp_path / "project")
    with loaded(root) as snapshot:
        aside = [
            snapshot.data_folder.with_name(f"{snapshot.data_folder.name}.before-restore-20260101T000000"),
            snapshot.keys_folder.with_name(f"{snapshot.keys_folder.name}.before-restore-20260101T000000-2"),
            snapshot.data_folder.with_name(f"{snapshot.data_folder.name}.restoring-0a0a0a0a"),
        ]
        other = snapshot.data_folder.with_name(f"{snapshot.data_folder.name}.other")
    for folder in (*aside, other):
        folder.mkdir()
    for subject, code in ((HER, 0), ("nobody", 1)):
        shown = said(root, "--subject", subject, "--dry-run", code=code).output
        assert all(str(folder) in shown for folder in aside)
        assert str(other) not in shown


def test_it_speaks_of_views_and_of_ranges(template: Path, tmp_path: Path) -> None:
    root = copied(template, tmp_path / "project")
    with loaded(root) as snapshot:
        log = control_of(snapshot)
        first, *_ = [log.append(kind="k", actor="a", subject=HER, body={}).seq for _ in range(4)]
        log.append(kind="k", actor="a", subject="of others", body={})
        log.append(kind="k", actor="a", subject=HER, body={})
    shown = said(root, "--subject", HER, "--dry-run").output
    assert f"records {first}-{first + 3}, {first + 5}: name them in the control log" in shown
    assert "features of view click" in shown
    assert "features of service seen" in shown
    assert "@@" not in shown


@pytest.mark.parametrize("arguments", [[], ["--resume", "--subject", "somebody"]])
def test_it_asks_for_one_of_both(template: Path, arguments: list[str]) -> None:
    assert "Say whom to erase" in said(template, *arguments, code=1).output


def test_a_replay_says_that_payloads_were_erased(template: Path, tmp_path: Path) -> None:
    root = copied(template, tmp_path / "project")
    said(root, "--subject", HER, "--yes")
    with loaded(root) as snapshot:
        calls = list(Calls(lake_for(snapshot)).calls(newest=10))
        hers = [one for one in calls if one.attribution.user == "erased"]
        assert hers
        for call in hers:
            with pytest.raises(DrivetrainError, match="its payloads were erased") as why:
                open_payloads(call, FileVault(snapshot.keys_folder))
            assert "retention" not in str(why.value)


def test_it_erases_tells_and_resumes(template: Path, tmp_path: Path) -> None:
    root = copied(template, tmp_path / "project")
    assert "no erasure was cut off" in said(root, "--resume").output
    told = said(root, "--subject", HER, "--yes").output
    assert "the control log has the receipt" in told
    assert "all 2 answers kept for Idempotency-Keys" in told

    def tick(steps: list[int] = []) -> None:  # noqa: B006 - counts
        steps.append(1)
        if len(steps) == 20:
            raise Halted

    with loaded(root) as snapshot:
        with pytest.raises(Halted), erasure(snapshot, tick) as work:
            work.erase(HIM)
        receipt = json.loads(said(root, "--resume", "--json").stdout)
        assert receipt["places"]["calls"] == 2
        assert HIM not in json.dumps(receipt)
        assert left(snapshot, HIM) == {}
