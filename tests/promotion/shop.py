"""A project on disk with a workflow, an eval and people, and the commands, run as somebody runs them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from drivetrain.cli.main import main
from drivetrain.embedded.releasing import ReleasePlace, place_of
from drivetrain.project.load import load, unload
from drivetrain.project.snapshot import Snapshot
from support.eval_runs import record_run, report_of, run_of

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

    def passed(self, against: Snapshot | None = None, **facts: str | int | bool) -> str:
        """A run of `triage-golden` that passed for what stands in the folder now; its Report's id.

        against: what it was compared with. facts: what the Report says otherwise.
        """
        snapshot = load(self.root)
        try:
            run = run_of(snapshot, "triage-golden")
            baseline = run_of(snapshot, "triage-golden", against) if against is not None else None
            return record_run(snapshot, report_of(snapshot, run, baseline, **facts), run, baseline)
        finally:
            unload(snapshot)
