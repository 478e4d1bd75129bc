"""A project's stores, as backup, restore and migration see them: folders, databases, and the lake behind its ports.

Owns the names under which files stand in a backup, and which files of the data folder are no part of one. Made by the
command line, which knows the settings and the adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from drivetrain.ports.control import CONTROL_FILE
from drivetrain.ports.tables import ObjectStore, TableStore

DATABASES = ("keys.db", CONTROL_FILE, "limits/counters.db", "idempotency/keys.db")
"""Below the data folder, in the order in which they are copied: who tells of others goes before them.

An issued key is in the control log before it is let in. What counters have booked and what answers were kept stands in
segments, which are copied later; a budget's open reservations are resolved from them."""
ONLINE = "online"
"""Below the data folder: vectors of features, one folder per table."""


class LakeStores(msgspec.Struct, frozen=True, kw_only=True):
    """A lake: its tables through their port, and the files that both consist of."""

    url: str = ""
    """As `[lake]` has it; empty: in the data folder."""
    tables: TableStore
    raw: ObjectStore
    """The files of the tables: `calls/_delta_log/...`."""
    files: ObjectStore
    """The files beside the tables: Datasets."""
    local: tuple[Path, ...]
    """Below one of these lie the paths that `tables.files` gives, by the same names as in `raw`."""

    @property
    def is_remote(self) -> bool:
        """Whether it stands in an object store, which others may use too."""
        return "://" in self.url and not self.url.startswith("file://")


class Stores(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that belongs to one project and is not in its repository."""

    root: Path
    data_folder: Path
    keys_folder: Path
    snapshots_folder: Path
    lake: LakeStores
    lake_folder: Path | None
    """Where its lake is to stand; None: in an object store."""


def snapshot_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path, file) of every stored Snapshot that is whole."""
    if not folder.is_dir():
        return
    for snapshot in sorted(folder.iterdir()):
        if snapshot.name.startswith(".") or not (snapshot / "manifest.json").is_file():
            continue
        for file in sorted(snapshot.rglob("*")):
            if file.is_file() and not file.is_symlink():
                yield file.relative_to(folder).as_posix(), file
