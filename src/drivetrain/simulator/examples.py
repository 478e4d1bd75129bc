"""Finds which known text a message is about. Called by `answers` for labels and tables."""

import json
from collections.abc import Iterable, Iterator

PREFIX_CHARACTERS = 16
"""Texts are indexed by their first characters, so that a search costs one look-up per position and length instead of
one per text."""

SEARCHED_CHARACTERS_MAX = 32_768
"""Only the end of a longer message is searched: about 10 ms of CPU per message at most."""


class KnownTexts:
    """The known texts, searchable in a message."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(text for text in texts if text)
        self._by_prefix: dict[str, list[str]] = {}
        for text in sorted(self._texts, key=len, reverse=True):
            self._by_prefix.setdefault(text[:PREFIX_CHARACTERS], []).append(text)
        self._prefix_lengths = sorted({len(prefix) for prefix in self._by_prefix}, reverse=True)

    def find(self, message: str) -> str | None:
        """The known text that is the message, else the longest that is one of its lines or values, else the longest
        within it."""
        whole = message.strip()
        if whole in self._texts:
            return whole
        named = [part for part in _parts(whole) if part in self._texts]
        return max(named, key=len) if named else self._longest_within(whole)

    def _longest_within(self, message: str) -> str | None:
        longest = ""
        message = message[-SEARCHED_CHARACTERS_MAX:]
        for start in range(len(message)):
            for length in self._prefix_lengths:
                for text in self._by_prefix.get(message[start : start + length], ()):
                    if len(text) <= len(longest):
                        break
                    if message.startswith(text, start):
                        longest = text
                        break
        return longest or None


def _parts(message: str) -> Iterator[str]:
    """Where prompts put the text in question: a line, a line after `Text: `, within quotes or tags, or a value of a
    JSON object."""
    if message.startswith("{") and message.endswith("}"):
        try:
            values = json.loads(message).values()
        except ValueError:
            values = ()
        yield from (value.strip() for value in values if isinstance(value, str))
    for line in message.splitlines():
        stripped = line.strip()
        yield stripped
        yield stripped.strip("\"'`")
        after = stripped.partition(": ")[2]
        if after:
            yield after
            yield after.strip("\"'`")
