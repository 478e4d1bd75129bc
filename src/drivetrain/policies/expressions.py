"""What one expression of a decision table reads and does, found without running it; what could hurt is refused.

Owns our own reading of the expression language: its words, which functions are allowed, and what an expression may
cost. It is deliberately narrower than the engine's: what it does not know, it refuses. Called by `graphs`, which hands
only what passed here to the engine. The engine evaluates in one go and cannot be interrupted, so that nothing may
reach it that takes long, grows without bound, or answers differently tomorrow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from drivetrain.core.errors import nearest

EXPRESSION_CHARS_MAX = 2_000
"""A rule that is longer is read by nobody."""
TOKENS_MAX = 500
"""Words, numbers and signs; readable text of `EXPRESSION_CHARS_MAX` has fewer."""
NESTING_MAX = 32
"""Brackets within brackets; the engine's parser recurses."""
PATTERN_CHARS_MAX = 200
"""Of a regular expression; it is compiled anew by every evaluation."""
REPEATS_MAX = 50
"""The bound of a counted repetition in a regular expression; its automaton grows with it."""

CLOSURES = frozenset({"all", "count", "filter", "flatMap", "map", "none", "one", "some"})
GROWING_CLOSURES = frozenset({"map", "flatMap"})
"""Their result is as large as list times body."""
PATTERNS = frozenset({"extract", "matches"})
FUNCTIONS = CLOSURES | PATTERNS | frozenset({
    "abs", "avg", "bool", "ceil", "contains", "endsWith", "flatten", "floor", "isNumeric", "keys", "len", "lower",
    "max", "median", "min", "mode", "number", "round", "split", "startsWith", "string", "sum", "trim", "trunc", "type",
    "upper", "values",
})  # fmt: skip
"""Pure, and linear in what they are given."""
REFUSED = {
    **dict.fromkeys(
        (
            "d", "date", "time", "duration", "year", "month", "monthString", "dateString", "weekday", "weekdayString",
            "dayOfWeek", "dayOfMonth", "dayOfYear", "weekOfYear", "weekOfMonth", "startOf", "endOf",
        ),
        "depends on the clock, so that a replay would decide otherwise; give the table a number of days as a feature",
    ),
    "rand": "depends on chance; a share of Calls is explored by `explore`",
    "fuzzyMatch": "takes time with the square of the texts' lengths",
}  # fmt: skip
"""Function of the engine -> why a policy may not call it."""
_WORDS = frozenset({"and", "or", "not", "in", "true", "false", "null"})

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<text>'[^']*'|"[^"]*")
      | (?P<number>[0-9][0-9_]*(?:\.[0-9][0-9_]*)?(?:[eE][+-]?[0-9]+)?)
      | (?P<name>[A-Za-z_$][A-Za-z0-9_$]*|\#)
      | (?P<mark>\.\.|==|!=|<=|>=|\?\?|[-+*/%^<>!?:,.()\[\]{}])""",
    re.VERBOSE,
)
_BROAD = re.compile(r"\\[wWdDpPbB]")
"""Classes over all of Unicode: each makes an automaton of thousands of states, anew at every evaluation."""
_COUNTED = re.compile(r"\{\s*([0-9]*)\s*(?:,\s*([0-9]*)\s*)?\}")


class Refused(ValueError):
    """Why an expression is refused, in words that follow the place of it."""


class Token(msgspec.Struct, frozen=True):
    """One word of an expression."""

    kind: str
    """`text`, `number`, `name` or `mark`."""
    value: str
    at: int
    """Place of its first character."""


class Expression(msgspec.Struct, frozen=True):
    """What is known of one expression."""

    reads: tuple[tuple[str, ...], ...]
    """Paths of fields, such as `("input", "amount")`, as often as they stand there; neither those of a list's element
    nor of the column itself."""
    own: tuple[tuple[str, ...], ...]
    """Paths below `$`: of a unary test the column's value, elsewhere what the same node made before."""
    others: tuple[tuple[str, ...], ...]
    """Paths below `$nodes`."""
    gathers: bool
    """Whether what it reads can stand side by side in its result, by `+`, `[...]` or `{...}`."""
    copies: int
    """How often one element can stand in the result of the functions over lists, all together; 1 where once."""
    calls: int
    """Functions that it calls."""
    closures: int
    """Of these, functions over lists."""
    patterns: int
    """Of these, regular expressions."""


def tokens(text: str) -> tuple[Token, ...]:
    """The words of an expression. Raises: Refused."""
    if len(text) > EXPRESSION_CHARS_MAX:
        raise Refused(f"has {len(text):,} characters; at most {EXPRESSION_CHARS_MAX:,} are allowed")
    found: list[Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Refused(_strange(text[at], at))
        if match.lastgroup != "space":
            found.append(Token(str(match.lastgroup), match[0], at))
        at = match.end()
    if len(found) > TOKENS_MAX:
        raise Refused(f"has {len(found)} words; at most {TOKENS_MAX} are allowed")
    return tuple(found)


def read_expression(text: str, *, unary: bool = False) -> Expression:
    """What an expression reads and does. unary: whether it is a cell that tests its column's value.

    Raises: Refused where it is too long or too deep, calls what is not allowed, or could take long.
    """
    return _Reading(tokens(text), unary).run()


class _Open:
    """One open bracket."""

    __slots__ = ("bracket", "commas", "elements", "function", "outer", "searches")

    def __init__(self, bracket: str, function: str) -> None:
        self.bracket = bracket
        self.function = function
        """Whose arguments it holds; empty where it holds none."""
        self.commas = 0
        self.elements = 0
        """How often `#` was read."""
        self.outer = ""
        """A field that was read for every element."""
        self.searches = ""
        """What was done for every element that can take long, such as `in`."""


class _Reading:
    """One expression being read, word by word."""

    def __init__(self, words: Sequence[Token], unary: bool) -> None:
        self.words = words
        self.unary = unary
        self.reads: list[tuple[str, ...]] = []
        self.own: list[tuple[str, ...]] = []
        self.others: list[tuple[str, ...]] = []
        self.gathers = False
        self.copies = 1
        self.calls = 0
        self.closures = 0
        self.patterns = 0
        self.open: list[_Open] = []

    def run(self) -> Expression:
        at = 0
        while at < len(self.words):
            at = self._word(at)
        if self.open:
            raise Refused(f"has an open `{self.open[-1].bracket}`")
        return Expression(
            tuple(self.reads), tuple(self.own), tuple(self.others), self.gathers, self.copies,
            self.calls, self.closures, self.patterns,
        )  # fmt: skip

    def _word(self, at: int) -> int:
        word, body = self.words[at], self._body()
        if word.kind == "name" and word.value not in _WORDS:
            return self._name(at)
        if word.kind == "mark":
            self._mark(at)
        elif body is not None and word.value == "in":
            body.searches = "in"
        elif body is not None and body.function in GROWING_CLOSURES and word.kind == "text":
            raise Refused(f"makes a text for every element of `{body.function}`")
        return at + 1

    def _name(self, at: int) -> int:
        word, before = self.words[at], self._value(at - 1)
        if before == ".":
            if self._value(at + 1) == "(":
                raise Refused(f"calls the method `.{word.value}`; methods are for dates, which {_CLOCK}")
            return at + 1  # a part of what was read already: `answer.items[0].id`
        if self._value(at + 1) == "(":
            self._call(at)
            return at + 1
        if before in ("{", ",") and self._value(at + 1) == ":" and self._inside("{"):
            return at + 1  # the key of an object
        end, path = at + 1, [word.value]
        while self._value(end) == "." and end + 1 < len(self.words) and self.words[end + 1].kind == "name":
            if self._value(end + 2) == "(":
                raise Refused(f"calls the method `.{self.words[end + 1].value}`; methods are for dates, which {_CLOCK}")
            path.append(self.words[end + 1].value)
            end += 2
        if self._value(end) == "[" and self._value(end + 2) == "]" and self.words[end + 1].kind == "text":
            raise Refused(f"reads `{'.'.join(path)}[...]`; write the path with dots")
        self._path(tuple(path), word.at)
        return end

    def _path(self, path: tuple[str, ...], at: int) -> None:
        body = self._body()
        if path[0] == "#":
            if body is None:
                raise Refused(f"has `#` at character {at + 1}, outside of a function over a list")
            body.elements += 1
            return
        if path == ("as",):
            raise Refused("names an element by `as`; write `#`")
        if body is not None:
            if body.function in GROWING_CLOSURES:
                raise Refused(f"reads `{'.'.join(path)}` for every element of `{body.function}`; read only `#` there")
            body.outer = ".".join(path)
        if path[0] == "$root":
            raise Refused("reads `$root`; name the fields")
        target = {"$": self.own, "$nodes": self.others}.get(path[0])
        if target is not None:
            target.append(path[1:])
        elif path[0].startswith("$"):
            raise Refused(f"reads `{path[0]}`, which is not known here")
        else:
            self.reads.append(path)

    def _call(self, at: int) -> None:
        name, body = self.words[at].value, self._body()
        if name in REFUSED:
            raise Refused(f"calls `{name}`, which {REFUSED[name]}")
        if name not in FUNCTIONS:
            near = nearest(name, FUNCTIONS)
            raise Refused(f"calls `{name}`, which is not known" + (f"; did you mean `{near}`?" if near else ""))
        self.calls += 1
        if body is not None:
            if name in CLOSURES or name in PATTERNS:
                raise Refused(f"calls `{name}` for every element of `{body.function}`, which can take very long")
            body.searches = name
        self.closures += name in CLOSURES
        if name in PATTERNS:
            self.patterns += 1
            self._pattern(at, name)

    def _pattern(self, at: int, name: str) -> None:
        depth, place = 0, at + 1
        for place in range(at + 1, len(self.words)):
            value = self.words[place].value
            depth += (value in ("(", "[", "{")) - (value in (")", "]", "}"))
            if depth == 1 and value == ",":
                break
        pattern = self.words[place + 1] if place + 1 < len(self.words) else None
        if pattern is None or pattern.kind != "text" or self._value(place + 2) != ")":
            raise Refused(f"calls `{name}` without a written pattern; its second argument is a text such as '^A'")
        text = pattern.value[1:-1]
        if len(text) > PATTERN_CHARS_MAX:
            raise Refused(f"has a pattern of {len(text)} characters; at most {PATTERN_CHARS_MAX} are allowed")
        broad = _BROAD.search(text)
        if broad:
            raise Refused(f"has `{broad[0]}` in a pattern, which is a large table; write for example [A-Za-z0-9_]")
        counted = [max(int(least or 0), int(most or 0)) for least, most in _COUNTED.findall(text)]
        if len(counted) > 1 or any(count > REPEATS_MAX for count in counted):
            raise Refused(f"has a pattern with large repetitions; one of at most {REPEATS_MAX} is allowed")

    def _mark(self, at: int) -> None:
        mark = self.words[at].value
        if mark in ("(", "[", "{"):
            self._open(at, mark)
        elif mark in (")", "]", "}"):
            if not self.open:
                raise Refused(f"has a `{mark}` that closes nothing")
            self._close(self.open.pop())
        elif mark == "," and self.open:
            self.open[-1].commas += 1
        elif mark == "..":
            self._range(at)
        elif mark == "+":
            self.gathers = True

    def _open(self, at: int, mark: str) -> None:
        before = self.words[at - 1] if at else None
        named = before is not None and before.kind == "name" and before.value not in _WORDS
        indexes = mark == "[" and (named or (before is not None and before.value in (")", "]")))
        body = self._body()
        if body is not None and body.function in GROWING_CLOSURES and mark != "(" and not indexes:
            raise Refused(f"makes a list or an object for every element of `{body.function}`")
        self.gathers = self.gathers or (mark != "(" and not indexes)
        self.open.append(_Open(mark, self.words[at - 1].value if named and mark == "(" else ""))
        if len(self.open) > NESTING_MAX:
            raise Refused(f"has more than {NESTING_MAX} brackets within each other")

    def _close(self, closed: _Open) -> None:
        if closed.function not in CLOSURES:
            return
        if closed.outer and closed.searches:
            raise Refused(
                f"uses `{closed.searches}` and reads `{closed.outer}` for every element of `{closed.function}`, "
                "which can take very long"
            )
        if closed.function in GROWING_CLOSURES:
            self.copies *= max(1, closed.elements)

    def _range(self, at: int) -> None:
        """A range may be tested for what is in it, and never be walked through."""
        start, end = at - 1, at + 1
        while start >= 0 and self.words[start].value not in ("(", "[", "]"):
            start -= 1
        while end < len(self.words) and self.words[end].value not in (")", "]", "["):
            end += 1
        ends = [*self.words[max(start + 1, 0) : at], *self.words[at + 1 : end]]
        bare = self.unary and len(self.open) == 1
        tested = self._value(start - 1) == "in" or (bare and self._value(start - 1) in ("", ",", "and", "or"))
        left = self._value(end + 1) in ("", ",", "and", "or", ")", "?", ":")
        plain = all(word.kind in ("number", "name") or word.value in ("-", ".") for word in ends)
        if not (self.open and tested and left and plain):
            raise Refused("uses a range as a list; a range such as [1..10] stands alone in a cell or after `in`")

    def _body(self) -> _Open | None:
        """The function over a list for whose elements we are being evaluated; None where for none."""
        return next((one for one in self.open if one.function in CLOSURES and one.commas > 0), None)

    def _inside(self, bracket: str) -> bool:
        return bool(self.open) and self.open[-1].bracket == bracket

    def _value(self, at: int) -> str:
        return self.words[at].value if 0 <= at < len(self.words) else ""


_CLOCK = "depend on the clock"


def _strange(character: str, at: int) -> str:
    if character == "`":
        return "has a template; write 'a' + b instead"
    if character in "'\"":
        return f"has a text that begins at character {at + 1} and never ends"
    if character == "=":
        return f"has `=` at character {at + 1}; two are equal by `==`"
    shown = character if character.isprintable() else repr(character)
    return f"has `{shown}` at character {at + 1}, which means nothing here"
