"""Which models their providers have deprecated, as far as the built-in price list knows."""

from __future__ import annotations


def is_deprecated(reference: str, base_url: str) -> bool:
    """Whether `genai-prices` flags a `provider/model`; False where it does not know it."""
    # Takes 0.15 s to import, so only commands that warn pay for it.
    from genai_prices import data_snapshot

    provider, _, model = reference.partition("/")
    prices = data_snapshot.get_snapshot()
    for named, address in ((provider, None), (None, base_url)):
        if named is None and not address:
            continue
        try:
            _, found = prices.find_provider_model(model, None, named, address)
        except LookupError:
            continue
        return bool(found.deprecated)
    return False
