"""A moved alias of a trained model is a change of model: it is scored anew, and gets its share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import lightgbm
import numpy as np
import pytest
from evals_world import Desk, Vault, table, write_project

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column, Pinned, Signature
from drivetrain.core.policies import Policy
from drivetrain.embedded.modelling import registry_in
from drivetrain.evals.explain import Explanation, explain, metric_of
from drivetrain.evals.replayed import Replayed
from drivetrain.inference.scorers import open_scorer
from drivetrain.ports.inference import Scorer
from drivetrain.project.snapshot import Snapshot
from drivetrain.registry.store import Draft, Registry

pytestmark = pytest.mark.filterwarnings("ignore:Ignoring params argument:UserWarning")
"""LightGBM says so of a model that is read from its text."""
ROUTE = 'dt.Variant("trained", model="models:/risk@champion", timeout_ms=1000)'
SIGNATURE = Signature(task="regression", inputs=(Column(name="amount", dtype="float"),), target="risk")
CALLS = 200


def register(registry: Registry, risk: Callable[[float], float]) -> None:
    """The next version, and the alias moved to it."""
    amounts = np.linspace(0, 100, 2_001)
    data = lightgbm.Dataset(amounts.reshape(-1, 1), label=[risk(one) for one in amounts])
    parameters = {"objective": "regression", "num_leaves": 63, "learning_rate": 0.3, "verbosity": -1, "num_threads": 1}
    booster = lightgbm.train(parameters, data, num_boost_round=30)
    files = {"model.txt": booster.model_to_string().encode()}
    made = registry.register(Draft(name="risk", format="lightgbm", signature=SIGNATURE, files=files))
    registry.move_alias("risk", "champion", made.number, "tests")


def test_a_model_a_policy_and_traffic_together(tmp_path: Path) -> None:
    vault, data = Vault(), tmp_path / ".drivetrain" / "data"
    registry = registry_in(data, tmp_path / ".drivetrain" / "keys")
    register(registry, lambda amount: amount / 100)
    before = write_project(tmp_path, route=ROUTE, tables=below(0.4))
    register(registry, lambda amount: (amount / 100) ** 2)
    after = write_project(tmp_path, route=ROUTE, tables=below(0.55))
    assert [one.pinned["models:/risk@champion"].number for one in (before, after)] == [1, 2]

    @cache
    def loaded(number: int) -> Scorer:
        pinned = next(one for one in pins if one.number == number)
        return open_scorer(registry.open(pinned), pinned)

    pins = [one.pinned["models:/risk@champion"] for one in (before, after)]
    found = explained(before, after, vault, lambda pinned: loaded(pinned.number))
    assert found.known
    shares = {one.factor: one.interval.value for one in found.shares if one.interval is not None}
    truth = planted()
    total = sum(truth.values())
    assert found.change.value == pytest.approx(total, abs=0.1 * total)
    assert shares == pytest.approx(truth, abs=0.1 * total)
    assert all(share > 0.05 for share in truth.values())


def test_a_version_that_is_gone_is_told_and_not_fallen_back_from(tmp_path: Path) -> None:
    vault, data = Vault(), tmp_path / ".drivetrain" / "data"
    registry = registry_in(data, tmp_path / ".drivetrain" / "keys")
    register(registry, lambda amount: amount / 100)
    route = f"{ROUTE}, dt.Rule('else', when=always, then=Risk(risk=0.0))"
    before = write_project(tmp_path, route=route, tables=below(0.4))
    after = write_project(tmp_path, tables=below(0.4), score="claim.amount / 200")
    opened = {one.number: open_scorer(registry.open(one), one) for one in before.pinned.values()}

    def scorers(pinned: Pinned) -> Scorer:
        return opened[pinned.number]

    def gone(pinned: Pinned) -> Scorer:
        return open_scorer(tmp_path / "nowhere", pinned)

    first, second = (Desk(one, vault, scorers=scorers).calls(claims(0)) for one in (before, after))
    snapshots = {one.short_hash: one for one in (before, after)}
    world = Replayed(after.workflows["claims"], snapshots.__getitem__, vault, gone)
    policy = after.workflows["claims"].policy
    assert isinstance(policy, Policy)
    with pytest.raises(DrivetrainError, match="model risk/1 cannot be loaded"):
        explain([world.moment(one) for one in first], [world.moment(one) for one in second], world,
                metric_of(policy, "refund_rate"))  # fmt: skip


def below(limit: float) -> dict[str, str]:
    return {"refund.json": table((f"< {limit}", "", "refund"), ("", "", "review"))}


def claims(period: int) -> list[dict[str, float]]:
    spread = [(number + 0.5) / CALLS for number in range(CALLS)]
    return [{"amount": 100 * (one**1.4 if period else one)} for one in spread]


def planted() -> dict[str, float]:
    """By hand, over a fine grid and the six orders."""
    grid = [(number + 0.5) / 5_000 for number in range(5_000)]

    def rate(model: bool, policy: bool, traffic: bool) -> float:
        shares = (one**1.4 if traffic else one for one in grid)
        return float(sum((one**2 if model else one) < (0.55 if policy else 0.4) for one in shares) / len(grid))

    def share(place: int) -> float:
        total = 0.0
        for others, weight in (((0, 0), 1 / 3), ((1, 0), 1 / 6), ((0, 1), 1 / 6), ((1, 1), 1 / 3)):
            on, off = ([*others[:place], flag, *others[place:]] for flag in (1, 0))
            total += weight * (rate(*map(bool, on)) - rate(*map(bool, off)))
        return total

    return {name: share(place) for place, name in enumerate(("model", "policy", "traffic"))}


def explained(before: Snapshot, after: Snapshot, vault: Vault, scorers: Callable[[Pinned], Scorer]) -> Explanation:
    workflow = after.workflows["claims"]
    world = Replayed(workflow, {one.short_hash: one for one in (before, after)}.__getitem__, vault, scorers)
    periods = [
        [world.moment(call) for call in Desk(snapshot, vault, scorers=scorers).calls(claims(period))]
        for period, snapshot in enumerate((before, after))
    ]
    assert isinstance(workflow.policy, Policy)
    return explain(periods[0], periods[1], world, metric_of(workflow.policy, "refund_rate"), resamples=200)
