"""Limits as people write them -> Limits: the tables `[limits.NAME]` of drivetrain.toml, and a Workflow's Budget. Pure.

Every mistake is kept with its line. Called where a project is loaded; knows nothing of how limits are enforced.

    [limits.support-month]
    scope = "team:support"          # or "each team", "project", "tag:env=prod", "each tag:customer"
    usd = "500"                     # or requests = 600, tokens = 100_000, concurrent = 20
    per = "month"                   # day, week, month, or a length: "6h", "90s"
    zone = "Europe/Berlin"
    mode = "hard"                   # soft, downgrade
    alerts = [50, 80, 100]
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from drivetrain.core.declarations import Budget, Workflow
from drivetrain.core.errors import did_you_mean
from drivetrain.core.limits import DIMENSIONS, MODES, Limit
from drivetrain.core.money import nano_usd
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.names import NAME
from drivetrain.project.problems import Problems, shown
from drivetrain.project.tables import Table, amount_mistake
from drivetrain.project.toml_lines import TomlPath

LIMIT_KEYS = ("scope", "usd", "requests", "tokens", "concurrent", "per", "burst", "zone", "mode", "alerts")
AMOUNT_KEYS = ("usd", "requests", "tokens", "concurrent")
LENGTH = re.compile(r"([1-9][0-9]{0,8})(s|m|h|d)")
SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
RATE_PERIODS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
SCOPE_HELP = 'Write "project", "team:support", "each user", "tag:env=prod" or "each tag:customer".'
SHARES_MAX = 1_000
"""Percent; a `soft` budget may be passed many times over."""
UNITS_MAX = 10**12
"""Of requests and tokens, so that a bucket times its window stays a 64-bit number where it is stored."""


def declared_limits(
    values: Mapping[str, Any], problems: Problems, lines: Mapping[TomlPath, int] | None = None
) -> dict[str, Limit]:
    """The limits in the table `limits`, by name; wrong ones are left out and noted in `problems`."""
    table = Table(values, ("limits",), lines or {}, problems)
    found = {}
    for name, one in table.tables():
        limit = _limit(name, one)
        if limit is not None:
            found[name] = limit
    return found


def budget_limits(workflow: Workflow[Any, Any]) -> tuple[Limit, ...]:
    """The budgets per day and month of a Workflow, in UTC; what is wrong in them is `drivetrain check`'s to tell."""
    budget = workflow.budget
    if not isinstance(budget, Budget):
        return ()
    found = []
    shares = tuple(sorted(set(budget.alerts))) if _are_shares(budget.alerts) else ()
    for key, per in (("usd_per_day", "day"), ("usd_per_month", "month")):
        amount = getattr(budget, key)
        if amount is not None and amount_mistake(amount) is None:
            found.append(
                # No name in drivetrain.toml has a dot, so these cannot meet one.
                Limit(
                    name=f"{workflow.name}.{key}",
                    kind="budget",
                    dimension="workflow",
                    value=workflow.name,
                    amount=nano_usd(amount),
                    per=per,
                    mode=budget.mode,
                    alerts=shares,
                )
            )
    return tuple(found)


def check_scopes(
    limits: Iterable[Limit],
    workflows: Collection[str],
    teams: Collection[str] | None,
    problems: Problems,
    lines: Mapping[TomlPath, int],
) -> None:
    """Notes every limit for a workflow or a team that nobody declares: it would limit nothing.

    teams: None where the project declares none, so that any may be named. Other dimensions hold what only calls and
    issued keys know.
    """
    for limit in limits:
        known = {"workflow": workflows, "team": teams}.get(limit.dimension)
        if known is not None and limit.value is not None and limit.value not in known:
            problems.add(
                f"`limits.{limit.name}.scope` names the {limit.dimension} `{limit.value}`, which is not declared.",
                file=SETTINGS_FILE, line=lines.get(("limits", limit.name, "scope"), limit.line),
                value=shown(limit.value), do=did_you_mean(limit.value, known),
            )  # fmt: skip


def _limit(name: str, table: Table) -> Limit | None:
    before = len(table.problems.sorted())
    table.only(LIMIT_KEYS)
    if not NAME.fullmatch(name):
        table.note(None, "has a wrong name.", do="A name starts with a small letter and has a-z, 0-9, `_` and `-`.")
    scope = _scope(table)
    written = [key for key in AMOUNT_KEYS if key in table]
    if len(written) != 1:
        table.note(None, f"must have exactly one of {', '.join(f'`{key}`' for key in AMOUNT_KEYS)}.")
        return None
    mode = table.choice("mode", MODES, "hard")
    kind = written[0]
    if kind == "usd":
        limit = _budget(name, table, mode)
    else:
        for key in ("alerts", "zone"):
            if key in table:
                table.note(key, "belongs to a budget in `usd`.")
        if mode != "hard":
            table.note("mode", "belongs to a budget in `usd`; rates and concurrency are always hard.")
        limit = _concurrency(name, table) if kind == "concurrent" else _rate(name, table, kind)
    if limit is None or scope is None or len(table.problems.sorted()) > before:
        return None
    dimension, value, tag = scope
    return msgspec.structs.replace(limit, dimension=dimension, value=value, tag=tag, line=table.line())


def _scope(table: Table) -> tuple[str, str | None, str] | None:
    """(dimension, value, tag)."""
    text = table.text("scope", needed=SCOPE_HELP)
    if not text:
        return None
    if text == "project":
        return "project", "", ""
    each = text.startswith("each ")
    dimension, _, value = text.removeprefix("each ").strip().partition(":")
    needs_value = not each or dimension == "tag"
    if dimension == "project" or dimension not in DIMENSIONS or bool(value) != needs_value:
        table.note("scope", "is no scope.", value=shown(text), do=SCOPE_HELP)
        return None
    if each:
        return dimension, None, value
    return dimension, value, ""


def _budget(name: str, table: Table, mode: str) -> Limit | None:
    amount = table.amount("usd")
    zone = table.text("zone", "UTC")
    try:
        ZoneInfo(zone)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        table.note("zone", "is no time zone that this system knows.", value=shown(zone), do='Write "Europe/Berlin".')
        return None
    per = table.text("per", needed='Write per = "day", "week", "month", or a length such as "6h".')
    if "burst" in table:
        table.note("burst", "belongs to a rate in `requests` or `tokens`.")
    if amount is None or not per:
        return None
    window_s = 0
    if per not in ("day", "week", "month"):
        window_s = _length_s(table, per)
        per = "fixed"
        if not window_s:
            return None
    return Limit(
        name=name, kind="budget", dimension="project", amount=amount, per=per, window_s=window_s, zone=zone, mode=mode,
        alerts=_alerts(table),
    )  # fmt: skip


def _rate(name: str, table: Table, unit: str) -> Limit | None:
    amount = table.whole(unit, 0, most=UNITS_MAX)
    burst = table.whole("burst", 0, most=UNITS_MAX)
    per = table.text("per", needed='Write per = "minute", "second", "hour", "day", or a length such as "10s".')
    window_s = RATE_PERIODS.get(per, 0) or (_length_s(table, per) if per else 0)
    if not amount or not window_s:
        return None
    return Limit(name=name, kind="rate", dimension="project", unit=unit, amount=amount, window_s=window_s, burst=burst)


def _concurrency(name: str, table: Table) -> Limit | None:
    for key in ("per", "burst"):
        if key in table:
            table.note(key, "means nothing for calls at a time.")
    amount = table.whole("concurrent", 0, most=10**6)
    return Limit(name=name, kind="concurrency", dimension="project", unit="calls", amount=amount) if amount else None


def _length_s(table: Table, per: str) -> int:
    match = LENGTH.fullmatch(per)
    if match is None:
        table.note(
            "per", "is no period.", value=shown(per), do='Write a word, or a length such as "90s", "6h" or "2d".'
        )
        return 0
    return int(match[1]) * SECONDS[match[2]]


def _alerts(table: Table) -> tuple[int, ...]:
    value = table.raw("alerts")
    if value is None:
        return ()
    if not _are_shares(value):
        table.note("alerts", "must be whole percents.", value=shown(value), do="Write alerts = [50, 80, 100].")
        return ()
    return tuple(sorted(set(value)))


def _are_shares(value: object) -> bool:
    return isinstance(value, list | tuple) and all(type(one) is int and 1 <= one <= SHARES_MAX for one in value)
