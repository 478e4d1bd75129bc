"""A real gateway with a model that is too large for its loop: who scores, and what happens when that one is killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from drivetrain.core.models import Column, Signature
from drivetrain.registry.store import Draft
from support import wire
from support.projects import settings
from support.registered import registry
from support.served import START, Served, read_port

pytestmark = pytest.mark.slow
WORKERS = 2
CODE = """
import drivetrain as dt

WHO = {"owner": "team@acme.example", "team": "support", "use_case": "tests"}


class Point(dt.Record):
    a: float
    b: float


class Value(dt.Record):
    value: float


heavy = dt.Workflow("heavy", input=Point, output=Value, **WHO, route=[
    dt.Variant("large", model="models:/large@champion", timeout_ms=4000),
    dt.Variant("small", model="models:/small@champion", timeout_ms=4000),
])
"""
SMALL_ALONE = CODE.replace('    dt.Variant("large", model="models:/large@champion", timeout_ms=4000),\n', "")


def dense(layers: int) -> bytes:
    """An ONNX model of two numbers; each layer takes some 0.1 ms a row."""
    rng = np.random.default_rng(1)
    width = 1024
    weights = {
        "first": rng.normal(size=(2, width)),
        "each": rng.normal(size=(width, width)) / np.sqrt(width),
        "last": rng.normal(size=(width, 1)),
    }
    nodes = [helper.make_node("MatMul", ["x", "first"], ["h0"])]
    for layer in range(layers):
        nodes.append(helper.make_node("MatMul", [f"h{layer}", "each"], [f"m{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"h{layer + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"h{layers}", "last"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {"large": dense(24), "small": dense(1)}


@pytest.fixture
def gateway(files: dict[str, bytes]) -> Iterator[Served]:
    root = Path(tempfile.mkdtemp(prefix="drivetrain-test-"))
    try:
        (root / "drivetrain.toml").write_text(settings())
        (root / "workflows").mkdir()
        (root / "workflows" / "heavy.py").write_text(CODE)
        made = registry(root)
        columns = (Column(name="a", dtype="float"), Column(name="b", dtype="float"))
        signature = Signature(task="regression", inputs=columns, target="value")
        for name, content in files.items():
            version = made.register(
                Draft(name=name, format="onnx", signature=signature, files={"model.onnx": content}, owner="a@b.example")
            )
            made.move_alias(name, "champion", version.number, reason="a test")
        stderr = root / "stderr.txt"
        with stderr.open("w") as said:
            child = subprocess.Popen(
                [sys.executable, "-c", START, "serve", "--project", str(root), "--port", "0",
                 "--workers", str(WORKERS)],
                stdout=subprocess.PIPE, stderr=said, text=True,
            )  # fmt: skip
        running = Served(root, child, 0, stderr)
        try:
            running.port = read_port(child, stderr)
            yield running
        finally:
            running.stop()
            assert child.stdout is not None
            child.stdout.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def answered(gateway: Served, number: int = 1) -> wire.Answered:
    asked = wire.request({"a": number / 100, "b": 1.0}, path="/v1/workflows/heavy")
    return wire.one(gateway.port, asked, wait_s=20)


def metric(gateway: Served, name: str, model: str) -> int | None:
    """None where there is no such series."""
    said = wire.one(gateway.port, wire.request(method="GET", path="/metrics")).body.decode()
    found = re.findall(rf'^{name}\{{model="{model}"[^}}]*\}} (\d+)$', said, flags=re.MULTILINE)
    return sum(map(int, found)) if found else None


def processes(gateway: Served) -> dict[int, bool]:
    """Children of the supervisor; True for a model worker."""
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
    found = {}
    for child in children:
        with contextlib.suppress(OSError):
            found[int(child)] = b"drivetrain.gateway.modelling" in Path(f"/proc/{child}/cmdline").read_bytes()
    return found


def model_worker(gateway: Served) -> int:
    return next((pid for pid, is_one in processes(gateway).items() if is_one), 0)


def soon(what: Callable[[], object], limit_s: float = 15.0) -> float:
    """Seconds until it was so."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit_s, "it never became so"
        time.sleep(0.05)
    return time.monotonic() - began


def served_anew(gateway: Served, path: str) -> None:
    """Until every gateway worker knows it: connections go to any."""
    asked = wire.request({"a": 1.0, "b": 1.0}, path=path)
    for _ in range(20):
        soon(lambda: wire.one(gateway.port, asked).status == 200)


def test_a_large_model_is_scored_by_the_one_model_worker_of_all_gateway_workers(gateway: Served) -> None:
    assert sorted(processes(gateway).values()) == [False] * WORKERS + [True]
    outputs = [json.loads(answered(gateway, 7).body) for _ in range(20)]
    assert {one["variant"] for one in outputs} == {"large"}
    assert len({one["output"]["value"] for one in outputs}) == 1
    soon(lambda: metric(gateway, "drivetrain_model_rows_total", "large/1") == 20)
    assert metric(gateway, "drivetrain_model_rows_total", "small/1") in (None, 0)
    assert metric(gateway, "drivetrain_model_waiting", "large/1") == 0
    busy_us = metric(gateway, "drivetrain_model_busy_us_total", "large/1")
    predicted_us = metric(gateway, "drivetrain_model_predicted_us", "large/1")
    assert busy_us is not None
    assert busy_us > 20 * 1_000
    assert predicted_us is not None
    assert predicted_us > 1_000
    assert (metric(gateway, "drivetrain_model_batches_total", "large/1") or 0) <= 20


def test_kill_9_of_the_model_worker_under_load_every_request_is_answered_and_it_is_replaced(gateway: Served) -> None:
    statuses: Counter[int] = Counter()
    slowest: list[float] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        while not stop.is_set():
            began = time.monotonic()
            statuses[answered(gateway, number).status] += 1
            slowest.append(time.monotonic() - began)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    first = model_worker(gateway)
    assert first
    os.kill(first, signal.SIGKILL)
    replaced_s = soon(lambda: model_worker(gateway) not in (0, first))
    time.sleep(0.7)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert list(statuses) == [200]
    assert max(slowest) < 8
    assert replaced_s < 3
    assert (metric(gateway, "drivetrain_model_rows_total", "small/1") or 0) > 0  # who fell back
    before = metric(gateway, "drivetrain_model_rows_total", "large/1") or 0

    def scores_again() -> bool:
        answered(gateway)
        return (metric(gateway, "drivetrain_model_rows_total", "large/1") or 0) > before

    soon(scores_again)
    assert not gateway.faults


def test_reloads_release_a_model_that_no_route_names_any_more(gateway: Served) -> None:
    answered(gateway)
    soon(lambda: metric(gateway, "drivetrain_model_rows_total", "large/1") == 1)
    for number in (1, 2):  # Calls that began before the first one may still ask for it
        more = SMALL_ALONE.replace('heavy = dt.Workflow("heavy"', f'more = dt.Workflow("more{number}"')
        (gateway.root / "workflows" / "heavy.py").write_text(SMALL_ALONE + more[more.index("more = ") :])
        os.kill(gateway.pid, signal.SIGHUP)
        served_anew(gateway, f"/v1/workflows/more{number}")
    soon(lambda: metric(gateway, "drivetrain_model_waiting", "large/1") is None)
    assert metric(gateway, "drivetrain_model_rows_total", "large/1") == 1
    assert answered(gateway).status == 200


def test_sigterm_ends_every_process(gateway: Served) -> None:
    answered(gateway)
    pids = [gateway.pid, *processes(gateway)]
    assert len(pids) == 2 + WORKERS
    assert gateway.stop() == 0

    def gone() -> bool:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)
                return False
        return True

    soon(gone, 5)
