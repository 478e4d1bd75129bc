"""Limits as data: what is limited for whom, and what a refusal says.

Declared by `[limits]` and by a Workflow's Budget. The room `limits/` enforces them; the gateway turns a Refusal into
an answer. Amounts are integers: nano-USD, requests, tokens or calls.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from drivetrain.core.errors import RequestError
from drivetrain.core.money import usd
from drivetrain.core.times import NS_PER_S

DIMENSIONS = ("project", "tenant", "team", "workflow", "use_case", "key", "user", "tag")
KINDS = ("budget", "rate", "concurrency")
PERIODS = ("day", "week", "month", "fixed")
MODES = ("hard", "soft", "downgrade")
RETRY_UNKNOWN_S = 1
"""Suggested where nobody can know when there is room again: a running Call ends, or the store answers again."""
NANO_PER_MICRO = 1_000


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """One limit, as declared."""

    name: str
    """Its identity: what was spent stays with the name when the amount, the zone or the mode is edited."""
    kind: str
    """`budget` (nano-USD per period), `rate` (token bucket) or `concurrency` (calls at a time)."""
    dimension: str
    """One of `DIMENSIONS`; `project` means every Call."""
    value: str | None = None
    """Whom it is for; None: each value of the dimension has an account of its own."""
    tag: str = ""
    """For `each` of a tag: the tag's name."""
    unit: str = "nano_usd"
    """`nano_usd`, `requests`, `tokens` or `calls`."""
    amount: int
    """The cap of a budget, the refill of a rate per `window_s`, or the most calls at a time."""
    per: str = ""
    """Of a budget: one of `PERIODS`."""
    window_s: int = 0
    """Of a rate: what `amount` refills in. Of a `fixed` budget: its length."""
    zone: str = "UTC"
    """Time zone in which days, weeks and months begin."""
    burst: int = 0
    """Of a rate: the bucket's size; 0: `amount`."""
    mode: str = "hard"
    """`hard` refuses, `soft` only counts and alerts, `downgrade` closes the variants that do not fit."""
    alerts: tuple[int, ...] = ()
    """Shares of the cap in percent, ascending; each is announced once per account."""
    raised: tuple[tuple[str, int], ...] = ()
    """(account, units by which its cap was raised), ascending: a budget topped up for one value in one period."""
    line: int = 0

    @property
    def bucket(self) -> int:
        """Of a rate: the most units at once."""
        return self.burst or self.amount

    @property
    def cap(self) -> int:
        """The most there can be at once."""
        return self.bucket if self.kind == "rate" else self.amount


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A share of a budget was passed; announced once per account, whichever worker sees it first."""

    limit: str
    account: str
    share: int
    """Percent."""
    settled: int
    cap: int


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a Call, or a variant of its route, may not go on."""

    code: str
    """`budget_exceeded`, `rate_limit_exceeded`, `concurrency_limit_exceeded` or `limits_unavailable`."""
    closes: str = "call"
    """`call`, or `variant`: this one does not fit a `downgrade` budget, and cheaper ones may."""
    limit: str = ""
    whose: str = ""
    """The account's owner in words, such as "team `support`"."""
    unit: str = ""
    cap: int = 0
    window_s: int = 0
    """The limit's window: a rate's or a budget period's length."""
    needed: int = 0
    left: int = 0
    """Not settled and not reserved by anybody, when it was refused."""
    resets_at_ns: int = 0
    """When there is room again; 0: unknown."""
    now_ns: int = 0

    @property
    def status(self) -> int:
        """HTTP status."""
        return 503 if self.code == "limits_unavailable" else 429

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until the reset, at least 1."""
        if not self.resets_at_ns:
            return RETRY_UNKNOWN_S
        return max(1, -(-(self.resets_at_ns - self.now_ns) // NS_PER_S))

    def error(self) -> RequestError:
        """The refusal in OpenAI's error shape; `headers()` belong beside it."""
        kind = {"budget_exceeded": "insufficient_quota", "limits_unavailable": "server_error"}
        return RequestError(
            self.status,
            self.message(),
            code=self.code,
            kind=kind.get(self.code, "rate_limit_error"),
            retry_after_s=self.retry_after_s,
        )

    def message(self) -> str:
        """Which limit, what was needed, what is left, and when it resets."""
        if self.code == "limits_unavailable":
            return "the store of budgets and limits does not answer, so nothing may be spent; try again"
        until = ""
        if self.resets_at_ns:
            until = f"; resets at {datetime.fromtimestamp(self.resets_at_ns // NS_PER_S, tz=UTC):%Y-%m-%dT%H:%M:%SZ}"
        if self.code == "budget_exceeded":
            return (
                f"budget `{self.limit}` of {self.whose}: this needs up to {usd(self.needed)} USD, and "
                f"{usd(max(0, self.left))} USD of {usd(self.cap)} USD is left{until}"
            )
        if self.code == "concurrency_limit_exceeded":
            return f"limit `{self.limit}` of {self.whose}: {self.cap} calls at a time, and all of them are running"
        per = f"{self.cap} {self.unit} at once" if not self.window_s else f"{self.unit}"
        return (
            f"limit `{self.limit}` of {self.whose} on {per}: this needs {self.needed} and {max(0, self.left)} of "
            f"{self.cap} is left{until}"
        )

    def headers(self) -> tuple[tuple[str, str], ...]:
        """`Retry-After`, OpenAI's `x-ratelimit-*`, and `RateLimit` as draft-ietf-httpapi-ratelimit-headers writes it.

        Money is in USD in `x-ratelimit-*` and in micro-USD in `RateLimit`, whose numbers are integers.
        """
        wait_s = self.retry_after_s
        named: list[tuple[str, str]] = [("retry-after", str(wait_s))]
        if not self.limit:
            return tuple(named)
        left = max(0, self.left)
        if self.unit == "nano_usd":
            word, cap_text, left_text = "usd", usd(self.cap), usd(left)
            quota, rest, quota_unit = self.cap // NANO_PER_MICRO, left // NANO_PER_MICRO, "micro-usd"
            # A budget does not come back within a client's patience; its SDK need not try again by itself.
            named.append(("x-should-retry", "false"))
        else:
            word, cap_text, left_text = self.unit, str(self.cap), str(left)
            quota, rest = self.cap, left
            quota_unit = "concurrent-requests" if self.unit == "calls" else self.unit
        window = f";w={self.window_s}" if self.window_s else ""
        named += [
            (f"x-ratelimit-limit-{word}", cap_text),
            (f"x-ratelimit-remaining-{word}", left_text),
            (f"x-ratelimit-reset-{word}", _duration(wait_s)),
            ("ratelimit-policy", f'"{self.limit}";q={quota};qu="{quota_unit}"{window}'),
            ("ratelimit", f'"{self.limit}";r={rest};t={wait_s}'),
        ]
        return tuple(named)


def _duration(seconds: int) -> str:
    """As OpenAI writes it: `1s`, `6m0s`, `26h3m4s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
