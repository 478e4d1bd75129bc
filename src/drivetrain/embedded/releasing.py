"""Releases of a project on disk: its control log, its stored Snapshots and its Reports, wired to `promotion/`.

What is live, what was proposed, and whether a Release is what it says. Used by the commands and by whatever asks what
is live; how it is changed is in `promoting`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drivetrain.adapters.sqlite import SqliteControlLog, open_control_log
from drivetrain.backup import layout
from drivetrain.core.errors import DrivetrainError, did_you_mean
from drivetrain.core.releases import EvidenceV1, Live
from drivetrain.core.reports import ReportV1
from drivetrain.ports.control import CONTROL_FILE, ControlRecord
from drivetrain.project.document import DEFAULT_ENVIRONMENT, environment_name, overlay, parse
from drivetrain.project.files import SETTINGS_FILE, find_root
from drivetrain.project.problems import Problems
from drivetrain.project.settings import read
from drivetrain.promotion import state
from drivetrain.promotion.recorded import runs_in
from drivetrain.promotion.standing import Released, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drivetrain.core.datasets import SchemaV1
    from drivetrain.datasets.numbers import Shelf
    from drivetrain.project.snapshot import Snapshot
    from drivetrain.promotion.evidence import Newest
    from drivetrain.promotion.recorded import Runs


GetReport = Callable[[str], ReportV1]


NUMBERS_ALIKE_MAX = 20
"""Of a Dataset, the newest, that are held against the newest one: each costs reading its manifest."""
BASES_MAX = 16
"""Releases that one builds on and that are looked at with it: each is loaded for it."""


class ReleasePlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where an environment's Releases are."""

    root: Path
    environment: str
    data_folder: Path
    keys_folder: Path

    @property
    def snapshots_folder(self) -> Path:
        return self.root / ".drivetrain" / "snapshots"

    @property
    def control_log(self) -> Path:
        """The control log's database."""
        return self.data_folder / CONTROL_FILE

    def log(self) -> SqliteControlLog:
        """The control log; made where there is none yet. Raises: DrivetrainError."""
        return open_control_log(self.data_folder, self.keys_folder)


def place_of(project: Path | str, environment: str | None = None) -> ReleasePlace:
    """The place of the project in or above a folder, by its settings alone: its code may have mistakes.

    environment: by default $DRIVETRAIN_ENV, else `[project] default_env`. Raises: DrivetrainError.
    """
    root, problems = find_root(Path(project)), Problems()
    try:
        parsed = parse((root / SETTINGS_FILE).read_bytes(), problems)
    except OSError as error:
        raise DrivetrainError(f"{root / SETTINGS_FILE} cannot be read: {error}.") from None
    if parsed is None:
        raise DrivetrainError(f"{root / SETTINGS_FILE} cannot be read.", do="Run `drivetrain check`.")
    name, declared = environment_name(parsed, environment, os.environ), parsed.values.get("env")
    known = declared if isinstance(declared, dict) else {}
    if name not in known and name != DEFAULT_ENVIRONMENT:
        raise DrivetrainError(
            f"The environment `{name}` is not declared.",
            looked=[str(root / SETTINGS_FILE)],
            do=did_you_mean(name, known) if known else f"Add `[env.{name}]`.",
        )
    ledger = read(overlay(parsed, name, problems), root, problems).ledger
    layout.read_layout(root / ledger.folder)
    return ReleasePlace(
        root=root, environment=name, data_folder=root / ledger.folder, keys_folder=root / ledger.keys_folder
    )


def live_of(root: Path | str, environment: str | None = None) -> Live:
    """What is to be served in an environment of the project; `release` 0 where nothing was released.

    Raises: DrivetrainError where the control log was changed from outside, or is gone.
    """
    return state_of(place_of(root, environment)).live


def state_of(place: ReleasePlace, at_ns: int | None = None) -> State:
    """Everything about an environment, now or as it was at a time. Raises: DrivetrainError as `live_of`."""
    records = records_of(place)
    if at_ns is None:
        return state.read(records, place.environment)
    return state.read_at(records, place.environment, at_ns)


def records_of(place: ReleasePlace) -> list[ControlRecord]:
    """Every record of the control log, proved. Raises: DrivetrainError as `live_of`."""
    kept = (place.control_log, place.keys_folder / "control.anchor", place.keys_folder / "control.key")
    if not any(one.exists() for one in kept):
        return []
    log = place.log()
    found = log.verify()
    if not found.whole:
        raise DrivetrainError(
            f"The control log was changed from outside, so what is live cannot be told. {' '.join(found.findings)}",
            looked=[str(place.control_log), str(place.keys_folder / "control.anchor")],
            do="Run `drivetrain audit verify`, and restore both files from your backup.",
        )
    return list(log.records())


def stored_snapshot(place: ReleasePlace, digest: str, *, models: bool = True) -> Snapshot:
    """A stored Snapshot, its content and its trained models proved to be what was stored.

    models: False where it is compared with only: a damaged model must not stand in the way of what replaces it.
    Raises: DrivetrainError where a byte of them was changed; ProjectError where this version does not accept it.
    """
    from drivetrain.embedded.modelling import registry_in
    from drivetrain.project.load import unload
    from drivetrain.project.stored import load_stored

    snapshot = load_stored(place.snapshots_folder, digest, place.root)
    if models and snapshot.pinned:
        try:
            registry = registry_in(place.data_folder, place.keys_folder)
            for pinned in snapshot.pinned.values():
                registry.open(pinned)
        except BaseException:
            unload(snapshot)
            raise
    return snapshot


def doubts(
    found: State, release: int, after: Snapshot, before: Snapshot | None, *, report: GetReport, runs: Runs
) -> tuple[str, ...]:
    """What keeps a Release from being what its records say, in words; empty where nothing does.

    A rollback is what the Release is that it restores. after: its Snapshot; before: the one that its proposal was made
    against, None where it was the first. report: the Report of an id; may raise DrivetrainError. runs: of the log.
    """
    from drivetrain.promotion.evidence import hurried, missing, untold
    from drivetrain.promotion.recorded import is_older, unrecorded

    released = original(found, release)
    made = released.release
    if made.snapshot != after.hash or found.releases[release].release.snapshot != after.hash:
        return ("it is of another Snapshot",)
    proposal = found.proposals[made.proposal].proposal
    in_force = found.releases[proposal.base].rules if proposal.base else proposal.rules
    hidden = (
        *untold(proposal, before=before, after=after, in_force=in_force),
        *hurried(made, proposal, before=before, after=after),
    )
    older = is_older(runs, released.seq)

    def doubted(one: EvidenceV1, _: ReportV1) -> str:
        return "" if older else unrecorded(runs, one.report, one, released.seq)

    unproved = missing(
        (*proposal.evidence, *made.evidence), before=before, after=after, in_force=in_force, report=report,
        doubted=doubted,
    )  # fmt: skip
    if made.way == "override":
        said = {one.partition(": ")[0] for one in made.lacks}
        unproved = tuple(one for one in unproved if one.partition(": ")[0] not in said)
    return (*hidden, *unproved)


def original(found: State, release: int) -> Released:
    """The Release itself, or the one that it restores in the end."""
    made = found.releases[release]
    while made.release.way == "rollback":
        made = found.releases[made.release.restores]
    return made


def doubts_about(
    place: ReleasePlace,
    release: int,
    after: Snapshot,
    *,
    held: Mapping[str, Snapshot] | None = None,
    proved: Collection[int] = (),
) -> tuple[str, ...]:
    """As `doubts`, of a Release by its number and of those that it builds on; loads these, and lets go of them.

    What a Release changes is told against the one before it, so one that is not what its records say must not become
    the ground of others.

    after: its Snapshot, loaded. held: Snapshots that are loaded already, by hash. proved: Releases about which there
    were none; nothing behind them is looked at. Raises: DrivetrainError where the log was changed.
    """
    from drivetrain.embedded.modelling import reports_in

    records = records_of(place)
    found, runs = state.read(records, place.environment), runs_in(records)
    if release not in found.releases:
        return (f"the control log knows no Release {release} of `{place.environment}` that counts",)
    reports = reports_in(place.data_folder, place.keys_folder)
    with ExitStack() as loaded:
        number, snapshot = release, after
        for _ in range(BASES_MAX):
            made = original(found, number).release
            if made.snapshot == snapshot.hash and not {number, made.number}.isdisjoint(proved):
                return ()
            proposal = found.proposals[made.proposal].proposal
            try:
                before = _base(place, proposal.base_snapshot, held or {}, loaded)
                why = doubts(
                    found, number, snapshot, before, report=lambda id: reports.get(id).report, runs=runs
                )  # fmt: skip
            except DrivetrainError as error:
                why = (f"what it changed cannot be looked at: {error}",)
            if why:
                return why if number == release else (f"it builds on Release {number}, which is not: {'; '.join(why)}",)
            if before is None:
                return ()
            number, snapshot = proposal.base, before
    return ()


def _base(place: ReleasePlace, digest: str, held: Mapping[str, Snapshot], loaded: ExitStack) -> Snapshot | None:
    """What a proposal was made against; None for nothing."""
    from drivetrain.project.load import unload

    if not digest or digest in held:
        return held.get(digest)
    snapshot = stored_snapshot(place, digest, models=False)
    loaded.callback(unload, snapshot)
    return snapshot


def doubted(release: int, why: Iterable[str]) -> DrivetrainError:
    """Why a Release is not served, for the person who must act."""
    return DrivetrainError(
        f"Release {release} is not what its records say: {'; '.join(why)}.",
        do="`drivetrain history` tells who made it. Go back with `drivetrain rollback`, or propose it anew.",
    )


def newest_numbers(snapshot: Snapshot) -> Newest:
    """A Dataset's name -> its newest number and those that hold the same; the lake is opened when it is first asked."""
    known: dict[str, Sequence[int]] = {}

    def newest(name: str) -> Sequence[int]:
        from drivetrain.datasets.numbers import Shelf
        from drivetrain.embedded.asking import lake_stores

        if name not in known:
            known[name] = _alike(Shelf(lake_stores(snapshot.root, snapshot.data_folder, snapshot.lake).objects), name)
        return known[name]

    return newest


def _alike(shelf: Shelf, name: str) -> list[int]:
    """The newest number of a Dataset, and older ones with its rows and schema: made again from an unchanged file."""
    from drivetrain.core.datasets import Reference

    numbers = shelf.numbers(name).get(name, [])[-NUMBERS_ALIKE_MAX:]

    def content(number: int) -> tuple[str, SchemaV1] | None:
        with contextlib.suppress(DrivetrainError):  # what cannot be read is like nothing
            one = shelf.read(Reference(name, number))
            return one.content_hash, one.schema
        return None

    last = content(numbers[-1]) if len(numbers) > 1 else None
    return [*numbers[-1:], *(one for one in reversed(numbers[:-1]) if last is not None and content(one) == last)]
