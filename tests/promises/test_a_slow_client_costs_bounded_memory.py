"""Promise 10: a client that does not read costs a bounded part of memory, however much the provider has to say.

Each of these streams is 16 MB long, and no client reads a byte of it. A worker keeps of each what waits for the client
(256 KB) and, for its record, what it has passed on (at most 4 MB): the kernel takes a few MB off it before it is full.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from pathlib import Path

import pytest
from promise_gateway import Gateway, eventually, gateway

from support import books, wire
from support.projects import model, provider, settings, workflow
from support.upstream import STREAM_HEAD, Asked, Upstream, Wire, chunk, delta, event

pytestmark = pytest.mark.slow

STREAM_BYTES = 16 * 1024 * 1024
EVENT = chunk(event(delta(content="x" * 8_000)))
PER_CLIENT_BYTES_MAX = 4 * 1024 * 1024 + 512 * 1024
"""What a client that does not read may cost a worker: the 4 MB of a stream that are kept for its record, what waits for
the client, and what was read ahead."""
BASE_BYTES_MAX = 40 * 1024 * 1024
"""What a worker may grow by, whoever reads: interpreter, pools, allocator."""


def _pour(_asked: Asked, to: Wire) -> None:
    to.send(STREAM_HEAD)
    for _ in range(STREAM_BYTES // len(EVENT)):
        if not to.open:
            return
        to.send(EVENT)


def project(url: str, clients: int) -> dict[str, str]:
    tables = (
        provider("up", f"{url}/up", more=f"connections_max = {clients + 10}\n") + model("up/m")
        + workflow("pours", "up/m") + books.limit("all", "project", usd="100")
    )  # fmt: skip
    return {"drivetrain.toml": settings(tables=tables)}


def resident_bytes(pid: int) -> int:
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("clients", [100, pytest.param(1_000, marks=[pytest.mark.slow, pytest.mark.timeout(400)])])
def test_clients_that_never_read_cost_bounded_memory(clients: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8 * clients)), hard))
    with Upstream() as upstream, gateway(project(upstream.url, clients)) as served:
        upstream.on("/up", _pour)
        (worker,) = served.worker_pids
        before = resident_bytes(worker)
        with contextlib.ExitStack() as open_connections:
            for _ in range(clients):
                open_connections.enter_context(_never_reads(served))
            assert len(upstream.asked) == clients
            most = _most_resident_bytes(worker)
            per_client = (most - before) // clients
            print(f"{clients} clients: {before >> 20} MB before, {most >> 20} MB at most, {per_client >> 10} KB each")
            assert most - before <= BASE_BYTES_MAX + clients * PER_CLIENT_BYTES_MAX
            sent = clients * STREAM_BYTES
            assert most - before < sent // 2, f"{most - before} bytes are kept of {sent}"
            _serves_others(served)
        assert eventually(lambda: not any(call.status == "running" for call in served.calls()), wait_s=60)
        ledger = books.spent(served.calls(), all="project")
        assert eventually(lambda: books.settled(served.data_folder, "all") == ledger)


def _never_reads(served: Gateway) -> socket.socket:
    """A client whose stream has begun, and who takes no byte of it: it only looks at the first ones."""
    body = {"model": "pours", "stream": True, "max_tokens": 1_000, "messages": [{"role": "user", "content": "pour"}]}
    while True:
        connection = wire.connect(served.port, receive_bytes=4_096)
        connection.sendall(wire.request(body))
        if connection.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200":
            return connection
        connection.close()  # the store of limits was too busy to answer


def _most_resident_bytes(pid: int) -> int:
    """The most over two seconds, and until it has stopped growing."""
    most, calm = 0, 0
    while calm < 20:
        now = resident_bytes(pid)
        calm = calm + 1 if now <= most else 0
        most = max(most, now)
        time.sleep(0.1)
    return most


def _serves_others(served: Gateway) -> None:
    assert wire.one(served.port, wire.request(method="GET", path="/readyz")).status == 200
