"""`drivetrain freshness`: every source and view against its promise; exit code 3 where one is late."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from lineage_world import SETTINGS, World

from drivetrain.core.times import NS_PER_S

pytestmark = pytest.mark.slow

DECLARED = """\
import drivetrain as dt

customer = dt.Entity("customer")
{source}
view = dt.FeatureView("view", entities=[customer], source=source, schema=[dt.Field("n", int)], online={online})
"""


def stamp(age: timedelta) -> str:
    return (datetime.now(UTC) - age).isoformat()


def world_of(tmp_path: Path, source: str, *, online: bool = False, more: str = "") -> World:
    code = DECLARED.format(source=source, online=online) + more
    return World(tmp_path / "shop", {"drivetrain.toml": SETTINGS, "features/one.py": code})


def rows(world: World, *, code: int = 0) -> dict[str, dict[str, Any]]:
    return {row["artifact"]: row for row in world.answer("freshness", code=code)}


CSV = 'source = dt.FileSource("data/x.csv", name="x", timestamp_field="at", fresh_within="2h")'


@pytest.mark.parametrize(("age", "standing", "code"), [(1, "fresh", 0), (3, "late", 3)])
def test_a_file_against_its_promise(tmp_path: Path, age: int, standing: str, code: int) -> None:
    world = world_of(tmp_path, CSV)
    world.write("data/x.csv", f"at,n\n2020-01-01T00:00:00Z,1\n{stamp(timedelta(hours=age))},2\n")
    row = rows(world, code=code)["source:x"]
    assert (row["standing"], row["promise_s"]) == (standing, 7_200)
    assert age * 3_600 <= row["age_s"] < age * 3_600 + 60
    shown = world.run("freshness")
    assert shown.exit_code == code
    assert f"{age}.0 h" in shown.stdout
    assert ("LATE" in shown.stdout) == (standing == "late")


def test_a_row_of_the_future_does_not_hide_that_a_source_stands_still(tmp_path: Path) -> None:
    world = world_of(tmp_path, CSV)
    world.write("data/x.csv", f"at,n\n{stamp(timedelta(days=2))},1\n{stamp(timedelta(days=-900))},2\n")
    row = rows(world, code=3)["source:x"]
    assert (row["standing"], row["note"]) == ("late", "1 of its rows are in the future")
    world.write("data/x.csv", f"at,n\n{stamp(timedelta(days=-900))},2\n")
    assert rows(world, code=3)["source:x"]["note"] == "all of its 1 rows are in the future"


@pytest.mark.parametrize(
    ("content", "note"),
    [(None, "no file `data/x.csv`"), ("at,n\n", "no row"), ("other,n\n2026-01-01,1\n", "it cannot be read"),
     ("at,n\nsoon,1\n", "it cannot be read")],
    ids=["missing", "empty", "column", "no-time"],
)  # fmt: skip
def test_a_promised_source_without_a_readable_time_is_late(tmp_path: Path, content: str | None, note: str) -> None:
    world = world_of(tmp_path, CSV)
    if content is not None:
        world.write("data/x.csv", content)
    row = rows(world, code=3)["source:x"]
    assert row["standing"] == "late"
    assert note in row["note"]
    assert len(row["note"]) <= 300


def test_times_of_any_kind_mean_the_same_moment(tmp_path: Path) -> None:
    """With an offset or without one (UTC). A number is none, as nobody can tell its unit: features refuse it too."""
    now_s = int(time.time())
    when = datetime.fromtimestamp(now_s - 3_600, UTC)
    values = {
        "at": when.isoformat(),
        "moved": when.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" "),
        "east": (when + timedelta(hours=5)).replace(tzinfo=None).isoformat() + "+05:00",
        "number": str(now_s - 3_600),
    }
    sources = "\n".join(
        f'{name} = dt.FileSource("data/x.csv", name="{name}", timestamp_field="{name}", fresh_within="2h")'
        for name in values
    )
    world = world_of(tmp_path, CSV, more=sources)
    world.write("data/x.csv", ",".join(values) + "\n" + ",".join(values.values()) + "\n")
    found = rows(world, code=3)
    assert "cannot be read" in found["source:number"]["note"]
    for name in ("at", "moved", "east"):
        assert 3_600 <= found[f"source:{name}"]["age_s"] < 3_700, name


def test_tables_queries_and_what_is_pushed(tmp_path: Path) -> None:
    more = """
asked = dt.SqlSource("asked", query="select now() - interval 30 minute as at;", timestamp_field="at", fresh_within="1h")
table = dt.TableSource("calls", timestamp_field="opened", fresh_within="1h")
pushed = dt.PushSource("pushed", fresh_within="1h")
gone = dt.TableSource("dataset.gone", name="gone")
free = dt.SqlSource("free", query="select timestamp '2001-01-01' as event_timestamp")
"""
    world = world_of(tmp_path, CSV, more=more)
    world.write("data/x.csv", f"at,n\n{stamp(timedelta(0))},2\n")
    found = rows(world, code=3)
    assert found["source:asked"]["standing"] == "fresh"
    assert (found["source:calls"]["standing"], found["source:calls"]["note"]) == ("late", "it has no row")
    assert (found["source:pushed"]["standing"], found["source:pushed"]["note"]) == ("late", "nothing was pushed yet")
    assert (found["source:gone"]["standing"], found["source:gone"]["note"]) == ("unpromised", "no Dataset `gone`")
    assert (found["source:free"]["standing"], found["source:free"]["newest"]) == (
        "unpromised", "2001-01-01T00:00:00.000Z",
    )  # fmt: skip


def test_a_view_is_as_fresh_as_its_last_materialization_says(tmp_path: Path) -> None:
    world = world_of(tmp_path, CSV, online=True)
    world.write("data/x.csv", f"at,n\n{stamp(timedelta(0))},2\n")
    assert rows(world, code=3)["features:view"]["note"] == "never materialized"
    world.lineage.made("features:view@0", facts={"rows": 0})
    assert rows(world, code=3)["features:view"]["note"] == "it has no rows"
    old_ns, new_ns = (time.time_ns() - hours * 3_600 * NS_PER_S for hours in (5, 1))
    world.lineage.made("features:view@1", facts={"newest_event_ns": old_ns})
    assert rows(world, code=3)["features:view"]["standing"] == "late"
    world.lineage.made("features:view@2", facts={"newest_event_ns": new_ns})
    assert rows(world)["features:view"]["newest_ns"] == new_ns


def test_what_is_outside_is_late_only_where_somebody_recorded_that(tmp_path: Path) -> None:
    more = '\ncrm = dt.Source("crm", owner="a@acme.example", location="x", fresh_within="1d", readers=["view"])\n'
    world = world_of(tmp_path, CSV, more=more)
    world.write("data/x.csv", f"at,n\n{stamp(timedelta(0))},2\n")
    assert rows(world)["source:crm"]["standing"] == "unknown"
    world.lineage.made("source:crm@a", facts={"newest_event_ns": time.time_ns() - 90_000 * NS_PER_S})
    row = rows(world, code=3)["source:crm"]
    assert (row["standing"], row["outside"]) == ("late", True)


def test_a_source_reads_nothing_outside_the_project(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("at,n\n2026-01-01,hunter2\n")
    query = f"select timestamp '2026-01-01' as event_timestamp from read_csv('{tmp_path}/secret.csv')"
    world = world_of(tmp_path, CSV, more=f'\nsly = dt.SqlSource("sly", query="{query}", fresh_within="1h")\n')
    world.write("data/x.csv", f"at,n\n{stamp(timedelta(0))},2\n")
    row = rows(world, code=3)["source:sly"]
    assert row["newest_ns"] is None
    assert "cannot be read" in row["note"]


def test_a_project_without_sources(tmp_path: Path) -> None:
    world = World(tmp_path / "shop", {"drivetrain.toml": SETTINGS})
    assert world.answer("freshness") == []
    assert "declares no source" in world.run("freshness").stdout
