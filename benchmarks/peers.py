"""Installs each peer in its own environment under `.venvs/`, then measures all targets side by side.

`python benchmarks/peers.py [--install-only] [--only NAME,...] [options of run.py]`. Called by `make bench-peers`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import run
from machine import ROOT, how_to_get, tool
from targets import TARGETS
from targets.target import VENVS

PYTHON_PEERS = ("tensorzero", "litellm")
"""Installed from `requirements/bench-NAME.txt`, which pins every package by hash."""

PORTKEY = {
    "private": True,
    "dependencies": {"@portkey-ai/gateway": "1.15.2"},
    # With @hono/node-server 1.14 or newer, which its range allows, this version answers 500 to every stream
    # ("TypeError: immutable"). Its own lock file holds an older one; throughput is the same with both.
    "overrides": {"@hono/node-server": "1.13.8"},
}
"""The manifest of Portkey's environment."""


def main() -> int:
    """Installs what is asked for; runs the benchmark unless `--install-only`."""
    parser = argparse.ArgumentParser(prog="peers.py", description="Other options go to run.py.")
    parser.add_argument("--install-only", action="store_true", help="measure nothing")
    parser.add_argument("--only", default="tensorzero,portkey,litellm", help="peers to install (default all)")
    options, others = parser.parse_known_args()
    chosen = options.only.split(",")
    if unknown := [name for name in chosen if name not in (*PYTHON_PEERS, "portkey")]:
        parser.error(f"unknown peer: {', '.join(unknown)}; known are tensorzero, portkey, litellm")
    failed = False
    for name in chosen:
        problem = _install_portkey() if name == "portkey" else _install_python(name)
        print(f"{name}: {problem or TARGETS[name].version()}", flush=True)
        failed = failed or bool(problem)
    if options.install_only:
        return int(failed)
    return run.main(others)


def _install_python(name: str) -> str | None:
    """What went wrong, or None. Reuses an environment that was made from the same requirements."""
    folder, requirements = VENVS / name, ROOT / "requirements" / f"bench-{name}.txt"
    if _made_from(folder, requirements.read_text()):
        return None
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--require-hashes", "-r", str(requirements)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"not installed: {done.stderr.strip()[-600:]}"
    _note(folder, requirements.read_text())
    return None


def _install_portkey() -> str | None:
    npm = tool("npm")
    if not npm:
        return how_to_get("npm")
    folder, manifest = VENVS / "portkey", json.dumps(PORTKEY, indent=1)
    if _made_from(folder, manifest):
        return None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(manifest)
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"not installed: {done.stderr.strip()[-600:]}"
    _note(folder, manifest)
    return None


def _made_from(folder: Path, source: str) -> bool:
    note = folder / "made_from"
    return note.exists() and note.read_text() == source


def _note(folder: Path, source: str) -> None:
    (folder / "made_from").write_text(source)


if __name__ == "__main__":
    sys.exit(main())
