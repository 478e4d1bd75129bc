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
{more}route = [ {{ name = "only", model = "up/bench-model" }} ]
"""

_CACHE = """cache = { ttl_s = 600 }
"""

_LIMITS = """
[limits.project-month]
scope = "project"
usd = "1_000_000"
per = "month"

[limits.team-day]
scope = "team:bench"
usd = "100_000"
per = "day"
alerts = [50, 80, 100]

[limits.key-day]
scope = "each key"
usd = "100_000"
per = "day"

[limits.requests]
scope = "each key"
requests = 1_000_000_000
per = "minute"

[limits.tokens]
scope = "team:bench"
tokens = 100_000_000_000
per = "minute"

[limits.at-a-time]
scope = "project"
concurrent = 1000
"""


class Drivetrain(Target):
    """`drivetrain serve` on a project of one workflow."""

    model = "chat"

    def __init__(self, *, retention: str, workers: int = 1, limited: bool = False) -> None:
        """retention: "none" keeps no prompts or answers, "full" keeps both, encrypted.

        limited: three nested budgets, rates of requests and tokens, a concurrency limit, and a cache, which these chats
        pass by: their temperature is not 0.
        """
        self.retention = retention
        self.workers = workers
        self.limited = limited
        self.name = f"drivetrain-{retention}" + ("-limits" if limited else "")
        payloads = "encrypted payloads" if retention == "full" else "no payloads"
        self.told = f"key, cost, a record per Call before its answer; {payloads}"
        if limited:
            self.told += "; 3 budgets, 2 rates, concurrency, a cache"

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
        more = _CACHE if self.limited else ""
        project = _PROJECT.format(upstream_port=upstream_port, retention=self.retention, more=more)
        (workdir / "drivetrain.toml").write_text(project + (_LIMITS if self.limited else ""))
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
