"""The port of all targets: how one is started, where it is asked, and how it is stopped.

An adapter is one file beside this one. It runs its peer as that peer documents for an OpenAI-compatible upstream, with
one worker, and switches off what would only slow the peer down (access logs, telemetry).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import ROOT
from shapes import Shape

VENVS = ROOT / ".venvs"
"""Where `peers.py` puts each peer's own environment."""

_STOP_S = 10


class NotReady(Exception):
    """The target has not said yet where it listens."""


@dataclass(kw_only=True)
class Running:
    """A started target."""

    process: subprocess.Popen[bytes]
    """The root of its process tree."""
    workdir: Path
    """Its own folder: configuration, records, `log`."""
    port: int
    """The loopback port it was told to use."""

    def log_tail(self) -> str:
        """The end of what it printed."""
        try:
            return (self.workdir / "log").read_bytes()[-1500:].decode(errors="replace")
        except OSError:
            return ""

    def stop(self) -> None:
        """Ends the whole session: first its root, politely, then what is left."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        end = time.monotonic() + _STOP_S
        while left := _session(self.process.pid):
            if time.monotonic() > end:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


class Target(ABC):
    """One thing to measure."""

    name: str
    """As in `--targets`."""
    told: str
    """What it does for a request, in a few words."""
    model: str = "bench-model"
    """What to ask for."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot run here and what to do about that; None when it can."""

    @abstractmethod
    def version(self) -> str:
        """What is installed."""

    @abstractmethod
    def start(self, port: int, upstream_port: int, workdir: Path, pin: Sequence[str]) -> Running:
        """Writes its configuration into `workdir` and starts it; it need not listen yet."""

    def url(self, running: Running, shape: Shape) -> str:
        """Where to post. Raises: NotReady."""
        del shape
        return f"http://127.0.0.1:{running.port}/v1/chat/completions"

    def headers(self, running: Running, upstream_port: int) -> Mapping[str, str]:
        """What every request carries besides its body."""
        del running, upstream_port
        return {"Authorization": "Bearer sk-bench"}


def launch(
    command: Sequence[object],
    *,
    port: int,
    workdir: Path,
    pin: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> Running:
    """Starts a command in its own session, in `workdir`, with its output in `workdir/log`.

    It sees only PATH, HOME, LANG and `environment`: what the caller's shell sets must not change a figure.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with (workdir / "log").open("wb") as log:
        process = subprocess.Popen(
            [*pin, *map(str, command)],
            cwd=workdir,
            env=kept | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Running(process=process, workdir=workdir, port=port)


def _session(leader: int) -> list[int]:
    """The living processes of the session that `launch` made, also those whose parent is gone."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.getsid(int(entry)) == leader:
                found.append(int(entry))
        except ProcessLookupError:
            continue
    return found
