"""The burn-down of one budget account: what the ledger says was spent per day or hour, against the cap."""

from __future__ import annotations

import sys
from bisect import bisect_right
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgspec
import typer

from drivetrain.cli.budget_words import moment_text, units, window_text
from drivetrain.cli.places import plain
from drivetrain.core.limits import Limit
from drivetrain.core.money import NANO_PER_USD, usd
from drivetrain.core.times import NS_PER_S, iso, parse_iso

if TYPE_CHECKING:
    from drivetrain.lake.costs import CostRow
    from drivetrain.lake.lake import Lake
    from drivetrain.limits.accounts import Account
    from drivetrain.limits.standing import AccountStanding

HOUR_NS = 3_600 * NS_PER_S
DAY_NS = 24 * HOUR_NS
BY_HOUR_NS = 3 * DAY_NS
"""A shorter period is told by the hour; a day of 25 hours is one."""
PACED_BARS_MIN = 3
"""Days or hours in which something was spent, before a straight line through them means anything."""
BARS_SHOWN = 40
"""The latest; --json has all."""
BAR_CELLS = 30
WARNING_PERCENT = 80


class Bar(msgspec.Struct, frozen=True):
    """One day or hour."""

    starts_ns: int
    cost_nano_usd: int
    calls: int
    total_nano_usd: int
    """Spent since the period began, this one included."""


class Burn(msgspec.Struct, frozen=True, kw_only=True):
    """One account's present period."""

    account: Account
    standing: AccountStanding
    """As the counter store has it: it counts since the budget was declared, and reports some 0.5 s late."""
    by: str
    """`day` or `hour`."""
    bars: tuple[Bar, ...]
    """From the period's begin to now."""
    spent: int
    """nano-USD of the period's Calls in the ledger."""
    now_ns: int
    paced_since_ns: int = 0
    """From when the pace is measured: the first day or hour with a cost; 0 where there is too little for a forecast."""
    used_up_ns: int = 0
    """When the cap is reached at that pace; 0 where it is not, in this period."""
    at_reset: int = 0
    """nano-USD spent by the reset at that pace."""
    problems: tuple[str, ...] = ()


def burned(account: Account, lake: Lake, standing: AccountStanding, now_ns: int) -> Burn:
    """The burn-down of `account`, whose period is the present one. Raises: DrivetrainError, NewerRecord."""
    from drivetrain.lake.costs import LedgerQueries

    limit = account.limit
    where, by, tagged = _filter(limit, account.value)
    table = LedgerQueries(lake).cost(("hour", *by), since_ns=account.starts_ns, until_ns=account.ends_ns, where=where)
    rows = [row for row in table.rows if not tagged or tagged in row.keys[1].split(", ")]
    by_hour = account.ends_ns - account.starts_ns <= BY_HOUR_NS
    starts = _starts(account, by_hour, now_ns)
    bars = _bars(starts, rows)
    spent = sum(row.cost_nano_usd for row in rows)
    made = Burn(
        account=account, standing=standing, by="hour" if by_hour else "day", bars=bars, spent=spent, now_ns=now_ns,
        problems=tuple(str(one) for one in table.problems if one.kind != "torn"),
    )  # fmt: skip
    return _forecast(made)


def burn_json(burn: Burn) -> dict[str, Any]:
    """As JSON has it."""
    account, limit = burn.account, burn.account.limit
    return {
        "name": limit.name,
        "account": account.terms.account,
        "begins": iso(account.starts_ns),
        "resets": iso(account.ends_ns),
        "zone": limit.zone,
        **units(limit, "cap", account.terms.cap),
        **units(limit, "ledger", burn.spent),
        **units(limit, "settled", burn.standing.settled),
        **units(limit, "held", burn.standing.held),
        "by": burn.by,
        "bars": [
            {
                "from": iso(bar.starts_ns), "calls": bar.calls, **units(limit, "cost", bar.cost_nano_usd),
                **units(limit, "total", bar.total_nano_usd),
            }
            for bar in burn.bars
        ],
        "forecast": {
            "since": iso(burn.paced_since_ns),
            "used_up": iso(burn.used_up_ns) if burn.used_up_ns else None,
            **units(limit, "at_reset", burn.at_reset),
        } if burn.paced_since_ns else None,
    }  # fmt: skip


def print_burn(burn: Burn) -> None:
    """Draws it, in 80 columns; where nobody looks at a terminal, in ASCII."""
    account, limit, cap = burn.account, burn.account.limit, burn.account.terms.cap
    typer.echo(plain(f"{limit.name} of {account.whose}, per {window_text(limit)}"))
    typer.echo(f"{moment_text(account.starts_ns, limit.zone)} to {moment_text(account.ends_ns, limit.zone)}")
    share = f" ({burn.spent * 100 // cap}%)" if cap else ""
    typer.echo(f"spent {usd(burn.spent)} USD of {usd(cap)} USD{share}; {usd(burn.standing.held)} USD is held\n")
    shown = burn.bars[-BARS_SHOWN:]
    if len(shown) < len(burn.bars):
        typer.echo(f"({len(burn.bars) - len(shown)} {burn.by}s before)")
    zone = ZoneInfo(limit.zone)
    lines = [_line(bar, burn, zone) for bar in shown]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        console = Console()
        for text, style in lines:
            console.print(Text(text, style=style), no_wrap=True, crop=True)
    else:
        typer.echo("\n".join(text for text, _ in lines))
    typer.echo(f"\n{_outlook(burn)}")


def _filter(limit: Limit, value: str) -> tuple[dict[str, str], tuple[str, ...], str]:
    """The ledger's filter; and of a tag the dimension to group by and the value that a Call's tags must hold.

    A Call may have a tag twice, and then counts for both of its values, which a filter cannot say.
    """
    if limit.dimension == "project":
        return {}, (), ""
    if limit.dimension != "tag":
        return {limit.dimension: value}, (), ""
    name, _, wanted = (limit.tag, "", value) if limit.tag else value.partition("=")
    return {}, (f"tag:{name}",), wanted or "true"


def _starts(account: Account, by_hour: bool, now_ns: int) -> list[int]:
    """When each bar up to now begins; the first with the period."""
    from drivetrain.limits.periods import period_at

    until_ns = min(now_ns + 1, account.ends_ns)
    if by_hour:
        return list(range(account.starts_ns, until_ns, HOUR_NS)) or [account.starts_ns]
    starts = [account.starts_ns]
    while (ends_ns := period_at(starts[-1], per="day", zone=account.limit.zone).ends_ns) < until_ns:
        starts.append(ends_ns)
    return starts


def _bars(starts: list[int], rows: list[CostRow]) -> tuple[Bar, ...]:
    costs, calls = [0] * len(starts), [0] * len(starts)
    for row in rows:
        # The ledger's hours are UTC's; one that begins before the period belongs to its first bar.
        place = max(0, bisect_right(starts, parse_iso(row.keys[0] + ":00")) - 1)
        costs[place] += row.cost_nano_usd
        calls[place] += row.calls
    bars, total = [], 0
    for start, cost, count in zip(starts, costs, calls, strict=True):
        total += cost
        bars.append(Bar(start, cost, count, total))
    return tuple(bars)


def _forecast(burn: Burn) -> Burn:
    """With a straight line through what was spent since the first cost, where there is enough."""
    paid = [bar for bar in burn.bars if bar.cost_nano_usd]
    if len(paid) < PACED_BARS_MIN:
        return burn
    since_ns, ends_ns = paid[0].starts_ns, burn.account.ends_ns
    elapsed_ns = burn.now_ns - since_ns
    left = burn.account.terms.cap - burn.spent
    used_up_ns = burn.now_ns + left * elapsed_ns // burn.spent if left > 0 else 0
    return msgspec.structs.replace(
        burn,
        paced_since_ns=since_ns,
        used_up_ns=used_up_ns if used_up_ns < ends_ns else 0,
        at_reset=burn.spent + burn.spent * (ends_ns - burn.now_ns) // elapsed_ns,
    )


def _line(bar: Bar, burn: Burn, zone: ZoneInfo) -> tuple[str, str]:
    """One line, and its style."""
    earlier, today, rest = ("░", "█", "·") if sys.stdout.isatty() else ("-", "#", ".")
    cap = burn.account.terms.cap
    scale = max(cap, burn.spent, 1)
    before = -(-(bar.total_nano_usd - bar.cost_nano_usd) * BAR_CELLS // scale)
    until = -(-bar.total_nano_usd * BAR_CELLS // scale)
    cells = earlier * before + today * (until - before) + rest * (BAR_CELLS - until)
    if burn.spent > cap:
        end = cap * BAR_CELLS // scale
        cells = f"{cells[:end]}|{cells[end + 1 :]}"
    moment = datetime.fromtimestamp(bar.starts_ns // NS_PER_S, tz=UTC).astimezone(zone)
    label = f"{moment:%H:%M}" if burn.by == "hour" else f"{moment:%m-%d}"
    percent = bar.total_nano_usd * 100 // cap if cap else 100
    style = "red" if percent >= 100 else "yellow" if percent >= WARNING_PERCENT else "green"
    share = f"{percent}%" if cap else "-"
    return f"{label}  {cells} {_short(bar.cost_nano_usd):>13} {_short(bar.total_nano_usd):>13} {share:>5}", style


def _outlook(burn: Burn) -> str:
    limit, cap = burn.account.limit, burn.account.terms.cap
    if burn.spent >= cap:
        return f"It is used up; it resets on {moment_text(burn.account.ends_ns, limit.zone)}."
    if not burn.paced_since_ns:
        return f"Too little was spent for a forecast: it needs {PACED_BARS_MIN} {burn.by}s with a cost."
    since = moment_text(burn.paced_since_ns, limit.zone)
    if burn.used_up_ns:
        return f"At the pace since {since}\nit is used up on {moment_text(burn.used_up_ns, limit.zone)}."
    share = burn.at_reset * 100 // cap
    return f"At the pace since {since}\n{_short(burn.at_reset)} USD ({share}%) will be spent when it resets."


def _short(nano: int) -> str:
    """For the eye: cents where there are dollars, all digits where there are none. Sums are told in full above."""
    if abs(nano) < NANO_PER_USD:
        return usd(nano)
    cents = (nano + NANO_PER_USD // 200) // (NANO_PER_USD // 100)
    return f"{cents // 100:,}.{cents % 100:02d}"
