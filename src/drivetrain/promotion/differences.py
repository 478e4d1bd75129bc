"""What differs between two Snapshots, workflow by workflow, each difference in one line with its aspect.

By content: code is compared as the text of what it reaches, a policy by its version, a trained model by its digest. So
an edit cannot pass for another kind of change than it is. Called by the plan, and again wherever a proposal is checked.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from drivetrain.core.declarations import Rule, Variant, Workflow
from drivetrain.core.evals import Eval
from drivetrain.core.releases import ChangeV1
from drivetrain.evals.eval_key import eval_key
from drivetrain.evals.workflow_key import code_of, templates_of, workflow_key
from drivetrain.policies.compile import as_policy, compile_policy
from drivetrain.project.snapshot import Snapshot

LINE_CHARS_MAX = 200
SHOWN_CHARS_MAX = 60
"""Of a value in a line; a longer one has `changed`."""

_WORKFLOW_FIELDS = (
    "owner", "team", "use_case", "slo", "retention", "durability", "parameters", "chat_input", "chat_field",
    "attempts_max", "max_input_tokens", "context", "cache", "deadline_ms", "priority", "features_missing",
    "entity_keys", "outcome_key", "keep_days",
)  # fmt: skip
_VARIANT_FIELDS = ("max_output_tokens", "parameters", "timeout_ms", "first_byte_timeout_ms")


def workflow_changes(before: Snapshot, after: Snapshot) -> Iterator[ChangeV1]:
    """Every difference between workflows of two Snapshots, by workflow and aspect."""
    for name in sorted({*before.workflows, *after.workflows}):
        old, new = before.workflows.get(name), after.workflows.get(name)
        if old is None or new is None:
            yield change(name, "workflow", "is new" if old is None else "is removed")
            continue
        found = [change(name, aspect, what) for aspect, what in _workflow(before, old, after, new)]
        if not found and workflow_key(before, name) != workflow_key(after, name):
            found = [change(name, "workflow", "what its answers depend on changed")]
        yield from found


def gates_text(declared: Eval) -> str:
    """`1 gate`, `2 gates`."""
    return f"{len(declared.gates)} gate{'' if len(declared.gates) == 1 else 's'}"


def eval_changes(before: Snapshot, after: Snapshot) -> Iterator[ChangeV1]:
    """Every difference between evals, under the workflow that each is of."""
    for name in sorted({*before.evals, *after.evals}):
        old, new = before.evals.get(name), after.evals.get(name)
        if old is None or new is None:
            one = new or old
            assert one is not None  # it is named by one of them
            how = "is new" if old is None else "is removed"
            yield change(one.workflow, "evals", f"eval {name} {how}, with {gates_text(one)}")
        elif old.workflow != new.workflow:
            yield change(old.workflow, "evals", f"eval {name} is of {new.workflow} now")
            yield change(new.workflow, "evals", f"eval {name} was of {old.workflow}")
        elif eval_key(old, before) != eval_key(new, after):
            yield from (change(new.workflow, "evals", f"eval {name}: {what}") for what in _eval(old, new))


def prompt_diffs(before: Snapshot | None, after: Snapshot) -> dict[str, str]:
    """Template's path -> unified diff of its text, where it changed."""
    old = before.templates if before is not None else {}
    found = {}
    for path in sorted({*old, *after.templates}):
        was, now = old.get(path, ""), after.templates.get(path, "")
        if was != now:
            lines = difflib.unified_diff(was.splitlines(), now.splitlines(), f"live/{path}", f"new/{path}", lineterm="")
            found[path] = "\n".join(lines)
    return found


def change(workflow: str, aspect: str, what: str) -> ChangeV1:
    """One difference; `what` is kept to one line."""
    line = " ".join(what.split())
    return ChangeV1(
        workflow=workflow, aspect=aspect,
        what=line if len(line) <= LINE_CHARS_MAX else line[: LINE_CHARS_MAX - 3] + "...",
    )  # fmt: skip


def field_changes(old: Any, new: Any, names: Sequence[str]) -> Iterator[str]:
    """Fields that differ: `slo became ...`; plain short values are shown."""
    for name in names:
        was, now = getattr(old, name), getattr(new, name)
        if _plain(was) != _plain(now):
            yield f"{name} {became(was, now)}"


def became(was: Any, now: Any) -> str:
    """`X became Y` where both can be shown in a line, else `changed`."""
    first, second = _shown(was), _shown(now)
    return f"{first} became {second}" if first and second else "changed"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
        parts = [f"{name} {getattr(value, name)}" for name in names if getattr(value, name) not in (None, (), {}, "")]
        text = ", ".join(parts)
    else:
        text = str(value) if isinstance(value, str | int | float | bool) else ""
    return text if len(text) <= SHOWN_CHARS_MAX else ""


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value, enc_hook=repr, order="deterministic") if value is not None else None


def _workflow(
    before: Snapshot, old: Workflow[Any, Any], after: Snapshot, new: Workflow[Any, Any]
) -> Iterator[tuple[str, str]]:
    """(aspect, what) of one workflow that both have."""
    for what in field_changes(old, new, _WORKFLOW_FIELDS):
        yield "workflow", what
    for name in ("input", "output"):
        if code_of(getattr(old, name), before.files) != code_of(getattr(new, name), after.files):
            yield "workflow", f"its {name} type changed"
    if getattr(old.features, "name", old.features) != getattr(new.features, "name", new.features):
        yield "workflow", "features changed"
    if _plain(list(old.degrade)) != _plain(list(new.degrade)):
        yield "workflow", "what answers where no variant does changed"
    yield from _route(before, old, after, new)
    for path in _changed_prompts(before, after, new):
        yield "prompts", f"{path} changed"
    if [code_of(one, before.files) for one in old.validators] != [code_of(one, after.files) for one in new.validators]:
        yield "checks", "validators changed"
    was, now = _policy(before, old), _policy(after, new)
    if was != now:
        yield "policy", f"policy {became(was or None, now or None)}"
    if _plain(old.budget) != _plain(new.budget):
        yield "budget", f"budget {became(old.budget, new.budget)}"
    if rollout_plain(old.rollout) != rollout_plain(new.rollout):
        yield (
            "rollout",
            "rollout changed"
            if old.rollout and new.rollout
            else ("rollout is new" if new.rollout else "rollout is removed"),
        )


def rollout_plain(rollout: Any) -> Any:
    """A declared Rollout as plain values, without its place."""
    if rollout is None:
        return None
    return [_plain(getattr(rollout, name)) for name in ("stages", "guards", "shadow", "level")]


def _route(
    before: Snapshot, old: Workflow[Any, Any], after: Snapshot, new: Workflow[Any, Any]
) -> Iterator[tuple[str, str]]:
    was, now = {one.name: one for one in old.route}, {one.name: one for one in new.route}
    for name in (*was, *(one for one in now if one not in was)):
        one, other = was.get(name), now.get(name)
        if one is None or other is None:
            step = one or other
            model = f" on {step.model}" if isinstance(step, Variant) else ""
            yield "variants", f"{_step(step)} {name} is {'new' if one is None else 'removed'}{model}"
        elif isinstance(one, Variant) and isinstance(other, Variant):
            yield from _variant(before, one, after, other)
        elif _rule(one, before) != _rule(other, after):
            yield "variants", f"{_step(other)} {name} changed"
    first, second = [one for one in was if one in now], [one for one in now if one in was]
    if first != second:
        yield "order", f"order {', '.join(first)} became {', '.join(second)}"


def _variant(before: Snapshot, old: Variant, after: Snapshot, new: Variant) -> Iterator[tuple[str, str]]:
    where = f"variant {new.name}:"
    if old.model != new.model:
        yield "variants", f"{where} model {old.model} became {new.model}"
    was, now = before.pinned.get(old.model), after.pinned.get(new.model)
    if was != now and (was is not None or now is not None):
        ids = [f"{one.id} ({one.digest[:16]})" if one is not None else "none" for one in (was, now)]
        yield "variants", f"{where} trained model {ids[0]} became {ids[1]}"
    for what in field_changes(old, new, _VARIANT_FIELDS):
        yield "variants", f"{where} {what}"
    for name in ("prompt", "system"):
        if getattr(old, name) != getattr(new, name):
            yield "prompts", f"{where} {name} {became(getattr(old, name), getattr(new, name))}"
    if _accepts(old, before) != _accepts(new, after):
        yield "checks", f"{where} accept changed"
    provider = new.model.partition("/")[0]
    if before.providers.get(provider) is not None and _provider(before, provider) != _provider(after, provider):
        yield "variants", f"{where} provider {provider} changed"
    if before.models.get(new.model) != after.models.get(new.model) and old.model == new.model:
        yield "variants", f"{where} what the settings say of {new.model} changed"


def _provider(snapshot: Snapshot, name: str) -> Any:
    found = snapshot.providers.get(name)
    return msgspec.structs.replace(found, line=0) if found is not None else None


def _step(step: Rule | Variant | None) -> str:
    return "rule" if isinstance(step, Rule) else "variant"


def _rule(step: Rule | Variant, snapshot: Snapshot) -> Any:
    return [code_of(step.when, snapshot.files), code_of(step.then, snapshot.files)] if isinstance(step, Rule) else None


def _accepts(step: Variant, snapshot: Snapshot) -> list[Any]:
    accepts = step.accept if isinstance(step.accept, list | tuple) else (step.accept,)
    return [code_of(one, snapshot.files) for one in accepts]


def _policy(snapshot: Snapshot, workflow: Workflow[Any, Any]) -> str:
    if workflow.policy is None:
        return ""
    policy = as_policy(workflow.policy, workflow.name)
    made = compile_policy(policy, snapshot.files, clock_ns=lambda: 0)
    return f"{policy.name} {made.version}{f' within {policy.limit_ms} ms' if policy.limit_ms else ''}"


def _changed_prompts(before: Snapshot, after: Snapshot, new: Workflow[Any, Any]) -> list[str]:
    """Paths of the templates whose text is another than it was."""
    return [
        path
        for path, text in templates_of(new, after.templates)
        if path in before.templates and before.templates[path] != text
    ]


def _eval(old: Eval, new: Eval) -> Iterator[str]:
    gone = [one for one in old.gates if one not in new.gates]
    come = [one for one in new.gates if one not in old.gates]
    yield from (f"gate `{one}` is removed" for one in gone)
    yield from (f"gate `{one}` is new" for one in come)
    if old.dataset != new.dataset:
        yield f"Dataset {old.dataset} became {new.dataset}"
    if not gone and not come and old.dataset == new.dataset:
        yield "how it is scored changed"
