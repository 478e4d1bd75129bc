"""Is the candidate better? One answer from paired outcomes: a verdict, its interval, and how much more would settle it.

Owns what a Report of an upgrade, a gate or a probe says of a difference; the tests themselves are `evidence.py` (look
as often as you like), `paired.py` and `noninferiority.py` (one look). Pure Python, but for scores or clusters in one
look, which need numpy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from drivetrain.statistics.evidence import Tally, log_evidence, lower_end, merged, mirrored, tallied, told
from drivetrain.statistics.noninferiority import noninferiority, paired_interval
from drivetrain.statistics.paired import mcnemar, paired_bootstrap, sign_flips
from drivetrain.statistics.power import examples_needed, mean_needed, more_until

MODES = ("anytime", "fixed")
BETTER, WITHIN_MARGIN, WORSE, UNSETTLED = "better", "within margin", "worse", "not enough evidence"
VERDICTS = (BETTER, WITHIN_MARGIN, WORSE, UNSETTLED)
LOOK_EVERY = 50
"""Between two looks: an early end then costs at most as many examples too many."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What paired outcomes say of a candidate, beside what it was compared with."""

    mode: str
    """One of `MODES`: whether it holds at all looks together, or at one."""
    level: float
    """All verdicts of this comparison together are wrong with a chance of at most 1 - level."""
    margin: float
    one_sided: bool
    """Whether only "better" and "within margin" were asked for; `high` is 1 then."""
    pairs: int
    clusters: int
    """Pairs that belong together count once; `pairs` where each stands for itself."""
    before: float | None
    """Mean score, or accuracy; None where there is no pair."""
    after: float | None
    wins: int
    """Pairs in which the candidate's score is higher."""
    losses: int
    ties: int
    difference: float | None
    """`after` - `before`."""
    low: float
    high: float
    """The interval of `difference`."""
    e_better: float | None
    """Evidence that it is better: 20 happens to one that is not with a chance of at most 1/20. None in one look."""
    e_worse: float | None
    p_value: float
    """The chance of so much where there is no difference; one-sided where only that was asked for."""
    p_margin: float | None
    """One-sided, where the candidate is worse by just the margin; None without a margin."""
    verdict: str
    """One of `VERDICTS`."""
    more_needed: int | None
    """How many more examples would settle it with a chance of `power.POWER`, if they go on as these; 0 where it is
    settled, None where none within `power.EXAMPLES_MAX` would. In the fixed mode: how many fresh ones a new look needs,
    as these cannot be looked at again."""

    @property
    def settled(self) -> bool:
        """Whether there is a verdict."""
        return self.verdict != UNSETTLED


def compare(
    before: Sequence[float], after: Sequence[float], *, clusters: Sequence[str] | None = None,
    largest_cluster: int | None = None, level: float = 0.95, margin: float = 0.0, mode: str = "anytime",
    one_sided: bool = False, seed: int = 0,
) -> Comparison:  # fmt: skip
    """What the paired outcomes say: right or wrong, or scores in [0, 1], of the same examples in the same order.

    clusters: examples of one name belong together (repeats of a question, Calls of a customer). largest_cluster: who
    looks more than once at clusters of several sizes tells how large one gets, see `evidence.tallied`. margin: by how
    much the candidate may be worse and still be taken. one_sided: only whether it is better, which needs less.

    mode: "anytime" may be asked again with more examples as often as one likes, if they come in an order that has
    nothing to do with their outcomes: a Dataset that is sorted by slice or date is shuffled once, before. "fixed" is
    McNemar's exact test, for one look at a number of examples that was fixed before; for scores and clusters its like
    by flipped signs, and the bootstrap, both drawn with `seed`.

    The verdict is the first that holds: better; within margin (not worse by as much as that, perhaps a little); worse.
    Raises: ValueError for lengths, scores or settings that cannot be; DrivetrainError where numpy is needed and absent.
    """
    outcomes = _Outcomes.of(before, after, clusters)
    asked = _Asked.of(level, margin, one_sided)
    if mode not in MODES:
        raise ValueError(f"`{mode}` is none of {', '.join(MODES)}")
    if mode == "anytime":
        found = _anytime(outcomes, largest_cluster, asked)
    elif outcomes.differences and (clusters is not None or not outcomes.binary):
        found = _resampled(outcomes, asked, seed)
    else:
        found = _counted(outcomes, asked)
    return _told(outcomes, asked, mode, found)


def first_settled(
    before: Sequence[float], after: Sequence[float], *, every: int = LOOK_EVERY,
    clusters: Sequence[str] | None = None, level: float = 0.95, margin: float = 0.0, one_sided: bool = False,
) -> Comparison:  # fmt: skip
    """The comparison at the first look that settles it, looking after every so many examples and at the end.

    `pairs` tells after how many examples; what is left of them was saved. Their order must have nothing to do with
    their outcomes. It is kept, but for clusters: they are taken one after the other, as they first appear, and a look
    waits for the end of one. Arguments and errors: as `compare`.
    """
    if every < 1:
        raise ValueError(f"one looks after at least one example, not {every}")
    asked = _Asked.of(level, margin, one_sided)
    outcomes = _Outcomes.of(before, after, clusters).in_clusters()
    largest = max(Counter(outcomes.clusters).values(), default=1) if outcomes.clusters is not None else 1
    tally: Tally = {}
    end = 0
    while end < len(outcomes.differences):
        start, end = end, outcomes.look_after(end + every)
        seen = outcomes.part(start, end)
        tally = merged(tally, tallied(seen.differences, seen.clusters, largest=largest))
        if asked.verdict(_bets(tally, asked)) != UNSETTLED:
            break
    outcomes = outcomes.part(0, end)
    return _told(outcomes, asked, "anytime", _anytime(outcomes, largest, asked))


class _Outcomes(msgspec.Struct, frozen=True):
    """Paired outcomes that can be compared."""

    before: Sequence[float]
    after: Sequence[float]
    clusters: Sequence[str] | None
    differences: list[float]

    @classmethod
    def of(cls, before: Sequence[float], after: Sequence[float], clusters: Sequence[str] | None) -> _Outcomes:
        if len(before) != len(after):
            raise ValueError(f"{len(before)} outcomes before and {len(after)} after are no pairs")
        if clusters is not None and len(clusters) != len(before):
            raise ValueError(f"{len(clusters)} clusters are named for {len(before)} pairs")
        if not all(0 <= one <= 1 for scores in (before, after) for one in scores):
            raise ValueError("scores must lie between 0 and 1")
        differences = [float(new) - float(old) for old, new in zip(before, after, strict=True)]
        return cls(before, after, clusters, differences)

    @property
    def binary(self) -> bool:
        return all(one in (0, 1) for scores in (self.before, self.after) for one in scores)

    @property
    def wins(self) -> int:
        return sum(one > 0 for one in self.differences)

    @property
    def losses(self) -> int:
        return sum(one < 0 for one in self.differences)

    @property
    def ties(self) -> int:
        return len(self.differences) - self.wins - self.losses

    def in_clusters(self) -> _Outcomes:
        """The same with each cluster's pairs next to each other."""
        if self.clusters is None:
            return self
        first = {name: place for place, name in reversed(list(enumerate(self.clusters)))}
        order = sorted(range(len(self.clusters)), key=lambda place: first[self.clusters[place]])  # type: ignore[index]
        names = [self.clusters[place] for place in order]
        return _Outcomes.of([self.before[place] for place in order], [self.after[place] for place in order], names)

    def look_after(self, end: int) -> int:
        """Where the next look is: not before `end`, and not amid a cluster."""
        end = min(end, len(self.differences))
        while self.clusters is not None and end < len(self.clusters) and self.clusters[end] == self.clusters[end - 1]:
            end += 1
        return end

    def part(self, start: int, end: int) -> _Outcomes:
        """The pairs of some places."""
        names = None if self.clusters is None else self.clusters[start:end]
        return _Outcomes(self.before[start:end], self.after[start:end], names, self.differences[start:end])


class _Chances(msgspec.Struct, frozen=True, kw_only=True):
    """p-values, one-sided: of seeming better, worse, or no worse than the margin, where it is not."""

    better: float
    worse: float
    within: float


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be found out, and how surely."""

    level: float
    margin: float
    one_sided: bool

    @classmethod
    def of(cls, level: float, margin: float, one_sided: bool) -> _Asked:
        if not 0 < level < 1:
            raise ValueError(f"a level must lie between 0 and 1, not {level}")
        if not 0 <= margin < 1:
            raise ValueError(f"a margin is at least 0 and below 1, not {margin}")
        return cls(level=level, margin=margin, one_sided=one_sided)

    @property
    def tail(self) -> float:
        """The chance of an error that each direction has."""
        return (1 - self.level) / (1 if self.one_sided else 2)

    def verdict(self, chances: _Chances) -> str:
        if chances.better <= self.tail:
            return BETTER
        if self.margin and chances.within <= self.tail:
            return WITHIN_MARGIN
        return WORSE if not self.one_sided and chances.worse <= self.tail else UNSETTLED


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a test says, before it is put into a verdict."""

    low: float
    high: float
    chances: _Chances
    more_needed: int | None
    evidence: tuple[float, float] | None = None
    """Of better, and of worse."""


def _anytime(outcomes: _Outcomes, largest: int | None, asked: _Asked) -> _Found:
    tally = tallied(outcomes.differences, outcomes.clusters, largest=largest)
    needed = math.log(1 / asked.tail)
    bets = math.fsum(tally.values())
    return _Found(
        low=lower_end(tally, needed),
        high=1.0 if asked.one_sided else -lower_end(mirrored(tally), needed),
        chances=_bets(tally, asked),
        more_needed=_more(tally, needed, asked, len(outcomes.differences) / bets) if bets else None,
        evidence=(told(log_evidence(tally)), told(log_evidence(mirrored(tally)))),
    )


def _bets(tally: Tally, asked: _Asked) -> _Chances:
    """Evidence as p-values that hold at every look. Source: Ville's inequality; 1 / evidence."""
    return _Chances(
        better=math.exp(min(0.0, -log_evidence(tally))),
        worse=math.exp(min(0.0, -log_evidence(mirrored(tally)))),
        within=math.exp(min(0.0, -log_evidence(tally, -asked.margin))) if asked.margin else 1.0,
    )


def _more(tally: Tally, needed: float, asked: _Asked, per_bet: float) -> int | None:
    """The fewest examples that are expected to settle any of what was asked."""
    ways = [more_until(tally, needed)]
    if not asked.one_sided:
        ways.append(more_until(mirrored(tally), needed))
    if asked.margin:
        ways.append(more_until(tally, needed, beyond=-asked.margin))
    fewest = _fewest(ways)
    return None if fewest is None else math.ceil(fewest * per_bet)


def _counted(outcomes: _Outcomes, asked: _Asked) -> _Found:
    """One look at right and wrong, each example by itself."""
    wins, losses, ties = outcomes.wins, outcomes.losses, outcomes.ties
    exact = mcnemar(wins, losses)
    low, high = paired_interval(wins, losses, ties, 1 - 2 * asked.tail)
    # As if half a win and half a loss had been seen besides, so that no few pairs promise that all will be like them.
    pairs = wins + losses + ties + 1
    discordance, difference = (wins + losses + 1) / pairs, (wins - losses) / pairs
    ways = []
    if difference > 0 or not asked.one_sided:
        ways.append(
            examples_needed(
                discordance=discordance, difference=difference, level=asked.level, one_sided=asked.one_sided
            )
        )
    if asked.margin and difference > -asked.margin:
        ways.append(_mean_needed(math.sqrt(discordance - difference**2), difference + asked.margin, asked))
    return _Found(
        low=_kept_in(low, exact.better, asked),
        high=1.0 if asked.one_sided else -_kept_in(-high, exact.worse, asked),
        chances=_Chances(
            better=exact.better, worse=exact.worse, within=noninferiority(wins, losses, ties, asked.margin)
        ),
        more_needed=_fewest(ways) if pairs > 1 else None,
    )


def _resampled(outcomes: _Outcomes, asked: _Asked, seed: int) -> _Found:
    """One look at scores, or at examples that belong together."""
    differences, clusters, level = outcomes.differences, outcomes.clusters, 1 - 2 * asked.tail
    found = paired_bootstrap(differences, seed=seed, clusters=clusters, level=level)
    within = found
    if asked.margin:
        within = paired_bootstrap(differences, seed=seed, clusters=clusters, level=level, beyond=-asked.margin)
    flips = sign_flips(differences, seed=seed, clusters=clusters)
    deviation = found.error * math.sqrt(len(differences))
    ways = []
    if found.value > 0 or not asked.one_sided:
        ways.append(_mean_needed(deviation, found.value, asked))
    if asked.margin and found.value > -asked.margin:
        ways.append(_mean_needed(deviation, found.value + asked.margin, asked))
    return _Found(
        low=_kept_in(found.low, flips.better, asked),
        high=1.0 if asked.one_sided else -_kept_in(-found.high, flips.worse, asked),
        # Of two tests the less sure one has the word, so that verdict and interval tell the same.
        chances=_Chances(
            better=flips.better if found.low > 0 else max(flips.better, found.better),
            worse=flips.worse if found.high < 0 else max(flips.worse, found.worse),
            within=within.better,
        ),
        more_needed=_fewest(ways) if found.error else None,
    )


def _kept_in(end: float, chance: float, asked: _Asked) -> float:
    """An interval's lower end, stretched to 0 where the test of no difference, which is exact, does not refuse it."""
    return min(end, 0.0) if chance > asked.tail else end


def _mean_needed(deviation: float, difference: float, asked: _Asked) -> int | None:
    return mean_needed(deviation=deviation, difference=difference, level=asked.level, one_sided=asked.one_sided)


def _fewest(ways: Sequence[int | None]) -> int | None:
    return min((one for one in ways if one is not None), default=None)


def _told(outcomes: _Outcomes, asked: _Asked, mode: str, found: _Found) -> Comparison:
    pairs, chances = len(outcomes.differences), found.chances
    verdict = asked.verdict(chances)
    old, new = (math.fsum(scores) / pairs if pairs else None for scores in (outcomes.before, outcomes.after))
    up, down = found.evidence or (None, None)
    return Comparison(
        mode=mode, level=asked.level, margin=asked.margin, one_sided=asked.one_sided, pairs=pairs,
        clusters=pairs if outcomes.clusters is None else len(set(outcomes.clusters)), before=old, after=new,
        wins=outcomes.wins, losses=outcomes.losses, ties=outcomes.ties,
        difference=math.fsum(outcomes.differences) / pairs if pairs else None, low=found.low, high=found.high,
        e_better=up, e_worse=down,
        p_value=chances.better if asked.one_sided else min(1.0, 2 * min(chances.better, chances.worse)),
        p_margin=chances.within if asked.margin else None, verdict=verdict,
        more_needed=0 if verdict != UNSETTLED else found.more_needed,
    )  # fmt: skip
