"""A judge: a Workflow that is asked what an answer is worth. What it is given, and what it has said.

The run asks it, like any workflow, with the door `judge`; nothing here does. Its input's fields are filled by their
names:

- `question`: the row's input; its only text, else all of it as JSON, unless it has a field of this name;
- `answer`: the answer, its scored field where the scorer names one; what is no text as JSON;
- `expected`: what the row expects, in the same way;
- `first` and `second`: the answer and what is expected, or the other way round; with `swap` both orders are asked;
- any other: the input's field of that name. `inputs` of the scorer says which of these a field of another name takes.

A judge whose choice changes with the order has said nothing: a tie, and counted as position bias.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.evals import Score, Scorer
from drivetrain.evals import causes
from drivetrain.evals.calibration import Calibration, Judged, calibrate
from drivetrain.evals.rows import RowV1
from drivetrain.evals.scoring import Answer

QUESTION, ANSWER, WANTED, FIRST, SECOND = "question", "answer", "expected", "first", "second"
VERDICT_FIELDS = ("verdict", "score", "choice")
"""Looked for in this order, where the output has several fields and the scorer names none."""
WORDS: Mapping[str, float] = {
    "yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0, "right": 1.0, "wrong": 0.0, "correct": 1.0, "incorrect": 0.0,
    "pass": 1.0, "fail": 0.0, "good": 1.0, "bad": 0.0,
}  # fmt: skip
"""What words are worth without a scale."""
CHOICES: Mapping[str, str] = {
    "first": FIRST, "a": FIRST, "1": FIRST, "second": SECOND, "b": SECOND, "2": SECOND, "tie": "tie", "equal": "tie",
    "same": "tie", "both": "tie", "neither": "tie",
}  # fmt: skip
"""What a judge of two answers may say."""
STEADY, FLIPPED = "the choice stood in both orders", "the choice changed with the order"
UNREADABLE = "the judge said nothing that can be read"
TIE = 0.5


class Asked(msgspec.Struct, frozen=True):
    """What a judge is asked about one answer."""

    inputs: tuple[dict[str, Any], ...]
    """None where there is nothing to judge, one, or two where a pair is shown in both orders."""
    answer_first: tuple[bool, ...] = ()
    """Of each input with a pair: whether the answer is the first of it."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge has said of one answer."""

    score: Score
    flipped: bool | None = None
    """Whether the choice changed with the order; None where only one order was asked."""
    unread: bool = False
    """Whether it said nothing that could be read, or gave no answer."""


def judge_inputs(
    scorer: Scorer, input: type[Any], answer: Answer, expected: Any, row: Mapping[str, Any], *, row_id: str
) -> Asked:
    """What to ask the judge. input: its input type; row: the asked workflow's input; row_id: without `swap`, which of
    a pair is the first hangs on it. Raises: DrivetrainError for a field that nothing fills, or a pair of one."""
    if answer.error:
        return Asked(())
    fields = {one.encode_name: one.required for one in msgspec.structs.fields(input)}
    known = {**row}
    known.setdefault(QUESTION, _question(row))
    known[ANSWER] = _text(_part(answer.text if answer.value is None else answer.value, scorer.field))
    wanted = _part(expected, scorer.field)
    if wanted is not None:
        known[WANTED] = _text(wanted)
    if not (FIRST in fields and SECOND in fields):
        return Asked((_filled(scorer, fields, known),))
    if WANTED not in known:
        raise DrivetrainError(f"The judge `{scorer.name}` compares two answers, and the row expects nothing.")
    orders = (True, False) if scorer.options.get("swap", True) else (_even(row_id),)
    pairs = [(known[ANSWER], known[WANTED]) if one else (known[WANTED], known[ANSWER]) for one in orders]
    return Asked(
        tuple(_filled(scorer, fields, {**known, FIRST: first, SECOND: second}) for first, second in pairs), orders
    )


def read_verdict(scorer: Scorer, asked: Asked, outputs: Sequence[Any]) -> Verdict:
    """What the judge's outputs say. outputs: one per input, as plain values or texts; None where its Call failed."""
    if not asked.inputs:
        return Verdict(score=Score(value=0.0, cause=causes.FAILED, note="the Call gave no usable answer"))
    if len(outputs) != len(asked.inputs):
        raise ValueError(f"{len(outputs)} verdicts for {len(asked.inputs)} questions")
    found = [
        _worth(scorer, said, asked.answer_first[place] if asked.answer_first else None)
        for place, said in enumerate(outputs)
    ]
    read = [one for one in found if one is not None]
    if len(read) < len(found):
        return Verdict(score=Score(value=0.0, cause=causes.SCORER, note=UNREADABLE), unread=True)
    if len(read) == 1:
        return Verdict(score=_score(read[0], ""))
    flipped = read[0] != read[1]
    return Verdict(
        score=_score(TIE if flipped else read[0], FLIPPED if flipped else STEADY), flipped=flipped
    )  # fmt: skip


def label_of(scorer: Scorer, said: Any) -> float | None:
    """What a person said, from 0 to 1, in the judge's scale; of a pair, `first` is the answer. None: nothing usable."""
    if said is None or said == "":
        return None
    found = _scaled(scorer, said)
    if found is None and isinstance(said, str):
        found = {FIRST: 1.0, SECOND: 0.0, "tie": TIE}.get(CHOICES.get(_plain(said), ""))
    return found


def calibration_of(rows: Sequence[RowV1], scorer: Scorer, labels: Mapping[str, Any]) -> Calibration:
    """The judge beside people, over the rows of a run. labels: row -> what a person said, as the Dataset has it."""
    judged = [
        Judged(
            row=row.row, value=said.value, group=row.group, suite=row.suite, weight=row.weight, slices=row.slices,
            unread=said.note == UNREADABLE,
            flipped={STEADY: False, FLIPPED: True}.get(said.note),
        )
        for row in rows
        if row.status == "answered" and (said := row.scores.get(scorer.name)) is not None
    ]  # fmt: skip
    known = {row: found for row, said in labels.items() if (found := label_of(scorer, said)) is not None}
    return calibrate(judged, known)


def _filled(scorer: Scorer, fields: Mapping[str, bool], known: Mapping[str, Any]) -> dict[str, Any]:
    """fields: name -> whether it has to be filled."""
    named: Mapping[str, str] = scorer.options.get("inputs", {})
    found = {}
    for field, is_required in fields.items():
        source = named.get(field, field)
        if source not in known:
            if not is_required:
                continue
            raise DrivetrainError(
                f"The judge `{scorer.name}` has the input `{field}`, and the row has no `{source}`.",
                do=did_you_mean(source, known),
            )
        found[field] = known[source]
    return found


def _question(row: Mapping[str, Any]) -> str:
    texts = [one for one in row.values() if isinstance(one, str)]
    return texts[0] if len(texts) == 1 == len(row) else _text(dict(row))


def _part(value: Any, field: str) -> Any:
    return value.get(field) if field and isinstance(value, Mapping) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=repr).decode()


def _even(row_id: str) -> bool:
    return hashlib.sha256(row_id.encode()).digest()[0] % 2 == 0


def _worth(scorer: Scorer, said: Any, answer_first: bool | None) -> float | None:
    """What one output says, from 0 to 1; None where it says nothing that can be read."""
    verdict = _verdict(scorer, said)
    if answer_first is None:
        return _scaled(scorer, verdict)
    choice = CHOICES.get(_plain(verdict)) if isinstance(verdict, str | int) else None
    if choice is None:
        return None
    return TIE if choice == "tie" else float((choice == FIRST) == answer_first)


def _verdict(scorer: Scorer, said: Any) -> Any:
    if not isinstance(said, Mapping):
        return said
    name = scorer.options.get("verdict", "")
    if not name and len(said) == 1:
        return next(iter(said.values()))
    return said.get(name or next((one for one in VERDICT_FIELDS if one in said), ""))


def _scaled(scorer: Scorer, said: Any) -> float | None:
    scale = scorer.options.get("scale")
    if isinstance(scale, Mapping):
        words = {_plain(word): float(worth) for word, worth in scale.items()}
        return words.get(_plain(said)) if isinstance(said, str | int | float) else None
    if isinstance(said, bool):
        return float(said)
    if isinstance(said, str):
        if scale is None and _plain(said) in WORDS:
            return WORDS[_plain(said)]
        try:
            said = float(said)
        except ValueError:
            return None
    if not isinstance(said, int | float) or not math.isfinite(said):
        return None
    low, high = scale or (0.0, 1.0)
    return (said - low) / (high - low) if low <= said <= high else None


def _plain(said: Any) -> str:
    return str(said).strip(" \t\r\n.,;:!?*_`\"'[]()").casefold()


def _score(value: float, note: str) -> Score:
    return Score(value=value, cause="" if value >= 1 else causes.WRONG, note=note)
