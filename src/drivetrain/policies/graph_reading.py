"""One file of a decision table or graph (JDM), read by us before the engine sees anything of it.

Owns which nodes a policy may have and how large one file may be. JavaScript, custom nodes, loops and cycles are
refused. Called by `graphs` and by the imports. Nothing is executed.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.errors import did_you_mean
from drivetrain.policies.expressions import Refused, read_expression
from drivetrain.policies.graph_parts import RULE_FIELD, Cell, ColumnOf, Edge, Graph, Node, Rule, Table, TableRefused
from drivetrain.project.policy_checks import FOLDER

TABLE_BYTES_MAX = 1024 * 1024
"""Of one file; two thousand rules of ten columns take half of it."""
NODES_MAX = 100
"""Of one file: a graph that people can still read has some twenty."""
EDGES_MAX = 300
"""Three for each node."""
RULES_MAX = 2_000
"""Of one table; a table with more is data, and belongs into a feature."""
COLUMNS_MAX = 64
"""Inputs, and outputs, of one table."""
NAME_CHARS_MAX = 200
"""Of an id, name, key or path; a rule's id stands in every Decision."""
KINDS = {
    "functionNode": "runs JavaScript. Write the step as expressions, or the policy as a Python function.",
    "customNode": "calls what is not part of the table. Put what it finds out into a feature.",
    "httpNode": "calls another system. Put what it finds out into a feature.",
}
"""Kinds of nodes that are known and refused -> why, and what to do."""


def path_of(name: str) -> str:
    """Path in the project of a table that is named `refund.json` or `policies/refund.json`."""
    return posixpath.normpath(name if name.startswith(FOLDER) else FOLDER + name)


def read_graph(file: str, content: bytes) -> Graph:
    """The table or graph in one file. Raises: TableRefused."""
    if len(content) > TABLE_BYTES_MAX:
        raise TableRefused(
            file, f"The table has {len(content):,} bytes; at most {TABLE_BYTES_MAX:,} are allowed.",
            do="Move data into a feature, and keep rules in the table.",
        )  # fmt: skip
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise TableRefused(file, f"The table is no JSON: {error}.") from None
    reader = _Reader(file)
    if not isinstance(document, dict):
        raise reader.refuse("The table is no JSON object", do='It has the keys "nodes" and "edges".')
    return reader.graph(document)


class _Reader:
    """One file being read."""

    def __init__(self, file: str) -> None:
        self.file = file

    def refuse(self, what: str, *, do: str = "") -> TableRefused:
        return TableRefused(self.file, f"{what}.", do=do)

    def graph(self, document: dict[str, Any]) -> Graph:
        nodes: dict[str, Node] = {}
        for value in self._list(document, "nodes", NODES_MAX):
            node = self._node(value)
            if node.id in nodes:
                raise self.refuse(f"two nodes have the id `{node.id}`")
            nodes[node.id] = node
        for kind in ("inputNode", "outputNode"):
            count = sum(node.kind == kind for node in nodes.values())
            if count != 1:
                raise self.refuse(f"the graph has {count} nodes of the kind {kind}; it needs one")
        edges = tuple(self._edge(value, nodes) for value in self._list(document, "edges", EDGES_MAX))
        return Graph(self.file, nodes, edges, self._order(nodes, edges))

    def _node(self, value: Any) -> Node:
        if not isinstance(value, dict):
            raise self.refuse("a node is no object")
        id, kind = self._text(value, "id", "a node"), self._text(value, "type", "a node")
        name = self._text(value, "name", f"node `{id}`")
        where = f"node `{name}`"
        content = value.get("content") or {}
        if kind in KINDS:
            raise self.refuse(
                f"{where} is refused: it {KINDS[kind].partition('. ')[0]}", do=KINDS[kind].partition(". ")[2]
            )
        if kind in ("inputNode", "outputNode"):
            return Node(id=id, name=name, kind=kind)  # a schema in it is left out: the workflow's types are the schema
        if not isinstance(content, dict):
            raise self.refuse(f"{where} has a content that is no object")
        if kind == "switchNode":
            return self._switch(id, name, content)
        common = self._common(where, content)
        if kind == "decisionNode":
            return Node(id=id, name=name, kind=kind, key=path_of(self._text(content, "key", where)), **common)
        if kind == "expressionNode":
            return self._expressions(id, name, content, common)
        if kind == "decisionTableNode":
            return self._table(id, name, content, common)
        known = ("inputNode", "outputNode", "decisionTableNode", "expressionNode", "switchNode", "decisionNode")
        raise self.refuse(f"{where} is of the kind `{kind}`, which is not known", do=did_you_mean(kind, known))

    def _common(self, where: str, content: dict[str, Any]) -> dict[str, Any]:
        if content.get("executionMode") not in (None, "single"):
            raise self.refuse(
                f"{where} loops over a list", do="A policy decides one Case; look into lists by `some`, `sum` or `[0]`."
            )
        if content.get("inputField"):
            raise self.refuse(
                f"{where} has an `inputField`", do="Leave it empty, and write whole paths in the columns."
            )
        path = content.get("outputPath") or ""
        if not isinstance(path, str) or len(path) > NAME_CHARS_MAX:
            raise self.refuse(f"{where} has an `outputPath` that is no text")
        return {"output_path": path, "pass_through": content.get("passThrough") is True}

    def _switch(self, id: str, name: str, content: dict[str, Any]) -> Node:
        where = f"node `{name}`"
        found: list[tuple[str, str]] = []
        cells: list[Cell] = []
        for value in self._list(content, "statements", COLUMNS_MAX):
            if not isinstance(value, dict):
                raise self.refuse(f"{where} has a statement that is no object")
            found.append((self._text(value, "id", where), self._optional(value, "condition", where)))
            if found[-1][1]:
                cells.append(self._cell(found[-1][1], where, f"branch {len(found)}"))
        first = self._hit(content.get("hitPolicy", "first"), where)
        return Node(id=id, name=name, kind="switchNode", expressions=tuple(found), first=first, cells=tuple(cells))

    def _expressions(self, id: str, name: str, content: dict[str, Any], common: dict[str, Any]) -> Node:
        where = f"node `{name}`"
        found: list[tuple[str, str]] = []
        cells: list[Cell] = []
        for value in self._list(content, "expressions", RULES_MAX):
            if not isinstance(value, dict):
                raise self.refuse(f"{where} has an expression that is no object")
            key, text = self._text(value, "key", where), self._optional(value, "value", where)
            self._output(key, where)
            if text:
                found.append((key, text))
                cells.append(self._cell(text, where, f"expression `{key}`", writes=key))
        return Node(id=id, name=name, kind="expressionNode", expressions=tuple(found), cells=tuple(cells), **common)

    def _table(self, id: str, name: str, content: dict[str, Any], common: dict[str, Any]) -> Node:
        where = f"table `{name}`"
        first = self._hit(content.get("hitPolicy"), where)
        inputs = tuple(self._column(value, where) for value in self._list(content, "inputs", COLUMNS_MAX))
        outputs = tuple(self._column(value, where) for value in self._list(content, "outputs", COLUMNS_MAX))
        ids = [column.id for column in (*inputs, *outputs)]
        if len(set(ids)) != len(ids):
            raise self.refuse(f"{where} has two columns with one id")
        cells = [self._cell(one.field, where, f"column `{one.name}`") for one in inputs if one.field]
        for column in outputs:
            self._output(column.field, where)
        rules: dict[str, Rule] = {}
        for number, value in enumerate(self._list(content, "rules", RULES_MAX), 1):
            rule = self._rule(value, number, where, ids)
            if rule.id in rules:
                raise self.refuse(f"{where} has two rules with the id `{rule.id}`", do="Give each row its own `_id`.")
            rules[rule.id] = rule
            for column in (*inputs, *outputs):
                text = rule.cells.get(column.id, "")
                if text:
                    place = f"rule `{rule.id}`, column `{column.name}`"
                    tests = column in inputs
                    cells.append(
                        self._cell(
                            text, where, place, unary=tests and bool(column.field), writes="" if tests else column.field
                        )
                    )
        table = Table(first, inputs, outputs, tuple(rules.values()))
        return Node(id=id, name=name, kind="decisionTableNode", table=table, cells=tuple(cells), **common)

    def _column(self, value: Any, where: str) -> ColumnOf:
        if not isinstance(value, dict):
            raise self.refuse(f"{where} has a column that is no object")
        field = self._optional(value, "field", where)
        return ColumnOf(self._text(value, "id", where), self._optional(value, "name", where) or field, field)

    def _rule(self, value: Any, number: int, where: str, ids: Sequence[str]) -> Rule:
        if not isinstance(value, dict):
            raise self.refuse(f"{where} has a rule that is no object")
        found = {}
        for key in ids:
            text = value.get(key, "")
            if not isinstance(text, str):
                raise self.refuse(
                    f"{where}, rule {number}: a cell is no text", do="Cells are expressions: write \"'refund'\"."
                )
            found[key] = text.strip()
        id, description = value.get("_id", ""), value.get("_description", "")
        if not isinstance(id, str) or len(id) > NAME_CHARS_MAX or not isinstance(description, str):
            raise self.refuse(f"{where}, rule {number}: its `_id` or `_description` is no text, or too long")
        return Rule(id or f"row{number}", found, description)

    def _cell(self, text: str, where: str, place: str, *, unary: bool = False, writes: str = "") -> Cell:
        try:
            return Cell(text, place, unary, read_expression(text, unary=unary), writes)
        except Refused as why:
            shown = text if len(text) <= 60 else text[:57] + "..."
            raise TableRefused(self.file, f"{where}, {place}: `{shown}` {why}.") from None

    def _output(self, path: str, where: str) -> None:
        if path.partition(".")[0] in (RULE_FIELD, "$nodes", "$root") or not path:
            raise self.refuse(f"{where} writes `{path}`, which is no name for a result")

    def _hit(self, value: Any, where: str) -> bool:
        if value not in ("first", "collect"):
            raise self.refuse(f"{where} has the hit policy `{value}`", do="It is `first` or `collect`.")
        return bool(value == "first")

    def _edge(self, value: Any, nodes: Mapping[str, Node]) -> Edge:
        if not isinstance(value, dict):
            raise self.refuse("an edge is no object")
        edge = Edge(
            self._text(value, "sourceId", "an edge"),
            self._text(value, "targetId", "an edge"),
            self._optional(value, "sourceHandle", "an edge"),
        )
        for end in (edge.source, edge.target):
            if end not in nodes:
                raise self.refuse(f"an edge names the node `{end}`, which is not there")
        return edge

    def _order(self, nodes: Mapping[str, Node], edges: Sequence[Edge]) -> tuple[str, ...]:
        """Nodes in an order in which each follows all that lead to it; refuses a circle."""
        waiting = {id: {edge.source for edge in edges if edge.target == id} for id in nodes}
        order: list[str] = []
        while waiting:
            ready = [id for id, sources in waiting.items() if not sources]
            if not ready:
                names = ", ".join(f"`{nodes[id].name}`" for id in waiting)
                raise self.refuse(f"the graph goes in a circle, through {names}", do="Cut the circle.")
            order += ready
            waiting = {id: sources - set(ready) for id, sources in waiting.items() if id not in ready}
        return tuple(order)

    def _list(self, document: Mapping[str, Any], key: str, most: int) -> list[Any]:
        value = document.get(key)
        if not isinstance(value, list):
            raise self.refuse(f"`{key}` is no list")
        if len(value) > most:
            raise self.refuse(f"`{key}` has {len(value):,} entries; at most {most:,} are allowed")
        return value

    def _text(self, value: Mapping[str, Any], key: str, where: str) -> str:
        found = self._optional(value, key, where)
        if not found:
            raise self.refuse(f"{where} has no `{key}`")
        if len(found) > NAME_CHARS_MAX:
            raise self.refuse(
                f"{where} has a `{key}` of {len(found):,} characters; at most {NAME_CHARS_MAX} are allowed"
            )
        return found

    def _optional(self, value: Mapping[str, Any], key: str, where: str) -> str:
        found = value.get(key)
        if found is None:
            return ""
        if not isinstance(found, str):
            raise self.refuse(f"{where} has a `{key}` that is no text")
        return found.strip()
