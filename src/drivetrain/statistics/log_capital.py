"""Capitals of bets as logarithms: they grow and shrink beyond what a float holds. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def log_mean(logs: Sequence[float]) -> float:
    """Logarithm of the mean of capitals that are given by their logarithms; at least one."""
    most = max(logs)
    return most + math.log(math.fsum(math.exp(one - most) for one in logs) / len(logs))
