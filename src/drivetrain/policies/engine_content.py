"""A policy's files as the engine takes them: rebuilt from the parts that are known, so that nothing unknown reaches it.

Every table gets a hidden column that tells which rule matched. Called by `engine`.
"""

from __future__ import annotations

from typing import Any

from drivetrain.policies.graph_parts import RULE_FIELD, Graph, Graphs, Node, Table


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
