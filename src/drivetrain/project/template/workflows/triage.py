"""Which queue a support ticket belongs to: rules first, then a small model, then a frontier model."""

from typing import Literal

import drivetrain as dt


class Ticket(dt.Record, frozen=True):
    text: str


class Route(dt.Record, frozen=True):
    intent: Literal["billing", "technical", "cancellation", "spam"]
    confidence: float | None = None


triage = dt.Workflow(
    "triage",
    input=Ticket,
    output=Route,
    owner="support@acme.example",
    team="support",
    use_case="ticket-routing",
    route=[
        # Costs nothing: no model is asked about an empty ticket.
        dt.Rule("empty", when=lambda ticket: not ticket.text.strip(), then=Route(intent="spam")),
        # Answers most tickets. An unsure answer escalates to the next variant.
        dt.Variant(
            "efficient",
            model="sim/gpt-5-mini-2025-08-07",
            prompt="triage.j2",
            accept=dt.confidence(0.7),
            max_output_tokens=64,
        ),
        dt.Variant(
            "frontier",
            model="sim-anthropic/claude-opus-4-5-20251101",
            prompt="triage.j2",
            max_output_tokens=64,
        ),
    ],
    budget=dt.Budget(usd_per_call="0.02", usd_per_month=500),
    slo=dt.SLO(p99_ms=3000, availability=0.999),
)
