"""One training set by Feast, told as one JSON object: the part of `asof.py` that runs in Feast's own environment."""

from __future__ import annotations

import json
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64


def main() -> None:
    """Arguments: the folder of the data, `duckdb` or `dask`, labels, features, ttl in days."""
    folder, store, labels, features, ttl_days = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
    (folder / "feature_store.yaml").write_text(
        f"project: asof\nprovider: local\nregistry: {folder}/registry_{store}.db\nentity_key_serialization_version: 3\n"
        f"online_store:\n  type: sqlite\n  path: {folder}/online.db\noffline_store:\n  type: {store}\n"
    )
    feast = FeatureStore(repo_path=str(folder))
    customer = Entity(name="customer_id", join_keys=["customer_id"], value_type=ValueType.INT64)
    source = FileSource(
        path=str(folder / "features.parquet"), timestamp_field="event_timestamp", created_timestamp_column="created"
    )
    schema = [Field(name=f"f{number}", dtype=Float64) for number in range(features)]
    view = FeatureView(name="stats", entities=[customer], source=source, schema=schema, ttl=timedelta(days=ttl_days))
    feast.apply([customer, view])
    asked = pd.read_parquet(folder / "labels.parquet").head(labels)
    asked["event_timestamp"] = asked["event_timestamp"].dt.tz_localize("UTC")
    started, cpu_started = time.perf_counter(), time.process_time()
    answer = feast.get_historical_features(asked, [f"stats:f{number}" for number in range(features)]).to_df()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    answer.to_parquet(folder / f"feast_{store}.parquet")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    told = {"answered": len(answer), "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
