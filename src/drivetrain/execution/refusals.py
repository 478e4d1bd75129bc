"""What a failed attempt means: the error for the client, and whether the route goes on."""

from __future__ import annotations

import math

import msgspec

from drivetrain.core.errors import RequestError
from drivetrain.execution.plan import VariantStep
from drivetrain.ports.transport import UpstreamFailure, UpstreamHead
from drivetrain.providers.answers import ProviderError
from drivetrain.routing.health import Denied, Outcome

FINAL_STATUSES = frozenset({400, 404, 405, 413, 415, 422})
"""Refusals that another try, or another provider, would repeat."""
TIMEOUTS = frozenset({"first_byte_timeout", "timeout", "connect_timeout"})
FAILURES = {
    "connect": "no connection could be made",
    "connect_timeout": "no connection could be made in time",
    "tls": "its certificate was not accepted",
    "first_byte_timeout": "nothing came in time",
    "timeout": "its answer took too long",
    "cut": "its answer ended half-way",
    "closed": "the connection ended without an answer",
    "protocol": "what came is no HTTP answer",
    "oversized": "its answer is too large",
    "pool_full": "too many calls wait for a connection to it",
    "overload": "more wait for it than it can answer in time",
    "worker_lost": "the process that ran it ended",
}
"""The transport's words, for clients; what it was exactly stands in the Call's record."""
PAUSE_MAX_MS = 7 * 86_400_000
"""Longer pauses are recorded as this."""


class Refusal(msgspec.Struct, frozen=True):
    """How the route goes on after a failed attempt."""

    error: RequestError
    """What the client gets where nothing else answers."""
    final: bool = False
    """Whether the call ends here."""
    retry: bool = True
    """Whether the same variant may be asked again."""
    pause_ms: int = -1
    """The pause the provider asked for; -1 where it named none."""


def refusal(step: VariantStep, head: UpstreamHead, said: ProviderError) -> Refusal:
    """Of a status other than 200."""
    status = head.status
    if step.trained is not None:
        # Its row will not do, also a second time; another variant may take the input.
        return Refusal(RequestError(status, said.message, code=said.code), retry=False)
    if status in FINAL_STATUSES and said.code != "context_length_exceeded":
        if status == 404:
            message = f"the provider knows no model `{step.target.upstream_name}`: {said.message}"
            return Refusal(_failed(502, message, "upstream_model_not_found"), final=True)
        error = RequestError(status, said.message, code=said.code or "invalid_value", param=said.param)
        return Refusal(error, final=True)
    if status in (401, 403):
        message = f"the provider refused the key of `{step.target.endpoint.name}`"
        return Refusal(_failed(502, message, "upstream_auth"), retry=False)
    pause_ms = retry_after_ms(head)
    if status == 429:
        message = f"the provider of `{step.name}` limits the rate: {said.message}"
        retry_after_s = max(1, -(-pause_ms // 1000)) if pause_ms >= 0 else None
        error = RequestError(
            429, message, code="rate_limit_exceeded", kind="rate_limit_error", retry_after_s=retry_after_s
        )
        return Refusal(error, pause_ms=pause_ms)
    message = f"the provider of `{step.name}` answered {status}: {said.message}"
    return Refusal(_failed(502, message, "upstream_error"), pause_ms=pause_ms)


def unanswered(step: VariantStep, failure: UpstreamFailure) -> Refusal:
    """Of an exchange that broke."""
    if failure.kind == "shutdown":
        return Refusal(_failed(503, "this gateway is shutting down", "shutting_down"), final=True)
    message = f"the provider of `{step.name}` did not answer: {FAILURES.get(failure.kind, failure.kind)}"
    timed_out = failure.kind in TIMEOUTS
    code = "upstream_timeout" if timed_out else "upstream_unreachable"
    # A certificate that is wrong stays wrong.
    return Refusal(_failed(504 if timed_out else 502, message, code), retry=failure.kind != "tls")


def denied(step: VariantStep, no: Denied) -> RequestError:
    """Of a provider that is not asked at present, because of its health."""
    return RequestError(
        503,
        f"the provider of `{step.name}` is not asked at present: {no.reason}",
        code="provider_unavailable",
        kind="server_error",
        retry_after_s=max(1, -(-no.retry_after_ms // 1000)),
    )


def deadline_exceeded(deadline_ms: int) -> RequestError:
    """Of a call whose time is over."""
    return _failed(504, f"no answer within the deadline of {deadline_ms} ms", "deadline_exceeded")


def health_outcome(verdict: str, status: int, failure: str) -> Outcome | None:
    """What an attempt says of its provider's health; None: nothing."""
    if verdict in ("accepted", "escalated"):
        return "ok"
    if failure in ("shutdown", "pool_full") or (verdict == "aborted" and not status):
        return None
    if verdict == "aborted":
        return "ok"
    if status in (429, 529):
        return "limited"
    if failure or status >= 500 or status in (0, 200, 408):
        return "failed"
    return "ours"


def unusable(step: VariantStep, why: str) -> RequestError:
    """Of an answer that is none."""
    return _failed(502, f"the answer of `{step.name}` cannot be used: {why}", "unusable_answer")


def not_accepted(workflow: str, why: str) -> RequestError:
    """Of an answer that failed its checks."""
    message = f"no variant of workflow `{workflow}` gave an acceptable answer: {why}"
    return _failed(502, message, "no_acceptable_answer")


def interrupted(why: str) -> RequestError:
    """Of a stream that broke."""
    return _failed(502, f"the provider's stream broke: {why}", "stream_interrupted")


def retry_after_ms(head: UpstreamHead) -> int:
    """The pause a provider asked for; -1 where it named none in seconds."""
    said, scale = head.headers.get(b"retry-after-ms"), 1
    if said is None:
        said, scale = head.headers.get(b"retry-after"), 1000
    try:
        pause = float(said) * scale if said is not None else -1.0
    except ValueError:
        return -1
    if math.isnan(pause) or pause < 0:
        return -1
    return int(min(pause, PAUSE_MAX_MS))


def provider_request_id(head: UpstreamHead) -> str:
    """What the provider calls this exchange."""
    found = head.headers.get(b"x-request-id") or head.headers.get(b"request-id")
    return found.decode("latin-1")[:100] if found else ""


def _failed(status: int, message: str, code: str) -> RequestError:
    return RequestError(status, message, code=code, kind="server_error")
