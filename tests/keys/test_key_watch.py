"""A worker's ring follows the store and the clock, and fails closed where the store is silent for too long."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from keys_world import DECLARED, DECLARED_KEY, project_files, source_in, store_in, written

from drivetrain.core.errors import DrivetrainError, RequestError
from drivetrain.core.keys import new_key
from drivetrain.embedded.runtime import compiled
from drivetrain.execution.plan import Plans
from drivetrain.gateway.identity import KeyRing
from drivetrain.gateway.key_watch import STALE_S, KeyWatch, has_keys, key_watch
from drivetrain.ports.keys import IssuedKeys, KeySource, KeyTerms
from drivetrain.project.load import load
from support.tries import PATIENCE_S, measured

S = 1_000_000_000


@pytest.fixture
def plans(tmp_path: Path) -> Plans:
    return compiled(load(written(tmp_path / "project", project_files())))


@pytest.fixture
def declaring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plans:
    monkeypatch.setenv("DECLARED_KEY", DECLARED_KEY)
    return compiled(load(written(tmp_path / "project", project_files(DECLARED))))


class Clock:
    def __init__(self) -> None:
        self.ns = time.time_ns()
        self.s = 0.0

    def watch(self, source: KeySource, *, loopback: bool = True) -> KeyWatch:
        return KeyWatch(source, loopback=loopback, now_ns=lambda: self.ns, monotonic_s=lambda: self.s)


class Breakable:
    """A source that fails, hangs or answers as a test says."""

    def __init__(self, inner: KeySource) -> None:
        self.inner = inner
        self.error: Exception | None = None
        self.gate: threading.Event | None = None
        self.readings = 0

    def changed(self) -> bool:
        return self.inner.changed() or self.error is not None or self.gate is not None

    def read(self) -> IssuedKeys:
        self.readings += 1
        if self.gate is not None:
            self.gate.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return self.inner.read()

    def close(self) -> None:
        self.inner.close()


def issue(folder: Path, name: str, expires_ns: int | None = None) -> str:
    key = new_key(secrets.token_bytes)
    store_in(folder).issue(KeyTerms(name=name, expires_ns=expires_ns), key, "ann")
    return key


def looks(watch: KeyWatch, *more: Callable[[], Any]) -> bool:
    """One look; whether another ring is due."""
    return asyncio.run(watch.look())


def who(ring: KeyRing, key: str) -> str:
    return ring.identify(b"Bearer " + key.encode()).key


def status(ring: KeyRing, key: str) -> int:
    try:
        who(ring, key)
    except RequestError as error:
        return error.status
    return 200


def test_another_ring_is_made_when_the_store_changes_and_only_then(tmp_path: Path, plans: Plans) -> None:
    first = issue(tmp_path, "first")
    watch = Clock().watch(source_in(tmp_path))
    ring = watch.ring(plans)
    assert who(ring, first) == "first"
    assert not looks(watch)
    assert watch.ring(plans) is ring
    second = issue(tmp_path, "second")
    assert looks(watch)
    assert watch.ring(plans) is not ring
    assert who(watch.ring(plans), second) == "second"
    assert status(ring, second) == 401, "a ring never changes"
    store_in(tmp_path).revoke("first", "ann")
    assert looks(watch)
    assert [status(watch.ring(plans), key) for key in (first, second)] == [401, 200]


def test_the_first_key_ends_the_time_when_anybody_may_call(tmp_path: Path, plans: Plans) -> None:
    watch = Clock().watch(source_in(tmp_path))
    assert watch.ring(plans).open
    key = issue(tmp_path, "app")
    assert looks(watch)
    assert not watch.ring(plans).open
    store_in(tmp_path).revoke("app", "ann")
    assert looks(watch)
    assert not watch.ring(plans).open, "that the last key was revoked opens nothing"
    assert status(watch.ring(plans), key) == 401


def test_a_key_expires_by_the_clock_alone(tmp_path: Path, plans: Plans) -> None:
    clock = Clock()
    key = issue(tmp_path, "app", clock.ns + 10 * S)
    other = issue(tmp_path, "other", clock.ns + 20 * S)
    watch = clock.watch(source_in(tmp_path))
    before = watch.ring(plans)
    clock.ns += 10 * S - 1
    assert not looks(watch)
    clock.ns += 1
    assert looks(watch)
    assert watch.ring(plans) is not before, "so that open connections are asked anew"
    assert [status(watch.ring(plans), one) for one in (key, other)] == [401, 200]
    clock.ns -= 20 * S
    assert not looks(watch)
    assert status(watch.ring(plans), key) == 401, "a clock that goes back revives no key"


def test_a_silent_store_is_said_at_once_and_refused_after_a_while(tmp_path: Path, declaring: Plans) -> None:
    clock = Clock()
    key, short = issue(tmp_path, "app"), issue(tmp_path, "short", clock.ns + 5 * S)
    source = Breakable(source_in(tmp_path))
    watch = clock.watch(source)
    assert watch.ring(declaring).problem == ""
    source.error = DrivetrainError("The disk is gone.")
    assert looks(watch)
    assert "The disk is gone." in watch.ring(declaring).problem
    assert who(watch.ring(declaring), key) == "app"
    clock.ns += 5 * S
    assert looks(watch), "expiry needs no store"
    assert status(watch.ring(declaring), short) == 401
    clock.s += STALE_S - 0.1
    assert not looks(watch)
    assert who(watch.ring(declaring), key) == "app"
    clock.s += 0.1
    assert looks(watch)
    ring = watch.ring(declaring)
    assert ring.closed
    assert [status(ring, one) for one in (key, short, DECLARED_KEY)] == [503, 401, 200]
    assert not looks(watch)
    source.error = None
    assert looks(watch)
    assert not watch.ring(declaring).closed
    assert watch.ring(declaring).problem == ""
    assert who(watch.ring(declaring), key) == "app"


def test_a_store_that_hangs_does_not_hold_up_the_loop(
    tmp_path: Path, plans: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivetrain.gateway.key_watch.READING_S", 0.05)
    key = issue(tmp_path, "app")

    async def run() -> float:
        source = Breakable(source_in(tmp_path))
        clock = Clock()
        watch = clock.watch(source)
        watch.ring(plans)
        source.gate = threading.Event()
        longest, stop = 0.0, False

        async def tick() -> None:
            nonlocal longest
            while not stop:
                begun = time.monotonic()
                await asyncio.sleep(0.001)
                longest = max(longest, time.monotonic() - begun)

        ticking = asyncio.create_task(tick())
        for _ in range(3):
            await watch.look()
        assert source.readings == 2, "one at the start, and one that hangs: no other is begun before it has ended"
        assert "takes longer" in watch.ring(plans).problem
        assert who(watch.ring(plans), key) == "app"
        clock.s += STALE_S
        await watch.look()
        assert status(watch.ring(plans), key) == 503
        assert source.gate is not None
        source.gate.set()
        source.gate = None
        deadline = time.monotonic() + PATIENCE_S
        while watch.ring(plans).closed and time.monotonic() < deadline:
            await watch.look()
        assert who(watch.ring(plans), key) == "app"
        stop = True
        await ticking
        return longest

    measured(0.2, lambda: asyncio.run(run()))


def test_a_store_that_vanishes_is_a_failure_and_not_a_project_without_keys(tmp_path: Path, plans: Plans) -> None:
    key = issue(tmp_path, "app")
    clock = Clock()
    watch = clock.watch(source_in(tmp_path))
    watch.ring(plans)
    for file in [*(tmp_path / "data").glob("keys.db*"), tmp_path / "keys" / "issued.key"]:
        file.unlink()
    assert looks(watch)
    assert not watch.ring(plans).open
    assert who(watch.ring(plans), key) == "app"
    clock.s += STALE_S
    assert looks(watch)
    assert status(watch.ring(plans), key) == 503
    assert not watch.ring(plans).open


def test_a_fault_of_ours_does_not_end_the_watching(tmp_path: Path, plans: Plans) -> None:
    key = issue(tmp_path, "app")
    source = Breakable(source_in(tmp_path))
    watch = Clock().watch(source)
    watch.ring(plans)
    source.error = ZeroDivisionError()
    assert looks(watch)
    assert "the gateway failed at reading them" in watch.ring(plans).problem
    source.error = None
    store_in(tmp_path).revoke("app", "ann")
    assert looks(watch)
    assert status(watch.ring(plans), key) == 401


def test_a_name_that_is_declared_and_issued(tmp_path: Path, declaring: Plans) -> None:
    watch = Clock().watch(source_in(tmp_path))
    watch.ring(declaring)
    key = issue(tmp_path, "declared")  # the command refuses this; another environment may declare it later
    assert looks(watch)
    assert "is declared in drivetrain.toml too" in watch.ring(declaring).problem
    assert status(watch.ring(declaring), key) == 401
    assert status(watch.ring(declaring), DECLARED_KEY) == 200
    with pytest.raises(DrivetrainError, match="`declared` was issued, and is declared"):
        Clock().watch(source_in(tmp_path)).ring(declaring)
    store_in(tmp_path).revoke("declared", "ann")
    Clock().watch(source_in(tmp_path)).ring(declaring)


def test_beyond_loopback_there_is_no_ring_without_keys(tmp_path: Path, plans: Plans) -> None:
    with pytest.raises(DrivetrainError, match="listens beyond this machine"):
        Clock().watch(source_in(tmp_path), loopback=False).ring(plans)
    issue(tmp_path, "app")
    assert not Clock().watch(source_in(tmp_path), loopback=False).ring(plans).open


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        yield made


def test_issued_keys_count_for_the_rule_of_loopback(plans: Plans, listening: socket.socket) -> None:
    snapshot = plans.snapshot
    assert not has_keys(snapshot)
    assert key_watch(snapshot, listening).ring(plans).open
    folder = snapshot.root / ".drivetrain"
    assert snapshot.data_folder == folder / "data"
    issue(folder, "app")
    assert has_keys(snapshot)
    store_in(folder).revoke("app", "ann")
    assert has_keys(snapshot), "a gateway whose last key was revoked is not open to anybody"
    with socket.socket() as beyond:
        beyond.bind(("0.0.0.0", 0))
        assert not key_watch(snapshot, beyond).ring(plans).open


def test_a_look_takes_no_time_of_the_loop(tmp_path: Path, plans: Plans) -> None:
    issue(tmp_path, "app")
    source = source_in(tmp_path)
    watch = Clock().watch(source)
    watch.ring(plans)
    took = []
    for _ in range(200):
        begun = time.perf_counter()
        source.changed()
        took.append(time.perf_counter() - begun)
    assert median(took) < 0.0005, f"{median(took) * 1e6:.0f} us"
    source.close()
