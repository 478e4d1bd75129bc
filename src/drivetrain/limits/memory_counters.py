"""The counter store as plain dictionaries: the model that adapters are compared with, and the store of tests.

One `MemoryCounters` is the shared truth; `handle()` gives each worker its `CounterStore`. It keeps the same laws as
any adapter, in the simplest words, and nothing survives its process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import msgspec

from drivetrain.ports.counters import (
    BUCKET,
    GRANTED,
    MONEY,
    PENDING,
    REFUSED,
    SLOTS,
    TURN_NS,
    AccountListing,
    AccountState,
    DeadWorker,
    Fenced,
    LeaseState,
    Line,
    NamedAccount,
    Refused,
    Report,
    StoreUnavailable,
    SyncReply,
    SyncRequest,
    Terms,
    Verdict,
    fair_share,
    grant_units,
    is_of,
    refill_wait_ns,
    refilled,
    under_new_names,
)

FOREVER = 2**62


class _Account:
    def __init__(self, terms: Terms, now_ns: int) -> None:
        self.terms = terms
        self.settled = self.held = self.over = 0
        self.level = terms.cap if terms.kind == BUCKET else 0
        self.filled_ns = now_ns


class _Lease:
    def __init__(self, terms: Terms) -> None:
        self.account = terms.account
        self.counted = terms.counted
        self.granted = self.returned = self.booked = self.over = self.refunded = self.answered = 0
        self.dropped = False
        self.told = FOREVER
        """Of slots: the share that its worker was told while somebody waited."""

    @property
    def held(self) -> int:
        return 0 if self.counted or self.dropped else self.granted - self.returned - self.booked + self.over


class _Worker:
    def __init__(self, position: str) -> None:
        self.last = SyncRequest("", 0, position=position)
        self.leases: dict[int, _Lease] = {}
        self.renamed: dict[int, str] = {}
        """Slice -> what its account is called now."""
        self.wants: dict[tuple[int, str], tuple[int, int]] = {}
        """(number, account) -> tick in which it was placed, and when the worker last said so."""
        self.turns: dict[str, int] = {}
        """Account -> since which tick this worker waits for it without having got a slot."""
        self.moved: set[str] = set()
        """Accounts of which something came back in this request, or for which the worker stopped waiting."""
        self.alive = True
        self.bell = threading.Event()
        self.rung = False


class MemoryCounters:
    """The shared truth."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.now_ns = now_ns
        self.lock = threading.Lock()
        self.accounts: dict[str, _Account] = {}
        self.workers: dict[str, _Worker] = {}
        self.alerts: set[tuple[str, int]] = set()
        self.tick = 0
        self.swept_ns = 0
        self.down = False
        """Set to make every call fail, as when the store cannot be reached."""

    def handle(self) -> MemoryHandle:
        """A worker's handle."""
        return MemoryHandle(self)


class MemoryHandle:
    """One worker's CounterStore."""

    def __init__(self, shared: MemoryCounters) -> None:
        self._shared = shared
        self._worker = ""
        self._me = _Worker("")

    def join(self, worker: str, position: str = "") -> None:
        with self._truth() as truth:
            assert worker not in truth.workers
            self._worker = worker
            self._me = truth.workers[worker] = _Worker(position)

    def sync(self, request: SyncRequest) -> SyncReply:
        with self._truth() as truth:
            if truth.workers.get(self._worker) is not self._me:
                raise Fenced(self._worker)
            truth.tick += 1
            me = self._me
            request = under_new_names(request, me.renamed)
            me.last = request
            ring: set[str] = set()
            states: dict[int, str] = {}
            said = {report.slice for report in request.reports}
            # A slice that was dropped is remembered for as long as its last words may be repeated.
            for number in [n for n, lease in me.leases.items() if lease.dropped and n not in said]:
                del me.leases[number]
            me.moved = set()
            me.turns = {}
            for (_, name), (tick, _) in me.wants.items():
                me.turns[name] = min(tick, me.turns.get(name, tick))
            for report in request.reports:
                self._book(report)
                if report.terms.kind == SLOTS:
                    me.moved.add(report.terms.account)
                else:
                    ring.update(self._wanting(report.terms.account))
                if not report.dropped:
                    states[report.slice] = report.terms.account
            listed = {want.number for want in request.wants}
            self._forget({key for key in me.wants if key[0] not in listed})
            verdicts = []
            for want in request.wants:
                verdicts.append(self._judge(want.number, want.lines, want.last, ring))
                states.update((line.slice, line.terms.account) for line in want.lines)
            for line in request.ahead:
                self._top_up(line)
                states[line.slice] = line.terms.account
            recalls = tuple(
                number
                for number, lease in me.leases.items()
                if truth.accounts[lease.account].terms.kind != SLOTS
                and any(tick > lease.answered for tick in self._wanting(lease.account).values())
            )
            states.update((number, me.leases[number].account) for number in recalls)
            states.update(
                (number, lease.account)
                for number, lease in me.leases.items()
                if truth.accounts[lease.account].terms.kind == SLOTS and lease.held > 0 and self._wanting(lease.account)
            )
            fresh = tuple(alert for alert in request.alerts if alert not in truth.alerts)
            truth.alerts.update(fresh)
            reply = SyncReply(
                truth.tick,
                tuple(self._state(number, account) for number, account in states.items()),
                tuple(verdicts),
                recalls,
                fresh,
            )
            for name in me.moved & truth.accounts.keys():
                account = truth.accounts[name]
                if account.terms.kind == SLOTS and self._available(account) > 0:
                    ring.update(self._wanting(name))
        for name in ring:
            self._ring(name)
        return reply

    def wait(self, timeout_s: float) -> bool:
        me = self._me
        me.bell.wait(timeout_s)
        me.bell.clear()
        rung, me.rung = me.rung, False
        return rung

    def wake(self) -> None:
        self._me.bell.set()

    def leave(self) -> bool:
        with self._truth() as truth:
            if self._me.last.open or truth.workers.get(self._worker) is not self._me:
                self._me.alive = False
                return False
            self._release({})
            return True

    def dead(self) -> tuple[DeadWorker, ...]:
        with self._truth() as truth:
            return tuple(
                DeadWorker(name, one.last.mark, one.last.open, one.last.position)
                for name, one in truth.workers.items()
                if not one.alive
            )

    def positions(self) -> Mapping[str, str]:
        with self._truth() as truth:
            return {name: one.last.position for name, one in truth.workers.items()}

    def told(self) -> tuple[DeadWorker, ...]:
        with self._truth() as truth:
            return tuple(
                DeadWorker(name, one.last.mark, one.last.open, one.last.position) for name, one in truth.workers.items()
            )

    def named(self, value: str) -> tuple[str, ...]:
        with self._truth() as truth:
            return tuple(sorted(name for name in truth.accounts if is_of(name, value)))

    def rename(self, names: Mapping[str, str]) -> int:
        with self._truth() as truth:
            known = {old: new for old, new in names.items() if old in truth.accounts}
            for old, new in known.items():
                account = truth.accounts[new] = truth.accounts.pop(old)
                account.terms = msgspec.structs.replace(account.terms, account=new)
            for one in truth.workers.values():
                for number, lease in one.leases.items():
                    if lease.account in known:
                        lease.account = one.renamed[number] = known[lease.account]
                one.wants = {(number, known.get(name, name)): since for (number, name), since in one.wants.items()}
            truth.alerts = {(known.get(name, name), share) for name, share in truth.alerts}
            return len(known)

    def bury(self, dead: DeadWorker, charges: Mapping[str, int]) -> bool:
        with self._truth() as truth:
            body = truth.workers.get(dead.worker)
            if body is None or body.alive:
                return False
            undertaker = MemoryHandle(truth)
            undertaker._worker, undertaker._me = dead.worker, body
            undertaker._release(charges)
            return True

    def account(self, account: str) -> AccountState | None:
        with self._truth() as truth:
            found = truth.accounts.get(account)
            if found is None:
                return None
            self._refill(found)
            return AccountState(found.settled, found.held, found.over, found.level)

    def accounts(self, prefix: str, suffix: str, at_most: int) -> AccountListing:
        with self._truth() as truth:
            found = []
            for name, one in truth.accounts.items():
                if name.startswith(prefix) and name.endswith(suffix) and len(name) >= len(prefix) + len(suffix):
                    self._refill(one)
                    found.append(NamedAccount(name, AccountState(one.settled, one.held, one.over, one.level)))
            found.sort(key=lambda one: (-one.state.settled, -one.state.held, one.name))
            settled, held = sum(one.state.settled for one in found), sum(one.state.held for one in found)
            return AccountListing(tuple(found[:at_most]), len(found), settled, held)

    def sweep(self, before_ns: int) -> int:
        with self._truth() as truth:
            truth.swept_ns = max(truth.swept_ns, before_ns)
            leased = {lease.account for one in truth.workers.values() for lease in one.leases.values()}
            old = [
                name for name, one in truth.accounts.items() if 0 < one.terms.ends_ns < before_ns and name not in leased
            ]
            for name in old:
                del truth.accounts[name]
            return len(old)

    def close(self) -> None:
        self._me.alive = False

    # Rules.

    def _truth(self) -> _Held:
        return _Held(self._shared)

    def _account(self, terms: Terms) -> _Account:
        truth = self._shared
        account = truth.accounts.get(terms.account)
        if account is None:
            account = truth.accounts[terms.account] = _Account(terms, truth.now_ns())
        account.terms = terms
        return account

    def _lease(self, number: int, terms: Terms) -> _Lease:
        lease = self._me.leases.get(number)
        if lease is None:
            lease = self._me.leases[number] = _Lease(terms)
        return lease

    def _book(self, report: Report) -> None:
        lease, account = self._lease(report.slice, report.terms), self._account(report.terms)
        if account.terms.kind == BUCKET:
            self._refill(account)
        held = lease.held
        booked, over = report.booked - lease.booked, report.over - lease.over
        returned, refunded = report.returned - lease.returned, report.refunded - lease.refunded
        assert min(booked, over, returned, refunded) >= 0
        lease.booked, lease.over, lease.returned = report.booked, report.over, report.returned
        lease.refunded, lease.answered = report.refunded, max(lease.answered, report.answered)
        lease.dropped = report.dropped
        account.held += lease.held - held
        if account.terms.kind == MONEY:
            account.settled += booked
            account.over += over
        if account.terms.kind == BUCKET:
            account.level = max(0, min(account.level + returned + refunded, account.terms.cap - account.held))

    def _available(self, account: _Account) -> int:
        if account.terms.kind == BUCKET:
            self._refill(account)
            return account.level
        return account.terms.cap - account.settled - account.held

    def _refill(self, account: _Account) -> None:
        if account.terms.kind == BUCKET:
            room = account.terms.cap - account.held
            now_ns = self._shared.now_ns()
            account.level, account.filled_ns = refilled(account.level, room, account.filled_ns, now_ns, account.terms)

    def _judge(self, number: int, lines: tuple[Line, ...], last: bool, ring: set[str]) -> Verdict:
        truth = self._shared
        swept = tuple(Refused(line.slice, 0) for line in lines if self._is_swept(line.terms))
        if swept:
            return Verdict(number, REFUSED, swept)
        slots = {line.terms.account for line in lines if line.terms.kind == SLOTS}
        stands = {account: tick for (one, account), (tick, _) in self._me.wants.items() if one == number}
        placed = min((tick for account, tick in stands.items() if account not in slots), default=truth.tick)
        short: list[tuple[Line, int]] = []
        for line in lines:
            available = self._available(self._account(line.terms))
            if line.terms.kind == SLOTS and not last and available >= line.need:
                available -= self._before(line)
            if available < line.need:
                short.append((line, available))
        if not short:
            for line in lines:
                account = self._account(line.terms)
                contended = bool(self._wanting(line.terms.account))
                available, workers = self._available(account), len(truth.workers)
                self._grant(line, grant_units(line.need, line.good, available, workers, contended))
                if line.terms.kind == SLOTS:
                    self._go_last(line.terms.account)
            self._forget_want(number)
            return Verdict(number, GRANTED)
        hopeless = [(line, left) for line, left in short if not self._may_help(line, placed)]
        if last or hopeless:
            self._forget_want(number)
            refused = tuple(self._refused(line, left) for line, left in hopeless or short)
            return Verdict(number, REFUSED, refused)
        for line, _ in short:
            name, is_slot = line.terms.account, line.terms.kind == SLOTS
            since = self._me.turns.setdefault(name, truth.tick) if is_slot else placed
            since = self._me.wants.get((number, name), (since, 0))[0]
            self._me.wants[number, name] = (since, truth.now_ns())
            ring.update(self._unaware(name) if is_slot else self._holders(name, placed))
        lacking = {line.terms.account for line, _ in short}
        self._forget({(number, name) for name in stands if name not in lacking})
        return Verdict(number, PENDING)

    def _is_swept(self, terms: Terms) -> bool:
        truth = self._shared
        return terms.account not in truth.accounts and 0 < terms.ends_ns < truth.swept_ns

    def _may_help(self, line: Line, placed: int) -> bool:
        account = self._shared.accounts[line.terms.account]
        if line.amount > line.terms.cap - account.settled:
            return False
        if line.terms.kind != SLOTS:
            return bool(self._holders(line.terms.account, placed))
        # A slot comes back whenever a Call ends, so it is waited for even when all have answered.
        return self._available(account) >= line.need or account.held > 0

    def _before(self, line: Line) -> int:
        """How many wants of others come first: those of workers below their share, then those that wait longest."""
        truth, name = self._shared, line.terms.account
        keep = self._keep(name)
        is_above = self._held(self._me, name) + line.need > keep[self._worker]
        me = (is_above, self._me.turns.get(name, truth.tick))
        before = 0
        for who, one in truth.workers.items():
            waits = [
                tick
                for (_, wanted), (tick, said_ns) in one.wants.items()
                if wanted == name and abs(truth.now_ns() - said_ns) < TURN_NS
            ]
            if one is not self._me and waits and (self._held(one, name) >= keep[who], min(waits)) < me:
                before += len(waits)
        return before

    def _keep(self, name: str) -> dict[str, int]:
        """The fair share of everybody who holds slots of this account or waits for them, and of this worker."""
        truth = self._shared
        sharing = [
            who
            for who, one in truth.workers.items()
            if one is self._me or self._held(one, name) > 0 or any(wanted == name for _, wanted in one.wants)
        ]
        cap, now_ns = truth.accounts[name].terms.cap, truth.now_ns()
        return {who: fair_share(cap, sharing, who, now_ns) for who in sharing}

    def _held(self, worker: _Worker, name: str) -> int:
        return sum(lease.held for lease in worker.leases.values() if lease.account == name)

    def _go_last(self, name: str) -> None:
        """A slot was given to this worker: for the next one it waits behind those who wait already."""
        me, tick = self._me, self._shared.tick
        me.turns[name] = tick
        me.moved.add(name)
        me.wants.update({key: (tick, said_ns) for key, (_, said_ns) in me.wants.items() if key[1] == name})

    def _unaware(self, name: str) -> set[str]:
        """Others that hold slots and have not been told that somebody waits, or were told of a larger share."""
        keep = self._keep(name)
        return {
            who
            for who, one in self._shared.workers.items()
            if one is not self._me
            and any(x.account == name and x.held > 0 and x.told > keep[who] for x in one.leases.values())
        }

    def _refused(self, line: Line, left: int) -> Refused:
        resets_ns = line.terms.ends_ns
        if line.terms.kind == BUCKET and line.amount <= line.terms.cap:
            resets_ns = self._shared.now_ns() + refill_wait_ns(line.need - left, line.terms)
        return Refused(line.slice, left, resets_ns)

    def _top_up(self, line: Line) -> None:
        available, workers = self._available(self._account(line.terms)), len(self._shared.workers)
        if available > 0 and not self._wanting(line.terms.account):
            self._grant(line, grant_units(0, line.good, available, workers, False))

    def _grant(self, line: Line, units: int) -> None:
        account = self._account(line.terms)
        self._lease(line.slice, line.terms).granted += units
        account.held += units
        if account.terms.kind == BUCKET:
            account.level -= units

    def _forget_want(self, number: int) -> None:
        self._forget({key for key in self._me.wants if key[0] == number})

    def _forget(self, wants: set[tuple[int, str]]) -> None:
        for number, name in wants:
            del self._me.wants[number, name]
            self._me.moved.add(name)

    def _wanting(self, account: str) -> dict[str, int]:
        """Other workers that wait for the account -> the latest tick in which they asked."""
        return {
            name: max(tick for (_, wanted), (tick, _) in one.wants.items() if wanted == account)
            for name, one in self._shared.workers.items()
            if one is not self._me and any(wanted == account for _, wanted in one.wants)
        }

    def _holders(self, account: str, placed: int) -> set[str]:
        """Other workers that hold something of the account and have not answered since."""
        return {
            name
            for name, one in self._shared.workers.items()
            if one is not self._me
            and any(x.account == account and x.held > 0 and x.answered < placed for x in one.leases.values())
        }

    def _state(self, number: int, name: str) -> LeaseState:
        lease, account = self._me.leases.get(number), self._shared.accounts.get(name)
        granted, settled = (lease.granted if lease else 0), (account.settled if account else 0)
        contended = bool(self._wanting(name))
        if account is None or account.terms.kind != SLOTS:
            return LeaseState(number, granted, settled, contended)
        keep = self._keep(name)[self._worker]
        if lease is not None:
            lease.told = keep if contended else FOREVER
        return LeaseState(number, granted, 0, contended, keep)

    def _release(self, charges: Mapping[str, int]) -> None:
        truth = self._shared
        held_of: dict[str, int] = {}
        for lease in self._me.leases.values():
            held_of[lease.account] = held_of.get(lease.account, 0) + lease.held
        for name, held in held_of.items():
            account = truth.accounts[name]
            self._refill(account)
            account.held -= held
        for name, units in charges.items():
            account = truth.accounts.setdefault(name, _Account(Terms(name, MONEY, 0, counted=True), truth.now_ns()))
            account.settled += units
            if not account.terms.counted:
                account.over += max(0, units - held_of.get(name, 0))
        del truth.workers[self._worker]
        self._me.alive = False
        for name, one in truth.workers.items():
            if any(account in held_of for _, account in one.wants):
                self._ring(name)

    def _ring(self, name: str) -> None:
        worker = self._shared.workers.get(name)
        if worker is not None:
            worker.rung = True
            worker.bell.set()


class _Held:
    """The truth, under its lock. Raises: StoreUnavailable while it is down."""

    def __init__(self, shared: MemoryCounters) -> None:
        self._shared = shared

    def __enter__(self) -> MemoryCounters:
        if self._shared.down:
            raise StoreUnavailable("the store was taken down")
        self._shared.lock.acquire()
        return self._shared

    def __exit__(self, *_: object) -> None:
        self._shared.lock.release()
