"""The demo's report: where each Call went, what it cost, how right it was, and whether the money adds up.

Owns the questions to the ledger. Every figure is the ledger's; what the clients and the provider counted by themselves
is only compared with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.cli.demo_traffic import BASELINE_EFFICIENT, BASELINE_FRONTIER, CHAT, CORRECT, ROUTE, SOURCE, Seen
from drivetrain.ledger.queries import ATTEMPT_DIMENSIONS, CALL_DIMENSIONS, CostRow, CostTable, LedgerQueries
from drivetrain.ledger.reader import LedgerReader

SPEND_BY = ("team", "workflow", "use_case", "variant")
TOKENS = ("input_tokens", "input_cached_tokens", "output_tokens", "reasoning_tokens")


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What became of some Calls."""

    workflow: str
    variant: str
    """Empty: all of the workflow's."""
    model: str = ""
    """Empty: a rule, or several."""
    asked: int
    """Calls in which it made an attempt."""
    answered: int
    """Calls that it answered."""
    right: int
    """Of those, by the Outcomes."""
    judged: int
    """Of those, with an Outcome."""
    cost_nano_usd: int
    """Of all its attempts, escalated ones included."""
    accuracy_declared: float | None = None
    """The model's, as the simulator declares it; None: a rule, or several."""

    @property
    def accuracy(self) -> float | None:
        """Right / judged; None where nothing was."""
        return self.right / self.judged if self.judged else None


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """What one team, workflow, use case or variant cost."""

    name: str
    calls: int
    """By variant a Call counts for each variant that made an attempt."""
    tokens: int
    cost_nano_usd: int


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison with the ledger's total."""

    what: str
    calls: int | None = None
    """None: where Calls cannot be added, because one may count in several rows."""
    tokens: int | None = None
    """Input and output."""
    cost_nano_usd: int
    ok: bool


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the demo shows."""

    route: tuple[Share, ...]
    """By answering variant; each Call of the route is in one row's `answered`."""
    route_total: Share
    frontier_only: Share
    efficient_only: Share
    spend: dict[str, tuple[Spend, ...]]
    calls: int
    tokens: int
    cost_nano_usd: int
    """The ledger's total over everything."""
    checks: tuple[Check, ...]
    """Every attribution, the clients' own count and the provider's invoice."""
    problems: tuple[str, ...]
    """Damage in the ledger's segments."""

    @property
    def adds_up(self) -> bool:
        """Whether every comparison holds to the nano-dollar."""
        return all(check.ok for check in self.checks)


def read_report(data_folder: Path, seen: Seen, invoice: Mapping[str, Any], declared: Mapping[str, float]) -> DemoReport:
    """invoice: what the simulator's `GET /requests` shows; declared: model's upstream name -> accuracy."""
    queries = LedgerQueries(data_folder)
    total = queries.cost().total
    tables = {name: queries.cost((name,)) for name in (*CALL_DIMENSIONS, *ATTEMPT_DIMENSIONS)}
    parts = queries.cost(("workflow", "variant", "model"))
    answered = Counter(
        (call.workflow, call.variant) for call in LedgerReader(data_folder).calls(outcomes=False) if call.variant
    )
    judged: Counter[tuple[str, str]] = Counter()
    right: Counter[tuple[str, str]] = Counter()
    truths = queries.outcomes(CORRECT, ("workflow", "variant", "value"), where={"source": SOURCE})
    for row in truths.rows:
        workflow, variant, value = row.keys
        judged[workflow, variant] += row.count
        right[workflow, variant] += row.count if value == "true" else 0

    def share(workflow: str, row: CostRow) -> Share:
        _, variant, model = row.keys
        which = (workflow, variant)
        return Share(
            workflow=workflow,
            variant=variant,
            model=model,
            asked=row.calls,
            answered=answered[which],
            right=right[which],
            judged=judged[which],
            cost_nano_usd=row.cost_nano_usd,
            accuracy_declared=declared.get(model.partition("/")[2]),
        )

    def of(workflow: str) -> list[Share]:
        return [share(workflow, row) for row in parts.rows if row.keys[0] == workflow]

    route = of(ROUTE)
    workflows = {row.keys[0]: row.calls for row in tables["workflow"].rows}
    return DemoReport(
        route=tuple(sorted(route, key=lambda one: (bool(one.model), one.cost_nano_usd if one.model else -one.asked))),
        route_total=_together(ROUTE, route, workflows[ROUTE]),
        frontier_only=_together(BASELINE_FRONTIER, of(BASELINE_FRONTIER), workflows[BASELINE_FRONTIER]),
        efficient_only=_together(BASELINE_EFFICIENT, of(BASELINE_EFFICIENT), workflows[BASELINE_EFFICIENT]),
        spend={name: _spend(tables[name]) for name in SPEND_BY},
        calls=total.calls,
        tokens=_tokens(total),
        cost_nano_usd=total.cost_nano_usd,
        checks=_checks(total, tables, answered, seen, invoice),
        problems=tuple(str(problem) for problem in truths.problems),
    )


def _together(workflow: str, shares: Sequence[Share], calls: int) -> Share:
    models = {one.model for one in shares}
    declared = {one.accuracy_declared for one in shares}
    return Share(
        workflow=workflow,
        variant="",
        model=models.pop() if len(models) == 1 else "",
        asked=calls,
        answered=sum(one.answered for one in shares),
        right=sum(one.right for one in shares),
        judged=sum(one.judged for one in shares),
        cost_nano_usd=sum(one.cost_nano_usd for one in shares),
        accuracy_declared=declared.pop() if len(declared) == 1 else None,
    )


def _spend(table: CostTable) -> tuple[Spend, ...]:
    return tuple(
        Spend(name=row.keys[0], calls=row.calls, tokens=_tokens(row), cost_nano_usd=row.cost_nano_usd)
        for row in table.rows
    )


def _checks(
    total: CostRow,
    tables: Mapping[str, CostTable],
    answered: Counter[tuple[str, str]],
    seen: Seen,
    invoice: Mapping[str, Any],
) -> tuple[Check, ...]:
    checks = []
    for name, table in tables.items():
        by_attempt = name in ATTEMPT_DIMENSIONS
        same = _same_tokens(table.rows, total) and sum(row.attempts for row in table.rows) == total.attempts
        calls = None if by_attempt else sum(row.calls for row in table.rows)
        checks.append(_check(name, total, same, calls, *_sums(table.rows)))
    # A Call has one answering variant, so by this one Calls add up as well.
    checks.append(_check("answering variant", total, True, sum(answered.values()), None, total.cost_nano_usd))
    checks.append(_check("clients' own count", total, True, seen.calls, None, seen.cost_nano_usd))
    models = invoice["models"].values()
    tokens = sum(model["tokens_input"] + model["tokens_output"] for model in models)
    checks.append(_check("provider's invoice", total, True, None, tokens, invoice["cost_nano_usd"]))
    return tuple(checks)


def _check(what: str, total: CostRow, same: bool, calls: int | None, tokens: int | None, cost_nano_usd: int) -> Check:
    ok = (
        same
        and calls in (None, total.calls)
        and tokens in (None, _tokens(total))
        and cost_nano_usd == total.cost_nano_usd
    )
    return Check(what=what, calls=calls, tokens=tokens, cost_nano_usd=cost_nano_usd, ok=ok)


def _same_tokens(rows: Sequence[CostRow], total: CostRow) -> bool:
    return all(sum(getattr(row, kind) for row in rows) == getattr(total, kind) for kind in TOKENS)


def _sums(rows: Sequence[CostRow]) -> tuple[int, int]:
    return sum(_tokens(row) for row in rows), sum(row.cost_nano_usd for row in rows)


def _tokens(row: CostRow) -> int:
    """Input and output; cached and reasoning tokens are part of them."""
    return row.input_tokens + row.output_tokens
