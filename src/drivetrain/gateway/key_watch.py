"""The key ring of one worker, kept in step with the keys that are issued while it runs.

Owns when the store is looked at and what happens where it cannot be. Knows nothing of HTTP: whoever serves takes `ring`
and is told by a callback that another one is due. A change is noticed within `POLL_S`, by a look that takes about 10 us
of the loop; the keys are then read, and the ring is made, in a thread of its own.

Where the store cannot be read, the last known keys hold for `STALE_S`, and the ring's `problem` says so; then every
issued key is refused with 503, since nobody can tell whether it was revoked. Declared keys are not touched by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from drivetrain.adapters.sqlite_keys import SqliteKeySource
from drivetrain.core.errors import DrivetrainError, report_fault
from drivetrain.execution.plan import Plans
from drivetrain.gateway.identity import KeyRing, check_names
from drivetrain.ports.keys import IssuedKeys, KeySource
from drivetrain.project.secrets import resolve
from drivetrain.project.snapshot import SecretRef, Snapshot

POLL_S = 0.25
"""Between two looks: with the reading, a revocation holds in every worker well within a second."""
STALE_S = 60.0
"""How long keys are accepted while the store cannot be read: longer than a restart of a disk or a restored file takes,
and no longer than one who revoked a key would wait before reaching for the gateway itself."""
READING_S = 2.0
"""A reading that takes longer counts as failed; it is not begun again before it has ended."""


class KeyWatch:
    """One worker's keys, declared and issued.

    loopback: whether only this machine reaches the worker; else it never serves without keys.
    now_ns, monotonic_s: the clock by which keys expire, and the one by which the store's silence is measured.
    Raises: DrivetrainError where the store cannot be read at first.
    """

    def __init__(
        self,
        source: KeySource,
        *,
        loopback: bool,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._loopback = loopback
        self._now_ns = now_ns
        self._monotonic_s = monotonic_s
        source.changed()  # before the first reading, so that no change falls between
        self._issued = source.read()
        self._ring: KeyRing | None = None
        self._snapshot: Snapshot | None = None
        self._thread: asyncio.Future[tuple[IssuedKeys, KeyRing]] | None = None
        self._failed_s: float | None = None
        self._problem = ""

    def ring(self, plans: Plans) -> KeyRing:
        """The keys that hold now, with the secrets of declared ones looked up here.

        Raises: DrivetrainError where a secret is missing, a name is declared and issued, or no key protects an address
        beyond this machine.
        """
        snapshot = plans.snapshot
        if self._ring is None or self._snapshot is not snapshot:
            check_names(snapshot, self._issued, self._now_ns())
            ring = self._made(snapshot, self._issued, self._problem, self._closed)
            if ring.open and not self._loopback:
                raise DrivetrainError(
                    "No key is declared or issued, and this gateway listens beyond this machine.",
                    looked=["[keys] in drivetrain.toml", "the issued keys"],
                    do="Run `drivetrain keys issue NAME`, or declare a key: [keys.NAME].",
                )
            self._ring, self._snapshot = ring, snapshot
        return self._ring

    async def watch(self, swap: Callable[[], None]) -> None:
        """Looks until cancelled; calls `swap` whenever `ring` has another answer."""
        try:
            while True:
                await asyncio.sleep(POLL_S)
                if await self.look():
                    swap()
        finally:
            self._source.close()

    async def look(self) -> bool:
        """One look at the store and the clock: whether `ring` has another answer now."""
        before = self._ring
        if before is None:
            return False
        try:
            if self._failed_s is not None or self._source.changed() or self._expired(before):
                await self._read()
        except DrivetrainError as error:
            self._failed(str(error))
        except Exception as fault:  # noqa: BLE001  a fault of ours must not end the watching: revoked keys would live on
            report_fault("issued keys", fault)
            self._failed("the gateway failed at reading them")
        return self._ring is not before

    @property
    def _closed(self) -> bool:
        return self._failed_s is not None and self._monotonic_s() - self._failed_s >= STALE_S

    async def _read(self) -> None:
        """Raises: DrivetrainError."""
        snapshot = self._snapshot
        assert snapshot is not None
        if self._thread is None:
            self._thread = _in_thread(lambda: self._read_now(snapshot))
        done, _ = await asyncio.wait({self._thread}, timeout=READING_S)
        if not done:
            raise DrivetrainError(f"Reading the issued keys takes longer than {READING_S} s.")
        thread, self._thread = self._thread, None
        issued, ring = thread.result()
        if self._issued.keys and not issued.keys:
            raise DrivetrainError("The issued keys are gone.", do="Restore keys.db and issued.key from your backup.")
        self._issued = issued
        if self._failed_s is not None:
            print("drivetrain: the issued keys can be read again", file=sys.stderr)
        self._failed_s, self._problem = None, ""
        if self._snapshot is snapshot:
            self._ring = ring
            _tell(ring.problem)
        else:  # reloaded in the meantime
            self._renew()

    def _read_now(self, snapshot: Snapshot) -> tuple[IssuedKeys, KeyRing]:
        issued = self._source.read()
        return issued, self._made(snapshot, issued)

    def _failed(self, why: str) -> None:
        """The last known keys hold on, or none does any more."""
        if self._failed_s is None:
            self._failed_s = self._monotonic_s()
            self._problem = f"The issued keys cannot be read: {why}"
            print(
                f"drivetrain: {self._problem}\nThose known now are accepted for {STALE_S:.0f} s more.", file=sys.stderr
            )
            self._renew()
        assert self._ring is not None
        if self._closed and not self._ring.closed:
            _tell("issued keys are refused from now on, until they can be read again")
            self._renew()
        elif self._expired(self._ring):
            self._renew()

    def _expired(self, ring: KeyRing) -> bool:
        return ring.until_ns is not None and self._now_ns() >= ring.until_ns

    def _renew(self) -> None:
        """A ring of what is known, as of now; made here, since the thread may hang."""
        assert self._snapshot is not None
        self._ring = self._made(self._snapshot, self._issued, self._problem, self._closed)

    def _made(self, snapshot: Snapshot, issued: IssuedKeys, problem: str = "", closed: bool = False) -> KeyRing:
        def secret(reference: SecretRef) -> str:
            return resolve(reference, snapshot.root, os.environ, used_by="keys")

        now_ns = self._now_ns()
        return KeyRing(snapshot, secret, issued, now_ns=now_ns, problem=problem, closed=closed, before=self._ring)


def key_watch(snapshot: Snapshot, listening: socket.socket) -> KeyWatch:
    """The watch over a project's keys for a worker on that socket."""
    loopback = ipaddress.ip_address(listening.getsockname()[0]).is_loopback
    return KeyWatch(_source(snapshot), loopback=loopback)


def has_keys(snapshot: Snapshot) -> bool:
    """Whether callers must show a key: one is declared, or was ever issued (ended ones do not open the gateway).

    Raises: DrivetrainError where the store cannot be read, or a name is declared and issued.
    """
    issued = _source(snapshot).read()
    check_names(snapshot, issued, time.time_ns())
    return bool(snapshot.keys or issued.keys)


def _source(snapshot: Snapshot) -> SqliteKeySource:
    return SqliteKeySource(snapshot.data_folder / "keys.db", snapshot.keys_folder)


def _tell(problem: str) -> None:
    if problem:
        print(f"drivetrain: {problem}", file=sys.stderr)


def _in_thread(work: Callable[[], tuple[IssuedKeys, KeyRing]]) -> asyncio.Future[tuple[IssuedKeys, KeyRing]]:
    """What `work` returns or raises, from a thread for which no shutdown waits: a disk may hang for ever."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[IssuedKeys, KeyRing]] = loop.create_future()

    def settle(result: tuple[IssuedKeys, KeyRing] | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  it belongs to who waits
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, name="issued keys", daemon=True).start()
    return future
