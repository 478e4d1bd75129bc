"""How limits stand, as tables and as JSON. The numbers are `limits/standing.py`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from drivetrain.cli.budget_words import amount_text, moment_text, scope_text, units, window_text
from drivetrain.cli.places import plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.limits import Limit
from drivetrain.core.money import usd
from drivetrain.core.times import iso

if TYPE_CHECKING:
    from drivetrain.limits.changes import Change
    from drivetrain.limits.standing import AccountStanding, Standing

BUDGETS = (
    Column("budget"), Column("of", drop=1), Column("per", drop=3), Column("spent", right=True),
    Column("held", right=True, drop=4), Column("left", right=True), Column("cap", right=True),
    Column("used", right=True), Column("mode", drop=5), Column("resets", drop=2),
)  # fmt: skip
OTHERS = (
    Column("limit"), Column("of", drop=1), Column("cap", right=True), Column("held", right=True, drop=2),
    Column("left", right=True),
)  # fmt: skip


def print_standings(found: Sequence[Standing], declared: Mapping[str, Limit]) -> None:
    """A table of budgets, one of rates and concurrency, and what was changed."""
    budgets = [one for one in found if one.limit.kind == "budget"]
    others = [one for one in found if one.limit.kind != "budget"]
    if budgets:
        print_table(BUDGETS, [row for one in budgets for row in _budget_rows(one)])
    if others:
        if budgets:
            typer.echo("")
        print_table(OTHERS, [row for one in others for row in _other_rows(one)])
    for one in found:
        before = declared[one.limit.name]
        if one.limit.amount != before.amount:
            typer.echo(f"`{before.name}` was set to this; {amount_text(before, before.amount)} is declared.")


def standings_json(one: Standing, declared: Limit) -> dict[str, Any]:
    """One limit as JSON has it. Amounts are in `unit`; money as integer nano-USD and as a decimal text."""
    limit = one.limit
    return {
        "name": limit.name,
        "kind": limit.kind,
        "scope": scope_text(limit),
        "unit": limit.unit,
        "per": window_text(limit) or None,
        "zone": limit.zone if limit.kind == "budget" else None,
        "mode": limit.mode,
        **units(limit, "amount", limit.amount),
        **units(limit, "declared", declared.amount),
        "begins": iso(one.starts_ns) if one.ends_ns else None,
        "resets": iso(one.ends_ns) if one.ends_ns else None,
        "count": one.count,
        **units(limit, "settled", one.settled),
        **units(limit, "held", one.held),
        "accounts": [_account_json(limit, account) for account in one.accounts],
    }


def print_changes(changes: Sequence[Change], limit: Limit, *, left_out: int) -> None:
    """Who changed a limit, oldest first."""
    if not changes:
        return
    typer.echo("\nchanges" + (f" (and {left_out} before)" if left_out else ""))
    for change in changes:
        record, body = change.record, msgspec.structs.asdict(change.body)
        amount = f" {amount_text(limit, body['amount'])}" if "amount" in body else ""
        words = [record.kind.removeprefix("budget.").replace("_", "-") + amount, body.get("account", "")]
        reason = f": {body['reason']}" if body["reason"] else ""
        said = " ".join(word for word in words if word)
        typer.echo(plain(f"{record.seq:>6}  {iso(record.at_ns)[:19]}Z  {said}  by {record.actor or '-'}{reason}"))


def change_json(change: Change) -> dict[str, Any]:
    """One change as JSON has it."""
    record = change.record
    return {
        "seq": record.seq, "at": iso(record.at_ns), "kind": record.kind, "actor": record.actor,
        **msgspec.structs.asdict(change.body),
    }  # fmt: skip


def _account_json(limit: Limit, account: AccountStanding) -> dict[str, Any]:
    found: dict[str, Any] = {"account": account.account, "value": account.value}
    for name in ("cap", "settled", "held", "over", "left"):
        found |= units(limit, name, getattr(account, name))
    found["used_percent"] = account.share
    return found


def _budget_rows(one: Standing) -> list[list[str]]:
    limit = one.limit
    resets = moment_text(one.ends_ns, limit.zone)
    rows = []
    for account in one.accounts:
        share = f"{account.share}%" if account.share is not None else "-"
        rows.append([
            limit.name, _whose(limit, account.value), window_text(limit), usd(account.settled), usd(account.held),
            usd(account.left), usd(account.cap), share, limit.mode, resets,
        ])  # fmt: skip
    if one.count > len(one.accounts):
        settled = one.settled - sum(account.settled for account in one.accounts)
        held = one.held - sum(account.held for account in one.accounts)
        more = f"({one.count - len(one.accounts)} more)"
        rows.append([limit.name, more, window_text(limit), usd(settled), usd(held), "", "", "", limit.mode, resets])
    if not rows:
        cap = usd(limit.amount)
        rows.append([
            limit.name, scope_text(limit), window_text(limit), usd(0), usd(0), cap, cap, "0%", limit.mode, resets,
        ])  # fmt: skip
    return rows


def _other_rows(one: Standing) -> list[list[str]]:
    limit = one.limit
    window = window_text(limit)
    cap = f"{limit.amount:,} {limit.unit}" + (f" per {window}" if window else " at a time")
    rows = [
        [limit.name, _whose(limit, account.value), cap, f"{account.held:,}", f"{account.left:,}"]
        for account in one.accounts
    ]
    if one.count > len(one.accounts):
        held = one.held - sum(account.held for account in one.accounts)
        rows.append([limit.name, f"({one.count - len(one.accounts)} more)", cap, f"{held:,}", ""])
    return rows or [[limit.name, scope_text(limit), cap, "0", f"{limit.cap:,}"]]


def _whose(limit: Limit, value: str) -> str:
    if limit.value is not None or limit.dimension == "project":
        return plain(scope_text(limit))
    return plain(f"{limit.tag}={value}" if limit.tag else value) or f"(no {limit.dimension})"
