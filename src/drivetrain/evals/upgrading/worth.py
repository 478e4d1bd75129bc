"""What changing over costs, and what the same money would buy instead: lines of a Report, with their reasons. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from drivetrain.core.declarations import Variant, Workflow
from drivetrain.core.models import is_trained
from drivetrain.evals.upgrading.logged import labels_share
from drivetrain.evals.upgrading.pairs import Marked
from drivetrain.evals.upgrading.result import Item, Spent
from drivetrain.evals.upgrading.verdict import SLICE_PAIRS_MIN, Verdict, listed

DAYS = 30
"""Of traffic, as savings are told."""
LABELS_MAX, LABEL_CALLS_MIN, LABEL_SHARE_MIN = 100, 50, 0.8
"""Answers are labels, which a trained model could give, where at most so many differ; each of these was given so often;
and they make up so much of the traffic."""
REPEATED_MIN = 0.02
"""A smaller share of identical inputs is not worth a cache."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a workflow's Calls."""

    per_30_days: float
    mean_nano_usd: float
    """Per Call, before."""
    repeated: float
    """Share of Calls whose input was asked before."""
    answers: tuple[str, ...] = ()
    """What was answered, as `logged.label_of` tells it, for counting only."""


def engineering_of(hours: float, nano_usd_per_hour: int) -> tuple[Item, ...]:
    """Hours times a rate; nothing where none were declared."""
    if not hours:
        return ()
    return (
        Item(what="engineering", detail=f"{hours:g} hours, as declared", nano_usd=round(hours * nano_usd_per_hour)),
    )


def migration_of(
    workflow: Workflow[Any, Any], variant: Variant, spent: Spent, verdict: Verdict, marked: Sequence[Marked],
    *, evals: Sequence[str], engineering: tuple[Item, ...],
) -> tuple[Item, ...]:  # fmt: skip
    """What a change to the candidate takes. evals: names of the workflow's."""
    found = [Item(what="evaluation", detail=f"{spent.asked:,} Calls to the candidate", nano_usd=spent.nano_usd)]
    prompts = [one for one in (variant.prompt, variant.system) if one]
    found.append(
        Item(
            what="prompts", detail=f"{len(prompts)} written for another model: {listed(prompts)}" if prompts else
            "none: the conversation goes to the model as it is",
        )
    )  # fmt: skip
    broken = sum(one.after.unread or bool(one.pair.after.error) or one.after.wrapped for one in marked)
    accepts = variant.accept if isinstance(variant.accept, list | tuple) else (variant.accept,)
    checks = [str(getattr(one, "name", getattr(one, "__name__", "a check"))) for one in accepts if one is not None]
    checks += [str(getattr(one, "__name__", "a validator")) for one in workflow.validators]
    parsers = [f"output type {workflow.output.__name__}"] if workflow.output is not None else []
    found.append(
        Item(
            what="parsers and checks",
            detail=f"{listed(parsers + checks) if parsers + checks else 'none'}; {broken:,} of {len(marked):,} answers "
            "of the candidate fail for their form",
        )
    )
    thin = [one.name for one in verdict.slices if one.pairs < SLICE_PAIRS_MIN]
    gaps = []
    if not evals:
        gaps.append("no eval of this workflow is declared")
    if thin:
        gaps.append(f"fewer than {SLICE_PAIRS_MIN} pairs in {listed(thin)}")
    agreed = sum(one.pair.truth == "agreement" for one in marked)
    if agreed:
        gaps.append(f"nothing says what is right of {agreed:,} Calls")
    found.append(Item(what="eval gaps", detail="; ".join(gaps) or "none"))
    return (*found, *engineering)


def instead_of(
    traffic: Traffic, marked: Sequence[Marked], verdict: Verdict, spend_nano_usd: int, variant: Variant
) -> tuple[Item, ...]:
    """What the money of the migration would buy instead."""
    found = []
    after = [one.pair.after.cost_nano_usd for one in marked if one.pair.after.cost_nano_usd is not None]
    mean = sum(after) / len(after) if after else 0.0
    if mean > 0:
        found += _more_evidence(verdict, int(spend_nano_usd / mean), mean)
    monthly = traffic.per_30_days * traffic.mean_nano_usd
    if traffic.repeated >= REPEATED_MIN:
        found.append(
            Item(
                what="a cache", nano_usd=round(monthly * traffic.repeated),
                detail=f"{traffic.repeated:.1%} of inputs were asked before: saves so much in {DAYS} days",
            )
        )  # fmt: skip
    kinds, share = labels_share(traffic.answers, LABEL_CALLS_MIN)
    if not is_trained(variant.model) and kinds and kinds <= LABELS_MAX and share >= LABEL_SHARE_MIN:
        found.append(
            Item(
                what="a trained variant",
                nano_usd=round(monthly * share),
                detail=f"{kinds:,} different answers without their numbers, those with {LABEL_CALLS_MIN} examples or "
                f"more are {share:.0%} of Calls: saves at most so much in {DAYS} days",
            )
        )
    return tuple(found)


def _more_evidence(verdict: Verdict, affordable: int, mean_nano_usd: float) -> list[Item]:
    """Calls that would tell something: as many as would settle the whole, or give thin slices enough pairs; none where
    no number of them is likely to."""
    thin = [one for one in verdict.slices if one.pairs < SLICE_PAIRS_MIN]
    missing = sum(SLICE_PAIRS_MIN - one.pairs for one in thin)
    fresh = ", in a look of their own" if verdict.whole.mode == "fixed" else ""
    wanted = [
        (verdict.whole.more_needed or 0, f"that would settle it with a chance of 80 %{fresh}"),
        (missing, f"where coverage is thin: {listed([one.name for one in thin])}"),
    ]
    found = []
    for needed, what in wanted:
        calls = min(needed, affordable)
        if calls:
            many = f"{calls:,}" if calls == needed else f"{calls:,} of the {needed:,}"
            found.append(
                Item(what="more evidence", detail=f"{many} more Calls to the candidate {what}",
                     nano_usd=round(calls * mean_nano_usd))
            )  # fmt: skip
    return found
