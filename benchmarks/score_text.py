"""One text through `linear-text` beside scikit-learn's own `predict_proba`, on banking77.

Trains a pipeline in this process (TF-IDF of words and of characters within words, logistic regression), writes it as
`linear-text`, opens it as a gateway would, and scores the whole test split one text at a time, both ways in turns of
200 texts, so that other work on the machine falls on both. Prints p50 and p99 per round, and whether the answers are
equal. A last round changes sides after every text: scikit-learn's work throws our weights out of the processor's
caches each time, as other work of a busy process does; it is told and not promised.

    python benchmarks/score_text.py [--rounds 5] [--json FILE] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, Pipeline

import machine
from drivetrain.core.models import Column, Pinned, Signature
from drivetrain.inference.linear_text import LinearTextScorer
from drivetrain.inference.linear_text_files import Block, LinearText, write_linear_text
from drivetrain.inference.scorers import open_scorer

DATA = machine.ROOT.parent / "shared" / "data" / "banking77"
P50_US_MAX, P99_US_MAX = 150, 500
"""What is promised of one text."""
DIFFERENCE_MAX = 1e-5
"""Between the probabilities of both."""
ACCURACY_LEAST = 0.85
"""A model that learned nothing gives equal answers too, and proves nothing."""
BATCH = 64
TURN = 200
"""Texts that one side scores before the other does: a few tens of milliseconds."""


def trained(texts: Sequence[str], labels: Sequence[str]) -> Pipeline:
    """The pipeline that is compared; it stops early, since the weights' last digits change no time."""
    union = FeatureUnion(
        [
            ("word", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)),
            ("char", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)),
        ]
    )
    classifier = LogisticRegression(C=20, tol=1e-3)
    return Pipeline([("values", union), ("classifier", classifier)]).fit(texts, labels)


def converted(pipeline: Pipeline, folder: Path) -> LinearTextScorer:
    """The same model as `linear-text`, opened from its files."""
    classifier = pipeline["classifier"]
    labels = tuple(classifier.classes_.tolist())
    blocks = tuple(
        Block(
            analyzer=one.analyzer,
            ngrams=one.ngram_range,
            terms=tuple(one.get_feature_names_out()),
            idf=one.idf_.astype(np.float32),
            sublinear_tf=True,
        )
        for _, one in pipeline["values"].transformer_list
    )
    model = LinearText(
        blocks=blocks, labels=labels, weights=classifier.coef_.T, bias=classifier.intercept_, link="softmax"
    )
    for name, content in write_linear_text(model).items():
        (folder / name).write_bytes(content)
    signature = Signature(
        task="classification", inputs=(Column(name="text", dtype="text"),), target="category", labels=labels
    )
    scorer = open_scorer(folder, Pinned(name="b", number=1, digest="", format="linear-text", signature=signature))
    assert isinstance(scorer, LinearTextScorer)
    return scorer


def one_round(
    texts: Sequence[str], sides: dict[str, Callable[[str], object]], turn: int
) -> dict[str, dict[str, float]]:
    """Wall and CPU microseconds of each side, in turns of so many texts."""
    wall: dict[str, list[int]] = {name: [] for name in sides}
    cpu: dict[str, list[int]] = {name: [] for name in sides}
    order = list(sides.items())
    for at in range(0, len(texts), turn):
        for name, score in order:
            for text in texts[at : at + turn]:
                cpu_start, start = time.thread_time_ns(), time.perf_counter_ns()
                score(text)
                wall[name].append(time.perf_counter_ns() - start)
                cpu[name].append(time.thread_time_ns() - cpu_start)
        order.reverse()
    return {
        name: {
            "p50_us": float(np.quantile(wall[name], 0.5)) / 1000,
            "p99_us": float(np.quantile(wall[name], 0.99)) / 1000,
            "cpu_p50_us": float(np.quantile(cpu[name], 0.5)) / 1000,
            "cpu_p99_us": float(np.quantile(cpu[name], 0.99)) / 1000,
        }
        for name in sides
    }


def told(found: dict[str, dict[str, float]]) -> str:
    """One round in a line."""
    return "   ".join(
        f"{name} p50 {one['p50_us']:6.0f} p99 {one['p99_us']:6.0f} us "
        f"(CPU {one['cpu_p50_us']:.0f}/{one['cpu_p99_us']:.0f})"
        for name, one in found.items()
    )


def questions(file: Path) -> tuple[list[str], list[str]]:
    """(texts, intents)"""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data", type=Path, default=DATA)
    asked = parser.parse_args()
    if not (asked.data / "test.csv").is_file():
        print(f"banking77 is not at {asked.data}: say where with --data")
        return 1
    facts = {**machine.described(), **{name: version(name) for name in ("numpy", "scikit-learn")}}
    for name, value in facts.items():
        print(f"{name}: {value}")

    start = time.perf_counter()
    pipeline = trained(*questions(asked.data / "train.csv"))
    print(f"trained in {time.perf_counter() - start:.0f} s")
    texts, intents = questions(asked.data / "test.csv")
    with tempfile.TemporaryDirectory() as name:
        return measured(pipeline, converted(pipeline, Path(name)), Path(name), texts, intents, facts, asked)


def measured(
    pipeline: Pipeline, scorer: LinearTextScorer, folder: Path, texts: Sequence[str], intents: Sequence[str],
    facts: dict[str, str], asked: argparse.Namespace,
) -> int:  # fmt: skip
    """Prints everything; 0 where every promise was kept."""
    expected = pipeline.predict_proba(texts)
    _, found = scorer.probabilities(texts)
    difference = float(np.abs(expected - found).max())
    labels = np.array(scorer.pinned.signature.labels)
    same = int((expected.argmax(axis=1) == found.argmax(axis=1)).sum())
    accuracy = float((labels[found.argmax(axis=1)] == np.array(intents)).mean())
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{len(texts):,} texts, {len(labels)} labels, artifact {size / 1e6:.1f} MB, accuracy {accuracy:.3f}")
    print(f"largest difference of a probability {difference:.1e}, same label on {same:,} of {len(texts):,}")

    sides: dict[str, Callable[[str], object]] = {
        "linear-text": lambda text: scorer.score([[text]]),
        "scikit-learn": lambda text: pipeline.predict_proba([text]),
    }
    for score in sides.values():
        for text in texts[:200]:
            score(text)
    rounds = []
    for number in range(asked.rounds):
        rounds.append(one_round(texts, sides, TURN))
        print(f"round {number + 1}: {told(rounds[-1])}")
    evicted = one_round(texts, sides, 1)
    print(f"changing sides after every text: {told(evicted)}")

    def median(side: str, figure: str) -> float:
        return statistics.median(one[side][figure] for one in rounds)

    start = time.perf_counter()
    for at in range(0, len(texts), BATCH):
        scorer.score([[text] for text in texts[at : at + BATCH]])
    batched_us = (time.perf_counter() - start) / len(texts) * 1e6
    p50, p99 = median("linear-text", "p50_us"), median("linear-text", "p99_us")
    ratio = median("scikit-learn", "p50_us") / p50, median("scikit-learn", "p99_us") / p99
    print(f"median of rounds: p50 {p50:.0f} us, p99 {p99:.0f} us")
    print(f"scikit-learn takes {ratio[0]:.1f} and {ratio[1]:.1f} times that")
    print(f"in batches of {BATCH}: {batched_us:.0f} us per text")
    kept = {
        f"p50 <= {P50_US_MAX} us": p50 <= P50_US_MAX,
        f"p99 <= {P99_US_MAX} us": p99 <= P99_US_MAX,
        f"difference <= {DIFFERENCE_MAX}": difference <= DIFFERENCE_MAX,
        "same label on all": same == len(texts),
        f"accuracy >= {ACCURACY_LEAST}": accuracy >= ACCURACY_LEAST,
    }
    for promise, holds in kept.items():
        print(f"{'ok    ' if holds else 'BROKEN'} {promise}")
    if asked.json:
        result: dict[str, Any] = {
            "machine": facts, "rounds": rounds, "evicted": evicted, "p50_us": p50, "p99_us": p99,
            "batched_us": batched_us, "difference": difference, "same_label": same, "texts": len(texts),
            "accuracy": accuracy, "kept": kept,
        }  # fmt: skip
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(kept.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
