"""What machines that are paid by the hour cost: the busy time that Calls are charged, and the idle rest.

Owns the part of `drivetrain cost` below its table. Prices are those that drivetrain.toml names now; what was charged
is the ledger's. One machine per model name is assumed: two that share a name look like one with more `parallel`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.cli.places import plain
from drivetrain.cli.tables import Column, print_table
from drivetrain.core.money import MachinePrice, usd
from drivetrain.core.times import iso
from drivetrain.lake.costs import LedgerQueries
from drivetrain.lake.lake import Lake
from drivetrain.project.document import environment_name, overlay, parse
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.problems import Problems
from drivetrain.project.settings import read
from drivetrain.providers.pricing import price_book

NS_PER_US = 1_000
US_PER_S = 1_000_000


class MachineCost(msgspec.Struct, frozen=True, kw_only=True):
    """One machine over one span: `charged + idle = total`."""

    model: str
    price: MachinePrice
    since_ns: int
    until_ns: int
    attempts: int
    charged_nano_usd: int
    """Of every Call opened in the span, whatever the table above it leaves out."""

    @property
    def span_us(self) -> int:
        """How long the machine was there."""
        return max(0, self.until_ns - self.since_ns) // NS_PER_US

    @property
    def total_nano_usd(self) -> int:
        """What the machine cost for the span, busy or not."""
        return self.price.hours_nano_usd(self.span_us)

    @property
    def idle_nano_usd(self) -> int:
        """What no Call is charged. Negative where more attempts than `parallel` were served at a time."""
        return self.total_nano_usd - self.charged_nano_usd


def machine_prices(root: Path) -> dict[str, MachinePrice]:
    """Models of the project in `root` that are paid by the hour; mistakes elsewhere in it do not matter."""
    try:
        parsed = parse((root / SETTINGS_FILE).read_bytes(), Problems())
    except OSError:
        return {}
    if parsed is None:
        return {}
    models = read(overlay(parsed, environment_name(parsed, None, os.environ), Problems()), root, Problems()).models
    priced = {name: price_book(name, "", facts) for name, facts in models.items() if facts.machine_nano_per_hour}
    prices = {name: book.prices[0][1] for name, book in priced.items()}
    return {name: price for name, price in prices.items() if isinstance(price, MachinePrice)}


def machine_costs(
    lake: Lake,
    prices: Mapping[str, MachinePrice],
    *,
    since_ns: int | None,
    until_ns: int | None,
    now_ns: int,
) -> tuple[MachineCost, ...]:
    """What each machine cost from `since_ns` to `until_ns`; hours to come cost nothing yet.

    None: from the first attempt on it; to its last, or to now where `since_ns` is given. A machine is left out where
    neither a span nor an attempt says that it was there. Reads every Attempt once where `since_ns` is None.
    """
    if not prices:
        return ()
    table = LedgerQueries(lake).cost(
        ["model"], since_ns=since_ns or 0, until_ns=until_ns, where={"model": list(prices)}
    )
    used = {row.keys[0]: row for row in table.rows}
    seen = _seen(lake, prices, until_ns) if since_ns is None else {}
    costs = []
    for model, price in prices.items():
        first_ns, last_ns = seen.get(model, (None, now_ns))
        start_ns = first_ns if since_ns is None else since_ns
        if start_ns is None:
            continue
        row = used.get(model)
        costs.append(
            MachineCost(
                model=model,
                price=price,
                since_ns=start_ns,
                until_ns=last_ns if until_ns is None else min(until_ns, now_ns),
                attempts=row.attempts if row is not None else 0,
                charged_nano_usd=row.cost_nano_usd if row is not None else 0,
            )
        )
    return tuple(costs)


def machines_json(machines: Sequence[MachineCost]) -> list[dict[str, Any]]:
    """As `--json` has them: money as integer nano-USD and as decimal strings."""
    return [
        {
            "model": one.model,
            "usd_per_hour": usd(one.price.nano_per_hour),
            "parallel": one.price.parallel,
            "since": iso(one.since_ns),
            "until": iso(one.until_ns),
            "span_us": one.span_us,
            "attempts": one.attempts,
            "charged_nano_usd": one.charged_nano_usd,
            "idle_nano_usd": one.idle_nano_usd,
            "total_nano_usd": one.total_nano_usd,
            "charged_usd": usd(one.charged_nano_usd),
            "idle_usd": usd(one.idle_nano_usd),
            "total_usd": usd(one.total_nano_usd),
        }
        for one in machines
    ]


def print_machines(machines: Sequence[MachineCost]) -> None:
    """A second table, in which each row's charged and idle add up to its total."""
    print("\nMachines, for all Calls in the span, one machine per model name; idle time is in no total above:")
    columns = [Column("machine"), Column("from"), Column("to", drop=2)]
    columns += [Column(name, right=True, drop=drop) for name, drop in NUMBERS.items()]
    rows = [
        [
            plain(one.model),
            iso(one.since_ns)[:19] + "Z",
            iso(one.until_ns)[:19] + "Z",
            _hours(one.span_us),
            usd(one.price.nano_per_hour),
            str(one.price.parallel),
            f"{one.attempts:,}",
            usd(one.charged_nano_usd),
            usd(one.idle_nano_usd),
            usd(one.total_nano_usd),
        ]
        for one in machines
    ]
    print_table(columns, rows)


NUMBERS = {"hours": 0, "USD/hour": 5, "parallel": 4, "attempts": 3, "charged": 0, "idle": 0, "USD": 0}
"""Columns of the machines' table, and how soon a narrow terminal goes without each."""


def machine_notices(machines: Sequence[MachineCost]) -> list[str]:
    """What to say where the numbers contradict the declared machine."""
    return [
        f"{plain(one.model)} is charged more than its hours cost: more than {one.price.parallel} attempts ran at a "
        "time, its hour had another price then, or several machines share the name. Correct `usd_per_hour` or "
        "`parallel`."
        for one in machines
        if one.idle_nano_usd < -one.attempts  # each attempt rounds up by less than one nano-USD
    ]


def _seen(lake: Lake, models: Mapping[str, MachinePrice], until_ns: int | None) -> dict[str, tuple[int, int]]:
    """Model -> when its first attempt was sent and its last one ended."""
    found = lake.query(SEEN_SQL, {"models": list(models), "until_ns": FOR_EVER_NS if until_ns is None else until_ns})
    return {model: (first_ns, last_ns) for model, first_ns, last_ns in found.rows}


SEEN_SQL = """
SELECT one.model, min(opened_ns + one.sent_us * 1000), max(opened_ns + one.ended_us * 1000)
FROM (SELECT opened_ns, unnest(attempts) AS one FROM calls WHERE opened_ns < $until_ns)
WHERE list_contains($models, one.model) AND NOT one.cached
GROUP BY one.model
"""
FOR_EVER_NS = 2**63 - 1


def _hours(span_us: int) -> str:
    return f"{span_us / US_PER_S / 3_600:,.2f}"
