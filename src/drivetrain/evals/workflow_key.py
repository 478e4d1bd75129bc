"""Keys of workflows: two Snapshots with one key answer the same, so what was proved of one holds of the other.

Careful rather than sharp: what merely might matter, such as any setting of a provider, is part of a key, so that
another key means no more than that something has to be proved anew.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from drivetrain.core.declarations import Check, Rule, Variant, Workflow
from drivetrain.policies.compile import as_policy, compile_policy
from drivetrain.policies.functions import source_of
from drivetrain.project.prompts import included
from drivetrain.project.snapshot import ModelFacts, Provider, Snapshot

KEY_CHARS = 16
_INCLUSION = re.compile(r"\{%[-+]?\s*(?:include|extends|import|from)\b")


def route_key(snapshot: Snapshot, workflow: str) -> str:
    """16 hex digits over all that decides how a workflow answers, its policy left out."""
    return digest_of(_route_parts(snapshot, workflow))


def workflow_key(snapshot: Snapshot, workflow: str) -> str:
    """16 hex digits over all that decides how a workflow answers and what is decided then; 16 zeros where the Snapshot
    has no such workflow."""
    declared = snapshot.workflows.get(workflow)
    if declared is None:
        return "0" * KEY_CHARS
    parts = _route_parts(snapshot, workflow)
    if declared.policy is not None:
        policy = as_policy(declared.policy, declared.name)
        parts += ["policy", policy.name, compile_policy(policy, snapshot.files, clock_ns=lambda: 0).version]
        parts += [policy.otherwise, policy.explore, policy.limit_ms, list(policy.actions)]
    parts += [[type(one).__name__, one] for one in declared.degrade]
    return digest_of(parts)


def _route_parts(snapshot: Snapshot, workflow: str) -> list[Any]:
    declared = snapshot.workflows[workflow]
    files = snapshot.files
    parts: list[Any] = [
        snapshot.versions, snapshot.environment, templates_of(declared, snapshot.templates),
        [code_of(one, files) for one in (declared.input, declared.output, *declared.validators)],
        declared.attempts_max, declared.max_input_tokens, declared.context, declared.chat_input, declared.chat_field,
        declared.parameters, declared.features_missing, sorted(declared.entity_keys.items()),
        getattr(declared.features, "name", declared.features),
    ]  # fmt: skip
    for step in declared.route:
        if isinstance(step, Rule):
            parts.append(["rule", step.name, code_of(step.when, files), code_of(step.then, files)])
        else:
            parts.append(_variant(step, snapshot))
    return parts


def templates_of(declared: Workflow[Any, Any], templates: Mapping[str, str]) -> list[tuple[str, str]]:
    """Every template that a route's prompts reach, path and text; all of them where one is included by a name that is
    made at run time."""
    waiting = [
        name for step in declared.route if isinstance(step, Variant) for name in (step.prompt, step.system) if name
    ]
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        text = templates.get(name)
        if text is None or len(_INCLUSION.findall(text)) > len(included(text)):
            return sorted(templates.items())
        found[name] = text
        waiting += included(text)
    return sorted(found.items())


def digest_of(parts: list[Any]) -> str:
    """16 hex digits over plain values and Structs; the length of each part counts."""
    digest = hashlib.sha256()
    for part in parts:
        said = msgspec.json.encode(part, order="deterministic", enc_hook=repr)
        digest.update(len(said).to_bytes(8, "big") + said)
    return digest.hexdigest()[:KEY_CHARS]


def _variant(step: Variant, snapshot: Snapshot) -> list[Any]:
    files, pinned = snapshot.files, snapshot.pinned.get(step.model)
    accepts = step.accept if isinstance(step.accept, list | tuple) else (step.accept,)
    return [
        "variant", step.name, step.model, pinned.digest if pinned is not None else "", step.prompt, step.system,
        step.parameters, step.max_output_tokens, [code_of(one, files) for one in accepts],
        _placeless(snapshot.providers.get(step.model.partition("/")[0])),
        _placeless(snapshot.models.get(step.model), retires="", replacement=""),
    ]  # fmt: skip


def _placeless(facts: Provider | ModelFacts | None, **left_out: str) -> Provider | ModelFacts | None:
    """Without the line that it is written in, which an unrelated edit above moves, and what decides about no answer."""
    return None if facts is None else msgspec.structs.replace(facts, line=0, **left_out)


def code_of(part: Any, files: Mapping[str, bytes]) -> Any:
    """What a declaration's part does, as text or plain values: a function or a type is the source that it reaches."""
    if isinstance(part, Check):
        return [part.name, code_of(part.test, files)]
    if isinstance(part, type) or callable(part):
        return source_of(part, files).decode("utf-8", "replace")
    return part if part is None else msgspec.to_builtins(part, enc_hook=repr, order="deterministic")
