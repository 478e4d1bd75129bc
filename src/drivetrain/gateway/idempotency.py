"""`Idempotency-Key`: requests that say the same thing twice, and the one upstream call behind them.

Owns the rules (who runs, who waits, what is kept) and the one thread that talks to the store: the loop never waits for
a disk. Called by the application for requests that have the header; others cost nothing, and without any of them there
is neither thread nor file. What an answer is, and how it is sealed, stands in `gateway/idempotency_answers.py`.

A request asks for its key. Whoever gets it runs the call on a connection that takes the answer down; an answer that
counts is in the store before its end leaves. Everybody else waits for that: whoever is served by the same worker hears
of it at once, others look again and again. A client that leaves a whole answer gives up nothing: the call goes on, as
it does without a key, and whoever repeats the request gets its answer. A stream that is left is cut, and the key is
free: the first of those who wait then makes a new call.

Where the store does not answer, nobody can tell whether a call was made before, so the request is refused.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum

from drivetrain.core.errors import DrivetrainError, RequestError, report_fault
from drivetrain.gateway.http import Exchange
from drivetrain.gateway.idempotency_answers import Answering, Ended, KeptAnswerV1, Names, Recording, names
from drivetrain.ports.idempotency import (
    ANSWERED,
    OTHER_BODY,
    RUNNING,
    YOURS,
    Ask,
    Claim,
    IdempotencyStore,
    IdempotencyUnavailable,
    Keep,
    Release,
)

KEY_CHARS_MAX = 255
STORE_S = 0.25
"""How long a request waits for the store; some disks pause so long. Beyond it the store is taken to be gone."""
WAIT_S = 60.0
"""How long a repeat waits for the first: as long as an Attempt may take by default."""
RETRY_AFTER_S = 1
TICK_S = 0.02
"""Between two looks at who waits, while somebody does."""
LOOK_SHARE = 0.1
"""Who waits looks again after this share of the time that was waited: short calls are followed closely, and long ones
cost few looks. At least `TICK_S`, at most `LOOK_MAX_S`."""
LOOK_MAX_S = 0.5
BUSY_MAX = 2_000
"""Keyed requests that may ask or wait at once in a worker, about 2 KB each beside their bodies."""
VISIT_MAX = 16
"""Requests whose answers are in memory at once while they are fetched: 64 MiB of the longest."""
UNKEPT_BYTES_MAX = 64 * 1024 * 1024
"""Answers that may wait for the store at once; those beyond are given, and not kept."""
UNTOLD_MAX = 10_000
"""Keys of whose end the store could not be told, kept to tell it later; those beyond stay held while we live."""
UNTOLD_S = 1.0
"""Between two attempts to tell it."""
CLOSE_S = 2.0
"""For the last words at shutdown."""

Run = Callable[[Answering], Exchange | None]
Refuse = Callable[[Answering, RequestError], None]


class Idempotency:
    """Idempotency-Keys of one worker, on its event loop.

    store: closed by `close`. secret: the gateway's 32 bytes; asked for when the first key comes, in the thread.
    refuse: answers with an error.
    """

    def __init__(
        self,
        store: IdempotencyStore,
        secret: Callable[[], bytes],
        refuse: Refuse,
        *,
        loop: asyncio.AbstractEventLoop,
        wait_s: float = WAIT_S,
        store_s: float = STORE_S,
    ) -> None:
        self.failed = ""
        """Why the store cannot be used at present; empty while it can."""
        self._store = store
        self._secret = secret
        self._refuse = refuse
        self._loop = loop
        self._wait_s = wait_s
        self._store_s = store_s
        self._here: dict[_Keyed, None] = {}
        """Those that ask, wait, or end; in the order of their coming."""
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unkept_bytes = 0
        self._untold: dict[bytes, Ask] = {}
        self._untold_at = 0.0
        self._visit_began = 0.0
        self._thread: threading.Thread | None = None
        self._ticking = False
        self._closed = False

    @property
    def busy(self) -> int:
        """Requests that ask, wait, or whose answer is about to leave; at shutdown they are waited for."""
        return len(self._here)

    def begin(self, scope: Sequence[str], raw_key: bytes, body: bytes, connection: Answering, run: Run) -> Exchange:
        """Answer once for all requests with this key: with `run` on a connection of ours, or with its answer.

        scope: who calls, and what; the same key elsewhere is another. Raises: RequestError (400, 503).
        """
        key = _key(raw_key)
        began = self._visit_began
        stuck = began and time.monotonic() - began > self._store_s
        if self._closed or stuck or len(self._here) >= BUSY_MAX:
            raise _unavailable()
        if self._thread is None:
            self._thread = threading.Thread(target=self._carry, name="idempotency", daemon=True)
            self._thread.start()
        keyed = _Keyed(self, (*scope, key), body, connection, run=run, now_s=self._loop.time())
        self._here[keyed] = None
        self._look(keyed)
        self._tick_on()
        return keyed

    async def close(self) -> None:
        """Refuse who still waits, tell the store what it was not told, and end the thread."""
        self._closed = True
        for keyed in list(self._here):
            if keyed.stage in (_Stage.ASKING, _Stage.WAITING):
                self._give_up(keyed, _unavailable())
            elif keyed.leave is not None:
                self._let_leave(keyed)
        if self._thread is None:
            return
        self._jobs.put(None)
        deadline = self._loop.time() + CLOSE_S
        while self._thread.is_alive() and self._loop.time() < deadline:
            await asyncio.sleep(0.005)

    # A request's life; on the loop.

    def _look(self, keyed: _Keyed) -> None:
        keyed.stage = _Stage.ASKING
        keyed.asked_s = self._loop.time()
        self._jobs.put(_Job(keyed))

    def _found(self, job: _Job) -> None:
        """What the store said to a look."""
        keyed = job.keyed
        if keyed.stage is not _Stage.ASKING:
            if job.outcome == YOURS:  # it has left, or was refused
                self._settle(keyed, Ended(counts=False))
            return
        if job.outcome == YOURS:
            self._run(keyed)
        elif job.outcome == RUNNING:
            now = self._loop.time()
            keyed.stage = _Stage.WAITING
            keyed.looks_s = now + min(LOOK_MAX_S, max(TICK_S, LOOK_SHARE * (now - keyed.came_s)))
        elif job.outcome == OTHER_BODY:
            self._give_up(keyed, _other_body())
        elif job.answer is None:
            self._give_up(keyed, _not_kept())
        else:
            self._over(keyed)
            job.answer.give(keyed.connection)

    def _run(self, keyed: _Keyed) -> None:
        keyed.stage = _Stage.RUNNING
        self._here.pop(keyed, None)
        recording = Recording(keyed.connection, lambda ended, leave: self._ended(keyed, ended, leave))
        try:
            keyed.running = keyed.run(recording)
        except RequestError as error:
            self._refuse(recording, error)
        except Exception as fault:  # noqa: BLE001  a fault of ours ends this request, and no other
            report_fault("gateway", fault)
            message = "the gateway failed at this request"
            self._refuse(recording, RequestError(500, message, code="internal_error", kind="server_error"))
        if keyed.paused and keyed.running is not None:
            keyed.running.pause()

    def _ended(self, keyed: _Keyed, ended: Ended, leave: Callable[[], None]) -> None:
        keyed.running = None
        if ended.counts:
            keyed.stage = _Stage.ENDING
            keyed.leave = leave
            keyed.asked_s = self._loop.time()
            self._here[keyed] = None
            self._settle(keyed, ended)
            self._tick_on()
        else:
            keyed.stage = _Stage.OVER
            self._settle(keyed, ended)
            leave()

    def _settle(self, keyed: _Keyed, ended: Ended) -> None:
        answer = ended.answer
        if answer is not None and self._unkept_bytes + len(answer.body) > UNKEPT_BYTES_MAX:
            answer = None
        if answer is not None:
            self._unkept_bytes += len(answer.body)
        self._jobs.put(_Job(keyed, Ended(ended.counts, answer)))

    def _settled(self, job: _Job) -> None:
        """The store knows how a call ended, or cannot be told now."""
        keyed = job.keyed
        if job.ended is not None and job.ended.answer is not None:
            self._unkept_bytes -= len(job.ended.answer.body)
        if keyed.leave is not None:
            self._let_leave(keyed)
        for other in list(self._here):
            if other.stage is _Stage.WAITING and other.scoped == keyed.scoped:
                self._look(other)

    def _unanswered(self, jobs: list[_Job], why: str) -> None:
        self.failed = why
        for job in jobs:
            if job.ended is not None:
                self._settled(job)
            elif job.keyed.stage is _Stage.ASKING:
                self._give_up(job.keyed, _unavailable())

    def _answered(self, jobs: list[_Job]) -> None:
        if self.failed:
            self.failed = ""
            print("drivetrain: the store of Idempotency-Keys can be used again", file=sys.stderr)
        for job in jobs:
            if job.ended is not None:
                self._settled(job)
            else:
                self._found(job)

    def _give_up(self, keyed: _Keyed, error: RequestError) -> None:
        self._over(keyed)
        self._refuse(keyed.connection, error)

    def _let_leave(self, keyed: _Keyed) -> None:
        leave, keyed.leave = keyed.leave, None
        self._over(keyed)
        if leave is not None:
            leave()

    def _over(self, keyed: _Keyed) -> None:
        keyed.stage = _Stage.OVER
        self._here.pop(keyed, None)

    def _abandoned(self, keyed: _Keyed) -> None:
        """The client left."""
        if keyed.stage in (_Stage.ASKING, _Stage.WAITING):
            self._over(keyed)
        elif keyed.running is not None:
            keyed.running.abort()

    # Deadlines, while there is somebody for whom they hold.

    def _tick_on(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        now = self._loop.time()
        for keyed in list(self._here):
            if keyed.stage is _Stage.WAITING and now - keyed.came_s >= self._wait_s:
                self._give_up(keyed, _in_progress())
            elif keyed.stage is _Stage.WAITING and now >= keyed.looks_s:
                self._look(keyed)
            elif keyed.stage is _Stage.ASKING and now - keyed.asked_s >= self._store_s:
                self._give_up(keyed, _unavailable())
            elif keyed.stage is _Stage.ENDING and now - keyed.asked_s >= self._store_s:
                self._let_leave(keyed)
        if self._here:
            self._tick_on()

    # In the thread.

    def _carry(self) -> None:
        secret = b""
        while True:
            jobs, last = self._next()
            self._visit_began = time.monotonic()
            try:
                secret = secret or self._secret()
                if jobs or self._untold:
                    self._visit(jobs, secret)
            except (IdempotencyUnavailable, DrivetrainError, OSError) as error:
                self._failed(jobs, str(error))
            except Exception as fault:  # noqa: BLE001 - a boundary: the thread must live, and who asks must be refused
                report_fault("idempotency", fault)
                self._failed(jobs, type(fault).__name__)
            else:
                self._tell(self._answered, jobs)
            self._visit_began = 0.0
            if last:
                self._store.close()
                return

    def _next(self) -> tuple[list[_Job], bool]:
        """What there is to do, and whether it is the last."""
        jobs: list[_Job] = []
        while len(jobs) < VISIT_MAX:
            try:
                waits = UNTOLD_S if self._untold else None
                job = self._jobs.get_nowait() if jobs else self._jobs.get(timeout=waits)
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
        return jobs, False

    def _visit(self, jobs: list[_Job], secret: bytes) -> None:
        untold = list(self._untold.items())
        asks = [ask for _, ask in untold] + [job.ask(secret) for job in jobs]
        found = self._store.visit(asks)
        for one, _ in untold:
            del self._untold[one]
        for job, came in zip(jobs, found[len(untold) :], strict=True):
            job.outcome = came.outcome
            if came.outcome == ANSWERED and came.sealed is not None:
                job.answer = job.names(secret).unseal(came.sealed)

    def _failed(self, jobs: list[_Job], why: str) -> None:
        for job in jobs:
            if job.ended is None or job.keyed.names is None or len(self._untold) >= UNTOLD_MAX:
                continue
            # Without its answer, so that little is held while the disk is gone: a repeat makes no second call.
            id_ = job.keyed.names.id
            self._untold[id_] = Keep(id_, None) if job.ended.counts else Release(id_)
        if not self.failed:
            print(
                f"drivetrain: Idempotency-Keys cannot be kept, requests that have one are refused: {why}\n"
                "Put that right; no restart is needed. Removing the folder forgets the keys of the last 24 hours.",
                file=sys.stderr,
            )
        self._tell(self._unanswered, jobs, why)

    def _tell(self, what: Callable[..., None], *said: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *said)
        except RuntimeError:
            self._jobs.put(None)  # the loop has ended, and with it everybody who would listen


class _Stage(Enum):
    """Where a keyed request stands."""

    ASKING = 1
    WAITING = 2
    RUNNING = 3
    ENDING = 4
    OVER = 5


class _Keyed:
    """One request with a key, as the connection's Exchange."""

    __slots__ = ("all", "asked_s", "body", "came_s", "connection", "leave", "looks_s", "names", "paused", "run",
                 "running", "scoped", "stage")  # fmt: skip

    def __init__(
        self, all_: Idempotency, scoped: tuple[str, ...], body: bytes, connection: Answering, *, run: Run, now_s: float
    ) -> None:
        self.all = all_
        self.scoped = scoped
        self.body = body
        self.connection = connection
        self.run = run
        self.stage = _Stage.ASKING
        self.came_s = self.asked_s = self.looks_s = now_s
        self.names: Names | None = None
        self.running: Exchange | None = None
        self.leave: Callable[[], None] | None = None
        """What lets the end of its answer go."""
        self.paused = False

    def abort(self) -> None:
        self.all._abandoned(self)

    def pause(self) -> None:
        self.paused = True
        if self.running is not None:
            self.running.pause()

    def resume(self) -> None:
        self.paused = False
        if self.running is not None:
            self.running.resume()


class _Job:
    """One thing for the thread to do, and what came of it."""

    __slots__ = ("answer", "ended", "keyed", "outcome")

    def __init__(self, keyed: _Keyed, ended: Ended | None = None) -> None:
        self.keyed = keyed
        self.ended = ended
        """None: a look."""
        self.outcome = ""
        self.answer: KeptAnswerV1 | None = None

    def names(self, secret: bytes) -> Names:
        keyed = self.keyed
        if keyed.names is None:
            keyed.names = names(secret, keyed.scoped[:-1], keyed.scoped[-1], keyed.body)
            keyed.body = b""
        return keyed.names

    def ask(self, secret: bytes) -> Ask:
        named = self.names(secret)
        if self.ended is None:
            return Claim(named.id, named.body)
        if not self.ended.counts:
            return Release(named.id)
        return Keep(named.id, None if self.ended.answer is None else named.seal(self.ended.answer))


def _key(raw: bytes) -> str:
    try:
        key = raw.decode("utf-8")
    except UnicodeDecodeError:
        key = ""
    if not key or len(key) > KEY_CHARS_MAX or not key.isprintable():
        message = f"`Idempotency-Key` must be 1 to {KEY_CHARS_MAX} printable characters"
        raise RequestError(400, message, code="invalid_value", param="idempotency-key")
    return key


def _other_body() -> RequestError:
    message = "this Idempotency-Key was used with another body; a key stands for one request, a new one needs a new key"
    return RequestError(422, message, code="idempotency_key_reused", param="idempotency-key")


def _in_progress() -> RequestError:
    message = "the first request with this Idempotency-Key still runs; send this one again to get its answer"
    return RequestError(
        409, message, code="idempotency_in_progress", param="idempotency-key", retry_after_s=RETRY_AFTER_S
    )


def _not_kept() -> RequestError:
    message = (
        "the request with this Idempotency-Key was answered, and its answer is not kept (too long, or too many since);"
        " a new key makes a new call"
    )
    return RequestError(409, message, code="idempotency_answer_not_kept", param="idempotency-key")


def _unavailable() -> RequestError:
    message = "it cannot be told whether this Idempotency-Key was used before; send the request again"
    return RequestError(503, message, code="idempotency_unavailable", kind="server_error", retry_after_s=RETRY_AFTER_S)
