"""How often a verdict about an upgrade is wrong, and how often there is one: on 28 pairs of models and real outcomes.

`python benchmarks/verdicts.py --help`. 1,319 questions of GSM8K, answered by eight models (ZeroEval, Apache-2.0). Null
replays keep each pair's questions and flip which of the two was right, by a coin, wherever just one was: there is no
difference then, and every verdict is wrong. All is looked at after every 50 examples, with evidence that is made for it
and, beside it, with the z-test that is not. Many replays are one table of evidence by wins and losses; that this table
says what `first_settled` says is checked first, as is that one look without peeking is McNemar's exact test.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from drivetrain.statistics.comparing import BETTER, LOOK_EVERY, WORSE, compare, first_settled
from drivetrain.statistics.evidence import log_evidence_of_counts
from drivetrain.statistics.multiple import holm
from machine import ROOT, described

DATA = ROOT.parent / "shared" / "data" / "zeroeval" / "gsm8k_outcomes.csv"
LEVEL = 0.95
Z = 1.959964
"""What the z-test asks for, two-sided at this level."""
WRONG_MAX, SECONDS_MAX = 1 - LEVEL, 10.0
"""Of null replays, for each pair; and for all replays of all pairs."""
FROM, TO, SAMPLE, POWER_MIN = "claude-3-5-haiku-20241022", "claude-3-5-sonnet-20241022", 500, 0.50
"""The upgrade whose power is promised, with the one-sided evidence at so many examples."""
SURVIVORS, RIGHT_MIN = 13, 0.95
"""Pairs that are left by Holm's rule; each is decided rightly in so many of the orders."""
CHECKS = 60
"""Replays that are also put to `first_settled`."""

Outcomes = NDArray[np.int8]
"""1: only the second model is right; -1: only the first; 0: both or none."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What was measured of two models."""

    first: str
    second: str
    wins: int
    losses: int
    p_holm: float
    """McNemar's exact p on all questions, adjusted for 28 pairs."""
    null_wrong: float
    """Null replays that end with a verdict."""
    null_wrong_one_sided: float
    """Null replays that call the second one better, by the one-sided evidence whose power is measured below."""
    null_wrong_z: float
    """As `null_wrong`, by the z-test."""
    right: float
    """Random orders that end with the verdict of the full data's sign."""
    wrong: float
    """Random orders that end with the opposite one."""
    examples: float
    """How many it took, in the middle of all orders; all of them where there was no verdict."""


@dataclass(frozen=True, kw_only=True)
class Null:
    """Shares of null replays that end with a verdict, by three tests."""

    two_sided: float
    one_sided: float
    z_test: float


@dataclass(frozen=True, kw_only=True)
class Power:
    """How often one upgrade is seen in samples of `SAMPLE` questions."""

    drawn: str
    anytime: float
    """One-sided evidence at any of the looks."""
    anytime_two_sided: float
    fixed_one_sided: float
    """McNemar's exact test in one look at the end."""
    fixed: float


def main() -> int:
    """Measures and prints; 1 where a promise is broken, 2 where the data are missing."""
    options = _options()
    if not options.data.is_file():
        print(f"The outcomes are not at {options.data}: say where with --data.", file=sys.stderr)
        return 2
    models, right = _read(options.data)
    pairs = list(itertools.combinations(range(len(models)), 2))
    outcomes = [(right[second] - right[first]).astype(np.int8) for first, second in pairs]
    random = np.random.default_rng(options.seed)
    looks = _looks(right.shape[1])
    machine = "; ".join(described().values())
    print(f"{len(models)} models, {right.shape[1]:,} questions, seed {options.seed}; {machine}\n")
    agreeing = _agree(outcomes, random)

    started, cpu = time.perf_counter(), time.process_time()
    table = Evidence(max(int(np.count_nonzero(one)) for one in outcomes))
    nulls = [_null(one, table, looks, options.replays, random) for one in outcomes]
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu

    exact = [binomtest(int(np.sum(one > 0)), int(np.count_nonzero(one))).pvalue for one in outcomes]
    measured = []
    for (first, second), one, p, null in zip(pairs, outcomes, holm(exact), nulls, strict=True):
        good, bad, examples = _orders(one, table, looks, options.orders, random)
        measured.append(
            Pair(
                first=models[first], second=models[second], wins=int(np.sum(one > 0)), losses=int(np.sum(one < 0)),
                p_holm=p, null_wrong=null.two_sided, null_wrong_one_sided=null.one_sided, null_wrong_z=null.z_test,
                right=good, wrong=bad, examples=examples,
            )
        )  # fmt: skip
    upgrade = (right[models.index(TO)] - right[models.index(FROM)]).astype(np.int8)
    powers = [_power(upgrade, table, options.samples, random, again=again) for again in (False, True)]

    _print(measured, powers)
    held = _promises(measured, powers, seconds, agreeing)
    print(
        f"\n{options.replays:,} null replays of {len(pairs)} pairs, {len(looks)} looks each: {seconds:.1f} s "
        f"({cpu_seconds:.1f} CPU s), load average {os.getloadavg()[0]:.1f}\n"
    )
    for promise, kept in held.items():
        print(f"{'holds ' if kept else 'BROKEN'}  {promise}")
    if options.json:
        found = {
            "machine": described(), "seed": options.seed, "seconds": seconds, "pairs": [asdict(o) for o in measured],
            "power": [asdict(one) for one in powers], "promises": held,
        }  # fmt: skip
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(held.values()) else 1


class Evidence:
    """The evidence of every number of wins and losses up to `most` pairs that differ, looked up."""

    def __init__(self, most: int) -> None:
        counts = np.arange(most + 1)
        self._better = log_evidence_of_counts(counts[:, None], counts[None, :])

    def better(self, wins: NDArray[np.int64], losses: NDArray[np.int64], tail: float) -> NDArray[np.bool_]:
        """Whether the evidence for the winner reaches 1 / tail."""
        reached: NDArray[np.bool_] = self._better[wins, losses] >= np.log(1 / tail)
        return reached


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="verdicts.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=DATA, help="question_id,model,correct,...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replays", type=int, default=2_000, help="null replays per pair (default 2,000)")
    parser.add_argument("--orders", type=int, default=1_000, help="random orders per pair (default 1,000)")
    parser.add_argument("--samples", type=int, default=20_000, help="of 500 questions, for power (default 20,000)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def _read(file: Path) -> tuple[list[str], NDArray[np.int8]]:
    """Models, and which questions each has right, shape (models, questions)."""
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    models = {name: place for place, name in enumerate(dict.fromkeys(row["model"] for row in rows))}
    questions = {name: place for place, name in enumerate(dict.fromkeys(row["question_id"] for row in rows))}
    right = np.full((len(models), len(questions)), -1, dtype=np.int8)
    for row in rows:
        right[models[row["model"]], questions[row["question_id"]]] = int(row["correct"])
    if (right < 0).any():
        raise SystemExit("some model has no outcome for some question")
    return list(models), right


def _looks(count: int) -> NDArray[np.int64]:
    """After how many examples one looks."""
    return np.unique(np.append(np.arange(LOOK_EVERY, count, LOOK_EVERY), count))


def _counted(outcomes: Outcomes, looks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Wins and losses at each look, shape (replays, looks)."""
    edges = np.append(0, looks[:-1])
    wins, losses = (np.add.reduceat(outcomes == side, edges, axis=1, dtype=np.int64) for side in (1, -1))
    return wins.cumsum(axis=1), losses.cumsum(axis=1)


def _null(
    outcomes: Outcomes, table: Evidence, looks: NDArray[np.int64], replays: int, random: np.random.Generator
) -> Null:
    """How often null replays of one pair end with a verdict."""
    differ = np.flatnonzero(outcomes)
    signs = random.integers(0, 2, size=(replays, len(differ)), dtype=np.int8) * 2 - 1
    # Which pairs differ stays as it is, so only those are flipped and counted.
    before = np.searchsorted(differ, looks)
    total = np.concatenate([np.zeros((replays, 1), dtype=np.int64), signs.cumsum(axis=1, dtype=np.int64)], axis=1)
    ahead = total[:, before]
    wins, losses = (before + ahead) // 2, (before - ahead) // 2
    tail = (1 - LEVEL) / 2
    verdict = table.better(wins, losses, tail) | table.better(losses, wins, tail)
    z = np.abs(ahead) / np.sqrt(np.maximum(before, 1))
    return Null(
        two_sided=float(verdict.any(axis=1).mean()),
        one_sided=float(table.better(wins, losses, 2 * tail).any(axis=1).mean()),
        z_test=float((z >= Z).any(axis=1).mean()),
    )


def _orders(
    outcomes: Outcomes, table: Evidence, looks: NDArray[np.int64], orders: int, random: np.random.Generator
) -> tuple[float, float, float]:
    """Shares of random orders whose first verdict is right, and wrong; and the examples it took."""
    shuffled = random.permuted(np.tile(outcomes, (orders, 1)), axis=1)
    wins, losses = _counted(shuffled, looks)
    tail = (1 - LEVEL) / 2
    better, worse = table.better(wins, losses, tail), table.better(losses, wins, tail)
    decided = better | worse
    at = np.where(decided.any(axis=1), decided.argmax(axis=1), -1)
    said = np.where(at >= 0, np.where(better[np.arange(orders), at], 1, -1), 0)
    sign = np.sign(int(outcomes.sum()))
    return float((said == sign).mean()), float((said == -sign).mean()), float(np.median(looks[at]))


def _power(outcomes: Outcomes, table: Evidence, samples: int, random: np.random.Generator, *, again: bool) -> Power:
    """again: whether a question may be drawn more than once."""
    looks = _looks(SAMPLE)
    drawn = np.empty((samples, SAMPLE), dtype=np.int8)
    for place in range(samples):
        drawn[place] = random.choice(outcomes, SAMPLE, replace=again)
    wins, losses = _counted(drawn, looks)
    exact = {
        (won, lost): (binomtest(won, won + lost).pvalue, binomtest(won, won + lost, alternative="greater").pvalue)
        for won, lost in set(zip(wins[:, -1].tolist(), losses[:, -1].tolist(), strict=True)) if won + lost
    }  # fmt: skip
    ends = list(zip(wins[:, -1].tolist(), losses[:, -1].tolist(), strict=True))
    found = [exact.get(end, (1.0, 1.0)) for end in ends]
    tail = 1 - LEVEL
    return Power(
        drawn="with replacement" if again else "without replacement",
        anytime=float(table.better(wins, losses, tail).any(axis=1).mean()),
        anytime_two_sided=float(table.better(wins, losses, tail / 2).any(axis=1).mean()),
        fixed_one_sided=sum(p <= tail for _, p in found) / samples,
        fixed=sum(p <= tail and won > lost for (p, _), (won, lost) in zip(found, ends, strict=True)) / samples,
    )


def _agree(outcomes: list[Outcomes], random: np.random.Generator) -> dict[str, bool]:
    """Whether what is measured here is what the package says."""
    table = Evidence(max(int(np.count_nonzero(one)) for one in outcomes))
    anytime = fixed = True
    for number in range(CHECKS):
        one = random.permutation(outcomes[number % len(outcomes)])
        before, after = (one < 0).astype(int).tolist(), (one > 0).astype(int).tolist()
        looks = _looks(len(one))
        wins, losses = _counted(one[None, :], looks)
        tail = (1 - LEVEL) / 2
        better, worse = table.better(wins, losses, tail)[0], table.better(losses, wins, tail)[0]
        settled = first_settled(before, after, level=LEVEL)
        at = int((better | worse).argmax()) if (better | worse).any() else len(looks) - 1
        expected = BETTER if better[at] else WORSE if worse[at] else None
        anytime &= settled.pairs == looks[at] and (settled.verdict == expected or not (expected or settled.settled))
        looked = compare(before[:SAMPLE], after[:SAMPLE], level=LEVEL, mode="fixed")
        p = binomtest(looked.wins, looked.wins + looked.losses).pvalue if looked.wins + looked.losses else 1.0
        fixed &= abs(looked.p_value - p) < 1e-9 and looked.settled == (p <= 1 - LEVEL)
    return {
        f"the table says what first_settled says, in {CHECKS} replays": bool(anytime),
        f"one look is McNemar's exact test, in {CHECKS} samples": bool(fixed),
    }


def _promises(measured: list[Pair], powers: list[Power], seconds: float, agreeing: dict[str, bool]) -> dict[str, bool]:
    left = [one for one in measured if one.p_holm <= 1 - LEVEL]
    most = max(max(one.null_wrong, one.null_wrong_one_sided) for one in measured)
    least = min((one.right for one in left), default=0.0)
    power, astray = min(one.anytime for one in powers), max(one.wrong for one in measured)
    return {
        **agreeing,
        f"wrong verdicts in null replays <= {WRONG_MAX:.0%} for every pair: at most {most:.2%}": most <= WRONG_MAX,
        f"all pairs in <= {SECONDS_MAX:.0f} s: {seconds:.1f} s": seconds <= SECONDS_MAX,
        f"power of the one-sided evidence >= {POWER_MIN:.2f}: {power:.3f}": power >= POWER_MIN,
        f"{SURVIVORS} pairs are left by Holm's rule: {len(left)}": len(left) == SURVIVORS,
        f"each of them decided rightly in >= {RIGHT_MIN:.0%} of orders: {least:.1%}": least >= RIGHT_MIN,
        f"no pair decided against its sign in > {WRONG_MAX:.0%} of orders: at most {astray:.2%}": astray <= WRONG_MAX,
    }


def _print(measured: list[Pair], powers: list[Power]) -> None:
    print(f"{'':69}  Holm   null replays: wrong verdicts    random orders")
    print(f"{'first -> second':<56} wins losses        p  evidence 1-sided  z-test    right   wrong  examples")
    for one in sorted(measured, key=lambda one: one.p_holm):
        print(
            f"{one.first} -> {one.second}".ljust(56)
            + f"{one.wins:5d} {one.losses:6d} {one.p_holm:8.1e}  {one.null_wrong:8.2%} {one.null_wrong_one_sided:7.2%} "
            + f"{one.null_wrong_z:7.1%}  {one.right:7.1%} {one.wrong:7.2%}  {one.examples:8.0f}"
        )
    for name, figures in (
        ("evidence", [one.null_wrong for one in measured]),
        ("one-sided evidence", [one.null_wrong_one_sided for one in measured]),
        ("z-test", [one.null_wrong_z for one in measured]),
    ):
        print(f"null replays, {name}: {min(figures):.1%} to {max(figures):.1%}, mean {np.mean(figures):.2%}")
    print(f"\n{FROM} -> {TO} in {SAMPLE} questions: how often it is seen")
    print("drawn                 evidence, one-sided  two-sided    one look: McNemar, one-sided  two-sided")
    for power in powers:
        print(
            f"{power.drawn:<21} {power.anytime:19.3f}  {power.anytime_two_sided:9.3f}"
            f"  {power.fixed_one_sided:27.3f}  {power.fixed:9.3f}"
        )


if __name__ == "__main__":
    sys.exit(main())
