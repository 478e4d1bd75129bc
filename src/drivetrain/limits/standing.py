"""How limits stand: amended Limits and the counter store in, what is spent, held and left out.

Every screen that shows a budget asks here, so that all show the same. Reads only; works while nothing runs.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from drivetrain.core.limits import Limit
from drivetrain.limits.accounts import account_of
from drivetrain.ports.counters import AccountListing, AccountState, CounterStore

NOBODY = AccountState(0, 0, 0)


class AccountStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One account of the present period. Units are the limit's: nano-USD, requests, tokens or calls."""

    account: str
    value: str
    """Whose it is; empty for the project, and for Calls that name nobody."""
    cap: int
    settled: int
    """Cost of ended Calls; 0 for rates and concurrency."""
    held: int
    """Reserved for running Calls, or leased ahead by workers: what is not used comes back."""
    over: int
    """Part of `settled` that providers charged beyond the limits that were sent."""
    left: int
    """Neither settled nor held; of a rate what its bucket has now."""

    @property
    def share(self) -> int | None:
        """Settled in whole percent of the cap, rounded down; None where the cap is 0."""
        return self.settled * 100 // self.cap if self.cap else None


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One limit and its accounts of the present period."""

    limit: Limit
    starts_ns: int
    ends_ns: int
    """When it resets; 0 for what has no period."""
    accounts: tuple[AccountStanding, ...]
    """Most settled first; for `each` of a dimension, of those that have been used."""
    count: int
    """How many there are, of which `accounts` may be the first."""
    settled: int
    held: int
    """Sums over all of them."""


def standings(
    limits: Iterable[Limit], store: CounterStore | None, now_ns: int, *, at_most: int
) -> tuple[Standing, ...]:
    """How each limit stands at `now_ns`, with the first `at_most` accounts of each.

    store: None where none was ever made. Raises: StoreUnavailable.
    """
    return tuple(_standing(limit, store, now_ns, at_most) for limit in limits)


def _standing(limit: Limit, store: CounterStore | None, now_ns: int, at_most: int) -> Standing:
    own = account_of(limit, limit.value or "", now_ns)
    name = own.terms.account
    if limit.value is not None or limit.dimension == "project":
        state = store.account(name) if store is not None else None
        shown = account_standing(limit, own.value, state, now_ns)
        listing = AccountListing((), 1, shown.settled, shown.held)
        accounts: tuple[AccountStanding, ...] = (shown,)
    else:
        prefix = f"{limit.name}/"
        suffix = name[len(prefix) :]  # its value is empty
        listing = store.accounts(prefix, suffix, at_most) if store is not None else AccountListing(())
        accounts = tuple(
            account_standing(limit, one.name[len(prefix) : -len(suffix)], one.state, now_ns) for one in listing.first
        )
    periodic = limit.kind == "budget"
    return Standing(
        limit=limit,
        starts_ns=own.starts_ns if periodic else 0,
        ends_ns=own.ends_ns if periodic else 0,
        accounts=accounts,
        count=listing.count,
        settled=listing.settled,
        held=listing.held,
    )


def account_standing(limit: Limit, value: str, state: AccountState | None, now_ns: int) -> AccountStanding:
    """How one account of `limit` stands; state: None where nobody has used it."""
    terms = account_of(limit, value, now_ns).terms
    known = state or NOBODY
    if limit.kind == "rate":
        left = terms.cap if state is None else min(state.level, terms.cap)
    else:
        left = max(0, terms.cap - known.settled - known.held)
    return AccountStanding(
        account=terms.account, value=value, cap=terms.cap, settled=known.settled, held=known.held, over=known.over,
        left=left,
    )  # fmt: skip
