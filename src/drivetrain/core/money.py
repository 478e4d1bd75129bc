"""Money as integers of nano-USD, the price of tokens, and the price of a machine's time.

Rates are integers of nano-USD per million tokens, so that $0.0375 per million is exact. A float never
holds money.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import ClassVar

import msgspec

NANO_PER_USD = 1_000_000_000
TOKENS_PER_RATE = 1_000_000
US_PER_HOUR = 3_600_000_000


def nano_usd(amount: str | int | Decimal) -> int:
    """USD, exactly, as nano-USD.

    Raises: ValueError where the amount is no finite decimal number, is negative, or is finer than one nano-USD.
    """
    try:
        value = Decimal(amount)
    except (InvalidOperation, TypeError) as error:
        raise ValueError(f'{amount!r} is not an amount of USD; write a decimal number such as "0.25"') from error
    if not value.is_finite() or value < 0:
        raise ValueError(f"{amount!r} is not an amount of USD; it must be finite and not negative")
    if value > Decimal(10) ** 9:
        raise ValueError(f"{amount!r} USD is beyond what an amount here may be (a thousand million)")
    scaled = value * NANO_PER_USD
    if scaled != scaled.to_integral_value():
        raise ValueError(f"{amount!r} USD is finer than one nano-USD (0.000000001)")
    return int(scaled)


def usd(nano: int) -> str:
    """nano-USD as a plain decimal string of USD without trailing zeros, at least two decimals."""
    sign = "-" if nano < 0 else ""
    whole, fraction = divmod(abs(nano), NANO_PER_USD)
    decimals = f"{fraction:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{decimals}"


class Usage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tokens of one attempt, as the provider reported them or as we estimated them."""

    input_tokens: int = 0
    """All input tokens, cached ones included."""
    input_cached_tokens: int = 0
    """Part of `input_tokens` that was read from the provider's prompt cache."""
    cache_write_tokens: int = 0
    """Part of `input_tokens` that was written to the provider's prompt cache (5 minutes)."""
    cache_write_1h_tokens: int = 0
    """Part of `input_tokens` that was written to the provider's prompt cache (1 hour)."""
    output_tokens: int = 0
    """All output tokens, reasoning included."""
    reasoning_tokens: int = 0
    """Part of `output_tokens` that was spent on reasoning."""
    source: str = "none"
    """`reported` by the provider, `estimated` by us, `mended` (reported, but impossible in part), or `none`."""


NO_USAGE = Usage()


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What tokens cost, in nano-USD per million tokens."""

    input: int
    output: int
    input_cached: int | None = None
    """None: cached input costs what input costs."""
    cache_write: int | None = None
    """None: a cache write costs what input costs."""
    cache_write_1h: int | None = None
    """None: as `cache_write`."""
    request: int = 0
    """nano-USD per request, on top."""

    def cost_nano_usd(self, usage: Usage) -> int:
        """The cost of an attempt, rounded up to the next nano-USD once, at the end."""
        cached = usage.input_cached_tokens
        written = usage.cache_write_tokens
        written_1h = usage.cache_write_1h_tokens
        total = (usage.input_tokens - cached - written - written_1h) * self.input + usage.output_tokens * self.output
        if cached:
            total += cached * (self.input if self.input_cached is None else self.input_cached)
        if written or written_1h:
            write_rate = self.input if self.cache_write is None else self.cache_write
            total += written * write_rate
            total += written_1h * (write_rate if self.cache_write_1h is None else self.cache_write_1h)
        return -(-total // TOKENS_PER_RATE) + self.request

    def worst_case_nano_usd(self, input_tokens: int, output_tokens: int) -> int:
        """An upper bound on the cost of at most these tokens: all input at its dearest rate."""
        dearest = self.input
        for rate in (self.input_cached, self.cache_write, self.cache_write_1h):
            if rate is not None and rate > dearest:
                dearest = rate
        total = input_tokens * dearest + output_tokens * self.output
        return -(-total // TOKENS_PER_RATE) + self.request


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """The price of a model at one date: rates, and dearer rates above a size of input."""

    base: Rates
    tiers: tuple[tuple[int, Rates], ...] = ()
    """(input tokens above which these rates hold for the whole request, rates), ascending."""
    source: str = "project"
    """Where the price comes from: `project`, or `genai-prices VERSION`."""

    by_time: ClassVar[bool] = False
    """Whether an attempt costs what it took, whatever it used and however it ended."""

    def cost_nano_usd(self, usage: Usage, busy_us: int = 0) -> int:
        """The cost of an attempt in nano-USD; busy_us: from sending it to its end."""
        rates = self.base
        if not self.tiers:
            return rates.cost_nano_usd(usage)
        for above_tokens, dearer in self.tiers:
            if usage.input_tokens > above_tokens:
                rates = dearer
        return rates.cost_nano_usd(usage)

    def worst_case_nano_usd(self, input_tokens: int, output_tokens: int, busy_us: int = 0) -> int:
        """An upper bound on the cost of an attempt with at most these tokens: every rate at its dearest.

        busy_us: the most time it may take, its whole timeout.
        """
        worst = self.base.worst_case_nano_usd(input_tokens, output_tokens)
        for _, dearer in self.tiers:
            worst = max(worst, dearer.worst_case_nano_usd(input_tokens, output_tokens))
        return worst


FREE = Rates(input=0, output=0)


class MachinePrice(Price, frozen=True, kw_only=True):
    """The price of a machine that serves a model: busy time costs, tokens do not.

    The machine serves `parallel` attempts at a time, so each pays that share of its hour. What no attempt pays is idle
    time, which costs the same and belongs to nobody.
    """

    by_time: ClassVar[bool] = True
    base: Rates = FREE
    nano_per_hour: int
    parallel: int = 1

    def cost_nano_usd(self, usage: Usage, busy_us: int = 0) -> int:
        """The cost of an attempt that took `busy_us`, rounded up to the next nano-USD once."""
        return -(-self.nano_per_hour * busy_us // (US_PER_HOUR * self.parallel))

    def worst_case_nano_usd(self, input_tokens: int, output_tokens: int, busy_us: int = 0) -> int:
        """The cost of an attempt that takes all of `busy_us`."""
        return self.cost_nano_usd(NO_USAGE, busy_us)

    def hours_nano_usd(self, span_us: int) -> int:
        """What the whole machine costs for a span, busy or idle, rounded up."""
        return -(-self.nano_per_hour * span_us // US_PER_HOUR)
