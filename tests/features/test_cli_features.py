"""`drivetrain features`: the commands, from declarations to a parity report over real Calls."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from online_world import write_csv
from typer.testing import CliRunner, Result

from drivetrain.cli.features import app
from drivetrain.embedded.featuring import unmaterialized
from drivetrain.project import load
from support.tries import PATIENCE_S

pytestmark = pytest.mark.slow

DECLARED = """
import drivetrain as dt

customer = dt.Entity("customer")
stats = dt.FeatureView("stats", entities=[customer], source=dt.FileSource("data/stats.csv", name="stats_rows"),
                       schema=[dt.Field("orders", int, default=0), dt.Field("mean", float)])
clicks = dt.PushSource("clicks", schema=[dt.Field("n", int)])
click = dt.FeatureView("click", entities=[customer], source=clicks, schema=[dt.Field("n", int)])

@dt.on_demand_feature_view(sources=[stats[["orders"]], dt.RequestSource("asked", schema=[dt.Field("amount", float)])],
                           schema=[dt.Field("share", float)])
def share(row):
    return {"share": row["amount"] / (row["orders"] + 1)}

inputs = dt.FeatureService("inputs", features=[stats, click, share])

class Order(dt.Record):
    customer: str
    amount: float

class Verdict(dt.Record):
    good: bool

judge = dt.Workflow(
    "judge", input=Order, output=Verdict, owner="team@acme.example", team="support", use_case="orders",
    features=inputs, route=[dt.Rule("all", when=lambda order: True, then=Verdict(good=True))],
)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    now = datetime.now(UTC)
    (tmp_path / "features").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "shop"\n[teams.support]\n')
    (tmp_path / "features" / "declared.py").write_text(DECLARED)
    rows = [
        {"customer": f"c{n}", "event_timestamp": (now - timedelta(hours=n + 1)).isoformat(), "orders": n, "mean": n / 3}
        for n in range(5)
    ]
    write_csv(tmp_path / "data/stats.csv", rows)
    (tmp_path / "clicks.jsonl").write_text('{"customer": "c1", "n": 7}\n\n{"customer": "c2", "n": 8}\n')
    return tmp_path


@pytest.fixture
def run(project: Path) -> Callable[..., Result]:
    def ran(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [*arguments, "--project", str(project)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return ran


def test_from_declarations_to_an_online_read(run: Callable[..., Result], project: Path) -> None:
    assert "new: service inputs" in run("apply").output
    assert "new:" not in run("apply").output
    assert run("push", "clicks", str(project / "clicks.jsonl")).output == "2 rows pushed\n"
    made = json.loads(run("materialize", "--json").output)
    assert made["tables"] == {"stats@@customer": 5, "click@@customer": 2, "inputs@customer": 5}
    listed = {row["name"]: row for row in json.loads(run("list", "--json").output)}
    assert listed["inputs"]["vectors"] == 5
    assert listed["share"]["kind"] == "on demand"
    assert re.search(r"view +click +customer +1 +clicks +2 +20", run("list").output)
    got = json.loads(run("get", "inputs", "customer=c1", "amount=4.0", "--json").output)
    assert got == {"customer": "c1", "orders": 1, "mean": 1 / 3, "n": 7, "share": 2.0}
    assert "NOT_FOUND" in run("get", "stats:orders", "customer=nobody").output
    assert "no int64" not in run("get", "stats:orders,stats:mean", "customer=c3").output


def test_what_was_never_materialized_is_said_beside_the_answer(run: Callable[..., Result], project: Path) -> None:
    result = run("get", "inputs", "customer=c1", "amount=4.0", "--json")
    assert json.loads(result.stdout)["orders"] == 0
    assert result.stderr == "Never materialized: `stats`, `click`. Run `drivetrain features materialize`.\n"
    assert unmaterialized(load(project)) == {"inputs": ["stats", "click"]}
    run("materialize")
    assert run("get", "inputs", "customer=c1", "amount=4.0").stderr == ""
    assert unmaterialized(load(project)) == {}


def test_one_view_is_materialized_with_the_tables_it_stands_in(run: Callable[..., Result]) -> None:
    shown = run("materialize", "--view", "stats").output.splitlines()
    assert [line.split()[:2] for line in shown[:2]] == [["view", "entities"], ["stats", "5"]]
    assert shown[2] == "tables rebuilt: stats@@customer, inputs@customer"


def test_a_training_set_in_a_file(run: Callable[..., Result], project: Path) -> None:
    labels = project / "data" / "labels.csv"
    write_csv(labels, [{"customer": "c2", "amount": 3.0, "event_timestamp": datetime.now(UTC).isoformat()}] * 3)
    out = project / "train.parquet"
    assert "3 rows with 4 features" in run("historical", str(labels), "inputs", "--parquet", str(out)).output
    import duckdb

    found = duckdb.sql(f"SELECT orders, share FROM '{out}'").fetchall()
    assert found == [(2, 1.0)] * 3


def test_parity_over_recorded_calls(run: Callable[..., Result], project: Path) -> None:
    run("materialize")
    calls = (
        "import drivetrain as dt\n"
        "from drivetrain.project import load\n"
        "from pathlib import Path\n"
        f"workflow = load(Path({str(project)!r})).workflows['judge']\n"
        "for name in ('c0', 'c1', 'c4', 'stranger'):\n"
        "    assert workflow(workflow.input(customer=name, amount=2.0)).good\n"
    )
    subprocess.run([sys.executable, "-c", calls], check=True)
    report = json.loads(run("parity", "--json").output)
    assert (report["calls"], report["differs"]) == (4, 0)
    assert [one["feature"] for one in report["features"]["inputs"]] == [
        "stats:orders", "stats:mean", "click:n", "share:share",
    ]  # fmt: skip
    # The source is changed behind everybody's back: what was served is not what training would see now.
    text = (project / "data" / "stats.csv").read_text()
    (project / "data" / "stats.csv").write_text(text.replace(",0.3333333333333333", ",0.33"))
    output = run("parity", code=3).output
    assert re.search(r"stats:mean +3 +1 +0 +0 +0 +rounding 1 +call_", output)
    assert "4 Calls compared: 1 values differ" in output
    assert "No Call's features" in run("parity", "--workflow", "other", code=1).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("materialize", "--view", "stat"), "Did you mean `stats`?"),
        (("materialize", "--end", "tomorrow"), "is no time"),
        (("materialize", "--end", "2999-01-01"), "a moment to come"),
        (("get", "input", "customer=c1"), "Did you mean `inputs`?"),
        (("get", "inputs", "customer"), "is no KEY=VALUE"),
        (("get", "inputs", "customer=c1", "amount=much"), "is float64"),
        (("get", "inputs", "customr=c1", "amount=1"), "Did you mean `customer`?"),
        (("historical", "dataset:gone", "inputs", "--parquet", "x.parquet"), "drivetrain dataset create gone"),
        (("push", "clicks", "/nowhere.jsonl"), "cannot be read"),
        (("push", "click", "-"), "Did you mean `clicks`?"),
        (("serve", "--host", "0.0.0.0", "--port", "0"), "no key is declared or issued"),
    ],
)
def test_mistakes_say_what_to_do(run: Callable[..., Result], arguments: tuple[str, ...], message: str) -> None:
    assert message in run(*arguments, code=1).output


def test_a_line_that_is_no_object_is_named(run: Callable[..., Result], project: Path) -> None:
    (project / "bad.jsonl").write_text('{"customer": "c1", "n": 1}\n{"customer": \n')
    said = run("push", "clicks", str(project / "bad.jsonl"), code=1).output
    assert "bad.jsonl, line 2 is no JSON object" in said
    assert "Give JSON lines" in said


# Over HTTP.


@pytest.fixture
def served(project: Path) -> Iterator[Callable[..., tuple[int, Any]]]:
    import http.client

    code = "import sys; from drivetrain.cli.features import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0", "--project", str(project)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
    assert found is not None, line + process.stdout.read()

    def ask(method: str, path: str, body: Any = None, key: str = "") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=PATIENCE_S)
        try:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    yield ask
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    process.stdout.close()


def test_the_feature_server_speaks_as_feasts_does(served: Callable[..., tuple[int, Any]]) -> None:
    assert served("GET", "/health") == (200, {})
    status, pushed = served(
        "POST", "/push",
        {"push_source_name": "clicks", "df": {"customer": ["c1", "c9"], "n": [5, 6]}, "to": "online_and_offline"},
    )  # fmt: skip
    assert (status, pushed) == (200, {"rows": 2, "online": 4, "offline": True})
    end = datetime.now(UTC).isoformat()
    status, made = served("POST", "/materialize-incremental", {"end_ts": end})
    assert status == 200, made
    assert made["tables"]["inputs@customer"] == 6
    status, answer = served(
        "POST", "/get-online-features",
        {"feature_service": "inputs", "entities": {"customer": ["c1", "no"], "amount": [4.0, 1.0]}},
    )  # fmt: skip
    assert status == 200, answer
    assert answer["metadata"]["feature_names"] == ["customer", "orders", "mean", "n", "share"]
    assert [one["values"] for one in answer["results"]] == [
        ["c1", "no"], [1, 0], [1 / 3, None], [5, None], [2.0, 1.0],
    ]  # fmt: skip
    assert answer["results"][1]["statuses"] == ["PRESENT", "NOT_FOUND"]
    assert answer["results"][1]["event_timestamps"][1].startswith("1970-01-01T00:00:00")
    status, answer = served(
        "POST", "/get-online-features",
        {"features": ["stats:orders"], "entities": {"customer": ["c4"]}, "full_feature_names": True},
    )  # fmt: skip
    assert answer["metadata"]["feature_names"] == ["customer", "stats__orders"]
    start = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    assert served("POST", "/materialize", {"start_ts": start, "end_ts": end, "feature_views": ["stats"]})[0] == 200
    for path, body, expected in (
        ("/get-online-features", {"feature_service": "none", "entities": {}}, 400),
        ("/get-online-features", {"entities": {}}, 400),
        ("/get-online-features", b"{", 400),
        ("/get-online-features", {"feature_service": "inputs", "entities": {"customer": ["c1"]}}, 400),
        ("/push", {"push_source_name": "clicks", "df": {"customer": ["c1"], "n": ["x"]}}, 400),
        ("/push", {"push_source_name": "clicks", "df": {"customer": ["c1"], "n": []}}, 400),
        ("/materialize", {"end_ts": end}, 400),
        ("/materialize", {"start_ts": "soon", "end_ts": end}, 400),
        ("/nothing", {}, 404),
    ):
        status, answer = served("POST", path, body)
        assert status == expected, (path, answer)
        assert answer["error"]["message"]
    assert served("GET", "/push")[0] == 405
    assert served("GET", "/health") == (200, {})


@pytest.fixture
def key_of(project: Path) -> Callable[..., str]:
    from drivetrain.cli.keys import app as keys

    def made(name: str, *more: str) -> str:
        result = CliRunner().invoke(keys, ["issue", name, *more, "--project", str(project)])
        assert result.exit_code == 0, result.output
        return result.stdout.split()[0]

    return made


def test_keys_are_the_gateways(
    key_of: Callable[..., str], project: Path, request: pytest.FixtureRequest, run: Callable[..., Result]
) -> None:
    run("materialize")
    whole, judging = key_of("whole"), key_of("judging", "--workflows", "judge")
    served = request.getfixturevalue("served")
    body = {"feature_service": "inputs", "entities": {"customer": ["c1"], "amount": [1.0]}}
    single = {"features": ["stats:orders"], "entities": {"customer": ["c1"]}}
    push = {"push_source_name": "clicks", "df": {"customer": ["c1"], "n": [5]}}
    assert served("GET", "/health")[0] == 200
    assert served("POST", "/get-online-features", body)[0] == 401
    assert served("POST", "/get-online-features", body, key="wrong")[0] == 401
    assert served("POST", "/get-online-features", body, key=whole)[0] == 200
    assert served("POST", "/get-online-features", body, key=judging)[0] == 200
    assert served("POST", "/get-online-features", single, key=judging)[0] == 403
    assert served("POST", "/push", push, key=judging)[0] == 403
    assert served("POST", "/push", push, key=whole)[0] == 200
    late = key_of("late")
    deadline = time.monotonic() + PATIENCE_S
    while served("POST", "/get-online-features", body, key=late)[0] != 200:
        assert time.monotonic() < deadline, "a key that is issued while it serves"
        time.sleep(0.05)
