"""XGBoost's documents: every tree proven to be one, and the model written anew from what was proven.

Owns what of the format is known, and nothing of the library; JSON and its binary twin are read elsewhere. Called by
`boosters`.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import msgspec

from drivetrain.inference.booster_facts import Facts, Unsound, within
from drivetrain.registry.signatures import COLUMNS_MAX, LABELS_MAX

CATEGORIES_END = 2**24
"""Codes are floats to XGBoost, which tells no more whole numbers apart."""
ROOT_PARENT = 2**31 - 1
"""What XGBoost writes as the parent of a root."""
_OBJECTIVES = {
    "binary:logistic": "binary:logistic", "binary:logitraw": "binary:logitraw", "reg:logistic": "reg:logistic",
    "multi:softprob": "multi:softprob", "multi:softmax": "multi:softprob",
    "reg:squarederror": "reg:squarederror", "reg:absoluteerror": "reg:squarederror",
    "reg:pseudohubererror": "reg:squarederror", "reg:squaredlogerror": "reg:squarederror",
    "rank:ndcg": "reg:squarederror", "rank:map": "reg:squarederror", "rank:pairwise": "reg:squarederror",
    "reg:gamma": "reg:gamma", "count:poisson": "reg:gamma", "reg:tweedie": "reg:gamma",
}  # fmt: skip
"""Objective -> the plainest one with the same link; of an objective, scoring needs no more."""


class _TreeParameters(msgspec.Struct):
    num_nodes: str
    size_leaf_vector: str = "1"


class _Tree(msgspec.Struct):
    """An XGBoost tree, as far as walking it needs."""

    left_children: list[int]
    right_children: list[int]
    split_indices: list[int]
    split_conditions: list[float]
    default_left: list[int | bool]
    tree_param: _TreeParameters
    split_type: list[int] = []
    categories: list[int] = []
    categories_nodes: list[int] = []
    categories_segments: list[int] = []
    categories_sizes: list[int] = []


class _TreesParameters(msgspec.Struct):
    num_parallel_tree: str = "1"


class _Trees(msgspec.Struct):
    trees: list[_Tree]
    tree_info: list[int]
    gbtree_model_param: _TreesParameters = msgspec.field(default_factory=_TreesParameters)


class _Gradient(msgspec.Struct):
    name: str
    model: _Trees | None = None
    gbtree: _Gradient | None = None
    weight_drop: list[float] = []


class _LearnerParameters(msgspec.Struct):
    num_feature: str
    base_score: str
    num_class: str = "0"
    num_target: str = "1"


class _Objective(msgspec.Struct):
    name: str


class _Learner(msgspec.Struct):
    gradient_booster: _Gradient
    learner_model_param: _LearnerParameters
    objective: _Objective


class _Document(msgspec.Struct):
    learner: _Learner
    version: tuple[int, int, int]


def read_xgboost(document: object) -> tuple[Facts, dict[str, Any]]:
    """What a model says of itself, and the same model written anew. Raises: Unsound, ValidationError, ValueError."""
    read = msgspec.convert(document, _Document)
    learner, parameters = read.learner, read.learner.learner_model_param
    columns, outputs = int(parameters.num_feature), max(int(parameters.num_class), 1)
    if not 1 <= columns <= COLUMNS_MAX or not 1 <= outputs <= LABELS_MAX or int(parameters.num_target) > 1:
        raise Unsound(f"it has {columns} columns, {outputs} classes and {parameters.num_target[:20]} targets")
    objective = _OBJECTIVES.get(learner.objective.name)
    if objective is None or (objective == "multi:softprob") != (outputs > 1):
        raise Unsound(f"its objective is `{learner.objective.name[:50]}` with {outputs} outputs, which is not known")
    if not all(0 <= one < 1_000 for one in read.version):
        raise Unsound("its version is none of XGBoost's")
    parameter = {"num_class": str(outputs)} if outputs > 1 else {"scale_pos_weight": "1"}
    anew = {
        "attributes": {},
        "feature_names": [],
        "feature_types": [],
        "gradient_booster": _gradient_anew(learner.gradient_booster, columns, outputs),
        "learner_model_param": {
            "base_score": _base_score_anew(parameters.base_score, outputs),
            "boost_from_average": "1",
            "num_class": str(outputs if outputs > 1 else 0),
            "num_feature": str(columns),
            "num_target": "1",
        },
        "objective": {
            "name": objective,
            "softmax_multiclass_param" if outputs > 1 else "reg_loss_param": parameter,
        },
    }
    return Facts(columns, outputs, learner.objective.name), {"learner": anew, "version": list(read.version)}


def _base_score_anew(written: str, outputs: int) -> str:
    several = written.startswith("[")
    scores = [float(one) for one in written.strip("[]").split(",")]
    if len(scores) not in (1, outputs) or not all(map(math.isfinite, scores)):
        raise Unsound(f"it has {len(scores)} base scores for {outputs} outputs, or one that is not finite")
    return f"[{','.join(map(repr, scores))}]" if several else repr(scores[0])


def _gradient_anew(gradient: _Gradient, columns: int, outputs: int) -> dict[str, Any]:
    held = gradient.gbtree if gradient.name == "dart" else gradient
    if gradient.name not in ("gbtree", "dart") or held is None or held.model is None:
        raise Unsound(f"its booster is `{gradient.name[:50]}`, not `gbtree` or `dart`")
    model, count = held.model, len(held.model.trees)
    parallel = int(model.gbtree_model_param.num_parallel_tree)
    if len(model.tree_info) != count or any(not 0 <= one < outputs for one in model.tree_info):
        raise Unsound(f"its trees are not each of one of {outputs} outputs")
    if not 1 <= parallel <= max(count, 1) or count % (parallel * outputs):
        raise Unsound(f"its {count} trees are no rounds of {parallel} for each of {outputs} outputs")
    anew: dict[str, Any] = {
        "model": {
            "cats": {"enc": [], "feature_segments": [], "sorted_idx": []},
            "gbtree_model_param": {"num_parallel_tree": str(parallel), "num_trees": str(count)},
            "iteration_indptr": list(range(0, count + 1, parallel * outputs)),
            "tree_info": model.tree_info,
            "trees": [_tree_anew(tree, columns, number) for number, tree in enumerate(model.trees)],
        },
        "name": "gbtree",
    }
    if gradient.name == "gbtree":
        return anew
    if len(gradient.weight_drop) != count:
        raise Unsound("its trees have not one weight each")
    return {"gbtree": anew, "name": "dart", "weight_drop": gradient.weight_drop}


def _tree_anew(tree: _Tree, columns: int, number: int) -> dict[str, Any]:
    """Its nodes that are reached, numbered by their depth; what pruning left behind is gone."""
    what = f"tree {number}"
    _check_tree(tree, columns, what)
    sets = {
        node: tree.categories[start : start + size]
        for node, start, size in zip(
            tree.categories_nodes, tree.categories_segments, tree.categories_sizes, strict=True
        )
    }
    reached, parents, left, right = [0], [ROOT_PARENT], list[int](), list[int]()
    for place, node in enumerate(reached):  # grows as it goes
        inner = tree.left_children[node] != -1
        left.append(len(reached) if inner else -1)
        right.append(len(reached) + 1 if inner else -1)
        if inner:
            reached += (tree.left_children[node], tree.right_children[node])
            parents += (place, place)
    by_category = [
        place for place, node in enumerate(reached) if left[place] != -1 and tree.split_type and tree.split_type[node]
    ]
    chosen = [sets[reached[place]] for place in by_category]
    listed, nothing = set(by_category), [0.0] * len(reached)
    return {
        "base_weights": nothing,
        "categories": [code for one in chosen for code in one],
        "categories_nodes": by_category,
        "categories_segments": [0, *accumulate(map(len, chosen))][: len(chosen)],
        "categories_sizes": [len(one) for one in chosen],
        "default_left": [int(tree.default_left[node]) for node in reached],
        "id": number,
        "left_children": left,
        "loss_changes": nothing,
        "parents": parents,
        "right_children": right,
        "split_conditions": [tree.split_conditions[node] for node in reached],
        "split_indices": [
            tree.split_indices[node] if left[place] != -1 else 0 for place, node in enumerate(reached)
        ],
        "split_type": [int(place in listed) for place in range(len(reached))],
        "sum_hessian": nothing,
        "tree_param": {
            "num_deleted": "0", "num_feature": str(columns), "num_nodes": str(len(reached)), "size_leaf_vector": "1",
        },
    }  # fmt: skip


def _check_tree(tree: _Tree, columns: int, what: str) -> None:
    count = int(tree.tree_param.num_nodes)
    arrays = (
        tree.left_children, tree.right_children, tree.split_indices, tree.split_conditions, tree.default_left,
        tree.split_type or tree.left_children,
    )  # fmt: skip
    if count < 1 or any(len(one) != count for one in arrays) or int(tree.tree_param.size_leaf_vector) > 1:
        raise Unsound(f"{what} has not {count} nodes of one value each")
    splits = [place for place, child in enumerate(tree.left_children) if child != -1]
    if splits != [place for place, child in enumerate(tree.right_children) if child != -1]:
        raise Unsound(f"{what} has a split with one child")
    children = [side[place] for place in splits for side in (tree.left_children, tree.right_children)]
    within(children, count, f"a child in {what}", least=1)
    if len(set(children)) != len(children):
        raise Unsound(f"{what} is no tree: a node is the child of two")
    within((tree.split_indices[place] for place in splits), columns, f"a column of {what}")
    segments, sizes, nodes = tree.categories_segments, tree.categories_sizes, tree.categories_nodes
    by_category = {place for place in splits if tree.split_type and tree.split_type[place]}
    if not (len(segments) == len(sizes) == len(set(nodes))) or not by_category <= set(nodes):
        raise Unsound(f"{what} splits by categories that it does not list")
    for start, size in zip(segments, sizes, strict=True):
        if min(start, size) < 0 or start + size > len(tree.categories):
            raise Unsound(f"{what} has categories beyond its list")
    within(tree.categories, CATEGORIES_END, f"a category of {what}")
