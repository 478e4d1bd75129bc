"""How a user says what a right answer is: `dt.scorers.exact("intent")`, `dt.scorers.within(absolute=0.01)`.

Each function gives a `core.evals.Scorer`: data only, and nothing is refused here, so that `drivetrain check` reports
every mistake at once. What each kind does with an answer is `evals/scoring.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drivetrain.core.evals import SCORER_TIMEOUT_MS, Eval, Scorer

READING_NAMES = (
    "as_is", "unfenced", "first_line", "last_line", "word", "yes_no", "first_yes_no", "last_yes_no", "bracketed_yes_no",
    "number", "first_number", "last_number", "json", "unfenced_json", "first_json",
)  # fmt: skip
"""How a text may be read before it is scored; each is described in `evals/reading.py`."""
FIELD_KINDS = ("exact", "normalised", "f1", "within", "matches", "similarity")
"""What a field of `json_fields` may be scored with."""


def exact(field: str = "", *, name: str = "", reading: str = "") -> Scorer:
    """1 where the answer is what the row expects, else 0. Of a text, white space around it does not count."""
    return _scorer("exact", field, name, reading=reading)


def normalised(
    field: str = "", *, case: bool = True, spaces: bool = True, punctuation: bool = False, name: str = "",
    reading: str = "",
) -> Scorer:  # fmt: skip
    """As `exact`, of texts without what is mere form: Unicode's compatibility forms (NFKC) always.

    case, spaces, punctuation: whether differences of that kind do not count either.
    """
    return _scorer("normalised", field, name, reading=reading, case=case, spaces=spaces, punctuation=punctuation)


def f1(field: str = "", *, separator: str = "", name: str = "", reading: str = "") -> Scorer:
    """The harmonic mean of precision and recall over labels, or over the words of a text.

    Of lists it is over their different elements. separator: parts a text into labels, such as `,`; without one its
    words count, each as often as it stands there.
    """
    return _scorer("f1", field, name, reading=reading, separator=separator)


def within(
    field: str = "", *, absolute: float = 0.0, relative: float = 0.0, name: str = "", reading: str = ""
) -> Scorer:
    """1 where a number differs from the expected one by at most the larger of the two tolerances, else 0.

    relative: a share of the expected number's size. A text is read as a number (`reading`: by default all of it).
    """
    return _scorer("within", field, name, reading=reading, absolute=absolute, relative=relative)


def matches(pattern: str, field: str = "", *, whole: bool = False, name: str = "", reading: str = "") -> Scorer:
    """1 where a regular expression is found in the answer, else 0; whole: it must match all of it.

    Where the pattern has a group, the first one's text must be what the row expects.
    """
    return _scorer("matches", field, name, reading=reading, pattern=pattern, whole=whole)


def json_schema(schema: Mapping[str, Any], field: str = "", *, name: str = "", reading: str = "") -> Scorer:
    """1 where the answer fits a JSON schema, else 0; a text is decoded first. The keywords are those of
    `evals/json_schema.py`."""
    return _scorer("json_schema", field, name, reading=reading, schema=dict(schema))


def json_fields(fields: Mapping[str, Scorer] | Sequence[str], *, name: str = "", reading: str = "") -> Scorer:
    """The share of the named fields that are right; each by `exact` or by a scorer of its own.

    `json_fields({"total": within(absolute=0.01), "customer.name": normalised()})`; a dot goes into an object.
    """
    said = dict(fields) if isinstance(fields, Mapping) else {one: exact() for one in fields}
    kept = {
        key: {"kind": one.kind, "options": one.options} if isinstance(one, Scorer) else one for key, one in said.items()
    }
    return _scorer("json_fields", "", name, reading=reading, fields=kept)


def similarity(field: str = "", *, at_least: float | None = None, name: str = "", reading: str = "") -> Scorer:
    """How alike two texts are, from 0 to 1: the share of three-character pieces that both have (Dice's coefficient).

    at_least: 1 where they are as alike as this, else 0. No model is asked: it sees letters and no meaning.
    """
    return _scorer("similarity", field, name, reading=reading, at_least=at_least)


def function(
    scorer: Callable[..., Any], *, name: str = "", field: str = "", timeout_ms: int = SCORER_TIMEOUT_MS
) -> Scorer:
    """A function of (output, expected, row), or of the first of these, that gives a bool, a number from 0 to 1, or a
    Score. It runs in a process of its own."""
    return Scorer(
        name=name or getattr(scorer, "__name__", "function").strip("<>"), kind="function", field=field,
        function=scorer, timeout_ms=timeout_ms,
    )  # fmt: skip


def judge(
    workflow: Any, *, verdict: str = "", scale: Sequence[float] | Mapping[str, float] | None = None, swap: bool = True,
    inputs: Mapping[str, str] | None = None, labels: str = "", field: str = "", name: str = "",
) -> Scorer:  # fmt: skip
    """What another Workflow says of the answer.

    workflow: a Workflow or its name; its input is a Record with fields such as `question`, `answer` and `expected`, or
    `first` and `second` where two answers are compared. verdict: the field of its output that counts; empty: its only
    one, or `verdict`, `score` or `choice`. scale: the lowest and the highest number that it gives, or each word that
    it gives with its worth from 0 to 1. swap: two answers are shown in both orders, and a judge that does not stand by
    its choice has said nothing. inputs: its input's fields -> what they are given, where names differ. labels: the
    Dataset's column that holds what a person said, in the same scale; the judge is measured by it.
    """
    target = workflow if isinstance(workflow, str) else str(getattr(workflow, "name", ""))
    options: dict[str, Any] = {"swap": swap}
    if scale is not None:
        options["scale"] = dict(scale) if isinstance(scale, Mapping) else list(scale)
    options |= {key: value for key, value in (("verdict", verdict), ("labels", labels)) if value}
    if inputs:
        options["inputs"] = dict(inputs)
    return Scorer(name=name or target or "judge", kind="judge", field=field, options=options, workflow=target)


def scorers_of(declared: Eval) -> tuple[Scorer, ...]:
    """An eval's scorers, functions among them made Scorers; `exact` where none is declared."""
    found = tuple(one if isinstance(one, Scorer) else function(one) for one in declared.scorers)
    return found or (exact(),)


def _scorer(kind: str, field: str, name: str, **options: Any) -> Scorer:
    kept = {key: value for key, value in options.items() if value not in (None, "")}
    label = f"{kind}-{field}" if isinstance(field, str) and field else kind
    return Scorer(name=name or label, kind=kind, field=field, options=kept)
