"""How alike two values are, by each kind of scorer that needs no code of a user's. Pure functions of plain values."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from drivetrain.evals.reading import number_of

SIMILAR_CHARS_MAX = 20_000
"""Of each text: more does not make two texts more or less alike."""
PIECE_CHARS = 3

Options = Mapping[str, Any]


class Incomparable(Exception):
    """Two values that this kind does not compare; the message says why without a word of them."""

    def __init__(self, why: str, *, of_answer: bool) -> None:
        super().__init__(why)
        self.of_answer = of_answer
        """Whether the answer is at fault, so that it could not be read; else what the row expects is."""


def is_same(value: Any, wanted: Any) -> bool:
    """Equality of plain values: 1 is 1.0 and true is not 1; a text is what it says, `3` is 3 and `true` is true.

    An object must have the fields that are expected, and may have others.
    """
    if isinstance(wanted, Mapping):
        return isinstance(value, Mapping) and all(
            name in value and is_same(value[name], inner) for name, inner in wanted.items()
        )
    if isinstance(wanted, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(wanted) and all(map(is_same, value, wanted))
    if isinstance(value, str) and isinstance(wanted, str):
        return value.strip() == wanted.strip()
    if isinstance(value, str) or isinstance(wanted, str):
        return _is_said(*((value, wanted) if isinstance(value, str) else (wanted, value)))
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return bool(value == wanted)


def _is_said(text: str, value: Any) -> bool:
    """Whether a text says a number or a truth."""
    if isinstance(value, bool):
        return text.strip().casefold() == str(value).casefold()
    if isinstance(value, int | float):
        said = number_of(text)
        return said is not None and said == value
    return False


def exact(value: Any, wanted: Any, _: Options) -> float:
    return float(is_same(value, wanted))


def normalised(value: Any, wanted: Any, options: Options) -> float:
    return float(is_same(_normal(value, options), _normal(wanted, options)))


def _normal(value: Any, options: Options) -> Any:
    if isinstance(value, Mapping):
        return {name: _normal(inner, options) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(inner, options) for inner in value]
    if not isinstance(value, str):
        return value
    text = unicodedata.normalize("NFKC", value)
    if options.get("case", True):
        text = text.casefold()
    if options.get("punctuation", False):
        text = "".join(" " if unicodedata.category(one).startswith("P") else one for one in text)
    return " ".join(text.split()) if options.get("spaces", True) else text


def f1(value: Any, wanted: Any, options: Options) -> float:
    said, right = _bag(value, options, of_answer=True), _bag(wanted, options, of_answer=False)
    if not said and not right:
        return 1.0
    both = (said & right).total()
    return 2 * both / (said.total() + right.total())


def _bag(value: Any, options: Options, *, of_answer: bool) -> Counter[str]:
    """Labels, each once; or the words of a text, as often as they stand there."""
    separator = options.get("separator", "")
    if isinstance(value, list | tuple):
        return Counter({_label(one) for one in value})
    if isinstance(value, str):
        if separator:
            return Counter({_label(one) for one in value.split(separator) if one.strip()})
        return Counter(re.findall(r"\w+", unicodedata.normalize("NFKC", value).casefold()))
    if value is None:
        return Counter()
    raise Incomparable("it is neither a list nor a text", of_answer=of_answer)


def _label(value: Any) -> str:
    return unicodedata.normalize("NFKC", str(value)).strip().casefold()


def within(value: Any, wanted: Any, options: Options) -> float:
    said, right = _number(value, of_answer=True), _number(wanted, of_answer=False)
    bound = max(float(options.get("absolute", 0)), float(options.get("relative", 0)) * abs(right))
    return float(abs(said - right) <= bound + 1e-12 * max(abs(said), abs(right)))


def _number(value: Any, *, of_answer: bool) -> float:
    found = number_of(value) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float) or found - found != 0:
        raise Incomparable("it is no number", of_answer=of_answer)
    try:
        return float(found)
    except OverflowError:
        raise Incomparable("it is a number beyond all that is counted", of_answer=of_answer) from None


def matches(value: Any, wanted: Any, options: Options) -> float:
    text = value if isinstance(value, str) else str(value)
    pattern = re.compile(options["pattern"])
    match = pattern.fullmatch(text) if options.get("whole") else pattern.search(text)
    if match is None:
        return 0.0
    if not pattern.groups or wanted is None:
        return 1.0
    return float(is_same(match.group(1) or "", wanted))


def similarity(value: Any, wanted: Any, options: Options) -> float:
    """Dice's coefficient of the pieces of three characters. Source: Dice, Ecology 26 (1945), 297-302."""
    if not isinstance(value, str):
        raise Incomparable("it is no text", of_answer=True)
    if not isinstance(wanted, str):
        raise Incomparable("what is expected is no text", of_answer=False)
    said, right = _pieces(value), _pieces(wanted)
    alike = 2 * (said & right).total() / (said.total() + right.total())
    at_least = options.get("at_least")
    return alike if at_least is None else float(alike >= at_least)


def _pieces(text: str) -> Counter[str]:
    plain = " ".join(unicodedata.normalize("NFKC", text[:SIMILAR_CHARS_MAX]).casefold().split())
    padded = f"  {plain} "
    return Counter(padded[at : at + PIECE_CHARS] for at in range(len(padded) - PIECE_CHARS + 1))


def json_fields(value: Any, wanted: Any, options: Options) -> float:
    """The share of the named fields that are right; one that the row does not expect is not counted."""
    if not isinstance(value, Mapping):
        raise Incomparable("it is no object", of_answer=True)
    if not isinstance(wanted, Mapping):
        raise Incomparable("what is expected is no object", of_answer=False)
    scores = []
    for path, how in options["fields"].items():
        expected, known = _walk(wanted, path)
        if not known:
            continue
        said, given = _walk(value, path)
        scores.append(_field_score(said, expected, how) if given else 0.0)
    if not scores:
        raise Incomparable("the row expects none of the fields", of_answer=False)
    return sum(scores) / len(scores)


def _field_score(said: Any, expected: Any, how: Mapping[str, Any]) -> float:
    try:
        return COMPARERS[how["kind"]](said, expected, how["options"])
    except Incomparable as fault:
        if not fault.of_answer:
            raise
        return 0.0


def _walk(value: Any, path: str) -> tuple[Any, bool]:
    """(what stands there, whether anything does)"""
    if isinstance(value, Mapping) and path in value:
        return value[path], True
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None, False
        value = value[part]
    return value, True


COMPARERS: Mapping[str, Callable[[Any, Any, Options], float]] = {
    "exact": exact,
    "normalised": normalised,
    "f1": f1,
    "within": within,
    "matches": matches,
    "similarity": similarity,
    "json_fields": json_fields,
}
