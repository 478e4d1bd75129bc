"""One small project that is right, as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

SETTINGS = """\
[project]
name = "shop"

[providers.openai]
dialect = "openai"
base_url = "https://api.openai.com/v1"
key = "env:OPENAI_API_KEY"
"""

TRIAGE = """\
import drivetrain as dt


class Ticket(dt.Record):
    text: str


class Route(dt.Record):
    intent: str


triage = dt.Workflow(
    "triage", input=Ticket, output=Route,
    owner="support@acme.example", team="support", use_case="ticket-routing",
    route=[
        dt.Rule("empty", when=lambda t: not t.text.strip(), then=Route(intent="spam")),
        dt.Variant("small", model="openai/gpt-5-mini-2025-08-07", prompt="triage.j2", max_output_tokens=64),
    ],
)
"""

SMALL = {
    "drivetrain.toml": SETTINGS,
    "workflows/triage.py": TRIAGE,
    "workflows/triage.j2": "Which queue? {{ text }}\n",
}

Make = Callable[[Mapping[str, str]], Path]
