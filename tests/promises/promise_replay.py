"""A project with every kind of route and policy, and requests of every kind to it, for promises about replays."""

from __future__ import annotations

import contextlib
import random
from typing import Any

from promise_gateway import simulated

from support import wire
from support.projects import model, provider, settings, workflow

FAILURES = (
    "status:429", "status:500", "status:503", "status:529", "status:400", "status:404", "status:401", "cut",
    "cut_at_byte:0", "cut_at_byte:300", "stall_before_first_byte:0.4", "stall_mid_stream:0.6", "error_mid_stream",
    "malformed", "fenced", "trailing_comma", "truncated_json", "empty", "malformed_body", "oversized:50000",
    "bad_utf8", "negative_usage", "no_usage", "explicit_zero_usage", "overrun",
)  # fmt: skip
CODE = """
import drivetrain as dt

WHO = {"owner": "team@acme.example", "team": "support", "use_case": "tests"}


class Ticket(dt.Record):
    text: str


class Route(dt.Record):
    intent: str
    confidence: float | None = None


def polite(output, given):
    if "rude" in given.text:
        raise dt.Reject("not like this")
    if "fault" in given.text:
        raise ValueError("a fault of the project's")
    return len(output) > 2 or "too short"


triage = dt.Workflow(
    "triage", input=Ticket, output=Route, **WHO,
    route=[
        dt.Rule("empty", when=lambda ticket: not ticket.text.strip(), then=Route(intent="spam")),
        dt.Rule("shout", when=lambda ticket: ticket.text.isupper(), then=lambda ticket: Route(ticket.text.lower())),
        dt.Rule("broken", when=lambda ticket: "broken" in ticket.text and ticket.no_such_field, then=Route("x")),
        dt.Variant("small", model="sim/unsure", accept=dt.confidence(0.8), first_byte_timeout_ms=150),
        dt.Variant("large", model="sim/sure", accept=dt.confidence(0.4), first_byte_timeout_ms=150),
        dt.Variant("frontier", model="claude/sure", first_byte_timeout_ms=150),
    ],
)

judged = dt.Workflow(
    "judged", **WHO,
    route=[
        dt.Variant("small", model="sim/m", accept=polite, first_byte_timeout_ms=150, timeout_ms=500),
        dt.Variant("other", model="claude/c", first_byte_timeout_ms=150, timeout_ms=500),
    ],
)

def settle(case):
    if "fault" in str(case.input):
        raise ValueError("a fault of the policy's")
    return dt.act("pay", "sure", words=len(str(case.answer))) if (case.confidence or 0) > 0.9 else "ask"


decided = dt.Workflow(
    "decided", input=Ticket, output=Route, **WHO,
    route=[
        dt.Rule("empty", when=lambda ticket: not ticket.text.strip(), then=Route(intent="spam", confidence=1.0)),
        dt.Variant("small", model="sim/unsure", accept=dt.confidence(0.6), first_byte_timeout_ms=150),
        dt.Variant("frontier", model="claude/sure", first_byte_timeout_ms=150),
    ],
    policy=dt.Policy(
        "settle", decide=settle, actions=("pay", "ask", "wait"), otherwise=dt.Action("wait", "policy_failed"),
        explore=dt.Explore(0.4, ("pay", "wait")),
    ),
)

frugal = dt.Workflow(
    "frugal", **WHO, budget=dt.Budget(usd_per_call="0.002"),
    route=[dt.Variant("only", model="sim/m", max_output_tokens=500, first_byte_timeout_ms=150)],
)
"""
TEXTS = (
    "What is the weather like?", "", "SHOUT", "a broken rule", "größer als 🙂", "rude", "fault", "x" * 400, "y" * 3_000,
)  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]


def project(url: str, *, retention: str = "full", code: str = CODE) -> dict[str, str]:
    limits = "first_byte_timeout_ms = 150, timeout_ms = 500"
    tables = (
        provider("sim", f"{url}/v1")
        + provider("claude", url, dialect="anthropic")
        + "".join(model(f"sim/{name}") for name in ("m", "n", "unsure", "sure"))
        + "".join(model(f"claude/{name}") for name in ("c", "sure"))
        + workflow("help", f'{{ name = "only", model = "sim/m", {limits} }}')
        + workflow(
            "two",
            f'{{ name = "first", model = "sim/m", {limits} }}',
            f'{{ name = "second", model = "sim/n", {limits} }}',
        )
        + workflow("claude", f'{{ name = "only", model = "claude/c", {limits} }}')
    )
    return {
        "drivetrain.toml": settings(
            gateway='direct_models = ["sim/m", "claude/c"]\n', ledger=f'retention = "{retention}"\n', tables=tables
        ),
        "workflows/code.py": code,
    }


def models() -> dict[str, Any]:
    """The simulated models that the project's routes name."""
    said = {"first_token_ms": 2, "latency_ms": {"median": 8, "p99": 60}, "output_tokens": {"min": 1, "max": 30}}
    unsure = {"kind": "labels", "labels": ["a", "b"], "confidence": True, "answer_field": "intent", "accuracy": 0.5}
    return {
        "m": simulated(**said),
        "n": simulated(**said, cached_input_share=0.5, reasoning_tokens=5),
        "c": simulated(**said, dialect="anthropic"),
        "unsure": simulated(quality=unsure),
        "sure": simulated(quality=unsure, dialect="both"),
    }


def call_somehow(port: int, dice: random.Random, number: int, *, failing: float = 0.65, leaving: float = 0.2) -> None:
    """failing, leaving: share of requests whose provider misbehaves, and whose client leaves."""
    text = f"{dice.choice(TEXTS)}"
    if dice.random() < failing:
        scope = dice.choice(("", "", " times=1", " times=2", " model=m", " model=c", " model=unsure", " model=sure"))
        text += f" [[simulate failure={dice.choice(FAILURES)}{scope}]] {number}"
    name = dice.choice(
        ("help", "two", "claude", "judged", "triage", "triage", "decided", "frugal", "sim/m", "claude/c")
    )
    if name in ("triage", "decided") and dice.random() < 0.5:
        path = f"/v1/workflows/{name}"
        body: dict[str, Any] = {"text": text}
    elif name in ("help", "judged") and dice.random() < 0.3:
        path, body = f"/v1/workflows/{name}", {"text": text}
    else:
        path, body = "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": text}]}
        if dice.random() < 0.5:
            body["stream"] = True
            if dice.random() < 0.5:
                body["stream_options"] = {"include_usage": dice.random() < 0.7}
        if name not in ("triage", "decided") and dice.random() < 0.2:
            body["tools"] = TOOLS
        if dice.random() < 0.2:
            body["max_tokens"] = dice.choice((1, 7, 5_000))
        if name not in ("triage", "decided") and dice.random() < 0.1:
            body["temperature"] = 0.5
    with wire.connect(port) as connection:
        connection.sendall(wire.request(body, path=path))
        if dice.random() < leaving:  # leaves, at any moment
            connection.settimeout(dice.choice((0.001, 0.02, 0.05, 0.2)))
            with contextlib.suppress(TimeoutError):
                connection.recv(dice.choice((1, 400, 4_000)))
            return
        assert wire.hear(connection).answers, f"no answer to {body}"
