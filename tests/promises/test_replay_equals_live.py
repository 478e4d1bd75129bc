"""A recorded Call gives the same route, verdicts, cost and answer when it is replayed, whatever happened to it.

Real calls through every door of a real gateway, against a simulator that fails in every way it knows.
DRIVETRAIN_SEED=n repeats the requests.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from promise_gateway import START, Gateway, chat_project, eventually, gateway
from promise_replay import call_somehow, models, project

from drivetrain.adapters.files import FileVault
from drivetrain.core.calls import RETAINED_FULL, Call
from drivetrain.core.errors import DrivetrainError
from drivetrain.execution.plan import Plans, compile_plans
from drivetrain.execution.replay import open_payloads, replay
from drivetrain.ledger.reader import LedgerReader
from drivetrain.project.load import load
from drivetrain.simulator import SimulatorProcess
from support import wire
from support.projects import workflow

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("DRIVETRAIN_SEED") or random.SystemRandom().randrange(2**32))
CALLS = 240
CLIENTS = 12


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess({"seed": 3, "server": {"allow_overrides": True}, "models": models()}) as running:
        yield running


class Recorded:
    """A project whose ledger is full of everything, its gateway ended."""

    def __init__(self, served: Gateway) -> None:
        self.served = served
        self.root = served.root
        self.vault = FileVault(self.root / ".drivetrain" / "keys")
        self.plans: Plans = compile_plans(load(self.root), lambda _reference: "no-secret")

    def calls(self) -> list[Call]:
        return self.served.calls()

    def replay(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        """(exit code, what `drivetrain replay --json` printed, stderr)."""
        ended = subprocess.run(
            [sys.executable, "-c", START, "replay", "--json", "--project", str(self.root), *arguments],
            capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        return ended.returncode, json.loads(ended.stdout) if ended.stdout else {}, ended.stderr


@pytest.fixture(scope="module")
def recorded(simulator: SimulatorProcess) -> Iterator[Recorded]:
    print(f"seed {SEED}")
    with gateway(project(simulator.url), workers=2) as served:
        numbers = iter(range(CALLS))
        lock = threading.Lock()

        def client() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                call_somehow(served.port, random.Random(f"{SEED} {number}"), number)

        leave_streams(served.port)
        ask_too_much(served.port)
        be_certain(served.port)
        threads = [threading.Thread(target=client, daemon=True) for _ in range(CLIENTS)]
        threads.append(threading.Thread(target=python_door, args=(served.root,), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), "a client hangs"
        assert eventually(lambda: not any(call.status == "running" for call in served.calls()), every_s=0.05)
        assert served.stop() == 0
        yield Recorded(served)


def leave_streams(port: int) -> None:
    """Clients that leave in the middle of a stream, whatever the seed says."""
    text = "[[simulate latency_ms=400 output_tokens=20]]"
    for name in ("help", "claude", "sim/m"):
        body = {"model": name, "messages": [{"role": "user", "content": text}], "stream": True}
        with wire.connect(port) as connection:
            connection.sendall(wire.request(body))
            assert connection.recv(4_000)


def ask_too_much(port: int) -> None:
    """A call that costs more than its workflow allows one, whatever the seed says."""
    body = {"model": "frugal", "messages": [{"role": "user", "content": "y" * 3_000}], "max_tokens": 5_000}
    with wire.connect(port) as connection:
        connection.sendall(wire.request(body))
        assert wire.hear(connection).answers


CERTAIN = (
    ("help", "failure=stall_before_first_byte:0.6", False),
    ("help", "failure=error_mid_stream", True),
    ("help", "failure=status:500 times=1", False),
    ("help", "failure=no_usage", False),
    ("two", "failure=status:503 model=m", False),
    ("sim/m", "", False),
    ("triage", "failure=fenced", False),
)
"""Workflow, failure and whether it is streamed, of what becomes of a call."""


def be_certain(port: int) -> None:
    """One call of each fate, whatever the seed says."""
    for name, failure, stream in CERTAIN:
        text = f"certainly [[simulate {failure}]]" if failure else "certainly"
        body = {"model": name, "messages": [{"role": "user", "content": text}], "stream": stream}
        if name == "triage":
            wire.one(port, wire.request({"text": text}, path="/v1/workflows/triage"))
        else:
            wire.one(port, wire.request(body))


def python_door(root: Path) -> None:
    """Some plain Python calls from a process of its own, beside the gateway."""
    code = """
import sys
from pathlib import Path
from drivetrain.embedded import calls
for text in ("a ticket", "", "SHOUT", "[[simulate failure=fenced]]", "[[simulate failure=status:500 times=1]]",
             "[[simulate failure=status:400]]", "a broken rule", "[[simulate failure=empty]]", "fault"):
    for name in ("triage", "help", *["decided"] * 5):
        calls.call(Path(sys.argv[1]), name, b'{"text": "%s"}' % text.encode())
"""
    subprocess.run([sys.executable, "-c", code, str(root)], check=True, timeout=100)


def test_every_door_and_every_fate_is_among_them(recorded: Recorded) -> None:
    calls = recorded.calls()
    assert len(calls) > CALLS * 0.8  # those that left at once may never have become calls
    assert {call.door for call in calls} == {"chat", "workflow", "python", "direct"}
    assert {call.status for call in calls} == {"answered", "failed", "refused", "aborted"}
    attempts = [attempt for call in calls for attempt in call.attempts]
    assert {one.purpose for one in attempts} == {"answer", "escalation", "fallback", "retry"}
    assert {one.verdict for one in attempts} == {"accepted", "escalated", "failed", "aborted"}
    assert {one.usage.source for one in attempts} >= {"reported", "estimated", "none"}
    assert any(one.repaired for one in attempts)
    assert any(one.failure == "first_byte_timeout" for one in attempts)
    assert any(one.streamed and one.verdict == "failed" for one in attempts)
    assert any(call.error == "budget_per_call_exceeded" for call in calls)
    decisions = [call.decision for call in calls if call.decision is not None]
    assert {one.action for one in decisions} == {"pay", "ask", "wait"}
    assert {one.explored for one in decisions} == {False, True}
    assert any(one.failed for one in decisions)
    assert all(0 < one.propensity <= 1 for one in decisions)


def test_replayed_offline_every_call_is_the_same(recorded: Recorded) -> None:
    different, kinds = [], Counter[str]()
    calls = recorded.calls()
    for call in calls:
        again = replay(open_payloads(call, recorded.vault), recorded.plans)
        kinds[call.status] += 1
        if again.differences:
            shown = [(one.variant, one.verdict, one.reason) for one in call.attempts]
            different.append(f"{call.call_id} {call.workflow} {call.status} {shown}: {again.differences}")
    print(f"{dict(kinds)}, {len(different)} different")
    assert not different, f"seed {SEED}: {len(different)} of {len(calls)} differ:\n" + "\n".join(different[:8])


def test_the_command_says_the_same(recorded: Recorded) -> None:
    code, said, _ = recorded.replay("--last", "100000")
    assert said["different"] == [], f"seed {SEED}"
    assert said["skipped"] == 0
    assert said["same"] == len(recorded.calls())
    assert code == 0


# What has changed is told.


@pytest.fixture
def changed(recorded: Recorded, tmp_path: Path) -> Recorded:
    """A copy of the project with its records, to be changed."""
    copy = tmp_path / "copy"
    shutil.copytree(recorded.root, copy)
    return Recorded(Gateway(copy))


def edit(root: Path, file: str, old: str, new: str) -> None:
    path = root / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_edited_rule_is_told_and_only_where_it_matters(changed: Recorded) -> None:
    edit(changed.root, "workflows/code.py", "ticket.text.isupper()", "False")
    ruled = {call.call_id for call in changed.calls() if call.variant == "shout"}
    assert ruled
    code, said, _ = changed.replay("--current", "--last", "100000")
    assert code == 1
    told = {one["call_id"]: one["differences"] for one in said["different"]}
    assert ruled <= set(told)
    for call_id in ruled:
        assert "shout accepted became" in told[call_id][0]
    code, said, _ = changed.replay("--last", "100000", *ruled)  # as it was live: the same
    assert (code, said["different"]) == (0, [])


def test_an_edited_price_is_told_as_cost(changed: Recorded) -> None:
    edit(changed.root, "drivetrain.toml", 'usd_per_million_output = "2"', 'usd_per_million_output = "3"')
    # Without `frugal`, which would route by the new price.
    priced = [
        call for call in changed.calls() if call.status == "answered" and call.workflow in ("help", "two", "sim/m")
    ]
    priced = [call for call in priced if any(one.usage.output_tokens for one in call.attempts)][:20]
    code, said, _ = changed.replay("--current", *(call.call_id for call in priced))
    assert code == 1
    assert len(said["different"]) == len(priced) > 5
    assert all("nano-USD" in " ".join(one["differences"]) for one in said["different"])


def test_a_workflow_that_is_gone_is_told(changed: Recorded) -> None:
    edit(changed.root, "workflows/code.py", '"judged", **WHO', '"renamed", **WHO')
    judged = next(call for call in changed.calls() if call.workflow == "judged")
    code, _, stderr = changed.replay("--current", judged.call_id)
    assert code == 1
    assert "has no workflow `judged`" in stderr
    assert "Traceback" not in stderr


def test_a_snapshot_that_is_gone_is_told(changed: Recorded) -> None:
    edit(changed.root, "workflows/code.py", "not like this", "not like that")
    shutil.rmtree(changed.root / ".drivetrain" / "snapshots")
    call = changed.calls()[0]
    code, _, stderr = changed.replay(call.call_id)
    assert code == 1
    assert f"No stored Snapshot has a hash that starts with {call.snapshot}" in stderr
    assert "Traceback" not in stderr


def test_an_altered_snapshot_is_told(changed: Recorded) -> None:
    edit(changed.root, "workflows/code.py", "not like this", "not like that")
    (stored,) = (changed.root / ".drivetrain" / "snapshots").iterdir()
    edit(stored, "files/workflows/code.py", "not like this", "not like those")
    code, _, stderr = changed.replay(changed.calls()[0].call_id)
    assert code == 1
    assert "is damaged" in stderr
    assert "Traceback" not in stderr


def test_an_unknown_call_is_told(recorded: Recorded) -> None:
    code, _, stderr = recorded.replay("call_0000")
    assert code == 1
    assert "The ledger has no Call call_0000" in stderr


def test_an_erased_payload_is_told(changed: Recorded) -> None:
    call = next(one for one in changed.calls() if one.door == "chat")
    whose = call.attribution
    changed.vault.forget(whose.user or whose.key or whose.team or "-")
    code, _, stderr = changed.replay(call.call_id)
    assert code == 1
    assert "erased or are too old" in stderr
    assert "Traceback" not in stderr


def test_an_altered_payload_is_told(changed: Recorded) -> None:
    """Its frame's CRC is right, its seal is not."""
    call = next(one for one in changed.calls() if one.request)  # one that was refused keeps none
    alter(changed.root, call)
    code, _, stderr = changed.replay(call.call_id)
    assert code == 1
    assert call.call_id in stderr
    assert "altered" in stderr
    assert "Traceback" not in stderr
    # Among others it is one that is not replayed, and the others are.
    code, said, stderr = changed.replay("--last", "100000")
    assert "Traceback" not in stderr
    assert said["skipped"] == 1


def alter(root: Path, call: Call) -> None:
    from zlib import crc32

    from drivetrain.ledger.frames import HEAD

    for path in sorted((root / ".drivetrain" / "data" / "calls").glob("*.seg")):
        data = bytearray(path.read_bytes())
        offset = 0
        while offset < len(data):
            length, _ = HEAD.unpack_from(data, offset)
            start, end = offset + HEAD.size, offset + HEAD.size + length
            sealed = data.find(call.request, start, end)
            if sealed >= 0:
                data[sealed + len(call.request) - 1] ^= 1
                data[offset:start] = HEAD.pack(length, crc32(bytes(data[start:end])))
                path.write_bytes(data)
                return
            offset = end
    raise AssertionError("its frame was not found")


def test_payloads_that_were_not_kept_are_told(simulator: SimulatorProcess) -> None:
    kinds = ("none", "hash", "sampled")
    more = "".join(workflow(f"keeps-{kind}", "sim/m", more=f'retention = "{kind}"\n') for kind in kinds)
    with gateway(chat_project(simulator.url, more=more)) as served:
        for kind in kinds:
            body = {"model": f"keeps-{kind}", "messages": [{"role": "user", "content": "a question"}]}
            for _ in range(2):
                wire.one(served.port, wire.request(body))
        recorded = Recorded(served)
        for kind in kinds:
            call = next(one for one in served.calls() if one.workflow == f"keeps-{kind}")
            if call.retained == RETAINED_FULL:
                continue  # this one was sampled
            code, _, stderr = recorded.replay(call.call_id)
            assert code == 1
            assert "its prompt and answers were not kept" in stderr
            assert 'retention = "full"' in stderr
        code, said, _ = recorded.replay()
        assert code == 0
        assert said["skipped"] == sum(one.retained != RETAINED_FULL for one in served.calls()) > 0


def test_a_call_that_never_ended_cannot_be_replayed(simulator: SimulatorProcess) -> None:
    with gateway(chat_project(simulator.url)) as served:
        body = {"model": "help", "messages": [{"role": "user", "content": "[[simulate latency_ms=60000]]"}]}
        with wire.connect(served.port) as connection:
            connection.sendall(wire.request(body))
            assert eventually(served.calls)
            served.kill()
        (call,) = LedgerReader(served.data_folder).calls()
        assert call.status == "interrupted"
        with pytest.raises(DrivetrainError, match="interrupted"):
            open_payloads(call, FileVault(served.root / ".drivetrain" / "keys"))
