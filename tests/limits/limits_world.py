"""Workers whose messages are carried by hand, on any counter store, with a clock that tests move."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.core.calls import Attribution, ClosedV1
from drivetrain.core.limits import Alert, Limit, Refusal
from drivetrain.limits.book import Book
from drivetrain.limits.memory_counters import MemoryCounters
from drivetrain.limits.places import NORMAL
from drivetrain.limits.recovery import bury_dead
from drivetrain.limits.renewal import FEW, Renewal
from drivetrain.limits.slices import Hold, Short
from drivetrain.ports.counters import AccountListing, AccountState, CounterStore, DeadWorker, SyncReply, SyncRequest

NOW_NS = 1_772_366_400_000_000_000
"""2026-03-01T12:00:00Z."""
SHM = Path("/dev/shm")
WORKER_NUMBERS = itertools.count(1)


class Clock:
    """Wall and monotonic time; the wall may jump."""

    def __init__(self) -> None:
        self.wall_ns = NOW_NS
        self.monotonic_ns = 0

    def now(self) -> int:
        return self.wall_ns

    def monotonic(self) -> int:
        return self.monotonic_ns

    def pass_s(self, seconds: float) -> None:
        self.wall_ns += int(seconds * 1e9)
        self.monotonic_ns += int(seconds * 1e9)


class TwinHandle:
    """Two stores asked the same; their answers must be the same."""

    def __init__(self, one: CounterStore, other: CounterStore) -> None:
        self.one, self.other = one, other

    def join(self, worker: str, position: str = "") -> None:
        self.one.join(worker, position)
        self.other.join(worker, position)

    def sync(self, request: SyncRequest) -> SyncReply:
        said, also = self.one.sync(request), self.other.sync(request)
        assert _sorted(said) == _sorted(also)
        return said

    def wait(self, timeout_s: float) -> bool:
        rung, also = self.one.wait(timeout_s), self.other.wait(timeout_s)
        assert rung == also
        return rung

    def wake(self) -> None:
        self.one.wake()
        self.other.wake()

    def leave(self) -> bool:
        left, also = self.one.leave(), self.other.leave()
        assert left == also
        return left

    def dead(self) -> tuple[DeadWorker, ...]:
        found, also = self.one.dead(), self.other.dead()
        assert set(found) == set(also)
        return found

    def positions(self) -> Mapping[str, str]:
        found, also = self.one.positions(), self.other.positions()
        assert found == also
        return found

    def bury(self, dead: DeadWorker, charges: Mapping[str, int]) -> bool:
        buried, also = self.one.bury(dead, charges), self.other.bury(dead, charges)
        assert buried == also
        return buried

    def account(self, account: str) -> AccountState | None:
        found, also = self.one.account(account), self.other.account(account)
        assert found == also
        return found

    def accounts(self, prefix: str, suffix: str, at_most: int) -> AccountListing:
        found, also = self.one.accounts(prefix, suffix, at_most), self.other.accounts(prefix, suffix, at_most)
        assert found == also
        return found

    def sweep(self, before_ns: int) -> int:
        gone, also = self.one.sweep(before_ns), self.other.sweep(before_ns)
        assert gone == also
        return gone

    def close(self) -> None:
        self.one.close()
        self.other.close()


def _sorted(reply: SyncReply) -> SyncReply:
    by_slice = tuple(sorted(reply.leases, key=lambda state: state.slice))
    return msgspec.structs.replace(reply, leases=by_slice, recalls=tuple(sorted(reply.recalls)))


class Stores:
    """A shared truth of one kind (`memory`, `sqlite` or `twin`), and a handle on it for each worker."""

    def __init__(self, kind: str, clock: Clock, folder: Path | None = None) -> None:
        self.kind = kind
        self.clock = clock
        self.memory = MemoryCounters(clock.now)
        self._temporary = None
        if folder is None and kind != "memory":
            self._temporary = tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None)
            folder = Path(self._temporary.name)
        self.folder = folder
        self.handles: list[CounterStore] = []
        self.boot = "boot-1"

    def handle(self) -> CounterStore:
        made = self._made()
        self.handles.append(made)
        return made

    def _made(self) -> CounterStore:
        if self.kind == "memory":
            return self.memory.handle()
        assert self.folder is not None
        sqlite = SqliteCounters(self.folder, now_ns=self.clock.now, boot=self.boot)
        return sqlite if self.kind == "sqlite" else TwinHandle(self.memory.handle(), sqlite)

    def close(self) -> None:
        for handle in self.handles:
            handle.close()
        if self._temporary is not None:
            self._temporary.cleanup()


class Worker:
    """A Book and its Renewal on a handle, with a ledger of the frames that were written."""

    def __init__(
        self,
        stores: Stores,
        limits: list[Limit],
        *,
        ledgers: dict[str, list[Any]] | None = None,
        recall_ms: int = 35,
        few: int = FEW,
    ) -> None:
        self.name = f"w{next(WORKER_NUMBERS)}"
        self.frames: list[Any] = []
        if ledgers is not None:
            ledgers[self.name] = self.frames
        self.clock = stores.clock
        self.alerts: list[Alert] = []
        self.store = stores.handle()
        self.store.join(self.name)
        self.book = Book(limits, now_ns=stores.clock.now, monotonic_ns=stores.clock.monotonic)
        self.renewal = Renewal(
            self.book,
            self.name,
            monotonic_ns=stores.clock.monotonic,
            recall_ms=recall_ms,
            on_alert=self.alerts.append,
        )
        self.renewal.few = few
        self.under_way: SyncRequest | None = None
        self.said: SyncReply | None = None
        self.gone = False

    # Messages, one step at a time.

    def build(self, *, always: bool = False, full: bool = False) -> bool:
        assert self.under_way is None
        self.under_way = self.renewal.request(always=always, full=full)
        return self.under_way is not None

    def deliver(self) -> None:
        assert self.under_way is not None
        self.said = self.store.sync(self.under_way)

    def hear(self) -> None:
        assert self.said is not None
        said, self.under_way, self.said = self.said, None, None
        self.renewal.apply(said)

    def lose(self) -> None:
        """The answer, or the request before it arrived, is lost."""
        self.under_way = self.said = None
        self.renewal.failed()

    def finish(self) -> None:
        """Whatever is under way comes to its end."""
        if self.under_way is not None:
            if self.said is None:
                self.deliver()
            self.hear()

    def sync(self, *, always: bool = False, full: bool = False) -> None:
        self.finish()
        if self.build(always=always, full=full):
            self.finish()

    # Calls.

    def admit(self, who: Attribution, workflow: str = "w", priority: int = NORMAL) -> Any:
        """The hold, the refusal, or a list into which one of them will be put."""
        accounts = self.book.accounts(who, workflow, self.clock.now())
        assert accounts is not None
        return self._or_wait(self.book.admit(accounts), lambda: self.book.admit(accounts), priority)

    def reserve(self, hold: Hold, worst: int, tokens: int = 0) -> Any:
        """None, the refusal, or a list into which one of them will be put."""

        def take() -> Any:
            return None if hold.closed else self.book.reserve(hold, worst, tokens)

        return self._or_wait(take(), take)

    def _or_wait(self, taken: Any, take: Callable[[], Any], priority: int = NORMAL) -> Any:
        if not isinstance(taken, Short):
            return taken
        heard: list[Any] = []
        waiter = self.renewal.wait(taken, take, heard.append, priority)
        assert waiter is not None
        return waiter if isinstance(waiter, Refusal) else heard

    def write_reserved(self, hold: Hold, call_id: str) -> None:
        self.frames.append(hold.frame(call_id))

    def write_closed(self, hold: Hold, call_id: str) -> None:
        self.frames.append(ClosedV1(call_id, 0, "answered", 200, "v", hold.charged))

    # Ends.

    def crash(self) -> None:
        self.gone = True
        self.store.close()

    def leave(self) -> bool:
        self.sync(full=True)
        self.gone = True
        left = self.store.leave()
        self.store.close()
        return left


def pump(workers: list[Worker], rounds: int = 200) -> None:
    """Carry messages until nobody has anything to say."""
    for _ in range(rounds):
        busy = False
        for worker in workers:
            if worker.gone:
                continue
            rung = worker.store.wait(0)
            if rung:
                worker.renewal.rung()
            if rung or worker.under_way is not None or worker.renewal.presses or worker.renewal.pressed:
                busy = True
                worker.sync(always=rung)
        if not busy:
            return
    raise AssertionError("the workers never come to rest")


def waited(taken: Any, workers: list[Worker]) -> Any:
    """What came of `taken`, once everybody has said what there is to say."""
    if isinstance(taken, list):
        pump(workers)
        assert len(taken) == 1, "a Call still waits though nobody has anything to say"
        return taken[0]
    return taken


def bury_all(worker: Worker, ledgers: dict[str, list[Any]]) -> list[Any]:
    return bury_dead(worker.store, lambda writer, _position: ledgers[writer])


def budget(name: str, amount: int, dimension: str = "project", value: str | None = "", **more: Any) -> Limit:
    more.setdefault("per", "month")
    return Limit(name=name, kind="budget", dimension=dimension, value=value, amount=amount, **more)


WHO = Attribution("acme", "support", "tickets", "key-1", "ann", ("env=prod",))
