"""Costs: what Calls cost and how they turned out, by any attribute, with totals that are the ledger's own.

Owns the questions and their SQL over the lake's named tables. Called by the commands and by every screen, so that all
of them show the same total, whether the Calls were rolled or not. Where counts, tokens and money are all that is asked
for, and the rollup `spend` knows the attributes, it answers from there: to the nano-dollar what `calls` says.

Money stays an integer all the way: summed in 128 bits, never as a float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.sql import literal
from drivetrain.core.times import NS_PER_S, iso
from drivetrain.lake.lake import Lake, again
from drivetrain.lake.sandbox import TIMEOUT_S, bounded
from drivetrain.ledger.frames import Damage

NS_PER_DAY = 86_400 * NS_PER_S
DAYS_LISTED_MAX = 4_000
"""Days that are named to the lake one by one; a longer span reads all of them and leaves out rows instead."""

CALL_DIMENSIONS: dict[str, str] = {
    "tenant": "c.tenant",
    "team": "c.team",
    "use_case": "c.use_case",
    "workflow": "c.workflow",
    "key": "c.key",
    "user": 'c."user"',
    "tag": "array_to_string(c.tags, ', ')",
    "snapshot": "c.snapshot",
    "door": "c.door",
    "status": "c.status",
    "day": "strftime(c.day, '%Y-%m-%d')",
    "hour": "strftime(make_timestamp(c.opened_ns // 1000), '%Y-%m-%dT%H')",
}
"""Attributes of a Call. `tag` is the whole set of its tags; `tag:NAME` the value of one."""
ATTEMPT_DIMENSIONS: dict[str, str] = {"variant": "a.variant", "model": "a.model", "purpose": "a.purpose"}
"""Attributes of an Attempt: money by these comes from the attempts."""
COST_DIMENSIONS = (*CALL_DIMENSIONS, *ATTEMPT_DIMENSIONS, "tag:NAME")
OUTCOME_DIMENSIONS: dict[str, str] = {
    **CALL_DIMENSIONS,
    "variant": "c.variant",
    "model": "c.model",
    "source": "o.source",
    "value": "o.value",
}
"""Attributes of an Outcome: those of its Call, the variant and model that answered, who said it, and what."""

SPEND_DIMENSIONS = frozenset(CALL_DIMENSIONS) - {"user", "hour"}
"""Attributes of a Call that the rollup `spend` tells apart, and every `tag:NAME`."""

Where = Mapping[str, str | Sequence[str]]


class CostRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the Calls of one group cost."""

    keys: tuple[str, ...]
    """The group's value per dimension; empty where a Call has none."""
    calls: int
    """Calls in this group. By attempt (variant, model, purpose) a Call counts in each group it has an attempt in."""
    attempts: int
    input_tokens: int
    input_cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_nano_usd: int
    escalated_share: float | None
    """Calls with an escalated attempt in this group / Calls in this group. As the latencies, None where only money was
    asked for."""
    p50_ms: float | None
    """Of answered Calls, or of ended attempts where grouped by attempt; exact, nearest rank."""
    p95_ms: float | None
    p99_ms: float | None


class CostTable(msgspec.Struct, frozen=True, kw_only=True):
    """What Calls cost, by group, dearest first, and in total."""

    by: tuple[str, ...]
    rows: tuple[CostRow, ...]
    total: CostRow
    problems: tuple[Damage, ...] = ()
    """Damage in the segments; records there are not part of any total."""


class OutcomeRowOut(msgspec.Struct, frozen=True, kw_only=True):
    """How the Calls of one group turned out."""

    keys: tuple[str, ...]
    count: int
    mean: float | None
    """Of numbers; of booleans the share that is true; None where all are texts."""


class OutcomeTable(msgspec.Struct, frozen=True, kw_only=True):
    """One metric, by group and in total."""

    metric: str
    by: tuple[str, ...]
    rows: tuple[OutcomeRowOut, ...]
    total: OutcomeRowOut
    problems: tuple[Damage, ...] = ()


class LedgerQueries:
    """Questions to a lake; each sees what was written before it was asked."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def cost(
        self,
        by: Sequence[str] = (),
        *,
        since_ns: int = 0,
        until_ns: int | None = None,
        where: Where | None = None,
        money_only: bool = False,
    ) -> CostTable:
        """Cost, tokens, counts and latency of Calls opened in [since_ns, until_ns), grouped `by`.

        where: dimension -> value or values; empty is the value of a Call without one. The total is over the same Calls.
        money_only: without shares and latencies, and then from `spend` where that can tell. Raises: DrivetrainError for
        an unknown dimension, NewerRecord.
        """
        asked = _Asked(by=tuple(by), where=dict(where or {}), since_ns=since_ns, until_ns=until_ns)
        for name in (*asked.by, *asked.where):
            _dimension(name, {**CALL_DIMENSIONS, **ATTEMPT_DIMENSIONS})
        from_spend = money_only and asked.known_to_spend
        sql, values = _spend_sql(asked) if from_spend else _cost_sql(asked)
        found, problems = self._answer("spend" if from_spend else "calls", sql, values, since_ns, until_ns)
        rows = [_cost_row(row, len(by), money_only) for row in found if not row[0]]
        total = next(_cost_row(row, 0, money_only) for row in found if row[0])
        return CostTable(
            by=tuple(by),
            rows=tuple(sorted(rows, key=lambda row: (-row.cost_nano_usd, row.keys))),
            total=total,
            problems=problems,
        )

    def outcomes(
        self,
        metric: str,
        by: Sequence[str] = ("variant",),
        *,
        since_ns: int = 0,
        until_ns: int | None = None,
        where: Where | None = None,
    ) -> OutcomeTable:
        """Count and mean of the Outcomes of `metric` that hold now, for Calls opened in [since_ns, until_ns).

        Sources count apart: group by `source` or choose one with `where` where several judge the same Calls.
        """
        chosen = [_dimension(name, OUTCOME_DIMENSIONS) for name in by]
        conditions, values = _conditions(where or {}, OUTCOME_DIMENSIONS, _times(since_ns, until_ns))
        dims = "".join(f"{expression} AS d{index}, " for index, expression in enumerate(chosen))
        sql = (
            f"WITH base AS (SELECT {dims}o.number AS number FROM outcomes o JOIN calls c USING (call_id) "  # noqa: S608 - our own
            f"WHERE o.metric = ? AND {conditions}) "
            f"SELECT {_grouping(len(by))}, {_names(len(by))}count(*), avg(number) FROM base GROUP BY {_sets(len(by))}"
        )
        found, problems = self._answer("outcomes", sql, [metric, *values], 0, None)
        rows = [_outcome_row_out(row, len(by)) for row in found if not row[0]]
        total = next(_outcome_row_out(row, 0) for row in found if row[0])
        return OutcomeTable(
            metric=metric,
            by=tuple(by),
            rows=tuple(sorted(rows, key=lambda row: (-row.count, row.keys))),
            total=total,
            problems=problems,
        )

    def _answer(
        self, table: str, sql: str, values: Sequence[Any], since_ns: int, until_ns: int | None
    ) -> tuple[list[tuple[Any, ...]], tuple[Damage, ...]]:
        """The rows, and the damage met on the way."""
        only = {table, "calls"} if table == "outcomes" else {table}

        def ask() -> list[tuple[Any, ...]]:
            days = days_between(since_ns, until_ns)
            with self._lake.reading(only, days=days) as connection, bounded(connection, TIMEOUT_S):
                return connection.execute(sql, values).fetchall()

        return again(ask), self._lake.problems


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One question about costs."""

    by: tuple[str, ...]
    where: dict[str, str | Sequence[str]]
    since_ns: int
    until_ns: int | None

    @property
    def of_attempts(self) -> set[str]:
        """The attributes of Attempts in it."""
        return {name for name in (*self.by, *self.where) if name in ATTEMPT_DIMENSIONS}

    @property
    def known_to_spend(self) -> bool:
        """Whether `spend` has the attributes, whole days, and each group's number of Calls.

        Of the attributes of Attempts it counts Calls by one at a time, and by one value where it is a condition.
        """
        names = (*self.by, *self.where)
        if not all(name in SPEND_DIMENSIONS or name in ATTEMPT_DIMENSIONS or name.startswith("tag:") for name in names):
            return False
        if self.since_ns % NS_PER_DAY or (self.until_ns or 0) % NS_PER_DAY:
            return False
        alternatives = any(not isinstance(self.where[name], str) for name in self.of_attempts & self.where.keys())
        return len(self.of_attempts) <= 1 and not alternatives


def days_between(since_ns: int, until_ns: int | None) -> list[str] | None:
    """The UTC days of [since_ns, until_ns); None where there are too many to name, or no end is known."""
    if until_ns is None:
        return None
    first, last = since_ns // NS_PER_DAY, -(-until_ns // NS_PER_DAY)
    if last - first > DAYS_LISTED_MAX:
        return None
    return [iso(day * NS_PER_DAY)[:10] for day in range(first, last)]


MEASURES = ("input_tokens", "input_cached_tokens", "output_tokens", "reasoning_tokens", "cost_nano_usd")


def _cost_sql(asked: _Asked) -> tuple[str, list[Any]]:
    """SQL over `calls`, and its values."""
    count = len(asked.by)
    times = _times(asked.since_ns, asked.until_ns)
    if asked.of_attempts:
        # A line per Attempt, and one without names for money that they do not carry and for a Call without any.
        known = {**CALL_DIMENSIONS, **ATTEMPT_DIMENSIONS}
        nameless = {**CALL_DIMENSIONS, **dict.fromkeys(ATTEMPT_DIMENSIONS, "''")}
        sums = ", ".join(f"a.{name} AS {name}" for name in MEASURES)
        # Most Calls have one line. Their ids are left out: telling ten million apart takes 12 s and 1 GB.
        first, values = _lines(
            asked, known, times,
            "1 AS attempts, CASE WHEN a.ended_us <> 0 THEN a.ended_us - a.sent_us END AS latency_us, "
            f"{sums}, a.verdict = 'escalated' AS escalated", "calls c, unnest(c.attempts) AS u(a)",
            call_id="CASE WHEN c.attempt_count > 1 OR c.cost_nano_usd <> a.cost_nano_usd THEN c.call_id END",
        )  # fmt: skip
        rest = "c.cost_nano_usd - coalesce(list_sum(list_transform(c.attempts, lambda one: one.cost_nano_usd)), 0)"
        second, more = _lines(
            asked, nameless, times, f"0 AS attempts, NULL, 0, 0, 0, 0, {rest} AS cost_nano_usd, false", "calls c",
            call_id="CASE WHEN c.attempt_count > 0 THEN c.call_id END",
        )  # fmt: skip
        base = f"{first} UNION ALL SELECT * FROM ({second} AND (c.attempt_count = 0 OR {rest} <> 0))"  # noqa: S608 - our own
        values += more
        calls = "count(*) FILTER (WHERE call_id IS NULL) + count(DISTINCT call_id)"
        escalated = (
            "count(*) FILTER (WHERE escalated AND call_id IS NULL) + count(DISTINCT call_id) FILTER (WHERE escalated)"
        )
    else:
        sums = ", ".join(f"c.{name} AS {name}" for name in MEASURES)
        base, values = _lines(
            asked, CALL_DIMENSIONS, times,
            f"c.attempt_count AS attempts, c.latency_us AS latency_us, {sums}, c.escalated AS escalated", "calls c",
        )  # fmt: skip
        calls, escalated = "count(*)", "count(*) FILTER (WHERE escalated)"
    sums = ", ".join(f"coalesce(sum({name}), 0)" for name in ("attempts", *MEASURES))
    sql = (
        f"WITH base AS ({base}) SELECT {_grouping(count)}, {_names(count)}{calls}, {escalated}, {sums}, "  # noqa: S608 - our own
        "quantile_disc(latency_us, [0.5, 0.95, 0.99]) FILTER (WHERE latency_us IS NOT NULL) "
        f"FROM base GROUP BY {_sets(count)}"
    )
    return sql, values


def _spend_sql(asked: _Asked) -> tuple[str, list[Any]]:
    """SQL over `spend`, and its values; the same columns as of `_cost_sql`."""
    count = len(asked.by)
    known = {**CALL_DIMENSIONS, **{name: f"c.{name}" for name in ATTEMPT_DIMENSIONS}}
    days, values = ["c.day >= make_date(?)"], [asked.since_ns // NS_PER_DAY]
    if asked.until_ns is not None:
        days.append("c.day < make_date(?)")
        values.append(asked.until_ns // NS_PER_DAY)
    of_attempts = next(iter(asked.of_attempts), None)
    grouped = "sum(calls)" if of_attempts is None else f"sum({of_attempts}_calls)"
    # Over all values of an attribute a Call counts once; under one condition on it once for that value.
    whole = grouped if of_attempts in asked.where else "sum(calls)"
    calls = f"CASE WHEN {_grouping(count)} = 1 THEN {whole} ELSE {grouped} END" if count else whole
    counted = "calls, variant_calls, model_calls, purpose_calls, attempts"
    base, values = _lines(asked, known, (days, values), f"{counted}, {', '.join(MEASURES)}", "spend c", call_id="''")
    sums = ", ".join(f"coalesce(sum({name}), 0)" for name in ("attempts", *MEASURES))
    sql = (
        f"WITH base AS ({base}) SELECT {_grouping(count)}, {_names(count)}coalesce({calls}, 0), 0, {sums}, NULL "  # noqa: S608 - our own
        f"FROM base GROUP BY {_sets(count)}"
    )
    return sql, values


def _lines(
    asked: _Asked,
    known: Mapping[str, str],
    times: tuple[list[str], list[Any]],
    measures: str,
    source: str,
    *,
    call_id: str = "c.call_id",
) -> tuple[str, list[Any]]:
    """SQL of the lines that are summed up, and its values."""
    dims = "".join(f"{_dimension(name, known)} AS d{index}, " for index, name in enumerate(asked.by))
    conditions, values = _conditions(asked.where, known, times)
    return f"SELECT {dims}{call_id} AS call_id, {measures} FROM {source} WHERE {conditions}", values  # noqa: S608 - our own


def _names(dimensions: int) -> str:
    return "".join(f"d{index}, " for index in range(dimensions))


def _sets(dimensions: int) -> str:
    """The groups, and the total."""
    return f"GROUPING SETS (({_names(dimensions)[:-2]}), ())" if dimensions else "GROUPING SETS (())"


def _grouping(dimensions: int) -> str:
    """1 in the row of the total."""
    return "grouping(d0)" if dimensions else "1"


def _times(since_ns: int, until_ns: int | None) -> tuple[list[str], list[Any]]:
    """The conditions of a span, and their values. The days let whole files be passed over."""
    conditions, values = ["c.opened_ns >= ?"], [since_ns]
    if since_ns:
        conditions.append("c.day >= make_date(?)")
        values.append(since_ns // NS_PER_DAY)
    if until_ns is not None:
        conditions += ["c.opened_ns < ?", "c.day <= make_date(?)"]
        values += [until_ns, until_ns // NS_PER_DAY]
    return conditions, values


def _conditions(where: Where, known: Mapping[str, str], times: tuple[list[str], list[Any]]) -> tuple[str, list[Any]]:
    """SQL of a filter, and its values."""
    conditions, values = list(times[0]), list(times[1])
    for name, wanted in where.items():
        several = [wanted] if isinstance(wanted, str) else list(wanted)
        conditions.append(f"{_dimension(name, known)} IN ({', '.join('?' for _ in several)})" if several else "false")
        values.extend(several)
    return " AND ".join(conditions), values


def _dimension(name: str, known: Mapping[str, str]) -> str:
    """SQL of a dimension. Raises: DrivetrainError where there is none of this name."""
    if name.startswith("tag:") and len(name) > 4:
        tag = literal(name[4:])
        skip = len(name[4:]) + 2
        return (
            f"array_to_string(list_transform(list_filter(c.tags, lambda t: t = {tag} OR starts_with(t, {tag} || '=')), "
            f"lambda t: CASE WHEN t = {tag} THEN 'true' ELSE t[{skip}:] END), ', ')"
        )
    expression = known.get(name)
    if expression is None:
        raise DrivetrainError(f"`{name}` is no dimension.", do=did_you_mean(name, (*known, "tag:NAME")))
    return expression


def _cost_row(row: tuple[Any, ...], dimensions: int, money_only: bool) -> CostRow:
    numbers = row[-9:]
    calls, escalated, attempts, tokens, cached, output, reasoning, cost, quantiles = numbers
    p50, p95, p99 = quantiles if quantiles and not money_only else (None, None, None)
    return CostRow(
        keys=tuple(row[1 : 1 + dimensions]),
        calls=int(calls),
        attempts=int(attempts),
        input_tokens=int(tokens),
        input_cached_tokens=int(cached),
        output_tokens=int(output),
        reasoning_tokens=int(reasoning),
        cost_nano_usd=int(cost),
        escalated_share=None if money_only else escalated / calls if calls else 0.0,
        p50_ms=_ms(p50),
        p95_ms=_ms(p95),
        p99_ms=_ms(p99),
    )


def _outcome_row_out(row: tuple[Any, ...], dimensions: int) -> OutcomeRowOut:
    return OutcomeRowOut(keys=tuple(row[1 : 1 + dimensions]), count=row[-2], mean=row[-1])


def _ms(us: int | None) -> float | None:
    return None if us is None else us / 1000
