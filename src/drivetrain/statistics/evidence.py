"""Evidence that may be looked at any time: an e-process for paired differences, and the interval that belongs to it.

Pure Python. A bet is made against "the candidate is better by at most so much": its capital starts at 1 and, where that
is true, does not grow on average, however often one looks and whenever one stops. Capital of 20 therefore happens with
a chance of at most 1/20, ever. Source: Ville's inequality, Etude critique de la notion de collectif (1939); Ramdas,
Gruenwald, Vovk and Shafer, Game-theoretic statistics and safe anytime-valid inference, Statistical Science 38 (2023).

The bet. One pair shows a difference d in [-1, 1]; against "its mean is at most m" each factor is
1 + k (d - m) / (1 + m), with k in [0, 1] the share of the capital that is staked: at least 0, and of mean at most 1.
The capital is the mean over k under a prior that is fixed here, for everyone, before anything is seen. Source:
Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS-B 86 (2024), eq. 23 and 4.1.

The prior is uniform. For right and wrong (d is 1, 0 or -1) and m = 0, k = 2q - 1 where q is the candidate's share of
the pairs that differ, so the prior holds every q between a half and 1 equally likely. Somebody who tunes it gains a
little where the guess was right, loses where it was not, and has to be believed that the guess came first; the uniform
prior has nothing to tune, and its price for not knowing k grows only as half the logarithm of what was seen. No figure
of any data set went into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from drivetrain.statistics.bootstrap import load_numpy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Tally = Mapping[tuple[float, float], float]
"""(difference, weight) -> how often it was seen. Weights are at most 1: of a cluster, its share of the largest one."""

OCTAVES = 24
"""Stakes are looked at down to 2^-24: enough for a difference that needs 10^14 pairs to be seen."""
_HALF_NODES = (
    (0.1834346424956498, 0.3626837833783620),
    (0.5255324099163290, 0.3137066458778873),
    (0.7966664774136267, 0.2223810344533745),
    (0.9602898564975363, 0.1012285362903763),
)
"""Gauss-Legendre, eight points on [-1, 1]: abscissa and weight, DLMF table 3.5.2."""
HALVINGS = 40
"""Of an interval's end: to 2e-12."""
VALUES_MAX = 64
"""Of different differences, as far as plain Python is quick; more of them are left to numpy."""
LOG_MAX = 690.0
"""e to this is the largest evidence that is told as a number, 10^299."""


def _uniform() -> tuple[tuple[float, float], ...]:
    """(stake, weight), eight to an octave and the rest at 0; the weights sum to 1.

    Any fixed stakes with weights that sum to 1 are a fair bet, so nothing here is approximate but the word "uniform".
    The best stake is known from n pairs to about 1 / sqrt(n): eight points to an octave stand closer than that as long
    as the evidence is below e^50.
    """
    nodes = [(0.0, 2.0**-OCTAVES)]
    for octave in range(OCTAVES):
        high = 2.0**-octave
        for place, weight in _HALF_NODES:
            nodes += [(high * (0.75 + side * place / 4), high * weight / 4) for side in (-1, 1)]
    whole = math.fsum(weight for _, weight in nodes)
    return tuple((stake, weight / whole) for stake, weight in sorted(nodes))


PRIOR = _uniform()


def counted(wins: float, losses: float, ties: float = 0) -> Tally:
    """The tally of right and wrong: pairs that only the candidate has right, only the other one, and the rest."""
    return {(1.0, 1.0): wins, (-1.0, 1.0): losses, (0.0, 1.0): ties}


def tallied(
    differences: Sequence[float], clusters: Sequence[str] | None = None, *, largest: int | None = None
) -> Tally:
    """The tally of differences in [-1, 1].

    clusters: differences of one name belong together and are one bet; look between clusters, not amid one.
    largest: how many differences a cluster has at most; who looks more than once tells the same number every time,
    which a frozen Dataset knows. None: as many as the largest one here. Raises: ValueError where one has more, or
    where a difference is none.
    """
    if not all(-1 <= one <= 1 for one in differences):
        raise ValueError("a difference lies between -1 and 1: scores must lie between 0 and 1")
    tally: dict[tuple[float, float], float] = {}
    if clusters is None:
        for one in differences:
            tally[float(one), 1.0] = tally.get((float(one), 1.0), 0) + 1
        return tally
    groups: dict[str, list[float]] = {}
    for one, name in zip(differences, clusters, strict=True):
        groups.setdefault(name, []).append(one)
    found = max((len(group) for group in groups.values()), default=1)
    most = found if largest is None else largest
    if most < found:
        raise ValueError(f"a cluster has {found} differences, more than the {most} that were announced")
    for group in groups.values():
        key = (max(-1.0, min(1.0, math.fsum(group) / len(group))), len(group) / most)
        tally[key] = tally.get(key, 0) + 1
    return tally


def merged(one: Tally, other: Tally) -> Tally:
    """Both together."""
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


def mirrored(tally: Tally) -> Tally:
    """The same with the two that are compared changing places."""
    return {(-difference, weight): times for (difference, weight), times in tally.items()}


def log_evidence(tally: Tally, beyond: float = 0.0) -> float:
    """The logarithm of the evidence that the mean difference is above `beyond` (in (-1, 1]); 0 where nothing was seen.

    Where the mean is at most `beyond`, it ever reaches log(1 / a) with a chance of at most a.
    """
    return log_sum([
        capital + math.log(weight)
        for capital, (_, weight) in zip(log_capitals(tally, beyond), PRIOR, strict=True)
    ])  # fmt: skip


def log_capitals(tally: Tally, beyond: float) -> list[float]:
    """What each stake of the prior has made of 1, as logarithms. Needs numpy for more than `VALUES_MAX` differences."""
    seen = [
        (weight * (difference - beyond), times)
        for (difference, weight), times in tally.items() if times and difference != beyond
    ]  # fmt: skip
    scales = [stake / (1 + beyond) for stake, _ in PRIOR]
    if len(seen) <= VALUES_MAX:
        return [sum([times * math.log1p(scale * gain) for gain, times in seen], 0.0) for scale in scales]
    numpy = load_numpy()
    gains, often = numpy.array(seen).T
    found: list[float] = [float(numpy.log1p(scale * gains) @ often) for scale in scales]
    return found


def log_sum(logs: Sequence[float]) -> float:
    """log(sum(exp(x))), without overflow."""
    most = max(logs)
    return most + math.log(math.fsum(math.exp(one - most) for one in logs))


def told(log_value: float) -> float:
    """Evidence as a number that can be written down."""
    return math.exp(min(LOG_MAX, log_value))


def confidence_sequence(tally: Tally, level: float = 0.95) -> tuple[float, float]:
    """An interval of the mean difference that holds at all looks together with at least `level`.

    Its ends are where the evidence against what lies beyond reaches 2 / (1 - level) on either side; so it leaves out 0
    just when one side's evidence for a difference does. (-1, 1) where nothing was seen.
    Source: Waudby-Smith and Ramdas (2024), theorem 3, with the stakes of the module.
    """
    if not 0 < level < 1:
        raise ValueError(f"a level must lie between 0 and 1, not {level}")
    needed = math.log(2 / (1 - level))
    return lower_end(tally, needed), -lower_end(mirrored(tally), needed)


def lower_end(tally: Tally, needed: float) -> float:
    """The largest mean difference that the evidence excludes, with all below it: a bound at all looks together.

    needed: the logarithm of the evidence, log(1 / a) for a bound that is wrong with a chance of at most a.
    """
    # The evidence falls as `beyond` rises, for every stake, and cannot be above 1 from the mean on.
    low, high = -1.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if log_evidence(tally, middle) >= needed:
            low = middle
        else:
            high = middle
    return low


def log_evidence_of_counts(
    wins: ArrayLike, losses: ArrayLike, ties: ArrayLike = 0, beyond: float = 0.0
) -> NDArray[np.float64]:
    """`log_evidence` of many counts at once, of any shapes that fit together. Needs numpy."""
    numpy = load_numpy()
    won, lost, tied = (numpy.asarray(one, dtype=numpy.float64) for one in (wins, losses, ties))
    most = numpy.full(numpy.broadcast_shapes(won.shape, lost.shape, tied.shape), -numpy.inf)
    total = numpy.zeros(most.shape)
    for stake, weight in PRIOR:
        scale = stake / (1 + beyond)
        value = (
            won * math.log1p(scale * (1 - beyond))
            + lost * math.log1p(-scale * (1 + beyond))
            + tied * math.log1p(-scale * beyond)
            + math.log(weight)
        )
        higher = numpy.maximum(most, value)
        total = total * numpy.exp(most - higher) + numpy.exp(value - higher)
        most = higher
    result: NDArray[np.float64] = most + numpy.log(total)
    return result
