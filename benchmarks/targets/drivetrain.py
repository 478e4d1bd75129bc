"""Drivetrain with one worker: key, budget, cost, and a record per Call that is written before the answer leaves."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from machine import ROOT
from targets.target import Running, Target, launch

_KEY = "sk-bench-0123456789abcdef0123456789abcdef"

_PROJECT = """
[project]
name = "bench"

[providers.up]
dialect = "openai"
base_url = "http://127.0.0.1:{upstream_port}/v1"

[models."up/bench-model"]
usd_per_million_input = "0.25"
usd_per_million_output = "2"

[keys.bench]
secret = "file:bench.key"
team = "bench"

[workflows.chat]
owner = "bench@example.com"
team = "bench"
use_case = "bench"
retention = "{retention}"
route = [ {{ name = "only", model = "up/bench-model" }} ]
"""


class Drivetrain(Target):
    """`drivetrain serve` on a project of one workflow."""

    model = "chat"

    def __init__(self, *, retention: str, workers: int = 1) -> None:
        """retention: "none" keeps no prompts or answers, "full" keeps both, encrypted."""
        self.retention = retention
        self.workers = workers
        self.name = f"drivetrain-{retention}"
        payloads = "encrypted payloads" if retention == "full" else "no payloads"
        self.told = f"key, cost, a record per Call before its answer; {payloads}"

    def missing(self) -> str | None:
        if _script().exists() or importlib.util.find_spec("drivetrain"):
            return None
        return "drivetrain is not installed: run `pip install -e .`"

    def version(self) -> str:
        try:
            return importlib.metadata.version("drivetrain")
        except importlib.metadata.PackageNotFoundError:
            return "unknown"

    def start(self, port: int, upstream_port: int, workdir: Path, pin: Sequence[str]) -> Running:
        (workdir / "drivetrain.toml").write_text(_PROJECT.format(upstream_port=upstream_port, retention=self.retention))
        key = workdir / "bench.key"
        key.write_text(_KEY)
        key.chmod(0o600)
        program = [_script()] if _script().exists() else [sys.executable, "-m", "drivetrain.cli.main"]
        command: list[object] = [
            *program,
            "serve",
            "--project",
            workdir,
            "--host",
            "127.0.0.1",
            "--port",
            port,
            "--workers",
            self.workers,
        ]
        return launch(command, port=port, workdir=workdir, pin=pin)

    def headers(self, running: Running, upstream_port: int) -> Mapping[str, str]:
        del running, upstream_port
        return {"Authorization": f"Bearer {_KEY}"}


def _script() -> Path:
    """The command beside the Python that runs us, else the repository's own."""
    beside = Path(sys.executable).with_name("drivetrain")
    return beside if beside.exists() else ROOT / ".venv" / "bin" / "drivetrain"
