"""Which requests and which answers an answer may be given again for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.cache.keeping import is_deterministic, may_keep


def image(url: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": url}]}]


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": -0.0, "n": 1}, True),
        ({"temperature": 0, "n": None, "seed": 1, "top_p": 0.5}, True),
        ({}, False),
        ({"temperature": None}, False),
        ({"temperature": False}, False),
        ({"temperature": "0"}, False),
        ({"temperature": 1e-9}, False),
        ({"temperature": float("nan")}, False),
        ({"temperature": 0, "n": 2}, False),
        ({"temperature": 0, "n": 0}, False),
        ({"temperature": 0, "n": True}, False),
        ({"seed": 7}, False),
        ({"temperature": 0, "web_search_options": {}}, False),
        ({"temperature": 0, "tools": [{"type": "function", "function": {"name": "f"}}]}, True),
        ({"temperature": 0, "tools": [{"type": "function"}, {"type": "web_search"}]}, False),
        ({"temperature": 0, "tools": [3]}, False),
        ({"temperature": 0, "messages": [{"role": "user", "content": "hello"}]}, True),
        ({"temperature": 0, "messages": [{"role": "assistant", "content": None}]}, True),
        ({"temperature": 0, "messages": image({"url": "data:image/png;base64,AA=="})}, True),
        ({"temperature": 0, "messages": image({"url": "https://example.com/now.png"})}, False),
        ({"temperature": 0, "messages": image("https://example.com/now.png")}, False),
        ({"temperature": 0, "messages": [{"role": "user", "content": [{"type": "file"}]}]}, False),
        ({"temperature": 0, "messages": [{"role": "user", "content": {}}]}, False),
    ],
)  # fmt: skip
def test_only_what_the_request_itself_determines_is_deterministic(chat: dict[str, Any], expected: bool) -> None:
    assert is_deterministic(chat) is expected


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("type", "content", "image_url", "url", "x")), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(tools=anything, messages=anything, n=anything)
def test_no_request_raises(tools: Any, messages: Any, n: Any) -> None:
    assert is_deterministic({"temperature": 0, "tools": tools, "messages": messages, "n": n}) in (True, False)


@pytest.mark.parametrize(
    ("finish", "calls", "allowed", "expected"),
    [
        ("stop", False, False, True),
        ("stop", False, True, True),
        ("stop", True, False, False),
        ("stop", True, True, True),
        ("tool_calls", True, True, True),
        ("tool_calls", False, True, True),
        ("tool_calls", True, False, False),
        ("tool_calls", False, False, False),
        ("length", False, True, False),
        ("length", True, True, False),
        ("content_filter", False, True, False),
        ("content_filter", True, True, False),
        ("function_call", False, True, False),
        ("error", False, True, False),
        ("STOP", False, True, False),
        ("", False, True, False),
        ("", True, True, False),
    ],
)
def test_only_a_whole_answer_is_kept(finish: str, calls: bool, allowed: bool, expected: bool) -> None:
    assert may_keep(finish, calls, allowed) is expected
