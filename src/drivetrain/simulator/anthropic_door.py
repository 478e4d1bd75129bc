"""The Anthropic dialect: messages, their streams and their errors.

Shapes follow https://docs.claude.com/en/api/messages and https://docs.claude.com/en/docs/build-with-claude/streaming.
Called by `desk` through `door.Door`.
"""

from collections.abc import Callable

import msgspec

from drivetrain.simulator.content import Content, tokens_of
from drivetrain.simulator.door import STREAM_FRAMING, WHOLE_FRAMING, Asked, Refusal, Said, Usage, spoiled, status_line

TOKENS_PER_MESSAGE = 4
_FINISH = {"stop": b"end_turn", "length": b"max_tokens", "tool": b"tool_use"}
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_BLOCK_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
_MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_NO_TOOL_INPUT = b'{"type":"object","properties":{}}'
_JSON = msgspec.json.encode


class _Part(msgspec.Struct):
    type: str
    text: str = ""
    content: msgspec.Raw = msgspec.Raw(b"")


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part]


class _Tool(msgspec.Struct):
    name: str
    input_schema: msgspec.Raw = msgspec.Raw(_NO_TOOL_INPUT)


class _ToolChoice(msgspec.Struct):
    type: str
    name: str = ""


class _Format(msgspec.Struct):
    type: str
    schema: msgspec.Raw = msgspec.Raw(b"")


class _OutputConfig(msgspec.Struct):
    format: _Format | None = None


class _Request(msgspec.Struct):
    model: str
    messages: list[_Message]
    max_tokens: int
    system: str | list[_Part] | None = None
    stream: bool = False
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None


class AnthropicDoor:
    """Speaks as api.anthropic.com does."""

    envelope_bytes = 301

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_Request).decode

    def key(self, header: Callable[[bytes], bytes | None]) -> bytes | None:
        value = header(b"x-api-key")
        if value is not None:
            return value
        bearer = header(b"authorization")
        return bearer[7:].strip() if bearer is not None and bearer[:7].lower() == b"bearer " else None

    def read(self, body: bytes, header: Callable[[bytes], bytes | None]) -> Asked:
        if header(b"anthropic-version") is None:
            raise Refusal(400, "anthropic-version: header is required")
        try:
            request = self._decode(body)
        except msgspec.ValidationError as error:
            raise Refusal(400, f"{error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refusal(400, f"The request body is not valid JSON: {error}") from error
        if not request.messages:
            raise Refusal(400, "messages: at least one message is required")
        if request.max_tokens < 1:
            raise Refusal(400, "max_tokens: must be greater than or equal to 1")
        tokens, last = 0, ""
        if request.system is not None:
            tokens = tokens_of(_text(request.system)) + TOKENS_PER_MESSAGE
        for index, message in enumerate(request.messages):
            text = _text(message.content)
            tokens += tokens_of(text) + TOKENS_PER_MESSAGE
            if message.role == "user":
                last = text
            elif message.role != "assistant":
                raise Refusal(
                    400,
                    f"messages.{index}.role: unexpected role {message.role!r}; use the top-level `system`",
                )
        asked = Asked(
            model=request.model,
            text=last,
            tokens_input=tokens,
            stream=request.stream,
            stream_usage=True,
            tokens_output_max=request.max_tokens,
        )
        wanted = request.output_config.format if request.output_config is not None else request.output_format
        if wanted is not None:
            if wanted.type != "json_schema":
                raise Refusal(
                    400, f"output_config.format.type: unexpected value {wanted.type!r}; expected 'json_schema'"
                )
            asked.json, asked.schema = True, bytes(wanted.schema)
        if request.tools:
            _read_tools(asked, request, request.tools)
        return asked

    def body(self, said: Said) -> bytes:
        asked = said.asked
        if asked.tool:
            block = b'{"type":"tool_use","id":"toolu_%024x","name":%b,"input":%b}' % (
                said.serial,
                _JSON(asked.tool),
                _tool_input(said.content),
            )
        else:
            text = spoiled(said.content.text_json) if said.bad_utf8 else said.content.text_json
            block = b'{"type":"text","text":%b}' % text
        return (
            b'{"id":"msg_%024x","type":"message","role":"assistant","model":%b,"content":[%b],"stop_reason":"%b","stop_sequence":null%b}'
            % (
                said.serial,
                _JSON(asked.model),
                block,
                _FINISH[said.finish],
                _usage(said.usage, None),
            )
        )

    def head(self, said: Said, content_length: int | None) -> bytes:
        framing = STREAM_FRAMING if content_length is None else WHOLE_FRAMING % content_length
        return b"HTTP/1.1 200 OK\r\nrequest-id: req_%024x\r\n%b%b" % (said.serial, said.extra_headers, framing)

    def events(self, said: Said, count: int) -> list[bytes]:
        asked = said.asked
        if asked.tool:
            block = b'{"type":"tool_use","id":"toolu_%024x","name":%b,"input":{}}' % (said.serial, _JSON(asked.tool))
            kind = b'"type":"input_json_delta","partial_json":'
        else:
            block = b'{"type":"text","text":""}'
            kind = b'"type":"text_delta","text":'
        opening = (
            b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_%024x","type":"message",'
            b'"role":"assistant","model":%b,"content":[],"stop_reason":null,"stop_sequence":null%b}}\n\n'
            b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":%b}\n\n'
            % (said.serial, _JSON(asked.model), _usage(said.usage, 1), block)
        )
        before = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{' + kind
        deltas = said.content.deltas(count)
        pieces = [opening + _PING]
        pieces += [b"%b%b}}\n\n" % (before, delta) for delta in deltas]
        if said.bad_utf8:
            pieces[1] = b"%b%b}}\n\n" % (before, spoiled(deltas[0]))
        final = b"" if said.usage is None else b',"usage":{"output_tokens":%d}' % said.usage.output
        closing = (
            b'event: message_delta\ndata: {"type":"message_delta",'
            b'"delta":{"stop_reason":"%b","stop_sequence":null}%b}\n\n'
            % (
                _FINISH[said.finish],
                final,
            )
        )
        pieces.append(_BLOCK_STOP + closing + _MESSAGE_STOP)
        return pieces

    def mid_stream_error(self, status: int) -> bytes:
        return b"event: error\ndata: %b\n\n" % _error_body(Refusal(status, ""), 0)

    def refusal(self, refusal: Refusal, serial: int) -> bytes:
        body = _error_body(refusal, serial)
        retry = b"" if refusal.retry_after_s is None else b"retry-after: %d\r\n" % refusal.retry_after_s
        return b"%bcontent-type: application/json\r\nrequest-id: req_%024x\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
            status_line(refusal.status),
            serial,
            refusal.extra_headers,
            retry,
            len(body),
            body,
        )

    def limit_headers(self, limit: int, remaining: int, reset_s: float) -> bytes:
        return (
            b"anthropic-ratelimit-requests-limit: %d\r\nanthropic-ratelimit-requests-remaining: %d\r\n"
            b"anthropic-ratelimit-requests-reset: %b\r\n" % (limit, remaining, _in_seconds(reset_s))
        )

    def models(self, names: list[str]) -> bytes:
        data = [
            {"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z"} for name in names
        ]
        edges = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
        return _JSON({"data": data, "has_more": False, **edges})


_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_MESSAGES = {
    429: "This request would exceed your rate limit. Please try again later.",
    500: "Internal server error",
    529: "Overloaded",
}


def _error_body(refusal: Refusal, serial: int) -> bytes:
    status = refusal.status
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    message = refusal.message or _MESSAGES.get(status, f"The simulator answers with status {status}.")
    return _JSON({"type": "error", "error": {"type": kind, "message": message}, "request_id": f"req_{serial:024x}"})


def _usage(usage: Usage | None, output: int | None) -> bytes:
    """The usage with its own number of output tokens, or with `output`."""
    if usage is None:
        return b""
    return (
        b',"usage":{"input_tokens":%d,"cache_creation_input_tokens":0,"cache_read_input_tokens":%d,"output_tokens":%d,"service_tier":"standard"}'
        % (usage.input - usage.input_cached, usage.input_cached, usage.output if output is None else output)
    )


def _text(content: str | list[_Part]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content if part.type == "text")


def _tool_input(content: Content) -> bytes:
    """The arguments as a JSON value; where they were spoiled, as text, since this dialect has no place for broken
    JSON."""
    raw = content.text.encode()
    try:
        msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return content.text_json
    return raw


def _read_tools(asked: Asked, request: _Request, tools: list[_Tool]) -> None:
    """Calls the tool that is demanded, else the first one, unless the last message already brings a tool's result."""
    by_name = {tool.name: tool for tool in tools}
    choice = request.tool_choice
    kind = "auto" if choice is None else choice.type
    if kind == "none":
        return
    if choice is not None and kind == "tool":
        if choice.name not in by_name:
            raise Refusal(400, f"tool_choice.tool.name: tool {choice.name!r} not found in provided tools")
        called = by_name[choice.name]
    elif kind == "auto" and _brings_result(request.messages[-1]):
        return
    else:
        called = tools[0]
    asked.tool, asked.json = called.name, True
    asked.schema = bytes(called.input_schema) or _NO_TOOL_INPUT


def _brings_result(message: _Message) -> bool:
    return isinstance(message.content, list) and any(part.type == "tool_result" for part in message.content)


def _in_seconds(seconds: float) -> bytes:
    from datetime import UTC, datetime, timedelta

    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
