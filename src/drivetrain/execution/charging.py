"""What an attempt is charged where the provider's report is missing, broken or late, and what it may cost at most.

Estimates count a quarter of the UTF-8 bytes as tokens, at most what the attempt could use, and are marked as
`estimated`; a report always wins over them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.errors import RequestError
from drivetrain.core.money import NO_USAGE, Usage, usd
from drivetrain.execution.plan import VariantStep, WorkflowPlan
from drivetrain.providers.answers import Dialect, Relay, Unusable, estimated_tokens, message_of

IMAGE_TOKENS_MAX = 16_384
"""Upper bound on the input tokens of one inline image."""
REQUEST_OVERHEAD_TOKENS = 64
"""Upper bound on the tokens that providers add around a request."""
COUNTED_PARTS = frozenset({"text", "refusal"})
CLIENT_TOOLS = frozenset({"function", "custom"})
"""Tools that the client runs; others run at the provider, which bills them by their own use."""
STANDARD_TIERS = frozenset({None, "auto", "default", "standard_only", "flex"})
"""Service tiers that cost at most the published price; `priority` costs more."""


def whole_usage(reported: Usage, request: bytes, body: bytes, bound: Bound) -> Usage:
    """Of a whole answer in OpenAI's shape: as reported, else estimated from its content."""
    if reported.source != "none":
        return reported
    try:
        message = message_of(body)
    except Unusable:
        return _estimated(request, len(body), bound)
    size = len((message.content or "").encode("utf-8", "replace"))
    for call in message.tool_calls or []:
        function = call.get("function")
        if isinstance(function, dict):
            size += len(str(function.get("arguments") or "")) + len(str(function.get("name") or ""))
    return _estimated(request, size, bound)


def asked_usage(request: bytes, bound: Bound) -> Usage:
    """Of an attempt that was cut before anything came: the provider has read the request, and bills it."""
    return _within(estimated_tokens(len(request)), 0, bound)


def cut_usage(request: bytes, body: bytes, bound: Bound) -> Usage:
    """Of a whole answer that was cut: what arrived. Nothing arrived: nothing is charged."""
    return _estimated(request, len(body), bound) if body else NO_USAGE


def delivered_usage(
    dialect: Dialect, relay: Relay, request: bytes, kept: bytes, arrived: int, *, bound: Bound
) -> Usage:
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
        output_tokens = max(reported.output_tokens, min(delivered, bound.output_tokens))
        return msgspec.structs.replace(reported, output_tokens=output_tokens, source="estimated")
    return _within(estimated_tokens(len(request)), delivered, bound)


def salvaged_usage(dialect: Dialect, request: bytes, body: bytes, bound: Bound) -> Usage:
    """Of an answer that cannot be used but was billed: as reported in it, else estimated."""
    reported = reported_usage(dialect, body)
    return reported if reported.source != "none" else _estimated(request, len(body), bound)


def reported_usage(dialect: Dialect, body: bytes) -> Usage:
    """What a body of any kind reports, for example an error's; `NO_USAGE` where it reports nothing."""
    try:
        parsed = parse_json(body)
    except MalformedJson:
        return NO_USAGE
    return dialect.usage(parsed.get("usage")) if isinstance(parsed, dict) else NO_USAGE


class Bound(msgspec.Struct, frozen=True, gc=False):
    """The most that an attempt can use."""

    input_tokens: int
    output_tokens: int
    unbounded: str = ""
    """What in the request has no bound; empty where everything has."""


def bound_of(chat: dict[str, Any], *, body_bytes: int, limit: int) -> Bound:
    """The bound of a request. Tokens never exceed UTF-8 bytes, so its size bounds its input.

    body_bytes: of the request as the provider gets it; limit: output tokens per choice.
    """
    inline, unbounded = _weighed(chat)
    input_tokens = body_bytes + REQUEST_OVERHEAD_TOKENS + inline * IMAGE_TOKENS_MAX
    return Bound(input_tokens, limit * (chat.get("n") or 1), unbounded)


def unbounded_cost(unbounded: str) -> RequestError:
    """The refusal of a request whose cost nobody can bound, under a budget that must hold."""
    message = f"{unbounded} has no bound on its cost, and a budget must hold here"
    do = "; send images as data URLs" if "image" in unbounded else ""
    return RequestError(400, message + do, code="unbounded_cost", param="messages" if do else None)


def over_budget(plan: WorkflowPlan, step: VariantStep, bound: Bound, worst_nano_usd: int) -> RequestError | None:
    """Why an attempt may not be made under the workflow's budget per call; None where its worst case fits.

    worst_nano_usd: of this attempt, and what the call has cost so far.
    """
    allowed = plan.cost_max_nano_usd
    if allowed is None:
        return None
    if bound.unbounded:
        return unbounded_cost(bound.unbounded)
    if worst_nano_usd <= allowed:
        return None
    message = (
        f"this call may cost up to {usd(worst_nano_usd)} USD with `{step.name}`, more than the {usd(allowed)} USD "
        f"that workflow `{plan.name}` allows per call; shorten the input or lower max_tokens"
    )
    return RequestError(400, message, code="budget_per_call_exceeded")


def _estimated(request: bytes, output_bytes: int, bound: Bound) -> Usage:
    return _within(estimated_tokens(len(request)), estimated_tokens(output_bytes), bound)


def _within(input_tokens: int, output_tokens: int, bound: Bound) -> Usage:
    """An estimate, at most what the attempt could use: it is no provider's overrun, and must fit what was reserved."""
    if not bound.unbounded:
        input_tokens = min(input_tokens, bound.input_tokens)
    return Usage(input_tokens, 0, 0, 0, min(output_tokens, bound.output_tokens), 0, "estimated")


def _weighed(chat: dict[str, Any]) -> tuple[int, str]:
    """(inline images, what has no bound) of a request."""
    inline = 0
    unbounded = ""
    for message in chat["messages"]:
        content = message.get("content")
        if message.get("audio") is not None:
            unbounded = "an earlier answer in audio"
        if type(content) is not list:
            continue
        for part in content:
            kind = part.get("type")
            if kind == "image_url":
                if part["image_url"]["url"].startswith("data:"):
                    inline += 1
                else:
                    unbounded = "an image by URL"
            elif kind not in COUNTED_PARTS:
                unbounded = "a part of a message that is neither text nor image"
    for tool in chat.get("tools") or ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or kind not in CLIENT_TOOLS:
            unbounded = "a tool that runs at the provider"
    if chat.get("web_search_options") is not None:
        unbounded = "a search at the provider"
    elif chat.get("service_tier") is not None and str(chat["service_tier"]) not in STANDARD_TIERS:
        unbounded = "a service tier of its own price"
    return inline, unbounded
