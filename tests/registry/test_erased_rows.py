"""After an erasure, a Report of a training cites row numbers of a Dataset that lost them, and quotes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from drivetrain.cli import dataset, models, reports
from drivetrain.cli.erase import erase_command
from drivetrain.cli.train import train_command
from drivetrain.embedded.modelling import open_reports

pytest.importorskip("sklearn", reason="the extra `train` is not installed")

HER, HIM = "mary-4711", "bob-4712"
SCHEMA = """
[columns.id]
type = "int64"
[columns.customer]
type = "string"
subject = true
personal = true
[columns.text]
type = "string"
personal = true
[columns.intent]
type = "string"
[columns.split]
type = "string"
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "shop"\n')
    (tmp_path / "schema.toml").write_text(SCHEMA)
    rows = []
    for number in range(90):
        intent = ("refund", "delivery")[number % 2]
        text = ("give me my money back for order", "my parcel has not arrived and the courier lost")[number % 2]
        rows.append(f"{number},someone-{number},{text} {number},{intent},{'test' if number % 5 == 0 else 'train'}")
    # Theirs are labelled wrongly, so the most confident mistakes are theirs.
    for number, who in ((90, HER), (91, HIM)):
        rows.append(f"{number},{who},give me my money back says {word(who)},delivery,test")
    (tmp_path / "texts.csv").write_text("id,customer,text,intent,split\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def word(who: str) -> str:
    """A word that stands in a text of theirs only."""
    return f"{who.partition('-')[0]}secretword"


def done(app: Any, *arguments: str) -> str:
    """What a command printed, on both channels."""
    if not isinstance(app, typer.Typer):
        command, app = app, typer.Typer(pretty_exceptions_enable=False)
        app.command()(command)
    ran = CliRunner().invoke(app, list(arguments))
    assert ran.exit_code == 0, ran.output
    return str(ran.output)


@pytest.mark.slow
def test_a_report_quotes_nothing_of_an_erased_person(root: Path) -> None:
    done(dataset.app, "create", "texts", "--from-file", "texts.csv", "--schema", "schema.toml")
    options = ("--dataset", "texts@1", "--recipe", "text", "--text", "text", "--label", "intent", "--segment", "intent")
    done(train_command, "intent", *options)
    (kept,) = open_reports(root).list(subject="model:intent@1")
    cited = [one["row"] for one in kept.report.body["wrong"]]
    assert {91, 92} <= set(cited), "theirs are among the mistakes, or this proves nothing"
    pages = [("show", "intent@1"), ("show", "intent@1", "--markdown"), ("show", "intent@1", "--json")]
    before = [done(reports.app, *page) for page in pages]
    assert [word(HER) in one for one in before] == [True, True, False]

    erased = done(erase_command, "--subject", HER, "--yes")
    assert "model:intent@1" in erased, "who trained on them is told"
    for page, was in zip(pages, before, strict=True):
        said = done(reports.app, *page)
        assert word(HER) not in said
        assert HER not in said
        assert kept.report.verdict[:40] in was
        assert kept.report.verdict[:40] in said
    stored = (root / ".drivetrain/data/reports").rglob("*")
    content = b"".join(one.read_bytes() for one in stored if one.is_file())
    for told in (HER, HIM, word(HER), word(HIM)):
        assert told.encode() not in content, "a Report quotes nobody, erased or not"
    assert "whole: model:intent@1" in done(models.app, "verify")
