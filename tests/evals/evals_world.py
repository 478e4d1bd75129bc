"""Projects whose models, policy and traffic are planted, and Calls through them without sockets, clock or ledger."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.calls import Attribution, Call, ClosedV1, OpenedV1, Outcome
from drivetrain.core.ids import call_ids
from drivetrain.core.models import Pinned
from drivetrain.execution.call import CallResult, Execution
from drivetrain.execution.environment import Environment
from drivetrain.execution.plan import WorkflowPlan, compile_plans
from drivetrain.inference.local import LocalModels
from drivetrain.ports.inference import Scorer
from drivetrain.ports.transport import Attempt, UpstreamHead, UpstreamRequest, UpstreamSink
from drivetrain.project.load import load
from drivetrain.project.snapshot import Snapshot

OPENED_NS = 1_780_000_000_000_000_000
DAY = "2026-05-28"

SETTINGS = """\
[project]
name = "evals"

[providers.up]
dialect = "openai"
base_url = "http://127.0.0.1:9/v1"

[models."up/small"]
usd_per_million_input = "1"
usd_per_million_output = "2"

[models."up/large"]
usd_per_million_input = "10"
usd_per_million_output = "20"

[ledger]
retention = "{retention}"
"""

CODE = """\
import drivetrain as dt


class Claim(dt.Record):
    amount: float
    country: str = "DE"
    note: str = ""


class Risk(dt.Record):
    risk: float
    confidence: float | None = None


def always(claim):
    return True


def score(claim):
    return Risk(risk={score})


claims = dt.Workflow(
    "claims", owner="team@acme.example", team="support", use_case="tests", input=Claim, output=Risk,
    route=[{route}],
    policy=dt.Policy(
        "refund", {policy},
        actions=("refund", "review", "deny"),
        limit_ms=1000,  # a machine that stalls must not decide otherwise
        metrics={{"refund_rate": "refund", "paid": lambda action, case: case.input.amount}},
        gains=dt.Gains(metric="fraud", usd={{
            "refund": {{"true": -100.0, "false": 10.0}},
            "review": {{"*": -5.0}},
            "deny": {{"true": 0.0, "false": -20.0}},
        }}),
    ),
)
"""
RULE = 'dt.Rule("score", when=always, then=score)'


def table(*rows: tuple[str, str, str]) -> str:
    """A decision table: (condition on the risk, condition on the amount, action), first match decides; JDM."""
    rules = [
        {"_id": f"row{number}", "risk": risk, "amount": amount, "action": json.dumps(action), "reason": '"by table"'}
        for number, (risk, amount, action) in enumerate(rows)
    ]
    content = {
        "hitPolicy": "first",
        "inputs": [
            {"id": "risk", "name": "Risk", "field": "answer.risk"},
            {"id": "amount", "name": "Amount", "field": "input.amount"},
        ],
        "outputs": [
            {"id": "action", "name": "Action", "field": "action"},
            {"id": "reason", "name": "Reason", "field": "reason"},
        ],
        "rules": rules,
    }
    nodes = [
        {"id": "in", "type": "inputNode", "name": "in", "position": {"x": 0, "y": 0}},
        {"id": "table", "type": "decisionTableNode", "name": "table", "position": {"x": 1, "y": 0}, "content": content},
        {"id": "out", "type": "outputNode", "name": "out", "position": {"x": 2, "y": 0}},
    ]
    edges = [
        {"id": "a", "sourceId": "in", "targetId": "table", "type": "edge"},
        {"id": "b", "sourceId": "table", "targetId": "out", "type": "edge"},
    ]
    return json.dumps({"contentType": "application/vnd.gorules.decision", "nodes": nodes, "edges": edges})


def write_project(
    folder: Path,
    *,
    score: str = "claim.amount / 100",
    route: str = RULE,
    policy: str = 'table="refund.json"',
    tables: dict[str, str] | None = None,
    retention: str = "full",
) -> Snapshot:
    """A project with these parts, loaded from a folder of its own."""
    (folder / "workflows").mkdir(parents=True, exist_ok=True)
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "drivetrain.toml").write_text(SETTINGS.format(retention=retention))
    (folder / "workflows" / "claims.py").write_text(CODE.format(score=score, route=route, policy=policy))
    for name, content in (tables or {}).items():
        (folder / "policies" / name).write_text(content)
    return load(folder)


class Vault:
    """Payloads as they are, behind a mark; what belongs to a forgotten subject is gone."""

    def __init__(self) -> None:
        self.forgotten: set[str] = set()

    def seal(self, subject: str, call_id: str, kind: str, payload: bytes) -> bytes:
        return f"{subject}|{call_id}|{kind}|".encode() + payload

    def digest(self, payload: bytes) -> bytes:
        return payload[:32]

    def open(self, call_id: str, kind: str, sealed: bytes) -> bytes | None:
        subject, whose, what, payload = sealed.split(b"|", 3)
        if (whose.decode(), what.decode()) != (call_id, kind):
            raise ValueError("altered")
        return None if subject.decode() in self.forgotten else payload


class Desk:
    """Answers Calls of one Snapshot: rules and trained models for themselves, providers by a function of the body."""

    def __init__(
        self,
        snapshot: Snapshot,
        vault: Vault,
        *,
        provider: Callable[[dict[str, Any]], str] | None = None,
        scorers: Callable[[Pinned], Scorer] | None = None,
    ) -> None:
        self.snapshot = snapshot
        self._plan: WorkflowPlan = compile_plans(snapshot, lambda _reference: "no-secret").workflows["claims"]
        self._vault = vault
        self._provider = provider
        self._steps: deque[Callable[[], object]] = deque()
        self._written: list[Any] = []
        self._result: CallResult | None = None
        self._scorers = scorers or (lambda _pinned: (_ for _ in ()).throw(AssertionError("no model is asked")))
        self._ids = call_ids(lambda: OPENED_NS)
        self.failed = ""

    def call(self, claim: dict[str, Any], *, user: str = "", fraud: bool | None = None) -> Call:
        """One Call, to its end, as the ledger would know it."""
        raw = json.dumps(claim).encode()
        self._written.clear()
        environment = Environment(
            transport=self, journal=self, vault=self._vault, now_ns=lambda: OPENED_NS, monotonic_ns=lambda: 0,
            call_later=lambda _delay_s, callback: self._steps.append(callback), random=lambda: 0.5,
            models=LocalModels(self._scorers, self._steps.append, lambda: 0),
        )  # fmt: skip
        Execution(
            self._plan, self._plan.admit("workflow", raw), Attribution(team="support", user=user),
            call_id=self._ids(), opened_ns=OPENED_NS, day=DAY, door="workflow", env=environment, client=self,
        ).start()  # fmt: skip
        while self._steps:
            self._steps.popleft()()
        opened, closed = self._written
        assert isinstance(opened, OpenedV1)
        assert isinstance(closed, ClosedV1)
        truths = () if fraud is None else (
            Outcome(metric="fraud", source="desk", value=fraud, event_ns=OPENED_NS, arrived_ns=OPENED_NS),
        )  # fmt: skip
        return Call(
            call_id=opened.call_id, opened_ns=opened.opened_ns, closed_ns=closed.closed_ns, snapshot=opened.snapshot,
            workflow=opened.workflow, door=opened.door, stream=opened.stream, attribution=opened.attribution,
            prices_date=opened.prices_date, status=closed.status, http_status=closed.http_status,
            variant=closed.variant, cost_nano_usd=closed.cost_nano_usd, attempts=closed.attempts,
            retained=closed.retained, request=opened.payload, answers=closed.payload, outcomes=truths,
            decision=closed.decision,
        )  # fmt: skip

    def calls(self, claims: Sequence[dict[str, Any]]) -> list[Call]:
        return [self.call(claim) for claim in claims]

    # transport, journal and client

    def send(self, request: UpstreamRequest, sink: UpstreamSink) -> Attempt:
        assert self._provider is not None, "no provider is asked"
        text = self._provider(json.loads(request.body))
        body = {
            "id": "x", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000},
        }  # fmt: skip

        def answer() -> None:
            sink.on_head(UpstreamHead(200, {b"content-type": b"application/json"}))
            sink.on_chunk(json.dumps(body).encode())
            sink.on_end()

        self._steps.append(answer)
        return _Exchange()

    def append(self, record: Any, then: Callable[[bool], None] | None = None, *, sync: bool = False) -> None:
        if not isinstance(record, OpenedV1 | ClosedV1):
            raise AssertionError(record)
        self._written.append(record)
        if then is not None:
            self._steps.append(lambda: then(True))

    def append_late(self, record: Any, then: Callable[[], None]) -> None:
        raise AssertionError(record)

    def on_stream(self, data: bytes) -> None:
        raise AssertionError(data)

    def on_finished(self, result: CallResult) -> None:
        assert result.status in ("answered", "failed"), result


class _Exchange:
    sent = True

    def answering(self) -> None: ...

    def cancel(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


def without_payloads(call: Call) -> Call:
    """As a Call stands in a ledger that keeps no payloads."""
    return msgspec.structs.replace(call, retained=0, request=b"", answers=b"")
