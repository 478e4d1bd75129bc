"""A training set that `drivetrain features historical` wrote knows its features and its labels."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from online_world import write_csv
from typer.testing import CliRunner

from drivetrain.adapters.sqlite import open_control_log
from drivetrain.cli import dataset, features
from drivetrain.embedded.feature_store import feature_store

DECLARED = """
import drivetrain as dt

customer = dt.Entity("customer")
stats = dt.FeatureView("stats", entities=[customer], source=dt.FileSource("data/stats.csv", name="stats_rows"),
                       schema=[dt.Field("orders", int)])
inputs = dt.FeatureService("inputs", features=[stats])
"""
ROW = {"customer": "c1", "event_timestamp": "2026-01-05T08:00:00Z"}


def test_a_dataset_of_a_training_set_leads_back_to_features_and_labels(tmp_path: Path) -> None:
    for folder in ("features", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "shop"\n')
    (tmp_path / "features" / "declared.py").write_text(DECLARED)
    write_csv(tmp_path / "data" / "stats.csv", [{**ROW, "orders": 3}])
    write_csv(tmp_path / "data" / "labels.csv", [ROW])

    def run(app: typer.Typer, *arguments: str) -> None:
        result = CliRunner().invoke(app, [*arguments, "--project", str(tmp_path)])
        assert result.exit_code == 0, result.output

    run(dataset.app, "create", "labels", "--from-file", "data/labels.csv")
    train, views = str(tmp_path / "data" / "train.parquet"), str(tmp_path / "data" / "views.parquet")
    run(features.app, "historical", "dataset:labels@1", "inputs", "--parquet", train)
    run(features.app, "historical", str(tmp_path / "data/labels.csv"), "stats:orders", "--parquet", views)
    run(dataset.app, "create", "training", "--from-file", "data/train.parquet")

    store = feature_store(tmp_path)
    control = open_control_log(tmp_path / ".drivetrain/data", tmp_path / ".drivetrain/keys")
    made = {record.subject: json.loads(record.body) for record in control.records() if record.kind == "made"}
    (file,) = made["dataset:training@1"]["inputs"]
    assert file.startswith("file:data/train.parquet@")
    service = store.definitions.service("inputs")
    assert made[file]["inputs"] == [f"service:inputs@{service.fingerprint}", "dataset:labels@1"]
    other = next(body for subject, body in made.items() if subject.startswith("file:data/views.parquet@"))
    assert other["inputs"] == [f"features:stats@{store.definitions.view('stats').fingerprint}"]
