"""One row of an eval as it was answered and scored: what runs journal, gates judge, comparisons pair and Reports count.

A stored row quotes nobody: it cites its Call and its place in the Dataset, and what scorers noted of the answer is
sealed.
"""

from __future__ import annotations

import msgspec

from drivetrain.core.evals import Score

PASSING = frozenset({
    "upstream_auth", "upstream_model_not_found", "upstream_error", "upstream_timeout", "upstream_unreachable",
    "rate_limit_exceeded", "provider_unavailable", "stream_interrupted", "deadline_exceeded", "shutting_down", "closed",
    "limits_unavailable", "budget_exceeded", "concurrency_limit_exceeded", "ledger_unavailable", "unknown_price",
    "features_unavailable", "internal_error",
})  # fmt: skip
"""Codes of Calls that say nothing of the workflow's answer: another run asks these rows again."""


class RowV1(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="eval.row.1"):
    """One answer to one row."""

    row: str
    """What tells it from others, the same in every run: 16 hex digits over Dataset, number of the row and content."""
    group: str = ""
    """Rows of one group are not independent, such as one person's: intervals count groups. A hash under the project's
    keys, the same in every run over one Dataset; `erased-...` once its person was erased."""
    repeat: int = 0
    suite: str = ""
    """The suite of edge cases that it is from; empty: the eval's own Dataset."""
    slices: dict[str, str] = {}
    """Slice's column -> this row's value."""
    scores: dict[str, Score] = {}
    """Scorer's name -> what it said; as stored, without its note."""
    notes: bytes = b""
    """What scorers noted, sealed under the row's subject as payload `notes` of its Call; empty where they noted
    nothing, or texts of the Call are not kept."""
    weight: float = 1.0
    """Of a sampled Dataset: one over the chance that the row was taken."""
    status: str = "answered"
    """The Call's status; only `answered` ones can be right."""
    error: str = ""
    call_id: str = ""
    variant: str = ""
    cost_nano_usd: int = 0
    """What the Call cost; a cached answer costs nothing."""
    judged_nano_usd: int = 0
    """What judging it cost."""
    saved_nano_usd: int = 0
    latency_us: int = 0
    tokens_input: int = 0
    tokens_output: int = 0
    answer_chars: int = 0
    finish_reason: str = ""
    cached: bool = False


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of one run, and what they are of."""

    eval: str
    workflow: str
    workflow_key: str
    eval_key: str
    dataset: str
    """`NAME@NUMBER`, as it was resolved when the run began."""
    rows: tuple[RowV1, ...]
    report: str = ""
    """Id of its Report, once it has one."""
