"""Mistakes in a workflow's rollout, each told with what to do, and none of a right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivetrain.core.errors import ProjectError
from drivetrain.project.load import load, unload

SETTINGS = """\
[project]
name = "shop"

[providers.openai]
dialect = "openai"
base_url = "https://api.example/v1"

[models."openai/small"]
usd_per_million_input = "1"
usd_per_million_output = "2"
"""


def mistakes(folder: Path, rollout: str) -> str:
    (folder / "workflows").mkdir(exist_ok=True)
    (folder / "drivetrain.toml").write_text(SETTINGS)
    (folder / "workflows" / "triage.py").write_text(
        "import drivetrain as dt\n\n"
        'triage = dt.Workflow("triage", owner="a@b.example", team="support", use_case="x",\n'
        f'    rollout={rollout},\n    route=[dt.Variant("main", model="openai/small")])\n'
    )
    try:
        unload(load(folder))
    except ProjectError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        ("3", "`rollout` that is no Rollout"),
        ("dt.Rollout(stage=())", "no argument `stage`"),
        ("dt.Rollout(level=1)", "wrong `level`"),
        ("dt.Rollout(level=float('nan'))", "wrong `level`"),
        ("dt.Rollout(stages=[])", "0 stages"),
        ("dt.Rollout(stages=[0.5])", "stage 1 that is no Stage"),
        ("dt.Rollout(stages=[dt.Stage(share=0)])", "wrong share of stage 1"),
        ("dt.Rollout(stages=[dt.Stage(share=5)])", "wrong share of stage 1"),
        ("dt.Rollout(stages=[dt.Stage(share=0.5), dt.Stage(share=0.2)])", "stage 2 whose share does not grow"),
        ("dt.Rollout(stages=[dt.Stage(share=0.5, minutes=0)])", "wrong minutes of stage 1"),
        ("dt.Rollout(stages=[dt.Stage(share=0.5, units=0)])", "wrong units of stage 1"),
        ("dt.Rollout(guards=['errors'])", "guard that is no Guard"),
        ("dt.Rollout(guards=[dt.Guard(watch='eror')])", "guard that watches nothing we know"),
        ("dt.Rollout(guards=[dt.Guard(watch='errors')] * 2)", "two guards of `errors`"),
        ("dt.Rollout(guards=[dt.Guard(watch='errors', margin=5)])", "wrong `margin`"),
        ("dt.Rollout(guards=[dt.Guard(watch='cost', margin=-1)])", "wrong `margin`"),
        ("dt.Rollout(guards=[dt.Guard(watch='outcome')])", "wrong `metric`"),
        ("dt.Rollout(guards=[dt.Guard(watch='errors', metric='x')])", "wrong `metric`"),
        ("dt.Rollout(guards=[dt.Guard(watch='outcome', metric=[])])", "wrong `metric`"),
        ("dt.Rollout(guards=[dt.Guard(watch='cost', slow_ms=5)])", "wrong `slow_ms`"),
        ("dt.Rollout(guards=[dt.Guard(watch='score', metric='x', higher_is_better=3)])", "wrong `higher_is_better`"),
        ("dt.Rollout(shadow=True)", "shadow that is no Shadow"),
        ("dt.Rollout(shadow=dt.Shadow(share=2))", "wrong share of its shadow"),
        ("dt.Rollout(shadow=dt.Shadow(minutes=-1))", "wrong minutes of its shadow"),
        ("dt.Rollout(shadow=dt.Shadow(usd_per_day=0.5))", "wrong `usd_per_day`"),
    ],
)
def test_each_mistake_is_told_at_its_line(tmp_path: Path, rollout: str, said: str) -> None:
    told = mistakes(tmp_path, rollout)
    assert said in told
    assert "workflows/triage.py:4" in told


@pytest.mark.parametrize(
    "rollout",
    [
        "None",
        "dt.Rollout()",
        "dt.Rollout(stages=[dt.Stage(share=0.1), dt.Stage(share=1)], guards=[], shadow=dt.Shadow(), level=0.99)",
        "dt.Rollout(guards=[dt.Guard(watch='latency', slow_ms=900), dt.Guard(watch='outcome', metric='solved')])",
    ],
)
def test_a_right_one_has_none(tmp_path: Path, rollout: str) -> None:
    assert mistakes(tmp_path, rollout) == ""
