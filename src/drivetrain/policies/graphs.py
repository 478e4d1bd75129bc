"""A decision table or graph as a file has it (JDM), read by us before the engine sees anything of it.

Owns which nodes a policy may have, how large all of it may be, and what it reads. What passes is rebuilt from the
parts that are known here, so that nothing unknown reaches the engine; JavaScript, custom nodes, loops, cycles and
expressions that could take long are refused. Called by `compile`, `analysis` and `checks`. Nothing is executed.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.policies.expressions import Expression, Refused, read_expression
from drivetrain.project.policy_checks import FOLDER

TABLE_BYTES_MAX = 1024 * 1024
"""Of one file; two thousand rules of ten columns take half of it."""
FILES_MAX = 16
FILES_DEPTH_MAX = 3
"""Files within files; the engine itself stops at five."""
NODES_MAX = 100
EDGES_MAX = 300
RULES_MAX = 2_000
"""Of one table; a table with more is data, and belongs into a feature."""
COLUMNS_MAX = 64
CALLS_MAX = 500
"""Functions called in all files together: each may look at all that the policy reads."""
CLOSURES_MAX = 32
PATTERNS_MAX = 16
"""Regular expressions in all files together: each is compiled anew at every evaluation."""
GROWTH_MAX = 16
"""How often what is read may stand in one value, through all nodes: `a + a`, then `b + b`, doubles twice."""
NAME_CHARS_MAX = 200

CONTEXT = ("input", "features", "answer", "confidence", "cost_usd", "variant", "degraded")
"""What a table sees of a Case; anything else is a field of another node."""
RULE_FIELD = "__rule__"
"""A hidden output column of every table that is compiled: the row's id. No trace is needed to know what matched."""
KINDS = {
    "functionNode": "runs JavaScript. Write the step as expressions, or the policy as a Python function.",
    "customNode": "calls what is not part of the table. Put what it finds out into a feature.",
    "httpNode": "calls another system. Put what it finds out into a feature.",
}
"""Kinds of nodes that are known and refused -> why, and what to do."""


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


def read_graphs(main: str, files: Mapping[str, bytes]) -> Graphs:
    """The table in `main`, a path in `files`, and every table that it calls, read and found harmless.

    Raises: TableRefused.
    """
    found: dict[str, Graph] = {}
    _collect(main, files, found, ())
    _bounded(main, found)
    _growth(main, found)
    reads: set[str] = set()
    unknown: list[tuple[str, str, str]] = []
    made = {name for graph in found.values() for node in graph.nodes.values() for name in _made(node)}
    for graph in found.values():
        for node in graph.nodes.values():
            for cell in node.cells:
                for path in dict.fromkeys(cell.known.reads):
                    if path[0] in CONTEXT:
                        reads.add(".".join(path))
                    elif path[0] not in made:
                        unknown.append((graph.file, f"node `{node.name}`, {cell.where}", ".".join(path)))
    return Graphs(main, found, tuple(sorted(reads)), tuple(unknown))


def path_of(name: str) -> str:
    """Path in the project of a table that is named `refund.json` or `policies/refund.json`."""
    return posixpath.normpath(name if name.startswith(FOLDER) else FOLDER + name)


def _collect(file: str, files: Mapping[str, bytes], found: dict[str, Graph], above: tuple[str, ...]) -> None:
    if file in above:
        raise TableRefused(file, f"calls itself, by way of {' -> '.join((*above, file))}.", do="Cut the circle.")
    if file in found:
        return
    if len(above) >= FILES_DEPTH_MAX or len(found) >= FILES_MAX:
        raise TableRefused(
            file, f"is one file too many: at most {FILES_MAX}, {FILES_DEPTH_MAX} within each other.",
            do="Put what belongs together into one file.",
        )  # fmt: skip
    graph = read_graph(file, files[file])
    for node in graph.nodes.values():
        if node.kind == "decisionNode":
            known = sorted(one for one in files if one.startswith(FOLDER) and one.endswith(".json"))
            if node.key not in files or not node.key.startswith(FOLDER):
                raise TableRefused(
                    file, f"node `{node.name}` calls `{node.key}`, which is no file in `policies/`.",
                    do=did_you_mean(node.key, known),
                )  # fmt: skip
            _collect(node.key, files, found, (*above, file))
    found[file] = graph


def read_graph(file: str, content: bytes) -> Graph:
    """One file. Raises: TableRefused."""
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


# What all files together may cost.


def _bounded(main: str, found: Mapping[str, Graph]) -> None:
    every = [cell.known for graph in found.values() for node in graph.nodes.values() for cell in node.cells]
    for count, most, what in (
        (sum(one.calls for one in every), CALLS_MAX, "calls of functions"),
        (sum(one.closures for one in every), CLOSURES_MAX, "calls of functions over lists"),
        (sum(one.patterns for one in every), PATTERNS_MAX, "regular expressions"),
    ):
        if count > most:
            raise TableRefused(
                main, f"has {count} {what}; at most {most} are allowed.",
                do="Compute it once, as a feature or in an expression node before the table.",
            )  # fmt: skip


def _growth(main: str, found: Mapping[str, Graph]) -> None:
    """Refuses what makes values ever larger from node to node."""
    for graph in found.values():
        _grown(main, graph, found, 1)


def _grown(main: str, graph: Graph, found: Mapping[str, Graph], given: int) -> int:
    """How often what a graph is given can stand in what it gives."""
    factor: dict[str, int] = {}
    for id in graph.order:
        node = graph.nodes[id]
        before = max((factor[one.id] for one in graph.into(id)), default=given)
        factor[id] = max(before if node.pass_through else 0, _node_growth(main, node, found, before))
        if factor[id] > GROWTH_MAX:
            raise TableRefused(
                graph.file, f"node `{node.name}` can make values {factor[id]} times as large as what the policy reads; "
                f"at most {GROWTH_MAX} times is allowed.", do="Join texts and lists once, at the end.",
            )  # fmt: skip
    return max(factor.values())


def _node_growth(main: str, node: Node, found: Mapping[str, Graph], before: int) -> int:
    if node.kind == "decisionNode":
        return _grown(main, found[node.key], found, before)
    if node.kind in ("inputNode", "outputNode", "switchNode"):
        return before
    own: dict[str, int] = {}
    for cell in node.cells:
        if cell.writes:
            known = cell.known
            each = [before] * (len(known.reads) + len(known.others))
            each += [max(own.values(), default=before)] * len(known.own)
            size = (sum(each) if known.gathers else max(each, default=1)) * known.copies
            own[cell.writes] = max(size, own.get(cell.writes, 0))
    most = max(own.values(), default=1)
    return most * len(node.table.rules) if node.table is not None and not node.table.first and most > 1 else most


def _made(node: Node) -> Iterator[str]:
    """First names of what a node writes."""
    paths: Iterable[str] = ()
    if node.table is not None:
        paths = (column.field for column in node.table.outputs)
    elif node.kind == "expressionNode":
        paths = (key for key, _ in node.expressions)
    for path in (node.output_path, *paths):
        if path:
            yield path.partition(".")[0]


# What the engine gets.


def engine_content(graphs: Graphs) -> dict[str, dict[str, Any]]:
    """The files as the engine takes them, rebuilt, with the hidden column in every table."""
    several = sum(len(graph.tables) for graph in graphs.files.values()) > 1
    return {file: _content(graph, several) for file, graph in graphs.files.items()}


def _content(graph: Graph, several: bool) -> dict[str, Any]:
    nodes = [
        {"id": node.id, "name": node.name, "type": node.kind, "content": _node_content(node, several)}
        for node in graph.nodes.values()
    ]
    edges = [
        {"id": f"edge{number}", "sourceId": edge.source, "targetId": edge.target}
        | ({"sourceHandle": edge.handle} if edge.handle else {})
        for number, edge in enumerate(graph.edges)
    ]
    return {"nodes": nodes, "edges": edges}


def _node_content(node: Node, several: bool) -> dict[str, Any]:
    common = {"passThrough": node.pass_through, "outputPath": node.output_path or None, "executionMode": "single"}
    if node.table is not None:
        return {**_table_content(node, node.table, several), **common}
    if node.kind == "decisionNode":
        return {"key": node.key, **common}
    if node.kind == "expressionNode":
        carried = [] if node.output_path else [(RULE_FIELD, RULE_FIELD)]
        pairs = enumerate((*node.expressions, *carried))
        return {"expressions": [{"id": f"e{n}", "key": key, "value": text} for n, (key, text) in pairs], **common}
    if node.kind == "switchNode":
        statements = [{"id": id, "condition": text} for id, text in node.expressions]
        return {"hitPolicy": "first" if node.first else "collect", "statements": statements}
    return {}


def _table_content(node: Node, table: Table, several: bool) -> dict[str, Any]:
    hidden = [{"id": RULE_FIELD, "name": RULE_FIELD, "field": RULE_FIELD}] if table.first else []
    return {
        "hitPolicy": "first" if table.first else "collect",
        "inputs": [
            {"id": one.id, "name": one.name} | ({"field": one.field} if one.field else {}) for one in table.inputs
        ],
        "outputs": [*({"id": one.id, "name": one.name, "field": one.field} for one in table.outputs), *hidden],
        "rules": [
            {**rule.cells, "_id": rule.id, RULE_FIELD: _quoted(f"{node.name}/{rule.id}" if several else rule.id)}
            for rule in table.rules
        ],
    }


def _quoted(text: str) -> str:
    """A text as an expression; the language knows no escapes, so that quotes in it are replaced."""
    return "'" + text.replace("'", "’").replace("`", "’") + "'"
