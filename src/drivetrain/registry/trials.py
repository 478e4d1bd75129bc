"""Trials of models that nobody trusts yet: loaded and scored in a process of their own, within memory and time.

Checks of structure cannot tell what a graph asks for at run time: a broadcast may want a terabyte, a division may end
the process, a chain of operators may take hours. Here the worst of them costs its own process, and the import is
refused. What comes back is parsed as `Scored` and as nothing else. The other end is `trial_process`; imports call this.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned, Row, Scored
from drivetrain.ports.inference import Scorer
from drivetrain.registry.trial_process import FRAME_BYTES_MAX, HEADER, Begin, Reply, encode

OpenTrial = Callable[[Path, Pinned], AbstractContextManager[Scorer]]
"""A Scorer of the model in a folder, which can do no harm; gone at the end. Raises: DrivetrainError."""

MODULE = "drivetrain.registry.trial_process"
KEPT = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""Of this process's environment: what Python and its libraries may need to start. Keys and tokens stay here."""
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Each thread of these libraries reserves memory that would count."""


class TrialLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial may take."""

    load_s: float = 120.0
    """From the start of the process to the loaded model: the largest forest that is taken is checked in about 60 s."""
    batch_s: float = 60.0
    """For one batch, of a thousand rows at most: 60 ms a row, where a model in a route has milliseconds."""
    memory_bytes: int = 3 * 1024**3
    """Of addresses, beside `memory_per_byte`: Python with every library reserves about 1 GB of them, and a batch of
    long texts or wide rows has the rest."""
    memory_per_byte: int = 12
    """For each byte of the files: a booster's JSON takes ten times its size while it is read."""
    memory_bytes_max: int = 16 * 1024**3
    """However large the files are; the largest `linear-text` has 4 GB of them, which are held twice at most."""

    def memory_for(self, file_bytes: int) -> int:
        """Bytes of addresses that a trial of files of this size may reserve."""
        return min(self.memory_bytes + self.memory_per_byte * file_bytes, self.memory_bytes_max)


class Trials:
    """Opens models in processes of their own.

    loader: `module:function` that a trial's process imports: from a folder and a Pinned to a Scorer.
    """

    def __init__(
        self,
        loader: str,
        limits: TrialLimits | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loader = loader
        self._limits = limits or TrialLimits()
        self._monotonic = monotonic

    @contextlib.contextmanager
    def open(self, folder: Path, pinned: Pinned) -> Iterator[Scorer]:
        """An `OpenTrial`. Costs the start of a Python with the format's library: 0.3 to 1.3 s."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = _started(theirs)
            try:
                apart = _Apart(pinned, process, ours, self._limits, self._monotonic)
                apart.load(self._loader, folder)
                yield apart
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class _Apart:
    """A Scorer whose model is in another process."""

    def __init__(
        self,
        pinned: Pinned,
        process: subprocess.Popen[bytes],
        channel: socket.socket,
        limits: TrialLimits,
        monotonic: Callable[[], float],
    ) -> None:
        self.pinned = pinned
        self._process = process
        self._channel = channel
        self._limits = limits
        self._monotonic = monotonic

    def load(self, loader: str, folder: Path) -> None:
        """Raises: DrivetrainError, the loader's own too."""
        limits = self._limits
        size = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
        begin = Begin(
            loader=loader, folder=str(folder.absolute()), pinned=self.pinned, memory_bytes=limits.memory_for(size),
            load_s=math.ceil(limits.load_s), batch_s=math.ceil(limits.batch_s),
        )  # fmt: skip
        self._asked(encode(begin), limits.load_s, "load it")

    def score(self, rows: Sequence[Row]) -> list[Scored]:
        """One result per row. Raises: DrivetrainError where the process ends, takes too long or answers nonsense."""
        scored = self._asked(encode(list(rows)), self._limits.batch_s, f"score {len(rows):,} rows").scored
        if len(scored) != len(rows):
            raise DrivetrainError(f"The model gave {len(scored):,} results for {len(rows):,} rows.", do=_NOTHING)
        return scored

    def _asked(self, request: bytes, limit_s: float, what: str) -> Reply:
        deadline = self._monotonic() + limit_s
        if len(request) > FRAME_BYTES_MAX:
            raise DrivetrainError(
                f"The rows of one batch have {len(request):,} bytes; at most {FRAME_BYTES_MAX:,} are scored at once.",
                do="Give a sample of shorter texts.",
            )
        try:
            self._channel.settimeout(limit_s)
            self._channel.sendall(HEADER.pack(len(request)) + request)
            (size,) = HEADER.unpack(self._received(HEADER.size, deadline))
            if size > FRAME_BYTES_MAX:
                raise DrivetrainError(f"The process that tries the model answers with {size:,} bytes.", do=_NOTHING)
            reply = msgspec.msgpack.decode(self._received(size, deadline), type=Reply)
        except TimeoutError:
            raise DrivetrainError(f"The model takes more than {limit_s:g} s to {what}.", do=_NOTHING) from None
        except (EOFError, OSError):
            raise DrivetrainError(f"The model ended the process that was to {what}: {self._ending()}.", do=_NOTHING) \
                from None  # fmt: skip
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise DrivetrainError("The process that tries the model answers nonsense.", do=_NOTHING) from None
        if reply.what:
            raise DrivetrainError(reply.what, looked=reply.looked, do=reply.do)
        return reply

    def _received(self, size: int, deadline: float) -> bytes:
        content = bytearray()
        while len(content) < size:
            left_s = deadline - self._monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._channel.settimeout(left_s)
            chunk = self._channel.recv(min(size - len(content), 1024 * 1024))
            if not chunk:
                raise EOFError
            content += chunk
        return bytes(content)

    def _ending(self) -> str:
        """How the process ended, which closed its channel: in words."""
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return "it stopped answering"
        if code == -signal.SIGXCPU:
            return "it took too much time of the processor"
        if code < 0:
            return f"signal {signal.Signals(-code).name}"
        return f"exit code {code}"


_GRACE_S = 1.0
"""From a closed channel to the end of its process."""
_NOTHING = "Nothing of it is left. A model that is to answer calls scores a row in milliseconds, and in little memory."


def _started(channel: socket.socket) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", MODULE],
            stdin=channel.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
            env=_environment(os.environ), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise DrivetrainError(
            f"The process that tries a model cannot be started: {error.strerror or error}.", looked=[sys.executable]
        ) from None


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What a trial knows: where this process finds its modules, and no more."""
    places = [one for one in sys.path if os.path.isabs(one) and os.pathsep not in one]
    return {
        **{name: ours[name] for name in KEPT if name in ours}, **THREADS, "PYTHONPATH": os.pathsep.join(places),
    }  # fmt: skip
