"""What is not ours to erase: where else a person may stand, as far as the project knows."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.core.datasets import DatasetV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.core.features import AnySource, FileSource, PushSource
from drivetrain.datasets.checks import CALL_ID
from drivetrain.erasure.receipt import Elsewhere
from drivetrain.features.erasing import subject_keys
from drivetrain.lineage.lineage import Lineage
from drivetrain.ports.control import ControlLog, ControlRecord
from drivetrain.project.snapshot import Features, Snapshot

EXPORTED = "exported"
"""The control log's kind of exports of Datasets."""
RECORDS_MAX = 1_000
"""Of the control log, that a receipt lists."""
NAMED_MAX = 1_000
"""Of Datasets in which nothing was looked for: the control log bounds what a receipt may say."""
RESTORES = ("before-restore-", "restoring-")
"""How names of folders go on that a restore moves aside, or makes."""


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
    datasets = list(datasets)
    untold = [one.artifact for one in datasets if _is_untold(one)]
    unsaid = [one.artifact for one in datasets if not _says_whose(one) and one.artifact not in untold]
    return Elsewhere(
        models=_made_from(snapshot, control, changed),
        files=tuple(sorted({path for source in snapshot.features.sources.values() for path in _files_of(source)})),
        sources=tuple(
            f"{name} ({source.owner})" if source.owner else name for name, source in snapshot.features.outside.items()
        ),
        exports=_exports(records, changed),
        providers=tuple(providers),
        unmarked=dict(unmarked),
        untold=tuple(untold),
        unsaid=tuple(unsaid[:NAMED_MAX]),
        entities=dict(_unsearched(snapshot.features)),
        aside=tuple(sorted(str(folder) for folder in _aside(snapshot))),
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
    return any(one.personal for one in dataset.schema.columns) and not _says_whose(dataset)


def _says_whose(dataset: DatasetV1) -> bool:
    return any(one.subject or one.name == CALL_ID for one in dataset.schema.columns)


def _unsearched(features: Features) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(entity that is not said to be a person, what has its keys)."""
    persons = frozenset(subject_keys(features.entities))
    for name, entity in features.entities.items():
        if persons.issuperset(entity.join_keys):
            continue
        views = [one for one in features.views.values() if any(of.name == name for of in one.entities)]
        pushed = dict.fromkeys(one.source.name for one in views if isinstance(one.source, PushSource))
        found = [f"features of view {one.name}" for one in views if one.online]
        yield name, (*found, *(f"rows pushed to {one}" for one in pushed))


def _aside(snapshot: Snapshot) -> Iterator[Path]:
    """A folder's own, beside it, or inside of it where it is a disk's mount point."""
    places = [snapshot.data_folder, snapshot.keys_folder]
    if snapshot.lake.url and not snapshot.lake.url.startswith("s3://"):
        places.append(Path(snapshot.lake.url.removeprefix("file://")))
    for place in {one.resolve() for one in places}:
        for word in RESTORES:
            beside = place.parent.glob(f"{glob.escape(place.name)}.{word}*")
            yield from (one for one in (*beside, *place.glob(f".{word}*")) if one.is_dir())


def _names(record: ControlRecord, id_: str) -> bool:
    text = msgspec.json.encode(id_).decode()[1:-1]
    return id_ in record.subject or id_ in record.actor or text in record.body
