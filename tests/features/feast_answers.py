"""Run in Feast's own environment: applies a repository and prints what Feast gives for some labels, as JSON."""

from __future__ import annotations

import os
import subprocess
import sys

import pandas as pd


def main() -> None:
    """Arguments: the repository, labels as JSON lines, a FeatureService."""
    repository, labels, service = sys.argv[1:4]
    os.chdir(repository)
    feast = os.path.join(os.path.dirname(sys.executable), "feast")
    subprocess.run([feast, "apply"], check=True, stdout=subprocess.DEVNULL)
    from feast import FeatureStore

    store = FeatureStore(repo_path=repository)
    asked = pd.read_json(labels, lines=True, convert_dates=["event_timestamp"])
    asked["event_timestamp"] = pd.to_datetime(asked["event_timestamp"], utc=True)
    answer = store.get_historical_features(asked, store.get_feature_service(service)).to_df()
    answer["event_timestamp"] = answer["event_timestamp"].map(lambda one: one.isoformat())
    sys.stdout.write(answer.to_json(orient="records", double_precision=15))


if __name__ == "__main__":
    main()
