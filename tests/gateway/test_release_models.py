"""Trained models of Releases: each Release scores with what it pinned, and a changed artifact is not served."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from drivetrain.embedded.serving import served_by
from promises.promise_gateway import Gateway, eventually, gateway
from support import wire
from support.projects import settings
from support.registered import register_words
from support.releases import Releases
from support.tries import measured

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
        dt.Variant("small", model="models:/triage@champion"),
        dt.Rule("people", when=lambda ticket: True, then=Route(intent="ask a person")),
    ],
)
"""
PROJECT = {"drivetrain.toml": settings(), "workflows/triage.py": CODE}


def intent(served: Gateway) -> str:
    answer = wire.one(served.port, wire.request({"text": "card"}, path="/v1/workflows/triage"))
    assert answer.status == 200, answer
    text: str = answer.json["output"]["intent"]
    return text


def released(releases: Releases, words: dict[str, str]) -> str:
    """The Snapshot that pins a new version of the model."""
    register_words(releases.root, "triage", words)
    return releases.store(PROJECT).hash


def changed_weights(root: Path, number: int) -> None:
    """Another model behind the same name and number."""
    folder = root / ".drivetrain" / "data" / "models" / "triage" / str(number) / "artifact"
    files = (one for one in folder.rglob("*") if one.is_file())
    file = max(files, key=lambda one: one.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)


def test_each_release_scores_with_the_model_that_it_pinned() -> None:
    with gateway(PROJECT, start=False) as served:
        releases = Releases(served.root)
        first = released(releases, {"card": "cards", "refund": "refunds"})
        releases.release(first, ["triage"])
        second = released(releases, {"card": "plastic", "refund": "refunds"})
        served.start()
        assert intent(served) == "cards", "the alias moved, and the Release did not"
        releases.release(second, ["triage"])
        assert eventually(lambda: intent(served) == "plastic"), served.stderr

        def back() -> float:
            if intent(served) != "plastic":  # another whole try
                releases.release(second, ["triage"])
                assert eventually(lambda: intent(served) == "plastic"), served.stderr
            releases.roll_back(1, first)
            begun = time.monotonic()
            assert eventually(lambda: intent(served) == "cards"), served.stderr
            return time.monotonic() - begun

        measured(1.5, back)


@pytest.mark.parametrize("running", [True, False])
def test_a_model_that_changed_after_its_approval_is_not_served(running: bool) -> None:
    with gateway(PROJECT, start=False) as served:
        releases = Releases(served.root)
        first = released(releases, {"card": "cards", "refund": "refunds"})
        second = released(releases, {"card": "plastic", "refund": "refunds"})
        releases.release(first, ["triage"])
        if running:
            served.start()
        changed_weights(served.root, 2)
        releases.release(second, ["triage"])
        if running:
            assert eventually(lambda: "is not served, the old one is served on" in served.stderr), served.stderr
            assert intent(served) == "cards"
            assert [one.release for one in served_by(releases.run_folder)] == [1]
        else:
            with pytest.raises(AssertionError, match="not ready"):
                served.start()
        assert "triage/2" in served.stderr
