"""How long a training set takes: point-in-time joins of many labels with many feature rows, beside Feast's two stores.

`python benchmarks/asof.py --help`. Each runs in a process of its own, on the same files; Feast in `.venvs/feast`, which
`--install` makes, and not at all where that is absent. Its answers are compared with ours of the same rule
(`corrected`), label by label.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

from machine import ROOT

FEAST = ROOT / ".venvs" / "feast"
"""Feast's own environment."""
KEYS, KEYS_OF_LABELS = 100_000, 110_000
"""Every eleventh label is of somebody who has no row at all."""
DAYS, TTL_DAYS = 90, 30
LATE_SHARE = 10
"""One row in so many is known up to a day late."""
FEAST_STORES = {"duckdb": "Feast, DuckDB store", "dask": "Feast, file store"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run."""

    name: str
    labels: int
    answered: int
    """Rows that came back."""
    seconds: float
    cpu_seconds: float
    """Of all its threads; on a busy machine the fairer number."""
    peak_mb: int


def main() -> int:
    """Measures and prints; 1 where a label was lost or an answer differs by the same rule."""
    parser = argparse.ArgumentParser(prog="asof.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--labels", type=int, default=1_000_000, help="labels (default 1,000,000)")
    parser.add_argument("--rows", type=int, default=5_000_000, help="feature rows (default 5,000,000)")
    parser.add_argument("--features", type=int, default=10, help="features per row (default 10)")
    parser.add_argument("--peer-labels", type=int, default=200_000, help="labels that Feast is asked (default 200,000)")
    parser.add_argument("--peer-timeout", type=int, default=300, help="seconds that Feast may take (default 300)")
    parser.add_argument("--stores", default="duckdb,dask", help="Feast's stores to ask (default duckdb,dask)")
    parser.add_argument("--install", action="store_true", help="make Feast's environment first; takes minutes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "LABELS", "RULE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, labels, rule = options.child
        return _ours(Path(folder), int(labels), rule == "corrected")
    if options.install:
        _install()
    with tempfile.TemporaryDirectory(prefix="asof-") as name:
        folder = Path(name)
        _generate(folder, options.labels, options.rows, options.features)
        runs, wrong = _measure(folder, options)
    for run in runs:
        lost = f", {run.labels - run.answered:,} LOST" if run.answered != run.labels else ""
        took = f"{run.seconds:8.2f} s {run.cpu_seconds:8.2f} s of cpu {run.peak_mb:6,} MB"
        print(f"{run.name:26} {run.labels:>9,} labels {took}{lost}")
    for line in wrong:
        print(line)
    if options.json:
        options.json.write_text(json.dumps({"runs": [asdict(run) for run in runs], "wrong": wrong}, indent=1) + "\n")
    ours = [run for run in runs if run.name.startswith("Drivetrain")]
    return int(any(run.answered != run.labels for run in ours) or bool(wrong))


def _measure(folder: Path, options: argparse.Namespace) -> tuple[list[Measured], list[str]]:
    """Every run, and what is wrong with our answers."""
    few = min(options.peer_labels, options.labels)
    me = [sys.executable, __file__, "--child", str(folder)]
    runs = [
        _run("Drivetrain, known by then", [*me, str(options.labels), "strict"], options.labels),
        _run("Drivetrain, corrected", [*me, str(options.labels), "corrected"], options.labels),
        _run("Drivetrain, corrected", [*me, str(few), "corrected"], few),
    ]
    wrong: list[str] = []
    for store in options.stores.split(","):
        name = FEAST_STORES[store]
        if not (FEAST / "bin" / "python").exists():
            print(f"{name}: not installed; run with --install")
            continue
        script = str(Path(__file__).with_name("asof_feast.py"))
        command = [str(FEAST / "bin" / "python"), script, str(folder), store, str(few), str(options.features)]
        try:
            runs.append(_run(name, [*command, str(TTL_DAYS)], few, options.peer_timeout))
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            print(f"{name}: no answer: {str(error)[-200:]}")
            continue
        differing = _differing(folder, store, options.features)
        if differing:
            wrong.append(f"{name} answers {differing:,} of {few:,} labels in another way than we do")
    return runs, wrong


def _run(name: str, command: list[str], labels: int, timeout_s: int | None = None) -> Measured:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=timeout_s)
    told = json.loads(done.stdout.splitlines()[-1])
    return Measured(name=name, labels=labels, **told)


def _generate(folder: Path, labels: int, rows: int, features: int) -> None:
    """`features.parquet` and `labels.parquet`, the same each time."""
    import duckdb

    connection = duckdb.connect()
    day_us, start_us = 86_400_000_000, 1_704_067_200_000_000
    values = ", ".join(f"(hash(i * {number + 2}) % 1000000) / 1000.0 AS f{number}" for number in range(features))
    connection.execute(
        f"""COPY (SELECT CAST(hash(i * 7919) % {KEYS} AS BIGINT) AS customer_id,
        make_timestamp(CAST({start_us} + hash(i * 31 + 1) % {DAYS * day_us} AS BIGINT)) AS event_timestamp,
        event_timestamp + to_seconds(if(hash(i * 17) % {LATE_SHARE} = 0, hash(i * 13) % 86400, 0)::BIGINT) AS created,
        {values} FROM range({rows}) t(i)) TO '{folder}/features.parquet'"""
    )
    connection.execute(
        f"""COPY (SELECT i AS label_id, CAST(hash(i * 104729) % {KEYS_OF_LABELS} AS BIGINT) AS customer_id,
        make_timestamp(CAST({start_us} + hash(i * 37 + 5) % {DAYS * day_us} AS BIGINT)) AS event_timestamp
        FROM range({labels}) t(i)) TO '{folder}/labels.parquet'"""
    )


def _ours(folder: Path, labels: int, corrected: bool) -> int:
    """One run of ours, told as one JSON object."""
    import duckdb

    from drivetrain.core.features import Entity, FeatureView, Field, FileSource
    from drivetrain.features.definitions import define
    from drivetrain.features.historical import historical_features
    from drivetrain.project.snapshot import Features

    names = [name for name in _columns(folder) if name.startswith("f")]
    view = FeatureView(
        "stats", entities=[Entity("customer_id", value_type=int)], schema=[Field(name, float) for name in names],
        source=FileSource("features.parquet", created_timestamp_column="created"), ttl=f"{TTL_DAYS}d",
    )  # fmt: skip
    definitions = define(Features(views={"stats": view}))
    # As the lake opens its connections.
    limits = {"threads": 2, "memory_limit": "1GiB", "temp_directory": str(folder / "spill")}
    connection = duckdb.connect(config=limits)
    asked = folder / f"labels_{labels}.parquet"
    duckdb.sql(f"SELECT * FROM '{folder}/labels.parquet' ORDER BY label_id LIMIT {labels}").write_parquet(str(asked))
    started, cpu_started = time.perf_counter(), time.process_time()
    got = historical_features(
        connection, definitions, asked, [f"stats:{name}" for name in names], root=folder, corrected=corrected
    )
    answered = len(got)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if corrected:
        got.to_parquet(folder / "ours.parquet")
    print(json.dumps({"answered": answered, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb}))
    return 0


def _columns(folder: Path) -> list[str]:
    import duckdb

    rows = duckdb.sql(f"DESCRIBE FROM read_parquet('{folder}/features.parquet')").fetchall()
    return [row[0] for row in rows]


def _differing(folder: Path, store: str, features: int) -> int:
    """Labels that both answer, and not alike."""
    import duckdb

    alike = " AND ".join(f"a.f{number} IS NOT DISTINCT FROM b.f{number}" for number in range(features))
    row = duckdb.sql(
        f"SELECT count(*) FROM '{folder}/ours.parquet' a JOIN '{folder}/feast_{store}.parquet' b USING (label_id)"
        f" WHERE NOT ({alike})"
    ).fetchall()
    return int(row[0][0])


def _install() -> None:
    venv.create(FEAST, with_pip=True, clear=True)
    pip = [str(FEAST / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(ROOT / "requirements" / "bench-feast.in")], check=True)


if __name__ == "__main__":
    sys.exit(main())
