"""Portkey's open-source gateway on Node, headless (without its console), routed by headers.

Its documentation: https://portkey.ai/docs/integrations/llms/vllm (`custom_host` with the `openai` provider).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from machine import first_line, how_to_get
from targets.target import VENVS, Running, Target, launch

_PACKAGE = VENVS / "portkey" / "node_modules" / "@portkey-ai" / "gateway"


class Portkey(Target):
    """`node build/start-server.js --headless`."""

    name = "portkey"
    told = "routes by headers; no key of its own, no record"

    def missing(self) -> str | None:
        if not shutil.which("node"):
            return how_to_get("npm")
        return (
            None if _PACKAGE.exists() else "portkey is not installed: run `python benchmarks/peers.py --install-only`"
        )

    def version(self) -> str:
        return (
            f"{json.loads((_PACKAGE / 'package.json').read_text())['version']}, Node {first_line('node', '--version')}"
        )

    def start(self, port: int, upstream_port: int, workdir: Path, pin: Sequence[str]) -> Running:
        command = ["node", _PACKAGE / "build" / "start-server.js", f"--port={port}", "--headless"]
        return launch(command, port=port, workdir=workdir, pin=pin, environment={"NODE_ENV": "production"})

    def headers(self, running: Running, upstream_port: int) -> Mapping[str, str]:
        return {
            **super().headers(running, upstream_port),
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"http://127.0.0.1:{upstream_port}/v1",
        }
