"""The engine behind decision tables (zen-engine), imported when the first table is compiled.

Owns the one use of its API: tables are held by a static loader, which compiles them once; an evaluation then takes
about 10 us, where the engine's other ways in compile anew, for 160 us. It evaluates in the caller's thread and cannot
be interrupted, so only what passed `graphs` reaches it.
"""

from __future__ import annotations

import re
from typing import Any

from drivetrain.core.errors import DrivetrainError
from drivetrain.policies.engine_content import engine_content
from drivetrain.policies.graph_parts import Cell, Graphs, TableRefused

_SOURCE = re.compile(r'"(?:source|type)"\s*:\s*"([^"]{1,200})"')


_FAULTS = {
    "out of range": "a value out of range",
    "recursion limit": "a value that is nested too deep",
    "vmError": "an expression that cannot be evaluated",
}
"""What the engine says -> what is recorded."""
ENGINE_ERRORS = (RuntimeError, ValueError, TypeError)
"""What the engine raises for what it cannot read."""


class EngineMissing(DrivetrainError):
    """The extra `policies` is not installed, so no table can be compiled here, right or wrong."""

    def __init__(self) -> None:
        super().__init__(
            "Decision tables need zen-engine, which is not installed.", do='Run `pip install "drivetrain[policies]"`.'
        )


class EngineFault(Exception):
    """The engine gave up on one Case; its text says what sort of fault it was, never a value."""


class Engine:
    """A policy's tables, compiled."""

    def __init__(self, graphs: Graphs) -> None:
        zen = _zen()
        checked: set[tuple[str, bool]] = set()
        for graph in graphs.files.values():
            for node in graph.nodes.values():
                for cell in node.cells:
                    if (cell.text, cell.unary) not in checked:
                        checked.add((cell.text, cell.unary))
                        _compiles(zen, graph.file, node.name, cell)
        self._main = graphs.main
        try:
            self._engine = zen.ZenEngine({"loader": {"type": "static", "content": engine_content(graphs)}})
        except ENGINE_ERRORS as error:
            raise TableRefused(graphs.main, f"The engine refuses the table: {_first_line(error)}.") from None

    def evaluate(self, context: str) -> Any:
        """The result of one Case, given as JSON. Raises: EngineFault."""
        try:
            return self._engine.evaluate(self._main, context)["result"]
        except BaseException as error:  # a panic in Rust is a BaseException
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise EngineFault(_kind(error)) from None
            raise


def _zen() -> Any:
    try:
        import zen
    except ImportError:
        raise EngineMissing from None
    return zen


def _compiles(zen: Any, file: str, node: str, cell: Cell) -> None:
    """Refuses what the engine cannot read: at run time such a cell would just never match."""
    try:
        (zen.compile_unary_expression if cell.unary else zen.compile_expression)(cell.text)
    except ENGINE_ERRORS as error:
        said = _SOURCE.findall(str(error))
        raise TableRefused(
            file,
            f"node `{node}`, {cell.where}: `{cell.text[:60]}` is no expression: {said[-1] if said else 'unreadable'}.",
        ) from None


def _kind(error: BaseException) -> str:
    """What sort of fault it was, without the values that its text may quote."""
    said = str(error)
    for mark, kind in _FAULTS.items():
        if mark in said:
            return kind
    return f"a {type(error).__name__}"


def _first_line(error: Exception) -> str:
    return str(error).partition("Stack backtrace")[0].strip().replace("\n", " ")[:300]
