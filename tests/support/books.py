"""What the counter store says of a project's budgets, beside what the ledger says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.core.calls import Call
from drivetrain.embedded.limiting import limits_folder
from drivetrain.ports.counters import AccountState


def limit(name: str, scope: str, **keys: object) -> str:
    """`[limits.NAME]`; a budget is per month, in UTC."""
    if "usd" in keys:
        keys.setdefault("per", "month")
    lines = [f'scope = "{scope}"', *(f"{key} = {_toml(value)}" for key, value in keys.items())]
    return f"[limits.{name}]\n" + "\n".join(lines) + "\n\n"


def accounts(data_folder: Path, *limits: str) -> dict[str, AccountState]:
    """The accounts of these budgets in this month, by `limit/value`."""
    period = f"@{datetime.now(UTC):%Y-%m}"
    store = SqliteCounters(limits_folder(data_folder))
    try:
        listed = [one for name in limits for one in store.accounts(f"{name}/", period, 100_000).first]
    finally:
        store.close()
    return {one.name.removesuffix(period): one.state for one in listed}


def settled(data_folder: Path, *limits: str) -> dict[str, int]:
    """What was settled in each of their accounts; those without any left out."""
    return {name: state.settled for name, state in accounts(data_folder, *limits).items() if state.settled}


def spent(calls: Iterable[Call], **scopes: str) -> dict[str, int]:
    """What budgets must have settled by these Calls: limit's name -> the attribute it counts by.

    An attribute: `project`, `workflow`, or one of the attribution, such as `team`.
    """
    found: Counter[str] = Counter()
    for call in calls:
        for name, by in scopes.items():
            value = "" if by == "project" else call.workflow if by == "workflow" else getattr(call.attribution, by)
            found[f"{name}/{value}"] += call.cost_nano_usd
    return {name: nano for name, nano in found.items() if nano}


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
