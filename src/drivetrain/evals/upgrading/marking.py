"""What both answers of a pair are worth, by one explicit scorer; and how the verdict hangs on how answers are read.

An answer that was scored elsewhere keeps that score. Any other one is read and scored as an eval would. Called by
`upgrade.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from drivetrain.core import scorers
from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.evals import Score, Scorer
from drivetrain.evals.causes import FAILED, FORMAT, LENGTH, REFUSAL, WRONG, is_cut_off, is_refusal
from drivetrain.evals.reading import inside_fences, number_of
from drivetrain.evals.scoring import Answer, compiled
from drivetrain.evals.upgrading.pairs import Mark, Marked, Pair, Side
from drivetrain.evals.upgrading.verdict import Asked, Verdict, verdict_of

YES_NO = ("last_yes_no", "first_yes_no", "bracketed_yes_no", "yes_no")
NUMBERS = ("last_number", "first_number", "number")
JSONS = ("json", "unfenced_json", "first_json")
TEXTS = ("as_is", "unfenced", "first_line", "last_line")
"""Readings that may be meant where such answers are expected, the one that is taken unless a person says otherwise
first: models that reason say what they found at the end."""
Marker = Callable[[Pair], Marked]
Scored = Callable[[Answer, Any, Any], Score]


class ByReading(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict where answers are read in one way."""

    reading: str
    chosen: bool
    """Whether the Report's verdict is by this one."""
    before: float
    """Share that is right."""
    after: float
    unread: tuple[float, float]
    """Shares that cannot be read, before and after."""
    difference: float
    low: float
    high: float
    verdict: str


def plausible_readings(right: Iterable[Any]) -> tuple[str, ...]:
    """The readings that may be meant, by what is expected; none where no text is."""
    expected = {one for one in right if isinstance(one, str)}
    if not expected:
        return ()
    if all(one.strip().casefold() in ("yes", "no") for one in expected):
        return YES_NO
    if all(number_of(one) is not None for one in expected):
        return NUMBERS
    return JSONS if all(one.strip()[:1] in ("{", "[") for one in expected) else TEXTS


def scorer_of(reading: str) -> Scorer:
    """How an answer that is read so is held against what is expected."""
    if reading in NUMBERS:
        return scorers.within(absolute=0.0, reading=reading)
    if reading in JSONS:
        return scorers.exact(reading=reading)
    return scorers.normalised(reading=reading)


def marker_by(reading: str) -> Marker:
    """Marks pairs whose texts are read in one way; JSON that is expected as text is taken for what it says."""
    mark = marker(compiled(scorer_of(reading)))
    if reading not in JSONS:
        return mark

    def marked(pair: Pair) -> Marked:
        try:
            expected = parse_json(str(pair.expected).encode("utf-8", "replace"))
        except MalformedJson:
            return mark(pair)
        found = mark(msgspec.structs.replace(pair, expected=expected))
        return msgspec.structs.replace(found, pair=pair)

    return marked


def marker(score: Scored) -> Marker:
    """Marks pairs by a compiled scorer."""

    def mark(pair: Pair, side: Side) -> Mark:
        if side.score is not None:
            return _scored(side, side.score)
        if side.error or side.text is None:
            return Mark(value=0.0, cause=FAILED)
        found = _mark(score, pair, side)
        inner = inside_fences(side.text) if found.value < 1 else None
        if inner is None:
            return found
        # The value of a typed answer was read from the text as it stands, so it says nothing of what stands inside.
        bare = msgspec.structs.replace(side, text=inner, value=None)
        if _mark(score, pair, bare).value < 1:
            return found
        return msgspec.structs.replace(found, cause=FORMAT, wrapped=True)

    def marked(pair: Pair) -> Marked:
        agreed = pair.truth == "agreement"
        return Marked(
            pair=pair, before=Mark(value=1.0) if agreed else mark(pair, pair.before), after=mark(pair, pair.after)
        )

    return marked


def readings_of(pairs: Sequence[Pair], readings: Sequence[str], chosen: str, asked: Asked) -> tuple[ByReading, ...]:
    """The verdict on shuffled pairs by each reading."""
    found = []
    for name in readings:
        marked = [*map(marker_by(name), pairs)]
        verdict = verdict_of(marked, asked)
        found.append(by_reading(name, marked, verdict, chosen=name == chosen))
    return tuple(found)


def by_reading(name: str, marked: Sequence[Marked], verdict: Verdict, *, chosen: bool) -> ByReading:
    """One line of that table."""
    count, everything = len(marked), verdict.everything
    unread = (sum(one.before.unread for one in marked) / count, sum(one.after.unread for one in marked) / count)
    return ByReading(
        reading=name, chosen=chosen, before=everything.before or 0.0, after=everything.after or 0.0, unread=unread,
        difference=everything.difference or 0.0, low=everything.low, high=everything.high, verdict=verdict.word,
    )  # fmt: skip


def _mark(score: Scored, pair: Pair, side: Side) -> Mark:
    answer = Answer(text=side.text or "", value=side.value, error=side.error, finish_reason=side.finish_reason)
    found = score(answer, pair.expected, {})
    return Mark(value=found.value, cause=found.cause if found.value < 1 else "", unread=found.unread)


def _scored(side: Side, score: float) -> Mark:
    if score >= 1:
        return Mark(value=score)
    if side.cleaned is not None and side.cleaned >= 1:
        return Mark(value=score, cause=FORMAT, wrapped=True)
    if is_refusal(side.text or "", side.finish_reason):
        return Mark(value=score, cause=REFUSAL)
    return Mark(value=score, cause=LENGTH if is_cut_off(side.finish_reason) else WRONG)
