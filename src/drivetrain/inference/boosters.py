"""Runs LightGBM and XGBoost models in their own formats: rows of numbers in, probabilities or numbers out.

Both libraries trust what they load: a child that points beyond its tree, or one stray character among parameters, ends
or hangs the process (seen with LightGBM 4.7 and XGBoost 3.2). So a library never sees the file. It is read here, every
tree proven to be a tree within its arrays, and the library is given a text written anew from what was proven. One
thread; a category is its code, what is missing is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Signature
from drivetrain.inference.rows import RowFailed, Values, sigmoid, softmax

Floats64 = NDArray[np.float64]

THREADS = 1
"""A row's trees take microseconds; a second thread costs more than it gives."""
MODEL_BYTES_MAX = 512 * 1024**2
"""Thousands of deep trees; a larger one takes minutes to check and to load."""
LEAVES_MAX = 131_072
"""LightGBM's own limit for one tree."""
OUTPUTS_MAX = 10_000
"""As many classes as a signature has labels."""

COLUMNS_MAX = 10_000
"""As many as a signature has."""
CATEGORIES_END = 2**24
"""Codes are floats to XGBoost, which tells no more whole numbers apart."""
DEPTH_MAX = 32
"""XGBoost's own documents are ten deep."""

_LIGHTGBM_OBJECTIVES = (
    "", "binary", "cross_entropy", "fair", "gamma", "huber", "lambdarank", "mape", "multiclass", "multiclassova",
    "poisson", "quantile", "rank_xendcg", "regression", "regression_l1", "tweedie",
)  # fmt: skip
ROOT_PARENT = 2**31 - 1
"""What XGBoost writes as the parent of a root."""
_XGBOOST_OBJECTIVES = {
    "binary:logistic": "binary:logistic", "binary:logitraw": "binary:logitraw", "reg:logistic": "reg:logistic",
    "multi:softprob": "multi:softprob", "multi:softmax": "multi:softprob",
    "reg:squarederror": "reg:squarederror", "reg:absoluteerror": "reg:squarederror",
    "reg:pseudohubererror": "reg:squarederror", "reg:squaredlogerror": "reg:squarederror",
    "rank:ndcg": "reg:squarederror", "rank:map": "reg:squarederror", "rank:pairwise": "reg:squarederror",
    "reg:gamma": "reg:gamma", "count:poisson": "reg:gamma", "reg:tweedie": "reg:gamma",
}  # fmt: skip
"""Objective -> the plainest one with the same link; of an objective, scoring needs no more."""
_LIGHTGBM_PARAMETERS = ("alpha", "fair_c", "num_class", "sigmoid", "sqrt", "tweedie_variance_power")
_UBJSON_NUMBERS = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_UBJSON_WORDS = {b"Z": None, b"T": True, b"F": False}
_SEVERAL = ("multiclass", "multiclassova", "multi:softprob", "multi:softmax")
_BINARY = ("binary", "cross_entropy", "binary:logistic", "binary:logitraw", "reg:logistic")


class LightGbmModel:
    """One loaded booster; probabilities and numbers as LightGBM itself gives them."""

    __slots__ = ("_booster", "kinds")

    def __init__(self, file: Path, signature: Signature) -> None:
        """Raises: DrivetrainError where it is no sound model, or not one of this signature."""
        import lightgbm

        content = _content(file)
        try:
            facts, text = _read_lightgbm(content.decode())
        except (UnicodeDecodeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise _damaged("LightGBM", file, f"{type(error).__name__}: {error}"[:200]) from None
        except _Unsound as unsound:
            raise _damaged("LightGBM", file, str(unsound)) from None
        _check_fit("LightGBM", signature, columns=facts.columns, outputs=facts.outputs, objective=facts.objective)
        try:
            self._booster = lightgbm.Booster(model_str=text)
        except lightgbm.basic.LightGBMError as error:
            raise _damaged("LightGBM", file, str(error)[:200]) from None
        self.kinds: Sequence[str] = ["float64"] * len(signature.inputs)

    def predict(self, values: Sequence[Values]) -> Floats64:
        """Shape (rows, numbers of one row)."""
        numbers = self._booster.predict(np.array(values, dtype=np.float64), num_threads=THREADS)
        return np.asarray(numbers, dtype=np.float64).reshape(len(values), -1)


class XgBoostModel:
    """One loaded booster; its margins become probabilities in float64."""

    __slots__ = ("_booster", "_link", "_margins", "kinds")

    def __init__(self, file: Path, signature: Signature) -> None:
        """Raises: DrivetrainError where it is no sound model, or not one of this signature."""
        import xgboost

        content = _content(file)
        self._booster = xgboost.Booster()
        try:
            document = msgspec.json.decode(content) if file.suffix == ".json" else Ubjson(content).read()
            facts, anew = _read_xgboost(document)
            self._booster.load_model(bytearray(msgspec.json.encode(anew)))
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, xgboost.core.XGBoostError) as error:
            raise _damaged("XGBoost", file, (str(error).strip().splitlines() or [""])[0][:200]) from None
        except _Unsound as unsound:
            raise _damaged("XGBoost", file, str(unsound)) from None
        _check_fit("XGBoost", signature, columns=facts.columns, outputs=facts.outputs, objective=facts.objective)
        self._booster.set_param({"nthread": THREADS})
        self._margins = signature.task == "classification"
        self._link = softmax if facts.outputs > 1 else sigmoid
        self.kinds: Sequence[str] = ["float32"] * len(signature.inputs)

    def predict(self, values: Sequence[Values]) -> Floats64:
        """Shape (rows, numbers of one row)."""
        numbers = self._booster.inplace_predict(
            np.array(values, dtype=np.float32),
            predict_type="margin" if self._margins else "value",
            missing=np.nan,
            validate_features=False,
            strict_shape=True,
        )
        table = np.asarray(numbers, dtype=np.float64).reshape(len(values), -1)
        if not self._margins:
            return table
        if not np.isfinite(table).all():
            raise RowFailed("The model gave a margin that is not finite.")
        return self._link(table)


class _Facts(msgspec.Struct, frozen=True):
    """What a checked model says of itself."""

    columns: int
    outputs: int
    """Numbers per row."""
    objective: str


class _Unsound(Exception):
    """Why a model's trees cannot be walked."""


def _content(file: Path) -> bytes:
    size = file.stat().st_size
    if size > MODEL_BYTES_MAX:
        raise DrivetrainError(f"`{file.name}` has {size:,} bytes, the most is {MODEL_BYTES_MAX:,}.", looked=[str(file)])
    return file.read_bytes()


def _damaged(library: str, file: Path, why: str) -> DrivetrainError:
    return DrivetrainError(f"`{file.name}` is no sound {library} model: {why}.", looked=[str(file)])


def _check_fit(library: str, signature: Signature, *, columns: int, outputs: int, objective: str) -> None:
    if columns != len(signature.inputs):
        raise DrivetrainError(
            f"The {library} model takes {columns} columns, its signature names {len(signature.inputs)}.",
            do="Name as many columns as it takes, in their order.",
        )
    labels = len(signature.labels) if signature.task == "classification" else 0
    if not labels:
        if outputs != 1 or objective in _SEVERAL:
            raise DrivetrainError(
                f"The {library} model ({objective}) gives {outputs} numbers per row; a {signature.task} takes one."
            )
        return
    if outputs > 1 if labels == outputs else (outputs, labels) == (1, 2):
        if objective in (_SEVERAL if outputs > 1 else _BINARY):
            return
        raise DrivetrainError(
            f"The {library} model's objective is `{objective}`, which gives no probabilities.",
            do=f"Known: {', '.join(_SEVERAL if outputs > 1 else _BINARY)}.",
        )
    raise DrivetrainError(f"The {library} model tells {max(outputs, 2)} classes apart, its signature names {labels}.")


def _read_lightgbm(text: str) -> tuple[_Facts, str]:
    """What a model says of itself, and the same model written anew. Raises: _Unsound, ValueError, KeyError."""
    start = text.find("\nTree=") + 1
    if not text.startswith("tree\n") or not start:
        raise _Unsound("it does not begin as one")
    header = _pairs(text[:start])
    columns, outputs = int(header["max_feature_idx"]) + 1, int(header["num_tree_per_iteration"])
    if not 1 <= columns <= COLUMNS_MAX or not 1 <= outputs <= OUTPUTS_MAX or outputs != int(header["num_class"]):
        raise _Unsound(f"it has {columns} columns and {outputs} outputs for {header['num_class']} classes")
    objective = _lightgbm_objective(header.get("objective", ""), outputs)
    end = text.find("\nend of trees")
    if end < start:
        raise _Unsound("its trees have no end")
    trees = [
        f"Tree={number}\n{_lightgbm_tree(tree, columns, number)}\n\n"
        for number, tree in enumerate(("\n" + text[start:end]).split("\nTree=")[1:])
    ]
    if len(trees) % outputs or header["tree_sizes"].count(" ") + 1 != len(trees):
        raise _Unsound(f"it has {len(trees)} trees, which are not as many as it says for {outputs} outputs")
    head = [
        "tree", "version=v4", f"num_class={outputs}", f"num_tree_per_iteration={outputs}", "label_index=0",
        f"max_feature_idx={columns - 1}", *([f"objective={objective}"] if objective else []),
        *(["average_output"] if "average_output" in header else []),
        f"feature_names={' '.join(f'f{place}' for place in range(columns))}",
        f"feature_infos={' '.join(['none'] * columns)}",
        f"tree_sizes={' '.join(str(len(tree)) for tree in trees)}",
    ]  # fmt: skip
    return _Facts(columns, outputs, objective.split(" ")[0]), "\n".join(head) + "\n\n" + "".join(
        trees
    ) + "end of trees\n"


def _lightgbm_objective(written: str, outputs: int) -> str:
    """Its name and its parameters, each known; empty where the user's own trained it."""
    name, *parameters = written.split(" ")
    if name not in _LIGHTGBM_OBJECTIVES:
        raise _Unsound(f"its objective is `{name[:50]}`, which is not known")
    for one in parameters:
        key, colon, value = one.partition(":")
        if key not in _LIGHTGBM_PARAMETERS or (colon and not 0 < float(value) < math.inf):
            raise _Unsound(f"its objective has the parameter `{one[:50]}`")
        if key == "num_class" and value != str(outputs):
            raise _Unsound(f"its objective has {value[:20]} classes and its trees {outputs}")
    return written


def _lightgbm_tree(text: str, columns: int, number: int) -> str:
    """One tree, written anew."""
    head, _, body = text.partition("\n")
    tree, what = _pairs(body), f"tree {number}"
    leaves, categorical = int(tree["num_leaves"]), int(tree["num_cat"])
    if head != str(number) or not 1 <= leaves <= LEAVES_MAX or not 0 <= categorical < leaves:
        raise _Unsound(f"{what} is tree {head[:20]} with {leaves} leaves and {categorical} categorical splits")
    if int(tree.get("is_linear", "0")):
        raise _Unsound(f"{what} has linear models in its leaves, which are not supported")
    written: dict[str, list[Any]] = {"num_leaves": [leaves], "num_cat": [categorical]}
    if leaves > 1:
        written |= _lightgbm_splits(tree, leaves, columns, what)
        by_category = [at for at, kind in zip(written["threshold"], written["decision_type"], strict=True) if kind & 1]
        _within(by_category, categorical, f"a categorical split of {what}")
    if categorical:
        written |= _lightgbm_categories(tree, categorical, what)
    written |= {"leaf_value": _floats(tree["leaf_value"], leaves, what), "is_linear": [0], "shrinkage": [1]}
    return "\n".join(f"{name}={' '.join(map(repr, values))}" for name, values in written.items())


def _lightgbm_splits(tree: dict[str, str], leaves: int, columns: int, what: str) -> dict[str, list[Any]]:
    splits = leaves - 1
    found: dict[str, list[Any]] = {
        name: _ints(tree[name], splits, what)
        for name in ("split_feature", "decision_type", "left_child", "right_child")
    }
    found["threshold"] = _floats(tree["threshold"], splits, what)
    _within(found["split_feature"], columns, f"a column of {what}")
    _within(found["decision_type"], 2**7, f"a decision of {what}")
    # Below zero it is the leaf -child - 1. Of a tree, every split but the first and every leaf is the child of one.
    if sorted(found["left_child"] + found["right_child"]) != [*range(-leaves, 0), *range(1, splits)]:
        raise _Unsound(f"{what} is no tree: a child is missing, beyond it, or the child of two")
    return found


def _lightgbm_categories(tree: dict[str, str], categorical: int, what: str) -> dict[str, list[Any]]:
    bounds = _ints(tree["cat_boundaries"], categorical + 1, what)
    words = _ints(tree["cat_threshold"], bounds[-1], what)
    _within(words, 2**32, f"a set of categories of {what}")
    if bounds[0] != 0 or any(first > second for first, second in pairwise(bounds)):
        raise _Unsound(f"{what} has categories beyond its list")
    return {"cat_boundaries": bounds, "cat_threshold": words}


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if equals and name in pairs:
            raise _Unsound(f"`{name[:50]}` stands in it twice")
        pairs[name] = value
    return pairs


def _ints(text: str, count: int, what: str) -> list[int]:
    return [int(one) for one in _split(text, count, what)]


def _floats(text: str, count: int, what: str) -> list[float]:
    values = [float(one) for one in _split(text, count, what)]
    if not all(map(math.isfinite, values)):
        raise _Unsound(f"{what} has a number that is not finite")
    return values


def _split(text: str, count: int, what: str) -> list[str]:
    values = text.split(" ")
    if len(values) != count:
        raise _Unsound(f"{what} has {len(values)} values where it needs {count}")
    return values


def _within(values: Iterable[float], end: int, what: str, *, least: int = 0) -> None:
    if not all(least <= value < end for value in values):
        raise _Unsound(f"{what} lies beyond the {end} there are")


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


def _read_xgboost(document: object) -> tuple[_Facts, dict[str, Any]]:
    """What a model says of itself, and the same model written anew. Raises: _Unsound, ValidationError, ValueError."""
    read = msgspec.convert(document, _Document)
    learner, parameters = read.learner, read.learner.learner_model_param
    columns, outputs = int(parameters.num_feature), max(int(parameters.num_class), 1)
    if not 1 <= columns <= COLUMNS_MAX or not 1 <= outputs <= OUTPUTS_MAX or int(parameters.num_target) > 1:
        raise _Unsound(f"it has {columns} columns, {outputs} classes and {parameters.num_target[:20]} targets")
    objective = _XGBOOST_OBJECTIVES.get(learner.objective.name)
    if objective is None or (objective == "multi:softprob") != (outputs > 1):
        raise _Unsound(f"its objective is `{learner.objective.name[:50]}` with {outputs} outputs, which is not known")
    if not all(0 <= one < 1_000 for one in read.version):
        raise _Unsound("its version is none of XGBoost's")
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
    return _Facts(columns, outputs, learner.objective.name), {"learner": anew, "version": list(read.version)}


def _base_score_anew(written: str, outputs: int) -> str:
    several = written.startswith("[")
    scores = [float(one) for one in written.strip("[]").split(",")]
    if len(scores) not in (1, outputs) or not all(map(math.isfinite, scores)):
        raise _Unsound(f"it has {len(scores)} base scores for {outputs} outputs, or one that is not finite")
    return f"[{','.join(map(repr, scores))}]" if several else repr(scores[0])


def _gradient_anew(gradient: _Gradient, columns: int, outputs: int) -> dict[str, Any]:
    held = gradient.gbtree if gradient.name == "dart" else gradient
    if gradient.name not in ("gbtree", "dart") or held is None or held.model is None:
        raise _Unsound(f"its booster is `{gradient.name[:50]}`, not `gbtree` or `dart`")
    model, count = held.model, len(held.model.trees)
    parallel = int(model.gbtree_model_param.num_parallel_tree)
    if len(model.tree_info) != count or any(not 0 <= one < outputs for one in model.tree_info):
        raise _Unsound(f"its trees are not each of one of {outputs} outputs")
    if not 1 <= parallel <= max(count, 1) or count % (parallel * outputs):
        raise _Unsound(f"its {count} trees are no rounds of {parallel} for each of {outputs} outputs")
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
        raise _Unsound("its trees have not one weight each")
    return {"gbtree": anew, "name": "dart", "weight_drop": gradient.weight_drop}


def _tree_anew(tree: _Tree, columns: int, number: int) -> dict[str, Any]:
    """Its nodes that are reached, numbered by their depth; what pruning left behind is gone."""
    what = f"tree {number}"
    _check_xgboost_tree(tree, columns, what)
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


def _check_xgboost_tree(tree: _Tree, columns: int, what: str) -> None:
    count = int(tree.tree_param.num_nodes)
    arrays = (
        tree.left_children, tree.right_children, tree.split_indices, tree.split_conditions, tree.default_left,
        tree.split_type or tree.left_children,
    )  # fmt: skip
    if count < 1 or any(len(one) != count for one in arrays) or int(tree.tree_param.size_leaf_vector) > 1:
        raise _Unsound(f"{what} has not {count} nodes of one value each")
    splits = [place for place, child in enumerate(tree.left_children) if child != -1]
    if splits != [place for place, child in enumerate(tree.right_children) if child != -1]:
        raise _Unsound(f"{what} has a split with one child")
    children = [side[place] for place in splits for side in (tree.left_children, tree.right_children)]
    _within(children, count, f"a child in {what}", least=1)
    if len(set(children)) != len(children):
        raise _Unsound(f"{what} is no tree: a node is the child of two")
    _within((tree.split_indices[place] for place in splits), columns, f"a column of {what}")
    segments, sizes, nodes = tree.categories_segments, tree.categories_sizes, tree.categories_nodes
    by_category = {place for place in splits if tree.split_type and tree.split_type[place]}
    if not (len(segments) == len(sizes) == len(set(nodes))) or not by_category <= set(nodes):
        raise _Unsound(f"{what} splits by categories that it does not list")
    for start, size in zip(segments, sizes, strict=True):
        if min(start, size) < 0 or start + size > len(tree.categories):
            raise _Unsound(f"{what} has categories beyond its list")
    _within(tree.categories, CATEGORIES_END, f"a category of {what}")


class Ubjson:
    """Reads XGBoost's binary files: Universal Binary JSON with typed arrays (https://ubjson.org, draft 12)."""

    __slots__ = ("_at", "_content")

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def read(self) -> Any:
        """The one value of the content. Raises: ValueError where it is no sound UBJSON, or more than one value."""
        value = self._value(self._taken(1), 0)
        if self._at != len(self._content):
            raise ValueError("something stands behind its end")
        return value

    def _value(self, marker: bytes, depth: int) -> Any:
        if depth > DEPTH_MAX:
            raise ValueError(f"values stand in more than {DEPTH_MAX} others")
        if marker == b"{":
            return self._object(depth)
        if marker == b"[":
            return self._array(depth)
        if marker == b"S":
            return self._text()
        if marker in _UBJSON_NUMBERS:
            kind = np.dtype(_UBJSON_NUMBERS[marker])
            return np.frombuffer(self._taken(kind.itemsize), kind)[0].item()
        if marker in _UBJSON_WORDS:
            return _UBJSON_WORDS[marker]
        raise ValueError(f"{marker!r} begins no value")

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self._content[self._at : self._at + 1] != b"}":
            name = self._text()
            found[name] = self._value(self._taken(1), depth + 1)
        self._at += 1
        return found

    def _array(self, depth: int) -> list[Any]:
        kind = b""
        if self._content[self._at : self._at + 1] == b"$":
            self._at += 1
            kind = self._taken(1)
        if self._content[self._at : self._at + 1] == b"#":
            self._at += 1
            count = self._length()
            if not kind:
                return [self._value(self._taken(1), depth + 1) for _ in range(count)]
            typed = np.dtype(_UBJSON_NUMBERS[kind]) if kind in _UBJSON_NUMBERS else None
            if typed is None:
                raise ValueError(f"an array of {kind!r} is not known")
            numbers: list[Any] = np.frombuffer(self._taken(count * typed.itemsize), typed).tolist()
            return numbers
        if kind:
            raise ValueError("a typed array does not say how long it is")
        values = []
        while (marker := self._taken(1)) != b"]":
            values.append(self._value(marker, depth + 1))
        return values

    def _text(self) -> str:
        return self._taken(self._length()).decode()

    def _length(self) -> int:
        marker = self._taken(1)
        length = self._value(marker, 0) if marker in _UBJSON_NUMBERS else None
        if not isinstance(length, int) or length < 0:
            raise ValueError("a length is no whole number")
        return length

    def _taken(self, count: int) -> bytes:
        """The next bytes; what is asked for is there before anything of that size is made."""
        end = self._at + count
        if end > len(self._content):
            raise ValueError("it is cut off")
        taken = self._content[self._at : end]
        self._at = end
        return taken
