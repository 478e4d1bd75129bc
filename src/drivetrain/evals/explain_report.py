"""What moved a metric, as a Report: its verdict, and everything behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.reports import ReportV1
from drivetrain.core.times import iso
from drivetrain.evals.explain import Explanation, Share

NAMES = {"model": "model", "policy": "policy", "traffic": "traffic mix"}


def verdict(found: Explanation, *, is_share: bool) -> str:
    """One sentence that a person acts on."""
    before, after = found.change_from, found.change_to
    moved = "rose" if after > before else "fell" if after < before else "did not move:"
    said = f"{found.metric} {moved} from {number(before, is_share)} to {number(after, is_share)}"
    told = ", ".join(f"{NAMES[share.factor]} {share_text(share, is_share)}" for share in found.shares)
    if not found.known:
        return f"{said}; how much each part moved is known only in bounds: {told}."
    return f"{said}: {told}."


def period(start_ns: int, end_ns: int) -> str:
    """`2026-01-31T00:00 to 2026-02-01T00:00`, UTC, with seconds where there are any."""
    start, end = (iso(one).removesuffix("Z").removesuffix(".000").removesuffix(":00") for one in (start_ns, end_ns))
    return f"{start} to {end}"


def number(value: float, is_share: bool, *, sign: bool = False) -> str:
    """A metric's value for people: a share in percent and its change in points, another number as it is."""
    if is_share:
        return f"{value * 100:+.2f} points" if sign else f"{value * 100:.2f} %"
    return f"{value:{'+' if sign else ''}.4g}"


def share_text(share: Share, is_share: bool) -> str:
    """What a factor moved; bounds or a plain word where it is not known."""
    if share.interval is not None:
        return number(share.interval.value, is_share, sign=True)
    if share.least is None or share.most is None:
        return "unknown"
    return f"{number(share.least, is_share, sign=True)} to {number(share.most, is_share, sign=True)}"


def report(
    found: Explanation,
    workflow: str,
    *,
    is_share: bool,
    made_ns: int,
    made_by: str,
    inputs: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> ReportV1:
    """The Report of an explanation. more: what the caller knows beside it, such as the periods' dates and prices."""
    facts: dict[str, str | int | float | bool] = {
        "metric": found.metric, "change": found.change.value, "known": found.known,
    }  # fmt: skip
    for share in found.shares:
        if share.interval is not None:
            facts[share.factor] = share.interval.value
    return ReportV1(
        kind="explain",
        subject=f"workflow:{workflow}",
        made_ns=made_ns,
        made_by=made_by,
        inputs=tuple(inputs),
        verdict=verdict(found, is_share=is_share),
        facts=facts,
        body=msgspec.json.decode(msgspec.json.encode({**msgspec.structs.asdict(found), **(more or {})})),
    )
