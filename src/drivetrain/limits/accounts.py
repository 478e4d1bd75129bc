"""Which accounts a Call falls under: limits and an attribution in, the store's terms out. Pure.

An account is one limit for one value in one period, such as `support-month/support@2026-03`. Called by the Book when
it meets a combination for the first time, and again when a period has ended.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

import msgspec

from drivetrain.core.calls import Attribution
from drivetrain.core.limits import Limit
from drivetrain.core.times import NS_PER_S
from drivetrain.limits.periods import period_at
from drivetrain.ports.counters import BUCKET, MONEY, SLOTS, Terms

FOREVER_NS = 2**62


class Account(msgspec.Struct, frozen=True, gc=False):
    """One account and the limit that it comes from."""

    limit: Limit
    value: str
    terms: Terms
    starts_ns: int
    ends_ns: int
    """The instants between which Calls are charged to it; `FOREVER_NS` for what has no period."""

    @property
    def whose(self) -> str:
        """Its owner, in words."""
        limit = self.limit
        if limit.dimension == "project":
            return "this project"
        word = "use case" if limit.dimension == "use_case" else limit.dimension
        named = f"{limit.tag}={self.value}" if limit.tag else self.value
        return f"{word} `{named}`" if named else f"calls without a {word}"


def accounts_of(limits: Iterable[Limit], who: Attribution, workflow: str, now_ns: int) -> list[Account]:
    """Every account that a Call admitted at `now_ns` falls under."""
    found = []
    for limit in limits:
        for value in _values(limit, who, workflow):
            found.append(account_of(limit, value, now_ns))
    return found


def account_of(limit: Limit, value: str, now_ns: int) -> Account:
    """The account of `limit` for `value` at `now_ns`."""
    name = f"{limit.name}/{value}"
    if limit.kind == "concurrency":
        return Account(limit, value, Terms(f"{name}@running", SLOTS, limit.amount), -FOREVER_NS, FOREVER_NS)
    if limit.kind == "rate":
        terms = Terms(f"{name}@rate", BUCKET, limit.bucket, refill=limit.amount, refill_ns=limit.window_s * NS_PER_S)
        return Account(limit, value, terms, -FOREVER_NS, FOREVER_NS)
    period = period_at(now_ns, per=limit.per, zone=limit.zone, window_s=limit.window_s)
    name = f"{name}@{period.label}"
    cap = limit.amount + _raised_by(limit, name)
    terms = Terms(name, MONEY, cap, ends_ns=period.ends_ns, counted=limit.mode == "soft")
    return Account(limit, value, terms, period.starts_ns, period.ends_ns)


def _raised_by(limit: Limit, account: str) -> int:
    place = bisect_left(limit.raised, (account,))
    return limit.raised[place][1] if place < len(limit.raised) and limit.raised[place][0] == account else 0


def _values(limit: Limit, who: Attribution, workflow: str) -> tuple[str, ...]:
    """The values under which `limit` holds for this Call: none where it is for somebody else."""
    dimension = limit.dimension
    if dimension == "project":
        return ("",)
    if dimension == "tag":
        return _tag_values(limit, who.tags)
    value: str = workflow if dimension == "workflow" else getattr(who, dimension)
    # A Call that names nobody shares one account with all such Calls, so leaving out a name evades no limit.
    return (value,) if limit.value is None or limit.value == value else ()


def _tag_values(limit: Limit, tags: tuple[str, ...]) -> tuple[str, ...]:
    if limit.value is not None:
        return (limit.value,) if limit.value in tags else ()
    values = []
    for tag in tags:
        name, _, value = tag.partition("=")
        if name == limit.tag:
            values.append(value)
    return tuple(dict.fromkeys(values))
