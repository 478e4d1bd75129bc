"""LightGBM's text files: every tree proven to be one, and the model written anew from what was proven.

Owns what of the format is known, and nothing of the library. Called by `boosters`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from drivetrain.inference.booster_facts import Facts, Unsound, within
from drivetrain.registry.signatures import COLUMNS_MAX, LABELS_MAX

LEAVES_MAX = 131_072
"""LightGBM's own limit for one tree."""
_OBJECTIVES = (
    "", "binary", "cross_entropy", "fair", "gamma", "huber", "lambdarank", "mape", "multiclass", "multiclassova",
    "poisson", "quantile", "rank_xendcg", "regression", "regression_l1", "tweedie",
)  # fmt: skip
_PARAMETERS = ("alpha", "fair_c", "num_class", "sigmoid", "sqrt", "tweedie_variance_power")


def read_lightgbm(text: str) -> tuple[Facts, str]:
    """What a model says of itself, and the same model written anew. Raises: Unsound, ValueError, KeyError."""
    start = text.find("\nTree=") + 1
    if not text.startswith("tree\n") or not start:
        raise Unsound("it does not begin as one")
    header = _pairs(text[:start])
    columns, outputs = int(header["max_feature_idx"]) + 1, int(header["num_tree_per_iteration"])
    if not 1 <= columns <= COLUMNS_MAX or not 1 <= outputs <= LABELS_MAX or outputs != int(header["num_class"]):
        raise Unsound(f"it has {columns} columns and {outputs} outputs for {header['num_class']} classes")
    objective = _objective(header.get("objective", ""), outputs)
    end = text.find("\nend of trees")
    if end < start:
        raise Unsound("its trees have no end")
    trees = [
        f"Tree={number}\n{_tree(tree, columns, number)}\n\n"
        for number, tree in enumerate(("\n" + text[start:end]).split("\nTree=")[1:])
    ]
    if len(trees) % outputs or header["tree_sizes"].count(" ") + 1 != len(trees):
        raise Unsound(f"it has {len(trees)} trees, which are not as many as it says for {outputs} outputs")
    head = [
        "tree", "version=v4", f"num_class={outputs}", f"num_tree_per_iteration={outputs}", "label_index=0",
        f"max_feature_idx={columns - 1}", *([f"objective={objective}"] if objective else []),
        *(["average_output"] if "average_output" in header else []),
        f"feature_names={' '.join(f'f{place}' for place in range(columns))}",
        f"feature_infos={' '.join(['none'] * columns)}",
        f"tree_sizes={' '.join(str(len(tree)) for tree in trees)}",
    ]  # fmt: skip
    return Facts(columns, outputs, objective.split(" ")[0]), "\n".join(head) + "\n\n" + "".join(
        trees
    ) + "end of trees\n"


def _objective(written: str, outputs: int) -> str:
    """Its name and its parameters, each known; empty where the user's own trained it."""
    name, *parameters = written.split(" ")
    if name not in _OBJECTIVES:
        raise Unsound(f"its objective is `{name[:50]}`, which is not known")
    for one in parameters:
        key, colon, value = one.partition(":")
        if key not in _PARAMETERS or (colon and not 0 < float(value) < math.inf):
            raise Unsound(f"its objective has the parameter `{one[:50]}`")
        if key == "num_class" and value != str(outputs):
            raise Unsound(f"its objective has {value[:20]} classes and its trees {outputs}")
    return written


def _tree(text: str, columns: int, number: int) -> str:
    """One tree, written anew."""
    head, _, body = text.partition("\n")
    tree, what = _pairs(body), f"tree {number}"
    leaves, categorical = int(tree["num_leaves"]), int(tree["num_cat"])
    if head != str(number) or not 1 <= leaves <= LEAVES_MAX or not 0 <= categorical < leaves:
        raise Unsound(f"{what} is tree {head[:20]} with {leaves} leaves and {categorical} categorical splits")
    if int(tree.get("is_linear", "0")):
        raise Unsound(f"{what} has linear models in its leaves, which are not supported")
    written: dict[str, list[Any]] = {"num_leaves": [leaves], "num_cat": [categorical]}
    if leaves > 1:
        written |= _splits(tree, leaves, columns, what)
        by_category = [at for at, kind in zip(written["threshold"], written["decision_type"], strict=True) if kind & 1]
        within(by_category, categorical, f"a categorical split of {what}")
    if categorical:
        written |= _categories(tree, categorical, what)
    written |= {"leaf_value": _floats(tree["leaf_value"], leaves, what), "is_linear": [0], "shrinkage": [1]}
    return "\n".join(f"{name}={' '.join(map(repr, values))}" for name, values in written.items())


def _splits(tree: dict[str, str], leaves: int, columns: int, what: str) -> dict[str, list[Any]]:
    splits = leaves - 1
    found: dict[str, list[Any]] = {
        name: _ints(tree[name], splits, what)
        for name in ("split_feature", "decision_type", "left_child", "right_child")
    }
    found["threshold"] = _floats(tree["threshold"], splits, what)
    within(found["split_feature"], columns, f"a column of {what}")
    within(found["decision_type"], 2**7, f"a decision of {what}")
    # Below zero it is the leaf -child - 1. Of a tree, every split but the first and every leaf is the child of one.
    if sorted(found["left_child"] + found["right_child"]) != [*range(-leaves, 0), *range(1, splits)]:
        raise Unsound(f"{what} is no tree: a child is missing, beyond it, or the child of two")
    return found


def _categories(tree: dict[str, str], categorical: int, what: str) -> dict[str, list[Any]]:
    bounds = _ints(tree["cat_boundaries"], categorical + 1, what)
    words = _ints(tree["cat_threshold"], bounds[-1], what)
    within(words, 2**32, f"a set of categories of {what}")
    if bounds[0] != 0 or any(first > second for first, second in pairwise(bounds)):
        raise Unsound(f"{what} has categories beyond its list")
    return {"cat_boundaries": bounds, "cat_threshold": words}


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if equals and name in pairs:
            raise Unsound(f"`{name[:50]}` stands in it twice")
        pairs[name] = value
    return pairs


def _ints(text: str, count: int, what: str) -> list[int]:
    return [int(one) for one in _split(text, count, what)]


def _floats(text: str, count: int, what: str) -> list[float]:
    values = [float(one) for one in _split(text, count, what)]
    if not all(map(math.isfinite, values)):
        raise Unsound(f"{what} has a number that is not finite")
    return values


def _split(text: str, count: int, what: str) -> list[str]:
    values = text.split(" ")
    if len(values) != count:
        raise Unsound(f"{what} has {len(values)} values where it needs {count}")
    return values
