"""Decisions through the gateway: what answers say of them, what is recorded and shown, and what the metrics count."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import duckdb
import pytest

from drivetrain.embedded.asking import lake_for
from drivetrain.ledger.reader import LedgerReader
from drivetrain.project import load
from support import wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.upstream import Upstream, completion, http

pytestmark = pytest.mark.slow

CODE = """
import drivetrain as dt

WHO = {"owner": "team@acme.example", "team": "support", "use_case": "tests"}


class Claim(dt.Record):
    text: str
    amount: float


class Note(dt.Record):
    text: str


class Judged(dt.Record):
    label: str
    confidence: float | None = None


def decided(case):
    if case.input.text == "break":
        raise ValueError(case.input.text)
    if case.input.text.startswith("quote"):
        return dt.act("review", f"they said {case.input.text}", amount=case.input.amount)
    if case.input.amount < 50:
        return dt.act("refund", "small_amount", amount=case.input.amount)
    if case.input.text == "odd":
        return dt.act("review", "a\\r\\nx-injected: 1 \\u00fcn\\u00ef 100%")
    return "review"


def any_action(case):
    return dt.act(case.input.text)


judge = [dt.Rule("all", when=lambda claim: True, then=lambda claim: Judged(label="claim", confidence=0.75))]
refund = dt.Workflow(
    "refund", input=Claim, output=Judged, route=judge, **WHO,
    policy=dt.Policy("refunds", decide=decided, actions=("refund", "review", "nothing"),
                     otherwise=dt.Action("nothing", "policy_failed"), reads=("input.amount",)),
)
strict = dt.Workflow("strict", input=Claim, output=Judged, route=judge, **WHO,
                     policy=dt.Policy("strict", decide=decided, actions=("refund",)))
free = dt.Workflow("free", input=Claim, output=Judged, route=judge, **WHO,
                   policy=dt.Policy("free", decide=any_action))
explored = dt.Workflow("explored", input=Claim, output=Judged, route=judge, **WHO,
                       policy=dt.Policy("explored", decide=decided, explore=dt.Explore(0.5, ("refund", "review"))))
told = dt.Workflow("told", input=Note, output=Judged, **WHO, route=[
    dt.Rule("all", when=lambda note: True, then=lambda note: Judged(label=note.text))],
    policy=dt.Policy("told", decide=lambda case: dt.act("send", f"{len(case.answer.label)} letters")))
chatty = dt.Workflow("chatty", route=[dt.Variant("only", model="raw/m", max_output_tokens=64)], **WHO,
                     policy=dt.Policy("chatty", decide=lambda case: "send" if case.answer == "well" else "drop"))
plain = dt.Workflow("plain", input=Claim, output=Judged, route=judge, **WHO)
"""
CLAIM = {"text": "broken shoes", "amount": 12.5}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    with Upstream() as upstream:
        upstream.on("/raw", lambda _asked, to: to.send(http(completion("well"))))
        files = {
            "drivetrain.toml": settings(
                tables=provider("raw", f"{upstream.url}/raw") + model("raw/m") + workflow("assistant", "raw/m")
            ),
            "workflows/claims.py": CODE,
        }
        with served(files) as running:
            yield running
            assert running.alive
            assert not running.faults, "\n".join(running.faults)


def asked(gateway: Served, name: str, value: Any, *, path: str = "", user: str = "") -> wire.Answered:
    headers = f"x-drivetrain-user: {user}\r\n" if user else ""
    path = path or f"/v1/workflows/{name}"
    return wire.one(gateway.port, wire.request(json.dumps(value), path=path, headers=headers))


def inferred(gateway: Served, name: str, *claims: dict[str, Any], **more: Any) -> wire.Answered:
    """The claims as one batch."""
    inputs = [
        {"name": field, "shape": [len(claims)], "datatype": datatype, "data": [claim[field] for claim in claims]}
        for field, datatype in (("text", "BYTES"), ("amount", "FP64"))
    ]
    return asked(gateway, name, {"inputs": inputs, **more}, path=f"/v2/models/{name}/infer")


def commanded(gateway: Served, *arguments: str, code: int = 0) -> str:
    """What a command prints."""
    command = [sys.executable, "-c", "from drivetrain.cli.main import main; main()", *arguments]
    ended = subprocess.run(
        [*command, "--project", str(gateway.root)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code, ended.stderr
    return ended.stdout


def shown(gateway: Served, *arguments: str, code: int = 0) -> str:
    """What `drivetrain calls show` prints."""
    return commanded(gateway, "calls", "show", *arguments, code=code)


def counted(gateway: Served) -> dict[tuple[str, str, str], int]:
    """(workflow, policy, action) -> Decisions."""
    text = wire.one(gateway.port, wire.request(method="GET", path="/metrics")).body.decode()
    found = re.findall(
        r'^drivetrain_decisions_total\{workflow="(.*?)",policy="(.*?)",action="(.*?)"\} (\d+)$', text, re.MULTILINE
    )
    return {(flow, policy, action): int(number) for flow, policy, action, number in found}


def test_a_typed_answer_has_its_decision_and_the_call_records_it(gateway: Served) -> None:
    answer = asked(gateway, "refund", CLAIM)
    assert answer.json["output"] == {"label": "claim", "confidence": 0.75}
    decision = answer.json["decision"]
    version = decision.pop("version")
    assert re.fullmatch("[0-9a-f]{16}", version)
    assert decision == {
        "action": "refund",
        "reason": "small_amount",
        "values": {"amount": 12.5},
        "policy": "refunds",
        "explored": False,
        "propensity": 1.0,
    }
    assert answer.headers["x-drivetrain-action"] == "refund"
    assert answer.headers["x-drivetrain-reason"] == "small_amount"
    recorded = gateway.call(answer.json["call_id"]).decision
    assert recorded is not None
    assert (recorded.policy, recorded.version, recorded.action, recorded.reason) == (
        "refunds", version, "refund", "small_amount",
    )  # fmt: skip
    assert (recorded.confidence, recorded.propensity, recorded.failed) == (0.75, 1.0, "")


@pytest.mark.parametrize("stream", [False, True])
def test_a_judged_chat_answer_has_its_decision_in_headers(gateway: Served, stream: bool) -> None:
    body = {"model": "told", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
    answer = wire.one(gateway.port, wire.request(body))
    assert (answer.status, answer.headers["x-drivetrain-action"]) == (200, "send")
    assert answer.headers["x-drivetrain-reason"] == "5 letters"
    recorded = gateway.call(answer.headers["x-request-id"]).decision
    assert recorded is not None
    assert recorded.reason == "5 letters"
    # The body is OpenAI's, whatever was decided.
    assert b"decision" not in answer.body


def test_a_chat_workflow_decides_about_texts(gateway: Served) -> None:
    answer = asked(gateway, "chatty", {"text": "hello"})
    assert (answer.json["output"], answer.json["decision"]["action"]) == ("well", "send")


def test_a_workflow_without_a_policy_says_nothing_of_one(gateway: Served) -> None:
    answer = asked(gateway, "plain", CLAIM)
    assert "decision" not in answer.json
    assert not [name for name in answer.headers if name in ("x-drivetrain-action", "x-drivetrain-reason")]
    assert gateway.call(answer.json["call_id"]).decision is None
    about = wire.one(gateway.port, wire.request(method="GET", path="/v2/models/plain")).json
    assert [one["name"] for one in about["outputs"]] == ["label", "confidence"]


def test_a_reason_cannot_add_a_header(gateway: Served) -> None:
    answer = asked(gateway, "refund", {"text": "odd", "amount": 100})
    reason = answer.json["decision"]["reason"]
    assert "x-injected" not in answer.headers
    assert answer.headers["x-drivetrain-reason"].isascii()
    assert unquote(answer.headers["x-drivetrain-reason"]) == reason
    assert "100%" in reason


def test_a_policy_that_fails_takes_otherwise_or_fails_the_call(gateway: Served) -> None:
    answer = asked(gateway, "refund", {**CLAIM, "text": "break"})
    assert (answer.json["decision"]["action"], answer.json["decision"]["reason"]) == ("nothing", "policy_failed")
    recorded = gateway.call(answer.json["call_id"]).decision
    assert recorded is not None
    assert "ValueError" in recorded.failed
    failed = asked(gateway, "strict", {**CLAIM, "amount": 1000})
    assert failed.status == 500
    assert failed.error["code"] == "policy_failed"
    assert "x-drivetrain-action" not in failed.headers
    call = gateway.call(failed.headers["x-request-id"])
    assert (call.status, call.error, call.decision) == ("failed", "policy_failed", None)


def test_a_batch_has_actions_and_reasons_as_tensors(gateway: Served) -> None:
    about = wire.one(gateway.port, wire.request(method="GET", path="/v2/models/refund")).json
    assert [one["name"] for one in about["outputs"]] == ["label", "confidence", "decision.action", "decision.reason"]
    claims = [CLAIM, {**CLAIM, "amount": 51}, {**CLAIM, "amount": 49}]
    answer = inferred(gateway, "refund", *claims)
    found = {one["name"]: one["data"] for one in answer.json["outputs"]}
    assert found == {
        "label": ["claim"] * 3,
        "confidence": [0.75] * 3,
        "decision.action": ["refund", "review", "refund"],
        "decision.reason": ["small_amount", "", "small_amount"],
    }
    for call_id, action in zip(answer.json["parameters"]["call_ids"].split(","), found["decision.action"], strict=True):
        recorded = gateway.call(call_id).decision
        assert recorded is not None
        assert recorded.action == action
    only = inferred(gateway, "refund", CLAIM, outputs=[{"name": "decision.action"}])
    assert [one["name"] for one in only.json["outputs"]] == ["decision.action"]
    assert only.headers["x-drivetrain-action"] == "refund"
    failed = inferred(gateway, "strict", CLAIM, {**CLAIM, "amount": 1000})
    assert (failed.status, failed.json["error"][:7]) == (500, "row 1: ")


def test_an_explored_decision_says_so(gateway: Served) -> None:
    answers = [asked(gateway, "explored", CLAIM).json for _ in range(40)]
    explored = [one for one in answers if one["decision"]["explored"]]
    assert 0 < len(explored) < 40, "half of them are, by a coin that is fair"
    for one in answers:
        recorded = gateway.call(one["call_id"]).decision
        assert recorded is not None
        assert (recorded.explored, recorded.propensity) == (one["decision"]["explored"], one["decision"]["propensity"])
        assert recorded.chosen == "refund"
        assert recorded.propensity == (0.75 if recorded.action == "refund" else 0.25)
    said = shown(gateway, explored[0]["call_id"])
    assert "explored instead of refund" in said
    assert "propensity 0." in said


def test_a_shown_call_has_its_decision_and_what_it_was_made_from(gateway: Served) -> None:
    answer = asked(gateway, "refund", CLAIM).json
    said = shown(gateway, answer["call_id"], "--payload")
    assert "decision  refund because small_amount; policy refunds " + answer["decision"]["version"] in said
    shown_json = json.loads(shown(gateway, answer["call_id"], "--payload", "--json"))
    assert "sealed" not in shown_json["decision"]
    assert shown_json["decision"]["action"] == "refund"
    decided = shown_json["decided"]
    assert "12.5" in json.dumps(decided["inputs"])
    assert "broken shoes" not in json.dumps(decided), "the policy reads the amount alone"
    assert decided["values"] == {"amount": 12.5}


def test_decisions_are_rows_of_the_lake(gateway: Served) -> None:
    call_id = asked(gateway, "refund", CLAIM).json["call_id"]
    gateway.call(call_id)
    lake = lake_for(load(gateway.root))
    rows = lake.query(
        "select workflow, policy, action, reason, confidence from decisions where call_id = $id", {"id": call_id}
    )
    assert rows.rows == [("refund", "refunds", "refund", "small_amount", 0.75)]


def test_the_metrics_count_actions_and_stay_bounded(gateway: Served) -> None:
    before = counted(gateway)
    asked(gateway, "refund", CLAIM)
    asked(gateway, "refund", {**CLAIM, "amount": 1000})
    after = counted(gateway)
    for action in ("refund", "review"):
        key = ("refund", "refunds", action)
        assert after[key] == before.get(key, 0) + 1
    for number in range(78):
        assert asked(gateway, "free", {**CLAIM, "text": f"action {number}"}).status == 200
    for odd in ("two\nlines", "a\0b"):
        assert asked(gateway, "free", {**CLAIM, "text": odd}).status == 200
    own = {action: number for (name, _, action), number in counted(gateway).items() if name == "free"}
    assert sum(own.values()) == 80
    assert len(own) == 51
    assert own["other"] == 30


# A person's.


def test_what_a_forgotten_or_erased_persons_decisions_were_made_from_is_gone(gateway: Served) -> None:
    ids = {}
    for who in ("forgotten-1", "erased-2", "kept-3"):
        claim = {"text": f"quote of {who}", "amount": 71.25}
        ids[who] = asked(gateway, "refund", claim, user=who).json["call_id"]
        gateway.call(ids[who])
    assert json.loads(shown(gateway, ids["forgotten-1"], "--payload", "--json"))["decided"]["values"] == {
        "amount": 71.25
    }
    commanded(gateway, "forget", "forgotten-1")
    assert "not readable any more" in json.loads(shown(gateway, ids["forgotten-1"], "--payload", "--json"))["decided"]
    commanded(gateway, "lake", "roll")
    assert b"quote of erased-2" in stored(gateway)
    commanded(gateway, "erase", "--subject", "erased-2", "--yes")
    found = stored(gateway)
    assert b"erased-2" not in found
    assert b"quote of kept-3" in found
    shown(gateway, ids["erased-2"], "--payload", code=1)
    left = json.loads(shown(gateway, ids["erased-2"], "--json"))["decision"]
    assert (left["action"], left["reason"], left["confidence"]) == ("review", "erased", 0.75)
    kept = json.loads(shown(gateway, ids["kept-3"], "--payload", "--json"))
    assert (kept["decision"]["reason"], kept["decided"]["values"]) == ("they said quote of kept-3", {"amount": 71.25})


def stored(gateway: Served) -> bytes:
    """What the data folder holds: its bytes, the cells of its Parquet files, and the records of its segments."""
    found = repr(list(LedgerReader(gateway.data_folder).calls())).encode()
    for path in gateway.data_folder.rglob("*"):
        if path.is_file():
            found += path.read_bytes()
        if path.suffix == ".parquet":
            with duckdb.connect() as connection:
                for said in ("read_parquet", "parquet_metadata"):
                    rows = connection.execute(f"SELECT CAST(COLUMNS(*) AS VARCHAR) FROM {said}(?)", [str(path)])
                    found += "\0".join(cell or "" for row in rows.fetchall() for cell in row).encode()
    return found
