"""Spend: the rollup that dashboards read, made from the same rows under the same roll's number.

Owns the table `spend`: sums by day and by everything that money is attributed to, a fraction of the size of `calls`,
with totals that are those of `calls` to the nano-dollar. Called by the roller, which hands it the rows of one roll, by
retention, which adds sums together, and by readers for the rows that no roll has taken yet.

A row stands for one set of attributes and one (variant, model, purpose). `calls` counts each Call once, in the row of
its last Attempt, so that it adds up over any attributes of Calls. By variant, by model or by purpose a Call counts in
each group that it has an Attempt in: that is what `variant_calls`, `model_calls` and `purpose_calls` add up to. Money
that no Attempt carries stands under empty names, as it does everywhere.
"""

from __future__ import annotations

from typing import Any

CALL_ATTRIBUTES = (
    "day",
    "tenant",
    "team",
    "use_case",
    "workflow",
    "key",
    "tags",
    "snapshot",
    "door",
    "status",
)
"""Attributes of a Call that `spend` tells apart. Users are not among them: there are as many as Calls."""
ATTEMPT_ATTRIBUTES = ("variant", "model", "purpose")
COUNTS = ("calls", "escalated_calls", "variant_calls", "model_calls", "purpose_calls", "attempts")
SUMS = ("input_tokens", "input_cached_tokens", "output_tokens", "reasoning_tokens", "cost_nano_usd")
SPEND_STATISTICS = ("day",)
SUM_TYPE = "DECIMAL(38, 0)"
"""Of money and tokens: a sum of 64-bit integers may need more, and no sum may end the rolling."""

_CALL = ", ".join(f'"{name}"' for name in CALL_ATTRIBUTES)
_NAMES = ", ".join(f'"{name}"' for name in (*CALL_ATTRIBUTES, *ATTEMPT_ATTRIBUTES))
_COUNTS = ", ".join(f"CAST(sum({name}) AS BIGINT) AS {name}" for name in COUNTS)
_SUMS = ", ".join(f"CAST(sum({name}) AS {SUM_TYPE}) AS {name}" for name in SUMS)
# A lambda's parameter must not have a column's name: DuckDB then takes the column.
_NAMELESS = ", ".join(
    f"CASE WHEN list_contains(list_transform(attempts, lambda each: each.{name}), '') THEN 0 ELSE 1 END"
    for name in ATTEMPT_ATTRIBUTES
)
_FIRST = ", ".join(
    f"CASE WHEN list_position(list_transform(attempts, lambda each: each.{name}), a.{name}) = place THEN 1 ELSE 0 END "
    f"AS {name}_calls"
    for name in ATTEMPT_ATTRIBUTES
)


def spend_sql(calls: str) -> str:
    """SQL of the sums over a table or view with the columns of `calls`.

    Each Attempt is a line; one more without names stands for money that they do not carry, and for a Call without any.
    """
    return f"""
    WITH costed AS (
        SELECT {_CALL}, escalated, attempts,
            cost_nano_usd - coalesce(list_sum(list_transform(attempts, lambda each: each.cost_nano_usd)), 0) AS rest
        FROM {calls}
    ), numbered AS (
        SELECT {_CALL}, escalated, attempts, unnest(attempts) AS a, generate_subscripts(attempts, 1) AS place
        FROM costed
    ), lines AS (
        SELECT {_CALL}, a.variant, a.model, a.purpose,
            CASE WHEN place = len(attempts) THEN 1 ELSE 0 END AS calls,
            CASE WHEN place = len(attempts) AND escalated THEN 1 ELSE 0 END AS escalated_calls,
            {_FIRST},
            1 AS attempts, a.input_tokens, a.input_cached_tokens, a.output_tokens, a.reasoning_tokens, a.cost_nano_usd
        FROM numbered
        UNION ALL
        SELECT {_CALL}, '', '', '', CASE WHEN len(attempts) = 0 THEN 1 ELSE 0 END, 0, {_NAMELESS}, 0, 0, 0, 0, 0, rest
        FROM costed WHERE rest <> 0 OR len(attempts) = 0
    )
    SELECT {_NAMES}, {_COUNTS}, {_SUMS} FROM lines GROUP BY ALL
    """  # noqa: S608 - our own names


def summed_sql(spend: str) -> str:
    """SQL of the same sums over rows of `spend` that were made apart; each ledger's by itself."""
    return f"SELECT {_NAMES}, {_COUNTS}, {_SUMS}, ledger, max(roll) AS roll FROM {spend} GROUP BY ALL"  # noqa: S608 - our own names


def spend_rows(calls: Any, ledger: str, roll: int) -> Any:
    """The rows of one roll's Calls, an Arrow table, as an Arrow table."""
    import duckdb
    from arro3.core import Table

    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        connection.register("roll_calls", calls)
        found = connection.sql(
            f"SELECT *, CAST(? AS VARCHAR) AS ledger, CAST(? AS BIGINT) AS roll FROM ({spend_sql('roll_calls')})",  # noqa: S608 - our own
            params=[ledger, roll],
        )
        return Table.from_arrow(found)
