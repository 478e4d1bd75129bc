"""`drivetrain features import-feast`: what a Feast repository declares means the same here, and the rest is named."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from feast_world import ENTITIES, OLD, OUTSIDE, SETTINGS, VIEWS, empty_project, modern, repository
from offline_world import Row, expected, seed_of
from typer.testing import CliRunner, Result

import drivetrain as dt
from drivetrain.cli.features import app
from drivetrain.core.errors import DrivetrainError, ProjectError
from drivetrain.features.feast_import import Imported, import_feast
from drivetrain.project import load
from support.tries import Spoiled, in_one_try

pytestmark = pytest.mark.slow

FEAST = Path(__file__).parents[2] / ".venvs" / "feast" / "bin" / "python"
START = datetime(2025, 3, 1, tzinfo=UTC)
DRIVERS = (1001, 1002, 1003, 1004, 1005)


def imported(folder: Path, files: dict[str, str], **options: Any) -> Imported:
    return import_feast(repository(folder / "repo", files), empty_project(folder / "shop"), **options)


def notes(made: Imported) -> str:
    return "\n".join(map(str, made.notes))


def store(folder: Path) -> Any:
    return dt.feature_store(folder / "shop")


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


# What is carried over.


def test_definitions_keep_their_meaning(tmp_path: Path) -> None:
    made = imported(tmp_path, {"entities.py": ENTITIES, "views.py": VIEWS})
    assert (made.entities, made.views, made.on_demand, made.services) == (1, 2, 2, 2)
    features = load(tmp_path / "shop").features
    driver = features.entities["driver"]
    assert (driver.join_keys, driver.value_type, driver.owner) == (("driver_id",), "int64", "fleet@acme.example")
    stats = features.views["driver_hourly_stats"]
    assert [(one.name, one.dtype) for one in stats.schema] == [
        ("conv_rate", "float64"), ("trips", "int64"), ("city", "string"),
    ]  # fmt: skip
    assert stats.schema[1].description == "Trips that day"
    assert (stats.ttl, stats.tags) == ("36h", {"team": "driver_performance"})
    assert isinstance(stats.source, dt.FileSource)
    assert (stats.source.path, stats.source.timestamp_field) == ("data/driver_stats.parquet", "event_timestamp")
    assert stats.source.created_timestamp_column == "created"
    fresh = features.views["driver_hourly_stats_fresh"]
    assert isinstance(fresh.source, dt.PushSource)
    assert fresh.source.batch_source is stats.source
    assert fresh.ttl is None, "Feast's ttl of 0 is for ever"
    service = store(tmp_path).definitions.service("driver_activity_v1")
    assert [one.full_name for one in service.features] == [
        "driver_hourly_stats__conv_rate", "driver_hourly_stats__city", "transformed__percent",
        "transformed__trips_plus",
    ]  # fmt: skip


def test_apply_accepts_what_was_imported(tmp_path: Path) -> None:
    project = empty_project(tmp_path / "shop")
    output = run("import-feast", str(modern(tmp_path / "repo")), "--project", str(project)).output
    assert "features/imported.py is new: 1 entities, 2 views, 2 on demand, 2 services" in output
    assert "views.py:75: OnDemandFeatureView `by_frame` computes on data frames" in output
    assert "new: service driver_activity_v2" in run("apply", "--project", str(project)).output


def test_each_thing_that_is_not_the_same_is_named_with_its_line(tmp_path: Path) -> None:
    told = notes(imported(tmp_path, {"entities.py": ENTITIES, "views.py": VIEWS}))
    for place, what in {
        "entities.py:3": "The tags of Entity `driver`",
        "views.py:42": "`embedding` of `driver_hourly_stats_fresh` has the type Array(Float32)",
        "views.py:75": "`by_frame` computes on data frames (pandas)",
        "views.py:83": "has a part that is not carried over: OnDemandFeatureView `by_frame`",
    }.items():
        assert any(line.startswith(place) and what in line for line in told.splitlines()), (place, told)


def test_a_transformation_of_frames_stays_as_a_comment(tmp_path: Path) -> None:
    text = imported(tmp_path, {"entities.py": ENTITIES, "views.py": VIEWS}).text
    assert '#     df["by_frame"] = np.sqrt(inputs["conv_rate"])' in text
    assert "import numpy" not in text


def test_definitions_of_old_versions(tmp_path: Path) -> None:
    made = imported(tmp_path, {"old.py": OLD})
    features = load(tmp_path / "shop").features
    view = features.views["driver_hourly_stats"]
    assert [(one.name, one.dtype) for one in view.schema] == [("conv_rate", "float64"), ("trips", "int64")]
    assert (view.ttl, view.entities[0].join_keys) == ("36h", ("driver_id",))
    assert "old.py:10: Entity `Driver` is called `driver` here." in notes(made)


def test_what_stays_outside_is_declared_outside(tmp_path: Path) -> None:
    made = imported(tmp_path, {"outside.py": OUTSIDE})
    features = load(tmp_path / "shop").features
    orders = features.outside["orders"]
    assert (orders.owner, orders.location) == ("shop@acme.example", "Snowflake SHOP.PUBLIC.ORDERS")
    assert orders.readers == ("order_view",)
    source = features.views["order_view"].source
    assert isinstance(source, dt.TableSource)
    assert (source.table, source.timestamp_field) == ("dataset.orders", "ts")
    assert "drivetrain dataset create orders --from-file" in notes(made)
    assert "hunter2" not in made.text + notes(made), "what stands behind `?` in a URL may be a secret"
    windows = features.views["click_view"].aggregations
    assert [(one.function, one.column, one.over, one.feature) for one in windows] == [
        ("sum", "price", "1h", "sum_price_3600s"), ("approx_distinct", "page", "7d", "pages"),
    ]  # fmt: skip
    for said in (
        "`field_mapping` is not carried over", "aggregation `median`", "join key map of `order_view`",
        "The alias `q`", "features that are not carried over: gone", "transformation of BatchFeatureView",
    ):  # fmt: skip
        assert said in notes(made)


def test_types_and_columns_are_looked_up_in_the_file_as_feast_does(tmp_path: Path) -> None:
    views = """
from feast import Entity, FeatureView, FileSource
rider = Entity(name="rider")
stats = FeatureView(name="stats", entities=[rider], source=FileSource(path="rides.parquet"))
"""
    root = repository(tmp_path / "repo", {"views.py": views})
    duckdb.sql(
        "SELECT 1::INTEGER AS rider, now()::TIMESTAMP AS at, 2::FLOAT AS far, 'x' AS city, [1] AS many"
    ).write_parquet(str(root / "rides.parquet"))
    made = imported(tmp_path, {"views.py": views})
    view = load(tmp_path / "shop").features.views["stats"]
    assert view.entities[0].value_type == "int64"
    assert view.source.timestamp_field == "at"
    assert [(one.name, one.dtype) for one in view.schema] == [("far", "float64"), ("city", "string")]
    assert "`many` of `stats` has a type that no feature has" in notes(made)


def test_a_function_that_does_not_stand_by_itself_is_not_carried_over(tmp_path: Path) -> None:
    head = """
import numpy as np
from feast import Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64
asked = RequestSource(name="asked", schema=[Field(name="x", dtype=Float64)])
"""
    one = (
        head
        + """
@on_demand_feature_view(sources=[asked], schema=[Field(name="y", dtype=Float64)], mode="python")
def with_numpy(inputs):
    return {"y": list(np.sqrt(inputs["x"]))}
FACTOR = 2
@on_demand_feature_view(sources=[asked], schema=[Field(name="y", dtype=Float64)], mode="python")
def doubled(inputs):
    return {"y": [one * FACTOR for one in inputs["x"]]}
"""
    )
    other = (
        head
        + """
FACTOR = 3
@on_demand_feature_view(sources=[asked], schema=[Field(name="z", dtype=Float64)], mode="python")
def tripled(inputs):
    return {"z": [one * FACTOR for one in inputs["x"]]}
"""
    )
    made = imported(tmp_path, {"a.py": one, "b.py": other})
    assert "it needs `np`" in notes(made)
    assert "needs a `FACTOR` of its own" in notes(made)
    on_demand = load(tmp_path / "shop").features.on_demand
    assert list(on_demand) == ["doubled"]
    assert on_demand["doubled"].function({"x": 4.0}) == {"y": 8.0}


# The same numbers.


def rows_and_labels(
    folder: Path, seed: int, corrections: int = 40
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A Parquet file of late and corrected rows in the repository, and labels in their order."""
    dice = random.Random(seed)
    times = [START + timedelta(minutes=minute) for minute in dice.sample(range(6 * 24 * 60), 260)]
    rows = [
        {
            "driver_id": dice.choice(DRIVERS[:4]), "event_timestamp": time,
            "created": time + timedelta(minutes=dice.choice([0, 0, 45, 600])), "conv_rate": round(dice.random(), 6),
            "trips": dice.randrange(1_000), "city": dice.choice(["Köln", "Łódź", "Oslo"]),
        }
        for time in times
    ]  # fmt: skip
    # Corrections: the same moment, known later.
    rows += [
        {**one, "created": one["created"] + timedelta(hours=1), "trips": one["trips"] + 1} for one in rows[:corrections]
    ]
    labels = [
        {
            "driver_id": dice.choice(DRIVERS), "val_to_add": dice.randrange(100),
            "event_timestamp": START + timedelta(minutes=dice.randrange(8 * 24 * 60)),
        }
        for _ in range(120)
    ]  # fmt: skip
    (folder / "data").mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            "CREATE TABLE stats (driver_id BIGINT, event_timestamp TIMESTAMPTZ, created TIMESTAMPTZ, conv_rate DOUBLE,"
            " trips BIGINT, city VARCHAR)"
        )
        connection.executemany("INSERT INTO stats VALUES (?, ?, ?, ?, ?, ?)", [list(one.values()) for one in rows])
        connection.execute(f"COPY stats TO '{folder}/data/driver_stats.parquet' (FORMAT parquet)")
    return rows, labels


def ours(folder: Path, labels: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    """The training set by the imported definitions; the repository lies inside the project, so no file is copied."""
    import_feast(folder / "feast", empty_project(folder))
    features = dt.feature_store(folder)
    table = features.get_historical_features(labels, "driver_activity_v1", **options)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize("corrected", [False, True])
def test_a_training_set_equals_brute_force(tmp_path: Path, corrected: bool) -> None:
    modern(tmp_path / "feast")
    rows, labels = rows_and_labels(tmp_path / "feast", seed_of("training set"))
    answer = ours(tmp_path, labels, corrected=corrected)
    assert len(answer) == len(labels)
    found = 0
    for label, got in zip(labels, answer, strict=True):
        history = [
            Row(
                (one["driver_id"],),
                one["event_timestamp"],
                one["created"],
                (one["conv_rate"], one["trips"], one["city"]),
            )
            for one in rows
            if one["driver_id"] == label["driver_id"]
        ]
        held = expected(history, label["event_timestamp"], timedelta(hours=36), created=True, corrected=corrected)
        rate, trips, city = held or (None, None, None)
        found += held is not None
        assert (got["conv_rate"], got["city"]) == (rate, city)
        assert got["percent"] == (None if rate is None else round(rate * 100, 3))
        assert got["trips_plus"] == (None if trips is None else trips + label["val_to_add"])
    assert 20 < found < len(labels), "the data must have labels with and without history"


@pytest.mark.timeout(600)
@pytest.mark.skipif(not FEAST.exists(), reason="Feast has no environment of its own here")
def test_a_training_set_equals_feasts(tmp_path: Path) -> None:
    # Feast runs the function's own source, so that what it calls in its file is not there.
    views = VIEWS.replace("rounded(one) for", "None if one is None else round(one * 100, 3) for")
    repository(tmp_path / "feast", {"entities.py": ENTITIES, "views.py": views})
    # Of rows with one moment Feast takes any, for it sorts by one column after the other: here each has its own.
    _, labels = rows_and_labels(tmp_path / "feast", seed_of("beside Feast"), corrections=0)
    answer = ours(tmp_path, labels, corrected=True)
    asked = tmp_path / "labels.jsonl"
    asked.write_text("\n".join(json.dumps(one, default=datetime.isoformat) for one in labels))
    told = subprocess.run(
        [str(FEAST), str(Path(__file__).with_name("feast_answers.py")), str(tmp_path / "feast"), str(asked),
         "driver_activity_v1"],
        capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-2_000:]
    feasts = by_label(json.loads(told.stdout))
    found = 0
    for label, values in by_label(answer).items():
        # Feast's file store loses labels whose history is all older than the ttl; here they are kept, with nulls.
        assert feasts.pop(label, (None,) * 4) == values
        found += values[0] is not None
    assert not feasts
    assert found > 20


def by_label(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """What a training set says of each label; numbers alike whether they became floats on the way."""
    return {
        (one["driver_id"], str(one["event_timestamp"]).replace(" ", "T"), one["val_to_add"]): (
            one["city"],
            *(
                None if one[name] is None else round(float(one[name]), 9)
                for name in ("conv_rate", "percent", "trips_plus")
            ),
        )
        for one in rows
    }


# Again, and by hand.


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    first = imported(tmp_path, {"entities.py": ENTITIES, "views.py": VIEWS})
    before = first.path.stat().st_mtime_ns
    again = imported(tmp_path, {"entities.py": ENTITIES, "views.py": VIEWS})
    assert (first.state, again.state, again.written) == ("new", "unchanged", False)
    assert first.path.stat().st_mtime_ns == before
    changed = imported(tmp_path, {"entities.py": ENTITIES, "views.py": VIEWS.replace("hours=36", "hours=48")})
    assert changed.state == "changed"
    assert 'ttl="2d"' in first.path.read_text()


def test_hand_edits_are_kept_unless_forced(tmp_path: Path) -> None:
    made = imported(tmp_path, {"entities.py": ENTITIES, "views.py": VIEWS})
    edited = made.path.read_text().replace('ttl="36h"', 'ttl="40h"')
    made.path.write_text(edited)
    with pytest.raises(DrivetrainError, match="edited by hand"):
        imported(tmp_path, {"entities.py": ENTITIES, "views.py": VIEWS})
    assert made.path.read_text() == edited
    assert imported(tmp_path, {"entities.py": ENTITIES, "views.py": VIEWS}, force=True).state == "changed"
    assert made.path.read_text() == made.text


def test_a_dry_run_prints_and_writes_nothing(tmp_path: Path) -> None:
    project = empty_project(tmp_path / "shop")
    output = run("import-feast", str(modern(tmp_path / "repo")), "--project", str(project), "--dry-run").output
    assert "dt.Entity(" in output
    assert "features/imported.py would be new" in output
    assert not (project / "features").exists()


def test_nothing_is_written_that_the_project_could_not_load(tmp_path: Path) -> None:
    project = empty_project(tmp_path / "shop")
    (project / "features").mkdir()
    (project / "features" / "mine.py").write_text('import drivetrain as dt\n\ndriver = dt.Entity("driver")\n')
    with pytest.raises(ProjectError, match="Entity `driver` is declared twice"):
        imported(tmp_path, {"entities.py": ENTITIES, "views.py": VIEWS})
    assert not (project / "features" / "imported.py").exists()


@pytest.mark.parametrize(
    "to", ["imported.py", "../out.py", "features/../../x.py", "features/no-module.py", "features/x"]
)
def test_a_module_stands_among_the_projects_features(tmp_path: Path, to: str) -> None:
    with pytest.raises(DrivetrainError, match="no module of the project's features"):
        imported(tmp_path, {"entities.py": ENTITIES}, to=to)


# Repositories that are broken, or worse.

GOOD = """
from feast import Entity, ValueType
good = Entity(name="good", value_type=ValueType.STRING)
"""


@pytest.mark.parametrize(
    ("code", "line", "said"),
    [
        ("x = 1\nwhile True:\n    x += 1\n", (2, 3), "it takes too long"),
        ("import sys\nsys.exit(3)\n", (2,), "SystemExit"),
        ("import os\nos.environ['BUCKET']\n", (2,), "KeyError: 'BUCKET'"),
        ("def broken(:\n", (1,), "SyntaxError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))\n", (2,), "may not use `socket"),
        ("import subprocess\nsubprocess.run(['true'])\n", (2,), "may not use `subprocess.Popen`"),
        ("import os\nos.fork()\n", (2,), "may not use `os.fork`"),
        ("import ctypes\nctypes.CDLL(None)\n", (2,), "may not use `ctypes"),
        ("\nopen('/etc/passwd').read()\n", (2,), "may only read files of their repository"),
        ("\nopen('made.txt', 'w')\n", (2,), "may not write files"),
        ("import os\nos.remove('entities.py')\n", (2,), "may not use `os.remove`"),
        ("x = 'y' * (1 << 40)\n", (1,), "MemoryError"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_its_line_and_the_others_are_read(
    tmp_path: Path, code: str, line: tuple[int, ...], said: str
) -> None:
    tries = itertools.count()

    def read() -> None:
        folder = tmp_path / str(next(tries))
        # Only what never ends is cut short; on a machine that stands still others take long, too.
        limits = {"file_seconds": 0.3} if "too long" in said else {}
        made = imported(folder, {"a_bad.py": code, "good.py": GOOD}, **limits)
        assert not (folder / "repo" / "made.txt").exists()
        note = next(one for one in made.notes if one.file == "a_bad.py")
        assert said in note.what
        if limits and (note.line not in line or any(one.file == "good.py" for one in made.notes)):
            raise Spoiled(f"a file was cut short before it had begun: {made.notes}")
        assert note.line in line
        assert made.entities == 1

    in_one_try(read)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os\nos._exit(0)\n", "It ended the process"),
        ("import time\nwhile 1:\n    try:\n        time.sleep(9)\n    except BaseException: pass\n", "not end in time"),
        ("import os\nfor n in range(3, 64):\n    try:\n        while True: os.write(n, b'x' * 65536)\n"
         "    except OSError: pass\n", "bytes"),
    ],
)  # fmt: skip
def test_what_ends_or_floods_the_process_is_a_clear_error(tmp_path: Path, code: str, said: str) -> None:
    tries = itertools.count()

    def read() -> None:
        # Only what never ends is cut short; on a machine that stands still others take long, too.
        limits = {"file_seconds": 1.0, "run_seconds": 1.5} if "in time" in said else {}
        with pytest.raises(DrivetrainError, match=said) as raised:
            imported(tmp_path / str(next(tries)), {"a_bad.py": code, "good.py": GOOD}, **limits)
        if limits and "The repository cannot be read" in str(raised.value):
            raise Spoiled("its time was over before a file had begun")
        assert "a_bad.py cannot be read" in str(raised.value)

    in_one_try(read)


def test_prints_and_links_that_lead_out_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text("from feast import Entity\nstolen = Entity(name='stolen')\n")
    root = repository(tmp_path / "repo", {"noisy.py": "print('x' * 10_000_000)\n" + GOOD})
    (root / "link.py").symlink_to(tmp_path / "elsewhere.py")
    (root / "loop").symlink_to(root)
    made = imported(tmp_path, {})
    assert "link.py: The link leads out of the repository" in notes(made)
    assert "stolen" not in made.text
    assert made.entities == 1


HEAD = """
import os, math
from feast import Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64
asked = RequestSource(name="asked", schema=[Field(name="x", dtype=Float64)])
"""
DECORATED = '@on_demand_feature_view(sources=[asked], schema=[Field(name="y", dtype=Float64)], mode="python")'


@pytest.mark.parametrize(
    "code",
    [
        "{decorated}\ndef f(inputs, done=os.mkdir({made})): return {{'y': inputs['x']}}",
        "{decorated}\ndef f(inputs, done=__import__('os').mkdir({made})): return {{'y': inputs['x']}}",
        "A = 1; B = os.mkdir({made})\n{decorated}\ndef f(inputs): return {{'y': [A for one in inputs['x']]}}",
        "def g(x, done=open({made}, 'w')): return x\n{decorated}\ndef f(inputs): return {{'y': g(inputs['x'])}}",
        "A = os.mkdir({made})\n{decorated}\ndef f(inputs): return {{'y': [A for one in inputs['x']]}}",
    ],
)
def test_nothing_of_the_repository_runs_when_its_module_is_loaded(tmp_path: Path, code: str) -> None:
    # The child gets harmless stand-ins; what is named would be done where the written module is imported.
    made = tmp_path / "made"
    text = HEAD + code.format(decorated=DECORATED, made=repr(str(made)))
    quiet = text.replace("asked =", "os.mkdir = open = lambda *given: 1\nasked =", 1)
    result = imported(tmp_path, {"a.py": quiet})
    load(tmp_path / "shop")
    assert not made.exists(), result.text


def test_names_cannot_write_code(tmp_path: Path) -> None:
    evil = '''
from feast import BatchFeatureView, Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Int64
planted = 'x"""\\nimport os\\nraise SystemExit(9)\\n"""'
one = Entity(name=planted, join_keys=["id"], value_type=ValueType.INT64, description=planted)
two = FeatureView(name=planted, entities=[one], source=FileSource(path=planted + ".parquet", timestamp_field=planted),
                  schema=[Field(name="n", dtype=Int64, description=planted), Field(name=planted, dtype=Int64)],
                  tags={planted: planted})
out = BatchFeatureView(name=planted, entities=[one], udf=lambda df: df, source=FileSource(path="a.parquet"))
'''
    root = repository(tmp_path / "repo", {"evil.py": evil})
    (root / "feature_store.yaml").write_text(SETTINGS.replace("driver_ranking", 'x"""; raise SystemExit(9); """'))
    made = import_feast(root, empty_project(tmp_path / "shop"))
    lines = [line for line in made.text.splitlines() if not line.startswith("#")]
    assert not any(line.lstrip().startswith(("import os", "raise")) for line in lines)
    assert len(load(tmp_path / "shop").features.views) == 1


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DrivetrainError, match=r"has no feature_store\.yaml"):
        import_feast(tmp_path, empty_project(tmp_path / "shop"))
    with pytest.raises(DrivetrainError, match="has no Python files"):
        imported(tmp_path, {})


def test_variables_are_given_and_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "mine")
    code = "import os\nfrom feast import Entity\none = Entity(name=os.environ['BUCKET'], join_keys=['id'])\n"
    root, project = repository(tmp_path / "repo", {"a.py": code}), empty_project(tmp_path / "shop")
    assert "KeyError" in notes(import_feast(root, project, dry_run=True))
    run("import-feast", str(root), "--project", str(project), "--env", "BUCKET=theirs")
    assert list(load(project).features.entities) == ["theirs"]


def test_values_that_only_a_library_could_give_are_named(tmp_path: Path) -> None:
    code = """
import settings_of_ours
import pandas as pd
from feast import Entity, FeatureView, Field, FileSource
from feast.types import Int64
driver = Entity(name="driver", join_keys=["driver_id"])
secret = Entity(name=settings_of_ours.ENTITY)
source = FileSource(path="a.parquet", timestamp_field="ts")
stats = FeatureView(name="stats", entities=[driver], ttl=pd.Timedelta("1d"), source=source,
                    schema=[Field(name="n", dtype=Int64)])
other = FeatureView(name="other", entities=[secret], source=source, schema=[Field(name="n", dtype=Int64)])
"""
    root, project = repository(tmp_path / "repo", {"a.py": code}), empty_project(tmp_path / "shop")
    told = json.loads(run("import-feast", str(root), "--project", str(project), "--json").stdout)
    assert (told["state"], told["views"]) == ("new", 1)
    said = {one["line"]: one["what"] for one in told["notes"] if one["line"] in (7, 9, 11)}
    assert said[7] == "The name of this Entity cannot be read: settings_of_ours.ENTITY."
    assert said[9] == "The ttl of `stats` cannot be read: pandas.Timedelta(); its rows hold for ever."
    assert "names an entity that is not declared" in said[11]


def test_a_text_of_a_missing_value_is_not_taken_for_one(tmp_path: Path) -> None:
    code = """
import yaml
from feast import Entity, FeatureView, Field, SnowflakeSource
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.types import Int64
project = yaml.safe_load("x")["project"]
driver = Entity(name="driver", join_keys=["driver_id"])
schema = [Field(name="n", dtype=Int64)]
stats = FeatureView(name="stats", entities=[driver], source=SnowflakeSource(table=f"{project}_stats"), schema=schema)
rides = FeatureView(name="rides", entities=[driver], schema=schema, source=SparkSource(
    path="data/rides.parquet", file_format="parquet", timestamp_field="at"))
"""
    made = imported(tmp_path, {"a.py": code})
    features = load(tmp_path / "shop").features
    assert [one.location for one in features.outside.values()] == ["Snowflake, as a.py:9 says"]
    assert "absent" not in made.text
    rides = features.views["rides"].source
    assert isinstance(rides, dt.FileSource), "a local file is one, whatever read it in Feast"
    assert rides.path == "data/rides.parquet"


def test_ignored_files_are_not_run(tmp_path: Path) -> None:
    files = {"good.py": GOOD, "tests/test_x.py": "raise ValueError", ".feastignore": "tests  # not definitions\n"}
    assert "ValueError" not in notes(imported(tmp_path, files))
