"""Many questions at once: what is left of each claim when as many were tried. Pure Python.

Each function takes one value per question, such as one per slice, and returns the adjusted values in the same order: a
question is decided where its own is at most the chance of error that all of them share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted so that the chance of even one wrong claim among all is bounded, however the questions hang together.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65-70. Raises: ValueError for what is no chance.
    """
    order = _ordered(p_values)
    adjusted, most = [0.0] * len(order), 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = most
    return adjusted


def benjamini_hochberg(p_values: Sequence[float], *, any_dependence: bool = False) -> list[float]:
    """Adjusted so that the expected share of wrong ones among the claims is bounded.

    Of questions that are independent or lean the same way; any_dependence: of all, at the price of a factor of about
    the logarithm of their number. Source: Benjamini and Hochberg, JRSS-B 57 (1995), 289-300; Benjamini and Yekutieli,
    Annals of Statistics 29 (2001), theorem 1.3. Raises: ValueError for what is no chance.
    """
    order = _ordered(p_values)
    price = math.fsum(1 / rank for rank in range(1, len(order) + 1)) if any_dependence else 1.0
    adjusted, least = [0.0] * len(order), 1.0
    for rank in range(len(order), 0, -1):
        place = order[rank - 1]
        least = min(least, price * len(order) * p_values[place] / rank)
        adjusted[place] = least
    return adjusted


def benjamini_hochberg_e(evidence: Sequence[float]) -> list[float]:
    """As `benjamini_hochberg`, of evidence (e-values) in place of chances: of all dependences, and at any look.

    Source: Wang and Ramdas, JRSS-B 84 (2022), 822-852, section 4: BH of 1 / e. Raises: ValueError for evidence below 0.
    """
    if not all(one >= 0 for one in evidence):
        raise ValueError("evidence is at least 0")
    return benjamini_hochberg([min(1.0, 1 / one) if one else 1.0 for one in evidence])


def _ordered(p_values: Sequence[float]) -> list[int]:
    """Places, the smallest value first."""
    if not all(0 <= one <= 1 for one in p_values):
        raise ValueError("a p-value lies between 0 and 1")
    return sorted(range(len(p_values)), key=lambda place: p_values[place])
