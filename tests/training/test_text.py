"""Text classification: what is served is what was trained, what is promised was measured on rows held out."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import Pinned
from drivetrain.core.recipes import Examples, TextClassification, Trained
from drivetrain.inference.linear_text import LinearTextScorer
from drivetrain.inference.linear_text_files import read_linear_text
from drivetrain.training import text_models
from drivetrain.training.calibration import ece
from drivetrain.training.progress import progress_on
from drivetrain.training.text import train_text
from drivetrain.training.thresholds import threshold_for

pytestmark = pytest.mark.slow

BANKING77 = Path(__file__).parents[3] / "shared" / "data" / "banking77"
TOPICS = {
    "card arrival": "when will my new card arrive in the mail post delivery envelope",
    "zurück überweisen": "überweisung rückgängig geld zurück konto größe straße möchte",
    "取消": "取消 订单 请 帮 我 不要 了 谢谢 cancel order",
    "top up": "top up money balance failed pending add funds deposit",
}


def dice() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


def texts_of(rng: random.Random, count: int, topics: Sequence[str] = tuple(TOPICS)) -> tuple[list[str], list[str]]:
    """(texts, labels): words of the label's topic, and of all topics."""
    every = " ".join(TOPICS.values()).split()
    labels = [topics[number % len(topics)] for number in range(count)]
    texts = [
        " ".join(rng.choices(TOPICS[label].split(), k=rng.randrange(3, 7)) + rng.choices(every, k=rng.randrange(4)))
        for label in labels
    ]
    return texts, labels


def trained(
    texts: Sequence[Any], labels: Sequence[Any], recipe: TextClassification | None = None, **more: Any
) -> Trained:
    """By a recipe with three folds, where none is given."""
    options = {"text": "text", "label": "topic", "seed": 0, "groups": None, **more}
    weights = options.pop("weights", None)
    return train_text(
        Examples(columns={"text": texts}, labels=labels, weights=weights),
        recipe or TextClassification(folds=3),
        progress=options.pop("progress", lambda _stage, _share: None),
        **options,
    )


def served(model: Trained, folder: Path) -> LinearTextScorer:
    """As a gateway loads it."""
    folder.mkdir(exist_ok=True)
    for name, content in model.files.items():
        (folder / name).write_bytes(content)
    pinned = Pinned(name="topics", number=1, digest="", format=model.format, signature=model.signature)
    return LinearTextScorer(pinned, read_linear_text(folder))


def right_out_of_fold(model: Trained, labels: Sequence[str]) -> np.ndarray:
    order = np.array(model.signature.labels)
    return order[np.array(model.predictions).argmax(axis=1)] == np.array(labels)


@pytest.mark.parametrize("topics", [tuple(TOPICS), ("card arrival", "top up")])
def test_what_is_served_knows_new_texts_and_how_sure_it_may_be(tmp_path: Path, topics: tuple[str, ...]) -> None:
    rng = dice()
    model = trained(*texts_of(rng, 600, topics))
    texts, labels = texts_of(rng, 400, topics)
    answers = served(model, tmp_path).score([[text] for text in texts])
    right = [answer.label == label for answer, label in zip(answers, labels, strict=True)]
    assert np.mean(right) > 0.9
    assert abs(np.mean([answer.confidence for answer in answers]) - np.mean(right)) < 0.06
    assert model.signature.labels == tuple(sorted(topics))
    assert (model.signature.target, model.signature.inputs[0].name) == ("topic", "text")


def test_out_of_fold_scores_come_from_the_same_kind_of_model_as_the_served_one(tmp_path: Path) -> None:
    texts, labels = texts_of(dice(), 400)
    model = trained(texts, labels)
    ours = np.array(model.predictions)
    assert ours.shape == (400, len(TOPICS))
    assert ours.sum(axis=1) == pytest.approx(np.ones(400))
    fitted = served(model, tmp_path).probabilities(texts)[1]
    assert (ours.argmax(axis=1) == fitted.argmax(axis=1)).mean() > 0.9
    assert model.facts["accuracy_out_of_fold"] == pytest.approx(right_out_of_fold(model, labels).mean())


def test_the_same_seed_gives_the_same_bits_and_another_other_folds() -> None:
    texts, labels = texts_of(dice(), 300)
    once, again, other = (trained(texts, labels, seed=seed) for seed in (7, 7, 8))
    assert once.files == again.files
    assert once.predictions == again.predictions
    assert once.predictions != other.predictions


def test_what_nothing_can_be_learnt_from_is_not_known_out_of_fold(tmp_path: Path) -> None:
    rng = dice()
    texts = [f"{rng.getrandbits(64):x} {rng.getrandbits(64):x}" for _ in range(480)]
    labels = [rng.choice("ab") for _ in texts]
    model = trained(texts, labels)
    order = np.array(model.signature.labels)
    fitted = order[served(model, tmp_path).probabilities(texts)[1].argmax(axis=1)] == np.array(labels)
    assert fitted.mean() > 0.95
    assert right_out_of_fold(model, labels).mean() < 0.65
    # So the confidence is as low as it has to be.
    assert np.array(model.predictions).max(axis=1).mean() < 0.75


def test_rows_of_one_group_or_one_text_never_help_each_other() -> None:
    rng = dice()
    kinds = [(f"{rng.getrandbits(64):x}", rng.choice("ab")) for _ in range(300)]  # so many that luck does not matter
    labels = [label for _, label in kinds for _ in range(4)]
    same = [text.upper() if copy % 2 else f" {text} " for text, _ in kinds for copy in range(4)]
    alike = [f"{text} {word}" for text, _ in kinds for word in ("one", "two", "three", "four")]
    groups = [text for text, _ in kinds for _ in range(4)]
    assert right_out_of_fold(trained(alike, labels), labels).mean() > 0.9
    assert right_out_of_fold(trained(alike, labels, groups=groups), labels).mean() < 0.75
    assert right_out_of_fold(trained(same, labels), labels).mean() < 0.75
    # Groups that have a text in common are one.
    pairs = [f"{group} {number % 4 // 2}" for number, group in enumerate(groups)]
    joined = [text if number % 4 in (1, 2) else f"{text} x" for number, text in enumerate(same)]
    assert right_out_of_fold(trained(joined, labels, groups=pairs), labels).mean() < 0.75


def test_terms_and_their_weights_are_scikit_learns(tmp_path: Path) -> None:
    texts, labels = texts_of(dice(), 200)
    folder = tmp_path / "model"
    served(trained(texts, labels), folder)
    word, char = read_linear_text(folder).blocks
    for block, ngrams in ((word, (1, 2)), (char, (2, 5))):
        theirs = TfidfVectorizer(analyzer=block.analyzer, ngram_range=ngrams, sublinear_tf=True).fit(texts)
        assert list(block.terms) == theirs.get_feature_names_out().tolist()
        assert block.idf == pytest.approx(theirs.idf_, rel=1e-6)
    counted = text_models.count(texts, "char_wb", (2, 5))
    rows = np.arange(0, 200, 2)
    ours = text_models.values_of([counted], [text_models.weigh(counted, rows, 0)], rows)
    fold = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    assert abs(ours - fold.fit_transform([texts[row] for row in rows])).max() < 1e-6


def test_the_logistic_regression_finds_scikit_learns_minimum() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = dice()
    texts, labels = texts_of(rng, 200)
    counted = text_models.count(texts, "word", (1, 1))
    every = np.arange(200)
    values = text_models.values_of([counted], [text_models.weigh(counted, every, 0)], every)
    truth = np.unique(labels, return_inverse=True)[1]
    weights = np.array([rng.choice([0.5, 1.5]) for _ in labels])
    theirs = LogisticRegression(C=text_models.LOGISTIC_C, tol=1e-8, max_iter=1_000).fit(
        values.astype(np.float64), truth, sample_weight=weights
    )
    ours = text_models.fit_logistic(values, truth, 4, weights, steps=300, tolerance=0)
    expected = theirs.decision_function(values)
    found = ours.scores(values)
    found -= (found - expected).mean(axis=1, keepdims=True)
    assert found == pytest.approx(expected, abs=0.05)


def test_a_row_weighs_as_much_as_it_says(tmp_path: Path) -> None:
    rng = dice()
    texts, labels = texts_of(rng, 120, ("card arrival", "top up"))
    texts += [f"undecided case number {number}" for number in range(60)]
    labels += ["card arrival", "top up"] * 30
    for heavy, name in (("card arrival", "one"), ("top up", "other")):
        model = trained(texts, labels, weights=[20.0 if label == heavy else 1.0 for label in labels])
        assert served(model, tmp_path / name).score([["undecided case"]])[0].label == heavy


def test_odd_texts_and_rare_labels_train(tmp_path: Path) -> None:
    texts, labels = texts_of(dice(), 90)
    texts += ["", "   ", "\ud83d half", "🙂" * 30, "a\x00b", "long " * 10_000, "the only one of its kind"]
    labels += ["top up"] * 6 + ["label with spaces, and a comma"]
    model = trained(texts, labels, TextClassification(folds=5))
    assert len(model.predictions) == len(texts)
    assert "label with spaces, and a comma" in model.signature.labels
    scorer = served(model, tmp_path)
    assert scorer.score([["the only one of its kind"]])[0].label == "label with spaces, and a comma"
    answer = scorer.score([[""]])[0]
    assert answer.fault == ""
    assert sum(answer.scores.values()) == pytest.approx(1)


def test_labels_that_are_no_texts_are_told_as_text() -> None:
    texts, _ = texts_of(dice(), 40)
    assert trained(texts, [number % 4 for number in range(40)]).signature.labels == ("0", "1", "2", "3")


def test_only_the_most_frequent_terms_are_kept_where_a_recipe_says_so(tmp_path: Path) -> None:
    texts, labels = texts_of(dice(), 200)
    served(trained(texts, labels, TextClassification(folds=3, features_max=20)), tmp_path)
    word, char = read_linear_text(tmp_path).blocks
    assert (len(word.terms), len(char.terms)) == (20, 20)
    theirs = TfidfVectorizer(ngram_range=(1, 1)).fit(texts)
    counts = {term: sum(text.lower().split().count(term) for text in texts) for term in theirs.vocabulary_}
    assert max(counts, key=lambda term: counts[term]) in word.terms
    only_words = trained(texts, labels, TextClassification(folds=3, char_ngrams=(0, 0)))
    served(only_words, tmp_path / "words")
    assert [block.analyzer for block in read_linear_text(tmp_path / "words").blocks] == ["word"]


@pytest.mark.parametrize(
    ("texts", "labels", "said"),
    [
        ([], [], "there are no rows"),
        (["one", "two"], ["a", "a"], "every row has `a`"),
        (["one", "two"], ["a", "b"], "too few rows to calibrate"),
        (["one", "two", "three"], ["a", None, "b"], "1 of 3 rows have no `topic`"),
        (["one", None, "three"], ["a", "b", "b"], "Row 1 of column `text` holds NoneType"),
        (["one thing"] * 4 + ["another"] * 4, ["a"] * 4 + ["b"] * 4, "too few rows to calibrate"),
        (["same"] * 8, ["a", "b"] * 4, "cannot be parted"),
    ],
)
def test_rows_that_cannot_train_are_refused(texts: list[Any], labels: list[Any], said: str) -> None:
    with pytest.raises(DrivetrainError, match=said) as refused:
        trained(texts, labels)
    assert refused.value.do


def test_a_recipe_that_cannot_be_followed_is_refused() -> None:
    texts, labels = texts_of(dice(), 40)
    for recipe, said in (
        (TextClassification(word_ngrams=(2, 1)), "`word_ngrams=.2, 1.` is no range"),
        (TextClassification(word_ngrams=(0, 0), char_ngrams=(0, 0)), "neither words nor characters"),
        (TextClassification(folds=1), "2 to 20 folds"),
        (TextClassification(features_max=-1), "no negative `features_max`"),
    ):
        with pytest.raises(DrivetrainError, match=said):
            trained(texts, labels, recipe)
    with pytest.raises(DrivetrainError, match="No text has a single term"):
        trained(list("abcdefgh"), list("xy") * 4, TextClassification(char_ngrams=(0, 0)))
    with pytest.raises(DrivetrainError, match="no column `body`"):
        trained(texts, labels, text="body")
    for weights in ([0.0] * 40, [float("nan")] * 40, [-1.0] + [1.0] * 39):
        with pytest.raises(DrivetrainError, match="not a positive number"):
            trained(texts, labels, weights=weights)


def test_more_weights_than_fit_are_refused_with_the_number_that_does() -> None:
    rng = dice()
    texts = [" ".join(f"{rng.getrandbits(64):x}" for _ in range(600)) for _ in range(300)]
    labels = [f"label {number}" for number in range(300)]
    with pytest.raises(DrivetrainError, match="more weights than") as refused:
        trained(texts, labels, TextClassification(word_ngrams=(1, 1), char_ngrams=(0, 0)))
    assert "features_max=166666" in refused.value.do


def test_progress_is_told_in_stages_as_lines_where_nobody_looks() -> None:
    told = io.StringIO()
    with progress_on(told, name="topics") as progress:
        trained(*texts_of(dice(), 60), progress=progress)
    lines = told.getvalue().splitlines()
    assert lines[0] == "  0%  topics: counting terms"
    assert lines[-1] == "100%  topics: done"
    assert [line[6:] for line in lines[1:5]] == [
        "topics: fold 1 of 3", "topics: fold 2 of 3", "topics: fold 3 of 3", "topics: all rows"
    ]  # fmt: skip


class Terminal(io.StringIO):
    """What is looked at."""

    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal() -> None:
    told = Terminal()
    with progress_on(told, name="topics") as progress:
        progress("[fold] 1 of 3", 0.5)
        progress("done", 7.0)
    assert "topics: done" in told.getvalue()
    assert "100%" in told.getvalue()


@pytest.mark.timeout(900)
@pytest.mark.skipif(not (BANKING77 / "test.csv").is_file(), reason="banking77 is not beside the repository")
def test_banking77_is_as_accurate_calibrated_and_safe_as_promised(tmp_path: Path) -> None:
    texts, labels = {}, {}
    for split in ("train", "test"):
        rows = list(csv.DictReader((BANKING77 / f"{split}.csv").open(encoding="utf-8", newline="")))
        texts[split], labels[split] = ([row[name] for row in rows] for name in ("text", "category"))
    model = trained(texts["train"], labels["train"], TextClassification())
    found = threshold_for(np.array(model.predictions).max(axis=1), right_out_of_fold(model, labels["train"]), 0.02)
    chances = served(model, tmp_path).probabilities(texts["test"])[1]
    confidence = chances.max(axis=1)
    right = np.array(model.signature.labels)[chances.argmax(axis=1)] == np.array(labels["test"])
    assert right.mean() >= 0.91
    assert ece(confidence, right) <= 0.02
    assert found.threshold is not None
    answered = confidence >= found.threshold
    assert answered.mean() >= 0.75
    assert 1 - right[answered].mean() <= 0.02
    assert sum(map(len, model.files.values())) < 64_000_000
