"""A project on disk with a workflow, an eval and people, and the commands, run as somebody runs them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from drivetrain.cli.main import main
from drivetrain.core.reports import ReportV1
from drivetrain.embedded.modelling import reports_in
from drivetrain.embedded.releasing import ReleasePlace, place_of
from drivetrain.evals.eval_key import eval_key
from drivetrain.evals.workflow_key import workflow_key
from drivetrain.project.load import load, unload

TOML = """\
[project]
name = "shop"

[providers.openai]
dialect = "openai"
base_url = "https://api.openai.com/v1"
key = "env:OPENAI_API_KEY"

[models."openai/m1"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[models."openai/m2"]
usd_per_million_input = "1"
usd_per_million_output = "2"
"""
CODE = """\
import drivetrain as dt


class Ticket(dt.Record):
    text: str


class Route(dt.Record):
    intent: str


def is_empty(ticket):
    return not ticket.text.strip()


triage = dt.Workflow(
    "triage", input=Ticket, output=Route, owner="a@b.example", team="support", use_case="x",
    route=[
        dt.Rule("empty", when=is_empty, then=Route(intent="none")),
        dt.Variant("small", model="openai/m1", prompt="triage.j2", max_output_tokens=64),
        dt.Variant("large", model="openai/m2", prompt="triage.j2"),
    ],
    budget=dt.Budget(usd_per_day=5),
)
"""
GOLDEN = """\
import drivetrain as dt

golden = dt.Eval("triage-golden", dataset="golden@1", gates=["exact >= 0.9"])
"""


class Done(msgspec.Struct, frozen=True):
    """How a command ended."""

    code: int
    out: str
    err: str


class Shop:
    """The project, and a terminal in it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys
        (root / "workflows").mkdir(parents=True)
        self.write("drivetrain.toml", TOML)
        self.write("workflows/triage.py", CODE)
        self.write("workflows/triage.j2", "Sort: {{ text }}\n")

    @property
    def place(self) -> ReleasePlace:
        return place_of(self.root)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")

    def edit(self, path: str, before: str, after: str) -> None:
        text = (self.root / path).read_text(encoding="utf-8")
        assert before in text, f"{path} does not hold {before!r}"
        self.write(path, text.replace(before, after))

    def run(self, *arguments: str) -> Done:
        """`drivetrain ...` in this project."""
        self._capsys.readouterr()
        code = 0
        try:
            main([*arguments, "--project", str(self.root)])
        except SystemExit as end:
            code = int(end.code or 0)
        said = self._capsys.readouterr()
        return Done(code, said.out, said.err)

    def ok(self, *arguments: str) -> str:
        """As `run`, of what must succeed: its output."""
        done = self.run(*arguments)
        assert done.code == 0, done
        return done.out

    def add_golden(self) -> None:
        """An eval with a gate."""
        self.write("evals/golden.py", GOLDEN)

    def passed(self, against: str = "", **facts: str | int | bool) -> str:
        """A Report that `triage-golden` passed for what stands in the folder now; its id.

        against: key of the workflow that it was compared with.
        """
        snapshot = load(self.root)
        try:
            kept: dict[str, str | int | float | bool] = {
                "eval": "triage-golden", "workflow": "triage", "workflow_key": workflow_key(snapshot, "triage"),
                "eval_key": eval_key(snapshot.evals["triage-golden"], snapshot), "dataset": "golden@1",
                "snapshot": snapshot.hash, "passed": True, "gates": 1,
            }  # fmt: skip
        finally:
            unload(snapshot)
        report = ReportV1(
            kind="eval", subject="workflow:triage", made_ns=1, made_by="ann", verdict="passed",
            facts={**kept, **facts}, body={"against": {"workflow_key": against} if against else None},
        )  # fmt: skip
        return reports_in(self.place.data_folder, self.place.keys_folder).put(report)
