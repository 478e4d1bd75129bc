"""Loaders of models that misbehave, for the processes in which models are tried."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned, Row, Scored


class Doing:
    """A scorer that does what the only text of a row says."""

    def __init__(self, folder: Path, pinned: Pinned) -> None:
        self.pinned = pinned
        self._folder = folder

    def score(self, rows: Sequence[Row]) -> list[Scored]:
        return [one for (text,) in rows for one in self._done(text)]

    def _done(self, text: str) -> list[Scored]:
        if text == "environment":
            return [Scored(label="\n".join(f"{name}={value}" for name, value in os.environ.items()))]
        if text == "where":
            return [Scored(label=os.getcwd(), value=float(os.getpid()))]
        if text == "print":
            print("a library prints", flush=True)
            os.write(2, b"and warns")
        elif text == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif text == "exit":
            sys.exit(4)
        elif text == "sleep":
            time.sleep(60)
        elif text == "spin":
            while True:
                pass
        elif text == "memory":
            return [Scored(value=float(len(bytearray(8 * 1024**3))))]
        elif text == "write":
            (self._folder / "evil").write_bytes(b"x")
        elif text == "twice":
            return [Scored(value=1.0)] * 2
        elif text == "raise":
            raise ZeroDivisionError("of its own")
        return [Scored(value=1.0)]


def doing(folder: Path, pinned: Pinned) -> Doing:
    return Doing(folder, pinned)


def refusing(folder: Path, pinned: Pinned) -> Doing:
    raise DrivetrainError(f"{pinned.name} is damaged.", looked=[str(folder)], do="Mend it.")


def hanging(folder: Path, pinned: Pinned) -> Doing:
    time.sleep(60)
    return Doing(folder, pinned)
