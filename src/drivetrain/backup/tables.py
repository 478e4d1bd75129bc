"""The lake's tables at one version each: which files that takes, and how far the roller had come in them.

A table is copied with the log that makes this version readable by itself: from the last checkpoint on, and nothing of
what came later. Data files that only older versions need are left behind. Called by the backup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from drivetrain.backup.generations import TableV1
from drivetrain.backup.stores import LakeStores
from drivetrain.core.errors import DrivetrainError
from drivetrain.lake.plans import Ledger
from drivetrain.lake.roller import TABLES

LOG = "_delta_log"
_NUMBERED = re.compile(r"(\d{20})\.(json|crc|checkpoint\..+)")
_COMPACTED = re.compile(r"(\d{20})\.(\d{20})\.compacted\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")


class Vanished(Exception):
    """A file that was to be copied is gone: it was replaced and tidied up meanwhile."""


class FixedTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table at one version."""

    name: str
    version: int
    roll: int
    rows: int
    files: tuple[tuple[str, Path], ...]
    """(path below the lake's tables, where it can be read), of every data file of this version."""
    log: tuple[str, ...]
    """Paths below the lake's tables."""

    def noted(self, copied: bool) -> TableV1:
        """As a manifest has it."""
        return TableV1(name=self.name, version=self.version, roll=self.roll, rows=self.rows, copied=copied)


def fixed_tables(lake: LakeStores, ledger: Ledger | None, *, copied: bool) -> list[FixedTable]:
    """Every table as it is now. copied: with its files; else nothing of it is fetched.

    Raises: Vanished, DrivetrainError.
    """
    return [fixed for name in lake.tables.tables() if (fixed := _fixed(lake, name, ledger, copied)) is not None]


def rolls(lake: LakeStores, ledger: Ledger) -> dict[str, int]:
    """Table -> the last roll of this ledger that it has; 0: none."""
    found = {}
    for table in TABLES:
        files = lake.tables.files(table, transactions=[ledger.application], where={"day": ()})
        found[table] = 0 if files is None else max(0, files.transactions[ledger.application])
    return found


def _fixed(lake: LakeStores, name: str, ledger: Ledger | None, copied: bool) -> FixedTable | None:
    info = lake.tables.info(name)
    if info is None:
        return None
    asked = () if ledger is None else (ledger.application,)
    # Of a table that is only noted no file is wanted; a store would send them all.
    nothing = {"day": ()} if name in TABLES else None
    version, roll = info.version, 0
    files: tuple[tuple[str, Path], ...] = ()
    if copied or name in TABLES:
        found = lake.tables.files(name, transactions=asked, where=None if copied else nothing)
        if found is None:
            raise Vanished(name)
        version = found.version
        roll = max((0, *found.transactions.values()))
        files = tuple((_below(lake, path), Path(path)) for path in found.paths)
    log = tuple(_log_of(lake, name, version)) if copied else ()
    return FixedTable(name=name, version=version, roll=roll, rows=info.rows, files=files, log=log)


def _log_of(lake: LakeStores, table: str, version: int) -> Iterator[str]:
    """What of a table's log its version is read from. Raises: Vanished."""
    paths = {path.rpartition("/")[2]: path for path in lake.raw.list(f"{table}/{LOG}")}
    checkpoints = [int(match[1]) for name in paths if (match := _CHECKPOINT.fullmatch(name)) is not None]
    first = max((number for number in checkpoints if number <= version), default=0)
    if f"{version:020d}.json" not in paths:
        raise Vanished(f"{table}, version {version}")
    for name, path in sorted(paths.items()):
        compacted, numbered = _COMPACTED.fullmatch(name), _NUMBERED.fullmatch(name)
        if compacted is not None:
            wanted = first <= int(compacted[1]) and int(compacted[2]) <= version
        elif numbered is not None:
            wanted = first <= int(numbered[1]) <= version
        else:
            # `_last_checkpoint` is a hint, which may name one that is not copied; without it the log is listed.
            wanted = f"/{LOG}/_sidecars/" in path
        if wanted:
            yield path


def _below(lake: LakeStores, path: str) -> str:
    for folder in lake.local:
        if path.startswith(f"{folder}/"):
            return path.removeprefix(f"{folder}/")
    raise DrivetrainError(f"A file of the lake lies outside of it: {path}.", looked=[str(one) for one in lake.local])
