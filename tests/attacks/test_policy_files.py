"""Hostile decision tables: refused with a clear error before the engine sees them, at once, leaving nothing behind."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from drivetrain.core.policies import Case, Policy
from drivetrain.policies import compile_policy
from drivetrain.policies.compile import CONTEXT_BYTES_MAX
from drivetrain.policies.graph_parts import TableRefused

REFUSED_WITHIN_S = 2.0
"""Of processor time: reading ten megabytes and saying no."""


def node(id: str, kind: str, content: Any = None) -> dict[str, Any]:
    return {"id": id, "type": kind, "name": id, "content": content}


def chain(*nodes: dict[str, Any], edges: list[tuple[str, str]] | None = None) -> dict[str, Any]:
    every = [node("in", "inputNode"), *nodes, node("out", "outputNode")]
    pairs = edges or [(one["id"], other["id"]) for one, other in pairwise(every)]
    return {"nodes": every, "edges": [{"id": str(n), "sourceId": a, "targetId": b} for n, (a, b) in enumerate(pairs)]}


def expressions(*pairs: tuple[str, str], id: str = "x", **more: Any) -> dict[str, Any]:
    rows = [{"id": f"{id}{n}", "key": key, "value": value} for n, (key, value) in enumerate(pairs)]
    return node(id, "expressionNode", {"expressions": rows, **more})


def table(
    cell: str, result: str = "'a'", *, hit: str = "first", rules: int = 1, field: str = "input.x"
) -> dict[str, Any]:
    columns = {
        "inputs": [{"id": "i", "name": "i", "field": field}],
        "outputs": [{"id": "o", "name": "o", "field": "action"}],
    }
    rows = [{"_id": f"r{n}", "i": cell, "o": result} for n in range(rules)]
    return node("table", "decisionTableNode", {"hitPolicy": hit, **columns, "rules": rows})


def act(text: str) -> dict[str, Any]:
    return chain(expressions(("action", text)))


def deep(depth: int) -> bytes:
    return b'{"nodes":' + b"[" * depth + b"]" * depth + b"}"


DOUBLED = [("k0", "input.t"), *((f"k{n}", f"$.k{n - 1} + $.k{n - 1}") for n in range(1, 40))]
FUNCTION = {"source": "import zen from 'zen'; export const handler = () => { while (true) {} }"}
LARGE = 10 * 1024 * 1024

ATTACKS: dict[str, tuple[Any, str]] = {
    "javascript": (chain(node("js", "functionNode", FUNCTION)), "runs JavaScript"),
    "old javascript": (chain(node("js", "functionNode", "while(true){}")), "runs JavaScript"),
    "custom node": (chain(node("c", "customNode", {"kind": "http", "config": {}})), "not part of the table"),
    "http node": (chain(node("h", "httpNode", {"url": "http://169.254.169.254/"})), "calls another system"),
    "unknown node": (chain(node("q", "quantumNode", {})), "is not known"),
    "ten megabytes of expression": (act("1" * LARGE), "bytes"),
    "long expression": (act("1 + " * 1_000 + "1"), "at most 2,000"),
    "many words": (act("1+" * 600 + "1"), "at most 500"),
    "deep brackets": (act("(" * 100 + "1" + ")" * 100), "within each other"),
    "deep JSON": (deep(500_000), "no JSON"),
    "no JSON": (b"\x80\x04\x95pickle", "no JSON"),
    "a cycle": (
        chain(
            expressions(("a", "1"), id="a"),
            expressions(("b", "1"), id="b"),
            edges=[("in", "a"), ("a", "b"), ("b", "a"), ("b", "out")],
        ),
        "in a circle",
    ),
    "itself": (chain(node("d", "decisionNode", {"key": "bad.json"})), "calls itself"),
    "another folder": (chain(node("d", "decisionNode", {"key": "../drivetrain.toml"})), "no file in `policies/`"),
    "an absolute path": (chain(node("d", "decisionNode", {"key": "/etc/passwd"})), "no file in `policies/`"),
    "a loop": (chain(expressions(("action", "'a'"), executionMode="loop")), "loops over a list"),
    "a range as a list": (act("map([0..1000000000], #)"), "range as a list"),
    "a range to index": (act("[0..1000000000][5]"), "range as a list"),
    "a range in a cell": (chain(table("sum([0..1000000000]) > $")), "range as a list"),
    "a list within a list": (act("map(input.l, map(input.l, #))"), "every element"),
    "a search for every element": (act("filter(input.a, # in input.b)"), "very long"),
    "a text for every element": (act("map(input.l, 'long')"), "makes a text"),
    "doubling": (chain(expressions(*DOUBLED)), "times as large"),
    "doubling from node to node": (
        chain(*(expressions(("t", "t + t" if n else "input.t"), id=f"n{n}") for n in range(40))),
        "times as large",
    ),
    "doubling in lists": (
        act("map(map(map(map(map(input.l, # + #), # + #), # + #), # + #), # + #) + input.l"), "times as large"
    ),
    "quadratic function": (act("fuzzyMatch(input.t, input.t)"), "square"),
    "the clock": (act("d().format('YYYY')"), "clock"),
    "the clock by a text": (act("date(input.t)"), "clock"),
    "chance": (act("rand(6)"), "chance"),
    "a large pattern": (act("matches(input.t, '(a{50}){50}')"), "repetitions"),
    "a table of Unicode": (act("matches(input.t, '\\w\\w\\w\\w')"), "large table"),
    "a pattern from the caller": (act("matches(input.t, input.p)"), "written pattern"),
    "a template": (act("`${input.t}`"), "template"),
    "an assignment": (act("input.x = 1"), "`==`"),
    "everything": (act("$root"), "name the fields"),
    "too many calls": (chain(table("len($) > 3", rules=501)), "at most 500"),
    "too many rules": (chain(table("", rules=2_001)), "at most 2,000"),
    "too many nodes": (chain(*(expressions(("a", "1"), id=f"n{n}") for n in range(101))), "at most 100"),
    "two inputs": (chain(node("in2", "inputNode")), "needs one"),
    "our own column": (chain(expressions(("__rule__", "'forged'"))), "no name for a result"),
    "no expression": (act("input.x +"), "no expression"),
    "no test": (chain(table("> ")), "no expression"),
    "wrong types": ({"nodes": [7], "edges": {}}, "no object"),
    "not an object": ([], "no JSON object"),
}  # fmt: skip


@pytest.fixture
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_table_is_refused(name: str) -> None:
    document, why = ATTACKS[name]
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    began = time.process_time()
    with pytest.raises(TableRefused) as raised:
        compile_policy(Policy("bad", table="bad.json"), {"policies/bad.json": content, "drivetrain.toml": b""})
    assert time.process_time() - began < REFUSED_WITHIN_S
    assert why in str(raised.value)
    assert "policies/bad.json" in str(raised.value) or "drivetrain.toml" in str(raised.value)
    assert len(str(raised.value)) < 1_000


@pytest.mark.usefixtures("nothing_left")
def test_files_that_call_files_end() -> None:
    files = {
        f"policies/f{n}.json": json.dumps(chain(node("d", "decisionNode", {"key": f"f{n + 1}.json"}))).encode()
        for n in range(20)
    }
    files["policies/f20.json"] = json.dumps(act("'a'")).encode()
    with pytest.raises(TableRefused, match="one file too many"):
        compile_policy(Policy("bad", table="f0.json"), files)


WORST = {
    "sums of a long list": chain(table("sum($) < 0", rules=500, field="input.l")),
    "functions over a long list": chain(table("some($, # < 0 and # > 5)", rules=32, field="input.l")),
    "patterns": chain(table("matches($, '(?i)[^z]{50}zz')", rules=16, field="input.t")),
    "texts": chain(table("contains(upper($), 'QQ')", rules=250, field="input.t")),
}


@pytest.mark.parametrize("name", WORST)
def test_the_worst_that_is_allowed_ends_before_a_worker_counts_as_silent(name: str) -> None:
    """A worker that is silent for 2 s is replaced; measured on an idle core these take 5 to 100 ms."""
    files = {"policies/worst.json": json.dumps(WORST[name]).encode()}
    policy = compile_policy(Policy("worst", table="worst.json", limit_ms=1_000), files)
    room = CONTEXT_BYTES_MAX - 100
    case = Case(input={"l": list(range(room // 6)), "t": "ab " * (room // 3)})
    began = time.thread_time()
    assert policy.own(case).failed == "no rule matches"
    assert time.thread_time() - began < 1.0


def test_what_a_table_does_not_read_costs_nothing_however_large() -> None:
    policy = compile_policy(Policy("p", table="p.json"), {"policies/p.json": json.dumps(chain(table(""))).encode()})
    assert policy.own(Case(input={"x": 1, "text": "a" * 10_000_000})).action == "a"


def test_no_engine_is_needed_for_functions() -> None:
    """The gateway of a project without tables does not import it."""
    import subprocess

    code = "import sys, drivetrain, drivetrain.policies, drivetrain.policies.checks; assert 'zen' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
