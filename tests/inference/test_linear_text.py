"""`linear-text`: the same answers as scikit-learn, files that cannot be wrong unnoticed, and any text there is."""

from __future__ import annotations

import csv
import pickle
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import FeatureUnion

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.models import SCORES_MAX, Column, Pinned, Scored, Signature
from drivetrain.inference.linear_text import LinearTextScorer
from drivetrain.inference.linear_text_files import (
    BIAS,
    FILES,
    HEADER,
    HEADER_BYTES_MAX,
    IDF,
    TERMS,
    WEIGHTS,
    Block,
    LinearText,
    read_linear_text,
    write_linear_text,
)
from drivetrain.inference.rows import TEXT_CHARS_MAX
from drivetrain.inference.scorers import open_scorer
from drivetrain.inference.tokenizing import KEPT_WORDS_MAX
from support.tries import measured

pytestmark = pytest.mark.slow

BANKING = Path(__file__).parents[3] / "shared" / "data" / "banking77"
ALPHABET = (
    "aabbccdd eeffgg  hh\t\n_09.,-'äÖéßİıſ"
    "e\u0301o\u0308\u0327"  # combining accents
    "日本語عربيहिन्दी"
    "\U0001f600\U0001f468\u200d\U0001f469\ufe0f"  # emoji, joined ones
    "\x00\x07\x1c\x1d\x85\u00a0\u2028\u3000\ufdfa\ufb01"  # controls, white space of every kind, ligatures
)
WORDS = (
    "the",
    "card",
    "Card",
    "CARDS",
    "is",
    "not",
    "naïve",
    "straße",
    "İstanbul",
    "a",
    "ab",
    "x1",
    "über",
    "cafe\u0301",
)


def dice(seed: int = 0) -> random.Random:
    seed = seed or random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


def random_text(chance: random.Random) -> str:
    if chance.random() < 0.1:
        return chance.choice(["", " ", "\n\n", "a", "ab", "\x00", "\u0301", "\U0001f600"])
    words = [
        chance.choice(WORDS) if chance.random() < 0.6 else "".join(chance.choices(ALPHABET, k=chance.randint(1, 12)))
        for _ in range(chance.randint(1, 12))
    ]
    return chance.choice([" ", "  ", "\n", ", "]).join(words)


def pinned(labels: Sequence[str], **changed: Any) -> Pinned:
    fields: dict[str, Any] = {
        "task": "classification", "inputs": (Column(name="text", dtype="text"),), "target": "intent",
        "labels": tuple(labels), **changed,
    }  # fmt: skip
    return Pinned(name="triage", number=1, digest="", format="linear-text", signature=Signature(**fields))


def block_of(vectorizer: TfidfVectorizer, weight: float = 1.0) -> Block:
    """The block that counts as this fitted vectorizer does."""
    return Block(
        analyzer=vectorizer.analyzer,
        ngrams=tuple(vectorizer.ngram_range),
        terms=tuple(vectorizer.get_feature_names_out()),
        idf=vectorizer.idf_.astype(np.float32) if vectorizer.use_idf else None,
        use_idf=vectorizer.use_idf,
        lowercase=vectorizer.lowercase,
        strip_accents=vectorizer.strip_accents or "",
        stop_words=tuple(sorted(vectorizer.stop_words or ())),
        binary=vectorizer.binary,
        sublinear_tf=vectorizer.sublinear_tf,
        norm=vectorizer.norm or "",
        weight=weight,
    )


def written(folder: Path, model: LinearText) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in write_linear_text(model).items():
        (folder / name).write_bytes(content)
    return folder


def small(**changed: Any) -> LinearText:
    fields: dict[str, Any] = {
        "blocks": (
            Block(analyzer="word", ngrams=(1, 1), terms=("card", "lost"), idf=np.array([1.0, 2.0], np.float32)),
        ),
        "labels": ("no", "yes"),
        "weights": np.array([[0.0, 1.0], [0.0, 4.0]], np.float32),
        "bias": np.array([0.0, -2.0], np.float32),
        "link": "softmax",
        **changed,
    }
    return LinearText(**fields)


def opened(folder: Path, model: LinearText) -> LinearTextScorer:
    scorer = open_scorer(written(folder, model), pinned(model.labels))
    assert isinstance(scorer, LinearTextScorer)
    return scorer


def softmax(margins: Any) -> Any:
    powers = np.exp(margins - margins.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def check_equal(scored: Sequence[Scored], expected: Any, labels: Sequence[str]) -> None:
    """Same label, and every probability that is told within 1e-5; a tie of two labels may fall either way."""
    for number, (one, chances) in enumerate(zip(scored, expected, strict=True)):
        assert not one.fault, (number, one.fault)
        by_label = dict(zip(labels, chances.tolist(), strict=True))
        assert one.scores == pytest.approx({label: by_label[label] for label in one.scores}, abs=1e-5), number
        assert len(one.scores) == min(SCORES_MAX, len(labels))
        assert one.confidence == one.scores[one.label] == max(one.scores.values())
        best = np.sort(chances)[::-1]
        if best[0] - best[1] > 1e-6:
            assert one.label == labels[int(chances.argmax())], number


@pytest.fixture(scope="module")
def banking() -> tuple[FeatureUnion, LogisticRegression, list[str], list[str]]:
    """A pipeline trained on every fifth question, and all questions of the test split with their intents."""
    if not (BANKING / "test.csv").is_file():
        pytest.skip("banking77 is not beside the repository")

    def rows(name: str) -> list[dict[str, str]]:
        with (BANKING / name).open(newline="") as file:
            return list(csv.DictReader(file))

    union = FeatureUnion(
        [
            ("word", TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)),
            ("char", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)),
        ],
        transformer_weights={"word": 1.0, "char": 1.3},
    )
    train, test = rows("train.csv")[::5], rows("test.csv")
    values = union.fit_transform([row["text"] for row in train])
    classifier = LogisticRegression(C=20, tol=1e-3).fit(values, [row["category"] for row in train])
    return union, classifier, [row["text"] for row in test], [row["category"] for row in test]


def test_every_question_of_customers_gets_scikit_learns_answer_in_a_quarter_of_its_time(
    banking: Any, tmp_path: Path
) -> None:
    union, classifier, texts, intents = banking
    blocks = tuple(block_of(one, union.transformer_weights[name]) for name, one in union.transformer_list)
    labels = tuple(classifier.classes_.tolist())
    model = LinearText(
        blocks=blocks, labels=labels, weights=classifier.coef_.T, bias=classifier.intercept_, link="softmax"
    )
    scorer = opened(tmp_path, model)
    expected = classifier.predict_proba(union.transform(texts))
    scored = scorer.score([[text] for text in texts])

    assert len(texts) == 3_080
    assert float(np.mean(classifier.classes_[expected.argmax(axis=1)] == np.array(intents))) > 0.8, "the model is one"
    assert len({one.label for one in scored}) == 77
    assert [one.label for one in scored] == classifier.classes_[expected.argmax(axis=1)].tolist()
    _, probabilities = scorer.probabilities(texts)
    assert np.abs(probabilities - expected).max() <= 1e-5
    check_equal(scored, expected, labels)

    spent_us: dict[str, list[float]] = {"own": [], "scikit-learn": []}
    for text in texts[::10]:
        for side, answer in (
            ("own", lambda text: scorer.score([[text]])),
            ("scikit-learn", lambda text: classifier.predict_proba(union.transform([text]))),
        ):
            start = time.thread_time_ns()
            answer(text)
            spent_us[side].append((time.thread_time_ns() - start) / 1000)
    own, theirs = (statistics.median(spent_us[side]) for side in spent_us)
    print(f"median CPU of a text: {own:.0f} us, scikit-learn's {theirs:.0f} us")
    assert own <= theirs / 4, "benchmarks/score_text.py holds it to microseconds, on a machine of its own"


OPTIONS: dict[str, Sequence[Any]] = {
    "analyzer": ("word", "char_wb", "char"),
    "ngram_range": ((1, 1), (1, 2), (2, 3), (1, 4), (3, 3), (2, 5)),
    "lowercase": (True, False),
    "strip_accents": (None, "unicode", "ascii"),
    "norm": ("l2", "l1", None),
    "use_idf": (True, False),
    "binary": (True, False),
    "sublinear_tf": (True, False),
}


@pytest.mark.parametrize("analyzer", OPTIONS["analyzer"])
def test_any_text_counts_as_scikit_learn_counts_it_under_any_options(analyzer: str, tmp_path: Path) -> None:
    chance = dice()
    compared = 0
    for round_ in range(40):
        texts = [random_text(chance) for _ in range(30)]
        options = {name: chance.choice(values) for name, values in OPTIONS.items()} | {"analyzer": analyzer}
        if analyzer == "word" and chance.random() < 0.4:
            options["stop_words"] = ["the", "is", "card"]
        vectorizer = TfidfVectorizer(**options)
        try:
            vectorizer.fit(texts[:20])
        except ValueError:  # no text has a term of this kind
            continue
        compared += 1
        columns, labels = len(vectorizer.vocabulary_), ("a", "b", "c")
        numbers = np.random.default_rng(chance.randrange(2**32))
        weights = numbers.normal(size=(columns, 3)).astype(np.float32)
        bias = numbers.normal(size=3).astype(np.float32)
        weight = chance.choice([1.0, 0.5, 2.0])
        blocks = (block_of(vectorizer, weight),)
        model = LinearText(blocks=blocks, labels=labels, weights=weights, bias=bias, link="softmax", temperature=1.5)
        values = weight * vectorizer.transform(texts).toarray()
        expected = softmax((values @ weights.astype(np.float64) + bias) / 1.5)
        assert np.ptp(expected, axis=0).max() > 0.01, "the texts are told apart"
        try:
            check_equal(opened(tmp_path, model).score([[text] for text in texts]), expected, labels)
        except AssertionError:
            print(f"round {round_}: {options}")
            raise
    assert compared > 30


def test_one_against_the_rest_is_divided_by_its_sum(tmp_path: Path) -> None:
    texts = [f"{first} {second}" for first in ("lost", "new", "old") for second in ("card", "pin", "app", "code")]
    labels = np.repeat(["l", "n", "o"], 4)
    vectorizer = TfidfVectorizer().fit(texts)
    classifier = SGDClassifier(loss="log_loss", random_state=0).fit(vectorizer.transform(texts), labels)
    model = LinearText(
        blocks=(block_of(vectorizer),), labels=("l", "n", "o"), weights=classifier.coef_.T,
        bias=classifier.intercept_, link="sigmoid",
    )  # fmt: skip
    asked = [*texts, "lost new", "card", ""]
    check_equal(
        opened(tmp_path, model).score([[text] for text in asked]),
        classifier.predict_proba(vectorizer.transform(asked)),
        model.labels,
    )


def test_margins_and_the_temperature_make_the_confidence(tmp_path: Path) -> None:
    (plain,) = opened(tmp_path / "a", small(link="margin")).score([["lost"]])
    (cooler,) = opened(tmp_path / "b", small(link="margin", temperature=4.0)).score([["lost"]])
    assert (plain.label, cooler.label) == ("yes", "yes")
    assert plain.confidence == pytest.approx(1 / (1 + np.exp(-2)))
    assert cooler.confidence == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert list(plain.scores) == ["yes", "no"]


def test_labels_keep_their_order_where_probabilities_round_to_one(tmp_path: Path) -> None:
    model = small(weights=np.array([[50.0, 60.0], [0.0, 0.0]], np.float32), bias=np.zeros(2), link="sigmoid")
    assert [one.label for one in opened(tmp_path, model).score([["card"], ["nothing of it"]])] == ["yes", "no"]


def test_a_batch_says_of_each_text_what_it_says_of_it_alone(tmp_path: Path) -> None:
    chance = dice()
    texts = [random_text(chance) for _ in range(100)]
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3)).fit(texts)
    weights = np.random.default_rng(1).normal(size=(len(vectorizer.vocabulary_), 8))
    model = LinearText(
        blocks=(block_of(vectorizer),), labels=tuple("abcdefgh"), weights=weights, bias=np.zeros(8), link="softmax"
    )
    scorer = opened(tmp_path, model)
    alone = [scorer.score([[text]])[0] for text in texts]
    with ThreadPoolExecutor(4) as threads:
        batches = list(threads.map(lambda _: scorer.score([[text] for text in texts]), range(8)))
    for batch in batches:
        assert [one.label for one in batch] == [one.label for one in alone]
        assert [one.confidence for one in batch] == pytest.approx([one.confidence for one in alone], abs=1e-9)


def test_more_words_than_are_kept_change_no_answer(tmp_path: Path) -> None:
    block = Block(analyzer="char_wb", ngrams=(2, 3), terms=(" c", "car", "rd", "rd "), use_idf=False)
    model = small(blocks=(block,), weights=np.array([[0, 1], [0, 2], [1, 0], [0, 3]]), link="softmax")
    scorer = opened(tmp_path, model)
    (before,) = scorer.score([["my card"]])
    for start in range(0, KEPT_WORDS_MAX + 2_000, 1_000):
        scorer.score([[" ".join(f"w{number}" for number in range(start, start + 1_000))]])
    assert scorer.score([["my card"]]) == [before]
    assert before.label == "yes"


def test_a_text_that_cannot_be_scored_has_a_fault_and_the_others_stand(tmp_path: Path) -> None:
    scorer = opened(tmp_path, small())
    longest, longer = "x" * TEXT_CHARS_MAX, "x" * (TEXT_CHARS_MAX + 1)
    rows: list[Any] = [["lost card"], [longer], [None], [7], [], ["a", "b"], "lost", [longest], [""]]
    scored = scorer.score(rows)
    assert [bool(one.fault) for one in scored] == [False, True, True, True, True, True, True, False, False]
    assert (scored[0].label, scored[7].label, scored[8].label) == ("yes", "no", "no")
    assert "20,001 characters; at most 20,000" in scored[1].fault
    assert "`text` is null" in scored[2].fault
    assert "`text` has to be a text: 7" in scored[3].fault
    assert "the model takes 1: `text`" in scored[5].fault
    assert scorer.score([]) == []


def test_the_longest_text_that_is_scored_takes_less_than_a_tenth_of_a_second(tmp_path: Path) -> None:
    chance = dice()
    text = "".join(chance.choices("abcdefgh ", k=TEXT_CHARS_MAX))
    vectorizers = [TfidfVectorizer(ngram_range=(1, 2)), TfidfVectorizer(analyzer="char", ngram_range=(2, 5))]
    blocks = tuple(block_of(one.fit([text[:4_000]])) for one in vectorizers)
    columns = sum(len(block.terms) for block in blocks)
    model = small(blocks=blocks, weights=np.ones((columns, 2)))

    def scored() -> float:
        fresh = opened(tmp_path, model)  # nothing of the text is known yet
        start = time.thread_time()
        assert not fresh.score([[text]])[0].fault
        return time.thread_time() - start

    measured(0.1, scored)


def test_what_is_written_is_read_and_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = small(
        blocks=(
            Block(analyzer="word", ngrams=(1, 2), terms=("ä b", "\U0001f600"), idf=np.array([1.5, 2.5]),
                  stop_words=("the",), strip_accents="unicode", sublinear_tf=True, weight=0.5),
            Block(analyzer="char", ngrams=(1, 1), terms=("\n",), use_idf=False, norm="l1", binary=True,
                  lowercase=False),
        ),
        weights=np.arange(6.0).reshape(3, 2), temperature=0.7, link="sigmoid",
    )  # fmt: skip
    files = write_linear_text(model)
    assert set(files) == set(FILES)
    read = read_linear_text(written(tmp_path, model))
    assert write_linear_text(read) == files
    assert (read.labels, read.link, read.temperature) == (model.labels, "sigmoid", 0.7)
    for one, two in zip(read.blocks, model.blocks, strict=True):
        for name in Block.__dataclass_fields__:
            if name != "idf":
                assert getattr(one, name) == getattr(two, name), name
    assert read.blocks[0].idf is not None
    assert read.blocks[0].idf.tolist() == [1.5, 2.5]
    assert read.blocks[1].idf is None
    with pytest.raises(ValueError, match="read-only"):
        read.weights[0, 0] = 1


class Planted:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("planted"),)


HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"labels": ["no"]}, "1 labels"),
    ({"labels": ["no", "no"]}, "twice"),
    ({"link": "exec"}, "is no link"),
    ({"temperature": 0.0}, "temperature"),
    ({"temperature": -1.0}, "temperature"),
    ({"terms_bytes": 10 * 2**30}, "terms take"),
    ({"blocks": []}, "0 blocks"),
    ({"type": "linear-text.9"}, "damaged"),
    ({"labels": 7}, "damaged"),
]
BLOCKS: list[tuple[dict[str, Any], str]] = [
    ({"terms": 10**12}, "bytes of weights"),
    ({"terms": -1}, "-1 terms"),
    ({"terms": 3}, "where its header says"),
    ({"analyzer": "callable"}, "is no analyzer"),
    ({"ngrams": [0, 2]}, "n-grams from 0"),
    ({"ngrams": [2, 1]}, "n-grams from 2"),
    ({"ngrams": [1, 10_000]}, "n-grams from 1"),
    ({"norm": "max"}, "is no norm"),
    ({"strip_accents": "all"}, "is no strip_accents"),
    ({"analyzer": "char", "stop_words": ["the"]}, "stop words"),
]


@pytest.mark.parametrize(("changed", "why"), [*HEADERS, *(({"blocks.0": one}, why) for one, why in BLOCKS)])
def test_a_header_that_lies_is_refused(changed: dict[str, Any], why: str, tmp_path: Path) -> None:
    folder = written(tmp_path, small())
    header = msgspec.json.decode((folder / HEADER).read_bytes())
    header["blocks"][0] |= changed.pop("blocks.0", {})
    (folder / HEADER).write_bytes(msgspec.json.encode(header | changed))
    with pytest.raises(DrivetrainError, match=why) as refused:
        read_linear_text(folder)
    assert refused.value.looked == (str(folder),)


def test_files_that_are_not_what_they_say_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Planted())
    nan = np.array([[0, np.nan], [0, 0]], "<f4").tobytes()
    cases: dict[str, tuple[str, bytes, str]] = {
        "pickled header": (HEADER, evil, "damaged"),
        "pickled terms": (TERMS, evil, "where its header says"),
        "cut weights": (WEIGHTS, bytes(15), "15 bytes where its header says 16"),
        "more weights": (WEIGHTS, bytes(17), "17 bytes"),
        "weights that are none": (WEIGHTS, nan, "not finite"),
        "bias that is none": (BIAS, np.array([np.inf, 0], "<f4").tobytes(), "not finite"),
        "no idf": (IDF, b"", "0 bytes"),
        "terms of another kind": (TERMS, msgspec.msgpack.encode([["card", 12345]]), "damaged"),
        "terms twice": (TERMS, msgspec.msgpack.encode([["card", "card"]]), "twice"),
        "terms without end": (TERMS, b"\xdd\xff\xff\xff\xff" + bytes(7), "damaged"),
    }
    for name, (file, content, why) in cases.items():
        folder = written(tmp_path / name, small())
        if len(content) == len((folder / TERMS).read_bytes()) or file != TERMS:
            (folder / file).write_bytes(content)
        else:
            header = msgspec.json.decode((folder / HEADER).read_bytes())
            if name != "pickled terms":
                header["terms_bytes"] = len(content)
            (folder / HEADER).write_bytes(msgspec.json.encode(header))
            (folder / file).write_bytes(content)
        with pytest.raises(DrivetrainError, match=why):
            read_linear_text(folder)
    for file in FILES:
        folder = written(tmp_path / f"no {file}", small())
        (folder / file).unlink()
        with pytest.raises(DrivetrainError, match=f"lacks its file `{file}`"):
            read_linear_text(folder)
    assert not (tmp_path / "planted").exists()


def test_a_header_of_ten_gigabytes_is_not_read(tmp_path: Path) -> None:
    folder = written(tmp_path, small())
    with (folder / HEADER).open("r+b") as file:
        file.truncate(10 * 2**30)  # holes; nothing is on the disk

    def refused() -> float:
        start = time.thread_time()
        with pytest.raises(DrivetrainError, match=f"the most is {HEADER_BYTES_MAX:,}"):
            read_linear_text(folder)
        return time.thread_time() - start

    measured(0.1, refused)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"weights": np.zeros((3, 2))}, "weights has the shape"),
        ({"bias": np.zeros(3)}, "bias has the shape"),
        ({"weights": np.full((2, 2), 1e300)}, "not finite"),
        ({"blocks": (Block(analyzer="word", ngrams=(1, 1), terms=("a", "b")),)}, "uses idf and has none"),
        ({"blocks": (Block(analyzer="word", ngrams=(1, 1), terms=("a", "\ud800"), use_idf=False),)}, "surrogate"),
        ({"blocks": (Block(analyzer="word", ngrams=(1, 1), terms=("a", "a"), use_idf=False),)}, "twice"),
    ],
)
def test_a_model_that_contradicts_itself_is_not_written(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(DrivetrainError, match=why):
        write_linear_text(small(**changed))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"task": "regression", "labels": ()}, "regression of 1 columns"),
        ({"inputs": (Column(name="n", dtype="float"),)}, "one column of texts"),
        ({"inputs": tuple(Column(name=name, dtype="text") for name in "ab")}, "2 columns"),
        ({"labels": ("yes", "no")}, "not the same"),
    ],
)
def test_a_signature_of_something_else_is_refused(changed: dict[str, Any], why: str, tmp_path: Path) -> None:
    model = small()
    with pytest.raises(DrivetrainError, match=why):
        open_scorer(written(tmp_path, model), pinned(**({"labels": model.labels} | changed)))
