"""Feast repositories as people have them, and a project that they are imported into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SETTINGS = """\
project: driver_ranking
registry: data/registry.db
provider: local
online_store:
    type: sqlite
    path: data/online_store.db
entity_key_serialization_version: 3
"""

ENTITIES = """\
from feast import Entity, ValueType

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64, description="who drives",
                owner="fleet@acme.example", tags={"pii": "no"})
"""

VIEWS = """\
import math
import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from feast import BatchFeatureView, FeatureService, FeatureView, Field, FileSource, PushSource, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float32, Float64, Int64, String

from entities import driver

FACTOR = 100

stats_file = FileSource(
    name="driver_stats_source",
    path=str(Path(__file__).parent / "data" / "driver_stats.parquet"),
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
)

driver_stats = FeatureView(
    name="driver_hourly_stats",
    entities=[driver],
    ttl=timedelta(hours=36),
    schema=[
        Field(name="driver_id", dtype=Int64),
        Field(name="conv_rate", dtype=Float64),
        Field(name="trips", dtype=Int64, description="Trips that day"),
        Field(name="city", dtype=String),
    ],
    online=True,
    source=stats_file,
    tags={"team": "driver_performance"},
    owner="fleet@acme.example",
)

stats_push = PushSource(name="driver_stats_push", batch_source=stats_file)
fresh = FeatureView(
    name="driver_hourly_stats_fresh", entities=[driver], ttl=timedelta(0), online=True, source=stats_push,
    schema=[Field(name="conv_rate", dtype=Float64), Field(name="embedding", dtype=Array(Float32))],
)

request = RequestSource(name="vals_to_add", schema=[Field(name="val_to_add", dtype=Int64)])


def rounded(value, digits=3):
    return None if value is None else round(value * FACTOR, digits)


@on_demand_feature_view(
    sources=[driver_stats, request],
    schema=[Field(name="percent", dtype=Float64), Field(name="trips_plus", dtype=Int64)],
    mode="python",
)
def transformed(inputs: dict) -> dict:
    return {
        "percent": [rounded(one) for one in inputs["conv_rate"]],
        "trips_plus": [
            None if trips is None else trips + more
            for trips, more in zip(inputs["driver_hourly_stats__trips"], inputs["val_to_add"])
        ],
    }


@on_demand_feature_view(
    sources=[driver_stats[["conv_rate"]]], schema=[Field(name="root", dtype=Float64)], mode="python", singleton=True
)
def root_of(inputs):
    rate = inputs["conv_rate"]
    return {"root": None if rate is None else math.sqrt(rate)}


@on_demand_feature_view(sources=[driver_stats, request], schema=[Field(name="by_frame", dtype=Float64)])
def by_frame(inputs: pd.DataFrame) -> pd.DataFrame:
    df = pd.DataFrame()
    df["by_frame"] = np.sqrt(inputs["conv_rate"])
    return df


activity_v1 = FeatureService(name="driver_activity_v1", features=[driver_stats[["conv_rate", "city"]], transformed])
activity_v2 = FeatureService(name="driver_activity_v2", features=[fresh, by_frame, root_of], tags={"stage": "prod"})
"""

OLD = """\
from datetime import timedelta

import pandas as pd
from google.protobuf.duration_pb2 import Duration
from feast import Entity, Feature, FeatureView, FileSource, ValueType
from feast.data_source import RequestDataSource

stats = FileSource(path="data/driver_stats.parquet", event_timestamp_column="event_timestamp",
                   created_timestamp_column="created")
driver = Entity("Driver", ValueType.INT64, "who drives", join_key="driver_id")
view = FeatureView(
    "driver_hourly_stats",
    ["Driver"],
    Duration(seconds=129600),
    features=[Feature(name="conv_rate", dtype=ValueType.DOUBLE), Feature("trips", ValueType.INT64)],
    batch_source=stats,
    input=stats,
)
request = RequestDataSource("asked", {"val_to_add": ValueType.INT64})
"""

OUTSIDE = """\
from datetime import timedelta

from feast import (
    Aggregation, BatchFeatureView, BigQuerySource, Entity, FeatureService, FeatureView, Field, FileSource, KafkaSource,
    SnowflakeSource, StreamFeatureView,
)
from feast.data_format import JsonFormat
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.types import Bool, Float64, Int64, String, UnixTimestamp

customer = Entity(name="Customer.ID", join_keys=["customer"])
orders = SnowflakeSource(name="orders", database="SHOP", schema="PUBLIC", table="ORDERS", timestamp_field="ts",
                         owner="shop@acme.example", field_mapping={"ORDER_ID": "order_id"})
queried = BigQuerySource(name="queried", query="SELECT * FROM a JOIN b", timestamp_field="ts")
lake = FileSource(path="s3://bucket/orders.parquet?key=hunter2", timestamp_field="ts", s3_endpoint_override="x")
clicks = KafkaSource(
    name="clicks", kafka_bootstrap_servers="broker:9092", topic="clicks", timestamp_field="ts",
    message_format=JsonFormat(schema_json="customer string"), batch_source=SparkSource(name="c", table="clicks"),
)
order_view = FeatureView(name="order_view", entities=[customer], source=orders, schema=[
    Field(name="customer", dtype=String), Field(name="amount", dtype=Float64), Field(name="paid", dtype=Bool),
    Field(name="since", dtype=UnixTimestamp), Field(name="ts", dtype=UnixTimestamp),
])
query_view = FeatureView(name="query_view", entities=[customer], source=queried, schema=[Field(name="n", dtype=Int64)])
lake_view = FeatureView(name="lake_view", entities=[customer], source=lake, schema=[Field(name="n", dtype=Int64)])
click_view = StreamFeatureView(
    name="click_view", entities=[customer], source=clicks, ttl=timedelta(days=3), mode="spark", timestamp_field="ts",
    schema=[Field(name="sum_price_3600s", dtype=Float64)],
    aggregations=[
        Aggregation(column="price", function="sum", time_window=timedelta(hours=1)),
        Aggregation(column="page", function="count_distinct", time_window=timedelta(days=7), name="pages"),
        Aggregation(column="price", function="median", time_window=timedelta(days=7)),
    ],
)
moved = FeatureService(name="moved", features=[
    order_view.with_join_key_map({"customer": "payer"}), query_view.with_name("q"), click_view[["pages", "gone"]],
])
computed = BatchFeatureView(name="computed", entities=[customer], source=orders, udf=lambda df: df,
                            schema=[Field(name="n", dtype=Int64)])
"""


def repository(root: Path, files: Mapping[str, str]) -> Path:
    """A folder with a feature_store.yaml and these files."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "feature_store.yaml").write_text(SETTINGS)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def modern(root: Path) -> Path:
    """A repository of two files, as `feast init` makes it and people let it grow."""
    return repository(root, {"entities.py": ENTITIES, "views.py": VIEWS})


def empty_project(root: Path) -> Path:
    """A project that declares nothing yet."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "drivetrain.toml").write_text('[project]\nname = "shop"\n')
    return root
