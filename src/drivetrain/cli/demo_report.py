"""The demo's report: where each Call went, what it cost, how right it was, and whether the money adds up.

Owns the questions to the ledger, and the claim: the route with a trained model against the frontier model alone. Every
figure is the ledger's; what the clients and the provider counted by themselves is only compared with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.cli.demo_texts import Example
from drivetrain.cli.demo_traffic import (
    BASELINE_EFFICIENT,
    BASELINE_FRONTIER,
    CONCURRENCY,
    CORRECT,
    ROUTE,
    SOURCE,
    UNTRAINED,
    Seen,
    message_id,
)
from drivetrain.cli.demo_trials import BudgetTrial, FaultTrial, TrialCounts
from drivetrain.lake.calls import Calls
from drivetrain.lake.costs import ATTEMPT_DIMENSIONS, CALL_DIMENSIONS, CostRow, CostTable, LedgerQueries
from drivetrain.lake.lake import Lake
from drivetrain.statistics.means import mean_interval

SPEND_BY = ("team", "workflow", "use_case", "door", "variant")
MESSAGES_DOOR = "workflow"
"""By which the messages come; evals and upgrades ask the same workflows by another."""
TOKENS = ("input_tokens", "input_cached_tokens", "output_tokens", "reasoning_tokens")


WITHIN = 0.01
"""So much less often right than the frontier model alone the route may be, at worst."""
COST_SHARE_MAX = 0.25
"""Of what the frontier model alone costs, the route may cost so much."""
MESSAGES_MIN = 300
"""With fewer messages the interval is wider than what it is to show."""
LEVEL = 0.95
TRAINED = "models:/"
"""How the ledger's names of trained models begin."""
PAIRS_SQL = """
SELECT c.business_key,
    bool_or(o.value = 'true') FILTER (c.workflow = ?) AS route,
    bool_or(o.value = 'true') FILTER (c.workflow = ?) AS frontier
FROM outcomes o JOIN calls c USING (call_id)
WHERE o.metric = ? AND o.source = ? AND c.workflow IN (?, ?)
GROUP BY c.business_key
"""


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

    @property
    def is_trained(self) -> bool:
        """Whether it is a trained model: its answers are real."""
        return self.model.startswith(TRAINED)


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """What one team, workflow, use case, door or variant cost."""

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


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The route against the frontier model alone, on the same messages."""

    messages: int
    better: int
    """Messages that the route answered right and the frontier model wrong."""
    worse: int
    """The other way round."""
    difference: float
    """How much more often the route is right, as a share of the messages."""
    low: float
    """With `high` the interval of the difference; messages that are put together from one request count together."""
    high: float
    trained_wrong: int
    """Messages that the trained model itself answered wrong: real, while what the frontier model makes of the same
    messages is simulated."""
    cost_share: float
    """Of what the frontier model alone cost."""

    @property
    def is_as_right(self) -> bool:
        """Whether it is at most `WITHIN` less often right, by the lower end of the interval."""
        return self.low >= -WITHIN

    @property
    def is_cheap(self) -> bool:
        """Whether it costs at most `COST_SHARE_MAX`."""
        return self.cost_share <= COST_SHARE_MAX

    @property
    def holds(self) -> bool | None:
        """None: too few messages to tell."""
        return self.is_as_right and self.is_cheap if self.messages >= MESSAGES_MIN else None


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the demo shows."""

    route: tuple[Share, ...]
    """By answering variant; each Call of the route is in one row's `answered`."""
    route_total: Share
    frontier_only: Share
    efficient_only: Share
    untrained: Share | None
    """The route without the trained model; None where there is none."""
    claim: Claim | None
    """None where the route has no trained model."""
    budget: BudgetTrial
    fault: FaultTrial
    spend: dict[str, tuple[Spend, ...]]
    calls: int
    tokens: int
    cost_nano_usd: int
    """The ledger's total over everything."""
    checks: tuple[Check, ...]
    """Every attribution, then the clients' own count and the provider's invoice."""
    problems: tuple[str, ...]
    """Damage in the ledger's segments."""

    @property
    def adds_up(self) -> bool:
        """Whether every comparison holds to the nano-dollar."""
        return all(check.ok for check in self.checks)

    @property
    def holds(self) -> bool:
        """Whether the demo shows what it says that it shows."""
        claimed = self.claim is None or self.claim.holds is not False
        return self.adds_up and self.budget.kept and self.fault.kept and claimed


def read_report(
    lake: Lake,
    seen: Seen,
    invoice: Mapping[str, Any],
    declared: Mapping[str, float],
    examples: Sequence[Example],
) -> DemoReport:
    """What the ledger says of a whole demo.

    invoice: what the simulator's `GET /requests` shows; declared: model's upstream name -> accuracy; examples: the
    messages as they were sent.
    """
    queries = LedgerQueries(lake)
    total = queries.cost().total
    tables = {name: queries.cost((name,)) for name in (*CALL_DIMENSIONS, *ATTEMPT_DIMENSIONS)}
    messages = {"door": MESSAGES_DOOR}
    parts = queries.cost(("workflow", "variant", "model"), where=messages)
    # Whole Calls, added up here and not by the queries: one more opinion on them.
    ended: Counter[tuple[str, str]] = Counter()
    calls_read = 0
    trials = TrialCounts()
    read_nano_usd = 0
    for call in Calls(lake).calls(outcomes=False, payloads=False):
        read_nano_usd += call.cost_nano_usd
        calls_read += 1
        ended[call.workflow, call.variant] += call.door == MESSAGES_DOOR
        trials.add(call)
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
            answered=ended[which],
            right=right[which],
            judged=judged[which],
            cost_nano_usd=row.cost_nano_usd,
            accuracy_declared=declared.get(model.partition("/")[2]),
        )

    def of(workflow: str) -> list[Share]:
        return [share(workflow, row) for row in parts.rows if row.keys[0] == workflow]

    assert seen.told is not None
    workflows = {row.keys[0]: row.calls for row in queries.cost(("workflow",), where=messages).rows}
    route = of(ROUTE)
    route_total = _together(ROUTE, route, workflows[ROUTE])
    frontier_only = _together(BASELINE_FRONTIER, of(BASELINE_FRONTIER), workflows[BASELINE_FRONTIER])
    untrained = _together(UNTRAINED, of(UNTRAINED), workflows[UNTRAINED]) if UNTRAINED in workflows else None
    return DemoReport(
        # Rules first, then models; who stands earlier in a route is asked more often.
        route=tuple(sorted(route, key=lambda one: (bool(one.model), -one.asked))),
        route_total=route_total,
        frontier_only=frontier_only,
        efficient_only=_together(BASELINE_EFFICIENT, of(BASELINE_EFFICIENT), workflows[BASELINE_EFFICIENT]),
        untrained=untrained,
        claim=_claim(lake, route, frontier_only, examples) if untrained is not None else None,
        budget=trials.budget(CONCURRENCY, seen.told),
        fault=trials.fault(invoice),
        spend={name: _spend(tables[name]) for name in SPEND_BY},
        calls=total.calls,
        tokens=_tokens(total),
        cost_nano_usd=total.cost_nano_usd,
        checks=(
            *(_by_attribution(name, table, total) for name, table in tables.items()),
            # A Call has one answering variant, or none, so by this one Calls add up as well.
            _check("answering variant", total, calls=calls_read, cost_nano_usd=read_nano_usd),
            _check("the clients' own count", total, calls=seen.calls, cost_nano_usd=seen.cost_nano_usd),
            _check("the provider's invoice", total, tokens=_billed(invoice), cost_nano_usd=invoice["cost_nano_usd"]),
        ),
        problems=tuple(str(problem) for problem in truths.problems),
    )


def _claim(lake: Lake, route: Sequence[Share], frontier: Share, examples: Sequence[Example]) -> Claim:
    """Of the messages that both have answered."""
    parameters = [ROUTE, BASELINE_FRONTIER, CORRECT, SOURCE, ROUTE, BASELINE_FRONTIER]
    paired = {key: int(first) - int(second) for key, first, second in lake.query(PAIRS_SQL, parameters).rows
              if first is not None and second is not None}  # fmt: skip
    differences, groups = [], []
    for place, example in enumerate(examples):
        if message_id(place) in paired:
            differences.append(paired[message_id(place)])
            groups.append(example.group or example.text)
    low, high = mean_interval(differences, LEVEL, clusters=groups)
    return Claim(
        messages=len(differences),
        better=differences.count(1),
        worse=differences.count(-1),
        difference=sum(differences) / len(differences),
        low=low,
        high=high,
        trained_wrong=sum(one.judged - one.right for one in route if one.is_trained),
        cost_share=sum(one.cost_nano_usd for one in route) / frontier.cost_nano_usd,
    )


def _together(workflow: str, shares: Sequence[Share], calls: int) -> Share:
    only = shares[0] if len(shares) == 1 and workflow not in (ROUTE, UNTRAINED) else None
    return Share(
        workflow=workflow,
        variant="",
        model=only.model if only is not None else "",
        asked=calls,
        answered=sum(one.answered for one in shares),
        right=sum(one.right for one in shares),
        judged=sum(one.judged for one in shares),
        cost_nano_usd=sum(one.cost_nano_usd for one in shares),
        accuracy_declared=only.accuracy_declared if only is not None else None,
    )


def _spend(table: CostTable) -> tuple[Spend, ...]:
    return tuple(
        Spend(name=row.keys[0], calls=row.calls, tokens=_tokens(row), cost_nano_usd=row.cost_nano_usd)
        for row in table.rows
    )


def _by_attribution(name: str, table: CostTable, total: CostRow) -> Check:
    """The rows of one attribution, added up."""
    rows = table.rows
    each = all(sum(getattr(row, kind) for row in rows) == getattr(total, kind) for kind in ("attempts", *TOKENS))
    return _check(
        name.replace("_", " "),
        total,
        also=each,
        calls=None if name in ATTEMPT_DIMENSIONS else sum(row.calls for row in rows),
        tokens=sum(_tokens(row) for row in rows),
        cost_nano_usd=sum(row.cost_nano_usd for row in rows),
    )


def _check(
    what: str,
    total: CostRow,
    *,
    also: bool = True,
    calls: int | None = None,
    tokens: int | None = None,
    cost_nano_usd: int,
) -> Check:
    ok = (
        also
        and calls in (None, total.calls)
        and tokens in (None, _tokens(total))
        and cost_nano_usd == total.cost_nano_usd
    )
    return Check(what=what, calls=calls, tokens=tokens, cost_nano_usd=cost_nano_usd, ok=ok)


def _billed(invoice: Mapping[str, Any]) -> int:
    return sum(model["tokens_input"] + model["tokens_output"] for model in invoice["models"].values())


def _tokens(row: CostRow) -> int:
    """Input and output; cached and reasoning tokens are part of them."""
    return row.input_tokens + row.output_tokens
