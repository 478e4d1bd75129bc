"""OpenLineage events: valid for OpenLineage's own client, in a file and at an endpoint, and never more than asked."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from lineage_world import CODE_HASH, World

from drivetrain.lineage import openlineage
from drivetrain.lineage.openlineage import Sent
from support.tries import within

pytestmark = pytest.mark.slow

pytest.importorskip("openlineage.client", reason="the extra `lineage` is not installed")


class Endpoint(BaseHTTPRequestHandler):
    """Takes events, or does what it is told instead."""

    protocol_version = "HTTP/1.1"
    got: list[tuple[str, str, bytes]]
    refuse_after = 1_000
    stall_s = 0.0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        kind = type(self)
        time.sleep(kind.stall_s)
        status = 201 if len(kind.got) < kind.refuse_after else 422
        if status == 201:
            kind.got.append((self.path, self.headers.get("authorization", ""), body))
        said = b"ok" if status == 201 else b"\x1b[2Jno such namespace"
        self.send_response(status)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def endpoint() -> Iterator[tuple[str, type[Endpoint]]]:
    handler = type("Handler", (Endpoint,), {"got": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """With a chain of three records, and one that has nothing to do with it."""
    world = World(tmp_path / "shop")
    world.lineage.made("features:stats@5b1f", inputs=["source:orders", "source:crm"], code_hash=CODE_HASH)
    world.lineage.made("dataset:golden@3", inputs=["features:stats@5b1f", "table:calls@9"], facts={"rows": 120})
    world.lineage.made("model:triage@14", inputs=["dataset:golden@3"])
    world.lineage.made("dataset:apart@1")
    world.lineage.erased("dataset:golden@3")
    return world


def events_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_record_is_a_valid_run_event(world: World, tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    ran = world.run("lineage", "triage@14", "--openlineage", str(file))
    assert ran.exit_code == 0, ran.output
    assert f"3 events are in {file}" in ran.stderr
    features, dataset, model = events_in(file)
    for event in (features, dataset, model):
        _check_with_client(event)
        assert event["eventType"] == "COMPLETE"
        assert event["job"]["namespace"] == "shop"
    assert features["eventTime"] == "2026-01-01T00:00:01.000Z"
    assert [one["name"] for one in dataset["inputs"]] == ["features:stats", "table:calls"]
    assert dataset["inputs"][1]["facets"]["version"]["datasetVersion"] == "9"
    (made,) = dataset["outputs"]
    assert (made["name"], made["facets"]["version"]["datasetVersion"]) == ("dataset:golden", "3")
    assert made["outputFacets"]["outputStatistics"]["rowCount"] == 120
    assert made["facets"]["lifecycleStateChange"]["lifecycleStateChange"] == "ALTER"
    assert features["run"]["facets"]["drivetrain_made"]["codeHash"] == CODE_HASH
    view = features["outputs"][0]["facets"]
    assert view["schema"]["fields"] == [{"name": "total", "type": "float", "fields": []}]
    assert view["documentation"]["description"] == "What they spent."
    assert view["ownership"]["owners"] == [{"name": "data@acme.example"}]
    outside = features["inputs"][1]["facets"]
    assert outside["schema"]["fields"][0]["name"] == "customer_id"
    assert outside["documentation"]["description"] == "Sales knows."


def _check_with_client(event: dict[str, Any]) -> None:
    """The client's own types check times, ids and fields when they are made."""
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState

    RunEvent(
        eventTime=event["eventTime"],
        eventType=RunState(event["eventType"]),
        producer=event["producer"],
        run=Run(**event["run"]),
        job=Job(**event["job"]),
        inputs=[InputDataset(**one) for one in event["inputs"]],
        outputs=[OutputDataset(**one) for one in event["outputs"]],
    )
    assert event["schemaURL"].endswith("RunEvent")
    facets = [*event["run"]["facets"].values(), *event["job"]["facets"].values()]
    facets += [one for data in (*event["inputs"], *event["outputs"]) for one in data["facets"].values()]
    for facet in facets:
        assert facet["_producer"].startswith("https://")
        assert facet["_schemaURL"].startswith("https://openlineage.io/spec/")


def test_all_and_again_with_the_same_run_ids(world: World, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.ndjson", "b.ndjson")]
    for file in files:
        assert world.run("lineage", "--openlineage", str(file)).exit_code == 0
    assert len(events_in(files[0])) == 4
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len({one["run"]["runId"] for one in events_in(files[0])}) == 4
    assert [openlineage.event_json(one) for one in world.lineage.openlineage("shop")] != []


def test_an_endpoint_gets_every_event_and_the_key(
    world: World, endpoint: tuple[str, type[Endpoint]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = endpoint
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "the-key")
    ran = world.run("lineage", "triage@14", "--openlineage", url)
    assert ran.exit_code == 0, ran.output
    assert f"3 of 3 events went to {url}" in ran.stderr
    assert [(path, key) for path, key, _ in handler.got] == [("/api/v1/lineage", "Bearer the-key")] * 3
    assert [json.loads(body)["job"]["name"] for _, _, body in handler.got] == [
        "features:stats",
        "dataset:golden",
        "model:triage",
    ]
    assert world.run("lineage", "triage@14", "--openlineage", f"{url}/other/").exit_code == 0
    assert handler.got[-1][0] == "/other"


def test_an_endpoint_that_refuses_is_reported_and_the_file_is_whole(
    world: World, endpoint: tuple[str, type[Endpoint]], tmp_path: Path
) -> None:
    url, handler = endpoint
    handler.refuse_after = 1
    file = tmp_path / "events.ndjson"
    ran = world.run("lineage", "triage@14", "--openlineage", url, "--openlineage", str(file))
    assert ran.exit_code == 1
    assert "1 of 3 events went to" in ran.stderr
    assert "it answered 422" in ran.stderr
    assert "no such namespace" in ran.stderr
    assert "\x1b" not in ran.output
    assert len(events_in(file)) == 3
    assert "model:triage@14  made" in ran.stdout, "the tree is shown all the same"


def test_an_endpoint_that_hangs_takes_no_longer_than_allowed(
    world: World, endpoint: tuple[str, type[Endpoint]]
) -> None:
    url, handler = endpoint
    handler.stall_s = 3.0
    events = list(world.lineage.openlineage("shop"))
    sent = within(2.0, lambda: openlineage.send_events(url, events, timeout_s=0.3))
    assert (sent.sent, sent.of) == (0, 4)
    assert "within 0.3 s" in sent.problem or "timed out" in sent.problem


def test_an_endpoint_that_drips_its_answer_takes_no_longer_either(world: World) -> None:
    """Each byte comes in time, the answer never ends."""
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def drip() -> None:
        while not ended.is_set():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                while not ended.wait(0.02):
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    thread = threading.Thread(target=drip)
    thread.start()
    events = list(world.lineage.openlineage("shop"))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        sent = within(2.0, lambda: openlineage.send_events(url, events, timeout_s=0.3))
    finally:
        ended.set()
        socket.create_connection(listening.getsockname()).close()  # whoever waits for the next one need not
        thread.join()
        listening.close()
    assert sent == Sent(0, 4, "it did not take everything within 0.3 s")


def test_an_endpoint_that_is_not_there_is_reported(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ran = world.run("lineage", "triage@14", "--openlineage", f"http://127.0.0.1:{port}")
    assert ran.exit_code == 1
    assert "ConnectionRefusedError" in ran.stderr
    assert "Send them again" in ran.stderr


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/x", "is no endpoint"),
        ("http://", "is no endpoint"),
        ("http://host:99999", "is no endpoint"),
        ("https://me:hunter2@host", "OPENLINEAGE_API_KEY"),
        ("https://host?api_key=hunter2", "OPENLINEAGE_API_KEY"),
    ],
)
def test_what_is_no_endpoint_is_refused_before_anything_is_written(
    world: World, tmp_path: Path, url: str, said: str
) -> None:
    file = tmp_path / "events.ndjson"
    ran = world.run("lineage", "--openlineage", url, "--openlineage", str(file))
    assert ran.exit_code == 1
    assert said in ran.stderr
    assert "hunter2" not in ran.output
    assert not file.exists()


def test_a_file_that_cannot_be_written_is_told_and_what_was_there_stays(world: World, tmp_path: Path) -> None:
    ran = world.run("lineage", "--openlineage", str(tmp_path / "missing" / "events.ndjson"))
    assert ran.exit_code == 1
    assert "cannot be written" in ran.stderr
    folder = tmp_path / "taken"
    (folder / "x").mkdir(parents=True)
    assert world.run("lineage", "--openlineage", str(folder)).exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop", "taken"], "nothing half is left"


def test_without_being_asked_nothing_is_sent(world: World, endpoint: tuple[str, type[Endpoint]]) -> None:
    url, handler = endpoint
    world.write(".env", f"OPENLINEAGE_URL={url}")
    assert world.run("lineage", "triage@14").exit_code == 0
    assert handler.got == []
