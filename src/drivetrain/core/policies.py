"""What the business does with an answer: the declaration of a policy, what it sees, and the Decision that is recorded.

A policy is either a decision table or graph in `policies/*.json` or one pure Python function. Declarations are data and
never raise for a wrong value; the room `policies/` holds the behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Never

import msgspec

from drivetrain.core.declarations import Place, caller_place

POLICY_FAILED = "policy_failed"


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy sees of one Call."""

    input: Any = None
    """The workflow's input; of a chat workflow the Conversation. A table sees it as plain JSON."""
    features: Mapping[str, Any] = {}
    answer: Any = None
    """The output, or the answer's text where the workflow declares no output type; a ranking is a list in it."""
    confidence: float | None = None
    """The answer's `confidence`, where it has one."""
    variant: str = ""
    cost_usd: float = 0.0
    degraded: str = ""
    """`stale` or `static` where the workflow's ladder answered."""


class Action(msgspec.Struct, frozen=True):
    """What a policy decides: an action, a reason code, and what belongs to it."""

    action: str
    reason: str = ""
    values: Mapping[str, Any] = {}
    """Such as an amount; plain JSON values."""


def act(action: str, reason: str = "", **values: Any) -> Action:
    """What a policy's function gives back: `dt.act("refund", "small_amount", amount=12)`."""
    return Action(action, reason, values)


class Explore(msgspec.Struct, frozen=True):
    """A small share of Calls gets another action than the policy's own, so that its value can be learned."""

    share: float
    """From 0 to 0.5: the chance that a Call is explored."""
    actions: tuple[str, ...]
    """What is tried, each as likely; the policy's own may be among them."""


class Gains(msgspec.Struct, frozen=True):
    """What an action is worth once the truth is known, in USD."""

    metric: str
    """Name of the Outcome that is the truth."""
    usd: Mapping[str, Mapping[str, float]] | Callable[[str, Any, Case], float]
    """Action -> value of the Outcome as text -> USD, `*` standing for any other value; or a function of
    (action, Outcome's value, Case)."""


class Policy:
    """What a workflow does with its answers, versioned and changed apart from models."""

    __slots__ = (
        "actions",
        "decide",
        "explore",
        "gains",
        "limit_ms",
        "metrics",
        "name",
        "otherwise",
        "place",
        "reads",
        "table",
        "unknown",
    )

    def __init__(
        self,
        name: str,
        *,
        table: str | None = None,
        decide: Callable[[Case], Action | str] | None = None,
        actions: Sequence[str] = (),
        otherwise: Action | None = None,
        explore: Explore | None = None,
        gains: Gains | None = None,
        metrics: Mapping[str, str | Sequence[str] | Callable[..., float]] | None = None,
        reads: Sequence[str] = (),
        limit_ms: int = 50,
        place: Place | None = None,
        **unknown: Never,
    ) -> None:
        self.name = name
        self.table = table
        """A file in `policies/`: a zen-engine decision graph or table (JDM)."""
        self.decide = decide
        """A pure function of a Case; nothing may depend on time, chance or the world."""
        self.actions = (actions,) if isinstance(actions, str) else tuple(actions)
        """Every action it may take; empty: any. Another one is a failure of the policy."""
        self.otherwise = otherwise
        """Taken where the policy fails or no rule matches; without one the Call fails with `policy_failed`."""
        self.explore = explore
        self.gains = gains
        self.metrics: Mapping[str, str | Sequence[str] | Callable[..., float]] = metrics or {}
        """Name -> an action or several, whose share is the metric, or a function of (Action, Case) whose mean is."""
        self.reads = tuple(reads)
        """Such as `input.amount` and `features.orders_7d`: kept with each Decision, encrypted, whatever its workflow's
        retention. A table's are known; of a function that names none, all is kept where payloads are."""
        self.limit_ms = limit_ms
        """A table that takes longer is a failure of the policy."""
        self.place = place or caller_place()
        self.unknown: Mapping[str, Any] = unknown


class DecisionV1(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a policy did with a Call's answer, as stored within the Call."""

    policy: str
    version: str
    """First 16 hex digits of the SHA-256 over the table's file, or over the function's source."""
    action: str
    reason: str = ""
    rule: str = ""
    """The rule that matched: a table's row id, or empty."""
    chosen: str = ""
    """What the policy itself would have done; another than `action` where the Call was explored."""
    explored: bool = False
    propensity: float = 1.0
    """The chance with which `action` was taken in this Case, exploration counted."""
    confidence: float | None = None
    failed: str = ""
    """Why the policy's own answer was not to be had, so that `otherwise` was taken."""
    sealed: bytes = b""
    """A `DecisionRecordV1` under the subject's key; empty where nothing of it is kept."""


class DecisionRecordV1(msgspec.Struct, frozen=True, tag="decision.record.1"):
    """What a Decision was made from and what belongs to it; personal, so it is sealed."""

    inputs: dict[str, Any]
    """`{"input": ..., "features": ..., "answer": ...}`: what the policy reads of the Case."""
    values: dict[str, Any]
    """`Action.values`."""
    case_facts: dict[str, Any] = {}
    """`variant`, `cost_usd`, `degraded`, `confidence`."""


class Decided(msgspec.Struct, frozen=True):
    """A workflow's answer with what its policy decided."""

    output: Any
    action: str
    reason: str
    values: Mapping[str, Any]
    call_id: str
    policy: str
    version: str
    explored: bool = False
    propensity: float = 1.0
