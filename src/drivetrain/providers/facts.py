"""Facts about models, as data: what they can do and how their output limit is named.

A project's `[models."provider/model"]` overrides each of them.
"""

from __future__ import annotations

import re

from drivetrain.core.endpoints import Endpoint
from drivetrain.project.snapshot import ModelFacts
from drivetrain.providers.answers import Target

CAPABILITIES = ("tools", "json_schema", "images", "streaming", "reasoning")

_EVERYTHING = frozenset({"tools", "json_schema", "images", "streaming", "reasoning"})
_NO_SCHEMA = _EVERYTHING - {"json_schema"}

_BY_NAME: tuple[tuple[str, re.Pattern[str], frozenset[str]], ...] = (
    ("anthropic", re.compile(r"^claude-(3|sonnet-4-2|opus-4-2|opus-4-0|sonnet-4-0)"), _NO_SCHEMA),
    ("anthropic", re.compile(r""), _EVERYTHING),
    ("openai", re.compile(r"^gpt-3\.5|^gpt-4-0613$|^gpt-4$"), frozenset({"tools", "streaming"})),
    ("openai", re.compile(r""), _EVERYTHING),
)
_COMPLETION_TOKENS_FIELD = re.compile(r"^(gpt-5|gpt-4\.1|gpt-4o|chatgpt|o\d)")


def target(reference: str, dialect: str, endpoint: Endpoint, facts: ModelFacts | None) -> Target:
    """The model `provider/model` ready to be spoken to: the project's facts, else ours."""
    own = facts or ModelFacts(name=reference)
    upstream_name = own.upstream_name or reference.partition("/")[2]
    capabilities = own.capabilities
    return Target(
        reference=reference,
        upstream_name=upstream_name,
        endpoint=endpoint,
        capabilities=frozenset(capabilities) if capabilities is not None else _capabilities(dialect, upstream_name),
        max_tokens_field=own.max_tokens_field or _max_tokens_field(upstream_name),
    )


def _capabilities(dialect: str, upstream_name: str) -> frozenset[str]:
    for named, pattern, known in _BY_NAME:
        if named == dialect and pattern.search(upstream_name):
            return known
    return _EVERYTHING


def _max_tokens_field(upstream_name: str) -> str:
    return "max_completion_tokens" if _COMPLETION_TOKENS_FIELD.match(upstream_name) else "max_tokens"
