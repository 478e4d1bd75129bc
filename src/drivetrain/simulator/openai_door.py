"""The OpenAI dialect: chat completions, their streams and their errors.

Shapes follow https://platform.openai.com/docs/api-reference/chat. Called by `desk` through `door.Door`.
"""

from collections.abc import Callable

import msgspec

from drivetrain.simulator.content import tokens_of
from drivetrain.simulator.door import STREAM_FRAMING, WHOLE_FRAMING, Asked, Refusal, Said, Usage, spoiled, status_line

TOKENS_PER_MESSAGE = 4
_FINISH = {"stop": b"stop", "length": b"length", "tool": b"tool_calls"}
_HEAD = b"x-request-id: req_%032x\r\nopenai-processing-ms: %d\r\nopenai-version: 2020-10-01\r\n"
_EVENT = (
    b'data: {"id":"chatcmpl-%032x","object":"chat.completion.chunk","created":%d,"model":%b,"service_tier":"default",'
)
_JSON = msgspec.json.encode


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _Named(msgspec.Struct):
    name: str
    parameters: msgspec.Raw = msgspec.Raw(b"")


class _Tool(msgspec.Struct):
    type: str
    function: _Named | None = None


class _Choice(msgspec.Struct):
    type: str
    function: _Named | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _JsonSchema(msgspec.Struct):
    name: str = ""
    schema: msgspec.Raw = msgspec.Raw(b"")


class _ResponseFormat(msgspec.Struct):
    type: str
    json_schema: _JsonSchema | None = None


class _Request(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Choice | None = None
    response_format: _ResponseFormat | None = None


class OpenAiDoor:
    """Speaks as api.openai.com does."""

    envelope_bytes = 568

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_Request).decode

    def key(self, header: Callable[[bytes], bytes | None]) -> bytes | None:
        value = header(b"authorization")
        return value[7:].strip() if value is not None and value[:7].lower() == b"bearer " else None

    def read(self, body: bytes, header: Callable[[bytes], bytes | None]) -> Asked:
        try:
            request = self._decode(body)
        except msgspec.ValidationError as error:
            raise Refusal(400, f"Invalid request: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refusal(400, f"We could not parse the JSON body of your request: {error}") from error
        if not request.messages:
            raise Refusal(
                400,
                "Invalid 'messages': empty array. Expected an array with minimum length 1.",
            )
        if request.n is not None and request.n != 1:
            raise Refusal(400, f"The simulator answers with n=1 only; n was {request.n}.")
        tokens_max = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        if tokens_max is not None and tokens_max < 1:
            raise Refusal(
                400,
                f"Invalid 'max_tokens': integer below minimum value. Expected >= 1, but got {tokens_max}.",
            )
        tokens, last = 0, ""
        for message in request.messages:
            content = message.content
            text = content if isinstance(content, str) else _joined(content)
            tokens += tokens_of(text) + TOKENS_PER_MESSAGE
            if message.role == "user":
                last = text
        asked = Asked(
            model=request.model,
            text=last,
            tokens_input=tokens,
            stream=bool(request.stream),
            stream_usage=request.stream_options is not None and request.stream_options.include_usage,
            tokens_output_max=tokens_max,
        )
        if request.response_format is not None:
            _read_format(asked, request.response_format)
        if request.tools:
            _read_tools(asked, request, request.tools)
        return asked

    def body(self, said: Said) -> bytes:
        asked, text = said.asked, said.content.text_json
        if said.bad_utf8:
            text = spoiled(text)
        if asked.tool:
            message = (
                b'"content":null,"tool_calls":[{"id":"call_%024x","type":"function","function":{"name":%b,"arguments":%b}}]'
                % (
                    said.serial,
                    _JSON(asked.tool),
                    text,
                )
            )
        else:
            message = b'"content":%b' % text
        return (
            b'{"id":"chatcmpl-%032x","object":"chat.completion","created":%d,"model":%b,"choices":[{"index":0,"message":{"role":"assistant",%b,'
            b'"refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"%b"}]%b,"service_tier":"default","system_fingerprint":"fp_simulator"}'
            % (said.serial, said.created_s, _JSON(asked.model), message, _FINISH[said.finish], _usage(said.usage))
        )

    def head(self, said: Said, content_length: int | None) -> bytes:
        head = _HEAD % (said.serial, said.processing_ms)
        framing = STREAM_FRAMING if content_length is None else WHOLE_FRAMING % content_length
        return b"HTTP/1.1 200 OK\r\n%b%b%b" % (head, said.extra_headers, framing)

    def events(self, said: Said, count: int) -> list[bytes]:
        asked = said.asked
        start = _EVENT % (said.serial, said.created_s, _JSON(asked.model))
        usage = b',"usage":null' if asked.stream_usage else b""
        end = b',"logprobs":null,"finish_reason":null}]%b}\n\n' % usage
        if asked.tool:
            opening = (
                b'{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_%024x","type":"function","function":{"name":%b,"arguments":""}}],"refusal":null}'
                % (
                    said.serial,
                    _JSON(asked.tool),
                )
            )
            before = b'%b"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":' % start
            after = b"}}]}" + end
        else:
            opening = b'{"role":"assistant","content":"","refusal":null}'
            before = b'%b"choices":[{"index":0,"delta":{"content":' % start
            after = b"}" + end
        pieces = [b'%b"choices":[{"index":0,"delta":%b%b' % (start, opening, end)]
        pieces += [b"%b%b%b" % (before, delta, after) for delta in said.content.deltas(count)]
        if said.bad_utf8:
            pieces[1] = b"%b%b%b" % (before, spoiled(said.content.deltas(count)[0]), after)
        closing = b'%b"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"%b"}]%b}\n\n' % (
            start,
            _FINISH[said.finish],
            usage,
        )
        if asked.stream_usage and said.usage is not None:
            closing += b'%b"choices":[]%b}\n\n' % (start, _usage(said.usage))
        pieces.append(closing + b"data: [DONE]\n\n")
        return pieces

    def mid_stream_error(self, status: int) -> bytes:
        return b"data: %b\n\n" % _error_body(Refusal(status, _MESSAGES.get(status, "The server had an error.")))

    def refusal(self, refusal: Refusal, serial: int) -> bytes:
        body = _error_body(refusal)
        retry = b"" if refusal.retry_after_s is None else b"retry-after: %d\r\n" % refusal.retry_after_s
        return b"%bcontent-type: application/json\r\n%b%b%bcontent-length: %d\r\n\r\n%b" % (
            status_line(refusal.status),
            _HEAD % (serial, 0),
            refusal.extra_headers,
            retry,
            len(body),
            body,
        )

    def limit_headers(self, limit: int, remaining: int, reset_s: float) -> bytes:
        return (
            b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\n"
            b"x-ratelimit-reset-requests: %dms\r\n"
            % (
                limit,
                remaining,
                int(reset_s * 1000 + 0.999),
            )
        )

    def models(self, names: list[str]) -> bytes:
        data = [{"id": name, "object": "model", "created": 1735689600, "owned_by": "simulator"} for name in names]
        return _JSON({"object": "list", "data": data})


_TYPES = {401: "invalid_request_error", 429: "requests", 400: "invalid_request_error", 404: "invalid_request_error"}
_MESSAGES = {
    429: "Rate limit reached for requests. Please try again later.",
    500: "The server had an error while processing your request. Sorry about that!",
    503: "The engine is currently overloaded, please try again later.",
}


def _error_body(refusal: Refusal) -> bytes:
    status = refusal.status
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = refusal.code or ("rate_limit_exceeded" if status == 429 else None)
    message = refusal.message or _MESSAGES.get(status, f"The simulator answers with status {status}.")
    param = "model" if code == "model_not_found" else None
    return _JSON({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _usage(usage: Usage | None) -> bytes:
    if usage is None:
        return b""
    return (
        b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d,"audio_tokens":0},'
        b'"completion_tokens_details":{"reasoning_tokens":%d,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
        % (usage.input, usage.output, usage.input + usage.output, usage.input_cached, usage.reasoning)
    )


def _joined(content: list[_Part] | None) -> str:
    return "\n".join(part.text for part in content if part.type == "text") if content else ""


def _read_format(asked: Asked, wanted: _ResponseFormat) -> None:
    if wanted.type == "json_object":
        asked.json = True
    elif wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise Refusal(400, "Missing required parameter: 'response_format.json_schema'.")
        asked.json, asked.schema = True, bytes(wanted.json_schema.schema)
    elif wanted.type != "text":
        raise Refusal(
            400, f"Invalid value: '{wanted.type}'. Supported values are: 'json_object', 'json_schema', and 'text'."
        )


def _read_tools(asked: Asked, request: _Request, tools: list[_Tool]) -> None:
    """Calls the tool that is demanded, else the first one, unless the last message already brings a tool's result."""
    functions = {tool.function.name: tool.function for tool in tools if tool.function is not None}
    choice = request.tool_choice
    if not functions or choice == "none":
        return
    if isinstance(choice, _Choice) and choice.function is not None:
        if choice.function.name not in functions:
            raise Refusal(
                400,
                f"Invalid value for 'tool_choice': no function '{choice.function.name}' in 'tools'.",
            )
        called = functions[choice.function.name]
    elif choice != "required" and request.messages[-1].role == "tool":
        return
    else:
        called = next(iter(functions.values()))
    asked.tool, asked.json = called.name, True
    asked.schema = bytes(called.parameters) or b'{"type":"object","properties":{}}'
