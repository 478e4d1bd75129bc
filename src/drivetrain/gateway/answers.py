"""What an ended Call, or a refused request, answers over HTTP: headers and bodies, and nothing that sends them.

Called by the gateway's doors.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec

from drivetrain.core.errors import RequestError
from drivetrain.core.limits import Refusal
from drivetrain.core.money import usd
from drivetrain.execution.call import CallResult
from drivetrain.execution.plan import WorkflowPlan
from drivetrain.providers.answers import Unusable, message_of

JSON_TYPE = b"content-type: application/json\r\n"
VALUE_CHARS_MAX = 256
"""Of an action or a reason in a header, before it is encoded; a function may give texts of any length, and proxies
refuse long heads. The body has the whole."""
PRINTABLE = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"
"""What stands as it is in a header beside letters, digits and `_.-~`; all else is percent-encoded UTF-8."""


def call_headers(result: CallResult, took_us: int) -> bytes:
    """Of the answer to one Call, each line ended."""
    headers = (
        f"x-request-id: {result.call_id}\r\nopenai-processing-ms: {took_us // 1000}\r\n"
        f"x-drivetrain-variant: {result.variant}\r\nx-drivetrain-cost-nano-usd: {result.cost_nano_usd}\r\n"
    ).encode("latin-1")
    last = result.attempts[-1] if result.attempts else None
    if last is not None and last.cached:
        headers += b"x-drivetrain-cache: stale\r\n" if result.degraded else b"x-drivetrain-cache: hit\r\n"
    if result.degraded:
        headers += b"x-drivetrain-degraded: %b\r\n" % result.degraded.encode()
    decided = result.decision
    if decided is not None:
        headers += b"x-drivetrain-action: %b\r\n" % _header_safe(decided.action)
        headers += b"x-drivetrain-reason: %b\r\n" % _header_safe(decided.reason)
    return headers


def error_headers(error: RequestError) -> bytes:
    """Of a refusal, each line ended."""
    if error.retry_after_s is None:
        return JSON_TYPE
    return JSON_TYPE + b"retry-after: %d\r\n" % error.retry_after_s


def limit_headers(refusal: Refusal) -> bytes:
    """Of a refusal by a limit; `retry-after` is among them."""
    return JSON_TYPE + b"".join(b"%b: %b\r\n" % (name.encode(), said.encode()) for name, said in refusal.headers())


def failed_headers(result: CallResult) -> bytes:
    """Of a Call that ended with an error, beside `call_headers`."""
    assert result.error is not None
    return limit_headers(result.limited) if result.limited is not None else error_headers(result.error)


def typed_body(plan: WorkflowPlan, result: CallResult) -> bytes:
    """What `POST /v1/workflows/{name}` answers."""
    body = {
        "output": answered(plan, result),
        "workflow": plan.name,
        "variant": result.variant,
        "call_id": result.call_id,
        "cost_usd": usd(result.cost_nano_usd),
        "cost_nano_usd": result.cost_nano_usd,
        "attempts": len(result.attempts),
    }
    if result.decision is not None:
        body["decision"] = result.decision.told()
    return msgspec.json.encode(body)


def answered(plan: WorkflowPlan, result: CallResult) -> Any:
    """The output; without an output type the answer's text, or its message where it calls tools."""
    if result.output is not None or plan.output_reader is not None:
        return result.output
    try:
        message = message_of(result.body)
    except Unusable:
        return None
    return message.content if not message.tool_calls else message


def _header_safe(text: str) -> bytes:
    return quote(text[:VALUE_CHARS_MAX], safe=PRINTABLE, errors="replace").encode("ascii")
