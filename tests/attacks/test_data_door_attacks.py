"""Attacks through the doors: SQL that exhausts the process, Calls whose features cannot be had, files of labels.

Proved elsewhere: what SQL may read and write, its time and memory (lake/test_sql); bad rows of labels (outcomes); bad
files of Datasets (datasets). Here: what no limit of the database covers, and a gateway that lives on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drivetrain.embedded.feature_store import feature_store
from support import wire
from support.projects import settings
from support.served import Served, served
from support.tries import within

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-c", "from drivetrain.cli.main import main; main()"]
DECLARED = """
import drivetrain as dt

customer = dt.Entity("customer")
number = dt.Entity("number", value_type=int)
orders = dt.FeatureView(
    "orders", entities=[customer], source=dt.FileSource("orders.csv"), schema=[dt.Field("orders", int, default=0)]
)
sizes = dt.FeatureView(
    "sizes", entities=[number], source=dt.FileSource("sizes.csv"), schema=[dt.Field("size", float, default=0.0)]
)

@dt.on_demand_feature_view(sources=[orders, dt.RequestSource("asked", schema=[dt.Field("until", "timestamp")])],
                           schema=[dt.Field("share", float)])
def share(row):
    if row["orders"] == 13:
        raise SystemExit(3)
    return {"share": 1.0 / row["orders"]}

plain = dt.FeatureService("plain", features=[orders])
numbered = dt.FeatureService("numbered", features=[sizes])
shared = dt.FeatureService("shared", features=[orders, share])
"""
WORKFLOW = """
import drivetrain as dt

class Ask(dt.Record):
    who: str
    until: str = "2026-01-01T00:00:00Z"

def tell(ask, features):
    return " ".join(f"{name}={features[name]}" for name in sorted(features))

def workflow(name, **more):
    return dt.Workflow(
        name, input=Ask, owner="team@acme.example", team="support", use_case="tests",
        route=[dt.Rule("tell", when=lambda ask: True, then=tell)], **more,
    )

plain = workflow("plain", features="plain", entity_keys={"customer": "who"})
numbered = workflow("numbered", features="numbered", entity_keys={"number": "who"})
shared = workflow("shared", features="shared", entity_keys={"customer": "who"})
"""
AT = "2026-01-05T00:00:00Z"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    files = {
        "drivetrain.toml": settings(),
        "features/shop.py": DECLARED,
        "workflows/ask.py": WORKFLOW,
        "orders.csv": f"customer,event_timestamp,orders\nada,{AT},4\nnone,{AT},0\nevil,{AT},13\n",
        "sizes.csv": f"number,event_timestamp,size\n1,{AT},2.5\n",
    }
    with served(files, {}) as running:
        feature_store(running.root).materialize_incremental()
        yield running


def ask(gateway: Served, workflow: str, body: Any) -> wire.Answered:
    return wire.one(gateway.port, wire.request(body, path=f"/v1/workflows/{workflow}"))


@pytest.mark.parametrize(
    ("workflow", "body"),
    [
        ("numbered", {"who": "1"}),
        ("numbered", {"who": "nan"}),
        ("shared", {"who": "none"}),
        ("shared", {"who": "evil"}),
        ("shared", {"who": "ada", "until": "infinity"}),
        ("shared", {"who": "ada", "until": "0001-01-01T00:00:00+14:00"}),
        ("plain", {"who": 5}),
        ("plain", {"who": None}),
        ("plain", {}),
    ],
)
def test_a_call_whose_features_cannot_be_had_is_refused_and_the_gateway_lives_on(
    gateway: Served, workflow: str, body: dict[str, Any]
) -> None:
    answer = ask(gateway, workflow, body)
    assert answer.status in (400, 422, 503), answer
    assert answer.error["code"] in ("invalid_type", "features_unavailable"), answer
    assert "orders=4" in str(ask(gateway, "plain", {"who": "ada"}).json)
    assert "share=0.25" in str(ask(gateway, "shared", {"who": "ada"}).json)
    assert not gateway.faults


# SQL.


def sql(folder: Path, text: str, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "drivetrain.toml").write_text('[project]\nname = "asked"\n')
    return subprocess.run([*COMMAND, "sql", text, *more], cwd=folder, capture_output=True, text=True, check=False)


def test_a_function_that_takes_all_memory_ends_before_the_machine_does(tmp_path: Path) -> None:
    text = "select len(range(900000000))"
    ran = sql(tmp_path, text, "--timeout", "200")
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert "memory" in ran.stderr, "it ended by its time, and the machine may have ended before"


def test_a_function_that_nothing_interrupts_ends_with_its_process(tmp_path: Path) -> None:
    code = "import drivetrain.cli.sql as sql; sql.GRACE_S = 0.3; from drivetrain.cli.main import main; main()"
    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "asked"\n')
    text = "select levenshtein(repeat('a', 300000), repeat('b', 300000))"

    def asked() -> None:
        ran = subprocess.run(
            [sys.executable, "-c", code, "sql", text, "--timeout", "0.2"],
            cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert (ran.returncode, ran.stdout) == (1, "")
        assert "cannot be interrupted" in ran.stderr

    within(5, asked)


def test_half_of_a_surrogate_pair_is_no_query(tmp_path: Path) -> None:
    ran = sql(tmp_path, os.fsdecode(b"select '\xff'"))
    assert ran.returncode == 1
    assert "half of a surrogate pair" in ran.stderr


# Datasets and labels.


def test_a_time_beyond_the_years_of_python_is_shown(tmp_path: Path) -> None:
    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "far"\n')
    for arguments in (
        ["dataset", "create", "far", "--from", "select timestamp '290000-01-01' as at"],
        ["dataset", "show", "far", "--json"],
    ):
        ran = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["newest"]


def test_a_line_that_never_ends_is_named_by_its_row(tmp_path: Path) -> None:
    (tmp_path / "drivetrain.toml").write_text('[project]\nname = "labels"\n')
    (tmp_path / "labels.jsonl").write_text("\n[" * 2 + "[" * 100_000)
    ran = subprocess.run(
        [*COMMAND, "outcomes", "import", "labels.jsonl"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "row 2 (line 3): is longer than 65536 characters" in ran.stderr + ran.stdout
