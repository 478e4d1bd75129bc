"""From a text to the counts of a block's terms, term by term as scikit-learn's TfidfVectorizer counts them.

Owns the rules of the three analyzers; what the counts are worth is `linear_text.py`'s. A text costs one slice and one
look-up per n-gram. The analyzer `char_wb` sees each word by itself, so the terms of short words are kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drivetrain.inference.linear_text_files import Block

KEPT_WORDS_MAX = 20_000
"""Words of which a block keeps the terms: some 8 MB, and most of what a language says again and again."""
KEPT_CHARS_MAX = 16
"""Longer words are rarely said twice; it also bounds what one kept word takes."""

Columns = NDArray[np.intp]


class Counts(NamedTuple):
    """The terms of a block that a text has."""

    columns: Columns
    """Of each term in its block, rising."""
    times: NDArray[np.float64]
    """How often it occurs, at least once."""


_TOKENS = re.compile(r"(?u)\b\w\w+\b").findall
_SPACES = re.compile(r"\s\s+")
_NONE: Columns = np.empty(0, np.intp)


def counter_of(block: Block) -> Callable[[str], Counts]:
    """Counts the terms of a block in a text; may be called from several threads."""
    columns = {term: column for column, term in enumerate(block.terms)}
    count = {"word": _word_counter, "char_wb": _char_wb_counter, "char": _char_counter}[block.analyzer](block, columns)
    prepared = _preparation(block)
    return lambda text: count(prepared(text))


def _preparation(block: Block) -> Callable[[str], str]:
    strip = {"": None, "unicode": _without_accents, "ascii": _ascii_only}[block.strip_accents]
    if strip is None:
        return str.lower if block.lowercase else str
    if block.lowercase:
        return lambda text: strip(text.lower())
    return strip


def _without_accents(text: str) -> str:
    if text.isascii():
        return text
    return "".join([one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one)])


def _ascii_only(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


def _word_counter(block: Block, columns: Mapping[str, int]) -> Callable[[str], Counts]:
    """Of tokens of two or more word characters, stop words left out before neighbours are joined."""
    shortest, longest = block.ngrams
    stop = frozenset(block.stop_words)

    def count(text: str) -> Counts:
        tokens = _TOKENS(text)
        if stop:
            tokens = [one for one in tokens if one not in stop]
        grams = list(tokens) if shortest == 1 else []
        for length in range(max(shortest, 2), longest + 1):
            grams += map(" ".join, zip(*[tokens[start:] for start in range(length)], strict=False))
        return _counted(_known(columns, grams))

    return count


def _char_counter(block: Block, columns: Mapping[str, int]) -> Callable[[str], Counts]:
    """Of the whole text, runs of white space made one blank."""
    shortest, longest = block.ngrams

    def count(text: str) -> Counts:
        spaced = _SPACES.sub(" ", text)
        lengths = range(shortest, min(longest, len(spaced)) + 1)
        return _counted(_known(columns, chain.from_iterable(_slices(spaced, length) for length in lengths)))

    return count


def _char_wb_counter(block: Block, columns: Mapping[str, int]) -> Callable[[str], Counts]:
    """Of each word with a blank before and after it."""
    shortest, longest = block.ngrams
    kept: dict[str, Columns] = {}

    def terms_of(word: str) -> Columns:
        padded = f" {word} "
        grams: list[str] = []
        for length in range(shortest, longest + 1):
            if length >= len(padded):
                grams.append(padded)  # once, however many longer n-grams are asked for
                break
            grams += _slices(padded, length)
        found = _known(columns, grams)
        if len(word) <= KEPT_CHARS_MAX:
            if len(kept) >= KEPT_WORDS_MAX:
                kept.clear()
            kept[word] = found
        return found

    def count(text: str) -> Counts:
        found = []
        for word in text.split():
            terms = kept.get(word)
            found.append(terms_of(word) if terms is None else terms)
        return _counted(np.concatenate(found) if found else _NONE)

    return count


def _slices(text: str, length: int) -> list[str]:
    return [text[start : start + length] for start in range(len(text) - length + 1)]


def _known(columns: Mapping[str, int], grams: Iterable[str]) -> Columns:
    return np.array([column for column in map(columns.get, grams) if column is not None], dtype=np.intp)


def _counted(found: Columns) -> Counts:
    """Sorts `found` in place: cheaper than a Counter, whose integers lie all over the memory."""
    if not len(found):
        return Counts(found, np.empty(0))
    found.sort()
    first = np.empty(len(found), np.bool_)
    first[0] = True
    np.not_equal(found[1:], found[:-1], out=first[1:])
    starts = first.nonzero()[0]
    times = np.empty(len(starts))
    np.subtract(starts[1:], starts[:-1], out=times[:-1])
    times[-1] = len(found) - starts[-1]
    return Counts(found.take(starts), times)
