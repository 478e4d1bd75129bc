"""A trained model in a route: one more variant, pinned by the Snapshot, recorded and replayed like any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from promise_gateway import START, Gateway

from support.projects import settings
from support.registered import register_words, registry

pytestmark = pytest.mark.slow

CODE = """
import drivetrain as dt

class Ticket(dt.Record):
    text: str

class Route(dt.Record):
    intent: str
    confidence: float | None = None

triage = dt.Workflow(
    "triage", input=Ticket, output=Route, owner="a@b.example", team="support", use_case="tests",
    route=[
        dt.Variant("small", model="models:/triage@champion", timeout_ms=60_000, accept=dt.confidence(0.9)),
        dt.Rule("people", when=lambda ticket: True, then=Route(intent="ask a person")),
    ],
)
"""
BEFORE = {"card": "cards", "refund": "refunds"}
AFTER = {"card": "plastic", "refund": "refunds"}
RELOADED_S = 30.0


@pytest.fixture
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("trained"), workers=2)
    made.write(
        {
            "drivetrain.toml": settings(
                ledger='retention = "full"\n', gateway='direct_models = ["models:/words@champion"]\n'
            ),
            "workflows/triage.py": CODE,
        }
    )
    register_words(made.root, "triage", BEFORE)
    register_words(made.root, "words", {"refund": "refunds", "card": "cards", "pin": "pins"})
    yield made
    if made.alive:
        made.stop()


def ask(gateway: Gateway, text: str, workflow: str = "triage") -> dict[str, Any]:
    body = json.dumps({"text": text}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/v1/workflows/{workflow}", body) as answer:
        return json.loads(answer.read())  # type: ignore[no-any-return]


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START, *arguments, "--project", str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_a_model_answers_escalates_and_is_replayed(gateway: Gateway) -> None:
    gateway.start()
    sure, unsure = ask(gateway, "my card is gone"), ask(gateway, "hello")
    assert sure["output"] == {"intent": "cards", "confidence": pytest.approx(0.9933, abs=1e-4)}
    assert (sure["variant"], sure["cost_nano_usd"]) == ("small", 0)
    assert unsure["output"] == {"intent": "ask a person", "confidence": None}
    call = gateway.call(unsure["call_id"])
    assert [(one.variant, one.model, one.verdict) for one in call.attempts] == [
        ("small", "models:/triage/1", "escalated"),
        ("people", "", "accepted"),
    ]
    assert call.attempts[0].usage.source == "reported"
    assert call.attempts[0].usage.output_tokens == 0
    gateway.stop()
    replayed = json.loads(run(gateway.root, "replay", "--json").stdout)
    assert (replayed["same"], replayed["different"]) == (2, [])


def test_a_moved_alias_changes_nothing_until_the_project_is_loaded_again(gateway: Gateway) -> None:
    gateway.start()
    first = ask(gateway, "my card is gone")
    register_words(gateway.root, "triage", AFTER)
    assert [ask(gateway, "my card is gone")["output"]["intent"] for _ in range(8)] == ["cards"] * 8
    gateway.signal(signal.SIGHUP)
    deadline = time.monotonic() + RELOADED_S
    while (last := ask(gateway, "my card is gone"))["output"]["intent"] != "plastic":
        assert time.monotonic() < deadline, gateway.stderr
        time.sleep(0.05)
    before, after = gateway.call(first["call_id"]), gateway.call(last["call_id"])
    assert before.attempts[0].model == "models:/triage/1"
    assert after.attempts[0].model == "models:/triage/2"
    assert before.snapshot != after.snapshot
    gateway.stop()
    assert json.loads(run(gateway.root, "replay", "--json").stdout)["different"] == []
    moves = [(one.alias, one.number) for one in registry(gateway.root).history("triage")]
    assert moves == [("champion", 1), ("champion", 2)]


def test_a_model_that_was_changed_after_approval_is_never_loaded(gateway: Gateway) -> None:
    gateway.start()
    ask(gateway, "my card is gone")
    folder = gateway.data_folder / "models" / "triage" / "1" / "artifact"
    bias = folder / "bias.f32"
    content = bytearray(bias.read_bytes())
    content[0] ^= 1
    bias.write_bytes(content)
    gateway.signal(signal.SIGHUP)
    gateway.stop()
    failed = run(gateway.root, "run", "triage", "--input", '{"text": "my card"}')
    assert failed.returncode != 0
    assert "bias.f32" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_worker_that_follows_another_serves_without_a_model_that_is_gone(gateway: Gateway) -> None:
    gateway.start()
    assert ask(gateway, "my card is gone")["variant"] == "small"
    bias = gateway.data_folder / "models" / "triage" / "1" / "artifact" / "bias.f32"
    bias.unlink()
    before = gateway.worker_pids
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + RELOADED_S
    while True:
        try:
            answer = ask(gateway, "my card is gone")
            break
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline, gateway.stderr
            time.sleep(0.05)
    assert answer["variant"] == "people"
    assert ask(gateway, "a refund please", "words")["output"]["intent"] == "refunds"
    assert "served without a model" in gateway.stderr
    assert "`bias.f32` is missing" in gateway.stderr


def test_what_a_model_says_of_a_row_is_no_part_of_the_record(gateway: Gateway) -> None:
    private = "kept to himself " * 2_000
    gateway.start()
    refused = ask(gateway, private)
    assert refused["variant"] == "people"
    attempt = gateway.call(refused["call_id"]).attempts[0]
    assert (attempt.verdict, attempt.status, attempt.reason) == ("failed", 422, "status 422: row_refused")


def test_a_model_that_clients_name_directly_is_a_workflow_of_its_signature(gateway: Gateway) -> None:
    gateway.start()
    assert ask(gateway, "a refund please", "words")["output"]["intent"] == "refunds"
    url = f"http://127.0.0.1:{gateway.port}/v1/workflows/words"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, b'{"txt": "x"}')
    assert refused.value.code == 400


def test_check_tells_what_a_reference_lacks(gateway: Gateway) -> None:
    assert "names the alias `chalenger`, which `triage` does not have (it has `champion`)" in checked(
        gateway, CODE.replace("@champion", "@chalenger")
    )
    demanding = CODE.replace("    intent: str", "    intent: str\n    why: str").replace(
        'person"', 'person", why="unsure"'
    )
    assert "fills no `why`, which the output requires" in checked(gateway, demanding)
    made_up = CODE.replace('"models:/triage@champion"', '"models:/" + "triage@champion"')
    assert "put together when the project is imported" in checked(gateway, made_up)
    assert "has `prompt`, which a trained model does not take" in checked(
        gateway, CODE.replace('@champion",', '@champion", prompt="x.j2",')
    )


def checked(gateway: Gateway, code: str) -> str:
    """What `check` says of the project with this workflow."""
    gateway.write({"workflows/triage.py": code})
    found = run(gateway.root, "check")
    assert found.returncode == 1
    return found.stdout + found.stderr
