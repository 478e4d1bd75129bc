"""The interval of a share where what was counted belongs together: repeats of a question, Calls of a customer.

Pure Python. The mean of scores that belong together is `means.mean_interval`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import msgspec

from drivetrain.statistics.means import student_quantile

CLUSTERS_MIN = 2
"""Fewer tell nothing of how they differ."""


class ClusteredShare(msgspec.Struct, frozen=True, kw_only=True):
    """A share with its interval, and what the clusters cost."""

    value: float
    """0 where nothing was counted."""
    low: float
    high: float
    clusters: int
    effective: float
    """How many independent ones would tell as much."""


def clustered_share(outcomes: Sequence[bool | int], clusters: Sequence[str], level: float = 0.95) -> ClusteredShare:
    """The share that succeeded, with Wilson's interval of as many independent ones as the clusters are worth.

    Where all succeeded or all failed nothing tells how clusters hold together, and each counts as one. (0, 1) below
    two clusters. Source: Korn and Graubard, Survey Methodology 24 (1998), 193-201 (effective size with the t-ratio of
    degrees of freedom), with Wilson's interval as in Dean and Pagano, JSSAM 3 (2015), 484-503. Raises: ValueError for
    lengths that differ or a level outside (0, 1).
    """
    if len(outcomes) != len(clusters):
        raise ValueError(f"{len(clusters)} clusters are named for {len(outcomes)} outcomes")
    if not 0 < level < 1:
        raise ValueError(f"a level must lie between 0 and 1, not {level}")
    count, many = len(outcomes), len(set(clusters))
    share = sum(map(bool, outcomes)) / count if count else 0.0
    if many < CLUSTERS_MIN:
        return ClusteredShare(value=share, low=0.0, high=1.0, clusters=many, effective=float(many))
    sums: dict[str, float] = {}
    for one, name in zip(outcomes, clusters, strict=True):
        sums[name] = sums.get(name, 0.0) + bool(one) - share
    variance = many / (many - 1) * math.fsum(one * one for one in sums.values()) / count**2
    effective = float(many)
    if 0 < share < 1:
        # A spread below that of independent ones is chance; it is not believed.
        effective = min(float(count), share * (1 - share) / variance) if variance else float(count)
    z = student_quantile(0.5 + level / 2, many - 1)
    if many == count:
        z = NormalDist().inv_cdf(0.5 + level / 2)
    low, high = _wilson(share, effective, z)
    return ClusteredShare(value=share, low=low, high=high, clusters=many, effective=effective)


def _wilson(share: float, count: float, z: float) -> tuple[float, float]:
    """Source: Wilson, JASA 22 (1927), 209-212; of a number that need not be whole."""
    scale = count + z * z
    middle = (share * count + z * z / 2) / scale
    half = z / scale * math.sqrt(share * (1 - share) * count + z * z / 4)
    return max(0.0, middle - half) if share else 0.0, min(1.0, middle + half) if share < 1 else 1.0
