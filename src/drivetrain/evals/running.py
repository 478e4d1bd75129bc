"""A run of an eval: every row is asked once per repeat, kept as it comes, and scored.

Owns what is asked again and what is taken from the journal, how a Call becomes a row, and what of a row only the
project's keys tell: its group, and what scorers noted. It does not know how Calls are made (`Asks`), what scorers do
(`evals/scoring.py`), or what gates make of it. Called by the wiring of evals.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from drivetrain.core.calls import RETAINED_FULL
from drivetrain.core.codec import JSON, MSGPACK, MalformedJson, parse_json
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.evals import Score
from drivetrain.evals.cases import Case
from drivetrain.evals.rows import PASSING, RowV1
from drivetrain.evals.run_files import AnsweredV1, Kept
from drivetrain.evals.run_texts import Digest, group_under, seal_notes
from drivetrain.evals.scoring import Answer
from drivetrain.execution.call import CallResult
from drivetrain.execution.plan import WorkflowPlan
from drivetrain.execution.recording import retained
from drivetrain.ports.journal import Vault
from drivetrain.providers.answers import Unusable, message_of

SEALED_AS = "eval"
"""The kind under which an answer is sealed, bound to its Call."""
LINE = 20
"""Rows between two reports of how far a run is."""
Progress = Callable[[str, float], None]
ScoreOf = Callable[[Answer, Any, Mapping[str, Any]], Score]


class Asks(Protocol):
    """Where rows are asked; see `embedded.evaluating.Asker`."""

    def plan(self, workflow: str) -> WorkflowPlan: ...

    def said(self, call_id: str) -> str: ...

    def ask_all(
        self,
        workflow: str,
        rows: Iterable[tuple[str, bytes]],
        *,
        door: str = ...,
        tags: tuple[str, ...] = ...,
        users: Mapping[str, str] = ...,
    ) -> Iterator[tuple[str, CallResult]]: ...


class Judges(Protocol):
    """What judges say of answers; see `evals/run_judges.py`."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def judge_all(self, answered: Sequence[Answered]) -> Iterator[tuple[int, str, Score, int]]:
        """(place in `answered`, scorer's name, its score, what it cost in nano-USD) as they come; what was not asked
        is left out."""


class Answered(msgspec.Struct, frozen=True):
    """One row with its answer, before it is scored."""

    case: Case
    row: RowV1
    answer: Answer


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run."""

    rows: tuple[RowV1, ...]
    """In the order of the cases, repeats together."""
    missing: int = 0
    """Answers that were not asked for, or not judged: the budget was spent, or somebody stopped it."""
    reused: int = 0
    """Answers of before."""
    passing: dict[str, int] = {}
    """Code -> rows that got no answer for a reason outside the workflow; the next run asks them again."""

    @property
    def finished(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing


class Runner:
    """Runs cases through one workflow of one Snapshot."""

    def __init__(
        self,
        asks: Asks,
        workflow: str,
        kept: Kept,
        vault: Vault | None,
        *,
        team: str,
        typed: bool,
        now_ns: Callable[[], int],
        tags: tuple[str, ...] = (),
    ) -> None:
        """vault: None keeps no answer beyond the run. typed: whether the workflow has an output type."""
        self._asks = asks
        self._workflow = workflow
        self._kept = kept
        self._vault = vault
        self._team = team
        self._typed = typed
        self._now_ns = now_ns
        self._tags = tags
        # Rows that nobody keeps need equal groups in this run alone.
        self._digest: Digest = vault.digest if vault is not None else partial(_digest_under, secrets.token_bytes(32))

    def run(
        self,
        cases: Sequence[Case],
        scorers: Mapping[str, ScoreOf],
        *,
        repeats: int = 1,
        judges: Judges | None = None,
        progress: Progress,
    ) -> Ran:
        """Asks what is not kept, in an order that no order of the file shows, and scores everything.

        scorers: name -> what scores, without judges. Raises: DrivetrainError where nothing can be kept any more.
        """
        places = [(case, repeat) for case in cases for repeat in range(repeats)]
        found: dict[int, Answered] = {}
        for place, (case, repeat) in enumerate(places):
            before = self._before(case, repeat)
            if before is not None:
                found[place] = before
        reused = len(found)
        todo = sorted(
            (place for place in range(len(places)) if place not in found), key=lambda one: _order(places, one)
        )
        passing: dict[str, int] = {}
        asked = ((str(place), places[place][0].raw) for place in todo)
        users = {str(place): places[place][0].subject for place in todo}
        answers = self._asks.ask_all(self._workflow, asked, tags=self._tags, users=users)
        for done, (text, result) in enumerate(answers, 1):
            place = int(text)
            case, repeat = places[place]
            answered = Answered(
                case,
                row_of(case, repeat, result, group=self._group(case)),
                answer_of(result, self._asks.said(result.call_id), typed=self._typed),
            )
            found[place] = answered
            if answered.row.error in PASSING:
                passing[answered.row.error] = passing.get(answered.row.error, 0) + 1
            elif answered.row.call_id:
                self._keep(answered)
            if done % LINE == 0 or done == len(todo):
                progress("asking", done / len(todo))
        missing = len(places) - len(found)
        scored = {
            place: _scored(one, scorers, progress, len(found), number)
            for number, (place, one) in enumerate(sorted(found.items()), 1)
        }
        if judges is not None:
            order = sorted(found)
            missing += self._judge(judges, [found[place] for place in order], order, scored, progress)
        rows = tuple(self._with_sealed_notes(scored[place], places[place][0]) for place in sorted(scored))
        return Ran(rows=rows, missing=missing, reused=reused, passing=passing)

    def _judge(
        self,
        judges: Judges,
        answered: Sequence[Answered],
        order: Sequence[int],
        scored: dict[int, RowV1],
        progress: Progress,
    ) -> int:
        """Adds what judges say; how many verdicts are missing."""
        heard = 0
        total = len(answered) * len(judges.names)
        for done, (number, name, score, cost) in enumerate(judges.judge_all(answered), 1):
            place = order[number]
            row = scored[place]
            scored[place] = msgspec.structs.replace(
                row, scores={**row.scores, name: score}, judged_nano_usd=row.judged_nano_usd + cost
            )
            heard = done
            if done % LINE == 0 or done == total:
                progress("judging", done / total)
        return total - heard

    def _before(self, case: Case, repeat: int) -> Answered | None:
        """What was answered before; None where it must be asked."""
        entry = self._kept.answers.get((case.asked, repeat))
        if entry is None:
            return None
        raw = entry.sealed
        if self._vault is not None and raw:
            try:
                opened = self._vault.open(entry.row.call_id, SEALED_AS, raw)
            except ValueError as error:
                raise DrivetrainError(
                    f"What was kept of call {entry.row.call_id} was altered: {error}.", do="Run it with --fresh."
                ) from None
            if opened is None:  # its person was forgotten, or its time is over
                return None
            raw = opened
        elif raw:
            return None
        answer = _unpacked(raw) if raw else Answer(text="", value=None, error=entry.row.error, finish_reason="")
        row = msgspec.structs.replace(
            entry.row, row=case.row, group=self._group(case), suite=case.suite, slices=case.slices,
            weight=case.weight, repeat=repeat,
        )  # fmt: skip
        return Answered(case, row, answer)

    def _with_sealed_notes(self, row: RowV1, case: Case) -> RowV1:
        """A note may quote the answer, so it is kept as texts of the Call are: sealed, or not at all."""
        if self._vault is None or not row.call_id or not any(one.note for one in row.scores.values()):
            return row
        retention = self._asks.plan(self._workflow).retention
        if retained(retention, self._vault, row.call_id) != RETAINED_FULL:
            return row
        return msgspec.structs.replace(row, notes=seal_notes(row, self._vault, self._subject(case)))

    def _group(self, case: Case) -> str:
        return group_under(self._digest, case.group) if case.group else ""

    def _subject(self, case: Case) -> str:
        return case.subject or self._team or "-"

    def _keep(self, answered: Answered) -> None:
        if self._vault is None:
            return
        case, row = answered.case, answered.row
        sealed = self._vault.seal(self._subject(case), row.call_id, SEALED_AS, _packed(answered.answer))
        row = msgspec.structs.replace(row, group="")  # the case that it is an answer to says it anew
        self._kept.add(AnsweredV1(asked=case.asked, repeat=row.repeat, row=row, sealed=sealed))


_ANSWER: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_WIDE = "json in place of integers beyond 64 bits"
"""The only key of a kept value that msgpack cannot hold as it is."""


def _packed(answer: Answer) -> bytes:
    try:
        return MSGPACK.encode(answer)
    except OverflowError:
        kept = {_WIDE: JSON.encode(answer.value)}
        return MSGPACK.encode(msgspec.structs.replace(answer, value=kept))


def _unpacked(raw: bytes) -> Answer:
    answer = _ANSWER.decode(raw)
    if isinstance(answer.value, dict) and answer.value.keys() == {_WIDE}:
        return msgspec.structs.replace(answer, value=parse_json(answer.value[_WIDE]))
    return answer


def row_of(case: Case, repeat: int, result: CallResult, *, group: str) -> RowV1:
    """A Call as a row, nothing of it scored. group: as it may be kept."""
    attempts = result.attempts
    text = _text(result)
    return RowV1(
        row=case.row, group=group, repeat=repeat, suite=case.suite, slices=case.slices, weight=case.weight,
        status=result.status, error=(result.error.code or "") if result.error is not None else "",
        call_id=result.call_id, variant=result.variant, cost_nano_usd=result.cost_nano_usd,
        saved_nano_usd=sum(one.saved_nano_usd for one in attempts),
        latency_us=max((one.ended_us for one in attempts), default=0),
        tokens_input=sum(one.usage.input_tokens for one in attempts),
        tokens_output=sum(one.usage.output_tokens for one in attempts),
        answer_chars=len(text), finish_reason=_finish(result), cached=any(one.cached for one in attempts),
    )  # fmt: skip


def answer_of(result: CallResult, said: str, *, typed: bool) -> Answer:
    """What scorers see of a Call. said: what a model answered that could not be used; typed: whether its workflow has
    an output type."""
    text = _text(result) or said
    value: Any = None
    if result.status == "answered":
        if typed:
            value = msgspec.to_builtins(result.output)
        else:
            try:
                value = parse_json(text.encode("utf-8", "replace"))
            except MalformedJson:
                value = None
    error = (result.error.code or result.status) if result.error is not None else ""
    return Answer(text=text, value=value, error=error, finish_reason=_finish(result))


def _text(result: CallResult) -> str:
    if result.status != "answered":
        return ""
    try:
        return message_of(result.body).content or ""
    except Unusable:
        return ""


def _finish(result: CallResult) -> str:
    if result.status != "answered":
        return ""
    try:
        choices = parse_json(result.body).get("choices") or [{}]
    except (MalformedJson, AttributeError):
        return ""
    return str(choices[0].get("finish_reason") or "")


def _order(places: Sequence[tuple[Case, int]], place: int) -> tuple[int, str]:
    """By hash of the row: what an unfinished run has asked is a sample of all. First all rows once, then again."""
    case, repeat = places[place]
    return repeat, case.row


def _scored(one: Answered, scorers: Mapping[str, ScoreOf], progress: Progress, total: int, number: int) -> RowV1:
    scores = {name: score(one.answer, one.case.expected, one.case.values) for name, score in scorers.items()}
    if number % LINE == 0 or number == total:
        progress("scoring", number / total)
    return msgspec.structs.replace(one.row, scores=scores)


def _digest_under(key: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, key=key, digest_size=32).digest()
