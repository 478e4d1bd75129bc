"""Anthropic's messages dialect, from and to OpenAI's chat shape.

What OpenAI's shape can ask and this dialect cannot answer is refused with the parameter's name, never dropped.
"""

from __future__ import annotations

from typing import Any

from drivetrain.core.codec import JSON, MalformedJson, parse_json
from drivetrain.core.errors import RequestError
from drivetrain.core.money import NO_USAGE, Usage
from drivetrain.providers.answers import (
    PARTIAL_EVENT_BYTES_MAX,
    ProviderError,
    Reading,
    Target,
    Unusable,
    count,
    error_text,
)
from drivetrain.providers.openai_chat import DONE, TOO_LONG, content_size, event_data, text_bytes, whole_events

VERSION = "2023-06-01"
ANSWER_TOOL = "drivetrain_answer"
"""Tool by whose input a model without native JSON-schema output gives a structured answer."""
FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1, None),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "logit_bias": ({}, None),
    "store": (False, None),
    "modalities": (["text"], None),
    "service_tier": ("auto", "default", None),
    "verbosity": (None,),
    "seed": (None,),
    "metadata": ({}, None),
    "prediction": (None,),
    "audio": (None,),
    "functions": (None, []),
    "function_call": (None,),
    "web_search_options": (None,),
    "safety_identifier": (None,),
    "prompt_cache_key": (None,),
}
_HANDLED = frozenset(
    {
        "model", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options", "temperature", "top_p",
        "stop", "user", "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort",
        "thinking", "top_k",
    }
)  # fmt: skip
_EFFORTS = {"none": None, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max"}


class AnthropicMessages:
    """`POST /v1/messages`, tools, structured output, images, streams and usage with cache reads and writes."""

    name = "anthropic"
    path = "/v1/messages"

    def headers(self, key: str | None, key_header: str) -> dict[str, str]:
        fixed = {"anthropic-version": VERSION}
        if key is not None:
            fixed[key_header or "x-api-key"] = key
        return fixed

    def encode(self, chat: dict[str, Any], target: Target, *, stream: bool, max_output_tokens: int) -> bytes:
        for name, value in chat.items():
            if name not in _HANDLED and value not in _NEUTRAL.get(name, (None,)):
                raise _cannot(name, f"`{name}` cannot be said to {target.reference}, which speaks Anthropic messages")
        system, messages = _messages(chat["messages"])
        body: dict[str, Any] = {
            "model": target.upstream_name,
            "max_tokens": max_output_tokens,
            "messages": messages,
        }
        if stream:
            body["stream"] = True
        _sampling(chat, body)
        _tools(chat, body)
        system += _structured(chat, body, target)
        if system:
            body["system"] = "\n\n".join(system)
        return JSON.encode(body)

    def makes_up_for(self, capabilities: frozenset[str]) -> frozenset[str]:
        return frozenset({"json_schema"}) if "tools" in capabilities else frozenset()

    def usage(self, reported: Any) -> Usage:
        return read_usage(reported)

    def read(self, body: bytes, *, created_s: int = 0) -> Reading:
        try:
            parsed = parse_json(body)
        except MalformedJson as error:
            raise Unusable(f"the answer is no JSON: {error}") from error
        if not isinstance(parsed, dict) or not isinstance(parsed.get("content"), list):
            raise Unusable("the answer is no message")
        usage = read_usage(parsed.get("usage"))
        finish = FINISH_REASONS.get(str(parsed.get("stop_reason") or ""), "stop")
        message, unwrapped = _message_from_blocks(parsed["content"])
        if unwrapped:
            finish = "stop"
        completion = {
            "id": str(parsed.get("id") or ""),
            "object": "chat.completion",
            "created": created_s,
            "model": str(parsed.get("model") or ""),
            "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
            "usage": usage_object(usage),
        }
        return Reading(JSON.encode(completion), finish, usage)

    def relay(self, *, include_usage: bool, created_s: int = 0) -> AnthropicRelay:
        return AnthropicRelay(include_usage, created_s)

    def delivered(self, stream: bytes) -> tuple[int, int]:
        return content_size(stream, _delta_bytes)

    def error(self, status: int, body: bytes) -> ProviderError:
        return error_text(status, body)


class AnthropicRelay:
    """Turns message events into `chat.completion.chunk` events."""

    __slots__ = (
        "_created_s",
        "_id",
        "_include_usage",
        "_model",
        "_partial",
        "_raw_usage",
        "_tool_indexes",
        "_unwrapped",
        "done",
        "error",
        "fault",
        "finish_reason",
        "tail",
        "usage",
    )

    def __init__(self, include_usage: bool, created_s: int) -> None:
        self._include_usage = include_usage
        self._created_s = created_s
        self._partial = b""
        self._id = ""
        self._model = ""
        self._raw_usage: dict[str, Any] = {}
        self._tool_indexes: dict[int, int] = {}
        self._unwrapped: set[int] = set()
        self.usage: Usage | None = None
        self.finish_reason = ""
        self.done = False
        self.error: ProviderError | None = None
        self.fault = ""
        self.tail = b""

    def feed(self, data: bytes) -> bytes:
        data, self._partial = whole_events(self._partial + data)
        if len(self._partial) > PARTIAL_EVENT_BYTES_MAX:
            self.fault, self._partial = TOO_LONG, b""
        chunks: list[bytes] = []
        for block in data.split(b"\n\n"):
            payload = event_data(block) if block else None
            if payload is None or self.done or self.error is not None or self.fault:
                continue
            try:
                event = parse_json(payload)
            except MalformedJson as error:
                self.fault = f"an event of the stream is malformed: {error}"
                continue
            if isinstance(event, dict):
                self._take(event, chunks)
            else:
                self.fault = "an event of the stream is no object"
        return b"".join(chunks)

    def ended(self) -> bool:
        return self.done

    def _take(self, event: dict[str, Any], chunks: list[bytes]) -> None:
        kind = event.get("type")
        if kind == "content_block_delta":
            self._delta(event, chunks)
        elif kind == "content_block_start":
            self._block_start(event, chunks)
        elif kind == "message_start":
            message = event.get("message")
            if isinstance(message, dict):
                self._id, self._model = str(message.get("id") or ""), str(message.get("model") or "")
                self._merge_usage(message.get("usage"))
            chunks.append(self._chunk({"role": "assistant", "content": ""}))
        elif kind == "message_delta":
            self._merge_usage(event.get("usage"))
            delta = event.get("delta")
            if isinstance(delta, dict) and delta.get("stop_reason"):
                self.finish_reason = FINISH_REASONS.get(str(delta["stop_reason"]), "stop")
                if self._unwrapped and not self._tool_indexes:
                    self.finish_reason = "stop"
                chunks.append(self._chunk({}, finish=self.finish_reason))
        elif kind == "message_stop":
            self.done = True
            self.usage = read_usage(self._raw_usage)
            usage_event = self._usage_chunk() if self._include_usage else b""
            self.tail = usage_event + DONE
        elif kind == "error":
            self.error = error_text(0, JSON.encode(event))

    def _block_start(self, event: dict[str, Any], chunks: list[bytes]) -> None:
        block, index = event.get("content_block"), event.get("index")
        if not isinstance(block, dict) or not isinstance(index, int) or block.get("type") != "tool_use":
            return
        if block.get("name") == ANSWER_TOOL:
            self._unwrapped.add(index)
            return
        number = len(self._tool_indexes)
        self._tool_indexes[index] = number
        function = {"name": str(block.get("name") or ""), "arguments": ""}
        call = {"index": number, "id": str(block.get("id") or ""), "type": "function", "function": function}
        chunks.append(self._chunk({"tool_calls": [call]}))

    def _delta(self, event: dict[str, Any], chunks: list[bytes]) -> None:
        delta, index = event.get("delta"), event.get("index")
        if not isinstance(delta, dict) or not isinstance(index, int):
            return
        if delta.get("type") == "text_delta" and isinstance(delta.get("text"), str):
            chunks.append(self._chunk({"content": delta["text"]}))
        elif delta.get("type") == "input_json_delta" and isinstance(delta.get("partial_json"), str):
            if index in self._unwrapped:
                chunks.append(self._chunk({"content": delta["partial_json"]}))
            elif index in self._tool_indexes:
                call = {"index": self._tool_indexes[index], "function": {"arguments": delta["partial_json"]}}
                chunks.append(self._chunk({"tool_calls": [call]}))

    def _merge_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._raw_usage.update({name: value for name, value in usage.items() if value is not None})
            self.usage = read_usage(self._raw_usage)

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        chunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created_s,
            "model": self._model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}],
        }
        return b"data: " + JSON.encode(chunk) + b"\n\n"

    def _usage_chunk(self) -> bytes:
        chunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created_s,
            "model": self._model,
            "choices": [],
            "usage": usage_object(self.usage or NO_USAGE),
        }
        return b"data: " + JSON.encode(chunk) + b"\n\n"


def _delta_bytes(event: dict[str, Any]) -> int:
    delta = event.get("delta")
    if event.get("type") != "content_block_delta" or not isinstance(delta, dict):
        return 0
    return text_bytes([delta.get("text"), delta.get("partial_json"), delta.get("thinking")])


def usage_object(usage: Usage) -> dict[str, Any]:
    """Usage in OpenAI's shape."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.input_cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def read_usage(usage: Any) -> Usage:
    """Anthropic's usage object, whose input excludes cache reads and writes; ours includes them."""
    if not isinstance(usage, dict):
        return NO_USAGE
    fresh, output = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    if fresh is None and output is None:
        return NO_USAGE
    read = usage.get("cache_read_input_tokens")
    written = usage.get("cache_creation_input_tokens")
    split = usage.get("cache_creation")
    written_1h = split.get("ephemeral_1h_input_tokens") if isinstance(split, dict) else 0
    details = usage.get("output_tokens_details")
    thinking = details.get("thinking_tokens") if isinstance(details, dict) else 0
    reported = [0 if value is None else value for value in (read, written, written_1h, thinking)]
    sound = [count(value) for value in reported]
    whole = fresh is not None and output is not None and None not in sound
    read_sound, written_sound, written_1h_sound, thinking_sound = (value or 0 for value in sound)
    written_1h_sound = min(written_1h_sound, written_sound)
    fresh, output = fresh or 0, output or 0
    return Usage(
        fresh + read_sound + written_sound,
        read_sound,
        written_sound - written_1h_sound,
        written_1h_sound,
        output,
        min(thinking_sound, output),
        "reported" if whole else "mended",
    )


def _cannot(param: str, message: str) -> RequestError:
    return RequestError(400, message, code="unsupported_parameter", param=param)


def _messages(messages: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        role = message.get("role")
        param = f"messages[{place}]"
        if role in ("system", "developer"):
            system.append(_plain_text(message.get("content"), param))
        elif role == "tool":
            result = {
                "type": "tool_result",
                "tool_use_id": str(message.get("tool_call_id") or ""),
                "content": _plain_text(message.get("content"), param),
            }
            _append_blocks(turns, "user", [result])
        elif role == "user":
            _append_blocks(turns, "user", _user_blocks(message.get("content"), param))
        elif role == "assistant":
            _append_blocks(turns, "assistant", _assistant_blocks(message, param))
        else:
            raise _cannot(f"{param}.role", f"role {role!r} cannot be said in Anthropic messages")
    return [text for text in system if text], turns


def _append_blocks(turns: list[dict[str, Any]], role: str, blocks: list[dict[str, Any]]) -> None:
    # Results of parallel tool calls must stand together in one turn.
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    elif blocks:
        turns.append({"role": role, "content": blocks})


def _plain_text(content: Any, param: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _cannot(f"{param}.content", "only text parts can stand here")
        texts.append(part["text"])
    return "\n".join(texts)


def _user_blocks(content: Any, param: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    blocks = []
    for part in content or []:
        kind = part.get("type")
        if kind == "text":
            blocks.append({"type": "text", "text": part.get("text") or ""})
        elif kind == "image_url":
            blocks.append({"type": "image", "source": _image_source(part, param)})
        else:
            raise _cannot(f"{param}.content", f"content of type {kind!r} cannot be said in Anthropic messages")
    return blocks


def _image_source(part: dict[str, Any], param: str) -> dict[str, Any]:
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(url, str):
        raise _cannot(f"{param}.content", "image_url needs a url")
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    media, separator, data = url.removeprefix("data:").partition(";base64,")
    if not separator:
        raise _cannot(f"{param}.content", "an image's data URL must be base64")
    return {"type": "base64", "media_type": media, "data": data}


def _assistant_blocks(message: dict[str, Any], param: str) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    text = _plain_text(message.get("content"), param)
    if text:
        blocks.append({"type": "text", "text": text})
    for call in _list(message, "tool_calls", param):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise _cannot(f"{param}.tool_calls", "only function calls can be said in Anthropic messages")
        try:
            arguments = parse_json(str(function.get("arguments") or "{}").encode())
        except MalformedJson as error:
            raise _cannot(f"{param}.tool_calls", f"arguments of a tool call are no JSON: {error}") from error
        use = {"type": "tool_use", "id": str(call.get("id") or ""), "name": str(function.get("name") or "")}
        blocks.append({**use, "input": arguments})
    return blocks


def _list(holder: dict[str, Any], name: str, param: str) -> list[Any]:
    """A list that may be absent. Raises: RequestError where it is something else."""
    value = holder.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _cannot(f"{param}.{name}" if param else name, f"`{name}` must be a list")
    return value


def _sampling(chat: dict[str, Any], body: dict[str, Any]) -> None:
    temperature = chat.get("temperature")
    if temperature is not None:
        if temperature > 1:
            raise _cannot("temperature", f"temperature {temperature} is beyond Anthropic's range of 0 to 1")
        body["temperature"] = temperature
    for name in ("top_p", "top_k", "thinking"):
        if chat.get(name) is not None:
            body[name] = chat[name]
    stop = chat.get("stop")
    if stop:
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if chat.get("user"):
        body["metadata"] = {"user_id": chat["user"]}
    effort = _EFFORTS.get(chat.get("reasoning_effort") or "none")
    if effort is not None:
        body["output_config"] = {"effort": effort}


def _tools(chat: dict[str, Any], body: dict[str, Any]) -> None:
    tools = _list(chat, "tools", "")
    if not tools:
        return
    body["tools"] = [_tool(tool) for tool in tools]
    choice = chat.get("tool_choice")
    said: dict[str, Any] | None = None
    if choice in ("auto", "none"):
        said = {"type": choice}
    elif choice == "required":
        said = {"type": "any"}
    elif isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        said = {"type": "tool", "name": choice["function"].get("name")}
    elif choice is not None:
        raise _cannot("tool_choice", f"tool_choice {choice!r} cannot be said in Anthropic messages")
    if chat.get("parallel_tool_calls") is False and choice != "none":
        said = {**(said or {"type": "auto"}), "disable_parallel_tool_use": True}
    if said is not None:
        body["tool_choice"] = said


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        raise _cannot("tools", "only function tools can be said in Anthropic messages")
    said: dict[str, Any] = {
        "name": function.get("name"),
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    if function.get("description"):
        said["description"] = function["description"]
    return said


def _structured(chat: dict[str, Any], body: dict[str, Any], target: Target) -> list[str]:
    """Adds what makes the answer structured; returns further system text."""
    wanted = chat.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind in (None, "text"):
        return []
    if kind == "json_object":
        return ["Answer with one JSON object and nothing else."]
    declared = wanted.get("json_schema") if isinstance(wanted, dict) else None
    schema = declared.get("schema") if isinstance(declared, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict):
        raise _cannot("response_format", f"response_format {kind!r} cannot be said in Anthropic messages")
    if "json_schema" in target.capabilities:
        body["output_config"] = {**body.get("output_config", {}), "format": {"type": "json_schema", "schema": schema}}
        return []
    tool = {"name": ANSWER_TOOL, "description": "Gives the answer.", "input_schema": schema}
    body["tools"] = [*body.get("tools", []), tool]
    body["tool_choice"] = {"type": "any"} if chat.get("tools") else {"type": "tool", "name": ANSWER_TOOL}
    return []


def _message_from_blocks(blocks: list[Any]) -> tuple[dict[str, Any], bool]:
    """(message, whether its content came through `ANSWER_TOOL`)."""
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    unwrapped = False
    for block in blocks:
        if not isinstance(block, dict):
            raise Unusable("a content block is no object")
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif block.get("type") == "tool_use":
            arguments = JSON.encode(block.get("input") or {}).decode()
            if block.get("name") == ANSWER_TOOL:
                texts.append(arguments)
                unwrapped = True
                continue
            function = {"name": str(block.get("name") or ""), "arguments": arguments}
            calls.append({"id": str(block.get("id") or ""), "type": "function", "function": function})
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    return message, unwrapped and not calls
