"""A project with features, sources inside and outside, its control log, and the commands over it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner, Result

from drivetrain.adapters.sqlite import open_control_log
from drivetrain.cli.freshness import freshness_command
from drivetrain.cli.lineage import lineage_command
from drivetrain.lineage.lineage import Lineage

T0_NS = 1_767_225_600_000_000_000
"""2026-01-01T00:00:00Z."""
KEYS = ".drivetrain/keys"
CODE_HASH = "5b" * 32

SETTINGS = """\
[project]
name = "shop"

[providers.openai]
dialect = "openai"
base_url = "http://127.0.0.1:9/v1"
"""
FEATURES = """\
import drivetrain as dt

customer = dt.Entity("customer")
orders = dt.FileSource("data/orders.csv", name="orders", timestamp_field="at", fresh_within="2h", owner="o@acme.org")
clicks = dt.PushSource("clicks", schema=[dt.Field("n", "int64")], batch_source=dt.TableSource("dataset.clicks"))
joined = dt.SqlSource("joined", query="WITH own AS (SELECT 1) SELECT * FROM own JOIN calls ON true JOIN push.clicks c")
stats = dt.FeatureView(
    "stats", entities=[customer], source=orders, schema=[dt.Field("total", float)], description="What they spent.",
    owner="data@acme.example",
)
clicked = dt.FeatureView("clicked", entities=[customer], source=clicks, schema=[dt.Field("n", int)])
both = dt.FeatureView("both", entities=[customer], source=joined, schema=[dt.Field("n", int)], online=False)
risk = dt.OnDemandFeatureView(
    "risk", sources=[stats, clicked[["n"]]], schema=[dt.Field("risk", float)], function=lambda row: {"risk": 0.0}
)
inputs = dt.FeatureService("inputs", features=[risk, stats[["total"]]])
crm = dt.Source(
    "crm", owner="crm@acme.example", location="https://crm.acme.example", schema={"customer_id": "string"},
    fresh_within="1d", readers=["stats", "dataset:golden"], description="Sales knows.",
)
"""
WORKFLOW = """\
import drivetrain as dt


class Ticket(dt.Record):
    customer: str
    text: str


triage = dt.Workflow(
    "triage", input=Ticket, owner="support@acme.example", team="support", use_case="tickets", features="inputs",
    route=[dt.Rule("all", when=lambda ticket: len(ticket.text) >= 0, then="ok")],
)
"""
FILES = {"drivetrain.toml": SETTINGS, "features/customer.py": FEATURES, "workflows/triage.py": WORKFLOW}

app = typer.Typer()
app.command("lineage")(lineage_command)
app.command("freshness")(freshness_command)


class World:
    """The project, and what was recorded in it."""

    def __init__(self, root: Path, files: Mapping[str, str] = FILES) -> None:
        self.root = root
        for name, text in files.items():
            self.write(name, text)
        self.control = open_control_log(self._made(root / ".drivetrain/data"), self._made(root / KEYS))
        self.at_ns = T0_NS
        self.lineage = Lineage(self.control, actor="ada", now_ns=self._tick)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--project", str(self.root)])

    def answer(self, *arguments: str, code: int = 0) -> Any:
        """What a command prints as JSON."""
        ran = self.run(*arguments, "--json")
        assert ran.exit_code == code, ran.output
        return json.loads(ran.stdout)

    def _tick(self) -> int:
        """A second later each time."""
        self.at_ns += 1_000_000_000
        return self.at_ns

    @staticmethod
    def _made(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
