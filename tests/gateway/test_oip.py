"""`/v2`: the Open Inference Protocol, each row of a batch a Call; and what a request of it may not say."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support import wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.tries import PATIENCE_S, eventually, within
from support.upstream import Asked, Upstream, Wire, completion, http

KEY, LIMITED = "client-key-abcdefghij", "limited-key-abcdefghij"
COST_NANO_USD = 11 * 1_000 + 7 * 2_000
"""Of one answer of the scripted upstream."""
CODE = """
import enum
from datetime import date
from typing import Literal

import drivetrain as dt


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Order(dt.Record, rename="camel"):
    order_text: str
    amount: float
    count: int = 1
    express: bool = False
    note: str | None = None
    size: Size = Size.SMALL
    due: date | None = None
    tags: tuple[str, ...] = ()


class Score(dt.Record):
    intent: Literal["cheap", "dear"]
    number: int
    share: float | None
    big: bool
    said: str
    size: Size
    due: date | None = None
    words: tuple[str, ...] = ("a", "list")


class Needy(dt.Record):
    names: list[str]
    text: str


class Text(dt.Record):
    text: str


class Label(dt.Record):
    label: str


def made(name, route, **more):
    common = {"owner": "team@acme.example", "team": "support", "use_case": "tests"}
    return dt.Workflow(name, route=route, **{**common, **more})


def scored(order):
    dear = order.amount > 100
    return Score(intent="dear" if dear else "cheap", number=order.count * 2, share=None if dear else order.amount,
                 big=dear, said=order.note or order.order_text, size=order.size, due=order.due)


score = made("score", [dt.Rule("all", when=lambda order: True, then=scored)], input=Order, output=Score)
needy = made("needy", [dt.Rule("all", when=lambda one: True, then=Label(label="x"))], input=Needy, output=Label)
label = made("label", [
    dt.Rule("short", when=lambda one: len(one.text) < 4, then=Label(label="short")),
    dt.Variant("only", model="raw/m", max_output_tokens=64),
], input=Text, output=Label, retention="full", attempts_max=1)
spelled = made("spelled", [dt.Rule("all", when=lambda one: True, then=lambda one: Label(label=one.text.upper()))],
               input=Text, output=Label, parameters=dt.Parameters(fix={"seed": 7}))
"""
ORDER = [
    {"name": "orderText", "shape": [2], "datatype": "BYTES", "data": ["shoes", "a boat"]},
    {"name": "amount", "shape": [2], "datatype": "FP64", "data": [12.5, 900]},
]
TEXTS = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Served]:
    tables = [
        provider("raw", f"{upstream.url}/raw"),
        model("raw/m"),
        workflow("assistant", "raw/m", more="attempts_max = 1\n"),
        '[keys.app]\nsecret = "env:CLIENT_KEY"\nmay_override = ["user"]\n'
        '[keys.limited]\nsecret = "env:LIMITED_KEY"\nworkflows = ["label"]\n',
    ]
    files = {
        "drivetrain.toml": settings(gateway="body_bytes_max = 1000000\n", tables="".join(tables)),
        "workflows/scored.py": CODE,
    }
    with served(files, {"CLIENT_KEY": KEY, "LIMITED_KEY": LIMITED}) as running:
        yield running
        assert running.alive
        assert not running.faults, "\n".join(running.faults)


@pytest.fixture(autouse=True)
def _fresh(upstream: Upstream) -> None:
    upstream.forget()
    answer_with(upstream, lambda text: f'{{"label": "of {text}"}}')


def answer_with(upstream: Upstream, said: Callable[[str], str]) -> None:
    """What the scripted upstream says to a text from now on."""

    def script(asked: Asked, to: Wire) -> None:
        to.send(http(completion(said(asked.json["messages"][-1]["content"]))))

    upstream.on("/raw", script)


def got(gateway: Served, path: str, *, key: str | None = KEY, method: str = "GET") -> wire.Answered:
    return wire.one(gateway.port, wire.request(method=method, path=path, key=key))


def inferred(
    gateway: Served, name: str, body: Any, *, key: str | None = KEY, headers: str = "", version: str = ""
) -> wire.Answered:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    path = f"/v2/models/{name}{version}/infer"
    return wire.one(gateway.port, wire.request(raw, path=path, key=key, headers=headers))


def tensors(answer: wire.Answered) -> dict[str, list[Any]]:
    """Name -> data, the shapes and datatypes checked."""
    assert answer.status == 200, answer
    found = {}
    for one in answer.json["outputs"]:
        assert set(one) == {"name", "datatype", "shape", "data"}
        assert one["shape"] == [len(one["data"])]
        kinds: dict[str, Any] = {"BYTES": str, "BOOL": bool, "INT64": int, "FP64": (int, float)}
        assert all(value is None or isinstance(value, kinds[one["datatype"]]) for value in one["data"]), one
        found[one["name"]] = one["data"]
    return found


def refused(answer: wire.Answered, *named: str, status: int = 400) -> str:
    """The message of an error in the protocol's shape."""
    assert answer.status == status, answer
    assert set(answer.json) == {"error"}
    message = answer.json["error"]
    assert isinstance(message, str)
    for one in named:
        assert one in message, message
    return message


# What is served.


def test_the_server_says_what_it_is_without_a_key(gateway: Served) -> None:
    about = got(gateway, "/v2", key=None)
    assert about.status == 200
    assert about.json["name"] == "drivetrain"
    assert isinstance(about.json["version"], str)
    assert about.json["extensions"] == []
    assert got(gateway, "/v2/health/live", key=None).json == {"live": True}
    ready = got(gateway, "/v2/health/ready?verbose", key=None)
    assert (ready.status, ready.json) == (200, {"ready": True, "live": True})
    # A probe by HEAD gets the status alone.
    head = wire.request(method="HEAD", path="/v2/health/ready", headers="connection: close\r\n")
    heard = wire.ask(gateway.port, head)
    assert heard.rest.startswith(b"HTTP/1.1 200 ")
    assert heard.rest.endswith(b"\r\n\r\n")


def test_a_model_is_a_workflow_and_its_tensors_are_its_scalar_fields(gateway: Served) -> None:
    about = got(gateway, "/v2/models/score").json
    (version,) = about.pop("versions")
    assert about == {
        "name": "score",
        "platform": "drivetrain",
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [-1]}
            for name, datatype in (
                ("orderText", "BYTES"), ("amount", "FP64"), ("count", "INT64"), ("express", "BOOL"), ("note", "BYTES"),
                ("size", "BYTES"), ("due", "BYTES"),
            )
        ],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1]}
            for name, datatype in (
                ("intent", "BYTES"), ("number", "INT64"), ("share", "FP64"), ("big", "BOOL"), ("said", "BYTES"),
                ("size", "BYTES"), ("due", "BYTES"),
            )
        ],
    }  # fmt: skip
    assert got(gateway, f"/v2/models/score/versions/{version}").json == {**about, "versions": [version]}
    for path in ("/v2/models/score/ready", f"/v2/models/score/versions/{version}/ready"):
        assert got(gateway, path).json == {"name": "score", "ready": True}
    chat = got(gateway, "/v2/models/assistant").json
    text = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert (chat["inputs"], chat["outputs"]) == (text, text)
    refused(got(gateway, "/v2/models/score/versions/1"), "version `1`", version, status=404)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/", 404),
        ("GET", "/v2x", 404),
        ("GET", "/v2/health", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/", 404),
        ("GET", "/v2/models//infer", 404),
        ("GET", "/v2/models/score/versions", 404),
        ("GET", "/v2/models/score/versions/", 404),
        ("GET", "/v2/models/score/other", 404),
        ("GET", "/v2/models/score/infer/more", 404),
        ("GET", "/v2/models/scor", 404),
        ("GET", "/v2/models/%00%ff", 404),
        ("GET", "/v2/models/" + "x" * 4_000, 404),
        ("GET", "/v2/models/score/infer", 405),
        ("POST", "/v2/models/score", 405),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/models/score/ready", 405),
    ],
)
def test_other_paths_and_methods_are_refused(gateway: Served, method: str, path: str, status: int) -> None:
    answer = got(gateway, path, method=method)
    if path in ("/v2/", "/v2x", "/v2/health", "/v2/models"):
        assert answer.error["code"] == "unknown_path"
    else:
        refused(answer, status=status)


def test_a_key_sees_and_calls_its_workflows_only(gateway: Served, upstream: Upstream) -> None:
    for answer in (
        got(gateway, "/v2/models/label", key=None),
        got(gateway, "/v2/models/label/ready", key="wrong"),
        inferred(gateway, "label", {"inputs": [TEXTS]}, key=None),
    ):
        refused(answer, "key", status=401)
    for answer in (
        got(gateway, "/v2/models/score", key=LIMITED),
        got(gateway, "/v2/models/score/ready", key=LIMITED),
        inferred(gateway, "score", {"inputs": ORDER}, key=LIMITED),
    ):
        message = refused(answer, "no workflow `score`", status=404)
        assert "assistant" not in message
    assert tensors(inferred(gateway, "label", {"inputs": [TEXTS]}, key=LIMITED)) == {"label": ["short"]}
    headers = "x-drivetrain-user: ann\r\n"
    refused(inferred(gateway, "label", {"inputs": [TEXTS]}, key=LIMITED, headers=headers), "may not set", status=403)
    assert upstream.asked == []


# Rows.


def test_each_row_is_a_call_and_answers_come_in_order(gateway: Served) -> None:
    body = {
        "id": "42",
        "parameters": {"content_type": "np", "priority": 1},
        "inputs": [
            *ORDER,
            {"name": "count", "shape": [2, 1], "datatype": "INT32", "data": [[3], [4]]},
            {"name": "express", "shape": [2, 1], "datatype": "BOOL", "data": [True, False]},
            {"name": "note", "shape": [2], "datatype": "BYTES", "data": [None, "wow ünï"]},
            {"name": "size", "shape": [2], "datatype": "BYTES", "data": ["large", "small"]},
            {"name": "due", "shape": [2], "datatype": "BYTES", "data": ["2026-01-31", None]},
        ],
    }
    answer = inferred(gateway, "score", body, headers="x-drivetrain-user: ann\r\n")
    assert tensors(answer) == {
        "intent": ["cheap", "dear"],
        "number": [6, 8],
        "share": [12.5, None],
        "big": [False, True],
        "said": ["shoes", "wow ünï"],
        "size": ["large", "small"],
        "due": ["2026-01-31", None],
    }
    (version,) = got(gateway, "/v2/models/score").json["versions"]
    assert (answer.json["model_name"], answer.json["model_version"], answer.json["id"]) == ("score", version, "42")
    assert answer.json["parameters"]["cost_nano_usd"] == 0
    assert answer.headers["x-drivetrain-cost-nano-usd"] == "0"
    ids = answer.json["parameters"]["call_ids"].split(",")
    calls = [gateway.call(one) for one in ids]
    assert len({call.call_id for call in calls}) == 2
    for call in calls:
        assert (call.workflow, call.door, call.variant, call.status) == ("score", "workflow", "all", "answered")
        assert (call.attribution.key, call.attribution.user, call.attribution.team) == ("app", "ann", "support")
        assert call.snapshot == version


def test_outputs_are_those_that_were_asked_for(gateway: Served) -> None:
    answer = inferred(gateway, "score", {"inputs": ORDER, "outputs": [{"name": "number"}, {"name": "intent"}]})
    assert [one["name"] for one in answer.json["outputs"]] == ["number", "intent"]
    assert "id" not in answer.json
    every = inferred(gateway, "score", {"inputs": ORDER, "outputs": []})
    assert len(tensors(every)) == 7


def test_one_row_answers_with_the_headers_of_its_call(gateway: Served, upstream: Upstream) -> None:
    answer = inferred(gateway, "label", {"inputs": [{**TEXTS, "data": ["a longer text"]}]})
    assert tensors(answer) == {"label": ["of a longer text"]}
    assert answer.headers["x-request-id"] == answer.json["parameters"]["call_ids"]
    assert answer.headers["x-drivetrain-variant"] == "only"
    assert answer.headers["x-drivetrain-cost-nano-usd"] == str(COST_NANO_USD)
    assert len(upstream.asked) == 1


def test_a_chat_workflow_takes_a_text_and_gives_one(gateway: Served, upstream: Upstream) -> None:
    answer_with(upstream, lambda text: f"said {text}")
    inputs = [{"name": "text", "shape": [3], "datatype": "BYTES", "data": ["a", "b", ""]}]
    answer = inferred(gateway, "assistant", {"inputs": inputs})
    assert tensors(answer) == {"text": ["said a", "said b", "said "]}
    assert answer.json["parameters"]["cost_nano_usd"] == 3 * COST_NANO_USD
    assert sorted(one.json["messages"][0]["content"] for one in upstream.asked) == ["", "a", "b"]
    assert all("stream" not in one.json for one in upstream.asked)


def test_a_chat_answer_without_text_is_null(gateway: Served, upstream: Upstream) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = json.loads(completion(""))
    said["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
    upstream.on("/raw", lambda _asked, to: to.send(http(json.dumps(said).encode())))
    assert tensors(inferred(gateway, "assistant", {"inputs": [TEXTS]})) == {"text": [None]}


def test_rows_run_at_the_same_time(gateway: Served, upstream: Upstream) -> None:
    together = threading.Barrier(8)

    def script(_asked: Asked, to: Wire) -> None:
        together.wait(PATIENCE_S)  # a row that waited for another would break it
        to.send(http(completion('{"label": "x"}')))

    upstream.on("/raw", script)
    inputs = [{"name": "text", "shape": [8], "datatype": "BYTES", "data": [f"text {n}" for n in range(8)]}]
    assert tensors(inferred(gateway, "label", {"inputs": inputs})) == {"label": ["x"] * 8}


def test_the_most_rows_come_back_in_order(gateway: Served) -> None:
    texts = [f"row {number}" for number in range(256)]
    inputs = [{"name": "text", "shape": [256], "datatype": "BYTES", "data": texts}]
    answer = inferred(gateway, "spelled", {"inputs": inputs})
    assert tensors(answer) == {"label": [text.upper() for text in texts]}
    assert len(set(answer.json["parameters"]["call_ids"].split(","))) == 256


def test_a_row_that_fails_is_named_and_the_others_are_recorded(gateway: Served, upstream: Upstream) -> None:
    answer_with(upstream, lambda text: '{"label": "fine"}' if "good" in text else "no label")
    before = len(gateway.calls())
    inputs = [{"name": "text", "shape": [4], "datatype": "BYTES", "data": ["good 1", "x", "bad 1", "bad 2"]}]
    answer = inferred(gateway, "label", {"inputs": inputs})
    refused(answer, "row 2: ", "cannot be used", status=502)
    failed = gateway.call(answer.headers["x-request-id"])
    assert (failed.status, failed.error) == ("failed", "unusable_answer")
    made = gateway.calls()[before:]
    assert sorted(call.status for call in made) == ["answered", "answered", "failed", "failed"]
    assert sum(call.cost_nano_usd for call in made) == 3 * COST_NANO_USD


def test_a_repeat_with_the_same_key_makes_no_second_calls(gateway: Served, upstream: Upstream) -> None:
    inputs = [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["text one", "text two"]}]
    headers = "idempotency-key: batch-1\r\n"
    first = inferred(gateway, "label", {"inputs": inputs}, headers=headers)
    again = inferred(gateway, "label", {"inputs": inputs}, headers=headers)
    assert tensors(first) == {"label": ["of text one", "of text two"]}
    assert again.body == first.body
    assert again.headers["idempotent-replayed"] == "true"
    assert len(upstream.asked) == 2
    other = inferred(gateway, "label", {"inputs": [TEXTS]}, headers=headers)
    refused(other, "key", status=422)
    refused(inferred(gateway, "label", {"inputs": [TEXTS]}, headers="idempotency-key: \r\n"))


def test_a_deadline_holds_for_every_row(gateway: Served, upstream: Upstream) -> None:
    upstream.on("/raw", lambda _asked, to: to.wait(3))
    inputs = [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["x", "a longer text"]}]
    answer = within(2, lambda: inferred(gateway, "label", {"inputs": inputs}, headers="x-request-timeout-ms: 200\r\n"))
    refused(answer, "row 1: ", status=504)
    refused(inferred(gateway, "label", {"inputs": inputs}, headers="x-request-timeout-ms: soon\r\n"), "milliseconds")


def test_a_client_that_leaves_ends_all_its_rows(gateway: Served, upstream: Upstream) -> None:
    arrived, has_left = threading.Semaphore(0), threading.Event()

    def script(_asked: Asked, to: Wire) -> None:
        arrived.release()
        has_left.wait(PATIENCE_S)
        to.send(http(completion('{"label": "late"}')))

    upstream.on("/raw", script)
    before = len(gateway.calls())
    inputs = [{"name": "text", "shape": [3], "datatype": "BYTES", "data": ["text 1", "text 2", "text 3"]}]
    raw = json.dumps({"inputs": inputs}).encode()
    connection = wire.connect(gateway.port)
    connection.sendall(wire.request(raw, path="/v2/models/label/infer", key=KEY))
    for _ in range(3):
        assert arrived.acquire(timeout=PATIENCE_S)
    connection.close()
    assert eventually(lambda: "\ndrivetrain_connections 1\n" in got(gateway, "/metrics", key=None).body.decode())
    has_left.set()
    aborted = ["aborted"] * 3
    assert eventually(lambda: [call.status for call in gateway.calls()[before:]] == aborted), gateway.calls()[before:]
    assert tensors(inferred(gateway, "label", {"inputs": [TEXTS]})) == {"label": ["short"]}
    metrics = got(gateway, "/metrics", key=None).body.decode()
    assert "drivetrain_calls_running 0" in metrics
    assert 'drivetrain_calls_total{workflow="label",variant="only",status="aborted"} 3' in metrics


# What a request may not say.


def tensor(**more: Any) -> dict[str, Any]:
    return {**TEXTS, **more}


HOSTILE: dict[str, tuple[Any, str]] = {
    "no-json": (b"{", "JSON"),
    "nothing": (b"", "JSON"),
    "list": ([], "object"),
    "deep": (b'{"inputs": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", "deep"),
    "nan": (b'{"inputs": [{"name": "text", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', "JSON"),
    "bad-utf8": (b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["\xff"]}]}', "JSON"),
    "no-inputs": ({}, "inputs"),
    "null-inputs": ({"inputs": None}, "inputs"),
    "empty-inputs": ({"inputs": []}, "inputs"),
    "inputs-object": ({"inputs": {"text": ["x"]}}, "inputs"),
    "input-text": ({"inputs": ["text"]}, "inputs[0]"),
    "input-null": ({"inputs": [None]}, "inputs[0]"),
    "no-name": ({"inputs": [{**tensor(), "name": None}]}, "inputs[0].name"),
    "name-list": ({"inputs": [tensor(name=["text"])]}, "inputs[0].name"),
    "unknown-name": ({"inputs": [tensor(name="txet")]}, "Did you mean `text`"),
    "odd-name": ({"inputs": [tensor(name="\n\x00" * 9)]}, "of that name"),
    "long-name": ({"inputs": [tensor(name="x" * 100_000)]}, "no tensor"),
    "twice": ({"inputs": [TEXTS, TEXTS]}, "second tensor"),
    "no-datatype": ({"inputs": [tensor(datatype=None)]}, "datatype"),
    "datatype": ({"inputs": [tensor(datatype="STRING")]}, "BYTES"),
    "datatype-list": ({"inputs": [tensor(datatype=["BYTES"])]}, "datatype"),
    "no-shape": ({"inputs": [tensor(shape=None)]}, "shape"),
    "scalar-shape": ({"inputs": [tensor(shape=[])]}, "shape"),
    "wide-shape": ({"inputs": [tensor(shape=[1, 2], data=["x", "y"])]}, "shape"),
    "deep-shape": ({"inputs": [tensor(shape=[1, 1, 1])]}, "shape"),
    "negative-shape": ({"inputs": [tensor(shape=[-1])]}, "rows"),
    "no-rows": ({"inputs": [tensor(shape=[0], data=[])]}, "rows"),
    "float-shape": ({"inputs": [tensor(shape=[1.0])]}, "shape"),
    "bool-shape": ({"inputs": [tensor(shape=[True])]}, "shape"),
    "text-shape": ({"inputs": [tensor(shape="1")]}, "shape"),
    "many-rows": ({"inputs": [tensor(shape=[257], data=["x"] * 257)]}, "1 to 256"),
    "huge-rows": ({"inputs": [tensor(shape=[2**63], data=["x"])]}, "1 to 256"),
    "huger-rows": (b'{"inputs":[{"name":"text","shape":[1e400],"datatype":"BYTES","data":["x"]}]}', ""),
    "short-data": ({"inputs": [tensor(shape=[2])]}, "1 elements where its shape says 2"),
    "long-data": ({"inputs": [tensor(data=["x", "y"])]}, "2 elements where its shape says 1"),
    "no-data": ({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES"}]}, "inputs[0].data"),
    "text-data": ({"inputs": [tensor(data="x")]}, "inputs[0].data"),
    "null-data": ({"inputs": [tensor(data=[None])]}, "null"),
    "number": ({"inputs": [tensor(data=[5])]}, "is no BYTES"),
    "bytes-list": ({"inputs": [tensor(data=[[120]])]}, "is no BYTES"),
    "nested-flat": ({"inputs": [tensor(data=[["x"]])]}, "is no BYTES"),
    "nested-deep": ({"inputs": [tensor(shape=[1, 1], data=[[["x"]]])]}, "is no BYTES"),
    "nested-wide": ({"inputs": [tensor(shape=[2, 1], data=[["x", "y"], []])]}, "one element"),
    "nested-mixed": ({"inputs": [tensor(shape=[2, 1], data=[["x"], "y"])]}, "one element"),
    "flat-then-nested": ({"inputs": [tensor(shape=[2, 1], data=["x", ["y"]])]}, "is no BYTES"),
    "binary": ({"inputs": [{**tensor(), "data": None, "parameters": {"binary_data_size": 5}}]}, "binary"),
    "binary-body": (
        b'{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":5}}]}\1\0\0\0x',
        "binary",
    ),
    "binary-output": ({"inputs": [TEXTS], "parameters": {"binary_data_output": True}}, "binary"),
    "binary-outputs": (
        {"inputs": [TEXTS], "outputs": [{"name": "label", "parameters": {"binary_data": True}}]}, "binary",
    ),
    "parameters": ({"inputs": [TEXTS], "parameters": [1]}, "parameters"),
    "tensor-parameters": ({"inputs": [tensor(parameters=5)]}, "inputs[0].parameters"),
    "outputs-text": ({"inputs": [TEXTS], "outputs": "label"}, "outputs"),
    "outputs-texts": ({"inputs": [TEXTS], "outputs": ["label"]}, "outputs[0]"),
    "unknown-output": ({"inputs": [TEXTS], "outputs": [{"name": "lable"}]}, "Did you mean `label`"),
    "output-twice": ({"inputs": [TEXTS], "outputs": [{"name": "label"}] * 2}, "second time"),
    "id-number": ({"inputs": [TEXTS], "id": 5}, "id"),
    "id-long": ({"inputs": [TEXTS], "id": "x" * 257}, "id"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_request_is_refused_and_makes_no_call(gateway: Served, upstream: Upstream, name: str) -> None:
    body, named = HOSTILE[name]
    answer = inferred(gateway, "label", body)
    assert len(refused(answer, named)) < 400
    assert upstream.asked == []


ORDERS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "missing": (ORDER[:1], "`amount` is missing"),
    "other-length": (
        [*ORDER, {"name": "count", "shape": [1], "datatype": "INT64", "data": [1]}],
        "1 rows and the first tensor has 2",
    ),
    "not-scalar": ([*ORDER, {"name": "tags", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}], "tensor `tags`"),
    "python-name": ([{**ORDER[0], "name": "order_text"}, ORDER[1]], "Did you mean `orderText`"),
    "wrong-type": ([{**ORDER[0], "datatype": "INT64", "data": [1, 2]}, ORDER[1]], "row 0: "),
    "second-row": (
        [*ORDER, {"name": "size", "shape": [2], "datatype": "BYTES", "data": ["large", "huge"]}], "row 1: ",
    ),
    "bad-date": ([*ORDER, {"name": "due", "shape": [2], "datatype": "BYTES", "data": [None, "soon"]}], "row 1: "),
    "bool-count": ([*ORDER, {"name": "count", "shape": [2], "datatype": "BOOL", "data": [True, True]}], "row 0: "),
    "null-count": ([*ORDER, {"name": "count", "shape": [2], "datatype": "INT64", "data": [1, None]}], "row 1 is null"),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_a_row_that_is_no_input_is_named_before_anything_starts(gateway: Served, name: str) -> None:
    inputs, named = ORDERS[name]
    before = len(gateway.calls())
    refused(inferred(gateway, "score", {"inputs": inputs}), named)
    assert len(gateway.calls()) == before


def test_an_input_that_no_tensor_holds_is_sent_elsewhere(gateway: Served) -> None:
    refused(inferred(gateway, "needy", {"inputs": [TEXTS]}), "`names`", "POST /v1/workflows/needy")


@pytest.mark.parametrize(
    ("datatype", "good", "bad"),
    [
        ("INT8", [-128, 127], [128, -129, 1.5, True, "1", [1], {}]),
        ("INT16", [-32_768, 32_767], [32_768]),
        ("INT32", [-(2**31), 2**31 - 1], [2**31]),
        ("INT64", [-(2**63), 2**63 - 1], [2**63, -(2**63) - 1, 10**400]),
        ("UINT8", [0, 255], [-1, 256]),
        ("UINT16", [0, 65_535], [65_536]),
        ("UINT32", [0, 2**32 - 1], [2**32]),
        ("UINT64", [0, 2**64 - 1], [2**64, -1]),
        ("FP16", [0, 65_504.0], [65_505, True, "1"]),
        ("FP32", [0.1, -3.4e38, 2], [3.5e38]),
        ("FP64", [1e308, -0.5, 10**30], [10**400, None, False]),
    ],
)
def test_a_number_fits_its_datatype_or_is_refused(
    gateway: Served, datatype: str, good: list[Any], bad: list[Any]
) -> None:
    def asked(value: Any) -> wire.Answered:
        text = {"name": "orderText", "shape": [1], "datatype": "BYTES", "data": ["x"]}
        amount = {"name": "amount", "shape": [1], "datatype": datatype, "data": [value]}
        return inferred(gateway, "score", {"inputs": [text, amount]})

    for value in good:
        share = tensors(asked(value))["share"]
        assert share == ([None] if value > 100 else [float(value)]), value
    for value in bad:
        assert asked(value).status == 400, value
        refused(asked(value))


def test_a_body_that_is_too_long_is_refused_before_it_is_read(gateway: Served) -> None:
    head = wire.request(method="POST", path="/v2/models/label/infer", key=KEY, headers="content-length: 1000001\r\n")
    assert wire.one(gateway.port, head).status == 413


def test_whatever_comes_is_answered(gateway: Served) -> None:
    """Requests that were mutated at random: a 200 or a 400 in the protocol's shape, and the gateway lives."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    base = {"id": "1", "inputs": [{**TEXTS, "parameters": {}}], "outputs": [{"name": "label"}], "parameters": {}}
    junk: list[Any] = [None, True, 0, -1, 2**70, 1.5, "", "text", "\x00", [], {}, [[]], [None], {"name": "text"}]

    def mutated(value: Any, depth: int = 0) -> Any:
        if chance.random() < 0.12:
            return chance.choice(junk)
        if isinstance(value, dict):
            return {chance.choice([name, name, name, "x"]): mutated(one, depth + 1) for name, one in value.items()}
        if isinstance(value, list):
            return [mutated(one, depth + 1) for one in value for _ in range(chance.choice([1, 1, 1, 0, 2]))]
        return value

    requests = [
        wire.request(json.dumps(mutated(base)).encode(), path="/v2/models/label/infer", key=KEY) for _ in range(300)
    ]
    for sent in requests:
        answer = wire.one(gateway.port, sent)
        assert answer.status in (200, 400), (seed, sent, answer)
        if answer.status == 400:
            refused(answer)
