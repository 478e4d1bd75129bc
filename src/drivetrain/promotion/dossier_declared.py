"""Sections of a dossier that tell what was declared: purpose, contract, route, data, oversight, limits, retention."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.declarations import Check, Rule, Variant
from drivetrain.core.limits import Limit
from drivetrain.core.markup import Table
from drivetrain.core.models import is_trained
from drivetrain.core.money import usd
from drivetrain.core.rollouts import Rollout
from drivetrain.policies.compile import as_policy
from drivetrain.promotion.dossier_material import NOT_DECLARED, NOT_RECORDED, Material, Section, day, words

PURPOSE_CHARS_MAX = 2_000
HASH_CHARS = 16


def purpose(material: Material) -> Section:
    """What it is for, and who answers for it."""
    declared, snapshot = material.declared, material.snapshot
    return Section(
        title="Purpose and ownership",
        facts=(
            ("Workflow", declared.name),
            ("Purpose", _docstring(material) or NOT_DECLARED),
            ("Use case", declared.use_case or NOT_DECLARED),
            ("Owner", declared.owner or NOT_DECLARED),
            ("Team", declared.team or NOT_DECLARED),
            ("Project", snapshot.name),
            ("Environment", snapshot.environment),
            ("Declared in", _file_of(material) or NOT_RECORDED),
        ),
    )


def contract(material: Material) -> Section:
    """What goes in and what comes out."""
    declared = material.declared
    limits = [
        ("Most input tokens", str(declared.max_input_tokens or NOT_DECLARED)),
        ("Deadline", f"{declared.deadline_ms} ms" if declared.deadline_ms else NOT_DECLARED),
        ("Validators of every answer", words([_name(one) for one in declared.validators])),
    ]
    return Section(
        title="Input and output",
        facts=tuple(limits),
        tables=(
            _fields("Input", declared.input, "A conversation: messages as an OpenAI-compatible client sends them."),
            _fields("Output", declared.output, "The model's text."),
        ),
    )


def route(material: Material) -> Section:
    """Rules and variants in their order, each pinned, and the prompts by hash."""
    rows, prompts = [], {}
    for place, step in enumerate(material.declared.route, start=1):
        if isinstance(step, Rule):
            rows.append((str(place), step.name, "rule", f"when {_name(step.when)}", "-", "-", "-"))
            continue
        for one in (step.system, step.prompt):
            if one:
                prompts[one] = material.snapshot.templates.get(one, "")
        accept = step.accept if isinstance(step.accept, list | tuple) else (step.accept,) if step.accept else ()
        rows.append((
            str(place), step.name, "trained model" if is_trained(step.model) else "provider's model",
            _pinned(material, step), words([one for one in (step.system, step.prompt) if one], "-"),
            words([_name(one) for one in accept], "-"), str(step.max_output_tokens),
        ))  # fmt: skip
    texts = tuple(
        (path, hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARS], str(len(text)))
        for path, text in sorted(prompts.items())
    )
    used = tuple(one for one in material.retirements if material.workflow in one.workflows)
    ends = tuple((one.model, one.retires or NOT_RECORDED, one.replacement or "-", one.warning or "-") for one in used)
    return Section(
        title="Route",
        facts=(
            ("Most attempts per Call", str(material.declared.attempts_max)),
            ("Where no variant answers", words([_ladder(one) for one in material.declared.degrade])),
        ),
        tables=(
            Table(head=("#", "step", "kind", "model or condition", "prompts", "accepted when", "output tokens#"),
                  rows=tuple(rows), none="No step is declared."),
            Table(title="Prompts, by hash", head=("template", "sha256", "characters#"), rows=texts,
                  none="No variant has a prompt of the project."),
            Table(title="Announced ends of models", head=("model", "last day", "replacement", "warning"), rows=ends),
        ),
    )  # fmt: skip


def data(material: Material) -> Section:
    """Datasets, features and the training sets of its models."""
    datasets = tuple(
        (name, day(one.made_ns), one.made_by, f"{one.rows:,}", one.content_hash[:HASH_CHARS],
         words([column.name for column in one.schema.columns if column.personal], "none marked"),
         words(one.inputs, NOT_RECORDED))
        for name, one in sorted(material.datasets.items())
    )  # fmt: skip
    models = tuple(
        (reference, one.artifact, one.digest[:HASH_CHARS], one.dataset or NOT_RECORDED, one.recipe or one.source or
         NOT_RECORDED, one.licence or NOT_DECLARED, day(one.made_ns), one.made_by)
        for reference, one in sorted(material.versions.items())
    )  # fmt: skip
    service = material.declared.features
    return Section(
        title="Data and lineage",
        facts=(("Features", str(getattr(service, "name", service) or "the workflow names none")),),
        tables=(
            Table(title="Datasets", none="No Dataset that its evals or its models' trainings name is registered.",
                  head=("dataset", "made", "by", "rows#", "sha256", "personal columns", "made from"), rows=datasets),
            Table(title="Trained models", none="The route names no trained model.",
                  head=("reference", "version", "sha256", "trained on", "recipe or source", "licence", "made", "by"),
                  rows=models),
        ),
    )  # fmt: skip


def oversight(material: Material) -> Section:
    """Who may change it, who approves, and what its policy decides."""
    rules = material.state.live.rules if material.is_released else material.snapshot.rules
    people = tuple((one.name, words(one.roles, "-"), "yes" if one.key else "no") for one in rules.people)
    approvals = tuple(
        (one.aspect, str(one.number), words(one.roles, "anybody who may approve"), words(one.workflows, "all"))
        for one in rules.approvals
        if not one.workflows or material.workflow in one.workflows
    )
    facts = [
        ("Evals with gates must pass before a Release", "yes" if rules.gates else "no"),
        ("Roles that may override in an emergency", words(rules.override_roles, "nobody may")),
    ]
    policy = material.declared.policy
    if policy is None:
        facts.append(("Policy", "none: nothing is decided on its answers here"))
    else:
        own = as_policy(policy, material.workflow)
        how = f"the table {own.table}" if own.table else f"the function {_name(own.decide)}"
        otherwise = own.otherwise.action if own.otherwise is not None else "the Call fails"
        explored = f"{own.explore.share:.2%} of Calls" if own.explore is not None else "no"
        facts += [
            ("Policy", f"{own.name}, {how}"), ("Policy's version", material.policy_version or NOT_RECORDED),
            ("Actions", words(own.actions, "any")), ("Where it fails or nothing matches", otherwise),
            ("Explores other actions", explored),
        ]  # fmt: skip
    facts += _rollout(material.declared.rollout)
    return Section(
        title="Human oversight",
        facts=tuple(facts),
        tables=(
            Table(title="Approvals that its changes need", head=("of", "number#", "roles", "workflows"), rows=approvals,
                  none="None is declared: whoever may propose may promote what passed its gates."),
            Table(title="People", head=("name", "roles", "signs with a key"), rows=people, none=NOT_DECLARED),
        ),
    )  # fmt: skip


def limits(material: Material) -> Section:
    """What it may cost, how often it may be called, and what it promises."""
    declared = material.declared
    rows = tuple(
        (one.name, one.kind, f"{one.dimension} {one.value or ''}".strip(), _amount(one), one.mode)
        for one in sorted(material.snapshot.limits.values(), key=lambda one: one.name)
        if _is_for(one, material)
    )
    per_call = declared.budget.usd_per_call if declared.budget is not None else None
    promised = declared.slo
    p99 = getattr(promised, "p99_ms", None)
    available = getattr(promised, "availability", None)
    return Section(
        title="Budgets and limits",
        facts=(
            ("Most per Call", f"{per_call} USD" if per_call is not None else NOT_DECLARED),
            ("Promised p99", f"{p99} ms" if p99 else NOT_DECLARED),
            ("Promised availability", f"{available:.3%}" if available else NOT_DECLARED),
        ),
        tables=(Table(head=("limit", "kind", "of", "amount", "mode"), rows=rows, none=NOT_DECLARED),),
    )


def retention(material: Material) -> Section:
    """What is kept of people's data, and for how long."""
    declared, snapshot = material.declared, material.snapshot
    ledger, keep = snapshot.ledger, declared.keep_days or snapshot.lake.keep_days
    kept = declared.retention or ledger.retention
    return Section(
        title="Retention and personal data",
        facts=(
            ("Requests and answers", f"{kept}{'' if declared.retention else ', as the project keeps them'}"),
            ("Keys of payloads are destroyed after", f"{ledger.payload_days} days"),
            ("Calls and Outcomes are kept", f"{keep} days" if keep else "for ever"),
            ("Durability", declared.durability),
            ("Outcomes may name Calls by", declared.outcome_key or "the Call's id only"),
            ("Encryption", "requests, answers, features and what Decisions read are kept only under a key per person"),
        ),
    )


def _rollout(declared: Any) -> list[tuple[str, str]]:
    """How a Release of it reaches its callers."""
    if not isinstance(declared, Rollout):
        return [("How a Release reaches callers", "all at once, unless a canary is asked for")]
    shadow = [f"a shadow of {declared.shadow.share:.0%} for {declared.shadow.minutes:g} min"] if declared.shadow else []
    stages = [f"{one.share:.0%} of users for {one.minutes:g} min" for one in declared.stages]
    guards = [f"{one.watch} {one.metric}".strip() + f" (margin {one.margin:g})" for one in declared.guards]
    return [
        ("How a Release reaches callers", ", then ".join([*shadow, *stages, "everybody"])),
        ("Rolled back by itself on", words(guards, "nothing")),
    ]


def _docstring(material: Material) -> str:
    """What the file that declares it says of itself."""
    content = material.snapshot.files.get(_file_of(material))
    if content is None or not _file_of(material).endswith(".py"):
        return ""
    try:
        said = ast.get_docstring(ast.parse(content)) or ""
    except (SyntaxError, ValueError):
        return ""
    return " ".join(said.split())[:PURPOSE_CHARS_MAX]


def _file_of(material: Material) -> str:
    """The file that declares the workflow, relative to the project."""
    file = material.declared.place.file
    if file in material.snapshot.files:
        return file
    return next((one for one in sorted(material.snapshot.files) if Path(file).as_posix().endswith(f"/{one}")), "")


def _fields(title: str, kind: Any, otherwise: str) -> Table:
    head = ("field", "type", "needed")
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return Table(title=title, head=head, rows=(), none=otherwise)
    rows = tuple(
        (one.encode_name, _type(one.type), "yes" if one.required else "no") for one in msgspec.structs.fields(kind)
    )
    return Table(title=f"{title}: {kind.__name__}", head=head, rows=rows, none="It has no field.")


def _type(kind: Any) -> str:
    return (
        kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind).replace("typing.", "")
    )


def _name(part: Any) -> str:
    if isinstance(part, Check):
        return part.name
    return str(getattr(part, "__name__", "") or type(part).__name__)


def _pinned(material: Material, step: Variant) -> str:
    pinned = material.snapshot.pinned.get(step.model)
    return f"{step.model} = {pinned.id}, sha256 {pinned.digest[:HASH_CHARS]}" if pinned is not None else step.model


def _ladder(step: Any) -> str:
    age = getattr(step, "max_age_s", None)
    return f"an earlier answer of at most {age} s" if age is not None else "a fixed answer"


def _is_for(limit: Limit, material: Material) -> bool:
    declared = material.declared
    whose = {"workflow": declared.name, "team": declared.team, "use_case": declared.use_case}
    return limit.dimension not in whose or limit.value in (None, whose[limit.dimension])


def _amount(limit: Limit) -> str:
    if limit.unit == "nano_usd":
        return f"{usd(limit.amount)} USD per {limit.per or f'{limit.window_s} s'}"
    return f"{limit.amount} {limit.unit}" + (f" per {limit.window_s} s" if limit.window_s else " at a time")
