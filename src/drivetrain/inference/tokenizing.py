"""From a text to the counts of a block's terms, term by term as scikit-learn's TfidfVectorizer counts them.

Owns the rules of the three analyzers; what the counts are worth is `linear_text.py`'s. A text costs one slice and one
look-up per n-gram. The analyzer `char_wb` sees each word by itself, so the terms of short words are kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain

from drivetrain.inference.linear_text_files import Block

KEPT_WORDS_MAX = 20_000
"""Words of which a block keeps the terms: some 8 MB, and most of what a language says again and again."""
KEPT_CHARS_MAX = 16
"""Longer words are rarely said twice; it also bounds what one kept word takes."""

Counts = Mapping[int, int]
"""Column of a term in its block -> how often it occurs, at least once."""

_TOKENS = re.compile(r"(?u)\b\w\w+\b").findall
_SPACES = re.compile(r"\s\s+")


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
        return _counted(map(columns.get, grams))

    return count


def _char_counter(block: Block, columns: Mapping[str, int]) -> Callable[[str], Counts]:
    """Of the whole text, runs of white space made one blank."""
    shortest, longest = block.ngrams

    def count(text: str) -> Counts:
        spaced = _SPACES.sub(" ", text)
        lengths = range(shortest, min(longest, len(spaced)) + 1)
        return _counted(map(columns.get, chain.from_iterable(_slices(spaced, length) for length in lengths)))

    return count


def _char_wb_counter(block: Block, columns: Mapping[str, int]) -> Callable[[str], Counts]:
    """Of each word with a blank before and after it."""
    shortest, longest = block.ngrams
    kept: dict[str, list[int]] = {}

    def terms_of(word: str) -> list[int]:
        padded = f" {word} "
        grams: list[str] = []
        for length in range(shortest, longest + 1):
            if length >= len(padded):
                grams.append(padded)  # once, however many longer n-grams are asked for
                break
            grams += _slices(padded, length)
        found = [column for column in map(columns.get, grams) if column is not None]
        if len(word) <= KEPT_CHARS_MAX:
            if len(kept) >= KEPT_WORDS_MAX:
                kept.clear()
            kept[word] = found
        return found

    def count(text: str) -> Counts:
        found: list[int] = []
        for word in text.split():
            terms = kept.get(word)
            found += terms_of(word) if terms is None else terms
        return Counter(found)

    return count


def _slices(text: str, length: int) -> list[str]:
    return [text[start : start + length] for start in range(len(text) - length + 1)]


def _counted(columns: map[int | None]) -> Counts:
    counts = Counter(columns)
    counts.pop(None, None)
    return counts  # type: ignore[return-value]  # None is gone
