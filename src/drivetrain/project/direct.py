"""Workflows of models that clients may name directly: `direct_models` under [gateway], and no workflow written.

A provider's model makes a chat workflow of its own name; a trained model makes a typed one of the model's name, whose
input and output are its signature.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.declarations import Place, Record, Variant, Workflow
from drivetrain.core.models import REFERENCE, Column, Pinned, Signature, is_trained, parse_reference
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.pins import reference_mistake
from drivetrain.project.problems import Problems, shown
from drivetrain.project.settings import Settings

TYPES: Mapping[str, type] = {"text": str, "category": str, "float": float, "int": int, "bool": bool}


def direct_workflows(
    settings: Settings,
    root: Path,
    line: int,
    pinned: Mapping[str, Pinned],
    problems: Problems,
    *,
    taken: Collection[str],
    leaves_models: bool = False,
) -> dict[str, Workflow[Any, Any]]:
    """By name. line: of `direct_models`. taken: names of the declared workflows. leaves_models: whether references that
    cannot be resolved are no mistake; their workflows have no types then."""
    made: dict[str, Workflow[Any, Any]] = {}
    for model in settings.gateway.direct_models:
        place = Place(str(root / SETTINGS_FILE), line)
        if not is_trained(model):
            workflow = _workflow(model, model, settings, place)
        elif model not in pinned and leaves_models and REFERENCE.fullmatch(model):
            workflow = _workflow(parse_reference(model).name, model, settings, place)
        elif model not in pinned:
            what, do = reference_mistake(model, root / settings.ledger.folder)
            problems.add(f"`gateway.direct_models` {what}", file=SETTINGS_FILE, line=line, value=shown(model), do=do)
            continue
        else:
            found = pinned[model]
            workflow = _workflow(found.name, model, settings, place, found.signature)
        if workflow.name in taken or workflow.name in made:
            problems.add(
                f"`gateway.direct_models` names `{model}`, but there is another workflow `{workflow.name}`.",
                file=SETTINGS_FILE, line=line, value=shown(model),
                do="Leave it out, and name the model as a variant of that workflow.",
            )  # fmt: skip
            continue
        workflow.project = str(root)
        made[workflow.name] = workflow
    return made


def _workflow(
    name: str, model: str, settings: Settings, place: Place, signature: Signature | None = None
) -> Workflow[Any, Any]:
    team = settings.teams.get(settings.direct_team)
    return Workflow(
        name,
        input=_input_of(name, signature) if signature is not None else None,
        output=_output_of(name, signature) if signature is not None else None,
        owner=team.owner if team is not None else "",
        team=settings.direct_team,
        use_case="direct",
        route=[Variant("direct", model=model, place=place)],
        place=place,
    )


def _input_of(name: str, signature: Signature) -> type[Record]:
    if signature.task != "ranking":
        return _record(f"{name}_input", [_field(column) for column in signature.inputs])
    candidate = _record(
        f"{name}_candidate", [(signature.candidate_id, str | int), *(_field(column) for column in signature.inputs)]
    )
    return _record(f"{name}_input", [(signature.candidates, list[candidate])])  # type: ignore[valid-type]


def _output_of(name: str, signature: Signature) -> type[Record]:
    if signature.task == "classification":
        fields: list[tuple[Any, ...]] = [(signature.target, str), ("confidence", float)]
    elif signature.task == "regression":
        fields = [(signature.target, float)]
    else:
        ranked = _record(f"{name}_ranked", [(signature.candidate_id, str | int), ("score", float)])
        fields = [(signature.target, list[ranked])]  # type: ignore[valid-type]
    return _record(f"{name}_output", fields)


def _field(column: Column) -> tuple[Any, ...]:
    declared = TYPES[column.dtype]
    return (column.name, declared | None, None) if column.nullable else (column.name, declared)


def _record(name: str, fields: list[tuple[Any, ...]]) -> type[Record]:
    """A Record with these fields, those with a default last; names that Python does not allow are kept in JSON."""
    ordered = sorted(fields, key=len)
    attributes = [(f"field_{at}", *field[1:]) for at, field in enumerate(ordered)]
    rename = {f"field_{at}": field[0] for at, field in enumerate(ordered)}
    made = msgspec.defstruct(_title(name), attributes, bases=(Record,), frozen=True, rename=rename)
    assert issubclass(made, Record)
    return made


def _title(name: str) -> str:
    return "".join(part.capitalize() for part in name.replace("-", "_").split("_"))
