"""Limits in words: scopes, amounts, windows and moments, as `drivetrain budget` says them everywhere."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from drivetrain.core.limits import Limit
from drivetrain.core.money import usd
from drivetrain.core.times import NS_PER_S

SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
WINDOWS = {1: "second", 60: "minute", 3_600: "hour", 86_400: "day"}


def scope_text(limit: Limit) -> str:
    """As drivetrain.toml writes it: `project`, `team:support`, `each user`, `tag:env=prod`, `each tag:customer`."""
    if limit.dimension == "project":
        return "project"
    if limit.value is None:
        return f"each {limit.dimension}:{limit.tag}" if limit.tag else f"each {limit.dimension}"
    return f"{limit.dimension}:{limit.value}"


def amount_text(limit: Limit, amount: int) -> str:
    """`500.00 USD`, `600 requests`, `20 calls at a time`."""
    if limit.unit == "nano_usd":
        return f"{usd(amount)} USD"
    return f"{amount:,} {limit.unit}{' at a time' if limit.kind == 'concurrency' else ''}"


def per_text(limit: Limit) -> str:
    """` per month`, ` per 6h`; empty where there is no window."""
    window = window_text(limit)
    return f" per {window}" if window else ""


def window_text(limit: Limit) -> str:
    """`month`, `minute`, `6h`; empty where there is none."""
    if limit.kind == "budget" and limit.per != "fixed":
        return limit.per
    if not limit.window_s:
        return ""
    if limit.kind == "rate" and limit.window_s in WINDOWS:
        return WINDOWS[limit.window_s]
    unit = next(unit for unit, seconds in SECONDS.items() if limit.window_s % seconds == 0)
    return f"{limit.window_s // SECONDS[unit]}{unit}"


def units(limit: Limit, name: str, amount: int) -> dict[str, int | str]:
    """An amount as JSON has it: money as integer nano-USD and as a decimal text."""
    if limit.unit == "nano_usd":
        return {f"{name}_nano_usd": amount, f"{name}_usd": usd(amount)}
    return {name: amount}


def moment_text(ns: int, zone: str) -> str:
    """`2026-04-01 00:00 CEST`."""
    moment = datetime.fromtimestamp(ns // NS_PER_S, tz=UTC).astimezone(ZoneInfo(zone))
    return f"{moment:%Y-%m-%d %H:%M %Z}"
