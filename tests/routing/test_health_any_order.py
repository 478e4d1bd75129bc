"""Laws of `Health` for attempts that are granted, answered, ended, lost and withdrawn in any order.

While half-open no second probe is out; a pause is kept; and whatever happened, an endpoint that works again has all of
its load within a minute and a half.
"""

from __future__ import annotations

import random

from drivetrain.routing.health import Health, Outcome

S = 1_000_000_000
SEEDS, STEPS = 150, 400
OUTCOMES: tuple[Outcome, ...] = ("ok", "failed", "limited", "ours")
WEIGHTS = ((70, 20, 5, 5), (10, 80, 5, 5), (10, 10, 75, 5), (25, 25, 25, 25))
"""A provider that mostly works, is broken, is overloaded, or does anything."""


class AnyOrder:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.health = Health(["east"], random.Random(seed + 1).random)
        self.now = self.chance.randrange(10**15)
        self.running: list[int] = []
        self.probe = -1
        self.paused_until = 0

    def step(self, weights: tuple[int, ...]) -> None:
        self.now += int(self.chance.expovariate(self.chance.choice([0.5, 5, 50])) * S)
        does = self.chance.random()
        if does < 0.5 or not self.running:
            self.ask()
            return
        granted = self.running.pop(self.chance.randrange(len(self.running)))
        if does < 0.53:
            return  # lost: it never ends
        if does < 0.6:
            self.health.withdrawn("east", granted)
        else:
            if does < 0.8:
                self.health.answered("east", granted, self.now)
            outcome = self.chance.choices(OUTCOMES, weights)[0]
            pause_s = self.chance.choice([1, 20, 500]) if outcome == "limited" and self.chance.random() < 0.1 else 0
            self.health.ended("east", granted, self.now, outcome, pause_s * 1000 or -1)
            self.paused_until = max(self.paused_until, self.now + min(pause_s, 60) * S)
        if granted == self.probe or self.health.states(self.now)["east"] != "half_open":
            self.probe = -1  # it ended, or the circuit opened anew or closed

    def ask(self) -> None:
        state = self.health.states(self.now)["east"]
        if self.health.may_send("east", self.now) is not None:
            return
        assert state != "open"
        assert self.now >= self.paused_until
        if state == "half_open":
            assert self.probe < 0 or self.now - self.probe >= 60 * S
            self.probe = self.now
        self.running.append(self.now)


def test_one_probe_at_a_time_pauses_kept_and_never_stuck() -> None:
    for seed in range(SEEDS):
        print(f"seed {seed}")
        world = AnyOrder(seed)
        for _ in range(STEPS):
            world.step(WEIGHTS[seed % len(WEIGHTS)])
        # From here on everything works; what was on its way is lost.
        until = world.now + 80 * S
        while world.now < until:
            world.now += S // 5
            if world.health.may_send("east", world.now) is None:
                world.health.ended("east", world.now, world.now, "ok")
        assert world.health.states(world.now) == {"east": "closed"}
        assert all(world.health.may_send("east", world.now) is None for _ in range(1_000))
