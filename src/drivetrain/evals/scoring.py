"""What a scorer says of an answer: a number from 0 to 1, and why it is not 1.

A scorer is compiled once per run and asked once per answer. The answer is read, in the way that the scorer names; what
was read is compared with what the row expects; where it is not right, the form of both tells why (`causes.py`). A
scorer never raises for an answer and never hangs: what runs a user's code or pattern runs in a process of its own.
Judges are asked by the run, see `judging.py`. Called by runs, upgrades and probes.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.evals import Score, Scorer
from drivetrain.evals import causes
from drivetrain.evals.comparing_values import COMPARERS, Incomparable
from drivetrain.evals.isolation import HANGS_MAX, Isolated, Told
from drivetrain.evals.json_schema import fits
from drivetrain.evals.reading import Read, Reading, reading, unwrapped

NOTE_CHARS_MAX = 200
CAUSE = re.compile(r"\w[\w .-]{0,39}")
"""What a cause may be: failures are grouped by it, and Reports keep it, so it is no place for what somebody said."""
ISOLATED = ("function", "matches", "json_schema")
DEFAULT_READING = {"within": "number", "json_fields": "json", "json_schema": "json"}
NEEDS_NOTHING_EXPECTED = ("function", "json_schema", "matches")
"""Kinds that may score an answer of which the row expects nothing."""
_ABSENT: Any = object()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a workflow answered to one row."""

    text: str = ""
    """The model's text; empty where none came. Of a Call that failed, whatever its last attempt said."""
    value: Any = None
    """The output as plain values; None where the workflow's output is a text, or nothing could be read."""
    error: str = ""
    """The Call's error code; empty where it was answered."""
    finish_reason: str = ""


class CompiledScorer:
    """One scorer, ready to be asked. Threads may share it; what is isolated is asked one answer at a time."""

    def __init__(self, scorer: Scorer, output_fields: Sequence[str] = (), *, output: type[Any] | None = None) -> None:
        if scorer.kind == "judge":
            raise DrivetrainError(f"`{scorer.name}` is a judge: a Workflow that is asked, not a function.")
        self.scorer = scorer
        self._fields = tuple(output_fields)
        self._reading = _reading_of(scorer)
        self._isolated: Isolated | None = None
        if scorer.kind == "function":
            self._isolated = Isolated(_function_work(scorer, output), scorer.timeout_ms)
        elif _needs_isolation(scorer):
            self._isolated = Isolated(_pattern_work(scorer), scorer.timeout_ms)

    def __call__(self, answer: Answer, expected: Any, row: Mapping[str, Any]) -> Score:
        """The score. expected: a value, or a mapping of the output's fields; row: the Dataset's row."""
        if answer.error:
            cause = causes.of_failed_call(answer.text, answer.finish_reason)
            return Score(value=0.0, cause=cause, unread=cause == causes.FORMAT, note="the Call gave no usable answer")
        if self.scorer.kind == "function":
            return self._by_function(answer, expected, row)
        wanted = self._expected(expected)
        if wanted is _ABSENT:
            return _scorer_failed("which of the expected fields is compared is not said")
        if wanted is None and self.scorer.kind not in NEEDS_NOTHING_EXPECTED and not _names(expected, self.scorer):
            return _scorer_failed("the row expects nothing")
        if self._reading is not None:
            wanted = self._reading.as_expected(wanted)
        found = self._read(answer, self._reading)
        if not found.ok:
            return self._unread(answer, wanted)
        compared = self._compare(found.value, wanted)
        if isinstance(compared, Score):
            return compared
        if compared >= 1:
            return Score(value=1.0)
        wrapped = self._right_inside(answer, wanted)
        if wrapped:
            return Score(value=compared, cause=causes.FORMAT, note=f"it is right without {wrapped}")
        value, wanted = self._same_shape(found.value, wanted)
        return Score(value=compared, cause=causes.of_wrong(answer.text, value, wanted, row, answer.finish_reason))

    def close(self) -> None:
        """Ends its processes, where it has some."""
        if self._isolated is not None:
            self._isolated.close()

    def __enter__(self) -> CompiledScorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _expected(self, expected: Any) -> Any:
        """What the scored field should be; `_ABSENT` where several could be meant."""
        field = self.scorer.field
        if not isinstance(expected, Mapping):
            return expected
        if field:
            found = _at(expected, field)
            return None if found is _ABSENT else found
        return expected

    def _read(self, answer: Answer, way: Reading | None) -> Read:
        """The scored field's value, from the typed output or from the text."""
        field = self.scorer.field
        if answer.value is not None and way is None:
            found: Any = answer.value
            read = Read(True, found)
        else:
            kind = DEFAULT_READING.get(self.scorer.kind, "json" if field else "as_is")
            read = (way or reading(kind)).read(answer.text)
        if not read.ok or not field:
            return read
        if way is not None and not isinstance(read.value, Mapping):
            return read  # such as the last number of a text: it is the field
        found = _at(read.value, field)
        return Read(found is not _ABSENT, None if found is _ABSENT else found)

    def _compare(self, value: Any, wanted: Any) -> float | Score:
        """From 0 to 1; a Score where the comparison itself failed."""
        value, wanted = self._same_shape(value, wanted)
        if self._isolated is not None:
            return _of_told(self._isolated.ask([value, wanted]))
        try:
            return COMPARERS[self.scorer.kind](value, wanted, self.scorer.options)
        except Incomparable as fault:
            return _of_incomparable(fault)
        except RecursionError:  # a model may nest as deeply as a parser lets it
            return _of_incomparable(Incomparable("it is nested too deeply", of_answer=True))

    def _same_shape(self, value: Any, wanted: Any) -> tuple[Any, Any]:
        """A whole answer beside a plain value: its only field, or the only one that is expected."""
        if self.scorer.kind == "json_schema":
            return value, wanted
        if isinstance(value, Mapping) and wanted is not None and not isinstance(wanted, Mapping | list | tuple):
            names = self._fields or tuple(value)
            if len(names) == 1 and names[0] in value:
                return value[names[0]], wanted
        if isinstance(wanted, Mapping) and len(wanted) == 1 and not self.scorer.field:
            ((name, inner),) = wanted.items()
            if not isinstance(value, Mapping):
                return value, inner
            if name in value and self.scorer.kind != "json_fields":
                return value[name], inner
        return value, wanted

    def _unread(self, answer: Answer, wanted: Any) -> Score:
        wrapped = self._right_inside(answer, wanted)
        if wrapped:
            return Score(value=0.0, cause=causes.FORMAT, unread=True, note=f"it is right without {wrapped}")
        cause = causes.of_failed_call(answer.text, answer.finish_reason)
        return Score(
            value=0.0, cause=causes.FORMAT if cause == causes.FAILED else cause, unread=True,
            note="the answer could not be read",
        )  # fmt: skip

    def _right_inside(self, answer: Answer, wanted: Any) -> str:
        """What stands around a right answer; empty where none is in it. Only texts have a wrapping."""
        if answer.value is not None and self._reading is None:
            return ""
        for how, inner in unwrapped(answer.text):
            read = self._read(Answer(text=inner), self._reading)
            if read.ok and self._compare(read.value, wanted) == 1.0:
                return how
        return ""

    def _by_function(self, answer: Answer, expected: Any, row: Mapping[str, Any]) -> Score:
        isolated = self._isolated
        assert isolated is not None
        value: Any = answer.value
        if value is None or self._reading is not None:
            read = (self._reading or reading("as_is")).read(answer.text)
            if not read.ok:
                return self._unread(answer, None)
            value = read.value
        if self.scorer.field:
            value = _at(value, self.scorer.field)
            if value is _ABSENT:
                return Score(value=0.0, cause=causes.FORMAT, unread=True, note="the answer lacks the field")
        found = _of_told(isolated.ask([value, self._expected(expected), dict(row)]))
        if isinstance(found, Score):
            return found
        if found >= 1:
            return Score(value=1.0)
        value, wanted = self._same_shape(value, self._expected(expected))
        return Score(value=found, cause=causes.of_wrong(answer.text, value, wanted, row, answer.finish_reason))


def compiled(scorer: Scorer, output_fields: Sequence[str] = (), *, output: type[Any] | None = None) -> CompiledScorer:
    """A scorer that can be asked of answers: `compiled(one)(answer, expected, row)`; `close()` it at the end.

    output_fields: of the workflow's output, as they are encoded. output: its type, which a user's function is given
    the answer as; without one it is given plain values. Compile before threads are started: functions and patterns
    run in forks. Raises: DrivetrainError for a reading that does not exist, or a judge.
    """
    return CompiledScorer(scorer, output_fields, output=output)


def _reading_of(scorer: Scorer) -> Reading | None:
    name = scorer.options.get("reading", "")
    return reading(name) if name else None


def _names(expected: Any, scorer: Scorer) -> bool:
    """Whether the row says of this very field what it should be, be it null."""
    return isinstance(expected, Mapping) and bool(scorer.field) and _at(expected, scorer.field) is not _ABSENT


def _at(value: Any, field: str) -> Any:
    """A field of an object; a dot goes into an object within. `_ABSENT` where there is none."""
    if isinstance(value, Mapping) and field in value:
        return value[field]
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _function_work(scorer: Scorer, output: type[Any] | None) -> Callable[[Any], Any]:
    function = scorer.function
    assert function is not None
    count = _arguments(function)

    def work(message: Any) -> Any:
        value, expected, row = message
        if output is not None and isinstance(value, dict) and not scorer.field:
            value = msgspec.convert(value, output)
        return _plain(function(*(value, expected, row)[:count]))

    return work


def _arguments(function: Callable[..., Any]) -> int:
    """How many of (output, expected, row) it takes; what has a default is its own, unless named as one of them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    kinds = [one.kind for one in parameters]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return 3
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [
        one for one in parameters
        if one.kind in places and (one.default is inspect.Parameter.empty or one.name in ("expected", "row"))
    ]  # fmt: skip
    return min(3, len(taken))


def _pattern_work(scorer: Scorer) -> Callable[[Any], Any]:
    if scorer.kind == "json_schema":
        schema = scorer.options.get("schema", {})
        return lambda message: fits(message[0], schema)
    compare = COMPARERS[scorer.kind]

    def work(message: Any) -> Any:
        try:
            return compare(message[0], message[1], scorer.options)
        except Incomparable as fault:
            return _of_incomparable(fault)
        except RecursionError:
            return _of_incomparable(Incomparable("it is nested too deeply", of_answer=True))

    return work


def _of_incomparable(fault: Incomparable) -> Score:
    if fault.of_answer:
        return Score(value=0.0, cause=causes.FORMAT, unread=True, note=str(fault))
    return _scorer_failed(str(fault))


def _needs_isolation(scorer: Scorer) -> bool:
    """Whether it runs what a user wrote, a pattern included: that may take for ever."""
    inner = scorer.options.get("fields", {}) if scorer.kind == "json_fields" else {}
    return scorer.kind in ISOLATED or any(one["kind"] in ISOLATED for one in inner.values())


def _plain(said: Any) -> Any:
    """What a user's function gave, so that it crosses over."""
    if isinstance(said, Score):
        return msgspec.to_builtins(said)
    item = getattr(said, "item", None)  # numpy's numbers
    return item() if callable(item) else said


def _of_told(told: Told) -> float | Score:
    """A number from 0 to 1, or a Score of the user's own, or that the scorer failed."""
    if told.state == "done":
        return _of_value(told.value)
    notes = {
        "raised": f"it raised {told.value}",
        "late": "it took longer than it may and was ended",
        "died": "its process ended",
        "refused": f"it is not asked any more: it hung or ended {HANGS_MAX} times in a row",
        "unsent": "the answer or what it gave are no plain values, or are too large",
    }
    return _scorer_failed(notes[told.state])


def _of_value(said: Any) -> float | Score:
    if isinstance(said, bool):
        return float(said)
    if isinstance(said, int | float):
        if math.isfinite(said) and 0 <= said <= 1:
            return float(said)
        return _scorer_failed("it gave a number that is not from 0 to 1")
    if isinstance(said, dict):
        try:
            score = msgspec.convert(said, Score)
        except msgspec.ValidationError:
            return _scorer_failed("it gave no score")
        if score.cause and CAUSE.fullmatch(score.cause) is None:
            return _scorer_failed("it gave a cause that is no word of at most 40 characters")
        checked = _of_value(score.value)
        note = score.note[:NOTE_CHARS_MAX]
        return checked if isinstance(checked, Score) else msgspec.structs.replace(score, value=checked, note=note)
    return _scorer_failed(f"it gave a {type(said).__name__} and no number from 0 to 1")


def _scorer_failed(note: str) -> Score:
    return Score(value=0.0, cause=causes.SCORER, note=note[:NOTE_CHARS_MAX])
