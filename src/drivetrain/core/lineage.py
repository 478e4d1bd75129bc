"""What was made from what: one record per artifact, kept in the control log under kind `made`.

An artifact's id is `KIND:NAME` or `KIND:NAME@VERSION`:
    dataset:golden@3        features:customer_stats@5b1f...   service:triage_inputs@a01c...
    table:calls@1207        file:data/x.csv@SHA256            source:crm
    workflow:triage@SNAPSHOT    model:triage@14    report:...    release:...
"""

from __future__ import annotations

import msgspec

MADE = "made"
"""The control log's kind of these records; the subject is the artifact."""


class MadeV1(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact came to be: the body of its record in the control log."""

    artifact: str
    inputs: tuple[str, ...] = ()
    """Artifacts that it was made from, each as it was then."""
    code_hash: str = ""
    """SHA-256 over the code that made it, 64 hex digits; empty where no code of the project did."""
    at_ns: int
    facts: dict[str, str | int | float | bool] = {}
    """What is worth knowing at a glance: rows, content hash, newest event."""
