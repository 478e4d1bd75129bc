"""What an evaluation of a policy's files may cost at most: functions, patterns, and values that grow from node to node.

The engine cannot be interrupted, so what could take long is refused before it is compiled. Called by `graphs`.
"""

from __future__ import annotations

from collections.abc import Mapping

from drivetrain.policies.graph_parts import Graph, Node, TableRefused

CALLS_MAX = 500
"""Functions called in all files together: each may look at all that the policy reads."""
CLOSURES_MAX = 32
"""Functions over lists, such as `some`: each computes its expression for every item."""
PATTERNS_MAX = 16
"""Regular expressions in all files together: each is compiled anew at every evaluation."""
GROWTH_MAX = 16
"""How often what is read may stand in one value, through all nodes: `a + a`, then `b + b`, doubles twice."""


def check_costs(main: str, found: Mapping[str, Graph]) -> None:
    """Raises: TableRefused where an evaluation of all files could take long, or fill the memory."""
    _bounded(main, found)
    for graph in found.values():
        _grown(main, graph, found, 1)


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


def _grown(main: str, graph: Graph, found: Mapping[str, Graph], given: int) -> int:
    """How often what a graph is given can stand in what it gives; refuses what makes values ever larger."""
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
