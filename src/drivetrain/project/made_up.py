"""A made-up value of an input's type, as templates see inputs: plain JSON values of the right kinds, saying nothing.

Called where prompts are checked, so that a template is rendered once before any Call is.
"""

from __future__ import annotations

from typing import Any

import msgspec.inspect as types

DEPTH_MAX = 8
"""Levels of a type; one that holds itself ends here."""
_PLAIN: dict[type[types.Type], Any] = {
    types.NoneType: None, types.BoolType: True, types.IntType: 1, types.FloatType: 1.5, types.StrType: "text",
    types.BytesType: "dGV4dA==", types.ByteArrayType: "dGV4dA==", types.DateTimeType: "2026-01-31T12:00:00Z",
    types.DateType: "2026-01-31", types.TimeType: "12:00:00", types.TimeDeltaType: "P1D", types.DecimalType: "1.5",
    types.UUIDType: "00000000-0000-4000-8000-000000000000",
}  # fmt: skip


def made_up(declared: Any) -> Any:
    """A value of the type. Raises: ValueError or TypeError where none can be told, as of `Any`."""
    return _of(types.type_info(declared), 0)


def _of(info: types.Type, depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise ValueError("the type goes too deep")
    if type(info) in _PLAIN:
        return _PLAIN[type(info)]
    match info:
        case types.Metadata(type=inner):
            return _of(inner, depth)
        case types.LiteralType(values=values):
            return values[0]
        case types.EnumType(cls=cls):
            return next(iter(cls)).value
        case types.UnionType(types=some):
            return _of(next(one for one in some if not isinstance(one, types.NoneType)), depth)
        case types.TupleType(item_types=items):
            return [_of(one, depth + 1) for one in items]
        case types.ListType() | types.SetType() | types.FrozenSetType() | types.VarTupleType() as many:
            return [_of(many.item_type, depth + 1)]
        case types.DictType(key_type=key, value_type=value):
            return {_of(key, depth + 1): _of(value, depth + 1)}
        case types.StructType(fields=fields) | types.TypedDictType(fields=fields) | types.DataclassType(fields=fields):
            return {one.encode_name: _of(one.type, depth + 1) for one in fields}
    raise ValueError("nobody knows what values it has")
