"""Whether a value fits a JSON schema: the keywords that say what an answer looks like, and no others.

A keyword that is not known is a mistake of the schema, told by `mistakes`, and not one that is silently skipped.
Source: JSON Schema 2020-12, core and validation vocabularies, of which these are a part; `$ref` within the schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from drivetrain.core.errors import did_you_mean

DEPTH_MAX = 64
"""Of a schema, references included: one that refers to itself without an end fits nothing."""
TYPES: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda one: one is None,
    "boolean": lambda one: isinstance(one, bool),
    "string": lambda one: isinstance(one, str),
    "number": lambda one: isinstance(one, int | float) and _is_number(one),
    "integer": lambda one: _is_number(one) and one == int(one),
    "array": lambda one: isinstance(one, list | tuple),
    "object": lambda one: isinstance(one, Mapping),
}
ANNOTATIONS = frozenset(
    ("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "format",
     "deprecated", "readOnly", "writeOnly")
)  # fmt: skip
"""Say nothing of whether a value fits."""
_NUMBERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "multipleOf": lambda value, bound: abs(value / bound - round(value / bound)) < 1e-9,
}
_SIZES: Mapping[str, tuple[str, Callable[[int, int], bool]]] = {
    "minLength": ("string", lambda size, bound: size >= bound),
    "maxLength": ("string", lambda size, bound: size <= bound),
    "minItems": ("array", lambda size, bound: size >= bound),
    "maxItems": ("array", lambda size, bound: size <= bound),
    "minProperties": ("object", lambda size, bound: size >= bound),
    "maxProperties": ("object", lambda size, bound: size <= bound),
}
_LISTS = ("anyOf", "oneOf", "allOf")
_OTHERS = (
    "type", "enum", "const", "properties", "required", "additionalProperties", "items", "uniqueItems", "pattern", "not",
    "$ref",
)  # fmt: skip
KEYWORDS = (*_OTHERS, *_LISTS, *_NUMBERS, *_SIZES)


def fits(value: Any, schema: Any) -> bool:
    """Whether the value fits. Ask `mistakes` once before: a schema with mistakes may raise."""
    return _fits(value, schema, schema, 0)


def mistakes(schema: Any) -> Iterator[str]:
    """What is wrong with a schema, in words; nothing where it can be used."""
    yield from _mistakes(schema, schema, "", 0)


def _fits(value: Any, schema: Any, root: Any, depth: int) -> bool:
    if isinstance(schema, bool):
        return schema
    if depth > DEPTH_MAX:
        return False

    def inner(one: Any, by: Any) -> bool:
        return _fits(one, _target(by, root) if isinstance(by, str) else by, root, depth + 1)

    return all(
        _keyword(name, wanted, value, schema, inner) for name, wanted in schema.items() if name not in ANNOTATIONS
    )


def _keyword(name: str, wanted: Any, value: Any, schema: Mapping[str, Any], inner: Callable[[Any, Any], bool]) -> bool:
    if name == "type":
        return any(TYPES[one](value) for one in ([wanted] if isinstance(wanted, str) else wanted))
    if name == "enum":
        return any(_same(value, one) for one in wanted)
    if name == "const":
        return _same(value, wanted)
    if name == "$ref":
        return inner(value, wanted)
    if name == "not":
        return not inner(value, wanted)
    if name in _LISTS:
        count = sum(inner(value, one) for one in wanted)
        return count == len(wanted) if name == "allOf" else count == 1 if name == "oneOf" else count > 0
    if name in _NUMBERS:
        return not _is_number(value) or _NUMBERS[name](value, wanted)
    if name in _SIZES:
        kind, test = _SIZES[name]
        return not TYPES[kind](value) or test(len(value), wanted)
    if name == "pattern":
        return not isinstance(value, str) or re.search(wanted, value) is not None
    if isinstance(value, Mapping):
        if name == "required":
            return all(one in value for one in wanted)
        if name == "properties":
            return all(inner(value[key], by) for key, by in wanted.items() if key in value)
        if name == "additionalProperties":
            return all(inner(one, wanted) for key, one in value.items() if key not in schema.get("properties", {}))
    if isinstance(value, list | tuple):
        if name == "items":
            return all(inner(one, wanted) for one in value)
        if name == "uniqueItems":
            return not wanted or not any(_same(one, two) for at, one in enumerate(value) for two in value[:at])
    return True


def _mistakes(schema: Any, root: Any, path: str, depth: int) -> Iterator[str]:
    at = f" at `{path}`" if path else ""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping) or depth > DEPTH_MAX:
        yield f"a schema is an object, not {type(schema).__name__}{at}" if depth <= DEPTH_MAX else f"too deep{at}"
        return
    for name, wanted in schema.items():
        where = f"{path}/{name}"
        if name in ("$defs", "definitions", "properties") and isinstance(wanted, Mapping):
            for key, one in wanted.items():
                yield from _mistakes(one, root, f"{where}/{key}", depth + 1)
        elif name in ("not", "items", "additionalProperties"):
            yield from _mistakes(wanted, root, where, depth + 1)
        elif name in _LISTS and isinstance(wanted, Sequence) and not isinstance(wanted, str) and wanted:
            for place, one in enumerate(wanted):
                yield from _mistakes(one, root, f"{where}/{place}", depth + 1)
        elif name in ANNOTATIONS and name not in ("$defs", "definitions"):
            continue
        elif name not in KEYWORDS:
            yield f"`{name}`{at} is no keyword that is known here. {did_you_mean(str(name), KEYWORDS)}"
        elif not _usable(name, wanted, root):
            yield f"`{name}`{at} cannot be {str(wanted)[:80]!r}"


def _usable(name: str, wanted: Any, root: Any) -> bool:
    """Whether a keyword without schemas in it has a value that it can have."""
    if name == "type":
        return all(one in TYPES for one in wanted) if isinstance(wanted, list | tuple) else wanted in TYPES
    if name in ("enum", "required"):
        texts = name == "enum" or all(isinstance(one, str) for one in wanted)
        return isinstance(wanted, list | tuple) and texts
    if name in _NUMBERS:
        return _is_number(wanted) and (name != "multipleOf" or wanted > 0)
    if name in _SIZES:
        return isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 0
    if name == "pattern":
        return _compiles(wanted)
    if name == "$ref":
        return isinstance(wanted, str) and _target(wanted, root) is not None
    return name in ("const", "uniqueItems")


def _target(reference: str, root: Any) -> Any:
    """What `#/a/b` refers to; None where it refers to nothing."""
    if not reference.startswith("#"):
        return None
    found = root
    for part in reference[1:].strip("/").split("/") if reference != "#" else ():
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _compiles(pattern: Any) -> bool:
    try:
        re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0


def _same(one: Any, two: Any) -> bool:
    """JSON's equality: 1 is 1.0, and true is not 1."""
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two)
