"""Keys of evals: what was proved under one key was asked, scored and gated in just this way.

How many rows are asked at once, what a run may cost and who owns it make no other eval, so they are no part of a key.
Called where runs are kept and where Releases look for their evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drivetrain.core.evals import Eval, Scorer
from drivetrain.core.scorers import scorers_of
from drivetrain.evals.workflow_key import digest_of, workflow_key
from drivetrain.policies.functions import source_of
from drivetrain.project.snapshot import Snapshot


def eval_key(declared: Eval, snapshot: Snapshot) -> str:
    """16 hex digits over an eval's Dataset, scorers (functions by their source, judges by their workflows' keys) and
    gates, and how rows are asked. snapshot: the one that declares it."""
    files, scorers = snapshot.files, scorers_of(declared)
    judges = sorted({one.workflow for one in scorers if one.workflow})
    parts: list[Any] = [
        declared.dataset, declared.workflow, list(declared.gates), sorted(declared.inputs.items()),
        declared.expected if isinstance(declared.expected, str) else sorted(declared.expected.items()),
        list(declared.slices), sorted(declared.suites.items()), declared.repeats,
        [_scorer(one, files) for one in scorers], [(name, workflow_key(snapshot, name)) for name in judges],
    ]  # fmt: skip
    return digest_of(parts)


def _scorer(scorer: Scorer, files: Mapping[str, bytes]) -> list[Any]:
    source = "" if scorer.function is None else source_of(scorer.function, files).decode("utf-8", "replace")
    return [
        scorer.name, scorer.kind, scorer.field, scorer.options, source, scorer.workflow, scorer.timeout_ms
    ]  # fmt: skip
