"""The structure of an `.onnx` file, checked before any runtime sees it: nothing is run, and little is copied.

Refused: what is no ONNX, files beside it, tensors that say to be larger than they are, operators and domains that are
not the standard's, functions of its own, control flow that could go on for ever, graphs with a cycle. What comes out
are the inputs and outputs of the graph, for the signature.
"""

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.registry import protobuf
from drivetrain.registry.artifacts import open_plain
from drivetrain.registry.onnx_ops import DOMAINS, SIZED, is_known
from drivetrain.registry.onnx_trees import check_forest
from drivetrain.registry.protobuf import Budget, Malformed

ONNX_BYTES_MAX = 256 * 1024 * 1024
"""A boosted forest of ten thousand trees has 50 MB; larger than this is no model that answers in milliseconds."""
FIELDS_MAX = 12_000_000
"""Read in about 8 s of a core. A forest has a dozen numbers for each node: 40 MB of it fit."""
NODES_MAX = 100_000
"""Operators, in all graphs of a model; large networks have thousands."""
DEPTH_MAX = 4
"""Graphs in attributes of graphs."""
TENSOR_ELEMENTS_MAX = 200_000_000
"""As half floats more than `ONNX_BYTES_MAX` holds."""
MADE_ELEMENTS_MAX = 1_000_000
"""What an operator may make from a size that stands in the model."""
IR_VERSIONS = range(3, 14)
DIMS_MAX = 16
"""Dimensions of a tensor, and numbers of one that may be a size."""
NAMED_MAX = 200
"""Characters of a name in an error."""
_TENSOR_BYTES = {
    1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 8: None, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2,
}  # fmt: skip
"""TensorProto.DataType -> bytes of an element; None: texts."""
ELEMENTS = {
    1: "float", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "double", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
_STRING, _INT64 = 8, 7


class OnnxValue(msgspec.Struct, frozen=True, kw_only=True):
    """An input or an output of the graph."""

    name: str
    element: str
    """One of the values of `ELEMENTS`; `map` of a sequence of maps, as ZipMap gives; empty where it is not told."""
    shape: tuple[int, ...] = ()
    """-1: not fixed."""


class OnnxModel(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model without running it."""

    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    labels: tuple[str, ...] = ()
    """Of the last classifier in it, in the order of its classes."""
    operators: tuple[str, ...] = ()


def check_onnx(path: Path) -> OnnxModel:
    """Costs about 0.2 s for each MB of a forest. Raises: DrivetrainError with what is wrong."""
    with open_plain(path) as file:
        size = file.seek(0, 2)
        if size > ONNX_BYTES_MAX:
            raise refused(path, f"it has {size:,} bytes, and at most {ONNX_BYTES_MAX:,} are read")
        file.seek(0)
        content = file.read(size)
    try:
        return _Model().read(memoryview(content))
    except Malformed as error:
        raise refused(path, str(error)) from None


def refused(path: Path, why: str) -> DrivetrainError:
    """Why a file is not taken."""
    return DrivetrainError(
        f"{path.name[:200]!r} is no ONNX model that can be taken: {why}.",
        do="Nothing of it was run or kept. Export it anew with standard operators, in one file.",
    )


class _Node(msgspec.Struct, frozen=True):
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _Attribute(msgspec.Struct, frozen=True):
    name: str
    ints: array[int]
    texts: list[str]
    asked: int | None
    """The product of its whole numbers where they are few enough to be a size."""


class _Model:
    """One walk over one file."""

    def __init__(self) -> None:
        self._budget = Budget(FIELDS_MAX)
        self._nodes = 0
        self._labels: tuple[str, ...] = ()
        self._operators: set[str] = set()

    def read(self, data: memoryview) -> OnnxModel:
        ir, graphs, domains = 0, [], []
        for field, _, value in protobuf.fields(data, self._budget):
            if field == 1:
                ir = protobuf.number(value)
            elif field == 7:
                graphs.append(protobuf.part(value))
            elif field == 8:
                domains.append(self._domain(protobuf.part(value)))
            elif field == 20:
                raise Malformed("it brings graphs for training")
            elif field == 25:
                raise Malformed("it brings functions of its own")
        if ir not in IR_VERSIONS:
            raise Malformed("it tells no version of ONNX that is known")
        if len(graphs) != 1:
            raise Malformed(f"it has {len(graphs)} graphs instead of one")
        if "" not in domains and "ai.onnx" not in domains and "ai.onnx.ml" not in domains:
            raise Malformed("it does not tell which operators it uses")
        inputs, outputs = self._graph(graphs[0], frozenset(), 0)
        if not inputs or not outputs:
            raise Malformed("its graph has no input or no output")
        return OnnxModel(inputs=inputs, outputs=outputs, labels=self._labels, operators=tuple(sorted(self._operators)))

    def _domain(self, data: memoryview) -> str:
        domain = ""
        for field, _, value in protobuf.fields(data, self._budget):
            if field == 1:
                domain = protobuf.text(value)
        return _standard(domain)

    # Graphs.

    def _graph(
        self, data: memoryview, outer: frozenset[str], depth: int
    ) -> tuple[tuple[OnnxValue, ...], tuple[OnnxValue, ...]]:
        if depth > DEPTH_MAX:
            raise Malformed(f"graphs stand in graphs more than {DEPTH_MAX} deep")
        raw_nodes: list[memoryview] = []
        inputs: list[OnnxValue] = []
        outputs: list[OnnxValue] = []
        sizes: dict[str, int | None] = {}
        for field, _, value in protobuf.fields(data, self._budget):
            if field == 1:
                raw_nodes.append(protobuf.part(value))
            elif field == 5:
                name, made = self._tensor(protobuf.part(value))
                sizes[name] = made
            elif field == 11:
                inputs.append(self._value(protobuf.part(value)))
            elif field == 12:
                outputs.append(self._value(protobuf.part(value)))
            elif field == 15:
                sizes[self._sparse(protobuf.part(value))] = None
        self._nodes += len(raw_nodes)
        if self._nodes > NODES_MAX:
            raise Malformed(f"it has more than {NODES_MAX:,} operators")
        given = {one.name for one in inputs} | set(sizes)
        inner = outer | given
        # Outer names that nodes of this graph make are in scope of the graphs inside of them.
        named = inner.union(*(self._made_by(one) for one in raw_nodes)) if raw_nodes else inner
        nodes = [self._node(one, named, depth, sizes) for one in raw_nodes]
        results = _check_order(nodes, inner)
        for one in outputs:
            if one.name not in results and one.name not in inner:
                raise Malformed(f"nothing gives its output {one.name[:NAMED_MAX]!r}")
        return tuple(one for one in inputs if one.name not in sizes), tuple(outputs)

    def _made_by(self, data: memoryview) -> set[str]:
        return {protobuf.text(value) for field, _, value in protobuf.fields(data, self._budget) if field == 2}

    def _node(self, data: memoryview, scope: frozenset[str], depth: int, sizes: dict[str, int | None]) -> _Node:
        inputs: list[str] = []
        outputs: list[str] = []
        attributes: list[memoryview] = []
        operator = domain = ""
        for field, _, value in protobuf.fields(data, self._budget):
            if field == 1:
                inputs.append(protobuf.text(value))
            elif field == 2:
                outputs.append(protobuf.text(value))
            elif field == 4:
                operator = protobuf.text(value)
            elif field == 5:
                attributes.append(protobuf.part(value))
            elif field == 7:
                domain = protobuf.text(value)
        if not is_known(_standard(domain), operator):
            raise Malformed(f"the operator {operator[:NAMED_MAX]!r} is not one that a model may use")
        self._operators.add(operator)
        read = [self._attribute(one, scope, depth) for one in attributes]
        if operator == "Constant" and len(outputs) == 1 and read:
            sizes[outputs[0]] = read[0].asked
        if operator.startswith("TreeEnsemble"):
            check_forest(operator, {one.name: one.ints for one in read}, {one.name: one.texts for one in read})
        for one in read:
            if one.name.startswith("classlabels") and (one.texts or one.ints):
                self._labels = tuple(one.texts) or tuple(map(str, one.ints))
        if operator in SIZED:
            _check_made(operator, inputs, sizes)
        return _Node(operator, tuple(inputs), tuple(outputs))

    def _attribute(self, data: memoryview, scope: frozenset[str], depth: int) -> _Attribute:
        name, asked = "", None
        ints, texts = array("q"), []
        for field, wire, value in protobuf.fields(data, self._budget):
            if field == 1:
                name = protobuf.text(value)
            elif field in (5, 10):
                _, asked = self._tensor(protobuf.part(value))
            elif field in (6, 11):
                self._graph(protobuf.part(value), scope, depth + 1)
            elif field in (22, 23):
                self._sparse(protobuf.part(value))
            elif field == 8 and wire == protobuf.VARINT:
                ints.append(protobuf.number(value))
            elif field == 8:
                ints.extend(protobuf.numbers(wire, value, self._budget))
            elif field == 3:
                ints.append(protobuf.number(value))
            elif field == 9:
                texts.append(sys.intern(protobuf.text(value)))
            elif field == 21:
                raise Malformed("an attribute refers to a function's")
        if asked is None and 0 < len(ints) <= DIMS_MAX:
            asked = _product(ints)
        return _Attribute(name, ints, texts, asked)

    # Tensors.

    def _tensor(self, data: memoryview) -> tuple[str, int | None]:
        """Its name, and the product of its numbers where they are few enough to be a size."""
        name, kind = "", 0
        dims: list[int] = []
        raw: memoryview | None = None
        counted = text_count = 0
        int64s: list[int] = []
        packed_bytes = 0
        for field, wire, value in protobuf.fields(data, self._budget):
            if field == 1:
                dims.extend(protobuf.numbers(wire, value, self._budget))
            elif field == 2:
                kind = protobuf.number(value)
            elif field == 3:
                raise Malformed("a tensor stands in segments")
            elif field == 6:
                text_count += 1
            elif field in (4, 10):
                packed_bytes += len(value) if isinstance(value, memoryview) else 0
            elif field in (5, 7, 11):
                run = list(protobuf.numbers(wire, value, self._budget))
                counted += len(run)
                if field == 7 and len(int64s) <= DIMS_MAX:
                    int64s.extend(run[: DIMS_MAX + 1])
            elif field == 8:
                name = protobuf.text(value)
            elif field == 9:
                raw = protobuf.part(value)
            elif field == 13 or (field == 14 and protobuf.number(value) != 0):
                raise Malformed(f"the tensor {name[:NAMED_MAX]!r} lies in another file")
        if kind not in _TENSOR_BYTES:
            raise Malformed(f"the tensor {name[:NAMED_MAX]!r} has the unknown type {kind}")
        elements = _elements(dims, name)
        width = _TENSOR_BYTES[kind]
        if raw is not None:
            fits = width is not None and len(raw) == elements * width
        elif width is None:
            fits = text_count == elements
        elif packed_bytes:
            fits = packed_bytes in (elements * 4, elements * 8, elements * 16)
        else:
            fits = counted == elements
        if not fits:
            raise Malformed(f"the tensor {name[:NAMED_MAX]!r} says to have {elements:,} elements, and has others")
        if kind == _INT64 and raw is not None and elements <= DIMS_MAX:
            int64s = [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]
        return name, _product(int64s) if kind == _INT64 and elements <= DIMS_MAX else None

    def _sparse(self, data: memoryview) -> str:
        name = ""
        dims: list[int] = []
        for field, wire, value in protobuf.fields(data, self._budget):
            if field == 1:
                name, _ = self._tensor(protobuf.part(value))
            elif field == 2:
                self._tensor(protobuf.part(value))
            elif field == 3:
                dims.extend(protobuf.numbers(wire, value, self._budget))
        _elements(dims, name)
        return name

    # Types.

    def _value(self, data: memoryview) -> OnnxValue:
        name = element = ""
        shape: tuple[int, ...] = ()
        for field, _, value in protobuf.fields(data, self._budget):
            if field == 1:
                name = protobuf.text(value)
            elif field == 2:
                element, shape = self._type(protobuf.part(value))
        if not name:
            raise Malformed("an input or output has no name")
        return OnnxValue(name=name, element=element, shape=shape)

    def _type(self, data: memoryview) -> tuple[str, tuple[int, ...]]:
        for field, _, value in protobuf.fields(data, self._budget):
            if field == 1:
                kind = 0
                shape: tuple[int, ...] = ()
                for inner, _, one in protobuf.fields(protobuf.part(value), self._budget):
                    if inner == 1:
                        kind = protobuf.number(one)
                    elif inner == 2:
                        shape = self._shape(protobuf.part(one))
                return ELEMENTS.get(kind, ""), shape
            if field in (4, 5):
                return "map", ()
        return "", ()

    def _shape(self, data: memoryview) -> tuple[int, ...]:
        shape = []
        for field, _, value in protobuf.fields(data, self._budget):
            if field == 1:
                size = -1
                for inner, _, one in protobuf.fields(protobuf.part(value), self._budget):
                    if inner == 1:
                        size = protobuf.number(one)
                shape.append(size)
        if len(shape) > DIMS_MAX:
            raise Malformed("an input or output has too many dimensions")
        return tuple(shape)


def _standard(domain: str) -> str:
    if domain not in DOMAINS:
        raise Malformed(f"the operators of the domain {domain[:NAMED_MAX]!r} are not the standard's")
    return domain


def _elements(dims: Sequence[int], name: str) -> int:
    if len(dims) > DIMS_MAX or any(one < 0 for one in dims):
        raise Malformed(f"the tensor {name[:NAMED_MAX]!r} has no possible shape")
    elements = _product(dims)
    if elements > TENSOR_ELEMENTS_MAX:
        raise Malformed(
            f"the tensor {name[:NAMED_MAX]!r} says to have {elements:,} elements, "
            f"and at most {TENSOR_ELEMENTS_MAX:,} are read"
        )
    return elements


def _product(numbers: Iterable[int]) -> int:
    """Of dimensions; -1, as in Expand, counts as 1."""
    found = 1
    for one in numbers:
        found *= abs(one)
    return found


def _check_made(operator: str, inputs: Sequence[str], sizes: dict[str, int | None]) -> None:
    place = SIZED[operator]
    asked = sizes.get(inputs[place]) if len(inputs) > place else None
    if asked is None:
        raise Malformed(f"`{operator}` makes a tensor of a size that does not stand in the model")
    if asked > MADE_ELEMENTS_MAX:
        raise Malformed(f"`{operator}` makes {asked:,} elements out of nothing; at most {MADE_ELEMENTS_MAX:,} may be")


def _check_order(nodes: Sequence[_Node], given: frozenset[str]) -> set[str]:
    """Whether every operator can be run once its inputs are there; what they make. Raises: Malformed."""
    makers: dict[str, int] = {}
    for place, node in enumerate(nodes):
        for output in filter(None, node.outputs):
            if output in makers or output in given:
                raise Malformed(f"{output[:NAMED_MAX]!r} is made twice")
            makers[output] = place
    waits: list[set[int]] = []
    readers: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        needed = set()
        for name in filter(None, node.inputs):
            if name in makers:
                needed.add(makers[name])
            elif name not in given:
                raise Malformed(f"nothing gives {name[:NAMED_MAX]!r}, an input of `{node.operator}`")
        for one in needed:
            readers.setdefault(one, []).append(place)
        waits.append(needed)
    ready = deque(place for place, needed in enumerate(waits) if not needed)
    done = 0
    while ready:
        one = ready.popleft()
        done += 1
        for reader in readers.get(one, ()):
            waits[reader].discard(one)
            if not waits[reader]:
                ready.append(reader)
    if done < len(nodes):
        stuck = next(node for node, needed in zip(nodes, waits, strict=True) if needed)
        raise Malformed(f"its graph has a cycle, at an operator `{stuck.operator}`")
    return set(makers)
