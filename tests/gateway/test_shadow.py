"""A rollout's shadow, through the gateway: what it answers, what is recorded and counted, and what it may spend."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from drivetrain.adapters.files import FileVault
from drivetrain.core.calls import Call
from drivetrain.core.money import NANO_PER_USD
from drivetrain.embedded.runtime import compiled
from drivetrain.execution.replay import open_payloads, replay
from drivetrain.gateway.copies import FLUSH_S
from drivetrain.project.snapshot import Snapshot
from drivetrain.project.stored import load_stored
from promises.promise_gateway import gone
from support import shadows, wire
from support.projects import model, provider, settings
from support.served import Served, served
from support.tries import eventually
from support.upstream import Asked, Upstream, Wire, completion, http

CODE = """
import drivetrain as dt

WHO = {{"owner": "team@acme.example", "team": "support", "use_case": "tests"}}


class Claim(dt.Record):
    number: str
    text: str = ""


class Judged(dt.Record):
    label: str


def decided(case):
    return dt.act("refund" if case.answer.label == "good" else "review")


help = dt.Workflow("help", route=[dt.Variant("only", model="raw/{model}", max_output_tokens=64)],
                   parameters=dt.Parameters({refuse}), **WHO)
judge = dt.Workflow(
    "judge", input=Claim, output=Judged, chat_input="json", outcome_key="number", cache=dt.Cache(ttl_s=600),
    route=[dt.Variant("only", model="raw/{model}", max_output_tokens=64, system="judge.md")],
    policy=dt.Policy("judging", decide=decided, actions=("refund", "review")), **WHO,
)
other = dt.Workflow("other", route=[dt.Variant("only", model="raw/live", max_output_tokens=64)], **WHO)
"""
CALLERS = '[keys.app]\nsecret = "env:SHADOW_KEY"\nmay_override = ["user", "tags"]\n'
SECRET = "sk-shadow-0123456789"
CHANGED = ("help", "judge")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """`live` says good; `candidate` says bad to those who ask for it, good to others."""

    def answer(asked: Asked, wire: Wire) -> None:
        bad = asked.json["model"] == "candidate" and "differ" in json.dumps(asked.json["messages"])
        text = json.dumps({"label": "bad" if bad else "good"})
        if asked.json.get("stream"):
            wire.send(http(stream(text), content_type="text/event-stream"))
        else:
            wire.send(http(completion(text)))

    with Upstream() as running:
        running.on("/v1", answer)
        yield running


def stream(text: str) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "live"}
    events = [
        {**chunk, "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]},
        {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in events) + b"data: [DONE]\n\n"


class Shadowed:
    """A gateway that serves Release 1 and shadows Release 2."""

    def __init__(self, gateway: Served, live: Snapshot, candidate: Snapshot) -> None:
        self.gateway, self.live, self.candidate = gateway, live, candidate

    def ask(self, body: dict[str, Any], path: str = "/v1/chat/completions", headers: str = "") -> wire.Answered:
        return wire.one(self.gateway.port, wire.request(body, path=path, key=SECRET, headers=headers))

    def calls(self, *, shadow: bool) -> list[Call]:
        return [one for one in self.gateway.calls() if one.closed_ns and (one.door == "shadow") == shadow]

    def shadow_pid(self) -> int:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes()
            except OSError:
                continue
            if b"drivetrain.embedded.shadowing" in line and str(self.gateway.root).encode() in line:
                return int(path.parent.name)
        return 0

    def counted(self, name: str) -> dict[str, int]:
        text = wire.one(self.gateway.port, wire.request(method="GET", path="/metrics")).body.decode()
        found = re.findall(rf'^drivetrain_shadow_{name}{{workflow="(\w+)"(?:,\w+="(\w+)")?}} (\d+)$', text, re.M)
        return {f"{workflow} {what}".strip(): int(number) for workflow, what, number in found}

    def roll(self, number: int = 2, **given: Any) -> None:
        """Begin the rollout, and wait until its shadow runs."""
        shadows.release(self.gateway.root, self.candidate, *CHANGED, number=number, rolled=shadows.rollout(**given))
        assert eventually(self.shadow_pid), self.gateway.stderr

    def await_shadow(self) -> None:
        """Until the shadow answers copies, and has answered all that it was sent."""

        def taken() -> bool:
            self.ask({"model": "help", "messages": [{"role": "user", "content": "anybody there?"}]})
            time.sleep(0.1)
            return bool(self.calls(shadow=True))

        assert eventually(taken), self.gateway.stderr

        def settled() -> bool:
            time.sleep(5 * FLUSH_S)  # the last copy has left, or was dropped
            copies, answered = self.counted("copies_total"), len(self.calls(shadow=True))
            return copies.get("help sent") == copies.get("help answered") == answered

        assert eventually(settled), self.counted("copies_total")


@pytest.fixture
def rolled(upstream: Upstream) -> Iterator[Shadowed]:
    """Release 1 is live; Release 2 is stored and not yet rolled out."""
    tables = provider("raw", f"{upstream.url}/v1") + model("raw/live") + model("raw/candidate") + CALLERS
    toml = settings(ledger='retention = "full"\n', tables=tables)
    files = {
        "drivetrain.toml": toml,
        "workflows/all.py": CODE.format(model="live", refuse=""),
        "workflows/judge.md": "Judge.",
    }
    with served(files, {"SHADOW_KEY": SECRET}) as gateway:
        live = shadows.stored(gateway.root)
        code = CODE.format(model="candidate", refuse='refuse=("seed",)')
        (gateway.root / "workflows" / "all.py").write_text(code)
        candidate = shadows.stored(gateway.root)
        shadows.release(gateway.root, live, number=1)
        yield Shadowed(gateway, live, candidate)
        assert not gateway.faults, gateway.stderr


@pytest.mark.slow
def test_each_copied_call_is_answered_once_by_the_candidate_for_nobody(rolled: Shadowed, upstream: Upstream) -> None:
    rolled.roll()
    rolled.await_shadow()
    before = len(rolled.calls(shadow=True))
    chat = {"model": "help", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.3}
    who = "x-drivetrain-user: anna\r\nx-drivetrain-tags: blue\r\n"
    rolled_out = {
        "chat": rolled.ask(chat, headers=who),
        "stream": rolled.ask({**chat, "stream": True, "stream_options": {"include_usage": True}}),
        "typed": rolled.ask({"number": "n1", "text": "same"}, path="/v1/workflows/judge"),
        "typed, from the cache": rolled.ask({"number": "n1", "text": "same"}, path="/v1/workflows/judge"),
        "typed by chat": rolled.ask(
            {"model": "judge", "messages": [{"role": "user", "content": '{"number":"n2","text":"differ"}'}]}
        ),
        "by /v2": rolled.ask(
            {"inputs": [{"name": "number", "shape": [1], "datatype": "BYTES", "data": ["n3"]},
                        {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["differ"]}]},
            path="/v2/models/judge/infer",
        ),
    }  # fmt: skip
    # What the candidate does not change, what is asked again by its key, and what is refused are not copied.
    rolled.ask({**chat, "model": "other"})
    again = "idempotency-key: once\r\n"
    assert rolled.ask(chat, headers=again).body == rolled.ask(chat, headers=again).body
    assert rolled.ask({**chat, "temperature": 9}).status == 400
    refused_by_candidate = rolled.ask({**chat, "seed": 7})
    assert {one.status for one in (*rolled_out.values(), refused_by_candidate)} == {200}

    assert eventually(lambda: len(rolled.calls(shadow=True)) >= before + 7), rolled.counted("copies_total")
    time.sleep(0.3)
    live, shadow = rolled.calls(shadow=False), rolled.calls(shadow=True)[before:]
    of = {one.notes[0].removeprefix("shadow of "): one for one in shadow}
    assert len(of) == len(shadow) == 7
    originals = {one.call_id: one for one in live}
    for call_id, one in of.items():
        original = originals[call_id]
        assert one.workflow == original.workflow
        assert one.snapshot == rolled.candidate.short_hash != original.snapshot == rolled.live.short_hash
        assert one.attribution.user == original.attribution.user
        assert one.attribution.key == original.attribution.key == "app"
        assert one.attribution.tags == (*original.attribution.tags, "~shadow")
        assert (one.status, one.stream, one.business_key) == ("answered", False, "")
        assert [attempt.model for attempt in one.attempts] == ["raw/candidate"]
        assert not one.attempts[0].cached
    assert {one.business_key for one in live if one.workflow == "judge"} == {"n1", "n2", "n3"}
    actions = [one.decision.action for one in shadow if one.decision is not None]
    assert sorted(actions) == ["refund", "refund", "review", "review"]
    assert {one.decision.action for one in live if one.decision is not None} == {"refund"}, "a shadow decided"
    asked = [one.json for one in upstream.asked if one.json["model"] == "candidate"]
    assert any(one.get("temperature") == 0.3 for one in asked), "the client's parameters did not reach the candidate"
    assert not any(one.get("stream") for one in asked)

    vault = FileVault(rolled.candidate.keys_folder, payload_days=30)
    plans = compiled(load_stored(rolled.candidate.snapshots_folder, rolled.candidate.hash, rolled.gateway.root))
    for one in shadow:
        assert not replay(open_payloads(one, vault), plans).differences
    vault.close()

    def told() -> bool:
        """What is counted of a Call is published a moment later."""
        ended = {what: sum(number for name, number in rolled.counted("copies_total").items() if name.endswith(what))
                 for what in (" answered", " refused")}  # fmt: skip
        return ended == {" answered": before + 7, " refused": 1}

    assert eventually(told), rolled.counted("copies_total")
    copies, compared = rolled.counted("copies_total"), rolled.counted("compared_total")
    assert copies["help answered"] == before + 3
    assert copies["judge answered"] == 4
    assert copies["help sent"] + copies["judge sent"] == before + 8
    assert "other sent" not in copies
    assert (compared["judge same"], compared["judge different"]) == (2, 2)
    assert (compared["judge same_action"], compared["judge other_action"]) == (2, 2)
    costs = rolled.counted("cost_nano_usd_total")
    assert costs["help"] + costs["judge"] == sum(one.cost_nano_usd for one in rolled.calls(shadow=True))


@pytest.mark.slow
def test_a_shadow_spends_no_more_than_its_day_however_often_it_is_killed(rolled: Shadowed) -> None:
    """Its budget is kept in the project's counters, so a new process goes on where the one before ended."""
    chat = {"model": "help", "messages": [{"role": "user", "content": "hello"}]}

    def follows(killed: int) -> bool:
        return rolled.shadow_pid() not in (0, killed)

    budget_usd = 0.002  # a Call's worst case is some 0.00015 USD, and what it costs far less
    rolled.roll(usd=budget_usd)
    rolled.await_shadow()
    for _ in range(3):
        for number in range(25):
            assert rolled.ask(chat).status == 200, number
        time.sleep(0.5)
        killed = eventually(rolled.shadow_pid)
        assert killed, rolled.gateway.stderr
        os.kill(killed, signal.SIGKILL)
        assert eventually(partial(follows, killed)), rolled.gateway.stderr

    def refused() -> bool:
        """Copies that came while nobody listened cost nothing, so it may take more of them."""
        if any(one.error == "budget_exceeded" for one in rolled.calls(shadow=True)):
            return True
        for _ in range(5):
            rolled.ask(chat)
        return False

    assert eventually(refused, every_s=0.2), "nothing was refused"
    spent = sum(one.cost_nano_usd for one in rolled.calls(shadow=True))
    assert 0 < spent <= budget_usd * NANO_PER_USD
    assert {one.status for one in rolled.calls(shadow=False)} == {"answered"}


@pytest.mark.slow
def test_the_shadow_runs_only_while_its_stage_does(rolled: Shadowed) -> None:
    chat = {"model": "help", "messages": [{"role": "user", "content": "hello"}]}
    assert rolled.shadow_pid() == 0
    rolled.roll()
    rolled.await_shadow()
    shadows.event(rolled.gateway.root, "paused", release=2)
    assert eventually(lambda: not rolled.shadow_pid()), "a paused rollout still has its shadow"
    seen, copies = len(rolled.calls(shadow=True)), rolled.counted("copies_total")
    for _ in range(5):
        rolled.ask(chat)
    time.sleep(0.3)
    assert len(rolled.calls(shadow=True)) == seen
    assert rolled.counted("copies_total")["help sent"] == copies["help sent"]
    shadows.event(rolled.gateway.root, "resumed", release=2)
    assert eventually(rolled.shadow_pid)

    def goes_on() -> bool:
        rolled.ask(chat)
        time.sleep(0.1)
        return len(rolled.calls(shadow=True)) > seen

    assert eventually(goes_on)

    def told() -> bool:
        return rolled.counted("copies_total").get("help answered", 0) == len(rolled.calls(shadow=True))

    assert eventually(told), "the counters of the shadow before are lost"
    pid = rolled.shadow_pid()
    rolled.gateway.stop()
    assert gone(pid), "the shadow outlives its gateway"
