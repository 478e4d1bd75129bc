"""Migration: stores that an earlier version wrote are brought up to this one.

Owns the steps and their order. Every stored type of every earlier version is read as it is, so a migration changes
where things stand and never what they say. Each step looks whether it is needed, may be cut off anywhere and done
again; `layout.json` is written last. Called by the command line.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from drivetrain.backup import layout
from drivetrain.backup.databases import columns, user_version
from drivetrain.core.errors import DrivetrainError
from drivetrain.lake import plans
from drivetrain.ledger.frames import segments
from drivetrain.ports.control import CONTROL_FILE

OLD_CACHES = ("cache/parts.1",)
"""Below the data folder: what queries of before the lake kept, and nobody reads any more."""
SCHEMAS: Mapping[str, tuple[int, Mapping[str, frozenset[str]]]] = {
    CONTROL_FILE: (
        0,
        {"control": frozenset({"seq", "at_ns", "kind", "actor", "subject", "body", "prev_hash", "hash"})},
    ),
    "keys.db": (
        1,
        {"issued_keys": frozenset({"name", "generation", "digest", "mac"}), "pending": frozenset({"change"})},
    ),
    "limits/counters.db": (
        0,
        {
            "accounts": frozenset({"id", "kind", "cap", "settled", "held"}),
            "leases": frozenset({"worker", "slice", "account", "told"}),
            "workers": frozenset({"id", "boot", "mark", "open", "position"}),
        },
    ),
    "idempotency/keys.db": (1, {"known": frozenset({"id", "body", "holder", "ended_ns", "answer"})}),
}
"""Database -> the newest `user_version` that is known, and what every version of it that was released has."""


class Step(msgspec.Struct, frozen=True):
    """One thing that a migration does, or would do."""

    what: str
    detail: str


def migrate(data_folder: Path, *, roll: Callable[[], str], dry_run: bool = False) -> list[Step]:
    """What was done, or with `dry_run` would be; nothing where the folder is as this version has it.

    roll: rolls the segments into the lake, and says what it did. Raises: DrivetrainError; what was done stays, and the
    next call does the rest.
    """
    before = layout.read_layout(data_folder)
    if not data_folder.is_dir():
        return []
    _check_databases(data_folder)
    done = []
    try:
        for name in OLD_CACHES:
            old = data_folder / name
            if old.is_dir():
                done.append(Step("remove", f"{name}: {_size(old):,} bytes of a query cache that nobody reads"))
                if not dry_run:
                    shutil.rmtree(old)
        if plans.ledger_of(data_folder) is None and any(one.size for one in segments(data_folder)):
            waiting = [one for one in segments(data_folder) if one.size]
            detail = f"{len(waiting)} segments, {sum(one.size for one in waiting):,} bytes, into the lake"
            done.append(Step("roll", detail if dry_run else f"{detail}: {roll()}"))
        if before < layout.LAYOUT:
            done.append(Step("note layout", f"{before} -> {layout.LAYOUT}"))
            if not dry_run:
                layout.write_layout(data_folder)
    except OSError as error:
        raise DrivetrainError(
            f"{error.filename or data_folder} cannot be changed: {error.strerror or error}.",
            looked=[str(data_folder)],
            do="Look at the disk and at who may write there, and run it again: it goes on from here.",
        ) from error
    return done


def _check_databases(data_folder: Path) -> None:
    """Raises: DrivetrainError where one is damaged, of a newer version, or not what its name says."""
    for name, (newest, tables) in SCHEMAS.items():
        path = data_folder / name
        if not path.exists() or not path.stat().st_size:
            continue
        version = user_version(path)
        if version > newest:
            raise DrivetrainError(
                f"{path} has schema {version}, and this version knows {newest}. Nothing was changed.",
                looked=[str(path)],
                do="Use the version of Drivetrain that wrote it, or upgrade this one.",
            )
        found = columns(path)
        for table, wanted in tables.items():
            missing = sorted(wanted - found.get(table, frozenset())) if table in found else []
            if missing:
                raise DrivetrainError(
                    f"{path} is not one that Drivetrain wrote: its table `{table}` lacks {', '.join(missing)}.",
                    looked=[str(path)],
                    do="Restore it from a backup.",
                )


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
