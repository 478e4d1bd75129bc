"""Models of each format through the one door: the library's own answers, and no file that can harm the process."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import pytest
import xgboost
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Column, Pinned, Scored, Signature
from drivetrain.inference.scorers import CALIBRATION, open_scorer, scorer_time_us

pytestmark = pytest.mark.slow

ROWS, COLUMNS = 400, 5
"""Of every model here; the last column is a code from 0 to 5."""
NUMBERS = tuple(Column(name=f"c{place}", dtype="float", nullable=True) for place in range(COLUMNS))
LABELS = ("a", "b", "c")


def table(missing: float = 0.05) -> tuple[Any, Any]:
    """(values, classes 0 to 2)."""
    chance = np.random.default_rng(7)
    values = chance.normal(size=(ROWS, COLUMNS))
    values[:, 4] = chance.integers(0, 6, ROWS)
    classes = (values[:, 0] > 0).astype(int) + ((values[:, 1] > 0.5) ^ (values[:, 4] > 2))
    values[chance.random(values.shape) < missing] = np.nan
    return values, classes


def pinned(format: str, task: str, labels: Sequence[str] = (), columns: Sequence[Column] = NUMBERS) -> Pinned:
    ranking = {"candidates": "shops", "candidate_id": "shop"} if task == "ranking" else {}
    signature = Signature(task=task, inputs=tuple(columns), target="t", labels=tuple(labels), **ranking)
    return Pinned(name="m", number=1, digest="", format=format, signature=signature)


def folder(place: Path, files: Mapping[str, bytes]) -> Path:
    place.mkdir(exist_ok=True)
    for one in place.iterdir():
        one.unlink()
    for name, content in files.items():
        (place / name).write_bytes(content)
    return place


def rows_of(values: Any) -> list[list[float | None]]:
    return [[None if np.isnan(one) else float(one) for one in row] for row in values]


def check_classes(scored: Sequence[Scored], expected: Any, labels: Sequence[str]) -> None:
    expected = np.stack([1 - expected, expected], axis=1) if expected.ndim == 1 else expected
    assert len({one.label for one in scored}) > 1, "the rows are told apart"
    for one, chances in zip(scored, expected, strict=True):
        assert one.scores == pytest.approx(dict(zip(labels, chances.tolist(), strict=True)), abs=1e-5)
        assert one.label == labels[int(chances.argmax())]
        assert one.confidence == one.scores[one.label]


def tempered(chances: Any, temperature: float) -> Any:
    powers = chances ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


# LightGBM


def lightgbm_model(objective: str, truth: Any, rounds: int = 5, **more: Any) -> Any:
    values, _ = table()
    group = [40] * (ROWS // 40) if objective == "lambdarank" else None
    data = lightgbm.Dataset(values, truth, categorical_feature=[4], group=group, params={"verbosity": -1})
    parameters = {"objective": objective, "verbosity": -1, "num_leaves": 7, "seed": 1, "num_threads": 1, **more}
    return lightgbm.train(parameters, data, rounds)


FORESTS = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.7}


@pytest.mark.parametrize(
    ("objective", "labels", "more"),
    [
        ("binary", 2, {}),
        ("binary", 2, {"sigmoid": 2.0}),
        ("binary", 2, FORESTS),
        ("binary", 2, {"boosting": "dart"}),
        ("cross_entropy", 2, {}),
        ("multiclass", 3, {"num_class": 3}),
        ("multiclassova", 3, {"num_class": 3}),
    ],
)
def test_lightgbm_classes_are_its_own(objective: str, labels: int, more: dict[str, Any], tmp_path: Path) -> None:
    values, classes = table()
    booster = lightgbm_model(objective, classes if labels == 3 else (classes > 0).astype(int), **more)
    files = {"model.txt": booster.model_to_string().encode()}
    scorer = open_scorer(folder(tmp_path, files), pinned("lightgbm", "classification", LABELS[:labels]))
    expected = booster.predict(values)
    check_classes(scorer.score(rows_of(values)), expected, LABELS[:labels])

    expected = np.stack([1 - expected, expected], axis=1) if expected.ndim == 1 else expected
    files[CALIBRATION] = json.dumps({"temperature": 2.5}).encode()
    cooler = open_scorer(folder(tmp_path, files), pinned("lightgbm", "classification", LABELS[:labels]))
    check_classes(cooler.score(rows_of(values)), tempered(expected, 2.5), LABELS[:labels])


@pytest.mark.parametrize(
    "objective", ["regression", "regression_l1", "huber", "poisson", "quantile", "tweedie", "gamma"]
)
def test_lightgbm_numbers_are_its_own(objective: str, tmp_path: Path) -> None:
    values, classes = table()
    truth = classes + np.exp(np.nan_to_num(values[:, 2]))
    booster = lightgbm_model(objective, truth, reg_sqrt=objective == "regression")
    files = {"model.txt": booster.model_to_string().encode()}
    scored = open_scorer(folder(tmp_path, files), pinned("lightgbm", "regression")).score(rows_of(values))
    assert np.ptp([one.value for one in scored]) > 0.01
    assert [one.value for one in scored] == booster.predict(values).tolist()


def test_a_lightgbm_ranking_lists_every_candidate(tmp_path: Path) -> None:
    values, classes = table()
    booster = lightgbm_model("lambdarank", classes)
    files = {"model.txt": booster.model_to_string().encode()}
    scorer = open_scorer(folder(tmp_path, files), pinned("lightgbm", "ranking"))
    (scored,) = scorer.score([[[number, row] for number, row in enumerate(rows_of(values[:50]))]])
    expected = booster.predict(values[:50])
    assert [one.id for one in scored.ranking] == sorted(range(50), key=lambda place: -expected[place])
    assert [one.score for one in scored.ranking] == sorted(expected.tolist(), reverse=True)


def test_categories_reach_a_booster_as_their_codes(tmp_path: Path) -> None:
    values, classes = table(missing=0)
    booster = lightgbm_model("binary", (classes > 0).astype(int), min_data_per_group=1, cat_smooth=0)
    shop = Column(name="shop", dtype="category", values=tuple("uvwxyz"), nullable=True)
    files = {"model.txt": booster.model_to_string().encode()}
    assert b"num_cat=1" in files["model.txt"] or b"num_cat=2" in files["model.txt"]
    columns = (*NUMBERS[:4], shop)
    scorer = open_scorer(folder(tmp_path, files), pinned("lightgbm", "classification", LABELS[:2], columns))
    rows: list[list[Any]] = [[*row[:4], "uvwxyz"[int(row[4])]] for row in values.tolist()]
    check_classes(scorer.score(rows), booster.predict(values), LABELS[:2])
    unknown = np.array([[0.1, 0.2, 0.3, 0.4, np.nan]])
    for value in ("never seen", None):
        (scored,) = scorer.score([[0.1, 0.2, 0.3, 0.4, value]])
        assert scored.scores["b"] == pytest.approx(booster.predict(unknown)[0])


# XGBoost


def xgboost_model(objective: str, truth: Any, rounds: int = 5, **more: Any) -> tuple[Any, Any]:
    """(booster, the values as it takes them)."""
    values, _ = table()
    data = xgboost.DMatrix(values, truth, feature_types=["q"] * 4 + ["c"], enable_categorical=True)
    if objective.startswith("rank:"):
        data.set_group([40] * (ROWS // 40))
    parameters = {"objective": objective, "max_depth": 3, "max_cat_to_onehot": 1, "seed": 1, "nthread": 1, **more}
    return xgboost.train(parameters, data, rounds), data


@pytest.mark.parametrize("suffix", ["json", "ubj"])
@pytest.mark.parametrize(
    ("objective", "labels", "more"),
    [
        ("binary:logistic", 2, {}),
        ("binary:logistic", 2, {"gamma": 3.0}),  # prunes, which leaves nodes that nothing reaches
        ("binary:logistic", 2, {"booster": "dart", "rate_drop": 0.5}),
        ("binary:logistic", 2, {"num_parallel_tree": 3, "subsample": 0.7}),
        ("multi:softprob", 3, {"num_class": 3}),
        ("multi:softmax", 3, {"num_class": 3}),
    ],
)
def test_xgboost_classes_are_its_own(
    objective: str, labels: int, more: dict[str, Any], suffix: str, tmp_path: Path
) -> None:
    values, classes = table()
    booster, data = xgboost_model(objective, classes if labels == 3 else (classes > 0).astype(int), **more)
    files = {f"model.{suffix}": bytes(booster.save_raw(suffix))}
    margins = booster.predict(data, output_margin=True).astype(np.float64)
    if labels == 2:
        margins = np.stack([np.zeros_like(margins), margins], axis=1)
    powers = np.exp(margins)
    for temperature in (1.0, 2.5):
        files[CALIBRATION] = json.dumps({"temperature": temperature}).encode()
        scorer = open_scorer(folder(tmp_path, files), pinned("xgboost", "classification", LABELS[:labels]))
        chances = tempered(powers / powers.sum(axis=1, keepdims=True), temperature)
        check_classes(scorer.score(rows_of(values)), chances, LABELS[:labels])
    if objective != "multi:softmax":
        plain = booster.predict(data)
        plain = np.stack([1 - plain, plain], axis=1) if plain.ndim == 1 else plain
        assert np.abs(powers / powers.sum(axis=1, keepdims=True) - plain).max() <= 1e-5


@pytest.mark.parametrize(
    "objective",
    [
        "reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror", "reg:squaredlogerror", "reg:gamma",
        "reg:tweedie", "count:poisson", "reg:logistic", "rank:ndcg", "rank:pairwise", "rank:map",
    ],
)  # fmt: skip
def test_xgboost_numbers_are_its_own(objective: str, tmp_path: Path) -> None:
    values, classes = table()
    truth = (classes > 0).astype(int) if objective in ("reg:logistic", "rank:map") else classes + 1
    booster, data = xgboost_model(objective, truth, min_child_weight=0, eta=0.1)
    files = {"model.json": bytes(booster.save_raw("json"))}
    scored = open_scorer(folder(tmp_path, files), pinned("xgboost", "regression")).score(rows_of(values))
    found = [one.value for one in scored]
    assert np.ptp(found) > 0.01
    assert found == pytest.approx(booster.predict(data).tolist(), abs=1e-5)


# What a booster's file may not be


def lightgbm_cases() -> dict[str, tuple[str, str]]:
    """Name -> (a model that would end, hang or mislead LightGBM, a word of the refusal)."""
    _, classes = table()
    good = lightgbm_model("binary", (classes > 0).astype(int)).model_to_string()
    first = next(line for line in good.splitlines() if line.startswith("left_child="))
    features = next(line for line in good.splitlines() if line.startswith("split_feature="))
    leaves = next(line for line in good.splitlines() if line.startswith("leaf_value="))
    children = first.partition("=")[2].split(" ")

    def edited(line: str, at: int, value: str) -> str:
        name, _, values = line.partition("=")
        parts = values.split(" ")
        parts[at] = value
        return good.replace(line, f"{name}={' '.join(parts)}", 1)

    own = next(place for place, child in enumerate(children) if int(child) > 0)
    cases = {
        "child of itself": (edited(first, own, str(own)), "is no tree"),
        "child far beyond": (edited(first, 0, "99999999"), "is no tree"),
        "leaf far beyond": (edited(first, own, "-99999999"), "is no tree"),
        "column far beyond": (edited(features, 0, "99999999"), "lies beyond"),
        "too few leaves": (good.replace(leaves, leaves.rpartition(" ")[0], 1), "values where it needs"),
        "a leaf that is none": (edited(leaves, 0, "nan"), "not finite"),
        "a leaf that is code": (edited(leaves, 0, "exec('1')"), "could not convert"),
        "many leaves": (good.replace("num_leaves=7", "num_leaves=70000000", 1), "70000000 leaves"),
        "many outputs": (good.replace("num_tree_per_iteration=1", "num_tree_per_iteration=100000"), "outputs"),
        "columns without end": (good.replace("max_feature_idx=4", f"max_feature_idx={10**12}"), "columns"),
        "no trees": (good[: good.index("Tree=0")], "does not begin"),
        "no end": (good.replace("end of trees", ""), "no end"),
        "cut": (good[:1_500], "no end"),
        "own objective": (good.replace("objective=binary", "objective=mine"), "`mine`, which is not known"),
        "odd parameter": (good.replace("sigmoid:1", "sigmoid:-1"), "parameter `sigmoid:-1`"),
        "linear leaves": (good.replace("is_linear=0", "is_linear=1", 1), "not supported"),
        "twice": (good.replace("num_cat=", "num_cat=0\nnum_cat=", 1), "twice"),
        "tree left out": (good.replace("Tree=1\n", "Tree=2\n", 1), "is tree 2"),
        "empty": ("", "does not begin"),
        "another file": ("Dear reader,\n", "does not begin"),
    }
    assert all(text != good for text, _ in cases.values())
    return cases


def xgboost_cases() -> dict[str, tuple[str, str]]:
    """Name -> (a model that would end, hang or mislead XGBoost, a word of the refusal)."""
    _, classes = table()
    booster, _ = xgboost_model("binary:logistic", (classes > 0).astype(int))
    good = bytes(booster.save_raw("json")).decode()

    def edited(change: Callable[[Any, Any, Any], object]) -> str:
        document = json.loads(good)
        model = document["learner"]["gradient_booster"]["model"]
        change(document["learner"], model, model["trees"][0])
        return json.dumps(document)

    def node(name: str, value: int) -> str:
        return edited(lambda _learner, _model, tree: tree[name].__setitem__(0, value))

    parameters = "learner_model_param"
    return {
        "child of itself": (node("left_children", 0), "lies beyond"),
        "child far beyond": (node("left_children", 99_999_999), "lies beyond"),
        "one child twice": (node("left_children", 2), "child of two"),
        "one child": (node("right_children", -1), "with one child"),
        "column far beyond": (node("split_indices", 99_999_999), "lies beyond"),
        "too few": (edited(lambda _l, _m, tree: tree["left_children"].pop()), "nodes of one value"),
        "too many": (edited(lambda _l, _m, tree: tree["tree_param"].update(num_nodes="99999999")), "nodes of one"),
        "output far beyond": (edited(lambda _l, model, _t: model["tree_info"].__setitem__(0, 500)), "one of 1 outputs"),
        "columns without end": (edited(lambda one, _m, _t: one[parameters].update(num_feature="9" * 18)), "columns"),
        "classes": (edited(lambda one, _m, _t: one[parameters].update(num_class="7")), "with 7 outputs"),
        "targets": (edited(lambda one, _m, _t: one[parameters].update(num_target="7")), "7 targets"),
        "no base": (edited(lambda one, _m, _t: one[parameters].update(base_score="[nan]")), "not finite"),
        "own objective": (edited(lambda one, _m, _t: one["objective"].update(name="mine")), "`mine`"),
        "linear": (edited(lambda one, _m, _t: one["gradient_booster"].update(name="gblinear")), "`gblinear`"),
        "categories": (
            edited(lambda _l, model, _t: [one.update(categories=[]) for one in model["trees"]]),
            "categories beyond",
        ),
        "rounds": (edited(lambda _l, one, _t: one["gbtree_model_param"].update(num_parallel_tree="4")), "no rounds"),
        "cut": (good[:800], "truncated"),
        "deep": ("[" * 100_000, "no sound XGBoost model"),
        "empty": ("", "no sound XGBoost model"),
    }  # fmt: skip


@pytest.mark.parametrize("name", lightgbm_cases())
def test_a_lightgbm_file_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    text, why = lightgbm_cases()[name]
    with pytest.raises(DrivetrainError, match=why) as refused:
        open_scorer(folder(tmp_path, {"model.txt": text.encode()}), pinned("lightgbm", "classification", LABELS[:2]))
    assert "`model.txt` is no sound LightGBM model" in str(refused.value)


@pytest.mark.parametrize("name", xgboost_cases())
def test_an_xgboost_file_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    text, why = xgboost_cases()[name]
    with pytest.raises(DrivetrainError, match=why):
        open_scorer(folder(tmp_path, {"model.json": text.encode()}), pinned("xgboost", "classification", LABELS[:2]))


def test_what_xgboost_would_take_from_a_second_key_is_never_seen_by_it(tmp_path: Path) -> None:
    """Parsers differ in which of two equal names counts; the library gets a document that has each once."""
    values, classes = table()
    booster, data = xgboost_model("binary:logistic", (classes > 0).astype(int))
    good = bytes(booster.save_raw("json")).decode()
    evil = good.replace('"parents":[', '"parents":[77777777],"parents":[', 1)
    evil = evil.replace('"tree_info":[', '"tree_info":[9],"tree_info":[')
    scorer = open_scorer(
        folder(tmp_path, {"model.json": evil.encode()}), pinned("xgboost", "classification", LABELS[:2])
    )
    check_classes(scorer.score(rows_of(values)), booster.predict(data), LABELS[:2])


MUTATIONS = 150
FUZZ = """
import random, sys
from pathlib import Path
import msgspec
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned
from drivetrain.inference.scorers import open_scorer

good, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
pinned = msgspec.json.decode(sys.argv[4], type=Pinned)
chance, raw, refused = random.Random(seed), good.read_bytes(), 0
for _ in range(count):
    changed = bytearray(raw)
    for _ in range(chance.randint(1, 3)):
        at, how = chance.randrange(len(changed)), chance.random()
        if how < 0.4:
            changed[at] = chance.randrange(256)
        elif how < 0.7:
            changed[at] = ord(chance.choice("0123456789- .[]{},"))
        elif how < 0.85:
            del changed[at : at + chance.randint(1, 20)]
        else:
            changed[at:at] = bytes(chance.choice(b"0123456789") for _ in range(chance.randint(1, 6)))
    good.write_bytes(changed)
    try:
        open_scorer(good.parent, pinned).score([[0.1] * 5, [None] * 5, [3.0] * 5])
    except DrivetrainError:
        refused += 1
print(refused)
"""


@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", ["txt", "json", "ubj", "onnx"])
def test_no_damaged_file_ends_the_process(kind: str, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    values, classes = table(missing=0)
    truth = (classes > 0).astype(int)
    format = {"txt": "lightgbm", "onnx": "onnx"}.get(kind, "xgboost")
    if kind == "txt":
        content = lightgbm_model("binary", truth).model_to_string().encode()
    elif kind == "onnx":
        forest = RandomForestClassifier(3, max_depth=3, random_state=0).fit(values, truth)
        content = to_onnx(forest, values[:1].astype(np.float32), options={"zipmap": False}).SerializeToString()
    else:
        content = bytes(xgboost_model("binary:logistic", truth)[0].save_raw(kind))
    place = folder(tmp_path, {f"model.{kind}": content})
    told = msgspec.json.encode(pinned(format, "classification", LABELS[:2])).decode()
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        FUZZ,
        str(place / f"model.{kind}"),
        str(seed),
        str(MUTATIONS),
        told,
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert int(done.stdout.split()[-1]) > MUTATIONS // 4


# ONNX


def onnx_of(model: Any, types: Any, **options: Any) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bytes(to_onnx(model, initial_types=types, options=options or None).SerializeToString())


@pytest.mark.parametrize("zipmap", [False, True])
@pytest.mark.parametrize("names", [("a", "b", "c"), (0, 1, 2)])
def test_onnx_classes_are_scikit_learns(zipmap: bool, names: tuple[Any, ...], tmp_path: Path) -> None:
    values, classes = table(missing=0)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(values, np.array(names)[classes])
    types = [("rows", FloatTensorType([None, COLUMNS]))]
    content = onnx_of(model, types, zipmap=zipmap)
    scorer = open_scorer(folder(tmp_path, {"model.onnx": content}), pinned("onnx", "classification", LABELS))
    check_classes(scorer.score(rows_of(values)), model.predict_proba(values.astype(np.float32)), LABELS)


@pytest.mark.parametrize("forest", [False, True])
def test_onnx_numbers_are_scikit_learns(forest: bool, tmp_path: Path) -> None:
    values, classes = table(missing=0)
    model = (RandomForestRegressor(5, max_depth=4, random_state=0) if forest else LinearRegression()).fit(
        values, classes
    )
    content = onnx_of(model, [("rows", FloatTensorType([None, COLUMNS]))])
    scored = open_scorer(folder(tmp_path, {"model.onnx": content}), pinned("onnx", "regression")).score(rows_of(values))
    assert [one.value for one in scored] == pytest.approx(model.predict(values.astype(np.float32)).tolist(), abs=1e-5)


MIXED = (
    Column(name="age", dtype="float"),
    Column(name="orders", dtype="int"),
    Column(name="shop", dtype="category", values=("u", "v", "w"), nullable=True),
)
ONE_EACH = [
    ("age", FloatTensorType([None, 1])), ("orders", Int64TensorType([None, 1])), ("shop", StringTensorType([None, 1])),
]  # fmt: skip


def mixed() -> tuple[bytes, Any, list[list[Any]]]:
    """(ONNX with an input per column, the model it is of, rows)."""
    chance = random.Random(3)
    rows = [[chance.randrange(18, 80) / 2, chance.randrange(9), chance.choice("uvw")] for _ in range(ROWS)]
    classes = np.array([int(row[1] > 4) ^ int(row[2] == "v") for row in rows])
    hot = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer([("shop", hot, [2]), ("numbers", "passthrough", [0, 1])])
    model = make_pipeline(columns, LogisticRegression(max_iter=1_000)).fit(np.array(rows, dtype=object), classes)
    return onnx_of(model, ONE_EACH, zipmap=False), model, rows


def test_onnx_takes_one_input_per_column_each_of_its_type(tmp_path: Path) -> None:
    content, model, rows = mixed()
    place = folder(tmp_path, {"model.onnx": content})
    scorer = open_scorer(place, pinned("onnx", "classification", ("no", "yes"), MIXED))
    check_classes(scorer.score(rows), model.predict_proba(np.array(rows, dtype=object)), ("no", "yes"))
    unknown, null, late = scorer.score([[20.0, 3, "never seen"], [20.0, 3, None], [20.0, 3.5, "u"]])
    assert unknown.scores == null.scores
    assert late.fault == "`orders` has to be a whole number: 3.5."
    other = (*MIXED[:2], Column(name="shops", dtype="category", values=("u", "v", "w")))
    with pytest.raises(DrivetrainError, match="takes no input `shops`") as refused:
        open_scorer(place, pinned("onnx", "classification", ("no", "yes"), other))
    assert refused.value.do == "Did you mean `shop`?"
    with pytest.raises(DrivetrainError, match="an input `orders`, which its signature does not name"):
        open_scorer(place, pinned("onnx", "classification", ("no", "yes"), (MIXED[0], MIXED[2])))


def graph(
    nodes: Sequence[Any], shape: Sequence[int | None], *, out: Sequence[int | None] = (None, 2), tensors: Any = ()
) -> bytes:
    """An ONNX model from `x` to `y`."""
    made = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)], list(tensors),
    )  # fmt: skip
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("mine", 1)]
    return bytes(helper.make_model(made, opset_imports=domains, ir_version=8).SerializeToString())


TWO = NUMBERS[:2]
SOFTMAX = helper.make_node("Softmax", ["x"], ["y"], axis=1)
PASSED = helper.make_node("Identity", ["x"], ["y"])


def test_plain_tensors_are_probabilities_where_they_add_up_to_one(tmp_path: Path) -> None:
    rows: list[Any] = [[1.0, 2.0], [3.0, 0.0]]
    given = pinned("onnx", "classification", LABELS[:2], TWO)
    scored = open_scorer(folder(tmp_path, {"m.onnx": graph([SOFTMAX], [None, 2])}), given).score(rows)
    assert [one.label for one in scored] == ["b", "a"]
    assert scored[0].confidence == pytest.approx(1 / (1 + np.exp(-1)))
    margins = open_scorer(folder(tmp_path, {"m.onnx": graph([PASSED], [None, 2])}), given).score([*rows, [0.25, 0.75]])
    assert ["End its graph with Softmax" in one.fault for one in margins] == [True, True, False]
    assert margins[2].label == "b"


def test_a_graph_of_one_row_at_a_time_scores_a_batch(tmp_path: Path) -> None:
    given = pinned("onnx", "classification", LABELS[:2], TWO)
    place = folder(tmp_path, {"model.onnx": graph([SOFTMAX], [1, 2], out=(1, 2))})
    assert [one.label for one in open_scorer(place, given).score([[1, 2], [2, 1], [0, 1]])] == ["b", "a", "b"]
    with pytest.raises(DrivetrainError, match="exactly 7 rows at a time"):
        open_scorer(folder(tmp_path, {"model.onnx": graph([SOFTMAX], [7, 2], out=(7, 2))}), given)


def external(location: str) -> bytes:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return graph([helper.make_node("Add", ["x", "w"], ["y"])], [None, 2], tensors=[tensor])


class Planted:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("planted"),)


def looped() -> bytes:
    """Trees of which a split is its own grandchild."""
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0], nodes_modes=["BRANCH_LEQ", "BRANCH_LEQ", "LEAF"], nodes_values=[0.0, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 2, 0], target_treeids=[0], target_nodeids=[2],
        target_ids=[0], target_weights=[1.0], n_targets=1,
    )  # fmt: skip
    return graph([node], [None, 2], out=(None, 1))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "pickle": lambda: pickle.dumps(Planted()),
    "empty": lambda: b"",
    "text": lambda: b"Dear reader,\n" * 100,
    "another format": lambda: b"\x18\x00\x00\x00ORTM" + bytes(100),
    "data beside it": lambda: external("secret.bin"),
    "data above it": lambda: external("../secret.bin"),
    "data anywhere": lambda: external("/etc/hostname"),
    "data in memory": lambda: external("*/_ORT_MEM_ADDR_/*"),
    "own operator": lambda: graph([helper.make_node("Run", ["x"], ["y"], domain="mine")], [None, 2]),
    "unknown operator": lambda: graph([helper.make_node("Exec", ["x"], ["y"])], [None, 2]),
    "circle": lambda: graph(
        [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"]),
         helper.make_node("Identity", ["b"], ["y"])], [None, 2],
    ),
    "tree in a circle": looped,
    "cut": lambda: graph([SOFTMAX], [None, 2])[:-20],
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_onnx_file_is_refused_and_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(np.array([1, 2], "<f4").tobytes())
    place = folder(tmp_path / "artifact", {"model.onnx": HOSTILE[name]()})
    (place / "secret.bin").write_bytes(np.array([1, 2], "<f4").tobytes())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DrivetrainError) as refused:
        open_scorer(place, pinned("onnx", "classification", LABELS[:2], TWO))
    assert refused.value.looked == (str(place / "model.onnx"),)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("shape", "columns", "why"),
    [
        ([None, 3], TWO, "its signature has 2 columns"),
        ([None, 2, 2], TWO, "its signature has 2 columns"),
        ([None], TWO, "its signature has 2 columns"),
        ([None, 2], (NUMBERS[0], Column(name="t", dtype="text")), "column `t` is a text"),
    ],
)
def test_a_graph_of_other_columns_is_refused(shape: Any, columns: Any, why: str, tmp_path: Path) -> None:
    place = folder(tmp_path, {"model.onnx": graph([PASSED], shape, out=shape)})
    with pytest.raises(DrivetrainError, match=why):
        open_scorer(place, pinned("onnx", "classification", LABELS[:2], columns))


# The door itself


@pytest.mark.parametrize(
    ("files", "format", "why"),
    [
        ({}, "onnx", "found: none"),
        ({"a.onnx": b"", "b.onnx": b""}, "onnx", "found: a.onnx, b.onnx"),
        ({"model.pkl": b""}, "xgboost", "one file .json or .ubj; found: none"),
        ({"calibration.json": b"{}"}, "xgboost", "found: none"),
        ({"model.joblib": b""}, "joblib", "has the format `joblib`"),
        ({"m.txt": b"tree", CALIBRATION: b"{"}, "lightgbm", "`calibration.json` is damaged"),
        ({"m.txt": b"tree", CALIBRATION: b'{"temperature": 0}'}, "lightgbm", "no positive number"),
        ({"m.txt": b"tree", CALIBRATION: b'{"temperature": "x"}'}, "lightgbm", "`calibration.json` is damaged"),
        ({"m.txt": b"tree", CALIBRATION: b" " * 70_000}, "lightgbm", "more than 65,536 bytes"),
    ],
)
def test_a_folder_that_holds_no_such_model_is_refused(
    files: dict[str, bytes], format: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(DrivetrainError, match=why):
        open_scorer(folder(tmp_path / "a", files), pinned(format, "classification", LABELS[:2]))


@pytest.mark.parametrize(
    ("task", "labels", "columns", "why"),
    [
        ("classification", LABELS, NUMBERS, "tells 2 classes apart, its signature names 3"),
        ("classification", LABELS[:2], NUMBERS[:4], "takes 5 columns, its signature names 4"),
        ("classification", LABELS[:2], (*NUMBERS[:4], Column(name="t", dtype="text")), "column `t` is a text"),
    ],
)
def test_a_booster_of_another_signature_is_refused(
    task: str, labels: Any, columns: Any, why: str, tmp_path: Path
) -> None:
    _, classes = table()
    truth = (classes > 0).astype(int)
    models = {
        "lightgbm": {"model.txt": lightgbm_model("binary", truth).model_to_string().encode()},
        "xgboost": {"model.json": bytes(xgboost_model("binary:logistic", truth)[0].save_raw("json"))},
    }
    for format, files in models.items():
        with pytest.raises(DrivetrainError, match=why):
            open_scorer(folder(tmp_path, files), pinned(format, task, labels, columns))


def test_a_regression_is_no_classification(tmp_path: Path) -> None:
    _, classes = table()
    files = {"model.txt": lightgbm_model("regression", classes).model_to_string().encode()}
    with pytest.raises(DrivetrainError, match="objective is `regression`, which gives no probabilities"):
        open_scorer(folder(tmp_path, files), pinned("lightgbm", "classification", LABELS[:2]))


def test_the_time_of_one_row_is_the_median_of_a_bounded_measurement() -> None:
    class Slow:
        def __init__(self) -> None:
            self.pinned = pinned("onnx", "regression")
            self.now_ns, self.rows = 0, 0

        def score(self, rows: Sequence[Any]) -> list[Scored]:
            self.rows += len(rows)
            self.now_ns += 40_000_000 if self.rows > 1 else 9_000_000_000
            return [Scored(value=0.0)]

    slow = Slow()
    assert scorer_time_us(slow, clock_ns=lambda: slow.now_ns) == 40_000
    assert slow.rows <= 5, "the first warms up, the rest end with their time"


def test_every_kind_of_model_can_be_measured(tmp_path: Path) -> None:
    content, _, _ = mixed()
    scorer = open_scorer(folder(tmp_path, {"model.onnx": content}), pinned("onnx", "classification", LABELS[:2], MIXED))
    assert 0 < scorer_time_us(scorer) < 100_000
    _, classes = table()
    files = {"model.txt": lightgbm_model("lambdarank", classes).model_to_string().encode()}
    assert 0 < scorer_time_us(open_scorer(folder(tmp_path, files), pinned("lightgbm", "ranking"))) < 100_000


@pytest.mark.parametrize("library", ["numpy", "lightgbm"])
def test_a_missing_library_says_what_to_install(library: str, tmp_path: Path) -> None:
    """In a process of its own, where the library cannot be found."""
    code = """
import sys
sys.modules[sys.argv[1]] = None
from pathlib import Path
from drivetrain.core.models import Column, Pinned, Signature
from drivetrain.inference.scorers import open_scorer
signature = Signature(task="regression", inputs=(Column(name="a", dtype="float"),), target="t")
try:
    open_scorer(Path(sys.argv[2]), Pinned(name="m", number=1, digest="", format="lightgbm", signature=signature))
except Exception as error:
    print(type(error).__name__, error)
"""
    place = folder(tmp_path, {"model.txt": b"tree"})
    command = [sys.executable, "-c", code, library, str(place)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50).stdout
    assert told.startswith("DrivetrainError Model `m/1` (lightgbm) needs")
    assert 'pip install "drivetrain[models]"' in told


@pytest.mark.parametrize("room", ["inference.scorers", "inference.door", "policies.compile", "gateway.worker"])
def test_who_serves_no_trained_model_imports_no_numpy(room: str) -> None:
    heavy = "{'numpy', 'lightgbm', 'onnxruntime', 'xgboost'}"
    code = f"import sys, drivetrain.{room}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.strip() == "[]"
