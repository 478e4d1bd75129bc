"""The limits of one process, kept in step with what the control log says of them.

Owns when the log is looked at and what happens where it cannot be. Knows nothing of how limits are enforced: whoever
enforces them gives `start` a callback. Made by the Runtime, so a gateway's worker and a Python program follow alike.

A thread of its own looks every `POLL_S`, for about 10 us, so that neither a slow disk nor a long log keeps the loop.
Where the log cannot be read, or has lost records, the amounts known last hold on, and standard error says so, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from drivetrain.core.errors import DrivetrainError, report_fault
from drivetrain.core.limits import Limit
from drivetrain.limits.changes import CHANGE_KINDS, Changed, amended, changes_of, fold
from drivetrain.ports.control import ControlRecord

POLL_S = 0.25
"""Between two looks: with the reading, a change holds in every worker well within a second."""

Use = Callable[[tuple[Limit, ...]], None]


class ControlFeed(Protocol):
    """What the watch must know of the log, such as `SqliteControlFeed`. Raises: DrivetrainError."""

    def changed(self) -> bool:
        """Whether anything was added since this was asked before; True at first."""

    def read(self, kinds: Sequence[str]) -> list[ControlRecord]:
        """Every record of these kinds, in order."""

    def close(self) -> None:
        """Let it go."""


class LimitWatch:
    """One process's limits: as declared, amended by the log.

    Raises (constructor): DrivetrainError where the log cannot be read at first.
    """

    def __init__(self, declared: Mapping[str, Limit], feed: ControlFeed) -> None:
        self.problem = ""
        """Why the log cannot be followed at present; empty while it can."""
        self._feed = feed
        self._declared = declared
        feed.changed()  # before the first reading, so that no change falls between
        self._known = 0
        self._changed = self._read()
        self.limits = self._amended()
        """As they are to be enforced now."""
        self._use: Use = _nobody
        self._stop = threading.Event()

    def start(self, use: Use, loop: asyncio.AbstractEventLoop) -> None:
        """Tell `use`, on the loop, whenever `limits` becomes another; until `close`."""
        self._use = use
        # Nobody waits for this thread at shutdown: a disk may hang for ever.
        threading.Thread(target=self._watch, args=(loop,), name="limit changes", daemon=True).start()

    def declare(self, declared: Mapping[str, Limit]) -> None:
        """The project was reloaded: these are declared now."""
        self._declared = declared
        self._renew()

    def close(self) -> None:
        """Tell nobody any more."""
        self._stop.set()
        self._use = _nobody

    def _renew(self) -> None:
        limits = self._amended()
        if limits != self.limits:
            self.limits = limits
            self._use(limits)

    def _amended(self) -> tuple[Limit, ...]:
        return tuple(amended(self._declared, self._changed).values())

    # On the loop.

    def _hear(self, changed: dict[str, Changed]) -> None:
        self._changed = changed
        if self.problem:
            self.problem = ""
            print("drivetrain: changes of budgets can be read again", file=sys.stderr)
        self._renew()

    def _fail(self, why: str) -> None:
        if not self.problem:
            self.problem = why
            print(f"drivetrain: changes of budgets cannot be read, those known hold on. {why}", file=sys.stderr)

    # In the thread.

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        failed = False
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everybody who would listen
            while not self._stop.wait(POLL_S):
                try:
                    if not (failed or self._feed.changed()):
                        continue
                    changed, failed = self._read(), False
                except DrivetrainError as error:
                    failed = True
                    loop.call_soon_threadsafe(self._fail, str(error))
                except Exception as fault:  # noqa: BLE001  a fault of ours must not end the watching
                    failed = True
                    report_fault("changes of budgets", fault)
                    loop.call_soon_threadsafe(self._fail, "Drivetrain failed at reading them.")
                else:
                    loop.call_soon_threadsafe(self._hear, changed)
        self._feed.close()

    def _read(self) -> dict[str, Changed]:
        records = self._feed.read(CHANGE_KINDS)
        if len(records) < self._known:
            raise DrivetrainError(
                f"The control log had {self._known} changes of budgets and has {len(records)}.",
                do="Run `drivetrain audit verify`. Where you restored an older log, start the gateway anew.",
            )
        changed = fold(changes_of(records))
        self._known = len(records)
        return changed


def _nobody(_: tuple[Limit, ...]) -> None:
    """Nobody listens."""
