"""Open Inference Protocol v2: a request's tensors become the inputs of Calls, and their outputs become tensors.

Owns which fields of a workflow's types are tensors, and what a request may say about them. A row of the batch is one
input as JSON, so that it is admitted as any other input of its workflow is. Knows no key, no Call and no connection.
The specification: https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from drivetrain.core.errors import RequestError, did_you_mean
from drivetrain.execution.admission import bad_request, parse_body
from drivetrain.execution.plan import WorkflowPlan

ROWS_MAX = 256
"""Of one request: its answer waits for the last of them, and all of them are held until it leaves."""
ID_CHARS_MAX = 256
"""Of a request's `id`, which is given back."""
INTEGERS = {
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}
"""Datatype -> the least and the greatest."""
FLOATS = {"FP16": 65_504.0, "FP32": 3.4028234663852886e38, "FP64": 1.7976931348623157e308}
"""Datatype -> the greatest."""
DATATYPES = ("BOOL", "BYTES", *INTEGERS, *FLOATS)
TEXTS = (
    inspect.StrType, inspect.DateTimeType, inspect.DateType, inspect.TimeType, inspect.TimeDeltaType,
    inspect.UUIDType, inspect.DecimalType, inspect.BytesType,
)  # fmt: skip
"""What JSON has as a text."""
BINARY = "the binary tensor extension is not spoken here: send `data` as JSON, and ask for no binary output"
BINARY_HEAD_BYTES = 65_536
"""How far a body that is no JSON is searched for what clients of that extension write."""


class Tensor(msgspec.Struct, frozen=True):
    """One scalar field of a workflow's input or output."""

    name: str
    """As JSON has it."""
    datatype: str
    attribute: str = ""
    """As Python has it; empty where it is no field of the output."""
    nullable: bool = False
    required: bool = True


class Fields(msgspec.Struct, frozen=True):
    """A type's fields."""

    tensors: tuple[Tensor, ...]
    others: tuple[str, ...]
    """Those that are no scalars and must be given."""


class Batch(msgspec.Struct, frozen=True):
    """What one request asks for."""

    rows: tuple[bytes, ...]
    """Of each Call the input as JSON."""
    outputs: tuple[Tensor, ...]
    id: str | None


TEXT = Tensor("text", "BYTES", "text")
"""The input of a chat workflow, and the output of a workflow without an output type."""
DECISION = (
    Tensor("decision.action", "BYTES", nullable=True, required=False),
    Tensor("decision.reason", "BYTES", nullable=True, required=False),
)


def inputs_of(plan: WorkflowPlan) -> Fields:
    """What a request gives for each row."""
    record = plan.workflow.input
    return fields_of(record) if record is not None else Fields((TEXT,), ())  # type: ignore[arg-type]


def outputs_of(plan: WorkflowPlan) -> tuple[Tensor, ...]:
    """What an answer can hold of each row."""
    output = plan.workflow.output
    tensors: tuple[Tensor, ...] = (TEXT,)
    if output is not None:
        tensors = fields_of(output).tensors  # type: ignore[arg-type]
    return (*tensors, *DECISION) if plan.workflow.policy is not None else tensors


def metadata(tensor: Tensor) -> dict[str, Any]:
    """A tensor as the protocol describes it; any number of rows."""
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1]}


@functools.lru_cache(maxsize=1024)
def fields_of(record: type[Any]) -> Fields:
    """The fields of a Record."""
    described = inspect.type_info(record)
    tensors, others = [], []
    for field in described.fields if isinstance(described, inspect.StructType) else ():
        nullable, kinds = _without_null(field.type)
        datatype = _datatype(kinds)
        if datatype:
            tensors.append(Tensor(field.encode_name, datatype, field.name, nullable, field.required))
        elif field.required:
            others.append(field.encode_name)
    return Fields(tuple(tensors), tuple(others))


def read_batch(plan: WorkflowPlan, raw: bytes) -> Batch:
    """A request's body. Raises: RequestError (400) that names what is wrong."""
    try:
        body = parse_body(raw)
    except RequestError:
        if b'"binary_data_size"' in raw[:BINARY_HEAD_BYTES]:
            raise bad_request(BINARY, code="unsupported") from None
        raise
    if _parameters(body, "parameters").get("binary_data_output"):
        raise bad_request(BINARY, param="parameters", code="unsupported")
    columns = _columns(plan, body.get("inputs"))
    names = tuple(columns)
    rows = tuple(msgspec.json.encode(dict(zip(names, row, strict=True))) for row in zip(*columns.values(), strict=True))
    return Batch(rows, _wanted(plan, body.get("outputs")), _id(body.get("id")))


def output_tensors(wanted: Sequence[Tensor], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answers as tensors. rows: of each Call, tensor name -> value."""
    return [
        {"name": one.name, "datatype": one.datatype, "shape": [len(rows)], "data": [row.get(one.name) for row in rows]}
        for one in wanted
    ]


def scalars(tensors: Sequence[Tensor], output: Any) -> dict[str, Any]:
    """The scalar fields of an output, as JSON has them."""
    found = {}
    for one in tensors:
        if one.attribute:
            value = getattr(output, one.attribute, None)
            found[one.name] = None if value is msgspec.UNSET else msgspec.to_builtins(value)
    return found


# What a request says.


def _columns(plan: WorkflowPlan, inputs: Any) -> dict[str, list[Any]]:
    """Tensor name -> its values, all of one length."""
    fields = inputs_of(plan)
    known = {one.name: one for one in fields.tensors}
    if fields.others:
        named = ", ".join(f"`{name}`" for name in fields.others[:8])
        raise bad_request(
            f"workflow `{plan.name}` needs {named}, which no tensor can hold; call POST /v1/workflows/{plan.name}",
            param="inputs",
            code="unsupported",
        )
    if not isinstance(inputs, list) or not inputs:
        raise bad_request("`inputs` must be a list of tensors", param="inputs", code="invalid_type")
    columns: dict[str, list[Any]] = {}
    count = 0
    for place, tensor in enumerate(inputs):
        where = f"inputs[{place}]"
        name = _name(tensor, where, known)
        if name in columns:
            raise bad_request(f"`{where}` is a second tensor `{name}`", param=where)
        if "binary_data_size" in _parameters(tensor, f"{where}.parameters"):
            raise bad_request(BINARY, param=where, code="unsupported")
        columns[name] = _values(tensor, where, known[name])
        if place and len(columns[name]) != count:
            message = f"`{where}` has {len(columns[name])} rows and the first tensor has {count}; they must be as many"
            raise bad_request(message, param=where)
        count = len(columns[name])
    missing = [one.name for one in fields.tensors if one.required and one.name not in columns]
    if missing:
        named = ", ".join(f"`{name}`" for name in missing[:8])
        raise bad_request(f"the tensor {named} is missing", param=f"inputs.{missing[0]}")
    return columns


def _name(tensor: Any, where: str, known: Mapping[str, Tensor]) -> str:
    if not isinstance(tensor, dict):
        raise bad_request(f"`{where}` must be an object", param=where, code="invalid_type")
    name = tensor.get("name")
    if not isinstance(name, str):
        raise bad_request(f"`{where}.name` must be a string", param=f"{where}.name", code="invalid_type")
    if name not in known:
        shown = name[:64] if name.isprintable() else "of that name"
        raise bad_request(f"there is no tensor `{shown}`. {did_you_mean(name[:64], known)}", param=f"{where}.name")
    return name


def _values(tensor: Mapping[str, Any], where: str, field: Tensor) -> list[Any]:
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise bad_request(f"`{where}.datatype` must be one of {', '.join(DATATYPES)}", param=f"{where}.datatype")
    count = _count(tensor.get("shape"), f"{where}.shape")
    column = len(tensor["shape"]) == 2
    data = tensor.get("data")
    if not isinstance(data, list):
        raise bad_request(f"`{where}.data` must be a list", param=f"{where}.data", code="invalid_type")
    if len(data) != count:
        message = f"`{where}.data` has {len(data)} elements where its shape says {count}"
        raise bad_request(message, param=f"{where}.data")
    if column and isinstance(data[0], list):
        if not all(isinstance(one, list) and len(one) == 1 for one in data):
            message = f"`{where}.data` must hold lists of one element each, or be flat"
            raise bad_request(message, param=f"{where}.data")
        data = [one for (one,) in data]
    return [_value(value, datatype, row, where, field) for row, value in enumerate(data)]


def _count(shape: Any, where: str) -> int:
    """The rows that a shape says."""
    whole = isinstance(shape, list) and all(type(one) is int for one in shape)
    if not whole or len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
        raise bad_request(f"`{where}` must be [rows] or [rows, 1]: a row is one input", param=where)
    if not 1 <= shape[0] <= ROWS_MAX:
        raise bad_request(f"`{where}` says {shape[0]} rows; a request has 1 to {ROWS_MAX}", param=where)
    return int(shape[0])


def _value(value: Any, datatype: str, row: int, where: str, field: Tensor) -> Any:
    if value is None:
        if field.nullable:
            return None
        raise bad_request(f"`{field.name}` of row {row} is null, and must be given", param=f"{where}.data[{row}]")
    if datatype == "BYTES":
        fits = isinstance(value, str)
    elif datatype == "BOOL":
        fits = isinstance(value, bool)
    elif isinstance(value, bool):
        fits = False
    elif datatype in INTEGERS:
        least, greatest = INTEGERS[datatype]
        fits = isinstance(value, int) and least <= value <= greatest
    else:
        fits = isinstance(value, int | float) and abs(value) <= FLOATS[datatype]
        value = float(value) if fits else value
    if not fits:
        raise bad_request(f"`{field.name}` of row {row} is no {datatype}", param=f"{where}.data[{row}]")
    return value


def _wanted(plan: WorkflowPlan, outputs: Any) -> tuple[Tensor, ...]:
    every = outputs_of(plan)
    if outputs is None or outputs == []:
        return every
    if not isinstance(outputs, list):
        raise bad_request("`outputs` must be a list of objects", param="outputs", code="invalid_type")
    known = {one.name: one for one in every}
    chosen: dict[str, Tensor] = {}
    for place, one in enumerate(outputs):
        where = f"outputs[{place}]"
        name = _name(one, where, known)
        if name in chosen:
            raise bad_request(f"`{where}` asks for `{name}` a second time", param=where)
        if _parameters(one, f"{where}.parameters").get("binary_data"):
            raise bad_request(BINARY, param=where, code="unsupported")
        chosen[name] = known[name]
    return tuple(chosen.values())


def _parameters(said: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """What no field of ours has; all but the binary extension's are ignored, as the protocol has it."""
    parameters = said.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise bad_request(f"`{where}` must be an object", param=where, code="invalid_type")
    return parameters


def _id(said: Any) -> str | None:
    if said is not None and (not isinstance(said, str) or len(said) > ID_CHARS_MAX):
        raise bad_request(f"`id` must be a string of at most {ID_CHARS_MAX} characters", param="id")
    return said


# What a type is.


def _without_null(kind: inspect.Type) -> tuple[bool, list[inspect.Type]]:
    """(whether it takes null, what else it is)"""
    if not isinstance(kind, inspect.UnionType):
        return isinstance(kind, inspect.NoneType), [kind]
    rest = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
    return len(rest) < len(kind.types), rest


def _datatype(kinds: Sequence[inspect.Type]) -> str:
    """The datatype that holds all of these; empty where none does."""
    found = {_scalar(one) for one in kinds}
    if found == {"INT64", "FP64"}:
        return "FP64"
    return found.pop() if len(found) == 1 else ""


def _scalar(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata):
        return _scalar(kind.type)
    if isinstance(kind, TEXTS):
        return "BYTES"
    if isinstance(kind, inspect.BoolType):
        return "BOOL"
    if isinstance(kind, inspect.IntType):
        return "INT64"
    if isinstance(kind, inspect.FloatType):
        return "FP64"
    values: list[Any] = []
    if isinstance(kind, inspect.LiteralType):
        values = list(kind.values)
    elif isinstance(kind, inspect.EnumType):
        values = [one.value for one in kind.cls]
    types = {type(one) for one in values}
    return "BYTES" if types == {str} else "INT64" if types == {int} else ""
