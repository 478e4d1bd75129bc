"""What a bank's customer wants: rules first, then a trained model, an efficient model, a frontier model."""

import re
from collections.abc import Callable

import drivetrain as dt


class Message(dt.Record, frozen=True):
    text: str
    id: str = ""


class Intent(dt.Record, frozen=True):
    intent: str
    confidence: float | None = None


def says(pattern: str) -> Callable[[Message], bool]:
    """Whether a message's text contains `pattern`."""
    search = re.compile(pattern, re.IGNORECASE).search
    return lambda message: search(message.text) is not None


# Cost nothing. Each was right on at least 96 of 100 training texts of BANKING77 that it matches.
rules = [
    dt.Rule("wallet", when=says(r"apple ?pay|google ?pay|apple watch"), then=Intent(intent="apple_pay_or_google_pay")),
    dt.Rule("passcode", when=says(r"passcode"), then=Intent(intent="passcode_forgotten")),
    dt.Rule("closing", when=says(r"(delete|close|terminate).*account"), then=Intent(intent="terminate_account")),
]

# By itself it answers whatever it is asked; as `sure` an unsure answer escalates to the next variant of a route.
efficient = dt.Variant(
    "efficient",
    model="sim/gpt-5-mini-2025-08-07",
    system="intent_system.j2",
    prompt="intent.j2",
    max_output_tokens=256,
)
sure = dt.Variant(
    "efficient",
    model="sim/gpt-5-mini-2025-08-07",
    system="intent_system.j2",
    prompt="intent.j2",
    accept=dt.confidence(0.8),
    max_output_tokens=256,
)
frontier = dt.Variant(
    "frontier",
    model="sim-anthropic/claude-opus-4-5-20251101",
    system="intent_system.j2",
    prompt="intent.j2",
    max_output_tokens=64,
)

intent = dt.Workflow(
    "intent",
    input=Message,
    output=Intent,
    owner="web-chat@bank.example",
    team="web-chat",
    use_case="message-routing",
    outcome_key="id",
    route=[
        *rules,
        # The trained model comes here.
        sure,
        frontier,
    ],
    budget=dt.Budget(usd_per_call="0.05", usd_per_month=500),
)

# What the route is compared with: the same messages to the route without the trained model, and each to one model.
intent_untrained = dt.Workflow(
    "intent-untrained",
    input=Message,
    output=Intent,
    owner="evaluation@bank.example",
    team="evaluation",
    use_case="baseline",
    outcome_key="id",
    route=[*rules, sure, frontier],
)
intent_frontier = dt.Workflow(
    "intent-frontier",
    input=Message,
    output=Intent,
    owner="evaluation@bank.example",
    team="evaluation",
    use_case="baseline",
    outcome_key="id",
    route=[frontier],
)
intent_efficient = dt.Workflow(
    "intent-efficient",
    input=Message,
    output=Intent,
    owner="evaluation@bank.example",
    team="evaluation",
    use_case="baseline",
    outcome_key="id",
    route=[efficient],
)

# For whoever tries things out, on a small budget: `[limits.trial-month]` in drivetrain.toml.
intent_trial = dt.Workflow(
    "intent-trial",
    input=Message,
    output=Intent,
    owner="evaluation@bank.example",
    team="trial",
    use_case="trial",
    route=[frontier],
)
