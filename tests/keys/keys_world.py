"""A project whose keys are issued by the real commands, its store, and a gateway of several workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from drivetrain.adapters.sqlite import SqliteControlLog, open_control_log
from drivetrain.adapters.sqlite_keys import SqliteKeySource, SqliteKeyStore
from drivetrain.cli.keys import app
from drivetrain.ports.control import ControlRecord
from support import wire
from support.projects import model, provider, settings, workflow
from support.served import read_port

READY = re.compile(r"drivetrain serving .* on http://127\.0\.0\.1:(\d+)/v1")
READY_TIMEOUT_S = 20.0
SERVE = "from drivetrain.cli.main import main; main()"
KEYS = "from drivetrain.cli.keys import app; app()"
RULE = '{ rule = "all", matches = ".", answer = "by rule" }'
CONNECTIONS = 16
"""So many that each of two workers gets some, but once in 30,000 times."""
DECLARED_KEY = "declared-key-0123456789-very-secret"


def project_files(more: str = "", gateway: str = "") -> dict[str, str]:
    """Workflows `help` and `other` that rules answer, and two teams; no key is declared."""
    tables = [
        provider("far", "http://127.0.0.1:9/v1"),
        model("far/m"),
        "[teams.support]\n[teams.sales]\n",
        workflow("help", RULE, "far/m"),
        workflow("other", RULE, "far/m"),
        more,
    ]
    return {"drivetrain.toml": settings(gateway=gateway, tables="".join(tables))}


DECLARED = '[keys.declared]\nsecret = "env:DECLARED_KEY"\nteam = "support"\n'


def written(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


class Said:
    """What a command said, and its exit code."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class Keys:
    """`drivetrain keys` on a project, in this process; everything that it said is kept."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.said: list[Said] = []

    def run(self, *arguments: str, code: int = 0) -> Said:
        result = CliRunner().invoke(app, [*arguments, "--project", str(self.root)])
        said = Said(result.exit_code, result.stdout, result.stderr)
        self.said.append(said)
        assert said.code == code, f"{arguments} ended with {said.code}: {said.stdout}{said.stderr}{result.exception!r}"
        return said

    def issue(self, name: str, *options: str) -> str:
        """The key."""
        return self.run("issue", name, *options).stdout.strip()

    def rotate(self, name: str, *options: str) -> str:
        return self.run("rotate", name, *options).stdout.strip()

    def revoke(self, name: str) -> None:
        self.run("revoke", name, "--now")

    @property
    def log(self) -> SqliteControlLog:
        return open_control_log(self.root / ".drivetrain" / "data", self.root / ".drivetrain" / "keys")

    def logged(self, name: str | None = None) -> list[ControlRecord]:
        """The records about keys, or about one."""
        return [one for one in self.log.records() if one.kind == "key" and name in (None, one.subject)]

    def actions(self, name: str | None = None) -> list[str]:
        return [json.loads(one.body)["action"] for one in self.logged(name)]


def store_in(folder: Path, **more: Any) -> SqliteKeyStore:
    """A store below `folder`, with its control log."""
    return SqliteKeyStore(folder / "data" / "keys.db", folder / "keys", lambda: log_in(folder), **more)


def log_in(folder: Path) -> SqliteControlLog:
    return open_control_log(folder / "data", folder / "keys")


def source_in(folder: Path) -> SqliteKeySource:
    return SqliteKeySource(folder / "data" / "keys.db", folder / "keys")


class Gateway:
    """A running gateway of several workers."""

    def __init__(self, root: Path, child: subprocess.Popen[str], port: int) -> None:
        self.root = root
        self.port = port
        self.child = child

    @property
    def workers(self) -> list[int]:
        """Their process ids."""
        children = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text()
        return [int(pid) for pid in children.split() if is_worker(int(pid))]

    @property
    def stderr(self) -> str:
        return (self.root / "stderr.txt").read_text(errors="replace")

    def one(self, key: str | None, workflow: str = "help", headers: str = "") -> wire.Answered:
        """The answer to one chat request on a connection of its own."""
        return wire.one(self.port, chat(key, workflow, headers))

    def everywhere(self, key: str | None, status: int) -> bool:
        """Whether so many connections of their own are answered `status` that no worker can have been missed."""
        return all(self.one(key).status == status for _ in range(CONNECTIONS))


def is_worker(pid: int) -> bool:
    """Whether a child of the supervisor serves: workers are forks of it, other children have commands of their own."""
    try:
        return b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return False


def chat(key: str | None, workflow: str = "help", headers: str = "") -> bytes:
    body = {"model": workflow, "messages": [{"role": "user", "content": "hello"}]}
    return wire.request(body, key=key, headers=headers)


def workers_of(running: Gateway, connections: list[socket.socket]) -> set[int]:
    """The process ids of the workers that hold these connections; empty while one is not accepted yet."""
    inodes = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(address.split(":")[1], 16) for address in fields[1:3])
        if local == running.port:
            inodes[remote] = f"socket:[{fields[9]}]"
    wanted = [inodes.get(one.getsockname()[1]) for one in connections]
    owners = {}
    for pid in running.workers:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                owners[os.readlink(fd)] = pid
    found = [owners.get(inode or "") for inode in wanted]
    return set() if None in found else {pid for pid in found if pid}


@contextlib.contextmanager
def gateway(root: Path, *, workers: int = 2, environ: Mapping[str, str] | None = None) -> Iterator[Gateway]:
    """The project in `root`, served; ended with the block, with every worker alive until then."""
    command = [sys.executable, "-c", SERVE, "serve", "--project", str(root), "--port", "0", "--workers", str(workers)]
    with (root / "stderr.txt").open("w") as said:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env={**os.environ, **(environ or {})}
        )
    try:
        running = Gateway(root, child, read_port(child, root / "stderr.txt"))
        yield running
        assert child.poll() is None, running.stderr
        assert "Traceback" not in running.stderr, running.stderr
        assert "worker" not in running.stderr, running.stderr
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
        assert child.stdout is not None
        child.stdout.close()


@contextlib.contextmanager
def project(files: Mapping[str, str]) -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="drivetrain-keys-"))
    try:
        yield written(root, files)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def eventually(what: Any, wait_s: float = 3.0) -> Any:
    """`what()` as soon as it is true; its last value where it never is."""
    deadline = time.monotonic() + wait_s
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found
