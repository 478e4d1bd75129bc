"""What is not ours to erase: where else a person may stand, as far as the project knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.datasets import DatasetV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.features import AnySource, FileSource, PushSource
from drivetrain.erasure.receipt import Elsewhere
from drivetrain.lineage.lineage import Lineage
from drivetrain.ports.control import ControlLog, ControlRecord
from drivetrain.project.snapshot import Snapshot

EXPORTED = "exported"
"""The control log's kind of exports of Datasets."""
RECORDS_MAX = 1_000
"""Of the control log, that a receipt lists."""


def elsewhere(
    snapshot: Snapshot,
    control: ControlLog,
    id_: str,
    *,
    changed: Sequence[str],
    unmarked: Mapping[str, int],
    datasets: Iterable[DatasetV1],
    unreadable: Sequence[str],
    providers: Sequence[str],
) -> Elsewhere:
    """changed: Datasets that lose rows. datasets: all but the unreadable. providers: whom the Calls were sent to.

    Raises: DrivetrainError.
    """
    records = list(control.records())
    return Elsewhere(
        models=_made_from(snapshot, control, changed),
        files=tuple(sorted({path for source in snapshot.features.sources.values() for path in _files_of(source)})),
        sources=tuple(
            f"{name} ({source.owner})" if source.owner else name for name, source in snapshot.features.outside.items()
        ),
        exports=_exports(records, changed),
        providers=tuple(providers),
        unmarked=dict(unmarked),
        untold=tuple(one.artifact for one in datasets if _is_untold(one)),
        unreadable=tuple(unreadable),
        declared=tuple(sorted(path for path, content in snapshot.files.items() if id_.encode() in content)),
        control_records=tuple(one.seq for one in records if _names(one, id_))[:RECORDS_MAX],
    )


def _made_from(snapshot: Snapshot, control: ControlLog, changed: Sequence[str]) -> tuple[str, ...]:
    graph = Lineage(control, snapshot).graph()
    found = {one for artifact in changed for one in graph.downstream(artifact)}
    return tuple(sorted(one for one in found if one not in changed and "@" in one))


def _files_of(source: AnySource) -> list[str]:
    if isinstance(source, FileSource):
        return [source.path]
    if isinstance(source, PushSource) and source.batch_source is not None:
        return _files_of(source.batch_source)
    return []


def _exports(records: Sequence[ControlRecord], changed: Sequence[str]) -> tuple[str, ...]:
    found = []
    for record in records:
        if record.kind == EXPORTED and record.subject in changed:
            body: Any = msgspec.json.decode(record.body)
            if not isinstance(body, dict):
                raise DrivetrainError(f"Record {record.seq} of the control log cannot be read.")
            found.append(f"{body.get('to', '')} (record {record.seq})")
    return tuple(found)


def _is_untold(dataset: DatasetV1) -> bool:
    columns = dataset.schema.columns
    return any(one.personal for one in columns) and not any(one.subject or one.name == "call_id" for one in columns)


def _names(record: ControlRecord, id_: str) -> bool:
    text = msgspec.json.encode(id_).decode()[1:-1]
    return id_ in record.subject or id_ in record.actor or text in record.body
