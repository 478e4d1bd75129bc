"""A project served by a real gateway process on a free loopback port."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from drivetrain.core.calls import Call
from drivetrain.ledger.reader import LedgerReader

READY = re.compile(r"drivetrain serving .* on http://127\.0\.0\.1:(\d+)/v1")
FAULT = re.compile(r"Traceback|Fatal error|drivetrain: call_\w+: \w+ at ")
READY_TIMEOUT_S = 45.0
"""It takes a second; the limit is for a machine that stands still, below that of a test."""
START = "from drivetrain.cli.main import main; main()"
STOP_TIMEOUT_S = 30.0
WAIT_S = 30.0
"""For what comes within a moment, on a machine that stands still."""


class Served:
    """A running gateway: its address, its folder, what it said and what it recorded."""

    def __init__(self, root: Path, child: subprocess.Popen[str], port: int, stderr: Path) -> None:
        self.root = root
        self.port = port
        self._child = child
        self._stderr = stderr

    @property
    def url(self) -> str:
        """The `base_url` for OpenAI's SDK."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    @property
    def faults(self) -> list[str]:
        """Lines on stderr that tell of a fault of the gateway's own."""
        return [line for line in self.stderr.splitlines() if FAULT.search(line)]

    @property
    def data_folder(self) -> Path:
        return self.root / ".drivetrain" / "data"

    def calls(self) -> list[Call]:
        """Every Call in the ledger, by the time it opened."""
        return sorted(LedgerReader(self.data_folder).calls(), key=lambda call: call.opened_ns)

    def call(self, call_id: str, wait_s: float = WAIT_S) -> Call:
        """The Call, as soon as it is closed."""
        deadline = time.monotonic() + wait_s
        while True:
            found = LedgerReader(self.data_folder).call(call_id)
            if found is not None and found.closed_ns:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"Call {call_id} is not closed after {wait_s} s: {found}")
            time.sleep(0.02)

    @property
    def workers(self) -> list[int]:
        """The processes that serve. They are forks of the supervisor; those beside them, such as the one that rolls
        records, run a program of their own, and come and go."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except OSError:
            return []
        own = _command_line(self.pid)
        return [pid for pid in map(int, children) if _command_line(pid) == own]

    def resident_bytes(self) -> int:
        """Memory of the workers."""
        sizes = [re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in self.workers]
        assert sizes, "the gateway has no worker"
        assert all(sizes), "a worker has no VmRSS"
        return sum(int(one[1]) for one in sizes if one) * 1024

    def everything_written(self) -> bytes:
        """The bytes of stderr, of the data folder and of the stored Snapshots."""
        files = [path for path in (self.root / ".drivetrain").rglob("*") if path.is_file() and "keys" not in path.parts]
        return self._stderr.read_bytes() + b"".join(path.read_bytes() for path in files)

    def stop(self) -> int:
        """Ends the gateway; its exit code."""
        if self.alive:
            self._child.terminate()
            try:
                self._child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        return self._child.returncode


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextlib.contextmanager
def served(files: Mapping[str, str], environ: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Writes a project (path -> text), serves it, and ends the gateway with the block."""
    root = Path(tempfile.mkdtemp(prefix="drivetrain-test-"))
    try:
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        stderr = root / "stderr.txt"
        with stderr.open("w") as said:
            child = subprocess.Popen(
                [sys.executable, "-c", START, "serve", "--project", str(root), "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**os.environ, **(environ or {})},
            )
        gateway = Served(root, child, 0, stderr)
        try:
            gateway.port = read_port(child, stderr)
            yield gateway
        finally:
            gateway.stop()
            if child.stdout is not None:
                child.stdout.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def read_port(child: subprocess.Popen[str], stderr: Path) -> int:
    """The port that a gateway says it serves on, once it does."""
    assert child.stdout is not None
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        readable, _, _ = select.select([child.stdout], [], [], 0.2)
        if readable:
            line = child.stdout.readline()
            found = READY.search(line)
            if found:
                return int(found[1])
            if not line:
                break
    raise AssertionError(f"the gateway was not ready; on stderr it said:\n{stderr.read_text()[-2000:]}")
