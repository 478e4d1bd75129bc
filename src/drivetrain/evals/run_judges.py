"""Judges of a run: each answer is shown to the judge's workflow, and what it said is kept with the answer.

Owns who is asked, how often, and what is not asked again. What a judge is given and how it is read is `judging.py`;
how it agrees with people `calibration.py`. Judges' Calls have the door `judge`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from drivetrain.core.codec import JSON, MalformedJson, parse_json
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.evals import Eval, Score, Scorer
from drivetrain.core.scorers import scorers_of
from drivetrain.evals.calibration import Calibration
from drivetrain.evals.cases import Case
from drivetrain.evals.judging import Asked, calibration_of, judge_inputs, read_verdict
from drivetrain.evals.rows import PASSING, Run
from drivetrain.evals.run_files import JudgedV1, Kept
from drivetrain.evals.running import Answered, Asks
from drivetrain.evals.scoring import Answer
from drivetrain.evals.workflow_key import workflow_key
from drivetrain.execution.call import CallResult
from drivetrain.project.snapshot import Snapshot
from drivetrain.providers.answers import Unusable, message_of

DOOR = "judge"
LABELS = "labels"
"""The scorer's option that names the column of what people said."""
OpenAsks = Callable[[], AbstractContextManager[Asks]]


class EvalJudges:
    """The judges of one eval. snapshot: whose judges are asked; kept: where what they say is kept."""

    def __init__(
        self, scorers: Sequence[Scorer], snapshot: Snapshot, asks: OpenAsks, kept: Kept, tags: tuple[str, ...]
    ):
        self._scorers = tuple(scorers)
        self._snapshot = snapshot
        self._asks = asks
        self._kept = kept
        self._tags = tags
        self._inputs = {one.name: _input_type(one, snapshot) for one in scorers}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scorers."""
        return tuple(one.name for one in self._scorers)

    def check(self, cases: Sequence[Case]) -> None:
        """Whether every judge can be shown every row, before any is asked. Raises: DrivetrainError."""
        for scorer in self._scorers:
            for case in cases:
                judge_inputs(
                    scorer, self._inputs[scorer.name], Answer(text="an answer"), case.expected, _input_of(case),
                    row_id=case.row,
                )  # fmt: skip

    def judge_all(self, answered: Sequence[Answered]) -> Iterator[tuple[int, str, Score, int]]:
        """(place in `answered`, scorer's name, score, what it cost now) as they come. What the budget does not allow is
        left out. Raises: DrivetrainError where the judge's input cannot be filled."""
        with self._asks() as asks:
            for scorer in self._scorers:
                yield from self._judge(scorer, answered, asks)

    def _judge(self, scorer: Scorer, answered: Sequence[Answered], asks: Asks) -> Iterator[tuple[int, str, Score, int]]:
        key = self._key(scorer)
        todo: dict[int, Asked] = {}
        for place, one in enumerate(answered):
            before = self._kept.judged.get((one.row.call_id, key)) if one.row.call_id else None
            if before is not None:
                yield place, scorer.name, before.score, before.cost_nano_usd
                continue
            asked = judge_inputs(
                scorer,
                self._inputs[scorer.name],
                one.answer,
                one.case.expected,
                _input_of(one.case),
                row_id=one.case.row,
            )
            if asked.inputs:
                todo[place] = asked
            else:
                yield place, scorer.name, read_verdict(scorer, asked, ()).score, 0
        rows = (
            (f"{place}.{order}", JSON.encode(given))
            for place, asked in todo.items()
            for order, given in enumerate(asked.inputs)
        )
        users = {
            f"{place}.{order}": answered[place].case.subject
            for place, asked in todo.items()
            for order in range(len(asked.inputs))
        }
        heard: dict[int, dict[int, CallResult]] = {}
        for name, result in asks.ask_all(scorer.workflow, rows, door=DOOR, tags=self._tags, users=users):
            place, order = map(int, name.split("."))
            results = heard.setdefault(place, {})
            results[order] = result
            if len(results) == len(todo[place].inputs):
                yield place, scorer.name, *self._read(scorer, key, answered[place].row.call_id, todo[place], results)

    def _read(
        self, scorer: Scorer, key: str, call_id: str, asked: Asked, results: Mapping[int, CallResult]
    ) -> tuple[Score, int]:
        """What a judge said, and what it cost; kept with the answer's Call."""
        said = [results[order] for order in range(len(asked.inputs))]
        verdict = read_verdict(scorer, asked, [_output(one) for one in said])
        cost = sum(one.cost_nano_usd for one in said)
        failed = any(one.error is not None and (one.error.code or "") in PASSING for one in said)
        if call_id and not failed:  # a judge that could not be reached is asked again by the next run
            calls = tuple(one.call_id for one in said)
            self._kept.add(
                JudgedV1(call_id=call_id, judge=key, score=verdict.score, cost_nano_usd=cost, call_ids=calls)
            )  # fmt: skip
        return verdict.score, cost

    def calibrations(self, run: Run, cases: Sequence[Case]) -> dict[str, Calibration]:
        """Judge's name -> how it agrees with the labels that the Dataset has."""
        found = {}
        for scorer in self._scorers:
            column = str(scorer.options.get(LABELS, ""))
            labels = {one.row: one.values.get(column) for one in cases} if column else {}
            found[scorer.name] = calibration_of(run.rows, scorer, labels)
        return found

    def _key(self, scorer: Scorer) -> str:
        """Over all that decides what this judge says."""
        said = JSON.encode([scorer.name, scorer.field, scorer.options, workflow_key(self._snapshot, scorer.workflow)])
        return hashlib.sha256(said).hexdigest()[:16]


def judges_of(
    declared: Eval, snapshot: Snapshot, asks: OpenAsks, kept: Kept, tags: tuple[str, ...]
) -> EvalJudges | None:
    """None where no scorer is a judge. Raises: DrivetrainError for one that cannot be asked."""
    scorers = [one for one in scorers_of(declared) if one.kind == "judge"]
    return EvalJudges(scorers, snapshot, asks, kept, tags) if scorers else None


def _input_type(scorer: Scorer, snapshot: Snapshot) -> type[Any]:
    workflow = snapshot.workflows.get(scorer.workflow)
    if workflow is None or workflow.input is None:
        raise DrivetrainError(
            f"The judge `{scorer.name}` is workflow `{scorer.workflow}`, which "
            f"{'does not exist' if workflow is None else 'takes a conversation'}.",
            do="A judge's input is a Record with fields such as `question`, `answer` and `expected`.",
        )
    found: type[Any] = workflow.input
    return found


def _input_of(case: Case) -> Mapping[str, Any]:
    """The asked workflow's input as plain values."""
    given = parse_json(case.raw)
    return given if isinstance(given, dict) else {"input": given}


def _output(result: CallResult) -> Any:
    """What a judge answered, as plain values or as its text; None where it did not."""
    if result.status != "answered":
        return None
    if result.output is not None:
        return msgspec.to_builtins(result.output)
    try:
        return message_of(result.body).content
    except (Unusable, MalformedJson):
        return None
