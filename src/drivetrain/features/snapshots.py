"""What was materialized, as tables that people can ask: `feature.VIEW` and `feature."VIEW@AS_OF"` in SQL.

Owns the Parquet file that a materialization leaves of each view beside the online vectors, in the lake's files:
    features/VIEW/AS_OF-TOKEN.parquet       one row per entity: join keys, features (no default stands in),
                                            `event_timestamp`
A file never changes; the last few of a view are kept. Views of persons (an entity with `subject=True`) leave none: what
is known of somebody stands in as few places as serving needs. Called by materialization, and by the lake that shows
them.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.core.errors import DrivetrainError
from drivetrain.core.sql import literal
from drivetrain.datasets.workplaces import working_folder
from drivetrain.features.scratch import explained
from drivetrain.ports.tables import ObjectStore

if TYPE_CHECKING:
    import duckdb

FOLDER = "features"
KEPT = 3
"""Per view: enough to compare the last with the one before; a history of features is what training sets are for."""
ROW_GROUP_ROWS = 100_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FILE = re.compile(r"features/([^/]+)/([0-9]{8}T[0-9]{6}\.[0-9]{6}Z)-[0-9a-f]{8}\.parquet")


class Snapshots:
    """The files of what was materialized.

    scratch: where one is written before the store takes it; see `working_folder`.
    """

    def __init__(
        self,
        objects: ObjectStore,
        *,
        scratch: Path | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._objects = objects
        self._scratch = scratch
        self._entropy = entropy

    def write(self, relations: Mapping[str, duckdb.DuckDBPyRelation], as_of_us: int) -> dict[str, str]:
        """View -> the file with its rows, whole or not there. The oldest of these views go. Raises: DrivetrainError."""
        moment = f"{_EPOCH + timedelta(microseconds=as_of_us):%Y%m%dT%H%M%S.%fZ}"
        written = {}
        with working_folder(self._scratch) as folder:
            for view, relation in relations.items():
                path = f"{FOLDER}/{view}/{moment}-{self._entropy(4).hex()}.parquet"
                local = folder / "rows.parquet"
                with explained(f"The rows of FeatureView `{view}`", "written"):
                    relation.query(
                        "materialized",
                        f"COPY (FROM materialized) TO {literal(str(local))} "
                        f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS})",
                    )
                self._objects.put_file(path, local)
                local.unlink()
                written[view] = path
                self._keep(view, path, moment)
        return written

    def remove(self, but: Collection[str]) -> None:
        """Delete the files of views other than these: of those that are gone, or that may have none any more."""
        for path in self._objects.list(FOLDER):
            found = _FILE.fullmatch(path)
            if found is not None and found[1] not in but:
                self._objects.delete(path)

    def _keep(self, view: str, written: str, moment: str) -> None:
        """What was written, and the newest others of other moments."""
        others = [path for path in self._objects.list(f"{FOLDER}/{view}") if _FILE.fullmatch(path) and path != written]
        same = [path for path in others if path.startswith(f"{FOLDER}/{view}/{moment}-")]
        newest = sorted(set(others).difference(same))[-(KEPT - 1) :]
        for path in set(others).difference(newest):
            with contextlib.suppress(DrivetrainError):  # what cannot be deleted now goes with the next
                self._objects.delete(path)


def snapshot_paths(objects: ObjectStore) -> dict[str, Sequence[Path]]:
    """`VIEW` (the newest moment) and `VIEW@AS_OF` -> local Parquet files."""
    found: dict[str, Sequence[Path]] = {}
    for path in objects.list(FOLDER):  # by moment, rising
        named = _FILE.fullmatch(path)
        local = objects.local(path) if named is not None else None
        if named is not None and local is not None:
            found[named[1]] = found[f"{named[1]}@{named[2]}"] = [local]
    return found
