"""Work that may hang or crash, such as a user's scorer, in a process that is ended when its time is over.

A thread that hangs cannot be ended, so the work runs in a child. Its code is the project's, imported under a name that
only this process knows, so the child is forked and not started anew. Two processes stand behind each `Isolated`: a
keeper, forked once, that does nothing but wait, and the worker that it forks, kills and forks again. The keeper is a
process of one thread; who makes an `Isolated` before threads are started has no fork of a process with threads at all.
What crosses over is msgpack: plain values, no code.

Called by `scoring.py`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import msgspec

MESSAGE_BYTES_MAX = 64 << 20
"""Of one answer with its row, or of what is said of it."""
GRACE_S = 5.0
"""Beyond the time that the work has: if the keeper says nothing by then, it is ended itself."""
END_S = 1.0
"""What a keeper has to end its worker and itself."""
HANGS_MAX = 3
"""Work that hung or crashed as often, one time after the other, is not asked again: each time costs its whole time."""
_HEAD_BYTES = 4

Work = Callable[[Any], Any]


class Told(msgspec.Struct, frozen=True):
    """What became of one piece of work."""

    state: str
    """`done`, `raised`, `late`, `died` (its process ended), `refused` (it hung too often) or `unsent` (what it was to
    be given, or what it gave, are no plain values, or are too large)."""
    value: Any = None
    """Of `done`: what it gave. Of `raised`: the error's type."""


class Isolated:
    """A function of plain values that runs in a process of its own, one piece of work at a time."""

    def __init__(self, work: Work, timeout_ms: int) -> None:
        """Starts its processes. work: is called in the child, with whatever it refers to as it is now."""
        self._work = work
        self._timeout_s = timeout_ms / 1000
        self._lock = threading.Lock()
        self._failures = 0
        self._start()

    def ask(self, message: Any) -> Told:
        """What the work gives for a message; it waits for at most the time that the work has and `GRACE_S`."""
        try:
            said = msgspec.msgpack.encode(message, enc_hook=repr)
        except (msgspec.MsgspecError, OverflowError, TypeError, ValueError, RecursionError):
            return Told("unsent")
        if len(said) > MESSAGE_BYTES_MAX:
            return Told("unsent")
        with self._lock:
            if self._failures >= HANGS_MAX:
                return Told("refused")
            told = self._exchange(said)
            self._failures = self._failures + 1 if told.state in ("late", "died") else 0
            return told

    def close(self) -> None:
        """Ends its processes."""
        self._end()

    def _start(self) -> None:
        here, there = socket.socketpair()
        pid = os.fork()
        if not pid:
            _in_child(there, lambda: _keep(there, self._work, self._timeout_s))
        there.close()
        here.settimeout(self._timeout_s + GRACE_S)
        self._socket = here
        self._end = weakref.finalize(self, _end, here, pid)

    def _exchange(self, said: bytes) -> Told:
        try:
            _send(self._socket, said)
            frame = _receive(self._socket)
        except OSError:
            frame = None
        if frame is not None:
            with contextlib.suppress(msgspec.MsgspecError, RecursionError):
                return msgspec.msgpack.decode(frame, type=Told)
        self._end()
        self._start()
        return Told("died")


def _end(connection: socket.socket, pid: int) -> None:
    """The keeper sees that its socket is closed, ends its worker and itself; where it does not, both are killed."""
    connection.close()
    deadline = time.monotonic() + END_S
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
            time.sleep(0.001)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.waitpid(pid, 0)


def _in_child(kept: socket.socket, run: Callable[[], None]) -> None:
    """Runs in a fork, with nothing of the parent's open but standard streams, and never returns.

    What is left open would outlive the parent: a socket whose end nobody sees, a file whose lock stays held.
    """
    code = 1
    try:
        number = kept.fileno()
        os.closerange(3, number)
        os.closerange(number + 1, os.sysconf("SC_OPEN_MAX"))
        run()
        code = 0
    except BaseException:  # noqa: BLE001, S110 - a process boundary: the other side sees that it ended
        pass
    finally:
        os._exit(code)


def _keep(parent: socket.socket, work: Work, timeout_s: float) -> None:
    """The keeper: hands on what comes, and ends a worker that is late. Ends with its parent."""
    os.setpgid(0, 0)  # a Ctrl-C is the parent's to handle
    worker: tuple[int, socket.socket] | None = None
    while (said := _receive(parent)) is not None:
        worker = worker or _fork_worker(work)
        state = "late"
        with contextlib.suppress(OSError):
            _send(worker[1], said)
            deadline = time.monotonic() + timeout_s
            ready, _, _ = select.select([worker[1], parent], [], [], max(0.0, deadline - time.monotonic()))
            if parent in ready:
                break  # it asks once at a time: this is its end
            if ready:
                state = "died"
                frame = _receive(worker[1])
                if frame is not None:
                    _send(parent, frame)
                    continue
        _kill(worker)
        worker = None
        _send(parent, msgspec.msgpack.encode(Told(state)))
    os.killpg(0, signal.SIGKILL)  # its worker, whatever that has started and left behind, and itself


def _fork_worker(work: Work) -> tuple[int, socket.socket]:
    here, there = socket.socketpair()
    pid = os.fork()
    if not pid:
        _in_child(there, lambda: _serve(there, work))
    there.close()
    return pid, here


def _kill(worker: tuple[int, socket.socket]) -> None:
    worker[1].close()
    with contextlib.suppress(OSError):
        os.kill(worker[0], signal.SIGKILL)
        os.waitpid(worker[0], 0)


def _serve(keeper: socket.socket, work: Work) -> None:
    """The worker: answers one message after the other. What the work prints is no part of the command's output."""
    mine = os.getpid()
    _mute()
    while (said := _receive(keeper)) is not None:
        try:
            told = Told("done", work(msgspec.msgpack.decode(said)))
        except Exception as fault:  # noqa: BLE001 - whatever a user's function raises is told by its type
            told = Told("raised", type(fault).__name__)
        if os.getpid() != mine:
            return  # a fork that the work made: one answer to one message
        try:
            frame = msgspec.msgpack.encode(told)
        except (msgspec.MsgspecError, OverflowError, TypeError, ValueError, RecursionError):
            frame = b""
        if not frame or len(frame) > MESSAGE_BYTES_MAX:
            frame = msgspec.msgpack.encode(Told("unsent"))
        _send(keeper, frame)


def _mute() -> None:
    """Standard input is empty from here on, and standard output goes nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _send(connection: socket.socket, frame: bytes) -> None:
    connection.sendall(len(frame).to_bytes(_HEAD_BYTES, "big") + frame)


def _receive(connection: socket.socket) -> bytes | None:
    """One frame; None where the other side has ended."""
    head = _exactly(connection, _HEAD_BYTES)
    return None if head is None else _exactly(connection, int.from_bytes(head, "big"))


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
