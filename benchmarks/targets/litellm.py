"""LiteLLM's proxy with one uvicorn worker, no database, a master key, and the settings its production page asks for.

Its documentation: https://docs.litellm.ai/docs/proxy/prod (one worker per container, `LITELLM_LOG=ERROR`,
`LITELLM_MODE=PRODUCTION`, `set_verbose: false`). Its Rust core covers other providers than OpenAI's, so it is not used:
https://docs.litellm.ai/docs/proxy/rust_gateway
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from machine import first_line
from targets.target import VENVS, Running, Target, launch

_KEY = "sk-bench-master-key"

_CONFIGURATION = """
model_list:
  - model_name: bench-model
    litellm_params:
      model: openai/bench-model
      api_base: http://127.0.0.1:{upstream_port}/v1
      api_key: sk-bench
litellm_settings:
  set_verbose: false
  request_timeout: 600
general_settings:
  master_key: {key}
"""

_ENVIRONMENT = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # its start would otherwise download a file
}


class LiteLLM(Target):
    """`litellm --config`."""

    name = "litellm"
    told = "master key, cost; no database, so no record"

    def missing(self) -> str | None:
        return (
            None
            if _bin("litellm").exists()
            else "litellm is not installed: run `python benchmarks/peers.py --install-only`"
        )

    def version(self) -> str:
        python = first_line(str(_bin("python")), "--version")
        code = "import importlib.metadata as m; print(m.version('litellm'))"
        return f"{first_line(str(_bin('python')), '-c', code)}, {python}"

    def start(self, port: int, upstream_port: int, workdir: Path, pin: Sequence[str]) -> Running:
        configuration = workdir / "config.yaml"
        configuration.write_text(_CONFIGURATION.format(upstream_port=upstream_port, key=_KEY))
        command = [
            _bin("litellm"),
            "--config",
            configuration,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--num_workers",
            "1",
        ]
        return launch(command, port=port, workdir=workdir, pin=pin, environment=_ENVIRONMENT)

    def headers(self, running: Running, upstream_port: int) -> Mapping[str, str]:
        del running, upstream_port
        return {"Authorization": f"Bearer {_KEY}"}


def _bin(name: str) -> Path:
    return VENVS / "litellm" / "bin" / name
