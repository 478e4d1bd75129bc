"""What a workflow's policy does with a Call's answer: the Case that it sees, and the Decision for the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from drivetrain.core.codec import MSGPACK
from drivetrain.core.errors import RequestError
from drivetrain.core.money import NANO_PER_USD
from drivetrain.core.policies import POLICY_FAILED, Case, DecisionRecordV1, DecisionV1
from drivetrain.policies.compile import CompiledPolicy
from drivetrain.policies.verdict import PolicyFailed
from drivetrain.providers.answers import Unusable, message_of
from drivetrain.routing.checks import Features


class DecisionTaken(msgspec.Struct, frozen=True):
    """What was decided, as the client gets it."""

    action: str
    reason: str
    rule: str
    policy: str
    version: str
    explored: bool
    propensity: float
    values: Mapping[str, Any]
    failed: str = ""
    """Why `otherwise` was taken; not for clients, who need not know how a policy is written."""

    def told(self) -> dict[str, Any]:
        """What clients are told of it, as plain JSON values."""
        return {
            "action": self.action,
            "reason": self.reason,
            "values": dict(self.values),
            "policy": self.policy,
            "version": self.version,
            "explored": self.explored,
            "propensity": self.propensity,
        }


class Deciding(msgspec.Struct, frozen=True):
    """A Decision that was made, and what is sealed into its record."""

    taken: DecisionTaken
    record: DecisionV1
    """Not sealed yet."""
    sealed: bytes
    """A `DecisionRecordV1` as msgpack; empty where it has no such form."""


def case_of(
    value: Any, features: Features, output: Any, body: bytes, *, variant: str, charged_nano_usd: int, degraded: str
) -> Case:
    """What the policy sees. body: the answer in OpenAI's shape, for workflows without an output type."""
    if output is None:
        try:
            output = message_of(body).content
        except Unusable:
            output = None
    confidence = getattr(output, "confidence", None)
    if isinstance(confidence, bool) or not isinstance(confidence, int | float):
        confidence = None
    return Case(
        input=value, features=features or {}, answer=output, confidence=confidence, variant=variant,
        cost_usd=charged_nano_usd / NANO_PER_USD, degraded=degraded,
    )  # fmt: skip


def decide(policy: CompiledPolicy, case: Case, call_id: str) -> Deciding:
    """Raises: RequestError where the policy fails and declares no `otherwise`."""
    try:
        verdict = policy.decide(case, call_id)
    except PolicyFailed as failed:
        message = f"the policy `{policy.name}` could not decide: {failed}"
        raise RequestError(500, message, code=POLICY_FAILED, kind="server_error") from failed
    taken = DecisionTaken(
        verdict.action, verdict.reason, verdict.rule, policy.name, policy.version, verdict.explored,
        verdict.propensity, verdict.values, verdict.failed,
    )  # fmt: skip
    record = DecisionV1(
        policy.name, policy.version, verdict.action, verdict.reason, verdict.rule, verdict.chosen, verdict.explored,
        verdict.propensity, case.confidence, verdict.failed,
    )  # fmt: skip
    return Deciding(taken, record, _sealable(policy, case, verdict.values))


def _sealable(policy: CompiledPolicy, case: Case, values: Mapping[str, Any]) -> bytes:
    """What the Decision was made from, as msgpack; empty where a value of the project's has no such form."""
    facts = {
        "variant": case.variant, "cost_usd": case.cost_usd, "degraded": case.degraded, "confidence": case.confidence,
    }  # fmt: skip
    try:
        return MSGPACK.encode(DecisionRecordV1(policy.sealed_inputs(case), dict(values), facts))
    except (TypeError, ValueError, OverflowError):
        return b""
