"""How the form of answers changed, apart from whether they are right: what they look like, and how long they are.

Shapes are found by plain rules on the text; what each means stands beside its name. Pure.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence

import msgspec

from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.evals.upgrading.pairs import Marked
from drivetrain.statistics.noninferiority import paired_interval

SHAPES = {
    "nothing": "no text at all",
    "bare": "a word or two, such as `[No]`",
    "line": "one line of text",
    "text": "several lines of plain text",
    "markdown": "headings, lists or bold type",
    "fenced": "a block within Markdown fences",
    "json": "one JSON object or list",
}
"""Shape -> what it is; the first that fits of nothing, json, fenced, bare, markdown, line, text."""
BARE_WORDS, BARE_CHARS = 3, 40
DRIFT_SHARE = 0.05
"""A shape that became commoner or rarer by less is not named."""
COLLAPSE, GROWTH, MOVED = 1 / 3, 3.0, 1.25
"""Of the median length: below or above which ratio it is called a collapse, a growth, or shorter or longer."""
LEVEL = 0.95
_MARKDOWN = re.compile(r"^(?:#{1,6} |\s*[-*] |\s*\d+\. )|\*\*[^*\n]+\*\*", re.MULTILINE)
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)


class ShapeShare(msgspec.Struct, frozen=True, kw_only=True):
    """How common a shape was and is."""

    shape: str
    before: float
    after: float
    low: float
    """The interval of the difference, at 95 % for all shapes together."""
    high: float

    @property
    def drifted(self) -> bool:
        """Whether it changed by enough to be named, and not by chance."""
        return abs(self.after - self.before) >= DRIFT_SHARE and not self.low <= 0 <= self.high


class Length(msgspec.Struct, frozen=True, kw_only=True):
    """How long answers were and are, in characters."""

    before: tuple[float, float, float]
    """10 %, half and 90 % are at most so long."""
    after: tuple[float, float, float]
    shorter: float
    """Share of pairs in which the candidate's answer is shorter."""
    longer: float
    word: str
    """`collapse`, `shorter`, `alike`, `longer` or `growth`."""


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What changed in form."""

    pairs: int
    """With both texts known."""
    shapes: tuple[ShapeShare, ...]
    length: Length | None
    unread: tuple[int, int]
    """Answers that could not be read, before and after, of all pairs."""
    wrapped: tuple[int, int]
    """Answers that would be right without the Markdown around them, before and after, of all pairs."""

    @property
    def named(self) -> tuple[str, ...]:
        """What drifted, each in a sentence's part."""
        found = []
        length = self.length
        if length is not None and length.word != "alike":
            said = {"collapse": "answers collapse in length", "growth": "answers grow in length"}
            found.append(
                f"{said.get(length.word, f'answers are {length.word}')}: half of them have at most "
                f"{length.after[1]:,.0f} characters, {length.before[1]:,.0f} before"
            )
        for one in sorted(self.shapes, key=lambda one: one.before - one.after):
            if one.drifted and one.after > one.before:
                found.append(
                    f"the format changes: {SHAPES[one.shape]} in {one.after:.1%} of answers, {one.before:.1%} before"
                )
        return tuple(found)


def shape_of(text: str) -> str:
    """One of `SHAPES`."""
    bare = text.strip()
    if not bare:
        return "nothing"
    if bare[0] in "{[":
        try:
            parse_json(bare.encode("utf-8", "replace"))
        except MalformedJson:
            pass
        else:
            return "json"
    if _FENCE.search(text):
        return "fenced"
    if "\n" not in bare and len(bare) <= BARE_CHARS and len(bare.split()) <= BARE_WORDS:
        return "bare"
    if _MARKDOWN.search(bare):
        return "markdown"
    return "text" if "\n" in bare else "line"


def drift_of(marked: Sequence[Marked]) -> Drift:
    """What changed in form over these pairs."""
    texts = [
        (one.pair.before.text, one.pair.after.text)
        for one in marked
        if one.pair.before.text is not None and one.pair.after.text is not None
    ]
    shapes = [(shape_of(old), shape_of(new)) for old, new in texts]
    seen = [name for name in SHAPES if any(name in pair for pair in shapes)]
    return Drift(
        pairs=len(texts),
        shapes=tuple(_share(name, shapes, 1 - (1 - LEVEL) / len(seen)) for name in seen),
        length=_length([(len(old), len(new)) for old, new in texts]) if texts else None,
        unread=(sum(one.before.unread for one in marked), sum(one.after.unread for one in marked)),
        wrapped=(sum(one.before.wrapped for one in marked), sum(one.after.wrapped for one in marked)),
    )


def _share(name: str, shapes: Sequence[tuple[str, str]], level: float) -> ShapeShare:
    counts = Counter((old == name, new == name) for old, new in shapes)
    gained, lost = counts[False, True], counts[True, False]
    low, high = paired_interval(gained, lost, len(shapes) - gained - lost, level)
    both = counts[True, True]
    return ShapeShare(
        shape=name, before=(both + lost) / len(shapes), after=(both + gained) / len(shapes), low=low, high=high
    )


def _length(lengths: Sequence[tuple[int, int]]) -> Length:
    before, after = (_tenths([pair[side] for pair in lengths]) for side in (0, 1))
    shorter, longer = (sum(test) / len(lengths) for test in (
        [new < old for old, new in lengths], [new > old for old, new in lengths],
    ))  # fmt: skip
    ratio = (after[1] + 1) / (before[1] + 1)
    word = "alike"
    if ratio <= COLLAPSE:
        word = "collapse"
    elif ratio >= GROWTH:
        word = "growth"
    elif ratio <= 1 / MOVED:
        word = "shorter"
    elif ratio >= MOVED:
        word = "longer"
    return Length(before=before, after=after, shorter=shorter, longer=longer, word=word)


def _tenths(values: Sequence[int]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return (
        float(ordered[(len(ordered) - 1) // 10]),
        float(statistics.median(ordered)),
        float(ordered[-(-(len(ordered) - 1) * 9 // 10)]),
    )
