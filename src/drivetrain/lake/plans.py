"""Plans: how far each roll into the lake reaches, so that it can be done again and a reader knows what lies beyond.

Owns `data_folder/lake-plans`: the ledger's id, one file per roll, and the lock that one roller at a time holds. A plan
is written and synced before its roll changes any table, and never changes. What roll N adds to each table follows from
plans N-1 and N and from the segments alone. Called by the roller (writes), by the lake's readers and by retention.

A reader takes a plan first and looks at the segments afterwards. A plan is removed before the segments that only its
readers still need, so one whose plan is there when it has read has missed nothing; else it begins again (`PlanGone`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from drivetrain.core.codec import JSON
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports import locks
from drivetrain.ports.disk import HALF_WRITTEN, write_whole

APPLICATION = "drivetrain-ledger-"
"""Before a ledger's id: the name under which a table knows the last roll that it has."""


class PlanGone(DrivetrainError):
    """The plan that a reader holds was removed meanwhile; the table is to be read anew, at a newer version."""


class Carried(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A frame of a Call that still ran: read again by the next roll. In a block it is found by the Call's id."""

    offset: int
    call_id: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How far roll `number` reaches."""

    number: int
    """0: nothing has been rolled yet."""
    made_ns: int = 0
    ends: dict[str, int] = {}
    """Segment -> the offset that is reached. Every segment that was there is named, or it would be rolled again."""
    carried: dict[str, tuple[Carried, ...]] = {}
    """Segment -> frames below its offset, opened and reserved, of Calls that still ran."""
    gone: tuple[str, ...] = ()
    """Writers that had ended and are read to their end: what they left open is rolled as interrupted."""
    dropped: tuple[str, ...] = ()
    """Ids whose lone frames this roll met and left out, since the lake holds their Calls already."""


class Ledger(msgspec.Struct, frozen=True):
    """A data folder, as the lake's tables know it."""

    id: str
    """16 hex digits, made once."""

    @property
    def application(self) -> str:
        """The name of its transactions."""
        return APPLICATION + self.id


def plans_folder(data_folder: Path) -> Path:
    """Where plans are, below the data folder."""
    return data_folder / "lake-plans"


def ledger_of(data_folder: Path) -> Ledger | None:
    """The ledger's id, or None where nothing was ever rolled from this folder."""
    try:
        return Ledger((plans_folder(data_folder) / "ledger").read_text().strip())
    except FileNotFoundError:
        return None


def make_ledger(data_folder: Path) -> Ledger:
    """The ledger's id, made where there is none; call it while holding the lock. Raises: OSError, DrivetrainError."""
    known = ledger_of(data_folder)
    if known is not None:
        return known
    folder = plans_folder(data_folder)
    if any(numbers(data_folder)):
        raise DrivetrainError(
            "The records were rolled into a lake before, but the file with their ledger's id is gone.",
            looked=[str(folder / "ledger")],
            do="Restore it: the commits of the lake's table `calls` name it as `drivetrain.ledger`.",
        )
    write_plan(data_folder, Plan(number=0))
    ledger = Ledger(secrets.token_hex(8))
    write_whole(folder / "ledger", ledger.id.encode())
    return ledger


def numbers(data_folder: Path) -> list[int]:
    """The plans there are, oldest first."""
    try:
        names = os.listdir(plans_folder(data_folder))
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isdigit())


def read_plan(data_folder: Path, number: int) -> Plan:
    """One plan. Raises: PlanGone where it was removed, DrivetrainError where it cannot be read."""
    path = plans_folder(data_folder) / str(number)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError:
        raise PlanGone(
            f"The plan of roll {number} is not there any more.",
            looked=[str(path.parent)],
            do="Ask again: a newer version of the tables takes its place. Where that does not help, the lake at this "
            "address is an older copy than the records, and must be restored together with them.",
        ) from None
    except msgspec.MsgspecError as error:
        raise DrivetrainError(
            f"The plan of roll {number} cannot be read: {error}.",
            looked=[str(path)],
            do="Restore the folder `lake-plans` together with the lake.",
        ) from error


def newest(data_folder: Path) -> Plan | None:
    """The plan of the last roll, finished or not; None where nothing was ever rolled."""
    found = numbers(data_folder)
    return read_plan(data_folder, found[-1]) if found else None


def current(data_folder: Path, transactions: Mapping[str, int]) -> Plan | None:
    """The plan that a table's version stands at; None where nothing was ever rolled from this data folder.

    transactions: of that version, `TableFiles.transactions`. Raises: PlanGone.
    """
    ledger = ledger_of(data_folder)
    if ledger is None:
        return None
    return read_plan(data_folder, max(transactions.get(ledger.application, 0), 0))


def still_there(data_folder: Path, plan: Plan | None) -> bool:
    """Whether everything beyond `plan` was still in the segments just now."""
    number = 0 if plan is None else plan.number
    return (plans_folder(data_folder) / str(number)).exists() or not numbers(data_folder)


def write_plan(data_folder: Path, plan: Plan) -> None:
    """Put a plan on the disk, whole or not at all; call it while holding the lock. Raises: OSError."""
    folder = plans_folder(data_folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / str(plan.number), JSON.encode(plan))


def mark_finished(data_folder: Path, number: int, now_ns: int) -> None:
    """From now on readers can stand at this plan: its age counts from here."""
    os.utime(plans_folder(data_folder) / str(number), ns=(now_ns, now_ns))


def prune(data_folder: Path, *, finished: int, before_ns: int) -> Plan | None:
    """Remove the plans that nobody stands at any more; what the result says is wholly rolled, no reader needs.

    finished: the last roll that every table has. before_ns: whoever took a plan that was followed by a finished one
    before then has long read. Call it while holding the lock. None: all plans are still needed.
    """
    folder = plans_folder(data_folder)
    found = numbers(data_folder)
    base = 0
    for number in found:
        if number <= finished and (folder / str(number)).stat().st_mtime_ns <= before_ns:
            base = number
    for path in folder.glob(HALF_WRITTEN.format("*")):
        path.unlink(missing_ok=True)
    if base == 0:
        return None
    for number in found:
        if number < base:
            (folder / str(number)).unlink(missing_ok=True)
    return read_plan(data_folder, base)


@contextlib.contextmanager
def locked(data_folder: Path) -> Iterator[bool]:
    """Hold the folder's rolling lock; yields False where another process (or thread) holds it. Raises: OSError."""
    folder = plans_folder(data_folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locks.locked(folder / ".lock") as held:
        yield held
