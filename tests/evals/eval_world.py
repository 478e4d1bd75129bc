"""A project whose provider is a simulator with recorded answers, so that what an eval must find is planted."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivetrain.core.calls import Call
from drivetrain.datasets.sources import FromFile
from drivetrain.embedded.training import datasets_in
from drivetrain.ledger.reader import LedgerReader
from drivetrain.project.load import load

COMMAND = [sys.executable, "-c", "from drivetrain.cli.main import main; main()"]
LABELS = ("billing", "technical", "spam")
TERSE = "Tersely: "
"""What the other prompt puts before the text; the model then errs on some German ones."""

SETTINGS = """\
[project]
name = "evals"

[providers.sim]
dialect = "openai"
base_url = "{url}/v1"
breaker = false

[models."sim/recorded"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[models."sim/judging"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[ledger]
retention = "{retention}"
"""
WORKFLOWS = """\
from typing import Literal

import drivetrain as dt


class Ticket(dt.Record):
    text: str
    vip: bool = False


class Route(dt.Record):
    intent: Literal["billing", "technical", "spam"]


class Question(dt.Record):
    question: str
    answer: str
    expected: str = ""


class Verdict(dt.Record):
    verdict: Literal["right", "wrong"]


triage = dt.Workflow(
    "triage", owner="team@acme.example", team="support", use_case="tests", input=Ticket, output=Route,
    route=[dt.Variant("small", model="sim/recorded", prompt="triage.j2", max_output_tokens=50)],
)
grader = dt.Workflow(
    "grader", owner="team@acme.example", team="support", use_case="tests", input=Question, output=Verdict,
    route=[dt.Variant("small", model="sim/judging", prompt="grader.j2", max_output_tokens=50)],
)
"""
EVAL = """\
import drivetrain as dt

golden = dt.Eval(
    "golden", workflow="triage", dataset="golden", slices=["lang"],
    scorers=[dt.scorers.exact("intent", name="accuracy")],
    gates=["accuracy >= 0.9", "no slice worse than -2 pp"],
)
"""


def truth(number: int) -> str:
    return LABELS[number % 3]


def text_of(lang: str, number: int) -> str:
    return f"{lang} ticket #{number}#"


def recorded(folder: Path, *, each: int, broken: int) -> Path:
    """Answers to both prompts: right for all but every 50th, and with the terse prompt wrong for `broken` more German
    ones."""
    file = folder / "recorded.csv"
    with file.open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["prompt", "answer"])
        for lang in ("de", "en"):
            for number in range(each):
                right, wrong = truth(number), truth(number + 1)
                said = wrong if number % 50 == 0 else right
                rows.writerow([text_of(lang, number), said])
                worse = lang == "de" and number % 50 != 0 and number % (each // broken) == 1
                rows.writerow([TERSE + text_of(lang, number), wrong if worse else said])
    return file


def simulated(file: Path) -> dict[str, Any]:
    price = {"usd_per_million_input": "1", "usd_per_million_output": "2"}
    return {
        "seed": 1,
        "server": {"allow_overrides": True},
        "models": {
            "recorded": {**price, "quality": {"kind": "table", "file": str(file), "answer_field": "intent"}},
            "judging": {
                **price,
                "quality": {"kind": "labels", "labels": ["right", "wrong"], "answer_field": "verdict"},
            },
        },
    }


@dataclass
class Ran:
    code: int
    out: str
    err: str


@dataclass
class World:
    """A project's folder, and what was recorded in it."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / ".drivetrain" / "data"

    def calls(self, door: str = "") -> list[Call]:
        return [one for one in LedgerReader(self.data).calls() if door in ("", one.door)]

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        self.write(path, text.replace(old, new))

    def dataset(self, name: str, rows: Iterable[Mapping[str, Any]], **made: Any) -> None:
        file = self.root / f"{name}.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in rows))
        datasets_in(load(self.root)).create(name, FromFile(file.name), **made)

    def drivetrain(self, *arguments: str, wait_s: float = 100) -> Ran:
        ended = subprocess.run(
            [*COMMAND, *arguments], cwd=self.root, capture_output=True, text=True, timeout=wait_s, check=False,
            env={name: value for name, value in os.environ.items() if name != "DRIVETRAIN_ENV"},
        )  # fmt: skip
        return Ran(ended.returncode, ended.stdout, ended.stderr)


def rows(each: int) -> list[dict[str, Any]]:
    return [
        {"text": text_of(lang, number), "expected": truth(number), "lang": lang}
        for lang in ("de", "en")
        for number in range(each)
    ]


def write_world(root: Path, url: str, *, retention: str = "full", code: str = EVAL) -> World:
    world = World(root)
    world.write("drivetrain.toml", SETTINGS.format(url=url, retention=retention))
    world.write("workflows/tickets.py", WORKFLOWS)
    world.write("workflows/triage.j2", "{{ text }}")
    world.write("workflows/grader.j2", "{{ question }} {{ answer }} {{ expected }}")
    world.write("evals/golden.py", code)
    return world
