"""`POST /v1/workflows/{name}`: an input in, an output out; and how a chat request becomes such an input."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from drivetrain.simulator import SimulatorProcess
from support import wire
from support.projects import model, provider, settings, workflow
from support.served import Served, served
from support.tries import eventually
from support.upstream import Asked, Upstream, Wire, completion, http

PIXEL = "data:image/png;base64,iVBORw0KGgo="
HOSTILE = (
    '{{ 7*7 }} {% for x in range(10) %}{{ x }}{% endfor %} {# gone #} {% include "secret.j2" %} <b>&amp;</b> "quoted"'
)
COST_NANO_USD = 11 * 1_000 + 7 * 2_000
"""Of one answer of the scripted upstream."""

TYPED = """
from typing import Any, Literal

import drivetrain as dt


class Ticket(dt.Record):
    text: str
    priority: int = 3
    tags: tuple[str, ...] = ()
    more: dict[str, Any] = {}


class Exact(dt.Record, forbid_unknown_fields=True):
    text: str
    language: str | None = None


class Nested(dt.Record):
    tickets: list[Ticket]


class Two(dt.Record):
    subject: str
    body: str = "none"


class Number(dt.Record):
    number: int


class Route(dt.Record):
    intent: Literal["billing", "technical", "spam"]
    confidence: float | None = None


def made(name, route, **more):
    common = {"owner": "team@acme.example", "team": "support", "use_case": "tests"}
    return dt.Workflow(name, route=route, **{**common, "output": Route, **more})


def only(**more):
    return [dt.Variant("only", model="raw/m", max_output_tokens=64, **more)]


def long_enough(output, ticket):
    if len(ticket.text) < 5:
        raise dt.Reject("the ticket is too short to tell")


def never_spam(output):
    return "spam is never the answer" if output.intent == "spam" else None


def says_no(output):
    return False


def raises(output):
    raise ValueError(f"a private text: {output.intent}")


triage = made("triage", input=Ticket, route=[
    dt.Rule("empty", when=lambda ticket: not ticket.text.strip(), then=Route(intent="spam")),
    dt.Rule("echo", when=lambda ticket: ticket.priority == 9, then=lambda t: Route(intent=t.tags[0], confidence=1.0)),
    dt.Variant("small", model="raw/small", accept=dt.confidence(0.7)),
    dt.Variant("large", model="raw/large"),
])
typed = made("typed", only(), input=Ticket)
exact = made("exact", only(), input=Exact)
nested = made("nested", only(), input=Nested)
number = made("number", only(), input=Number)
texted = made("texted", only(), input=Ticket, output=None)
prompted = made("prompted", only(prompt="prompted.j2", system="system.j2"), input=Ticket)
dividing = made("dividing", only(prompt="dividing.j2"), input=Ticket, attempts_max=1)
simulated = made("simulated", [dt.Variant("only", model="sim/labels", max_output_tokens=64)], input=Ticket)
validated = made("validated", only(), input=Ticket, validators=[long_enough, never_spam])
denied = made("denied", only(accept=says_no), input=Ticket)
raising = made("raising", only(accept=raises), input=Ticket)
raising_first = made("raising-first", [*only(accept=[dt.confidence(0), raises]), dt.Variant("next", model="raw/m")],
                     input=Ticket)
as_json = made("as-json", only(), input=Ticket, chat_input="json")
as_conversation = made("as-conversation", only(), input=Ticket, chat_input="conversation")
by_field = made("by-field", only(), input=Two, chat_field="body")
by_first = made("by-first", only(), input=Two)
blind = made("blind", [dt.Variant("only", model="raw/blind", max_output_tokens=64)], input=Ticket)
picky = made("picky", only(parameters={"top_k": 40}), input=Ticket, parameters=dt.Parameters(
    honour=("temperature",), fix={"seed": 7}, ignore=("presence_penalty",), refuse=("n",)))
generous = made("generous", only(), input=Ticket, parameters=dt.Parameters(refuse=("n",), others="honour"))
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    labels = {"kind": "labels", "labels": ["billing", "technical"], "confidence": True, "answer_field": "intent"}
    simulated = {"server": {"allow_overrides": True}, "models": {"labels": {"quality": labels}}}
    with SimulatorProcess(simulated) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, simulator: SimulatorProcess) -> Iterator[Served]:
    priced = 'usd_per_million_input = "1"\nusd_per_million_output = "2"\n'
    tables = [
        provider("raw", f"{upstream.url}/raw"),
        provider("sim", f"{simulator.url}/v1"),
        *(model(f"raw/{name}") for name in ("m", "small", "large")),
        model("raw/blind", priced + 'capabilities = ["json_schema"]\n'),
        model("sim/labels"),
        workflow("assistant", "raw/m", more="attempts_max = 1\n"),
        workflow(
            "arranged",
            '{ name = "only", model = "raw/m", max_output_tokens = 64, parameters = { top_p = 0.5 } }',
            more='parameters = { honour = ["store"], fix = { seed = 7 }, ignore = ["stop"], refuse = ["n"] }\n',
        ),
        workflow("closed", "raw/m", more='parameters = { honour = ["temperature"], others = "refuse" }\n'),
    ]
    files = {
        "drivetrain.toml": settings(tables="".join(tables)),
        "workflows/typed.py": TYPED,
        "workflows/prompted.j2": "Text: {{ text }}|{{ priority }}|{{ tags | join('+') }}|{{ more.a }}",
        "workflows/system.j2": "System: {{ text | upper }}",
        "workflows/dividing.j2": "{{ 100 // priority }}",
        "workflows/secret.j2": "the secret of another template",
    }
    with served(files) as running:
        yield running
        assert running.alive
        assert not running.faults, "\n".join(running.faults)


@pytest.fixture(autouse=True)
def _fresh(upstream: Upstream) -> None:
    upstream.forget()
    answers(upstream, '{"intent": "billing", "confidence": 0.9}')


def answers(upstream: Upstream, text: str = "", by_model: Mapping[str, str] | None = None) -> None:
    """What the scripted upstream says from now on."""

    def script(asked: Asked, to: Wire) -> None:
        to.send(http(completion((by_model or {}).get(asked.json["model"], text))))

    upstream.on("/raw", script)


def asked(gateway: Served, name: str, value: Any, *, path: str = "") -> wire.Answered:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return wire.one(gateway.port, wire.request(raw, path=path or f"/v1/workflows/{name}"))


def chatted(gateway: Served, name: str, *messages: Any, **more: Any) -> wire.Answered:
    said = [one if isinstance(one, dict) else {"role": "user", "content": one} for one in messages]
    return wire.one(gateway.port, wire.request({"model": name, "messages": said, **more}))


def output(answer: wire.Answered) -> Any:
    assert answer.status == 200, answer
    return answer.json["output"]


def refused(answer: wire.Answered, named: str, status: int = 400) -> dict[str, Any]:
    assert answer.status == status, answer
    error = answer.error
    assert named in error["message"], error
    return error


def sent(upstream: Upstream) -> Any:
    """The messages of the only request."""
    (one,) = upstream.asked
    return one.json["messages"]


def said(upstream: Upstream) -> str:
    """The user message of the only request."""
    (one,) = upstream.asked
    assert one.json["messages"][-1]["role"] == "user"
    return str(one.json["messages"][-1]["content"])


# An output.


def test_an_input_becomes_an_output_with_its_cost(gateway: Served, upstream: Upstream) -> None:
    answer = asked(gateway, "triage", {"text": "my invoice is wrong"})
    body = answer.json
    call_id = body.pop("call_id")
    assert body == {
        "output": {"intent": "billing", "confidence": 0.9},
        "workflow": "triage",
        "variant": "small",
        "cost_usd": "0.000025",
        "cost_nano_usd": COST_NANO_USD,
        "attempts": 1,
    }
    assert answer.headers["x-request-id"] == call_id
    assert answer.headers["x-drivetrain-variant"] == "small"
    assert answer.headers["x-drivetrain-cost-nano-usd"] == str(COST_NANO_USD)
    call = gateway.call(call_id)
    assert (call.workflow, call.door, call.variant, call.status) == ("triage", "workflow", "small", "answered")
    assert call.cost_nano_usd == COST_NANO_USD
    (one,) = upstream.asked
    assert one.json["response_format"]["json_schema"]["name"] == "Route"
    assert "stream" not in one.json


@pytest.mark.parametrize(
    ("value", "intent", "variant"),
    [({"text": "  "}, "spam", "empty"), ({"text": "x", "priority": 9, "tags": ["technical"]}, "technical", "echo")],
)
def test_a_rule_answers_for_nothing(
    gateway: Served, upstream: Upstream, value: dict[str, Any], intent: str, variant: str
) -> None:
    answer = asked(gateway, "triage", value)
    assert output(answer)["intent"] == intent
    assert answer.json["variant"] == variant
    assert (answer.json["cost_usd"], answer.json["cost_nano_usd"]) == ("0.00", 0)
    assert upstream.asked == []


def test_a_rule_that_raises_answers_nothing_and_says_so(gateway: Served) -> None:
    answer = asked(gateway, "triage", {"text": "x", "priority": 9})
    assert answer.json["variant"] == "small"
    first, second = gateway.call(answer.json["call_id"]).attempts
    assert (first.variant, first.verdict, first.reason) == ("echo", "failed", "rule raised IndexError")
    assert second.verdict == "accepted"
    assert answer.json["attempts"] == 2


@pytest.mark.parametrize("small", ['{"intent": "billing", "confidence": 0.2}', '{"intent": "billing"}', "no idea", ""])
def test_an_answer_that_is_not_accepted_escalates_and_both_are_paid(
    gateway: Served, upstream: Upstream, small: str
) -> None:
    answers(upstream, by_model={"small": small, "large": '{"intent": "technical"}'})
    answer = asked(gateway, "triage", {"text": "it is broken"})
    assert output(answer) == {"intent": "technical", "confidence": None}
    assert answer.json["variant"] == "large"
    assert answer.json["attempts"] == 2
    assert answer.json["cost_nano_usd"] == 2 * COST_NANO_USD
    first, second = gateway.call(answer.json["call_id"]).attempts
    assert (first.verdict, second.purpose, second.verdict) == ("escalated", "escalation", "accepted")


def test_a_workflow_without_an_output_type_answers_the_text(gateway: Served, upstream: Upstream) -> None:
    answers(upstream, "just {text}")
    assert output(asked(gateway, "texted", {"text": "hello"})) == "just {text}"
    assert "response_format" not in upstream.asked[0].json


# An answer that needs mending.


@pytest.mark.parametrize("failure", ["fenced", "trailing_comma"])
def test_an_answer_that_is_nearly_json_is_mended(gateway: Served, failure: str) -> None:
    answer = asked(gateway, "simulated", {"text": f"my invoice [[simulate failure={failure}]]"})
    assert output(answer)["intent"] in ("billing", "technical")
    (attempt,) = gateway.call(answer.json["call_id"]).attempts
    assert attempt.repaired
    assert attempt.reason.startswith("repaired: ")
    assert failure.replace("_", " ").removesuffix("d") in attempt.reason


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"intent": "billing",}\n```',
        'Sure! Here it is:\n```\n{"intent": "billing"}\n```\nAnything else?',
        'The answer is {"intent": "billing"}. Bye.',
        '\ufeff{"intent": "billing"}',
        '{"intent": "billing", "confidence": null, }',
        '{"intent": "billing", "reason": "a, }, b"}',
    ],
)
def test_everything_around_the_json_is_left_out(gateway: Served, upstream: Upstream, text: str) -> None:
    answers(upstream, text)
    answer = asked(gateway, "typed", {"text": "x"})
    assert output(answer) == {"intent": "billing", "confidence": None}
    chat = chatted(gateway, "typed", "x")
    assert json.loads(chat.json["choices"][0]["message"]["content"])["intent"] == "billing"


@pytest.mark.parametrize("failure", ["malformed", "truncated_json", "empty"])
def test_an_answer_that_cannot_be_mended_is_a_502(gateway: Served, failure: str) -> None:
    answer = asked(gateway, "simulated", {"text": f"my invoice [[simulate failure={failure}]]"})
    error = refused(answer, "cannot be used", 502)
    assert error["code"] == "unusable_answer"
    call = gateway.call(answer.headers["x-request-id"])
    assert call.status == "failed"
    assert [one.verdict for one in call.attempts] == ["escalated"]
    assert call.cost_nano_usd > 0


@pytest.mark.parametrize(
    "text",
    [
        "no",
        '{"intent": "other"}',
        '{"confidence": 1}',
        "[]",
        "null",
        '{"intent": 5}',
        '{"intent": "billing", "con',
        "[" * 5_000,
    ],
)
def test_an_output_of_the_wrong_type_is_a_502_without_its_text(gateway: Served, upstream: Upstream, text: str) -> None:
    answers(upstream, text)
    error = refused(asked(gateway, "typed", {"text": "x"}), "the answer is no Route", 502)
    assert error["code"] == "unusable_answer"
    assert len(upstream.asked) == 1


# Checks in Python.


def test_validators_see_the_output_and_the_input(gateway: Served, upstream: Upstream) -> None:
    assert output(asked(gateway, "validated", {"text": "long enough"}))["intent"] == "billing"
    error = refused(asked(gateway, "validated", {"text": "oh"}), "the ticket is too short to tell", 502)
    assert error["code"] == "no_acceptable_answer"
    answers(upstream, '{"intent": "spam"}')
    refused(asked(gateway, "validated", {"text": "long enough"}), "spam is never the answer", 502)


def test_a_check_that_says_no_is_named(gateway: Served) -> None:
    assert refused(asked(gateway, "denied", {"text": "x"}), "says_no said no", 502)["code"] == "no_acceptable_answer"


def test_a_check_that_raises_rejects_and_keeps_its_text_to_itself(gateway: Served) -> None:
    answer = asked(gateway, "raising", {"text": "x"})
    error = refused(answer, "raises raised ValueError", 502)
    assert "private" not in error["message"]
    call = gateway.call(answer.headers["x-request-id"])
    assert "private" not in str(call)
    assert b"a private text: billing" not in gateway.everything_written()
    after = asked(gateway, "raising-first", {"text": "x"})
    assert output(after)["intent"] == "billing"
    assert after.json["variant"] == "next"


# An input that is none.

NO_TICKETS: dict[str, tuple[Any, str]] = {
    "missing": ({"priority": 1}, "text"),
    "null": ({"text": None}, "text"),
    "number": ({"text": 5}, "text"),
    "list": ({"text": ["x"]}, "text"),
    "priority-text": ({"text": "x", "priority": "1"}, "priority"),
    "priority-float": ({"text": "x", "priority": 1.5}, "priority"),
    "priority-bool": ({"text": "x", "priority": True}, "priority"),
    "tags-text": ({"text": "x", "tags": "a"}, "tags"),
    "tags-number": ({"text": "x", "tags": ["a", 5]}, "tags[1]"),
    "more-list": ({"text": "x", "more": []}, "more"),
}


@pytest.mark.parametrize(("value", "field"), NO_TICKETS.values(), ids=NO_TICKETS)
def test_a_wrong_field_is_a_400_that_names_it(gateway: Served, upstream: Upstream, value: Any, field: str) -> None:
    error = refused(asked(gateway, "typed", value), "the input is no Ticket")
    assert error["code"] == "invalid_type"
    assert error["param"] == field
    assert field.partition("[")[0] in error["message"]
    assert upstream.asked == []


def test_a_wrong_field_of_a_part_is_named_by_its_path(gateway: Served) -> None:
    error = refused(asked(gateway, "nested", {"tickets": [{"text": "x"}, {"text": 5}]}), "tickets")
    assert error["param"] == "tickets[1].text"


def test_a_field_too_many_is_named_where_the_type_forbids_it(gateway: Served) -> None:
    error = refused(asked(gateway, "exact", {"text": "x", "langage": "de"}), "langage")
    assert error["param"] == "langage"


def test_a_field_too_many_is_named_rather_than_dropped(gateway: Served, upstream: Upstream) -> None:
    """A misspelled optional field would be lost without a word: `prioritty` is no `priority`."""
    refused(asked(gateway, "typed", {"text": "x", "prioritty": 1}), "prioritty")
    assert upstream.asked == []


@pytest.mark.parametrize("value", [[], [{"text": "x"}], "text", 5, None, True, {}], ids=str)
def test_what_is_no_object_or_empty_is_a_400(gateway: Served, upstream: Upstream, value: Any) -> None:
    assert refused(asked(gateway, "typed", value), "the input is no Ticket")["code"] == "invalid_type"
    assert upstream.asked == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"text", b'{"text": "\xff"}', b'{"text": "\\ud800"}', b'{"text": NaN}', b"\xef\xbb\xbf{}", b"{} {}"],
    ids=["empty", "half", "words", "utf8", "surrogate", "nan", "bom", "two"],
)
@pytest.mark.parametrize("name", ["typed", "assistant"])
def test_a_body_that_is_no_json_is_a_400(gateway: Served, upstream: Upstream, name: str, body: bytes) -> None:
    answer = asked(gateway, name, body)
    assert answer.status == 400, answer
    assert answer.error["code"] in ("invalid_json", "invalid_type")
    assert upstream.asked == []


@pytest.mark.parametrize("depth", [10, 400, 990, 5_000, 100_000])
@pytest.mark.parametrize("name", ["typed", "prompted"])
@pytest.mark.parametrize("field", ["more", "unknown", "text"])
def test_nesting_is_answered_or_refused_at_every_depth(gateway: Served, name: str, field: str, depth: int) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    text = "" if field == "text" else '"text": "x", '
    answer = asked(gateway, name, f'{{{text}"{field}": {deep}}}'.encode())
    assert answer.status in (200, 400)
    if depth > 2_000:
        assert answer.status == 400
    if depth < 100 and field == "more":
        assert answer.status == 200


@pytest.mark.parametrize("number", ["9223372036854775808", "18446744073709551616", "1" + "0" * 200, "-1" + "0" * 30])
@pytest.mark.parametrize("name", ["typed", "prompted"])
def test_a_huge_number_is_sent_on_or_refused(gateway: Served, upstream: Upstream, name: str, number: str) -> None:
    for value in (f'{{"text": "x", "priority": {number}}}', f'{{"text": "x", "more": {{"a": {number}}}}}'):
        upstream.forget()
        answer = asked(gateway, name, value.encode())
        assert answer.status in (200, 400), answer
        if answer.status == 200:
            assert number in said(upstream)


# Names.


@pytest.mark.parametrize("path", ["typed", "%74yped", "t%79p%65d", "typed?trace=1"])
def test_a_name_may_be_url_encoded(gateway: Served, path: str) -> None:
    assert output(asked(gateway, "", {"text": "x"}, path=f"/v1/workflows/{path}"))["intent"] == "billing"


@pytest.mark.parametrize("path", ["typd", "Typed", "typed/", "typed%2F", "typed%00", "%ff", "t", "", "../typed"])
def test_an_unknown_name_is_a_404(gateway: Served, upstream: Upstream, path: str) -> None:
    answer = asked(gateway, "", {"text": "x"}, path=f"/v1/workflows/{path}")
    error = refused(answer, "no workflow", 404)
    assert error["code"] == "model_not_found"
    if path == "typd":
        assert "Did you mean `typed`?" in error["message"]
    assert upstream.asked == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_only_post_is_answered(gateway: Served, method: str) -> None:
    assert wire.one(gateway.port, wire.request(method=method, path="/v1/workflows/typed")).status == 405


# A chat workflow through this door.


def test_a_text_or_messages_to_a_chat_workflow(gateway: Served, upstream: Upstream) -> None:
    answers(upstream, "hello back")
    assert output(asked(gateway, "assistant", {"text": "hello"})) == "hello back"
    assert sent(upstream) == [{"role": "user", "content": "hello"}]
    upstream.forget()
    said_before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    answer = asked(gateway, "assistant", {"messages": said_before, "temperature": 0.5, "model": "ignored"})
    assert output(answer) == "hello back"
    assert answer.json["cost_nano_usd"] == COST_NANO_USD
    (one,) = upstream.asked
    assert one.json == {"model": "m", "messages": said_before, "temperature": 0.5, "max_tokens": 4096}
    assert gateway.call(answer.json["call_id"]).door == "workflow"


def test_tool_calls_through_this_door_are_the_output(gateway: Served, upstream: Upstream) -> None:
    called = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [called]}
    upstream.on("/raw", http(completion(choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}])))
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    answer = asked(gateway, "assistant", {"text": "look", "tools": tools})
    assert output(answer)["tool_calls"] == [called]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"text": "hello", "stream": True}, "stream"),
        ({"messages": [{"role": "user", "content": "x"}], "stream": True}, "stream"),
        ({"text": 5}, "text"),
        ({"text": ["x"]}, "text"),
        ({"text": None}, "messages"),
        ({}, "messages"),
        ({"message": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"text": "hello", "temperature": "warm"}, "temperature"),
        ({"text": "hello", "max_tokens": 0}, "max_tokens"),
    ],
    ids=str,
)
def test_a_wrong_chat_input_is_a_400_that_names_it(gateway: Served, upstream: Upstream, value: Any, named: str) -> None:
    assert refused(asked(gateway, "assistant", value), named)["param"] == named
    assert upstream.asked == []


def test_text_beside_messages_is_refused_rather_than_sent_as_a_parameter(gateway: Served, upstream: Upstream) -> None:
    both = {"text": "hello", "messages": [{"role": "user", "content": "other"}]}
    assert refused(asked(gateway, "assistant", both), "text")["param"] == "text"
    assert upstream.asked == []


# Prompts.


def test_an_input_without_a_prompt_is_its_text_or_its_json(gateway: Served, upstream: Upstream) -> None:
    asked(gateway, "typed", {"text": HOSTILE})
    assert json.loads(said(upstream)) == {"text": HOSTILE, "priority": 3, "tags": [], "more": {}}
    upstream.forget()
    asked(gateway, "number", {"number": 5})
    assert said(upstream) == '{"number":5}'


def test_user_text_in_a_prompt_stays_text(gateway: Served, upstream: Upstream) -> None:
    asked(gateway, "prompted", {"text": HOSTILE, "tags": ["{{ text }}", "{% raw %}"], "more": {"a": "{{ 7*7 }}"}})
    system, user = sent(upstream)
    assert user == {"role": "user", "content": f"Text: {HOSTILE}|3|{{{{ text }}}}+{{% raw %}}|{{{{ 7*7 }}}}"}
    assert system == {"role": "system", "content": f"System: {HOSTILE.upper()}"}
    assert "49" not in user["content"]
    assert "the secret" not in str(upstream.asked[0].body)


def test_user_text_through_the_chat_door_stays_text(gateway: Served, upstream: Upstream) -> None:
    chatted(gateway, "prompted", HOSTILE)
    assert said(upstream) == f"Text: {HOSTILE}|3||"


def test_a_prompt_that_fails_on_an_input_is_an_error_that_names_it(gateway: Served, upstream: Upstream) -> None:
    """Like a rule or a check that raises, a template that does is the project's, and no fault of the gateway."""
    answers(upstream, '{"intent": "billing"}')
    assert output(asked(gateway, "dividing", {"text": "x", "priority": 5}))["intent"] == "billing"
    upstream.forget()
    answer = asked(gateway, "dividing", {"text": "x", "priority": 0})
    assert answer.status >= 400
    assert "dividing.j2" in answer.error["message"], answer.error
    assert upstream.asked == []
    assert gateway.call(answer.headers["x-request-id"]).cost_nano_usd == 0


# How a chat request becomes an input.

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "answer"},
    {"role": "user", "content": [{"type": "text", "text": "second"}, {"type": "text", "text": "third"}]},
]


def test_the_last_user_message_is_the_text(gateway: Served, upstream: Upstream) -> None:
    assert chatted(gateway, "typed", *TURNS, {"role": "assistant", "content": "later"}).status == 200
    assert json.loads(said(upstream))["text"] == "second\nthird"
    assert "Be brief." not in str(upstream.asked[0].body)


def test_the_first_text_field_or_the_one_that_is_named_takes_it(gateway: Served, upstream: Upstream) -> None:
    assert chatted(gateway, "by-first", "hello").status == 200
    assert json.loads(said(upstream)) == {"subject": "hello", "body": "none"}
    upstream.forget()
    error = refused(chatted(gateway, "by-field", "hello"), "subject")
    assert "/v1/workflows/by-field" in error["message"]
    refused(chatted(gateway, "number", "5"), "/v1/workflows/number")
    assert upstream.asked == []


def test_the_last_user_message_may_be_the_input_as_json(gateway: Served, upstream: Upstream) -> None:
    assert chatted(gateway, "as-json", "before", '{"text": "x", "priority": 1}').status == 200
    assert json.loads(said(upstream)) == {"text": "x", "priority": 1, "tags": [], "more": {}}


@pytest.mark.parametrize("text", ["x", "", '{"priority": 1}', '{"text": 5}', "[" * 5_000, '["x"]'])
def test_a_last_message_that_is_no_input_is_a_400(gateway: Served, upstream: Upstream, text: str) -> None:
    assert refused(chatted(gateway, "as-json", text), "no Ticket as JSON")["param"] == "messages"
    assert upstream.asked == []


def test_the_whole_conversation_may_be_the_text(gateway: Served, upstream: Upstream) -> None:
    assert chatted(gateway, "as-conversation", *TURNS).status == 200
    text = json.loads(said(upstream))["text"]
    assert text == "system: Be brief.\n\nuser: first\n\nassistant: answer\n\nuser: second\nthird"


@pytest.mark.parametrize("name", ["typed", "as-json", "as-conversation", "prompted"])
def test_an_image_is_refused_where_the_input_is_text(gateway: Served, upstream: Upstream, name: str) -> None:
    parts = [{"type": "text", "text": '{"text": "look"}'}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    error = refused(chatted(gateway, name, {"role": "user", "content": parts}), "images")
    assert error["param"] == "messages"
    assert upstream.asked == []


def test_an_image_that_is_not_sent_needs_no_model_that_sees(gateway: Served, upstream: Upstream) -> None:
    """Only the last user message goes to the model, so what stands before it asks nothing of it."""
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}
    answer = chatted(gateway, "blind", image, {"role": "assistant", "content": "a dot"}, "and now?")
    assert answer.status == 200, answer
    assert json.loads(said(upstream))["text"] == "and now?"


def test_a_conversation_without_a_user_is_a_400(gateway: Served, upstream: Upstream) -> None:
    refused(chatted(gateway, "typed", {"role": "system", "content": "x"}), "no user message")
    assert upstream.asked == []


# Parameters.


def _format(upstream: Upstream) -> dict[str, Any]:
    (one,) = upstream.asked
    body = dict(one.json)
    assert body.pop("response_format")["type"] == "json_schema"
    assert json.loads(body.pop("messages")[0]["content"])["text"] == "x"
    return body


def test_a_typed_workflow_sends_what_it_names_and_nothing_else(gateway: Served, upstream: Upstream) -> None:
    given = {"temperature": 0.3, "seed": 1, "presence_penalty": 1, "max_tokens": 5, "user": "ann", "top_p": None}
    assert chatted(gateway, "picky", "x", **given).status == 200
    assert _format(upstream) == {"model": "m", "temperature": 0.3, "seed": 7, "top_k": 40, "max_tokens": 5}


@pytest.mark.parametrize("parameter", [{"n": 2}, {"top_p": 0.5}, {"response_format": {"type": "text"}}, {"tools": []}])
def test_a_typed_workflow_refuses_what_it_does_not_name(
    gateway: Served, upstream: Upstream, parameter: dict[str, Any]
) -> None:
    (name,) = parameter
    error = refused(chatted(gateway, "picky", "x", **parameter), f"`{name}`")
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert upstream.asked == []


def test_fixed_parameters_are_sent_through_both_doors(gateway: Served, upstream: Upstream) -> None:
    assert asked(gateway, "picky", {"text": "x"}).status == 200
    assert _format(upstream) == {"model": "m", "seed": 7, "top_k": 40, "max_tokens": 64}


def test_a_client_cannot_replace_the_shape_of_a_typed_answer(gateway: Served, upstream: Upstream) -> None:
    answer = chatted(gateway, "generous", "x", response_format={"type": "text"}, top_p=0.5)
    assert answer.status == 200
    assert _format(upstream) == {"model": "m", "top_p": 0.5, "max_tokens": 64}


def test_a_chat_workflow_sends_what_it_was_given_but_what_it_treats(gateway: Served, upstream: Upstream) -> None:
    given = {"temperature": 0.3, "top_p": 0.9, "seed": 1, "stop": ["x"], "store": True, "frequency_penalty": 1}
    answer = chatted(gateway, "arranged", "hi", **given, max_completion_tokens=1_000, max_tokens=900, made_up={"a": 1})
    assert answer.status == 200
    (one,) = upstream.asked
    assert one.json == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.3,
        "top_p": 0.5,
        "seed": 7,
        "store": True,
        "frequency_penalty": 1,
        "made_up": {"a": 1},
        "max_tokens": 64,
    }
    upstream.forget()
    refused(chatted(gateway, "arranged", "hi", n=2), "`n`")
    refused(chatted(gateway, "assistant", "hi", store=True), "`store`")
    refused(chatted(gateway, "closed", "hi", seed=1), "`seed`")
    refused(chatted(gateway, "closed", "hi", made_up=1), "`made_up`")
    assert upstream.asked == []


def test_nothing_is_left_running(gateway: Served) -> None:
    """Stands last."""
    assert eventually(lambda: all(call.status != "running" for call in gateway.calls()), every_s=0.05), [
        call for call in gateway.calls() if call.status == "running"
    ]
