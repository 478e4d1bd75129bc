"""Which requests an answer may be given again for, and which answers. Pure; asked before the cache is.

What is not known to be determined by the request's own bytes counts as not determined: a tool that runs at the
provider, an image behind an address, a kind of content nobody here has heard of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SEARCHES = "web_search_options"
_CLIENTS_OWN_TOOLS = frozenset(("function", "custom"))
"""Kinds of tools that the client runs; all others look at the world while the model answers."""
_CALLS = re.compile(rb'"tool_calls"\s*:\s*\[\s*\{|"function_call"\s*:\s*\{|"type"\s*:\s*"tool_use"')
_IN_THE_BYTES = frozenset(("text", "refusal", "input_audio"))


def is_deterministic(chat: Mapping[str, Any]) -> bool:
    """Whether a request asks for the one answer that its bytes determine.

    chat: as it will be sent, in OpenAI's shape, with the variant's own parameters. Temperature must be 0 explicitly:
    what a provider takes where it is absent is the provider's choice. No value raises.
    """
    temperature, choices = chat.get("temperature"), chat.get("n")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or temperature != 0:
        return False
    if choices is not None and (isinstance(choices, bool) or choices != 1):
        return False
    return chat.get(_SEARCHES) is None and _tools_run_here(chat.get("tools")) and _all_in_bytes(chat.get("messages"))


def may_keep(finish_reason: str, has_tool_calls: bool, allow_tool_calls: bool) -> bool:
    """Whether an answer may be given again: it came to its own end, and calls tools only where that is allowed.

    To be asked before an answer is kept, and again before it is given: another workflow of the same tenant may have
    kept it. An answer cut by `length` or `content_filter` is none, and neither is an error.
    """
    if has_tool_calls or finish_reason == "tool_calls":
        return allow_tool_calls and finish_reason in ("stop", "tool_calls")
    return finish_reason == "stop"


def calls_tools(body: bytes) -> bool:
    """Whether a provider's answer calls a tool, in either dialect, whole or as events.

    Reads no JSON: a text that quotes such a call counts as one, and is then asked for again.
    """
    return (b"tool_" in body or b"function_call" in body) and _CALLS.search(body) is not None


def _tools_run_here(tools: Any) -> bool:
    if tools is None:
        return True
    return isinstance(tools, list | tuple) and all(_kind(tool) in _CLIENTS_OWN_TOOLS for tool in tools)


def _all_in_bytes(messages: Any) -> bool:
    if messages is None:
        return True
    if not isinstance(messages, list | tuple):
        return False
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else message
        if isinstance(content, list | tuple):
            if not all(_in_bytes(part) for part in content):
                return False
        elif content is not None and not isinstance(content, str):
            return False
    return True


def _in_bytes(part: Any) -> bool:
    kind = _kind(part)
    if kind == "image_url":
        image = part.get("image_url")
        address = image.get("url") if isinstance(image, Mapping) else image
        return isinstance(address, str) and address[:5].lower() == "data:"
    return kind in _IN_THE_BYTES


def _kind(one: Any) -> str:
    kind = one.get("type") if isinstance(one, Mapping) else None
    return kind if isinstance(kind, str) else ""
