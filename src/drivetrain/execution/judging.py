"""Whether a provider's whole answer will do: read, mended where that is safe, and checked. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from drivetrain.core.errors import RequestError
from drivetrain.execution.completions import with_content
from drivetrain.execution.plan import VariantStep, WorkflowPlan
from drivetrain.execution.refusals import not_accepted, unusable
from drivetrain.providers.answers import Unusable, message_of
from drivetrain.routing.checks import Features, failing
from drivetrain.routing.outputs import Misfit

REASON_CHARS_MAX = 300
"""Of what the project's own code says against an answer."""


class Judged(msgspec.Struct, frozen=True):
    """An answer that will do."""

    body: bytes
    """As the client gets it."""
    output: Any
    repair: str = ""
    """What was mended in it."""


class NotAccepted(Exception):
    """The answer will not do."""

    def __init__(self, reason: str, error: RequestError) -> None:
        super().__init__(reason)
        self.reason = reason
        """For the record."""
        self.error = error
        """For the client, where nothing else answers."""


def judged(plan: WorkflowPlan, step: VariantStep, shaped: bytes, value: Any, features: Features = None) -> Judged:
    """The answer in OpenAI's shape, read as the workflow's output and held against its checks.

    value, features: the Call's input and its features, for checks that compare. Raises: NotAccepted.
    """
    output: Any = None
    repair = ""
    body = shaped
    try:
        message = message_of(shaped)
        reader = plan.output_reader
        if reader is None:
            output = message.content or ""
        elif message.content is None:
            raise Misfit("the model refused" if message.refusal else "the answer has no content")
        else:
            parsed = reader.read(message.content)
            output, repair = parsed.output, parsed.repair
            if repair:
                body = with_content(shaped, parsed.text)
    except (Misfit, Unusable) as fault:
        raise NotAccepted(str(fault), unusable(step, str(fault))) from fault
    reason = failing(step.checks, output, value, features)
    if reason is not None:
        reason = reason[:REASON_CHARS_MAX]
        raise NotAccepted(reason, not_accepted(plan.name, reason))
    return Judged(body, output, repair)
