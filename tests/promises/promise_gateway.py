"""A gateway with its supervisor and workers that tests start, kill and start again on one folder."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from drivetrain.core.calls import Call
from drivetrain.ledger.reader import LedgerReader
from support import wire
from support.busy import LIMITS, Patience
from support.projects import model, provider, settings, workflow
from support.served import read_port

START = "from drivetrain.cli.main import main; main()"
STOP_TIMEOUT_S = 40.0
"""A gateway gives what runs 30 s to end, and a machine that stands still takes more."""
WAIT_S = 30.0
"""What is waited for comes within a moment; the limit is for a machine that stands still, and costs nothing."""
TRIES = 5
"""Whole measurements of a promise with a time in it, the best of which must keep it."""
ESTABLISHED, CLOSE_WAIT = "01", "08"
"""As `/proc/net/tcp` calls states of a connection."""


class Gateway:
    """`drivetrain serve` on a folder; each `start()` is a new life of it."""

    def __init__(self, root: Path, *, workers: int = 1, environ: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.port = 0
        self.patience = Patience(LIMITS)
        """Of those who ask by `settled_answer`."""
        self._workers = workers
        self._environ = {**os.environ, **(environ or {})}
        self._child: subprocess.Popen[str] | None = None
        self._stderr = root / "stderr.txt"

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def start(self) -> Gateway:
        """A new life; returns once requests are answered."""
        command = [sys.executable, "-c", START, "serve", "--project", str(self.root)]
        command += ["--port", str(self.port), "--workers", str(self._workers)]
        with self._stderr.open("a") as said:
            self._child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=self._environ)
        self.port = read_port(self._child, self._stderr)
        return self

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        assert self._child is not None
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def worker_pids(self) -> list[int]:
        """Of those that serve: they are forks of the supervisor, with its command line, and a process beside it has its
        own. One that ended and was not waited for yet has none."""
        own = _command_line(self.pid)
        return [pid for pid in self._children() if own and _command_line(pid) == own]

    def pids_beside(self, name: str) -> list[int]:
        """Of the processes beside the workers in whose command lines a name stands."""
        return [pid for pid in self._children() if name.encode() in _command_line(pid)]

    def _children(self) -> list[int]:
        """Workers, and the processes beside them: what rolls records, the watcher, the shadow, model workers."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in children.split()]

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace") if self._stderr.exists() else ""

    @property
    def data_folder(self) -> Path:
        return self.root / ".drivetrain" / "data"

    def calls(self) -> list[Call]:
        return sorted(LedgerReader(self.data_folder).calls(), key=lambda call: call.opened_ns)

    def call(self, call_id: str, wait_s: float = WAIT_S) -> Call:
        """The Call, as soon as it is closed."""
        deadline = time.monotonic() + wait_s
        while True:
            found = LedgerReader(self.data_folder).call(call_id)
            if found is not None and found.closed_ns:
                return found
            assert time.monotonic() < deadline, f"Call {call_id} is not closed after {wait_s} s: {found}"
            time.sleep(0.02)

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code."""
        assert self._child is not None
        return self._child.wait(timeout_s)

    def kill(self) -> None:
        """`kill -9` of everything at once."""
        assert self._child is not None
        if self._child.poll() is None:
            self.signal(signal.SIGSTOP)  # so that it starts no other while its workers are killed
            children = self._children()
            for pid in [self.pid, *children]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._child.wait()
            for pid in children:
                assert gone(pid), f"process {pid} lives on"
        self._close()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._child is not None
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._close()
        return self._child.returncode

    def command(self, *arguments: str, check: bool = True) -> str:
        """What a command of drivetrain prints about this project."""
        ended = subprocess.run(
            [sys.executable, "-c", START, *arguments, "--project", str(self.root)],
            capture_output=True, text=True, timeout=50, env=self._environ, check=False,
        )  # fmt: skip
        assert not check or ended.returncode == 0, f"{arguments} ended with {ended.returncode}: {ended.stderr}"
        return ended.stdout

    def _close(self) -> None:
        if self._child is not None and self._child.stdout is not None:
            self._child.stdout.close()


@contextlib.contextmanager
def gateway(
    files: Mapping[str, str], *, workers: int = 1, environ: Mapping[str, str] | None = None, start: bool = True
) -> Iterator[Gateway]:
    """A gateway on a folder of its own, ended with the block."""
    root = Path(tempfile.mkdtemp(prefix="drivetrain-promise-"))
    made = Gateway(root, workers=workers, environ=environ)
    try:
        made.write(files)
        if start:
            made.start()
        yield made
    finally:
        if made.alive:
            made.stop()
        shutil.rmtree(root, ignore_errors=True)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def gone(pid: int, wait_s: float = WAIT_S) -> bool:
    """Whether a process ends within that time: a zombie has, once none of its threads is left to let its locks go."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            threads = len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            return True
        if state in ("Z", "X") and threads <= 1:
            return True
        time.sleep(0.01)
    return False


def eventually(what: Any, wait_s: float = WAIT_S, every_s: float = 0.02) -> Any:
    """`what()` as soon as it is true; its last value where it never is."""
    deadline = time.monotonic() + wait_s
    while True:
        found = what()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(every_s)


def settled_answer(served: Gateway, request: bytes) -> wire.Answered:
    """The answer to a request, sent again where the store of limits had no time for it; not often."""
    return served.patience.answer(lambda: wire.one(served.port, request))


def begun(calls: Iterable[Call], refused: int) -> list[Call]:
    """The calls but those for which the store of limits had no time: so many at most, sent nowhere and free."""
    calls = list(calls)
    busy = [call for call in calls if call.error == LIMITS]
    assert len(busy) <= refused, f"{len(busy)} calls were refused, and clients were told so {refused} times"
    assert not any(call.cost_nano_usd or call.attempts for call in busy), busy
    return [call for call in calls if call.error != LIMITS]


def best_s(measured: Callable[[], float], within_s: float, tries: int = TRIES) -> float:
    """The best of a few whole measurements, the last one being the first within the limit: a machine that stands still
    spoils one, and a product that is too slow all of them."""
    took_s = [measured()]
    while min(took_s) > within_s and len(took_s) < tries:
        took_s.append(measured())
    print(f"took {', '.join(f'{one:.3f}' for one in took_s)} s")
    return min(took_s)


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """A process is stopped for as long as the block runs: a provider that ends no answer, however long that takes."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def is_read(connection: socket.socket) -> bool:
    """Whether the process at the other end, on this machine, has taken this connection and all that was sent on it.

    A connection that nobody has accepted yet has no inode; one that the other end has let go is read.
    """
    found = _tcp_row(connection.getpeername()[1], connection.getsockname()[1])
    if found is None or found["state"] not in (ESTABLISHED, CLOSE_WAIT):
        return True
    return found["inode"] != "0" and int(found["unread"], 16) == 0


def is_left(client_port: int, port: int) -> bool:
    """Whether the gateway has let go of the connection of a client that closed it."""
    found = _tcp_row(port, client_port)
    return found is None or found["state"] not in (ESTABLISHED, CLOSE_WAIT)


def _tcp_row(local: int, remote: int) -> re.Match[str] | None:
    """What the kernel says of the loopback connection between these ports, at the end that has the first one."""
    ends = rf"0100007F:{local:04X} 0100007F:{remote:04X}"
    row = rf"{ends} (?P<state>\w\w) \w+:(?P<unread>\w+) \S+ \w+ +\d+ +\d+ (?P<inode>\d+)"
    return re.search(row, Path("/proc/net/tcp").read_text())


def chat_project(upstream: str, *, more: str = "", ledger: str = 'retention = "full"\n') -> dict[str, str]:
    """A project with one plain chat workflow `help` on the simulator's `m`."""
    tables = provider("sim", f"{upstream}/v1") + model("sim/m") + workflow("help", "sim/m") + more
    return {"drivetrain.toml": settings(ledger=ledger, tables=tables)}


def simulated(**more: Any) -> dict[str, Any]:
    """A simulator's model at the price of `support.projects.PRICES`."""
    return {"dialect": "openai", "usd_per_million_input": "1", "usd_per_million_output": "2", **more}
