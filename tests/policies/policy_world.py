"""What the tests of policies share: tables as files, a workflow that decides refunds, and projects on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import drivetrain as dt
from drivetrain.core.policies import Case, Policy
from drivetrain.policies import CompiledPolicy, compile_policy

FIELDS = ("input.amount", "answer.intent")
RESULTS = ("action", "reason")
RULES = (
    ("small", "< 50", "'refund'", "'refund'", "'small_amount'"),
    ("middle", "[50..100]", "'refund', 'return'", "'review'", "'middle_amount'"),
    ("rest", "", "", "'deny'", "'other'"),
)


class Order(dt.Record):
    amount: float
    text: str = ""


class Said(dt.Record):
    intent: str
    confidence: float | None = None


def node(id: str, kind: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """A node whose name is its id."""
    return {"id": id, "type": kind, "name": id} | ({"content": content} if content is not None else {})


def table_node(
    rules: Sequence[Sequence[str]] = RULES,
    fields: Sequence[str] = FIELDS,
    results: Sequence[str] = RESULTS,
    *,
    id: str = "table",
    hit: str = "first",
    **more: Any,
) -> dict[str, Any]:
    """A decision table. rules: id, then a cell per field and per result."""
    columns = [f"c{place}" for place in range(len(fields) + len(results))]
    inputs = [{"id": c, "name": f, "field": f} for c, f in zip(columns, fields, strict=False)]
    outputs = [{"id": c, "name": f, "field": f} for c, f in zip(columns[len(fields) :], results, strict=True)]
    rows = [{"_id": rule[0], **dict(zip(columns, rule[1:], strict=True))} for rule in rules]
    content = {"hitPolicy": hit, "inputs": inputs, "outputs": outputs, "rules": rows, **more}
    return node(id, "decisionTableNode", content)


def expression_node(pairs: Sequence[tuple[str, str]], *, id: str = "made", **more: Any) -> dict[str, Any]:
    rows = [{"id": f"{id}{place}", "key": key, "value": value} for place, (key, value) in enumerate(pairs)]
    return node(id, "expressionNode", {"expressions": rows, **more})


def chain(*nodes: dict[str, Any]) -> dict[str, Any]:
    """A graph in which each node follows the one before it."""
    every = [node("in", "inputNode"), *nodes, node("out", "outputNode")]
    edges = [
        {"id": f"e{place}", "sourceId": one["id"], "targetId": other["id"]}
        for place, (one, other) in enumerate(pairwise(every))
    ]
    return {"nodes": every, "edges": edges}


def files(*nodes: dict[str, Any], **others: dict[str, Any]) -> dict[str, bytes]:
    """`policies/refund.json` of these nodes, and other tables by name."""
    named = {"refund": chain(*(nodes or (table_node(),))), **others}
    return {f"policies/{name}.json": json.dumps(graph, indent=1).encode() for name, graph in named.items()}


def compiled(*nodes: dict[str, Any], **terms: Any) -> CompiledPolicy:
    """The policy `refund` with a table of these nodes."""
    return compile_policy(Policy("refund", table="refund.json", **terms), files(*nodes))


def case(amount: float = 10, intent: str = "refund", **facts: Any) -> Case:
    return Case(input=Order(amount=amount), answer=Said(intent=intent), **facts)


WORKFLOWS = """
import drivetrain as dt


class Order(dt.Record):
    amount: float
    text: str = ""


class Said(dt.Record):
    intent: str
    confidence: float | None = None


refunds = dt.Workflow(
    "refunds", input=Order, output=Said, owner="team@acme.example", team="support", use_case="refunds",
    route=[dt.Rule("all", when=lambda order: True, then=Said(intent="refund", confidence=0.9))],
    policy=POLICY,
)
"""


def project(root: Path, policy: str, tables: dict[str, bytes]) -> Path:
    """A project whose workflow `refunds` has this policy, written as Python."""
    (root / "drivetrain.toml").write_text('[project]\nname = "tests"\n')
    for folder in ("workflows", "policies"):
        (root / folder).mkdir(exist_ok=True)
    (root / "workflows" / "refunds.py").write_text(WORKFLOWS.replace("POLICY", policy))
    for path, content in tables.items():
        (root / path).write_bytes(content)
    return root
