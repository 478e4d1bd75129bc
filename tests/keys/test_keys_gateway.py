"""Issued keys through the public door: two workers of a real gateway, and the real commands beside it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from keys_world import (
    CONNECTIONS,
    DECLARED,
    DECLARED_KEY,
    SERVE,
    Gateway,
    Keys,
    chat,
    eventually,
    gateway,
    project,
    project_files,
    workers_of,
)

from drivetrain.ledger.reader import LedgerReader
from support import wire

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with project(project_files(DECLARED)) as made:
        yield made


@pytest.fixture(scope="module")
def keys(root: Path) -> Keys:
    return Keys(root)


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[Gateway]:
    with gateway(root, environ={"DECLARED_KEY": DECLARED_KEY}) as started:
        yield started


@pytest.fixture
def connections(running: Gateway) -> Iterator[list[socket.socket]]:
    """Connections that are kept alive, some to each worker."""
    opened = [wire.connect(running.port) for _ in range(CONNECTIONS)]
    try:
        assert eventually(lambda: workers_of(running, opened) == set(running.workers))
        assert len(running.workers) == 2
        yield opened
    finally:
        for one in opened:
            one.close()


def statuses(connections: list[socket.socket], key: str) -> set[int]:
    """What a request with `key` is answered on each connection; none is closed by it."""
    for one in connections:
        one.sendall(chat(key))
    found = set()
    for one in connections:
        heard = wire.hear(one)
        assert heard.end == "open"
        found.add(heard.answers[0].status)
    return found


def until(connections: list[socket.socket], key: str, status: int, begun: float, wait_s: float = 3.0) -> float:
    """Seconds from `begun` until every connection answers `status`."""
    while time.monotonic() < begun + wait_s:
        asked = time.monotonic()
        if statuses(connections, key) == {status}:
            return asked - begun
    raise AssertionError(f"after {wait_s} s not every worker answers {status}")


def test_an_issued_key_works_soon_and_a_revoked_one_nowhere_within_a_second(
    running: Gateway, keys: Keys, connections: list[socket.socket]
) -> None:
    key = keys.issue("app", "--team", "sales")
    assert until(connections, key, 200, time.monotonic()) < 1.0
    begun = time.monotonic()
    assert statuses(connections, key) == {200}
    keys.revoke("app")
    took = until(connections, key, 401, time.monotonic())
    assert took < 1.0, f"{took:.2f} s"
    assert time.monotonic() - begun < 2.5
    assert running.one(key).error == {
        "message": "the key `app` was revoked", "type": "invalid_request_error", "param": None,
        "code": "invalid_api_key",
    }  # fmt: skip
    assert statuses(connections, DECLARED_KEY) == {200}


def test_a_rotation_overlaps_and_a_key_expires_though_nothing_changes(
    running: Gateway, keys: Keys, connections: list[socket.socket]
) -> None:
    old = keys.issue("rotating")
    until(connections, old, 200, time.monotonic())
    new, short = keys.rotate("rotating", "--overlap", "2s"), keys.issue("short", "--expires", "2s")
    issued = time.monotonic()
    until(connections, short, 200, issued)
    assert [statuses(connections, one) for one in (old, new)] == [{200}, {200}]
    assert time.monotonic() - issued < 1.9
    for ended in (old, short):
        took = until(connections, ended, 401, issued, wait_s=5)
        assert 1.5 < took < 3.0, took
        assert "expired on" in running.one(ended).error["message"]
    assert statuses(connections, new) == {200}
    calls = LedgerReader(running.root / ".drivetrain" / "data").calls()
    assert "rotating" in {one.attribution.key for one in calls}, "the name stays, so that costs stay together"


def test_scopes_and_overrides(running: Gateway, keys: Keys) -> None:
    asked = ["--team", "sales", "--use-case", "chat", "--tenant", "acme"]
    key = keys.issue("scoped", *asked, "--workflows", "help", "--may-override", "user,tags")
    assert eventually(lambda: running.everywhere(key, 200))
    other = running.one(key, "other")
    assert (other.status, other.error["code"]) == (404, "model_not_found")
    listed = wire.one(running.port, wire.request(method="GET", path="/v1/models", key=key))
    assert [one["id"] for one in listed.json["data"]] == ["help"]
    answer = running.one(key, headers="x-drivetrain-user: u1\r\nx-drivetrain-tags: a,b\r\n")
    assert answer.status == 200
    call = eventually(lambda: LedgerReader(running.root / ".drivetrain" / "data").call(answer.headers["x-request-id"]))
    who = call.attribution
    assert (who.key, who.tenant, who.team, who.use_case) == ("scoped", "acme", "sales", "chat")
    assert (who.user, who.tags) == ("u1", ("a", "b"))
    refused = running.one(key, headers="x-drivetrain-team: support\r\n")
    assert (refused.status, refused.error["code"]) == (403, "attribution_not_allowed")


def test_what_is_no_key_of_ours(running: Gateway, keys: Keys) -> None:
    key = keys.issue("exact")
    assert eventually(lambda: running.everywhere(key, 200))
    swapped = key[:20] + key[21] + key[20] + key[22:]
    for wrong in (key[:-1], key + "x", swapped if swapped != key else key[:-2]):
        answer = running.one(wrong)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert "malformed" in answer.error["message"]
    assert "not known" in running.one("dt-or-something-else").error["message"]
    assert running.one(None).status == 401


def test_a_project_that_is_loaded_anew_keeps_the_issued_keys(running: Gateway, keys: Keys) -> None:
    key, gone = keys.issue("kept"), keys.issue("gone")
    keys.revoke("gone")
    assert eventually(lambda: running.everywhere(key, 200) and running.everywhere(gone, 401))
    running.child.send_signal(signal.SIGHUP)
    assert eventually(lambda: running.stderr.count("serving snapshot") >= 2)
    for one, status in ((key, 200), (gone, 401), (DECLARED_KEY, 200)):
        assert running.everywhere(one, status)


def test_many_changes_at_once_under_load(running: Gateway, keys: Keys, connections: list[socket.socket]) -> None:
    steady = keys.issue("steady")
    assert eventually(lambda: statuses(connections, steady) == {200})
    made = [keys.issue(f"burst-{number}") for number in range(5)]
    until(connections, made[4], 200, time.monotonic())
    for number in range(4):
        keys.revoke(f"burst-{number}")
        assert statuses(connections, steady) == {200}, "other keys are not touched"
    until(connections, made[3], 401, time.monotonic())
    assert [running.one(key).status for key in made] == [401, 401, 401, 401, 200]


def test_no_byte_of_any_key_was_written_anywhere(running: Gateway, keys: Keys) -> None:
    """Runs last: everything that the tests above made, served and refused."""
    made = [said.stdout.strip() for said in keys.said if said.stdout.startswith("dt_")]
    assert len(made) >= 10
    files = {path: path.read_bytes() for path in running.root.rglob("*") if path.is_file()}
    names = {path.name for path in files}
    assert names >= {"keys.db", "keys.db-wal", "control.db", "issued.key", "stderr.txt"}
    for key in made:
        for part in {key[start : start + 12].encode() for start in range(0, 35, 5)}:
            assert [path.name for path, data in files.items() if part in data] == []
    assert keys.log.verify().whole
    for record in keys.logged():
        assert not any(key[3:-6] in record.body for key in made)
    assert {"issue", "rotate", "revoke"} == set(keys.actions())
    for name in ("app", "rotating"):
        assert [json.loads(record.body)["generation"] for record in keys.logged(name)[:1]] == [1]


def test_the_first_key_closes_an_open_gateway_and_a_lost_store_keeps_it_closed() -> None:
    with project(project_files()) as root:
        keys = Keys(root)
        with gateway(root) as running:
            assert running.one(None).status == 200, "no key is declared or issued, on loopback"
            key = keys.issue("first")
            assert eventually(lambda: running.everywhere(None, 401))
            assert running.everywhere(key, 200)
            keys.revoke("first")
            assert eventually(lambda: running.everywhere(key, 401))
            assert running.everywhere(None, 401), "the end of the last key opens nothing"
        (root / ".drivetrain" / "data" / "keys.db").unlink()
        ended = subprocess.run(
            [sys.executable, "-c", SERVE, "serve", "--project", str(root), "--port", "0"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert ended.returncode == 1
        assert "keys.db is missing" in ended.stderr
