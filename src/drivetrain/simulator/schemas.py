"""Invents a value that fits a JSON schema, always the same one for the same schema. Called by `answers`.

Covers what providers accept for structured output: objects, arrays, strings with common formats, numbers with bounds,
enum, const, anyOf, oneOf, allOf, local $ref and nullable types. A pattern is not honoured. Recursion ends at
`DEPTH_MAX`, where optional members and array items are left out.
"""

from collections.abc import Mapping

DEPTH_MAX = 12

Schema = Mapping[str, object]

_FORMATS = {
    "date-time": "2025-01-02T03:04:05Z",
    "date": "2025-01-02",
    "time": "03:04:05Z",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "duration": "PT1H",
}


def invented(schema: Schema, pick: float = 0.0) -> object:
    """A value that fits `schema`; `pick` in [0, 1) chooses among enum values."""
    return _value(schema, schema, pick, 0)


def properties_of(schema: Schema) -> Mapping[str, Schema]:
    """The properties of an object schema, its root $ref followed."""
    found = _resolved(schema, schema).get("properties")
    return (
        {name: each for name, each in found.items() if isinstance(each, Mapping)} if isinstance(found, Mapping) else {}
    )


def _value(schema: Schema, root: Schema, pick: float, depth: int) -> object:
    schema = _resolved(schema, root)
    if "const" in schema:
        return schema["const"]
    options = schema.get("enum")
    if isinstance(options, list) and options:
        return options[int(pick * len(options))]
    for key in ("anyOf", "oneOf"):
        branches = schema.get(key)
        if isinstance(branches, list) and branches:
            return _value(_simplest(branches) if depth >= DEPTH_MAX else branches[0], root, pick, depth + 1)
    parts = schema.get("allOf")
    if isinstance(parts, list) and parts:
        return _value(_merged(schema, parts, root), root, pick, depth + 1)
    return _typed(schema, root, pick, depth)


def _typed(schema: Schema, root: Schema, pick: float, depth: int) -> object:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0] if kind else "null"
    if kind == "object":
        return _object(schema, root, pick, depth)
    if kind == "array":
        return _array(schema, root, pick, depth)
    if kind == "string":
        return _string(schema)
    if kind in ("integer", "number"):
        return _number(schema, whole=kind == "integer")
    return True if kind == "boolean" else None


def _object(schema: Schema, root: Schema, pick: float, depth: int) -> dict[str, object]:
    properties, required = schema.get("properties"), schema.get("required")
    wanted = set(required) if isinstance(required, list) else set()
    if not isinstance(properties, Mapping):
        return {}
    return {
        name: _value(each, root, pick, depth + 1)
        for name, each in properties.items()
        if isinstance(each, Mapping) and (depth < DEPTH_MAX or (name in wanted and depth < 2 * DEPTH_MAX))
    }


def _array(schema: Schema, root: Schema, pick: float, depth: int) -> list[object]:
    least = schema.get("minItems", 0 if depth >= DEPTH_MAX else 1)
    count = least if isinstance(least, int) else 1
    if isinstance(most := schema.get("maxItems"), int):
        count = min(count, most)
    items = schema.get("items")
    if depth >= 2 * DEPTH_MAX:
        return []
    return [_value(items if isinstance(items, Mapping) else {}, root, pick, depth + 1) for _ in range(count)]


def _string(schema: Schema) -> str:
    text = _FORMATS.get(str(schema.get("format", "")), "text")
    if isinstance(least := schema.get("minLength"), int) and len(text) < least:
        text += "x" * (least - len(text))
    most = schema.get("maxLength")
    return text[:most] if isinstance(most, int) else text


def _number(schema: Schema, *, whole: bool) -> float:
    def bound(name: str) -> float | None:
        value = schema.get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    least, above = bound("minimum"), bound("exclusiveMinimum")
    most, below = bound("maximum"), bound("exclusiveMaximum")
    step: float = 1 if whole else 0.5
    low = least if least is not None else above + step if above is not None else None
    high = most if most is not None else below - step if below is not None else None
    value: float = 1
    if low is not None and value < low:
        value = low
    if high is not None and value > high:
        value = high
    multiple = bound("multipleOf")
    if multiple:
        value = -(-value // multiple) * multiple
    return int(value) if whole or value == int(value) else value


def _resolved(schema: Schema, root: Schema) -> Schema:
    for _ in range(DEPTH_MAX):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        found: object = root
        for step in reference.removeprefix("#").strip("/").split("/"):
            if step:
                found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping):
            return {}
        schema = found
    return {}


def _simplest(branches: list[object]) -> Schema:
    for branch in branches:
        if isinstance(branch, Mapping) and branch.get("type") in ("null", "string", "integer", "number", "boolean"):
            return branch
    return branches[0] if isinstance(branches[0], Mapping) else {}


def _merged(schema: Schema, parts: list[object], root: Schema) -> Schema:
    merged: dict[str, object] = {key: value for key, value in schema.items() if key != "allOf"}
    properties: dict[str, object] = dict(properties_of(merged))
    required: list[object] = []
    for part in parts:
        if isinstance(part, Mapping):
            resolved = _resolved(part, root)
            merged |= resolved
            properties |= dict(properties_of(resolved))
            needs = resolved.get("required")
            required += needs if isinstance(needs, list) else []
    if properties:
        merged |= {"properties": properties, "required": required}
    return merged
