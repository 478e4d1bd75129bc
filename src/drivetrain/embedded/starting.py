"""What a gateway starts with: what is live, once it was found to be what its records say.

Where it is not, the newest Release before it that is answers, and people are told: who could write to the control log
must not decide what is served. Called by `drivetrain serve`; how workers follow from then on is in `serving`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.releases import Live
from drivetrain.embedded.releasing import ReleasePlace, doubted, doubts_about, records_of
from drivetrain.project.document import environment_name, overlay, parse
from drivetrain.project.files import SETTINGS_FILE
from drivetrain.project.load import load, unload
from drivetrain.project.problems import Problems
from drivetrain.project.settings import read
from drivetrain.project.snapshot import LedgerSettings, Snapshot
from drivetrain.project.stored import load_stored
from drivetrain.promotion.state import lives

BACK_MAX = 16
"""Releases that a start looks at for one that is what its records say, newest first: each is loaded for it."""


class ToServe(msgspec.Struct, frozen=True):
    """What a gateway starts with."""

    snapshot: Snapshot
    live: Live


def to_serve(root: Path, environment: str | None = None) -> ToServe:
    """The live Release's stored Snapshot; the project's folder only where nothing was ever released.

    Where that Release is not what its records say, the newest before it that is; this is told.
    Raises: DrivetrainError where the control log was changed, where the Release cannot be loaded, or where none is what
    its records say; ProjectError with every mistake in the folder.
    """
    root = root.resolve()
    environment, ledger = _whereabouts(root, environment)
    place = ReleasePlace(
        root=root, environment=environment, data_folder=root / ledger.folder, keys_folder=root / ledger.keys_folder
    )
    found = lives(records_of(place), environment)
    if not found:
        return ToServe(load(root, environment), Live(environment=environment))
    for live in reversed(found[-BACK_MAX:]):
        try:
            snapshot = load_release(root, live)
        except DrivetrainError as error:
            if live is found[-1]:
                raise
            print(f"drivetrain: {error}", file=sys.stderr)
            continue
        for what, said, there in (
            ("records", snapshot.data_folder, place.data_folder), ("keys", snapshot.keys_folder, place.keys_folder),
        ):  # fmt: skip
            if said != there:
                raise DrivetrainError(
                    f"Release {live.release} keeps its {what} in {said}, and the project's folder says {there}.",
                    looked=[str(root / SETTINGS_FILE), str(place.control_log)],
                    do=f"Set it back in [ledger], or move the {what} and release that setting.",
                )
        why = doubts_about(place, live.release, snapshot)
        if not why:
            return ToServe(snapshot, live if live is found[-1] else msgspec.structs.replace(live, active=None))
        unload(snapshot)
        print(f"drivetrain: RELEASE {live.release} IS NOT SERVED. {doubted(live.release, why)}", file=sys.stderr)
    raise DrivetrainError(
        f"No Release of `{environment}` is what its records say, so none is served.",
        looked=[f"Release {one.release}" for one in reversed(found[-BACK_MAX:])],
        do="Restore stored Snapshots and Reports from your backup, or propose the project's folder and promote that.",
    )


def load_release(root: Path, live: Live) -> Snapshot:
    """The stored Snapshot of what is live, proved to be what was approved. Raises: DrivetrainError."""
    folder = root / ".drivetrain" / "snapshots"
    try:
        return load_stored(folder, live.snapshot, root)
    except DrivetrainError as error:
        raise DrivetrainError(
            f"Release {live.release} is live in `{live.environment}`, and its Snapshot {live.snapshot[:16]} cannot be "
            f"loaded.\n{error}",
            looked=[str(folder)],
            do="Restore it from your backup, or run `drivetrain rollback`.",
        ) from error


def _whereabouts(root: Path, environment: str | None) -> tuple[str, LedgerSettings]:
    """Environment and ledger by the folder's settings, whatever else is wrong with it."""
    problems = Problems()
    try:
        parsed = parse((root / SETTINGS_FILE).read_bytes(), problems)
    except OSError:
        parsed = None
    name = environment_name(parsed, environment, os.environ)
    settings = read(overlay(parsed, name, problems), root, problems) if parsed is not None else None
    return name, settings.ledger if settings is not None else LedgerSettings()
