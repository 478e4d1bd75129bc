"""How the suites play their seeds: in parts, so that a busy machine can share them, and never the same trouble unseen.

DRIVETRAIN_SEED=n moves all of them; a broken seed says how to play it again by itself.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from .world import Profile, play

FIRST_SEED = int(os.environ.get("DRIVETRAIN_SEED") or 0)
PARTS = [pytest.param(part, marks=[pytest.mark.slow] if part > 1 else []) for part in range(6)]
SEEDS_PER_PART = 110
"""Six parts of five profiles: 3,300 seeds, about half a minute of one core."""


def play_part(profile: Profile, part: int) -> Counter[str]:
    """Play one part of a profile's seeds: how often what was seen. Raises: Broken."""
    first = FIRST_SEED + part * SEEDS_PER_PART
    seen: Counter[str] = Counter()
    for seed in range(first, first + SEEDS_PER_PART):
        world = play(profile, seed)
        seen += world.laws.seen
        for _, what, *rest in world.kernel.trace:
            if what == "killed":
                seen[f"killed at {rest[1]}"] += 1
    return seen
