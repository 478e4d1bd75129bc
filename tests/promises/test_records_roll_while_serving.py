"""Promise 21: a serving gateway rolls its records into the lake by itself, and leaves nothing behind when it ends."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator

import pytest
from promise_gateway import Gateway

from support.projects import model, provider, settings, workflow

pytestmark = pytest.mark.slow

RULE = '{ rule = "any", matches = "hello", answer = "ok" }'
ROLLED_S = 30.0
"""A roll is due after a second; starting one takes another on a machine with nothing else to do."""


@pytest.fixture
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("rolling"))
    tables = "[lake]\nroll_every_s = 1\n" + provider("up", "http://127.0.0.1:9/v1") + model("up/small")
    made.write({"drivetrain.toml": settings(tables=tables + workflow("plain", RULE, "up/small"))})
    made.start()
    yield made
    made.stop()


def ask(gateway: Gateway) -> None:
    body = json.dumps({"text": "hello"}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/v1/workflows/plain", body) as answer:
        assert answer.status == 200


def rolled(gateway: Gateway) -> int:
    """Calls in the tables, without what waits in the segments."""
    found = json.loads(gateway.command("lake", "show", "--json"))["tables"]
    return found["calls"]["rows"] if "calls" in found else 0


def test_calls_reach_the_tables_without_anybody_asking(gateway: Gateway) -> None:
    for _ in range(20):
        ask(gateway)
    deadline = time.monotonic() + ROLLED_S
    while rolled(gateway) < 20:
        assert time.monotonic() < deadline, f"nothing was rolled: {gateway.stderr}"
        time.sleep(0.2)
    ask(gateway)
    (count,) = json.loads(gateway.command("sql", "select count(*) as calls from calls", "--json"))
    assert count == {"calls": 21}
    assert gateway.stop() == 0
    assert "cannot be rolled" not in gateway.stderr
