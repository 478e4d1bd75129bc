"""Odd inputs to served models: each is answered or refused by name, never as a fault of the gateway's own."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivetrain.core.models import Column, Signature
from drivetrain.registry.store import Draft
from support import wire
from support.projects import settings
from support.registered import register_words, registry
from support.served import START, Served, read_port

pytestmark = pytest.mark.slow

CODE = """
from typing import Any

import drivetrain as dt

WHO = {"owner": "team@acme.example", "team": "support", "use_case": "tests"}


class Order(dt.Record):
    amount: float
    count: int = 1


class Anything(dt.Record):
    amount: Any = None
    count: Any = None


class Candidates(dt.Record):
    items: Any


class Note(dt.Record):
    text: str


class Value(dt.Record):
    value: float


class Ranking(dt.Record):
    items: list[dict[str, Any]]


class Intent(dt.Record):
    intent: str
    confidence: float = 0.0


def made(name, input, output, variant):
    return dt.Workflow(name, input=input, output=output, route=[variant], **WHO)


priced = made("priced", Order, Value, dt.Variant("m", model="models:/price@champion"))
loose = made("loose", Anything, Value, dt.Variant("m", model="models:/price@champion"))
ranked = made("ranked", Candidates, Ranking, dt.Variant("m", model="models:/rank@champion"))
words = made("words", Note, Intent, dt.Variant("m", model="models:/words@champion"))
"""
HUGE = b"9" * 400


def boosted(columns: tuple[str, ...]) -> bytes:
    """A small LightGBM regression of these columns."""
    import lightgbm

    generator = np.random.default_rng(7)
    values = generator.normal(size=(200, len(columns)))
    data = lightgbm.Dataset(values, values.sum(axis=1), feature_name=list(columns))
    booster = lightgbm.train({"verbosity": -1, "num_threads": 1, "num_leaves": 4}, data, 3)
    return str(booster.model_to_string()).encode()


def register(root: Path) -> None:
    made = registry(root)
    price = Signature(
        task="regression", inputs=(Column(name="amount", dtype="float"), Column(name="count", dtype="int")),
        target="value",
    )  # fmt: skip
    rank = Signature(
        task="ranking", inputs=(Column(name="price", dtype="float", nullable=True),), target="items",
        candidates="items", candidate_id="sku",
    )  # fmt: skip
    for name, signature, columns in (("price", price, ("amount", "count")), ("rank", rank, ("price",))):
        made.register(Draft(name=name, format="lightgbm", signature=signature, files={"model.txt": boosted(columns)}))
        made.move_alias(name, "champion", 1, reason="a test")
    register_words(root, "words", {"refund": "refund", "parcel": "delivery"})


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    root = Path(tempfile.mkdtemp(prefix="drivetrain-test-"))
    try:
        (root / "workflows").mkdir()
        (root / "workflows" / "scored.py").write_text(CODE)
        (root / "drivetrain.toml").write_text(settings(gateway="body_bytes_max = 4000000\n"))
        register(root)
        stderr = root / "stderr.txt"
        with stderr.open("w") as said:
            child = subprocess.Popen(
                [sys.executable, "-c", START, "serve", "--project", str(root), "--port", "0"],
                stdout=subprocess.PIPE, stderr=said, text=True,
            )  # fmt: skip
        running = Served(root, child, 0, stderr)
        try:
            running.port = read_port(child, stderr)
            yield running
            assert running.alive
            assert not running.faults, "\n".join(running.faults)
        finally:
            running.stop()
            if child.stdout is not None:
                child.stdout.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def asked(gateway: Served, name: str, value: Any, *, path: str = "") -> wire.Answered:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return wire.one(gateway.port, wire.request(raw, path=path or f"/v1/workflows/{name}"))


REFUSED: dict[str, tuple[str, Any]] = {
    "a whole number beyond 64 bits": ("priced", b'{"amount": 1, "count": 100000000000000000000000}'),
    "a whole number of 400 digits": ("loose", b'{"amount": ' + HUGE + b', "count": 1}'),
    "a whole number that a float cannot tell": ("priced", {"amount": 1, "count": 2**53 + 1}),
    "a text for a number": ("loose", {"amount": "5", "count": 1}),
    "true for a number": ("loose", {"amount": True, "count": 1}),
    "a list for a number": ("loose", {"amount": [1], "count": 1}),
    "a deep list for a number": ("loose", b'{"count": 1, "amount": ' + b"[" * 400 + b"]" * 400 + b"}"),
    "nothing": ("loose", {}),
    "a number for candidates": ("ranked", {"items": 5}),
    "true for candidates": ("ranked", {"items": True}),
    "a text for candidates": ("ranked", {"items": "abc"}),
    "an object for candidates": ("ranked", {"items": {"sku": "a"}}),
    "too many candidates": ("ranked", {"items": [{"sku": n, "price": n} for n in range(10_001)]}),
    "an id of 400 digits": ("ranked", b'{"items": [{"sku": ' + HUGE + b', "price": 1}]}'),
    "a candidate's text for a number": ("ranked", {"items": [{"sku": "a", "price": "dear"}]}),
    "a million characters": ("words", {"text": "x" * 1_000_000}),
    "a million words": ("words", {"text": "a " * 1_000_000}),
}
ANSWERED: dict[str, tuple[str, Any]] = {
    "no candidates": ("ranked", {"items": []}),
    "null for candidates": ("ranked", {"items": None}),
    "candidates without anything": ("ranked", {"items": [None, 1, [], {}, "x"]}),
    "the same candidate twice": ("ranked", {"items": [{"sku": "a", "price": 1}] * 2}),
    "an id that is an object": ("ranked", {"items": [{"sku": {"a": [1]}, "price": 1}]}),
    "no word at all": ("words", {"text": ""}),
    "bytes of control": ("words", {"text": "\0\u202e\ufffe\r\n"}),
    "the largest float": ("priced", {"amount": 1.7e308}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_no_model_takes_is_refused_by_name(gateway: Served, name: str) -> None:
    workflow, value = REFUSED[name]
    answer = asked(gateway, workflow, value)
    assert answer.status in (400, 422), answer.body
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", ANSWERED)
def test_a_row_that_is_merely_odd_is_scored(gateway: Served, name: str) -> None:
    workflow, value = ANSWERED[name]
    answer = asked(gateway, workflow, value)
    assert answer.status == 200, answer.body
    assert json.dumps(answer.json["output"], allow_nan=False)


def test_rows_of_a_batch_are_scored_as_they_are_alone(gateway: Served) -> None:
    """Whatever comes: a row that is refused harms no other, and no number changes by its neighbours."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    parts = ["refund ", "parcel ", "\0", "é", "𝔘", "x" * 50, ""]
    texts = ["".join(dice.choices(parts, k=6)) for _ in range(20)]
    data = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    batch = asked(gateway, "words", {"inputs": [data]}, path="/v2/models/words/infer")
    assert batch.status == 200, batch.body
    found = {one["name"]: one["data"] for one in batch.json["outputs"]}
    for text, intent, confidence in zip(texts, found["intent"], found["confidence"], strict=True):
        alone = asked(gateway, "words", {"text": text}).json["output"]
        assert (alone["intent"], alone["confidence"]) == (intent, pytest.approx(confidence, abs=1e-6))


def anything(dice: random.Random, depth: int = 0) -> Any:
    kinds: list[Any] = [
        None, True, 0, -1, 2**53, 2**63, 2**64 - 1, 1e308, 0.1, "", "FP64", "amount", "text", [], {},
    ]  # fmt: skip
    if depth < 3 and dice.random() < 0.5:
        if dice.random() < 0.5:
            return [anything(dice, depth + 1) for _ in range(dice.randrange(4))]
        names = ("name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "id", "sku", "price")
        return {dice.choice(names): anything(dice, depth + 1) for _ in range(dice.randrange(4))}
    return dice.choice(kinds)


def test_whatever_a_batch_says_is_no_fault_of_ours(gateway: Served) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    tensor = {"name": "amount", "shape": [2], "datatype": "FP64", "data": [1.0, 2.0]}
    for _ in range(300):
        body: Any = {"inputs": [dict(tensor), {"name": "count", "shape": [2], "datatype": "INT64", "data": [1, 2]}]}
        one = dice.choice(body["inputs"])
        for _ in range(dice.randrange(1, 3)):
            key = dice.choice([*one, "parameters"])
            one[key] = [anything(dice) for _ in range(2)] if key == "data" else anything(dice)
        if dice.random() < 0.3:
            body[dice.choice(["id", "parameters", "outputs", "inputs"])] = anything(dice)
        name = dice.choice(["priced", "loose"])
        answer = asked(gateway, name, body, path=f"/v2/models/{name}/infer")
        assert answer.status in (200, 400, 422), (seed, body, answer.body)
        if answer.status != 200:
            assert isinstance(answer.json["error"], str)
