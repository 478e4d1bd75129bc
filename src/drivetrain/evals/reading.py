"""How a text is read before it is scored: every way has a name and is explicit, because verdicts depend on it.

A way to read either gives a value or says that it cannot; nothing is guessed beyond what the name says. The same
answers may be read in several ways, and the share that could not be read is told for each. Called by `scoring.py`, and
by whoever shows how a verdict hangs on the reading.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.scorers import READING_NAMES

TEXT_CHARS_MAX = 1_000_000
"""Longer texts are not read: no answer that is scored is as long."""
JSON_STARTS_MAX = 20
"""Places at which JSON is looked for in a text, as each costs a walk through what follows."""
LABEL_CHARS_MAX = 64
"""Of a `word`: longer is a sentence."""

_FENCE = "```"
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?|[-+]?\.\d+")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_BRACKETED = re.compile(r"\[\s*(yes|no)\s*\]", re.IGNORECASE)
_AROUND = " \t\r\n.,;:!?*_`\"'()[]<>"


class Read(msgspec.Struct, frozen=True):
    """What a text was read as."""

    ok: bool
    """Whether it could be read."""
    value: Any = None


UNREAD = Read(False)


class Reading(msgspec.Struct, frozen=True):
    """One way to read a text."""

    name: str
    description: str
    """In words, for Reports."""
    function: Callable[[str], Read]

    def read(self, text: str) -> Read:
        """The value, or that there is none."""
        return self.function(text) if len(text) <= TEXT_CHARS_MAX else UNREAD

    def as_expected(self, wanted: Any) -> Any:
        """What a row expects, in the form that this reading gives: `No`, and false, are its `no`."""
        if not self.name.endswith("yes_no"):
            return wanted
        if isinstance(wanted, bool):
            return "yes" if wanted else "no"
        return wanted.strip(_AROUND).casefold() if isinstance(wanted, str) else wanted


def reading(name: str) -> Reading:
    """The way of this name. Raises: DrivetrainError."""
    found = READINGS.get(name)
    if found is None:
        raise DrivetrainError(f"`{name}` is no way to read an answer.", do=did_you_mean(name, READINGS))
    return found


def inside_fences(text: str) -> str | None:
    """What stands in the first Markdown fence of a text; None where there is none. An open fence ends with the text."""
    start = text.find(_FENCE)
    if start < 0:
        return None
    line_end = text.find("\n", start)
    if line_end < 0:
        return text[start + len(_FENCE) :].strip("` \t\r\n")
    end = text.find(_FENCE, line_end)
    return text[line_end + 1 : end if end >= 0 else len(text)].strip("\r\n")


def unwrapped(text: str) -> tuple[tuple[str, str], ...]:
    """(how, text) for each wrapping that may stand around an answer: fences, emphasis, quotes, a label in front."""
    found: list[tuple[str, str]] = []
    inner = inside_fences(text)
    if inner is not None:
        found.append(("Markdown fences", inner))
    bare = text.strip(_AROUND)
    if bare != text.strip() and bare:
        found.append(("emphasis, quotes or punctuation", bare))
    head, colon, rest = text.strip().partition(":")
    if colon and rest.strip() and len(head) <= LABEL_CHARS_MAX and "\n" not in head:
        found.append(("a label in front", rest.strip(_AROUND)))
    return tuple(found)


def number_of(text: str) -> float | None:
    """A text that is one number: `1,234.5`, `$12`, `12 %` stays 12; None where it is none."""
    bare = text.strip().strip("$€£%").strip()
    match = _NUMBER.fullmatch(bare)
    return _finite(match.group()) if match else None


def _finite(text: str) -> float | None:
    value = float(text.replace(",", ""))
    return value if math.isfinite(value) else None


def _as_is(text: str) -> Read:
    return Read(True, text.strip()) if text.strip() else UNREAD


def _unfenced(text: str) -> Read:
    inner = inside_fences(text)
    return _as_is(text if inner is None else inner)


def _line(place: int) -> Callable[[str], Read]:
    def read(text: str) -> Read:
        lines = [one.strip() for one in text.splitlines() if one.strip()]
        return Read(True, lines[place]) if lines else UNREAD

    return read


def _word(text: str) -> Read:
    bare = text.strip(_AROUND)
    return Read(True, bare) if bare and len(bare) <= LABEL_CHARS_MAX and len(bare.split()) == 1 else UNREAD


def _yes_no(text: str) -> Read:
    bare = text.strip(_AROUND).casefold()
    return Read(True, bare) if bare in ("yes", "no") else UNREAD


def _found(pattern: re.Pattern[str], place: int) -> Callable[[str], Read]:
    def read(text: str) -> Read:
        words = pattern.findall(text)
        return Read(True, words[place].casefold()) if words else UNREAD

    return read


def _number(text: str) -> Read:
    value = number_of(text)
    return UNREAD if value is None else Read(True, value)


def _number_at(place: int) -> Callable[[str], Read]:
    def read(text: str) -> Read:
        numbers = _NUMBER.findall(text)
        value = _finite(numbers[place]) if numbers else None
        return UNREAD if value is None else Read(True, value)

    return read


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _json(text: str) -> Read:
    try:
        value, end = _DECODER.raw_decode(text.strip())
    except (ValueError, RecursionError):
        return UNREAD
    return Read(True, value) if end == len(text.strip()) else UNREAD


def _unfenced_json(text: str) -> Read:
    inner = inside_fences(text)
    return _json(text if inner is None else inner)


def _first_json(text: str) -> Read:
    at = 0
    for _ in range(JSON_STARTS_MAX):
        starts = [place for place in (text.find("{", at), text.find("[", at)) if place >= 0]
        if not starts:
            break
        at = min(starts)
        try:
            return Read(True, _DECODER.raw_decode(text, at)[0])
        except (ValueError, RecursionError):
            at += 1
    return UNREAD


READINGS = {
    one.name: one
    for one in (
        Reading("as_is", "the whole text, without white space around it", _as_is),
        Reading("unfenced", "what stands inside the first Markdown fence, else the whole text", _unfenced),
        Reading("first_line", "the first line that is not empty", _line(0)),
        Reading("last_line", "the last line that is not empty", _line(-1)),
        Reading("word", "the whole text where it is one word, without punctuation around it", _word),
        Reading("yes_no", "yes or no, where that is the whole text", _yes_no),
        Reading("first_yes_no", "the first word yes or no anywhere in the text", _found(_YES_NO, 0)),
        Reading("last_yes_no", "the last word yes or no anywhere in the text", _found(_YES_NO, -1)),
        Reading("bracketed_yes_no", "the last [yes] or [no] in brackets", _found(_BRACKETED, -1)),
        Reading("number", "the whole text as one number", _number),
        Reading("first_number", "the first number in the text", _number_at(0)),
        Reading("last_number", "the last number in the text", _number_at(-1)),
        Reading("json", "the whole text as JSON", _json),
        Reading("unfenced_json", "JSON inside the first Markdown fence, else the whole text", _unfenced_json),
        Reading("first_json", "the first JSON object or array anywhere in the text", _first_json),
    )
}
assert tuple(READINGS) == READING_NAMES
