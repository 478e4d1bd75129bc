"""Both answers of a pair as a judge sees them, where nothing else says what is right.

A judge of one answer is shown both, one after the other. A judge that compares two is shown them side by side, in both
orders unless its scorer says otherwise: what it gives the one it takes from the other. How a judge agrees with people
is measured by its eval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from drivetrain.evals.cases import Case
from drivetrain.evals.causes import SCORER
from drivetrain.evals.judging import FIRST, SECOND
from drivetrain.evals.rows import RowV1
from drivetrain.evals.run_judges import EvalJudges
from drivetrain.evals.running import Answered
from drivetrain.evals.scoring import Answer
from drivetrain.evals.upgrading.pairs import Pair

Judge = Callable[[Sequence["Shown"]], "Judgements"]


class Shown(msgspec.Struct, frozen=True):
    """What a judge is shown."""

    case: Case
    pair: Pair
    row: RowV1
    after: Answer


class Judgements(msgspec.Struct, frozen=True):
    """What a judge said."""

    scores: dict[str, tuple[float, float]]
    """Id of a pair -> what the answers before and after are worth; those that were judged."""
    cost_nano_usd: int


def compares(input_type: type[Any]) -> bool:
    """Whether a judge with this input is shown two answers."""
    fields = {one.encode_name for one in msgspec.structs.fields(input_type)}
    return FIRST in fields and SECOND in fields


def judge_by(judges: EvalJudges, *, side_by_side: bool) -> Judge:
    """Asks the one judge that `judges` holds."""

    def judge(shown: Sequence[Shown]) -> Judgements:
        answered: list[Answered] = []
        for one in shown:
            before = one.pair.before
            old = Answer(text=before.text or "", value=before.value, error=before.error)
            if side_by_side:
                expected = before.text if before.value is None else before.value
                answered.append(Answered(msgspec.structs.replace(one.case, expected=expected), one.row, one.after))
            else:
                row = RowV1(row=f"{one.row.row}-", call_id=before.call_id)
                answered += [Answered(one.case, row, old), Answered(one.case, one.row, one.after)]
        found: dict[int, float] = {}
        cost = 0
        for place, _, score, paid in judges.judge_all(answered):
            cost += paid
            if score.cause != SCORER:  # else it said nothing that can be read
                found[place] = score.value
        scores = {}
        for number, one in enumerate(shown):
            if side_by_side and number in found:
                scores[one.pair.id] = (1 - found[number], found[number])
            elif not side_by_side and 2 * number in found and 2 * number + 1 in found:
                scores[one.pair.id] = (found[2 * number], found[2 * number + 1])
        return Judgements(scores, cost)

    return judge
