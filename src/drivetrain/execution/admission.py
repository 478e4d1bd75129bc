"""A chat request or a typed input, admitted: validated, its parameters honoured, fixed or refused.

What comes out is what every variant is built from, and nothing else of the client's request reaches a provider.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from drivetrain.core.codec import MalformedJson, parse_json
from drivetrain.core.declarations import Conversation, Parameters, Workflow
from drivetrain.core.errors import RequestError, did_you_mean

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
CHOICES_MAX = 16
"""Of `n`; each choice is billed."""
OUTPUT_TOKENS_MAX = 10_000_000
"""No model has more; larger numbers are mistakes."""
BEYOND_THE_ANSWER = frozenset(
    {"audio", "background", "modalities", "prediction", "service_tier", "store", "web_search_options"}
)
"""Parameters that change price or privacy: passed on only where a workflow names them in `honour`."""

OTHERS_ROUTES = frozenset(
    {
        "api_base", "api_key", "api_version", "base_url", "best_of", "custom_llm_provider", "endpoint", "extra_body",
        "extra_headers", "extra_query", "fallbacks", "mcp_servers", "models", "plugins", "provider", "route",
        "search_parameters", "speed",
    }
)  # fmt: skip
"""What proxies and providers take to ask somebody else, at another address or price; only a variant may say so."""

TOKEN_LIMITS_ELSEWHERE = frozenset({"max_output_tokens", "max_new_tokens", "max_tokens_to_sample", "num_predict"})
"""What other interfaces call the limit of output tokens."""


class Admitted(msgspec.Struct, frozen=True):
    """One input, ready to go through a route."""

    value: Any
    """The input type's instance, a Conversation, or None where no rule, check or prompt looks at it."""
    chat: dict[str, Any]
    """`messages` (of a plain chat) and the honoured and fixed parameters."""
    stream: bool
    include_usage: bool
    max_output_tokens: int | None
    """The client's own limit."""
    needs: frozenset[str]
    """Capabilities that the request cannot do without."""
    raw: bytes
    """As received, for the record and for replay."""
    user: str = ""
    """The client's `user` parameter."""


NO_NEEDS: frozenset[str] = frozenset()


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> RequestError:
    """A 400 in OpenAI's shape."""
    return RequestError(400, message, code=code, param=param)


def parse_body(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises: RequestError."""
    try:
        body = parse_json(raw)
    except MalformedJson as error:
        raise bad_request(f"the body is no valid JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object", code="invalid_json")
    return body


def unstreamed_body(raw: bytes) -> dict[str, Any]:
    """A chat request's body, without its wish for a stream. Raises: RequestError."""
    return {name: value for name, value in parse_body(raw).items() if name not in ("stream", "stream_options")}


def too_deep() -> RequestError:
    """A 400 for what our own stack cannot walk; parsers and encoders stop at about a thousand levels."""
    return bad_request("the body is nested too deeply", code="invalid_json")


class ChatAdmission:
    """Admits chat requests to one workflow."""

    __slots__ = ("_fixed", "_input", "_messages_max", "_needs_value", "_others", "_refused", "_treatments")

    def __init__(self, workflow: Workflow[Any, Any], *, needs_value: bool, messages_max: int) -> None:
        declared: Parameters = workflow.parameters
        typed = workflow.input is not None or workflow.output is not None
        self._fixed = dict(declared.fix)
        self._refused = frozenset(declared.refuse)
        self._others = declared.others or ("refuse" if typed else "honour")
        self._messages_max = messages_max
        self._needs_value = needs_value
        self._input = chat_to_input(workflow) if workflow.input is not None else None
        self._treatments: dict[str, str] = {
            "model": "drop",
            "messages": "drop",
            "stream": "drop",
            "stream_options": "stream options",
            "max_tokens": "limit",
            "max_completion_tokens": "limit",
            **dict.fromkeys((*declared.ignore, *declared.fix), "drop"),
            **dict.fromkeys(declared.honour, "pass"),
        }
        """What happens to a parameter; those that nobody names follow `others`."""

    def admit(self, body: dict[str, Any], raw: bytes) -> Admitted:
        """Raises: RequestError for what is wrong or refused, naming the parameter."""
        messages: Any = body.get("messages")
        needs = self._check_messages(messages)
        stream = body.get("stream")
        if stream is not None and stream is not True and stream is not False:
            raise bad_request("`stream` must be true or false", param="stream", code="invalid_type")
        chat: dict[str, Any] = {"messages": messages}
        limit: int | None = None
        include_usage = False
        user = ""
        treatments = self._treatments
        for name, value in body.items():
            if value is None:
                continue
            if name == "user":
                user = _user(value)
            treatment = treatments.get(name) or self._unnamed(name)
            if treatment == "pass":
                if name in CHECKED:
                    needs = _check_parameter(name, value, needs)
                chat[name] = value
            elif treatment == "limit":
                limit = _token_limit(name, value, limit)
            elif treatment == "stream options":
                include_usage = _include_usage(value)
                chat[name] = value
        if self._fixed:
            chat.update(self._fixed)
        value = None
        if self._input is not None:
            value = self._input(messages)
            needs = needs - {"images"}  # the input is text; what else stood in the conversation is not sent
        elif self._needs_value:
            value = Conversation(tuple(messages), last_user_text(messages))
        return Admitted(value, chat, stream is True, include_usage, limit, needs, raw, user)

    def _unnamed(self, name: str) -> str:
        """The treatment of a parameter that neither we nor the workflow names. Raises: RequestError."""
        if name in self._refused or (self._others == "refuse" and name != "user"):
            raise bad_request(
                f"this workflow does not take the parameter `{name[:100]}`; its owner can name it in parameters.honour",
                param=name[:100],
                code="unsupported_parameter",
            )
        if name in BEYOND_THE_ANSWER:
            raise bad_request(
                f"`{name}` changes what a call costs or keeps; the workflow's owner can name it in parameters.honour",
                param=name,
                code="unsupported_parameter",
            )
        if name in OTHERS_ROUTES:
            raise bad_request(
                f"`{name}` would change who answers or at what price; the workflow's owner can set it for a variant",
                param=name,
                code="unsupported_parameter",
            )
        if name in TOKEN_LIMITS_ELSEWHERE:
            # Passed on, it would bound nothing.
            raise bad_request(
                f"chat requests have no `{name}`. Did you mean `max_completion_tokens`?",
                param=name,
                code="unsupported_parameter",
            )
        treatment = "pass" if self._others == "honour" else "drop"
        if name in CHECKED:  # only known names, so that clients cannot make this grow
            self._treatments[name] = treatment
        return treatment

    def _check_messages(self, messages: Any) -> frozenset[str]:
        if not isinstance(messages, list):
            raise bad_request("`messages` must be a list of messages", param="messages", code="invalid_type")
        if not messages:
            raise bad_request("`messages` is empty", param="messages", code="empty_array")
        if len(messages) > self._messages_max:
            raise bad_request(
                f"`messages` has {len(messages)} messages; this gateway takes at most {self._messages_max}",
                param="messages",
                code="array_above_max_length",
            )
        images = False
        for place, message in enumerate(messages):
            if not isinstance(message, dict):
                raise bad_request(
                    f"messages[{place}] must be an object", param=f"messages[{place}]", code="invalid_type"
                )
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or role not in ROLES:
                raise bad_request(
                    f"messages[{place}].role must be one of {', '.join(sorted(ROLES))}", param=f"messages[{place}].role"
                )
            if isinstance(content, str):
                continue
            if content is None:
                if role == "assistant":
                    continue
            elif isinstance(content, list):
                images = _check_parts(content, place) or images
                continue
            raise bad_request(
                f"messages[{place}].content must be a string or a list of parts",
                param=f"messages[{place}].content",
                code="invalid_type",
            )
        return frozenset({"images"}) if images else NO_NEEDS


def admit_input(workflow: Workflow[Any, Any], decoder: msgspec.json.Decoder[Any], raw: bytes) -> Admitted:
    """A typed input from JSON. Raises: RequestError that names the field."""
    try:
        value = decoder.decode(raw)
    except RecursionError as error:
        raise too_deep() from error
    except msgspec.ValidationError as error:
        field = _field_of(str(error))
        name = workflow.input.__name__ if workflow.input is not None else "input"
        raise bad_request(f"the input is no {name}: {error}", param=field, code="invalid_type") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise bad_request(f"the body is no valid JSON: {error}", code="invalid_json") from error
    names = _input_names(decoder.type)  # type: ignore[arg-type]
    for name in FIELD_NAMES.decode(raw):
        if name not in names:
            message = f"the input has no field `{name[:64]}`. {did_you_mean(name[:64], names)}"
            raise bad_request(message, param=name[:64], code="invalid_type")
    return Admitted(value, dict(workflow.parameters.fix), False, False, None, NO_NEEDS, raw)


FIELD_NAMES: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NAMED = re.compile(r"(?:missing required|contains unknown) field `([^`]*)`")


@functools.lru_cache(maxsize=1024)
def _input_names(input_type: type[Any]) -> frozenset[str]:
    names = {field.encode_name for field in msgspec.structs.fields(input_type)}
    tag = input_type.__struct_config__.tag_field
    return frozenset(names | {tag} if tag else names)


def _field_of(problem: str) -> str | None:
    """The path of the field that msgspec's message is about."""
    what, _, path = problem.partition(" - at ")
    named = _NAMED.search(what)
    parts = [path.strip("`$."), named[1] if named is not None else ""]
    return ".".join(part for part in parts if part) or None


def as_chat(body: dict[str, Any]) -> dict[str, Any]:
    """A chat workflow's input: `{"text": ...}`, or a chat request without `model`."""
    text_given = body.get("text")
    if text_given is None:
        return body
    if "messages" in body:
        raise bad_request("give `text` or `messages`, not both", param="text")
    if not isinstance(text_given, str):
        raise bad_request("`text` must be a string", param="text", code="invalid_type")
    rest = {name: value for name, value in body.items() if name != "text"}
    return {**rest, "messages": [{"role": "user", "content": text_given}]}


def last_user_text(messages: list[Any]) -> str:
    """The text of the last user message; empty where there is none."""
    for message in reversed(messages):
        if message["role"] == "user":
            return text_of(message.get("content"))
    return ""


def text_of(content: Any) -> str:
    """The text parts of a message's content, joined by line feeds."""
    if isinstance(content, str):
        return content
    return "\n".join(
        part["text"] for part in content or [] if part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def chat_to_input(workflow: Workflow[Any, Any]) -> Callable[[list[Any]], Any]:
    """How a conversation becomes the workflow's input, as `chat_input` and `chat_field` declare it."""
    input_type: type[Any] = workflow.input  # type: ignore[assignment]
    if workflow.chat_input == "json":
        decoder = msgspec.json.Decoder(input_type)

        def from_json(messages: list[Any]) -> Any:
            text = _text_only(messages)
            try:
                return decoder.decode(text)
            except (msgspec.MsgspecError, RecursionError) as error:
                message = f"the last user message is no {input_type.__name__} as JSON: {error}"
                raise bad_request(message, param="messages") from error

        return from_json
    field = workflow.chat_field or first_text_field(input_type)

    def from_text(messages: list[Any]) -> Any:
        if not field:
            message = f"this workflow's input has no text field; call POST /v1/workflows/{workflow.name}"
            raise bad_request(message, param="messages")
        if workflow.chat_input == "conversation":
            for one in messages:
                _require_text(one.get("content"))
            text = "\n\n".join(f"{one['role']}: {text_of(one.get('content'))}" for one in messages)
        else:
            text = _text_only(messages)
        try:
            return msgspec.convert({field: text}, input_type)
        except msgspec.ValidationError as error:
            message = (
                f"a chat message gives this workflow only `{field}`: {error}; "
                f"call POST /v1/workflows/{workflow.name} with the whole input"
            )
            raise bad_request(message, param="messages") from error

    return from_text


def first_text_field(input_type: type[Any]) -> str:
    """The first field of type `str`; empty where there is none."""
    for field in msgspec.structs.fields(input_type):
        if field.type is str:
            return field.encode_name
    return ""


def _text_only(messages: list[Any]) -> str:
    for message in reversed(messages):
        if message["role"] == "user":
            content = message.get("content")
            _require_text(content)
            return text_of(content)
    raise bad_request("`messages` holds no user message", param="messages")


def _require_text(content: Any) -> None:
    if isinstance(content, list) and any(part.get("type") not in ("text", "refusal") for part in content):
        raise bad_request("this workflow's input is text; images and files do not fit it", param="messages")


def _check_parts(parts: list[Any], place: int) -> bool:
    """Whether images are among them. Raises: RequestError."""
    images = False
    for number, part in enumerate(parts):
        param = f"messages[{place}].content[{number}]"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise bad_request(f"{param} must be an object with a `type`", param=param, code="invalid_type")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise bad_request(f"{param}.text must be a string", param=f"{param}.text", code="invalid_type")
        if part["type"] == "image_url":
            url = part["image_url"].get("url") if isinstance(part.get("image_url"), dict) else None
            if not isinstance(url, str) or not url.startswith(("https://", "http://", "data:image/")):
                raise bad_request(f"{param}.image_url.url must be an http(s) or data:image URL", param=param)
            images = True
    return images


def _include_usage(options: Any) -> bool:
    if not isinstance(options, dict):
        raise bad_request("`stream_options` must be an object", param="stream_options", code="invalid_type")
    wanted = options.get("include_usage", False)
    if wanted is not None and not isinstance(wanted, bool):
        raise bad_request("`stream_options.include_usage` must be true or false", param="stream_options")
    return bool(wanted)


def _token_limit(name: str, value: Any, other: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_request(f"`{name}` must be a whole number", param=name, code="invalid_type")
    if value < 1:
        raise bad_request(f"`{name}` is {value}; it must be at least 1", param=name, code="integer_below_min_value")
    if value > OUTPUT_TOKENS_MAX:
        raise bad_request(
            f"`{name}` is above {OUTPUT_TOKENS_MAX}, which no model can answer",
            param=name,
            code="integer_above_max_value",
        )
    return value if other is None else min(value, other)


def _user(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise bad_request("`user` must be a string", param="user", code="invalid_type")
    if len(value) > 256:
        raise bad_request("`user` is longer than 256 characters", param="user", code="string_above_max_length")
    return value


def _number(low: float, high: float) -> Callable[[Any], str | None]:
    def test(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "a number"
        return None if low <= value <= high else f"between {low:g} and {high:g}"

    return test


def _of(kind: type | tuple[type, ...], said: str) -> Callable[[Any], str | None]:
    return lambda value: None if isinstance(value, kind) else said


def _whole(low: int, high: int) -> Callable[[Any], str | None]:
    def test(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return "a whole number"
        return None if low <= value <= high else f"between {low} and {high}"

    return test


_TESTS: Mapping[str, Callable[[Any], str | None]] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "n": _whole(1, CHOICES_MAX),
    "seed": _whole(-(2**63), 2**63 - 1),
    "top_logprobs": _whole(0, 20),
    "logprobs": _of(bool, "true or false"),
    "parallel_tool_calls": _of(bool, "true or false"),
    "stop": _of((str, list), "a string or a list of strings"),
    "tools": _of(list, "a list of tools"),
    "tool_choice": _of((str, dict), "a string or an object"),
    "response_format": _of(dict, "an object"),
    "logit_bias": _of(dict, "an object"),
    "metadata": _of(dict, "an object"),
    "reasoning_effort": _of(str, "a string"),
}


CHECKED = frozenset(_TESTS)


def _check_parameter(name: str, value: Any, needs: frozenset[str]) -> frozenset[str]:
    expected = _TESTS[name](value)
    if expected is not None:
        raise bad_request(f"`{name}` must be {expected}", param=name, code="invalid_type")
    if name == "tools" and value:
        return needs | {"tools"}
    if name == "response_format" and value.get("type") == "json_schema":
        return needs | {"json_schema"}
    return needs
