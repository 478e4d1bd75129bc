"""Promise 7: a failure after the first byte is an explicit error event, never a clean end, and it is paid for.

The provider cuts its stream at every byte, closing in order and with a reset; tests/gateway/test_hostile_upstream.py
proves the same of a hostile provider's bytes in both dialects. Here it is the money and the record as well.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from promise_gateway import Gateway, begun, eventually, gateway, settled_answer

from support import books, wire
from support.projects import model, provider, settings, workflow
from support.upstream import Asked, Upstream, Wire, stream, stream_events

pytestmark = pytest.mark.slow

ANSWER = stream(stream_events("one ", "two ", "three."))
END = ANSWER.rindex(b"[DONE]")
HEAD = ANSWER.index(b"\r\n\r\n") + 4
PAUSES_S = (0.02, 0.1, 0.5)
"""What a provider waits before its reset, for the gateway to read: the shortest that most streams begin with."""


def _script(asked: Asked, to: Wire) -> None:
    to.send(ANSWER[: asked.json["seed"]])
    if b"reset" in asked.body:
        to.socket.shutdown(socket.SHUT_RD)
        to.wait(asked.json["top_p"])  # a reset discards what was not read yet
        to.reset()
    else:
        to.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with Upstream() as upstream:
        upstream.on("/up", _script)
        tables = (
            provider("up", f"{upstream.url}/up") + model("up/m") + workflow("once", "up/m", more="attempts_max = 1\n")
            + books.limit("all", "project", usd="1")
        )  # fmt: skip
        with gateway({"drivetrain.toml": settings(tables=tables)}, workers=2) as running:
            yield running


def cut_at(served: Gateway, place: int, how: str, pause_s: float) -> wire.Answered:
    body: dict[str, Any] = {"model": "once", "stream": True, "seed": place, "max_tokens": 20, "top_p": pause_s}
    body["messages"] = [{"role": "user", "content": how}]
    return settled_answer(served, wire.request(body))


@pytest.mark.parametrize("how", ["close", pytest.param("reset", marks=pytest.mark.slow)])
def test_a_stream_that_is_cut_at_any_byte_ends_with_an_error_event(served: Gateway, how: str) -> None:
    for pause_s in PAUSES_S:
        streams = check_every_byte(served, how, pause_s)
        if streams > END // 3:
            break
    assert streams > END // 3, "too few streams began to prove anything"
    ledger = books.spent(served.calls(), all="project")
    assert eventually(lambda: books.settled(served.data_folder, "all") == ledger)


def check_every_byte(served: Gateway, how: str, pause_s: float) -> int:
    """A stream cut at each byte, all at once; how many began."""
    before, refused = {call.call_id for call in served.calls()}, served.patience.refused
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda place: cut_at(served, place, how, pause_s), range(END)))
    streams = 0
    for place, said in enumerate(found):
        assert said.whole, (place, said)
        if said.status != 200:
            assert said.status == 502, (place, said)
            assert said.error["code"] in ("upstream_unreachable", "stream_interrupted")
            continue
        streams += 1
        events = said.events
        assert events[-1]["error"]["code"] == "stream_interrupted", (place, said.body)
        assert sum("error" in event for event in events) == 1
        assert b"[DONE]" not in said.body
    new = [call for call in served.calls() if call.call_id not in before]
    calls = {call.call_id: call for call in begun(new, served.patience.refused - refused)}
    assert len(calls) == END
    assert {call.status for call in calls.values()} == {"failed"}
    for place, said in enumerate(found):
        call = calls[said.headers["x-request-id"]]
        if said.status == 200 and said.text:
            assert call.cost_nano_usd > 0, (place, "words came, and nothing was charged")
        if place <= HEAD:
            assert call.cost_nano_usd == 0, (place, "no event came, and something was charged")
    return streams
