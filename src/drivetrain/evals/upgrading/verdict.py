"""The verdict on a candidate: upgrade, stay, route only these, or not enough evidence; and by which evidence.

One rule, in words, for Reports and for the how-to:

- The whole is judged by evidence that may be looked at as often as one likes, at one level for all verdicts together.
- Better: **upgrade**. Slices that are shown to be worse stay behind: then **route only these**, the others. As the
  whole is better and they are worse, the rest is better still.
- Not worse by as much as the margin, and cheaper by at least `CHEAPER_SHARE`: **upgrade**, for its cost. Not cheaper:
  **stay**, as nothing is gained.
- Otherwise slices are looked at: those that are better, or within the margin and cheaper, each with evidence of its
  own under Holm's rule: **route only these**.
- Worse, and no such slice: **stay**. Nothing shown: **not enough evidence**, and how many more examples would do.

Whoever does not look early asks for one look at a number of pairs that was fixed before (`Asked.fixed`): the same rule,
by McNemar's exact test, which has more power.

`compare` and `first_settled` of `statistics/` find everything here; this room only puts it into words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.evals.upgrading.pairs import Marked, Pair
from drivetrain.statistics.comparing import (
    BETTER,
    LOOK_EVERY,
    UNSETTLED,
    WITHIN_MARGIN,
    WORSE,
    Comparison,
    compare,
    first_settled,
)
from drivetrain.statistics.means import mean_interval

UPGRADE, STAY, ROUTE, NOT_ENOUGH = "upgrade", "stay", "route only these", "not enough evidence"
WORDS = (UPGRADE, STAY, ROUTE, NOT_ENOUGH)
CHEAPER_SHARE = 0.10
"""A candidate that is merely no worse must save so much of the cost per Call to be worth a change."""
SLICE_PAIRS_MIN = 20
"""A slice with fewer is told, and not judged."""
SLICES_MAX = 100
"""More values are ids, and no slices."""
LEVEL = 0.95


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be found out."""

    margin: float = 0.0
    """By how much the candidate may be worse, as a share of the examples, and still be taken for its cost."""
    level: float = LEVEL
    look_every: int = LOOK_EVERY
    cheaper_share: float = CHEAPER_SHARE
    fixed: bool = False
    """One look at all pairs, whose number was chosen before, instead of one after every `look_every`."""

    @property
    def mode(self) -> str:
        """As `compare` calls it."""
        return "fixed" if self.fixed else "anytime"


class SliceVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One slice by itself."""

    name: str
    pairs: int
    comparison: Comparison
    """At the level that Holm's rule leaves it."""
    verdict: str
    """`better`, `within margin`, `worse`, `not enough evidence`; of few pairs always the last."""
    cheaper: bool
    takes: bool
    """Whether there is evidence of its own that it should go to the candidate."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and why."""

    word: str
    """One of `WORDS`."""
    why: str
    """One sentence."""
    whole: Comparison
    """All pairs, at the look that settled it, or at the last one."""
    everything: Comparison
    """All pairs that there are; the same as `whole` where none came after it was settled."""
    cheaper: bool
    """Whether the candidate saves at least the stated share of the cost per Call, with 95 % confidence."""
    route: tuple[str, ...] = ()
    """Of `route only these`: the slices."""
    slices: tuple[SliceVerdict, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether more of the same pairs would change nothing: the whole and every slice with enough pairs is
        settled."""
        judged = [one for one in self.slices if one.pairs >= SLICE_PAIRS_MIN]
        return self.whole.settled and all(one.verdict != UNSETTLED for one in judged)


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of all pairs before the first one is looked at."""

    group_max: int
    """Pairs of the largest group."""
    weight_max: float


def frame_of(pairs: Sequence[Pair]) -> Frame:
    """Raises: ValueError where there is no pair."""
    groups = Counter(one.group or one.id for one in pairs)
    return Frame(group_max=max(groups.values()), weight_max=max(one.weight for one in pairs))


def verdict_of(marked: Sequence[Marked], asked: Asked, frame: Frame | None = None) -> Verdict:
    """The verdict on pairs that stand in the order of `shuffled`.

    frame: of all pairs, where these are the first of them and whoever asks looks again when there are more; None: these
    are all, and the looks are found here. Raises: ValueError where there is none; DrivetrainError for more slices than
    can be judged.
    """
    if not marked:
        raise ValueError("a verdict on nothing")
    if frame is not None:
        whole = _compared(marked, asked, asked.level, frame)
        slices = _slices(marked, asked, frame)
        return _worded(whole, whole, slices, is_cheaper(marked, asked.cheaper_share), asked)
    frame = frame_of([one.pair for one in marked])
    if asked.fixed:
        return verdict_of(marked, asked, frame)
    scores = _scores(marked, frame.weight_max)
    whole = _unscaled(
        first_settled(
            scores.before, scores.after, every=asked.look_every, clusters=scores.clusters, level=asked.level,
            margin=asked.margin * scores.scale,
        ),
        scores.scale, asked.margin,
    )  # fmt: skip
    everything = whole if whole.pairs == len(marked) else _compared(marked, asked, asked.level, frame)
    slices = _slices(marked, asked, frame)
    return _worded(whole, everything, slices, is_cheaper(marked, asked.cheaper_share), asked)


def is_cheaper(marked: Sequence[Marked], share: float) -> bool:
    """Whether the candidate saves at least a share of what the answers cost before, by a 95 % interval of the mean."""
    mean_weight = math.fsum(one.pair.weight for one in marked) / len(marked)
    saved = [
        ((1 - share) * one.pair.before.cost_nano_usd - one.pair.after.cost_nano_usd) * one.pair.weight / mean_weight
        for one in marked
        if one.pair.before.cost_nano_usd is not None and one.pair.after.cost_nano_usd is not None
    ]
    return len(saved) > 1 and mean_interval(saved)[0] > 0


class _Scores(msgspec.Struct, frozen=True):
    """Scores as `compare` takes them. Unequal weights scale them: what is compared then is the weighted mean."""

    before: list[float]
    after: list[float]
    clusters: list[str] | None
    scale: float
    """What the weighted mean was multiplied with, so that no score is above 1."""


def _scores(marked: Sequence[Marked], most: float) -> _Scores:
    weights = [one.pair.weight / most for one in marked]
    groups = [one.pair.group or one.pair.id for one in marked]
    return _Scores(
        [one.before.value * weight for one, weight in zip(marked, weights, strict=True)],
        [one.after.value * weight for one, weight in zip(marked, weights, strict=True)],
        groups if len(set(groups)) < len(groups) else None,
        sum(weights) / len(weights),
    )


def _compared(marked: Sequence[Marked], asked: Asked, level: float, frame: Frame) -> Comparison:
    scores = _scores(marked, frame.weight_max)
    clusters = scores.clusters
    if clusters is None and frame.group_max > 1 and not asked.fixed:
        clusters = [one.pair.group or one.pair.id for one in marked]
    found = compare(
        scores.before, scores.after, clusters=clusters, level=level, margin=asked.margin * scores.scale,
        mode=asked.mode, largest_cluster=frame.group_max if clusters is not None else None,
    )  # fmt: skip
    return _unscaled(found, scores.scale, asked.margin)


def _unscaled(found: Comparison, scale: float, margin: float) -> Comparison:
    """A comparison of scaled scores, told in the scores' own unit."""
    if scale == 1 or found.before is None or found.after is None or found.difference is None:
        return found
    return msgspec.structs.replace(
        found, before=found.before / scale, after=found.after / scale, difference=found.difference / scale,
        low=max(-1.0, found.low / scale), high=min(1.0, found.high / scale), margin=margin,
    )  # fmt: skip


def _slices(marked: Sequence[Marked], asked: Asked, frame: Frame) -> tuple[SliceVerdict, ...]:
    """Every slice, the largest first: Holm's rule, step by step, each step by `compare` at the level it is left."""
    parts: dict[str, list[Marked]] = {}
    for one in marked:
        parts.setdefault(one.pair.slice, []).append(one)
    if set(parts) == {""}:
        return ()
    if len(parts) > SLICES_MAX:
        raise DrivetrainError(
            f"{len(parts):,} values are ids, and no slices: at most {SLICES_MAX} are judged together.",
            do="Name a column with fewer values by `--slice`.",
        )
    judged = {name for name, part in parts.items() if len(part) >= SLICE_PAIRS_MIN}
    # Within a slice each pair has one weight.
    frames = {
        name: Frame(group_max=frame.group_max, weight_max=max(one.pair.weight for one in part))
        for name, part in parts.items()
    }
    first = {name: _compared(part, asked, asked.level, frames[name]) for name, part in parts.items()}

    def strength(name: str) -> float:
        found = first[name]
        return min(found.p_value, 2 * found.p_margin if found.p_margin is not None else 1.0)

    found: dict[str, Comparison] = dict(first)
    ended = False
    for rank, name in enumerate(sorted(judged, key=lambda name: (strength(name), name))):
        level = 1 - (1 - asked.level) / (len(judged) - rank)
        found[name] = _compared(parts[name], asked, level, frames[name])
        ended = ended or not found[name].settled
        if ended:
            found[name] = msgspec.structs.replace(found[name], verdict=UNSETTLED)
    told = []
    for name, part in sorted(parts.items(), key=lambda item: (-len(item[1]), item[0])):
        verdict = found[name].verdict if name in judged else UNSETTLED
        cheaper = is_cheaper(part, asked.cheaper_share)
        takes = verdict == BETTER or (verdict == WITHIN_MARGIN and cheaper)
        told.append(
            SliceVerdict(
                name=name, pairs=len(part), comparison=found[name], verdict=verdict, cheaper=cheaper, takes=takes
            )
        )
    return tuple(told)


def _worded(
    whole: Comparison, everything: Comparison, slices: tuple[SliceVerdict, ...], cheaper: bool, asked: Asked
) -> Verdict:
    takes = tuple(one.name for one in slices if one.takes)
    worse = [one.name for one in slices if one.verdict == WORSE]
    rest = tuple(one.name for one in slices if one.verdict != WORSE)
    gains = whole.verdict == BETTER or (whole.verdict == WITHIN_MARGIN and cheaper)

    def told(word: str, why: str, route: tuple[str, ...] = ()) -> Verdict:
        return Verdict(
            word=word, why=why, whole=whole, everything=everything, cheaper=cheaper, route=route, slices=slices
        )

    saves = f"at least {asked.cheaper_share:.0%} cheaper"
    if gains and not worse:
        if whole.verdict == BETTER:
            return told(UPGRADE, f"more answers are right, {points(whole)}")
        return told(UPGRADE, f"no worse by as much as {asked.margin * 100:g} points, and {saves}")
    if gains and whole.verdict == BETTER and rest:
        return told(ROUTE, f"better on the whole, and worse on {listed(worse)}", rest)
    if takes:
        on_whole = {WORSE: "worse", UNSETTLED: "undecided"}.get(whole.verdict, "no gain")
        return told(ROUTE, f"{on_whole} on the whole, and a gain on {listed(takes)}", takes)
    if whole.verdict == WORSE:
        return told(STAY, f"fewer answers are right, {points(whole)}")
    if gains:
        return told(STAY, f"a gain on the whole that no slice shows by itself, and worse on {listed(worse)}")
    if whole.verdict == WITHIN_MARGIN:
        return told(STAY, f"no worse by as much as {asked.margin * 100:g} points, but not {saves}: nothing is gained")
    return told(NOT_ENOUGH, _missing(whole, asked))


def points(found: Comparison) -> str:
    """`+17.2 points (95 %: +10.1 to +24.0)`."""
    low, high = found.low * 100, found.high * 100
    return f"{(found.difference or 0) * 100:+.1f} points ({found.level:.0%}: {low:+.1f} to {high:+.1f})"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names of many, in words."""
    shown = ", ".join(f"`{one}`" for one in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _missing(found: Comparison, asked: Asked) -> str:
    if not found.wins + found.losses:
        return f"in {found.pairs:,} pairs the two are never told apart" + (
            "" if asked.margin else "; with a margin it could be shown that the candidate is no worse"
        )
    more, which = found.more_needed, "fresh ones" if asked.fixed else "more"
    needs = (
        "no number of examples is likely to settle it" if more is None else f"about {more:,} {which} would settle it"
    )
    return f"{points(found)} in {found.pairs:,} pairs leaves open which is better; {needs}"
