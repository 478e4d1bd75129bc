"""How long an online read takes: 100 entities x 20 features in one process, beside Feast on SQLite on the same values.

`python benchmarks/online_features.py --help`. Feast runs in `.venvs/feast` (`python benchmarks/asof.py --install` makes
it) in the same run, and not at all where that is absent. Every answer is checked against the values that were written.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FEAST = ROOT / ".venvs" / "feast" / "bin" / "python"
FEATURES = 20
BATCH = 100
VIEWS = (10, 1_000)
EVENT_US = 1_767_225_600_000_000
"""2026-01-01."""


def main() -> int:
    """Measures, prints one JSON object, and fails where a promise is broken."""
    parser = argparse.ArgumentParser(prog="online_features.py")
    parser.add_argument("--entities", type=int, default=20_000)
    parser.add_argument("--reads", type=int, default=5_000)
    parser.add_argument("--feast-reads", type=int, default=300)
    parser.add_argument("--no-feast", action="store_true")
    parser.add_argument("--feast-child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.feast_child:
        print(json.dumps(_feast(options.feast_child, options.entities, options.feast_reads)))
        return 0
    with tempfile.TemporaryDirectory(prefix="online-features-") as folder:
        found = _ours(Path(folder), options.entities, options.reads)
        if FEAST.exists() and not options.no_feast:
            child = [str(FEAST), __file__, "--feast-child", folder, "--entities", str(options.entities)]
            done = subprocess.run(
                [*child, "--feast-reads", str(options.feast_reads)], check=True, stdout=subprocess.PIPE, text=True
            )
            found["feast_sqlite"] = json.loads(done.stdout.splitlines()[-1])
            found["times_faster_p99"] = round(found["feast_sqlite"]["p99_ms"] / found["service_as_lists"]["p99_ms"], 1)
    print(json.dumps(found, indent=1))
    wrong = [
        f"p99 of the service is {found['service']['p99_ms']} ms" * (found["service"]["p99_ms"] > 0.1),
        "less than 30 times as fast as Feast" * (found.get("times_faster_p99", 30) < 30),
    ]
    for one in filter(None, wrong):
        print(f"missed: {one}", file=sys.stderr)
    return int(any(wrong))


def value(entity: int, feature: int) -> float:
    return entity + feature / 64


def _ours(folder: Path, entities: int, reads: int) -> dict[str, Any]:
    from drivetrain.adapters.mapped_online import MappedOnline
    from drivetrain.adapters.sqlite_online import SqliteOnline
    from drivetrain.core.features import Entity, FeatureService, FeatureView, Field, FileSource
    from drivetrain.features.definitions import define
    from drivetrain.features.online import OnlineReader, OnlineService, lookups, stored_key
    from drivetrain.ports.online import PartRow
    from drivetrain.project.snapshot import Features

    customer = Entity("customer", value_type="int64")

    def declared(views: int, width: int) -> Any:
        made = {
            f"view{n}": FeatureView(
                f"view{n}", entities=[customer], source=FileSource(f"{n}.csv", name=f"s{n}"), ttl="36500d",
                schema=[Field(f"f{n}_{at}", "float64") for at in range(width)],
            )
            for n in range(views)
        }  # fmt: skip
        service = FeatureService("service", features=list(made.values())[: max(1, FEATURES // width)])
        return define(Features(entities={"customer": customer}, views=made, services={"service": service}))

    def written(store: Any, definitions: Any, count: int) -> Any:
        service = definitions.services["service"]
        [lookup] = lookups(service)
        width = len(lookup.reads[0].features)

        def rows() -> Any:
            for entity in range(count):
                parts = [
                    PartRow(EVENT_US, EVENT_US, tuple(value(entity, place * width + at) for at in range(width)))
                    for place in range(len(lookup.reads))
                ]
                yield stored_key(lookup.keys, [entity]), parts

        began = time.perf_counter()
        store.replace(lookup.layout, rows(), (EVENT_US,) * len(lookup.reads))
        return service, lookup, time.perf_counter() - began

    found: dict[str, Any] = {"entities": entities, "batch": BATCH, "features": FEATURES}
    now_us = time.time_ns() // 1_000
    asked = _asked(entities, reads)
    store = MappedOnline(folder / "mapped")
    service, lookup, took_s = written(store, declared(1, FEATURES), entities)
    found["write_us_per_vector"] = round(took_s / entities * 1e6, 2)
    keys = [[stored_key(lookup.keys, [one]) for one in batch] for batch in asked]
    found["store"] = _timed(lambda batch: store.read(lookup.layout, batch), keys)
    reader = OnlineService(store, service)

    def whole(batch: Sequence[int]) -> dict[str, list[Any]]:
        rows = reader.read_rows({"customer": batch}, {}, len(batch), now_us)
        return {"customer": list(batch), **{name: list(column) for name, column in rows.columns.items()}}

    for batch in asked[:50]:
        answer = whole(batch)
        for at in range(FEATURES):
            assert answer[f"f0_{at}"] == [value(entity, at) for entity in batch]
    found["service"] = _timed(lambda batch: reader.read_rows({"customer": batch}, {}, len(batch), now_us), asked)
    found["service_as_lists"] = _timed(whole, asked)
    cold = MappedOnline(folder / "mapped", known_max=0)
    cold_reader = OnlineService(cold, service)
    found["service_nothing_remembered"] = _timed(
        lambda batch: cold_reader.read_rows({"customer": batch}, {}, len(batch), now_us), asked
    )
    one = OnlineReader(store, [service])
    now_ns = now_us * 1_000
    found["one_call"] = _timed(lambda batch: one.read("service", {"customer": batch[0]}, now_ns), asked)
    other = SqliteOnline(folder / "online.db")
    written(other, declared(1, FEATURES), entities)
    slow_reader = OnlineService(other, service)
    found["service_on_our_sqlite"] = _timed(
        lambda batch: slow_reader.read_rows({"customer": batch}, {}, len(batch), now_us), asked[: reads // 5]
    )
    for views in VIEWS:
        definitions = declared(views, 2)
        many = MappedOnline(folder / f"views{views}")
        service, _, _ = written(many, definitions, min(entities, 5_000))
        several = OnlineService(many, service)
        found[f"of_{views}_views"] = _timed(
            lambda batch, several=several: several.read_rows({"customer": batch}, {}, len(batch), now_us),
            _asked(min(entities, 5_000), reads // 2),
        )
    return found


def _feast(folder: Path, entities: int, reads: int) -> dict[str, Any]:
    """In Feast's environment: the same values in its SQLite store."""
    import feast
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64

    place = folder / "feast"
    place.mkdir()
    (place / "feature_store.yaml").write_text(
        "project: bench\nregistry: registry.db\nprovider: local\nonline_store:\n  type: sqlite\n  path: online.db\n"
        "entity_key_serialization_version: 3\n"
    )
    columns = {f"f0_{at}": [value(entity, at) for entity in range(entities)] for at in range(FEATURES)}
    frame = pd.DataFrame(
        {
            "customer": range(entities),
            "event_timestamp": [datetime(2026, 1, 1, tzinfo=UTC)] * entities,
            "created": [datetime(2026, 1, 1, tzinfo=UTC)] * entities,
            **columns,
        }
    )
    frame.to_parquet(place / "rows.parquet")
    customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.INT64)
    source = FileSource(
        path=str(place / "rows.parquet"), timestamp_field="event_timestamp", created_timestamp_column="created"
    )
    view = FeatureView(
        name="view0", entities=[customer], ttl=timedelta(days=36_500), source=source, online=True,
        schema=[Field(name=name, dtype=Float64) for name in columns],
    )  # fmt: skip
    store = FeatureStore(repo_path=str(place))
    store.apply([customer, view])
    store.write_to_online_store("view0", frame)
    names = [f"view0:{name}" for name in columns]

    def read(batch: Sequence[int]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = store.get_online_features(
            features=names, entity_rows=[{"customer": entity} for entity in batch]
        ).to_dict()
        return found

    asked = _asked(entities, reads)
    answer = read(asked[0])
    for at in range(FEATURES):
        assert answer[f"f0_{at}"] == [value(entity, at) for entity in asked[0]]
    return {"version": feast.__version__, **_timed(read, asked)}


def _asked(entities: int, reads: int) -> list[list[int]]:
    dice = random.Random(1)
    return [[dice.randrange(entities) for _ in range(BATCH)] for _ in range(reads)]


def _timed(read: Callable[[Any], Any], asked: Sequence[Any]) -> dict[str, float]:
    """Milliseconds per read, after a tenth of them to warm up; the collector runs as it does in a program.

    cpu: of the thread alone, which others on the machine disturb less.
    """
    for one in asked[: len(asked) // 10]:
        read(one)
    gc.collect()
    times, cpu = [], []
    for one in asked:
        began, began_cpu = time.perf_counter_ns(), time.thread_time_ns()
        read(one)
        cpu.append(time.thread_time_ns() - began_cpu)
        times.append(time.perf_counter_ns() - began)
    times.sort()
    cpu.sort()
    return {
        "p50_ms": round(times[len(times) // 2] / 1e6, 4),
        "p99_ms": round(times[int(len(times) * 0.99)] / 1e6, 4),
        "cpu_p50_ms": round(cpu[len(cpu) // 2] / 1e6, 4),
        "cpu_p99_ms": round(cpu[int(len(cpu) * 0.99)] / 1e6, 4),
        "reads": len(times),
    }


if __name__ == "__main__":
    sys.exit(main())
