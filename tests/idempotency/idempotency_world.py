"""Stores for tests of what every store must do, and the model that they are compared with."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from drivetrain.adapters.sqlite_idempotency import SqliteIdempotency
from drivetrain.core.times import NS_PER_S
from drivetrain.ports.idempotency import (
    ANSWERED,
    OTHER_BODY,
    RUNNING,
    SETTLED,
    YOURS,
    Ask,
    Claim,
    Found,
    IdempotencyStore,
    Keep,
)

KEEP_NS = 100 * NS_PER_S
ROWS_MAX = 12
BYTES_MAX = 1000


class Clock:
    """A wall clock that tests set."""

    def __init__(self) -> None:
        self.ns = 1_700_000_000 * NS_PER_S

    def __call__(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * NS_PER_S)


class Row:
    """One key of the model."""

    def __init__(self, body: bytes, holder: str) -> None:
        self.body = body
        self.holder = holder
        self.ended_ns: int | None = None
        self.sealed: bytes | None = None


class Shared:
    """What the model's workers share."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rows: dict[bytes, Row] = {}
        self.alive: set[str] = set()


class ModelStore:
    """An IdempotencyStore in a dict."""

    def __init__(self, shared: Shared, worker: str) -> None:
        self._shared = shared
        self._worker = worker
        shared.alive.add(worker)

    def visit(self, asks: Sequence[Ask]) -> tuple[Found, ...]:
        found = tuple([self._answer(ask) for ask in asks])
        rows, now_ns = self._shared.rows, self._shared.clock.ns
        ended = sorted((one for one in rows if rows[one].ended_ns is not None), key=lambda one: rows[one].ended_ns or 0)
        for one in ended:
            if now_ns - (rows[one].ended_ns or 0) >= KEEP_NS or len(rows) > ROWS_MAX:
                del rows[one]
        for one in ended:
            if one in rows and sum(len(row.sealed or b"") for row in rows.values()) > BYTES_MAX:
                rows[one].sealed = None
        return found

    def drop_answers(self) -> int:
        kept = [row for row in self._shared.rows.values() if row.sealed is not None]
        for row in kept:
            row.sealed = None
        return len(kept)

    def close(self) -> None:
        self._shared.alive.discard(self._worker)

    def _answer(self, ask: Ask) -> Found:
        rows, now_ns = self._shared.rows, self._shared.clock.ns
        row = rows.get(ask.id)
        if not isinstance(ask, Claim):
            if row is not None and row.holder == self._worker:
                if isinstance(ask, Keep):
                    row.holder, row.ended_ns, row.sealed = "", now_ns, ask.sealed
                else:
                    del rows[ask.id]
            return Found(SETTLED)
        if row is not None and row.ended_ns is None and row.holder in self._shared.alive:
            return Found(RUNNING if row.body == ask.body else OTHER_BODY)
        if row is not None and row.ended_ns is not None and now_ns - row.ended_ns < KEEP_NS:
            return Found(ANSWERED, row.sealed) if row.body == ask.body else Found(OTHER_BODY)
        rows.pop(ask.id, None)
        rows[ask.id] = Row(ask.body, self._worker)
        return Found(YOURS)


class Stores:
    """Workers of one kind on something they share."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.clock = Clock()
        self.folder = Path(tempfile.mkdtemp(prefix="drivetrain-idempotency-"))
        self._shared = Shared(self.clock)
        self._made: list[IdempotencyStore] = []

    def worker(self, name: str) -> IdempotencyStore:
        store: IdempotencyStore
        if self.kind == "model":
            store = ModelStore(self._shared, name)
        else:
            store = SqliteIdempotency(
                self.folder / "idempotency",
                worker=name, keep_ns=KEEP_NS, rows_max=ROWS_MAX, bytes_max=BYTES_MAX, now_ns=self.clock,
            )  # fmt: skip
        self._made.append(store)
        return store

    def close(self) -> None:
        for store in self._made:
            store.close()
        shutil.rmtree(self.folder, ignore_errors=True)
