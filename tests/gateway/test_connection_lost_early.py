"""A provider that closes a connection before the gateway has heard that it is there: nobody waits for it."""

from __future__ import annotations

import time

from drivetrain.adapters.http_pool import HttpPool
from drivetrain.core.endpoints import Endpoint
from drivetrain.ports.transport import UpstreamRequest
from support.losing import losing_loop
from support.trained import Sink, all_ended, on_a_loop
from support.upstream import Upstream, completion, http

TIMEOUT_MS = 20_000


@on_a_loop
async def test_the_attempt_fails_at_once_and_unsent_and_the_next_one_is_answered() -> None:
    with Upstream() as upstream:
        upstream.on("", http(completion()))
        loop, connections = losing_loop()
        pool = HttpPool(loop)
        endpoint = Endpoint(name="p", scheme="http", host="127.0.0.1", port=upstream.port)
        head = b"POST /v1 HTTP/1.1\r\nhost: p\r\ncontent-length: "
        first, second = Sink(), Sink()
        began = time.monotonic()
        for sink in (first, second):
            pool.send(UpstreamRequest(endpoint, head, b"{}", TIMEOUT_MS, TIMEOUT_MS), sink)
            await all_ended([sink])
        assert time.monotonic() - began < TIMEOUT_MS / 1000 / 2, "nobody waited for a timeout"
        assert first.failure is not None
        assert (first.kind, first.failure.sent, connections.made) == ("connect", False, 2)
        assert second.status == 200
        await pool.close()
