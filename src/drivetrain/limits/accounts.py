"""Which accounts a Call falls under: limits and an attribution in, the store's terms out. Pure.

An account is one limit for one value in one period, such as `support-month/support@2026-03`. Called by the Book when
it meets somebody for the first time, and again when a period has ended.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import itemgetter

import msgspec

from drivetrain.core.calls import Attribution
from drivetrain.core.limits import Limit
from drivetrain.core.times import NS_PER_S
from drivetrain.limits.periods import period_at
from drivetrain.ports.counters import BUCKET, MONEY, SLOTS, Terms

FOREVER_NS = 2**62
_PLACE = itemgetter(0)


class Account(msgspec.Struct, frozen=True, gc=False):
    """One account and the limit that it comes from."""

    limit: Limit
    value: str
    terms: Terms
    starts_ns: int
    ends_ns: int
    """The instants between which Calls are charged to it; `FOREVER_NS` for what has no period."""

    def holds_at(self, now_ns: int) -> bool:
        """Whether a Call admitted at `now_ns` is charged to it."""
        return self.starts_ns <= now_ns < self.ends_ns

    @property
    def whose(self) -> str:
        """Its owner, in words."""
        limit = self.limit
        if limit.dimension == "project":
            return "this project"
        word = "use case" if limit.dimension == "use_case" else limit.dimension
        named = f"{limit.tag}={self.value}" if limit.tag else self.value
        return f"{word} `{named}`" if named else f"calls without a {word}"


Whom = tuple[str, str]
"""(dimension, value): of a tag `name=value`, of the project nothing."""


class Declared:
    """Limits by whom they are for, so that finding those of one Call costs the same however many there are."""

    __slots__ = ("_dimensions", "_each", "_each_tag", "_one", "by_tag", "by_user")

    def __init__(self, limits: Iterable[Limit]) -> None:
        self._one: dict[Whom, list[tuple[int, Limit]]] = {}
        self._each: dict[str, list[tuple[int, Limit]]] = {}
        self._each_tag: dict[str, list[tuple[int, Limit]]] = {}
        dimensions = []
        for place, limit in enumerate(limits):
            dimensions.append(limit.dimension)
            if limit.dimension == "project":
                self._one.setdefault(("project", ""), []).append((place, limit))
            elif limit.value is not None:
                self._one.setdefault((limit.dimension, limit.value), []).append((place, limit))
            elif limit.dimension == "tag":
                self._each_tag.setdefault(limit.tag, []).append((place, limit))
            else:
                self._each.setdefault(limit.dimension, []).append((place, limit))
        self._dimensions = tuple(dict.fromkeys(dimensions))
        self.by_user, self.by_tag = "user" in dimensions, "tag" in dimensions
        """Whether any limit asks for users, and for tags."""

    def whoms(self, who: Attribution, workflow: str) -> list[Whom]:
        """Everybody whose limits, if there are any, hold for this Call."""
        found: list[Whom] = []
        for dimension in self._dimensions:
            if dimension == "tag":
                found += [("tag", tag) for tag in dict.fromkeys(who.tags)]
            elif dimension == "project":
                found.append(("project", ""))
            else:
                # A Call that names nobody shares one account with all such Calls: leaving out a name evades no limit.
                found.append((dimension, workflow if dimension == "workflow" else getattr(who, dimension)))
        return found

    def accounts(self, whom: Whom, now_ns: int) -> list[tuple[int, Account]]:
        """The accounts at `now_ns` of what was declared for `whom`, each with its limit's place among all."""
        dimension, value = whom
        if dimension == "tag":
            name, _, each_value = value.partition("=")
            each = self._each_tag.get(name, [])
        else:
            each_value, each = value, self._each.get(dimension, [])
        found = [(place, account_of(limit, value, now_ns)) for place, limit in self._one.get(whom, ())]
        return found + [(place, account_of(limit, each_value, now_ns)) for place, limit in each]


def accounts_of(limits: Iterable[Limit], who: Attribution, workflow: str, now_ns: int) -> list[Account]:
    """Every account that a Call admitted at `now_ns` falls under, in the order in which their limits are declared."""
    declared = Declared(limits)
    found = [each for whom in declared.whoms(who, workflow) for each in declared.accounts(whom, now_ns)]
    return list({account.terms.account: account for _, account in sorted(found, key=_PLACE)}.values())


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
