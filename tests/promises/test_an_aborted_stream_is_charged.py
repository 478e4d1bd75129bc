"""Promise 4: a stream whose client leaves is charged what was delivered or reported, wherever it is left.

The provider sends so many words and then waits for the gateway to hang up. After every one of them a client leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from promise_gateway import Gateway, eventually, gateway, is_left

from drivetrain.core.calls import Call
from support import books, wire
from support.busy import LIMITS
from support.projects import model, provider, settings, workflow
from support.upstream import (
    ANTHROPIC_USAGE,
    STREAM_HEAD,
    USAGE,
    Asked,
    Upstream,
    Wire,
    anthropic_events,
    chunk,
    completion,
    http,
    stream_events,
)

pytestmark = pytest.mark.slow

WORDS = tuple(f"word{number} " for number in range(24))
INPUT_NANO, OUTPUT_NANO = 1_000, 2_000


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        running.on("/openai", lambda asked, to: _stop_after(asked, to, stream_events(*WORDS), before=1))
        running.on("/claude", lambda asked, to: _stop_after(asked, to, anthropic_events(*WORDS), before=3))
        yield running


def _stop_after(asked: Asked, to: Wire, events: list[bytes], *, before: int) -> None:
    """So many words as `max_tokens` says, above 100; `before`: events that come before the first one."""
    words = asked.json.get("max_tokens", asked.json.get("max_completion_tokens")) - 100
    to.send(STREAM_HEAD + chunk(b"".join(events[:before])))
    for one in events[before : before + words]:
        to.send(chunk(one))
    to.left(60)
    to.close()


@pytest.fixture(scope="module")
def served(upstream: Upstream) -> Iterator[Gateway]:
    tables = (
        provider("openai", f"{upstream.url}/openai") + provider("claude", f"{upstream.url}/claude", dialect="anthropic")
        + model("openai/m") + model("claude/m") + workflow("openai", "openai/m") + workflow("claude", "claude/m")
        + books.limit("all", "project", usd="1") + books.limit("each", "each workflow", usd="1")
    )  # fmt: skip
    with gateway({"drivetrain.toml": settings(tables=tables)}) as running:
        yield running


def left_after(served: Gateway, name: str, words: int) -> Call:
    """The call of a client that leaves once it has read so many words."""
    body = {"model": name, "stream": True, "max_tokens": 100 + words, "messages": [{"role": "user", "content": "talk"}]}
    patience = served.patience
    patience.ask()
    while True:
        before = {call.call_id for call in served.calls()}
        with wire.connect(served.port) as connection:
            connection.sendall(wire.request(body))
            got = b""
            while WORDS[words - 1].encode() not in got and LIMITS.encode() not in got:
                part = connection.recv(65_536)
                assert part, got
                got += part
            assert eventually(lambda before=before: {call.call_id for call in served.calls()} - before)
        (call_id,) = {call.call_id for call in served.calls()} - before
        if LIMITS.encode() not in got:
            return served.call(call_id)
        patience.refuse()
        assert patience.kept, f"{patience.refused} of {patience.asked} requests were refused"


@pytest.mark.parametrize("dialect", ["openai", "claude"])
def test_whichever_chunk_was_the_last_it_is_charged(served: Gateway, dialect: str) -> None:
    for words in range(1, len(WORDS) + 1):
        call = left_after(served, dialect, words)
        assert (call.status, len(call.attempts)) == ("aborted", 1)
        usage = call.attempts[0].usage
        assert usage.output_tokens >= words, "what was delivered is not charged"
        assert usage.output_tokens <= 100 + words
        assert call.cost_nano_usd == usage.input_tokens * INPUT_NANO + usage.output_tokens * OUTPUT_NANO
        if dialect == "claude":
            assert usage.input_tokens == ANTHROPIC_USAGE["input_tokens"], "a report wins over an estimate"
        assert usage.input_tokens > 0
    assert eventually(lambda: agree(served)), (books.settled(served.data_folder, "all", "each"), served.calls())


def agree(served: Gateway) -> bool:
    """Whether the budgets have settled what the ledger says, and hold nothing for a call that has ended."""
    spent = books.spent(served.calls(), all="project", each="workflow")
    return books.settled(served.data_folder, "all", "each") == spent


def test_a_client_that_leaves_a_whole_answer_pays_for_all_of_it(served: Gateway, upstream: Upstream) -> None:
    """The provider bills it, so it is awaited."""
    left = threading.Event()

    def late(asked: Asked, to: Wire) -> None:
        left.wait(60)
        to.send(http(completion()))

    upstream.on("/openai/chat", late)
    before = len(served.calls())
    with wire.connect(served.port) as connection:
        connection.sendall(wire.request({"model": "openai", "messages": [{"role": "user", "content": "talk"}]}))
        client_port = connection.getsockname()[1]
        assert eventually(lambda: len(served.calls()) > before)
    assert eventually(lambda: is_left(client_port, served.port))
    left.set()
    call = served.call(served.calls()[-1].call_id)
    reported = USAGE["prompt_tokens"] * INPUT_NANO + USAGE["completion_tokens"] * OUTPUT_NANO
    assert (call.status, call.cost_nano_usd) == ("aborted", reported)
    assert eventually(lambda: agree(served))
