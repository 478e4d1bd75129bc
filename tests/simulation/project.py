"""The simulated project: two Snapshots of one folder, so that a reload changes routes, prices and checks under way."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import msgspec

from drivetrain.execution.plan import Plans, VariantStep, compile_plans
from drivetrain.project.load import load

SETTINGS = """\
[project]
name = "simulated"

[providers.up]
dialect = "openai"
base_url = "http://127.0.0.1:9/v1"

[providers.other]
dialect = "anthropic"
base_url = "http://127.0.0.1:9"

[models."up/small"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[models."up/large"]
usd_per_million_input = "10"
usd_per_million_output = "20"

[models."up/box"]
usd_per_hour = "3.60"
parallel = 2

[models."other/claude"]
usd_per_million_input = "3"
usd_per_million_output = "15"

[ledger]
retention = "full"
"""
EDITED = (('usd_per_million_output = "2"', 'usd_per_million_output = "4"'), ('"3.60"', '"7.20"'))
CODE = """\
import drivetrain as dt

WHO = {"owner": "team@acme.example", "team": "support", "use_case": "tests"}
TIMES = {"first_byte_timeout_ms": 150, "timeout_ms": 600}


class Ticket(dt.Record):
    text: str


class Route(dt.Record):
    intent: str
    confidence: float | None = None


def judged(output):
    return "reject" not in output or "not like this"


def small(name="small", **more):
    return dt.Variant(name, model="up/small", **{"max_output_tokens": 40, **TIMES, **more})


def large(name="large", **more):
    return dt.Variant(name, model="up/large", **{"max_output_tokens": 40, **TIMES, **more})


def claude(name="claude", **more):
    return dt.Variant(name, model="other/claude", **{"max_output_tokens": 40, **TIMES, **more})


def box(name="box", **more):
    return dt.Variant(name, model="up/box", **{"max_output_tokens": 40, **TIMES, **more})


plain = dt.Workflow("plain", **WHO, route=[large("only") if SECOND else small("only")])
fallback = dt.Workflow("fallback", **WHO, route=[large(), small(), claude()])
stubborn = dt.Workflow("stubborn", **WHO, route=[small(), large()], attempts_max=5)
alone = dt.Workflow("alone", **WHO, route=[claude(max_output_tokens=5)], attempts_max=4)
machine = dt.Workflow("machine", **WHO, route=[box(), small(max_output_tokens=8)])
triage = dt.Workflow(
    "triage", **WHO, input=Ticket, output=Route,
    route=[
        dt.Rule("shout", when=lambda ticket: ticket.text.isupper(), then=Route("shout")),
        small(accept=dt.confidence(0.8)),
        large(accept=dt.confidence(0.4)),
        claude(),
    ],
)
checked = dt.Workflow("checked", **WHO, route=[small(accept=judged), claude()])
audited = dt.Workflow("audited", **WHO, durability="audit", route=[small(), claude()])
private = dt.Workflow("private", **WHO, retention="none", route=[small()])
hurried = dt.Workflow("hurried", **WHO, deadline_ms=120, route=[small(), large()], attempts_max=4)
once = dt.Workflow("once", **WHO, cache=dt.Cache(ttl_s=2), route=[small(), claude()])
ladder = dt.Workflow(
    "ladder", **WHO, cache=dt.Cache(ttl_s=1, when="always"), priority="low", route=[large()],
    degrade=[dt.Stale(max_age_s=3600), dt.Static("Please come back later.")],
)
urgent = dt.Workflow(
    "urgent", **WHO, priority="high", cache=dt.Cache(ttl_s=1), deadline_ms=300, route=[small(), claude()],
    degrade=[dt.Static("Please come back later.")],
)
"""
Rates = dict[str, tuple[int, int]]
RATES: tuple[Rates, Rates] = (
    {"up/small": (1_000, 2_000), "up/large": (10_000, 20_000), "other/claude": (3_000, 15_000)},
    {"up/small": (1_000, 4_000), "up/large": (10_000, 20_000), "other/claude": (3_000, 15_000)},
)
"""nano-USD per token of input and output, as the two Snapshots declare them: the simulator's own arithmetic."""


class Edition(msgspec.Struct, frozen=True):
    """One Snapshot, ready to be served."""

    plans: Plans
    models: frozenset[str]
    rates: Rates


@functools.cache
def editions() -> tuple[Edition, Edition]:
    """Before and after the edit; read once per process."""
    edited = SETTINGS
    for before, after in EDITED:
        assert before in edited
        edited = edited.replace(before, after)
    return _edition(SETTINGS, False), _edition(edited, True)


def _edition(settings: str, second: bool) -> Edition:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "workflows").mkdir()
        (root / "drivetrain.toml").write_text(settings)
        (root / "workflows" / "simulated.py").write_text(CODE.replace("SECOND", str(second)))
        plans = compile_plans(load(root), lambda _reference: "no-secret")
    steps = [step for plan in plans.workflows.values() for step in plan.steps if isinstance(step, VariantStep)]
    models = frozenset(step.target.reference for step in steps)
    return Edition(plans, models, RATES[second])
