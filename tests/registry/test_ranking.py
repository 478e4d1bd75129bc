"""Rankings from an import to an answer: the scorer of a candidate becomes the order of a list."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from registry_world import linear_onnx, rows_and_classes
from typer.testing import CliRunner, Result

from drivetrain.cli.models import app
from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded import calls
from drivetrain.embedded.modelling import import_model, open_registry
from support.projects import settings

CODE = """
import drivetrain as dt

class Item(dt.Record):
    sku: str
    price: float
    rating: float

class Basket(dt.Record):
    sale: float
    items: list[Item]

class Shown(dt.Record):
    order: list[str]

shelf = dt.Workflow(
    "shelf", input=Basket, output=Shown, owner="a@b.example", team="shop", use_case="tests",
    route=[dt.Variant("small", model="models:/shelf@champion")],
)
"""
COLUMNS = ("price", "rating", "sale")
TERMS = ("--name", "shelf", "--columns", ",".join(COLUMNS), "--target", "order",
         "--task", "ranking", "--candidates", "items", "--candidate-id", "sku")  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "drivetrain.toml").write_text(settings())
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows/shelf.py").write_text(CODE)
    yield tmp_path
    calls.close()


def onnx_scorer(to: Path) -> Callable[[Any], Any]:
    weights = (-1.0, 0.5, 0.25)
    to.with_suffix(".onnx").write_bytes(linear_onnx(weights).SerializeToString())
    return lambda rows: rows @ weights


def lightgbm_ranker(to: Path) -> Callable[[Any], Any]:
    import lightgbm

    rows, grades = rows_and_classes()
    ranker = lightgbm.LGBMRanker(n_estimators=5, num_leaves=5, min_child_samples=5, verbose=-1, n_jobs=1)
    ranker.fit(rows, grades, group=[20] * 10)
    ranker.booster_.save_model(to.with_suffix(".txt"))
    return ranker.predict


def xgboost_ranker(to: Path) -> Callable[[Any], Any]:
    import xgboost

    rows, grades = rows_and_classes()
    ranker = xgboost.XGBRanker(n_estimators=5, max_depth=3, objective="rank:ndcg", n_jobs=1)
    ranker.fit(rows, grades, group=[20] * 10)
    ranker.save_model(to.with_suffix(".json"))
    return ranker.predict


@pytest.mark.parametrize(
    "make",
    [
        onnx_scorer,
        pytest.param(lightgbm_ranker, marks=pytest.mark.slow),
        pytest.param(xgboost_ranker, marks=pytest.mark.slow),
    ],
)
def test_an_imported_ranking_orders_the_candidates_of_a_call(root: Path, make: Any) -> None:
    import numpy as np

    score = make(root / "scorer")
    (file,) = root.glob("scorer.*")
    said = run(root, "import", str(file), *TERMS)
    assert said.exit_code == 0, said.output
    signature = open_registry(root).find("shelf").signature
    assert (signature.task, signature.candidates, signature.candidate_id) == ("ranking", "items", "sku")
    assert run(root, "alias", "shelf", "champion", "1", "--reason", "first").exit_code == 0

    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    sale = chance.gauss(0, 1)
    items = [{"sku": f"s{n}", "price": chance.gauss(0, 1), "rating": chance.gauss(0, 1)} for n in range(30)]
    result = calls.call(root, "shelf", json.dumps({"sale": sale, "items": items}).encode())
    assert result.error is None, result.error
    scores = score(np.array([[one["price"], one["rating"], sale] for one in items]))
    found = [int(sku[1:]) for sku in result.output.order]
    assert sorted(found) == list(range(30))
    assert all(scores[one] >= scores[other] - 1e-6 for one, other in pairwise(found))
    assert len(set(np.round(scores, 6))) >= 3, "else any order were right"


@pytest.mark.slow
def test_a_ranker_of_python_is_compared_with_the_original_candidate_by_candidate(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightgbm

    rows, grades = rows_and_classes()
    ranker = lightgbm.LGBMRanker(n_estimators=5, num_leaves=5, min_child_samples=5, verbose=-1, n_jobs=1)
    ranker.fit(rows, grades, group=[20] * 10)
    given: dict[str, Any] = {"sample": rows, "columns": COLUMNS, "target": "order", "project": root}
    made = import_model(ranker, "shelf", candidates="items", candidate_id="sku", **given)
    assert (made.format, made.signature.task) == ("lightgbm", "ranking")
    monkeypatch.setattr(ranker, "predict", lambda rows: [0.125] * len(rows))  # the original says something else
    with pytest.raises(DrivetrainError, match=r"differs from the original on \d+ of 200 rows"):
        import_model(ranker, "shelf", candidates="items", candidate_id="sku", **given)
    assert open_registry(root).numbers("shelf") == [1]


def test_a_classifier_of_two_classes_ranks_by_the_second(root: Path) -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="the extra `train` is not installed")
    rows, grades = rows_and_classes()
    fitted = linear.LogisticRegression().fit(rows, grades > 0)
    terms: dict[str, Any] = {"candidates": "items", "candidate_id": "sku", "columns": COLUMNS, "project": root}
    made = import_model(fitted, "shelf", sample=rows, **terms)
    assert (made.format, made.signature.task, made.signature.labels) == ("onnx", "ranking", ())
    with pytest.raises(DrivetrainError, match="none of them says what is better"):
        import_model(linear.LogisticRegression().fit(rows, grades), "shelf", sample=rows, **terms)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--task", "ranking"), "Name both: `--candidates items --candidate-id sku`"),
        (("--candidates", "items"), "Name both"),
        (("--task", "rankin"), "Did you mean `ranking`"),
        (("--task", "regression", "--candidates", "items", "--candidate-id", "sku"), "has no candidates"),
        (("--task", "ranking", "--candidates", "i", "--candidate-id", "s", "--label", "a"), "has no labels"),
    ],
)
def test_terms_that_make_no_ranking_are_told(root: Path, given: tuple[str, ...], said: str) -> None:
    onnx_scorer(root / "scorer")
    ran = run(root, "import", str(root / "scorer.onnx"), "--name", "shelf", *given)
    assert (ran.exit_code, said in ran.output) == (1, True), ran.output
    assert open_registry(root).names() == []


def run(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--project", str(root)])
