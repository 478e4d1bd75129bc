"""Budgets changed while they run: records of the control log in, amended Limits out. Pure.

The control log is the truth. Three kinds of records change a limit, whose name is their subject:

- `budget.set`: the amount, from now on, for as long as the project declares the amount that it replaced. Whoever edits
  the declared amount later has the last word; nobody finds an old `set` in force under a new declaration.
- `budget.top_up`: more for one account, which is one value in one period. Other periods and values keep theirs.
- `budget.reset`: all of this is over; with an account, only what that one was topped up by.

Called by whoever enforces limits (`embedded/limit_watch.py`) and by `drivetrain budget`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.limits import Limit
from drivetrain.ports.control import ControlRecord

SET, TOP_UP, RESET = "budget.set", "budget.top_up", "budget.reset"
CHANGE_KINDS = (SET, TOP_UP, RESET)
RAISED_MAX = 1_000
"""Accounts of one limit that are topped up at a time; of more, those whose periods end first are forgotten."""


class SetBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a `budget.set` record says."""

    unit: str
    amount: int
    declared: int
    """The amount in the project that it replaces; it holds while that is declared."""
    reason: str = ""


class TopUpBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a `budget.top_up` record says."""

    account: str
    amount: int
    """nano-USD."""
    ends_ns: int
    """When the account's period ends."""
    reason: str = ""


class ResetBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a `budget.reset` record says."""

    account: str = ""
    """Empty: all of the limit."""
    reason: str = ""


class Change(msgspec.Struct, frozen=True):
    """One record that changed a limit."""

    record: ControlRecord
    body: SetBody | TopUpBody | ResetBody


class Changed(msgspec.Struct, frozen=True):
    """What holds of one limit's changes."""

    amount: SetBody | None = None
    raised: tuple[tuple[str, int], ...] = ()
    """(account, units), ascending."""


def changes_of(records: Iterable[ControlRecord], name: str | None = None) -> list[Change]:
    """The changes of limits among `records`, in order; of one limit where it is named.

    Raises: DrivetrainError for a record that cannot be read: to leave it out might let somebody spend.
    """
    bodies = {SET: SetBody, TOP_UP: TopUpBody, RESET: ResetBody}
    found = []
    for record in records:
        kind = bodies.get(record.kind)
        if kind is not None and name in (None, record.subject):
            try:
                found.append(Change(record, msgspec.json.decode(record.body, type=kind)))
            except msgspec.MsgspecError as error:
                raise DrivetrainError(
                    f"Record {record.seq} of the control log, `{record.kind}`, cannot be read: {error}.",
                    do="Run `drivetrain audit verify`; a record of a newer Drivetrain needs that one.",
                ) from error
    return found


def fold(changes: Iterable[Change]) -> dict[str, Changed]:
    """Limit's name -> what holds after all of them."""
    amounts: dict[str, SetBody] = {}
    raised: dict[str, dict[str, TopUpBody]] = {}
    for change in changes:
        name, body = change.record.subject, change.body
        if isinstance(body, SetBody):
            amounts[name] = body
        elif isinstance(body, TopUpBody):
            of_limit = raised.setdefault(name, {})
            before = of_limit.pop(body.account, None)
            amount = body.amount + (before.amount if before is not None else 0)
            of_limit[body.account] = msgspec.structs.replace(body, amount=amount)
            if len(of_limit) > RAISED_MAX:
                del of_limit[min(of_limit, key=lambda account: of_limit[account].ends_ns)]
        elif body.account:
            raised.get(name, {}).pop(body.account, None)
        else:
            amounts.pop(name, None)
            raised.pop(name, None)
    return {
        name: Changed(
            amounts.get(name),
            tuple(sorted((account, one.amount) for account, one in raised.get(name, {}).items())),
        )
        for name in amounts.keys() | raised.keys()
    }


def amended(declared: Mapping[str, Limit], changed: Mapping[str, Changed]) -> dict[str, Limit]:
    """The limits as they are to be enforced."""
    limits = dict(declared)
    for name, change in changed.items():
        limit = limits.get(name)
        if limit is None:
            continue
        amount = limit.amount
        if change.amount is not None and (change.amount.unit, change.amount.declared) == (limit.unit, amount):
            amount = change.amount.amount
        raised = change.raised if limit.kind == "budget" else ()
        if amount != limit.amount or raised:
            limits[name] = msgspec.structs.replace(limit, amount=amount, raised=raised)
    return limits
