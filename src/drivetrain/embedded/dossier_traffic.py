"""How a workflow is used, asked of the lake for its dossier: Calls of callers, and those that nobody waited for."""

from __future__ import annotations

from drivetrain.core.calls import DOORS_ASIDE
from drivetrain.embedded.coverage import label_coverage
from drivetrain.lake.costs import LedgerQueries
from drivetrain.lake.lake import Lake
from drivetrain.promotion.dossier_material import Labels, Traffic

_CHOSEN = "FROM calls WHERE workflow = $workflow AND opened_ns >= $since_ns AND NOT list_contains($doors, door)"
ERRORS = f"SELECT error, count(*) AS n {_CHOSEN} AND error <> '' GROUP BY error ORDER BY n DESC, error"
DEGRADED = f"SELECT count(*) {_CHOSEN} AND degraded <> ''"
ACTIONS = f"""
SELECT decision.version, decision.action, count(*), count(*) FILTER (WHERE decision.explored),
    count(*) FILTER (WHERE decision.failed <> '') {_CHOSEN} AND decision IS NOT NULL
GROUP BY ALL ORDER BY ALL
"""


def traffic_of(lake: Lake, workflow: str, since_ns: int) -> Traffic:
    """The Calls opened since a moment. Raises: DrivetrainError where the lake cannot be read."""
    queries, all_of_it = LedgerQueries(lake), {"workflow": workflow}
    doors = queries.cost(["door"], since_ns=since_ns, where=all_of_it).rows
    callers = [row.keys[0] for row in doors if row.keys[0] not in DOORS_ASIDE] or ["none"]
    where = {"workflow": workflow, "door": callers}
    by_team = queries.cost(["team"], since_ns=since_ns, where=where)
    values = {"workflow": workflow, "since_ns": since_ns, "doors": sorted(DOORS_ASIDE)}
    return Traffic(
        since_ns=since_ns,
        total=by_team.total,
        by_team=by_team.rows,
        by_variant=queries.cost(["variant"], since_ns=since_ns, where=where).rows,
        by_status=queries.cost(["status"], since_ns=since_ns, where=where).rows,
        others=tuple(row for row in doors if row.keys[0] in DOORS_ASIDE),
        errors=tuple((str(code), int(number)) for code, number in lake.query(ERRORS, values).rows),
        degraded=int(lake.query(DEGRADED, values).rows[0][0]),
        actions=tuple(
            (str(version), str(action), int(number), int(explored), int(failed))
            for version, action, number, explored, failed in lake.query(ACTIONS, values).rows
        ),
        labels=tuple(
            Labels(
                metric=one.metric, calls=one.calls, labelled=one.labelled, corrected=one.corrected,
                contradictory=one.contradictory,
            )
            for one in label_coverage(lake, workflow=workflow, since_ns=since_ns).rows
        ),
    )  # fmt: skip
