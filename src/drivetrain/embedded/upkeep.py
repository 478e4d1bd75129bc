"""The upkeep of a project's lake, wired: what is rolled, how long things stay, whom segments are kept for."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.backup import layout
from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.asking import lake_stores, settings_of
from drivetrain.embedded.limiting import limits_folder
from drivetrain.project.files import find_root

if TYPE_CHECKING:
    from drivetrain.lake.retention import Keep, Maintained
    from drivetrain.lake.roller import Roller

STAMP = "maintained"
"""In the data folder's `lake-plans`: its time is that of the last upkeep."""


class Upkeep:
    """Of the project in or above a folder, by its settings. Raises: DrivetrainError."""

    def __init__(self, project: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        self.root = find_root(project or Path.cwd())
        self._environ = os.environ if environ is None else environ
        self.settings = settings_of(self.root, self._environ)
        self.data_folder = self.root / self.settings.ledger.folder
        layout.read_layout(self.data_folder)
        place = lake_stores(self.root, self.data_folder, self.settings.lake, self._environ)
        self.tables = place.tables
        self._objects = place.objects

    def roller(self) -> Roller:
        """What rolls its records."""
        from drivetrain.lake.roller import Roller

        return Roller(self.data_folder, self.tables)

    def waiting_bytes(self) -> int:
        """How much the segments hold that no roll covers; costs a listing of the folder."""
        from drivetrain.lake import plans
        from drivetrain.lake.waiting import waiting_bytes

        return waiting_bytes(self.data_folder, plans.newest(self.data_folder))

    def due(self, now_s: float, every_s: float) -> bool:
        """Whether the last upkeep is longer ago."""
        try:
            return now_s - self._stamp.stat().st_mtime >= every_s
        except FileNotFoundError:
            return True

    def maintain(self) -> Maintained:
        """Delete what is over, and what killed processes left; make few files of many. Raises: DrivetrainError."""
        from drivetrain.datasets import sweep_staging, sweep_strays
        from drivetrain.lake.retention import maintain

        sweep_staging(self.data_folder)
        sweep_strays(self._objects, time.time_ns())
        done = maintain(
            self.data_folder,
            self.tables,
            keep=self._keep(),
            history_s=self.settings.lake.history_s,
            needed=self._needed,
        )
        if not done.elsewhere:
            self._stamp.parent.mkdir(parents=True, exist_ok=True)
            self._stamp.touch()
        return done

    @property
    def _stamp(self) -> Path:
        return self.data_folder / "lake-plans" / STAMP

    def _keep(self) -> Keep:
        """How long each workflow's Calls stay. A project that cannot be loaded loses nothing: it is not tidied up."""
        from drivetrain.lake.retention import Keep
        from drivetrain.project.load import load, unload

        snapshot = load(self.root, self._environ.get("DRIVETRAIN_ENV"))
        try:
            said = {name: one.keep_days for name, one in snapshot.workflows.items() if one.keep_days is not None}
            return Keep(workflows=said, days=snapshot.lake.keep_days)
        finally:
            unload(snapshot)

    def _needed(self) -> Mapping[str, str]:
        """Segments from which open reservations of workers that ended are still to be resolved."""
        from drivetrain.adapters.sqlite_counters import SqliteCounters
        from drivetrain.ports.counters import StoreUnavailable

        folder = limits_folder(self.data_folder)
        if not (folder / "counters.db").exists():
            return {}
        try:
            store = SqliteCounters(folder)
            try:
                return store.positions()
            finally:
                store.close()
        except StoreUnavailable as error:
            raise DrivetrainError(
                f"The counters of budgets cannot be asked which records they still need: {error}.",
                looked=[str(folder)],
                do="Look at the disk and at who may write there; nothing was deleted.",
            ) from error
