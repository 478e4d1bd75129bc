"""A policy's table with all that it calls: read, found harmless, and what it reads of a Case.

Owns how files may call each other. One file is read by `graph_reading`; what all of them may cost is `graph_costs`'.
Called by `compile` and `checks`. Nothing is executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from drivetrain.core.errors import did_you_mean
from drivetrain.policies.graph_costs import check_costs
from drivetrain.policies.graph_parts import CONTEXT, Graph, Graphs, Node, TableRefused
from drivetrain.policies.graph_reading import read_graph
from drivetrain.project.policy_checks import FOLDER

FILES_MAX = 16
"""Of one policy: all of them are read and compiled with every Snapshot."""
FILES_DEPTH_MAX = 3
"""Files within files; the engine itself stops at five."""


def read_graphs(main: str, files: Mapping[str, bytes]) -> Graphs:
    """The table in `main`, a path in `files`, and every table that it calls, read and found harmless.

    Raises: TableRefused.
    """
    found: dict[str, Graph] = {}
    _collect(main, files, found, ())
    check_costs(main, found)
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
