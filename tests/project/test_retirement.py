"""Announced ends of models are warned of ahead, once, and with what uses them."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import typer
from typer.testing import CliRunner

from drivetrain import project
from drivetrain.cli.check import check_command
from drivetrain.project.retirement import WARNED_DAYS, retirements

MODEL = "openai/gpt-5-mini-2025-08-07"
app = typer.Typer()
app.command()(check_command)


def warned(make, small, table: str, today: date) -> list[str]:
    snapshot = project.load(make({**small, "drivetrain.toml": small["drivetrain.toml"] + table}))
    return [one.warning for one in retirements(snapshot, today)]


def test_a_day_is_warned_of_from_sixty_days_ahead_and_after(make, small) -> None:
    table = f'[models."{MODEL}"]\nretires = "2026-12-31"\nreplacement = "openai/gpt-6"\n'
    day = date(2026, 12, 31)
    assert warned(make, small, table, day - timedelta(days=WARNED_DAYS + 1)) == [""]
    ahead = warned(make, small, table, day - timedelta(days=WARNED_DAYS))[0]
    assert f"{MODEL} retires in 60 days, on 2026-12-31, and is in workflow triage" in ahead
    assert "openai/gpt-6 is to follow it" in ahead
    assert "retires today" in warned(make, small, table, day)[0]
    assert "was retired on 2026-12-31, 1 day ago" in warned(make, small, table, day + timedelta(days=1))[0]


def test_a_toml_date_is_a_day_and_a_model_that_no_route_names_is_nobodys(make, small) -> None:
    table = f'[models."{MODEL}"]\nretires = 2026-12-31\n[models."openai/other"]\nretires = "2020-01-01"\n'
    assert len(warned(make, small, table, date(2026, 12, 30))) == 1


def test_what_the_price_list_calls_deprecated_is_told_until_a_day_is_written(make, small) -> None:
    snapshot = project.load(make(small))
    found = retirements(snapshot, date(2026, 1, 1), lambda model, _address: model == MODEL)
    assert [one.model for one in found] == [MODEL]
    assert f'under [models."{MODEL}"]' in found[0].warning
    assert retirements(snapshot, date(2026, 1, 1), lambda _model, _address: False) == ()


def test_check_tells_it_and_still_passes(make, small) -> None:
    soon = (datetime.now(UTC).date() + timedelta(days=5)).isoformat()
    root = make({**small, "drivetrain.toml": small["drivetrain.toml"] + f'[models."{MODEL}"]\nretires = "{soon}"\n'})
    answer = CliRunner().invoke(app, ["--project", str(root), "--json"])
    assert answer.exit_code == 0, answer.output
    assert any(f"{MODEL} retires in" in one for one in json.loads(answer.output)["notices"])
