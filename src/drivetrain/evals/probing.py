"""Whether a provider changed what stands behind an unchanged name: answers of now against the baseline's, row by row.

Owns the test and the stored baseline. It asks nobody: `embedded/probing` does. Of an answer only figures and keyed
hashes of its words are kept, never its text.

The test. If nothing changed, a row's baseline answers and its new ones were drawn alike, so that each way of saying
which of them are the new ones was as likely. For one row let T be how much further the new answers are from the
baseline's than these are from each other, and w = exp(lambda T); then w / (mean of w over all those ways) has mean 1,
whatever the noise of the model is: it is an e-value, and so are the product over rows, which are independent, and the
mean over several lambda and over aspects (Vovk and Wang, E-values, Annals of Statistics 49 (2021); Ramdas and Wang,
Hypothesis Testing with E-values, arXiv 2410.23614). By Markov's inequality the evidence of an unchanged model reaches
1/a with a chance of at most a. The k-th probe since the baseline gets a = level / (k (k + 1)), which sums to `level`
over all probes, however many there are.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

import msgspec

from drivetrain.statistics.log_capital import log_mean

LEVEL = 0.05
"""The chance of a false alarm, over all probes of all models since their baselines."""
REPEATS = 3
"""Of each row in a baseline: what these differ among themselves is noise. Fewer than two tell nothing of it."""
REPEATS_MAX = 10
"""A row of ten baseline answers and ten new ones would be read in 184,756 ways; see `WAYS_MAX`."""
WAYS_MAX = 1_000
ROWS_MIN = 5
"""With fewer rows no change could ever be shown."""
WORDS_MAX = 512
"""Of an answer that are compared, the first."""
LAMBDAS = (1.0, 3.0, 10.0, 30.0, 100.0)
ODDS_TOLD_MAX = 1_000_000
"""More evidence than this is not told apart."""
ASPECTS = ("words", "form", "length", "tokens")
_WORD = re.compile(r"\w+|[^\w\s]")


class AnswerV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of one answer."""

    words: tuple[int, ...] = ()
    """Keyed hashes of its words, sorted, with repetitions."""
    form: str = ""
    """How it ended and what it looks like: `stop json`, `stop fenced json`, `length text`, `failed output_invalid`."""
    chars: int = 0
    tokens: int = 0
    model: str = ""
    """As the response itself names it."""
    fingerprint: str = ""
    """The response's `system_fingerprint`, where it has one."""
    call_id: str = ""


class BaselineV1(msgspec.Struct, frozen=True, kw_only=True, tag="probe.baseline.1"):
    """What a model's answers are compared with, as stored."""

    model: str
    workflow: str
    variant: str
    key: str
    """Of what is asked: prompt, parameters, types and settings; with another one there is another baseline."""
    dataset: str
    """`NAME@NUMBER`."""
    content_hash: str
    made_ns: int
    made_by: str
    reason: str = ""
    """Of one that a person accepted."""
    rows: dict[str, tuple[AnswerV1, ...]]
    """Row -> its answers."""
    probes: int = 0
    """Made since."""
    cost_nano_usd: int = 0
    """Per Call, as measured."""


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """What one probe of one model says."""

    rows: int
    """That could be compared."""
    changed: bool
    log_evidence: float
    """Natural logarithm."""
    log_needed: float
    aspects: dict[str, float]
    """Aspect -> the natural logarithm of its evidence alone."""
    apart: dict[str, float]
    """Aspect -> mean distance of the new answers from the baseline's, from 0 to 1."""
    noise: dict[str, float]
    """Aspect -> mean distance of the baseline's answers from each other."""
    renamed: tuple[str, str] = ("", "")
    """The name in the responses, before and now, where it is another one."""
    fingerprints: tuple[str, str] = ("", "")
    """As `renamed`; providers change it without changing the model, so that it is told and alarms nobody."""
    forms: tuple[tuple[str, float, float], ...] = ()
    """(form, its share before, its share now)."""
    chars: tuple[float, float] = (0.0, 0.0)
    """Mean length before and now."""
    tokens: tuple[float, float] = (0.0, 0.0)

    @property
    def verdict(self) -> str:
        """One sentence that a person acts on."""
        if any(self.renamed):
            return f"changed: responses name the model {self.renamed[1] or 'nothing'}, and named {self.renamed[0]}"
        if self.rows < ROWS_MIN:
            return f"not enough answers: {self.rows} rows could be compared, and {ROWS_MIN} are needed"
        told = f"evidence {_odds(self.log_evidence)} of {_odds(self.log_needed)} needed"
        if not self.changed:
            return f"no change shown on {self.rows} rows ({told})"
        which = [name for name in ASPECTS if self.aspects[name] >= self.log_needed]
        parts = [f"{name} differ by {self.apart[name]:.0%}, noise is {self.noise[name]:.0%}" for name in which]
        return f"changed on {self.rows} rows: {'; '.join(parts)} ({told})"


def answer_of(text: str, *, key: bytes, form: str, tokens: int, model: str, fingerprint: str, call_id: str) -> AnswerV1:
    """What is kept of an answer's text. key: secret, so that nobody can look its words up."""
    hashed = (hashlib.blake2b(one.encode(), key=key, digest_size=4).digest() for one in _words(text))
    return AnswerV1(
        words=tuple(sorted(int.from_bytes(one, "big") for one in hashed)),
        form=f"{form} {_shape(text)}".strip(),
        chars=len(text),
        tokens=tokens,
        model=model,
        fingerprint=fingerprint,
        call_id=call_id,
    )


def probe(
    baseline: Mapping[str, Sequence[AnswerV1]],
    now: Mapping[str, Sequence[AnswerV1]],
    *,
    number: int,
    level: float = LEVEL,
) -> Probed:
    """The new answers against the baseline's, on the rows that both have; a row needs two baseline answers.

    number: 1, 2, 3 ... of this probe since the baseline. level: of all of this model's probes together.
    """
    rows = sorted(row for row in now if now[row] and len(baseline.get(row, ())) > 1)
    before = [one for row in rows for one in baseline[row]]
    after = [one for row in rows for one in now[row]]
    needed = math.log(number * (number + 1) / level)
    aspects, apart, noise = {}, {}, {}
    for aspect in ASPECTS:
        seen = [_row(aspect, baseline[row], now[row]) for row in rows]
        aspects[aspect] = log_mean([sum(one.logs[place] for one in seen) for place in range(len(LAMBDAS))])
        apart[aspect], noise[aspect] = _mean([one.apart for one in seen]), _mean([one.noise for one in seen])
    evidence = log_mean(list(aspects.values()))
    renamed = _other(_names(before, "model"), _names(after, "model"))
    shown = len(rows) >= ROWS_MIN and evidence >= needed
    return Probed(
        rows=len(rows), changed=shown or any(renamed), log_evidence=evidence, log_needed=needed,
        aspects=aspects, apart=apart, noise=noise, renamed=renamed,
        fingerprints=_other(_names(before, "fingerprint"), _names(after, "fingerprint")),
        forms=_forms(before, after),
        chars=(_mean([one.chars for one in before]), _mean([one.chars for one in after])),
        tokens=(_mean([one.tokens for one in before]), _mean([one.tokens for one in after])),
    )  # fmt: skip


class _Row(msgspec.Struct, frozen=True):
    """One row in one aspect."""

    logs: tuple[float, ...]
    """Per lambda: the logarithm of its e-value."""
    apart: float
    noise: float


def _odds(log: float) -> str:
    """Evidence from its logarithm: 1 says nothing; 20 happens to an unchanged model once in 20 times at most."""
    if log >= math.log(ODDS_TOLD_MAX):
        return f"{ODDS_TOLD_MAX:,} or more"
    value = math.exp(log)
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if value >= 0.01 else "less than 0.01"


def _row(aspect: str, before: Sequence[AnswerV1], after: Sequence[AnswerV1]) -> _Row:
    before, after = _fewer(before, after)
    answers = [*before, *after]
    places = range(len(answers))
    distances = {(i, j): _distance(aspect, answers[i], answers[j]) for i, j in combinations(places, 2)}
    mine = tuple(places[len(before) :])
    further = {ways: _further(ways, distances) for ways in combinations(places, len(after))}
    logs = [one * further[mine] - log_mean([one * value for value in further.values()]) for one in LAMBDAS]
    between = _mean([distance for (i, j), distance in distances.items() if (i in mine) != (j in mine)])
    within = _mean([distance for (i, j), distance in distances.items() if i not in mine and j not in mine])
    return _Row(tuple(logs), between, within)


def _fewer(before: Sequence[AnswerV1], after: Sequence[AnswerV1]) -> tuple[Sequence[AnswerV1], Sequence[AnswerV1]]:
    """So many of them that the ways to tell them apart stay few; which ones has nothing to do with what they say."""
    while math.comb(len(before) + len(after), len(after)) > WAYS_MAX:
        before, after = (before[:-1], after) if len(before) >= len(after) else (before, after[:-1])
    return before, after


def _further(ways: Sequence[int], distances: Mapping[tuple[int, int], float]) -> float:
    """How much further the chosen answers are from the others than each side is in itself."""
    chosen = frozenset(ways)
    by_side: tuple[list[float], list[float], list[float]] = ([], [], [])
    for (i, j), distance in distances.items():
        by_side[(i in chosen) + (j in chosen)].append(distance)
    others, between, within = by_side
    return _mean(between) - _mean([_mean(one) for one in (within, others) if one])


def _distance(aspect: str, one: AnswerV1, other: AnswerV1) -> float:
    """From 0, alike, to 1."""
    if aspect == "form":
        return float(one.form != other.form)
    if aspect == "words":
        total = len(one.words) + len(other.words)
        shared = (Counter(one.words) & Counter(other.words)).total()
        return 1 - 2 * shared / total if total else 0.0
    a, b = (one.chars, other.chars) if aspect == "length" else (one.tokens, other.tokens)
    return min(1.0, abs(math.log2((1 + a) / (1 + b))))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())[:WORDS_MAX]


def _shape(text: str) -> str:
    """What an answer looks like: its form counts apart from what it says."""
    said = text.strip()
    if not said:
        return "empty"
    fenced = "fenced " if said.startswith("```") else ""
    said = said.removeprefix("```json").strip("`\n ")
    return fenced + ("json" if said[:1] in "{[" else "text")


def _forms(before: Sequence[AnswerV1], after: Sequence[AnswerV1]) -> tuple[tuple[str, float, float], ...]:
    was, now = Counter(one.form for one in before), Counter(one.form for one in after)
    return tuple(
        (form, was[form] / max(1, len(before)), now[form] / max(1, len(after))) for form in sorted({*was, *now})
    )


def _names(answers: Sequence[AnswerV1], which: str) -> set[str]:
    return {name for one in answers if (name := getattr(one, which))}


def _other(before: set[str], now: set[str]) -> tuple[str, str]:
    """Names of before and now where now has one that was not there before; empty where either is not told."""
    if not before or not now or now <= before:
        return "", ""
    return ", ".join(sorted(before)), ", ".join(sorted(now))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
