"""One rollout for several workflows is as careful as each of theirs."""

from __future__ import annotations

from drivetrain.core.rollouts import Guard, Rollout, Shadow, Stage
from drivetrain.promotion.rollouts import rollout_of

ONE = Rollout(
    stages=[Stage(share=0.05, minutes=10, units=5), Stage(share=0.5, minutes=1)],
    guards=[Guard(watch="errors", margin=0.02), Guard(watch="cost", margin=0.1)],
    shadow=Shadow(share=0.2, minutes=3, usd_per_day="5"),
)
OTHER = Rollout(
    stages=[Stage(share=0.05, minutes=2, units=50), Stage(share=0.2, minutes=7)],
    guards=[Guard(watch="errors", margin=0.01), Guard(watch="outcome", metric="fraud")],
    shadow=Shadow(share=0.1, minutes=9, usd_per_day="2"),
    level=0.9,
)


def test_the_union_keeps_every_stage_and_the_least_margin() -> None:
    made = rollout_of([ONE, OTHER], environment="prod", release=3, proposal_hash="a" * 64)
    shadow, *stages = made.stages
    assert (shadow.share_ppm, shadow.shadow_ppm, shadow.minutes) == (0, 200_000, 9)
    assert shadow.shadow_nano_usd_per_day == 2_000_000_000
    assert [(one.share_ppm, one.minutes, one.units) for one in stages] == [
        (50_000, 10, 50), (200_000, 7, 20), (500_000, 1, 20),
    ]  # fmt: skip
    assert [(one.watch, one.margin) for one in made.guards] == [("errors", 0.01), ("cost", 0.1), ("outcome", 0.0)]
    assert made.level == 0.9


def test_each_release_assigns_its_units_anew() -> None:
    ids = {rollout_of([ONE], environment="prod", release=one, proposal_hash="a" * 64).id for one in (1, 2, 3)}
    assert len(ids) == 3
    assert rollout_of([ONE], environment="prod", release=1, proposal_hash="a" * 64).id in ids
