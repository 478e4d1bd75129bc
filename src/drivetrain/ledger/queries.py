"""Queries: what Calls cost and how they turned out, by any attribute, with totals that are the ledger's own.

Owns the questions and their SQL (DuckDB, imported when the first one is asked). Called by the commands and by every
screen, so that all of them show the same total. It reads segments through the reader's fold and the parts' cache.

Money stays an integer all the way: summed in 128 bits, never as a float.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.calls import OutcomeV1
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.ledger.frames import Damage, Segment, records, segments
from drivetrain.ledger.parts import (
    CALL_COLUMNS,
    OUTCOME_COLUMNS,
    PARTS_VERSION,
    CallRow,
    OutcomeRow,
    PartFiles,
    call_row,
    half_records,
    literal,
    load_rows,
    outcome_row,
    parts_of,
)
from drivetrain.ledger.reader import Fold, live_writers

THREADS = 2
"""A query leaves the other cores to the gateway."""

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
    "day": "strftime(make_timestamp(c.opened_ns // 1000), '%Y-%m-%d')",
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
    "value": "o.text",
}
"""Attributes of an Outcome: those of its Call, the variant and model that answered, who said it, and what."""

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
    escalated_share: float
    """Calls with an escalated attempt in this group / Calls in this group."""
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
    """Questions to a data folder; each sees what was written before it was asked.

    cache_folder: where parts are kept; None: in the data folder. Where that cannot be written, nothing is kept.
    """

    def __init__(self, data_folder: Path, *, cache_folder: Path | None = None) -> None:
        self._data_folder = data_folder
        self._cache_folder = (cache_folder or data_folder / "cache") / PARTS_VERSION

    def cost(
        self, by: Sequence[str] = (), *, since_ns: int = 0, until_ns: int | None = None, where: Where | None = None
    ) -> CostTable:
        """Cost, tokens, counts and latency of Calls opened in [since_ns, until_ns), grouped `by`.

        where: dimension -> value or values; empty is the value of a Call without one. The total is over the same Calls.
        Raises: DrivetrainError for an unknown dimension, NewerRecord.
        """
        known = {**CALL_DIMENSIONS, **ATTEMPT_DIMENSIONS}
        chosen = [_dimension(name, known) for name in by]
        conditions, values = _conditions(where or {}, known, since_ns, until_ns)
        by_attempt = any(name in ATTEMPT_DIMENSIONS for name in (*by, *(where or {})))
        sql = _cost_sql(chosen, conditions, by_attempt)
        found, problems = self._answer(sql, values)
        rows = [_cost_row(row, len(by)) for row in found if not row[0]]
        total = next(_cost_row(row, 0) for row in found if row[0])
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
        conditions, values = _conditions(where or {}, OUTCOME_DIMENSIONS, since_ns, until_ns)
        dims = "".join(f"{expression} AS d{index}, " for index, expression in enumerate(chosen))
        names = ", ".join(f"d{index}" for index in range(len(chosen)))
        sets = f"GROUPING SETS (({names}), ())" if chosen else "GROUPING SETS (())"
        sql = (
            "WITH held AS (SELECT * FROM outcomes WHERE metric = ? QUALIFY row_number() OVER "  # noqa: S608 - our own
            "(PARTITION BY call_id, source ORDER BY arrived_ns DESC, event_ns DESC, text DESC) = 1), "
            f"base AS (SELECT {dims} o.number AS number FROM held o JOIN calls c USING (call_id) WHERE {conditions}) "
            f"SELECT {_grouping(len(chosen))}, {names + ',' if names else ''} count(*), avg(number) "
            f"FROM base GROUP BY {sets}"
        )
        found, problems = self._answer(sql, [metric, *values])
        rows = [_outcome_row_out(row, len(by)) for row in found if not row[0]]
        total = next(_outcome_row_out(row, 0) for row in found if row[0])
        return OutcomeTable(
            metric=metric,
            by=tuple(by),
            rows=tuple(sorted(rows, key=lambda row: (-row.count, row.keys))),
            total=total,
            problems=problems,
        )

    def _answer(self, sql: str, values: Sequence[str | int]) -> tuple[list[tuple[Any, ...]], tuple[Damage, ...]]:
        """The rows, and the damage met on the way. A cache that cannot be read is deleted and made anew, once."""
        import duckdb

        for last_try in (False, True):
            try:
                with _Loaded(self._data_folder, self._cache_folder) as loaded:
                    return loaded.connection.execute(sql, values).fetchall(), loaded.problems
            except duckdb.Error as error:
                if last_try:
                    raise DrivetrainError(
                        f"The ledger cannot be queried: {error}",
                        looked=[str(self._data_folder), str(self._cache_folder)],
                        do="See whether the disk is full; the cache may be deleted at any time.",
                    ) from error
                shutil.rmtree(self._cache_folder, ignore_errors=True)
        raise AssertionError("the last try returns or raises")


class _Loaded:
    """A connection with the views `calls` and `outcomes` over everything written so far."""

    def __init__(self, data_folder: Path, cache_folder: Path) -> None:
        import duckdb

        self._scratch = tempfile.TemporaryDirectory(prefix="drivetrain-query-")
        self._scratch_folder = Path(self._scratch.name)
        self._damage: dict[tuple[str, int], Damage] = {}
        self.connection = duckdb.connect(":memory:", config={"threads": THREADS})
        try:
            self.connection.execute("SET TimeZone = 'UTC'")
            self._load(segments(data_folder), _writable(cache_folder) or self._scratch_folder)
        except BaseException:
            self.__exit__()
            raise

    @property
    def problems(self) -> tuple[Damage, ...]:
        """Frames that could not be read."""
        return tuple(self._damage[place] for place in sorted(self._damage))

    def __enter__(self) -> _Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._scratch.cleanup()

    def _load(self, found: list[Segment], folder: Path) -> None:
        parts: list[PartFiles] = []
        tails: list[tuple[Segment, list[PartFiles], int]] = []
        for segment in found:
            own = parts_of(segment, folder, self.connection)
            parts.extend(own)
            tails.append((segment, own, own[-1].part.end if own else 0))
            for files in own:
                self._note(files.part.damage)
        outcomes: list[OutcomeRow] = []
        near = self._scratch_folder / "rows"
        load_rows(self.connection, "tail_calls", CALL_COLUMNS, self._tail_calls(found, tails, outcomes), near)
        load_rows(self.connection, "tail_outcomes", OUTCOME_COLUMNS, outcomes, near)
        self._view("all_calls", "tail_calls", [files.calls for files in parts if files.part.calls])
        self._view("outcomes", "tail_outcomes", [files.outcomes for files in parts if files.part.outcomes])
        count = self.connection.execute("SELECT count(*), count(DISTINCT call_id) FROM all_calls").fetchone()
        once = "QUALIFY row_number() OVER (PARTITION BY call_id ORDER BY rank, segment, place) = 1"
        repeated = count is None or count[0] != count[1]
        self.connection.execute(f"CREATE VIEW calls AS SELECT * FROM all_calls {once if repeated else ''}")  # noqa: S608 - no value in it

    def _tail_calls(
        self, found: list[Segment], tails: list[tuple[Segment, list[PartFiles], int]], outcomes: list[OutcomeRow]
    ) -> Iterator[CallRow]:
        """Rows of the Calls that no part holds whole; fills `outcomes`."""
        live = live_writers(found)
        damage: list[Damage] = []
        fold = Fold()
        for segment, parts, start in tails:
            for files in parts:
                if files.part.halves:
                    for _, _, record in half_records(files, damage):
                        pair = fold.feed(record, segment, files.part.start, files.part.end)
                        if pair is not None:
                            yield call_row(pair, live)
            if start < segment.size:
                for offset, end, record in records(segment, damage, start):
                    if isinstance(record, OutcomeV1):
                        outcomes.append(outcome_row(record))
                        continue
                    pair = fold.feed(record, segment, offset, end)
                    if pair is not None:
                        yield call_row(pair, live)
        self._note(damage)
        # A lone closed frame may be the duplicate of a Call that stands whole in a part: the view drops it then.
        for pair in (*fold.orphans([]), *fold.unfinished()):
            yield call_row(pair, live)

    def _view(self, name: str, table: str, paths: list[Path]) -> None:
        files = ", ".join(literal(str(path)) for path in paths)
        union = f" UNION ALL BY NAME SELECT * FROM read_parquet([{files}])" if paths else ""  # noqa: S608 - our own paths
        self.connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {table}{union}")  # noqa: S608 - our own names

    def _note(self, damage: Sequence[Damage]) -> None:
        self._damage.update({(one.segment, one.offset): one for one in damage})


def _cost_sql(chosen: list[str], conditions: str, by_attempt: bool) -> str:
    dims = "".join(f"{expression} AS d{index}, " for index, expression in enumerate(chosen))
    names = ", ".join(f"d{index}" for index in range(len(chosen)))
    sets = f"GROUPING SETS (({names}), ())" if chosen else "GROUPING SETS (())"
    if by_attempt:
        source, one, attempts = "calls c, unnest(c.attempts) AS u(a)", "a", "a.counted"
        calls, escalated = "count(DISTINCT call_id)", "count(DISTINCT call_id) FILTER (WHERE escalated)"
    else:
        source, one, attempts = "calls c", "c", "c.attempt_count"
        calls, escalated = "count(*)", "count(*) FILTER (WHERE escalated)"
    fields = ("latency_us", "input_tokens", "input_cached_tokens", "output_tokens", "reasoning_tokens", "cost_nano_usd")
    base = ", ".join(f"{one}.{field} AS {field}" for field in (*fields, "escalated"))
    sums = ", ".join(f"coalesce(sum({field}), 0)" for field in ("attempts", *fields[1:]))
    return (
        f"WITH base AS (SELECT {dims}c.call_id AS call_id, {attempts} AS attempts, {base} FROM {source} "  # noqa: S608 - our own
        f"WHERE {conditions}) "
        f"SELECT {_grouping(len(chosen))}, {names + ', ' if names else ''}{calls}, {escalated}, {sums}, "
        f"quantile_disc(latency_us, [0.5, 0.95, 0.99]) FILTER (WHERE latency_us IS NOT NULL) FROM base GROUP BY {sets}"
    )


def _grouping(dimensions: int) -> str:
    """1 in the row of the total."""
    return "grouping(d0)" if dimensions else "1"


def _conditions(
    where: Where, known: Mapping[str, str], since_ns: int, until_ns: int | None
) -> tuple[str, list[str | int]]:
    """SQL of a filter, and its values."""
    conditions, values = ["c.opened_ns >= ?"], [since_ns]
    found: list[str | int] = list(values)
    if until_ns is not None:
        conditions.append("c.opened_ns < ?")
        found.append(until_ns)
    for name, wanted in where.items():
        several = [wanted] if isinstance(wanted, str) else list(wanted)
        conditions.append(f"{_dimension(name, known)} IN ({', '.join('?' for _ in several)})" if several else "false")
        found.extend(several)
    return " AND ".join(conditions), found


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


def _cost_row(row: tuple[Any, ...], dimensions: int) -> CostRow:
    numbers = row[-9:]
    calls, escalated, attempts, tokens, cached, output, reasoning, cost, quantiles = numbers
    p50, p95, p99 = quantiles if quantiles else (None, None, None)
    return CostRow(
        keys=tuple(row[1 : 1 + dimensions]),
        calls=calls,
        attempts=int(attempts),
        input_tokens=int(tokens),
        input_cached_tokens=int(cached),
        output_tokens=int(output),
        reasoning_tokens=int(reasoning),
        cost_nano_usd=int(cost),
        escalated_share=escalated / calls if calls else 0.0,
        p50_ms=_ms(p50),
        p95_ms=_ms(p95),
        p99_ms=_ms(p99),
    )


def _outcome_row_out(row: tuple[Any, ...], dimensions: int) -> OutcomeRowOut:
    return OutcomeRowOut(keys=tuple(row[1 : 1 + dimensions]), count=row[-2], mean=row[-1])


def _ms(us: int | None) -> float | None:
    return None if us is None else us / 1000


def _writable(folder: Path) -> Path | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None
