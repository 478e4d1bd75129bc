"""What deciding one Case gives: a Verdict, or PolicyFailed where the policy has nothing to fall back to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.policies import POLICY_FAILED


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy decided about one Case, and with which chance."""

    action: str
    reason: str = ""
    rule: str = ""
    """The rule that matched: a table's row id; of a graph with several tables `TABLE/ROW`. Empty: no rule is known."""
    values: Mapping[str, Any] = {}
    chosen: str = ""
    """What the policy itself would have done; another than `action` where the Call was explored."""
    explored: bool = False
    """Whether the coin asked for another action, be it the same in the end."""
    propensity: float = 1.0
    """The chance with which `action` was taken in this Case, exploration counted."""
    failed: str = ""
    """Why `otherwise` was taken; says kinds and lines, never a value."""


class PolicyFailed(DrivetrainError):
    """A policy that cannot decide and has no `otherwise`; the Call fails with `code`."""

    code = POLICY_FAILED

    def __init__(self, policy: str, why: str) -> None:
        self.policy = policy
        self.why = why
        super().__init__(
            f"The policy `{policy}` cannot decide: {why}.",
            do="Cover the case in its table or function, or give the policy an `otherwise`.",
        )
