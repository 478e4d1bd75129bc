"""How a workflow's input becomes the row of a trained model, and the model's answer the workflow's output.

Owns the rules by which names meet: a model's column is the input's field of that name, else a feature of that name,
else, for the one text of a model, the input's one text; the target is the output's field of that name, else its one
field that can hold it. Used by the checks and by whoever compiles a workflow.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from drivetrain.core.declarations import Workflow
from drivetrain.core.models import Column, Signature

CONFIDENCE, SCORES = "confidence", "scores"
"""Fields of an output that a classification fills beside its target, where the output has them."""
LABELS_SHOWN = 10
"""In a mistake; a model may have thousands."""
_GIVES = {
    "classification": ("a label", "a `str` or a `Literal` of the labels"),
    "regression": ("a number", "a `float`"),
    "ranking": ("a ranking", "a list"),
}
"""Task -> what it predicts, and the type that can hold it."""

From = Literal["input", "feature", "text", "candidate"]


class Fit(msgspec.Struct, frozen=True):
    """How names meet."""

    columns: tuple[tuple[From, str], ...]
    """Where each column comes from, in the signature's order; `text` is the conversation's."""
    target: str
    """The output's field; empty where the answer is a text."""
    fills: frozenset[str]
    """Which of `confidence` and `scores` the output has."""
    ids_only: bool = False
    """Of a ranking: whether the output lists ids instead of candidates with scores."""


class Misfits(Exception):
    """Each thing that does not meet: (what, what to do)."""

    def __init__(self, found: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(what for what, _ in found))
        self.found = found


def fit(signature: Signature, workflow: Workflow[Any, Any]) -> Fit:
    """Raises: Misfits with everything that does not meet."""
    found: list[tuple[str, str]] = []
    columns = _columns(signature, workflow, found)
    fields = _fields(workflow.output) if workflow.output is not None else None
    target = _target(signature, fields, found) if fields is not None else ""
    fills: frozenset[str] = frozenset()
    if fields is not None and signature.task == "classification":
        fills = frozenset(name for name in (CONFIDENCE, SCORES) if name in fields and name != target)
    for name, field in (fields or {}).items():
        if field.required and name != target and name not in fills:
            found.append(
                (f"fills no `{name}`, which the output requires.", "Give the field a default, or leave it out.")
            )
    if found:
        raise Misfits(found)
    ids_only = fields is not None and signature.task == "ranking" and _is_plain(_item_of(fields[target].type))
    return Fit(tuple(columns), target, fills, ids_only)


def _columns(
    signature: Signature, workflow: Workflow[Any, Any], found: list[tuple[str, str]]
) -> list[tuple[From, str]]:
    if workflow.input is None:
        if signature.task != "ranking" and _only_text(signature) is not None:
            return [("text", "text")]
        found.append(
            ("needs columns, but a chat workflow has a conversation only.", "Declare `input` with these fields.")
        )
        return []
    fields = _fields(workflow.input)
    if signature.task == "ranking":
        return _candidate_columns(signature, fields, workflow, found)
    columns: list[tuple[From, str]] = []
    only_text = _only_text(signature)
    for column in signature.inputs:
        if column.name in fields:
            columns.append(("input", column.name))
        elif workflow.features is not None and column is not only_text:
            columns.append(("feature", column.name))
        elif column is only_text and (field := _text_field(workflow, fields)) is not None:
            columns.append(("input", field))
        else:
            found.append(
                (f"needs `{column.name}`, which is no field of the input.", "Add the field, or name a FeatureService.")
            )
    return columns


def _candidate_columns(
    signature: Signature,
    fields: dict[str, msgspec.inspect.Field],
    workflow: Workflow[Any, Any],
    found: list[tuple[str, str]],
) -> list[tuple[From, str]]:
    listed = fields.get(signature.candidates)
    if listed is None:
        found.append(
            (f"ranks `{signature.candidates}`, which is no field of the input.", "Add a list of Records of that name.")
        )
        return []
    item = _item_of(listed.type)
    of_candidate = {one.name for one in item.fields} if isinstance(item, msgspec.inspect.StructType) else None
    if of_candidate is not None and signature.candidate_id not in of_candidate:
        found.append(
            (f"tells candidates apart by `{signature.candidate_id}`, which they do not have.", "Add the field.")
        )
    columns: list[tuple[From, str]] = []
    for column in signature.inputs:
        if of_candidate is None or column.name in of_candidate:
            columns.append(("candidate", column.name))
        elif column.name in fields:
            columns.append(("input", column.name))
        elif workflow.features is not None:
            columns.append(("feature", column.name))
        else:
            found.append(
                (
                    f"needs `{column.name}`, which neither a candidate nor the input has.",
                    "Add it, or name a FeatureService.",
                )
            )
    return columns


def _target(signature: Signature, fields: dict[str, msgspec.inspect.Field], found: list[tuple[str, str]]) -> str:
    fits = {"classification": _holds_label, "regression": _holds_number, "ranking": _holds_list}[signature.task]
    if signature.target in fields:
        target = signature.target
    else:
        able = [name for name, field in fields.items() if name not in (CONFIDENCE, SCORES) and fits(field.type)]
        if len(able) != 1:
            which = f"none or several of ({', '.join(fields)}) could hold it" if fields else "it has no field"
            found.append(
                (f"predicts `{signature.target}`, which the output does not have, and {which}.",
                 f"Add a field `{signature.target}` to the output."),
            )  # fmt: skip
            return ""
        target = able[0]
    if not fits(fields[target].type):
        gives, kind = _GIVES[signature.task]
        found.append((f"gives {gives}, which the output's `{target}` cannot hold.", f"Make it {kind}."))
        return target
    allowed = _allowed(fields[target].type)
    unknown = [label for label in signature.labels if allowed is not None and label not in allowed]
    if unknown:
        shown = ", ".join(f"`{label}`" for label in unknown[:LABELS_SHOWN])
        if len(unknown) > LABELS_SHOWN:
            shown += f" and {len(unknown) - LABELS_SHOWN} more"
        one = len(unknown) == 1
        found.append(
            (
                f"gives {'a label' if one else f'{len(unknown)} labels'} that the output's `{target}` does not allow: "
                f"{shown}.",
                f"Add {'it' if one else 'them'} to its type.",
            )
        )
    return target


def _only_text(signature: Signature) -> Column | None:
    texts = [one for one in signature.inputs if one.dtype == "text"]
    return texts[0] if len(texts) == 1 else None


def _text_field(workflow: Workflow[Any, Any], fields: dict[str, msgspec.inspect.Field]) -> str | None:
    if workflow.chat_field in fields:
        return workflow.chat_field
    texts = [name for name, field in fields.items() if _is(field.type, msgspec.inspect.StrType)]
    return texts[0] if len(texts) == 1 else None


def _fields(declared: type[Any]) -> dict[str, msgspec.inspect.Field]:
    """By the names that JSON has."""
    info = msgspec.inspect.type_info(declared)
    assert isinstance(info, msgspec.inspect.StructType)
    return {field.encode_name: field for field in info.fields}


def _options(declared: msgspec.inspect.Type) -> tuple[msgspec.inspect.Type, ...]:
    if isinstance(declared, msgspec.inspect.Metadata):
        return _options(declared.type)
    if isinstance(declared, msgspec.inspect.UnionType):
        return tuple(option for one in declared.types for option in _options(one))
    return (declared,)


def _is(declared: msgspec.inspect.Type, *kinds: type[msgspec.inspect.Type]) -> bool:
    return any(isinstance(one, kinds) for one in _options(declared))


def _holds_label(declared: msgspec.inspect.Type) -> bool:
    inspect = msgspec.inspect
    return _is(declared, inspect.StrType, inspect.LiteralType, inspect.EnumType, inspect.AnyType)


def _holds_number(declared: msgspec.inspect.Type) -> bool:
    return _is(declared, msgspec.inspect.FloatType, msgspec.inspect.AnyType)


def _holds_list(declared: msgspec.inspect.Type) -> bool:
    inspect = msgspec.inspect
    return _is(declared, inspect.ListType, inspect.VarTupleType, inspect.AnyType)


def _item_of(declared: msgspec.inspect.Type) -> msgspec.inspect.Type | None:
    for one in _options(declared):
        if isinstance(one, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
            return one.item_type
    return None


def _is_plain(declared: msgspec.inspect.Type | None) -> bool:
    return declared is not None and _is(declared, msgspec.inspect.StrType, msgspec.inspect.IntType)


def _allowed(declared: msgspec.inspect.Type) -> frozenset[Any] | None:
    """The only labels that a field may hold; None: any text."""
    allowed: set[Any] = set()
    for one in _options(declared):
        if isinstance(one, msgspec.inspect.LiteralType):
            allowed.update(one.values)
        elif isinstance(one, msgspec.inspect.EnumType):
            allowed.update(member.value for member in one.cls)
        elif isinstance(one, msgspec.inspect.StrType | msgspec.inspect.AnyType):
            return None
    return frozenset(allowed)
