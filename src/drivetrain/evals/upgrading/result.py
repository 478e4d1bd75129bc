"""Everything that is known of an upgrade, as a Report keeps it: figures and ids, and no word of anybody's.

Owns the body of a Report of kind `upgrade`, and its verdict in one sentence. Pages are made from it alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from drivetrain.core.reports import ReportV1
from drivetrain.evals.upgrading.changes import Change, changes_of
from drivetrain.evals.upgrading.drift import Drift, drift_of
from drivetrain.evals.upgrading.failures import Failures, failures_of
from drivetrain.evals.upgrading.marking import ByReading
from drivetrain.evals.upgrading.pairs import Marked
from drivetrain.evals.upgrading.verdict import ROUTE, Asked, Frame, Verdict, listed, verdict_of

KIND = "upgrade"


class About(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is compared."""

    subject: str
    """`workflow:NAME`, or `recorded:HASH` of files."""
    before: str
    """The model that answered, or what the file calls it."""
    after: str
    """The candidate."""
    variant: str = ""
    """Of the workflow's route: whose model is replaced."""
    scorer: str = ""
    """How answers are held against what is right, in words."""
    dataset: str = ""
    """The frozen Dataset that was replayed."""
    files: tuple[tuple[str, str], ...] = ()
    """(name, SHA-256) of files of recorded outcomes."""
    unpaired: tuple[int, int] = (0, 0)
    """Recorded answers that have none beside them, before and after."""


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What asking the candidate cost, and what ending early saved."""

    planned: int
    """Pairs that there could have been."""
    asked: int
    nano_usd: int
    judged_nano_usd: int = 0
    """What judges cost besides."""
    saved_calls: int = 0
    saved_nano_usd: int = 0
    """What those would have cost, by the mean of those that were asked."""
    stopped: str = ""
    """`settled`, `budget`, or empty where every row was asked."""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One line of what a change costs, or of what its money would buy instead."""

    what: str
    detail: str = ""
    nano_usd: int | None = None
    """None: it has no price, or it is not known."""


class Upgrade(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    about: About
    asked: Asked
    pairs: int
    truths: dict[str, int]
    """What answers were held against -> in how many pairs."""
    verdict: Verdict
    failures: Failures
    drift: Drift
    changes: tuple[Change, ...]
    readings: tuple[ByReading, ...] = ()
    spent: Spent | None = None
    """None of recorded outcomes."""
    migration: tuple[Item, ...] = ()
    instead: tuple[Item, ...] = ()
    warnings: tuple[str, ...] = ()


def upgrade_of(
    about: About, marked: Sequence[Marked], asked: Asked, *, readings: tuple[ByReading, ...] = (),
    spent: Spent | None = None, migration: tuple[Item, ...] = (), instead: tuple[Item, ...] = (),
    warnings: tuple[str, ...] = (), frame: Frame | None = None,
) -> Upgrade:  # fmt: skip
    """Everything about pairs that stand in the order of `shuffled`. Arguments and errors: as `verdict_of`."""
    return Upgrade(
        about=about, asked=asked, pairs=len(marked), truths=dict(Counter(one.pair.truth for one in marked)),
        verdict=verdict_of(marked, asked, frame), failures=failures_of(marked), drift=drift_of(marked),
        changes=changes_of(marked), readings=readings, spent=spent, migration=migration, instead=instead,
        warnings=(*warnings, *_warnings(marked)),
    )  # fmt: skip


def sentence(found: Upgrade) -> str:
    """The verdict as a person acts on it."""
    verdict, about = found.verdict, found.about
    word = verdict.word[0].upper() + verdict.word[1:]
    route = f" {listed(verdict.route)}" if verdict.word == ROUTE else ""
    drifts = found.drift.named
    form = f" In form, {'; '.join(drifts)}." if drifts else ""
    return f"{word}{':' if route else ''}{route} ({about.before} -> {about.after}): {verdict.why}.{form}"


def report_of(found: Upgrade, *, made_ns: int, made_by: str) -> ReportV1:
    """The Report, not kept yet."""
    whole, about = found.verdict.whole, found.about
    facts: dict[str, str | int | float | bool] = {
        "verdict": found.verdict.word, "before": about.before, "after": about.after, "pairs": found.pairs,
        "difference": whole.difference or 0.0, "low": whole.low, "high": whole.high, "settled": whole.settled,
        "wrapped_before": found.drift.wrapped[0], "wrapped_after": found.drift.wrapped[1],
        "unread_before": found.drift.unread[0], "unread_after": found.drift.unread[1],
    }  # fmt: skip
    for one in found.changes:
        facts[f"{one.name}_before"], facts[f"{one.name}_after"] = one.before, one.after
    if found.spent is not None:
        facts["cost_nano_usd"] = found.spent.nano_usd
    inputs = [f"file:{name}@{digest}" for name, digest in about.files]
    return ReportV1(
        kind=KIND, subject=about.subject, made_ns=made_ns, made_by=made_by,
        inputs=tuple([f"dataset:{about.dataset}"] * bool(about.dataset) + inputs),
        verdict=sentence(found), facts=facts, body=_plain(found),
    )  # fmt: skip


def read_upgrade(report: ReportV1) -> Upgrade:
    """What a Report holds. Raises: msgspec.ValidationError where an earlier version made it."""
    return msgspec.convert(report.body, Upgrade)


def _plain(found: Upgrade) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(found))
    return plain


def _warnings(marked: Sequence[Marked]) -> tuple[str, ...]:
    found = []
    if len(marked) == 1:
        found.append("One pair says nothing of others.")
    agreed = sum(one.pair.truth == "agreement" for one in marked)
    if agreed:
        found.append(
            f"{agreed:,} of {len(marked):,} pairs have no better truth than what was answered before: there the "
            "candidate can agree, and cannot be better. Record Outcomes, or declare an eval."
        )
    return tuple(found)
