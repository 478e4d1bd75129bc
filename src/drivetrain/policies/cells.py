"""Cells that compare a column with constants, as tests of our own: for analysis and for why a rule did not match.

Owns the part of the language that is understood well enough to reason about: comparisons, ranges, equality, lists,
true, false and null, joined by `,`, `and`, `or`. Every other cell is left to the engine. Its answers are the engine's:
a comparison with what is no number is no match of the whole cell, unless an alternative before it matched.
Called by `analysis` and `dry_run`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from drivetrain.policies.expressions import Refused, Token, tokens

Plain = str | float | bool | None
"""What a cell compares with; whole numbers are floats too."""
_COMPARISONS = frozenset({"<", "<=", ">", ">="})


class _Mismatch(Exception):
    """A comparison with what is no number."""


class Term(msgspec.Struct, frozen=True):
    """One comparison."""

    operator: str
    """`==`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `not in`, `range` or `not range`."""
    values: tuple[Plain, ...]
    """One value; of `in` all of the list; of a range its two ends."""
    open: tuple[bool, bool] = (False, False)
    """Of a range: whether its ends are left out."""

    def holds(self, value: Plain) -> bool:
        if self.operator in ("==", "in"):
            return any(_same(value, one) for one in self.values)
        if self.operator in ("!=", "not in"):
            return not any(_same(value, one) for one in self.values)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _Mismatch
        if self.operator in ("range", "not range"):
            least, most = self.values
            assert isinstance(least, float)
            assert isinstance(most, float)
            above = value > least if self.open[0] else value >= least
            below = value < most if self.open[1] else value <= most
            return (above and below) == (self.operator == "range")
        other = self.values[0]
        assert isinstance(other, float)
        return {"<": value < other, "<=": value <= other, ">": value > other, ">=": value >= other}[self.operator]


class Test(msgspec.Struct, frozen=True):
    """A cell: any of alternatives, each any of chains, of which all terms hold."""

    alternatives: tuple[tuple[tuple[Term, ...], ...], ...]

    def holds(self, value: Plain) -> bool:
        """Whether the engine would take this cell as a match."""
        try:
            return any(any(all(term.holds(value) for term in chain) for chain in one) for one in self.alternatives)
        except _Mismatch:
            return False

    @property
    def constants(self) -> tuple[Plain, ...]:
        """Every value that it compares with."""
        return tuple(value for one in self.alternatives for chain in one for term in chain for value in term.values)


def read_cell(text: str) -> Test | None:
    """The test in a cell; None where it is more than comparisons with constants. An empty cell is not for here."""
    try:
        return _Cell(_without_column(tokens(text))).test()
    except (Refused, _Complex):
        return None


def _without_column(words: Sequence[Token]) -> list[Token]:
    """`$ > 3` says what `> 3` says."""
    compares = {*_COMPARISONS, "==", "!=", "in", "not"}
    after = [*(word.value for word in words[1:]), ""]
    return [word for word, next_one in zip(words, after, strict=True) if word.value != "$" or next_one not in compares]


class _Complex(Exception):
    """More than this module understands."""


class _Cell:
    def __init__(self, words: Sequence[Token]) -> None:
        self.words = words
        self.at = 0

    def test(self) -> Test:
        found = [self._alternative()]
        while self._take(","):
            found.append(self._alternative())
        if self.at != len(self.words):
            raise _Complex
        return Test(tuple(found))

    def _alternative(self) -> tuple[tuple[Term, ...], ...]:
        start = self.at
        chains = [self._chain()]
        while self._take("or"):
            chains.append(self._chain())
        joined = len(chains) > 1 or len(chains[0]) > 1
        if joined and any(
            word.value in ("and", "or") and self._is_constant(place + start)
            for place, word in enumerate(self.words[start : self.at])
        ):
            raise _Complex
        return tuple(chains)

    def _is_constant(self, at: int) -> bool:
        """Whether `and` or `or` at this place joins bare constants, which means something else."""
        after = self.words[at + 1] if at + 1 < len(self.words) else None
        return after is not None and (after.kind in ("text", "number") or after.value in ("true", "false", "null", "-"))

    def _chain(self) -> tuple[Term, ...]:
        terms = [self._term()]
        while self._take("and"):
            terms.append(self._term())
        return tuple(terms)

    def _term(self) -> Term:
        word = self._next()
        if word in _COMPARISONS:
            number = self._constant()
            if isinstance(number, bool) or not isinstance(number, float):
                raise _Complex
            return Term(word, (number,))
        if word in ("==", "!="):
            return Term(word, (self._constant(),))
        if word == "not":
            if not self._take("in"):
                raise _Complex
            return self._within(negated=True)
        if word == "in":
            return self._within(negated=False)
        self.at -= 1
        if word in ("[", "("):
            return self._range(negated=False)
        return Term("==", (self._constant(),))

    def _within(self, *, negated: bool) -> Term:
        start = self.at
        try:
            return self._range(negated=negated)
        except _Complex:
            self.at = start
        if not self._take("["):
            raise _Complex
        values = [self._constant()]
        while self._take(","):
            values.append(self._constant())
        if not self._take("]"):
            raise _Complex
        return Term("not in" if negated else "in", tuple(values))

    def _range(self, *, negated: bool) -> Term:
        opened = self._next()
        least = self._constant()
        if opened not in ("[", "(") or not self._take(".."):
            raise _Complex
        most = self._constant()
        closed = self._next()
        if closed not in ("]", ")") or not _is_number(least) or not _is_number(most):
            raise _Complex
        return Term("not range" if negated else "range", (least, most), (opened == "(", closed == ")"))

    def _constant(self) -> Plain:
        if self._take("-"):
            number = self._constant()
            if isinstance(number, bool) or not isinstance(number, float):
                raise _Complex
            return -number
        if self.at >= len(self.words):
            raise _Complex
        word = self.words[self.at]
        self.at += 1
        if word.kind == "text":
            return word.value[1:-1]
        if word.kind == "number":
            return float(word.value.replace("_", ""))
        named: dict[str, Plain] = {"true": True, "false": False, "null": None}
        if word.value not in named:
            raise _Complex
        return named[word.value]

    def _next(self) -> str:
        if self.at >= len(self.words):
            raise _Complex
        self.at += 1
        word = self.words[self.at - 1]
        return word.value if word.kind != "text" else ""

    def _take(self, value: str) -> bool:
        if self.at < len(self.words) and self.words[self.at].kind != "text" and self.words[self.at].value == value:
            self.at += 1
            return True
        return False


def _is_number(value: Plain) -> bool:
    return isinstance(value, float)


def _same(one: Plain, other: Plain) -> bool:
    """Equality between values of one kind: true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other
