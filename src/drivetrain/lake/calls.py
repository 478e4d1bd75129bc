"""Calls from the lake: one by its id, or those of a span, whole, whether they were rolled or not.

Called by the commands that show or replay Calls. Who counts and adds up asks `costs.py` or SQL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from drivetrain.core.calls import Call, Outcome
from drivetrain.core.ids import is_call_id
from drivetrain.core.times import NS_PER_S, iso
from drivetrain.lake.columns import CALL_COLUMNS, call_of, outcome_of
from drivetrain.lake.lake import Lake, again
from drivetrain.lake.sandbox import TIMEOUT_S, bounded
from drivetrain.ledger.frames import Damage

if TYPE_CHECKING:
    import duckdb

NS_PER_DAY = 86_400 * NS_PER_S
BATCH_CALLS = 500
"""Calls in memory at a time; each may carry a payload of megabytes."""
COLUMNS = tuple(name for name in CALL_COLUMNS if name not in ("day", "segment", "ledger", "roll"))
PAYLOADS = ("request", "answers")
TRUTHS = (
    "call_id",
    "metric",
    "source",
    "kind",
    "text",
    "number",
    "event_ns",
    "arrived_ns",
    "key",
    "workflow",
    "business_key",
)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which Calls; each condition narrows them."""

    since_ns: int = 0
    until_ns: int | None = None
    workflow: str | None = None
    team: str | None = None
    status: str | None = None
    variant: str | None = None
    """With an Attempt of this variant, or answered by it."""

    def matches(self, call: Call) -> bool:
        """Whether a Call is one of them."""
        return (
            self.since_ns <= call.opened_ns
            and (self.until_ns is None or call.opened_ns < self.until_ns)
            and self.workflow in (None, call.workflow)
            and self.team in (None, call.attribution.team)
            and self.status in (None, call.status)
            and (self.variant in (None, call.variant) or any(one.variant == self.variant for one in call.attempts))
        )


ALL = Wanted()


class Calls:
    """The Calls of a lake, as they are when asked."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    @property
    def problems(self) -> tuple[Damage, ...]:
        """What the last question found in the segments that is no good frame."""
        return self._lake.problems

    def call(self, call_id: str) -> Call | None:
        """The one Call with its payloads and Outcomes, or None. Its id tells the day, so that few files are read."""
        days = _days_of(call_id)
        found = self._one(call_id, days)
        return self._one(call_id, None) if found is None and days is not None else found

    def calls(
        self, wanted: Wanted = ALL, *, newest: int | None = None, outcomes: bool = True, payloads: bool = True,
        payload_bytes_max: int | None = None,
    ) -> Iterator[Call]:  # fmt: skip
        """Those that are wanted, newest first where a number is given, else in no order, some hundred in memory.

        newest: at most this many. outcomes, payloads: False leaves them out and reads less. payload_bytes_max: leaves
        out a request or answers that take more as they are stored. Raises: DrivetrainError.
        """
        with (
            self._lake.reading(("calls", "outcomes") if outcomes else ("calls",)) as connection,
            bounded(connection, TIMEOUT_S),
        ):
            condition, values = _condition(wanted)
            order = ""
            if newest is not None:
                # Narrow columns first: the wide ones are then read of few rows.
                ids = connection.execute(
                    f"SELECT call_id, day FROM calls WHERE {condition} ORDER BY opened_ns DESC, call_id DESC LIMIT ?",  # noqa: S608 - our own
                    [*values, newest],
                ).fetchall()
                condition, values = "list_contains(?, day) AND list_contains(?, call_id)", [
                    sorted({day for _, day in ids}), [call_id for call_id, _ in ids],
                ]  # fmt: skip
                order = " ORDER BY opened_ns DESC, call_id DESC"
            bytes_max = payload_bytes_max if payloads else 0
            yield from _read(connection, f"{condition}{order}", values, outcomes=outcomes, bytes_max=bytes_max)

    def _one(self, call_id: str, days: Sequence[str] | None) -> Call | None:
        def ask() -> Call | None:
            with (
                self._lake.reading(("calls", "outcomes"), days=days) as connection,
                bounded(connection, TIMEOUT_S),
            ):
                return next(_read(connection, "call_id = ?", [call_id], outcomes=True), None)

        return again(ask)


def _read(
    connection: duckdb.DuckDBPyConnection,
    condition: str,
    values: Sequence[Any],
    *,
    outcomes: bool,
    bytes_max: int | None = None,
) -> Iterator[Call]:
    """bytes_max: of a payload that is read; None: of any size."""
    columns = ", ".join(_column(name, bytes_max) for name in COLUMNS)
    sql = f"SELECT {columns} FROM stored_calls WHERE {condition}"  # noqa: S608 - our own names
    truths: dict[str, list[Outcome]] = {}
    if outcomes:
        truths = _truths(connection, f"SELECT call_id FROM stored_calls WHERE {condition}", values)  # noqa: S608
    found = connection.execute(sql, values)
    while rows := found.fetchmany(BATCH_CALLS):
        for row in rows:
            one = dict(zip(COLUMNS, row, strict=True))
            yield call_of(one, truths.get(one["call_id"], ()))


def _column(name: str, bytes_max: int | None) -> str:
    if name not in PAYLOADS or bytes_max is None:
        return f'"{name}"'
    return f'CASE WHEN octet_length("{name}") <= {bytes_max:d} THEN "{name}" END' if bytes_max else "NULL"


def _truths(connection: duckdb.DuckDBPyConnection, ids_sql: str, values: Sequence[Any]) -> dict[str, list[Outcome]]:
    """Call id -> its Outcomes that hold now, by metric and source."""
    sql = (
        "SELECT call_id, metric, source, kind, value AS text, number, event_ns, arrived_ns, key, workflow, "  # noqa: S608
        f"business_key FROM outcomes WHERE call_id IN ({ids_sql}) ORDER BY metric, source"
    )
    truths: dict[str, list[Outcome]] = {}
    for row in connection.execute(sql, values).fetchall():
        one = outcome_of(dict(zip(TRUTHS, row, strict=True)))
        truths.setdefault(one.call_id, []).append(
            Outcome(
                metric=one.metric,
                source=one.source,
                value=one.value,
                event_ns=one.event_ns,
                arrived_ns=one.arrived_ns,
            )
        )
    return truths


def _condition(wanted: Wanted) -> tuple[str, list[Any]]:
    """SQL of what is wanted, and its values."""
    conditions, values = ["opened_ns >= ?", "day >= make_date(?)"], [wanted.since_ns, wanted.since_ns // NS_PER_DAY]
    found: list[Any] = list(values)
    if wanted.until_ns is not None:
        conditions += ["opened_ns < ?", "day <= make_date(?)"]
        found += [wanted.until_ns, wanted.until_ns // NS_PER_DAY]
    for name in ("workflow", "team", "status"):
        value = getattr(wanted, name)
        if value is not None:
            conditions.append(f"{name} = ?")
            found.append(value)
    if wanted.variant is not None:
        conditions.append("(variant = ? OR list_contains(list_transform(attempts, lambda one: one.variant), ?))")
        found += [wanted.variant, wanted.variant]
    return " AND ".join(conditions), found


def _days_of(call_id: str) -> list[str] | None:
    """The days that a Call with this id can stand under: an id is made at most moments before its Call opens."""
    if not is_call_id(call_id):
        return None
    day = int(call_id[5:17], 16) * 1_000_000 // NS_PER_DAY
    if not 1 <= day < 2_900_000:  # the year 9999
        return None
    return [iso(one * NS_PER_DAY)[:10] for one in (day, day + 1)]
