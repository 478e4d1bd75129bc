"""What a model costs on a date: the project's own rates or machine, else `genai-prices`, compiled to integers.

A price depends on the date of the call, so a model has a `PriceBook`: prices with the day from which each holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec

from drivetrain.core.money import MachinePrice, Price, Rates, nano_usd
from drivetrain.project.snapshot import ModelFacts

FIRST_DAY = "0001-01-01"


class UnknownPrice(Exception):
    """No price is known for a model: what to write."""


class PriceBook(msgspec.Struct, frozen=True):
    """Prices of one model over time."""

    prices: tuple[tuple[str, Price], ...]
    """(first day `YYYY-MM-DD` it holds, price), latest first."""

    def on(self, day: str) -> Price:
        """The price that holds on `day`."""
        for first_day, price in self.prices:
            if day >= first_day:
                return price
        return self.prices[-1][1]


def own_price(facts: ModelFacts | None) -> PriceBook:
    """The price of a model that runs on the project's own machines: what the project says, else nothing."""
    if facts is not None and (said := _said(facts)) is not None:
        return said
    rates = Rates(input=0, output=0, request=facts.nano_per_request if facts is not None else 0)
    return PriceBook(((FIRST_DAY, Price(base=rates)),))


def price_book(reference: str, base_url: str, facts: ModelFacts | None) -> PriceBook:
    """The prices of `provider/model` at an address.

    Raises: UnknownPrice where neither the project nor `genai-prices` has one. It is never zero by default.
    """
    if facts is not None and (said := _said(facts)) is not None:
        return said
    provider, _, model = (facts.price_as if facts is not None and facts.price_as else reference).partition("/")
    published = _published(provider, model, None if facts is not None and facts.price_as else base_url)
    if published is None:
        raise UnknownPrice(
            f'no price is known for model `{reference}`: write [models."{reference}"] with usd_per_million_input and '
            'usd_per_million_output (strings, such as "0.25"), with usd_per_hour (a machine of your own), '
            'or with price_as = "openai/gpt-5-mini" '
            "where a published price holds"
        )
    return published


def _published(provider: str, model: str, base_url: str | None) -> PriceBook | None:
    # Takes 0.15 s to import, so only projects that need a published price pay for it.
    from genai_prices import data_snapshot

    prices = data_snapshot.get_snapshot()
    try:
        _, info = prices.find_provider_model(model, None, provider, None)
    except LookupError:
        if base_url is None:
            return None
        try:
            _, info = prices.find_provider_model(model, None, None, base_url)
        except LookupError:
            return None
    source = f"genai-prices {_version()}"
    if not isinstance(info.prices, list):
        price = _compile(info.prices, source)
        return PriceBook(((FIRST_DAY, price),)) if price is not None else None
    dated = [(day, _compile(info.get_prices(_noon(day)), source)) for day in sorted(_first_days(info.prices))]
    known = tuple((day, price) for day, price in reversed(dated) if price is not None)
    return PriceBook(known) if known else None


def _first_days(conditional: list[Any]) -> set[str]:
    days = {FIRST_DAY}
    for one in conditional:
        start = getattr(one.constraint, "start_date", None)
        if isinstance(start, date):
            days.add(start.isoformat())
    return days


def _noon(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(hour=12, tzinfo=UTC)


def _version() -> str:
    from importlib.metadata import version

    return version("genai-prices")


def _compile(published: Any, source: str) -> Price | None:
    names = {
        "input": "input_mtok",
        "output": "output_mtok",
        "input_cached": "cache_read_mtok",
        "cache_write": "cache_write_mtok",
        "cache_write_1h": "cache_write_1h_mtok",
    }
    values = {ours: getattr(published, theirs, None) for ours, theirs in names.items()}
    if values["input"] is None and values["output"] is None:
        return None
    starts = sorted({tier.start for value in values.values() for tier in getattr(value, "tiers", ())})
    per_request = getattr(published, "requests_kcount", None)
    request = nano_usd(Decimal(per_request) / 1000) if per_request is not None else 0

    def rates(tokens: int) -> Rates:
        at = {name: _rate(value, tokens) for name, value in values.items()}
        return Rates(
            input=at["input"] or 0,
            output=at["output"] or 0,
            input_cached=at["input_cached"],
            cache_write=at["cache_write"],
            cache_write_1h=at["cache_write_1h"],
            request=request,
        )

    return Price(base=rates(0), tiers=tuple((start, rates(start + 1)) for start in starts), source=source)


def _rate(value: Any, tokens: int) -> int | None:
    if value is None:
        return None
    tiers = getattr(value, "tiers", None)
    if tiers is None:
        return nano_usd(value)
    rate = value.base
    for tier in sorted(tiers, key=lambda one: one.start):
        if tokens > tier.start:
            rate = tier.price
    return nano_usd(rate)


def check_prices(models: Mapping[str, ModelFacts], reference: str, base_url: str) -> str | None:
    """Why `provider/model` has no price, or None."""
    try:
        price_book(reference, base_url, models.get(reference))
    except UnknownPrice as problem:
        return str(problem)
    return None


def _said(facts: ModelFacts) -> PriceBook | None:
    """What the project itself says that a model costs; None where it does not."""
    if facts.machine_nano_per_hour is not None:
        machine = MachinePrice(nano_per_hour=facts.machine_nano_per_hour, parallel=facts.parallel)
        return PriceBook(((FIRST_DAY, machine),))
    if facts.input_nano_per_million is None or facts.output_nano_per_million is None:
        return None
    rates = Rates(
        input=facts.input_nano_per_million,
        output=facts.output_nano_per_million,
        input_cached=facts.input_cached_nano_per_million,
        cache_write=facts.cache_write_nano_per_million,
        cache_write_1h=facts.cache_write_1h_nano_per_million,
        request=facts.nano_per_request,
    )
    return PriceBook(((FIRST_DAY, Price(base=rates)),))
