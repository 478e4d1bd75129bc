"""The coin of exploration: a hash instead of a random number, so that a replay decides the same.

Two slices of one hash: the first says whether a Call is explored, the second which of the actions it gets.
"""

from __future__ import annotations

import hashlib

import msgspec

from drivetrain.core.policies import Explore

_SLICE = 2.0**64


class Coin(msgspec.Struct, frozen=True):
    """What one Call's hash says."""

    explores: bool
    action: str
    """Which action it would get; empty where nothing is explored."""


def toss(explore: Explore, call_id: str, version: str) -> Coin:
    """The coin of one Call under one version of a policy; the same for ever. Costs about 1 us."""
    digest = hashlib.blake2b(f"{call_id}\0{version}".encode(), digest_size=16).digest()
    if int.from_bytes(digest[:8], "big") / _SLICE >= explore.share:
        return Coin(False, "")
    place = int.from_bytes(digest[8:], "big") * len(explore.actions) >> 64
    return Coin(True, explore.actions[place])


def chances(explore: Explore | None, chosen: str) -> dict[str, float]:
    """Action -> the chance with which it is taken where the policy itself chooses `chosen`; they add up to 1."""
    if explore is None or not explore.actions or explore.share <= 0:
        return {chosen: 1.0}
    each = explore.share / len(explore.actions)
    found = {chosen: 1.0 - explore.share}
    for action in explore.actions:
        found[action] = found.get(action, 0.0) + each
    return found
