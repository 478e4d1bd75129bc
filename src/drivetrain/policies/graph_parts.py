"""What a decision table or graph is made of, once it has been read: nodes, edges, tables, and the cells in them.

Made by `graph_reading`; analysed, checked, compiled and explained by the rest of this room.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.policies.expressions import Expression

CONTEXT = ("input", "features", "answer", "confidence", "cost_usd", "variant", "degraded")
"""What a table sees of a Case; anything else is a field of another node."""
RULE_FIELD = "__rule__"
"""A hidden output column of every table that is compiled: the row's id. No trace is needed to know what matched."""


class TableRefused(DrivetrainError):
    """A decision table that is not handed to the engine: what is wrong with it, and where."""

    def __init__(self, file: str, what: str, *, do: str = "") -> None:
        self.file = file
        super().__init__(f"{file}: {what}", do=do)


class Cell(msgspec.Struct, frozen=True):
    """One expression with its place."""

    text: str
    where: str
    """Such as ``rule `r2`, column `input.amount` ``."""
    unary: bool
    known: Expression
    writes: str = ""
    """What its value becomes: an output's path; empty where it is only looked at."""


class ColumnOf(msgspec.Struct, frozen=True):
    """A column of a table."""

    id: str
    name: str
    field: str
    """Path or expression of an input, the output's path; empty: each cell is an expression of its own."""


class Rule(msgspec.Struct, frozen=True):
    """A row of a table: column id -> cell as written; an empty cell stands for any value."""

    id: str
    cells: Mapping[str, str]
    description: str = ""


class Table(msgspec.Struct, frozen=True):
    """A decision table node."""

    first: bool
    """Whether the first rule that matches decides; else all that match are collected in a list."""
    inputs: tuple[ColumnOf, ...]
    outputs: tuple[ColumnOf, ...]
    rules: tuple[Rule, ...]


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node that passed."""

    id: str
    name: str
    kind: str
    table: Table | None = None
    expressions: tuple[tuple[str, str], ...] = ()
    """Of an expression node: key and expression; of a switch: statement's id and condition."""
    key: str = ""
    """Of a decision node: the file that it means."""
    output_path: str = ""
    pass_through: bool = False
    first: bool = True
    """Of a switch: whether only the first branch that is true is taken."""
    cells: tuple[Cell, ...] = ()
    """Every expression in it."""


class Edge(msgspec.Struct, frozen=True):
    """From node to node; `handle` names the branch of a switch."""

    source: str
    target: str
    handle: str = ""


class Graph(msgspec.Struct, frozen=True):
    """One file that passed."""

    file: str
    nodes: Mapping[str, Node]
    edges: tuple[Edge, ...]
    order: tuple[str, ...]
    """Ids of the nodes, each after those that it follows."""

    @property
    def tables(self) -> tuple[Node, ...]:
        """Its decision tables, in order."""
        return tuple(self.nodes[one] for one in self.order if self.nodes[one].table is not None)

    def into(self, node: str) -> tuple[Node, ...]:
        """What a node follows."""
        return tuple(self.nodes[edge.source] for edge in self.edges if edge.target == node)


class Graphs(msgspec.Struct, frozen=True):
    """A policy's file and all that it calls."""

    main: str
    files: Mapping[str, Graph]
    reads: tuple[str, ...]
    """Fields of the Case that any expression reads, such as `input.amount`, sorted."""
    unknown: tuple[tuple[str, str, str], ...]
    """File, place and path of what is read and is neither of the Case nor made by another node."""
