"""`drivetrain erase` as people meet it: it shows, asks, refuses, and says what is not its business."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from erasure_world import HER, HIM
from kept_world import Halted, build, copied, erasure, left, loaded
from typer.testing import CliRunner, Result

from drivetrain.cli.erase import erase_command

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
        assert "nothing of `nobody` is kept" in said(template, "--subject", "nobody", *more, code=1).output
    assert json.loads(said(template, "--subject", "nobody", "--yes", "--json", code=1).stdout) == {"known": False}


@pytest.mark.parametrize("arguments", [[], ["--resume", "--subject", "somebody"]])
def test_it_asks_for_one_of_both(template: Path, arguments: list[str]) -> None:
    assert "Say whom to erase" in said(template, *arguments, code=1).output


@pytest.mark.slow
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
