"""TensorZero's Rust gateway, observability off, started by the Python package that embeds it.

The standalone binary comes as a container image only. `tensorzero_launcher.py` starts the same HTTP server inside a
Python process that then sleeps, so its CPU is the Rust gateway's; its memory holds an idle Python as well.
Its documentation: https://www.tensorzero.com/docs/gateway/configuration-reference
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from machine import first_line
from shapes import Shape
from targets.target import VENVS, NotReady, Running, Target, launch

_CONFIGURATION = """
[gateway]
disable_pseudonymous_usage_analytics = true

[gateway.observability]
enabled = false

[models.bench]
routing = ["up"]

[models.bench.providers.up]
type = "openai"
api_base = "http://127.0.0.1:{upstream_port}/v1/"
model_name = "bench-model"
api_key_location = "none"
"""


class TensorZero(Target):
    """The OpenAI-compatible endpoint of the gateway."""

    name = "tensorzero"
    told = "typed decode and re-encode; no key and no record: both need a database"
    model = "tensorzero::model_name::bench"

    def missing(self) -> str | None:
        if list((VENVS / "tensorzero").glob("lib/python*/site-packages/tensorzero")):
            return None
        return "tensorzero is not installed: run `python benchmarks/peers.py --install-only`"

    def version(self) -> str:
        return first_line(str(_python()), "-c", "import importlib.metadata as m; print(m.version('tensorzero'))")

    def start(self, port: int, upstream_port: int, workdir: Path, pin: Sequence[str]) -> Running:
        (workdir / "tensorzero.toml").write_text(_CONFIGURATION.format(upstream_port=upstream_port))
        launcher = Path(__file__).with_name("tensorzero_launcher.py")
        command = [_python(), "-P", launcher, "tensorzero.toml", "base_url"]  # -P: this file bears the package's name
        return launch(command, port=port, workdir=workdir, pin=pin, environment={"RUST_LOG": "error"})

    def url(self, running: Running, shape: Shape) -> str:
        del shape
        try:  # the gateway chooses its own port
            return (running.workdir / "base_url").read_text() + "/chat/completions"
        except FileNotFoundError:
            raise NotReady from None


def _python() -> Path:
    return VENVS / "tensorzero" / "bin" / "python"
