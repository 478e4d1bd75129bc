"""What the counter store says of a project's budgets, beside what the ledger says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from drivetrain.adapters.sqlite_counters import SqliteCounters
from drivetrain.core.calls import Call
from drivetrain.embedded.limiting import limits_folder
from drivetrain.ports.counters import AccountState


def limit(name: str, scope: str, **keys: object) -> str:
    """`[limits.NAME]`; a budget per month where nothing else is said."""
    if "usd" in keys:
        keys.setdefault("per", "month")
    lines = [f'scope = "{scope}"', *(f"{key} = {_toml(value)}" for key, value in keys.items())]
    return f"[limits.{name}]\n" + "\n".join(lines) + "\n\n"


def accounts(data_folder: Path) -> dict[str, AccountState]:
    """Every account by `limit/value`, its period left out: a test lives in one."""
    store = SqliteCounters(limits_folder(data_folder))
    try:
        listed = store.accounts("", "", 100_000)
    finally:
        store.close()
    return {one.name.rpartition("@")[0]: one.state for one in listed.first}


def account(data_folder: Path, name: str) -> AccountState:
    """One of them; all zero where nobody has used it."""
    return accounts(data_folder).get(name, AccountState(0, 0, 0))


def settled(data_folder: Path) -> dict[str, int]:
    """What was settled in each account; accounts without any left out."""
    return {name: state.settled for name, state in accounts(data_folder).items() if state.settled}


def held(data_folder: Path) -> dict[str, int]:
    """What is held in each account; accounts without any left out."""
    return {name: state.held for name, state in accounts(data_folder).items() if state.held}


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
