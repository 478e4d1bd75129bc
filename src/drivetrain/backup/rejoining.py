"""Rejoining: restored segments meet a lake that was not restored with them, because it stands elsewhere and lives on.

Owns that each Call is counted once afterwards. Two things may have gone on since the backup's moment: rolls of these
very segments, by the machine that is gone; and that machine itself, which may come back. So

- the restored ledger gets a new id, under which its rolls are numbered from 1: nothing that the old one does, or did,
  is mistaken for its own. With `same` it keeps the id, which is right where the lake stands exactly as it was noted;
- where the lake has gone on, what it has of the restored records already is found by the Calls' ids, and only the rest
  is written down again, in one segment of its own, for the next roll to take.

What the old machine wrote after the backup and rolled stays in the lake, as it should. What it wrote and never rolled
is lost. Two machines that go on from one backup would both roll what had not been rolled yet: let only one.
Called by the restore, on the new folder before it takes its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from drivetrain.backup.generations import GenerationV1
from drivetrain.backup.stores import LakeStores
from drivetrain.backup.tables import rolls
from drivetrain.core.calls import OutcomeV1, SegmentV1, Stored
from drivetrain.core.errors import DrivetrainError
from drivetrain.lake import plans
from drivetrain.lake.plans import Ledger, Plan
from drivetrain.lake.roller import TABLES
from drivetrain.ledger.frames import Damage, Segment, records, segments
from drivetrain.ledger.journal import FrameJournal

AT_ONCE = 5_000
"""Records that are written, or looked for in the lake, at once."""

Identity = tuple[str, str, str, str, str, int]
"""Of an Outcome: what it is about, its metric, its source and when it arrived."""


class Rejoined(msgspec.Struct, frozen=True, kw_only=True):
    """How restored records and a lake that lived on came together."""

    ledger: str
    """The id under which they are rolled from now on; empty: nothing was ever rolled."""
    went_on: bool = False
    """The lake had rolls of these records that the backup knew nothing of."""
    calls_known: int = 0
    """Restored Calls that the lake had already."""
    calls_kept: int = 0
    """Those that it did not have, and that the next roll takes."""
    outcomes_kept: int = 0


def rejoin(data_folder: Path, lake: LakeStores, generation: GenerationV1, *, same: bool) -> Rejoined:
    """Make these records go on in that lake. Raises: DrivetrainError where it is not, or no longer, the one noted."""
    ledger = plans.ledger_of(data_folder)
    noted = {one.name: one.roll for one in generation.lake.tables}
    known = {table: noted.get(table, 0) for table in TABLES}
    now = known if ledger is None else rolls(lake, ledger)
    if any(now[table] < known[table] for table in TABLES):
        raise DrivetrainError(
            f"The lake at {lake.url} has {min(now.values())} rolls of these records, and the backup saw "
            f"{max(known.values())}: it is an older copy, or another lake.",
            looked=[lake.url],
            do="Correct `url` under [lake], or restore the lake to this or a later moment first.",
        )
    went_on = now != known or (ledger is None and any(lake.tables.info(table) for table in TABLES))
    if same and went_on:
        raise DrivetrainError(
            f"The lake at {lake.url} went on after this backup, so its ledger's id cannot be used again.",
            do="Leave out `--same`: the restored ledger gets an id of its own, and nothing is counted twice.",
        )
    if same or (ledger is None and not went_on):
        return Rejoined(ledger="" if ledger is None else ledger.id)
    numbers = plans.numbers(data_folder)
    base = plans.read_plan(data_folder, numbers[0]) if numbers else Plan(number=0)
    if not went_on and len(numbers) == 1:
        fresh = _begin(data_folder, msgspec.structs.replace(base, number=0, dropped=()))
        return Rejoined(ledger=fresh.id)
    return _written_again(data_folder, lake, base, went_on)


def _written_again(data_folder: Path, lake: LakeStores, base: Plan, went_on: bool) -> Rejoined:
    """What the lake lacks of the records beyond `base`, in one new segment; the others count as rolled."""
    found = segments(data_folder)
    beyond: set[str] = {frame.call_id for frames in base.carried.values() for frame in frames}
    outcomes: set[Identity] = set()
    for segment, offset, record in _records(found):
        if offset < base.ends.get(segment.name, 0):
            continue
        if isinstance(record, OutcomeV1):
            outcomes.add(_identity(record))
        elif not isinstance(record, SegmentV1):
            beyond.add(record.call_id)
    missing = beyond - _known_calls(lake, beyond)
    lacking = outcomes - _known_outcomes(lake, outcomes)
    journal = FrameJournal(data_folder)
    try:
        waiting = 0
        for segment, offset, record in _records(found):
            if isinstance(record, SegmentV1):
                continue
            if isinstance(record, OutcomeV1):
                wanted = offset >= base.ends.get(segment.name, 0) and _identity(record) in lacking
            else:
                wanted = record.call_id in missing
            if wanted:
                journal.append(record, _must)
                waiting += 1
                if waiting % AT_ONCE == 0:
                    journal.flush()
        journal.flush()
        fresh = _begin(
            data_folder,
            Plan(
                number=0,
                ends={segment.name: segment.size for segment in found},
                gone=tuple(sorted({segment.writer for segment in found})),
            ),
        )
    finally:
        journal.close()
    return Rejoined(
        ledger=fresh.id,
        went_on=went_on,
        calls_known=len(beyond) - len(missing),
        calls_kept=len(missing),
        outcomes_kept=len(lacking),
    )


def _begin(data_folder: Path, plan: Plan) -> Ledger:
    """A new ledger whose rolls begin at `plan`."""
    folder = plans.plans_folder(data_folder)
    (folder / "ledger").unlink(missing_ok=True)
    for number in plans.numbers(data_folder):
        (folder / str(number)).unlink()
    ledger = plans.make_ledger(data_folder)
    plans.write_plan(data_folder, plan)
    return ledger


def _records(found: Sequence[Segment]) -> Iterator[tuple[Segment, int, Stored]]:
    damage: list[Damage] = []
    for segment in found:
        for offset, _, record in records(segment, damage):
            yield segment, offset, record


def _must(written: bool) -> None:
    if not written:
        raise DrivetrainError("Restored records cannot be written again.", do="See whether the disk is full.")


def _identity(record: OutcomeV1) -> Identity:
    return (
        record.call_id,
        record.workflow,
        record.business_key,
        record.metric,
        record.source,
        record.arrived_ns,
    )


def _known_calls(lake: LakeStores, ids: set[str]) -> set[str]:
    found: set[str] = set()
    files = lake.tables.files("calls") if ids else None
    if files is None or not files.paths:
        return found
    for chunk in _chunks(sorted(ids)):
        found |= {
            call_id
            for (call_id,) in _asked(
                "SELECT call_id FROM read_parquet(?, union_by_name=true) WHERE call_id IN (SELECT unnest(?))",
                [list(files.paths), chunk],
            )
        }
    return found


def _known_outcomes(lake: LakeStores, wanted: set[Identity]) -> set[Identity]:
    files = lake.tables.files("outcomes") if wanted else None
    if files is None or not files.paths:
        return set()
    rows: set[Identity] = set()
    for chunk in _chunks(sorted({one[5] for one in wanted})):
        rows |= set(
            _asked(
                "SELECT call_id, workflow, business_key, metric, source, arrived_ns "
                "FROM read_parquet(?, union_by_name=true) WHERE arrived_ns IN (SELECT unnest(?))",
                [list(files.paths), chunk],
            )
        )
    return rows & wanted


def _asked(sql: str, parameters: list[object]) -> list[tuple[Any, ...]]:
    import duckdb

    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        return connection.execute(sql, parameters).fetchall()


def _chunks(items: Sequence[Any]) -> Iterator[list[Any]]:
    for at in range(0, len(items), AT_ONCE):
        yield list(items[at : at + AT_ONCE])
