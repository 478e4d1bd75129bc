"""Where what people and machines changed is kept: strictly ordered and hash-chained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import msgspec

CONTROL_FILE = "control.db"
"""The log's database, below a project's data folder."""
APPLIED = "apply"
"""The kind of what was served from a folder; the subject is the Snapshot's hash."""


class ControlRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One change: who did what to what, chained to the one before."""

    seq: int
    """1, 2, 3 ... without a gap."""
    at_ns: int
    kind: str
    """`apply`, `promote`, `forget`, `budget.set` ..."""
    actor: str
    """Who did it."""
    subject: str
    """What it was done to."""
    body: str
    """JSON with sorted keys."""
    prev_hash: str
    """`hash` of the record before; 64 zeros before the first."""
    hash: str
    """SHA-256 over all fields above, 64 hex digits."""


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What a check of the whole log found."""

    records: int
    head: str
    """`hash` of the last good record; kept elsewhere, it proves later that nothing before it was changed."""
    findings: tuple[str, ...]
    """Each edit, gap, reordering or truncation, in words; empty where the log is whole."""

    @property
    def whole(self) -> bool:
        """Whether nothing was changed."""
        return not self.findings


class ControlLog(Protocol):
    """Appends changes and proves that none was changed."""

    def append(self, *, kind: str, actor: str, subject: str, body: Mapping[str, Any]) -> ControlRecord:
        """The record, once it is on disk. Raises: DrivetrainError where the log was tampered with."""

    def records(self, after_seq: int = 0) -> Iterator[ControlRecord]:
        """Every record after `after_seq`, in order."""

    def verify(self) -> Verification:
        """A check of every record."""


class OrderedControlLog(ControlLog, Protocol):
    """A control log whose writers may say what they have read: of two that decide upon one state, one is told."""

    def append_after(
        self, seq: int, *, kind: str, actor: str, subject: str, body: Mapping[str, Any]
    ) -> ControlRecord | None:
        """As `append`, where `seq` is the last record's number still; None, and nothing appended, where it is not."""
