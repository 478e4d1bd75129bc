"""What a worker that died had spent: the ledger's frames in, a charge per account out. Pure.

The ledger is the truth. A reservation is written before its attempt is sent, so what has no frame was never sent and is
released. A Call that was closed costs what its closed frame says. One that was not is charged what its earlier
attempts cost and the reservation of its last one, and is named, because nobody saw its end.

The dead worker's last request says which reservations its totals contain: all up to `mark` but those in `open`. Only
the others are resolved here, so nothing counts twice. Called by whoever buries the
dead: workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from drivetrain.core.calls import ClosedV1, OpenedV1, ReservedV1
from drivetrain.ports.counters import CounterStore, DeadWorker

ReadLedger = Callable[[str, str], Iterable[object]]
"""(writer, position) -> every record of that writer from the segment named `position` on, in order."""


class Interrupted(msgspec.Struct, frozen=True):
    """A Call that was sent and whose end nobody saw: settled at its reservation."""

    call_id: str
    cost_nano_usd: int


class Resolution(msgspec.Struct, frozen=True):
    """What is to be booked for a dead worker."""

    charges: dict[str, int]
    """Account -> nano-USD."""
    interrupted: tuple[Interrupted, ...]
    closed: int
    """Calls that had ended and were not in the totals yet."""


def resolve(records: Iterable[object], dead: DeadWorker) -> Resolution:
    """The charges of every reservation that is not in the worker's totals.

    records: of the dead worker, in order; memory grows with the Calls that are not in its totals only.
    """
    open_numbers = frozenset(dead.open)
    pending: dict[str, ReservedV1] = {}
    charges: dict[str, int] = {}
    closed = 0
    for record in records:
        if isinstance(record, OpenedV1):
            record = record.reservation  # noqa: PLW2901  of the first attempt
        if isinstance(record, ReservedV1):
            if record.number > dead.mark or record.number in open_numbers:
                pending[record.call_id] = record
        elif isinstance(record, ClosedV1):
            reserved = pending.pop(record.call_id, None)
            if reserved is not None:
                closed += 1
                _charge(charges, reserved, record.cost_nano_usd)
    interrupted = []
    for call_id, reserved in pending.items():
        _charge(charges, reserved, reserved.open_cost_nano_usd)
        interrupted.append(Interrupted(call_id, reserved.open_cost_nano_usd))
    return Resolution(charges, tuple(interrupted), closed)


def bury_dead(store: CounterStore, read_ledger: ReadLedger) -> list[Resolution]:
    """Resolve every dead worker; those that somebody else resolved meanwhile are not in the list.

    Costs reading what the dead wrote since their oldest open Call. Raises: StoreUnavailable.
    """
    buried = []
    for dead in store.dead():
        resolution = resolve(read_ledger(dead.worker, dead.position), dead)
        if store.bury(dead, resolution.charges):
            buried.append(resolution)
    return buried


def _charge(charges: dict[str, int], reserved: ReservedV1, cost_nano_usd: int) -> None:
    for account in reserved.accounts:
        charges[account] = charges.get(account, 0) + cost_nano_usd
