"""What another policy would have been worth, where the gain depends on the action that was taken.

Only the action that was taken showed its gain, so the chance with which it was taken must be known. Three estimators,
each with an interval, of the candidate, of the logged policy and of their difference; and first of all for which Calls
anything can be known: where an action had no chance to be taken, no estimator tells its gain. Needs numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import msgspec

from drivetrain.statistics.bootstrap import RESAMPLES, Interval, bootstrap, load_numpy, ratio

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from drivetrain.statistics.bootstrap import Statistic

FOLDS = 5
"""Of the gains that are predicted for the doubly robust estimator: a Call never predicts itself."""
CHANCE_MIN = 1e-9
"""A smaller chance counts as none."""


class Logged(msgspec.Struct, frozen=True, kw_only=True):
    """One Call as it was decided, and what the candidate would do."""

    action: str
    """What was done."""
    propensity: float
    """The chance with which it was done, above 0."""
    gain: float
    candidate: Mapping[str, float]
    """Action -> the candidate's chance of it; sums to 1."""
    before: Mapping[str, float]
    """Action -> the chance under the policy that the candidate is compared with; sums to 1."""
    possible: frozenset[str]
    """Every action that had a chance to be taken."""
    cell: str = ""
    """Calls that are alike: the doubly robust estimator predicts gains by cell and action."""
    cluster: str = ""
    """Calls that belong together are resampled together; empty: by itself."""


class Estimates(msgspec.Struct, frozen=True, kw_only=True):
    """One estimator's gains per Call."""

    candidate: Interval
    before: Interval
    difference: Interval


class OffPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What can be known of a candidate from what was logged, and what not."""

    calls: int
    """Of which something was logged."""
    known: int
    """Of which the gain of every action that either policy would take can be known; the estimates are of these."""
    by_chance: int
    """Of the known ones: those whose action was one of several that could have been taken."""
    unknown_share: float
    """The share of the candidate's actions that had no chance to be taken, of all Calls."""
    effective: float
    """How many Calls, decided as the candidate decides, would tell as much: (sum w)^2 / sum w^2."""
    weight_max: float
    weight_mean: float
    """1 up to chance; far from it, the recorded chances are not those with which actions were taken."""
    weight_mean_error: float
    """The standard error of `weight_mean`."""
    ips: Estimates | None
    """Inverse propensity scores. Source: Horvitz and Thompson, JASA 47 (1952), 663-685. None where nothing is known."""
    snips: Estimates | None
    """Self-normalised. Source: Swaminathan and Joachims, NIPS 28 (2015), eq. 9."""
    doubly_robust: Estimates | None
    """Source: Dudik, Langford and Li, ICML 28 (2011), eq. 1; gains predicted by cell and action, out of fold."""


def off_policy(logged: Sequence[Logged], *, seed: int, level: float = 0.95, resamples: int = RESAMPLES) -> OffPolicy:
    """The three estimates over the Calls for which they can be known. Raises: ValueError for an impossible propensity.

    Which Calls those are depends on the Case alone, never on the action that was drawn, so that leaving the others out
    does not bend what is said of these.
    """
    for one in logged:
        if not 0 < one.propensity <= 1:
            raise ValueError(f"an action was taken with the chance {one.propensity}")
    unknown = math.fsum(1 - _covered(one.candidate, one.possible) for one in logged) / len(logged) if logged else 0.0
    known = [one for one in logged if _is_known(one)]
    if not known:
        return OffPolicy(
            calls=len(logged), known=0, by_chance=0, unknown_share=unknown, effective=0.0, weight_max=0.0,
            weight_mean=0.0, weight_mean_error=0.0, ips=None, snips=None, doubly_robust=None,
        )  # fmt: skip
    numpy = load_numpy()
    new = numpy.array([one.candidate.get(one.action, 0.0) / one.propensity for one in known])
    old = numpy.array([one.before.get(one.action, 0.0) / one.propensity for one in known])
    gains = numpy.array([one.gain for one in known])
    expected_new, expected_old, residuals = _predicted(known, gains, seed)
    columns = [
        new * gains, old * gains, numpy.ones(len(known)), new, old,
        expected_new + new * residuals, expected_old + old * residuals,
    ]  # fmt: skip
    clusters = [one.cluster or str(place) for place, one in enumerate(known)] if any(o.cluster for o in known) else None
    found = bootstrap(
        columns,
        [*_three(0, 2, 1, 2), *_three(0, 3, 1, 4), *_three(5, 2, 6, 2)],
        seed=seed, clusters=clusters, level=level, resamples=resamples,
    )  # fmt: skip
    ips, snips, robust = (
        Estimates(candidate=found[at], before=found[at + 1], difference=found[at + 2]) for at in (0, 3, 6)
    )
    squares = float(numpy.sum(new**2))
    error = float(numpy.std(new, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else math.inf
    return OffPolicy(
        calls=len(logged), known=len(known), by_chance=sum(one.propensity < 1 for one in known), unknown_share=unknown,
        effective=float(numpy.sum(new)) ** 2 / squares if squares else 0.0,
        weight_max=float(new.max()), weight_mean=float(new.mean()), weight_mean_error=error,
        ips=ips, snips=snips, doubly_robust=robust,
    )  # fmt: skip


def tries_needed(deviation: float, within: float, level: float = 0.95) -> int:
    """How many Calls must get an action so that its mean gain is known to within +- `within`.

    deviation: of the gain of one Call. Source: the normal interval of a mean, n = (z * deviation / within)^2.
    Raises: ValueError where `within` is not above 0.
    """
    if within <= 0:
        raise ValueError("an interval of no width needs every Call there will ever be")
    return max(1, math.ceil((NormalDist().inv_cdf(0.5 + level / 2) * deviation / within) ** 2))


def _covered(chances: Mapping[str, float], possible: frozenset[str]) -> float:
    return math.fsum(chance for action, chance in chances.items() if action in possible)


def _is_known(one: Logged) -> bool:
    wanted = [*one.candidate.items(), *one.before.items()]
    return all(action in one.possible for action, chance in wanted if chance > CHANCE_MIN)


def _three(new: int, new_per: int, old: int, old_per: int) -> list[Statistic]:
    """Candidate, the policy before, and their difference, each as one column over another."""
    candidate, before = ratio(new, new_per), ratio(old, old_per)
    return [candidate, before, lambda sums: candidate(sums) - before(sums)]


def _predicted(
    known: Sequence[Logged], gains: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Predicted gains of what the candidate and the policy before would do, and what the taken actions gave beyond it.

    A gain is predicted as the mean of Calls of the same cell and action in the other folds; where there are none, of
    the same action; where there are none, of all.
    """
    numpy = load_numpy()
    # Whole clusters stand in one fold: what belongs to a Call must not predict it.
    names = [one.cluster or str(place) for place, one in enumerate(known)]
    random = numpy.random.default_rng(seed)
    fold_of = {
        name: int(fold)
        for name, fold in zip(dict.fromkeys(names), random.integers(0, FOLDS, len(set(names))), strict=True)
    }
    folds = [fold_of[name] for name in names]
    sums: dict[tuple[str, ...], list[list[float]]] = {}
    for one, gain, fold in zip(known, gains, folds, strict=True):
        for key in ((one.cell, one.action), (one.action,), ()):
            kept = sums.setdefault(key, [[0.0, 0.0] for _ in range(FOLDS)])
            kept[fold][0] += float(gain)
            kept[fold][1] += 1

    means: dict[tuple[int, tuple[str, ...]], float | None] = {}

    def mean_of(key: tuple[str, ...], left_out: int) -> float | None:
        at = (left_out, key)
        if at not in means:
            kept = [part for fold, part in enumerate(sums.get(key, ())) if fold != left_out]
            count = math.fsum(part[1] for part in kept)
            means[at] = math.fsum(part[0] for part in kept) / count if count else None
        return means[at]

    def expected(cell: str, action: str, fold: int) -> float:
        for key in ((cell, action), (action,), ()):
            found = mean_of(key, fold)
            if found is not None:
                return found
        return 0.0

    def of(chances: Mapping[str, float], cell: str, fold: int) -> float:
        return math.fsum(chance * expected(cell, action, fold) for action, chance in chances.items() if chance)

    pairs = list(zip(known, folds, strict=True))
    new = numpy.array([of(one.candidate, one.cell, fold) for one, fold in pairs])
    old = numpy.array([of(one.before, one.cell, fold) for one, fold in pairs])
    residuals = gains - numpy.array([expected(one.cell, one.action, fold) for one, fold in pairs])
    return new, old, residuals
