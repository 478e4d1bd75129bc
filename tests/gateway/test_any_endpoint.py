"""Any endpoint that speaks a dialect, by TOML alone: addresses, keys, headers, names, limits, prices, capabilities."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drivetrain.core.errors import ProjectError
from drivetrain.project import load
from support import wire
from support.projects import PRICES, model, provider, settings, workflow
from support.served import START, Served, served
from support.upstream import (
    Asked,
    Upstream,
    Wire,
    anthropic_message,
    completion,
    http,
    stream,
    stream_events,
)

pytestmark = pytest.mark.slow

PROVIDER_KEY = "sk-provider-0123456789-very-secret"
TOKEN = "token-abcdefghij-very-secret"
KEY = "client-key-abcdefghij-very-secret"
LIMITED_KEY = "limited-key-abcdefghij-very-secret"
PIXEL = "data:image/png;base64,iVBORw0KGgo="
KEYED = 'key = "env:PROVIDER_KEY"\n'
DIRECT_PRICED = "direct/Qwen/Qwen3-8B"

ADDRESSES = {
    "root": ("openai", "", "/chat/completions"),
    "slash": ("openai", "/", "/chat/completions"),
    "version": ("openai", "/v1", "/v1/chat/completions"),
    "version-slash": ("openai", "/v1/", "/v1/chat/completions"),
    "prefix": ("openai", "/some/prefix/v1", "/some/prefix/v1/chat/completions"),
    "odd-version": ("openai", "/api/v1beta/openai", "/api/v1beta/openai/chat/completions"),
    "query": (
        "openai",
        "/openai/deployments/support-mini?api-version=2024-10-21",
        "/openai/deployments/support-mini/chat/completions?api-version=2024-10-21",
    ),
    "version-query": ("openai", "/v1/?a=1&b=c%20d", "/v1/chat/completions?a=1&b=c%20d"),
    "root-query": ("openai", "?a=1", "/chat/completions?a=1"),
    "claude-root": ("anthropic", "", "/v1/messages"),
    "claude-version": ("anthropic", "/v1", "/v1/messages"),
    "claude-slash": ("anthropic", "/v1/", "/v1/messages"),
    "claude-prefix": ("anthropic", "/proxy/anthropic", "/proxy/anthropic/v1/messages"),
    "claude-prefix-version": ("anthropic", "/proxy/v1?beta=true", "/proxy/v1/messages?beta=true"),
}

KEYS: dict[str, tuple[str, str, dict[str, str], list[str]]] = {
    "bearer": ("openai", KEYED, {"authorization": f"Bearer {PROVIDER_KEY}"}, ["x-api-key", "api-key"]),
    "api-key": ("openai", KEYED + 'key_header = "api-key"\n', {"api-key": PROVIDER_KEY}, ["authorization"]),
    "x-api-key": (
        "anthropic",
        KEYED,
        {"x-api-key": PROVIDER_KEY, "anthropic-version": "2023-06-01"},
        ["authorization"],
    ),
    "claude-header": (
        "anthropic",
        KEYED + 'key_header = "X-Goog-Key"\n',
        {"x-goog-key": PROVIDER_KEY},
        ["x-api-key", "authorization"],
    ),
    "no-key": ("openai", "", {}, ["authorization", "api-key", "x-api-key"]),
    "file-key": ("openai", 'key = "file:secrets/provider.key"\n', {"authorization": f"Bearer {PROVIDER_KEY}"}, []),
    "headers": (
        "openai",
        KEYED + 'headers = { OpenAI-Project = "proj", x-internal-token = "env:TOKEN", User-Agent = "ours/1" }\n',
        {
            "openai-project": "proj",
            "x-internal-token": TOKEN,
            "authorization": f"Bearer {PROVIDER_KEY}",
            "user-agent": "ours/1",
        },
        [],
    ),
    "own-scheme": ("openai", 'headers = { Authorization = "env:TOKEN" }\n', {"authorization": TOKEN}, []),
}

TYPED = """\
import drivetrain as dt


class Ticket(dt.Record):
    text: str


class Route(dt.Record):
    intent: str


plain = [
    dt.Workflow(
        name, input=Ticket, output=Route, owner="team@acme.example", team="support", use_case="tests",
        route=[dt.Variant("only", model=model, system=system)],
    )
    for name, model, system in (
        ("schema", "any/full", "system.j2"), ("no-schema", "any/bare", "system.j2"), ("hint-only", "any/bare", None),
        ("claude-no-schema", "anyclaude/bare", None), ("claude-tools", "anyclaude/tools", None),
    )
]
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[Served]:
    def known(reference: str, *more: str) -> str:
        return model(reference, PRICES + "".join(f"{line}\n" for line in more))

    tables: list[str] = []
    for name, (dialect, path, _) in ADDRESSES.items():
        tables += [
            provider(name, upstream.url + path, dialect=dialect),
            model(f"{name}/m"),
            workflow(name, f"{name}/m"),
        ]
    for name, (dialect, more, _, _) in KEYS.items():
        tables += [provider(name, upstream.url, dialect=dialect, more=more), model(f"{name}/m")]
        tables.append(workflow(name, f"{name}/m", more="attempts_max = 1\n"))
    tables += [
        provider("any", f"{upstream.url}/any/v1"),
        provider("anyclaude", f"{upstream.url}/any", dialect="anthropic"),
        provider("direct", f"{upstream.url}/direct/v1"),
        known("any/full"),
        known("any/renamed", 'upstream_name = "org/Model-7B:free@2024"'),
        known("any/old-field", 'max_tokens_field = "max_tokens"'),
        known("any/new-field", 'max_tokens_field = "max_completion_tokens"'),
        known("any/o4-like", 'upstream_name = "o4-mini"'),
        known("any/bare", "capabilities = []"),
        known("any/texts", 'capabilities = ["streaming", "tools", "json_schema"]'),
        known("any/whole", 'capabilities = ["tools"]'),
        known("anyclaude/bare", "capabilities = []"),
        known("anyclaude/tools", 'capabilities = ["tools"]'),
        model("any/as", 'price_as = "openai/gpt-5-mini-2025-08-07"'),
        model("any/free", "usd_per_million_input = 0\nusd_per_million_output = 0"),
        model("any/per-request", 'usd_per_million_input = 0\nusd_per_million_output = 0\nusd_per_request = "0.001"'),
        model("any/as-nobody", 'price_as = "openai/no-such-model"'),
        known(DIRECT_PRICED),
        *(
            workflow(name, f"any/{name}", more="attempts_max = 1\n")
            for name in (
                "full", "renamed", "old-field", "new-field", "o4-like", "bare", "texts", "whole", "as", "free",
                "per-request", "as-nobody", "unpriced",
            )
        ),
        workflow("bare-first", "any/bare", "any/full"),
        workflow("unpriced-first", "any/unpriced", "any/full"),
        '[keys.app]\nsecret = "env:CLIENT_KEY"\n'
        f'[keys.limited]\nsecret = "env:LIMITED_KEY"\nworkflows = ["full", "{DIRECT_PRICED}"]\n',
    ]  # fmt: skip
    direct = f'direct_models = ["{DIRECT_PRICED}", "direct/unpriced"]\n'
    files = {
        "drivetrain.toml": settings(gateway=direct, tables="".join(tables)),
        "workflows/typed.py": TYPED,
        "workflows/system.j2": "Route it.",
        "secrets/provider.key": PROVIDER_KEY + "\n",
    }
    environ = {"PROVIDER_KEY": PROVIDER_KEY, "TOKEN": TOKEN, "CLIENT_KEY": KEY, "LIMITED_KEY": LIMITED_KEY}
    with served(files, environ) as running:
        yield running
        assert running.alive
        assert not running.faults, "\n".join(running.faults)


def _either(asked: Asked, to: Wire) -> None:
    """Each dialect in its own words; a typed answer fits its type."""
    text = '{"intent": "billing"}'
    if "/messages" not in asked.path:
        to.send(http(completion(text)))
    elif asked.json.get("tools"):
        use = {"type": "tool_use", "id": "t", "name": asked.json["tools"][0]["name"], "input": {"intent": "billing"}}
        to.send(http(anthropic_message(content=[use], stop_reason="tool_use")))
    else:
        to.send(http(anthropic_message(text)))


@pytest.fixture(autouse=True)
def _fresh(upstream: Upstream) -> None:
    upstream.forget()
    upstream.on("", _either)


def asked(gateway: Served, name: str, *, key: str = KEY, content: Any = "hello", **more: Any) -> wire.Answered:
    body = {"model": name, "messages": [{"role": "user", "content": content}], **more}
    return wire.one(gateway.port, wire.request(body, key=key))


def typed(gateway: Served, name: str) -> wire.Answered:
    return wire.one(gateway.port, wire.request({"text": "x"}, path=f"/v1/workflows/{name}", key=KEY))


def only(upstream: Upstream) -> Asked:
    (one,) = upstream.asked
    return one


# Addresses, keys, headers.


@pytest.mark.parametrize("name", ADDRESSES)
def test_an_address_in_any_form(gateway: Served, upstream: Upstream, name: str) -> None:
    assert asked(gateway, name).status == 200
    one = only(upstream)
    assert one.head.startswith(b"POST ")
    assert one.path == ADDRESSES[name][2]
    assert one.headers["host"] == f"127.0.0.1:{upstream.port}"


@pytest.mark.parametrize("name", KEYS)
def test_a_key_and_headers_in_any_form(gateway: Served, upstream: Upstream, name: str) -> None:
    assert asked(gateway, name).status == 200
    _, _, present, absent = KEYS[name]
    sent = only(upstream).headers
    assert {header: sent.get(header) for header in present} == present
    assert not set(absent) & set(sent)
    lines = only(upstream).head.decode("latin-1").lower().split("\r\n")[1:]
    names = [line.partition(":")[0] for line in lines if line]
    assert len(names) == len(set(names)), "a header stands twice"


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "429 Too Many Requests", "500 Oh"])
def test_a_provider_that_repeats_a_secret_header_does_not_leak_it(
    gateway: Served, upstream: Upstream, status: str
) -> None:
    body = json.dumps({"error": {"message": f"no access with {TOKEN} and {PROVIDER_KEY}"}}).encode()
    upstream.on("", http(body, status=status))
    answer = asked(gateway, "headers")
    assert answer.status >= 400
    call = str(gateway.call(answer.headers["x-request-id"]))
    for secret in (TOKEN, PROVIDER_KEY):
        assert secret not in answer.body.decode() + call


@pytest.mark.parametrize("spelling", [r"very\u002dsecret", r"v\u0065ry-secret"])
def test_not_even_in_another_spelling(gateway: Served, upstream: Upstream, spelling: str) -> None:
    """JSON may write any character as an escape."""
    said = PROVIDER_KEY.replace("very-secret", spelling)
    upstream.on("", http(b'{"error": {"message": "no access with %b"}}' % said.encode(), status="400 Bad Request"))
    answer = asked(gateway, "bearer")
    assert PROVIDER_KEY not in answer.error["message"]
    assert PROVIDER_KEY not in str(gateway.call(answer.headers["x-request-id"]))


# Names, limits, prices.


def test_the_upstreams_own_name(gateway: Served, upstream: Upstream) -> None:
    assert asked(gateway, "renamed").status == 200
    assert only(upstream).json["model"] == "org/Model-7B:free@2024"


@pytest.mark.parametrize(
    ("name", "field", "other"),
    [
        ("full", "max_tokens", "max_completion_tokens"),
        ("old-field", "max_tokens", "max_completion_tokens"),
        ("new-field", "max_completion_tokens", "max_tokens"),
        ("o4-like", "max_completion_tokens", "max_tokens"),
    ],
)
@pytest.mark.parametrize("given", [{}, {"max_tokens": 9}, {"max_completion_tokens": 9}], ids=["none", "old", "new"])
def test_the_field_of_the_token_limit(
    gateway: Served, upstream: Upstream, name: str, field: str, other: str, given: dict[str, Any]
) -> None:
    assert asked(gateway, name, **given).status == 200
    sent = only(upstream).json
    assert sent[field] == (9 if given else 4096)
    assert other not in sent


@pytest.mark.parametrize(
    ("name", "cost_nano_usd", "source"),
    [
        ("full", 11 * 1_000 + 7 * 2_000, ""),
        ("as", 11 * 250 + 7 * 2_000, "genai-prices"),
        ("free", 0, ""),
        ("per-request", 1_000_000, ""),
    ],
)
def test_what_a_call_costs(gateway: Served, name: str, cost_nano_usd: int, source: str) -> None:
    answer = asked(gateway, name)
    assert answer.headers["x-drivetrain-cost-nano-usd"] == str(cost_nano_usd)
    (attempt,) = gateway.call(answer.headers["x-request-id"]).attempts
    assert attempt.cost_nano_usd == cost_nano_usd
    assert attempt.price_source.startswith(source)


@pytest.mark.parametrize("name", ["unpriced", "as-nobody"])
def test_a_model_without_a_known_price_is_not_called(gateway: Served, upstream: Upstream, name: str) -> None:
    answer = asked(gateway, name)
    assert answer.status == 500
    error = answer.error
    assert error["code"] == "unknown_price"
    for part in (f'[models."any/{name}"]', "usd_per_million_input", "usd_per_million_output", "price_as"):
        assert part in error["message"]
    assert upstream.asked == []
    assert gateway.call(answer.headers["x-request-id"]).cost_nano_usd == 0


def test_a_model_without_a_known_price_is_passed_over(gateway: Served, upstream: Upstream) -> None:
    answer = asked(gateway, "unpriced-first")
    assert answer.headers["x-drivetrain-variant"] == "v1"
    assert only(upstream).json["model"] == "full"


def test_check_names_every_model_without_a_known_price(gateway: Served) -> None:
    run = [sys.executable, "-c", START, "check", "--project", str(gateway.root), "--json"]
    said = subprocess.run(run, check=False, capture_output=True, text=True, timeout=50)
    assert said.returncode == 1
    problems = json.loads(said.stdout)["problems"]
    assert {one["value"] for one in problems} == {"any/unpriced", "any/as-nobody", "direct/unpriced"}
    for one in problems:
        assert one["file"] == "drivetrain.toml"
        assert one["line"] > 0
        assert f'[models."{one["value"]}"]' in one["do"]
        assert "usd_per_million_input" in one["do"]


# Capabilities.

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "route", "schema": {"type": "object"}}}
LOOK = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
NEEDS: dict[str, dict[str, Any]] = {
    "tools": {"tools": TOOLS},
    "json_schema": {"response_format": SCHEMA},
    "images": {"content": LOOK},
}


@pytest.mark.parametrize("need", NEEDS)
def test_what_a_model_cannot_do_is_a_400_or_goes_to_one_that_can(
    gateway: Served, upstream: Upstream, need: str
) -> None:
    answer = asked(gateway, "bare", **NEEDS[need])
    assert answer.status == 400
    assert answer.error["code"] == "unsupported"
    assert f"any/bare has no {need}" in answer.error["message"]
    assert upstream.asked == []
    answer = asked(gateway, "bare-first", **NEEDS[need])
    assert answer.headers["x-drivetrain-variant"] == "v1"
    assert only(upstream).json["model"] == "full"


def test_what_is_not_needed_is_no_hindrance(gateway: Served, upstream: Upstream) -> None:
    parts = [{"type": "text", "text": "hi"}]
    answer = asked(gateway, "bare", tools=[], response_format={"type": "json_object"}, content=parts)
    assert answer.status == 200
    assert only(upstream).json["response_format"] == {"type": "json_object"}


def test_two_lacks_are_both_named(gateway: Served) -> None:
    message = asked(gateway, "bare", tools=TOOLS, content=LOOK).error["message"]
    assert "images, tools" in message


def test_a_model_with_json_schema_is_sent_the_type(gateway: Served, upstream: Upstream) -> None:
    assert typed(gateway, "schema").json["output"] == {"intent": "billing"}
    sent = only(upstream).json
    assert sent["response_format"]["json_schema"]["schema"]["properties"] == {"intent": {"type": "string"}}
    assert sent["messages"][0] == {"role": "system", "content": "Route it."}


@pytest.mark.parametrize("name", ["no-schema", "hint-only"])
def test_a_model_without_json_schema_is_told_the_type(gateway: Served, upstream: Upstream, name: str) -> None:
    assert typed(gateway, name).json["output"] == {"intent": "billing"}
    sent = only(upstream).json
    assert "response_format" not in sent
    system, user = sent["messages"]
    assert system["role"] == "system"
    assert system["content"].startswith("Route it.\n\n" if name == "no-schema" else "Answer with one JSON object")
    schema = json.loads(system["content"].rpartition("\n")[2])
    assert schema["properties"] == {"intent": {"type": "string"}}
    assert user == {"role": "user", "content": "x"}


def test_the_anthropic_dialect_makes_up_for_a_schema_where_there_are_tools(gateway: Served, upstream: Upstream) -> None:
    assert typed(gateway, "claude-tools").json["output"] == {"intent": "billing"}
    assert len(only(upstream).json["tools"]) == 1
    upstream.forget()
    assert typed(gateway, "claude-no-schema").json["output"] == {"intent": "billing"}
    sent = only(upstream).json
    assert "tools" not in sent
    assert "JSON schema" in json.dumps(sent["system"])


def test_a_stream_of_a_model_that_streams(gateway: Served, upstream: Upstream) -> None:
    upstream.on("", stream(stream_events("Hel", "lo.")))
    answer = asked(gateway, "texts", stream=True)
    assert answer.text == "Hello."
    assert only(upstream).json["stream"] is True


def test_a_model_that_does_not_stream_is_asked_for_a_whole_answer(gateway: Served, upstream: Upstream) -> None:
    upstream.on("", http(completion("all at once")))
    answer = asked(gateway, "whole", stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == "all at once"
    assert answer.events[-1] == "[DONE]"
    assert "stream" not in only(upstream).json
    assert "stream_options" not in only(upstream).json


# Direct models.


def test_a_direct_model_is_called_by_its_name(gateway: Served, upstream: Upstream) -> None:
    answer = asked(gateway, DIRECT_PRICED, temperature=0.5)
    assert answer.status == 200
    assert only(upstream).path == "/direct/v1/chat/completions"
    assert only(upstream).json == {
        "model": "Qwen/Qwen3-8B",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.5,
        "max_tokens": 4096,
    }
    call = gateway.call(answer.headers["x-request-id"])
    assert (call.workflow, call.door, call.attribution.team, call.variant) == (
        DIRECT_PRICED,
        "direct",
        "direct",
        "direct",
    )
    assert call.cost_nano_usd == 25_000


@pytest.mark.parametrize("path", ["direct/Qwen/Qwen3-8B", "direct%2FQwen%2FQwen3-8B", "direct/Qwen%2fQwen3-8B"])
def test_a_direct_model_through_the_other_paths(gateway: Served, path: str) -> None:
    answer = wire.one(gateway.port, wire.request({"text": "hi"}, path=f"/v1/workflows/{path}", key=KEY))
    assert answer.json["workflow"] == DIRECT_PRICED
    shown = wire.one(gateway.port, wire.request(method="GET", path=f"/v1/models/{path}", key=KEY))
    assert shown.json["id"] == DIRECT_PRICED


def test_direct_models_stand_among_the_models_of_the_keys_that_may_call_them(gateway: Served) -> None:
    def listed(key: str) -> set[str]:
        answer = wire.one(gateway.port, wire.request(method="GET", path="/v1/models", key=key))
        return {one["id"] for one in answer.json["data"]}

    assert {DIRECT_PRICED, "direct/unpriced", "full"} <= listed(KEY)
    assert listed(LIMITED_KEY) == {"full", DIRECT_PRICED}
    assert asked(gateway, DIRECT_PRICED, key=LIMITED_KEY).status == 200
    assert asked(gateway, "direct/unpriced", key=LIMITED_KEY).status == 404


def test_a_model_that_is_not_listed_is_no_direct_model(gateway: Served, upstream: Upstream) -> None:
    answer = asked(gateway, "any/full")
    assert answer.status == 404
    assert answer.error["code"] == "model_not_found"
    near = asked(gateway, "direct/Qwen/Qwen3-8b")
    assert f"Did you mean `{DIRECT_PRICED}`?" in near.error["message"]
    assert upstream.asked == []


def test_a_direct_model_without_a_known_price_is_not_called(gateway: Served, upstream: Upstream) -> None:
    answer = asked(gateway, "direct/unpriced")
    assert answer.status == 500
    assert answer.error["code"] == "unknown_price"
    assert '[models."direct/unpriced"]' in answer.error["message"]
    assert upstream.asked == []


# Mistakes in addresses.


@pytest.mark.parametrize(
    "url",
    [
        "api.example/v1",
        "ftp://api.example",
        "http://",
        "http://user:hush@api.example",
        "http://api.example/v1?api_key=hush",
        "http://api.example/v1#part",
        "http://api.example:99999/v1",
        "http://api example/v1",
    ],
)
def test_a_wrong_address_is_a_mistake_with_its_line(tmp_path: Path, url: str) -> None:
    tables = provider("p", url) + model("p/m") + workflow("w", "p/m")
    (tmp_path / "drivetrain.toml").write_text(settings(tables=tables))
    with pytest.raises(ProjectError) as refused:
        load(tmp_path)
    assert "providers.p.base_url" in str(refused.value)
    assert "hush" not in str(refused.value)
    assert all(problem.line for problem in refused.value.problems)


def test_secrets_stand_in_nothing_that_was_written(gateway: Served) -> None:
    """Stands last: whatever came before."""
    written = gateway.everything_written()
    assert b"call_" in written
    for secret in (PROVIDER_KEY, TOKEN, KEY, LIMITED_KEY):
        assert secret.encode() not in written
