"""What a dossier is made from, gathered: what is live, the control log, Reports, the ledger, the registry, Datasets.

Called by `drivetrain dossier`. Reads only; that a dossier was written to a file is noted by `note_export`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.adapters.sqlite import SqliteControlLog, open_control_log
from drivetrain.core.declarations import Variant
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.models import is_trained, parse_reference
from drivetrain.embedded.applying import person
from drivetrain.embedded.asking import lake_for
from drivetrain.embedded.dossier_traffic import traffic_of
from drivetrain.embedded.modelling import registry_in, reports_in
from drivetrain.embedded.releasing import place_of
from drivetrain.embedded.training import datasets_in
from drivetrain.evals.run_report import KIND as EVAL_REPORT
from drivetrain.evals.workflow_key import workflow_key
from drivetrain.policies.compile import as_policy, compile_policy
from drivetrain.project.load import load
from drivetrain.project.retirement import retirements
from drivetrain.project.stored import load_stored
from drivetrain.promotion import state
from drivetrain.promotion.dossier import make_dossier
from drivetrain.promotion.dossier_material import Dossier, Material, Traffic
from drivetrain.promotion.model_card import model_card
from drivetrain.promotion.recorded import runs_in
from drivetrain.providers.deprecation import is_deprecated

if TYPE_CHECKING:
    from drivetrain.core.datasets import DatasetV1
    from drivetrain.core.models import ModelVersionV1
    from drivetrain.ports.control import ControlRecord
    from drivetrain.project.snapshot import Snapshot
    from drivetrain.promotion.standing import State
    from drivetrain.registry.reports import Reports, Stored

EXPORTED = "exported"
"""The control log's kind of exports."""
REPORTS_READ_MAX = 500
"""Of the workflow, the newest."""


class DossierRoom:
    """One project's dossiers and model cards, of what is live in one environment."""

    def __init__(
        self, project: Path | None = None, environment: str | None = None, *, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """Raises: DrivetrainError where there is no project, or what is live cannot be loaded."""
        place = place_of(project or Path.cwd(), environment)
        self._now_ns = now_ns
        self._control: SqliteControlLog | None = None
        self._records: list[ControlRecord] = []
        self._findings: tuple[str, ...] = ()
        if place.control_log.exists() or (place.keys_folder / "control.anchor").exists():
            self._control = place.log()
            self._findings = self._control.verify().findings
            self._records = list(self._control.records())
        self._state: State = state.read(self._records, place.environment)
        live, root = self._state.live, place.root.resolve()
        # The folder is not read where a Release is live: its mistakes are nobody's business then.
        self.snapshot: Snapshot = (
            load_stored(place.snapshots_folder, live.snapshot, root) if live.release else load(root, environment)
        )
        self._registry = registry_in(place.data_folder, place.keys_folder, now_ns=now_ns)

    def dossier(self, workflow: str, since_ns: int = 0) -> Dossier:
        """The dossier of a workflow; Calls opened since then are counted. Raises: DrivetrainError."""
        if workflow not in self.snapshot.workflows:
            raise DrivetrainError(
                f"Project `{self.snapshot.name}` has no workflow `{workflow[:100]}` in "
                f"{f'Release {self._state.live.release}' if self._state.live.release else 'its folder'}.",
                do=did_you_mean(workflow, self.snapshot.workflows),
            )
        return make_dossier(self._material(workflow, since_ns))

    def model_card(self, model: str) -> tuple[str, ModelVersionV1]:
        """The card of a registered version: NAME, NAME@NUMBER or as a route writes it. Raises: DrivetrainError."""
        version = self._registry.find(parse_reference(model) if is_trained(model) else model)
        users = {
            name: declared.use_case
            for name, declared in self.snapshot.workflows.items()
            if any(
                (pinned := self.snapshot.pinned.get(step.model)) is not None and pinned.digest == version.digest
                for step in declared.route
                if isinstance(step, Variant)
            )
        }
        report = self._reports.get(version.report) if version.report else None
        return model_card(version, used_by=users, report=report), version

    def models_of(self, workflow: str) -> list[str]:
        """The registered versions that a workflow's route pins, `NAME@NUMBER`."""
        return sorted({f"{one.name}@{one.number}" for one in self._versions(workflow, []).values()})

    def note_export(self, subject: str, **facts: str) -> None:
        """That it was written to a file stands in the control log. Raises: DrivetrainError."""
        log = self._control or open_control_log(self.snapshot.data_folder, self.snapshot.keys_folder)
        log.append(kind=EXPORTED, actor=person(), subject=subject, body=facts)

    @property
    def _reports(self) -> Reports:
        return reports_in(self.snapshot.data_folder, self.snapshot.keys_folder)

    def _material(self, workflow: str, since_ns: int) -> Material:
        snapshot, unreadable = self.snapshot, list[str]()
        reports: list[Stored] = []
        try:
            reports = self._reports.list(subject=f"workflow:{workflow}")[:REPORTS_READ_MAX]
            runs = runs_in(self._records)
            proved = [one for one in reports if one.report.kind != EVAL_REPORT or one.id in runs]
            if len(proved) < len(reports):
                unreadable.append(
                    f"{len(reports) - len(proved)} Reports of evals are left out: the control log has no run that made "
                    "them (`drivetrain audit verify` names them)."
                )
            reports = proved
        except DrivetrainError as error:
            unreadable.append(f"Its Reports cannot be read: {error.what}")
        versions = self._versions(workflow, unreadable)
        policy_version = self._policy_version(workflow, unreadable)
        traffic = self._traffic(workflow, since_ns, unreadable)
        now_ns = self._now_ns()
        return Material(
            snapshot=snapshot,
            workflow=workflow,
            now_ns=now_ns,
            key=workflow_key(snapshot, workflow),
            policy_version=policy_version,
            state=self._state,
            records=self._records,
            log_findings=self._findings,
            reports=reports,
            unreadable=tuple(unreadable),
            traffic=traffic,
            versions=versions,
            datasets=self._datasets(workflow, versions),
            retirements=retirements(snapshot, datetime.fromtimestamp(now_ns // 10**9, tz=UTC).date(), is_deprecated),
        )

    def _versions(self, workflow: str, unreadable: list[str]) -> dict[str, ModelVersionV1]:
        found = {}
        for step in self.snapshot.workflows[workflow].route:
            pinned = self.snapshot.pinned.get(step.model) if isinstance(step, Variant) else None
            if pinned is None or not isinstance(step, Variant):
                continue
            try:
                found[step.model] = self._registry.version(pinned.name, pinned.number)
            except DrivetrainError as error:
                unreadable.append(f"The registry cannot tell of {step.model}: {error.what}")
        return found

    def _policy_version(self, workflow: str, unreadable: list[str]) -> str:
        policy = self.snapshot.workflows[workflow].policy
        if policy is None:
            return ""
        try:
            return compile_policy(as_policy(policy, workflow), self.snapshot.files, clock_ns=lambda: 0).version
        except DrivetrainError as error:
            unreadable.append(f"Its policy cannot be read: {error.what}")
            return ""

    def _traffic(self, workflow: str, since_ns: int, unreadable: list[str]) -> Traffic | None:
        try:
            return traffic_of(lake_for(self.snapshot), workflow, since_ns)
        except DrivetrainError as error:
            unreadable.append(f"The ledger cannot be read: {error.what}")
            return None

    def _datasets(self, workflow: str, versions: Mapping[str, ModelVersionV1]) -> dict[str, DatasetV1]:
        """Those that its evals and its models' trainings name, and that are registered."""
        datasets, found = datasets_in(self.snapshot), {}
        named = [one.dataset for one in versions.values() if one.dataset]
        for one in self.snapshot.evals.values():
            if one.workflow == workflow:
                named += [one.dataset, *one.suites.values()]
        for name in dict.fromkeys(named):
            with contextlib.suppress(DrivetrainError):
                dataset = datasets.show(name)
                found[f"{dataset.name}@{dataset.number}"] = dataset
        return found
