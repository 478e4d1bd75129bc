"""Planted changes of model, of policy and of traffic mix, alone and together: each gets its share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from evals_world import Desk, Vault, table, write_project

from drivetrain.core.policies import Policy
from drivetrain.evals.explain import FACTORS, Explanation, explain, metric_of
from drivetrain.evals.replayed import Replayed
from drivetrain.project.snapshot import Snapshot

pytestmark = pytest.mark.slow

CALLS = 300
"""Of each period; their amounts are spread evenly, so that no share is luck."""
SCORES = ("claim.amount / 100", "(claim.amount / 100) ** 2")
THRESHOLDS = (0.4, 0.65)
RISKS: tuple[Callable[[float], float], ...] = (lambda amount: amount / 100, lambda amount: (amount / 100) ** 2)
AMOUNTS: tuple[Callable[[float], float], ...] = (lambda share: 100 * share, lambda share: 100 * share**1.5)
PLANTED = [tuple(name for bit, name in enumerate(FACTORS) if number >> bit & 1) for number in range(1, 8)]


def claims(period: int) -> list[dict[str, Any]]:
    """Traffic of a period: the second one's claims are cheaper."""
    return [{"amount": AMOUNTS[period]((number + 0.5) / CALLS)} for number in range(CALLS)]


def true_shares(planted: tuple[str, ...]) -> dict[str, float]:
    """By hand, over a fine grid and all six orders: how much each factor moves the share of refunds."""
    grid = [(number + 0.5) / 5_000 for number in range(5_000)]

    def rate(changed: frozenset[str]) -> float:
        model, policy, traffic = (int(name in changed and name in planted) for name in FACTORS)
        amounts = (AMOUNTS[traffic](share) for share in grid)
        return sum(RISKS[model](amount) < THRESHOLDS[policy] for amount in amounts) / len(grid)

    shares = dict.fromkeys(FACTORS, 0.0)
    for order in permutations(FACTORS):
        changed: frozenset[str] = frozenset()
        for name in order:
            shares[name] += (rate(changed | {name}) - rate(changed)) / 6
            changed |= {name}
    return shares


def refunds_below(threshold: float) -> dict[str, str]:
    return {"refund.json": table((f"< {threshold}", "", "refund"), ("", "", "review"))}


@pytest.mark.parametrize("planted", PLANTED, ids="+".join)
def test_each_planted_change_gets_its_share(planted: tuple[str, ...], tmp_path: Path) -> None:
    vault = Vault()
    model, policy, traffic = (int(name in planted) for name in FACTORS)
    before = write_project(tmp_path / "before", score=SCORES[0], tables=refunds_below(THRESHOLDS[0]))
    after = write_project(tmp_path / "after", score=SCORES[model], tables=refunds_below(THRESHOLDS[policy]))
    found = explained(before, after, vault, claims(0), claims(traffic))

    truth = true_shares(planted)
    total = sum(truth.values())
    assert abs(total) > 0.1
    assert found.known
    assert found.change.value == pytest.approx(total, abs=0.1 * abs(total))
    for share in found.shares:
        assert share.interval is not None
        assert share.interval.value == pytest.approx(truth[share.factor], abs=0.1 * abs(total)), share.factor
        if share.factor not in planted:
            assert share.interval.low <= 0 <= share.interval.high
    assert sum(share.interval.value for share in found.shares if share.interval) == pytest.approx(found.change.value)


def explained(
    before: Snapshot, after: Snapshot, vault: Vault, first: list[dict[str, Any]], second: list[dict[str, Any]],
    metric: str = "refund_rate",
) -> Explanation:  # fmt: skip
    snapshots = {one.short_hash: one for one in (before, after)}
    workflow = after.workflows["claims"]
    world = Replayed(workflow, snapshots.__getitem__, vault, lambda _pinned: pytest.fail("no model is asked"))
    moments = [
        [world.moment(call) for call in Desk(snapshot, vault).calls(given)]
        for snapshot, given in ((before, first), (after, second))
    ]
    assert isinstance(workflow.policy, Policy)
    return explain(moments[0], moments[1], world, metric_of(workflow.policy, metric), resamples=400)
