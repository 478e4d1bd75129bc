"""Sentences and figures of a training's Report, as its verdict, its page and the commands say them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivetrain.core.reports import ReportV1
from drivetrain.training.thresholds import RISKS_TRIED


def accept_lines(report: ReportV1) -> list[str]:
    """What a route may say, one line for each stated risk that is reached, and what it means."""
    return [
        f"accept=dt.confidence({one['threshold']:g})  # at most {as_stated(one['risk'])} wrong, "
        f"answers {percent(one['share'])}"
        for one in report.body.get("thresholds", ())
        if one["threshold"] is not None
    ]


def no_threshold_lines(report: ReportV1) -> list[str]:
    """One line for each stated risk that is not reached, with why, and after them what a person can do."""
    body = report.body
    missed = [one for one in body.get("thresholds", ()) if one["threshold"] is None]
    lines = [f"no threshold for a risk of {as_stated(one['risk'])}: {one['reason']}" for one in missed]
    if not missed:
        return lines
    if "risk_to_state" not in body:  # a Report of before there were hints
        return lines
    could = body["risk_to_state"]
    if could is None:
        lines.append(f"no risk up to {as_stated(RISKS_TRIED[-1])} would have a threshold on these rows")
    elif all(one["risk"] > could for one in body["thresholds"] if one["threshold"] is not None):
        lines.append(
            f"a risk of {as_stated(could)} would have a threshold on these rows: state it as `risks=[{could:g}]` or "
            f"`--risk {could:g}`"
        )
    look = '; "Most confident mistakes" shows labels that may be wrong' if body.get("wrong") else ""
    return [*lines, f"a lower risk takes more rows, or fewer mistakes{look}"]


def against(body: Mapping[str, Any]) -> str:
    """Against the champion, in words."""
    champion = body["champion"]
    if champion.get("why"):
        return f"not compared with {champion['model']}: {champion['why']}"
    is_share = body["task"] == "classification"
    difference, low, high = champion["difference"], champion["low"], champion["high"]
    if low is None or low <= 0 <= high:
        return f"on these rows it cannot be told from {champion['model']}"
    better = (difference > 0) == is_share
    by = f"{abs(difference) * 100:.1f} points" if is_share else f"{abs(difference):.4g}"
    return f"{'better' if better else 'worse'} than {champion['model']} by {by}"


def percent(share: float) -> str:
    """`12.3 %`."""
    return f"{share * 100:.1f} %"


def as_stated(share: float) -> str:
    """A share that somebody chose, as it was written: `2 %`."""
    return f"{share * 100:.6g} %"


def share_text(share: float | None) -> str:
    """As `percent`; a dash where there is none."""
    return "-" if share is None else percent(share)


def number_text(value: Any) -> str:
    """Four digits of a measured one; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
