"""Everything that is wrong with the scorers of one eval: their options, the fields they look at, and their judges.

Called by `eval_checks`. What is inside a JSON schema is checked by the room `evals`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from drivetrain.core.declarations import Record, Workflow
from drivetrain.core.errors import did_you_mean
from drivetrain.core.evals import SCORER_KINDS, Scorer
from drivetrain.core.scorers import FIELD_KINDS, READING_NAMES
from drivetrain.project.workflow_notes import is_number, is_record

SCORERS_MAX = 50
"""Of one eval."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
TIMEOUT_MS_MAX = 60_000
"""Of one answer: a run asks a scorer as often as it has answers."""
ACCURACY = "accuracy"
"""In gates the first scorer, whatever it is called."""
JUDGE_SOURCES = ("question", "answer", "expected", "first", "second")
"""What a judge's input is filled with, beside the fields of the asked workflow's input; see `evals/judging.py`."""
VERDICTS = ("verdict", "score", "choice")
_FLAGS = ("case", "spaces", "punctuation", "whole", "swap")
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "exact": ("reading",),
    "normalised": ("reading", "case", "spaces", "punctuation"),
    "f1": ("reading", "separator"),
    "within": ("reading", "absolute", "relative"),
    "matches": ("reading", "pattern", "whole"),
    "json_schema": ("reading", "schema"),
    "json_fields": ("reading", "fields"),
    "similarity": ("reading", "at_least"),
    "function": ("reading",),
    "judge": ("swap", "scale", "verdict", "labels", "inputs"),
}
_NEEDED: Mapping[str, str] = {"matches": "pattern", "json_schema": "schema", "json_fields": "fields"}


class Note(Protocol):
    """Keeps a mistake of the eval, at the line of an argument."""

    def __call__(self, what: str, *arguments: str, value: str = "", do: str = "") -> None: ...


def check_scorers(
    declared: Sequence[Any],
    workflow: Workflow[Any, Any] | None,
    workflows: Mapping[str, Workflow[Any, Any]],
    note: Note,
) -> None:
    """Notes every mistake in an eval's scorers. workflow: the one that is asked; None where that is not known."""
    if len(declared) > SCORERS_MAX:
        note(f"has {len(declared)} scorers; at most {SCORERS_MAX} are taken.", "scorers")
    names: set[str] = set()
    for place, one in enumerate(declared[:SCORERS_MAX]):
        if not isinstance(one, Scorer):
            if not callable(one):
                note(
                    "holds something that is no scorer.", "scorers", value=repr(one)[:80],
                    do='Write for example `dt.scorers.exact("intent")`, or a function.',
                )  # fmt: skip
            continue
        check = _ScorerCheck(one, workflow, workflows, note)
        check.run()
        if one.name in names:
            check.note("has the name of another one.", value=one.name, do='Give it a `name="..."` of its own.')
        if one.name == ACCURACY and place:
            check.note("is called as gates call the first scorer.", value=one.name, do="Give it another name.")
        names.add(one.name)


class _ScorerCheck:
    """One scorer being checked."""

    def __init__(
        self, scorer: Scorer, workflow: Workflow[Any, Any] | None, workflows: Mapping[str, Workflow[Any, Any]],
        note: Note,
    ) -> None:  # fmt: skip
        self.scorer = scorer
        self.workflow = workflow
        self.workflows = workflows
        self._note = note

    def note(self, what: str, *, value: str = "", do: str = "") -> None:
        self._note(f": scorer `{self.scorer.name}` {what}", "scorers", value=value, do=do)

    def run(self) -> None:
        scorer = self.scorer
        if not isinstance(scorer.name, str) or NAME.fullmatch(scorer.name) is None:
            self.note(
                "has no name that gates can use.", value=repr(scorer.name)[:80],
                do='Give it one of letters, digits, `_`, `-` and `.`: `name="..."`.',
            )  # fmt: skip
        if scorer.kind not in SCORER_KINDS:
            self.note("is of no known kind.", value=str(scorer.kind), do=did_you_mean(str(scorer.kind), SCORER_KINDS))
            return
        _options(scorer.kind, scorer.options, self.note)
        self._field()
        if scorer.kind == "function" and not callable(scorer.function):
            self.note("is no function.", value=repr(scorer.function)[:80])
        timeout = scorer.timeout_ms
        if not isinstance(timeout, int) or not 1 <= timeout <= TIMEOUT_MS_MAX:
            self.note(f"may take from 1 to {TIMEOUT_MS_MAX} ms (`timeout_ms`).", value=repr(timeout)[:80])
        if scorer.kind == "json_fields" and isinstance(scorer.options.get("fields"), Mapping):
            for name, how in scorer.options["fields"].items():
                self._inner(str(name), how)
        if scorer.kind == "judge":
            self._judge()

    def _field(self) -> None:
        field = self.scorer.field
        if not isinstance(field, str):
            self.note("looks at a field that is no text.", value=repr(field)[:80])
        elif field and not self.scorer.options.get("reading"):
            self._is_output(field)

    def _is_output(self, field: str) -> None:
        fields = fields_of(self.workflow.output) if self.workflow is not None else None
        if fields is not None and field not in fields and field.partition(".")[0] not in fields:
            self.note(
                f"looks at a field that the output of `{self.workflow.name if self.workflow else ''}` does not have.",
                value=field, do=did_you_mean(field, fields),
            )  # fmt: skip

    def _inner(self, name: str, how: Any) -> None:
        """One field of `json_fields`."""
        self._is_output(name)
        if not isinstance(how, Mapping):
            self.note(f"scores `{name}` with something that is no scorer.", value=repr(how)[:80])
        elif how.get("kind") not in FIELD_KINDS:
            listed = ", ".join(f"`{one}`" for one in FIELD_KINDS)
            self.note(f"scores `{name}` by `{how.get('kind')}`, which no field can be.", do=f"Use one of {listed}.")
        else:
            _options(str(how["kind"]), how.get("options", {}), self.note)

    def _judge(self) -> None:
        scorer = self.scorer
        judge = self.workflows.get(scorer.workflow)
        if judge is None:
            self.note(
                "asks a workflow that is not there.", value=str(scorer.workflow),
                do=did_you_mean(str(scorer.workflow), self.workflows),
            )  # fmt: skip
            return
        if self.workflow is not None and judge is self.workflow:
            self.note("is the workflow that it judges.", do="Declare a workflow of its own that judges.")
        if not is_record(judge.input) or not is_record(judge.output):
            self.note(f"needs a Record as input and as output of `{judge.name}`.", do="Give the workflow both types.")
            return
        self._verdict(fields_of(judge.output) or ())
        self._inputs(judge)

    def _verdict(self, fields: Sequence[str]) -> None:
        name = self.scorer.options.get("verdict", "")
        if name and name not in fields:
            self.note("reads a verdict that the judge does not give.", value=str(name), do=did_you_mean(name, fields))
        elif not name and len(fields) != 1 and not any(one in fields for one in VERDICTS):
            listed = ", ".join(f"`{one}`" for one in fields)
            self.note("does not say which field is the verdict.", do=f'Name one of {listed}: `verdict="..."`.')

    def _inputs(self, judge: Workflow[Any, Any]) -> None:
        named = self.scorer.options.get("inputs", {})
        if not isinstance(named, Mapping):
            return
        asked = self.workflow
        known = {*JUDGE_SOURCES, *((fields_of(asked.input) if asked is not None and asked.input else None) or ())}
        for name in named:
            if name not in (fields_of(judge.input) or ()):
                self.note(f"fills a field that `{judge.name}` does not take.", value=str(name))
        for field in msgspec.structs.fields(judge.input) if judge.input is not None else ():
            source = named.get(field.encode_name, field.encode_name)
            if asked is not None and source not in known and (field.required or field.encode_name in named):
                self.note(
                    f"cannot fill `{field.encode_name}` of `{judge.name}`.", value=str(source),
                    do=did_you_mean(str(source), known),
                )  # fmt: skip


def fields_of(declared: Any) -> tuple[str, ...] | None:
    """The fields of a Record as they are encoded; None of anything else, such as a text."""
    known = isinstance(declared, type) and issubclass(declared, Record)
    return tuple(declared.__struct_encode_fields__) if known else None


def _options(kind: str, options: Mapping[str, Any], note: Callable[..., None]) -> None:
    """Notes what is wrong with the options of one kind."""
    needed = _NEEDED.get(kind)
    if needed is not None and not options.get(needed):
        note(f"has no `{needed}`.")
    for name, value in options.items():
        if name not in _OPTIONS[kind]:
            note(f"has an option `{name}` that `{kind}` does not know.", do=did_you_mean(name, _OPTIONS[kind]))
        else:
            wrong = _wrong(name, value)
            if wrong:
                note(f"has a wrong `{name}`: {wrong}.", value=repr(value)[:80], do=_help(name, value))


def _wrong(name: str, value: Any) -> str:
    """Why an option cannot have a value; empty where it can."""
    if name == "reading":
        return "" if value in READING_NAMES else "there is no such way to read"
    if name in _FLAGS:
        return "" if isinstance(value, bool) else "it is true or false"
    if name in ("absolute", "relative"):
        return "" if is_number(value) and value >= 0 else "it is a number of at least 0"
    if name == "at_least":
        return "" if is_number(value) and 0 <= value <= 1 else "it is a number from 0 to 1"
    if name == "pattern":
        return _wrong_pattern(value)
    if name in ("schema", "fields", "inputs"):
        return "" if isinstance(value, Mapping) else "it is an object"
    if name == "scale":
        return _wrong_scale(value)
    return "" if isinstance(value, str) else "it is a text"


def _wrong_pattern(value: Any) -> str:
    if not isinstance(value, str):
        return "it is a text"
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        return f"it is no regular expression ({error})"
    return ""


def _wrong_scale(value: Any) -> str:
    if isinstance(value, Mapping):
        fits = bool(value) and all(is_number(one) and 0 <= one <= 1 for one in value.values())
        return "" if fits else "each word has a worth from 0 to 1"
    fits = isinstance(value, list) and len(value) == 2 and all(map(is_number, value)) and value[0] < value[1]
    return "" if fits else "it is the lowest and the highest number, or an object of words"


def _help(name: str, value: Any) -> str:
    return did_you_mean(str(value), READING_NAMES) if name == "reading" else ""
