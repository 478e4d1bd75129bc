"""Releases of a project in a test's folder, as the control log gets them from whoever may make them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from drivetrain.adapters.sqlite import SqliteControlLog
from drivetrain.core.releases import (
    PROMOTED,
    PROPOSED,
    ROLLOUT,
    ActiveRollout,
    Live,
    ProposalV1,
    ReleaseV1,
    RolloutEventV1,
    RolloutV1,
    StageV1,
)
from drivetrain.project.load import load, unload
from drivetrain.project.snapshot import Snapshot
from drivetrain.project.stored import load_stored, store
from drivetrain.promotion.plan import Plan, plan_of
from drivetrain.promotion.state import live, read

BY = "alice"
ID = "0123456789abcdef"
"""Of every rollout that is made here."""


class Releases:
    """Releases of the project in `root`; nobody must approve them, since it declares no rules."""

    def __init__(self, root: Path, environment: str = "default", *, ago_s: int = 0) -> None:
        """ago_s: how long ago all of it was done, as the log says."""
        self.root = root
        self._ago_ns = ago_s * 1_000_000_000
        self.environment = environment

    def store(self, files: Mapping[str, str]) -> Snapshot:
        """What the folder is with these files, stored."""
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        snapshot = load(self.root, self.environment)
        store(snapshot, snapshot.snapshots_folder)
        unload(snapshot)
        return snapshot

    def release(
        self, digest: str, workflows: Sequence[str] = ("said",), *shares: float, planned: Plan | None = None
    ) -> int:
        """Its number. workflows: what it changes, at least. shares: of a canary's stages; without any it is live at
        once. planned: as it was when the stored Snapshot was whole still."""
        now = read(self.log.records(), self.environment)
        stages = tuple(StageV1(share_ppm=int(share * 1e6), minutes=60, units=1_000_000) for share in shares)
        planned = planned or self.planned(digest)
        assert set(workflows) <= set(planned.keys), planned.keys
        proposal = ProposalV1(
            number=now.next_proposal, environment=self.environment, snapshot=digest, base=now.live.release,
            base_snapshot=now.live.snapshot, by=BY, keys=planned.keys, changes=planned.changes, rules=planned.rules,
        )  # fmt: skip
        self._append(PROPOSED, proposal.number, proposal)
        made = ReleaseV1(
            number=now.next_release, environment=self.environment, way="promote", snapshot=digest,
            previous=now.live.release, by=BY, proposal=proposal.number, proposal_hash=proposal.hash,
            workflows=tuple(sorted(planned.keys)), rollout=RolloutV1(id=ID, stages=stages) if stages else None,
        )  # fmt: skip
        self._append(PROMOTED, made.number, made)
        return made.number

    def planned(self, digest: str) -> Plan:
        """What a stored Snapshot changes."""
        now = read(self.log.records(), self.environment).live
        folder = self.root / ".drivetrain" / "snapshots"
        after = load_stored(folder, digest, self.root)
        before = load_stored(folder, now.snapshot, self.root) if now.release else None
        try:
            return plan_of(
                before, after, release=now.release, in_force=now.rules if now.release else None, proof=lambda _: ""
            )
        finally:
            for one in (before, after):
                if one is not None:
                    unload(one)

    def roll_back(self, to: int, digest: str) -> int:
        """Its number."""
        now = read(self.log.records(), self.environment)
        made = ReleaseV1(
            number=now.next_release, environment=self.environment, way="rollback", snapshot=digest,
            previous=now.live.release, by=BY, restores=to, reason="it was worse",
        )  # fmt: skip
        self._append(PROMOTED, made.number, made)
        return made.number

    def event(self, event: str, stage: int = 0) -> None:
        """Something happens to the rollout that is under way."""
        body = RolloutEventV1(
            environment=self.environment, release=self.active.release, event=event, stage=stage, by=BY
        )
        self._append(ROLLOUT, body.release, body)

    @property
    def live(self) -> Live:
        """What the log says is live."""
        found = live(self.log.records(), self.environment)
        assert not found.refused, found.refused
        return found

    @property
    def active(self) -> ActiveRollout:
        """The rollout that is under way."""
        active = self.live.active
        assert active is not None
        return active

    @property
    def run_folder(self) -> Path:
        """Where workers tell what they serve."""
        return self.root / ".drivetrain" / "data" / "run"

    def beat(self) -> None:
        """The watcher shows life."""
        (self.run_folder / "rollout.beat").touch()

    @property
    def log(self) -> SqliteControlLog:
        database, keys = self.root / ".drivetrain/data/control.db", self.root / ".drivetrain/keys"
        return SqliteControlLog(database, keys, now_ns=lambda: time.time_ns() - self._ago_ns)

    def _append(self, kind: str, number: int, body: msgspec.Struct) -> None:
        self.log.append(kind=kind, actor=BY, subject=f"{self.environment}/{number}", body=msgspec.to_builtins(body))
