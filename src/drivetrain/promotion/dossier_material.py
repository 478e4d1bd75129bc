"""What a dossier is made from, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.datasets import DatasetV1
from drivetrain.core.declarations import Workflow
from drivetrain.core.markup import Table
from drivetrain.core.models import ModelVersionV1
from drivetrain.core.times import iso
from drivetrain.lake.costs import CostRow
from drivetrain.ports.control import ControlRecord
from drivetrain.project.retirement import Retirement
from drivetrain.project.snapshot import Snapshot
from drivetrain.promotion.standing import State
from drivetrain.registry.reports import Stored

NOT_DECLARED, NOT_RECORDED = "not declared", "not recorded"


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """How many answered Calls have a truth of one metric."""

    metric: str
    calls: int
    labelled: int
    corrected: int
    contradictory: int


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What Calls of the workflow's callers show; those of evals, judges and shadows are told apart."""

    since_ns: int
    total: CostRow
    by_team: tuple[CostRow, ...] = ()
    by_variant: tuple[CostRow, ...] = ()
    by_status: tuple[CostRow, ...] = ()
    others: tuple[CostRow, ...] = ()
    """By door: Calls that nobody waited for."""
    errors: tuple[tuple[str, int], ...] = ()
    """(code, Calls), the most first."""
    degraded: int = 0
    """Calls that no variant answered, and the workflow's ladder did."""
    actions: tuple[tuple[str, str, int, int, int], ...] = ()
    """(policy's version, action, Decisions, explored ones, failed ones)."""
    labels: tuple[Labels, ...] = ()


class Material(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a dossier is made from."""

    snapshot: Snapshot
    """What is live, or the project's folder where nothing was released."""
    workflow: str
    now_ns: int
    key: str
    """The workflow's key, by which evidence is found."""
    policy_version: str = ""
    state: State
    records: Sequence[ControlRecord]
    log_findings: tuple[str, ...] = ()
    """What is wrong with the control log."""
    reports: Sequence[Stored] = ()
    """About the workflow, newest first."""
    unreadable: tuple[str, ...] = ()
    """Records that could not be read, each in a sentence."""
    traffic: Traffic | None = None
    """None where the ledger could not be asked."""
    versions: Mapping[str, ModelVersionV1] = {}
    """Reference of a trained model, as variants write it -> what is pinned."""
    datasets: Mapping[str, DatasetV1] = {}
    """`NAME@NUMBER` -> its manifest."""
    retirements: tuple[Retirement, ...] = ()

    @property
    def declared(self) -> Workflow[Any, Any]:
        """The workflow as it is live."""
        return self.snapshot.workflows[self.workflow]

    @property
    def is_released(self) -> bool:
        """Whether a Release is live."""
        return self.state.live.release > 0


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a dossier."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


class Dossier(msgspec.Struct, frozen=True, kw_only=True):
    """The technical file of one workflow."""

    workflow: str
    project: str
    environment: str
    made: str
    snapshot: str
    control_seq: int
    control_head: str
    """The control log as it was: a checkpoint of it proves what the dossier says of changes."""
    sections: tuple[Section, ...]
    gaps: tuple[str, ...]


def words(values: Sequence[str], absent: str = NOT_DECLARED) -> str:
    """A list in one cell."""
    return ", ".join(values) if values else absent


def day(at_ns: int) -> str:
    """A moment to the second; what never was is a dash."""
    return iso(at_ns)[:19] + "Z" if at_ns else "-"
