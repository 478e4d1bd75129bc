"""A Report: the result of a training, an eval, a comparison or a replay over Datasets and records, with its verdict."""

from __future__ import annotations

from typing import Any

import msgspec

REPORT_KINDS = ("train", "policy-replay", "explain", "eval", "eval-compare", "judge", "upgrade", "probe", "rollout")


class ReportV1(msgspec.Struct, frozen=True, kw_only=True, tag="report.1"):
    """One Report as stored: immutable, under the hash of its content. It cites ids and never quotes a person's text."""

    kind: str
    """One of `REPORT_KINDS`."""
    subject: str
    """What it is about, as lineage names it: `model:triage@14`, `policy:refund`, `workflow:triage`."""
    made_ns: int
    made_by: str
    inputs: tuple[str, ...] = ()
    """Artifacts that it was made from: `dataset:golden@3`."""
    verdict: str
    """One sentence that a person acts on."""
    facts: dict[str, str | int | float | bool] = {}
    """What is worth knowing at a glance."""
    body: dict[str, Any] = {}
    """Everything else, by the kind: plain JSON values."""
