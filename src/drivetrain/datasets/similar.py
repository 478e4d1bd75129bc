"""Near-duplicate texts: exactly the connected components of "at least this alike", without comparing all with all.

Alike means: the Jaccard similarity of the two texts' shingles (every `SHINGLE_CHARS` characters that follow each other)
after normalising is at least the threshold. Pairs are found by their rarest shingles (prefix filter; Chaudhuri, Ganti,
Kaushik 2006, and Bayardo, Ma, Srikant 2007): two sets that are alike share one of the first |x| - ceil(t |x|) + 1 of
each in one order of all shingles. So nothing is missed by chance, as it would be with MinHash.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence

from drivetrain.core.errors import DrivetrainError

SHINGLE_CHARS = 5
TEXT_CHARS_MAX = 2_000
"""Only so much of a text is looked at: two documents with the same two pages are alike."""
TEXTS_MAX = 100_000
"""Different texts, at 0.5 ms and 10 KB each."""
COMPARISONS_MAX = 30_000_000
"""Texts with so much in common have a better key to be grouped by."""
BITMAP_BITS = 1_024
"""Per text; with as many bits as shingles in it, two texts that share few would look as if they shared half."""

ROUNDING = 1e-9
"""0.55 * 20 is a little more than 11."""


def similar_groups(texts: Sequence[str], threshold: float) -> list[int]:
    """Per text the place of the first text of its group. Deterministic. Raises: DrivetrainError where it is too much.

    Costs about 0.5 ms and 10 KB per different text of 200 characters.
    """
    normal = [normalised(text) for text in texts]
    firsts: dict[str, int] = {}
    for place, text in enumerate(normal):
        firsts.setdefault(text, place)
    if len(firsts) > TEXTS_MAX:
        raise DrivetrainError(
            f"There are {len(firsts):,} different texts; at most {TEXTS_MAX:,} can be compared.",
            do="Group by a column that says what belongs together, or by equal values with --similar 1.",
        )
    distinct = list(firsts.values())
    parents = _joined(_ranked([normal[place] for place in distinct]), threshold)
    group = {normal[place]: distinct[_root(parents, at)] for at, place in enumerate(distinct)}
    return [group[text] for text in normal]


def normalised(text: str) -> str:
    """What of a text counts: NFKC, caseless, white space and punctuation as one blank."""
    folded = unicodedata.normalize("NFKC", text[:TEXT_CHARS_MAX]).casefold()
    return " ".join("".join(one if one.isalnum() else " " for one in folded).split())


def shingles(text: str) -> set[str]:
    """Every `SHINGLE_CHARS` characters that follow each other; a shorter text is one shingle."""
    if len(text) <= SHINGLE_CHARS:
        return {text}
    return {text[at : at + SHINGLE_CHARS] for at in range(len(text) - SHINGLE_CHARS + 1)}


def _ranked(texts: list[str]) -> list[list[int]]:
    """Each text's shingles as numbers, the rarest lowest. They are cut twice: all as text would fill the memory."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(shingles(text))
    order = {shingle: rank for rank, shingle in enumerate(sorted(counts, key=lambda one: (counts[one], one)))}
    return [sorted(map(order.__getitem__, shingles(text))) for text in texts]


def _joined(ranked: list[list[int]], threshold: float) -> list[int]:
    """A union-find forest over the sets; shorter ones come first, so that each meets only those of at most its size.

    Of a set that waits for longer ones n - ceil(2t / (1 + t) n) + 1 shingles are enough, and a pair whose first common
    shingle stands too late in either to leave enough others is not compared (PPJoin; Xiao et al. 2008). Each bit in
    which two sets' bitmaps differ is a shingle that only one of them has; most pairs differ in too many to be alike,
    and their sets are never looked at (bitmap filter; Sandes, Teodoro, Melo 2020).
    """
    parents = list(range(len(ranked)))
    bitmaps = [_bitmap(one) for one in ranked]
    sizes = [len(one) for one in ranked]
    share = threshold / (1 + threshold)
    having: dict[int, dict[int, list[tuple[int, int]]]] = {}
    """Shingle -> group -> (set, place of the shingle in it): what is in one's own group already is passed at once."""
    comparisons = 0
    for at in sorted(range(len(ranked)), key=lambda one: (len(ranked[one]), one)):
        mine, size, own = ranked[at], len(ranked[at]), at
        mine_as_set, my_bits, met = frozenset(mine), bitmaps[at], set[int]()
        shortest = threshold * size - ROUNDING
        for place, shingle in enumerate(mine[: size - math.ceil(threshold * size - ROUNDING) + 1]):
            for group, members in having.get(shingle, {}).items():
                root = parents[group]  # nearly always; a call for each group would be most of the work
                if parents[root] != root:
                    root = _root(parents, group)
                if root == own:
                    continue
                for other, other_place in members:
                    if other in met:
                        continue
                    met.add(other)
                    theirs = sizes[other]
                    if theirs < shortest:
                        continue
                    least = share * (size + theirs) - ROUNDING
                    if size - place < least or theirs - other_place < least:
                        continue
                    comparisons += 1
                    if (my_bits ^ bitmaps[other]).bit_count() > size + theirs - 2 * least:
                        continue
                    common = len(mine_as_set.intersection(ranked[other]))
                    if common / (size + theirs - common) >= threshold:
                        _join(parents, at, other)
                        own = _root(parents, at)
                        break
        for place, shingle in enumerate(mine[: size - math.ceil(2 * share * size - ROUNDING) + 1]):
            having.setdefault(shingle, {}).setdefault(own, []).append((at, place))
        if comparisons > COMPARISONS_MAX:
            raise DrivetrainError(
                f"The texts have too much in common: {COMPARISONS_MAX:,} comparisons did not do.",
                do="Group by a column that says what belongs together, or with a higher --similar.",
            )
    return parents


def _bitmap(ranks: list[int]) -> int:
    bits = bytearray(BITMAP_BITS // 8)
    for rank in ranks:
        bits[rank % BITMAP_BITS >> 3] |= 1 << (rank & 7)
    return int.from_bytes(bits)


def _root(parents: list[int], at: int) -> int:
    while parents[at] != at:
        parents[at] = parents[parents[at]]
        at = parents[at]
    return at


def _join(parents: list[int], one: int, other: int) -> None:
    """The lower place is the root, so that a group is named by its first text."""
    first, second = sorted((_root(parents, one), _root(parents, other)))
    parents[second] = first
