"""SQL over the lake: what it may read, what it may not, what it is told, and the forms of its answer."""

from __future__ import annotations

import csv
import io
import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
import typer
from named_lake import lake_in, roll
from typer.testing import CliRunner, Result

from drivetrain.cli import sql as sql_cli
from drivetrain.core.calls import Attribution
from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.asking import sql
from drivetrain.lake import answers, sandbox
from drivetrain.lake.lake import Lake
from support.records import T0_NS, attempt, call_id, closed, opened, write
from support.tries import within

pytestmark = pytest.mark.slow

app = typer.Typer()
app.command("sql")(sql_cli.sql_command)
app.command("other")(lambda: None)

ONE, TWO = 2**62 + 2**61, 2**62
"""What the Calls cost: together more than 64 bits hold."""
SECRET = "the-secret-in-a-file"


def run(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, ["sql", *arguments], input=typed)


@pytest.fixture(params=["segments", "rolled"])
def lake(tmp_path: Path, request: pytest.FixtureRequest) -> Lake:
    """Two Calls, in the segments or in the lake."""
    write(
        tmp_path,
        opened(1, workflow='=HYPERLINK("x")'),
        closed(1, attempt(cost_nano_usd=2**62), attempt("large", 2**61)),
        opened(2, attribution=Attribution(team="+sales", tags=("a=1", "b"))),
        closed(2, attempt("small", 2**62)),
    )
    (tmp_path / "outside.csv").write_text(f"word\n{SECRET}\n")
    if request.param == "rolled":
        assert roll(tmp_path) == 2
    return lake_in(tmp_path)


@pytest.fixture
def project(lake: Lake) -> Path:
    root = lake.data_folder
    (root / "drivetrain.toml").write_text('[project]\nname = "shop"\n[ledger]\nfolder = "."\nkeys_folder = "keys"\n')
    return root


def test_an_answer_has_columns_rows_and_arrow(lake: Lake) -> None:
    answer = lake.query(
        "select min(team) as team, sum(cost_nano_usd) as cost, max(opened) as last from calls where cost_nano_usd > $1",
        [5],
    )
    assert answer.columns == ("team", "cost", "last")
    assert answer.rows == [("+sales", ONE + TWO, datetime(2026, 1, 1, 0, 0, 0, 2_000))]
    assert isinstance(answer.rows[0][1], int)
    with duckdb.connect() as connection:
        table = connection.from_arrow(answer)  # by `__arrow_c_stream__`
        assert table.columns == list(answer.columns)
        assert len(table.fetchall()) == len(answer) == answer.arrow().num_rows == 1


def test_parameters_by_name_and_times_with_a_zone(lake: Lake) -> None:
    rows = lake.query(
        "select call_id from calls where opened < $before::timestamptz", {"before": datetime.now(UTC)}
    ).rows
    assert sorted(rows) == [(call_id(1),), (call_id(2),)]
    (row,) = lake.query("select timestamptz '2026-01-01 12:00:00+02'").rows
    assert row == (datetime(2026, 1, 1, 10),)


FORBIDDEN = [
    "select * from '{outside}'",
    "select * from read_csv('{outside}')",
    "select * from read_text('{outside}')",
    "select (select content from read_text('{outside}'))",
    "select * from calls where exists (from '{outside}')",
    'with "{outside}" as (select 1) select * from (select * from "{outside}"), (from read_blob(\'{outside}\'))',
    "select * from glob('{folder}/*')",
    "select * from query('select * from ''{outside}''')",
    "select * from query_table('{outside}')",
    "select * from duckdb_settings()",
    "select * from pg_catalog.pg_settings",
    "select current_setting('temp_directory')",
    "select getenv('HOME')",
    "copy calls to '{folder}/out.csv'",
    "copy (select 1) to '{outside}'",
    "attach '{folder}/other.db'",
    "export database '{folder}/out'",
    "install httpfs",
    "load httpfs",
    "set memory_limit = '100GB'",
    "set enable_external_access = true",
    "reset threads",
    "pragma enable_profiling",
    "call pragma_version()",
    "create table t as select 1",
    "create temp macro calls() as 1",
    "insert into calls select * from calls",
    "update calls set team = ''",
    "delete from calls",
    "drop view calls",
    "select 1; select 2",
    "select 1; copy (select 1) to '{folder}/out.csv'",
    "select * from stored_calls",
    "select * from tail_calls",
    "",
    ";",
    "-- nothing",
]


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_but_the_named_tables_is_read_and_nothing_is_written(lake: Lake) -> None:
    folder = lake.data_folder
    before = files_of(folder)
    for text in FORBIDDEN:
        with pytest.raises(DrivetrainError) as refused:
            lake.query(text.format(folder=folder, outside=folder / "outside.csv"))
        assert SECRET not in str(refused.value), text
    assert files_of(folder) == before


BEHIND_THE_FIRST_WALL = [text for text in FORBIDDEN if "{" in text or text.startswith(("set", "reset", "install"))]


def test_the_second_wall_stands_by_itself(lake: Lake) -> None:
    """A connection that is handed out is locked, whatever a statement looks like."""
    folder = lake.data_folder
    before = files_of(folder)
    with lake.connect() as connection:
        for text in BEHIND_THE_FIRST_WALL:
            with pytest.raises(duckdb.Error):
                connection.execute(text.format(folder=folder, outside=folder / "outside.csv")).fetchall()
    assert files_of(folder) == before


def test_a_python_variable_is_no_table(lake: Lake) -> None:
    secrets = lake.query("select 1 as word").arrow()  # noqa: F841 - what a replacement scan would find
    with lake.connect() as connection, pytest.raises(duckdb.CatalogException):
        connection.execute("select * from secrets")


def test_a_connection_reads_the_folders_that_it_is_given(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> None:
    given = tmp_path_factory.mktemp("given")
    (given / "x.csv").write_text("a\n1\n")
    with lake.connect(folders=[given]) as connection:
        assert connection.execute(f"select a from '{given}/x.csv'").fetchall() == [(1,)]
        connection.execute(f"copy (select count(*) as n from calls) to '{given}/n.parquet'")
        with pytest.raises(duckdb.PermissionException):
            connection.execute(f"from '{lake.data_folder}/outside.csv'")
    with lake.connect(trusted=True) as connection:
        assert connection.execute(f"from '{lake.data_folder}/outside.csv'").fetchall() == [(SECRET,)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("select * from cals", "There is no table `cals`.\nDid you mean `calls`?"),
        ("select * from outcome_history", "Did you mean `outcomes_history`?"),
        ("select * from dataset.gold", "There is no table `dataset.gold`."),
        ("select workflo from calls", "There is no column `workflo` here.\nDid you mean `workflow`?"),
        ("select c.tem from calls c", "There is no column `tem` here.\nDid you mean `team`?"),
        ("select sum(cost_usd_nano) from spend", "Did you mean `cost_nano_usd`?"),
        ("select * frm calls wher", "The query cannot be read: syntax error at or near"),
        ("delete from calls", "That is no SELECT. The named tables are read-only."),
        ("select 1; select 2", "That is 2 statements."),
        ("select * from dataset.golden@1", 'Quote a version: dataset."golden@1".'),
        ('select * from calls where workflow = "acme"', "A text stands in single quotes: 'acme'."),
        ("select * from 'orders.csv'", "`drivetrain dataset create NAME --from-file FILE`"),
        ("select * from read_csv('orders.csv')", "`drivetrain dataset create NAME --from-file FILE`"),
        ("select cast('x' as int)", "Could not convert string 'x'"),
    ],
)
def test_an_error_says_what_is_near(lake: Lake, text: str, told: str) -> None:
    with pytest.raises(DrivetrainError) as refused:
        lake.query(text)
    assert told in str(refused.value)


def test_a_syntax_error_points_at_its_place(lake: Lake) -> None:
    with pytest.raises(DrivetrainError) as refused:
        lake.query("select *\nfrom calls\nwher team = 'x'")
    assert "    wher team = 'x'\n         ^" in str(refused.value)


def test_a_query_ends_at_its_time(lake: Lake) -> None:
    def too_long() -> None:
        with pytest.raises(DrivetrainError, match=r"took longer than 0\.2 s"):
            lake.query("select count(*) from range(1000000000000) t(i) where i % 7 = 3", timeout_s=0.2)

    within(5, too_long)
    assert lake.query("select 1").rows == [(1,)]


def test_memory_is_bounded(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MEMORY_MAX", "30MB")
    monkeypatch.setattr(sandbox, "SPILL_MAX", "1MB")
    with pytest.raises(DrivetrainError, match="needs more than 30MB of memory"):
        lake.query("select list(i || repeat('x', 500)) from range(1000000) t(i)")
    monkeypatch.setattr(sandbox, "SPILL_MAX", "1GB")
    spilled = "select count(*) from (select distinct i, repeat('x', 40) || i from range(600000) t(i))"
    assert lake.query(spilled).rows == [(600_000,)]


def test_an_answer_is_bounded_and_a_stream_is_not(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "ANSWER_BYTES_MAX", 100_000)
    text = "select i, repeat('x', 100) as x from range(50000) t(i)"
    with pytest.raises(DrivetrainError, match="--parquet FILE"):
        lake.query(text)
    with lake.stream(text) as rows:
        assert sum(len(batch) for batch in rows.batches()) == 50_000


def test_threads_share_a_lake(lake: Lake) -> None:
    found: list[object] = []

    def ask() -> None:
        found.append(lake.query("select count(*) from calls").rows)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[(2,)]] * 6


def test_an_empty_folder_has_every_table(tmp_path: Path) -> None:
    empty = Lake(tmp_path / "nowhere")
    for table in empty.named():
        assert empty.query(f"select * from {table.name}").rows == []
    assert not (tmp_path / "nowhere").exists()


# The command.


def test_json_is_one_array_of_objects(project: Path) -> None:
    found = run(
        "select call_id, opened, day, tags, cost_nano_usd, 1e400 as big, null as none, "
        "1267650600228229401496703205376::hugeint as huge, "
        "encode('é') as bytes, 1 as n, 2 as n from calls order by 1",
        "--json", "--project", str(project),
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    first, second = json.loads(found.stdout)
    assert first["opened"] == "2026-01-01T00:00:00.001000Z"
    assert (first["day"], first["cost_nano_usd"], first["big"], first["none"]) == ("2026-01-01", ONE, None, None)
    assert (first["huge"], first["bytes"], first["n"], first["n_2"]) == (str(2**100), "w6k=", 1, 2)
    assert second["tags"] == ["a=1", "b"]
    assert json.loads(run("select 1 where false", "--json", "--project", str(project)).stdout) == []


def test_csv_keeps_spreadsheets_from_running_texts(project: Path) -> None:
    text = "select workflow, team, -5 as n, -0.5 as f, tags from calls order by call_id"
    found = run(text, "--csv", "--project", str(project))
    rows = list(csv.reader(io.StringIO(found.stdout)))
    assert rows == [
        ["workflow", "team", "n", "f", "tags"],
        ['\'=HYPERLINK("x")', "support", "-5", "-0.5", "[]"],
        ["triage", "'+sales", "-5", "-0.5", '["a=1","b"]'],
    ]
    raw = list(csv.reader(io.StringIO(run(text, "--csv-raw", "--project", str(project)).stdout)))
    assert raw[1][0] == '=HYPERLINK("x")'
    assert raw[2][1] == "+sales"


def test_parquet_is_whole_or_absent(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("out") / "calls.parquet"
    assert run("from calls", "--parquet", str(out), "--project", str(project)).exit_code == 0
    with duckdb.connect() as connection:
        assert connection.execute(f"select count(*), sum(cost_nano_usd) from '{out}'").fetchall() == [(2, ONE + TWO)]
    before = out.read_bytes()
    failed = run("select cast(workflow as int) from calls", "--parquet", str(out), "--project", str(project))
    assert failed.exit_code == 1
    assert [path.name for path in out.parent.iterdir()] == ["calls.parquet"]
    assert out.read_bytes() == before
    assert run("from calls", "--parquet", "/nowhere/x.parquet", "--project", str(project)).exit_code == 1


def test_the_table_for_people_is_cut_and_says_so(project: Path) -> None:
    found = run(
        "select i, 'x\x1b[31m' as t, repeat('y', 200) as y from range(7) t(i)",
        "--limit",
        "3",
        "--project",
        str(project),
    )
    lines = found.stdout.splitlines()
    assert len(lines) == 4
    assert "\x1b" not in found.stdout
    assert "more than 3 rows" in found.stderr


def test_an_answer_without_rows_says_so(project: Path) -> None:
    found = run("select 1 as one where false", "--project", str(project))
    assert [line.strip() for line in found.stdout.splitlines()] == ["one", "no rows"]


def test_a_query_comes_from_standard_input(project: Path) -> None:
    assert json.loads(run("-", "--json", "--project", str(project), typed="select 42 as x").stdout) == [{"x": 42}]
    assert json.loads(run("--json", "--project", str(project), typed="select 43 as x;\n").stdout) == [{"x": 43}]


def test_mistakes_end_with_one_message(project: Path) -> None:
    for arguments in (["select * from cals"], ["select 1", "--json", "--csv"], ["select 1; select 2"]):
        found = run(*arguments, "--project", str(project))
        assert found.exit_code == 1
        assert "Traceback" not in found.output
        assert found.stdout == ""


def test_tables_are_listed(project: Path) -> None:
    found = json.loads(run("--tables", "--json", "--project", str(project)).stdout)
    assert {"calls", "attempts", "outcomes", "outcomes_history", "spend", "control"} <= {one["name"] for one in found}
    assert "cost_nano_usd" in run("--tables", "--project", str(project)).stdout
    some = json.loads(run("outcomes", "--tables", "--json", "--project", str(project)).stdout)
    assert {one["name"] for one in some} == {"outcomes", "outcomes_history"}
    assert run("absent", "--tables", "--project", str(project)).exit_code == 1


def test_python_asks_the_same(project: Path) -> None:
    answer = sql(
        "select sum(cost_nano_usd) as cost from calls where team = $team", {"team": "support"}, project=project
    )
    assert answer.rows == [(ONE,)]
    with pytest.raises(DrivetrainError, match="Did you mean `calls`"):
        sql("from cals", project=project)
    with pytest.raises(DrivetrainError, match=r"No drivetrain\.toml"):
        sql("from calls", project=project.parent)


def test_the_control_log_is_a_table(project: Path) -> None:
    from drivetrain.adapters.sqlite import open_control_log

    assert sql("from control", project=project).rows == []
    log = open_control_log(project, project / "keys", now_ns=lambda: T0_NS)
    log.append(kind="apply", actor="ann", subject="shop", body={"release": 14})
    rows = sql("select seq, recorded, kind, actor, body->>'release' from control", project=project).rows
    assert rows == [(1, datetime(2026, 1, 1), "apply", "ann", "14")]


def test_a_value_that_python_cannot_hold_is_an_error_that_says_what_to_do(lake: Lake) -> None:
    answer = lake.query("SELECT INTERVAL '1' YEAR * 100000000 AS long")
    with pytest.raises(DrivetrainError, match="beyond what Python can hold"):
        assert answer.rows
