"""Calls as rows of a Dataset: what was asked, what was answered, and the truth that arrived later.

Payloads are opened by the Vault, for as long as their subjects and their time allow; what cannot be read any more, or
was never kept, is null. `input`, `answer`, `user` and `business_key` are personal unless the schema says otherwise.
Calls whose answers no caller got (evals, judges, shadows) are left out, unless the condition itself speaks of `door`.
"""

# ruff: noqa: S608 - cells are named by position, and every name or text from outside is quoted

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from drivetrain.core.calls import DOORS_ASIDE, RETAINED_FULL, Answers
from drivetrain.core.datasets import ColumnV1
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.sql import literal
from drivetrain.datasets.payloads import answer_text, input_text
from drivetrain.datasets.schema import Declared
from drivetrain.datasets.sources import FromCalls, Source, inputs_of
from drivetrain.datasets.staging import JSON_CELL, Bench, Staged, stage_cells
from drivetrain.lake.lake import Lake, again
from drivetrain.ports.journal import Vault

COLUMNS = {
    "call_id": "string", "opened": "timestamp", "workflow": "string", "variant": "string", "status": "string",
    "team": "string", "user": "string", "snapshot": "string", "cost_nano_usd": "int64", "business_key": "string",
    "input": "string", "answer": "string",
}  # fmt: skip
PERSONAL = frozenset({"user", "business_key", "input", "answer"})
OUTCOME = "outcome_"
"""What a metric's column begins with."""
_DOOR = re.compile(r"\bdoor\b", re.IGNORECASE)
_ANSWERS: msgspec.msgpack.Decoder[Answers] = msgspec.msgpack.Decoder(Answers)


def stage_calls(bench: Bench, lake: Lake, vault: Vault, wanted: FromCalls, declared: Declared) -> Source:
    """The Calls that a condition holds for, oldest first. Raises: DrivetrainError."""
    condition = f"(\n{wanted.where}\n){_asked_by_callers(wanted.where)}"
    matching = f"SELECT call_id FROM calls WHERE {condition}"
    calls = (
        'SELECT call_id, opened_ns, workflow, variant, status, team, "user", snapshot, cost_nano_usd, '
        f"business_key, retained, request, answers FROM calls WHERE {condition} ORDER BY opened_ns, call_id"
    )
    truth = again(lambda: _outcomes(lake, matching, wanted.outcomes))
    names = [*COLUMNS, *(f"{OUTCOME}{metric}" for metric in wanted.outcomes)]

    def ask() -> Staged:
        with lake.stream(calls) as stream:
            rows = (row for batch in stream.batches() for row in batch)
            return stage_cells(bench, names, JSON_CELL, _cells(rows, vault, wanted.outcomes, truth))

    staged = again(ask)
    if not staged.rows:
        raise DrivetrainError(
            f"There is no Call where {wanted.where}.", do="`drivetrain sql` shows which there are: select * from calls."
        )
    inputs = inputs_of(bench, calls, lake.tables)
    if wanted.outcomes:
        inputs = tuple(sorted({*inputs, *inputs_of(bench, "SELECT * FROM outcomes", lake.tables)}))
    return Source(staged=staged, inputs=inputs, origin=wanted.where, declared=_declared(declared))


def _asked_by_callers(where: str) -> str:
    """What narrows a condition that does not say which doors it wants."""
    return "" if _DOOR.search(where) else f" AND door NOT IN ({', '.join(map(literal, sorted(DOORS_ASIDE)))})"


def _declared(given: Declared) -> Declared:
    """What a person said, and what is known of the columns that they did not name."""
    named = {one.name for one in given.schema.columns}
    if given.others != "infer":
        return given
    ours = tuple(
        ColumnV1(
            name=name,
            type=kind,
            nullable=name != "call_id",
            unique=name == "call_id",
            personal=name in PERSONAL,
            subject=name == "user",
        )
        for name, kind in COLUMNS.items()
        if name not in named
    )
    schema = msgspec.structs.replace(given.schema, columns=(*given.schema.columns, *ours))
    return msgspec.structs.replace(given, schema=schema)


def _outcomes(lake: Lake, matching: str, metrics: tuple[str, ...]) -> dict[tuple[str, str], Any]:
    """(Call, metric) -> its value; where sources differ, what arrived last."""
    if not metrics:
        return {}
    listed = ", ".join(literal(metric) for metric in metrics)
    found: dict[tuple[str, str], Any] = {}
    known: set[str] = set()
    sql = (
        "SELECT call_id, metric, kind, value, number FROM outcomes WHERE metric IN "
        f"({listed}) AND call_id IN ({matching}) ORDER BY arrived_ns, event_ns, source"
    )
    with lake.stream(sql) as stream:
        for batch in stream.batches():
            for call_id, metric, kind, text, number in batch:
                known.add(metric)
                found[call_id, metric] = _value(kind, text, number)
    missing = [metric for metric in metrics if metric not in known]
    if missing:
        with lake.stream("SELECT DISTINCT metric FROM outcomes") as stream:
            every = [row[0] for batch in stream.batches() for row in batch]
        raise DrivetrainError(
            f"No Outcome of these Calls has the metric `{missing[0]}`.",
            do=did_you_mean(missing[0], every) if every else "No Outcome was recorded yet.",
        )
    return found


def _value(kind: str, text: str, number: float | None) -> Any:
    if kind == "text":
        return text
    return bool(number) if kind == "boolean" else number


def _cells(
    rows: Iterator[tuple[Any, ...]], vault: Vault, metrics: tuple[str, ...], truth: dict[tuple[str, str], Any]
) -> Iterator[list[str | None]]:
    for call_id, opened_ns, *plain, cost, business_key, retained, request, answers in rows:
        asked = _opened(vault, call_id, "request", request) if retained == RETAINED_FULL else None
        answered = _opened(vault, call_id, "answers", answers) if retained == RETAINED_FULL else None
        texts = [_said(one) for one in plain]
        texts += [f"i{cost}", _said(business_key)]
        texts += [_said(input_text(asked)) if asked is not None else None]
        texts += [_said(answer_text(_ANSWERS.decode(answered))) if answered is not None else None]
        values = [_cell(truth.get((call_id, metric))) for metric in metrics]
        yield [_said(call_id), f"s{_iso(opened_ns)}", *texts, *values]


def _opened(vault: Vault, call_id: str, kind: str, sealed: bytes | None) -> bytes | None:
    if not sealed:
        return None
    try:
        return vault.open(call_id, kind, sealed)
    except ValueError as error:
        raise DrivetrainError(f"Call {call_id} cannot be opened: {error}.") from None


def _iso(ns: int) -> str:
    from datetime import UTC, datetime

    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, tz=UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1_000:06d}Z"


def _said(text: str | None) -> str | None:
    """A text cell; NUL, which no column takes, becomes U+FFFD."""
    return None if not text else "s" + text.replace("\0", "\ufffd")


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "btrue" if value else "bfalse"
    return f"f{value!r}" if isinstance(value, float) else _said(str(value))
