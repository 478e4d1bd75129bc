"""What the money of a change would buy instead: only what would tell something, and labels counted as labels."""

from __future__ import annotations

import json

from drivetrain import Variant
from drivetrain.evals.upgrading.logged import label_of, labels_share
from drivetrain.evals.upgrading.marking import marker_by
from drivetrain.evals.upgrading.pairs import Pair, Side
from drivetrain.evals.upgrading.result import Item
from drivetrain.evals.upgrading.verdict import Asked, verdict_of
from drivetrain.evals.upgrading.worth import Traffic, instead_of

CENT = 10_000_000


def more_evidence(wins: int, losses: int, ties: int, spend: int, *, thin: int = 0) -> list[Item]:
    scores = [(0.0, 1.0)] * wins + [(1.0, 0.0)] * losses + [(1.0, 1.0)] * ties
    mark = marker_by("as_is")
    marked = [
        mark(Pair(
            id=str(number), slice=("few" if number < thin else "many") if thin else "", before=Side(score=old),
            after=Side(score=new, cost_nano_usd=CENT),
        ))
        for number, (old, new) in enumerate(scores)
    ]  # fmt: skip
    traffic = Traffic(per_30_days=0, mean_nano_usd=0, repeated=0)
    found = instead_of(traffic, marked, verdict_of(marked, Asked()), spend, Variant("model", model="sim/old"))
    return [one for one in found if one.what == "more evidence"]


def test_engineering_hours_are_not_turned_into_calls_that_nobody_needs() -> None:
    a_lot = 360 * 10**9
    assert more_evidence(0, 0, 200, a_lot) == [], "no number of examples is likely to settle it"
    assert more_evidence(100, 5, 100, a_lot) == [], "it is settled"


def test_calls_that_would_settle_it_are_told_as_far_as_the_money_reaches() -> None:
    (enough,) = more_evidence(20, 10, 170, 10**12)
    needed = int(enough.detail.split()[0].replace(",", ""))
    assert enough.detail == f"{needed:,} more Calls to the candidate that would settle it with a chance of 80 %"
    assert enough.nano_usd == needed * CENT
    (part,) = more_evidence(20, 10, 170, 7 * CENT)
    assert part.detail.startswith(f"7 of the {needed:,} more Calls")
    assert part.nano_usd == 7 * CENT


def test_a_thin_slice_is_worth_the_pairs_that_it_lacks() -> None:
    (thin,) = more_evidence(100, 5, 100, 10**12, thin=12)
    assert thin.detail == "8 more Calls to the candidate where coverage is thin: `few`"


def test_answers_are_counted_as_labels_without_their_confidence() -> None:
    values = [{"intent": ("billing", "spam")[number % 2], "confidence": number / 500} for number in range(400)]
    labels = [label_of(Side(text=json.dumps(one), value=one)) for one in values]
    assert labels_share(labels, 50) == (2, 1.0)
    # What is nothing but a number, or a text, is what it is.
    assert label_of(Side(text='{"score": 3}', value={"score": 3})) == '{"score": 3}'
    assert label_of(Side(text="spam")) == "spam"
    assert label_of(Side(text='{"ok": true}', value={"ok": True})) == '{"ok":true}'
