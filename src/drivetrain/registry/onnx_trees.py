"""The trees of an ONNX forest: whether a walk from a root always ends, whatever the row. A cycle would never end.

Called by `onnx_check`, before any runtime sees the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drivetrain.registry.protobuf import Malformed


def check_forest(operator: str, ints: Mapping[str, Sequence[int]], texts: Mapping[str, Sequence[str]]) -> None:
    """Whether every tree of an operator `TreeEnsemble...` is one, and every leaf of it is there.

    ints, texts: the operator's attributes by name. Raises: Malformed.
    """
    if operator == "TreeEnsemble":
        raise Malformed("`TreeEnsemble` is newer than what is checked; export with the operators of ai.onnx.ml 3")
    trees, ids, yes, no = (
        ints.get(f"nodes_{name}", ()) for name in ("treeids", "nodeids", "truenodeids", "falsenodeids")
    )
    modes = texts.get("nodes_modes", ())
    if not len(trees) == len(ids) == len(yes) == len(no) == len(modes):
        raise Malformed("the nodes of its trees are told in lists of different lengths")
    nodes: dict[int, dict[int, int]] = {}
    for place, (tree, node) in enumerate(zip(trees, ids, strict=True)):
        if nodes.setdefault(tree, {}).setdefault(node, place) != place:
            raise Malformed(f"node {node} of tree {tree} is there twice")
    for tree, places in nodes.items():
        order = {node: at for at, node in enumerate(places)}
        leaf = [modes[place] == "LEAF" for place in places.values()]
        try:
            left, right = (
                [-1 if leaf[at] else order[side[place]] for at, place in enumerate(places.values())]
                for side in (yes, no)
            )
            _check_tree(left, right)
        except KeyError as error:
            raise Malformed(f"tree {tree} has no node {error}") from None
        except _BadTree as error:
            raise Malformed(f"tree {tree} {error}") from None
    for name in ("class_treeids", "target_treeids"):
        kind = name.partition("_")[0]
        leaves = ints.get(name, ())
        places_of = ints.get(f"{kind}_nodeids", ())
        if len(leaves) != len(places_of) or any(
            node not in nodes.get(tree, {}) for tree, node in zip(leaves, places_of, strict=True)
        ):
            raise Malformed("a leaf of its trees is not there")


class _BadTree(ValueError):
    """Lists that are no tree: why, as the end of a sentence about it."""


def _check_tree(left: Sequence[int], right: Sequence[int]) -> None:
    """left, right: of each node the places of its children, or a negative number where that is a leaf. 0 is the root.

    Every node is reached from the root, and from one parent only. Raises: _BadTree.
    """
    count = len(left)
    if count != len(right):
        raise _BadTree("has lists of children of different lengths")
    seen = bytearray(count)
    waiting = [0] if count else []
    while waiting:
        node = waiting.pop()
        if seen[node]:
            raise _BadTree("has a node that is reached in two ways, or a cycle")
        seen[node] = 1
        for child in (left[node], right[node]):
            if child >= count:
                raise _BadTree(f"has no node {child}")
            if child >= 0:
                waiting.append(child)
    if not all(seen):
        raise _BadTree("has a node that is never reached, or a cycle")
