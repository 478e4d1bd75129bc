"""What `drivetrain upgrade` says of real recorded outcomes, through the product's own code.

`python benchmarks/upgrade.py --help`. LLMDrift (Apache-2.0): GPT-3.5 and GPT-4 of March and June 2023, prime numbers
and code. ZeroEval (Apache-2.0): 28 pairs of eight models on 1,319 questions, in random orders; a verdict against the
sign of all questions is wrong. `verdicts.py` measures the same evidence on many more replays, as numbers; here are the
words that a person reads, which cost about 40 ms each.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from drivetrain.evals.upgrading.from_files import upgrade_from_files
from drivetrain.evals.upgrading.marking import marker_by
from drivetrain.evals.upgrading.pairs import shuffled
from drivetrain.evals.upgrading.recorded import Columns, read_recorded
from drivetrain.evals.upgrading.result import Upgrade
from drivetrain.evals.upgrading.verdict import STAY, UPGRADE, Asked, verdict_of
from drivetrain.statistics.multiple import holm
from drivetrain.statistics.paired import mcnemar
from machine import ROOT, described

DATA = ROOT.parent / "shared" / "data"
MODELS = {"GPT-3.5": ("gpt-3.5-turbo-0301", "gpt-3.5-turbo-0613"), "GPT-4": ("gpt-4-0314", "gpt-4-0613")}
PRIME_WORDS = {"GPT-3.5": UPGRADE, "GPT-4": STAY}
WRAPPED = {"GPT-3.5": (0.24, 0.46), "GPT-4": (0.0, 0.6)}
LEVEL, SURVIVORS, RIGHT_MIN = 0.95, 13, 0.95
"""Of ZeroEval: pairs that Holm's rule leaves, and in what share of orders each is told rightly."""


def main() -> int:
    """Measures and prints; 1 where a promise is broken, 2 where the data are missing."""
    options = _options()
    if not (options.data / "llmdrift").is_dir():
        print(f"The outcomes are not in {options.data}: say where with --data.", file=sys.stderr)
        return 2
    print("; ".join(described().values()), "\n")
    held, figures = _drift(options.data / "llmdrift")
    started, cpu = time.perf_counter(), time.process_time()
    pairs = _zeroeval(options.data / "zeroeval" / "gsm8k_outcomes.csv", options.orders, options.seed)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    left = [one for one in pairs if one["p_holm"] <= 1 - LEVEL]
    least = min((one["right"] for one in left), default=0.0)
    astray = max(one["wrong"] for one in pairs)
    held[f"{SURVIVORS} pairs are left by Holm's rule: {len(left)}"] = len(left) == SURVIVORS
    held[f"each told rightly in >= {RIGHT_MIN:.0%} of orders: {least:.1%}"] = least >= RIGHT_MIN
    held[f"no pair told against its sign in > {1 - LEVEL:.0%}: at most {astray:.2%}"] = astray <= 1 - LEVEL
    print(
        f"\nZeroEval: {len(pairs)} pairs in {options.orders:,} orders: {seconds:.0f} s ({cpu_seconds:.0f} CPU s), "
        f"load average {os.getloadavg()[0]:.1f}\n"
    )
    for promise, kept in held.items():
        print(f"{'holds ' if kept else 'BROKEN'}  {promise}")
    if options.json:
        found = {"machine": described(), "seed": options.seed, "llmdrift": figures, "zeroeval": pairs, "promises": held}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(held.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="upgrade.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with llmdrift/ and zeroeval/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--orders", type=int, default=100, help="random orders per pair (default 100; 1,000 take 20 minutes)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def _drift(folder: Path) -> tuple[dict[str, bool], dict[str, Any]]:
    """Promises about LLMDrift, and the figures."""
    held: dict[str, bool] = {}
    figures: dict[str, Any] = {}
    for name, models in MODELS.items():
        before, after = (f"openaichat/{one}" for one in models)
        shared: dict[str, Any] = {
            "model": "model", "before": before, "after": after, "answer": "answer", "cost": "cost",
            "latency": "latency", "tokens": "answer_token",
        }  # fmt: skip
        prime = upgrade_from_files([folder / "PRIME_FULL_EVAL.csv"], Columns(expected="ref_answer", **shared), Asked())
        print(f"PRIME {name}: {prime.verdict.word}, {prime.verdict.why}")
        for one in prime.readings:
            print(
                f"  {one.reading:<18} {one.before:.3f} -> {one.after:.3f}, unread {one.unread[0]:.3f} -> "
                f"{one.unread[1]:.3f}: {one.verdict}"
            )
        print(f"  drift: {'; '.join(prime.drift.named) or 'none'}")
        held[f"PRIME {name} March -> June is {PRIME_WORDS[name]}"] = prime.verdict.word == PRIME_WORDS[name]
        code = upgrade_from_files(
            [folder / "LEETCODE_EASY_EVAL.csv"],
            Columns(correct="Code_Submit~Accepted", cleaned="Clean_Code_Submit~Accepted", **shared), Asked(),
        )  # fmt: skip
        wrapped = tuple(many / code.pairs for many in code.drift.wrapped)
        print(f"LEETCODE {name}: {code.verdict.word}; right but wrapped {wrapped[0]:.2f} -> {wrapped[1]:.2f}")
        held[f"LEETCODE {name}: wrapped is {WRAPPED[name][0]:.2f} -> {WRAPPED[name][1]:.2f}"] = wrapped == WRAPPED[name]
        if name == "GPT-4":
            named = " ".join(prime.drift.named)
            held["the Report names the collapse of GPT-4's form and length"] = (
                "collapse in length" in named and "the format changes" in named
            )
        figures[name] = {"prime": _figures(prime), "leetcode": _figures(code), "wrapped": wrapped}
    return held, figures


def _figures(found: Upgrade) -> dict[str, Any]:
    return {
        "verdict": found.verdict.word, "settled_after": found.verdict.whole.pairs,
        "readings": {one.reading: [one.before, one.after, *one.unread, one.verdict] for one in found.readings},
        "drift": found.drift.named,
    }  # fmt: skip


def _zeroeval(file: Path, orders: int, seed: int) -> list[dict[str, Any]]:
    """Each pair: how often its verdict is the full data's sign, and the opposite."""
    with file.open(newline="", encoding="utf-8") as opened:
        models = list(dict.fromkeys(row["model"] for row in csv.DictReader(opened)))
    found = []
    for before, after in itertools.combinations(models, 2):
        columns = Columns(id="question_id", model="model", before=before, after=after, correct="correct")
        recorded = read_recorded([file], columns)
        marked = {one.id: marker_by("as_is")(one) for one in recorded.pairs}
        wins = sum(one.after.value > one.before.value for one in marked.values())
        losses = sum(one.after.value < one.before.value for one in marked.values())
        words: Counter[str] = Counter()
        for order in range(orders):
            pairs = [marked[one.id] for one in shuffled(recorded.pairs, seed * orders + order)]
            words[verdict_of(pairs, Asked()).word] += 1
        right, wrong = (UPGRADE, STAY) if wins > losses else (STAY, UPGRADE)
        found.append({
            "before": before, "after": after, "wins": wins, "losses": losses, "p": mcnemar(wins, losses).two_sided,
            "right": words[right] / orders, "wrong": words[wrong] / orders,
        })  # fmt: skip
    for one, p in zip(found, holm([float(one["p"]) for one in found]), strict=True):
        one["p_holm"] = p
    for one in sorted(found, key=lambda one: one["p_holm"]):
        print(
            f"{one['before']} -> {one['after']}".ljust(56)
            + f"{one['wins']:5d} {one['losses']:5d}  {one['p_holm']:8.1e}  {one['right']:6.1%} {one['wrong']:6.2%}"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
