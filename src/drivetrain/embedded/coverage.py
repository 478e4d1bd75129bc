"""How many Calls have a label, how late labels come, and which of them were corrected or contradict each other.

Owns the question and its SQL over the lake's named tables. Called by `drivetrain outcomes show`.
"""

from __future__ import annotations

import msgspec

from drivetrain.core.calls import DOORS_ASIDE
from drivetrain.core.sql import literal
from drivetrain.lake.lake import Lake


class LabelCoverage(msgspec.Struct, frozen=True, kw_only=True):
    """The labels of one workflow and metric. Only answered Calls of callers count: others have nothing to judge."""

    workflow: str
    metric: str
    """Empty where none of the workflow's Calls has any label."""
    calls: int
    """Answered Calls of the workflow."""
    labelled: int
    """Those of them with at least one value of the metric."""
    delay_p50_s: float | None = None
    """From when the Call opened to when its first value arrived."""
    delay_p95_s: float | None = None
    corrected: int = 0
    """Labelled Calls of which a source said one thing, and later another."""
    contradictory: int = 0
    """Labelled Calls of which sources say different things now."""

    @property
    def share(self) -> float:
        """Labelled, of all."""
        return self.labelled / self.calls if self.calls else 0.0


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """The labels of a project."""

    rows: tuple[LabelCoverage, ...]
    """By workflow, then metric."""
    unmatched: int
    """Outcomes that name no Call of the ledger, by id or by business key."""


def label_coverage(lake: Lake, *, workflow: str | None = None, since_ns: int = 0) -> Coverage:
    """The labels of the Calls opened since `since_ns`, of all workflows or of one. Raises: DrivetrainError.

    One pass over the Calls and one over every value that ever arrived.
    """
    found = lake.query(COVERAGE, {"workflow": workflow, "since_ns": since_ns}).rows
    unmatched = lake.query(UNMATCHED).rows[0][0]
    return Coverage(
        rows=tuple(
            LabelCoverage(
                workflow=name,
                metric=metric,
                calls=calls,
                labelled=labelled,
                delay_p50_s=None if p50 is None else p50 / 1e9,
                delay_p95_s=None if p95 is None else p95 / 1e9,
                corrected=corrected,
                contradictory=contradictory,
            )
            for name, metric, calls, labelled, p50, p95, corrected, contradictory in found
        ),
        unmatched=unmatched,
    )


ASIDE = ", ".join(map(literal, sorted(DOORS_ASIDE)))
COVERAGE = f"""
WITH asked AS (
    SELECT call_id, workflow, business_key, opened_ns FROM calls
    WHERE status = 'answered' AND opened_ns >= $since_ns AND ($workflow IS NULL OR workflow = $workflow)
        AND door NOT IN ({ASIDE})
), told AS (
    SELECT c.call_id, c.workflow, c.opened_ns, h.metric, h.source, h.kind, h.value, h.event_ns,
        h.arrived_ns
    FROM outcomes_history h JOIN asked c ON c.call_id = h.call_id
    UNION ALL
    SELECT c.call_id, c.workflow, c.opened_ns, h.metric, h.source, h.kind, h.value, h.event_ns, h.arrived_ns
    FROM outcomes_history h JOIN asked c ON c.workflow = h.workflow AND c.business_key = h.business_key
    WHERE h.call_id = '' AND h.business_key <> ''
), by_source AS (
    SELECT workflow, call_id, metric, source, any_value(opened_ns) AS opened_ns, min(arrived_ns) AS arrived_ns,
        count(DISTINCT (kind, value)) AS said,
        max_by((kind, value), (arrived_ns, event_ns, value)) AS holds
    FROM told GROUP BY ALL
), by_call AS (
    SELECT workflow, call_id, metric, min(arrived_ns) - any_value(opened_ns) AS delay_ns, max(said) > 1 AS corrected,
        count(DISTINCT holds) > 1 AS contradictory
    FROM by_source GROUP BY workflow, call_id, metric
), by_metric AS (
    SELECT workflow, metric, count(*) AS labelled, quantile_disc(delay_ns, 0.5) AS p50, quantile_disc(delay_ns, 0.95) AS
        p95, count(*) FILTER (WHERE corrected) AS corrected, count(*) FILTER (WHERE contradictory) AS contradictory
    FROM by_call GROUP BY workflow, metric
), by_workflow AS (SELECT workflow, count(*) AS calls FROM asked GROUP BY workflow)
SELECT w.workflow, coalesce(m.metric, ''), w.calls, coalesce(m.labelled, 0), m.p50, m.p95, coalesce(m.corrected, 0),
    coalesce(m.contradictory, 0)
FROM by_workflow w LEFT JOIN by_metric m USING (workflow) ORDER BY ALL
"""  # noqa: S608 - the doors are words of our own

UNMATCHED = """
SELECT (SELECT count(*) FROM outcomes_history h ANTI JOIN calls c ON c.call_id = h.call_id
        WHERE h.call_id <> '')
    + (SELECT count(*) FROM outcomes_history h ANTI JOIN calls c
        ON c.workflow = h.workflow AND c.business_key = h.business_key WHERE h.call_id = '')
"""
