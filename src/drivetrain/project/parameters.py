"""The parameters that a chat request may carry, as OpenAI's API and the servers that copy it have them. Data only."""

from __future__ import annotations

from collections.abc import Mapping

MANAGED: Mapping[str, str] = {
    "model": "Use the variant's `model`.",
    "messages": "Use the variant's `prompt` and `system`.",
    "stream": "The caller chooses it.",
    "stream_options": "The caller chooses it.",
    "max_tokens": "Use the variant's `max_output_tokens`.",
    "max_completion_tokens": "Use the variant's `max_output_tokens`.",
}
"""Parameters that Drivetrain sets itself, and where a project says what they should be."""

_WORDS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
    "logit_bias", "logprobs", "top_logprobs", "seed", "stop", "n", "reasoning_effort", "verbosity",
)  # fmt: skip
"""How the model chooses its words; `top_k`, `min_p` and `repetition_penalty` are vLLM's."""
_SHAPE = (
    "response_format", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call",
    "modalities", "audio", "prediction", "web_search_options",
)  # fmt: skip
"""What shape the answer has, and what the model may use."""
_ACCOUNT = (
    "user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
)  # fmt: skip
"""Who asks, and how the provider books and keeps it."""

KNOWN: frozenset[str] = frozenset((*MANAGED, *_WORDS, *_SHAPE, *_ACCOUNT))
"""Every parameter that a workflow may honour, fix, ignore or refuse, and the managed ones."""
