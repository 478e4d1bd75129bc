"""A gateway beyond this machine needs a key, and an issued one is enough: none need be declared."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from keys_world import SERVE, Keys, chat, eventually, project, project_files

from support import wire

pytestmark = pytest.mark.slow

EVERYWHERE = "0.0.0.0"


@pytest.fixture
def root() -> Iterator[Path]:
    with project(project_files()) as made:
        yield made


def serve(root: Path, host: str, workers: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SERVE, "serve", "--project", str(root), "--host", host, "--port", "0"]
    command += ["--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_issued_key_lets_it_listen_beyond_this_machine(root: Path, workers: int) -> None:
    keys = Keys(root)
    key = keys.issue("app")
    child = serve(root, EVERYWHERE, workers)
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        assert f"on http://{EVERYWHERE}:" in line, child.communicate(timeout=5)
        port = int(line.rpartition(f"{EVERYWHERE}:")[2].partition("/")[0])
        assert not select.select([child.stdout], [], [], 0.3)[0], "nothing is said of a missing key"
        assert wire.one(port, chat(key)).status == 200
        assert wire.one(port, chat(None)).status == 401
        keys.revoke("app")
        assert eventually(lambda: wire.one(port, chat(key)).status == 401)
        assert wire.one(port, chat(None)).status == 401, "the end of the last key opens nothing"
    finally:
        child.terminate()
        child.communicate(timeout=45)
    assert child.returncode == 0


def test_a_revoked_key_protects_too(root: Path) -> None:
    keys = Keys(root)
    keys.issue("app")
    keys.revoke("app")
    child = serve(root, EVERYWHERE)
    assert child.stdout is not None
    try:
        assert f"on http://{EVERYWHERE}:" in child.stdout.readline()
    finally:
        child.terminate()
        child.communicate(timeout=45)


def test_without_any_key_it_refuses_and_says_how_to_issue_one(root: Path) -> None:
    child = serve(root, EVERYWHERE)
    out, said = child.communicate(timeout=50)
    assert (child.returncode, out) == (1, "")
    assert f"has no key, so the gateway may only listen on this machine, not on {EVERYWHERE}" in said
    assert "Run `drivetrain keys issue NAME`" in said


def test_on_this_machine_it_says_that_anybody_may_call(root: Path) -> None:
    child = serve(root, "localhost")
    assert child.stdout is not None
    try:
        assert "on http://localhost:" in child.stdout.readline()
        assert "no key is declared or issued: anybody on this machine may call" in child.stdout.readline()
    finally:
        child.terminate()
        child.communicate(timeout=45)
