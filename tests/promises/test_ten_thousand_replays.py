"""Ten thousand Calls, with whatever happened to them, give the same bytes again: routes, costs, Decisions.

DRIVETRAIN_SEED=n repeats the requests.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter

import pytest
from promise_gateway import gateway
from promise_replay import call_somehow, models, project

from drivetrain.adapters.files import FileVault
from drivetrain.core.calls import AttemptV1, Call, ClosedV1
from drivetrain.core.codec import MSGPACK
from drivetrain.execution.plan import compile_plans
from drivetrain.execution.replay import open_payloads, replay
from drivetrain.project.load import load
from drivetrain.simulator import SimulatorProcess

SEED = int(os.environ.get("DRIVETRAIN_SEED") or random.SystemRandom().randrange(2**32))
CALLS = 10_000
CLIENTS = 24


def bytes_of(ended: Call | ClosedV1) -> tuple[bytes, bytes, bytes]:
    """Route, cost and Decision, as they are recorded. When things happened is left out: that is the world's."""
    decision = ended.decision
    decided = () if decision is None else [getattr(decision, name) for name in decision.__struct_fields__[:-1]]
    return (
        MSGPACK.encode((ended.status, ended.variant, [_step(one) for one in ended.attempts])),
        MSGPACK.encode((ended.cost_nano_usd, [one.cost_nano_usd for one in ended.attempts])),
        MSGPACK.encode(decided),
    )


def _step(one: AttemptV1) -> list[object]:
    return [
        one.variant, one.model, one.purpose, one.verdict, one.status, one.failure, one.usage, one.price_source,
        one.repaired, one.streamed, one.cached, one.saved_nano_usd,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1_500)
def test_ten_thousand_calls_are_the_same_bytes_again() -> None:
    print(f"seed {SEED}")
    numbers = iter(range(CALLS * 2))
    lock = threading.Lock()
    enough = threading.Event()
    with (
        SimulatorProcess({"seed": 3, "server": {"allow_overrides": True}, "models": models()}) as running,
        gateway(project(running.url), workers=2) as served,
    ):

        def client() -> None:
            while not enough.is_set():
                with lock:
                    number = next(numbers)
                call_somehow(served.port, random.Random(f"{SEED} {number}"), number, failing=0.15, leaving=0.03)

        threads = [threading.Thread(target=client, daemon=True) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 1_000
        while len(served.calls()) < CALLS and time.monotonic() < until:
            time.sleep(1.0)
        enough.set()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), "a client hangs"
        assert served.stop() == 0
        calls, root = served.calls(), served.root
        assert len(calls) >= CALLS
        vault = FileVault(root / ".drivetrain" / "keys")
        plans = compile_plans(load(root), lambda _reference: "no-secret")
        fates, different = Counter[str](), []
        for call in calls:
            fates[call.status] += 1
            again = replay(open_payloads(call, vault), plans)
            if again.closed is None or bytes_of(call) != bytes_of(again.closed):
                different.append((call.call_id, call.workflow, again.differences))
    decided = Counter(call.decision.action for call in calls if call.decision is not None)
    print(f"{len(calls)} Calls {dict(fates)}, Decisions {dict(decided)}, {len(different)} different")
    assert not different, f"seed {SEED}: {different[:5]}"
    assert set(fates) == {"answered", "failed", "refused", "aborted"}
    assert set(decided) == {"pay", "ask", "wait"}
