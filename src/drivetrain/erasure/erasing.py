"""Erasure: everything that a project's stores know of a person goes, everywhere, and a receipt stays.

Owns the order of the steps. A note outside the data folder says how far it has come, so that an erasure that was cut
off anywhere is finished by whoever looks next. Keys go first: from then on no prompt and no answer can be read. What
tells whose everything else is, the Calls' users, goes last. It runs beside gateways that serve, and readers begin anew.
Called by `drivetrain erase`, which wires the stores.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from drivetrain.core.calls import OpenedV1, ReservedV1
from drivetrain.core.errors import DrivetrainError
from drivetrain.datasets.erasing import DatasetErasing
from drivetrain.datasets.numbers import Shelf
from drivetrain.datasets.workplaces import staging_folder, sweep_staging
from drivetrain.erasure.elsewhere import elsewhere
from drivetrain.erasure.note import Note, alone, fresh_note, remove_note, unfinished, write_note
from drivetrain.erasure.receipt import ERASE, Elsewhere, Places, Receipt
from drivetrain.evals.run_erasing import RunErasing
from drivetrain.features.definitions import define
from drivetrain.features.erasing import OnlineErasing, subject_keys
from drivetrain.lake import plans
from drivetrain.lake.erasing import LakeErasing, settle
from drivetrain.lake.holding import deleting
from drivetrain.lake.lake import Lake
from drivetrain.lake.subjects import ERASED, Subject, subject_of
from drivetrain.ledger.frames import Segment, records, records_of
from drivetrain.ledger.leaving import leave_all
from drivetrain.limits.recovery import bury_dead
from drivetrain.ports.control import ControlLog
from drivetrain.ports.counters import CounterStore
from drivetrain.ports.idempotency import IdempotencyStore
from drivetrain.ports.online import OnlineStore
from drivetrain.ports.tables import ObjectStore, TableStore
from drivetrain.project.snapshot import Snapshot

RUNNING_S = 300.0
"""How long Calls that run are waited for: few may take longer, and what they leave is erased by the next try."""
LOCK_S = 600.0
"""How long another process may roll or tidy up before an erasure gives up for now."""
LOOK_S = 0.1
PERSONAL_DIMENSIONS = ("user", "tag")
"""Limits of these count by person; accounts of others only happen to be called like one."""
MARK = "forgotten"
"""A file of the keys folder that changes when somebody is to be forgotten: who keeps answers in memory drops them."""

OnStep = Callable[[str], None]


class Keys(Protocol):
    """The vault, as far as erasure needs it: `FileVault` has it."""

    def forget(self, subject: str) -> int: ...

    def keys_of(self, subject: str) -> int: ...

    def digest(self, payload: bytes) -> bytes: ...


class Stores(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that may know somebody."""

    snapshot: Snapshot
    lake: Lake
    tables: TableStore
    objects: ObjectStore
    keys: Keys
    online: OnlineStore
    control: ControlLog
    answers: IdempotencyStore | None
    """None where no Idempotency-Key was ever used."""
    counters: CounterStore | None
    """None where nothing was ever limited."""


class Erasure:
    """Erases persons from one project's stores.

    actor: whom the receipt names. on_step: hears what is done next.
    """

    def __init__(
        self,
        stores: Stores,
        *,
        actor: str,
        on_step: OnStep = lambda _: None,
        running_s: float = RUNNING_S,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._stores = stores
        self._snapshot = stores.snapshot
        self._data_folder = stores.snapshot.data_folder
        self._keys_folder = stores.snapshot.keys_folder
        self._keys = stores.keys
        self._control = stores.control
        self._actor = actor
        self._on_step = on_step
        self._running_s = running_s
        self._now_ns = now_ns
        self._monotonic = monotonic
        self._sleep = sleep
        self._definitions = define(stores.snapshot.features)

    def look(self, id_: str) -> tuple[Places, Elsewhere]:
        """What there is of somebody, and what may be elsewhere; changes nothing. Raises: DrivetrainError."""
        return self._look(subject_of(id_), lambda _workflow, _key: "")

    def erase(self, id_: str) -> Receipt | None:
        """Everything of them goes; None where nothing is known of them, and nothing was done.

        Finishes an erasure that was cut off first. May be called again where it fails. Raises: DrivetrainError.
        """
        subject = subject_of(id_)
        with alone(self._keys_folder):
            before = unfinished(self._keys_folder)
            if before is not None:
                receipt = self._finish(before)
                if before.subject == subject.id:
                    return receipt
            places, _ = self.look(id_)
            if not places.any:
                return None
            note = fresh_note(subject.id, self._now_ns())
            write_note(self._keys_folder, note)
            return self._finish(note)

    def resume(self) -> Receipt | None:
        """Finish an erasure that was cut off; None where there is none. Raises: DrivetrainError."""
        with alone(self._keys_folder):
            note = unfinished(self._keys_folder)
            return None if note is None else self._finish(note)

    # The steps.

    def _finish(self, note: Note) -> Receipt:
        under_way = _UnderWay(self, note)
        if "calls" not in note.done:
            # What was rolled since it was cut off may be theirs too, and is found as long as their Calls are.
            under_way.redo(LAKE_STEPS)
        for step in FIRST_STEPS:
            self._do(step, under_way)
        with self._not_rolling():
            for step in LAKE_STEPS:
                self._do(step, under_way)
        for step in LAST_STEPS:
            self._do(step, under_way)
        self._on_step("end")
        remove_note(self._keys_folder)
        return under_way.receipt

    def _do(self, step: str, under_way: _UnderWay) -> None:
        if step not in under_way.note.done:
            self._on_step(step)
            getattr(under_way, step)()
            under_way.tick(step)

    def _look(self, subject: Subject, pseudonym: Callable[[str, str], str]) -> tuple[Places, Elsewhere]:
        stores = self._stores
        lake = self._lake_erasing(subject, pseudonym)
        rows = lake.count(stores.lake)
        in_datasets = self._dataset_erasing(subject, lake.call_ids(stores.lake))
        found = in_datasets.count()
        places = Places(
            keys=self._keys.keys_of(subject.id),
            calls=rows.calls,
            others_calls=rows.others_calls,
            outcomes=rows.outcomes,
            spend=rows.spend,
            pushed=rows.pushed,
            datasets={one.artifact: one.rows for one in found if one.rows},
            quarantined={one.artifact: one.violations for one in found if one.violations},
            described=tuple(one.artifact for one in found if one.named),
            vectors=self._online_erasing(subject).count(),
            eval_rows=self._run_erasing(subject, pseudonym).count(),
            accounts=len(self._accounts(subject)),
        )
        return places, elsewhere(
            self._snapshot,
            self._control,
            subject.id,
            changed=[one.artifact for one in found if one.any],
            unmarked={one.artifact: one.unmarked for one in found if one.unmarked},
            datasets=list(in_datasets.readable()),
            unreadable=list(in_datasets.unreadable),
            providers=lake.providers(stores.lake),
        )

    def _lake_erasing(self, subject: Subject, pseudonym: Callable[[str, str], str]) -> LakeErasing:
        keys = subject_keys(self._snapshot.features.entities)
        return LakeErasing(self._stores.tables, subject, pseudonym, keys=keys)

    def _dataset_erasing(self, subject: Subject, call_ids: Sequence[str]) -> DatasetErasing:
        return DatasetErasing(
            self._stores.objects,
            self._control,
            subject,
            call_ids=call_ids,
            scratch=staging_folder(self._data_folder),
            actor=self._actor,
            now_ns=self._now_ns,
        )

    def _online_erasing(self, subject: Subject) -> OnlineErasing:
        return OnlineErasing(self._stores.online, self._definitions, self._snapshot.features.entities, subject.id)

    def _run_erasing(self, subject: Subject, pseudonym: Callable[[str, str], str]) -> RunErasing:
        stores = self._stores
        return RunErasing(
            self._data_folder,
            subject.id,
            call_ids=self._lake_erasing(subject, pseudonym).call_ids(stores.lake),
            datasets=list(Shelf(stores.objects).numbers()),
            digest=self._keys.digest,
            pseudonym=partial(pseudonym, "eval group"),
        )

    def _accounts(self, subject: Subject) -> list[str]:
        """Accounts under their name, but those of limits that count something else."""
        counters = self._stores.counters
        if counters is None:
            return []
        declared = self._snapshot.limits
        return [
            name
            for name in counters.named(subject.id)
            if (limit := declared.get(name.partition("/")[0])) is None or limit.dimension in PERSONAL_DIMENSIONS
        ]

    @contextlib.contextmanager
    def _not_rolling(self) -> Iterator[None]:
        """Nobody rolls, tidies up or copies this folder meanwhile. Raises: DrivetrainError after `LOCK_S`."""
        deadline = self._monotonic() + LOCK_S
        while True:
            with plans.locked(self._data_folder) as held, deleting(self._data_folder) as free:
                if held and free:
                    yield
                    return
            if self._monotonic() >= deadline:
                raise DrivetrainError(
                    f"Another process has been rolling records into the lake, or making a backup, for {LOCK_S:g} s.",
                    looked=[str(plans.plans_folder(self._data_folder))],
                    do="Run `drivetrain erase --resume` when it has ended.",
                )
            self._sleep(LOOK_S)


FIRST_STEPS = ("keys", "segments")
LAKE_STEPS = ("count", "outcomes", "spend", "pushed", "datasets", "online", "evals", "calls")
"""Under the rolling lock as a whole, or an Outcome could come in after the Outcomes and its Call before the Calls."""
LAST_STEPS = ("answers", "accounts", "mark", "tell")
"""Steps in their order; each is a method of `_UnderWay` that may be cut off and done again."""


class _UnderWay:
    """One erasure, step by step."""

    def __init__(self, erasure: Erasure, note: Note) -> None:
        self.note = note
        self._erasure = erasure
        self._stores = erasure._stores
        self._subject = Subject(note.subject)
        self._lake = erasure._lake_erasing(self._subject, self._pseudonym)

    def redo(self, steps: Sequence[str]) -> None:
        """These steps are not done."""
        if not set(steps).isdisjoint(self.note.done):
            self._keep(done=tuple(step for step in self.note.done if step not in steps))

    def tick(self, step: str) -> None:
        """A step is done."""
        self._keep(done=(*self.note.done, step))

    def keys(self) -> None:
        """From here on none of their payloads can be read, wherever a copy is."""
        vault = self._erasure._keys
        self._find("keys", vault.keys_of(self._subject.id))
        vault.forget(self._subject.id)

    def segments(self) -> None:
        """The ledger's older segments, theirs among others', stand in the lake and are gone."""
        erasure = self._erasure
        before_ns = leave_all(erasure._data_folder)
        gone = settle(
            erasure._data_folder,
            self._stores.tables,
            before_ns,
            needed=self._needed,
            timeout_s=erasure._running_s,
            monotonic=erasure._monotonic,
            sleep=erasure._sleep,
        )
        self._find("segments", gone)

    def count(self) -> None:
        """What there is, before any of it goes: the receipt says so."""
        places, others = self._erasure._look(self._subject, self._pseudonym)
        self._find("places", msgspec.to_builtins(msgspec.structs.replace(places, keys=self.note.found["keys"])))
        self._find("elsewhere", msgspec.to_builtins(others))

    def outcomes(self) -> None:
        self._lake.erase_outcomes()

    def spend(self) -> None:
        self._lake.erase_spend()

    def pushed(self) -> None:
        self._lake.erase_pushed()

    def datasets(self) -> None:
        sweep_staging(self._erasure._data_folder)
        call_ids = self._lake.call_ids(self._stores.lake)
        self._erasure._dataset_erasing(self._subject, call_ids).erase()

    def online(self) -> None:
        self._erasure._online_erasing(self._subject).erase()

    def evals(self) -> None:
        erasure = self._erasure
        erasure._run_erasing(self._subject, self._pseudonym).erase(
            timeout_s=erasure._running_s, monotonic=erasure._monotonic, sleep=erasure._sleep
        )

    def calls(self) -> None:
        self._lake.erase_calls()

    def answers(self) -> None:
        store = self._stores.answers
        self._find("answers", 0 if store is None else store.drop_answers())

    def accounts(self) -> None:
        counters = self._stores.counters
        if counters is not None:
            counters.rename({name: self._renamed(name) for name in self._erasure._accounts(self._subject)})

    def mark(self) -> None:
        """Answers that Calls of before left in some process's memory go once more: those Calls have all ended."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._erasure._keys_folder / MARK)

    def tell(self) -> None:
        """The receipt goes into the control log, once."""
        self._find("ended_ns", self._erasure._now_ns())
        receipt, control = self.receipt, self._stores.control
        if not any(one.kind == ERASE and self.note.id in one.body for one in control.records()):
            body = _without(receipt.body, self._subject.id)
            control.append(kind=ERASE, actor=self._erasure._actor, subject=receipt.digest, body=body)

    @property
    def receipt(self) -> Receipt:
        """What was found and done, as soon as it is all done."""
        found = self.note.found
        digest = self._erasure._keys.digest(self._subject.id.encode()).hex()[:16]
        return Receipt(
            erasure=self.note.id,
            digest=digest,
            began_ns=self.note.began_ns,
            ended_ns=found["ended_ns"],
            places=msgspec.convert(found["places"], Places),
            answers=found["answers"],
            segments=found["segments"],
            elsewhere=msgspec.convert(found["elsewhere"], Elsewhere),
        )

    def _pseudonym(self, *named: str) -> str:
        """Nobody can tell what it stands for once the note is gone; until then it is the same each time."""
        secret = bytes.fromhex(self.note.secret)
        return hashlib.blake2b("\0".join(named).encode(), key=secret, digest_size=8).hexdigest()

    def _renamed(self, account: str) -> str:
        limit, _, rest = account.partition("/")
        return f"{limit}/{ERASED}-{self._pseudonym(account)}@{rest.rpartition('@')[2]}"

    def _needed(self, rolled: Sequence[Segment]) -> list[str]:
        """Of these segments, those with a reservation that is not in what its worker has told the counters."""
        counters = self._stores.counters
        if counters is None:
            return []
        bury_dead(counters, partial(records_of, self._erasure._data_folder))
        told = {one.worker: one for one in counters.told()}
        return [
            segment.name
            for segment in rolled
            if (worker := told.get(segment.writer)) is not None
            and segment.name >= worker.position
            and any(number > worker.mark or number in worker.open for number in _reservations(segment))
        ]

    def _keep(self, **changes: Any) -> None:
        self.note = msgspec.structs.replace(self.note, **changes)
        write_note(self._erasure._keys_folder, self.note)

    def _find(self, name: str, value: Any) -> None:
        """What a step found when it first began; a step that is done again finds less."""
        if name not in self.note.found:
            self._keep(found={**self.note.found, name: value})


def _reservations(segment: Segment) -> Iterator[int]:
    """Numbers of all reservations in a segment."""
    for _, _, record in records(segment, []):
        reserved = record.reservation if isinstance(record, OpenedV1) else record
        if isinstance(reserved, ReservedV1):
            yield reserved.number


def _without(value: Any, id_: str) -> Any:
    """A receipt's body without names that have the id in them, such as an export's."""
    if isinstance(value, str):
        return ERASED if id_ in value else value
    if isinstance(value, dict):
        return {_without(name, id_): _without(one, id_) for name, one in value.items()}
    return [_without(one, id_) for one in value] if isinstance(value, list | tuple) else value
