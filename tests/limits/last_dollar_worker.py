"""One process that spends from a shared budget as fast as it can; `test_last_dollar` starts several.

Its ledger is a file of frames, written before each attempt is sent, as the journal does it.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.core.calls import Attribution, ClosedV1, ReservedV1
from drivetrain.core.limits import Limit, Refusal
from drivetrain.limits.leasing import Limits
from drivetrain.limits.slices import Hold

CAP, WORST = 6_000, 7
LIMITS = [
    Limit(name="all", kind="budget", dimension="project", value="", amount=CAP, per="month"),
    Limit(name="team", kind="budget", dimension="team", amount=CAP * 2, per="day", zone="Asia/Tokyo"),
    Limit(name="busy", kind="concurrency", dimension="project", value="", unit="calls", amount=9),
]
WHO = Attribution(team="red")
_HEAD = struct.Struct("<I")
_DECODER = msgspec.msgpack.Decoder(ReservedV1 | ClosedV1)


def write(fd: int, record: Any) -> None:
    body = msgspec.msgpack.encode(record)
    os.write(fd, _HEAD.pack(len(body)) + body)


def read(path: Path) -> Iterator[Any]:
    data, at = path.read_bytes(), 0
    while at + 4 <= len(data) and at + 4 + _HEAD.unpack_from(data, at)[0] <= len(data):
        (size,) = _HEAD.unpack_from(data, at)
        yield _DECODER.decode(data[at + 4 : at + 4 + size])
        at += 4 + size


async def main(folder: Path, name: str) -> None:
    fd = os.open(folder / f"{name}.frames", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    loop = asyncio.get_running_loop()
    limits = Limits(
        LIMITS,
        SqliteCounters(folder / "counters"),
        worker=name,
        loop=loop,
        read_ledger=lambda writer, _: read(folder / f"{writer}.frames"),
        recall_ms=3_000,
        wait_ms=20_000,
    )
    (folder / f"{name}.ready").touch()
    while not (folder / "go").exists():
        await asyncio.sleep(0.002)
    await asyncio.gather(*(spend(limits, fd, f"{name}-{n}", folder / "stop") for n in range(4)))
    await limits.close()


async def spend(limits: Limits, fd: int, name: str, stop: Path) -> None:
    number = 0
    while not stop.exists():
        number += 1
        call_id = f"{name}-{number}"
        hold = await _when(lambda then: limits.admit(WHO, "w", time.time_ns(), then))
        if isinstance(hold, Refusal):
            await asyncio.sleep(0.001)
            continue
        refusal = await _when(lambda then, hold=hold: limits.reserve(hold, WORST, 0, then))
        if refusal is None:
            write(fd, hold.frame(call_id))
            await asyncio.sleep(random.random() * 0.002)
            limits.settle(hold, random.randint(0, WORST))
            write(fd, ClosedV1(call_id, 0, "answered", 200, "v", hold.charged))
        else:
            assert refusal.code == "budget_exceeded", refusal
            assert refusal.left < WORST, refusal
            await asyncio.sleep(0.005)
        limits.close_hold(hold)


async def _when(ask: Any) -> Any:
    heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    taken = ask(heard.set_result)
    return taken if taken is None or isinstance(taken, Hold | Refusal) else await heard


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
