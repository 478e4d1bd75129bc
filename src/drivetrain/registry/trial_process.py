"""The process in which a model is tried: it limits itself, loads, scores batch after batch, and ends with its parent.

Started by `trials` as a program, with its channel as standard input. A frame is a length and msgpack: in come a Begin
and then lists of rows, out goes a Reply to each.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned, Scored
from drivetrain.ports.inference import Scorer

Made = TypeVar("Made")
HEADER = struct.Struct(">I")
FRAME_BYTES_MAX = 1024**3
"""Of a batch: a thousand rows of ten thousand columns are 90 MB, a thousand longest texts 80 MB."""
CPU_SLACK_S = 2
"""Beyond the parent's patience: the processor's limit ends only those whose parent is gone."""
ALLOCATION = ("Failed to allocate memory", "Available memory of", "bad_alloc", "bad allocation")
"""What libraries say of memory that they did not get; a scorer makes a row's fault of it."""


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be tried, within which limits."""

    loader: str
    """`module:function`."""
    folder: str
    pinned: Pinned
    memory_bytes: int
    load_s: int
    batch_s: int


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Results, or an error."""

    scored: list[Scored] = []
    what: str = ""
    """Of an error; empty: none."""
    looked: list[str] = []
    do: str = ""


def encode(value: object) -> bytes:
    """As msgpack; a number of numpy's is Python's."""
    return msgspec.msgpack.encode(value, enc_hook=_plain)


def main() -> None:
    """Answers until the channel ends."""
    channel = socket.socket(fileno=os.dup(0))
    begin = msgspec.msgpack.decode(_read(channel), type=Begin)
    scorer = _answered(channel, lambda: _loaded(begin))
    while scorer is not None:
        rows = msgspec.msgpack.decode(_read(channel), type=list[Any])
        _limit_cpu(begin.batch_s)
        _answered(channel, lambda rows=rows: _scored(scorer, rows))  # type: ignore[misc]


def _loaded(begin: Begin) -> Scorer:
    _limit(begin)
    module, _, name = begin.loader.partition(":")
    load: Callable[[Path, Pinned], Scorer] = getattr(importlib.import_module(module), name)
    return load(Path(begin.folder), begin.pinned)


def _scored(scorer: Scorer, rows: list[Any]) -> list[Scored]:
    found = scorer.score(rows)
    if any(said in one.fault for one in found if one.fault for said in ALLOCATION):
        raise MemoryError
    return found


def _limit(begin: Begin) -> None:
    """From here on: so much memory, no core dump, no file written, and the first to go where memory is short."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    limits = {resource.RLIMIT_AS: begin.memory_bytes, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for what, wanted in limits.items():
        hard = resource.getrlimit(what)[1]
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # a system that does not know it
            resource.setrlimit(what, (most, most))
    _limit_cpu(begin.load_s)


def _limit_cpu(seconds: int) -> None:
    """So much time of the processor from now on."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    most = int(time.process_time()) + seconds + CPU_SLACK_S
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _answered(channel: socket.socket, work: Callable[[], Made]) -> Made | None:
    """What the work gave; None where it failed, and the parent was told."""
    try:
        made = work()
        reply = Reply(scored=made if isinstance(made, list) else [])
    except DrivetrainError as error:
        made, reply = None, Reply(what=error.what, looked=[*error.looked], do=error.do)
    except MemoryError:
        what = "The model needs more memory than it may take, here or where it would serve."
        made, reply = None, Reply(what=what, do="Nothing of it is left.")
    except Exception as error:  # noqa: BLE001 - the boundary of this process: the parent refuses the model
        said = str(error).splitlines()[0][:300] if str(error) else ""
        made, reply = None, Reply(what=f"The model cannot be tried: {type(error).__name__}: {said}")
    content = encode(reply)
    channel.sendall(HEADER.pack(len(content)) + content)
    return made


def _read(channel: socket.socket) -> bytes:
    """One frame; the process ends with its channel."""
    return _exactly(channel, HEADER.unpack(_exactly(channel, HEADER.size))[0])


def _exactly(channel: socket.socket, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        chunk = channel.recv(min(size - len(content), 1024 * 1024))
        if not chunk:
            raise SystemExit(0)
        content += chunk
    return bytes(content)


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no value of a row")


if __name__ == "__main__":
    main()
