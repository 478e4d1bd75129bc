"""The part of a Case that a policy reads, taken out by paths: for the engine, and to be sealed with the Decision.

Called by `compile`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from drivetrain.core.policies import Case

SEALED = ("input", "features", "answer")
"""What a Decision's inputs are made of; the rest of a Case is kept with it as facts."""

Wanted = dict[str, "Wanted | None"]
"""Names of fields -> what of each; None: all of it."""
_MISSING = object()
_UNCHANGING = frozenset((str, int, float, bool, bytes, type(None)))


def wanted(paths: Iterable[str]) -> Wanted:
    """Paths such as `input.amount` as a tree; a path takes along all that is below it."""
    tree: Wanted = {}
    for path in sorted(paths):
        at, names = tree, path.split(".")
        for name in names[:-1]:
            below = at.setdefault(name, {})
            if below is None:
                break
            at = below
        else:
            at[names[-1]] = None
    return tree


def part_of(case: Case, tree: Wanted) -> dict[str, Any]:
    """The wanted fields of a Case; one that is not there is left out."""
    found = {}
    for name, below in tree.items():
        value = getattr(case, name, _MISSING)
        if value is not _MISSING:
            found[name] = _part(value, below)
    return found


def apart(case: Case) -> Case:
    """The same Case, whose lists and dicts are its own: a function that changes them changes no answer and no record.

    Costs about 1 us for a Record of a few plain fields, which is not copied.
    """
    return msgspec.structs.replace(
        case, input=_apart(case.input), features=_apart(case.features), answer=_apart(case.answer)
    )


def _apart(value: Any) -> Any:
    kind = type(value)
    if kind in _UNCHANGING:
        return value
    if kind is list or kind is tuple:
        return kind(map(_apart, value))
    if kind is dict:
        return {name: _apart(one) for name, one in value.items()}
    if kind is set:
        return set(value)
    if not isinstance(value, msgspec.Struct):
        return value
    frozen = kind.__struct_config__.frozen
    changed = {}
    for name in kind.__struct_fields__:
        one = getattr(value, name)
        if type(one) not in _UNCHANGING:
            changed[name] = _apart(one)
    return msgspec.structs.replace(value, **changed) if changed or not frozen else value


def _part(value: Any, tree: Wanted | None) -> Any:
    """The wanted fields of a value: of a list, whose elements paths do not name, all of it; of a text nothing."""
    if tree is None or isinstance(value, list | tuple):
        return value
    if not isinstance(value, Mapping | msgspec.Struct):
        return None
    found = {}
    for name, below in tree.items():
        one = _field(value, name)
        if one is not _MISSING:
            found[name] = _part(one, below)
    return found


def _field(value: Mapping[str, Any] | msgspec.Struct, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name, _MISSING)
    attribute = _attributes(type(value)).get(name)
    return _MISSING if attribute is None else getattr(value, attribute)


def _attributes(kind: type[msgspec.Struct]) -> Mapping[str, str]:
    """Name in JSON -> name in Python."""
    known = _ATTRIBUTES.get(kind)
    if known is None:
        known = dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))
        if len(_ATTRIBUTES) >= _TYPES_MAX:
            _ATTRIBUTES.clear()
        _ATTRIBUTES[kind] = known
    return known


_TYPES_MAX = 1_000
"""Types of Records that are remembered; a reloaded project brings its own anew."""
_ATTRIBUTES: dict[type[msgspec.Struct], Mapping[str, str]] = {}
