"""Two answers to one question: what was answered, and what the candidate answers; and what each of them is worth.

Owns the order in which pairs are looked at. It does not ask anybody, and it does not read files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

TRUTHS = ("outcome", "expected", "judge", "recorded", "agreement")
"""What an answer is held against: an Outcome of its Call, what an eval or a file expects, a judge, a score that came
with the answer, or, where nothing better is known, the answer that was given before."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One answer."""

    text: str | None = None
    """None: not known, as where a file tells only whether it was right."""
    value: Any = None
    """The output as plain JSON values, where the workflow has a type for it."""
    score: float | None = None
    """Where it was scored elsewhere: 0 wrong, 1 right. None: it is to be read."""
    cleaned: float | None = None
    """Where it was scored elsewhere too without the Markdown around it."""
    error: str = ""
    """Code of the error, where nothing was answered."""
    finish_reason: str = ""
    cost_nano_usd: int | None = None
    latency_us: int | None = None
    tokens: int | None = None
    """Of the output."""
    call_id: str = ""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One question with both answers."""

    id: str
    """A Call, or a row of a file: what Reports cite."""
    group: str = ""
    """Pairs of one name belong together, such as one person's; empty: it stands for itself."""
    slice: str = ""
    weight: float = 1.0
    """Questions that it stands for, where slices were sampled unequally."""
    expected: Any = None
    truth: str = "recorded"
    """One of `TRUTHS`."""
    before: Side
    after: Side


class Mark(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one answer is worth."""

    value: float
    """From 0, wrong, to 1, right."""
    cause: str = ""
    """Why it is below 1."""
    unread: bool = False
    """Whether it could not be read at all."""
    wrapped: bool = False
    """Whether it is wrong for its form alone: without the Markdown around it, it would be right."""


class Marked(msgspec.Struct, frozen=True, kw_only=True):
    """A pair and what its answers are worth."""

    pair: Pair
    before: Mark
    after: Mark


def shuffled(pairs: Sequence[Pair], seed: int = 0) -> list[Pair]:
    """The pairs in an order that has nothing to do with their answers, always the same for one seed.

    Evidence that is looked at early holds for such orders only. Pairs of one group stay together: they are one bet.
    """

    def rank(name: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()

    return sorted(pairs, key=lambda one: (rank(one.group or one.id), rank(one.id)))
