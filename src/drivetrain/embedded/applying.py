"""A folder is served: its Snapshot is stored by its hash for replays, and the control log says so."""

from __future__ import annotations

import os
import pwd

from drivetrain.adapters.sqlite import open_control_log
from drivetrain.core.errors import DrivetrainError
from drivetrain.ports.control import APPLIED
from drivetrain.project.snapshot import Snapshot
from drivetrain.project.stored import store
from drivetrain.version import VERSION


def apply(snapshot: Snapshot) -> None:
    """Store and log it. Raises: DrivetrainError where a folder cannot be written."""
    keep(snapshot)
    body = {"project": snapshot.name, "environment": snapshot.environment, "version": VERSION}
    log = open_control_log(snapshot.data_folder, snapshot.keys_folder)
    log.append(kind=APPLIED, actor=person(), subject=snapshot.hash, body=body)


def keep(snapshot: Snapshot) -> None:
    """Store its content, so that its Calls can be replayed whatever becomes of the folder."""
    try:
        store(snapshot, snapshot.snapshots_folder)
    except OSError as error:
        raise DrivetrainError(
            f"Snapshot {snapshot.short_hash} cannot be stored: {error.strerror}.",
            looked=[str(snapshot.snapshots_folder)],
            do="Make the folder writable; without it no Call could be replayed.",
        ) from error


def person() -> str:
    """Who runs this process, by the system's own word: the user of its uid, whatever the environment variables say.

    `uid-NUMBER` where the system has no name for it.
    """
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid-{uid}"
