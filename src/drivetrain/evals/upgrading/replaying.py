"""The candidate is asked what was asked before: in an order that has nothing to do with the answers, look by look.

Owns when it stops: as soon as the verdict is settled, unless one look was asked for, or where the budget is spent. How
Calls are made and kept is the runner's (`evals/running.py`): what was answered before a killed run is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.evals import Score
from drivetrain.evals.cases import Case
from drivetrain.evals.rows import RowV1
from drivetrain.evals.running import Progress, Runner
from drivetrain.evals.scoring import Answer
from drivetrain.evals.upgrading.judged import Judge, Judgements, Shown
from drivetrain.evals.upgrading.marking import Marker
from drivetrain.evals.upgrading.pairs import Marked, Pair, Side
from drivetrain.evals.upgrading.verdict import Asked, Frame, verdict_of

NOT_JUDGED = Judgements({}, 0)
PENDING = Score(value=0.0)
"""Pairs are marked here, not by the runner."""


class Waiting(msgspec.Struct, frozen=True):
    """A pair whose candidate's answer is still to be asked; its `after` is empty."""

    pair: Pair
    case: Case


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    marked: tuple[Marked, ...]
    """In the order in which they were looked at."""
    stopped: str
    """`settled`, `budget`, or empty where every row was asked."""
    reused: int
    """Answers of a run that was killed."""
    judged_nano_usd: int
    """What judging cost."""
    unjudged: int
    """Pairs of which a judge said nothing that can be read: they are left out."""
    passing: dict[str, int]
    """Code -> rows that got no answer for a reason outside the candidate, such as a provider that was down."""


def replay(
    waiting: Sequence[Waiting], runner: Runner, mark: Marker, asked: Asked, frame: Frame,
    *, over: Callable[[], bool], progress: Progress, judge: Judge | None = None,
) -> Replayed:  # fmt: skip
    """Asks until it is settled. waiting: in the order of `shuffled`. over: whether the budget kept a row back. judge:
    of pairs whose truth is `judge`."""
    marked: list[Marked] = []
    passing: dict[str, int] = {}
    reused, judged, unjudged, at = 0, 0, 0, 0

    def replayed(stopped: str) -> Replayed:
        return Replayed(
            marked=tuple(marked),
            stopped=stopped,
            reused=reused,
            passing=passing,
            judged_nano_usd=judged,
            unjudged=unjudged,
        )

    while at < len(waiting):
        end = _look(waiting, at + asked.look_every)
        some, answers = waiting[at:end], _Answers()
        ran = runner.run([one.case for one in some], {"answer": answers.take}, progress=_quiet)
        reused += ran.reused
        for code, many in ran.passing.items():
            passing[code] = passing.get(code, 0) + many
        rows = {one.row: one for one in ran.rows}
        known = [one for one in some if one.case.row in rows and rows[one.case.row].error not in ran.passing]
        shown = [Shown(one.case, one.pair, rows[one.case.row], answers.of(one.case)) for one in known]
        said = judge([one for one in shown if one.pair.truth == "judge"]) if judge is not None else NOT_JUDGED
        judged += said.cost_nano_usd
        unjudged += sum(one.pair.truth == "judge" and one.pair.id not in said.scores for one in shown)
        marked += [mark(pair) for one in shown if (pair := _with_after(one, said)) is not None]
        at = end
        progress("asking", at / len(waiting))
        if over():
            return replayed("budget")
        if marked and not asked.fixed and verdict_of(marked, asked, frame).settled:
            return replayed("settled" if at < len(waiting) else "")
    return replayed("")


def side_after(row: RowV1, answer: Answer) -> Side:
    """What the candidate answered."""
    return Side(
        text=None if answer.error else answer.text, value=None if answer.error else answer.value, error=answer.error,
        finish_reason=answer.finish_reason, cost_nano_usd=row.cost_nano_usd + row.saved_nano_usd,
        latency_us=row.latency_us, tokens=row.tokens_output, call_id=row.call_id,
    )  # fmt: skip


def _with_after(shown: Shown, said: Judgements) -> Pair | None:
    """The whole pair; None where a judge should have said something of it and has not."""
    pair = msgspec.structs.replace(shown.pair, after=side_after(shown.row, shown.after))
    if pair.truth != "judge":
        return pair
    scores = said.scores.get(pair.id)
    if scores is None:
        return None
    before, after = (
        msgspec.structs.replace(side, score=score)
        for side, score in zip((pair.before, pair.after), scores, strict=True)
    )
    return msgspec.structs.replace(pair, before=before, after=after)


class _Answers:
    """Stands where a scorer would: the runner's answers by case."""

    def __init__(self) -> None:
        self._found: dict[str, Answer] = {}

    def take(self, answer: Answer, _expected: Any, values: Mapping[str, Any]) -> Score:
        self._found[values["call_id"]] = answer
        return PENDING

    def of(self, case: Case) -> Answer:
        return self._found[case.values["call_id"]]


def _look(waiting: Sequence[Waiting], end: int) -> int:
    """Where the next look is: not before `end`, and not amid a group."""
    end = min(end, len(waiting))
    while end < len(waiting) and waiting[end].pair.group and waiting[end].pair.group == waiting[end - 1].pair.group:
        end += 1
    return end


def _quiet(_stage: str, _share: float) -> None:
    """The replay tells how far it is, not each look."""
