"""Decision trees as two lists of children: whether a walk from the root always ends, whatever the row."""

from __future__ import annotations

from collections.abc import Sequence


class BadTree(ValueError):
    """Lists that are no tree: why, as the end of a sentence about it."""


def check_tree(left: Sequence[int], right: Sequence[int]) -> None:
    """left, right: of each node the places of its children, or a negative number where that is a leaf. 0 is the root.

    Every node is reached from the root, and from one parent only. Raises: BadTree.
    """
    count = len(left)
    if count != len(right):
        raise BadTree("has lists of children of different lengths")
    seen = bytearray(count)
    waiting = [0] if count else []
    while waiting:
        node = waiting.pop()
        if seen[node]:
            raise BadTree("has a node that is reached in two ways, or a cycle")
        seen[node] = 1
        for child in (left[node], right[node]):
            if child >= count:
                raise BadTree(f"has no node {child}")
            if child >= 0:
                waiting.append(child)
    if not all(seen):
        raise BadTree("has a node that is never reached, or a cycle")
