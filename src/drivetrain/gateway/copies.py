"""Copies of a worker's Calls for the shadow of a rollout: which ones, and how they leave.

Owns what a worker does for a shadow, after the answer has gone out: it notes the copy, and every few milliseconds sends
what it noted in one datagram that never waits. Nothing of it can be felt by whoever called: what does not fit is
dropped and counted, and where nobody takes them, none is made for a while. What becomes of the copies is for
`embedded/shadowing.py`, in a process of its own. Called by the gateway; told of a rollout by whoever follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from drivetrain.core.calls import Attribution
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import WHOLE, ActiveRollout
from drivetrain.embedded.shadow_calls import SENT, UNSENT
from drivetrain.embedded.shadow_socket import DATAGRAM_BYTES_MAX, Copy, packed, socket_path
from drivetrain.execution.admission import Admitted
from drivetrain.execution.call import CallResult, Client
from drivetrain.execution.plan import WorkflowPlan

FLUSH_S = 0.02
"""Between a Call's end and its copy's leaving: a system call then serves all that ended meanwhile."""
BATCH_COPIES_MAX = 128
"""In one datagram, and what stands before its bodies stays small."""
BATCH_BYTES_MAX = 64 * 1024
"""Of the bodies in one datagram; a larger one goes alone."""
COPY_BYTES_MAX = 128 * 1024
"""Of one request and its answer, which with what stands before them fit a datagram. A larger answer is left out, and a
Call with a larger request is not copied."""
HELD_BYTES_MAX = 1024 * 1024
"""Of bodies that wait for the next sending; more in so short a time is dropped."""
PAUSE_S, PAUSE_S_MAX = 0.05, 2.0
"""After a datagram that nobody took, none is made for so long, and twice as long each time."""
SEND_BYTES = 1024 * 1024
"""Asked of the kernel for what was sent and is not read yet."""
NOT_COPIED = frozenset({"refused", "aborted"})
"""Calls that the route did not end: a limit or a client did."""


def connected(path: Path) -> socket.socket:
    """A socket that sends to whoever listens at `path`, and never waits. Raises: OSError where nobody does."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        made.connect(str(path))
    except OSError:
        made.close()
        raise
    return made


class Copies:
    """What one worker copies, while a rollout has a shadow."""

    def __init__(
        self,
        run_folder: Path,
        loop: asyncio.AbstractEventLoop,
        connect: Callable[[Path], socket.socket] = connected,
    ) -> None:
        self.held_bytes = 0
        """Of bodies that wait to be sent."""
        self._connect = connect
        self.workflows: frozenset[str] = frozenset()
        """Those whose Calls are copied; empty while there is no shadow."""
        self._run_folder = run_folder
        self._path = run_folder
        self._loop = loop
        self._used: tuple[str, str, int, tuple[str, ...]] | None = None
        self._rollout = ""
        self._candidate = ""
        self._ppm = 0
        self._seed = blake2b(digest_size=8)
        self._socket: socket.socket | None = None
        self._copies: list[Copy] = []
        self._bodies: list[bytes] = []
        self._bytes = 0
        """Of `_bodies`, for the next datagram."""
        self._full: list[tuple[list[Copy], list[bytes]]] = []
        """Datagrams that are to leave before it."""
        self._flushing = False
        self._paused_until = 0.0
        self._pause_s = 0.0
        self._counts: dict[str, int] = {}

    def use(self, active: ActiveRollout | None) -> None:
        """What is under way from now on; None: nothing."""
        if active is None or not active.shadow_ppm:
            self.close()
            return
        wanted = (active.rollout.id, active.snapshot, active.shadow_ppm, active.workflows)
        if wanted == self._used:
            return  # something else changed
        self.close()
        try:
            self._path = socket_path(self._run_folder)
        except DrivetrainError as error:
            print(f"drivetrain: no Call is copied to the shadow. {error}", file=sys.stderr)
            return
        self._rollout, self._candidate, self._ppm = active.rollout.id, active.snapshot[:16], active.shadow_ppm
        self._seed = blake2b(active.rollout.id.encode(), digest_size=8)
        self.workflows, self._used = frozenset(active.workflows), wanted
        self._paused_until = self._pause_s = 0.0

    def chosen(self, plan: WorkflowPlan, call_id: str) -> bool:
        """Whether a Call of one of `workflows` is copied: by a hash, so that anybody can tell which ones were."""
        if plan.snapshot == self._candidate:
            return False  # a canary's arm: the candidate answers it already
        if self._ppm >= WHOLE:
            return True
        hashed = self._seed.copy()
        hashed.update(call_id.encode())
        return int.from_bytes(hashed.digest(), "big") % WHOLE < self._ppm

    def of(self, client: Client, plan: WorkflowPlan, admitted: Admitted, attribution: Attribution, door: str) -> Client:
        """`client`, whose Call is copied once it has its answer."""
        return _Copied(self, client, (plan.name, door, attribution), admitted.raw)

    def counts(self) -> dict[str, int]:
        """Copies so far, by `workflow`, NUL, `sent` or `unsent`."""
        return dict(self._counts)

    def close(self) -> None:
        """Copy nothing any more; what waits to be sent is dropped."""
        self.workflows, self._used = frozenset(), None
        for copies, _ in (*self._full, (self._copies, self._bodies)):
            self._count(copies, UNSENT)
        self._full, self._copies, self._bodies, self._bytes, self.held_bytes = [], [], [], 0, 0
        self._disconnect()

    def add(self, copy: Copy, request: bytes, answer: bytes) -> None:
        """Note a copy that leaves soon. Costs about 2 us with its share of the sending."""
        size = len(request) + len(answer)
        if self._paused_until and self._loop.time() < self._paused_until:
            self._count((copy,), UNSENT)
            return
        if size > COPY_BYTES_MAX or self.held_bytes + size > HELD_BYTES_MAX:
            self._count((copy,), UNSENT)
            return
        if self._copies and (self._bytes + size > BATCH_BYTES_MAX or len(self._copies) >= BATCH_COPIES_MAX):
            self._close_batch()
            self._loop.call_soon(self._flush)  # not now: this Call's answer leaves with this tick
        self._copies.append(copy)
        self._bodies.append(request)
        self._bodies.append(answer)
        self._bytes += size
        self.held_bytes += size
        if not self._flushing:
            self._flushing = True
            self._loop.call_later(FLUSH_S, self._flush_all)

    def _close_batch(self) -> None:
        self._full.append((self._copies, self._bodies))
        self._copies, self._bodies, self._bytes = [], [], 0

    def _flush_all(self) -> None:
        self._flushing = False
        if self._copies:
            self._close_batch()
        self._flush()

    def _flush(self) -> None:
        full, self._full = self._full, []
        self.held_bytes = self._bytes
        for copies, bodies in full:
            self._count(copies, SENT if self._send(copies, bodies) else UNSENT)

    def _send(self, copies: list[Copy], bodies: list[bytes]) -> bool:
        """Whether the kernel took them."""
        if self._paused_until:
            if self._loop.time() < self._paused_until:
                return False
            self._paused_until = 0.0
        parts = packed(self._rollout, copies, bodies)
        if sum(map(len, parts)) > DATAGRAM_BYTES_MAX:
            return False
        try:
            if self._socket is None:
                self._socket = self._connect(self._path)
            self._socket.sendmsg(parts, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._pause()  # whoever reads them is slow or stopped; it may go on
            return False
        except OSError:
            self._disconnect()  # nobody listens there; perhaps somebody else soon
            self._pause()
            return False
        self._pause_s = 0.0
        return True

    def _pause(self) -> None:
        self._pause_s = min(PAUSE_S_MAX, 2 * self._pause_s) or PAUSE_S
        self._paused_until = self._loop.time() + self._pause_s

    def _disconnect(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _count(self, copies: tuple[Copy, ...] | list[Copy], what: str) -> None:
        for copy in copies:
            name = f"{copy.workflow}\x00{what}"
            self._counts[name] = self._counts.get(name, 0) + 1


class _Copied:
    """Whoever asked, and behind them the shadow."""

    __slots__ = ("_client", "_copies", "_of", "_request", "on_stream")

    def __init__(self, copies: Copies, client: Client, of: tuple[str, str, Attribution], request: bytes) -> None:
        """of: workflow, door and attribution."""
        self._copies = copies
        self._client = client
        self._of = of
        self._request = request
        self.on_stream: Callable[[bytes], None] = client.on_stream

    def on_finished(self, result: CallResult) -> None:
        self._client.on_finished(result)
        workflow, door, attribution = self._of
        if result.status in NOT_COPIED or workflow not in self._copies.workflows:
            return
        request = self._request
        answer = result.body if result.status == "answered" else b""
        if len(request) + len(answer) > COPY_BYTES_MAX:
            answer = b""  # then there is nothing to compare with
        decided = result.decision
        copy = Copy(
            result.call_id, workflow, door, attribution, len(request), len(answer),
            decided.action if decided is not None else "",
        )  # fmt: skip
        self._copies.add(copy, request, answer)
