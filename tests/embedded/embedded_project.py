"""A project as `drivetrain init` makes it, on a simulator of its own port."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivetrain.core.calls import Call
from drivetrain.ledger.reader import LedgerReader
from drivetrain.simulator import SimulatorProcess

COMMAND = [sys.executable, "-c", "from drivetrain.cli.main import main; main()"]
WAIT_S = 100.0
"""For a process that takes a second or two: the limit is for a machine that stands still."""
SIMULATOR = {
    "seed": 1,
    "server": {"allow_overrides": True},
    "models": {
        "gpt-5-mini-2025-08-07": {
            "usd_per_million_input": "0.25",
            "usd_per_million_output": "2",
            "quality": {
                "kind": "labels",
                "labels": ["billing", "technical", "cancellation", "spam"],
                "confidence": True,
                "answer_field": "intent",
            },
        },
        "claude-opus-4-5-20251101": {
            "usd_per_million_input": "5",
            "usd_per_million_output": "25",
            "quality": {
                "kind": "labels",
                "labels": ["billing", "technical", "cancellation", "spam"],
                "confidence": True,
                "answer_field": "intent",
            },
        },
        "gpt-5-nano-2025-08-07": {
            "usd_per_million_input": "0.05",
            "usd_per_million_output": "0.4",
            "output_tokens": 12,
        },
    },
}


@dataclass
class Ran:
    """How a process ended."""

    code: int
    out: str
    err: str


@dataclass
class Project:
    """An init-made project whose providers are the simulator."""

    root: Path
    simulator: SimulatorProcess

    def python(self, code: str, *, folder: Path | None = None, wait_s: float = WAIT_S) -> Ran:
        """Runs a program in the project's folder, as a user's own script would."""
        return ran([sys.executable, "-c", code], folder or self.root, wait_s=wait_s)

    def drivetrain(self, *arguments: str, stdin: str = "", wait_s: float = WAIT_S) -> Ran:
        return ran([*COMMAND, *arguments], self.root, stdin=stdin, wait_s=wait_s)

    def calls(self) -> list[Call]:
        found = LedgerReader(self.root / ".drivetrain" / "data").calls()
        return sorted(found, key=lambda call: call.opened_ns)

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.root / file
        text = path.read_text()
        assert old in text, f"{old!r} is not in {file}"
        path.write_text(text.replace(old, new))


def ran(command: list[str], folder: Path, *, stdin: str = "", wait_s: float = WAIT_S) -> Ran:
    environ: dict[str, Any] = {name: value for name, value in os.environ.items() if name != "DRIVETRAIN_ENV"}
    ended = subprocess.run(
        command, cwd=folder, input=stdin, capture_output=True, text=True, timeout=wait_s, env=environ, check=False
    )
    return Ran(ended.returncode, ended.stdout, ended.stderr)


def init(folder: Path, simulator: SimulatorProcess) -> Project:
    """`drivetrain init FOLDER`, with the simulator's port in its settings."""
    made = ran([*COMMAND, "init", str(folder)], folder.parent)
    assert made.code == 0, made.err
    project = Project(folder, simulator)
    project.edit("drivetrain.toml", "http://127.0.0.1:8090", simulator.url)
    return project
