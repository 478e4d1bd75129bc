"""Keys of evals: what was proved under one key was asked, scored and gated in just this way.

How many rows are asked at once, what a run may cost and who owns it make no other eval, so they are no part of a key.
Called where runs are kept and where Releases look for their evidence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from drivetrain.core.evals import Eval, Scorer
from drivetrain.core.scorers import scorers_of
from drivetrain.policies.functions import source_of

KEY_CHARS = 16


def eval_key(declared: Eval, files: Mapping[str, bytes], judge_keys: Mapping[str, str] | None = None) -> str:
    """16 hex digits over an eval's Dataset, scorers (functions by their source) and gates, and how rows are asked.

    files: the Snapshot's. judge_keys: the workflow key of each judge, by its name, so that another judge is another
    eval; who compares keys gives it always or never.
    """
    parts: list[Any] = [
        declared.dataset, declared.workflow, list(declared.gates), sorted(declared.inputs.items()),
        declared.expected if isinstance(declared.expected, str) else sorted(declared.expected.items()),
        list(declared.slices), sorted(declared.suites.items()), declared.repeats,
        [_scorer(one, files) for one in scorers_of(declared)], sorted((judge_keys or {}).items()),
    ]  # fmt: skip
    digest = hashlib.sha256()
    for part in parts:
        said = msgspec.json.encode(part, order="deterministic", enc_hook=repr)
        digest.update(len(said).to_bytes(8, "big") + said)
    return digest.hexdigest()[:KEY_CHARS]


def _scorer(scorer: Scorer, files: Mapping[str, bytes]) -> list[Any]:
    source = "" if scorer.function is None else source_of(scorer.function, files).decode("utf-8", "replace")
    return [
        scorer.name, scorer.kind, scorer.field, scorer.options, source, scorer.workflow, scorer.timeout_ms
    ]  # fmt: skip
