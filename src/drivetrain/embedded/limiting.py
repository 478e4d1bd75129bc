"""A project's limits on this machine: the counter store, the ledger of workers that died, and what is announced."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.limits import Alert, Limit
from drivetrain.core.money import usd
from drivetrain.ledger.frames import records_of
from drivetrain.ledger.journal import FrameJournal
from drivetrain.limits.leasing import Limits
from drivetrain.limits.recovery import Resolution
from drivetrain.ports.counters import DeadWorker, StoreUnavailable

FOLDER = "limits"
"""Below the data folder."""


def limits_folder(data_folder: Path) -> Path:
    """Where the counters of a project are."""
    return data_folder / FOLDER


def make_limits(
    limits: Iterable[Limit], data_folder: Path, journal: FrameJournal, loop: asyncio.AbstractEventLoop
) -> Limits:
    """This process's limits. Raises: DrivetrainError where the counters cannot be opened."""
    folder = limits_folder(data_folder)

    try:
        return Limits(
            limits,
            SqliteCounters(folder),
            worker=journal.writer,
            loop=loop,
            position=lambda: journal.segment.name,
            read_ledger=partial(records_of, data_folder),
            on_alert=_announce,
            on_buried=_tell_buried,
        )
    except StoreUnavailable as error:
        raise DrivetrainError(
            f"The counters of budgets and limits cannot be opened: {error}.",
            looked=[str(folder)],
            do="Look at the disk and at who may write there; without them nothing may be spent.",
        ) from error


def _announce(alert: Alert) -> None:
    print(
        f"drivetrain: budget `{alert.limit}` ({alert.account}): {alert.share} % is spent, "
        f"{usd(alert.settled)} of {usd(alert.cap)} USD",
        file=sys.stderr,
    )


def _tell_buried(dead: DeadWorker, resolution: Resolution) -> None:
    if not resolution.interrupted:
        return
    cost = sum(one.cost_nano_usd for one in resolution.interrupted)
    print(
        f"drivetrain: worker {dead.worker} ended without a word: {len(resolution.interrupted)} calls were cut, and "
        f"are charged at their reservations, {usd(cost)} USD",
        file=sys.stderr,
    )
