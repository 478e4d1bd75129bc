"""The one line in which a gate is written: what it may say, and what exactly is wrong where it says something else.

Words stand as they are; the name of a scorer or a suite may stand in backticks, and must where it is one of the words.
Called where gates are checked and judged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from drivetrain.core.errors import DrivetrainError, nearest
from drivetrain.core.money import NANO_PER_USD, nano_usd

ACCURACY = "accuracy"
"""In a gate: the mean of the eval's first scorer, whatever its name."""
SCORE, SLICES, OVERALL, NEW_FAILURES, COST, LATENCY, UNREAD, FAILED = (
    "score", "slices", "overall", "new failures", "cost", "latency", "unread", "failed",
)  # fmt: skip
PAIRED = (SLICES, OVERALL, NEW_FAILURES)
"""What is compared with a baseline, row by row."""
TEXT_CHARS_MAX = 200
LEVEL_MIN = 0.5
FORMS = (
    "accuracy >= 0.9",
    "SCORER >= 0.8",
    "SCORER of suite NAME >= 1",
    "no slice worse than -2 pp",
    "no slice of SCORER worse than -2 pp",
    "overall not worse than -1 pp",
    "overall of SCORER not worse than -1 pp",
    "cost per call <= $0.004",
    "p95 latency <= 800 ms",
    "mean latency <= 400 ms",
    "unread <= 1 %",
    "failed calls <= 0.5 %",
    "no new failure in `NAME`",
)
"""Every form that a gate has. All but the last may end with `at 95 %`."""

_TOKEN = re.compile(
    r"\s*(?:(?P<name>`[^`]*`)|(?P<op>>=|<=|≥|≤|==|=|>|<)|(?P<money>\$\s*\d+(?:\.\d+)?)"
    r"|(?P<number>[-+\u2212]?\d+(?:\.\d+)?)|(?P<percent>%)|(?P<word>[A-Za-z_][A-Za-z0-9_.-]*))"
)
_WORDS = frozenset(("no", "overall", "unread", "cost", "failed", "mean", "latency"))
_UNITS_MS = {"ms": 1.0, "s": 1000.0}


class Gate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A gate as it was read."""

    text: str
    kind: str
    """One of the eight words above."""
    scorer: str = ""
    """Of a score; empty: the eval's first one."""
    suite: str = ""
    """The suite of edge cases whose rows count; empty: the eval's own Dataset."""
    at_least: bool = False
    """Whether the bound is the least that is allowed; else it is the most."""
    is_strict: bool = False
    """Whether the bound itself is not allowed."""
    bound: float = 0.0
    """As a share (of scores, shares and differences), or in ms."""
    bound_nano_usd: int = 0
    """Of cost."""
    quantile: float = 0.0
    """Of latency: 0.95 is p95; 0: the mean."""
    level: float = 0.0
    """Of `at 95 %`: the interval's end must keep to the bound, and not only the estimate; 0: the estimate."""


def parse_gate(text: str) -> Gate:
    """The gate that a line says. Raises: DrivetrainError, with the place of what is wrong and what may stand there."""
    return _Line(text).gate()


def needs_baseline(gate: Gate | str) -> bool:
    """Whether a gate compares with another run of the same rows."""
    return (parse_gate(gate) if isinstance(gate, str) else gate).kind in PAIRED


class _Token(msgspec.Struct, frozen=True):
    kind: str
    text: str
    at: int


class _Line:
    """One gate being read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.tokens: list[_Token] = []
        if not isinstance(text, str) or not text.strip():
            raise DrivetrainError("A gate is empty.", do=_forms())
        if len(text) > TEXT_CHARS_MAX:
            raise DrivetrainError(f"A gate has more than {TEXT_CHARS_MAX} characters: `{text[:40]}...`.")
        at = 0
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if match is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise DrivetrainError(f"Gate `{text}`: `{text[at]}` at character {at + 1} means nothing.", do=_forms())
            kind = match.lastgroup or ""
            self.tokens.append(_Token(kind, match.group(kind), match.start(kind)))
            at = match.end()

    def gate(self) -> Gate:
        if self._next_is("no"):
            found = self._no()
        elif self._next_is("overall"):
            self.place += 1
            scorer = self._of_scorer()
            self._words("not", "worse", "than")
            found = Gate(text=self.text, kind=OVERALL, scorer=scorer, at_least=True, bound=self._points())
        else:
            found = self._threshold()
        level = self._level() if self._next_is("at") and found.kind != NEW_FAILURES else 0.0
        if self._token() is not None:
            raise self._wrong("the end" if level or found.kind == NEW_FAILURES else "`at 95 %` or the end")
        return msgspec.structs.replace(found, level=level)

    def _no(self) -> Gate:
        self.place += 1
        if self._next_is("new"):
            self.place += 1
            self._one_of("failure", "failures")
            scorer, suite = self._of_scorer(), ""
            if self._next_is("in"):
                self.place += 1
                if self._next_is("suite"):
                    self.place += 1
                suite = self._name("a suite")
            return Gate(text=self.text, kind=NEW_FAILURES, scorer=scorer, suite=suite)
        self._one_of("slice", "new", given="slice")
        scorer = self._of_scorer()
        self._words("worse", "than")
        return Gate(text=self.text, kind=SLICES, scorer=scorer, at_least=True, bound=self._points())

    def _threshold(self) -> Gate:
        token = self._token()
        head = token.text.casefold() if token is not None and token.kind == "word" else ""
        if head == "cost":
            self.place += 1
            self._words("per", "call")
            suite, strict = self._suite(), self._operator(at_least=False)
            return Gate(text=self.text, kind=COST, suite=suite, is_strict=strict, bound_nano_usd=self._money())
        if head in ("mean", "latency") or re.fullmatch(r"p\d{1,2}(\.\d+)?", head):
            quantile = self._quantile(head)
            suite, strict = self._suite(), self._operator(at_least=False)
            bound = self._milliseconds()
            return Gate(text=self.text, kind=LATENCY, suite=suite, is_strict=strict, bound=bound, quantile=quantile)
        if head in ("unread", "failed"):
            self.place += 1
            scorer = ""
            if head == "failed":
                self._one_of("calls", "call")
            elif self._next_is("of") and not self._next_is("suite", ahead=1):
                scorer = self._of_scorer()
            suite, strict = self._suite(), self._operator(at_least=False)
            kind = UNREAD if head == "unread" else FAILED
            return Gate(
                text=self.text, kind=kind, scorer=scorer, suite=suite, is_strict=strict, bound=self._share()
            )  # fmt: skip
        scorer = self._name("a scorer, or one of `no`, `overall`, `cost per call`, `p95 latency`, `unread`, `failed`")
        suite, strict = self._suite(), self._operator(at_least=True)
        return Gate(
            text=self.text, kind=SCORE, scorer="" if scorer == ACCURACY else scorer, suite=suite, at_least=True,
            is_strict=strict, bound=self._share(),
        )  # fmt: skip

    def _quantile(self, head: str) -> float:
        if head == "latency":
            raise self._wrong("`p95 latency` or `mean latency`: which one is asked for")
        self.place += 1
        self._words("latency")
        found = 0.0 if head == "mean" else float(head[1:]) / 100
        if head != "mean" and not found:
            self.place = 0
            raise self._wrong("`p95 latency` or another share of calls above 0")
        return found

    def _of_scorer(self) -> str:
        if not self._next_is("of"):
            return ""
        self.place += 1
        name = self._name("a scorer")
        return "" if name == ACCURACY else name

    def _suite(self) -> str:
        if not self._next_is("of"):
            return ""
        self.place += 1
        self._words("suite")
        return self._name("a suite")

    def _name(self, what: str) -> str:
        token = self._token()
        if token is None or token.kind not in ("word", "name") or not token.text.strip("`"):
            raise self._wrong(what)
        self.place += 1
        return token.text.strip("`")

    def _operator(self, *, at_least: bool) -> bool:
        """Whether the bound itself is not allowed."""
        token = self._token()
        allowed = ">=" if at_least else "<="
        if token is None or token.kind != "op":
            raise self._wrong(f"`{allowed}`")
        if token.text in ("=", "==") or (token.text[0] in ">≥") != at_least:
            why = "more is better here" if at_least else "less is better here"
            raise self._wrong(f"`{allowed}`: {why}")
        self.place += 1
        return token.text in "><"

    def _share(self) -> float:
        start, value = self.place, self._number("a number from 0 to 1, or one with `%`")
        if self._next_kind("percent"):
            self.place += 1
            value /= 100
        if not 0 <= value <= 1:
            self.place = start
            raise self._wrong(f"a number from 0 to 1, or one with `%` such as `{value:g} %`")
        return value

    def _points(self) -> float:
        start, value = self.place, self._number("a difference such as `-2 pp`")
        self._words("pp")
        if not -100 <= value <= 0:
            self.place = start
            raise self._wrong(f"a difference of at most 0 such as `-{abs(value):g} pp`")
        return value / 100

    def _money(self) -> int:
        token = self._token()
        if token is None or token.kind != "money":
            raise self._wrong("an amount such as `$0.004`")
        try:
            found = nano_usd(token.text.lstrip("$ "))
        except ValueError:
            raise self._wrong(f"an amount of whole nano-USD (1/{NANO_PER_USD} of a dollar)") from None
        self.place += 1
        return found

    def _milliseconds(self) -> float:
        value = self._number("a time such as `800 ms`")
        token = self._token()
        if token is None or token.text not in _UNITS_MS:
            raise self._wrong("`ms` or `s`")
        self.place += 1
        if value < 0:
            self.place -= 2
            raise self._wrong("a time of at least 0")
        return value * _UNITS_MS[token.text]

    def _level(self) -> float:
        self.place += 1
        start, value = self.place, self._number("a level such as `95 %`") / 100
        if not self._next_kind("percent"):
            raise self._wrong("`%`")
        self.place += 1
        if not LEVEL_MIN < value < 1:
            self.place = start
            raise self._wrong("a level between 50 and 100")
        return value

    def _number(self, what: str) -> float:
        token = self._token()
        if token is None or token.kind != "number":
            raise self._wrong(what)
        self.place += 1
        return float(token.text.replace("\u2212", "-"))

    def _words(self, *words: str) -> None:
        for word in words:
            self._one_of(word)

    def _one_of(self, *words: str, given: str = "") -> None:
        if not any(self._next_is(one) for one in ((given,) if given else words)):
            raise self._wrong(" or ".join(f"`{one}`" for one in words), words)
        self.place += 1

    def _next_is(self, word: str, *, ahead: int = 0) -> bool:
        place = self.place + ahead
        token = self.tokens[place] if place < len(self.tokens) else None
        return token is not None and token.kind == "word" and token.text.casefold() == word

    def _next_kind(self, kind: str) -> bool:
        token = self._token()
        return token is not None and token.kind == kind

    def _token(self) -> _Token | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def _wrong(self, allowed: str, words: Sequence[str] = ()) -> DrivetrainError:
        token = self._token()
        where = f"it ends at character {len(self.text.rstrip())}"
        if token is not None:
            where = f"`{token.text}` stands at character {token.at + 1}"
        near = nearest(token.text, words) if token is not None else None
        head = self.tokens[0].text if self.tokens and self.tokens[0].kind == "word" else ""
        if near is None and self.place <= 1 and head.casefold() not in _WORDS:
            near = nearest(self.text, FORMS)
        do = f"Did you mean `{near}`?" if near is not None else _forms()
        return DrivetrainError(f"Gate `{self.text}`: {where}, where {allowed} is expected.", do=do)


def _forms() -> str:
    return f"A gate is one of: {', '.join(f'`{one}`' if '`' not in one else one for one in FORMS)}."
