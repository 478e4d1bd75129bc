"""What an attempt is charged where the provider's report is missing, broken or late, and what it may cost at most.

Estimates count a quarter of the UTF-8 bytes as tokens and are marked as `estimated`; a report always wins over them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.errors import RequestError
from drivetrain.core.money import NO_USAGE, Price, Usage, usd
from drivetrain.execution.plan import VariantStep, WorkflowPlan
from drivetrain.providers.answers import Dialect, Relay, Unusable, estimated_tokens, message_of

IMAGE_TOKENS_MAX = 16_384
"""Upper bound on the input tokens of one inline image."""
REQUEST_OVERHEAD_TOKENS = 64
"""Upper bound on the tokens that providers add around a request."""


def whole_usage(reported: Usage, request: bytes, body: bytes) -> Usage:
    """Of a whole answer in OpenAI's shape: as reported, else estimated from its content."""
    if reported.source != "none":
        return reported
    try:
        message = message_of(body)
    except Unusable:
        return _estimated(request, len(body))
    size = len((message.content or "").encode("utf-8", "replace"))
    for call in message.tool_calls or []:
        function = call.get("function")
        if isinstance(function, dict):
            size += len(str(function.get("arguments") or "")) + len(str(function.get("name") or ""))
    return _estimated(request, size)


def cut_usage(request: bytes, body: bytes) -> Usage:
    """Of a whole answer that was cut: what arrived. Nothing arrived: nothing is charged."""
    return _estimated(request, len(body)) if body else NO_USAGE


def delivered_usage(dialect: Dialect, relay: Relay, request: bytes, kept: bytes, arrived: int) -> Usage:
    """Of a stream that was cut: what the provider reported so far, at least what it delivered.

    kept: the provider's events, from the first on; arrived: bytes of all of them, where not all were kept.
    """
    size, events = dialect.delivered(kept)
    if arrived > len(kept) > 0:
        size, events = size * arrived // len(kept), events * arrived // len(kept)
    delivered = estimated_tokens(size, events)
    reported = relay.usage
    if reported is not None and reported.source != "none":
        if reported.output_tokens >= delivered or relay.done:
            return reported
        return msgspec.structs.replace(reported, output_tokens=delivered, source="estimated")
    return Usage(estimated_tokens(len(request)), 0, 0, 0, delivered, 0, "estimated")


def salvaged_usage(dialect: Dialect, request: bytes, body: bytes) -> Usage:
    """Of an answer that cannot be used but was billed: as reported in it, else estimated."""
    reported = reported_usage(dialect, body)
    return reported if reported.source != "none" else _estimated(request, len(body))


def reported_usage(dialect: Dialect, body: bytes) -> Usage:
    """What a body of any kind reports, for example an error's; `NO_USAGE` where it reports nothing."""
    try:
        parsed = parse_json(body)
    except MalformedJson:
        return NO_USAGE
    return dialect.usage(parsed.get("usage")) if isinstance(parsed, dict) else NO_USAGE


def over_budget(
    plan: WorkflowPlan,
    step: VariantStep,
    chat: dict[str, Any],
    price: Price,
    *,
    body_bytes: int,
    limit: int,
    charged: int,
) -> RequestError | None:
    """Why an attempt may not be made under the workflow's budget per call; None where its worst case fits.

    Tokens never exceed UTF-8 bytes, so the request's size bounds its input; limit: output tokens per choice;
    charged: nano-USD that the call has cost so far.
    """
    allowed = plan.cost_max_nano_usd
    if allowed is None:
        return None
    inline, linked = _images(chat["messages"])
    if linked:
        message = "an image by URL has no bound on its tokens, and this workflow has a budget per call"
        return RequestError(400, f"{message}; send it as a data URL", code="unbounded_cost", param="messages")
    input_bound = body_bytes + REQUEST_OVERHEAD_TOKENS + inline * IMAGE_TOKENS_MAX
    worst = price.worst_case_nano_usd(input_bound, limit * (chat.get("n") or 1)) + charged
    if worst <= allowed:
        return None
    message = (
        f"this call may cost up to {usd(worst)} USD with `{step.name}`, more than the {usd(allowed)} USD "
        f"that workflow `{plan.name}` allows per call; shorten the input or lower max_tokens"
    )
    return RequestError(400, message, code="budget_per_call_exceeded")


def _estimated(request: bytes, output_bytes: int) -> Usage:
    return Usage(estimated_tokens(len(request)), 0, 0, 0, estimated_tokens(output_bytes), 0, "estimated")


def _images(messages: list[Any]) -> tuple[int, int]:
    """(inline images, images by URL) in a conversation."""
    inline = linked = 0
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            if part.get("type") == "image_url":
                by_url = not part["image_url"]["url"].startswith("data:")
                linked += by_url
                inline += not by_url
    return inline, linked
