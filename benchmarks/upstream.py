"""The one upstream of all targets: compiles and runs `upstream.c`, or its Python stand-in without a C compiler.

Called by `run.py`, `soak.py` and `startup.py`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from machine import free_port, tool
from shapes import Shape, ask, said

_HERE = Path(__file__).resolve().parent
_START_S = 10


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """A running upstream."""

    port: int
    """Loopback port it listens on."""
    made_of: str
    """`C` or `Python`, for the result."""

    @property
    def url(self) -> str:
        """Where it answers chat completions."""
        return f"http://127.0.0.1:{self.port}/v1/chat/completions"

    def says(self, shape: Shape) -> str:
        """The text every target must pass on for this shape."""
        return said(shape, ask(self.url, {}, shape.body("bench-model")))


@contextmanager
def upstream(workdir: Path, *, pin: Sequence[str] = (), event_gap_us: int = 0) -> Iterator[Upstream]:
    """An upstream for the length of the block. `event_gap_us` > 0 holds each stream to one event per that time."""
    port = free_port()
    command, made_of = _command(workdir)
    process = subprocess.Popen([*pin, *command, str(port), str(event_gap_us)])
    try:
        started = Upstream(port=port, made_of=made_of)
        _wait_for(started)
        yield started
    finally:
        process.terminate()
        process.wait(_START_S)


def _command(workdir: Path) -> tuple[list[str], str]:
    gcc = tool("gcc")
    if gcc:
        program = workdir / "upstream"
        subprocess.run([gcc, "-O2", "-o", str(program), str(_HERE / "upstream.c")], check=True)
        return [str(program)], "C"
    print("gcc is not installed: the upstream is the Python one, which may be the bottleneck")
    return [sys.executable, str(_HERE / "upstream_fallback.py")], "Python"


def _wait_for(started: Upstream) -> None:
    end = time.monotonic() + _START_S
    while True:
        try:
            ask(started.url, {}, b"{}")
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
